//! Files in pieces: `NAME.000`, `NAME.001` and so on, all of one size but the last, and `NAME.sha256`, written last, which lists
//! them as `sha256sum` does. `cat NAME.???` makes the file of them. Pieces that `split -d -a 3` made have no list and are read, too.

use crate::DumpError;
use aws_lc_rs::digest::{Context as Hash, SHA256};
use std::fs::{File, OpenOptions};
use std::io::{self, Read, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

/// So many have names.
const PIECES_MAX: usize = 1000;

fn piece_name(path: &Path, number: usize) -> PathBuf {
    with_suffix(path, &format!(".{number:03}"))
}

fn with_suffix(path: &Path, suffix: &str) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(suffix);
    name.into()
}

fn hex(hash: &[u8]) -> String {
    hash.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// Writes the pieces of a file. They have other names until [`keep`](Self::keep).
pub(crate) struct PieceWriter {
    path: PathBuf,
    size: u64,
    /// Where each is now, and its hash.
    done: Vec<(PathBuf, String)>,
    open: Option<Open>,
    kept: bool,
}

struct Open {
    path: PathBuf,
    file: File,
    hash: Hash,
    written: u64,
}

impl PieceWriter {
    /// Refuses what is there already.
    pub(crate) fn create(path: &Path, size: u64) -> Result<Self, DumpError> {
        for there in [path.to_owned(), piece_name(path, 0), with_suffix(path, ".sha256")] {
            if std::fs::symlink_metadata(&there).is_ok() {
                return Err(DumpError::refused(
                    format!("{} is there already", there.display()),
                    "name another path, or remove it",
                ));
            }
        }
        Ok(Self { path: path.to_owned(), size: size.max(1), done: Vec::new(), open: None, kept: false })
    }

    fn partial(&self, number: usize) -> PathBuf {
        let name = self.path.file_name().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default();
        self.path.with_file_name(format!(".{name}.{number:03}.{}.partial", std::process::id()))
    }

    fn close(&mut self) -> io::Result<()> {
        if let Some(open) = self.open.take() {
            open.file.sync_all()?;
            self.done.push((open.path, hex(open.hash.finish().as_ref())));
        }
        Ok(())
    }

    fn next(&mut self) -> io::Result<Open> {
        let number = self.done.len();
        if number == PIECES_MAX {
            return Err(io::Error::other(format!(
                "more than {PIECES_MAX} pieces of {} bytes; make them larger",
                self.size
            )));
        }
        let path = self.partial(number);
        let file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(&path)?;
        Ok(Open { path, file, hash: Hash::new(&SHA256), written: 0 })
    }

    /// Gives all their names, the list last, durably. Gives how many there are.
    pub(crate) fn keep(mut self) -> Result<usize, DumpError> {
        let path = self.path.clone();
        let kept = self.keep_all();
        kept.map_err(|error| DumpError::file(path, "giving its pieces their names", error))
    }

    fn keep_all(&mut self) -> io::Result<usize> {
        self.close()?;
        let mut list = String::new();
        let name = self.path.file_name().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default();
        for (number, (at, hash)) in self.done.iter().enumerate() {
            std::fs::rename(at, piece_name(&self.path, number))?;
            list += &format!("{hash}  {name}.{number:03}\n");
        }
        let to = with_suffix(&self.path, ".sha256");
        let mut file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(&to)?;
        file.write_all(list.as_bytes())?;
        file.sync_all()?;
        self.kept = true;
        let parent = self.path.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."));
        File::open(parent)?.sync_all()?;
        Ok(self.done.len())
    }
}

impl Write for PieceWriter {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        if self.open.as_ref().is_some_and(|open| open.written == self.size) {
            self.close()?;
        }
        let mut open = match self.open.take() {
            Some(open) => open,
            None => self.next()?,
        };
        let len = (bytes.len() as u64).min(self.size - open.written) as usize;
        let written = open.file.write(&bytes[..len]);
        if let Ok(written) = written {
            open.hash.update(&bytes[..written]);
            open.written += written as u64;
        }
        self.open = Some(open);
        written
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl Drop for PieceWriter {
    fn drop(&mut self) {
        if self.kept {
            return;
        }
        let open = self.open.take().map(|open| open.path);
        for path in self.done.iter().map(|(path, _)| path.clone()).chain(open) {
            let _ = std::fs::remove_file(path);
        }
        (0..self.done.len()).for_each(|number| drop(std::fs::remove_file(piece_name(&self.path, number))));
    }
}

/// A file, or the pieces of one, all of which are there.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Whole {
    /// The file's name.
    pub(crate) path: PathBuf,
    /// Its pieces, in order, with their hashes where a list has them; only itself when it is whole.
    pieces: Vec<(PathBuf, Option<String>)>,
    pub(crate) bytes: u64,
}

fn refused(reason: String) -> DumpError {
    DumpError::refused(reason, "bring the pieces together again; all are needed, in one directory")
}

impl Whole {
    /// What is meant by a path: a file, the first of its pieces, or their common name.
    pub(crate) fn find(path: &Path) -> Result<Self, DumpError> {
        let text = path.as_os_str().to_string_lossy().into_owned();
        let number = text.rsplit_once('.').filter(|(_, end)| end.len() == 3).and_then(|(name, end)| {
            Some((
                PathBuf::from(name),
                end.bytes().all(|byte| byte.is_ascii_digit()).then(|| end.parse::<usize>().ok())??,
            ))
        });
        let listed = |base: &Path| with_suffix(base, ".sha256").is_file();
        match number {
            Some((base, 0)) => Self::of_pieces(&base),
            Some((base, number)) if listed(&base) || piece_name(&base, 0).exists() => Err(DumpError::refused(
                format!("{text} is piece {number} of {}", base.display()),
                format!("name the first, {}", piece_name(&base, 0).display()),
            )),
            _ if !path.exists() && (listed(path) || piece_name(path, 0).exists()) => Self::of_pieces(path),
            _ => {
                let meta = std::fs::metadata(path).map_err(|error| DumpError::file(path, "reading", error))?;
                Ok(Self { path: path.to_owned(), pieces: vec![(path.to_owned(), None)], bytes: meta.len() })
            }
        }
    }

    /// Whether it is in pieces.
    pub(crate) fn is_split(&self) -> bool {
        self.pieces.first().is_none_or(|(path, _)| *path != self.path)
    }

    fn of_pieces(base: &Path) -> Result<Self, DumpError> {
        let list = with_suffix(base, ".sha256");
        let pieces = match std::fs::read_to_string(&list) {
            Ok(text) => listed(base, &text).ok_or_else(|| {
                DumpError::refused(
                    format!("{} does not list the pieces of {}", list.display(), base.display()),
                    "take it away: then the pieces that are there are read as they are",
                )
            })?,
            Err(error) if error.kind() == io::ErrorKind::NotFound => found(base)?,
            Err(error) => return Err(DumpError::file(list, "reading", error)),
        };
        let mut sizes = Vec::new();
        for (path, _) in &pieces {
            match std::fs::metadata(path) {
                Ok(meta) => sizes.push(meta.len()),
                Err(error) if error.kind() == io::ErrorKind::NotFound => {
                    return Err(refused(format!("piece {} of {} is missing", path.display(), base.display())));
                }
                Err(error) => return Err(DumpError::file(path, "reading", error)),
            }
        }
        let first = sizes.first().copied().unwrap_or(0);
        let last = sizes.len().saturating_sub(1);
        let wrong = |(number, size): &(usize, &u64)| if *number == last { **size > first } else { **size != first };
        if let Some((number, size)) = sizes.iter().enumerate().find(wrong) {
            let path = pieces[number].0.display();
            return Err(refused(format!(
                "piece {path} has {size} bytes, the first has {first}: one of them is cut off"
            )));
        }
        Ok(Self { path: base.to_owned(), pieces, bytes: sizes.iter().sum() })
    }

    /// Reads all of it. Each piece that has a hash is compared with it.
    pub(crate) fn open(&self) -> PieceReader {
        PieceReader { left: self.pieces.clone().into_iter(), open: None }
    }
}

/// The pieces that a list names: they are numbered from 0 on.
fn listed(base: &Path, text: &str) -> Option<Vec<(PathBuf, Option<String>)>> {
    let name = base.file_name()?.to_string_lossy().into_owned();
    let piece = |(number, line): (usize, &str)| {
        let (hash, of) = line.split_once("  ")?;
        let right = hash.len() == 64 && of == format!("{name}.{number:03}");
        right.then(|| (piece_name(base, number), Some(hash.to_ascii_lowercase())))
    };
    let pieces: Option<Vec<_>> = text.lines().enumerate().map(piece).collect();
    pieces.filter(|pieces| !pieces.is_empty())
}

/// The pieces that lie there, without a list.
fn found(base: &Path) -> Result<Vec<(PathBuf, Option<String>)>, DumpError> {
    let there = |number: &usize| piece_name(base, *number).exists();
    let count = (0..PIECES_MAX).take_while(there).count();
    if let Some(beyond) = (count..PIECES_MAX).find(there) {
        let missing = piece_name(base, count);
        let beyond = piece_name(base, beyond);
        return Err(refused(format!("piece {} is missing, {} is there", missing.display(), beyond.display())));
    }
    // None at all: the first is named as missing.
    Ok((0..count.max(1)).map(|number| (piece_name(base, number), None)).collect())
}

/// Reads pieces, one behind the other.
pub(crate) struct PieceReader {
    left: std::vec::IntoIter<(PathBuf, Option<String>)>,
    open: Option<Reading>,
}

/// A piece that is being read.
struct Reading {
    file: File,
    path: PathBuf,
    /// Of what was read, and what it must be.
    hash: Option<(Hash, String)>,
}

impl Read for PieceReader {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        loop {
            let Some(Reading { file, path, hash }) = &mut self.open else {
                let Some((path, hash)) = self.left.next() else { return Ok(0) };
                let named = |error: io::Error| io::Error::new(error.kind(), format!("{}: {error}", path.display()));
                let file = File::open(&path).map_err(named)?;
                self.open = Some(Reading { file, path, hash: hash.map(|hash| (Hash::new(&SHA256), hash)) });
                continue;
            };
            let got = file.read(buffer)?;
            if got > 0 || buffer.is_empty() {
                if let Some((hash, _)) = hash {
                    hash.update(&buffer[..got]);
                }
                return Ok(got);
            }
            let wrong = hash.take().filter(|(found, hash)| hex(found.clone().finish().as_ref()) != *hash);
            if wrong.is_some() {
                let what = format!("{} is not what was written: its SHA-256 differs", path.display());
                return Err(io::Error::new(io::ErrorKind::InvalidData, what));
            }
            self.open = None;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(path: &Path) -> Result<Vec<u8>, String> {
        let whole = Whole::find(path).map_err(|error| error.to_string())?;
        let mut bytes = Vec::new();
        whole.open().read_to_end(&mut bytes).map_err(|error| error.to_string())?;
        assert_eq!(whole.bytes, bytes.len() as u64);
        Ok(bytes)
    }

    #[test]
    fn pieces_are_the_whole_and_a_missing_one_is_named() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("a.dump");
        let bytes: Vec<u8> = (0..1000_u32).flat_map(u32::to_le_bytes).collect();
        for (size, count) in [(4000, 1), (1500, 3), (1000, 4), (9000, 1)] {
            let mut writer = PieceWriter::create(&path, size).unwrap();
            bytes.chunks(777).for_each(|some| writer.write_all(some).unwrap());
            assert_eq!(writer.keep().unwrap(), count, "pieces of {size}");
            assert_eq!(read(&path).unwrap(), bytes);
            assert_eq!(read(&piece_name(&path, 0)).unwrap(), bytes);
            std::fs::read_dir(&dir).unwrap().for_each(|entry| std::fs::remove_file(entry.unwrap().path()).unwrap());
        }
        // One that was not kept leaves nothing.
        let mut writer = PieceWriter::create(&path, 100).unwrap();
        writer.write_all(&bytes).unwrap();
        drop(writer);
        assert_eq!(std::fs::read_dir(&dir).unwrap().count(), 0);

        let mut writer = PieceWriter::create(&path, 1500).unwrap();
        writer.write_all(&bytes).unwrap();
        writer.keep().unwrap();
        assert!(PieceWriter::create(&path, 1500).is_err(), "nothing is written over");
        let list = with_suffix(&path, ".sha256");
        let third = piece_name(&path, 2);
        let say = |path: &Path| read(path).unwrap_err();
        assert!(say(&third).contains("is piece 2 of"));
        std::fs::rename(&third, dir.path().join("away")).unwrap();
        assert!(say(&path).contains("a.dump.002 of") && say(&path).contains("is missing"), "{}", say(&path));
        std::fs::rename(dir.path().join("away"), &third).unwrap();
        std::fs::write(&third, vec![7; 1000]).unwrap();
        assert!(say(&path).contains("a.dump.002 is not what was written"));
        // Without a list: what lies there.
        std::fs::remove_file(&list).unwrap();
        assert_eq!(read(&path).unwrap()[..3000], bytes[..3000]);
        std::fs::write(&third, vec![7; 1501]).unwrap();
        assert!(say(&path).contains("1501 bytes"), "{}", say(&path));
        std::fs::remove_file(piece_name(&path, 1)).unwrap();
        assert!(say(&path).contains("a.dump.001 is missing"), "{}", say(&path));
        std::fs::remove_file(piece_name(&path, 0)).unwrap();
        assert!(say(&piece_name(&path, 0)).contains("a.dump.000"));
        std::fs::write(&list, "nothing").unwrap();
        assert!(say(&path).contains("does not list"));
    }
}
