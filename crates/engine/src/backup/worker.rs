//! One thread's part of a backup: reads files extent by extent, finds what changed, and stores that.

use super::CONTROL_ENTRY;
use super::changes::FileChanges;
use super::listing::{Found, Relation, on_disk};
use super::pages::BadPage;
use super::pipeline::{Assembly, FileResult, Outcome, Pipeline, Prepared, Slice, Stored, lock};
use super::plan::Task;
use super::reading::{
    CONTROL_READ_AGAIN_AFTER, bad_control, control_fault, open, present_len, read_ahead, read_full, whole_control,
};
use super::sources::{Described, Form, PageSources, Placed};
use crate::EngineError;
use pg_format::page::{Checksums, PageHeader, check_page, is_all_zero, page_lsn};
use repo::chunk::{ChunkEncoder, ChunkRef, EXTENT_PAGES, EncodedChunk, PageContent, page_hash};
use repo::map::FileMap;
use repo::pack::{ChunkPages, PACK_LEN, PackWriter, WrittenPack, map_encoder};
use repo::{PackId, RepoError};
use std::collections::VecDeque;
use std::fs::File;
use std::io::ErrorKind;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use tokio::task::JoinHandle;

/// Packs of one worker that may be on their way to being durable while it fills the next.
const PACKS_IN_FLIGHT: usize = 2;

/// A file that is being read.
#[derive(Clone, Copy)]
struct Job<'a> {
    index: usize,
    task: Task,
    file: &'a File,
    relation: Option<Relation>,
    sources: &'a PageSources,
    /// The changed pages, layer by layer, where they are known.
    changes: &'a [FileChanges],
    /// Length of the file in bytes.
    len: u64,
}

impl Job<'_> {
    /// Whether a page is named as changed, or has to be read in any case.
    fn is_named(&self, page: u64) -> bool {
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
struct Part {
    placed: Vec<Placed>,
    /// Where a read fell short: the file ends here.
    cut: Option<u64>,
}

/// Changed pages on their way into a delta chunk.
#[derive(Default)]
struct Delta {
    pages: Vec<u64>,
    bytes: Vec<u8>,
}

/// One thread's part of the work.
pub(super) struct Worker<'a> {
    shared: &'a Pipeline,
    /// Taken out while a chunk borrows its buffers.
    encoder: Option<ChunkEncoder>,
    buffer: Vec<u8>,
    scratch: Vec<u8>,
    pack: Option<PackWriter>,
    finishing: VecDeque<JoinHandle<Result<WrittenPack, RepoError>>>,
    outcome: Outcome,
}

impl<'a> Worker<'a> {
    pub(super) fn new(shared: &'a Pipeline) -> Self {
        Self {
            encoder: Some(ChunkEncoder::new(shared.compression)),
            buffer: vec![0; EXTENT_PAGES as usize * shared.rules.page_size],
            scratch: Vec::new(),
            shared,
            pack: None,
            finishing: VecDeque::new(),
            outcome: Outcome::default(),
        }
    }

    pub(super) fn run(mut self, stopped: impl Fn() -> bool) -> Result<(), EngineError> {
        let mut result = self.work(&stopped);
        if result.is_ok()
            && let Some(pack) = self.pack.take()
        {
            self.finish_pack(pack);
        }
        // Also after a failure: nothing may arrive later, when somebody has looked at what is there.
        while let Some(task) = self.finishing.pop_front() {
            result = result.and(self.await_pack(task));
        }
        lock(&self.shared.outcome).add(self.outcome);
        result
    }

