//! What arrives is compared with the prior and stored, by threads that each have packs of their own. The rules are those
//! of files that are read here: a [`Worker`] judges each extent, as it does there.

use super::super::extents::{Delta, Job, Part};
use super::super::gentle::Ahead;
use super::super::listing::{Listed, Listing, Relation};
use super::super::pipeline::{
    Assembly, FileResult, Outcome, Pipeline, PipelineSetup, Prepared, Stored, WHOLE_PAGES, lock,
};
use super::super::plan::{Plan, Task};
use super::super::sources::{Form, PageSources, Placed};
use super::super::worker::Worker;
use crate::EngineError;
use crate::packing::PackSink;
use repo::chunk::{ChunkEncoder, EXTENT_PAGES};
use std::mem::take;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;
use tokio::runtime::Handle;
use tokio_util::sync::CancellationToken;

/// Pieces that wait for each thread.
const PIECES_WAITING: usize = 2;

/// What is known of a file before its bytes arrive.
pub(super) struct FileHead {
    /// Its number among all that arrives.
    pub(super) index: usize,
    pub(super) entry: Listed,
    pub(super) len: u64,
    pub(super) relation: Option<Relation>,
    pub(super) task: Task,
    /// How the prior has it.
    pub(super) before: Option<FileResult>,
    /// The pages that the prior has damaged.
    pub(super) damaged: Vec<u64>,
}

/// A file whose bytes are arriving.
pub(super) struct Arriving {
    index: usize,
    /// Of this file alone, as number 0.
    pipeline: Arc<Pipeline>,
    len: u64,
    relation: Option<Relation>,
    prepared: Mutex<Option<Arc<Prepared>>>,
    state: Mutex<State>,
    /// The blocks that come, ascending; none when all of the file comes.
    blocks: Option<Vec<u32>>,
}

/// A file of which only what changed has come. It is put together later.
#[derive(Debug)]
pub(super) struct InPart {
    /// Its number among all that arrived, until that is in order.
    pub(super) index: usize,
    /// Its length now.
    pub(super) len: u64,
    pub(super) before: FileResult,
    /// The blocks that came, ascending.
    pub(super) blocks: Vec<u32>,
    /// Where they are.
    pub(super) placed: Vec<Placed>,
}

/// What became of the extents that were worked on.
struct State {
    left: usize,
    placed: Vec<Placed>,
    /// Changed pages that wait for more of them.
    delta: Delta,
    /// So many unchanged pages may be stored again.
    budget: u64,
}

/// Work for a thread.
enum Piece {
    Extent {
        file: Arc<Arriving>,
        extent: u64,
        bytes: Vec<u8>,
    },
    /// Some of the blocks that come of a file, from this one of them on.
    Blocks {
        file: Arc<Arriving>,
        first: usize,
        bytes: Vec<u8>,
    },
    /// A file of which only what changed has come is put together. What the prior has from this page on is of no use.
    Settle {
        part: Box<InPart>,
        entry: Box<Listed>,
        stale_from: Option<u64>,
    },
    /// A file of the prior that is no more.
    Gone(FileResult),
}

/// Hands what arrives to threads.
pub(super) struct Store {
    setup: PipelineSetup,
    sender: Option<SyncSender<Piece>>,
    hands: Vec<JoinHandle<Result<Outcome, EngineError>>>,
    pages_read: Arc<AtomicU64>,
    /// Files that are to be put together.
    parts: Arc<Mutex<Vec<InPart>>>,
    /// Cancelled when a thread fails.
    failed: CancellationToken,
}

impl Store {
    /// `setup` is that of the whole backup; its listing and plan are not looked at.
    pub(super) fn new(setup: PipelineSetup, workers: usize) -> Self {
        let (sender, receiver) = sync_channel(PIECES_WAITING * workers.max(1));
        let receiver = Arc::new(Mutex::new(receiver));
        let (pages_read, failed) = (Arc::new(AtomicU64::new(0)), setup.ctx.cancel.child_token());
        let parts = Arc::<Mutex<Vec<InPart>>>::default();
        let start = |_| {
            let hand = Hand {
                encoder: Some(ChunkEncoder::new(setup.compression)),
                scratch: Vec::new(),
                packs: Some(setup.packing.sink(Handle::current())),
                outcome: Outcome::default(),
                pages_read: pages_read.clone(),
                parts: parts.clone(),
                setup: setup.clone(),
            };
            let (receiver, failed, handle) = (receiver.clone(), failed.clone(), Handle::current());
            std::thread::spawn(move || {
                // Opening packs and reading footers needs the runtime.
                let _within = handle.enter();
                let result = hand.run(&receiver, &failed);
                if result.is_err() {
                    failed.cancel();
                }
                result
            })
        };
        Self { hands: (0..workers.max(1)).map(start).collect(), setup, sender: Some(sender), pages_read, parts, failed }
    }

