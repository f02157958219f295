//! From the spool into the repositories: pieces of segments that are not whole, and whole segments as `wal push` stores them.
//!
//! What fails is tried again, for ever: the spool has it. A whole segment that archiving brought there first is there
//! already; its pieces are deleted once its object is seen in the same repository.

use super::logs::Spares;
use super::maps::Maps;
use super::spool::{self, Spool};
use super::track::{Next, PieceToSend, Track};
use super::{FlushAt, OnReceive, ReceiveCounts, ReceiveEvent, ReceiveOptions, ReceiveTo};
use crate::wal::push::{self, Destination, Pushed, Pusher, PusherOptions};
use crate::{Context, EngineError, blocking};
use futures::future::join_all;
use futures::{FutureExt, StreamExt, stream::FuturesUnordered};
use pg_format::{SegmentName, SystemId, WalFileName};
use repo::RepoError;
use repo::tail::{TailOf, TailPieces, list_tail, list_tails, put_piece, tail_objects};
use std::collections::{BTreeMap, BTreeSet};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};
use store::ObjectPath;
use tokio::sync::{Notify, watch};

/// The first pause after a failure; doubled up to the longest.
const PAUSE_MIN: Duration = Duration::from_millis(200);
const PAUSE_MAX: Duration = Duration::from_secs(5);
/// A store that does not answer for so long has failed.
const PIECE_TIME_MAX: Duration = Duration::from_secs(60);
/// Repositories that need not have everything and could not be opened are tried again after so long.
const REOPEN_AFTER: Duration = Duration::from_secs(60);
/// How often it is looked for what nobody waits for.
const TIDY_UP: Duration = Duration::from_secs(5);
/// How long the stream waits for the repositories, which say where to begin.
const OPEN_TIME_MAX: Duration = Duration::from_secs(5);
/// Files brought to optional repositories at one go.
const CATCH_UP_FILES: usize = 4;
/// Pieces deleted at the same time.
const DELETES_AT_ONCE: usize = 8;

/// See the module.
pub(super) struct Uploads {
    ctx: Context,
    options: ReceiveOptions,
    spool: Spool,
    track: Arc<Track>,
    on_event: OnReceive,
    counts: Mutex<ReceiveCounts>,
    /// The first required repository, once it is open.
    first: watch::Sender<Option<repo::Cluster>>,
    spares: Arc<Spares>,
    maps: Arc<Maps>,
    histories: AtomicBool,
    /// The newest backup said where catalogs lie.
    asked_backups: AtomicBool,
    poked: Notify,
    /// Repositories that fail, and why.
    failing: Mutex<BTreeMap<String, String>>,
}

/// A repository of the list, open.
struct Target {
    place: usize,
    destination: Destination,
}

impl Uploads {
    pub(super) fn new(
        ctx: &Context,
        options: &ReceiveOptions,
        spool: Spool,
        track: Arc<Track>,
        on_event: OnReceive,
    ) -> Self {
        Self {
            ctx: ctx.clone(),
            options: options.clone(),
            maps: Arc::new(Maps::load(spool.clone())),
            spool,
            track,
            on_event,
            counts: Mutex::default(),
            first: watch::Sender::new(None),
            spares: Arc::default(),
            histories: AtomicBool::new(true),
            asked_backups: AtomicBool::new(false),
            poked: Notify::new(),
            failing: Mutex::default(),
        }
    }

    pub(super) fn count(&self, add: impl FnOnce(&mut ReceiveCounts)) {
        add(&mut self.counts.lock().unwrap_or_else(PoisonError::into_inner));
    }

    pub(super) fn counts(&self) -> ReceiveCounts {
        let (frames, frame_bytes) = self.spares.written();
        ReceiveCounts { frames, frame_bytes, ..*self.counts.lock().unwrap_or_else(PoisonError::into_inner) }
    }

    /// Logs for who receives, when commits wait for repositories.
    pub(super) fn spares(&self) -> Option<Arc<Spares>> {
        (self.options.flush_at == FlushAt::Repository).then(|| self.spares.clone())
    }

