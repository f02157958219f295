//! Directories and small files of a restored cluster, and making them durable.

use super::PlannedOwner;
use crate::EngineError;
use std::fs::{File, OpenOptions};
use std::io;
use std::os::unix::fs::{FileExt, OpenOptionsExt, PermissionsExt, fchown};
use std::path::Path;

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
