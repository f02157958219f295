//! Backup: a running cluster's files become a backup in the repository.
//!
//! The order is DESIGN's section 4: intent, `pg_backup_start`, files in parallel, pg_control last, `pg_backup_stop`,
//! then the wait until all WAL from start to stop is in the repository and can be read, and only then the manifest,
//! whose existence makes the backup. Whatever fails before leaves no backup; what it stored is kept for the next one to go
//! on from.

mod base;
mod carry;
mod changes;
mod checks;
mod chunks;
mod compare;
mod config;
mod extents;
mod footers;
mod gentle;
mod listing;
mod names;
mod packs;
mod pages;
mod pipeline;
mod plan;
mod prior;
mod reading;
mod renewal;
mod resume;
mod run;
mod session;
mod source;
mod sources;
pub(crate) mod stream;
mod wal_wait;
mod warm;
mod warm_pass;
mod worker;
mod write;

use crate::server::{ServerFacts, connect};
use crate::{Context, EngineError, lease_holder, process_is_gone};
pub use source::Stopping;
pub use warm_pass::{WarmReport, warm};

use checks::{CarriesWal, check_cluster, check_host, check_is_here, check_server};
use jiff::Timestamp;
use pg_format::{Lsn, Timeline};
use pg_wire::{Client, Conninfo};
use renewal::{Renewal, SharedLease};
use repo::manifest::{ChangeDetection, DamagedPage, LookAgain, Numbers};
use repo::{BackupId, Cluster, Compression, RepoError};
use serde::Serialize;
use source::{Direct, Freezer, Frozen, Source, Stopped, Stopper, Stream, check_copy, places_of_copy};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

const CONTROL_ENTRY: &[u8] = b"data/global/pg_control";
/// Damaged pages beyond so many are counted, not listed.
const DAMAGED_LISTED: usize = 10_000;

/// How the server is to make its checkpoint at the start.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Checkpoint {
    /// At once.
    Fast,
    /// Spread over time, as `checkpoint_completion_target` says.
    Spread,
}

/// What a backup may share with others.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Sharing {
    /// What did not change since the newest backup that fits is shared with it.
    Incremental,
    /// Nothing: everything is read and stored.
    Full,
}

/// How the files are read.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum SourceOptions {
    /// From the data directory of a server that runs on this host.
    Direct,
    /// From the data directory of a server that does not run. No connection is needed.
    Offline {
        /// The data directory.
        data_directory: PathBuf,
        /// `postgresql.conf`, when it is neither there nor where `postmaster.opts` says.
        config_file: Option<PathBuf>,
        /// How the server comes to be stopped.
        stopping: Stopping,
    },
    /// From a frozen copy of the volumes of a server that runs on this host.
    Snapshot(SnapshotOptions),
    /// Over the replication protocol, from a server that runs anywhere.
    Stream(StreamOptions),
}

/// How a server sends its files.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StreamOptions {
    /// How it compresses them on the way.
    pub compression: StreamCompression,
    /// The most that it sends in a second, in bytes.
    pub max_rate_bytes: Option<u64>,
}

/// How a server compresses what it sends; 15 and later. What is stored is compressed anew.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum StreamCompression {
    /// With zstd where a network lies between, if the server was built with it.
    Auto,
    /// Not at all.
    None,
    /// gzip, with a level.
    Gzip(Option<u32>),
    /// LZ4, with a level.
    Lz4(Option<u32>),
    /// zstd, with a level.
    Zstd(Option<u32>),
}

/// How a frozen copy is made, and where it is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SnapshotOptions {
    /// Makes the copy; for `sh -c`.
    pub freeze: String,
    /// Drops it; for `sh -c`. It is run whatever happened, also when the other one failed.
    pub release: String,
    /// Where the data directory is in the copy, once it is made.
    pub directory: PathBuf,
    /// Other live directories (tablespaces, `pg_wal`) and where they are in copies.
    pub maps: Vec<(PathBuf, PathBuf)>,
    /// What is promised by the way the copy is made.
    pub guarantee: SnapshotGuarantee,
    /// How long each command may take.
    pub command_time_max: Duration,
}

/// What makes a frozen copy a backup.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum SnapshotGuarantee {
    /// It is made between `pg_backup_start` and `pg_backup_stop`: volumes may be frozen one after the other.
    Backup,
    /// All volumes are frozen in one moment: it is what a crash would have left, with the WAL in it.
    CrashConsistent,
}