    fn work(&mut self, stopped: &impl Fn() -> bool) -> Result<(), EngineError> {
        let shared = self.shared;
        while let Some(slice) = shared.next_slice() {
            if stopped() {
                return Err(EngineError::Cancelled);
            }
            match slice {
                Slice::Files { first, count } => {
                    for index in first..first + count {
                        if !matches!(shared.plan.tasks[index], Task::Nothing | Task::Keep) {
                            self.small_file(index, stopped)?;
                        }
                    }
                }
                Slice::Extents { file, first, count } => self.large_file(file, first, count, stopped)?,
                Slice::Gone(gone) => {
                    let file = shared.plan.gone[gone];
                    let map = self.old_map(shared.gone_key(gone), Some(file))?;
                    self.count(&file.stored, map.as_ref(), -1);
                }
            }
        }
        Ok(())
    }

    /// A file that is stored as one chunk, if anything of it is stored.
    fn small_file(&mut self, index: usize, stopped: &impl Fn() -> bool) -> Result<(), EngineError> {
        let shared = self.shared;
        let entry = &shared.listing.entries[index];
        let Found::File { len: listed, relation } = entry.found else { return Ok(()) };
        let before = shared.plan.before.get(index).copied().flatten();
        let old_map = self.old_map(index, before)?;
        let file = if listed == 0 && relation.is_some() { None } else { open(&on_disk(&shared.root, &entry.path))? };
        let result = match &file {
            None if listed == 0 && relation.is_some() => Some((FileResult { len: 0, stored: Stored::Zero }, None)),
            None => None,
            Some(file) => {
                let len = present_len(file, listed, relation, self.buffer.len() as u64);
                let sources = self.sources(index, len, before, old_map.as_ref());
                let changes = shared.plan.changes.get(&index).map_or(&[][..], Vec::as_slice);
                let task = shared.plan.tasks[index];
                let job = Job { index, task, file, relation, sources: &sources, changes, len };
                Some(self.small_job(&job, stopped)?)
            }
        };
        self.finish(index, before.map(|file| (file, old_map)), result);
        Ok(())
    }

    fn small_job(
        &mut self,
        job: &Job<'_>,
        stopped: &impl Fn() -> bool,
    ) -> Result<(FileResult, Option<FileMap>), EngineError> {
        let pages = self.pages_in(job.len);
        if job.task == Task::Pages {
            let again = (0..pages).any(|page| self.is_again(job, page));
            if !again && !(0..pages).any(|page| job.is_named(page)) {
                return self.describe(job.index, job.sources);
            }
        }
        let got = self.read_extent(job, 0, stopped)?;
        let (bad, changed) = self.changed(job, 0, got)?;
        if changed.is_empty() && got as u64 == job.len {
            return self.describe(job.index, job.sources);
        }
        if bad && got as u64 == job.len {
            // The pages that are damaged here, and not in the repository, stay as they are there.
            let mut sources = job.sources.clone();
            let (mut delta, mut part) = (Delta::default(), Part::default());
            self.take_pages(job, 0, got, &changed, &mut delta, &mut part)?;
            self.flush(job, &mut delta, &mut part)?;
            part.placed.iter().for_each(|placed| sources.place(placed, 0));
            return self.describe(job.index, &sources);
        }
        let mut sources = PageSources::absent(self.shared.rules.page_size, got as u64);
        if let Some(placed) = self.store_base(job, 0, got)? {
            sources.place(&placed, 0);
        }
        self.describe(job.index, &sources)
    }

    /// Some extents of a file that is stored in several chunks.
    fn large_file(
        &mut self,
        index: usize,
        first: u64,
        count: u64,
        stopped: &impl Fn() -> bool,
    ) -> Result<(), EngineError> {
        let shared = self.shared;
        let entry = &shared.listing.entries[index];
        let Found::File { len, relation } = entry.found else { return Ok(()) };
        let prepared = self.prepared(index, len)?;
        let part = match open(&on_disk(&shared.root, &entry.path))? {
            Some(file) => {
                let changes = shared.plan.changes.get(&index).map_or(&[][..], Vec::as_slice);
                let task = shared.plan.tasks[index];
                let job = Job { index, task, file: &file, relation, sources: &prepared.sources, changes, len };
                Some(self.extents(&job, first, count, stopped)?)
            }
            None => None,
        };
        let assembly = {
            let mut assemblies = lock(&shared.assemblies);
            let assembly = assemblies.get_mut(&index).expect("planned together with its slices");
            if let Some(mut part) = part {
                assembly.seen = true;
                assembly.placed.append(&mut part.placed);
                assembly.cut = assembly.cut.into_iter().chain(part.cut).min();
            }
            assembly.slices_left -= 1;
            if assembly.slices_left > 0 {
                return Ok(());
            }
            assemblies.remove(&index).expect("it was there")
        };
        self.assemble(index, len, &prepared, assembly)
    }

