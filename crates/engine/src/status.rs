//! Is a cluster protected: its backups, what can be recovered, how far archiving is behind, what is missing.

use crate::server::{self, ServerFacts};
use crate::setup::Level;
use crate::text::count;
use crate::wal::WalArchive;
use crate::wal::archive::{SegmentRange, TailStatus};
use crate::{Context, EngineError};
use futures::{StreamExt, TryStreamExt, stream};
use jiff::{SignedDuration, Timestamp};
use pg_format::{Lsn, SegmentName, SystemId, Timeline};
use pg_wire::Client;
use repo::manifest::ManifestFacts;
use repo::{BackupId, ClusterName, SystemEntry};
use serde::Serialize;

/// Manifests whose facts are read at the same time.
const READS_AT_ONCE: usize = 8;

/// What counts as too much.
#[derive(Debug, Clone, Copy)]
pub struct StatusOptions {
    /// A last backup older than this is a warning; `None` for no limit.
    pub backup_age_max: Option<SignedDuration>,
    /// More WAL than this that is not archived yet is a warning, in bytes.
    pub wal_lag_bytes_max: u64,
}

/// The state of one cluster.
#[derive(Debug, Clone, Serialize)]
pub struct ClusterStatus {
    /// Its name.
    pub name: ClusterName,
    /// The worst of its problems.
    pub verdict: Level,
    /// What is wrong, worst first.
    pub problems: Vec<Problem>,
    /// Its present system identifier.
    pub system_id: Option<SystemId>,
    /// PostgreSQL's major version.
    pub pg_major: Option<u32>,
    /// The timeline that production is on.
    pub production_timeline: Option<Timeline>,
    /// How many finished backups there are.
    pub backups: usize,
    /// The last one.
    pub last_backup: Option<BackupStatus>,
    /// Backups that have begun and not ended.
    pub unfinished: Vec<UnfinishedBackup>,
    /// What can be recovered to, in the order of the WAL.
    pub recoverable: Vec<RecoverableRange>,
    /// The WAL that is there, for each timeline of the present system.
    pub wal: Vec<TimelineStatus>,
    /// WAL that was streamed of segments that are not whole yet: of each timeline of the present system that ends so.
    pub tails: Vec<TailStatus>,
    /// WAL that is missing.
    pub gaps: Vec<Gap>,
    /// What the server says, when it could be asked.
    pub server: Option<ServerStatus>,
}

/// Something that is wrong.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Problem {
    /// How bad.
    pub level: Level,
    /// What.
    pub message: String,
    /// What to do next.
    pub hint: Option<String>,
}

/// A finished backup.
#[derive(Debug, Clone, Serialize)]
pub struct BackupStatus {
    /// Its ID.
    pub id: BackupId,
    /// When it was finished.
    pub finished: Timestamp,
    /// How long ago that is, in seconds.
    pub age_seconds: i64,
    /// Its timeline.
    pub timeline: Timeline,
    /// Where replay begins.
    pub start_lsn: Lsn,
    /// Where it becomes consistent.
    pub stop_lsn: Lsn,
    /// How many pages failed their check.
    pub damaged_pages: usize,
    /// What a human should read about it.
    pub warnings: Vec<String>,
}

/// A backup that has begun and not ended.
#[derive(Debug, Clone, Serialize)]
pub struct UnfinishedBackup {
    /// Its ID.
    pub id: BackupId,
    /// The host that makes it.
    pub host: Option<String>,
    /// The process there.
    pub pid: Option<u32>,
}

/// Targets that can be recovered to.
#[derive(Debug, Clone, Serialize)]
pub struct RecoverableRange {
    /// The backups from which.
    pub backups: Vec<BackupId>,
    /// The earliest target.
    pub from_lsn: Lsn,
    /// When that was.
    pub from_time: Timestamp,
    /// The latest target.
    pub to_lsn: Lsn,
    /// The latest end of a transaction that can be recovered, when one ended since.
    pub to_time: Option<Timestamp>,
    /// The timeline of the latest target.
    pub timeline: Timeline,
}

/// One timeline's WAL.
#[derive(Debug, Clone, Serialize)]
pub struct TimelineStatus {
    /// The timeline.
    pub timeline: Timeline,
    /// The first segment.
    pub first: Option<SegmentName>,
    /// The last segment.
    pub last: Option<SegmentName>,
    /// How many segments there are.
    pub segments: u64,
    /// How many of them `.partial`.
    pub partials: usize,
    /// Bytes in the repository.
    pub stored_bytes: u64,
}

