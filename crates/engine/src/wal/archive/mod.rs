//! What WAL of a cluster the repository has: one listing, kept as ranges, and questions to it.
//!
//! Which segment holds what follows PostgreSQL: `XLogFileReadAnyTLI` in
//! `src/backend/access/transam/xlogrecovery.c` and `timeline.c` beside it. Where a timeline begins in the middle of a
//! segment, that segment exists on both timelines, and the new one's copy is read (it begins with the old one's bytes).

mod route;
mod search;
mod set;
mod tails;

pub use route::NeededSegment;
pub(crate) use search::segno_of;
pub use search::{FoundRestorePoint, RecoverableWindow, TransactionEnd};
pub use set::{SegmentRange, SegmentSet};
pub use tails::TailStatus;

use crate::EngineError;
use futures::{StreamExt, TryStreamExt, stream};
use pg_format::{Lsn, SegmentName, SystemId, Timeline, TimelineHistory, WalFileName, WalSegmentSize, XLogSegNo};
use repo::wal::{WalFacts, WalObject, read_wal_file};
use std::collections::{BTreeMap, BTreeSet};
use store::ObjectPath;

/// Objects asked for in one listing request.
const LIST_PAGE: usize = 10_000;
/// Small objects read at the same time.
const READS_AT_ONCE: usize = 16;

/// The WAL of one system identifier, as the repository has it.
#[derive(Debug, Clone)]
pub struct WalArchive {
    cluster: repo::Cluster,
    system_id: SystemId,
    segment_size: WalSegmentSize,
    timelines: BTreeMap<Timeline, TimelineWal>,
    /// Segments of which there is a tail only, counted as there, and how many bytes they have.
    tails: BTreeMap<(Timeline, XLogSegNo), TailStatus>,
}

/// The WAL of one timeline.
#[derive(Debug, Clone, Default)]
pub struct TimelineWal {
    /// The whole segments.
    pub segments: SegmentSet,
    /// The segments of which there is a `.partial` file.
    pub partials: BTreeSet<XLogSegNo>,
    /// Backup history files: segment, and offset in it of the backup's start.
    pub backups: Vec<(SegmentName, u32)>,
    /// The timeline's past, when its history file is there; the error's text when it is damaged.
    pub history: Option<Result<TimelineHistory, String>>,
    /// What the objects take in the repository, in bytes.
    pub stored_bytes: u64,
}

impl WalArchive {
    /// Lists the WAL of a system identifier. The segment size is the one the catalogue has for it.
    pub async fn load(cluster: &repo::Cluster, system_id: SystemId) -> Result<Self, EngineError> {
        let facts = cluster.known_facts().await?;
        let entry = facts.systems.iter().find(|entry| entry.system_id == system_id).ok_or_else(|| {
            EngineError::not_found(
                format!("system identifier {system_id} is not one of cluster {}", cluster.name()),
                "see `pgkeep status` for the identifiers this cluster has had",
            )
        })?;
        Self::load_sized(cluster, system_id, segment_size_of(entry)?).await
    }

    /// As [`load`](Self::load), for who knows the segment size: saves the request for the catalogue.
    pub async fn load_sized(
        cluster: &repo::Cluster,
        system_id: SystemId,
        segment_size: WalSegmentSize,
    ) -> Result<Self, EngineError> {
        let (timelines, tails) = (BTreeMap::new(), BTreeMap::new());
        let mut archive = Self { cluster: cluster.clone(), system_id, segment_size, timelines, tails };
        let store = cluster.repository().store();
        let prefix = cluster.name().wal_system_prefix(system_id);
        let mut after: Option<ObjectPath> = None;
        loop {
            let page =
                store.list_page(Some(&prefix), after.as_ref(), LIST_PAGE).await.map_err(repo::RepoError::from)?;
            for object in &page {
                archive.note(object.path.name(), object.size);
            }
            if page.len() < LIST_PAGE {
                break;
            }
            after = page.last().map(|object| object.path.clone());
        }
        archive.read_histories().await?;
        Ok(archive)
    }

