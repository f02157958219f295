//! Fetching ahead of replay: in the call itself, or by a process of its own that goes on while PostgreSQL replays.

use super::cache::Cache;
use super::segment::{fetch_segment, present_system};
use super::{FLIGHT_BYTES_MAX, FetchOptions, Origin, Wanted, cache_of, system_of_target};
use crate::wal::WorkerLock;
use crate::{Context, EngineError};
use futures::{StreamExt, stream};
use pg_format::{SegmentName, WalFileName};
use std::collections::BTreeSet;
use std::path::Path;
use std::time::{Duration, Instant, SystemTime};

/// A segment that was not to be had is looked for again after this time.
const LOOK_AGAIN: Duration = Duration::from_secs(2);
/// How long a call waits for a segment that is on its way.
const COMING_TIME_MAX: Duration = Duration::from_secs(60);

/// How long the process that fetches ahead goes on.
#[derive(Debug, Clone, Copy)]
pub struct AheadOptions {
    /// When replay has not moved for so long, it ends.
    pub idle_time: Duration,
    /// How often it looks where replay is.
    pub poll_time: Duration,
}

impl AheadOptions {
    /// For a process that was started by a fetch.
    pub const USUAL: Self = Self { idle_time: Duration::from_secs(15), poll_time: Duration::from_millis(10) };
}

/// The place of the process that fetches ahead for one recovery.
#[derive(Debug, Clone)]
pub struct AheadPlace(Cache);

impl AheadPlace {
    /// The one for a target in this directory; `None` when nothing is fetched ahead.
    pub fn of(wal_dir: &Path, options: &FetchOptions) -> Option<Self> {
        cache_of(wal_dir, options).filter(|_| options.ahead > 0).map(Self)
    }

    /// Notes that replay has come to this segment, and takes the right to fetch ahead of it when nobody has it.
    pub fn replay_at(&self, name: &str, dest: &Path) -> Option<WorkerLock> {
        let Ok(WalFileName::Segment(segment)) = name.parse() else { return None };
        self.0.set_replay(system_of_target(dest)?.system, segment);
        // Who cannot have it fetches each segment when it is asked for.
        self.0.try_lock().ok().flatten()
    }

    /// The lock that this process was given by the one that started it, when `file` is it.
    pub fn inherited(&self, file: std::fs::File) -> Option<WorkerLock> {
        self.0.inherited(file)
    }

    /// Takes the right to fetch ahead; `None` when somebody has it.
    ///
    /// # Errors
    /// When the directory cannot be written to.
    pub fn try_lock(&self) -> Result<Option<WorkerLock>, EngineError> {
        self.0.try_lock()
    }

    /// Waits while a segment is on its way here.
    pub async fn wait_while_coming(&self, ctx: &Context, name: &str, dest: &Path) {
        let Ok(WalFileName::Segment(segment)) = name.parse() else { return };
        let Some(wanted) = system_of_target(dest) else { return };
        let begun = Instant::now();
        while self.0.is_coming(wanted.system, segment) && begun.elapsed() < COMING_TIME_MAX {
            if ctx.or_cancel(tokio::time::sleep(Duration::from_millis(2))).await.is_err() {
                return;
            }
        }
    }
}

