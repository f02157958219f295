//! Reading tar files that others made. Nothing is unpacked here; names are judged before anybody sees them.

use super::BLOCK;
use super::write::checksum;
use std::io::{self, Read};

/// What a member is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum MemberKind {
    /// A file of so many bytes.
    File(u64),
    Directory,
    /// A symbolic link, with its target.
    Link(Vec<u8>),
}

/// A member's header.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Member {
    /// Without `./` in front and slashes at the end; empty for the directory that all is in.
    pub(crate) name: Vec<u8>,
    pub(crate) kind: MemberKind,
    pub(crate) mode: u32,
    pub(crate) mtime: u64,
    pub(crate) user: String,
    pub(crate) group: String,
}

/// Reads members one after the other. What is not read of a member's bytes is skipped.
pub(crate) struct TarReader<R: Read> {
    input: R,
    /// Bytes of the present member that were not read yet.
    left: u64,
    padding: u64,
    ended: bool,
}

fn bad(reason: impl Into<String>) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, reason.into())
}

fn cut_off() -> io::Error {
    io::Error::new(io::ErrorKind::UnexpectedEof, "it is cut off")
}

/// Bytes up to the first zero.
fn text(field: &[u8]) -> &[u8] {
    field.split(|&byte| byte == 0).next().unwrap_or_default()
}

/// `read_tar_number`; blanks in front are skipped, as other writers have them.
fn number(field: &[u8]) -> io::Result<u64> {
    let odd = || bad("a number in a header cannot be read");
    if field[0] == 0x80 {
        let bytes = &field[1..];
        let (high, low) = bytes.split_at(bytes.len().saturating_sub(8));
        if high.iter().any(|byte| *byte != 0) {
            return Err(odd());
        }
        return Ok(low.iter().fold(0, |value, byte| value << 8 | u64::from(*byte)));
    }
    let digits = text(field).trim_ascii();
    digits.iter().try_fold(0u64, |value, byte| match byte {
        b'0'..=b'7' => Ok(value << 3 | u64::from(byte - b'0')),
        _ => Err(odd()),
    })
}

/// Removes `./` and trailing slashes; refuses names that lead out of where they are unpacked.
fn clean(name: &[u8]) -> io::Result<Vec<u8>> {
    let hostile = |why: &str| bad(format!("the member {:?} {why}", String::from_utf8_lossy(name)));
    if name.starts_with(b"/") {
        return Err(hostile("has an absolute path"));
    }
    let mut parts = Vec::new();
    for part in name.split(|&byte| byte == b'/') {
        match part {
            b"" | b"." => {}
            b".." => return Err(hostile("leads out of the directory")),
            part => parts.push(part),
        }
    }
    Ok(parts.join(&b'/'))
}

impl<R: Read> TarReader<R> {
    pub(crate) fn new(input: R) -> Self {
        Self { input, left: 0, padding: 0, ended: false }
    }

    fn block(&mut self) -> io::Result<[u8; BLOCK]> {
        let mut block = [0; BLOCK];
        self.input.read_exact(&mut block).map_err(ended_early)?;
        Ok(block)
    }

    /// The next member; none at the end, which must be marked as such.
    pub(crate) fn next(&mut self) -> io::Result<Option<Member>> {
        if self.ended {
            return Ok(None);
        }
        self.skip(self.left + self.padding)?;
        (self.left, self.padding) = (0, 0);
        let header = self.block()?;
        if header.iter().all(|byte| *byte == 0) {
            self.ended = true;
            // Also what follows: a compressed stream has its checksum at its end.
            io::copy(&mut self.input, &mut io::sink()).map_err(ended_early)?;
            return Ok(None);
        }
        let known = [&b"ustar\x0000"[..], b"ustar  \0", b"ustar00\0"];
        if !known.contains(&&header[257..265]) || number(&header[148..156])? != checksum(&header) {
            return Err(bad("it is no tar file, or a header in it is damaged"));
        }
        let mut name = text(&header[..100]).to_vec();
        let prefix = text(&header[345..500]);
        if header[262] == 0 && !prefix.is_empty() {
            name = [prefix, b"/", &name].concat();
        }
        let len = number(&header[124..136])?;
        let kind = match header[156] {
            b'0' | 0 => MemberKind::File(len),
            b'5' => MemberKind::Directory,
            b'2' => MemberKind::Link(text(&header[157..257]).to_vec()),
            other => {
                return Err(bad(format!(
                    "the member {:?} is of type {:?}, which pg_basebackup does not make",
                    String::from_utf8_lossy(&name),
                    char::from(other)
                )));
            }
        };
        if let MemberKind::File(len) = kind {
            self.left = len;
            let blocks = len.checked_next_multiple_of(BLOCK as u64).ok_or_else(|| bad("a size cannot be"))?;
            self.padding = blocks - len;
        }
        Ok(Some(Member {
            name: clean(&name)?,
            kind,
            mode: number(&header[100..108])? as u32 & 0o7777,
            mtime: number(&header[136..148])?,
            user: String::from_utf8_lossy(text(&header[265..297])).into_owned(),
            group: String::from_utf8_lossy(text(&header[297..329])).into_owned(),
        }))
    }