    /// Notes a listed object; what is not WAL is left alone.
    fn note(&mut self, name: &str, size: u64) {
        let Ok(name) = name.parse::<WalFileName>() else { return };
        let Some(segno) = name.segment().map_or(Some(XLogSegNo(0)), |segment| segment.segno(self.segment_size).ok())
        else {
            return;
        };
        let timeline = self.timelines.entry(name.timeline()).or_default();
        timeline.stored_bytes += size;
        match name {
            WalFileName::Segment(_) => timeline.segments.insert(segno),
            WalFileName::Partial(_) => drop(timeline.partials.insert(segno)),
            WalFileName::BackupHistory(segment, offset) => timeline.backups.push((segment, offset)),
            // Read later; until then noted as there.
            WalFileName::History(tli) => timeline.history = Some(Ok(TimelineHistory::without_past(tli))),
        }
    }

    async fn read_histories(&mut self) -> Result<(), EngineError> {
        let wanted: Vec<Timeline> =
            self.timelines.iter().filter(|(_, wal)| wal.history.is_some()).map(|(tli, _)| *tli).collect();
        let repository = self.cluster.repository().clone();
        let read = |tli: Timeline| {
            let (repository, path) = (repository.clone(), self.cluster.name().history(self.system_id, tli));
            async move {
                match read_wal_file(&**repository.store(), repository.keys(), &path).await {
                    Ok(bytes) => Ok((tli, Some(parse_history(tli, &bytes)))),
                    Err(error) if error.is_damage() => Ok((tli, Some(Err(error.to_string())))),
                    Err(error) if error.is_not_found() => Ok((tli, None)),
                    Err(error) => Err(EngineError::from(error)),
                }
            }
        };
        let histories: Vec<_> =
            stream::iter(wanted.into_iter().map(read)).buffered(READS_AT_ONCE).try_collect().await?;
        for (tli, history) in histories {
            self.timelines.entry(tli).or_default().history = history;
        }
        Ok(())
    }

    /// The cluster in the repository.
    pub fn cluster(&self) -> &repo::Cluster {
        &self.cluster
    }

    /// The system identifier whose WAL this is.
    pub fn system_id(&self) -> SystemId {
        self.system_id
    }

    /// The size of its segments.
    pub fn segment_size(&self) -> WalSegmentSize {
        self.segment_size
    }

    /// The timelines of which anything is there, ascending.
    pub fn timelines(&self) -> impl Iterator<Item = (Timeline, &TimelineWal)> {
        self.timelines.iter().map(|(tli, wal)| (*tli, wal))
    }

    /// One timeline's WAL, when anything of it is there.
    pub fn timeline(&self, timeline: Timeline) -> Option<&TimelineWal> {
        self.timelines.get(&timeline)
    }

    /// Whether the whole segment is there.
    pub fn has(&self, timeline: Timeline, segno: XLogSegNo) -> bool {
        self.timeline(timeline).is_some_and(|wal| wal.segments.contains(segno))
    }

    /// The unbroken ranges of a timeline's segments, ascending.
    pub fn ranges(&self, timeline: Timeline) -> &[SegmentRange] {
        self.timeline(timeline).map_or(&[], |wal| wal.segments.ranges())
    }

    /// What is missing of a timeline: between its segments, and at its beginning, when the WAL it grew out of is
    /// there up to the place where it began.
    pub fn gaps(&self, timeline: Timeline) -> Vec<SegmentRange> {
        let Some(wal) = self.timeline(timeline) else { return Vec::new() };
        let leading = wal.segments.first().and_then(|first| {
            let history = self.history_of(timeline).ok()?;
            let left = history.switches.last()?;
            let begin = left.lsn.segment_no(self.segment_size);
            let last = XLogSegNo(first.0.checked_sub(1)?);
            // The parent's WAL may have been expired with its backups; then nothing is missing.
            let parent_reaches = self.has(left.timeline, begin)
                || begin.0.checked_sub(1).is_some_and(|n| self.has(left.timeline, XLogSegNo(n)));
            (begin <= last && parent_reaches).then_some(SegmentRange { first: begin, last })
        });
        leading.into_iter().chain(wal.segments.gaps()).collect()
    }