/// WAL that is missing.
#[derive(Debug, Clone, Serialize)]
pub struct Gap {
    /// The timeline.
    pub timeline: Timeline,
    /// The first segment missing.
    pub first: SegmentName,
    /// The last segment missing.
    pub last: SegmentName,
    /// How many are missing.
    pub segments: u64,
    /// Backups that cannot be recovered beyond it.
    pub cut_backups: Vec<BackupId>,
    /// Backups that cannot be restored at all: their own WAL is missing.
    pub lost_backups: Vec<BackupId>,
}

/// What the server says.
#[derive(Debug, Clone, Serialize)]
pub struct ServerStatus {
    /// Its version.
    pub version: String,
    /// Its timeline.
    pub timeline: Timeline,
    /// Whether it is a standby.
    pub in_recovery: bool,
    /// How far its WAL is.
    pub current_lsn: Lsn,
    /// How much of it is not in the archive yet, in bytes; `None` on a standby.
    pub wal_lag_bytes: Option<u64>,
    /// `archive_mode`.
    pub archive_mode: String,
    /// What its archiver says.
    pub archiver: ArchiverStatus,
}

/// `pg_stat_archiver`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct ArchiverStatus {
    /// Files archived since the counters were reset.
    pub archived: u64,
    /// The last of them.
    pub last_archived: Option<String>,
    /// Attempts that failed.
    pub failures: u64,
    /// The file of the last one.
    pub last_failed: Option<String>,
    /// Whether the last attempt failed.
    pub failing: bool,
}

impl ArchiverStatus {
    /// Asks the server.
    pub async fn read(client: &mut Client) -> Result<Self, EngineError> {
        let row = client
            .query_one(
                "SELECT archived_count::text AS archived, last_archived_wal, failed_count::text AS failed, \
                 last_failed_wal, coalesce(last_failed_time > coalesce(last_archived_time, '-infinity'), false) AS failing \
                 FROM pg_stat_archiver",
                &[],
            )
            .await?;
        Ok(Self {
            archived: row.get("archived")?,
            last_archived: row.opt_get("last_archived_wal")?,
            failures: row.get("failed")?,
            last_failed: row.opt_get("last_failed_wal")?,
            failing: row.bool("failing")?,
        })
    }

    /// In words.
    pub fn describe(&self) -> String {
        let last = self.last_archived.as_deref().unwrap_or("none yet");
        let failed = self.last_failed.as_deref().unwrap_or("unknown");
        match (self.failing, self.failures) {
            (true, _) => {
                let attempts = count(self.failures, "attempt", "attempts");
                format!("the archiver fails on {failed} ({attempts} failed; last archived: {last})")
            }
            (false, 0) => {
                format!("the archiver has archived {}, the last {last}", count(self.archived, "file", "files"))
            }
            (false, _) => format!(
                "the archiver has archived {}, the last {last}; {} failed before, the last on {failed}",
                count(self.archived, "file", "files"),
                count(self.failures, "attempt", "attempts")
            ),
        }
    }
}

/// Says how a cluster is. `server` is a connection to it, why there is none, or `None` when it was not to be asked.
pub async fn status(
    ctx: &Context,
    cluster: &repo::Cluster,
    server: Option<Result<&mut Client, EngineError>>,
    options: &StatusOptions,
) -> Result<ClusterStatus, EngineError> {
    let known = ctx.or_cancel(cluster.known_facts()).await??;
    let mut report = Report { problems: Vec::new() };
    let manifests = manifests(ctx, cluster, &mut report).await?;
    let current = known.current();
    let mut status = ClusterStatus {
        name: cluster.name().clone(),
        verdict: Level::Ok,
        problems: Vec::new(),
        system_id: current.map(|entry| entry.system_id),
        pg_major: current.map(|entry| entry.pg_major),
        production_timeline: current.map(|entry| entry.production_timeline),
        backups: manifests.len(),
        last_backup: manifests.last().map(|facts| backup_status(ctx, facts)),
        unfinished: unfinished(cluster, &mut report).await?,
        recoverable: Vec::new(),
        wal: Vec::new(),
        tails: Vec::new(),
        gaps: Vec::new(),
        server: None,
    };
    report.judge_backups(&status, options);
    let mut archive = None;
    for entry in &known.systems {
        let of_system: Vec<&ManifestFacts> =
            manifests.iter().filter(|facts| facts.system_id == entry.system_id).collect();
        let is_current = Some(entry) == current;
        if of_system.is_empty() && !is_current {
            continue;
        }
        let loaded = ctx.or_cancel(WalArchive::load(cluster, entry.system_id)).await??;
        add_wal(&loaded, &ways(&loaded, entry, &of_system), &mut status, &mut report)?;
        if is_current {
            status.wal = timelines(&loaded)?;
        }
        // What was streamed can be recovered as well.
        let streamed = ctx.or_cancel(loaded.with_tails()).await??;
        add_ranges(ctx, &streamed, &ways(&streamed, entry, &of_system), &mut status).await?;
        if is_current {
            status.tails = streamed.tails();
            archive = Some(streamed);
        }
    }
    match server {
        None => {}
        Some(Err(error)) => report.add(Level::Warning, format!("the server cannot be asked: {error}"), None),
        Some(Ok(client)) => {
            let asked = ctx.or_cancel(server_status(client, archive.as_ref(), &mut report, options)).await?;
            match asked {
                Ok(server) => status.server = Some(server),
                Err(error) => report.add(Level::Warning, format!("the server cannot be asked: {error}"), None),
            }
        }
    }
    report.problems.sort_by_key(|problem| std::cmp::Reverse(problem.level));
    status.verdict = report.problems.first().map_or(Level::Ok, |problem| problem.level);
    status.problems = report.problems;
    Ok(status)
}

