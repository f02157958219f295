//! Files being written: made at the first write, finished when the last chunk is in.
//!
//! Large pieces are written past the page cache: they cost less processor time, begin to reach the disk at once, and what
//! is in the cache, such as that of another server on this host, stays there.

use super::PlannedOwner;
use super::fetch::Destination;
use crate::EngineError;
use rustix::fs::{Advice, FallocateFlags, OFlags, fadvise, fallocate, fstatfs};
use rustix::io::Errno;
use std::fs::{File, OpenOptions};
use std::io;
use std::ops::Range;
use std::os::unix::fs::{FileExt, OpenOptionsExt, PermissionsExt, fchown};
use std::path::PathBuf;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, UNIX_EPOCH};

/// From so many bytes on, writing to the disk is begun at once, so that little is left for the end.
const WRITE_EARLY_BYTES: u64 = 1 << 20;
/// From so many bytes on a piece is written past the page cache.
const DIRECT_BYTES_MIN: usize = 64 << 10;
/// What direct writes must be multiples of: no disk that PostgreSQL runs on has larger sectors.
const ALIGNMENT: usize = 4096;

/// A file that one worker has open.
pub(crate) struct Writing {
    file: File,
    direct: Direct,
    /// Bytes written through the page cache.
    cached: u64,
}

/// Whether large pieces can be written past the page cache.
enum Direct {
    NotTried,
    Can(File),
    Cannot,
}

/// One file to be written.
pub(crate) struct Target {
    /// Its path in the backup, for errors.
    pub(crate) name: Vec<u8>,
    pub(crate) path: PathBuf,
    pub(crate) len: u64,
    pub(crate) mode: u32,
    pub(crate) owner: PlannedOwner,
    pub(crate) mtime: u64,
    /// Pieces that are not in yet.
    pub(crate) left: AtomicU32,
}

impl Destination for Target {
    type Open = Writing;

    fn name(&self) -> &[u8] {
        &self.name
    }

    fn len(&self) -> u64 {
        self.len
    }

    fn left(&self) -> &AtomicU32 {
        &self.left
    }

    /// Opens the file, making it where it is not there. Files are private until they are finished.
    fn open(&self) -> Result<Writing, EngineError> {
        let file = self.opened(OFlags::empty()).map_err(|error| EngineError::file(&self.path, "creating", error))?;
        Ok(Writing { file, direct: Direct::NotTried, cached: 0 })
    }

    fn write(&self, open: &mut Writing, bytes: &[u8], at: u64) -> Result<(), EngineError> {
        let fail = |error| EngineError::file(&self.path, "writing", error);
        if let Some(direct) = self.direct(open, bytes, at).map_err(fail)? {
            match direct.write_all_at(bytes, at) {
                Err(error) if error.raw_os_error() == Some(Errno::INVAL.raw_os_error()) => open.direct = Direct::Cannot,
                result => return result.map_err(fail),
            }
        }
        open.cached += bytes.len() as u64;
        open.file.write_all_at(bytes, at).map_err(fail)
    }

    /// Begins to write to the disk what lies in this range; finishes the file after its last piece.
    fn written(&self, open: Writing, range: Range<u64>, pieces: u32) -> Result<(), EngineError> {
        let len = range.end.saturating_sub(range.start);
        // Not where only some pages of it are in: what lies between them comes, and is better written together.
        if open.cached >= WRITE_EARLY_BYTES && open.cached >= len / 2 {
            // Advice: it may be ignored, and what it achieves is not relied on.
            let _ = fadvise(&open.file, range.start, std::num::NonZeroU64::new(len), Advice::DontNeed);
        }
        // The others' writes must be seen before the length is set.
        if self.left.fetch_sub(pieces, Ordering::AcqRel) == pieces { self.finish(&open) } else { Ok(()) }
    }

    /// Gives the file its length, mode, owner and time. Pages that were never written read as zeros.
    fn finish(&self, open: &Writing) -> Result<(), EngineError> {
        let file = &open.file;
        let fail = |action| move |error: io::Error| EngineError::file(&self.path, action, error);
        let there = file.metadata().map_err(fail("looking at"))?.len();
        if there != self.len {
            file.set_len(self.len).map_err(fail("setting the length of"))?;
        }
        if self.owner.uid.is_some() || self.owner.gid.is_some() {
            fchown(file, self.owner.uid, self.owner.gid).map_err(fail("giving away"))?;
        }
        // After the owner: giving a file away takes set-ID bits off.
        file.set_permissions(PermissionsExt::from_mode(self.mode)).map_err(fail("setting the mode of"))?;
        file.set_modified(UNIX_EPOCH + Duration::from_secs(self.mtime)).map_err(fail("setting the time of"))
    }
}

