//! Which WAL is read, and from which backup's names on.

use super::walk::Walked;
use crate::wal::WalArchive;
use crate::wal::archive::{segment_size_of, segno_of};
use crate::wal::index::major_of;
use crate::{Context, EngineError};
use futures::{StreamExt, stream};
use jiff::{SignedDuration, Timestamp};
use pg_format::{Lsn, PgMajor, SegmentName, SystemId, Timeline, TimelineHistory};
use repo::BackupId;
use repo::manifest::ManifestFacts;
use std::pin::pin;

/// Small objects read at the same time.
const READS_AT_ONCE: usize = 16;
/// Commit times are not in order; so much is read beyond the last one asked for.
const DISORDER: SignedDuration = SignedDuration::from_mins(15);

/// A way through the archive: along the history of one timeline.
pub(super) struct Route {
    pub(super) archive: WalArchive,
    /// Whether its system identifier is the present one of the cluster.
    pub(super) is_current: bool,
    /// Whether that timeline was production's.
    pub(super) is_production: bool,
    /// The other system identifiers that the cluster had.
    pub(super) other_systems: Vec<SystemId>,
    pub(super) major: PgMajor,
    pub(super) timeline: Timeline,
    pub(super) history: TimelineHistory,
    /// Backups on the way, the earliest first.
    pub(super) backups: Vec<ManifestFacts>,
    /// The one whose names are known at the beginning.
    pub(super) base: Option<BackupId>,
    /// Where it begins.
    pub(super) start: Lsn,
    /// The segments, those that are missing too.
    pub(super) segments: Vec<SegmentName>,
    pub(super) warnings: Vec<String>,
}

/// Where to begin and end.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Bounds {
    /// What happened before need not be told.
    pub(super) from: Option<Timestamp>,
    /// What happened after need not be told.
    pub(super) to: Option<Timestamp>,
    /// Begin with this backup.
    pub(super) backup: Option<BackupId>,
}

impl Route {
    /// Finds the way along a timeline; production's when none is named.
    pub(super) async fn open(
        ctx: &Context,
        cluster: &repo::Cluster,
        system: Option<SystemId>,
        timeline: Option<Timeline>,
        bounds: Bounds,
    ) -> Result<Self, EngineError> {
        let facts = ctx.or_cancel(cluster.known_facts()).await??;
        let current = facts.current().ok_or_else(|| {
            EngineError::not_found(
                format!("nothing is known of a server of cluster {}", cluster.name()),
                "run `pgkeep check` or `pgkeep backup` first",
            )
        })?;
        let entry = match system {
            None => current,
            Some(system) => facts.systems.iter().find(|entry| entry.system_id == system).ok_or_else(|| {
                let known: Vec<String> = facts.systems.iter().map(|entry| entry.system_id.to_string()).collect();
                let what = format!("cluster {} never had the system identifier {system}", cluster.name());
                EngineError::not_found(what, format!("it had {}", known.join(", ")))
            })?,
        };
        let timeline = timeline.unwrap_or(entry.production_timeline);
        let archive =
            ctx.or_cancel(WalArchive::load_sized(cluster, entry.system_id, segment_size_of(entry)?)).await??;
        let archive = ctx.or_cancel(archive.with_tails()).await??;
        let history = match archive.history_of(timeline) {
            Ok(history) => history,
            // Its own WAL can be read without its past.
            Err(_) if archive.timeline(timeline).is_some() => TimelineHistory::without_past(timeline),
            Err(error) => return Err(error),
        };
        let others = facts.systems.iter().map(|entry| entry.system_id).filter(|id| *id != entry.system_id);
        let mut route = Self {
            is_current: entry.system_id == current.system_id,
            is_production: timeline == entry.production_timeline,
            other_systems: others.collect(),
            major: major_of(&archive).await?,
            archive,
            timeline,
            history,
            backups: Vec::new(),
            base: None,
            start: Lsn::INVALID,
            segments: Vec::new(),
            warnings: Vec::new(),
        };
        route.load_backups(ctx, cluster).await?;
        route.lay(bounds)?;
        Ok(route)
    }

    async fn load_backups(&mut self, ctx: &Context, cluster: &repo::Cluster) -> Result<(), EngineError> {
        let ids = ctx.or_cancel(cluster.backups()).await??;
        let read = |id: BackupId| async move { (id, cluster.manifest_facts(id).await) };
        let mut reads = pin!(stream::iter(ids).map(read).buffered(READS_AT_ONCE));
        while let Some((id, facts)) = ctx.or_cancel(reads.next()).await? {
            match facts {
                Ok(facts) => {
                    let on_way = facts.system_id == self.archive.system_id()
                        && self.history.continues_from(facts.stop_lsn, facts.timeline);
                    if on_way {
                        self.backups.push(facts);
                    }
                }
                Err(error) if error.is_damage() || error.is_not_found() => {
                    self.warnings.push(format!("backup {id} cannot be used: {error}"));
                }
                Err(error) => return Err(error.into()),
            }
        }
        self.backups.sort_by_key(|backup| (backup.start_lsn, backup.backup));
        Ok(())
    }

