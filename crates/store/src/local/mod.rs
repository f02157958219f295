//! A store in a directory of a local disk or a mounted file system.
//!
//! An object is written under a temporary name, fsynced, given its name without replacing
//! anything, and the directories are fsynced (see `temp.rs` and `root.rs`). What does not look
//! like an object path inside the directory is left alone and not listed.
//!
//! Limits that come from file systems: a part of a path has at most 255 bytes, and an object's
//! name cannot be another's directory (`a` and `a/b` exclude each other).

mod list;
mod log;
mod root;
mod temp;
mod writer;

use crate::blocking::run_blocking;
use crate::error::{action, check_range, failed, too_large};
use crate::{Created, Listing, LogFile, ObjectMeta, ObjectPath, ObjectWriter, Store, StoreError};
use async_trait::async_trait;
use bytes::Bytes;
use log::LocalLog;
use root::{Root, map_io};
use rustix::fs::{FileType, Mode, OFlags};
use rustix::io::Errno;
use std::fs::File;
use std::ops::Range;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::sync::Arc;
use temp::TempFile;
use writer::LocalWriter;

/// How a local store makes its files.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct LocalOptions {
    /// Permission bits of objects, before the process's umask; usually 0o640, so that a separate
    /// reader can be let in by group.
    pub file_mode: u32,
    /// Permission bits of directories, before the umask; usually 0o750.
    pub dir_mode: u32,
    /// What opening does when the directory is not there.
    pub missing_root: MissingRoot,
    /// What becomes of written bytes in the kernel's page cache.
    pub page_cache: PageCache,
}

/// What opening a local store does when its directory is not there.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum MissingRoot {
    /// It is an error: the disk may not be mounted.
    Error,
    /// It is made. Only for who begins a new repository.
    Create,
}

/// What becomes of written bytes in the kernel's page cache.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum PageCache {
    /// They stay as long as the kernel likes; reading them soon is fast.
    Keep,
    /// They go once they are on disk, so that the database's own pages stay.
    Evict,
}

/// Objects as files below one directory.
#[derive(Debug)]
pub struct LocalStore {
    root: Arc<Root>,
}

impl LocalStore {
    /// Opens the store in the directory `path`, which must be absolute. Nothing is written
    /// before the first object, unless the directory is to be made.
    pub fn open(path: &Path, options: LocalOptions) -> Result<Self, StoreError> {
        if !path.is_absolute() {
            let reason = "a local store needs an absolute path".to_owned();
            return Err(StoreError::BadUrl { url: path.display().to_string(), reason });
        }
        Ok(Self { root: Arc::new(Root::open(path, options)?) })
    }

    async fn read<T: Send + 'static>(
        &self,
        path: &ObjectPath,
        read: impl FnOnce(&Root, &ObjectPath, &Opened) -> Result<T, StoreError> + Send + 'static,
    ) -> Result<T, StoreError> {
        let (root, path) = (self.root.clone(), path.clone());
        run_blocking(move || {
            root.check_present(&path, action::READ)?;
            let opened = open_object(&root, &path)?;
            read(&root, &path, &opened)
        })
        .await
    }
}

struct Opened {
    file: File,
    meta: ObjectMeta,
}

impl Opened {
    fn read(&self, root: &Root, range: Range<u64>) -> Result<Bytes, StoreError> {
        let path = &self.meta.path;
        let mut bytes = vec![0; (range.end - range.start) as usize];
        match self.file.read_exact_at(&mut bytes, range.start) {
            Ok(()) => Ok(bytes.into()),
            Err(error) if error.kind() == std::io::ErrorKind::UnexpectedEof => {
                Err(failed(&root.url, path, action::READ, "the file became shorter while it was read"))
            }
            Err(error) => Err(map_io(&root.url, path, action::READ, error)),
        }
    }
}

fn open_object(root: &Root, path: &ObjectPath) -> Result<Opened, StoreError> {
    let error = |errno| match errno {
        Errno::NOENT | Errno::NOTDIR => root.not_found(path, action::READ),
        errno => root.error(path, action::READ, errno),
    };
    // NONBLOCK: a pipe somebody put there must not hold us up.
    let file = root.open_file(path.as_str(), OFlags::RDONLY | OFlags::NONBLOCK, Mode::empty()).map_err(error)?;
    let stat = rustix::fs::fstat(&file).map_err(error)?;
    match FileType::from_raw_mode(stat.st_mode) {
        FileType::RegularFile => Ok(Opened { file, meta: list::meta_of(path.clone(), &stat) }),
        FileType::Directory => Err(root.not_found(path, action::READ)),
        kind => Err(failed(&root.url, path, action::READ, format!("it is no regular file but {kind:?}"))),
    }
}

