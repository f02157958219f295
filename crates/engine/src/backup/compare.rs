//! What of an extent is not as it is in the repository.

use super::extents::Job;
use super::pages::BadPage;
use super::plan::Task;
use super::worker::Worker;
use crate::EngineError;
use pg_format::mask::{PageKind, is_all_visible, page_kind, set_all_visible};
use pg_format::page::{Checksums, PageHeader, check_page, is_all_zero, page_lsn};
use repo::chunk::{PageContent, page_hash};

impl Worker<'_> {
    /// Checks the pages in a part of the buffer; notes those that are damaged, and gives their numbers.
    pub(super) fn check(&mut self, job: &Job<'_>, first: u64, at: usize, got: usize) -> Vec<(u64, BadPage)> {
        let Some(relation) = job.relation else { return Vec::new() };
        let bad = self.shared.setup.rules.check(job.file, job.index, relation, first, &mut self.buffer[at..at + got]);
        if relation.content == PageContent::Relation {
            let pages = self.buffer[at..at + got].chunks_exact(self.shared.setup.rules.page_size);
            let sound = pages
                .zip(first..)
                .filter(|(_, number)| !bad.iter().any(|page| u64::from(page.block - relation.first_block) == *number));
            let newest = sound.filter_map(|(page, _)| page_lsn(page)).max().unwrap_or_default();
            self.outcome.newest = self.outcome.newest.max(newest);
        }
        self.outcome.bad_pages.extend_from_slice(&bad);
        bad.into_iter().map(|page| (u64::from(page.block - relation.first_block), page)).collect()
    }

    /// Which pages of the extent in the buffer are not as they are in the repository, and whether any is damaged that is
    /// in it.
    pub(super) fn changed(&mut self, job: &Job<'_>, first: u64, got: usize) -> Result<(bool, Vec<u64>), EngineError> {
        let page_size = self.shared.setup.rules.page_size;
        let bad = self.check(job, first, 0, got);
        let pages = got.div_ceil(page_size) as u64;
        let all = || (first..first + pages).collect::<Vec<u64>>();
        match job.task {
            Task::Nothing | Task::Keep | Task::Whole => return Ok((false, all())),
            Task::Compare => {
                let plain = &self.buffer[..got];
                let same = match job.sources.chunk_of(first, got as u64) {
                    Some(chunk) => blake3::hash(plain).as_bytes()[..16] == chunk.hash16,
                    None => job.sources.is_zero(first, pages) && is_all_zero(plain),
                };
                return Ok((false, if same { Vec::new() } else { all() }));
            }
            Task::Scan | Task::ScanHashes | Task::Pages => {}
        }
        let mut changed = Vec::new();
        let mut kept_bad = false;
        for page in first..first + pages {
            let at = (page - first) as usize * page_size;
            let bytes = at..(at + page_size).min(got);
            let is_bad = bad.iter().any(|(number, _)| *number == page);
            let is_changed = if job.task == Task::Pages {
                job.is_named(page)
            } else {
                self.looks_changed(job, page, &self.buffer[bytes.clone()])
            };
            let by_hash = job.task == Task::ScanHashes
                || job.task == Task::Scan && self.may_have_become_all_visible(job, &self.buffer[bytes.clone()]);
            // In a database that was perhaps made anew it is no alarm that pages differ.
            let looks_again = !is_bad && job.task != Task::ScanHashes;
            let is_changed = is_changed
                || looks_again && self.differs(job, page, bytes.clone())?
                || !is_bad && by_hash && self.stored_hash_differs(job, page, bytes)? != Some(false);
            if is_changed {
                changed.push(page);
            }
            kept_bad |= is_bad && !is_changed;
        }
        Ok((kept_bad, changed))
    }

    /// Whether a page is newer than its copy in the repository, or cannot be told to be older.
    pub(super) fn looks_changed(&self, job: &Job<'_>, page: u64, bytes: &[u8]) -> bool {
        if job.sources.is_absent(page) || bytes.len() < self.shared.setup.rules.page_size {
            return true;
        }
        let Ok(header) = PageHeader::parse(bytes) else { return true };
        if header.is_new() {
            return !(job.sources.is_zero(page, 1) && is_all_zero(bytes));
        }
        let layer = usize::from(job.sources.layer(page));
        let since = self.shared.setup.base.layers.get(layer).map(|layer| layer.start_lsn);
        !header.is_sane(bytes.len()) || page_lsn(bytes) >= since
    }

    /// Whether a page may be marked all visible since it was stored: without checksums that leaves its LSN as it was
    /// (`visibilitymap_set`), and the visibility map that is stored now says so. Restored without the mark, changes of
    /// the page would not clear the map.
    fn may_have_become_all_visible(&self, job: &Job<'_>, bytes: &[u8]) -> bool {
        self.shared.setup.rules.checksums == Checksums::Off
            && job.relation.is_some_and(|relation| relation.content == PageContent::Relation)
            && is_all_visible(bytes)
            && page_kind(bytes) == PageKind::Heap
    }

    /// Whether a page that nothing says has changed differs from what was stored, if it is one to look at again.
    pub(super) fn differs(
        &mut self,
        job: &Job<'_>,
        page: u64,
        bytes: std::ops::Range<usize>,
    ) -> Result<bool, EngineError> {
        if !self.is_again(job, page) {
            return Ok(false);
        }
        let (Some(differs), Some(relation)) = (self.stored_hash_differs(job, page, bytes.clone())?, job.relation)
        else {
            return Ok(false);
        };
        self.outcome.compared += 1;
        let range = bytes;
        let bytes = &self.buffer[range.clone()];
        let lsn = page_lsn(bytes).unwrap_or_default();
        // What changed since this backup began is not known to anybody yet, and replay brings it.
        if !differs || lsn >= self.shared.setup.start_lsn {
            return Ok(false);
        }
        let page_bytes = bytes.to_vec();
        if page_kind(&page_bytes) == PageKind::Heap && self.differs_in_the_mark_only(job, page, page_bytes)? {
            return Ok(true); // stored again, but nothing to be alarmed about
        }
        let bytes = &self.buffer[range];
        let block = relation.first_block + page as u32;
        let sound = check_page(bytes, block, Checksums::Off).is_ok();
        let reason = format!(
            "the {} differs from what was stored of it, though nothing says that it changed (its LSN is {lsn}); it is \
             stored again as it is now",
            if sound { "page" } else { "page, whose header is not valid," },
        );
        self.outcome.differing.push(BadPage { file: job.index, block, lsn, reason });
        Ok(true)
    }

    /// Whether a heap page is as it was stored, but for the mark that it is all visible.
    fn differs_in_the_mark_only(&mut self, job: &Job<'_>, page: u64, mut bytes: Vec<u8>) -> Result<bool, EngineError> {
        let Some(at) = job.sources.at(page) else { return Ok(false) };
        let Some(stored) = self.shared.setup.footers.page_hash(&at)? else { return Ok(false) };
        let is_set = is_all_visible(&bytes);
        set_all_visible(&mut bytes, !is_set);
        Ok(page_hash(&bytes, PageContent::Relation, &mut self.scratch) == stored)
    }

    /// Compares a page with the hash it had when it was stored; `None` when that is not known.
    pub(super) fn stored_hash_differs(
        &mut self,
        job: &Job<'_>,
        page: u64,
        bytes: std::ops::Range<usize>,
    ) -> Result<Option<bool>, EngineError> {
        if job.sources.is_zero(page, 1) {
            return Ok(Some(!is_all_zero(&self.buffer[bytes])));
        }
        let Some(at) = job.sources.at(page) else { return Ok(None) };
        let Some(stored) = self.shared.setup.footers.page_hash(&at)? else { return Ok(None) };
        let content = job.relation.map_or(PageContent::Other, |relation| relation.content);
        Ok(Some(page_hash(&self.buffer[bytes], content, &mut self.scratch) != stored))
    }

    /// Whether a page is to be compared with what was stored of it.
    pub(super) fn is_again(&self, job: &Job<'_>, page: u64) -> bool {
        let again = &self.shared.setup.base.marks.again;
        !again.is_empty() && job.relation.is_some() && job.sources.at(page).is_some_and(|at| again.contains(&at.pack))
    }
}