    /// Where the server's catalogs lie.
    pub(super) fn maps(&self) -> &Maps {
        &self.maps
    }

    /// A history file lies in the spool.
    pub(super) fn histories_came(&self) {
        self.histories.store(true, Ordering::Relaxed);
        self.poked.notify_one();
    }

    /// Why a repository cannot be written to, when it cannot.
    pub(super) fn failing(&self, repository: &str) -> Option<String> {
        self.failing.lock().unwrap_or_else(PoisonError::into_inner).get(repository).cloned()
    }

    fn fails(&self, repository: &str, error: &EngineError) {
        let reason = error.to_string();
        let mut failing = self.failing.lock().unwrap_or_else(PoisonError::into_inner);
        if failing.insert(repository.to_owned(), reason.clone()).is_none() {
            drop(failing);
            (self.on_event)(ReceiveEvent::StoreFails { repository: repository.to_owned(), reason });
        }
    }

    fn works(&self, repository: &str) {
        let mut failing = self.failing.lock().unwrap_or_else(PoisonError::into_inner);
        if failing.remove(repository).is_some() {
            drop(failing);
            (self.on_event)(ReceiveEvent::StoreWorks { repository: repository.to_owned() });
        }
    }

    /// The first required repository; none when it cannot be opened in a moment. WAL is received all the same.
    pub(super) async fn first_cluster(&self, ctx: &Context) -> Result<Option<repo::Cluster>, EngineError> {
        let mut first = self.first.subscribe();
        let opened = async { first.wait_for(Option::is_some).await.ok().and_then(|cluster| cluster.clone()) };
        let opened = tokio::time::timeout(OPEN_TIME_MAX, opened);
        Ok(ctx.or_cancel(opened).await?.unwrap_or_default())
    }

    /// Uploads until told to stop.
    pub(super) async fn run(self: Arc<Self>) {
        let mut pause = PAUSE_MIN;
        let name = self.options.repositories.iter().find(|to| to.required).map_or("", |to| to.name.as_str());
        while !self.ctx.cancel.is_cancelled() {
            match self.ctx.or_cancel(self.run_opened().boxed()).await {
                Ok(Ok(())) => pause = PAUSE_MIN,
                Ok(Err(error)) => {
                    self.fails(name, &error);
                    let _ = self.ctx.or_cancel(tokio::time::sleep(pause)).await;
                    pause = (pause * 2).min(PAUSE_MAX);
                }
                Err(_) => return,
            }
        }
    }

    /// Opens the repositories and uploads; ends when one that could not be opened is to be tried again.
    async fn run_opened(&self) -> Result<(), EngineError> {
        let (destinations, out_of_reach) = (self.options.open)().await?;
        let reopen = !out_of_reach.is_empty();
        let place_of = |destination: &Destination| {
            self.options.repositories.iter().position(|to: &ReceiveTo| to.key == destination.key)
        };
        let targets: Vec<Target> = destinations
            .iter()
            .filter_map(|destination| Some(Target { place: place_of(destination)?, destination: destination.clone() }))
            .collect();
        let notes = push::Spool::new(&self.options.state_dir, &self.options.state_key, self.spool.dir());
        let options = PusherOptions {
            workers: self.options.workers,
            spool: Some(notes),
            warn_later: false,
            catalogs: Some(self.maps.moved()),
        };
        let pusher = Pusher::open(&self.ctx, destinations, out_of_reach, self.spool.dir(), &options).await?;
        if let Some(first) = targets.iter().find(|target| target.destination.required) {
            self.works(&first.destination.name);
            self.first.send_replace(Some(first.destination.cluster.clone()));
        }
        let tails = join_all(targets.iter().map(|target| self.send_tails(target).boxed()));
        let whole = self.push_whole(&pusher, &targets).boxed();
        let spares = targets.iter().filter(|target| target.destination.required);
        let spares = join_all(spares.map(|target| self.keep_spare(target).boxed()));
        let reopened = async {
            match reopen {
                true => tokio::time::sleep(REOPEN_AFTER).await,
                false => std::future::pending().await,
            }
        };
        tokio::select! {
            _ = tails => {}
            _ = spares, if self.spares().is_some() => {}
            () = whole => {}
            () = reopened => {}
        }
        Ok(())
    }