    /// Where a large file's pages lie, looked up by the first who needs it.
    fn prepared(&mut self, index: usize, len: u64) -> Result<Arc<Prepared>, EngineError> {
        let shared = self.shared;
        let slot = lock(&shared.assemblies).get(&index).expect("planned together with its slices").sources.clone();
        let mut slot = lock(&slot);
        if let Some(prepared) = &*slot {
            return Ok(prepared.clone());
        }
        let before = shared.plan.before.get(index).copied().flatten();
        let old_map = self.old_map(index, before)?;
        let sources = self.sources(index, len, before, old_map.as_ref());
        let prepared = Arc::new(Prepared { sources, old_map });
        *slot = Some(prepared.clone());
        Ok(prepared)
    }

    /// Where a file's pages lie already, in the prior and in what broken-off backups stored.
    fn sources(&self, index: usize, len: u64, before: Option<FileResult>, old_map: Option<&FileMap>) -> PageSources {
        let shared = self.shared;
        let page_size = shared.rules.page_size;
        let task = shared.plan.tasks[index];
        let mut sources = match before {
            Some(before) if task != Task::Whole => {
                PageSources::of_prior(page_size, before.len, &before.stored, old_map)
            }
            _ => PageSources::absent(page_size, 0),
        };
        sources.resize(len);
        if task == Task::Whole {
            return sources;
        }
        for page in shared.plan.damaged.get(&index).into_iter().flatten() {
            if *page < sources.pages() {
                sources.forget(*page as usize);
            }
        }
        let path = &shared.listing.entries[index].path;
        if task == Task::Pages || task == Task::Scan {
            sources.forget_mostly_dead();
        }
        if !shared.base.marks.leave.is_empty() {
            sources.forget_packs(|pack| shared.base.marks.leave.contains(&pack));
        }
        for (backup, layer) in shared.base.broken_off.iter().zip(1..) {
            for placed in backup.chunks.get(path).into_iter().flatten() {
                sources.place(placed, layer);
            }
        }
        sources
    }

    /// The prior's map of a file. A damaged one is as none: the file is read whole.
    fn old_map(&mut self, key: usize, file: Option<FileResult>) -> Result<Option<FileMap>, EngineError> {
        let Some(file) = file else { return Ok(None) };
        match self.shared.map(key, file) {
            Err(EngineError::Repo(error)) if error.is_damage() || error.is_not_found() => {
                self.shared.ctx.progress.warn(&format!("a file is read whole, because its map is damaged: {error}"));
                Ok(None)
            }
            other => other,
        }
    }

    /// Writes down where a large file's pages lie now.
    fn assemble(&mut self, index: usize, len: u64, prepared: &Prepared, assembly: Assembly) -> Result<(), EngineError> {
        let before = self.shared.plan.before.get(index).copied().flatten();
        let old = before.map(|file| (file, prepared.old_map.clone()));
        if !assembly.seen {
            self.finish(index, old, None); // it vanished before any of it was read: replay drops it
            return Ok(());
        }
        // A file that was cut while it was read ends where the first read fell short. What it got again behind that
        // point is newer than the start LSN: replay writes it.
        let mut sources = prepared.sources.clone();
        sources.resize(assembly.cut.map_or(len, |cut| cut.min(len)));
        for placed in &assembly.placed {
            sources.place(placed, 0);
        }
        let result = match (sources.describe(), before, &prepared.old_map) {
            (Some((_, Described::Map(map))), Some(before), Some(old)) if map == *old => (before, Some(map)),
            (described, ..) => self.described(index, described)?,
        };
        self.finish(index, old, Some(result));
        Ok(())
    }