    /// Whether to stop: on request, or because a thread failed.
    pub(super) fn is_stopped(&self) -> bool {
        self.failed.is_cancelled()
    }

    /// A file begins to arrive; `blocks` says which of it come, when not all of it does.
    pub(super) fn begin(&self, head: FileHead, blocks: Option<Vec<u32>>) -> Arc<Arriving> {
        let extent_bytes = EXTENT_PAGES * self.setup.rules.page_size as u64;
        // An empty file is a piece too.
        let left = match &blocks {
            Some(blocks) => blocks.len().div_ceil(EXTENT_PAGES as usize),
            None => head.len.div_ceil(extent_bytes).max(1) as usize,
        };
        let pipeline = pipeline_of(&self.setup, head.entry, head.task, head.before, head.damaged);
        Arc::new(Arriving {
            index: head.index,
            pipeline,
            len: head.len,
            relation: head.relation,
            prepared: Mutex::default(),
            blocks,
            state: Mutex::new(State { left, placed: Vec::new(), delta: Delta::default(), budget: EXTENT_PAGES }),
        })
    }

    /// An extent of it has arrived.
    pub(super) fn extent(&self, file: &Arc<Arriving>, extent: u64, bytes: Vec<u8>) -> Result<(), EngineError> {
        self.send(Piece::Extent { file: file.clone(), extent, bytes })
    }

    /// Blocks of it have arrived, from this one on of those that come.
    pub(super) fn blocks(&self, file: &Arc<Arriving>, first: usize, bytes: Vec<u8>) -> Result<(), EngineError> {
        self.send(Piece::Blocks { file: file.clone(), first, bytes })
    }

    /// A file of which nothing comes: only its length is told.
    pub(super) fn unchanged(&self, part: InPart) {
        lock(&self.parts).push(part);
    }

    /// Puts a file together of which only what changed has come. What the prior has from page `stale_from` on is not its
    /// own any more.
    pub(super) fn settle(&self, part: InPart, entry: Listed, stale_from: Option<u64>) -> Result<(), EngineError> {
        self.send(Piece::Settle { part: Box::new(part), entry: Box::new(entry), stale_from })
    }

    /// A file of the prior did not arrive.
    pub(super) fn gone(&self, file: FileResult) -> Result<(), EngineError> {
        self.send(Piece::Gone(file))
    }

    fn send(&self, piece: Piece) -> Result<(), EngineError> {
        if self.is_stopped() {
            return Err(EngineError::Cancelled);
        }
        match self.sender.as_ref().map(|sender| sender.send(piece)) {
            Some(Ok(())) => Ok(()),
            // All threads have failed; their error is the one to tell.
            _ => Err(EngineError::Cancelled),
        }
    }

    /// All has arrived. Files are known by their numbers; those of which only what changed came are not put together yet.
    pub(super) fn finish(mut self) -> Result<(Outcome, Vec<InPart>), EngineError> {
        let outcome = self.join()?;
        let parts = take(&mut *lock(&self.parts));
        Ok((outcome, parts))
    }

    /// Ends the work after a failure: nothing may arrive in the repository later. Gives the error to tell.
    pub(super) fn give_up(mut self, error: EngineError) -> EngineError {
        self.failed.cancel();
        match self.join() {
            Err(cause) if matches!(error, EngineError::Cancelled) => cause,
            _ => error,
        }
    }

    fn join(&mut self) -> Result<Outcome, EngineError> {
        drop(self.sender.take());
        let mut all = Outcome::default();
        let mut failure = None;
        for hand in self.hands.drain(..) {
            let result = hand.join().unwrap_or_else(|_| {
                Err(EngineError::Failed { reason: "a worker stopped unexpectedly".into(), hint: None })
            });
            match result {
                Ok(outcome) => all.add(outcome),
                // The others were stopped because of the one that failed.
                Err(error) if matches!(failure, None | Some(EngineError::Cancelled)) => failure = Some(error),
                Err(_) => {}
            }
        }
        all.pages_read = self.pages_read.load(Ordering::Relaxed);
        failure.map_or(Ok(all), Err)
    }
}

