//! A set of changed blocks: per fork the blocks that WAL names, and from where on everything counts as changed.
//!
//! It is kept small, because a cluster may have hundreds of thousands of relations and tens of millions of changed
//! blocks: a few blocks lie in a list, many in a compressed bitmap.

use pg_format::relpath::{Fork, RelFile};
use roaring::RoaringBitmap;
use std::collections::{BTreeMap, BTreeSet};

/// `InvalidBlockNumber`: no limit.
const NO_LIMIT: u32 = u32::MAX;
/// From so many blocks on a bitmap is smaller than a list.
const LISTED: usize = 64;

/// A fork of a relation, by the numbers WAL knows.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(in crate::backup) struct ForkKey {
    pub(in crate::backup) tablespace: u32,
    pub(in crate::backup) database: u32,
    pub(in crate::backup) relfilenode: u32,
    pub(in crate::backup) fork: Fork,
}

/// Which blocks a stretch of WAL changed.
#[derive(Debug, Clone, Default, PartialEq)]
pub(in crate::backup) struct Changes {
    forks: BTreeMap<ForkKey, ForkSet>,
    /// Tablespace and database, made by copying files or dropped.
    databases: BTreeSet<(u32, u32)>,
}

/// What changed in one file of a fork. Pages are numbered within the file, not the fork.
#[derive(Debug, Clone, PartialEq)]
pub(in crate::backup) enum FileChanges {
    /// Nothing that WAL names.
    None,
    /// All of it.
    Whole,
    /// Some pages.
    Pages {
        /// These.
        pages: RoaringBitmap,
        /// And all from this one on.
        from: Option<u64>,
    },
}

/// What changed in one fork.
#[derive(Debug, Clone, PartialEq)]
struct ForkSet {
    /// Blocks from here on count as changed, and are not in `blocks`.
    limit: u32,
    blocks: Blocks,
}

#[derive(Debug, Clone)]
enum Blocks {
    /// Ascending.
    Few(Vec<u32>),
    Many(RoaringBitmap),
}

impl Changes {
    /// The fork was cut to this length at some time, or made (0) or dropped (0): blocks from here on count as changed.
    pub(in crate::backup) fn set_limit(&mut self, key: ForkKey, block: u32) {
        self.fork(key).set_limit(block);
    }

    /// These blocks of a fork were changed.
    pub(in crate::backup) fn add_blocks(&mut self, key: ForkKey, blocks: impl IntoIterator<Item = u32>) {
        let fork = self.fork(key);
        for block in blocks {
            fork.add(block);
        }
    }

    /// A database that was made, by whatever strategy, or dropped: what lies there now is read whole.
    pub(in crate::backup) fn add_database(&mut self, tablespace: u32, database: u32) {
        self.databases.insert((tablespace, database));
    }

    /// Whether any fork of the relation, or its database, was changed. Then its visibility map and free space map are
    /// read whole: WAL does not name all of their pages that it changes.
    pub(in crate::backup) fn names_relation(&self, tablespace: u32, database: u32, relfilenode: u32) -> bool {
        let key = |fork| ForkKey { tablespace, database, relfilenode, fork };
        self.databases.contains(&(tablespace, database))
            || self.forks.range(key(Fork::Main)..=key(Fork::Init)).next().is_some()
    }

    /// What changed in one file of a fork. `relseg_blocks` is the number of blocks in a full file.
    pub(in crate::backup) fn of_file(&self, file: &RelFile, relseg_blocks: u32) -> FileChanges {
        let (tablespace, database) = (file.tablespace_oid.0, file.db_oid.0);
        if self.databases.contains(&(tablespace, database)) {
            return FileChanges::Whole;
        }
        let key = ForkKey { tablespace, database, relfilenode: file.filenode, fork: file.fork };
        let Some(fork) = self.forks.get(&key) else { return FileChanges::None };
        match file.first_block(relseg_blocks) {
            Some(first) => fork.of_blocks(first.0, relseg_blocks),
            None => FileChanges::Whole,
        }
    }

    fn fork(&mut self, key: ForkKey) -> &mut ForkSet {
        self.forks.entry(key).or_insert(ForkSet { limit: NO_LIMIT, blocks: Blocks::Few(Vec::new()) })
    }
}

