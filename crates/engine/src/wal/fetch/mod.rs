//! `restore_command`: a file of `pg_wal` out of the repository, and those that will be asked for next.
//!
//! PostgreSQL takes an exit code from 1 to 125 as "the archive ends here" and ends recovery or promotes; above that it
//! stops with an error (`RestoreArchivedFile` in `src/backend/access/transam/xlogarchive.c`). So:
//!
//! | what | exit code | with [`FetchOptions::standby`] |
//! |---|---|---|
//! | the file is in its place | 0 | 0 |
//! | it is known to be absent | 1 | 1 |
//! | it is absent, and something later shows that it was written once (a hole) | 126 | 1, with a warning |
//! | the repository cannot be reached, or the object is damaged | 126 | 1, with a warning |
//! | the data directory is of another cluster | 126 | 126 |
//!
//! A standby that was told 126 would shut down; told 1 it tries again, or streams from its primary.

mod cache;
mod hole;

use crate::wal::archive::segment_size_of;
use crate::{Context, EngineError};
use cache::Cache;
use futures::{StreamExt, stream};
use pg_format::{ControlFile, SegmentName, SystemId, WalFileName, WalSegmentSize};
use repo::RepoError;
use repo::wal::{decode_segment, read_wal_file};
use std::fs::{self, File};
use std::io::Write;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::SystemTime;
use store::ObjectPath;

/// Segments and objects in memory at the same time, in bytes (one is always let through).
const FLIGHT_BYTES_MAX: u64 = 160 << 20;
/// A segment's object is at most so much larger than the segment.
const OVERHEAD_BYTES_MAX: u64 = 64 << 20;

/// How files are fetched.
#[derive(Debug, Clone)]
pub struct FetchOptions {
    /// How many segments after the one asked for are fetched with it; 0 for none.
    pub ahead: usize,
    /// How many objects are read at the same time.
    pub workers: usize,
    /// Where segments fetched ahead are kept; without it nothing is fetched ahead.
    pub cache_dir: Option<PathBuf>,
    /// What the cache belongs to: the repository's URL and the cluster's name.
    pub cache_key: String,
    /// The most that the cache may take, in bytes.
    pub cache_bytes_max: u64,
    /// Whether the server is a standby (`standby.signal` in its data directory).
    pub standby: bool,
}

/// What became of a request.
#[derive(Debug)]
pub enum FetchOutcome {
    /// The file is in its place.
    Found {
        /// It had been fetched ahead.
        from_cache: bool,
        /// So many further segments were fetched ahead in this call.
        ahead: usize,
    },
    /// It is known not to be in the archive, and nothing shows that it should be.
    Absent,
    /// Nothing is known, or what is known is bad.
    Failed(EngineError),
}

/// PostgreSQL's "stop with an error": above 125, and not above 128, where signals begin.
pub const EXIT_FAILED: u8 = 126;

impl FetchOutcome {
    /// The exit code for `restore_command`; see the module's table.
    pub fn exit_code(&self, options: &FetchOptions) -> u8 {
        match self {
            Self::Found { .. } => 0,
            Self::Absent => 1,
            Self::Failed(EngineError::Refused { .. }) => EXIT_FAILED,
            Self::Failed(_) if options.standby => 1,
            Self::Failed(_) => EXIT_FAILED,
        }
    }
}

/// Which WAL is wanted.
#[derive(Debug, Clone, Copy)]
struct Wanted {
    system: SystemId,
    size: WalSegmentSize,
}

/// The system that a data directory is of, told by the `pg_control` beside the `pg_wal` that `dest` lies in.
fn system_of_target(dest: &Path) -> Option<Wanted> {
    let path = dest.parent()?.parent()?.join(pg_format::control::CONTROL_FILE_PATH);
    // The server may be writing it: then the checksum is wrong for a moment.
    for _ in 0..5 {
        let bytes = fs::read(&path).ok()?;
        if let Ok(control) = ControlFile::parse(&bytes) {
            return Some(Wanted { system: control.system_id, size: control.wal_segment_size });
        }
        std::thread::sleep(std::time::Duration::from_millis(10));
    }
    None
}

/// Gives a segment that was fetched ahead, without asking the repository: to be tried before it is opened. `None` means
/// that [`fetch`] must be called.
pub fn fetch_cached(name: &str, dest: &Path, options: &FetchOptions) -> Option<FetchOutcome> {
    let Ok(WalFileName::Segment(name)) = name.parse() else { return None };
    let cache = cache_of(options)?;
    let wanted = system_of_target(dest)?;
    let plain = cache.take(wanted.system, name)?;
    check_plain(&plain, name, wanted).ok()?;
    // What cannot be written is tried again, and then said.
    place(dest, &plain).ok()?;
    Some(FetchOutcome::Found { from_cache: true, ahead: 0 })
}

