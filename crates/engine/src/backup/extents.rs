//! Some extents of a file: what of them is read, and in which form what changed is stored.

use super::CONTROL_ENTRY;
use super::changes::FileChanges;
use super::gentle::{self, Before};
use super::listing::Relation;
use super::plan::Task;
use super::reading::{CONTROL_READ_AGAIN_AFTER, bad_control, control_fault, read_ahead, read_full, whole_control};
use super::sources::{Form, PageSources, Placed};
use super::worker::Worker;
use crate::EngineError;
use repo::chunk::EXTENT_PAGES;
use std::fs::File;
use std::io::ErrorKind;
use std::sync::atomic::Ordering;

/// A file that is being read.
#[derive(Clone, Copy)]
pub(super) struct Job<'a> {
    pub(super) index: usize,
    pub(super) task: Task,
    /// None for what arrived by itself: it is in the worker's buffer, and cannot be read again.
    pub(super) file: Option<&'a File>,
    pub(super) relation: Option<Relation>,
    pub(super) sources: &'a PageSources,
    /// The changed pages, layer by layer, where they are known.
    pub(super) changes: &'a [FileChanges],
    /// Length of the file in bytes.
    pub(super) len: u64,
}

impl<'a> Job<'a> {
    /// The file to read from.
    fn on_disk(&self) -> &'a File {
        self.file.expect("only files that lie here are read")
    }

    /// Whether a page is named as changed, or has to be read in any case.
    pub(super) fn is_named(&self, page: u64) -> bool {
        self.sources.is_absent(page)
            || match self.changes.get(usize::from(self.sources.layer(page))) {
                None | Some(FileChanges::None) => false,
                Some(FileChanges::Whole) => true,
                Some(FileChanges::Pages { pages, from }) => {
                    from.is_some_and(|from| page >= from) || u32::try_from(page).is_ok_and(|page| pages.contains(page))
                }
            }
    }
}

/// What was stored of some extents of a file.
#[derive(Default)]
pub(super) struct Part {
    pub(super) placed: Vec<Placed>,
    /// Where a read fell short: the file ends here.
    pub(super) cut: Option<u64>,
}

/// Changed pages on their way into a delta chunk.
#[derive(Default)]
pub(super) struct Delta {
    pub(super) pages: Vec<u64>,
    pub(super) bytes: Vec<u8>,
}

