//! Export: a backup as PostgreSQL's own tools know it, with nothing of pgkeep's in it.
//!
//! The result is what `pg_basebackup` would have made: a plain data directory, or tar files, with `backup_label`,
//! `tablespace_map` (tar) and a `backup_manifest` that `pg_verifybackup` accepts. What is written comes in the order of
//! the backup's paths, in windows of bounded size: the next one is fetched while one is written. Nothing has its final
//! name before all is written and durable; a backup that is damaged gives nothing.

mod feed;
mod manifest;
mod plain;
mod plan;
mod sink;
mod tarred;

pub use crate::tar::TarCompression;

use crate::restore::{PlannedTablespace, TablespaceMapping};
use crate::{Context, EngineError, Unit};
use feed::Feed;
use plan::Plan;
use repo::BackupId;
use serde::Serialize;
use sink::Sink;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::time::Instant;

/// Where a backup is exported to.
pub enum ExportTo {
    /// A directory that is empty or not there.
    Directory(PathBuf),
    /// One tar file to a pipe.
    Pipe(Box<dyn Write + Send>),
}

/// The form of an export.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum ExportFormat {
    /// A data directory.
    Plain,
    /// Tar files: `base.tar`, `OID.tar` for each tablespace, `pg_wal.tar`.
    Tar,
}

/// The checksums in `backup_manifest`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum ManifestChecksums {
    /// CRC-32C, as `pg_basebackup` does unless told otherwise.
    Crc32c,
    /// SHA-256.
    Sha256,
}

/// Whether the WAL that the backup needs goes with it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ExportedWal {
    /// It is put into `pg_wal` or `pg_wal.tar`, so that the export starts by itself.
    Include,
    /// Only what the backup carries itself.
    Leave,
}

/// Whether a server on the export archives.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ExportedArchiving {
    /// `archive_mode` is set to off, so that it cannot push into the origin's archive.
    Off,
    /// As the origin does.
    AsOrigin,
}

/// What is asked of an export.
#[derive(Debug, Clone)]
pub struct ExportOptions {
    /// The backup.
    pub backup: BackupId,
    /// The form.
    pub format: ExportFormat,
    /// Compression of the tar files.
    pub compression: TarCompression,
    /// The checksums in the manifest.
    pub checksums: ManifestChecksums,
    /// WAL.
    pub wal: ExportedWal,
    /// Archiving.
    pub archiving: ExportedArchiving,
    /// Other places for tablespaces; plain only.
    pub tablespaces: Vec<TablespaceMapping>,
    /// Ranges fetched and decoded at the same time.
    pub workers: usize,
}

/// What an export did.
#[derive(Debug, Clone, Serialize)]
pub struct ExportReport {
    /// The backup.
    pub backup: BackupId,
    /// The form.
    pub format: ExportFormat,
    /// Where it is; none for a pipe.
    pub to: Option<PathBuf>,
    /// Where the tablespaces are; empty for tar files.
    pub tablespaces: Vec<PlannedTablespace>,
    /// Files of the data directory and the tablespaces.
    pub files: u64,
    /// Their bytes.
    pub bytes: u64,
    /// WAL files that went with them.
    pub wal_files: u64,
    /// Bytes read from the repository.
    pub fetched_bytes: u64,
    /// How long it took.
    pub elapsed_ms: u64,
    /// What is good to know.
    pub notes: Vec<String>,
    /// What a human must read.
    pub warnings: Vec<String>,
}

/// Exports a backup.
///
/// # Errors
/// What is damaged or missing is named. Then nothing is left that could be taken for a whole export.
pub async fn export(
    ctx: &Context,
    cluster: &repo::Cluster,
    to: ExportTo,
    options: &ExportOptions,
) -> Result<ExportReport, EngineError> {
    let begun = Instant::now();
    let manifest = ctx.or_cancel(cluster.open_manifest(options.backup)).await??;
    let plan = Plan::make(ctx, cluster, &manifest, &to, options).await?;
    let is_pipe = matches!(to, ExportTo::Pipe(_));
    let place = match &to {
        ExportTo::Directory(dir) => Some(dir.clone()),
        ExportTo::Pipe(_) => None,
    };
    ctx.progress.phase("exporting files", Some(plan.bytes), Unit::Bytes);
    let mut sink = Sink::create(to, options, &plan)?;
    let (sender, mut receiver) = tokio::sync::mpsc::channel(1);
    let progress = ctx.progress.clone();
    let writing = tokio::task::spawn_blocking(move || {
        while let Some(window) = receiver.blocking_recv() {
            match window {
                feed::Window::Steps(steps) => {
                    for step in steps {
                        if let Err(error) = sink.take(step, &*progress) {
                            sink.give_up();
                            return Err(error);
                        }
                    }
                }
                feed::Window::End => return sink.finish(),
            }
        }
        // The other side ended without saying that this is all.
        sink.give_up();
        Err(EngineError::Cancelled)
    });
    let mut feed = Feed::new(ctx, cluster, &manifest, &plan, options, sender);
    let fed = feed.all().await;
    let fetched_bytes = feed.fetched_bytes();
    drop(feed);
    if is_pipe && ctx.cancel.is_cancelled() {
        // Nobody may be reading the pipe any more: its writer is not waited for.
        return Err(EngineError::Cancelled);
    }
    let written = writing.await.unwrap_or_else(|panic| {
        Err(EngineError::Failed { reason: format!("the writer stopped unexpectedly: {panic}"), hint: None })
    });
    let totals = match (fed, written) {
        // When writing failed, feeding it did too, and has nothing to say.
        (Err(feed::Stopped::WriterEnded) | Ok(()), written) => written?,
        (Err(feed::Stopped::Error(error)), _) => return Err(nothing_left(error)),
    };
    let mut notes = plan.notes.clone();
    if let Some(dir) = place.as_deref().filter(|_| options.format == ExportFormat::Plain) {
        notes.insert(0, format!("to check it: pg_verifybackup{} {}", plan.verify_options(), dir.display()));
    }
    Ok(ExportReport {
        backup: options.backup,
        format: options.format,
        to: place,
        tablespaces: if options.format == ExportFormat::Plain { plan.tablespaces } else { Vec::new() },
        files: totals.files,
        bytes: totals.bytes,
        wal_files: totals.wal_files,
        fetched_bytes,
        elapsed_ms: u64::try_from(begun.elapsed().as_millis()).unwrap_or(u64::MAX),
        notes,
        warnings: plan.warnings,
    })
}

fn nothing_left(error: EngineError) -> EngineError {
    match error {
        EngineError::Cancelled | EngineError::Refused { .. } | EngineError::Failed { .. } => error,
        other => EngineError::failed(
            other.to_string(),
            "nothing of the export was kept; `pgkeep verify` says what is damaged, and `pgkeep list` what else there is",
        ),
    }
}

/// A failure to write, in words that say what to do.
fn write_error(to: &Path, error: std::io::Error) -> EngineError {
    use std::io::ErrorKind;
    match error.kind() {
        ErrorKind::BrokenPipe => EngineError::failed(
            "the reader of the pipe ended before all was written: what it has is cut off and no backup",
            "look at what the reader said: a full disk, for example",
        ),
        ErrorKind::StorageFull | ErrorKind::QuotaExceeded => EngineError::failed(
            format!("{}: the disk is full; nothing of the export was kept", to.display()),
            "make room, or export to another file system",
        ),
        _ => EngineError::file(to, "writing", error),
    }
}