impl Target {
    fn opened(&self, flags: OFlags) -> io::Result<File> {
        // No truncation: several workers may write to the same file.
        OpenOptions::new()
            .write(true)
            .create(true)
            .truncate(false)
            .mode(0o600)
            .custom_flags((flags | OFlags::NOFOLLOW).bits() as i32)
            .open(&self.path)
    }

    /// Gives the file its length and its blocks, so that several workers can write to it at once. Not every file can
    /// have them before it is written: one without extents, on a file system that was once an ext3, cannot.
    fn set_aside(&self, file: &File) -> io::Result<bool> {
        if file.metadata()?.len() >= self.len {
            return Ok(true);
        }
        match fallocate(file, FallocateFlags::empty(), 0, self.len) {
            Ok(()) => Ok(true),
            Err(Errno::OPNOTSUPP | Errno::NOSYS) => Ok(false),
            Err(error) => Err(error.into()),
        }
    }

    /// The file to write these bytes with past the page cache, where that is possible and worth it.
    fn direct<'a>(&self, open: &'a mut Writing, bytes: &[u8], at: u64) -> io::Result<Option<&'a File>> {
        let is_aligned = |number: usize| number.is_multiple_of(ALIGNMENT);
        if bytes.len() < DIRECT_BYTES_MIN
            || !is_aligned(bytes.as_ptr().addr())
            || !is_aligned(bytes.len())
            || !is_aligned(at as usize)
        {
            return Ok(None);
        }
        if matches!(open.direct, Direct::NotTried) {
            open.direct = match writes_directly(&open.file).then(|| self.opened(OFlags::DIRECT)) {
                Some(Ok(direct)) if self.set_aside(&open.file)? => Direct::Can(direct),
                _ => Direct::Cannot,
            };
        }
        match &open.direct {
            Direct::Can(file) => Ok(Some(file)),
            Direct::NotTried | Direct::Cannot => Ok(None),
        }
    }
}

/// Whether the file lies on a file system on which writing past the page cache, into blocks set aside before, is known
/// to be good. Others compress, copy on write, or lie on other machines.
fn writes_directly(file: &File) -> bool {
    const EXT4: u64 = 0xef53;
    const XFS: u64 = 0x5846_5342;
    fstatfs(file).is_ok_and(|found| matches!(found.f_type as u64, EXT4 | XFS))
}

/// Memory for direct writes, which must begin where a page of memory does.
#[derive(Default)]
pub(crate) struct AlignedBuffer {
    bytes: Vec<u8>,
}

impl AlignedBuffer {
    /// So many bytes, with whatever was left in them.
    pub(crate) fn get(&mut self, len: usize) -> &mut [u8] {
        if self.bytes.len() < len + ALIGNMENT {
            self.bytes = vec![0; len + ALIGNMENT];
        }
        let skip = self.bytes.as_ptr().addr().next_multiple_of(ALIGNMENT) - self.bytes.as_ptr().addr();
        &mut self.bytes[skip..skip + len]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn buffers_begin_at_a_page() {
        let mut buffer = AlignedBuffer::default();
        for len in [1, 4096, 5000, 2 << 20, 100] {
            let bytes = buffer.get(len);
            assert_eq!((bytes.len(), bytes.as_ptr().addr() % ALIGNMENT), (len, 0));
        }
    }

    /// Large pieces go past the page cache, small ones and odd ones through it: the file is whole whatever went where.
    #[test]
    fn pieces_of_any_size_and_place_make_one_file() {
        // On a disk, where direct writes are possible, and in memory.
        for dir in [tempfile::tempdir(), tempfile::tempdir_in("/dev/shm")].into_iter().flatten() {
            write_and_compare(&dir.path().join("16384"));
        }
    }

    fn write_and_compare(path: &std::path::Path) {
        let wanted: Vec<u8> = (0..3_000_001u32).map(|i| (i / 977) as u8).collect();
        let ends = [8192, 8192 + (512 << 10), 532_480 + 8192 + 100, 1 << 20, 2 << 20, wanted.len()];
        let owner = PlannedOwner { uid: None, gid: None };
        let target = Target {
            name: b"data/base/1/16384".to_vec(),
            path: path.to_owned(),
            len: wanted.len() as u64,
            mode: 0o640,
            owner,
            mtime: 1_700_000_000,
            left: AtomicU32::new(ends.len() as u32),
        };
        let mut buffer = AlignedBuffer::default();
        for (nth, end) in ends.iter().enumerate().rev() {
            let start = if nth == 0 { 0 } else { ends[nth - 1] };
            let bytes = buffer.get(end - start);
            bytes.copy_from_slice(&wanted[start..*end]);
            let mut open = target.open().unwrap();
            target.write(&mut open, bytes, start as u64).unwrap();
            target.written(open, start as u64..*end as u64, 1).unwrap();
        }
        assert!(std::fs::read(path).unwrap() == wanted);
        assert_eq!(std::fs::metadata(path).unwrap().permissions().mode() & 0o777, 0o640);
    }
}