struct Report {
    problems: Vec<Problem>,
}

impl Report {
    fn add(&mut self, level: Level, message: impl Into<String>, hint: Option<&str>) {
        self.problems.push(Problem { level, message: message.into(), hint: hint.map(str::to_owned) });
    }

    fn judge_backups(&mut self, status: &ClusterStatus, options: &StatusOptions) {
        let Some(last) = &status.last_backup else {
            self.add(Level::Failed, "there is no backup", Some("make one: `pgkeep backup`"));
            return;
        };
        let age = SignedDuration::from_secs(last.age_seconds);
        if let Some(limit) = options.backup_age_max.filter(|limit| age > *limit) {
            let text = format!("the last backup is {} h old, more than {} h", age.as_hours(), limit.as_hours());
            self.add(Level::Warning, text, Some("make one: `pgkeep backup`"));
        }
        if last.damaged_pages > 0 {
            let text = format!("the last backup, {}, found {} damaged pages", last.id, last.damaged_pages);
            self.add(Level::Failed, text, Some("see `pgkeep show` for which; repair the cluster from an older backup"));
        }
        for warning in &last.warnings {
            self.add(Level::Warning, format!("backup {}: {warning}", last.id), None);
        }
    }
}

async fn manifests(
    ctx: &Context,
    cluster: &repo::Cluster,
    report: &mut Report,
) -> Result<Vec<ManifestFacts>, EngineError> {
    let ids = ctx.or_cancel(cluster.backups()).await??;
    let read = stream::iter(ids).map(|id| async move {
        match cluster.manifest_facts(id).await {
            Ok(facts) => Ok(Ok(facts)),
            // One bad backup must not hide the others.
            Err(error) if error.is_damage() => Ok(Err((id, error))),
            Err(error) if error.is_not_found() => Ok(Err((id, error))),
            Err(error) => Err(EngineError::from(error)),
        }
    });
    let all: Vec<_> = ctx.or_cancel(read.buffered(READS_AT_ONCE).try_collect()).await??;
    let mut manifests = Vec::new();
    for one in all {
        match one {
            Ok(facts) => manifests.push(facts),
            // Deleted since the listing: no problem at all.
            Err((_, error)) if error.is_not_found() => {}
            Err((id, error)) => {
                report.add(Level::Failed, format!("backup {id} cannot be used: {error}"), Some("run `pgkeep verify`"));
            }
        }
    }
    Ok(manifests)
}

fn backup_status(ctx: &Context, facts: &ManifestFacts) -> BackupStatus {
    BackupStatus {
        id: facts.backup,
        finished: facts.finished,
        age_seconds: ctx.now().duration_since(facts.finished).as_secs(),
        timeline: facts.timeline,
        start_lsn: facts.start_lsn,
        stop_lsn: facts.stop_lsn,
        damaged_pages: facts.damaged.len(),
        warnings: facts.warnings.clone(),
    }
}