/// What is asked of a backup.
#[derive(Debug, Clone)]
pub struct BackupOptions {
    /// How the files are read.
    pub source: SourceOptions,
    /// Whether it carries the WAL that it needs, so that it can be restored without an archive. A backup of a server
    /// that does not run always does.
    pub standalone: bool,
    /// What it may share with earlier backups.
    pub sharing: Sharing,
    /// A text of the operator's.
    pub label: Option<String>,
    /// Threads that read and compress.
    pub workers: usize,
    /// Compression of chunks.
    pub compression: Compression,
    /// The checkpoint at the start.
    pub checkpoint: Checkpoint,
    /// How long to wait for the next WAL segment to arrive in the repository before giving up.
    pub wal_timeout: Duration,
    /// All servers of the cluster: when a standby is backed up, the primary among them is asked to end its WAL segment.
    pub servers: Option<Conninfo>,
    /// At most so many bytes are read from files per second.
    pub bytes_per_second_max: Option<u64>,
    /// When reading files is stopped; the next backup goes on from what was stored.
    pub stop_reading_at: Option<Timestamp>,
    /// Name and version of the program, for the manifest.
    pub made_by: String,
}

/// What a backup did.
#[derive(Debug, Clone, Serialize)]
pub struct BackupReport {
    /// The backup's ID.
    pub backup: BackupId,
    /// How the files were read: `direct`, `stream`, `offline`, `snapshot`.
    pub source: &'static str,
    /// Whether it carries the WAL that it needs.
    pub standalone: bool,
    /// What makes the frozen copy a backup, where there was one.
    pub guarantee: Option<SnapshotGuarantee>,
    /// Where replay begins.
    pub start_lsn: Lsn,
    /// Where the backup becomes consistent.
    pub stop_lsn: Lsn,
    /// Its timeline.
    pub timeline: Timeline,
    /// The backup it builds on.
    pub prior: Option<BackupId>,
    /// Backups that were broken off, and warm passes, that it went on from.
    pub resumed: Vec<BackupId>,
    /// How long the server was stopped for it, as far as that is known: from its stop command, or when its end was seen,
    /// until its start command had ended, or its files were not needed any more.
    pub downtime_seconds: Option<f64>,
    /// How it was found what to read.
    pub change_detection: ChangeDetection,
    /// What was read and stored.
    pub numbers: Numbers,
    /// When it began.
    pub started: Timestamp,
    /// When it was finished.
    pub finished: Timestamp,
    /// Pages that failed their check: a human must look at them.
    pub damaged: Vec<DamagedPage>,
    /// Damaged pages beyond those listed.
    pub damaged_more: u64,
    /// Unchanged pages that were compared with what was stored of them; what differed must be looked at too.
    pub look_again: Option<LookAgain>,
    /// What a human should read.
    pub warnings: Vec<String>,
}

/// Backs up a cluster, from its files on this host or as its server sends them. `conninfo` is used for servers that run.
pub async fn run(
    ctx: &Context,
    cluster: &Cluster,
    conninfo: &Conninfo,
    options: &BackupOptions,
) -> Result<BackupReport, EngineError> {
    match &options.source {
        SourceOptions::Direct => {
            let mut client = connect(conninfo).await?;
            let server = ServerFacts::read(&mut client).await?;
            check_cluster(cluster, &server).await?;
            check_server(&server, if options.standalone { CarriesWal::Yes } else { CarriesWal::No })?;
            check_host(&server)?;
            check_is_here(&mut client, &server).await?;
            let direct = Direct::new(cluster, conninfo, &server, options, client);
            leased(ctx, cluster, options, Source::Direct(Box::new(direct)), &server).await
        }
        SourceOptions::Offline { data_directory, config_file, stopping } => {
            let stopper = Arc::new(Stopper::new(data_directory, stopping));
            let result = async {
                stopper.stop(ctx).await?;
                let (stopped, server) = Stopped::open(ctx, data_directory, config_file.as_deref(), stopper.clone())?;
                check_cluster(cluster, &server).await?;
                leased(ctx, cluster, options, Source::Stopped(Box::new(stopped)), &server).await
            };
            let result = result.await;
            stopper.start().await;
            match (result, stopper.failure()) {
                (result, None) => result,
                (Ok(mut report), Some(failure)) => {
                    report
                        .warnings
                        .push(format!("the backup is whole, but the server is not started again: {failure}"));
                    Ok(report)
                }
                (Err(error), Some(failure)) => {
                    ctx.progress.warn(&format!("the server is not started again: {failure}"));
                    Err(error)
                }
            }
        }
        SourceOptions::Stream(stream) => {
            let (client, server) = stream::open(conninfo).await?;
            check_cluster(cluster, &server).await?;
            check_server(&server, if options.standalone { CarriesWal::Yes } else { CarriesWal::No })?;
            let stream = Stream::new(cluster, conninfo, &server, (options, stream), client);
            leased(ctx, cluster, options, Source::Stream(Box::new(stream)), &server).await
        }
        SourceOptions::Snapshot(snapshot) => {
            let freezer = Freezer::new(&snapshot.freeze, &snapshot.release, snapshot.command_time_max);
            let freezer = Arc::new(freezer);
            let result = frozen(ctx, cluster, conninfo, options, snapshot, freezer.clone()).await;
            match (result, freezer.release().await) {
                (result, Ok(())) => result,
                (Ok(mut report), Err(error)) => {
                    report.warnings.push(format!("the backup is whole, but its frozen copy is still there: {error}"));
                    Ok(report)
                }
                (Err(error), Err(left)) => {
                    ctx.progress.warn(&format!("the frozen copy is still there: {left}"));
                    Err(error)
                }
            }
        }
    }
}