impl ForkSet {
    fn set_limit(&mut self, block: u32) {
        if block < self.limit {
            self.limit = block;
            self.cut();
        }
    }

    /// Forgets what the limit says already.
    fn cut(&mut self) {
        match &mut self.blocks {
            Blocks::Few(list) => list.truncate(list.partition_point(|&block| block < self.limit)),
            Blocks::Many(bitmap) => {
                bitmap.remove_range(self.limit..);
            }
        }
    }

    fn add(&mut self, block: u32) {
        if block >= self.limit {
            return;
        }
        match &mut self.blocks {
            Blocks::Many(bitmap) => {
                bitmap.insert(block);
            }
            Blocks::Few(list) => {
                if let Err(place) = list.binary_search(&block) {
                    list.insert(place, block);
                }
                if list.len() > LISTED {
                    // They ascend, so appending cannot fail.
                    self.blocks = Blocks::Many(list.iter().copied().collect());
                }
            }
        }
    }

    /// What changed in the `count` blocks from `first` on.
    fn of_blocks(&self, first: u32, count: u32) -> FileChanges {
        if self.limit <= first {
            return FileChanges::Whole;
        }
        // Blocks end at u32::MAX - 1 (`MaxBlockNumber`).
        let end = first.saturating_add(count);
        let pages: RoaringBitmap = match &self.blocks {
            Blocks::Few(list) => {
                list.iter().filter(|&&block| block >= first && block < end).map(|b| b - first).collect()
            }
            Blocks::Many(bitmap) => bitmap.range(first..end).map(|block| block - first).collect(),
        };
        let from = (self.limit < end).then(|| u64::from(self.limit - first));
        if pages.is_empty() && from.is_none() { FileChanges::None } else { FileChanges::Pages { pages, from } }
    }
}

impl Blocks {
    fn len(&self) -> u64 {
        match self {
            Self::Few(list) => list.len() as u64,
            Self::Many(bitmap) => bitmap.len(),
        }
    }

    fn iter(&self) -> Box<dyn Iterator<Item = u32> + '_> {
        match self {
            Self::Few(list) => Box::new(list.iter().copied()),
            Self::Many(bitmap) => Box::new(bitmap.iter()),
        }
    }
}

