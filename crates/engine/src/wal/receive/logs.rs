//! Logs of tails: where a repository lies on a file system and commits wait for it, what arrives is written there by the
//! thread that receives, at the price of these bytes. Everything else (other stores, what a log has no room for, a log that
//! failed) goes by pieces, see `upload`.

use super::spool::Spool;
use super::track::Track;
use crate::EngineError;
use crate::wal::push::Destination;
use pg_format::SegmentName;
use repo::tail::{FRAME_PLAIN_MAX, SpareLog, TailLog, TailOf};
use std::collections::BTreeMap;
use std::fs::File;
use std::os::unix::fs::FileExt;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use tokio::sync::Notify;

/// Logs that were made beforehand, at most one for each repository.
#[derive(Debug, Default)]
pub(super) struct Spares {
    ready: Mutex<BTreeMap<usize, (SpareLog, Destination)>>,
    taken: Notify,
    frames: AtomicU64,
    frame_bytes: AtomicU64,
}

impl Spares {
    fn ready(&self) -> std::sync::MutexGuard<'_, BTreeMap<usize, (SpareLog, Destination)>> {
        self.ready.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Keeps one ready for a repository, until it says that it cannot have any.
    pub(super) async fn keep(
        &self,
        place: usize,
        destination: &Destination,
        segment_bytes: u64,
    ) -> Result<(), EngineError> {
        let store = destination.cluster.repository().store();
        loop {
            let taken = self.taken.notified();
            let has = self.ready().contains_key(&place);
            if has {
                taken.await;
                continue;
            }
            let Some(spare) = SpareLog::make(&**store, segment_bytes).await? else {
                return std::future::pending().await;
            };
            self.ready().insert(place, (spare, destination.clone()));
        }
    }

    fn take(&self, place: usize) -> Option<(SpareLog, Destination)> {
        let spare = self.ready().remove(&place);
        if spare.is_some() {
            self.taken.notify_waiters();
        }
        spare
    }

    /// Frames written to logs, and the bytes of WAL in them.
    pub(super) fn written(&self) -> (u64, u64) {
        (self.frames.load(Ordering::Relaxed), self.frame_bytes.load(Ordering::Relaxed))
    }

    fn places(&self) -> Vec<usize> {
        self.ready().keys().copied().collect()
    }
}

/// The logs that are written. Calls block.
pub(super) struct Logs {
    spares: Arc<Spares>,
    spool: Spool,
    track: Arc<Track>,
    open: BTreeMap<usize, (SegmentName, TailLog)>,
    /// Nothing was written since it was asked last.
    quiet: bool,
}

impl Logs {
    pub(super) fn new(spares: Arc<Spares>, spool: Spool, track: Arc<Track>) -> Self {
        Self { spares, spool, track, open: BTreeMap::new(), quiet: false }
    }

    /// Called now and then: marks the ends of logs that nothing was written to meanwhile.
    pub(super) fn mark_quiet(&mut self) {
        if std::mem::replace(&mut self.quiet, true) {
            self.mark_all();
        }
    }

    fn mark_all(&mut self) {
        for (place, name) in self.open.iter().map(|(place, (name, _))| (*place, *name)).collect::<Vec<_>>() {
            let Some((_, log)) = self.open.get_mut(&place) else { continue };
            if let Err(error) = log.mark() {
                self.failed(place, name, &error.into());
            }
        }
    }

    fn failed(&mut self, place: usize, name: SegmentName, error: &EngineError) {
        tracing::info!("the log of the tail cannot be written to, pieces are written: {error}");
        self.open.remove(&place);
        self.track.log_failed(place, name);
    }

    /// The stream is over: what waits is sent as pieces.
    pub(super) fn end_all(&mut self) {
        self.mark_all();
        while let Some((place, _)) = self.open.pop_first() {
            self.track.log_ended(place);
        }
    }

    /// Brings what was written to a segment's file into each repository's log. What fails is left to the pieces.
    pub(super) fn write(&mut self, name: SegmentName, file: &File) {
        let mut places = self.spares.places();
        places.extend(self.open.keys());
        places.sort_unstable();
        places.dedup();
        for place in places {
            match self.write_to(place, name, file) {
                Ok(true) => {}
                Ok(false) => self.end(place),
                Err(error) => self.failed(place, name, &error),
            }
        }
    }

    fn end(&mut self, place: usize) {
        if self.open.remove(&place).is_some() {
            self.track.log_ended(place);
        }
    }

    /// False when there is no log to write to.
    fn write_to(&mut self, place: usize, name: SegmentName, file: &File) -> Result<bool, EngineError> {
        let Some(range) = self.track.to_log(place, name) else { return Ok(true) };
        // One of another segment, or pieces were written meanwhile.
        let fits = |(of, log): &(SegmentName, TailLog)| *of == name && log.end() == range.start;
        if !self.open.get(&place).is_some_and(fits) {
            self.open.remove(&place);
        }
        let mut at = range.start;
        while at < range.end {
            let mut plain = vec![0; ((range.end - at) as usize).min(FRAME_PLAIN_MAX)];
            let path = || self.spool.dir().join(name.to_string());
            file.read_exact_at(&mut plain, at).map_err(|error| EngineError::file(path(), "reading", error))?;
            match self.open.get_mut(&place) {
                Some((_, log)) => {
                    if !log.append(&plain)? {
                        return Ok(false);
                    }
                }
                None => {
                    let Some((spare, to)) = self.spares.take(place) else { return Ok(false) };
                    let repository = to.cluster.repository();
                    let of = TailOf { system_id: self.spool.system(), segment: name, size: self.spool.size() };
                    let (keys, cluster) = (repository.keys(), to.cluster.name());
                    let Some(log) = TailLog::begin(spare, keys, cluster, of, at, &plain, to.compression)? else {
                        return Ok(false);
                    };
                    self.open.insert(place, (name, log));
                }
            }
            at += plain.len() as u64;
            self.quiet = false;
            self.spares.frames.fetch_add(1, Ordering::Relaxed);
            self.spares.frame_bytes.fetch_add(plain.len() as u64, Ordering::Relaxed);
            self.track.logged(place, name, at);
        }
        Ok(true)
    }
}

impl Drop for Logs {
    fn drop(&mut self) {
        self.end_all();
    }
}
