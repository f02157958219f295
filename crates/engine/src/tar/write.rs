//! Writing tar members, with exactly the header fields that the server writes (`tarCreateHeader`).

use super::BLOCK;
use std::io::{self, Write};

/// A name has at most so many bytes; the server refuses longer ones, and so do we, before anything is written.
const NAME_MAX: usize = 99;

/// Whether a path, or the target of a link, fits into a header.
pub(crate) fn fits_name(name: &[u8]) -> bool {
    name.len() <= NAME_MAX
}

/// What a header says besides name and size.
#[derive(Debug, Clone, Copy)]
pub(crate) struct TarMeta {
    pub(crate) mode: u32,
    pub(crate) uid: u32,
    pub(crate) gid: u32,
    pub(crate) mtime: u64,
}

/// Writes members one after the other. Each member's bytes are as many as its header says.
pub(crate) struct TarWriter<W: Write> {
    out: W,
    /// Bytes of padding after the present member.
    padding: usize,
}

enum Member<'a> {
    File(u64),
    Directory,
    Link(&'a [u8]),
}

fn put_number(field: &mut [u8], mut value: u64) {
    let len = field.len();
    if value < 1 << ((len - 1) * 3) {
        field[len - 1] = b' ';
        for digit in field[..len - 1].iter_mut().rev() {
            *digit = b'0' + (value & 7) as u8;
            value >>= 3;
        }
    } else {
        for byte in field[1..].iter_mut().rev() {
            *byte = (value & 255) as u8;
            value >>= 8;
        }
        field[0] = 0x80;
    }
}

/// The sum of a header's bytes, with its own field taken for spaces.
pub(crate) fn checksum(header: &[u8; BLOCK]) -> u64 {
    header.iter().enumerate().map(|(at, byte)| if (148..156).contains(&at) { 32 } else { u64::from(*byte) }).sum()
}

fn header(name: &[u8], member: &Member<'_>, meta: TarMeta) -> io::Result<[u8; BLOCK]> {
    let too_long = |what: &str, name: &[u8]| {
        io::Error::other(format!("{what} {} is too long for tar", String::from_utf8_lossy(name)))
    };
    let mut header = [0; BLOCK];
    if !fits_name(name) {
        return Err(too_long("the name", name));
    }
    header[..name.len()].copy_from_slice(name);
    if !matches!(member, Member::File(_)) {
        header[name.len()] = b'/';
    }
    put_number(&mut header[100..108], u64::from(meta.mode & 0o7777));
    put_number(&mut header[108..116], meta.uid.into());
    put_number(&mut header[116..124], meta.gid.into());
    put_number(&mut header[124..136], if let Member::File(len) = member { *len } else { 0 });
    put_number(&mut header[136..148], meta.mtime);
    header[156] = match member {
        Member::File(_) => b'0',
        Member::Link(_) => b'2',
        Member::Directory => b'5',
    };
    if let Member::Link(target) = member {
        if !fits_name(target) {
            return Err(too_long("the target of the link,", target));
        }
        header[157..157 + target.len()].copy_from_slice(target);
    }
    header[257..262].copy_from_slice(b"ustar");
    header[263..265].copy_from_slice(b"00");
    header[265..273].copy_from_slice(b"postgres");
    header[297..305].copy_from_slice(b"postgres");
    put_number(&mut header[329..337], 0);
    put_number(&mut header[337..345], 0);
    let sum = checksum(&header);
    put_number(&mut header[148..156], sum);
    Ok(header)
}

impl<W: Write> TarWriter<W> {
    pub(crate) fn new(out: W) -> Self {
        Self { out, padding: 0 }
    }

    fn begin(&mut self, name: &[u8], member: &Member<'_>, meta: TarMeta) -> io::Result<()> {
        self.pad()?;
        self.out.write_all(&header(name, member, meta)?)
    }

