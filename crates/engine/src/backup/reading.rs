//! Reading files that a server is writing: what vanished, what grew or was cut, and pg_control, which must be whole.

use super::listing::Relation;
use crate::EngineError;
use pg_format::control::{CONTROL_FILE_BYTES, ControlFile};
use std::fs::File;
use std::io::ErrorKind;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

/// How often pg_control is read when its checksum does not fit: a write of it was met.
pub(super) const CONTROL_READS: u32 = 50;
pub(super) const CONTROL_READ_AGAIN_AFTER: Duration = Duration::from_millis(20);

/// Opens a file; none when it vanished: the relation was dropped, and replay drops it too.
pub(super) fn open(path: &Path) -> Result<Option<File>, EngineError> {
    match File::open(path) {
        Ok(file) => Ok(Some(file)),
        Err(error) if error.kind() == ErrorKind::NotFound => Ok(None),
        Err(error) => Err(EngineError::file(path, "opening", error)),
    }
}

/// How much of a file is read. What the server or a human rewrites whole, such as `postgresql.auto.conf`, may have become
/// longer since it was listed, and no WAL adds what would be cut off.
pub(super) fn present_len(file: &File, listed: u64, relation: Option<Relation>, small_max: u64) -> u64 {
    if relation.is_some() || listed > small_max {
        return listed;
    }
    file.metadata().map_or(listed, |meta| meta.len().max(listed).min(small_max))
}

/// Reads pg_control again until it is whole: what is stored must be what was checked, for a read may meet a write of the
/// server's. `got` bytes are in the buffer; gives how many are in it then, or what is wrong.
pub(super) fn whole_control(
    mut got: usize,
    buffer: &mut [u8],
    fault: impl Fn(&[u8]) -> Option<String>,
    mut again: impl FnMut(&mut [u8]) -> std::io::Result<usize>,
) -> Result<usize, String> {
    for _ in 1..CONTROL_READS {
        if fault(&buffer[..got]).is_none() {
            return Ok(got);
        }
        got = again(buffer).map_err(|error| error.to_string())?;
    }
    fault(&buffer[..got]).map_or(Ok(got), Err)
}

pub(super) fn control_fault(bytes: &[u8]) -> Option<String> {
    match ControlFile::parse(bytes) {
        Ok(_) if bytes.len() == CONTROL_FILE_BYTES => None,
        Ok(_) => Some(format!("it has {} bytes, {CONTROL_FILE_BYTES} expected", bytes.len())),
        Err(error) => Some(error.to_string()),
    }
}

pub(super) fn bad_control(path: PathBuf, reason: String) -> EngineError {
    EngineError::BadFile { path, reason }
}

/// Reads until the buffer is full or the file ends.
pub(super) fn read_full(file: &File, buffer: &mut [u8], start: u64) -> std::io::Result<usize> {
    let mut filled = 0;
    while filled < buffer.len() {
        match file.read_at(&mut buffer[filled..], start + filled as u64) {
            Ok(0) => break,
            Ok(read) => filled += read,
            Err(error) if error.kind() == ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    Ok(filled)
}

/// Asks the kernel to have the next extent ready; it is only a hint.
pub(super) fn read_ahead(file: &File, start: u64, len: u64) {
    let _ = rustix::fs::fadvise(file, start, std::num::NonZeroU64::new(len), rustix::fs::Advice::WillNeed);
}

#[cfg(test)]
mod tests {
    use super::*;
    use repo::chunk::PageContent;

    #[test]
    fn a_torn_pg_control_is_read_again_into_what_is_stored() {
        let fault = |bytes: &[u8]| (bytes != b"whole").then(|| "torn".to_owned());
        let mut buffer = *b"whoXX";
        let mut reads = 0;
        let again = |buffer: &mut [u8]| {
            reads += 1;
            buffer.copy_from_slice(if reads < 3 { b"XXole" } else { b"whole" });
            Ok(5)
        };
        assert_eq!(whole_control(5, &mut buffer, fault, again), Ok(5));
        assert_eq!(&buffer, b"whole");
        assert_eq!(whole_control(4, &mut buffer, fault, |_| Ok(4)), Err("torn".to_owned()));
    }

    #[test]
    fn files_that_wal_does_not_restore_are_read_as_long_as_they_are() {
        let mut file = tempfile::tempfile().unwrap();
        std::io::Write::write_all(&mut file, &[7; 300]).unwrap();
        assert_eq!(present_len(&file, 100, None, 1000), 300, "rewritten since it was listed");
        assert_eq!(present_len(&file, 0, None, 1000), 300);
        assert_eq!(present_len(&file, 100, None, 250), 250, "a buffer is the most");
        let relation = super::super::listing::Relation { first_block: 0, content: PageContent::Relation };
        assert_eq!(present_len(&file, 100, Some(relation), 1000), 100, "replay extends it");
    }
}
