//! WAL that no backup needs any more.
//!
//! The rule is one LSN for each system identifier, the floor: the smallest start LSN of all its backups that stay, finished
//! or not. Whatever recovery starts from one of them, along whatever timelines, reads only segments that end after its
//! start LSN. So segments that end at or before the floor go, with their indexes: those of the timelines that the backups
//! are on and of the timelines that these grew out of, and those of timelines that production left behind. On others, such
//! as production's own before its first backup, one may still begin below the floor. History files stay for ever. Of a
//! system without a backup nothing goes.

use super::survey::{Backups, list_all};
use crate::wal::archive::segment_size_of;
use crate::{Context, EngineError};
use pg_format::{Lsn, SegmentName, SystemId, Timeline, TimelineHistory, WalFileName, WalSegmentSize};
use repo::wal::read_wal_file;
use repo::{BackupId, Cluster, ClusterFacts, RepoError};
use serde::Serialize;
use std::collections::{BTreeMap, BTreeSet};
use store::ObjectPath;

/// What goes of a timeline's WAL.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct WalPlan {
    /// The system identifier.
    pub system_id: SystemId,
    /// The timeline.
    pub timeline: Timeline,
    /// Segments that end at or before it go.
    pub before: Lsn,
    /// How many segments and other files go.
    pub files: u64,
    /// Their size in the repository.
    pub bytes: u64,
}

/// WAL files that go, of one timeline.
#[derive(Debug, Clone, Default)]
pub(super) struct Doomed {
    /// In the order in which they go: the lowest first.
    pub(super) objects: Vec<(ObjectPath, u64)>,
}

impl Doomed {
    pub(super) fn bytes(&self) -> u64 {
        self.objects.iter().map(|(_, bytes)| bytes).sum()
    }
}

/// The floor of each timeline that has one.
pub(super) type Floors = BTreeMap<(SystemId, Timeline), Lsn>;

/// How the timelines of a system came about.
#[derive(Debug, Clone)]
pub(super) struct Lines {
    pub(super) segment_size: WalSegmentSize,
    production: Timeline,
    /// Those of which there is WAL.
    there: BTreeSet<Timeline>,
    /// A timeline and those that it grew out of; absent where that is not known.
    lineage: BTreeMap<Timeline, BTreeSet<Timeline>>,
}

/// Reads how the timelines came about that backups and production are on.
pub(super) async fn read_lines(
    ctx: &Context,
    cluster: &Cluster,
    facts: &ClusterFacts,
    backups: &Backups,
) -> Result<BTreeMap<SystemId, Lines>, EngineError> {
    let store = cluster.repository().store();
    let mut all = BTreeMap::new();
    for entry in &facts.systems {
        let system = entry.system_id;
        let prefix = cluster.name().wal_system_prefix(system);
        let listing = ctx.or_cancel(store.list_level(Some(&prefix))).await?.map_err(RepoError::from)?;
        let number = |name: &str| (name.len() == 8).then(|| u32::from_str_radix(name, 16).ok()).flatten();
        let there = listing.prefixes.iter().filter_map(|prefix| number(prefix.name()).map(Timeline)).collect();
        let mut wanted: BTreeSet<Timeline> = backups.timelines(system).collect();
        wanted.insert(entry.production_timeline);
        let mut lineage = BTreeMap::new();
        for timeline in wanted {
            if let Some(line) = ctx.or_cancel(read_line(cluster, system, timeline)).await?? {
                lineage.insert(timeline, line);
            }
        }
        let (segment_size, production) = (segment_size_of(entry)?, entry.production_timeline);
        all.insert(system, Lines { segment_size, production, there, lineage });
    }
    Ok(all)
}

/// A timeline and those it grew out of; `None` when its history cannot be read.
async fn read_line(
    cluster: &Cluster,
    system: SystemId,
    timeline: Timeline,
) -> Result<Option<BTreeSet<Timeline>>, EngineError> {
    if timeline == Timeline::FIRST {
        return Ok(Some(BTreeSet::from([timeline])));
    }
    let repository = cluster.repository();
    let path = cluster.name().history(system, timeline);
    match read_wal_file(&**repository.store(), repository.keys(), &path).await {
        Ok(bytes) => {
            let history = TimelineHistory::parse(timeline, &String::from_utf8_lossy(&bytes)).ok();
            let grown = |history: TimelineHistory| history.switches.into_iter().map(|switch| switch.timeline);
            Ok(history.map(|history| grown(history).chain([timeline]).collect()))
        }
        Err(error) if error.is_not_found() || error.is_damage() => Ok(None),
        Err(error) => Err(error.into()),
    }
}

