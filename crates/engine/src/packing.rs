//! Chunks on their way into packs of one backup.

use crate::EngineError;
use repo::chunk::{ChunkRef, EncodedChunk};
use repo::pack::{ChunkPages, PACK_LEN, PackWriter, WrittenPack};
use repo::{BackupId, Cluster, PackId, RepoError};
use std::collections::{HashMap, VecDeque};
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use tokio::runtime::Handle;
use tokio::task::JoinHandle;

/// Packs of one sink that may be on their way to being durable while it fills the next.
const PACKS_IN_FLIGHT: usize = 2;

/// Whose packs they are, and how they are numbered. Shared by all threads that write packs of one backup.
#[derive(Clone)]
pub(crate) struct Packing {
    pub(crate) cluster: Cluster,
    pub(crate) backup: BackupId,
    pub(crate) next_pack: Arc<AtomicU32>,
}

impl Packing {
    /// Packs of a backup, counted from 1.
    pub(crate) fn new(cluster: Cluster, backup: BackupId) -> Self {
        Self { cluster, backup, next_pack: Arc::new(AtomicU32::new(1)) }
    }

    /// A thread's own packs. Its calls block, on tasks of the runtime that `handle` is of.
    pub(crate) fn sink(&self, handle: Handle) -> PackSink {
        PackSink { packing: self.clone(), handle, open: None, finishing: VecDeque::new(), written: HashMap::new() }
    }
}

/// One thread's open pack, and those that are being made durable behind it.
pub(crate) struct PackSink {
    packing: Packing,
    handle: Handle,
    open: Option<PackWriter>,
    finishing: VecDeque<JoinHandle<Result<WrittenPack, RepoError>>>,
    written: HashMap<PackId, u64>,
}

impl PackSink {
    /// Stores a chunk of the file `path`.
    pub(crate) fn add(
        &mut self,
        path: &[u8],
        pages: &ChunkPages,
        chunk: &EncodedChunk<'_>,
    ) -> Result<(PackId, ChunkRef), EngineError> {
        let mut pack = match self.open.take() {
            Some(pack) => pack,
            None => {
                let number = self.packing.next_pack.fetch_add(1, Ordering::Relaxed);
                let id = PackId { backup: self.packing.backup, number };
                self.handle.block_on(self.packing.cluster.create_pack(id))?
            }
        };
        let placed = self.handle.block_on(pack.add(path, pages, chunk))?;
        let id = pack.id();
        if pack.len() >= PACK_LEN {
            self.close(pack);
            self.wait(PACKS_IN_FLIGHT)?;
        } else {
            self.open = Some(pack);
        }
        Ok((id, placed))
    }

    /// Ends the open pack and waits until all are durable. Gives the object size of each.
    pub(crate) fn finish(mut self) -> Result<HashMap<PackId, u64>, EngineError> {
        if let Some(pack) = self.open.take() {
            self.close(pack);
        }
        self.settle()?;
        Ok(self.written)
    }

    /// After a failure: the open pack never becomes visible, and of those on their way nothing arrives later, when
    /// somebody has looked at what is there.
    pub(crate) fn give_up(mut self) {
        let _ = self.settle();
    }

    /// Making a pack durable takes a while; the thread goes on meanwhile.
    fn close(&mut self, pack: PackWriter) {
        self.finishing.push_back(self.handle.spawn(pack.finish()));
    }

    /// Waits for all, whatever becomes of each; the first error is told.
    fn settle(&mut self) -> Result<(), EngineError> {
        let mut result = Ok(());
        while !self.finishing.is_empty() {
            result = result.and(self.wait(self.finishing.len() - 1));
        }
        result
    }

    /// Waits until no more than `left` packs are on their way.
    fn wait(&mut self, left: usize) -> Result<(), EngineError> {
        while self.finishing.len() > left {
            let Some(task) = self.finishing.pop_front() else { break };
            let written = self.handle.block_on(task).map_err(|panic| EngineError::Failed {
                reason: format!("writing a pack stopped unexpectedly: {panic}"),
                hint: None,
            })??;
            self.written.insert(written.id, written.size);
        }
        Ok(())
    }
}
