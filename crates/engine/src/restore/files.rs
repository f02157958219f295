//! Files being written: made at the first write, finished when the last chunk is in.

use super::PlannedOwner;
use super::fetch::Destination;
use crate::EngineError;
use rustix::fs::{Advice, fadvise};
use std::fs::{File, OpenOptions};
use std::io;
use std::ops::Range;
use std::os::unix::fs::{FileExt, OpenOptionsExt, PermissionsExt, fchown};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, UNIX_EPOCH};

/// From so many bytes on, writing to the disk is begun at once, so that little is left for the end.
const WRITE_EARLY_BYTES: u64 = 1 << 20;

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
    type Open = File;

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
    fn open(&self) -> Result<File, EngineError> {
        // No truncation: several workers may write to the same file.
        OpenOptions::new()
            .write(true)
            .create(true)
            .truncate(false)
            .mode(0o600)
            .custom_flags(rustix::fs::OFlags::NOFOLLOW.bits() as i32)
            .open(&self.path)
            .map_err(|error| EngineError::file(&self.path, "creating", error))
    }

    fn write(&self, file: &File, bytes: &[u8], at: u64) -> Result<(), EngineError> {
        file.write_all_at(bytes, at).map_err(|error| EngineError::file(&self.path, "writing", error))
    }

    /// Begins to write to the disk what lies in this range; finishes the file after its last piece.
    fn written(&self, file: File, range: Range<u64>, pieces: u32) -> Result<(), EngineError> {
        let len = range.end.saturating_sub(range.start);
        if len >= WRITE_EARLY_BYTES {
            // Advice: it may be ignored, and what it achieves is not relied on.
            let _ = fadvise(&file, range.start, std::num::NonZeroU64::new(len), Advice::DontNeed);
        }
        // The others' writes must be seen before the length is set.
        if self.left.fetch_sub(pieces, Ordering::AcqRel) == pieces { self.finish(&file) } else { Ok(()) }
    }

    /// Gives the file its length, mode, owner and time. Pages that were never written read as zeros.
    fn finish(&self, file: &File) -> Result<(), EngineError> {
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

/// Makes a directory, or takes the one that is there, and gives it mode and owner.
pub(crate) fn make_directory(path: &Path, mode: u32, owner: PlannedOwner) -> Result<(), EngineError> {
    let fail = |action| move |error: io::Error| EngineError::file(path, action, error);
    match std::fs::create_dir(path) {
        Ok(()) => {}
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists && path.is_dir() => {}
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            std::fs::create_dir_all(path).map_err(fail("making"))?;
        }
        Err(error) => return Err(fail("making")(error)),
    }
    if owner.uid.is_some() || owner.gid.is_some() {
        std::os::unix::fs::chown(path, owner.uid, owner.gid).map_err(fail("giving away"))?;
    }
    // The restore itself must be able to write into it.
    std::fs::set_permissions(path, PermissionsExt::from_mode(mode | 0o700)).map_err(fail("setting the mode of"))
}

/// Writes a small file whole, with its mode and owner, durably once its directory is synced.
pub(crate) fn write_whole(path: &Path, bytes: &[u8], mode: u32, owner: PlannedOwner) -> Result<(), EngineError> {
    let fail = |action| move |error: io::Error| EngineError::file(path, action, error);
    let file = OpenOptions::new()
        .write(true)
        .create(true)
        .truncate(true)
        .mode(0o600)
        .custom_flags(rustix::fs::OFlags::NOFOLLOW.bits() as i32)
        .open(path)
        .map_err(fail("creating"))?;
    file.write_all_at(bytes, 0).map_err(fail("writing"))?;
    if owner.uid.is_some() || owner.gid.is_some() {
        fchown(&file, owner.uid, owner.gid).map_err(fail("giving away"))?;
    }
    file.set_permissions(PermissionsExt::from_mode(mode)).map_err(fail("setting the mode of"))?;
    file.sync_all().map_err(fail("syncing"))
}

/// Makes a directory's entries durable.
pub(crate) fn sync_directory(path: &Path) -> Result<(), EngineError> {
    let dir = File::open(path).map_err(|error| EngineError::file(path, "opening", error))?;
    dir.sync_all().map_err(|error| EngineError::file(path, "syncing", error))
}

/// Makes everything on the file system of this directory durable: one journal commit instead of one for each file.
pub(crate) fn sync_file_system(path: &Path) -> Result<(), EngineError> {
    let dir = File::open(path).map_err(|error| EngineError::file(path, "opening", error))?;
    rustix::fs::syncfs(&dir).map_err(|error| EngineError::file(path, "syncing", error.into()))
}