    fn of(&self, segment: SegmentName) -> TailOf {
        TailOf { system_id: self.spool.system(), segment, size: self.spool.size() }
    }

    /// Keeps a log ready for one repository, for ever.
    async fn keep_spare(&self, target: &Target) {
        let bytes = self.spool.size().bytes();
        while let Err(error) = self.spares.keep(target.place, &target.destination, bytes).await {
            tracing::info!("no log can be made in {}, pieces are written: {error}", target.destination.name);
            tokio::time::sleep(PAUSE_MAX).await;
        }
    }

    /// Sends the tail to one repository, for ever.
    async fn send_tails(&self, target: &Target) {
        let mut changed = self.track.subscribe();
        let mut pause = PAUSE_MIN;
        if let Err(error) = self.remove_leavings(target).await {
            tracing::info!("what is left of tails in {} could not be looked at: {error}", target.destination.name);
        }
        loop {
            changed.borrow_and_update();
            let done = match self.track.next(target.place) {
                Next::Look(segment) => self.look(target, segment).await,
                Next::Piece(piece) => self.send(target, piece).await,
                Next::Wait(until) => {
                    let timer = async {
                        match until {
                            Some(until) => tokio::time::sleep_until(until.into()).await,
                            None => std::future::pending().await,
                        }
                    };
                    tokio::select! {
                        _ = changed.changed() => {}
                        () = timer => {}
                    }
                    continue;
                }
            };
            match done {
                Ok(()) => {
                    self.works(&target.destination.name);
                    pause = PAUSE_MIN;
                }
                Err(error) => {
                    self.fails(&target.destination.name, &error);
                    tokio::time::sleep(pause).await;
                    pause = (pause * 2).min(PAUSE_MAX);
                }
            }
        }
    }

    async fn look(&self, target: &Target, segment: SegmentName) -> Result<(), EngineError> {
        let cluster = &target.destination.cluster;
        let tail = list_tail(&**cluster.repository().store(), cluster.name(), self.spool.system(), segment).await?;
        self.count(|counts| counts.listings += 1);
        let chain = tail.chain().into_iter().map(|(piece, _)| piece.range.clone()).collect();
        self.track.looked(target.place, segment, chain);
        Ok(())
    }

    async fn send(&self, target: &Target, piece: PieceToSend) -> Result<(), EngineError> {
        let (file, range) = (piece.file.clone(), piece.range.clone());
        let path = self.spool.dir().join(piece.segment.to_string());
        let plain = blocking(move || {
            let mut plain = vec![0; (range.end - range.start) as usize];
            file.read_exact_at(&mut plain, range.start).map_err(|error| EngineError::file(path, "reading", error))?;
            Ok(plain)
        })
        .await?;
        let cluster = &target.destination.cluster;
        let repository = cluster.repository();
        let put = put_piece(
            &**repository.store(),
            repository.keys(),
            cluster.name(),
            self.of(piece.segment),
            piece.range.clone(),
            &plain,
            target.destination.compression,
        );
        let late = |_| EngineError::Failed { reason: "the store did not answer in time".into(), hint: None };
        tokio::time::timeout(PIECE_TIME_MAX, put).await.map_err(late)??;
        self.count(|counts| {
            counts.pieces += 1;
            counts.piece_bytes += plain.len() as u64;
        });
        let covered = self.track.sent(target.place, &piece);
        let path = |range| cluster.name().tail_piece(self.spool.system(), piece.segment, range);
        let mut paths: Vec<ObjectPath> = covered.iter().map(path).collect();
        // Its segment became whole while it was written: the others may be deleted already.
        if self.track.is_over(target.place, piece.segment) && self.has(target, piece.segment).await? {
            paths.push(path(&piece.range));
        }
        self.delete(target, paths).await;
        Ok(())
    }

