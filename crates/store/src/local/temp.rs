//! An object on its way to its name: a file in the store's temporary directory.
//!
//! The directory's name holds a character that no object path may have, so that what lies in it
//! is invisible and cannot collide. A writer holds a lock (`flock`) on its file as long as it
//! lives; a file whose lock can be taken belongs to nobody and is removed.

use super::root::{Root, parent_of, retry_interrupted};
use crate::{Created, ObjectPath};
use rustix::fs::{Advice, AtFlags, FlockOperation, Mode, OFlags, RenameFlags};
use rustix::io::Errno;
use std::fs::File;
use std::io::Write;
use std::num::NonZeroU64;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use super::PageCache;

/// The temporary directory inside the root.
pub(super) const TEMP_DIR: &str = ".tmp~";

/// Written bytes after which the kernel is told to begin writing them to the disk.
const WRITEBACK_BYTES: u64 = 8 * 1024 * 1024;

/// How often a new temporary file may be taken away by a cleaner before its lock is held.
const CREATE_RETRIES_MAX: usize = 16;

/// Unfinished files looked at by one clean-up.
const CLEAN_FILES_MAX: usize = 10_000;

/// A file being written; dropping it removes it.
#[derive(Debug)]
pub(super) struct TempFile {
    root: Arc<Root>,
    /// Relative to the root; empty once the file has its final name.
    name: String,
    file: File,
    written: u64,
    flushing: u64,
}

impl TempFile {
    /// Makes a new one; the first of a process also removes what dead writers left.
    pub(super) fn create(root: &Arc<Root>) -> Result<Self, Errno> {
        if !root.cleaned.swap(true, Ordering::Relaxed) {
            clean(root);
        }
        let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL;
        let mode = Mode::from_raw_mode(root.options.file_mode);
        for _ in 0..CREATE_RETRIES_MAX {
            let name = temp_name()?;
            let file = match root.open_file(&name, flags, mode) {
                Ok(file) => file,
                Err(Errno::NOENT) => {
                    root.make_dir(TEMP_DIR)?;
                    continue;
                }
                Err(Errno::EXIST) => continue,
                Err(errno) => return Err(errno),
            };
            let temp = Self { root: root.clone(), name, file, written: 0, flushing: 0 };
            match retry_interrupted(|| rustix::fs::flock(&temp.file, FlockOperation::LockExclusive)) {
                Ok(()) => {}
                // Without locks nobody can clean here either (see `clean`).
                Err(Errno::OPNOTSUPP | Errno::NOLCK | Errno::NOSYS | Errno::INVAL) => {
                    return Ok(temp);
                }
                Err(errno) => return Err(errno),
            }
            // A cleaner may have taken it for a dead writer's before the lock was held.
            if rustix::fs::fstat(&temp.file)?.st_nlink > 0 {
                return Ok(temp);
            }
        }
        Err(Errno::AGAIN)
    }

    pub(super) fn write(&mut self, bytes: &[u8]) -> std::io::Result<()> {
        self.file.write_all(bytes)?;
        self.written += bytes.len() as u64;
        if self.written - self.flushing >= WRITEBACK_BYTES {
            // For dirty pages "not needed" means: begin to write them back, do not wait
            // (mm/fadvise.c). So the fsync at the end finds little left to do.
            self.not_needed(self.flushing, self.written - self.flushing);
            if self.root.options.page_cache == PageCache::Evict {
                // What was begun a while ago is clean by now, mostly.
                self.not_needed(0, self.flushing);
            }
            self.flushing = self.written;
        }
        Ok(())
    }

    /// Makes the bytes durable and gives the file its name, unless something has that name.
    pub(super) fn publish(mut self, path: &ObjectPath) -> Result<Created, Errno> {
        self.publish_open(path)
    }

    /// The file, to be written at offsets.
    pub(super) fn file(&self) -> &File {
        &self.file
    }

    /// As [`publish`](Self::publish), and the file stays open.
    pub(super) fn publish_open(&mut self, path: &ObjectPath) -> Result<Created, Errno> {
        retry_interrupted(|| rustix::fs::fsync(&self.file))?;
        if self.root.options.page_cache == PageCache::Evict {
            self.not_needed(0, self.written);
        }
        let parent = parent_of(path.as_str());
        let root = self.root.clone();
        let renamed = root.place_in(parent, || self.rename(path.as_str()));
        let created = match renamed {
            Ok(()) => {
                self.name.clear();
                Created::New
            }
            Err(Errno::INVAL | Errno::NOSYS | Errno::OPNOTSUPP) => {
                match root.place_in(parent, || self.link(path.as_str())) {
                    Ok(()) => Created::New,
                    Err(Errno::EXIST) => Created::Exists,
                    Err(errno) => return Err(errno),
                }
            }
            Err(Errno::EXIST) => Created::Exists,
            Err(errno) => return Err(errno),
        };
        // Also when another writer made it: the caller may rely on it, and that writer may
        // not have come to this point yet.
        match root.sync_dirs(parent) {
            // It was there and has been deleted with its directory since.
            Err(Errno::NOENT) => Ok(created),
            Err(errno) => Err(errno),
            Ok(()) => Ok(created),
        }
    }

    fn rename(&self, path: &str) -> Result<(), Errno> {
        let fd = self.root.fd();
        rustix::fs::renameat_with(&fd, self.name.as_str(), &fd, path, RenameFlags::NOREPLACE)
    }