async fn unfinished(cluster: &repo::Cluster, report: &mut Report) -> Result<Vec<UnfinishedBackup>, EngineError> {
    let mut found = Vec::new();
    for id in cluster.unfinished().await? {
        let intent = match cluster.intent(id).await {
            Ok(intent) => Some(intent),
            // It ended just now.
            Err(error) if error.is_not_found() => continue,
            Err(error) if error.is_damage() => None,
            Err(error) => return Err(error.into()),
        };
        let us = crate::lease_holder();
        // A process of that number may be another one by now; then it is told when that one ends.
        let ended = |pid: u32| !std::path::Path::new(&format!("/proc/{pid}")).exists();
        let gone = intent.as_ref().is_none_or(|intent| intent.host == us.host && ended(intent.pid));
        if gone {
            let hint = "it was broken off; the next backup takes over what it stored";
            report.add(Level::Warning, format!("backup {id} was begun and never finished"), Some(hint));
        }
        found.push(UnfinishedBackup {
            id,
            host: intent.as_ref().map(|intent| intent.host.clone()),
            pid: intent.map(|intent| intent.pid),
        });
    }
    Ok(found)
}

/// How far a backup can be recovered.
struct Way<'a> {
    facts: &'a ManifestFacts,
    target: Timeline,
    last: Option<SegmentName>,
    next: SegmentName,
    /// Its own WAL, from start to stop, is not all there.
    lost: bool,
}

fn ways<'a>(archive: &WalArchive, entry: &SystemEntry, manifests: &[&'a ManifestFacts]) -> Vec<Way<'a>> {
    let way = |facts: &&'a ManifestFacts| {
        // To production when its history leads there, else along its own timeline.
        let leads = archive.history_between(facts.stop_lsn, facts.timeline, entry.production_timeline).is_ok();
        let target = if leads { entry.production_timeline } else { facts.timeline };
        let (last, next) = archive.unbroken_from(facts.start_lsn, facts.timeline, target).ok()?;
        let missing = archive.missing_between(facts.start_lsn, facts.timeline, facts.stop_lsn, target).ok()?;
        Some(Way { facts, target, last, next, lost: !missing.is_empty() && !facts.standalone })
    };
    manifests.iter().filter_map(way).collect()
}