/// One thread.
struct Hand {
    setup: PipelineSetup,
    /// Lent to a worker while it works.
    encoder: Option<ChunkEncoder>,
    scratch: Vec<u8>,
    packs: Option<PackSink>,
    outcome: Outcome,
    pages_read: Arc<AtomicU64>,
    parts: Arc<Mutex<Vec<InPart>>>,
}

impl Hand {
    fn run(mut self, receiver: &Mutex<Receiver<Piece>>, stop: &CancellationToken) -> Result<Outcome, EngineError> {
        let result = self.work(receiver, stop);
        let packs = self.packs.take().expect("put back after each use");
        match result {
            Ok(()) => {
                self.outcome.packs = packs.finish()?;
                Ok(self.outcome)
            }
            Err(error) => {
                packs.give_up();
                Err(error)
            }
        }
    }

    fn work(&mut self, receiver: &Mutex<Receiver<Piece>>, stop: &CancellationToken) -> Result<(), EngineError> {
        loop {
            let next = receiver.lock().unwrap_or_else(PoisonError::into_inner).recv();
            let Ok(piece) = next else { return Ok(()) };
            if stop.is_cancelled() {
                return Err(EngineError::Cancelled);
            }
            match piece {
                Piece::Extent { file, extent, bytes } => self.extent(&file, extent, bytes)?,
                Piece::Blocks { file, first, bytes } => {
                    self.count(&bytes);
                    let done =
                        self.lend(&file.pipeline, file.index, bytes, |worker| file.take_blocks(worker, first))?;
                    lock(&self.parts).extend(done);
                }
                Piece::Settle { part, entry, stale_from } => {
                    let pipeline = pipeline_of(&self.setup, *entry, Task::Pages, Some(part.before), Vec::new());
                    let index = part.index;
                    self.lend(&pipeline, index, Vec::new(), |worker| part.settle(worker, stale_from))?;
                }
                Piece::Gone(file) => self.gone(file)?,
            }
        }
    }

    fn gone(&mut self, file: FileResult) -> Result<(), EngineError> {
        let pipeline = Pipeline::new(self.setup.clone(), |_| false, false);
        self.lend(&pipeline, 0, Vec::new(), |worker| {
            let map = worker.old_map(usize::MAX, Some(file))?;
            worker.count(&file.stored, map.as_ref(), -1);
            Ok(())
        })
    }

    /// Makes a worker of one file's pipeline, which goes on with this thread's packs. What it notes of file 0 is noted of
    /// the file of that number.
    fn lend<R>(
        &mut self,
        pipeline: &Pipeline,
        index: usize,
        buffer: Vec<u8>,
        work: impl FnOnce(&mut Worker<'_>) -> Result<R, EngineError>,
    ) -> Result<R, EngineError> {
        let mut worker = Worker {
            shared: pipeline,
            encoder: self.encoder.take(),
            buffer,
            scratch: take(&mut self.scratch),
            ahead: Ahead::default(),
            packs: self.packs.take().expect("put back after each use"),
            outcome: take(&mut self.outcome),
        };
        let known = (worker.outcome.bad_pages.len(), worker.outcome.differing.len(), worker.outcome.files.len());
        let result = work(&mut worker);
        worker.outcome.bad_pages[known.0..].iter_mut().for_each(|page| page.file = index);
        worker.outcome.differing[known.1..].iter_mut().for_each(|page| page.file = index);
        worker.outcome.files[known.2..].iter_mut().for_each(|(file, _)| *file = index);
        self.encoder = worker.encoder.take();
        self.scratch = take(&mut worker.scratch);
        self.outcome = take(&mut worker.outcome);
        self.packs = Some(worker.packs);
        result
    }

    fn count(&self, bytes: &[u8]) {
        let pages = bytes.len().div_ceil(self.setup.rules.page_size) as u64;
        self.pages_read.fetch_add(pages, Ordering::Relaxed);
    }

    fn extent(&mut self, file: &Arriving, extent: u64, bytes: Vec<u8>) -> Result<(), EngineError> {
        self.count(&bytes);
        self.lend(&file.pipeline, file.index, bytes, |worker| file.take(worker, extent))
    }
}

impl Arriving {
    /// Where the file's pages lie, looked up by the first who needs it.
    fn prepared(&self, worker: &mut Worker<'_>) -> Result<Arc<Prepared>, EngineError> {
        let mut slot = lock(&self.prepared);
        if let Some(prepared) = &*slot {
            return Ok(prepared.clone());
        }
        let before = self.before();
        let old_map = worker.old_map(0, before)?;
        let sources = worker.sources(0, self.len, before, old_map.as_ref());
        let prepared = Arc::new(Prepared { sources, old_map });
        *slot = Some(prepared.clone());
        Ok(prepared)
    }

