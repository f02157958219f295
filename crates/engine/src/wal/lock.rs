//! The right to work in the background: one process for each directory has it.

use crate::EngineError;
use std::fs::{self, File, TryLockError};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

/// A lock on a directory, as `flock` has it. It ends with the process, whatever ends that; who inherits its file has it,
/// too, until all have closed it.
#[derive(Debug)]
pub struct WorkerLock(File);

impl WorkerLock {
    /// Takes it, making the directory first; `None` when somebody has it.
    pub(super) fn try_take(dir: &Path) -> Result<Option<Self>, EngineError> {
        fs::create_dir_all(dir).map_err(|error| EngineError::file(dir, "making the directory", error))?;
        let path = place(dir);
        let fail = |error| EngineError::file(&path, "locking", error);
        let file = fs::OpenOptions::new().create(true).truncate(false).write(true).open(&path).map_err(fail)?;
        match file.try_lock() {
            Ok(()) => Ok(Some(Self(file))),
            Err(TryLockError::WouldBlock) => Ok(None),
            Err(TryLockError::Error(error)) => Err(fail(error)),
        }
    }

    /// Whether somebody has it. Nothing is made.
    pub(super) fn is_taken(dir: &Path) -> bool {
        let Ok(file) = File::open(place(dir)) else { return false };
        matches!(file.try_lock_shared(), Err(TryLockError::WouldBlock))
    }

    /// The lock that this process was given by the one that started it, when `file` is it.
    pub(super) fn inherited(dir: &Path, file: File) -> Option<Self> {
        let (ours, theirs) = (fs::metadata(place(dir)).ok()?, file.metadata().ok()?);
        ((ours.dev(), ours.ino()) == (theirs.dev(), theirs.ino())).then_some(Self(file))
    }

    /// The locked file, to be handed to another process.
    pub fn into_file(self) -> File {
        self.0
    }
}

fn place(dir: &Path) -> PathBuf {
    dir.join("lock")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_has_it_and_passes_it_on() {
        let dir = tempfile::tempdir().unwrap();
        let dir = dir.path();
        assert!(!WorkerLock::is_taken(dir));
        let lock = WorkerLock::try_take(dir).unwrap().expect("free");
        assert!(WorkerLock::is_taken(dir) && WorkerLock::try_take(dir).unwrap().is_none());
        // As a child process inherits it.
        let file = lock.into_file();
        let inherited = file.try_clone().unwrap();
        drop(file);
        assert!(WorkerLock::is_taken(dir));
        let lock = WorkerLock::inherited(dir, inherited).expect("it is the lock");
        assert!(WorkerLock::inherited(dir, File::open("/dev/null").unwrap()).is_none());
        drop(lock);
        assert!(!WorkerLock::is_taken(dir));
    }
}