    fn pad(&mut self) -> io::Result<()> {
        let padding = std::mem::take(&mut self.padding);
        self.out.write_all(&[0; BLOCK][..padding])
    }

    /// Begins a file; its bytes follow with [`data`](Self::data).
    pub(crate) fn file(&mut self, name: &[u8], len: u64, meta: TarMeta) -> io::Result<()> {
        self.begin(name, &Member::File(len), meta)?;
        self.padding = (len.next_multiple_of(BLOCK as u64) - len) as usize;
        Ok(())
    }

    pub(crate) fn directory(&mut self, name: &[u8], meta: TarMeta) -> io::Result<()> {
        self.begin(name, &Member::Directory, meta)
    }

    pub(crate) fn link(&mut self, name: &[u8], target: &[u8], meta: TarMeta) -> io::Result<()> {
        self.begin(name, &Member::Link(target), meta)
    }

    pub(crate) fn data(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.out.write_all(bytes)
    }

    /// Writes the two blocks of zeros that end a tar file: without them it is cut off.
    pub(crate) fn finish(mut self) -> io::Result<W> {
        self.pad()?;
        self.out.write_all(&[0; 2 * BLOCK])?;
        Ok(self.out)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const META: TarMeta = TarMeta { mode: 0o100_600, uid: 101, gid: 3_000_000, mtime: 1_795_205_350 };

    #[test]
    fn numbers_are_octal_as_long_as_they_fit() {
        let text = |len: usize, value| {
            let mut field = vec![0; len];
            put_number(&mut field, value);
            field
        };
        assert_eq!(text(8, 0o600), b"0000600 ");
        assert_eq!(text(8, (1 << 21) - 1), b"7777777 ");
        assert_eq!(text(8, 1 << 21), [0x80, 0, 0, 0, 0, 0x20, 0, 0]);
        assert_eq!(text(12, 1 << 33), [0x80, 0, 0, 0, 0, 0, 0, 2, 0, 0, 0, 0]);
    }

    #[test]
    fn tar_reads_what_is_written() {
        let mut tar = TarWriter::new(Vec::new());
        tar.directory(b"base", TarMeta { mode: 0o700, ..META }).unwrap();
        tar.file(b"base/1", 5, META).unwrap();
        tar.data(b"hello").unwrap();
        tar.file(b"base/2", 0, META).unwrap();
        tar.file(b"base/3", 512, META).unwrap();
        tar.data(&[7; 512]).unwrap();
        tar.link(b"pg_tblspc/16400", b"/fast", TarMeta { mode: 0o777, ..META }).unwrap();
        assert!(tar.file(&[b'x'; 100], 0, META).is_err());
        let bytes = tar.finish().unwrap();
        assert_eq!(bytes.len() % BLOCK, 0);
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("x.tar");
        std::fs::write(&file, bytes).unwrap();
        let listing = std::process::Command::new("tar")
            .args(["--utc", "--numeric-owner", "-tvf"])
            .arg(&file)
            .env("LC_ALL", "C")
            .output()
            .unwrap();
        let text = String::from_utf8_lossy(&listing.stdout).into_owned();
        assert!(listing.status.success() && listing.stderr.is_empty(), "{listing:?}");
        let words: Vec<Vec<&str>> = text.lines().map(|line| line.split_whitespace().collect()).collect();
        let names: Vec<(&str, &str, &str)> = words.iter().map(|words| (words[0], words[2], words[5])).collect();
        assert_eq!(
            names,
            [
                ("drwx------", "0", "base/"),
                ("-rw-------", "5", "base/1"),
                ("-rw-------", "0", "base/2"),
                ("-rw-------", "512", "base/3"),
                ("lrwxrwxrwx", "0", "pg_tblspc/16400/"),
            ]
        );
        assert_eq!(words[1][1], "101/3000000");
        assert_eq!(words[1][3], "2026-11-20");
        assert!(text.contains("-> /fast"), "{text}");
    }
}
