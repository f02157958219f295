//! An object that is written in place: a file made of zeros beforehand, so that making a few bytes of it durable changes
//! no metadata.

use super::root::{Root, map_io, retry_interrupted};
use super::temp::TempFile;
use crate::error::{action, failed};
use crate::{Created, LogFile, ObjectPath, StoreError};
use std::os::unix::fs::FileExt;
use std::sync::Arc;

/// Zeros written at a time.
const ZEROS: usize = 1 << 20;

#[derive(Debug)]
pub(super) struct LocalLog {
    root: Arc<Root>,
    file: TempFile,
    len: u64,
    /// Its name; none as long as it is a spare one.
    path: Option<ObjectPath>,
}

impl LocalLog {
    pub(super) fn create(root: Arc<Root>, len: u64) -> Result<Self, StoreError> {
        let errno = |errno| root.error("", action::WRITE, errno);
        let mut file = TempFile::create(&root).map_err(errno)?;
        let zeros = vec![0; ZEROS.min(len as usize)];
        let mut left = len as usize;
        while left > 0 {
            let part = left.min(zeros.len());
            file.write(&zeros[..part]).map_err(|error| map_io(&root.url, "", action::WRITE, error))?;
            left -= part;
        }
        retry_interrupted(|| rustix::fs::fsync(file.file())).map_err(errno)?;
        Ok(Self { root, file, len, path: None })
    }

    fn put(&self, path: &ObjectPath, offset: u64, bytes: &[u8]) -> Result<(), StoreError> {
        // Beyond its end, and its length would have to be made durable as well.
        if offset.saturating_add(bytes.len() as u64) > self.len {
            return Err(failed(&self.root.url, path, action::WRITE, format!("it has {} bytes only", self.len)));
        }
        let written = self.file.file().write_all_at(bytes, offset);
        written.map_err(|error| map_io(&self.root.url, path, action::WRITE, error))
    }
}

impl LogFile for LocalLog {
    fn publish(&mut self, path: &ObjectPath, bytes: &[u8]) -> Result<Created, StoreError> {
        self.root.check_present(path, action::WRITE)?;
        self.put(path, 0, bytes)?;
        let created = self.file.publish_open(path).map_err(|errno| self.root.error(path, action::WRITE, errno))?;
        if created == Created::New {
            self.path = Some(path.clone());
        }
        Ok(created)
    }

    fn write(&mut self, offset: u64, bytes: &[u8]) -> Result<(), StoreError> {
        let Some(path) = &self.path else {
            return Err(failed(&self.root.url, "", action::WRITE, "it has no name yet"));
        };
        self.put(path, offset, bytes)?;
        let errno = |errno| self.root.error(path, action::WRITE, errno);
        retry_interrupted(|| rustix::fs::fdatasync(self.file.file())).map_err(errno)?;
        // What was written to a file that is in the store no more is not in the store.
        self.root.check_present(path, action::WRITE)?;
        match rustix::fs::fstat(self.file.file()).map_err(errno)?.st_nlink {
            0 => Err(failed(&self.root.url, path, action::WRITE, "it was deleted while it was written")),
            _ => Ok(()),
        }
    }
}
