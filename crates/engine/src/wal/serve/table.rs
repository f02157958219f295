//! What is being pushed, what was pushed ahead, and the pushes themselves.

use super::{Archives, ServeOptions};
use crate::wal::push::{Pushed, PushedFile, Pusher, PusherOptions, Spool, waiting};
use crate::{Context, EngineError};
use pg_format::{SystemId, WalFileName};
use serde::Serialize;
use std::collections::{BTreeSet, HashMap};
use std::fs::Metadata;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};
use tokio::sync::watch;

/// How long it is believed that what was pushed ahead is still there: no longer than it takes the archiver to come to it
/// while it works (docs/decisions/006-remembered-pushes.md has the reason for not believing more).
const BELIEVED_MAX: Duration = Duration::from_secs(15);
/// How long it is believed what the repositories and the data directory said of the cluster.
const FACTS_BELIEVED_MAX: Duration = Duration::from_secs(10);
/// Repositories that need not have everything and could not be opened are tried again after so long.
const REOPEN_AFTER: Duration = Duration::from_secs(60);
/// Files that are brought to such repositories when nobody waits, in one go.
const CATCH_UP_FILES: usize = 16;

/// What was pushed since the start.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize)]
pub struct ServeCounts {
    /// Files stored.
    pub stored: u64,
    /// Files that were in the repository already.
    pub already_there: u64,
    /// Pushes that failed; the same file is asked for again.
    pub failed: u64,
    /// Bytes of the files read.
    pub bytes_read: u64,
    /// Bytes stored in the repository.
    pub bytes_stored: u64,
}

impl ServeCounts {
    fn add(&mut self, outcome: &Result<PushedFile, EngineError>) {
        match outcome {
            Ok(done) => {
                let stored = done.pushed == Pushed::Stored;
                self.stored += u64::from(stored);
                self.already_there += u64::from(!stored);
                self.bytes_read += done.bytes_read;
                self.bytes_stored += done.bytes_stored;
            }
            Err(_) => self.failed += 1,
        }
    }
}

/// Which file it is: what changes when it is written again or replaced.
type Identity = (u64, u64, u64, i64, i64, i64, i64);

fn identity(meta: &Metadata) -> Identity {
    (meta.dev(), meta.ino(), meta.size(), meta.mtime(), meta.mtime_nsec(), meta.ctime(), meta.ctime_nsec())
}

/// None while it is being pushed; then since when it is durable, or why it is not.
type Outcome = Option<Result<Instant, String>>;

struct Slot {
    identity: Identity,
    outcome: watch::Receiver<Outcome>,
}

impl Slot {
    fn is_usable(&self, identity: Identity) -> bool {
        self.identity == identity
            && match &*self.outcome.borrow() {
                None => true,
                Some(Ok(since)) => since.elapsed() < BELIEVED_MAX,
                Some(Err(_)) => false,
            }
    }
}

/// Why a file is pushed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Why {
    /// The archiver waits for it.
    Asked,
    /// It will be asked for.
    Ahead,
}

/// The repositories as they are open now, and who pushes into them.
struct Opened {
    archives: Archives,
    archives_at: Instant,
    pusher: Arc<Pusher>,
    pusher_at: Instant,
}

/// All pushes of one server.
pub(super) struct Table {
    ctx: Context,
    options: ServeOptions,
    slots: Mutex<HashMap<PathBuf, Slot>>,
    counts: Mutex<ServeCounts>,
    opened: tokio::sync::Mutex<Option<Opened>>,
    /// Whether the file asked for last could be pushed: nothing is pushed ahead into a repository that takes nothing.
    healthy: AtomicBool,
    /// Segments whose indexes may be rolled up when nobody waits.
    stored: Mutex<Vec<(SystemId, WalFileName)>>,
}

impl Table {
    pub(super) fn new(ctx: &Context, options: ServeOptions) -> Self {
        Self {
            ctx: ctx.clone(),
            options,
            slots: Mutex::default(),
            counts: Mutex::default(),
            opened: tokio::sync::Mutex::new(None),
            healthy: AtomicBool::new(true),
            stored: Mutex::default(),
        }
    }

