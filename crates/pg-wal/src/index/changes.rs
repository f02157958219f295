//! Blocks changed and limits set, fork by fork (`common/blkreftable.c`).

use std::collections::{BTreeSet, HashMap};
use std::hash::{BuildHasherDefault, Hasher};

use crate::index::RelationVolume;
use crate::types::{Fork, Oid, RelFileLocator};

/// One fork of one relation.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ForkKey {
    /// The relation.
    pub rel: RelFileLocator,
    /// The fork.
    pub fork: Fork,
}

/// A database directory in one tablespace.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct DatabaseKey {
    /// The tablespace.
    pub tablespace: Oid,
    /// The database.
    pub database: Oid,
}

/// What happened to one fork.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ForkChanges {
    /// Which.
    pub key: ForkKey,
    /// The shortest length it had, in blocks: 0 when it was made or dropped, `None` when it was never cut. All blocks
    /// from here on count as changed.
    pub limit: Option<u32>,
    /// The blocks that were changed, in order, each once. Those at or after the limit were changed after it was set.
    pub blocks: Vec<u32>,
}

/// Which blocks a stretch of WAL changed.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Changes {
    /// Forks, in the order of their keys.
    pub forks: Vec<ForkChanges>,
    /// Database directories that were made or removed as a whole, in order: nothing in them is as it was before,
    /// whatever the forks say.
    pub databases: Vec<DatabaseKey>,
}

/// Multiplies and folds: the keys are numbers that the server counts up.
#[derive(Default, Clone, Copy)]
pub(crate) struct NumberHasher(u64);

impl Hasher for NumberHasher {
    fn write(&mut self, bytes: &[u8]) {
        bytes.iter().for_each(|byte| self.write_u64(u64::from(*byte)));
    }
    #[inline]
    fn write_u32(&mut self, number: u32) {
        self.write_u64(u64::from(number));
    }
    #[inline]
    fn write_u64(&mut self, number: u64) {
        self.0 = (self.0.rotate_left(23) ^ number).wrapping_mul(0x9E37_79B9_7F4A_7C15);
    }
    #[inline]
    fn write_usize(&mut self, number: usize) {
        self.write_u64(number as u64);
    }
    #[inline]
    fn finish(&self) -> u64 {
        self.0 ^ self.0 >> 32
    }
}

pub(crate) type NumberMap<K, V> = HashMap<K, V, BuildHasherDefault<NumberHasher>>;

/// The numbers of things seen lately: one place for each value of the last bits of `hint`.
#[derive(Debug, Clone)]
pub(crate) struct Recent<K>([Option<(K, u32)>; 64]);

impl<K: Copy + PartialEq> Default for Recent<K> {
    fn default() -> Self {
        Self([None; 64])
    }
}

impl<K: Copy + PartialEq> Recent<K> {
    #[inline]
    pub(crate) fn get(&self, hint: u32, key: &K) -> Option<u32> {
        self.0[hint as usize % 64].filter(|(known, _)| known == key).map(|(_, number)| number)
    }

    #[inline]
    pub(crate) fn put(&mut self, hint: u32, key: K, number: u32) {
        self.0[hint as usize % 64] = Some((key, number));
    }

    #[inline]
    pub(crate) fn forget(&mut self, hint: u32) {
        self.0[hint as usize % 64] = None;
    }
}

/// A fork while it is being gathered. The blocks are in the order they came, with repetitions.
#[derive(Debug, Clone, Default)]
struct ForkSet {
    touched: bool,
    limit: Option<u32>,
    blocks: Vec<u32>,
    /// When there are so many blocks they are sorted and repetitions dropped.
    tidy_at: usize,
}

const TIDY_MIN: usize = 8192;

impl ForkSet {
    #[inline]
    fn mark(&mut self, block: u32) {
        self.touched = true;
        if self.blocks.last() == Some(&block) {
            return;
        }
        self.blocks.push(block);
        if self.blocks.len() >= self.tidy_at.max(TIDY_MIN) {
            self.tidy();
            self.tidy_at = self.blocks.len() * 2;
        }
    }

    fn tidy(&mut self) {
        self.blocks.sort_unstable();
        self.blocks.dedup();
    }

    /// `BlockRefTableEntrySetLimitBlock`: a limit that is not lower changes nothing.
    fn limit(&mut self, limit: u32) {
        self.touched = true;
        if self.limit.is_none_or(|known| limit < known) {
            self.limit = Some(limit);
            self.blocks.retain(|block| *block < limit);
        }
    }
}

/// One relation while it is being gathered.
#[derive(Debug, Clone)]
struct RelationSet {
    volume: RelationVolume,
    forks: [ForkSet; 4],
}

/// Relations by number, so that other tables can speak of them cheaply.
#[derive(Debug, Clone, Default)]
pub(crate) struct RelationTable {
    numbers: NumberMap<RelFileLocator, u32>,
    relations: Vec<RelationSet>,
    /// Those seen lately, by the last bits of their relfilenode: records go back and forth between a few.
    recent: Recent<RelFileLocator>,
    databases: BTreeSet<DatabaseKey>,
}

impl RelationTable {
    /// The number of a relation, given to it when it has none yet.
    #[inline]
    pub(crate) fn number(&mut self, rel: RelFileLocator) -> u32 {
        if let Some(number) = self.recent.get(rel.relfilenode, &rel) {
            return number;
        }
        let number = match self.numbers.get(&rel) {
            Some(number) => *number,
            None => self.add(rel),
        };
        self.recent.put(rel.relfilenode, rel, number);
        number
    }

    fn add(&mut self, rel: RelFileLocator) -> u32 {
        let number = self.relations.len() as u32;
        self.numbers.insert(rel, number);
        let volume = RelationVolume { rel, records: 0, bytes: 0, images: 0, image_bytes: 0 };
        self.relations.push(RelationSet { volume, forks: Default::default() });
        number
    }

    pub(crate) fn rel(&self, number: u32) -> RelFileLocator {
        self.relations[number as usize].volume.rel
    }

    #[inline]
    pub(crate) fn mark(&mut self, number: u32, fork: Fork, block: u32) {
        self.relations[number as usize].forks[usize::from(fork.number())].mark(block);
    }

    pub(crate) fn limit(&mut self, rel: RelFileLocator, fork: Fork, limit: u32) {
        let number = self.number(rel);
        self.relations[number as usize].forks[usize::from(fork.number())].limit(limit);
    }

    #[inline]
    pub(crate) fn volume(&mut self, number: u32) -> &mut RelationVolume {
        &mut self.relations[number as usize].volume
    }

    pub(crate) fn database(&mut self, key: DatabaseKey) {
        self.databases.insert(key);
    }

    /// All that was gathered, in order.
    pub(crate) fn finish(self) -> (Changes, Vec<RelationVolume>) {
        let mut relations = self.relations;
        relations.sort_unstable_by_key(|relation| relation.volume.rel);
        let volumes = relations.iter().map(|relation| relation.volume).filter(|volume| volume.records > 0).collect();
        let mut forks = Vec::new();
        for relation in relations {
            for (fork, mut set) in Fork::ALL.into_iter().zip(relation.forks) {
                if set.touched {
                    set.tidy();
                    let key = ForkKey { rel: relation.volume.rel, fork };
                    forks.push(ForkChanges { key, limit: set.limit, blocks: set.blocks });
                }
            }
        }
        (Changes { forks, databases: self.databases.into_iter().collect() }, volumes)
    }
}