    /// Deletes pieces; those that stay do no harm.
    async fn delete(&self, target: &Target, paths: Vec<ObjectPath>) {
        let store = target.destination.cluster.repository().store();
        for paths in paths.chunks(DELETES_AT_ONCE) {
            let deleted = join_all(paths.iter().map(|path| store.delete(path))).await;
            let count = deleted.iter().filter(|result| result.is_ok()).count();
            self.count(|counts| counts.pieces_deleted += count as u64);
        }
    }

    /// Whether a segment's object is in a repository.
    async fn has(&self, target: &Target, segment: SegmentName) -> Result<bool, EngineError> {
        let cluster = &target.destination.cluster;
        let path = cluster.name().wal_file(self.spool.system(), segment.timeline, &segment.to_string())?;
        match cluster.repository().store().head(&path).await {
            Ok(_) => Ok(true),
            Err(error) if error.is_not_found() => Ok(false),
            Err(error) => Err(RepoError::from(error).into()),
        }
    }

    /// Deletes pieces of segments that are there whole: what a process that was killed left, or archiving made superfluous.
    async fn remove_leavings(&self, target: &Target) -> Result<(), EngineError> {
        let cluster = &target.destination.cluster;
        let store = cluster.repository().store();
        let tails = list_tails(&**store, cluster.name(), self.spool.system()).await?;
        self.count(|counts| counts.listings += 1);
        for (segment, tail) in tails {
            if self.has(target, segment).await? {
                self.delete_all(target, tail).await;
            }
        }
        Ok(())
    }

    async fn delete_all(&self, target: &Target, tail: TailPieces) {
        self.delete(target, tail.pieces.into_iter().map(|piece| piece.path).collect()).await;
    }

    /// Pushes whole segments and history files, for ever.
    async fn push_whole(&self, pusher: &Arc<Pusher>, targets: &[Target]) {
        let mut changed = self.track.subscribe();
        let mut running = FuturesUnordered::new();
        let mut on_way: BTreeSet<SegmentName> = BTreeSet::new();
        let mut stored: Vec<(SystemId, WalFileName)> = Vec::new();
        let (mut pause, mut not_before) = (PAUSE_MIN, Instant::now());
        let mut tidy_up = tokio::time::interval(TIDY_UP);
        let first = targets.iter().find(|target| target.destination.required);
        let name = first.map_or("", |target| target.destination.name.as_str());
        if let Some(first) = first
            && !self.asked_backups.swap(true, Ordering::Relaxed)
        {
            self.maps.ask_backups(&self.ctx, &first.destination.cluster).await;
        }
        loop {
            changed.borrow_and_update();
            for path in self.track.take_over() {
                self.spool.remove(&path);
            }
            let now = Instant::now();
            let mut failed = None;
            if now >= not_before {
                // The history of a timeline first: a segment of a timeline nobody knows of is of no use.
                if self.histories.swap(false, Ordering::Relaxed)
                    && let Err(error) = self.push_histories(pusher).await
                {
                    self.histories.store(true, Ordering::Relaxed);
                    failed = Some(error);
                }
                let whole = self.track.whole_segments();
                self.maps.keep_only(&whole);
                for (segment, path) in whole {
                    if running.len() < pusher.in_flight_max() && failed.is_none() && on_way.insert(segment) {
                        self.maps.follow(segment, &path).await;
                        let pusher = pusher.clone();
                        running.push(async move { (segment, pusher.push(path, WalFileName::Segment(segment)).await) });
                    }
                }
            }
            let waits = now < not_before || failed.is_some();
            if let Some(error) = failed {
                self.fails(name, &error);
                not_before = now + pause;
                pause = (pause * 2).min(PAUSE_MAX);
            }
            tokio::select! {
                Some((segment, pushed)) = running.next(), if !running.is_empty() => {
                    on_way.remove(&segment);
                    let done = match pushed {
                        Ok(done) => {
                            self.count(|counts| {
                                counts.segments += 1;
                                counts.segments_there += u64::from(done.pushed != Pushed::Stored);
                                counts.bytes_stored += done.bytes_stored;
                            });
                            stored.push((done.system_id, done.name));
                            done.warnings.iter().for_each(|text| (self.on_event)(ReceiveEvent::Warning(text.clone())));
                            self.after_push(targets, segment).await
                        }
                        Err(error) => Err(error),
                    };
                    match done {
                        Ok(()) => {
                            self.works(name);
                            pause = PAUSE_MIN;
                        }
                        Err(error) => {
                            self.fails(name, &error);
                            not_before = Instant::now() + pause;
                            pause = (pause * 2).min(PAUSE_MAX);
                        }
                    }
                }
                _ = changed.changed() => {}
                () = self.poked.notified() => {}
                () = tokio::time::sleep_until(not_before.into()), if waits => {}
                _ = tidy_up.tick(), if running.is_empty() => {
                    self.tidy_up(pusher, targets, &mut stored).await;
                }
            }
        }
    }

