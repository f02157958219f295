//! `restore_command`: a file of `pg_wal` out of the repository, and those that will be asked for next.
//!
//! PostgreSQL takes an exit code from 1 to 125 as "the archive ends here" and ends recovery or promotes; above that it
//! stops with an error (`RestoreArchivedFile` in `src/backend/access/transam/xlogarchive.c`). So:
//!
//! | what | exit code | with [`FetchOptions::standby`] |
//! |---|---|---|
//! | the file is in its place | 0 | 0 |
//! | it is not whole yet, and its beginning is there (a tail): that, and zeros | 0 | 0 |
//! | it is known to be absent | 1 | 1 |
//! | it is absent, and something later shows that it was written once (a hole) | 126 | 1, with a warning |
//! | the repository cannot be reached, or the object is damaged | 126 | 1, with a warning |
//! | the data directory is of another cluster | 126 | 126 |
//!
//! A standby that was told 126 would shut down; told 1 it tries again, or streams from its primary.

mod ahead;
mod cache;
mod hole;
mod segment;

pub use ahead::{AheadOptions, AheadPlace, keep_ahead, prefetch};

use crate::{Context, EngineError};
use ahead::prefetch_from;
use cache::Cache;
use pg_format::{ControlFile, SystemId, WalFileName, WalSegmentSize};
use segment::{Found, find, present_system};
use std::fs;
use std::io::Write;
use std::path::{Path, PathBuf};

/// Segments and objects in memory at the same time, in bytes (one is always let through).
const FLIGHT_BYTES_MAX: u64 = 160 << 20;

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
    /// The most that the cache of this recovery may take, in bytes.
    pub cache_bytes_max: u64,
    /// Whether the server is a standby (`standby.signal` in its data directory).
    pub standby: bool,
}

/// A repository that WAL may be fetched from.
#[derive(Debug, Clone)]
pub struct Origin {
    /// Its name, for messages.
    pub name: String,
    /// The cluster in it, or why it cannot be opened.
    pub cluster: Result<repo::Cluster, String>,
    /// Whether it must have each file before that is acknowledged: then what it does not have, it never had.
    pub required: bool,
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
    let cache = cache_of(dest.parent()?, options)?;
    // What cannot be put in its place is tried again, and then said.
    cache.take(system_of_target(dest)?, name, dest)?;
    Some(FetchOutcome::Found { from_cache: true, ahead: 0 })
}

/// By the text of the path, from the root on: two data directories may share what is behind a link.
fn cache_of(wal_dir: &Path, options: &FetchOptions) -> Option<Cache> {
    let wal_dir = std::path::absolute(wal_dir).unwrap_or_else(|_| wal_dir.to_owned());
    let dir = options.cache_dir.as_deref()?;
    Some(Cache::new(dir, &options.cache_key, &wal_dir, options.cache_bytes_max))
}

/// Fetches the file `name` to `dest` (`restore_command`'s `%f` and `%p`) from one repository.
pub async fn fetch(
    ctx: &Context,
    cluster: &repo::Cluster,
    name: &str,
    dest: &Path,
    options: &FetchOptions,
) -> FetchOutcome {
    let origin = Origin { name: "of the cluster".into(), cluster: Ok(cluster.clone()), required: true };
    fetch_from(ctx, &[origin], name, dest, options).await
}

/// Fetches the file `name` to `dest` from the first of these repositories that has it whole.
///
/// It is absent when each repository that must have it says so. Damage, and an outage, of one is told when another one has
/// the file.
pub async fn fetch_from(
    ctx: &Context,
    origins: &[Origin],
    name: &str,
    dest: &Path,
    options: &FetchOptions,
) -> FetchOutcome {
    if let Some(outcome) = fetch_cached(name, dest, options) {
        return outcome;
    }
    let outcome = match ctx.or_cancel(try_fetch(ctx, origins, name, dest, options)).await {
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
    origins: &[Origin],
    text: &str,
    dest: &Path,
    options: &FetchOptions,
) -> Result<FetchOutcome, EngineError> {
    let name: WalFileName = text.parse().map_err(|error: pg_format::FormatError| {
        EngineError::refused(error.to_string(), "restore_command gives name and path: `pgkeep wal fetch %f %p`")
    })?;
    let target = system_of_target(dest);
    let (mut failed, mut absent, mut troubles) = (None, false, Vec::new());
    // What is not whole anywhere: the longest beginning.
    let mut longest: Option<(u64, Vec<u8>)> = None;
    for origin in origins {
        let found = match &origin.cluster {
            Ok(cluster) => find(cluster, target, name, dest).await,
            Err(reason) => Err(EngineError::Failed { reason: reason.clone(), hint: None }),
        };
        match found {
            Ok(Some(Found { content, tail: Some(filled) })) => {
                absent |= origin.required;
                if longest.as_ref().is_none_or(|(other, _)| filled > *other) {
                    longest = Some((filled, content));
                }
            }
            Ok(Some(Found { content, tail: None })) => {
                place(dest, &content)?;
                drop(content);
                for trouble in troubles {
                    ctx.progress
                        .warn(&format!("{text} was fetched from repository {}, because {trouble}", origin.name));
                }
                let ahead = match (name, &origin.cluster) {
                    (WalFileName::Segment(segment), Ok(cluster)) if options.ahead > 0 => {
                        let wanted = match target {
                            Some(wanted) => wanted,
                            None => present_system(cluster).await?,
                        };
                        prefetch_from(ctx, origins, wanted, segment, dest, options).await
                    }
                    _ => 0,
                };
                return Ok(FetchOutcome::Found { from_cache: false, ahead });
            }
            Ok(None) => absent |= origin.required,
            Err(error) => {
                troubles.push(format!("in repository {}: {error}", origin.name));
                if origin.required {
                    failed.get_or_insert(error);
                }
            }
        }
    }
    match failed {
        Some(error) => Err(error),
        None if absent => {
            if let Some((filled, content)) = longest {
                tracing::info!("{text}: the archive ends in it, {filled} bytes of it are there");
                place(dest, &content)?;
                return Ok(FetchOutcome::Found { from_cache: false, ahead: 0 });
            }
            for trouble in troubles {
                ctx.progress.warn(&format!("{text} is not in the archive; {trouble}"));
            }
            Ok(FetchOutcome::Absent)
        }
        None => Err(EngineError::failed(
            format!("{text}: no repository could be asked that must have it ({})", troubles.join("; ")),
            "see the configuration",
        )),
    }
}

/// Beside the file, always the same: what a kill leaves is overwritten by the next call and never piles up in `pg_wal`.
fn temp_of(dest: &Path) -> PathBuf {
    let mut temp = dest.as_os_str().to_owned();
    temp.push(".pgkeep");
    PathBuf::from(temp)
}

/// Writes a file whole. Not synced: PostgreSQL fetches it again after a crash.
fn place(dest: &Path, content: &[u8]) -> Result<(), EngineError> {
    let temp = temp_of(dest);
    let write = || {
        let mut file = cache::create(&temp)?;
        file.write_all(content)?;
        drop(file);
        fs::rename(&temp, dest)
    };
    write().map_err(|error| {
        let _ = fs::remove_file(&temp);
        EngineError::file(dest, "writing", error)
    })
}