    /// Reads bytes of the present member until the buffer is full or the member ends.
    pub(crate) fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let want = usize::try_from(self.left).unwrap_or(usize::MAX).min(buffer.len());
        self.input.read_exact(&mut buffer[..want]).map_err(ended_early)?;
        self.left -= want as u64;
        Ok(want)
    }

    fn skip(&mut self, bytes: u64) -> io::Result<()> {
        let skipped = io::copy(&mut self.input.by_ref().take(bytes), &mut io::sink()).map_err(ended_early)?;
        if skipped < bytes { Err(cut_off()) } else { Ok(()) }
    }
}

/// Decompressors say in different ways that their input ends too early.
fn ended_early(error: io::Error) -> io::Error {
    match error.kind() {
        io::ErrorKind::UnexpectedEof => cut_off(),
        _ => error,
    }
}

#[cfg(test)]
mod tests {
    use super::super::write::{TarMeta, TarWriter};
    use super::*;

    const META: TarMeta = TarMeta { mode: 0o600, uid: 1, gid: 2, mtime: 77 };

    fn sample() -> Vec<u8> {
        let mut tar = TarWriter::new(Vec::new());
        tar.directory(b"base", TarMeta { mode: 0o700, ..META }).unwrap();
        tar.file(b"./base/1", 600, META).unwrap();
        tar.data(&[9; 600]).unwrap();
        tar.link(b"pg_tblspc/5", b"/fast", META).unwrap();
        tar.finish().unwrap()
    }

    fn read_all(bytes: &[u8]) -> io::Result<Vec<(Member, Vec<u8>)>> {
        let mut reader = TarReader::new(bytes);
        let mut all = Vec::new();
        while let Some(member) = reader.next()? {
            let mut content = vec![0; 4096];
            let len = reader.read(&mut content)?;
            content.truncate(len);
            all.push((member, content));
        }
        Ok(all)
    }

    #[test]
    fn what_was_written_is_read() {
        let all = read_all(&sample()).unwrap();
        let names: Vec<_> = all.iter().map(|(member, _)| String::from_utf8_lossy(&member.name).into_owned()).collect();
        assert_eq!(names, ["base", "base/1", "pg_tblspc/5"]);
        assert_eq!(all[1].1, [9; 600]);
        assert_eq!(all[2].0.kind, MemberKind::Link(b"/fast".to_vec()));
        assert_eq!((all[1].0.mode, all[1].0.mtime, all[1].0.user.as_str()), (0o600, 77, "postgres"));
    }

    #[test]
    fn every_cut_is_noticed() {
        let bytes = sample();
        // The last of the two blocks at the end may be missing: some writers pad differently.
        for len in 0..bytes.len() - BLOCK {
            assert!(read_all(&bytes[..len]).is_err(), "{len} of {}", bytes.len());
        }
    }

    #[test]
    fn every_changed_header_byte_is_noticed() {
        let whole = sample();
        for at in 0..BLOCK {
            let mut bytes = whole.clone();
            bytes[at] ^= 1;
            assert!(read_all(&bytes).is_err(), "{at}");
        }
    }

    #[test]
    fn names_that_lead_out_are_refused() {
        for name in ["../x", "base/../../x", "/etc/passwd", "base/.."] {
            assert!(clean(name.as_bytes()).is_err(), "{name}");
        }
        assert_eq!(clean(b"./").unwrap(), b"");
        assert_eq!(clean(b".//base/./1/").unwrap(), b"base/1");
    }

    #[test]
    fn large_sizes() {
        assert_eq!(number(b"\x80\0\0\0\0\0\0\x02\0\0\0\0").unwrap(), 1 << 33);
        assert!(number(b"\x80\x01\0\0\0\0\0\x02\0\0\0\0").is_err());
        assert_eq!(number(b"  600 \0\0").unwrap(), 0o600);
        assert!(number(b"9000600\0").is_err());
    }

    proptest::proptest! {
        #[test]
        fn reading_never_panics(bytes: Vec<u8>, at in 0usize..2000, byte: u8) {
            let _ = read_all(&bytes);
            let mut changed = sample();
            let at = at % changed.len();
            changed[at] = byte;
            let _ = read_all(&changed);
        }
    }
}