fn cache_of(options: &FetchOptions) -> Option<Cache> {
    options.cache_dir.as_deref().map(|dir| Cache::new(dir, &options.cache_key, options.cache_bytes_max))
}

/// Fetches the file `name` to `dest` (`restore_command`'s `%f` and `%p`).
pub async fn fetch(
    ctx: &Context,
    cluster: &repo::Cluster,
    name: &str,
    dest: &Path,
    options: &FetchOptions,
) -> FetchOutcome {
    if let Some(outcome) = fetch_cached(name, dest, options) {
        return outcome;
    }
    let outcome = match ctx.or_cancel(try_fetch(ctx, cluster, name, dest, options)).await {
        Ok(Ok(outcome)) => outcome,
        Ok(Err(error)) | Err(error) => FetchOutcome::Failed(error),
    };
    if let FetchOutcome::Failed(error) = &outcome
        && outcome.exit_code(options) == 1
    {
        ctx.progress.warn(&format!(
            "{name} could not be fetched: {error}. Since this is a standby it is told that the file is absent, so that \
             it tries again or streams"
        ));
    }
    outcome
}

async fn try_fetch(
    ctx: &Context,
    cluster: &repo::Cluster,
    text: &str,
    dest: &Path,
    options: &FetchOptions,
) -> Result<FetchOutcome, EngineError> {
    let name: WalFileName = text.parse().map_err(|error: pg_format::FormatError| {
        EngineError::refused(error.to_string(), "restore_command gives name and path: `pgkeep wal fetch %f %p`")
    })?;
    let target = system_of_target(dest);
    let wanted = match target {
        Some(wanted) => wanted,
        None => present_system(cluster).await?,
    };
    let found = match name {
        WalFileName::Segment(segment) => {
            let fetched = fetch_segment(cluster, wanted, segment, &segment.to_string()).await?;
            if let Some(plain) = fetched {
                place(dest, &plain)?;
                let ahead = prefetch_from(ctx, cluster, wanted, segment, options).await;
                return Ok(FetchOutcome::Found { from_cache: false, ahead });
            }
            None
        }
        WalFileName::Partial(segment) => fetch_segment(cluster, wanted, segment, text).await?,
        WalFileName::History(timeline) => fetch_file(cluster, cluster.name().history(wanted.system, timeline)).await?,
        WalFileName::BackupHistory(segment, _) => {
            fetch_file(cluster, cluster.name().wal_file(wanted.system, segment.timeline, text)?).await?
        }
    };
    if let Some(content) = found {
        place(dest, &content)?;
        return Ok(FetchOutcome::Found { from_cache: false, ahead: 0 });
    }
    // "Absent" ends a recovery: it is said only by the right repository, about the right cluster.
    let facts = cluster.known_facts().await?;
    if !facts.systems.iter().any(|entry| entry.system_id == wanted.system) {
        return Err(EngineError::refused(
            format!(
                "{}: the data directory is of system identifier {}, which is not one of cluster {}",
                dest.display(),
                wanted.system,
                cluster.name()
            ),
            "correct restore_command: it names another cluster or repository",
        ));
    }
    if let WalFileName::Segment(segment) = name
        && let Some(proof) = hole::proof_of_hole(cluster, wanted.system, segment, wanted.size).await?
    {
        // It may have come since it was asked for, and with it what is taken for the proof: segments are pushed in parallel.
        if let Some(plain) = fetch_segment(cluster, wanted, segment, &segment.to_string()).await? {
            place(dest, &plain)?;
            return Ok(FetchOutcome::Found { from_cache: false, ahead: 0 });
        }
        return Err(EngineError::failed(
            format!("segment {segment} is missing in the archive of cluster {}, but {proof}", cluster.name()),
            "push it if a server still has it in pg_wal; else recover to a point before it, or from a later backup",
        ));
    }
    Ok(FetchOutcome::Absent)
}

/// The cluster's present system, for a target whose own is not known.
async fn present_system(cluster: &repo::Cluster) -> Result<Wanted, EngineError> {
    let facts = cluster.known_facts().await?;
    let entry = facts.current().ok_or_else(|| {
        EngineError::refused(
            format!("cluster {} has no system identifier in the repository", cluster.name()),
            format!("run `pgkeep init {}`", cluster.name()),
        )
    })?;
    Ok(Wanted { system: entry.system_id, size: segment_size_of(entry)? })
}

