//! Which backup a target is reached from, on which timeline, and with which WAL. Nothing is written here.
//!
//! How recovery stops is read from `src/backend/access/transam/xlogrecovery.c` (`recoveryStopsBefore`,
//! `recoveryStopsAfter`): a target that no record reaches ends recovery with a fatal error, so it is refused here.

use super::search::{PointSearch, find_transaction};
use super::{RecoveryTarget, RestoreRequest, TimelineChoice, WalCheck, WalNeed, Window};
use crate::text;
use crate::wal::archive::{WalArchive, segment_size_of};
use crate::{Context, EngineError, Unit};
use futures::{StreamExt, stream};
use pg_format::{Lsn, SegmentName, Timeline};
use repo::manifest::ManifestFacts;
use repo::wal::{RestorePoint, WalFacts, read_segment};
use repo::{BackupId, SystemEntry};
use std::pin::pin;

/// Small objects read at the same time.
const READS_AT_ONCE: usize = 16;
/// Whole segments read at the same time: 64 MiB each at the very most of the usual size.
const SEGMENTS_AT_ONCE: usize = 3;

/// The backup and the WAL that lead to the target.
pub(super) struct Choice {
    pub(super) facts: ManifestFacts,
    pub(super) why: String,
    pub(super) timeline: Timeline,
    pub(super) wal: WalNeed,
    pub(super) window: Window,
    pub(super) warnings: Vec<String>,
}

/// Where the WAL that is needed ends.
enum End {
    /// Here.
    At(Lsn),
    /// With this segment; `lsn` when the exact place is known.
    Segment { name: SegmentName, lsn: Option<Lsn> },
}

/// Chooses the backup for a target, and checks that its WAL is there.
pub(super) async fn choose(
    ctx: &Context,
    cluster: &repo::Cluster,
    request: &RestoreRequest,
) -> Result<Choice, EngineError> {
    let catalogue = cluster.known_facts().await?;
    let mut warnings = Vec::new();
    let backups = load_backups(ctx, cluster, request.backup, &mut warnings).await?;
    // The present system identifier first. A moment or a restore point may lie before an upgrade or a new initdb.
    let looks_back = matches!(request.target, RecoveryTarget::Time(_) | RecoveryTarget::RestorePoint(_));
    let mut first_error = None;
    for entry in catalogue.systems.iter().rev() {
        let mut here: Vec<&ManifestFacts> = backups.iter().filter(|b| b.system_id == entry.system_id).collect();
        if here.is_empty() {
            continue;
        }
        here.sort_by_key(|backup| std::cmp::Reverse((backup.stop_lsn, backup.backup)));
        let search = Search::open(ctx, cluster, request, entry, &here).await;
        let found = match search {
            Ok(search) => search.choose().await,
            Err(error) => Err(error),
        };
        match found {
            Ok(mut choice) => {
                if first_error.is_some() {
                    let system = entry.system_id;
                    choice.warnings.push(format!(
                        "the target lies in the past of another system identifier, {system}, which this cluster had before"
                    ));
                }
                choice.warnings.splice(0..0, warnings);
                return Ok(choice);
            }
            Err(error @ (EngineError::Refused { .. } | EngineError::NotFound { .. })) if looks_back => {
                first_error.get_or_insert(error);
            }
            Err(error) => return Err(error),
        }
    }
    Err(first_error.unwrap_or_else(|| {
        EngineError::not_found(
            format!("no backup of cluster {} belongs to a system identifier in its catalogue", cluster.name()),
            "run `pgkeep backup` first",
        )
    }))
}

