//! Chunks on their way into this worker's pack.

use super::extents::{Delta, Job, Part};
use super::sources::Placed;
use super::worker::Worker;
use crate::EngineError;
use pg_format::page::is_all_zero;
use repo::chunk::{EXTENT_PAGES, PageContent};
use repo::pack::ChunkPages;

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
        let page_size = self.shared.setup.rules.page_size;
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
        let is_short = bytes.len() < self.shared.setup.rules.page_size;
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
        let page_size = self.shared.setup.rules.page_size;
        self.outcome.pages_stored += pages.len() as u64;
        let path = &self.shared.setup.listing.entries[job.index].path;
        let mut encoder = self.encoder.take().expect("put back after each use");
        let chunk = encoder.encode(&delta.bytes, page_size, job.relation.map_or(PageContent::Other, |r| r.content));
        let (pack, chunk) = self.packs.add(path, &ChunkPages::Delta { pages: pages.clone() }, &chunk)?;
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
        let page_size = self.shared.setup.rules.page_size;
        let pages = got.div_ceil(page_size) as u64;
        let content = job.relation.map_or(PageContent::Other, |relation| relation.content);
        let mut encoder = self.encoder.take().expect("put back after each use");
        let buffer = std::mem::take(&mut self.buffer);
        let chunk = encoder.encode(&buffer[..got], page_size, content);
        let placed = if chunk.is_zero {
            Placed::Zero { first, pages }
        } else {
            self.outcome.pages_stored += pages;
            let path = &self.shared.setup.listing.entries[job.index].path;
            let (pack, chunk) = self.packs.add(path, &ChunkPages::Base { first }, &chunk)?;
            Placed::Base { first, pages, pack, chunk }
        };
        self.buffer = buffer;
        self.encoder = Some(encoder);
        Ok(Some(placed))
    }
}
