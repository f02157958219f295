//! The directory a local store lives in: held open, so that every call reaches the directory
//! that was opened, and compared with what its path names now, so that an unmounted disk or a
//! replaced directory is an error and never an empty store.

use crate::error::{action, failed};
use crate::{ObjectPath, StoreError};
use rustix::fs::{AtFlags, Mode, OFlags, Stat};
use rustix::io::Errno;
use std::collections::HashMap;
use std::fs::File;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::sync::atomic::AtomicBool;
use std::sync::{Mutex, PoisonError};

use super::{LocalOptions, MissingRoot};

/// How often a create whose parent directory is removed under it makes the directory again.
const PARENT_RETRIES_MAX: usize = 64;

/// How many directories are remembered as durable.
const DURABLE_DIRS_MAX: usize = 16 * 1024;

#[derive(Debug)]
pub(super) struct Root {
    pub(super) url: String,
    pub(super) options: LocalOptions,
    path: PathBuf,
    fd: OwnedFd,
    id: (u64, u64),
    /// Directories whose entry in their parent is known to be on disk, by inode number.
    durable_dirs: Mutex<HashMap<String, u64>>,
    /// Whether this process has looked for what dead writers left.
    pub(super) cleaned: AtomicBool,
}

impl Root {
    /// Opens the directory, making it first where the options say so.
    pub(super) fn open(path: &Path, options: LocalOptions) -> Result<Self, StoreError> {
        let url = path.display().to_string();
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let mut opened = rustix::fs::open(path, flags, Mode::empty());
        if matches!(opened, Err(Errno::NOENT)) && options.missing_root == MissingRoot::Create {
            create_dirs_durably(path, options.dir_mode).map_err(|error| map_io(&url, "", action::WRITE, error))?;
            opened = rustix::fs::open(path, flags, Mode::empty());
        }
        let fd = opened.map_err(|errno| match errno {
            Errno::NOENT => failed(&url, "", action::READ, "there is no such directory; is its disk mounted?"),
            Errno::NOTDIR => failed(&url, "", action::READ, "it is not a directory"),
            errno => map_errno(&url, "", action::READ, errno),
        })?;
        let stat = rustix::fs::fstat(&fd).map_err(|errno| map_errno(&url, "", action::READ, errno))?;
        let id = (stat.st_dev, stat.st_ino);
        Ok(Self {
            url,
            options,
            path: path.to_owned(),
            fd,
            id,
            durable_dirs: Mutex::default(),
            cleaned: AtomicBool::new(false),
        })
    }

    /// The error of an operation on `path`, with the absence of the whole store told apart.
    pub(super) fn error(&self, path: impl ToString, action: &'static str, errno: Errno) -> StoreError {
        let path = path.to_string();
        match self.check_present(&path, action) {
            Ok(()) => map_errno(&self.url, path, action, errno),
            Err(gone) => gone,
        }
    }

    /// [`StoreError::NotFound`], after making sure that the store itself is there.
    pub(super) fn not_found(&self, path: &ObjectPath, action: &'static str) -> StoreError {
        match self.check_present(path, action) {
            Ok(()) => StoreError::NotFound { store: self.url.clone(), path: path.clone() },
            Err(gone) => gone,
        }
    }

    /// Checks that the store's path still names the directory that was opened.
    pub(super) fn check_present(&self, path: impl ToString, action: &'static str) -> Result<(), StoreError> {
        match rustix::fs::stat(&self.path) {
            Ok(stat) if (stat.st_dev, stat.st_ino) == self.id && stat.st_nlink > 0 => Ok(()),
            Ok(_) => Err(failed(
                &self.url,
                path,
                action,
                "the directory was replaced by another one since it was opened; was its disk unmounted?",
            )),
            Err(Errno::NOENT | Errno::NOTDIR) => {
                Err(failed(&self.url, path, action, "the store's directory is gone; was its disk unmounted?"))
            }
            Err(errno) => Err(map_errno(&self.url, path, action, errno)),
        }
    }