/// The facts of the backup asked for, or of all. Backups that cannot be read are left out, with a warning.
async fn load_backups(
    ctx: &Context,
    cluster: &repo::Cluster,
    wanted: Option<BackupId>,
    warnings: &mut Vec<String>,
) -> Result<Vec<ManifestFacts>, EngineError> {
    let ids = cluster.backups().await?;
    if ids.is_empty() {
        let what = format!("cluster {} has no backup in {}", cluster.name(), cluster.repository().store().url());
        return Err(EngineError::not_found(what, "make one with `pgkeep backup`"));
    }
    if let Some(id) = wanted {
        if !ids.contains(&id) {
            let last: Vec<String> = ids.iter().rev().take(10).map(BackupId::to_string).collect();
            let what = format!("cluster {} has no backup {id}", cluster.name());
            return Err(EngineError::not_found(what, format!("there are: {}", last.join(", "))));
        }
        return Ok(vec![ctx.or_cancel(cluster.manifest_facts(id)).await??]);
    }
    let read = |id: BackupId| async move { (id, cluster.manifest_facts(id).await) };
    let mut reads = pin!(stream::iter(ids).map(read).buffered(READS_AT_ONCE));
    let (mut backups, mut damage) = (Vec::new(), None);
    while let Some((id, facts)) = ctx.or_cancel(reads.next()).await? {
        match facts {
            Ok(facts) => backups.push(facts),
            Err(error) if error.is_damage() || error.is_not_found() => {
                warnings.push(format!("backup {id} cannot be used: {error}"));
                damage.get_or_insert(error);
            }
            Err(error) => return Err(error.into()),
        }
    }
    match damage {
        Some(error) if backups.is_empty() => Err(error.into()),
        _ => Ok(backups),
    }
}

/// Looking for a target among the backups of one system identifier.
struct Search<'a> {
    ctx: &'a Context,
    request: &'a RestoreRequest,
    archive: WalArchive,
    /// Usable backups, the latest first, each with the timeline it is to be recovered along.
    backups: Vec<(&'a ManifestFacts, Timeline)>,
    warnings: Vec<String>,
}