/// Whether the files of a server are on this host, and can be read: what `direct` and `snapshot` need.
pub async fn is_here(client: &mut Client) -> Result<(), EngineError> {
    let server = ServerFacts::read(client).await?;
    check_host(&server)?;
    check_is_here(client, &server).await
}

/// Backs up a frozen copy. Whoever calls releases it.
async fn frozen(
    ctx: &Context,
    cluster: &Cluster,
    conninfo: &Conninfo,
    options: &BackupOptions,
    snapshot: &SnapshotOptions,
    freezer: Arc<Freezer>,
) -> Result<BackupReport, EngineError> {
    let mut client = connect(conninfo).await?;
    let server = ServerFacts::read(&mut client).await?;
    check_cluster(cluster, &server).await?;
    let places = places_of_copy(&server, &snapshot.directory, &snapshot.maps);
    match snapshot.guarantee {
        SnapshotGuarantee::Backup => {
            check_server(&server, if options.standalone { CarriesWal::Yes } else { CarriesWal::No })?;
            let direct = Direct::new(cluster, conninfo, &server, options, client);
            let frozen = Frozen::new(direct, freezer, places);
            leased(ctx, cluster, options, Source::Frozen(Box::new(frozen)), &server).await
        }
        SnapshotGuarantee::CrashConsistent => {
            client.close().await;
            freezer.freeze(ctx).await?;
            check_copy(&places, &server)?;
            let stopped = Stopped::open_copy(ctx, places, &server)?;
            leased(ctx, cluster, options, Source::Stopped(Box::new(stopped)), &server).await
        }
    }
}

/// Does it under the lease that keeps other backups of this cluster away.
async fn leased(
    ctx: &Context,
    cluster: &Cluster,
    options: &BackupOptions,
    source: Source<'_>,
    server: &ServerFacts,
) -> Result<BackupReport, EngineError> {
    with_lease(ctx, cluster, async |stop, lease| run::leased(&stop, cluster, options, source, server, &lease).await)
        .await
}

/// Does something under the lease, with a context that is stopped when the lease is lost.
async fn with_lease<T>(
    ctx: &Context,
    cluster: &Cluster,
    work: impl AsyncFnOnce(Context, SharedLease) -> Result<T, EngineError>,
) -> Result<T, EngineError> {
    let lease = cluster.take_lease("backup", lease_holder(), ctx.now(), process_is_gone).await.map_err(busy)?;
    // Work stops when the operator says so, or when the lease is lost; whichever it is, the same way.
    let stop = Context { cancel: ctx.cancel.child_token(), ..ctx.clone() };
    let mut renewal = Renewal::start(lease, &stop);
    let result = work(stop, renewal.lease.clone()).await;
    let lost = renewal.stop().await;
    match (result, lost) {
        (Err(EngineError::Cancelled), Some(error)) if !ctx.cancel.is_cancelled() => Err(error),
        (result, _) => result,
    }
}

fn busy(error: RepoError) -> EngineError {
    match error {
        RepoError::Leased { .. } => EngineError::refused(
            error.to_string(),
            "wait until it has ended; a lease of a process that died elsewhere expires within 3 minutes",
        ),
        other => other.into(),
    }
}
