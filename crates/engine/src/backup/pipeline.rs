//! The work of a backup, cut into slices that workers take one after the other.
//!
//! Each worker is a thread with its own buffers and its own pack: it takes a slice of a file (or several small
//! files), reads extent by extent, and hands stored chunks to its pack. Nothing waits for another worker; the one
//! that finishes a file's last slice writes the file's map.

use super::footers::Footers;
use super::listing::{Found, Listing};
use super::packs::OldPacks;
use super::pages::{BadPage, PageRules};
use super::plan::{Base, Plan, Task};
use super::source::Places;
use super::sources::{PageSources, Placed};
use super::worker::Worker;
use crate::pace::Pace;
use crate::packing::Packing;
use crate::{Context, EngineError};
use pg_format::Lsn;
use repo::chunk::{ChunkRef, EXTENT_PAGES};
use repo::map::FileMap;
use repo::{Compression, PackId};
use std::collections::HashMap;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use tokio::runtime::Handle;
use tokio::task::JoinHandle;

/// Extents of a large file that one worker takes at a time: 32 MiB.
const SLICE_EXTENTS: u64 = 64;
/// Changed pages of a file that one worker takes at a time.
const SLICE_PAGES: u64 = 2048;
/// Small files are taken together until they have so many bytes, or are so many.
const GROUP_BYTES: u64 = 8 << 20;
const GROUP_FILES: usize = 256;
/// A file of up to so many pages is stored as one chunk, whatever changed in it: so restoring it needs no map.
pub(super) const WHOLE_PAGES: u64 = 16;
/// Maps that are on their way before they are needed.
const MAPS_AHEAD: usize = 16;

/// Where a file's content went.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Stored {
    /// Empty, or all zero.
    Zero,
    /// One chunk holds it.
    Chunk(PackId, ChunkRef),
    /// A file map tells.
    Map(PackId, ChunkRef),
}

/// A file that was read, or that the prior has.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct FileResult {
    /// Its length as it was read.
    pub(super) len: u64,
    /// Where its content went.
    pub(super) stored: Stored,
}

/// What a backup read and wrote.
#[derive(Debug, Default)]
pub(super) struct Outcome {
    /// Files that were worked on, by their index in the listing; none for those that vanished.
    pub(super) files: Vec<(usize, Option<FileResult>)>,
    /// Object size of each pack written.
    pub(super) packs: HashMap<PackId, u64>,
    /// By how many stored bytes the use of each pack grew, or shrank, against the prior.
    pub(super) used: HashMap<PackId, i64>,
    /// Pages that failed their check.
    pub(super) bad_pages: Vec<BadPage>,
    /// Pages that differ from what was stored, though nothing says that they changed.
    pub(super) differing: Vec<BadPage>,
    /// Pages that were compared for that.
    pub(super) compared: u64,
    /// Pages read.
    pub(super) pages_read: u64,
    /// Pages stored in chunks.
    pub(super) pages_stored: u64,
    /// The latest LSN on any sound page that was read.
    pub(super) newest: Lsn,
}

impl Outcome {
    /// Adds what another run of the pipeline did.
    pub(super) fn add(&mut self, mut other: Self) {
        self.files.append(&mut other.files);
        self.packs.extend(other.packs);
        for (pack, used) in other.used {
            *self.used.entry(pack).or_default() += used;
        }
        self.bad_pages.append(&mut other.bad_pages);
        self.differing.append(&mut other.differing);
        self.compared += other.compared;
        self.pages_read += other.pages_read;
        self.pages_stored += other.pages_stored;
        self.newest = self.newest.max(other.newest);
    }
}

/// A piece of work.
#[derive(Debug, Clone, Copy)]
pub(super) enum Slice {
    /// Whole small files: a range of the listing.
    Files { first: usize, count: usize },
    /// Some extents of a large file.
    Extents { file: usize, first: u64, count: u64 },
    /// A file of the prior that is no more.
    Gone(usize),
}

