//! Garbage: what was deleted, and which packs nothing refers to any more, since when (docs/format.md sections 11, 13).
//!
//! Also what reaches a pack: the one rule that decides whether a pack may be deleted. It is applied by the engine, which
//! lists, asks and deletes.

use crate::names::numbered;
use crate::numbered::{append, get_json, numbers};
use crate::seal::Kind;
use crate::{BackupId, Cluster, Intent, PackId, RepoError};
use jiff::Timestamp;
use pg_format::{Lsn, SystemId, Timeline};
use serde::{Deserialize, Serialize};
use std::collections::{BTreeMap, BTreeSet};

/// Packs that one garbage object may name; more is taken for damage.
const PACKS_MAX: u64 = 20_000_000;

/// What is noted of a cluster's deletions.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Garbage {
    /// Backups that are deleted or being deleted.
    pub deleted: BTreeMap<BackupId, Deleted>,
    /// Packs that no manifest refers to, with the time since when.
    pub unreferenced: BTreeMap<PackId, Timestamp>,
    /// WAL of a timeline that ends at or before it is not kept.
    pub wal_floors: BTreeMap<(SystemId, Timeline), Lsn>,
}

/// A backup that is deleted or being deleted.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Deleted {
    /// Since when.
    pub at: Timestamp,
    /// All packs that it used; `None` when its manifest could not be read.
    pub packs: Option<BTreeSet<PackId>>,
}

/// The newest garbage object of a cluster.
#[derive(Debug)]
pub struct GarbageObject {
    /// Its number; `None` before the first.
    pub number: Option<u32>,
    /// What it says; nothing when it is damaged.
    pub garbage: Garbage,
    /// What is wrong with it.
    pub damage: Option<RepoError>,
}

