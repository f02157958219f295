//! Writing a large object to a local store: one write at a time runs beside the caller.

use super::root::{Root, map_io};
use super::temp::TempFile;
use crate::blocking::run_blocking;
use crate::error::{action, failed};
use crate::{Created, ObjectPath, ObjectWriter, StoreError};
use async_trait::async_trait;
use bytes::Bytes;
use std::io;
use std::sync::Arc;
use tokio::task::JoinHandle;

/// Bytes collected before a write is begun.
const WRITE_BYTES: usize = 1024 * 1024;

/// Bytes that may wait while a write runs; with those being written, half of what is allowed.
const QUEUED_BYTES_MAX: usize = 8 * 1024 * 1024;

pub(super) struct LocalWriter {
    root: Arc<Root>,
    path: ObjectPath,
    state: State,
    queue: Vec<Bytes>,
    queued_bytes: usize,
}

enum State {
    Idle(TempFile),
    Writing(JoinHandle<io::Result<TempFile>>),
    /// A write failed; the object is given up.
    Failed,
}

impl LocalWriter {
    pub(super) fn new(root: Arc<Root>, path: ObjectPath, temp: TempFile) -> Self {
        Self { root, path, state: State::Idle(temp), queue: Vec::new(), queued_bytes: 0 }
    }

    /// Begins to write what waits, after the write before it.
    async fn begin_write(&mut self) -> Result<(), StoreError> {
        let mut temp = self.settle().await?;
        let queue = std::mem::take(&mut self.queue);
        self.queued_bytes = 0;
        self.state = State::Writing(tokio::task::spawn_blocking(move || {
            for bytes in queue {
                temp.write(&bytes)?;
            }
            Ok(temp)
        }));
        Ok(())
    }

    /// Waits for the write that runs, and takes the file.
    async fn settle(&mut self) -> Result<TempFile, StoreError> {
        let written = match &mut self.state {
            // Awaited in place: a cancelled wait leaves the write where it is.
            State::Writing(running) => Some(running.await),
            State::Idle(_) | State::Failed => None,
        };
        match (written, std::mem::replace(&mut self.state, State::Failed)) {
            (Some(Ok(Ok(temp))), _) | (None, State::Idle(temp)) => Ok(temp),
            (Some(Ok(Err(error))), _) => {
                self.root.check_present(&self.path, action::WRITE)?;
                Err(map_io(&self.root.url, &self.path, action::WRITE, error))
            }
            (Some(Err(join)), _) => Err(failed(&self.root.url, &self.path, action::WRITE, join.to_string())),
            (None, _) => {
                Err(failed(&self.root.url, &self.path, action::WRITE, "an earlier write of this object failed"))
            }
        }
    }
}

#[async_trait]
impl ObjectWriter for LocalWriter {
    async fn write(&mut self, bytes: Bytes) -> Result<(), StoreError> {
        let running = match &self.state {
            State::Idle(_) => false,
            State::Writing(handle) => !handle.is_finished(),
            State::Failed => return self.settle().await.map(drop),
        };
        self.queued_bytes += bytes.len();
        self.queue.push(bytes);
        if self.queued_bytes >= QUEUED_BYTES_MAX || (!running && self.queued_bytes >= WRITE_BYTES) {
            self.begin_write().await?;
        }
        Ok(())
    }

    async fn finish(mut self: Box<Self>) -> Result<Created, StoreError> {
        let mut temp = self.settle().await?;
        let Self { root, path, queue, .. } = *self;
        run_blocking(move || {
            for bytes in queue {
                temp.write(&bytes).map_err(|error| map_io(&root.url, &path, action::WRITE, error))?;
            }
            root.check_present(&path, action::WRITE)?;
            temp.publish(&path).map_err(|errno| root.error(&path, action::WRITE, errno))
        })
        .await
    }

    async fn abort(mut self: Box<Self>) -> Result<(), StoreError> {
        if matches!(self.state, State::Failed) {
            return Ok(());
        }
        let temp = self.settle().await?;
        let Self { root, path, .. } = *self;
        run_blocking(move || temp.remove().map_err(|errno| root.error(&path, action::DELETE, errno))).await
    }
}