    /// For file systems without RENAME_NOREPLACE (NFS). The temporary name goes with the drop.
    fn link(&self, path: &str) -> Result<(), Errno> {
        let fd = self.root.fd();
        match rustix::fs::linkat(&fd, self.name.as_str(), &fd, path, AtFlags::empty()) {
            // A lost reply is asked again by NFS and then finds what it made itself.
            Err(Errno::EXIST) => {
                let (ours, theirs) = (rustix::fs::fstat(&self.file)?, self.root.stat(path)?);
                let same = (ours.st_dev, ours.st_ino) == (theirs.st_dev, theirs.st_ino);
                if same { Ok(()) } else { Err(Errno::EXIST) }
            }
            other => other,
        }
    }

    /// Advice only: a file system that does not take it loses nothing but speed.
    fn not_needed(&self, offset: u64, len: u64) {
        if let Some(len) = NonZeroU64::new(len) {
            let _ = rustix::fs::fadvise(&self.file, offset, Some(len), Advice::DontNeed);
        }
    }

    /// Removes the file and says whether that worked, which a drop cannot.
    pub(super) fn remove(mut self) -> Result<(), Errno> {
        let name = std::mem::take(&mut self.name);
        match rustix::fs::unlinkat(self.root.fd(), name.as_str(), AtFlags::empty()) {
            Err(Errno::NOENT) => Ok(()),
            other => other,
        }
    }
}

impl Drop for TempFile {
    fn drop(&mut self) {
        if !self.name.is_empty() {
            // What cannot be removed now is removed by a later clean-up.
            let _ = rustix::fs::unlinkat(self.root.fd(), self.name.as_str(), AtFlags::empty());
        }
    }
}

/// Removes the files of writers that are dead. Never fails: what it cannot do now, a later one does.
fn clean(root: &Root) {
    let Ok(fd) = root.open_dir(TEMP_DIR) else {
        return;
    };
    let Ok(entries) = rustix::fs::Dir::read_from(&fd) else {
        return;
    };
    for entry in entries.take(CLEAN_FILES_MAX).flatten() {
        let Ok(name) = entry.file_name().to_str() else {
            continue;
        };
        if name == "." || name == ".." {
            continue;
        }
        let name = format!("{TEMP_DIR}/{name}");
        let Ok(file) = root.open_file(&name, OFlags::RDONLY | OFlags::NONBLOCK, Mode::empty()) else {
            continue;
        };
        // On a file system without locks every file might be a live writer's: all stay.
        if rustix::fs::flock(&file, FlockOperation::NonBlockingLockExclusive).is_ok() {
            tracing::info!(store = root.url, file = name, "removing what a dead writer left");
            let _ = rustix::fs::unlinkat(root.fd(), name.as_str(), AtFlags::empty());
        }
    }
}

/// A name no other writer has; the process id is there for the operator who finds it.
fn temp_name() -> Result<String, Errno> {
    let mut random = [0u8; 16];
    getrandom::fill(&mut random).map_err(|_| Errno::IO)?;
    Ok(format!("{TEMP_DIR}/{}-{:032x}", std::process::id(), u128::from_le_bytes(random)))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::StoreOptions;

    fn root() -> (tempfile::TempDir, Arc<Root>) {
        let dir = tempfile::tempdir().unwrap();
        let root = Root::open(dir.path(), StoreOptions::standard().local).unwrap();
        (dir, Arc::new(root))
    }

    #[test]
    fn link_creates_once_and_knows_its_own_work() {
        let (dir, root) = root();
        let mut first = TempFile::create(&root).unwrap();
        first.write(b"first").unwrap();
        assert_eq!(first.link("a"), Ok(()));
        // A repetition after a lost reply.
        assert_eq!(first.link("a"), Ok(()));
        let second = TempFile::create(&root).unwrap();
        assert_eq!(second.link("a"), Err(Errno::EXIST));
        drop((first, second));
        assert_eq!(std::fs::read(dir.path().join("a")).unwrap(), b"first");
        assert_eq!(std::fs::read_dir(dir.path().join(TEMP_DIR)).unwrap().count(), 0);
    }

    #[test]
    fn only_files_of_dead_writers_are_cleaned() {
        let (dir, root) = root();
        let live = TempFile::create(&root).unwrap();
        let dead = dir.path().join(TEMP_DIR).join("1-dead");
        std::fs::write(&dead, "half").unwrap();
        clean(&root);
        assert!(!dead.exists());
        assert_eq!(live.publish(&ObjectPath::new("a/b").unwrap()), Ok(Created::New));
        assert!(dir.path().join("a/b").exists());
    }

    #[test]
    fn a_directory_removed_again_and_again_is_made_again() {
        let (dir, root) = root();
        let parent = dir.path().join("p");
        let rounds = std::cell::Cell::new(0);
        let placed = root.place_in("p/q", || {
            // As a racing delete does it, until the last moment.
            rounds.set(rounds.get() + 1);
            if rounds.get() < 10 {
                let _ = std::fs::remove_dir_all(&parent);
            }
            root.open_file("p/q/object", OFlags::WRONLY | OFlags::CREATE, Mode::from_raw_mode(0o640)).map(drop)
        });
        assert_eq!(placed, Ok(()));
        assert_eq!(rounds.get(), 10);
    }
}