impl Worker<'_> {
    /// Reads extents of a file, finds what changed in them and stores it.
    pub(super) fn extents(
        &mut self,
        job: &Job<'_>,
        first_extent: u64,
        extents: u64,
        stopped: &impl Fn() -> bool,
    ) -> Result<Part, EngineError> {
        let total = self.pages_in(job.len);
        let page_size = self.shared.setup.rules.page_size;
        let mut part = Part::default();
        let mut delta = Delta::default();
        // So many unchanged pages may be written again to keep the restore bounded: as many as are written anyway.
        let mut budget = EXTENT_PAGES;
        self.ahead.until((first_extent + extents) * EXTENT_PAGES * page_size as u64);
        if job.task == Task::Pages {
            self.ask_ahead(job, first_extent, extents);
        }
        for extent in first_extent..first_extent + extents {
            if stopped() {
                return Err(EngineError::Cancelled);
            }
            let first = extent * EXTENT_PAGES;
            let pages = total.saturating_sub(first).min(EXTENT_PAGES);
            let end_bytes = ((first + pages) * page_size as u64).min(job.len);
            let wanted = end_bytes.saturating_sub(first * page_size as u64) as usize;
            let mut form = None;
            if job.task == Task::Pages {
                let named: Vec<u64> = (first..first + pages).filter(|page| job.is_named(*page)).collect();
                let mut read: Vec<u64> = (first..first + pages).filter(|page| self.is_again(job, *page)).collect();
                if named.is_empty() && read.is_empty() {
                    continue;
                }
                if !named.is_empty() {
                    form = Some(job.sources.form(first, &named, &mut budget));
                }
                if form != Some(Form::Base) {
                    read.extend(named);
                    read.sort_unstable();
                    read.dedup();
                    self.some_pages(job, first, &read, (&mut delta, &mut part), stopped)?;
                    budget += read.len() as u64;
                    continue;
                }
            }
            let got = self.read_extent(job, first, stopped)?;
            if got < wanted {
                let end = first * page_size as u64 + got as u64;
                part.cut = part.cut.into_iter().chain([end]).min();
            }
            let (bad, changed) = self.changed(job, first, got)?;
            if changed.is_empty() {
                continue;
            }
            let form = match job.task {
                Task::Whole | Task::Compare => Form::Base,
                // Pages that are damaged here, and not in the repository, stay as they are there.
                _ if bad => Form::Delta,
                _ => form.unwrap_or_else(|| job.sources.form(first, &changed, &mut budget)),
            };
            budget += changed.len() as u64;
            match form {
                Form::Base => part.placed.extend(self.store_base(job, first, got)?),
                Form::Delta => self.take_pages(job, first, got, &changed, &mut delta, &mut part)?,
            }
            if got < wanted {
                break;
            }
        }
        self.flush(job, &mut delta, &mut part)?;
        Ok(part)
    }

    /// Has the kernel read the pages that will be asked for, all at once.
    pub(super) fn ask_ahead(&self, job: &Job<'_>, first_extent: u64, extents: u64) {
        let page_size = self.shared.setup.rules.page_size as u64;
        let _ = rustix::fs::fadvise(job.on_disk(), 0, None, rustix::fs::Advice::Random);
        let pages = first_extent * EXTENT_PAGES..((first_extent + extents) * EXTENT_PAGES).min(self.pages_in(job.len));
        let mut run: Option<(u64, u64)> = None;
        for page in pages.filter(|page| job.is_named(*page)) {
            match &mut run {
                Some((_, end)) if *end == page => *end += 1,
                _ => {
                    if let Some((start, end)) = run.replace((page, page + 1)) {
                        read_ahead(job.on_disk(), start * page_size, (end - start) * page_size);
                    }
                }
            }
        }
        if let Some((start, end)) = run {
            read_ahead(job.on_disk(), start * page_size, (end - start) * page_size);
        }
    }

    /// Reads single pages of an extent and stores those that changed.
    pub(super) fn some_pages(
        &mut self,
        job: &Job<'_>,
        first: u64,
        pages: &[u64],
        (delta, part): (&mut Delta, &mut Part),
        stopped: &impl Fn() -> bool,
    ) -> Result<(), EngineError> {
        let shared = self.shared;
        let page_size = shared.setup.rules.page_size;
        for run in pages.chunk_by(|a, b| a + 1 == *b) {
            let (start, count) = (run[0], run.len());
            let offset = start * page_size as u64;
            let wanted = ((count * page_size) as u64).min(job.len - offset) as usize;
            let at = (start - first) as usize * page_size;
            // What is only looked at again need not stay in the page cache.
            let looked_at = !run.iter().any(|page| job.is_named(*page));
            let before = if looked_at { gentle::look(job.on_disk(), offset, wanted as u64) } else { Before::Cached };
            let got = read_full(job.on_disk(), &mut self.buffer[at..at + wanted], offset).map_err(|error| {
                EngineError::file(
                    shared.setup.places.on_disk(&shared.setup.listing.entries[job.index].path),
                    "reading",
                    error,
                )
            })?;
            gentle::leave(job.on_disk(), offset, got as u64, before);
            if got < wanted {
                part.cut = part.cut.into_iter().chain([offset + got as u64]).min();
            }
            shared.setup.ctx.progress.advance(got as u64);
            shared.pages_read.fetch_add(got.div_ceil(page_size) as u64, Ordering::Relaxed);
            shared.setup.pace.spent(got as u64, stopped);
            let bad = self.check(job, start, at, got);
            for &page in run {
                let at = (page - first) as usize * page_size;
                let end = ((start - first) as usize * page_size + got).min(at + page_size);
                if at >= end {
                    break;
                }
                let is_bad = bad.iter().any(|(number, _)| *number == page);
                if job.is_named(page) || !is_bad && self.differs(job, page, at..end)? {
                    self.take_page(job, page, at..end, delta, part)?;
                }
            }
        }
        Ok(())
    }

    /// Reads one extent into the buffer; gives how many bytes there were.
    pub(super) fn read_extent(
        &mut self,
        job: &Job<'_>,
        first: u64,
        stopped: &impl Fn() -> bool,
    ) -> Result<usize, EngineError> {
        let shared = self.shared;
        let path = &shared.setup.listing.entries[job.index].path;
        let page_size = shared.setup.rules.page_size as u64;
        let start = first * page_size;
        let extent_bytes = self.buffer.len() as u64;
        let wanted = job.len.saturating_sub(start).min(extent_bytes) as usize;
        // What WAL names was changed a short while ago, and is needed again: it stays in the page cache.
        let before = match job.task {
            Task::Pages => Before::Cached,
            _ => self.ahead.before(job.on_disk(), job.index, start, wanted as u64),
        };
        if job.task != Task::Pages {
            let next = start + extent_bytes;
            self.ahead.ask(job.on_disk(), job.index, next, job.len.saturating_sub(next).min(extent_bytes));
        }
        let fail = |error| EngineError::file(shared.setup.places.on_disk(path), "reading", error);
        let mut got = read_full(job.on_disk(), &mut self.buffer[..wanted], start).map_err(fail)?;
        if **path == *CONTROL_ENTRY {
            let again = |buffer: &mut [u8]| {
                std::thread::sleep(CONTROL_READ_AGAIN_AFTER);
                if stopped() { Err(ErrorKind::Interrupted.into()) } else { read_full(job.on_disk(), buffer, start) }
            };
            got = whole_control(got, &mut self.buffer[..wanted], control_fault, again).map_err(|reason| {
                if stopped() { EngineError::Cancelled } else { bad_control(shared.setup.places.on_disk(path), reason) }
            })?;
        }
        shared.setup.ctx.progress.advance(got as u64);
        shared.pages_read.fetch_add((got as u64).div_ceil(page_size), Ordering::Relaxed);
        gentle::leave(job.on_disk(), start, got as u64, before);
        shared.setup.pace.spent(got as u64, stopped);
        Ok(got)
    }
}