    pub(super) fn counts(&self) -> ServeCounts {
        *self.counts.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn slots(&self) -> MutexGuard<'_, HashMap<PathBuf, Slot>> {
        self.slots.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Who pushes the files of this `pg_wal`. Facts of the cluster change while the server runs (`init` after an upgrade, a
    /// catalog that was rewritten): they are read anew when they are not fresh, or when something failed.
    async fn pusher(&self, wal_dir: &Path) -> Result<Arc<Pusher>, EngineError> {
        let mut opened = self.opened.lock().await;
        let healthy = self.healthy.load(Ordering::Relaxed);
        if let Some(opened) = &*opened
            && opened.pusher.wal_dir() == wal_dir
            && healthy
            && opened.pusher_at.elapsed() < FACTS_BELIEVED_MAX
        {
            return Ok(opened.pusher.clone());
        }
        let (archives, archives_at) = match opened.take() {
            Some(last) if last.archives.1.is_empty() || last.archives_at.elapsed() < REOPEN_AFTER => {
                (last.archives, last.archives_at)
            }
            _ => ((self.options.open)().await?, Instant::now()),
        };
        let spool = Spool::new(&self.options.state_dir, &self.options.state_key, wal_dir);
        let options =
            PusherOptions { workers: self.options.workers, spool: Some(spool), warn_later: false, catalogs: None };
        let (destinations, out_of_reach) = archives.clone();
        let pusher = Pusher::open(&self.ctx, destinations, out_of_reach, wal_dir, &options).await?;
        *opened = Some(Opened { archives, archives_at, pusher: pusher.clone(), pusher_at: Instant::now() });
        Ok(pusher)
    }

    /// Pushes a file that the archiver waits for, and others that wait with it. Returns when the file is durable, or why
    /// it is not.
    pub(super) async fn archive(self: &Arc<Self>, wal_dir: &Path, name: WalFileName) -> Result<(), String> {
        let file = wal_dir.join(name.to_string());
        let result = self.try_archive(wal_dir, &file, name).await;
        // What is said to be durable is not asked for again, and if it is, it is looked at again.
        self.slots().remove(&file);
        self.healthy.store(result.is_ok(), Ordering::Relaxed);
        result
    }

    async fn try_archive(self: &Arc<Self>, wal_dir: &Path, file: &Path, name: WalFileName) -> Result<(), String> {
        let pusher = self.pusher(wal_dir).await.map_err(|error| error.to_string())?;
        let mut outcome = self.ensure(&pusher, file, name, Why::Asked)?;
        if self.healthy.load(Ordering::Relaxed) {
            self.look_ahead(&pusher).await;
        }
        let ended = outcome.wait_for(Option::is_some).await;
        match ended.as_deref() {
            Ok(Some(result)) => result.clone().map(drop),
            _ => Err("the push ended without a result".into()),
        }
    }

    /// Sees to it that a file is being pushed, or was.
    fn ensure(
        self: &Arc<Self>,
        pusher: &Arc<Pusher>,
        file: &Path,
        name: WalFileName,
        why: Why,
    ) -> Result<watch::Receiver<Outcome>, String> {
        let meta = std::fs::metadata(file).map_err(|error| format!("{}: {error}", file.display()))?;
        let identity = identity(&meta);
        let mut slots = self.slots();
        if let Some(slot) = slots.get(file).filter(|slot| slot.is_usable(identity)) {
            return Ok(slot.outcome.clone());
        }
        let (sender, outcome) = watch::channel(None);
        slots.insert(file.to_owned(), Slot { identity, outcome: outcome.clone() });
        let (this, pusher, file) = (self.clone(), pusher.clone(), file.to_owned());
        tokio::spawn(async move {
            let result = this.ctx.or_cancel(pusher.push(file.clone(), name)).await.flatten();
            this.counts.lock().unwrap_or_else(PoisonError::into_inner).add(&result);
            match &result {
                Ok(done) => {
                    done.warnings.iter().for_each(|warning| this.ctx.progress.warn(warning));
                    if done.pushed == Pushed::Stored {
                        let mut stored = this.stored.lock().unwrap_or_else(PoisonError::into_inner);
                        stored.push((done.system_id, name));
                    }
                }
                Err(error) if why == Why::Ahead => {
                    tracing::warn!("{name}: could not be pushed ahead, and will be asked for again: {error}");
                }
                Err(_) => {}
            }
            // Nobody may wait for it any more.
            let _ = sender.send(Some(result.map(|_| Instant::now()).map_err(|error| error.to_string())));
        });
        Ok(outcome)
    }

    /// Begins to push the files that will be asked for next.
    async fn look_ahead(self: &Arc<Self>, pusher: &Arc<Pusher>) {
        let room = {
            let mut slots = self.slots();
            slots.retain(|_, slot| slot.is_usable(slot.identity));
            // The directory is read again only when half of what was found is done with.
            if slots.len() > self.options.ahead / 2 {
                return;
            }
            // One is the file asked for.
            (self.options.ahead + 1).saturating_sub(slots.len())
        };
        let dir = pusher.wal_dir().to_owned();
        let Ok(names) = tokio::task::spawn_blocking(move || waiting(&dir)).await else { return };
        if let Some(spool) = pusher.spool() {
            spool.clean(&names.iter().map(ToString::to_string).collect::<BTreeSet<_>>());
        }
        let files: Vec<(PathBuf, WalFileName)> = {
            let slots = self.slots();
            let files = names.into_iter().map(|name| (pusher.wal_dir().join(name.to_string()), name));
            files.filter(|(file, _)| !slots.contains_key(file)).take(room).collect()
        };
        for (file, name) in files {
            // One that is gone is not asked for.
            let _ = self.ensure(pusher, &file, name, Why::Ahead);
        }
    }

    /// Whether something is being pushed.
    fn is_busy(&self) -> bool {
        self.slots().values().any(|slot| slot.outcome.borrow().is_none())
    }

    /// What can be done when nobody waits: indexes are rolled up, and repositories that missed something get it.
    pub(super) async fn tidy_up(&self) {
        if self.is_busy() || !self.healthy.load(Ordering::Relaxed) {
            return;
        }
        let Some(pusher) = self.opened.lock().await.as_ref().map(|opened| opened.pusher.clone()) else { return };
        let stored = std::mem::take(&mut *self.stored.lock().unwrap_or_else(PoisonError::into_inner));
        let mut warnings = pusher.roll_up(&self.ctx, &stored).await;
        warnings.extend(pusher.catch_up(&self.ctx, CATCH_UP_FILES).await.1);
        warnings.iter().for_each(|warning| self.ctx.progress.warn(warning));
    }
}