/// Numbers of packs by the backup that wrote them, as ranges.
type Ranges = BTreeMap<BackupId, Vec<(u32, u32)>>;

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct GarbageJson {
    written: Timestamp,
    deleted: Vec<DeletedJson>,
    unreferenced: Vec<UnreferencedJson>,
    wal_floors: Vec<WalFloorJson>,
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct DeletedJson {
    backup: BackupId,
    at: Timestamp,
    packs: Option<Ranges>,
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct UnreferencedJson {
    since: Timestamp,
    packs: Ranges,
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct WalFloorJson {
    system_id: SystemId,
    timeline: Timeline,
    lsn: Lsn,
}

fn to_ranges<'a>(packs: impl Iterator<Item = &'a PackId>) -> Ranges {
    let mut ranges = Ranges::new();
    for pack in packs {
        let of_backup = ranges.entry(pack.backup).or_default();
        match of_backup.last_mut() {
            Some((_, last)) if last.checked_add(1) == Some(pack.number) => *last = pack.number,
            _ => of_backup.push((pack.number, pack.number)),
        }
    }
    ranges
}

fn from_ranges(ranges: &Ranges, budget: &mut u64) -> Result<Vec<PackId>, String> {
    let mut packs = Vec::new();
    for (&backup, of_backup) in ranges {
        for &(first, last) in of_backup {
            let count = u64::from(last.checked_sub(first).ok_or("a range of packs ends before it begins")?) + 1;
            *budget = budget.checked_sub(count).ok_or_else(|| format!("names more than {PACKS_MAX} packs"))?;
            packs.extend((first..=last).map(|number| PackId { backup, number }));
        }
    }
    Ok(packs)
}

impl Garbage {
    fn to_json(&self, written: Timestamp) -> GarbageJson {
        let mut since: BTreeMap<Timestamp, BTreeSet<PackId>> = BTreeMap::new();
        for (&pack, &time) in &self.unreferenced {
            since.entry(time).or_default().insert(pack);
        }
        let deleted = self.deleted.iter().map(|(&backup, deleted)| DeletedJson {
            backup,
            at: deleted.at,
            packs: deleted.packs.as_ref().map(|packs| to_ranges(packs.iter())),
        });
        let unreferenced =
            since.into_iter().map(|(since, packs)| UnreferencedJson { since, packs: to_ranges(packs.iter()) });
        let floors = self.wal_floors.iter();
        let floors = floors.map(|(&(system_id, timeline), &lsn)| WalFloorJson { system_id, timeline, lsn });
        GarbageJson {
            written,
            deleted: deleted.collect(),
            unreferenced: unreferenced.collect(),
            wal_floors: floors.collect(),
        }
    }

    fn from_json(json: &GarbageJson) -> Result<Self, String> {
        let mut budget = PACKS_MAX;
        let mut garbage = Self::default();
        for deleted in &json.deleted {
            let packs = deleted.packs.as_ref().map(|ranges| from_ranges(ranges, &mut budget)).transpose()?;
            let packs = packs.map(|packs| packs.into_iter().collect());
            garbage.deleted.insert(deleted.backup, Deleted { at: deleted.at, packs });
        }
        for group in &json.unreferenced {
            let packs = from_ranges(&group.packs, &mut budget)?;
            garbage.unreferenced.extend(packs.into_iter().map(|pack| (pack, group.since)));
        }
        garbage.wal_floors =
            json.wal_floors.iter().map(|floor| ((floor.system_id, floor.timeline), floor.lsn)).collect();
        Ok(garbage)
    }
}

impl Cluster {
    /// The newest garbage object. One that is damaged is said, and read as empty: what it noted is found again, only the
    /// times are lost.
    pub async fn garbage(&self) -> Result<GarbageObject, RepoError> {
        let (store, keys) = (self.repository().store(), self.repository().keys());
        let prefix = self.name().garbage_prefix();
        for _ in 0..5 {
            let Some(&number) = numbers(&**store, &prefix).await?.last() else {
                return Ok(GarbageObject { number: None, garbage: Garbage::default(), damage: None });
            };
            let name = numbered(&prefix, number);
            let read = get_json::<GarbageJson>(&**store, keys, Kind::Garbage, &name).await;
            let read = read.and_then(|json| Garbage::from_json(&json).map_err(|e| RepoError::damaged(&name, e)));
            let number = Some(number);
            match read {
                Ok(garbage) => return Ok(GarbageObject { number, garbage, damage: None }),
                Err(error @ RepoError::TooNew { .. }) => return Err(error),
                Err(error) if error.is_damage() => {
                    return Ok(GarbageObject { number, garbage: Garbage::default(), damage: Some(error) });
                }
                // A newer one came, and this one was cleared away.
                Err(error) if error.is_not_found() => {}
                Err(error) => return Err(error),
            }
        }
        Err(RepoError::Conflict { path: prefix })
    }

    /// Writes the garbage object after `previous` and gives its number. Somebody else's in between is an error: only one
    /// deletes at a time.
    pub async fn put_garbage(
        &self,
        previous: Option<u32>,
        garbage: &Garbage,
        now: Timestamp,
    ) -> Result<u32, RepoError> {
        let (store, keys) = (self.repository().store(), self.repository().keys());
        let prefix = self.name().garbage_prefix();
        let json = garbage.to_json(now);
        match append(&**store, keys, Kind::Garbage, &prefix, previous, &json).await? {
            Some(number) => Ok(number),
            None => Err(RepoError::Conflict { path: numbered(&prefix, previous.unwrap_or(0) + 1) }),
        }
    }

    /// The LSN below which WAL of this timeline is not kept any more, when some was expired. A backup that begins on it
    /// asks after its intent is there, and must not begin before.
    pub async fn wal_floor(&self, system_id: SystemId, timeline: Timeline) -> Result<Option<Lsn>, RepoError> {
        Ok(self.garbage().await?.garbage.wal_floors.get(&(system_id, timeline)).copied())
    }
}

/// What reaches packs.
#[derive(Debug, Clone, Default)]
pub struct Roots {
    /// Packs that manifests refer to, and those of deleted priors of running backups.
    pub packs: BTreeSet<PackId>,
    /// Backups all of whose own packs are reached.
    pub writers: BTreeSet<BackupId>,
    /// Why every pack is reached: something that reaches packs cannot be read.
    pub all_because: Vec<String>,
}

impl Roots {
    /// Whether a pack must stay.
    pub fn reach(&self, pack: PackId) -> bool {
        !self.all_because.is_empty() || self.writers.contains(&pack.backup) || self.packs.contains(&pack)
    }

    /// Adds what the intent of a backup without a manifest reaches. `is_there` says whether a backup has a manifest (whose
    /// packs are added apart from this) or an intent of its own.
    pub fn add_intent(&mut self, intent: &Intent, garbage: &Garbage, is_there: impl Fn(BackupId) -> bool) {
        self.writers.insert(intent.backup);
        for &prior in &intent.priors {
            self.writers.insert(prior);
            match garbage.deleted.get(&prior) {
                Some(Deleted { packs: Some(packs), .. }) => self.packs.extend(packs),
                _ if is_there(prior) => {}
                _ => self.all_because.push(format!(
                    "backup {} is unfinished and builds on {prior}, of which nothing is left that says what it used",
                    intent.backup
                )),
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Keyring, Repository};
    use proptest::prelude::*;
    use std::sync::Arc;
    use store::{MemoryStore, ObjectPath, Store};

    fn id(second: i64) -> BackupId {
        BackupId::at(Timestamp::from_second(1_800_000_000 + second).unwrap())
    }

    fn pack(second: i64, number: u32) -> PackId {
        PackId { backup: id(second), number }
    }

    fn at(second: i64) -> Timestamp {
        Timestamp::from_second(1_800_000_000 + second).unwrap()
    }

    fn example() -> Garbage {
        Garbage {
            deleted: BTreeMap::from([
                (id(1), Deleted { at: at(50), packs: Some([pack(0, 3), pack(1, 1), pack(1, 2)].into()) }),
                (id(2), Deleted { at: at(50), packs: None }),
            ]),
            unreferenced: BTreeMap::from([(pack(1, 1), at(50)), (pack(1, 2), at(50)), (pack(0, 9), at(20))]),
            wal_floors: BTreeMap::from([((SystemId(7), Timeline(2)), Lsn(0x300_0028))]),
        }
    }

    async fn cluster() -> (Arc<dyn Store>, Cluster) {
        let store: Arc<dyn Store> = Arc::new(MemoryStore::new());
        let repository = Repository::create(store.clone(), None, "test", at(0)).await.unwrap();
        (store, repository.cluster(&"main".parse().unwrap()))
    }

    #[tokio::test]
    async fn the_newest_object_counts_and_nobody_writes_in_between() {
        let (store, cluster) = cluster().await;
        assert_eq!(cluster.garbage().await.unwrap().number, None);
        assert_eq!(cluster.wal_floor(SystemId(7), Timeline(2)).await.unwrap(), None);
        let first = cluster.put_garbage(None, &Garbage::default(), at(1)).await.unwrap();
        let second = cluster.put_garbage(Some(first), &example(), at(2)).await.unwrap();
        let error = cluster.put_garbage(Some(first), &Garbage::default(), at(3)).await.unwrap_err();
        assert!(matches!(error, RepoError::Conflict { .. }), "{error}");
        let found = cluster.garbage().await.unwrap();
        assert_eq!((found.number, found.garbage), (Some(second), example()));
        assert_eq!(cluster.wal_floor(SystemId(7), Timeline(2)).await.unwrap(), Some(Lsn(0x300_0028)));
        assert_eq!(cluster.wal_floor(SystemId(7), Timeline(1)).await.unwrap(), None);
        let mut previous = second;
        for _ in 0..10 {
            previous = cluster.put_garbage(Some(previous), &example(), at(2)).await.unwrap();
        }
        let kept = store.list_level(Some(&cluster.name().garbage_prefix())).await.unwrap().objects.len();
        assert_eq!(kept, 3, "old ones are cleared away");
    }

    #[tokio::test]
    async fn a_damaged_object_is_said_and_followed_by_a_whole_one() {
        let (store, cluster) = cluster().await;
        let path = ObjectPath::new("clusters/main/garbage/000007").unwrap();
        store.put(&path, vec![0u8; 100].into()).await.unwrap();
        let found = cluster.garbage().await.unwrap();
        assert!(found.damage.is_some() && found.garbage == Garbage::default());
        assert_eq!(cluster.put_garbage(found.number, &example(), at(1)).await.unwrap(), 8);
        assert_eq!(cluster.garbage().await.unwrap().garbage, example());
    }

    #[test]
    fn ranges_that_cannot_be_are_damage() {
        let json = |packs: &str| {
            let text = format!(
                r#"{{"written":"2026-11-20T00:00:00Z","deleted":[],"wal_floors":[],
                    "unreferenced":[{{"since":"2026-11-20T00:00:00Z","packs":{{"20261120T200910Z":{packs}}}}}]}}"#
            );
            Garbage::from_json(&serde_json::from_str(&text).unwrap())
        };
        assert_eq!(json("[[1,3],[7,7]]").unwrap().unreferenced.len(), 4);
        assert!(json("[[3,1]]").unwrap_err().contains("ends before"));
        assert!(json("[[0,4294967295]]").unwrap_err().contains("more than"), "does not fill the memory");
    }

    #[test]
    fn what_an_intent_reaches() {
        let intent = |priors: &[BackupId]| Intent {
            backup: id(9),
            priors: priors.to_vec(),
            host: "h".into(),
            pid: 1,
            started: at(9),
            start: None,
        };
        let roots = |priors: &[BackupId], there: &[BackupId]| {
            let mut roots = Roots::default();
            roots.add_intent(&intent(priors), &example(), |id| there.contains(&id));
            roots
        };
        let alone = roots(&[], &[]);
        assert!(alone.reach(pack(9, 1)) && !alone.reach(pack(0, 3)));
        let on_deleted = roots(&[id(1)], &[]);
        assert!(on_deleted.reach(pack(0, 3)) && on_deleted.reach(pack(1, 77)) && !on_deleted.reach(pack(0, 4)));
        assert!(roots(&[id(2)], &[]).reach(pack(0, 4)), "what it used is not known");
        assert!(roots(&[id(5)], &[]).reach(pack(0, 4)), "nothing is known of it");
        let there = roots(&[id(5)], &[id(5)]);
        assert!(there.reach(pack(5, 1)) && !there.reach(pack(0, 4)));
    }

    proptest! {
        #[test]
        fn garbage_round_trips(
            packs in proptest::collection::btree_map((0i64..5, 0u32..60), 0i64..4, 0..80),
            used in proptest::collection::btree_set((0i64..5, 0u32..60), 0..80),
        ) {
            let garbage = Garbage {
                deleted: BTreeMap::from([(
                    id(3),
                    Deleted { at: at(1), packs: Some(used.into_iter().map(|(b, n)| pack(b, n)).collect()) },
                )]),
                unreferenced: packs.into_iter().map(|((b, n), t)| (pack(b, n), at(t))).collect(),
                wal_floors: BTreeMap::new(),
            };
            let text = serde_json::to_string(&garbage.to_json(at(5))).unwrap();
            prop_assert_eq!(Garbage::from_json(&serde_json::from_str(&text).unwrap()).unwrap(), garbage);
        }
    }

    #[tokio::test]
    async fn it_is_sealed_under_its_own_kind() {
        let (store, cluster) = cluster().await;
        cluster.put_garbage(None, &example(), at(1)).await.unwrap();
        let name = numbered(&cluster.name().garbage_prefix(), 1);
        let object = store.get(&name, 10_000).await.unwrap();
        assert_eq!(object[8], 12);
        assert!(crate::seal::open_whole(&Keyring::plain(), Kind::Lease, &name, &object).is_err());
    }
}