    /// Lays the way down, segment by segment.
    fn lay(&mut self, bounds: Bounds) -> Result<(), EngineError> {
        let size = self.archive.segment_size();
        let at_or_before = |time: Timestamp| {
            self.backups.iter().rev().find(|backup| backup.stop_time.checked_add(DISORDER).is_ok_and(|t| t <= time))
        };
        let asked = bounds.backup.and_then(|id| self.backups.iter().find(|backup| backup.backup == id));
        let base = asked.or_else(|| bounds.from.and_then(at_or_before)).or(self.backups.first());
        self.base = base.map(|backup| backup.backup);
        let first = self.history.ancestry().into_iter().find_map(|span| {
            let first = self.archive.timeline(span.timeline)?.segments.first()?;
            let lsn = self.archive.segment_name(span.timeline, first).ok()?.start(size).ok()?;
            (span.end.is_none_or(|end| lsn < end)).then_some((lsn, span.timeline))
        });
        let last = self.history.ancestry().into_iter().filter_map(|span| {
            let last = self.archive.last_segment(span.timeline)?;
            let end = self.archive.segment_name(span.timeline, last).ok()?.end(size).ok()?;
            Some(span.end.map_or(end, |left| left.min(end)))
        });
        let last = last.max();
        // Expired WAL before the first backup is no hole.
        let begin = base.map(|backup| (backup.start_lsn, backup.timeline)).or(first);
        let (Some((start, start_timeline)), Some(mut end)) = (begin, last) else { return Ok(()) };
        if let Some(to) = bounds.to {
            let after = |backup: &&ManifestFacts| backup.started.checked_sub(DISORDER).is_ok_and(|time| time > to);
            if let Some(beyond) = self.backups.iter().find(after) {
                end = end.min(beyond.stop_lsn);
            }
        }
        self.start = start;
        if end > start {
            let way = self.archive.segments_for(start, start_timeline, end, self.timeline)?;
            self.segments = way.into_iter().map(|segment| segment.name).collect();
        }
        Ok(())
    }

    /// Where recovery cannot go through: segments that are missing from the archive, and times of `wal_level = minimal`.
    pub(super) fn missing(&self, walked: &Walked) -> Vec<Lsn> {
        let size = self.archive.segment_size();
        let holes = walked.holes.iter().map(|hole| hole.segment);
        let gone = holes
            .filter(|name| segno_of(*name, size).is_ok_and(|segno| !self.archive.has(name.timeline, segno)))
            .filter_map(|name| name.start(size).ok());
        gone.chain(walked.minimal.iter().copied()).collect()
    }

    /// The latest backup that was finished before a place, with no segment missing from it to there.
    pub(super) fn reaches(&self, lsn: Lsn, missing: &[Lsn]) -> Option<BackupId> {
        let size = self.archive.segment_size();
        let usable = self.backups.iter().filter(|backup| {
            let start = if backup.standalone { backup.stop_lsn } else { backup.start_lsn }.segment_start(size);
            backup.stop_lsn <= lsn && !missing.iter().any(|hole| (start..=lsn).contains(hole))
        });
        usable.max_by_key(|backup| (backup.stop_lsn, backup.backup)).map(|backup| backup.backup)
    }

    /// The names of a backup.
    pub(super) async fn load_names(
        &self,
        ctx: &Context,
        id: BackupId,
        mut each: impl FnMut(Vec<repo::manifest::NameEntry>),
    ) -> Result<(), EngineError> {
        let manifest = ctx.or_cancel(self.archive.cluster().open_manifest(id)).await??;
        let mut blocks = manifest.names();
        while let Some(entries) = ctx.or_cancel(blocks.next()).await?? {
            each(entries);
        }
        Ok(())
    }

    /// The names to begin with.
    pub(super) async fn base_names(&self, ctx: &Context) -> Result<super::names::Names, EngineError> {
        let mut names = super::names::Names::default();
        if let Some(base) = self.base {
            self.load_names(ctx, base, |entries| names.load(entries)).await?;
            if let Some(backup) = self.backups.iter().find(|backup| backup.backup == base) {
                (names.from, names.sure_from) = (backup.start_lsn, backup.stop_lsn);
            }
        }
        Ok(names)
    }
}
