//! A warm pass: reads and stores the files of a running server, and notes what it found ([`Warm`]), for a backup that is
//! made when the server is stopped.

use super::base::{Prepared, Preparing};
use super::names::Names;
use super::run::{Gathered, Run, broken_off_packs};
use super::source::{Running, Source, Stopped, look};
use super::warm::Warm;
use super::write::{Usage, describe_pages};
use super::{BackupOptions, DAMAGED_LISTED, check_cluster, with_lease};
use crate::server::ServerFacts;
use crate::{Context, EngineError, Unit};
use jiff::Timestamp;
use pg_format::{Lsn, Timeline};
use repo::manifest::{ChangeDetection, PackUse};
use repo::{BackupId, Cluster};
use serde::Serialize;
use std::collections::HashMap;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::Ordering;

/// What a warm pass did.
#[derive(Debug, Clone, Serialize)]
pub struct WarmReport {
    /// The ID that its packs bear. There is no backup of this ID.
    pub id: BackupId,
    /// What WAL names from here on is read again.
    pub start_lsn: Lsn,
    /// The timeline of that.
    pub timeline: Timeline,
    /// The backup it builds on.
    pub prior: Option<BackupId>,
    /// Backups that were broken off, and earlier warm passes, that it went on from.
    pub resumed: Vec<BackupId>,
    /// How it was found what to read.
    pub change_detection: ChangeDetection,
    /// Pages read.
    pub pages_read: u64,
    /// Pages stored.
    pub pages_stored: u64,
    /// Bytes added to the repository.
    pub bytes_added: u64,
    /// When it began.
    pub started: Timestamp,
    /// When it ended.
    pub finished: Timestamp,
    /// What a human should read.
    pub warnings: Vec<String>,
}

/// Reads the files of a running server, for a backup that is made when it is stopped. The server is not asked.
///
/// None when no server runs: then nothing is to be gained.
pub async fn warm(
    ctx: &Context,
    cluster: &Cluster,
    data_directory: &Path,
    config_file: Option<&Path>,
    options: &BackupOptions,
) -> Result<Option<WarmReport>, EngineError> {
    match look(data_directory)? {
        Running::Yes { .. } => {}
        Running::No { .. } => return Ok(None),
        Running::Unknown { why } => {
            return Err(EngineError::refused(
                format!("{}: a server may run on it elsewhere: {why}", data_directory.display()),
                "what another host writes is not seen here at once: run the warm pass where the server runs",
            ));
        }
    }
    let (stopped, server) = Stopped::open_warm(ctx, data_directory, config_file)?;
    check_cluster(cluster, &server).await?;
    let mut source = Source::Stopped(Box::new(stopped));
    let report = with_lease(ctx, cluster, async |stop, lease| {
        let run = Run::new(&stop, cluster, options, &server, &lease).await?;
        let result = run.warm(&mut source, &server).await;
        if let Err(error) = &result {
            run.broken_off(error).await;
        }
        result
    });
    report.await.map(Some)
}

impl Run<'_> {
    async fn warm(&self, source: &mut Source<'_>, server: &ServerFacts) -> Result<WarmReport, EngineError> {
        let ctx = self.ctx;
        let started = ctx.now();
        let begun = source.begin(ctx, "").await?;
        let (cluster, options, backup) = (self.cluster, self.options, self.backup);
        let preparing = Preparing { ctx, cluster, server, options, backup, begun, coming: source.coming() };
        let Prepared { base, change_detection, round } = preparing.prepare(None).await?;
        let base = Arc::new(base);
        let Gathered { listing, plan, outcome, config, .. } = self.read(source, &base, begun.start_lsn).await?;

        ctx.progress.phase("noting what was found", None, Unit::Items);
        let usage = Usage::new(base.packs(), &outcome, broken_off_packs(&base))?;
        let pack = |(id, used): (&_, &u64)| PackUse { id: *id, size: usage.sizes[id], used: *used };
        let earlier = base.warm.as_ref();
        let mut files = earlier.map(|warm| warm.files.clone()).unwrap_or_default();
        files.extend(plan.gone_paths.iter().map(|path| (path.clone(), None)));
        files.extend(outcome.files.iter().map(|(index, file)| (listing.entries[*index].path.clone(), *file)));
        let mut differing = earlier.map(|warm| warm.differing.clone()).unwrap_or_default();
        differing.extend(describe_pages(&outcome.differing, &listing, &Names::default(), DAMAGED_LISTED).0);
        let compared = outcome.compared + earlier.and_then(|warm| warm.looked_again).map_or(0, |(_, pages)| pages);
        let start = cluster.intent(backup).await?.start;
        let mut warm = Warm {
            backup,
            start: start
                .ok_or_else(|| EngineError::Failed { reason: "the intent lost its start".into(), hint: None })?,
            prior: base.prior.as_ref().map(|prior| prior.facts().backup),
            resumed: base.resumed(),
            files,
            packs: usage.used.iter().map(pack).collect(),
            bad: HashMap::new(),
            differing,
            looked_again: round.map(|round| (round, compared)),
            newest: outcome.newest.max(earlier.map_or(Lsn::INVALID, |warm| warm.newest)),
        };
        warm.note_bad(&outcome.bad_pages, server.relseg_blocks, |index| listing.entries[index].path.clone());
        let number = self.packing.next_pack.fetch_add(1, Ordering::Relaxed);
        ctx.or_cancel(warm.store(cluster, options.compression, number, outcome.packs.len())).await??;
        Ok(WarmReport {
            id: backup,
            start_lsn: begun.start_lsn,
            timeline: begun.timeline,
            prior: warm.prior,
            resumed: warm.resumed,
            change_detection,
            pages_read: outcome.pages_read,
            pages_stored: outcome.pages_stored,
            bytes_added: outcome.packs.values().sum(),
            started,
            finished: ctx.now(),
            warnings: config.warnings.iter().chain(&listing.warnings).cloned().collect(),
        })
    }
}