    fn before(&self) -> Option<FileResult> {
        self.pipeline.setup.plan.before.first().copied().flatten()
    }

    fn task(&self) -> Task {
        self.pipeline.setup.plan.tasks.first().copied().unwrap_or(Task::Whole)
    }

    /// Takes the blocks in the worker's buffer, which are those from `first` on of all that come. Gives what is to be put
    /// together when they were the last.
    fn take_blocks(&self, worker: &mut Worker<'_>, first: usize) -> Result<Option<InPart>, EngineError> {
        let page_size = worker.shared.setup.rules.page_size;
        let nowhere = PageSources::absent(page_size, 0);
        let job = Job {
            index: 0,
            task: Task::Pages,
            file: None,
            relation: self.relation,
            sources: &nowhere,
            changes: &[],
            len: self.len,
        };
        let (mut part, mut delta) = (Part::default(), Delta::default());
        let count = worker.buffer.len() / page_size;
        let blocks = self.blocks.as_deref().unwrap_or_default();
        for (&block, slot) in blocks.iter().skip(first).take(count).zip(0..) {
            let bytes = slot * page_size..(slot + 1) * page_size;
            worker.check(&job, block.into(), bytes.start, page_size);
            worker.take_page(&job, block.into(), bytes, &mut delta, &mut part)?;
        }
        worker.flush(&job, &mut delta, &mut part)?;
        let mut state = lock(&self.state);
        state.placed.append(&mut part.placed);
        state.left -= 1;
        let done = self.before().filter(|_| state.left == 0);
        Ok(done.map(|before| InPart {
            index: self.index,
            len: self.len,
            before,
            blocks: blocks.to_vec(),
            placed: take(&mut state.placed),
        }))
    }