    /// The last whole segment of a timeline.
    pub fn last_segment(&self, timeline: Timeline) -> Option<XLogSegNo> {
        self.timeline(timeline).and_then(|wal| wal.segments.last())
    }

    /// The name of a segment.
    pub fn segment_name(&self, timeline: Timeline, segno: XLogSegNo) -> Result<SegmentName, EngineError> {
        SegmentName::new(timeline, segno, self.segment_size).ok_or_else(|| EngineError::Refused {
            reason: format!("segment {segno} lies beyond the last LSN there can be"),
            hint: None,
        })
    }

    /// Where a segment lies in the repository.
    pub fn segment_path(&self, name: SegmentName) -> Result<ObjectPath, EngineError> {
        Ok(self.cluster.name().wal_file(self.system_id, name.timeline, &name.to_string())?)
    }

    /// A timeline's past. Timeline 1 has none; another one's history file must be there.
    pub fn history_of(&self, timeline: Timeline) -> Result<TimelineHistory, EngineError> {
        match self.timeline(timeline).and_then(|wal| wal.history.as_ref()) {
            Some(Ok(history)) => Ok(history.clone()),
            Some(Err(reason)) => Err(EngineError::failed(
                format!("the history file of timeline {timeline} cannot be used: {reason}"),
                "push it again from the server's pg_wal, after removing the damaged object",
            )),
            None if timeline == Timeline::FIRST => Ok(TimelineHistory::without_past(timeline)),
            None => Err(EngineError::not_found(
                format!("timeline {timeline} has no history file in the archive of cluster {}", self.cluster.name()),
                format!("if a server has it, push it: `pgkeep wal push pg_wal/{}`", WalFileName::History(timeline)),
            )),
        }
    }

    /// The timelines that grew out of this one directly, with the LSN where they did.
    pub fn children_of(&self, timeline: Timeline) -> Vec<(Timeline, Lsn)> {
        let child = |(tli, wal): (Timeline, &TimelineWal)| {
            let last = wal.history.as_ref()?.as_ref().ok()?.switches.last()?;
            (last.timeline == timeline).then_some((tli, last.lsn))
        };
        self.timelines().filter_map(child).collect()
    }

    /// The facts of one segment, read from the repository.
    pub async fn facts(&self, timeline: Timeline, segno: XLogSegNo) -> Result<WalFacts, EngineError> {
        if let Some(facts) = self.tail_facts(timeline, segno).await? {
            return Ok(facts);
        }
        let path = self.segment_path(self.segment_name(timeline, segno)?)?;
        let repository = self.cluster.repository();
        let object = WalObject::open(repository.store().clone(), repository.keys(), path).await?;
        Ok(object.facts().await?)
    }
}

/// The segment size in the catalogue.
pub(crate) fn segment_size_of(entry: &repo::SystemEntry) -> Result<WalSegmentSize, EngineError> {
    u32::try_from(entry.wal_segment_size).ok().and_then(|bytes| WalSegmentSize::new(bytes).ok()).ok_or_else(|| {
        EngineError::Failed {
            reason: format!(
                "the repository notes the WAL segment size {} for system identifier {}, which cannot be",
                entry.wal_segment_size, entry.system_id
            ),
            hint: None,
        }
    })
}

fn parse_history(timeline: Timeline, bytes: &[u8]) -> Result<TimelineHistory, String> {
    // The reasons in it may be in any encoding; only numbers count.
    TimelineHistory::parse(timeline, &String::from_utf8_lossy(bytes)).map_err(|error| error.to_string())
}