fn add_wal(
    archive: &WalArchive,
    ways: &[Way<'_>],
    status: &mut ClusterStatus,
    report: &mut Report,
) -> Result<(), EngineError> {
    let size = archive.segment_size();
    let mut told = Vec::new();
    for (timeline, wal) in archive.timelines() {
        if let Some(Err(reason)) = &wal.history {
            let text = format!("the history file of timeline {timeline} cannot be used: {reason}");
            report.add(Level::Failed, text, Some("push it again from a server's pg_wal"));
        }
        for range in archive.gaps(timeline) {
            let inside = |name: SegmentName| {
                name.timeline == timeline && name.segno(size).is_ok_and(|segno| range.contains(segno))
            };
            let cut: Vec<&Way<'_>> = ways.iter().filter(|way| inside(way.next)).collect();
            let (lost, cut): (Vec<_>, Vec<_>) = cut.into_iter().partition(|way| way.lost);
            let gap = gap(archive, timeline, range, ids(&cut), ids(&lost))?;
            told.extend(lost.iter().map(|way| way.facts.backup));
            let harm = match (cut.len(), lost.len()) {
                (0, 0) => "no backup needs them".to_owned(),
                (cut, 0) => format!("{} cannot be recovered beyond", count(cut as u64, "backup", "backups")),
                (cut, lost) => {
                    let are = if lost == 1 { "is" } else { "are" };
                    let lost = count(lost as u64, "backup", "backups");
                    format!("{lost} {are} lost, {cut} cannot be recovered beyond")
                }
            };
            let level = if cut.is_empty() && lost.is_empty() { Level::Warning } else { Level::Failed };
            let segments = count(gap.segments, "segment", "segments");
            let text = format!("WAL is missing: {} to {} ({segments}); {harm}", gap.first, gap.last);
            report.add(level, text, Some("push them if a server still has them in pg_wal; then make a new backup"));
            status.gaps.push(gap);
        }
    }
    for way in ways.iter().filter(|way| way.lost && !told.contains(&way.facts.backup)) {
        let text = format!("backup {} cannot be restored: segment {} is missing", way.facts.backup, way.next);
        report.add(Level::Failed, text, Some("make a new backup"));
    }
    Ok(())
}

fn ids(ways: &[&Way<'_>]) -> Vec<BackupId> {
    ways.iter().map(|way| way.facts.backup).collect()
}

fn gap(
    archive: &WalArchive,
    timeline: Timeline,
    range: SegmentRange,
    cut_backups: Vec<BackupId>,
    lost_backups: Vec<BackupId>,
) -> Result<Gap, EngineError> {
    Ok(Gap {
        timeline,
        first: archive.segment_name(timeline, range.first)?,
        last: archive.segment_name(timeline, range.last)?,
        segments: range.count(),
        cut_backups,
        lost_backups,
    })
}

/// Backups that reach the same place make one range.
async fn add_ranges(
    ctx: &Context,
    archive: &WalArchive,
    ways: &[Way<'_>],
    status: &mut ClusterStatus,
) -> Result<(), EngineError> {
    let mut done: Vec<SegmentName> = Vec::new();
    let usable = || ways.iter().filter(|way| !way.lost);
    for way in usable() {
        let Some(last) = way.last.filter(|last| !done.contains(last)) else { continue };
        done.push(last);
        let together: Vec<&Way<'_>> = usable().filter(|other| other.last == Some(last)).collect();
        let first = together.iter().min_by_key(|way| way.facts.stop_lsn).unwrap_or(&way).facts;
        let window =
            archive.recoverable_window(ctx, first.start_lsn, first.stop_lsn, first.timeline, way.target).await?;
        status.recoverable.push(RecoverableRange {
            backups: ids(&together),
            from_lsn: first.stop_lsn,
            from_time: first.stop_time,
            to_lsn: window.to_lsn.unwrap_or(first.stop_lsn),
            to_time: window.to_time,
            timeline: window.to_timeline,
        });
    }
    Ok(())
}

fn timelines(archive: &WalArchive) -> Result<Vec<TimelineStatus>, EngineError> {
    let one = |(timeline, wal): (Timeline, &crate::wal::archive::TimelineWal)| {
        let name = |segno: Option<_>| segno.map(|segno| archive.segment_name(timeline, segno)).transpose();
        Ok(TimelineStatus {
            timeline,
            first: name(wal.segments.first())?,
            last: name(wal.segments.last())?,
            segments: wal.segments.count(),
            partials: wal.partials.len(),
            stored_bytes: wal.stored_bytes,
        })
    };
    archive.timelines().map(one).collect()
}

async fn server_status(
    client: &mut Client,
    archive: Option<&WalArchive>,
    report: &mut Report,
    options: &StatusOptions,
) -> Result<ServerStatus, EngineError> {
    let facts = ServerFacts::read(client).await?;
    let current_lsn = server::current_lsn(client, facts.in_recovery).await?;
    let archiver = ArchiverStatus::read(client).await?;
    let archive = archive.filter(|archive| archive.system_id() == facts.system_id);
    if archive.is_none() {
        let text = format!("the server has system identifier {}, which is not this cluster's", facts.system_id);
        report.add(Level::Failed, text, Some("correct the connection, or run `pgkeep init` again"));
    }
    if facts.archive_mode == "off" && !facts.in_recovery {
        report.add(Level::Failed, "archive_mode is off: no WAL is archived", Some("run `pgkeep init --apply`"));
    } else if archiver.failing {
        let hint = "see the server's log for what archive_command or archive_library said";
        report.add(Level::Failed, archiver.describe(), Some(hint));
    }
    if facts.archive_mode != "off"
        && let Some(problem) = crate::setup::resident_archiver(client, &facts).await?
    {
        report.add(problem.level, problem.message, problem.hint.as_deref());
    }
    let wal_lag_bytes = archive.filter(|_| !facts.in_recovery).map(|archive| {
        let size = archive.segment_size().bytes();
        let end = archive.end_lsn(facts.timeline);
        // A timeline that has nothing in the archive yet lags since its beginning, or since the start of all WAL.
        let begun = archive.history_of(facts.timeline).ok().and_then(|history| history.switches.last().map(|s| s.lsn));
        current_lsn.saturating_sub(end.unwrap_or(begun.unwrap_or(Lsn(size))))
    });
    if let Some(lag) = wal_lag_bytes.filter(|lag| *lag > options.wal_lag_bytes_max) {
        let text = format!("{} MiB of WAL are not archived yet", lag >> 20);
        report.add(Level::Warning, text, Some("see `pgkeep check`, and the server's log"));
    }
    Ok(ServerStatus {
        version: facts.version,
        timeline: facts.timeline,
        in_recovery: facts.in_recovery,
        current_lsn,
        wal_lag_bytes,
        archive_mode: facts.archive_mode,
        archiver,
    })
}