/// Keeps the segments that replay will ask for next in the cache, until replay has not moved for a while. How many were
/// fetched. What goes wrong is met again when a segment is asked for, and said then.
pub async fn keep_ahead(
    ctx: &Context,
    origins: &[Origin],
    wal_dir: &Path,
    place: &AheadPlace,
    _lock: &WorkerLock,
    options: &FetchOptions,
    how_long: &AheadOptions,
) -> u64 {
    let cache = &place.0;
    cache.remove_leavings();
    cache.remove_old_neighbours(SystemTime::now());
    let dest = wal_dir.join("RECOVERYXLOG");
    let (mut fetched, mut moved, mut last) = (0, Instant::now(), None);
    // Not twice: what is gone from the cache again was taken, and is not noted as replayed yet.
    let mut brought_once: BTreeSet<SegmentName> = BTreeSet::new();
    // Looked for in vain: which, and when.
    let mut missing: Option<(SegmentName, Instant)> = None;
    while !ctx.cancel.is_cancelled() && wal_dir.is_dir() {
        let at = cache.replay();
        if at != last {
            moved = Instant::now();
            let replay = |at: Option<(_, SegmentName, _)>| at.map(|(_, name, _)| name);
            if replay(at) < replay(last) {
                // Recovery began anew.
                brought_once.clear();
            }
            last = at;
        }
        if moved.elapsed() > how_long.idle_time {
            break;
        }
        let wanted = at.and_then(|(system, name, _)| {
            system_of_target(&dest).filter(|wanted| wanted.system == system).map(|wanted| (wanted, name))
        });
        let mut idle = true;
        if let Some((wanted, name)) = wanted {
            let mut names = next_missing(cache, wanted, name, options);
            if let Some((missing, _)) = missing.filter(|(_, when)| when.elapsed() < LOOK_AGAIN) {
                names.retain(|name| name.timeline != missing.timeline || *name < missing);
            }
            brought_once.retain(|brought| *brought > name);
            names.retain(|name| !brought_once.contains(name));
            let at_once = at_once(wanted, options);
            // Not all of them before it is looked where replay is now.
            names.truncate(2 * at_once);
            let fetches = stream::iter(names.clone()).map(|name| bring(origins, cache, wanted, name)).buffered(at_once);
            let brought: Vec<bool> = fetches.take_until(ctx.cancel.cancelled()).collect().await;
            missing = brought.iter().position(|there| !there).map(|at| (names[at], Instant::now())).or(missing);
            brought_once.extend(names.iter().zip(&brought).filter(|(_, there)| **there).map(|(name, _)| *name));
            let count = brought.iter().filter(|there| **there).count();
            fetched += count as u64;
            idle = count == 0;
        }
        if idle && ctx.or_cancel(tokio::time::sleep(how_long.poll_time)).await.is_err() {
            break;
        }
    }
    fetched
}

fn at_once(wanted: Wanted, options: &FetchOptions) -> usize {
    (FLIGHT_BYTES_MAX / (2 * wanted.size.bytes())).clamp(1, options.workers.max(1) as u64) as usize
}

/// What replay will ask for after `name` and is not in the cache, as far as there is room.
fn next_missing(cache: &Cache, wanted: Wanted, name: SegmentName, options: &FetchOptions) -> Vec<SegmentName> {
    cache.remove_before(wanted.system, name);
    let room = cache.clean(SystemTime::now()) / (wanted.size.bytes() + 32);
    let next = |name: &SegmentName| name.next(wanted.size).ok().flatten();
    std::iter::successors(next(&name), next)
        .take(options.ahead)
        .filter(|name| !cache.has(wanted.system, *name))
        .take(room as usize)
        .collect()
}

/// A segment into the cache, from the first repository that has it whole.
async fn bring(origins: &[Origin], cache: &Cache, wanted: Wanted, name: SegmentName) -> bool {
    let _coming = cache.coming(wanted.system, name);
    for cluster in origins.iter().filter_map(|origin| origin.cluster.as_ref().ok()) {
        let Ok(Some(plain)) = fetch_segment(cluster, wanted, name, &name.to_string()).await else { continue };
        let cache = cache.clone();
        let put = tokio::task::spawn_blocking(move || cache.put(wanted.system, name, &plain));
        return matches!(put.await, Ok(Ok(())));
    }
    false
}

/// Fetches the segments after `name` into the cache, up to [`FetchOptions::ahead`] of them, within this call. How many it
/// fetched; what goes wrong is met again when they are asked for.
pub async fn prefetch(
    ctx: &Context,
    cluster: &repo::Cluster,
    name: &str,
    dest: &Path,
    options: &FetchOptions,
) -> Result<usize, EngineError> {
    let Ok(WalFileName::Segment(segment)) = name.parse() else { return Ok(0) };
    let wanted = match system_of_target(dest) {
        Some(wanted) => wanted,
        None => present_system(cluster).await?,
    };
    let origin = Origin { name: String::new(), cluster: Ok(cluster.clone()), required: true };
    Ok(prefetch_from(ctx, &[origin], wanted, segment, dest, options).await)
}

pub(super) async fn prefetch_from(
    ctx: &Context,
    origins: &[Origin],
    wanted: Wanted,
    segment: SegmentName,
    dest: &Path,
    options: &FetchOptions,
) -> usize {
    let Some(cache) = dest.parent().and_then(|dir| cache_of(dir, options)).filter(|_| options.ahead > 0) else {
        return 0;
    };
    let names = next_missing(&cache, wanted, segment, options);
    let fetches =
        stream::iter(names).map(|name| bring(origins, &cache, wanted, name)).buffered(at_once(wanted, options));
    // In order, so that the first one missing ends it: nothing lies beyond the archive's end.
    let fetched = fetches.take_while(|there| std::future::ready(*there));
    fetched.take_until(ctx.cancel.cancelled()).count().await
}