/// A segment's plain bytes, checked; `None` when it is known to be absent.
async fn fetch_segment(
    cluster: &repo::Cluster,
    wanted: Wanted,
    segment: SegmentName,
    file: &str,
) -> Result<Option<Vec<u8>>, EngineError> {
    let path = cluster.name().wal_file(wanted.system, segment.timeline, file)?;
    let repository = cluster.repository();
    let object = match repository.store().get(&path, wanted.size.bytes() + OVERHEAD_BYTES_MAX).await {
        Err(error) if error.is_not_found() => return Ok(None),
        other => other.map_err(RepoError::from)?,
    };
    let keys = repository.keys().clone();
    let decode = tokio::task::spawn_blocking(move || decode_segment(&keys, &path, &object));
    let plain = decode
        .await
        .map_err(|error| EngineError::Failed { reason: format!("a worker ended: {error}"), hint: None })??;
    if file == segment.to_string() {
        check_plain(&plain, segment, wanted)?;
    }
    Ok(Some(plain))
}

/// Whether a segment is what it should be. One whose first page cannot be read was archived that way.
fn check_plain(plain: &[u8], name: SegmentName, wanted: Wanted) -> Result<(), EngineError> {
    let bad =
        |what: String| EngineError::failed(format!("segment {name} in the repository {what}"), "run `pgkeep verify`");
    if plain.len() as u64 != wanted.size.bytes() {
        return Err(bad(format!("has {} bytes, {} are expected", plain.len(), wanted.size.bytes())));
    }
    let Ok(info) = pg_wal::peek_segment(plain) else { return Ok(()) };
    if info.system_id != wanted.system {
        return Err(bad(format!("is of system identifier {}, not {}", info.system_id, wanted.system)));
    }
    if name.start(wanted.size).is_ok_and(|start| start != info.start) {
        return Err(bad(format!("begins at {}", info.start)));
    }
    Ok(())
}

async fn fetch_file(cluster: &repo::Cluster, path: ObjectPath) -> Result<Option<Vec<u8>>, EngineError> {
    let repository = cluster.repository();
    match read_wal_file(&**repository.store(), repository.keys(), &path).await {
        Ok(content) => Ok(Some(content.to_vec())),
        Err(error) if error.is_not_found() => Ok(None),
        Err(error) => Err(error.into()),
    }
}

/// Writes a file whole. Not synced: PostgreSQL fetches it again after a crash. Its temporary name is always the same,
/// so that what a kill leaves is overwritten by the next call and never piles up in `pg_wal`.
fn place(dest: &Path, content: &[u8]) -> Result<(), EngineError> {
    let mut temp = dest.as_os_str().to_owned();
    temp.push(".pgkeep");
    let temp = PathBuf::from(temp);
    let write = || {
        let mut file = File::create(&temp)?;
        file.write_all(content)?;
        drop(file);
        fs::rename(&temp, dest)
    };
    write().map_err(|error| {
        let _ = fs::remove_file(&temp);
        EngineError::file(dest, "writing", error)
    })
}

/// Fetches the segments after `name` into the cache, up to [`FetchOptions::ahead`] of them; for a process of its own
/// that runs while PostgreSQL replays. Says how many it fetched; what goes wrong is met again when they are asked for.
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
    Ok(prefetch_from(ctx, cluster, wanted, segment, options).await)
}

async fn prefetch_from(
    ctx: &Context,
    cluster: &repo::Cluster,
    wanted: Wanted,
    segment: SegmentName,
    options: &FetchOptions,
) -> usize {
    let Some(cache) = cache_of(options).filter(|_| options.ahead > 0) else { return 0 };
    cache.remove_before(wanted.system, segment);
    let room = cache.clean(SystemTime::from(ctx.now())) / (wanted.size.bytes() + 32);
    let next = |name: &SegmentName| name.next(wanted.size).ok().flatten();
    let names: Vec<SegmentName> = std::iter::successors(next(&segment), next)
        .take(options.ahead)
        .filter(|name| !cache.has(wanted.system, *name))
        .take(room as usize)
        .collect();
    let at_once = (FLIGHT_BYTES_MAX / (2 * wanted.size.bytes())).clamp(1, options.workers.max(1) as u64) as usize;
    let cache = Arc::new(cache);
    let fetches = stream::iter(names).map(|name| {
        let cache = cache.clone();
        async move {
            let plain = fetch_segment(cluster, wanted, name, &name.to_string()).await.ok()??;
            let put = tokio::task::spawn_blocking(move || cache.put(wanted.system, name, &plain));
            put.await.ok()?.ok()
        }
    });
    // In order, so that the first one missing ends it: nothing lies beyond the archive's end.
    let fetched = fetches.buffered(at_once).take_while(|done| std::future::ready(done.is_some()));
    fetched.take_until(ctx.cancel.cancelled()).count().await
}