    pub(super) fn fd(&self) -> impl AsFd {
        &self.fd
    }

    pub(super) fn stat(&self, path: &str) -> Result<Stat, Errno> {
        rustix::fs::statat(&self.fd, path, AtFlags::empty())
    }

    /// Opens a directory below the root (`""` is the root) for reading or fsync.
    pub(super) fn open_dir(&self, dir: &str) -> Result<OwnedFd, Errno> {
        let dir = if dir.is_empty() { "." } else { dir };
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
        retry_interrupted(|| rustix::fs::openat(&self.fd, dir, flags, Mode::empty()))
    }

    pub(super) fn open_file(&self, path: &str, flags: OFlags, mode: Mode) -> Result<File, Errno> {
        retry_interrupted(|| rustix::fs::openat(&self.fd, path, flags | OFlags::CLOEXEC, mode)).map(File::from)
    }

    /// Makes one directory; that it exists already is fine.
    pub(super) fn make_dir(&self, dir: &str) -> Result<(), Errno> {
        let mode = Mode::from_raw_mode(self.options.dir_mode);
        match rustix::fs::mkdirat(&self.fd, dir, mode) {
            Ok(()) | Err(Errno::EXIST) => Ok(()),
            Err(errno) => Err(errno),
        }
    }

    /// Runs `place`, which puts an entry into `parent`, making the missing directories. A delete
    /// may remove a directory just made because it is still empty; then it is made again.
    pub(super) fn place_in<T>(&self, parent: &str, place: impl Fn() -> Result<T, Errno>) -> Result<T, Errno> {
        for _ in 0..PARENT_RETRIES_MAX {
            match place() {
                Err(Errno::NOENT) if !parent.is_empty() => {}
                other => return other,
            }
            for dir in ancestors(parent) {
                match self.make_dir(dir) {
                    Ok(()) => {}
                    // Removed between two of our own steps: from the start again.
                    Err(Errno::NOENT) => break,
                    Err(errno) => return Err(errno),
                }
            }
        }
        place()
    }

    /// Makes the entries of `parent` durable, and `parent` itself in its parent, up to the root.
    pub(super) fn sync_dirs(&self, parent: &str) -> Result<(), Errno> {
        let fd = self.open_dir(parent)?;
        sync(&fd)?;
        let mut made_durable = Vec::new();
        let mut child = fd;
        let mut dir = parent;
        while !dir.is_empty() {
            let inode = rustix::fs::fstat(&child)?.st_ino;
            if self.durable_dirs().get(dir) == Some(&inode) {
                break;
            }
            let above = parent_of(dir);
            let above_fd = self.open_dir(above)?;
            sync(&above_fd)?;
            made_durable.push((dir.to_owned(), inode));
            (child, dir) = (above_fd, above);
        }
        // Only now: who finds a directory here relies on all those above it as well.
        let mut durable = self.durable_dirs();
        if durable.len() >= DURABLE_DIRS_MAX {
            durable.clear();
        }
        durable.extend(made_durable);
        Ok(())
    }

    /// Removes `dir` and the directories above it as far as they are empty, and makes the
    /// removal durable.
    pub(super) fn remove_empty_dirs(&self, dir: &str) -> Result<(), Errno> {
        let mut dir = dir;
        while !dir.is_empty() {
            match rustix::fs::unlinkat(&self.fd, dir, AtFlags::REMOVEDIR) {
                Ok(()) => {
                    self.durable_dirs().remove(dir);
                }
                Err(Errno::NOENT) => {}
                // Not empty, a mount point, or not ours to remove: it stays.
                Err(_) => break,
            }
            dir = parent_of(dir);
        }
        loop {
            match self.open_dir(dir) {
                Ok(fd) => return sync(&fd),
                Err(Errno::NOENT) if !dir.is_empty() => dir = parent_of(dir),
                Err(errno) => return Err(errno),
            }
        }
    }