#[async_trait]
impl Store for LocalStore {
    fn url(&self) -> &str {
        &self.root.url
    }

    async fn put(&self, path: &ObjectPath, bytes: Bytes) -> Result<Created, StoreError> {
        let (root, path) = (self.root.clone(), path.clone());
        run_blocking(move || {
            root.check_present(&path, action::WRITE)?;
            let error = |errno| root.error(&path, action::WRITE, errno);
            let mut temp = TempFile::create(&root).map_err(error)?;
            temp.write(&bytes).map_err(|error| map_io(&root.url, &path, action::WRITE, error))?;
            temp.publish(&path).map_err(error)
        })
        .await
    }

    async fn create(&self, path: &ObjectPath) -> Result<Box<dyn ObjectWriter>, StoreError> {
        let (root, path) = (self.root.clone(), path.clone());
        run_blocking(move || {
            root.check_present(&path, action::WRITE)?;
            let temp = TempFile::create(&root).map_err(|errno| root.error(&path, action::WRITE, errno))?;
            Ok(Box::new(LocalWriter::new(root, path, temp)) as Box<dyn ObjectWriter>)
        })
        .await
    }

    async fn get(&self, path: &ObjectPath, size_max: u64) -> Result<Bytes, StoreError> {
        self.read(path, move |root, path, opened| {
            let size = opened.meta.size;
            if size > size_max {
                return Err(too_large(&root.url, path, size, size_max));
            }
            opened.read(root, 0..size)
        })
        .await
    }

    async fn get_range(&self, path: &ObjectPath, range: Range<u64>) -> Result<Bytes, StoreError> {
        self.read(path, move |root, path, opened| {
            check_range(&root.url, path, &range, opened.meta.size)?;
            opened.read(root, range)
        })
        .await
    }

    async fn get_tail(&self, path: &ObjectPath, len: u64) -> Result<(Bytes, ObjectMeta), StoreError> {
        self.read(path, move |root, _, opened| {
            let size = opened.meta.size;
            let bytes = opened.read(root, size.saturating_sub(len)..size)?;
            Ok((bytes, opened.meta.clone()))
        })
        .await
    }

    async fn head(&self, path: &ObjectPath) -> Result<ObjectMeta, StoreError> {
        self.read(path, |_, _, opened| Ok(opened.meta.clone())).await
    }

    async fn list_level(&self, prefix: Option<&ObjectPath>) -> Result<Listing, StoreError> {
        let (root, prefix) = (self.root.clone(), prefix.cloned());
        run_blocking(move || {
            root.check_present("", action::LIST)?;
            list::level(&root, prefix.as_ref())
        })
        .await
    }

    async fn list_page(
        &self,
        prefix: Option<&ObjectPath>,
        after: Option<&ObjectPath>,
        limit: usize,
    ) -> Result<Vec<ObjectMeta>, StoreError> {
        let (root, prefix, after) = (self.root.clone(), prefix.cloned(), after.cloned());
        run_blocking(move || {
            root.check_present("", action::LIST)?;
            list::page(&root, prefix.as_ref(), after.as_ref(), limit)
        })
        .await
    }

    async fn delete(&self, path: &ObjectPath) -> Result<(), StoreError> {
        let (root, path) = (self.root.clone(), path.clone());
        run_blocking(move || {
            root.check_present(&path, action::DELETE)?;
            let error = |errno| root.error(&path, action::DELETE, errno);
            match rustix::fs::unlinkat(root.fd(), path.as_str(), rustix::fs::AtFlags::empty()) {
                Ok(()) | Err(Errno::NOENT) => {}
                // Some part of the path is a file, or the path is a directory: no such object.
                Err(Errno::NOTDIR | Errno::ISDIR) => return Ok(()),
                Err(errno) => return Err(error(errno)),
            }
            // Also when it was gone: whoever deleted it may not have made that durable.
            root.remove_empty_dirs(root::parent_of(path.as_str())).map_err(error)
        })
        .await
    }
    async fn create_log(&self, len: u64) -> Result<Option<Box<dyn LogFile>>, StoreError> {
        let root = self.root.clone();
        run_blocking(move || {
            root.check_present("", action::WRITE)?;
            Ok(Some(Box::new(LocalLog::create(root, len)?) as Box<dyn LogFile>))
        })
        .await
    }
}
