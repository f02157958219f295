//! One thread's part of a backup: file by file, what became of each, and what it uses of the repository now.

use super::extents::{Delta, Job, Part};
use super::gentle::Ahead;
use super::listing::Found;
use super::pipeline::{Assembly, FileResult, Outcome, Pipeline, Prepared, Slice, Stored, lock};
use super::plan::Task;
use super::reading::{open, present_len};
use super::sources::{Described, PageSources};
use crate::EngineError;
use crate::packing::PackSink;
use repo::PackId;
use repo::chunk::{ChunkEncoder, ChunkRef, EXTENT_PAGES};
use repo::map::FileMap;
use repo::pack::{ChunkPages, map_encoder};
use std::sync::Arc;

/// One thread's part of the work.
pub(super) struct Worker<'a> {
    pub(super) shared: &'a Pipeline,
    /// Taken out while a chunk borrows its buffers.
    pub(super) encoder: Option<ChunkEncoder>,
    pub(super) buffer: Vec<u8>,
    pub(super) scratch: Vec<u8>,
    pub(super) packs: PackSink,
    pub(super) ahead: Ahead,
    pub(super) outcome: Outcome,
}

impl<'a> Worker<'a> {
    pub(super) fn new(shared: &'a Pipeline) -> Self {
        Self {
            encoder: Some(ChunkEncoder::new(shared.setup.compression)),
            buffer: vec![0; EXTENT_PAGES as usize * shared.setup.rules.page_size],
            scratch: Vec::new(),
            packs: shared.setup.packing.sink(shared.handle.clone()),
            ahead: Ahead::default(),
            shared,
            outcome: Outcome::default(),
        }
    }

    pub(super) fn run(mut self, stopped: impl Fn() -> bool) -> Result<(), EngineError> {
        match self.work(&stopped) {
            Ok(()) => {}
            // Who was stopped goes on from here the next time.
            Err(EngineError::Cancelled) => {
                let _ = self.packs.finish();
                return Err(EngineError::Cancelled);
            }
            Err(error) => {
                self.packs.give_up();
                return Err(error);
            }
        }
        self.outcome.packs = self.packs.finish()?;
        lock(&self.shared.outcome).add(self.outcome);
        Ok(())
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
                        if stopped() {
                            return Err(EngineError::Cancelled);
                        }
                        if !matches!(shared.setup.plan.tasks[index], Task::Nothing | Task::Keep) {
                            self.small_file(index, stopped)?;
                        }
                    }
                }
                Slice::Extents { file, first, count } => self.large_file(file, first, count, stopped)?,
                Slice::Gone(gone) => {
                    let file = shared.setup.plan.gone[gone];
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
        let entry = &shared.setup.listing.entries[index];
        let Found::File { len: listed, relation } = entry.found else { return Ok(()) };
        let before = shared.setup.plan.before.get(index).copied().flatten();
        let old_map = self.old_map(index, before)?;
        let file =
            if listed == 0 && relation.is_some() { None } else { open(&shared.setup.places.on_disk(&entry.path))? };
        let result = match &file {
            None if listed == 0 && relation.is_some() => Some((FileResult { len: 0, stored: Stored::Zero }, None)),
            None => None,
            Some(file) => {
                let len = present_len(file, listed, relation, self.buffer.len() as u64);
                let sources = self.sources(index, len, before, old_map.as_ref());
                let changes = shared.setup.plan.changes.get(&index).map_or(&[][..], Vec::as_slice);
                let task = shared.setup.plan.tasks[index];
                let job = Job { index, task, file: Some(file), relation, sources: &sources, changes, len };
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
        self.small_content(job, got)
    }

    /// A file that is stored as one chunk, and lies whole in the buffer.
    pub(super) fn small_content(
        &mut self,
        job: &Job<'_>,
        got: usize,
    ) -> Result<(FileResult, Option<FileMap>), EngineError> {
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
        let mut sources = PageSources::absent(self.shared.setup.rules.page_size, got as u64);
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
        let entry = &shared.setup.listing.entries[index];
        let Found::File { len, relation } = entry.found else { return Ok(()) };
        let prepared = self.prepared(index, len)?;
        let part = match open(&shared.setup.places.on_disk(&entry.path))? {
            Some(file) => {
                let changes = shared.setup.plan.changes.get(&index).map_or(&[][..], Vec::as_slice);
                let task = shared.setup.plan.tasks[index];
                let job = Job { index, task, file: Some(&file), relation, sources: &prepared.sources, changes, len };
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
        let before = shared.setup.plan.before.get(index).copied().flatten();
        let old_map = self.old_map(index, before)?;
        let sources = self.sources(index, len, before, old_map.as_ref());
        let prepared = Arc::new(Prepared { sources, old_map });
        *slot = Some(prepared.clone());
        Ok(prepared)
    }

    /// Where a file's pages lie already, in the prior and in what broken-off backups stored.
    pub(super) fn sources(
        &self,
        index: usize,
        len: u64,
        before: Option<FileResult>,
        old_map: Option<&FileMap>,
    ) -> PageSources {
        let shared = self.shared;
        let page_size = shared.setup.rules.page_size;
        let task = shared.setup.plan.tasks[index];
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
        for page in shared.setup.plan.damaged.get(&index).into_iter().flatten() {
            if *page < sources.pages() {
                sources.forget(*page as usize);
            }
        }
        let path = &shared.setup.listing.entries[index].path;
        if task == Task::Pages || task == Task::Scan {
            sources.forget_mostly_dead();
        }
        if !shared.setup.base.marks.leave.is_empty() {
            sources.forget_packs(|pack| shared.setup.base.marks.leave.contains(&pack));
        }
        for (backup, layer) in shared.setup.base.broken_off.iter().zip(1..) {
            for placed in backup.chunks.get(path).into_iter().flatten() {
                sources.place(placed, layer);
            }
        }
        sources
    }

    /// The prior's map of a file. A damaged one is as none: the file is read whole.
    pub(super) fn old_map(&mut self, key: usize, file: Option<FileResult>) -> Result<Option<FileMap>, EngineError> {
        let Some(file) = file else { return Ok(None) };
        match self.shared.map(key, file) {
            Err(EngineError::Repo(error)) if error.is_damage() || error.is_not_found() => {
                self.shared
                    .setup
                    .ctx
                    .progress
                    .warn(&format!("a file is read whole, because its map is damaged: {error}"));
                Ok(None)
            }
            other => other,
        }
    }

    /// Writes down where a large file's pages lie now.
    pub(super) fn assemble(
        &mut self,
        index: usize,
        len: u64,
        prepared: &Prepared,
        assembly: Assembly,
    ) -> Result<(), EngineError> {
        let before = self.shared.setup.plan.before.get(index).copied().flatten();
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
        let path = &shared.setup.listing.entries[index].path;
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
                let (pack, chunk) = self.packs.add(path, &ChunkPages::Map, &encoder.encode_plain(&plain))?;
                (FileResult { len, stored: Stored::Map(pack, chunk) }, Some(map))
            }
        })
    }

    /// Notes what became of a file, and counts what it uses now instead of before.
    pub(super) fn finish(
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

    pub(super) fn count(&mut self, stored: &Stored, map: Option<&FileMap>, sign: i64) {
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

    pub(super) fn pages_in(&self, len: u64) -> u64 {
        len.div_ceil(self.shared.setup.rules.page_size as u64)
    }
}