    fn describe(&mut self, index: usize, sources: &PageSources) -> Result<(FileResult, Option<FileMap>), EngineError> {
        self.described(index, sources.describe())
    }

    fn described(
        &mut self,
        index: usize,
        described: Option<(u64, Described)>,
    ) -> Result<(FileResult, Option<FileMap>), EngineError> {
        let shared = self.shared;
        let path = &shared.listing.entries[index].path;
        let lost = || EngineError::Failed {
            reason: format!("{}: a page of it was lost track of", String::from_utf8_lossy(path)),
            hint: Some("this is a defect of pgkeep; `pgkeep backup --full` goes another way".into()),
        };
        let (len, described) = described.ok_or_else(lost)?;
        Ok(match described {
            Described::Zero => (FileResult { len, stored: Stored::Zero }, None),
            Described::Chunk(pack, chunk) => (FileResult { len, stored: Stored::Chunk(pack, chunk) }, None),
            Described::Map(map) => {
                let plain = map.encode();
                let mut encoder = map_encoder();
                let (pack, chunk) = self.add(path, &ChunkPages::Map, &encoder.encode_plain(&plain))?;
                (FileResult { len, stored: Stored::Map(pack, chunk) }, Some(map))
            }
        })
    }

    /// Notes what became of a file, and counts what it uses now instead of before.
    fn finish(
        &mut self,
        index: usize,
        old: Option<(FileResult, Option<FileMap>)>,
        new: Option<(FileResult, Option<FileMap>)>,
    ) {
        if let Some((file, map)) = &old {
            self.count(&file.stored, map.as_ref(), -1);
        }
        if let Some((file, map)) = &new {
            self.count(&file.stored, map.as_ref(), 1);
        }
        self.outcome.files.push((index, new.map(|(file, _)| file)));
    }

    fn count(&mut self, stored: &Stored, map: Option<&FileMap>, sign: i64) {
        let mut add = |pack: PackId, chunk: &ChunkRef| {
            *self.outcome.used.entry(pack).or_default() += sign * i64::from(chunk.stored_len);
        };
        match stored {
            Stored::Zero => {}
            Stored::Chunk(pack, chunk) => add(*pack, chunk),
            Stored::Map(pack, chunk) => {
                add(*pack, chunk);
                for chunk in map.iter().flat_map(|map| &map.chunks) {
                    add(map.map_or(*pack, |map| map.packs[chunk.pack as usize]), chunk);
                }
            }
        }
    }

    fn pages_in(&self, len: u64) -> u64 {
        len.div_ceil(self.shared.rules.page_size as u64)
    }

    /// Whether a page is to be compared with what was stored of it.
    fn is_again(&self, job: &Job<'_>, page: u64) -> bool {
        let again = &self.shared.base.marks.again;
        !again.is_empty() && job.relation.is_some() && job.sources.at(page).is_some_and(|at| again.contains(&at.pack))
    }