impl<'a> Search<'a> {
    async fn open(
        ctx: &'a Context,
        cluster: &repo::Cluster,
        request: &'a RestoreRequest,
        entry: &SystemEntry,
        all: &[&'a ManifestFacts],
    ) -> Result<Self, EngineError> {
        let archive =
            ctx.or_cancel(WalArchive::load_sized(cluster, entry.system_id, segment_size_of(entry)?)).await??;
        let archive = ctx.or_cancel(archive.with_tails()).await??;
        let (mut backups, mut reason) = (Vec::new(), None);
        for &backup in all {
            let timeline = match request.timeline {
                TimelineChoice::Latest => entry.production_timeline,
                TimelineChoice::Current => backup.timeline,
                TimelineChoice::Number(number) => number,
            };
            match archive.history_between(backup.stop_lsn, backup.timeline, timeline) {
                Ok(_) => backups.push((backup, timeline)),
                Err(error) => drop(reason.get_or_insert((backup.backup, timeline, error))),
            }
        }
        let mut warnings = Vec::new();
        if backups.is_empty()
            && let Some((backup, timeline, error)) = reason
        {
            return Err(unreachable_timeline(&archive, backup, timeline, error));
        }
        let highest = archive.timelines().map(|(timeline, _)| timeline).max();
        if request.timeline == TimelineChoice::Latest
            && let Some(highest) = highest.filter(|highest| *highest > entry.production_timeline)
        {
            warnings.push(format!(
                "the archive has WAL of timeline {highest}, but the repository knows timeline {} as production's; \
                 if production moved on, say `--timeline {highest}`",
                entry.production_timeline
            ));
        }
        Ok(Self { ctx, request, archive, backups, warnings })
    }

    async fn choose(mut self) -> Result<Choice, EngineError> {
        let (facts, timeline, end, why) = match &self.request.target {
            RecoveryTarget::Latest => {
                let (backup, timeline) = self.backups[0];
                let end = self.end_of_wal(backup, timeline)?;
                (backup, timeline, end, "it is the latest one, so the least WAL is replayed".to_owned())
            }
            RecoveryTarget::Immediate => {
                let (backup, timeline) = self.backups[0];
                (backup, timeline, End::At(backup.stop_lsn), "it is the latest one".to_owned())
            }
            RecoveryTarget::Lsn(lsn) => self.to_lsn(*lsn).await?,
            RecoveryTarget::Time(time) => self.to_time(*time).await?,
            RecoveryTarget::RestorePoint(name) => self.to_restore_point(name).await?,
            RecoveryTarget::Xid(xid) => self.to_transaction(*xid).await?,
        };
        let why = if self.request.backup.is_some() { "it was asked for".to_owned() } else { why };
        let wal = self.need(facts, timeline, &end)?;
        let window = self.window(facts, timeline).await?;
        self.check_wal(facts, timeline, &wal).await?;
        let wal = WalNeed {
            first: wal.first().map_or_else(String::new, SegmentName::to_string),
            last: wal.last().map_or_else(String::new, SegmentName::to_string),
            segments: wal.len() as u64,
            end_lsn: match end {
                End::At(lsn) => Some(lsn),
                End::Segment { lsn, .. } => lsn,
            },
        };
        Ok(Choice { facts: facts.clone(), why, timeline, wal, window, warnings: std::mem::take(&mut self.warnings) })
    }

    /// Where replay needs the archive from: a standalone backup carries its own WAL.
    fn chain_start(backup: &ManifestFacts) -> Lsn {
        if backup.standalone { backup.stop_lsn } else { backup.start_lsn }
    }

    /// The end of the WAL that follows a backup; refused when WAL beyond a gap would be left out.
    fn end_of_wal(&self, backup: &ManifestFacts, timeline: Timeline) -> Result<End, EngineError> {
        let (last, missing) = self.archive.unbroken_from(Self::chain_start(backup), backup.timeline, timeline)?;
        self.refuse_gap(backup, timeline, missing)?;
        match last {
            Some(name) => Ok(End::Segment { name, lsn: None }),
            None if backup.standalone => Ok(End::At(backup.stop_lsn)),
            None => Err(missing_wal(backup, &[missing])),
        }
    }

    /// Refuses when there is WAL of the way beyond `missing`.
    fn refuse_gap(&self, backup: &ManifestFacts, timeline: Timeline, missing: SegmentName) -> Result<(), EngineError> {
        let Some(known_end) = self.end_beyond(backup, timeline, missing)? else { return Ok(()) };
        let names = self.archive.missing_between(Self::chain_start(backup), backup.timeline, known_end, timeline)?;
        Err(missing_wal(backup, &names))
    }

    /// Where the WAL of the way ends, when there is some beyond `missing`.
    fn end_beyond(
        &self,
        backup: &ManifestFacts,
        timeline: Timeline,
        missing: SegmentName,
    ) -> Result<Option<Lsn>, EngineError> {
        let size = self.archive.segment_size();
        let history = self.archive.history_between(backup.stop_lsn, backup.timeline, timeline)?;
        let end = |name: SegmentName| name.end(size).unwrap_or(Lsn::MAX);
        let beyond = history.ancestry().into_iter().filter_map(|span| {
            let last = self.archive.last_segment(span.timeline)?;
            let last_end = end(self.archive.segment_name(span.timeline, last).ok()?);
            Some(span.end.map_or(last_end, |left| left.min(last_end)))
        });
        Ok(beyond.max().filter(|known| *known > end(missing)))
    }

    async fn to_lsn(&self, lsn: Lsn) -> Result<(&'a ManifestFacts, Timeline, End, String), EngineError> {
        let Some(&(backup, timeline)) = self.backups.iter().find(|(backup, _)| backup.stop_lsn <= lsn) else {
            return Err(self.before_first(format!("LSN {lsn}")));
        };
        let history = self.archive.history_between(backup.stop_lsn, backup.timeline, timeline)?;
        let (last, missing) = self.archive.unbroken_from(Self::chain_start(backup), backup.timeline, timeline)?;
        let size = self.archive.segment_size();
        let unbroken_end = last.and_then(|last| last.end(size).ok()).unwrap_or(Lsn::INVALID);
        let mut reached = Lsn::INVALID;
        if lsn < unbroken_end {
            let mut facts = pin!(self.archive.facts_from(lsn, history.timeline_of(lsn), timeline)?);
            while let Some(facts) = self.ctx.or_cancel(facts.next()).await? {
                let (name, facts) = facts?;
                // Recovery stops at the first record that begins at or after the LSN.
                if facts.last_lsn > lsn {
                    let why = "it is the latest one that ends before the LSN".to_owned();
                    return Ok((backup, timeline, End::Segment { name, lsn: Some(lsn) }, why));
                }
                reached = facts.last_lsn;
            }
        }
        self.refuse_gap(backup, timeline, missing)?;
        Err(self.beyond_archive(backup, timeline, format!("LSN {lsn}"), Some(reached)).await)
    }

    async fn to_time(&self, time: jiff::Timestamp) -> Result<(&'a ManifestFacts, Timeline, End, String), EngineError> {
        let Some(&(backup, timeline)) = self.backups.iter().find(|(backup, _)| backup.stop_time <= time) else {
            return Err(self.before_first(text::time(time)));
        };
        let start = Self::chain_start(backup);
        let mut facts = pin!(self.archive.facts_from(start, backup.timeline, timeline)?);
        self.ctx.progress.phase("looking for the target in the WAL", None, Unit::Items);
        while let Some(facts) = self.ctx.or_cancel(facts.next()).await? {
            let (name, facts) = facts?;
            self.ctx.progress.advance(1);
            let stops = |end: jiff::Timestamp| if self.request.exclusive { end >= time } else { end > time };
            if facts.last_lsn > backup.stop_lsn && facts.latest_end().is_some_and(stops) {
                let why = "it is the latest one that was finished before the moment".to_owned();
                return Ok((backup, timeline, End::Segment { name, lsn: None }, why));
            }
        }
        let (_, missing) = self.archive.unbroken_from(start, backup.timeline, timeline)?;
        self.refuse_gap(backup, timeline, missing)?;
        Err(self.beyond_archive(backup, timeline, text::time(time), None).await)
    }

    async fn to_restore_point(&self, name: &str) -> Result<(&'a ManifestFacts, Timeline, End, String), EngineError> {
        let mut search = PointSearch::new(name);
        let mut later_start = None;
        for &(backup, timeline) in &self.backups {
            let mut facts = pin!(self.archive.facts_from(Self::chain_start(backup), backup.timeline, timeline)?);
            while let Some(facts) = self.ctx.or_cancel(facts.next()).await? {
                let (segment, facts) = facts?;
                if later_start.is_some_and(|start| facts.first_lsn >= start) {
                    break;
                }
                search.look_at(segment, &facts, backup.stop_lsn);
            }
            if let Some((segment, point)) = search.found()? {
                let why = "it is the latest one that ends before the restore point".to_owned();
                return Ok((backup, timeline, End::Segment { name: segment, lsn: Some(point.end_lsn) }, why));
            }
            later_start = Some(backup.start_lsn);
        }
        let mut gap = None;
        for &(backup, timeline) in &self.backups {
            let (_, missing) = self.archive.unbroken_from(Self::chain_start(backup), backup.timeline, timeline)?;
            let Some(end) = self.end_beyond(backup, timeline, missing)? else { continue };
            gap.get_or_insert(missing);
            if let Some(point) = self.point_beyond(name, backup, timeline, missing, end).await? {
                let start = Self::chain_start(backup);
                let names = self.archive.missing_between(start, backup.timeline, point.end_lsn, timeline)?;
                let time = text::time(point.time);
                return Err(match missing_wal(backup, &names) {
                    EngineError::Refused { reason, hint } => {
                        let what = format!("restore point {name:?} (LSN {}, {time}) lies behind a gap", point.lsn);
                        EngineError::Refused { reason: format!("{what}: {reason}"), hint }
                    }
                    other => other,
                });
            }
        }
        Err(search.not_found(gap))
    }

    /// Looks for a restore point in the WAL beyond the segment `missing`, up to `end`.
    async fn point_beyond(
        &self,
        name: &str,
        backup: &ManifestFacts,
        timeline: Timeline,
        missing: SegmentName,
        end: Lsn,
    ) -> Result<Option<RestorePoint>, EngineError> {
        let way = self.archive.segments_for(Self::chain_start(backup), backup.timeline, end, timeline)?;
        let beyond = way.into_iter().skip_while(|segment| segment.name != missing).filter(|segment| segment.present);
        let mut reads =
            stream::iter(beyond).map(|segment| self.check_segment(segment.name, false)).buffered(READS_AT_ONCE);
        while let Some(read) = self.ctx.or_cancel(reads.next()).await? {
            match read {
                Ok(facts) => {
                    if let Some(point) = facts.restore_points.into_iter().find(|point| point.name == name) {
                        return Ok(Some(point));
                    }
                }
                Err(EngineError::Repo(error)) if error.is_damage() || error.is_not_found() => {}
                Err(error) => return Err(error),
            }
        }
        Ok(None)
    }

    async fn to_transaction(&self, xid: u32) -> Result<(&'a ManifestFacts, Timeline, End, String), EngineError> {
        let mut later_start = None;
        for &(backup, timeline) in &self.backups {
            let (last, _) = self.archive.unbroken_from(Self::chain_start(backup), backup.timeline, timeline)?;
            let size = self.archive.segment_size();
            let end = last.and_then(|last| last.end(size).ok()).unwrap_or(Lsn::INVALID);
            // The segment in which the later backup starts was looked at with it.
            let end =
                later_start.map_or(end, |later: Lsn| end.min(later.segment_start(size).saturating_add(size.bytes())));
            if end > backup.start_lsn {
                let segments = self.archive.segments_for(backup.start_lsn, backup.timeline, end, timeline)?;
                let names: Vec<SegmentName> = segments.iter().filter(|s| s.present).map(|s| s.name).collect();
                let found = find_transaction(self.ctx, &self.archive, &names, xid).await?;
                if let Some(found) = found.filter(|found| found.lsn >= backup.stop_lsn) {
                    let why = "it is the latest one that ends before the transaction does".to_owned();
                    let end = End::Segment { name: found.segment, lsn: Some(found.end_lsn) };
                    return Ok((backup, timeline, end, why));
                }
            }
            later_start = Some(backup.start_lsn);
        }
        let window = self.window_text().await;
        Err(EngineError::not_found(
            format!("transaction {xid} does not end anywhere in the WAL after a backup; {window}"),
            "give the ID as `pg_current_xact_id()` shows it, without the epoch; or use a time or an LSN",
        ))
    }

    /// The segments up to the end, all of them there.
    fn need(&self, backup: &ManifestFacts, timeline: Timeline, end: &End) -> Result<Vec<SegmentName>, EngineError> {
        let size = self.archive.segment_size();
        let end = match end {
            End::At(lsn) => *lsn,
            End::Segment { name, lsn: None } => name.end(size).unwrap_or(Lsn::MAX),
            // A record that crosses the border needs both segments.
            End::Segment { name, lsn: Some(lsn) } => {
                let start = name.start(size).unwrap_or(Lsn::INVALID);
                Lsn(lsn.0.max(start.0 + 1))
            }
        };
        let start = Self::chain_start(backup);
        if backup.standalone && end <= backup.stop_lsn {
            return Ok(Vec::new());
        }
        let segments = self.archive.segments_for(start, backup.timeline, end.max(backup.stop_lsn), timeline)?;
        let missing: Vec<SegmentName> = segments.iter().filter(|s| !s.present).map(|s| s.name).collect();
        if !missing.is_empty() {
            return Err(missing_wal(backup, &missing));
        }
        Ok(segments.into_iter().map(|segment| segment.name).collect())
    }

    /// Looks at each segment that will be replayed: damage is to be known before a byte is written.
    async fn check_wal(
        &self,
        backup: &ManifestFacts,
        timeline: Timeline,
        names: &[SegmentName],
    ) -> Result<(), EngineError> {
        self.ctx.progress.phase("checking the WAL up to the target", Some(names.len() as u64), Unit::Items);
        let whole = self.request.wal_check == WalCheck::Whole;
        let at_once = if whole { SEGMENTS_AT_ONCE } else { READS_AT_ONCE };
        let mut reads =
            stream::iter(names.iter().copied()).map(|name| self.check_segment(name, whole)).buffered(at_once);
        let mut bad = Vec::new();
        let mut at = 0;
        while let Some(read) = self.ctx.or_cancel(reads.next()).await? {
            self.ctx.progress.advance(1);
            at += 1;
            match read {
                Ok(facts) => {
                    // The last one may be read only up to the target, but the backup must become consistent in it.
                    let is_last = at == names.len();
                    if let Some(cut) = facts.unreadable.filter(|cut| !is_last || cut.lsn < backup.stop_lsn) {
                        bad.push(format!(
                            "{}: it was archived in a state that cannot be read from {} on: {}",
                            names[at - 1],
                            cut.lsn,
                            cut.reason
                        ));
                    }
                }
                Err(EngineError::Repo(error)) if error.is_damage() || error.is_not_found() => {
                    bad.push(error.to_string())
                }
                Err(error) => return Err(error),
            }
        }
        if bad.is_empty() {
            return Ok(());
        }
        let more = if bad.len() > 5 { format!(" (and {} more)", bad.len() - 5) } else { String::new() };
        bad.truncate(5);
        let window = format!("backup {} on timeline {timeline}", backup.backup);
        Err(EngineError::refused(
            format!("WAL that is needed from {window} is damaged: {}{more}", bad.join("; ")),
            "push the segments again if a server still has them, or choose a target before them",
        ))
    }

    async fn check_segment(&self, name: SegmentName, whole: bool) -> Result<WalFacts, EngineError> {
        let segno = name
            .segno(self.archive.segment_size())
            .map_err(|error| EngineError::Refused { reason: error.to_string(), hint: None })?;
        let facts = self.archive.facts(name.timeline, segno).await?;
        let path = self.archive.segment_path(name)?;
        if facts.system_id != self.archive.system_id() || facts.timeline != name.timeline {
            let reason = format!("is of system {} and timeline {}", facts.system_id, facts.timeline);
            return Err(repo::RepoError::Damaged { path, reason }.into());
        }
        if whole && !self.archive.is_tail(name) {
            let repository = self.archive.cluster().repository().clone();
            let read = async move { read_segment(repository.store().clone(), repository.keys(), &path).await };
            tokio::spawn(read).await.map_err(|error| EngineError::Failed {
                reason: format!("reading {name} ended unexpectedly: {error}"),
                hint: None,
            })??;
        }
        Ok(facts)
    }

    async fn window(&self, backup: &ManifestFacts, timeline: Timeline) -> Result<Window, EngineError> {
        let oldest = self.backups.last().map(|(backup, _)| backup);
        let start = Self::chain_start(backup);
        let reached =
            self.archive.recoverable_window(self.ctx, start, backup.stop_lsn, backup.timeline, timeline).await;
        let reached = match reached {
            Ok(reached) => Some(reached),
            // A damaged last segment is no reason to refuse a target before it.
            Err(EngineError::Repo(error)) if error.is_damage() => None,
            Err(error) => return Err(error),
        };
        Ok(Window {
            timeline,
            first_lsn: oldest.map(|backup| backup.stop_lsn),
            first_time: oldest.map(|backup| backup.stop_time),
            last_lsn: reached.as_ref().and_then(|window| window.to_lsn),
            last_time: reached.and_then(|window| window.to_time),
        })
    }

    /// What can be recovered to, for refusals.
    async fn window_text(&self) -> String {
        let (backup, timeline) = self.backups[0];
        match self.window(backup, timeline).await {
            Ok(window) => window_text(&window),
            Err(error) => format!("what can be recovered to is not known: {error}"),
        }
    }

    fn before_first(&self, what: String) -> EngineError {
        let asked = self.request.backup.is_some();
        let (oldest, timeline) = self.backups[self.backups.len() - 1];
        let which = if asked { "that backup".to_owned() } else { format!("the first backup, {},", oldest.backup) };
        EngineError::refused(
            format!(
                "{what} lies before the end of {which} (LSN {}, {}): nothing on timeline {timeline} reaches it",
                oldest.stop_lsn,
                text::time(oldest.stop_time)
            ),
            if asked {
                "leave the choice of the backup to pgkeep, or choose an earlier one"
            } else {
                "choose a later target"
            },
        )
    }

    async fn beyond_archive(
        &self,
        backup: &ManifestFacts,
        timeline: Timeline,
        what: String,
        reached: Option<Lsn>,
    ) -> EngineError {
        let window = match self.window(backup, timeline).await {
            Ok(window) => window,
            Err(error) => return error,
        };
        let lsn = reached.filter(|lsn| lsn.is_valid()).or(window.last_lsn);
        let lsn = lsn.map_or("nothing".to_owned(), |lsn| lsn.to_string());
        let time = match window.last_time {
            Some(time) => format!("the last transaction in it ended at {}", text::time(time)),
            None => "no transaction ended in it".to_owned(),
        };
        EngineError::refused(
            format!("{what} lies beyond the WAL in the repository, which ends at {lsn}; {time}"),
            "use `--latest` to recover all there is, or see `pgkeep wal status` for why later WAL is not there",
        )
    }
}

/// What can be recovered to, in words.
pub(super) fn window_text(window: &Window) -> String {
    let show = |lsn: Option<Lsn>, time: Option<jiff::Timestamp>| {
        let lsn = lsn.map_or("?".to_owned(), |lsn| lsn.to_string());
        time.map_or(lsn.clone(), |time| format!("{} (LSN {lsn})", text::time(time)))
    };
    let (first, last) = (show(window.first_lsn, window.first_time), show(window.last_lsn, window.last_time));
    format!("timeline {} can be recovered from {first} to {last}", window.timeline)
}

fn unreachable_timeline(archive: &WalArchive, backup: BackupId, timeline: Timeline, error: EngineError) -> EngineError {
    let known: Vec<String> = archive.timelines().map(|(timeline, _)| timeline.to_string()).collect();
    match error {
        EngineError::Refused { reason, .. } | EngineError::NotFound { what: reason, .. } => EngineError::refused(
            format!("timeline {timeline} cannot be reached from backup {backup} or any other: {reason}"),
            format!("the archive has WAL of these timelines: {}", known.join(", ")),
        ),
        other => other,
    }
}

fn missing_wal(backup: &ManifestFacts, names: &[SegmentName]) -> EngineError {
    const SHOWN: usize = 8;
    let shown: Vec<String> = names.iter().take(SHOWN).map(SegmentName::to_string).collect();
    let more = if names.len() > SHOWN { format!(" and {} more", names.len() - SHOWN) } else { String::new() };
    EngineError::refused(
        format!("WAL needed after backup {} is not in the repository: {}{more}", backup.backup, shown.join(", ")),
        "push the segments if a server still has them, choose a target before the gap, or another backup",
    )
}
