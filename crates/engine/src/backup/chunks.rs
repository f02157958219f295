//! Chunks on their way into this worker's pack.

use super::extents::{Delta, Job, Part};
use super::sources::Placed;
use super::worker::Worker;
use crate::EngineError;
use pg_format::page::is_all_zero;
use repo::chunk::{ChunkRef, EXTENT_PAGES, EncodedChunk, PageContent};
use repo::pack::{ChunkPages, PACK_LEN, PackWriter, WrittenPack};
use repo::{PackId, RepoError};
use std::sync::atomic::Ordering;
use tokio::task::JoinHandle;

/// Packs of one worker that may be on their way to being durable while it fills the next.
const PACKS_IN_FLIGHT: usize = 2;

impl Worker<'_> {
    /// Adds the changed pages of the extent in the buffer to the delta chunk.
    pub(super) fn take_pages(
        &mut self,
        job: &Job<'_>,
        first: u64,
        got: usize,
        changed: &[u64],
        delta: &mut Delta,
        part: &mut Part,
    ) -> Result<(), EngineError> {
        let page_size = self.shared.rules.page_size;
        for &page in changed {
            let at = (page - first) as usize * page_size;
            self.take_page(job, page, at..(at + page_size).min(got), delta, part)?;
        }
        Ok(())
    }

    /// Adds a changed page, which lies in the buffer, to the delta chunk.
    pub(super) fn take_page(
        &mut self,
        job: &Job<'_>,
        page: u64,
        bytes: std::ops::Range<usize>,
        delta: &mut Delta,
        part: &mut Part,
    ) -> Result<(), EngineError> {
        let bytes = &self.buffer[bytes];
        if is_all_zero(bytes) {
            part.placed.push(Placed::Zero { first: page, pages: 1 });
            return Ok(());
        }
        let is_short = bytes.len() < self.shared.rules.page_size;
        delta.pages.push(page);
        delta.bytes.extend_from_slice(bytes);
        if delta.pages.len() as u64 == EXTENT_PAGES || is_short {
            self.flush(job, delta, part)?;
        }
        Ok(())
    }

    pub(super) fn flush(&mut self, job: &Job<'_>, delta: &mut Delta, part: &mut Part) -> Result<(), EngineError> {
        if delta.pages.is_empty() {
            return Ok(());
        }
        let pages = std::mem::take(&mut delta.pages);
        let page_size = self.shared.rules.page_size;
        self.outcome.pages_stored += pages.len() as u64;
        let path = &self.shared.listing.entries[job.index].path;
        let mut encoder = self.encoder.take().expect("put back after each use");
        let chunk = encoder.encode(&delta.bytes, page_size, job.relation.map_or(PageContent::Other, |r| r.content));
        let (pack, chunk) = self.add(path, &ChunkPages::Delta { pages: pages.clone() }, &chunk)?;
        self.encoder = Some(encoder);
        delta.bytes.clear();
        part.placed.push(Placed::Delta { pages, pack, chunk });
        Ok(())
    }

    /// Stores the extent in the buffer as a chunk of its own.
    pub(super) fn store_base(&mut self, job: &Job<'_>, first: u64, got: usize) -> Result<Option<Placed>, EngineError> {
        if got == 0 {
            return Ok(None);
        }
        let page_size = self.shared.rules.page_size;
        let pages = got.div_ceil(page_size) as u64;
        let content = job.relation.map_or(PageContent::Other, |relation| relation.content);
        let mut encoder = self.encoder.take().expect("put back after each use");
        let buffer = std::mem::take(&mut self.buffer);
        let chunk = encoder.encode(&buffer[..got], page_size, content);
        let placed = if chunk.is_zero {
            Placed::Zero { first, pages }
        } else {
            self.outcome.pages_stored += pages;
            let path = &self.shared.listing.entries[job.index].path;
            let (pack, chunk) = self.add(path, &ChunkPages::Base { first }, &chunk)?;
            Placed::Base { first, pages, pack, chunk }
        };
        self.buffer = buffer;
        self.encoder = Some(encoder);
        Ok(Some(placed))
    }

    /// Stores a chunk in this worker's pack.
    pub(super) fn add(
        &mut self,
        path: &[u8],
        pages: &ChunkPages,
        chunk: &EncodedChunk<'_>,
    ) -> Result<(PackId, ChunkRef), EngineError> {
        let shared = self.shared;
        let handle = &shared.handle;
        let mut pack = match self.pack.take() {
            Some(pack) => pack,
            None => {
                let number = shared.next_pack.fetch_add(1, Ordering::Relaxed);
                let id = PackId { backup: shared.backup, number };
                handle.block_on(shared.cluster.create_pack(id))?
            }
        };
        let offset = handle.block_on(pack.add(path, pages, chunk))?;
        let id = pack.id();
        let placed = ChunkRef {
            pack: 0,
            offset,
            stored_len: chunk.stored.len() as u32,
            plain_len: chunk.plain_len,
            hash16: chunk.hash[..16].try_into().expect("16 of 32 bytes"),
        };
        if pack.len() >= PACK_LEN {
            self.finish_pack(pack);
            while self.finishing.len() > PACKS_IN_FLIGHT {
                if let Some(task) = self.finishing.pop_front() {
                    self.await_pack(task)?;
                }
            }
        } else {
            self.pack = Some(pack);
        }
        Ok((id, placed))
    }

    /// Making a pack durable takes a while; the worker goes on meanwhile.
    pub(super) fn finish_pack(&mut self, pack: PackWriter) {
        self.finishing.push_back(self.shared.handle.spawn(pack.finish()));
    }

    pub(super) fn await_pack(&mut self, task: JoinHandle<Result<WrittenPack, RepoError>>) -> Result<(), EngineError> {
        let written = self.shared.handle.block_on(task).map_err(|panic| EngineError::Failed {
            reason: format!("writing a pack stopped unexpectedly: {panic}"),
            hint: None,
        })??;
        self.outcome.packs.insert(written.id, written.size);
        Ok(())
    }
}