/// A large file of which not all slices were worked off yet.
pub(super) struct Assembly {
    pub(super) slices_left: usize,
    /// Where its pages lie already. Taken by whoever needs it first; the others wait for that.
    pub(super) sources: Arc<Mutex<Option<Arc<Prepared>>>>,
    /// What was stored of it.
    pub(super) placed: Vec<Placed>,
    /// Where it ends, when a read fell short.
    pub(super) cut: Option<u64>,
    /// Whether any of it was there.
    pub(super) seen: bool,
}

/// A large file before it is read.
pub(super) struct Prepared {
    pub(super) sources: PageSources,
    /// Its map in the prior, for what it no longer uses.
    pub(super) old_map: Option<FileMap>,
}

/// What all workers share.
pub(super) struct Pipeline {
    pub(super) setup: PipelineSetup,
    pub(super) handle: Handle,
    pub(super) slices: Vec<Slice>,
    next_slice: AtomicUsize,
    pub(super) assemblies: Mutex<HashMap<usize, Assembly>>,
    maps: Mutex<HashMap<usize, JoinHandle<Result<FileMap, EngineError>>>>,
    pub(super) outcome: Mutex<Outcome>,
    pub(super) pages_read: AtomicU64,
}

pub(super) fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    // A worker that panicked ends the backup anyway; what others wrote under the lock is whole.
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// What a backup reads from and writes to.
#[derive(Clone)]
pub(super) struct PipelineSetup {
    pub(super) ctx: Context,
    pub(super) packing: Packing,
    pub(super) places: Arc<Places>,
    pub(super) listing: Arc<Listing>,
    pub(super) base: Arc<Base>,
    pub(super) plan: Arc<Plan>,
    pub(super) packs: Arc<OldPacks>,
    pub(super) footers: Arc<Footers>,
    pub(super) rules: PageRules,
    pub(super) compression: Compression,
    pub(super) pace: Arc<Pace>,
    /// The new backup's start LSN: what changed since is WAL's affair.
    pub(super) start_lsn: Lsn,
}

impl Pipeline {
    /// Plans the work for the entries of the listing that `wanted` chooses.
    pub(super) fn new(setup: PipelineSetup, wanted: impl Fn(&[u8]) -> bool, gone: bool) -> Arc<Self> {
        let mut slices = plan_slices(&setup.listing, &setup.plan, setup.rules.page_size as u64, wanted);
        if gone {
            slices.extend((0..setup.plan.gone.len()).map(Slice::Gone));
        }
        let mut assemblies = HashMap::new();
        for slice in &slices {
            if let Slice::Extents { file, .. } = slice {
                let fresh =
                    || Assembly { slices_left: 0, sources: Arc::default(), placed: Vec::new(), cut: None, seen: false };
                assemblies.entry(*file).or_insert_with(fresh).slices_left += 1;
            }
        }
        Arc::new(Self {
            setup,
            handle: Handle::current(),
            slices,
            next_slice: AtomicUsize::new(0),
            assemblies: Mutex::new(assemblies),
            maps: Mutex::default(),
            outcome: Mutex::default(),
            pages_read: AtomicU64::new(0),
        })
    }

    /// Runs `workers` workers to the end. The first error stops them all.
    pub(super) async fn run(self: Arc<Self>, workers: usize) -> Result<Outcome, EngineError> {
        let stop = self.setup.ctx.cancel.child_token();
        let mut running = Vec::new();
        for _ in 0..workers.max(1) {
            let (shared, stop) = (self.clone(), stop.clone());
            running.push(tokio::task::spawn_blocking(move || {
                let result = Worker::new(&shared).run(|| stop.is_cancelled());
                if result.is_err() {
                    stop.cancel();
                }
                result
            }));
        }
        let mut failure = None;
        for worker in running {
            let result = worker.await.unwrap_or_else(|panic| {
                Err(EngineError::Failed { reason: format!("a worker stopped unexpectedly: {panic}"), hint: None })
            });
            // The others were stopped because of the one that failed: its error is the one to tell.
            if let Err(error) = result
                && matches!(failure, None | Some(EngineError::Cancelled))
            {
                failure = Some(error);
            }
        }
        self.setup.ctx.check()?;
        if let Some(error) = failure {
            return Err(error);
        }
        let mut outcome = std::mem::take(&mut *lock(&self.outcome));
        outcome.pages_read = self.pages_read.load(Ordering::Relaxed);
        Ok(outcome)
    }