impl Lines {
    /// The timelines of which WAL below the floor goes. `kept` are those of the backups that stay.
    fn with_floor(&self, kept: impl Iterator<Item = Timeline>) -> BTreeSet<Timeline> {
        let mut lines = BTreeSet::new();
        for timeline in kept {
            lines.insert(timeline);
            lines.extend(self.lineage.get(&timeline).into_iter().flatten());
        }
        let left = |timeline: &Timeline| {
            let alive = self.lineage.get(&self.production);
            *timeline < self.production && alive.is_some_and(|alive| !alive.contains(timeline))
        };
        self.there.iter().filter(|timeline| lines.contains(timeline) || left(timeline)).copied().collect()
    }
}

/// The floors; or why none can be said.
pub(super) fn floors(
    backups: &Backups,
    doomed: &BTreeSet<BackupId>,
    lines: &BTreeMap<SystemId, Lines>,
) -> Result<Floors, String> {
    if let Some(why) = backups.unknown(doomed).next() {
        return Err(why);
    }
    let mut starts: BTreeMap<SystemId, Lsn> = BTreeMap::new();
    for (_, read) in backups.kept(doomed) {
        let start = starts.entry(read.system_id).or_insert(read.start_lsn);
        *start = read.start_lsn.min(*start);
    }
    for (id, intent) in &backups.unfinished {
        let start = match intent {
            Ok(intent) => intent.start.as_ref(),
            Err(reason) => return Err(format!("the intent of unfinished backup {id} cannot be read: {reason}")),
        };
        let start = start.ok_or_else(|| format!("unfinished backup {id} does not say where it began"))?;
        if let Some(lowest) = starts.get_mut(&start.system_id) {
            *lowest = start.start_lsn.min(*lowest);
        }
    }
    let mut floors = Floors::new();
    for (&system, lines) in lines {
        let Some(&floor) = starts.get(&system) else { continue };
        let kept = backups.kept(doomed).filter(|(_, read)| read.system_id == system).map(|(_, read)| read.timeline);
        floors.extend(lines.with_floor(kept).into_iter().map(|timeline| ((system, timeline), floor)));
    }
    Ok(floors)
}

/// Lists what lies below the floor of a timeline.
pub(super) async fn below(
    ctx: &Context,
    cluster: &Cluster,
    (system, timeline): (SystemId, Timeline),
    floor: Lsn,
    size: WalSegmentSize,
) -> Result<Doomed, EngineError> {
    let mut doomed = Doomed::default();
    list_all(ctx, cluster, &cluster.name().wal_timeline_prefix(system, timeline), |object| {
        let Ok(name) = object.path.name().parse::<WalFileName>() else { return };
        let Some(segment) = name.segment().filter(|_| !matches!(name, WalFileName::History(_))) else { return };
        if segment.end(size).is_ok_and(|end| end <= floor) {
            doomed.objects.push((object.path.clone(), object.size));
        }
    })
    .await?;
    // Pieces of segments that never became whole, or are leftovers.
    list_all(ctx, cluster, &cluster.name().tails_timeline_prefix(system, timeline), |object| {
        let segment = object.path.as_str().rsplit('/').nth(1).and_then(|name| name.parse::<SegmentName>().ok());
        if segment.and_then(|segment| segment.end(size).ok()).is_some_and(|end| end <= floor) {
            doomed.objects.push((object.path.clone(), object.size));
        }
    })
    .await?;
    // Indexes of segments, one by one or many in one object: docs/format.md section 1.
    let prefix = cluster.name().wal_index_prefix(system, timeline);
    list_all(ctx, cluster, &prefix, |object| {
        if index_end(object.path.name(), size).is_some_and(|end| end <= floor) {
            doomed.objects.push((object.path.clone(), object.size));
        }
    })
    .await?;
    Ok(doomed)
}

/// Where the WAL ends that an index is of: `SEGMENT`, or `SEGMENT.COUNT` for so many.
fn index_end(name: &str, size: WalSegmentSize) -> Option<Lsn> {
    let (segment, count) = match name.split_once('.') {
        Some((segment, count)) => (segment, count.parse().ok().filter(|count| *count > 0)?),
        None => (name, 1u64),
    };
    let start = segment.parse::<SegmentName>().ok()?.start(size).ok()?;
    Some(Lsn(start.0.checked_add(count.checked_mul(size.bytes())?)?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn indexes_say_where_their_wal_ends() {
        let size = WalSegmentSize::new(16 << 20).expect("a size there is");
        for (name, expect) in [
            ("000000010000000000000003", Some(4 << 24)),
            ("000000010000000000000003.4", Some(7 << 24)),
            ("000000010000000000000003.0", None),
            ("000000010000000000000003.partial", None),
            ("00000001000000000000000", None),
            ("0000000100000000000000FF.1", Some(256 << 24)),
            ("000000010000000000000003.18446744073709551615", None),
        ] {
            assert_eq!(index_end(name, size), expect.map(Lsn), "{name}");
        }
    }
}