    /// Reads extents of a file, finds what changed in them and stores it.
    fn extents(
        &mut self,
        job: &Job<'_>,
        first_extent: u64,
        extents: u64,
        stopped: &impl Fn() -> bool,
    ) -> Result<Part, EngineError> {
        let total = self.pages_in(job.len);
        let page_size = self.shared.rules.page_size;
        let mut part = Part::default();
        let mut delta = Delta::default();
        // So many unchanged pages may be written again to keep the restore bounded: as many as are written anyway.
        let mut budget = EXTENT_PAGES;
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
                    self.some_pages(job, first, &read, &mut delta, &mut part)?;
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
    fn ask_ahead(&self, job: &Job<'_>, first_extent: u64, extents: u64) {
        let page_size = self.shared.rules.page_size as u64;
        let _ = rustix::fs::fadvise(job.file, 0, None, rustix::fs::Advice::Random);
        let pages = first_extent * EXTENT_PAGES..((first_extent + extents) * EXTENT_PAGES).min(self.pages_in(job.len));
        let mut run: Option<(u64, u64)> = None;
        for page in pages.filter(|page| job.is_named(*page)) {
            match &mut run {
                Some((_, end)) if *end == page => *end += 1,
                _ => {
                    if let Some((start, end)) = run.replace((page, page + 1)) {
                        read_ahead(job.file, start * page_size, (end - start) * page_size);
                    }
                }
            }
        }
        if let Some((start, end)) = run {
            read_ahead(job.file, start * page_size, (end - start) * page_size);
        }
    }

    /// Reads single pages of an extent and stores those that changed.
    fn some_pages(
        &mut self,
        job: &Job<'_>,
        first: u64,
        pages: &[u64],
        delta: &mut Delta,
        part: &mut Part,
    ) -> Result<(), EngineError> {
        let shared = self.shared;
        let page_size = shared.rules.page_size;
        for run in pages.chunk_by(|a, b| a + 1 == *b) {
            let (start, count) = (run[0], run.len());
            let offset = start * page_size as u64;
            let wanted = ((count * page_size) as u64).min(job.len - offset) as usize;
            let at = (start - first) as usize * page_size;
            let got = read_full(job.file, &mut self.buffer[at..at + wanted], offset).map_err(|error| {
                EngineError::file(on_disk(&shared.root, &shared.listing.entries[job.index].path), "reading", error)
            })?;
            if got < wanted {
                part.cut = part.cut.into_iter().chain([offset + got as u64]).min();
            }
            shared.ctx.progress.advance(got as u64);
            shared.pages_read.fetch_add(got.div_ceil(page_size) as u64, Ordering::Relaxed);
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

    /// Adds the changed pages of the extent in the buffer to the delta chunk.
    fn take_pages(
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
    fn take_page(
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

    fn flush(&mut self, job: &Job<'_>, delta: &mut Delta, part: &mut Part) -> Result<(), EngineError> {
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

    /// Reads one extent into the buffer; gives how many bytes there were.
    fn read_extent(&mut self, job: &Job<'_>, first: u64, stopped: &impl Fn() -> bool) -> Result<usize, EngineError> {
        let shared = self.shared;
        let path = &shared.listing.entries[job.index].path;
        let page_size = shared.rules.page_size as u64;
        let start = first * page_size;
        let extent_bytes = self.buffer.len() as u64;
        let wanted = job.len.saturating_sub(start).min(extent_bytes) as usize;
        if job.len > start + extent_bytes && job.task != Task::Pages {
            read_ahead(job.file, start + extent_bytes, extent_bytes);
        }
        let fail = |error| EngineError::file(on_disk(&shared.root, path), "reading", error);
        let mut got = read_full(job.file, &mut self.buffer[..wanted], start).map_err(fail)?;
        if **path == *CONTROL_ENTRY {
            let again = |buffer: &mut [u8]| {
                std::thread::sleep(CONTROL_READ_AGAIN_AFTER);
                if stopped() { Err(ErrorKind::Interrupted.into()) } else { read_full(job.file, buffer, start) }
            };
            got = whole_control(got, &mut self.buffer[..wanted], control_fault, again).map_err(|reason| {
                if stopped() { EngineError::Cancelled } else { bad_control(on_disk(&shared.root, path), reason) }
            })?;
        }
        shared.ctx.progress.advance(got as u64);
        shared.pages_read.fetch_add((got as u64).div_ceil(page_size), Ordering::Relaxed);
        Ok(got)
    }

    /// Checks the pages in a part of the buffer; notes those that are damaged, and gives their numbers.
    fn check(&mut self, job: &Job<'_>, first: u64, at: usize, got: usize) -> Vec<(u64, BadPage)> {
        let Some(relation) = job.relation else { return Vec::new() };
        let bad = self.shared.rules.check(job.file, job.index, relation, first, &mut self.buffer[at..at + got]);
        self.outcome.bad_pages.extend_from_slice(&bad);
        bad.into_iter().map(|page| (u64::from(page.block - relation.first_block), page)).collect()
    }

    /// Which pages of the extent in the buffer are not as they are in the repository, and whether any is damaged that is
    /// in it.
    fn changed(&mut self, job: &Job<'_>, first: u64, got: usize) -> Result<(bool, Vec<u64>), EngineError> {
        let page_size = self.shared.rules.page_size;
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
            let is_changed = is_changed
                || !is_bad && self.differs(job, page, bytes.clone())?
                || !is_bad
                    && job.task == Task::ScanHashes
                    && self.stored_hash_differs(job, page, bytes)? != Some(false);
            if is_changed {
                changed.push(page);
            }
            kept_bad |= is_bad && !is_changed;
        }
        Ok((kept_bad, changed))
    }

    /// Whether a page is newer than its copy in the repository, or cannot be told to be older.
    fn looks_changed(&self, job: &Job<'_>, page: u64, bytes: &[u8]) -> bool {
        if job.sources.is_absent(page) || bytes.len() < self.shared.rules.page_size {
            return true;
        }
        let Ok(header) = PageHeader::parse(bytes) else { return true };
        if header.is_new() {
            return !(job.sources.is_zero(page, 1) && is_all_zero(bytes));
        }
        let layer = usize::from(job.sources.layer(page));
        let since = self.shared.base.layers.get(layer).map(|layer| layer.start_lsn);
        !header.is_sane(bytes.len()) || page_lsn(bytes) >= since
    }

    /// Whether a page that nothing says has changed differs from what was stored, if it is one to look at again.
    fn differs(&mut self, job: &Job<'_>, page: u64, bytes: std::ops::Range<usize>) -> Result<bool, EngineError> {
        if !self.is_again(job, page) {
            return Ok(false);
        }
        let (Some(differs), Some(relation)) = (self.stored_hash_differs(job, page, bytes.clone())?, job.relation)
        else {
            return Ok(false);
        };
        self.outcome.compared += 1;
        let bytes = &self.buffer[bytes];
        let lsn = page_lsn(bytes).unwrap_or_default();
        // What changed since this backup began is not known to anybody yet, and replay brings it.
        if !differs || lsn >= self.shared.start_lsn {
            return Ok(false);
        }
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

    /// Compares a page with the hash it had when it was stored; `None` when that is not known.
    fn stored_hash_differs(
        &mut self,
        job: &Job<'_>,
        page: u64,
        bytes: std::ops::Range<usize>,
    ) -> Result<Option<bool>, EngineError> {
        if job.sources.is_zero(page, 1) {
            return Ok(Some(!is_all_zero(&self.buffer[bytes])));
        }
        let Some(at) = job.sources.at(page) else { return Ok(None) };
        let Some(stored) = self.shared.footers.page_hash(&at)? else { return Ok(None) };
        let content = job.relation.map_or(PageContent::Other, |relation| relation.content);
        Ok(Some(page_hash(&self.buffer[bytes], content, &mut self.scratch) != stored))
    }

    /// Stores the extent in the buffer as a chunk of its own.
    fn store_base(&mut self, job: &Job<'_>, first: u64, got: usize) -> Result<Option<Placed>, EngineError> {
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
    fn add(
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
    fn finish_pack(&mut self, pack: PackWriter) {
        self.finishing.push_back(self.shared.handle.spawn(pack.finish()));
    }

    fn await_pack(&mut self, task: JoinHandle<Result<WrittenPack, RepoError>>) -> Result<(), EngineError> {
        let written = self.shared.handle.block_on(task).map_err(|panic| EngineError::Failed {
            reason: format!("writing a pack stopped unexpectedly: {panic}"),
            hint: None,
        })??;
        self.outcome.packs.insert(written.id, written.size);
        Ok(())
    }
}
