//! WAL that no backup needs any more.
//!
//! The rule is one LSN for each system identifier, the floor: the smallest start LSN of all its backups that stay, finished
//! or not. Whatever recovery starts from one of them, along whatever timelines, reads only segments that end after its
//! start LSN. So segments of any timeline that end at or before the floor go; history files stay for ever. Of a system
//! without a backup nothing goes.

use super::survey::{Backups, list_all};
use crate::wal::archive::segment_size_of;
use crate::{Context, EngineError};
use pg_format::{Lsn, SystemId, WalFileName, WalSegmentSize};
use repo::{BackupId, Cluster, ClusterFacts};
use serde::Serialize;
use std::collections::{BTreeMap, BTreeSet};
use store::ObjectPath;

/// What goes of a system's WAL.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct WalPlan {
    /// The system identifier.
    pub system_id: SystemId,
    /// Segments of any timeline that end at or before it go.
    pub before: Lsn,
    /// How many segments and other files go.
    pub files: u64,
    /// Their size in the repository.
    pub bytes: u64,
}

/// WAL files that go, of one system.
#[derive(Debug, Clone, Default)]
pub(super) struct Doomed {
    /// In the order in which they go: the lowest of each timeline first, so that no hole comes to be.
    pub(super) objects: Vec<(ObjectPath, u64)>,
}

impl Doomed {
    pub(super) fn bytes(&self) -> u64 {
        self.objects.iter().map(|(_, bytes)| bytes).sum()
    }
}

/// The floor of each system that has backups; or why none can be said.
pub(super) fn floors(backups: &Backups, doomed: &BTreeSet<BackupId>) -> Result<BTreeMap<SystemId, Lsn>, String> {
    if let Some(why) = backups.unknown(doomed).next() {
        return Err(why);
    }
    let mut floors: BTreeMap<SystemId, Lsn> = BTreeMap::new();
    for (_, read) in backups.kept(doomed) {
        let floor = floors.entry(read.system_id).or_insert(read.start_lsn);
        *floor = read.start_lsn.min(*floor);
    }
    for (id, intent) in &backups.unfinished {
        let start = match intent {
            Ok(intent) => intent.start.as_ref(),
            Err(reason) => return Err(format!("the intent of unfinished backup {id} cannot be read: {reason}")),
        };
        let start = start.ok_or_else(|| format!("unfinished backup {id} does not say where it began"))?;
        if let Some(floor) = floors.get_mut(&start.system_id) {
            *floor = start.start_lsn.min(*floor);
        }
    }
    Ok(floors)
}

/// The segment size of each system, and the floors of those systems that the catalogue knows.
pub(super) fn known_sizes(facts: &ClusterFacts) -> Result<BTreeMap<SystemId, WalSegmentSize>, EngineError> {
    facts.systems.iter().map(|entry| Ok((entry.system_id, segment_size_of(entry)?))).collect()
}

/// Lists what lies below a floor.
pub(super) async fn below(
    ctx: &Context,
    cluster: &Cluster,
    system: SystemId,
    floor: Lsn,
    size: WalSegmentSize,
) -> Result<Doomed, EngineError> {
    let mut doomed = Doomed::default();
    list_all(ctx, cluster, &cluster.name().wal_system_prefix(system), |object| {
        let Ok(name) = object.path.name().parse::<WalFileName>() else { return };
        let Some(segment) = name.segment().filter(|_| !matches!(name, WalFileName::History(_))) else { return };
        if segment.end(size).is_ok_and(|end| end <= floor) {
            doomed.objects.push((object.path.clone(), object.size));
        }
    })
    .await?;
    Ok(doomed)
}
