//! Backup: a running cluster's files become a backup in the repository.
//!
//! The order is DESIGN's section 4: intent, `pg_backup_start`, files in parallel, pg_control last, `pg_backup_stop`,
//! then the wait until all WAL from start to stop is in the repository and can be read, and only then the manifest,
//! whose existence makes the backup. Whatever fails before leaves no backup; what it stored is kept for the next one to go
//! on from.

mod base;
mod changes;
mod checks;
mod chunks;
mod compare;
mod config;
mod extents;
mod footers;
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
mod sources;
mod wal_wait;
mod worker;
mod write;

use crate::server::{ServerFacts, connect};
use crate::{Context, EngineError, lease_holder, process_is_gone};
use checks::{check_cluster, check_host, check_server};
use jiff::Timestamp;
use pg_format::{Lsn, Timeline};
use pg_wire::Conninfo;
use renewal::Renewal;
use repo::manifest::{ChangeDetection, DamagedPage, LookAgain, Numbers};
use repo::{BackupId, Cluster, Compression, RepoError};
use serde::Serialize;
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

/// What is asked of a backup.
#[derive(Debug, Clone)]
pub struct BackupOptions {
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
    /// Name and version of the program, for the manifest.
    pub made_by: String,
}

/// What a backup did.
#[derive(Debug, Clone, Serialize)]
pub struct BackupReport {
    /// The backup's ID.
    pub backup: BackupId,
    /// Where replay begins.
    pub start_lsn: Lsn,
    /// Where the backup becomes consistent.
    pub stop_lsn: Lsn,
    /// Its timeline.
    pub timeline: Timeline,
    /// The backup it builds on.
    pub prior: Option<BackupId>,
    /// Backups that were broken off and that it went on from.
    pub resumed: Vec<BackupId>,
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

/// Backs up a running cluster from the files on this host.
pub async fn run(
    ctx: &Context,
    cluster: &Cluster,
    conninfo: &Conninfo,
    options: &BackupOptions,
) -> Result<BackupReport, EngineError> {
    let mut client = connect(conninfo).await?;
    let server = ServerFacts::read(&mut client).await?;
    check_cluster(cluster, &server).await?;
    check_server(&server)?;
    check_host(&server)?;
    let lease = cluster.take_lease("backup", lease_holder(), ctx.now(), process_is_gone).await.map_err(busy)?;
    // Work stops when the operator says so, or when the lease is lost; whichever it is, the same way.
    let stop = Context { cancel: ctx.cancel.child_token(), ..ctx.clone() };
    let mut renewal = Renewal::start(lease, &stop);
    let result = run::leased(&stop, cluster, conninfo, options, client, &server, &renewal.lease).await;
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

/// Does what may block, away from the threads that must not.
async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, EngineError> + Send + 'static,
) -> Result<T, EngineError> {
    tokio::task::spawn_blocking(work).await.unwrap_or_else(|panic| {
        Err(EngineError::Failed { reason: format!("a worker stopped unexpectedly: {panic}"), hint: None })
    })
}