    fn durable_dirs(&self) -> std::sync::MutexGuard<'_, HashMap<String, u64>> {
        self.durable_dirs.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// fsync, and the answer "this file system cannot do that for directories" taken as done.
fn sync(fd: &OwnedFd) -> Result<(), Errno> {
    match retry_interrupted(|| rustix::fs::fsync(fd)) {
        Err(Errno::INVAL) => Ok(()),
        other => other,
    }
}

pub(super) fn retry_interrupted<T>(mut call: impl FnMut() -> Result<T, Errno>) -> Result<T, Errno> {
    loop {
        match call() {
            Err(Errno::INTR) => {}
            other => return other,
        }
    }
}

/// The directory a path lies in, `""` at the top.
pub(super) fn parent_of(path: &str) -> &str {
    path.rsplit_once('/').map_or("", |(parent, _)| parent)
}

/// `a`, `a/b`, `a/b/c` for `a/b/c`.
fn ancestors(dir: &str) -> impl Iterator<Item = &str> {
    dir.match_indices('/').map(|(at, _)| &dir[..at]).chain(std::iter::once(dir))
}

/// Makes a directory and those above it, each durable in the one above.
fn create_dirs_durably(path: &Path, mode: u32) -> io::Result<()> {
    let Some(parent) = path.parent() else {
        return Ok(());
    };
    match rustix::fs::mkdir(path, Mode::from_raw_mode(mode)) {
        Ok(()) | Err(Errno::EXIST) => {}
        Err(Errno::NOENT) => {
            create_dirs_durably(parent, mode)?;
            match rustix::fs::mkdir(path, Mode::from_raw_mode(mode)) {
                Ok(()) | Err(Errno::EXIST) => {}
                Err(errno) => return Err(errno.into()),
            }
        }
        Err(errno) => return Err(errno.into()),
    }
    File::open(parent)?.sync_all()
}

/// The store's error for a system call's.
pub(super) fn map_errno(url: &str, path: impl ToString, action: &'static str, errno: Errno) -> StoreError {
    let (store, path) = (url.to_owned(), path.to_string());
    match errno {
        Errno::NOSPC | Errno::DQUOT => StoreError::Full { store, path },
        Errno::ACCESS | Errno::PERM | Errno::ROFS => {
            StoreError::Denied { store, path, action, source: io::Error::from(errno).into() }
        }
        Errno::XDEV => failed(url, path, action, "a directory inside the store lies on another file system"),
        errno => StoreError::Failed { store, path, action, source: io::Error::from(errno).into() },
    }
}

/// The same for an error of the standard library.
pub(super) fn map_io(url: &str, path: impl ToString, action: &'static str, error: io::Error) -> StoreError {
    match Errno::from_io_error(&error) {
        Some(errno) => map_errno(url, path, action, errno),
        None => StoreError::Failed { store: url.to_owned(), path: path.to_string(), action, source: error.into() },
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn errors_of_system_calls_keep_their_meaning() {
        let map = |errno| map_errno("/r", "a/b", action::WRITE, errno);
        assert!(matches!(map(Errno::NOSPC), StoreError::Full { .. }));
        assert!(matches!(map(Errno::DQUOT), StoreError::Full { .. }));
        for errno in [Errno::ACCESS, Errno::PERM, Errno::ROFS] {
            assert!(matches!(map(errno), StoreError::Denied { .. }), "{errno:?}");
        }
        for errno in [Errno::IO, Errno::NOENT, Errno::XDEV, Errno::STALE] {
            assert!(matches!(map(errno), StoreError::Failed { .. }), "{errno:?}");
        }
    }

    #[test]
    fn ancestors_go_from_the_top_down() {
        assert_eq!(ancestors("a/b/c").collect::<Vec<_>>(), ["a", "a/b", "a/b/c"]);
        assert_eq!(ancestors("a").collect::<Vec<_>>(), ["a"]);
        assert_eq!((parent_of("a/b/c"), parent_of("a")), ("a/b", ""));
    }
}