    /// A segment is in each required repository: notes it, and deletes its pieces where its object is seen.
    async fn after_push(&self, targets: &[Target], segment: SegmentName) -> Result<(), EngineError> {
        let mut places = Vec::new();
        let mut first_error = None;
        for target in targets {
            match self.has(target, segment).await {
                Ok(true) => places.push(target),
                Ok(false) => {}
                Err(error) if target.destination.required => drop(first_error.get_or_insert(error)),
                Err(_) => {}
            }
        }
        let numbers: Vec<usize> = places.iter().map(|target| target.place).collect();
        self.track.stored(segment, &numbers);
        for target in places {
            let cluster = &target.destination.cluster;
            let store = cluster.repository().store();
            let tail = tail_objects(&**store, cluster.name(), self.spool.system(), segment).await;
            self.count(|counts| counts.listings += 1);
            // What stays is removed by the next receiver, or with the segment.
            if let Ok(paths) = tail {
                self.delete(target, paths).await;
            }
        }
        first_error.map_or(Ok(()), Err)
    }

    async fn push_histories(&self, pusher: &Arc<Pusher>) -> Result<(), EngineError> {
        let mut files: Vec<PathBuf> = self.spool.histories();
        files.sort();
        for path in files {
            let Some(name) = history_name(&path) else { continue };
            pusher.push(path.clone(), name).await?;
            self.spool.remove(&path);
        }
        Ok(())
    }

    /// What nobody waits for.
    async fn tidy_up(&self, pusher: &Arc<Pusher>, targets: &[Target], stored: &mut Vec<(SystemId, WalFileName)>) {
        for warning in pusher.roll_up(&self.ctx, &std::mem::take(stored)).await {
            tracing::info!("{warning}");
        }
        if let Some(notes) = pusher.spool() {
            // Nothing asks for what is noted: each segment is pushed once.
            notes.clean(&BTreeSet::new());
        }
        let (_, warnings) = pusher.catch_up(&self.ctx, CATCH_UP_FILES).await;
        warnings.iter().for_each(|warning| tracing::info!("{warning}"));
        for target in targets.iter().filter(|target| !target.destination.required) {
            let missed =
                push::Spool::missed_by(&self.options.state_dir, &self.options.state_key, &target.destination.key);
            if missed == 0 {
                self.track.caught_up(target.place);
            }
        }
    }

    /// The directory of the spool, for messages.
    pub(super) fn place(&self) -> PathBuf {
        spool::place(&self.options.state_dir, &self.options.state_key)
    }
}

fn history_name(path: &Path) -> Option<WalFileName> {
    let name: WalFileName = path.file_name()?.to_str()?.parse().ok()?;
    matches!(name, WalFileName::History(_)).then_some(name)
}