    /// Takes the extent in the worker's buffer.
    fn take(&self, worker: &mut Worker<'_>, extent: u64) -> Result<(), EngineError> {
        let prepared = self.prepared(worker)?;
        let (task, got) = (self.task(), worker.buffer.len());
        let job = Job {
            index: 0,
            task,
            file: None,
            relation: self.relation,
            sources: &prepared.sources,
            changes: &[],
            len: self.len,
        };
        let pages = worker.pages_in(self.len);
        let is_new = self.before().is_none() && task == Task::Whole;
        if pages <= WHOLE_PAGES || (is_new || task == Task::Compare) && pages <= EXTENT_PAGES {
            let result = worker.small_content(&job, got)?;
            worker.finish(0, self.before().map(|file| (file, prepared.old_map.clone())), Some(result));
            return Ok(());
        }
        let first = extent * EXTENT_PAGES;
        let (bad, changed) = worker.changed(&job, first, got)?;
        let (mut part, mut delta) = (Part::default(), Delta::default());
        if !changed.is_empty() {
            let form = match task {
                Task::Whole | Task::Compare => Form::Base,
                // Pages that are damaged here, and not in the repository, stay as they are there.
                _ if bad => Form::Delta,
                _ => {
                    let mut state = lock(&self.state);
                    let form = job.sources.form(first, &changed, &mut state.budget);
                    state.budget += changed.len() as u64;
                    form
                }
            };
            match form {
                Form::Base => part.placed.extend(worker.store_base(&job, first, got)?),
                Form::Delta => worker.take_pages(&job, first, got, &changed, &mut delta, &mut part)?,
            }
        }
        let page_size = worker.shared.setup.rules.page_size;
        let full = {
            let mut state = lock(&self.state);
            state.placed.append(&mut part.placed);
            state.delta.add(delta);
            (state.delta.pages.len() as u64 >= EXTENT_PAGES).then(|| state.delta.take(EXTENT_PAGES as usize, page_size))
        };
        if let Some(mut full) = full {
            worker.flush(&job, &mut full, &mut part)?;
        }
        let last = {
            let mut state = lock(&self.state);
            state.placed.append(&mut part.placed);
            state.left -= 1;
            (state.left == 0).then(|| {
                let count = state.delta.pages.len();
                (state.delta.take(count, page_size), take(&mut state.placed))
            })
        };
        let Some((mut rest, mut placed)) = last else { return Ok(()) };
        worker.flush(&job, &mut rest, &mut part)?;
        placed.append(&mut part.placed);
        let assembly = Assembly { slices_left: 0, sources: Arc::default(), placed, cut: None, seen: true };
        worker.assemble(0, self.len, &prepared, assembly)
    }
}

impl InPart {
    /// Puts it together. What neither came nor is the prior's is zeros: the file was made longer without a word in WAL,
    /// which is done with pages of zeros only.
    fn settle(self, worker: &mut Worker<'_>, stale_from: Option<u64>) -> Result<(), EngineError> {
        let Self { before, blocks, placed, .. } = self;
        let stale_from = stale_from.unwrap_or(u64::MAX);
        let old_map = worker.old_map(0, Some(before))?;
        if matches!(before.stored, Stored::Map(..)) && old_map.is_none() {
            let path = String::from_utf8_lossy(&worker.shared.setup.listing.entries[0].path).into_owned();
            return Err(EngineError::failed(
                format!("{path}: only what changed of it was sent, and where the rest lies cannot be read"),
                "`pgkeep verify` says what is damaged; `pgkeep backup --full` needs nothing of it",
            ));
        }
        let page_size = worker.shared.setup.rules.page_size;
        let mut sources = PageSources::of_prior(page_size, before.len, &before.stored, old_map.as_ref());
        sources.resize(self.len);
        for page in 0..sources.pages() {
            let came = u32::try_from(page).is_ok_and(|page| blocks.binary_search(&page).is_ok());
            if !came && (page >= stale_from || sources.is_absent(page)) {
                sources.place(&Placed::Zero { first: page, pages: 1 }, 0);
            }
        }
        let assembly = Assembly { slices_left: 0, sources: Arc::default(), placed, cut: None, seen: true };
        worker.assemble(0, self.len, &Prepared { sources, old_map }, assembly)
    }
}

/// A pipeline of one file alone, as number 0.
fn pipeline_of(
    setup: &PipelineSetup,
    entry: Listed,
    task: Task,
    before: Option<FileResult>,
    damaged: Vec<u64>,
) -> Arc<Pipeline> {
    let plan = Plan::of_one(task, before, damaged);
    let listing = Listing { entries: vec![entry], ..Listing::default() };
    let setup = PipelineSetup { listing: Arc::new(listing), plan: Arc::new(plan), ..setup.clone() };
    Pipeline::new(setup, |_| false, false)
}

impl Delta {
    /// Adds pages of the same file.
    fn add(&mut self, mut other: Self) {
        self.pages.append(&mut other.pages);
        self.bytes.append(&mut other.bytes);
    }

    /// Takes the first pages of them all, in ascending order. None of them is short: a short one is stored at once.
    fn take(&mut self, count: usize, page_size: usize) -> Self {
        let mut order: Vec<usize> = (0..self.pages.len()).collect();
        order.sort_unstable_by_key(|&at| self.pages[at]);
        let (mut taken, mut left) = (Self::default(), Self::default());
        for (nth, at) in order.into_iter().enumerate() {
            let to = if nth < count { &mut taken } else { &mut left };
            to.pages.push(self.pages[at]);
            to.bytes.extend_from_slice(&self.bytes[at * page_size..(at + 1) * page_size]);
        }
        *self = left;
        taken
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn changed_pages_of_several_extents_are_stored_in_order() {
        let page = |number: u64| Delta { pages: vec![number], bytes: vec![number as u8; 4] };
        let mut delta = Delta::default();
        [7, 3, 9, 1].into_iter().for_each(|number| delta.add(page(number)));
        let first = delta.take(3, 4);
        assert_eq!(first.pages, [1, 3, 7]);
        assert_eq!(first.bytes, [1, 1, 1, 1, 3, 3, 3, 3, 7, 7, 7, 7]);
        assert_eq!((delta.pages, delta.bytes), (vec![9], vec![9; 4]));
    }
}