impl PartialEq for Blocks {
    /// However they are kept.
    fn eq(&self, other: &Self) -> bool {
        self.len() == other.len() && self.iter().eq(other.iter())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SEGMENT: u32 = 131_072;

    fn key(relfilenode: u32, fork: Fork) -> ForkKey {
        ForkKey { tablespace: 1663, database: 5, relfilenode, fork }
    }

    fn of(changes: &Changes, path: &str) -> FileChanges {
        changes.of_file(&RelFile::parse(path).unwrap(), SEGMENT)
    }

    fn pages(pages: &[u32], from: Option<u64>) -> FileChanges {
        FileChanges::Pages { pages: pages.iter().copied().collect(), from }
    }

    #[test]
    fn blocks_fall_into_their_segments() {
        let mut changes = Changes::default();
        changes.add_blocks(key(7, Fork::Main), [SEGMENT, 3, SEGMENT - 1, 0, 3, 2 * SEGMENT + 9]);
        assert_eq!(of(&changes, "base/5/7"), pages(&[0, 3, SEGMENT - 1], None));
        assert_eq!(of(&changes, "base/5/7.1"), pages(&[0], None));
        assert_eq!(of(&changes, "base/5/7.2"), pages(&[9], None));
        assert_eq!(of(&changes, "base/5/7.3"), FileChanges::None);
        assert_eq!(of(&changes, "base/5/7_vm"), FileChanges::None);
        assert_eq!(of(&changes, "base/6/7"), FileChanges::None);
        assert_eq!(of(&changes, "global/7"), FileChanges::None);
        assert!(changes.names_relation(1663, 5, 7));
        assert!(!changes.names_relation(1663, 5, 6) && !changes.names_relation(1663, 5, 8));
        assert!(!changes.names_relation(1663, 4, 7) && !changes.names_relation(1664, 5, 7));
    }

    #[test]
    fn a_limit_reaches_over_segments() {
        let check = |limit: u32, expect: [FileChanges; 3]| {
            let mut changes = Changes::default();
            changes.add_blocks(key(7, Fork::Main), [1, SEGMENT + 1]);
            changes.set_limit(key(7, Fork::Main), limit);
            let found = ["base/5/7", "base/5/7.1", "base/5/7.2"].map(|path| of(&changes, path));
            assert_eq!(found, expect, "{limit}");
            // The order does not matter, and a later, longer cut takes nothing back.
            let mut other = Changes::default();
            other.set_limit(key(7, Fork::Main), limit);
            other.set_limit(key(7, Fork::Main), limit.saturating_add(1));
            other.add_blocks(key(7, Fork::Main), [SEGMENT + 1, 1]);
            assert_eq!(other, changes, "{limit}");
        };
        use FileChanges::{None as Unchanged, Whole};
        check(0, [Whole, Whole, Whole]);
        check(1, [pages(&[], Some(1)), Whole, Whole]);
        check(SEGMENT - 1, [pages(&[1], Some(u64::from(SEGMENT) - 1)), Whole, Whole]);
        check(SEGMENT, [pages(&[1], None), Whole, Whole]);
        check(SEGMENT + 1, [pages(&[1], None), pages(&[], Some(1)), Whole]);
        check(SEGMENT + 2, [pages(&[1], None), pages(&[1], Some(2)), Whole]);
        check(2 * SEGMENT, [pages(&[1], None), pages(&[1], None), Whole]);
        check(3 * SEGMENT, [pages(&[1], None), pages(&[1], None), Unchanged]);
        check(u32::MAX, [pages(&[1], None), pages(&[1], None), Unchanged]);
    }

    #[test]
    fn the_last_file_that_can_be() {
        let mut changes = Changes::default();
        changes.add_blocks(key(7, Fork::Main), [u32::MAX - 1]);
        assert_eq!(of(&changes, "base/5/7.32767"), pages(&[SEGMENT - 2], None));
        assert_eq!(of(&changes, "base/5/7.32768"), FileChanges::Whole, "no such blocks: nothing is known of them");
    }

    #[test]
    fn a_database_is_whole() {
        let mut changes = Changes::default();
        changes.add_database(1663, 5);
        assert_eq!(of(&changes, "base/5/9_fsm"), FileChanges::Whole);
        assert_eq!(of(&changes, "base/6/9"), FileChanges::None);
        assert_eq!(of(&changes, "pg_tblspc/16500/PG_17_202406281/5/9"), FileChanges::None);
        assert!(changes.names_relation(1663, 5, 123) && !changes.names_relation(16500, 5, 123));
    }

    #[test]
    fn stretches_add_up_and_the_smallest_limit_wins() {
        let few = [1, 5, 9];
        let many: Vec<u32> = (0..1000).map(|block| block * 3).collect();
        for (a, b) in [(&few[..], &few[..]), (&few, &many), (&many, &few), (&many, &many), (&few, &[]), (&[], &many)] {
            for limits in [(None, None), (Some(6), None), (None, Some(6)), (Some(2000), Some(6)), (Some(6), Some(2000))]
            {
                let mut changes = Changes::default();
                for (blocks, limit) in [(a, limits.0), (b, limits.1)] {
                    changes.add_blocks(key(7, Fork::Main), blocks.iter().copied());
                    limit.into_iter().for_each(|limit| changes.set_limit(key(7, Fork::Main), limit));
                }
                let smallest = [limits.0, limits.1].into_iter().flatten().min();
                let mut expect: Vec<u32> = a.iter().chain(b).copied().collect();
                expect.retain(|&block| smallest.is_none_or(|limit| block < limit));
                expect.sort_unstable();
                let from = smallest.map(u64::from);
                assert_eq!(of(&changes, "base/5/7"), pages(&expect, from), "{limits:?} {} {}", a.len(), b.len());
            }
        }
    }

    #[test]
    fn many_small_forks_and_many_blocks_stay_small() {
        // What a bitmap takes is its own account; a list is counted here.
        let mut changes = Changes::default();
        changes.add_blocks(key(7, Fork::Main), (0..13_000_000).map(|n| n * 17));
        let Blocks::Many(bitmap) = &changes.forks[&key(7, Fork::Main)].blocks else { panic!("a list") };
        assert!(bitmap.serialized_size() < 32 << 20, "{}", bitmap.serialized_size());
        assert!(size_of::<(ForkKey, ForkSet)>() <= 56, "{}", size_of::<(ForkKey, ForkSet)>());
    }
}