    /// The next piece of work. Maps that the following ones need are asked for meanwhile.
    pub(super) fn next_slice(&self) -> Option<Slice> {
        let index = self.next_slice.fetch_add(1, Ordering::Relaxed);
        let slice = self.slices.get(index).copied()?;
        let ahead = (index + MAPS_AHEAD).min(self.slices.len());
        for slice in &self.slices[index..ahead] {
            let (key, stored) = match *slice {
                Slice::Extents { file, first: 0, .. } => (file, self.setup.plan.before.get(file).copied().flatten()),
                Slice::Gone(gone) => (self.gone_key(gone), Some(self.setup.plan.gone[gone])),
                Slice::Extents { .. } | Slice::Files { .. } => continue,
            };
            if let Some(FileResult { len, stored: Stored::Map(pack, chunk) }) = stored {
                let packs = self.setup.packs.clone();
                let read = || self.handle.spawn(async move { packs.map(pack, chunk, len).await });
                lock(&self.maps).entry(key).or_insert_with(read);
            }
        }
        Some(slice)
    }

    /// Files that are no more are counted on from those that are.
    pub(super) fn gone_key(&self, gone: usize) -> usize {
        self.setup.listing.entries.len() + gone
    }

    /// A map of the prior's.
    pub(super) fn map(&self, key: usize, file: FileResult) -> Result<Option<FileMap>, EngineError> {
        let Stored::Map(pack, chunk) = file.stored else { return Ok(None) };
        let asked = lock(&self.maps).remove(&key);
        let map = match asked {
            Some(asked) => self.handle.block_on(asked).map_err(|panic| EngineError::Failed {
                reason: format!("reading a file map stopped unexpectedly: {panic}"),
                hint: None,
            })?,
            None => self.handle.block_on(self.setup.packs.map(pack, chunk, file.len)),
        };
        map.map(Some)
    }
}

fn plan_slices(listing: &Listing, plan: &Plan, page_size: u64, wanted: impl Fn(&[u8]) -> bool) -> Vec<Slice> {
    let extent_bytes = EXTENT_PAGES * page_size;
    let mut slices: Vec<Slice> = Vec::new();
    let mut group: Option<(usize, usize, u64)> = None;
    let files = |(first, count, _): (usize, usize, u64)| Slice::Files { first, count };
    for (index, entry) in listing.entries.iter().enumerate() {
        let Found::File { len, .. } = entry.found else { continue };
        let task = plan.tasks[index];
        if matches!(task, Task::Nothing | Task::Keep) {
            continue;
        }
        let pages = len.div_ceil(page_size);
        // What is one chunk in any case is small: nothing of it is stored, or it is too short for parts.
        let is_new = plan.before.get(index).is_none_or(Option::is_none) && task != Task::Pages && task != Task::Scan;
        let small = pages <= WHOLE_PAGES || (is_new || task == Task::Compare) && pages <= EXTENT_PAGES;
        if !small || !wanted(&entry.path) {
            // A group is a range of entries: one that it must not contain ends it.
            slices.extend(group.take().map(files));
        }
        if !wanted(&entry.path) {
            continue;
        }
        if !small {
            let extents = len.div_ceil(extent_bytes);
            let step = match task {
                Task::Pages => {
                    let changed: u64 = plan.changed_pages(index, pages).max(1);
                    (extents * SLICE_PAGES / changed).clamp(SLICE_EXTENTS, extents.max(SLICE_EXTENTS))
                }
                _ => SLICE_EXTENTS,
            };
            for first in (0..extents).step_by(step as usize) {
                slices.push(Slice::Extents { file: index, first, count: step.min(extents - first) });
            }
            continue;
        }
        // Entries between the files of a group are directories, links and files that are not read; they are skipped.
        match &mut group {
            Some((first, count, bytes)) if *bytes + len <= GROUP_BYTES && index - *first < GROUP_FILES => {
                *count = index - *first + 1;
                *bytes += len;
            }
            _ => {
                slices.extend(group.take().map(files));
                group = Some((index, 1, len));
            }
        }
    }
    slices.extend(group.map(files));
    slices
}
