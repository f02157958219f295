//! Transactions: how each ended, and what it did to how many rows.

use std::collections::{HashMap, HashSet};
use std::hash::BuildHasherDefault;
use std::sync::Arc;

use crate::index::changes::{NumberHasher, NumberMap, Recent};
use crate::types::{Lsn, Oid, RelFileLocator, TimestampTz, Xid};

/// How many rows of a relation were changed.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct RowCounts {
    /// Added one by one.
    pub inserted: u64,
    /// Added many at a time (`COPY`, `CREATE TABLE AS`).
    pub multi_inserted: u64,
    /// Replaced, and some index had to follow.
    pub updated: u64,
    /// Replaced, and no index had to follow.
    pub hot_updated: u64,
    /// Deleted.
    pub deleted: u64,
}

impl RowCounts {
    /// All rows, of all kinds.
    pub fn total(&self) -> u64 {
        let parts = [self.inserted, self.multi_inserted, self.updated, self.hot_updated, self.deleted];
        parts.into_iter().fold(0, u64::saturating_add)
    }

    pub(crate) fn add(&mut self, other: &Self) {
        self.inserted = self.inserted.saturating_add(other.inserted);
        self.multi_inserted = self.multi_inserted.saturating_add(other.multi_inserted);
        self.updated = self.updated.saturating_add(other.updated);
        self.hot_updated = self.hot_updated.saturating_add(other.hot_updated);
        self.deleted = self.deleted.saturating_add(other.deleted);
    }
}

/// What a transaction did to one relation file.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct RelationWork {
    /// The relation.
    pub rel: RelFileLocator,
    /// Its rows.
    pub rows: RowCounts,
}

/// How a transaction ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Outcome {
    /// Committed.
    Commit,
    /// Rolled back; also a subtransaction that was rolled back by itself.
    Abort,
}

/// The end of a transaction.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct XactEndFacts {
    /// How.
    pub outcome: Outcome,
    /// Where the record begins: recovery to this LSN, exclusive, ends before it.
    pub lsn: Lsn,
    /// When. Not in the order of the WAL.
    pub time: TimestampTz,
    /// It was a prepared one.
    pub prepared: bool,
    /// The database, when the record says it.
    pub database: Option<Oid>,
    /// Its subtransactions, ascending. What they did before is in the index of earlier WAL under their own ids.
    pub subxacts: Box<[Xid]>,
    /// Relation files that it removed, in order.
    pub dropped: Box<[RelFileLocator]>,
}

/// A transaction was made ready for its second phase.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Prepared {
    /// Where the record begins.
    pub lsn: Lsn,
    /// When.
    pub time: TimestampTz,
    /// Its name.
    pub gid: Vec<u8>,
    /// The database.
    pub database: Oid,
    /// Its subtransactions, ascending.
    pub subxacts: Vec<Xid>,
}

/// How far a transaction reaches, told for those that wrote much or did more than change rows.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Extent {
    /// Where its first record here begins.
    pub first: Lsn,
    /// The bytes of its records here.
    pub bytes: u64,
}

/// What one transaction did in a stretch of WAL; its subtransactions' work is its own once they are known to be its.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Transaction {
    /// Its id.
    pub xid: Xid,
    /// How it ended, when that lies here.
    pub end: Option<XactEndFacts>,
    /// That it was prepared, when that lies here.
    pub prepared: Option<Box<Prepared>>,
    /// The transaction that it is a part of, when that is known and has not ended here.
    pub top: Option<Xid>,
    /// Where it began here and how much it wrote; see [`Extent`].
    pub extent: Option<Extent>,
    /// The relations whose rows it changed, in order. Transactions that did the same share it: there may be a million.
    pub work: Arc<[RelationWork]>,
}

/// A rolled-up index may hold hundreds of thousands.
const _: () = assert!(size_of::<Transaction>() <= 128);

/// A transaction that wrote less here, and changed rows only, gets no [`Extent`].
pub(crate) const EXTENT_BYTES_MIN: u64 = 64 << 10;

/// A transaction while it is being gathered. Relations by number.
#[derive(Debug, Clone, Default)]
pub(crate) struct OpenXact {
    pub(crate) first: Lsn,
    pub(crate) bytes: u64,
    pub(crate) notable: bool,
    pub(crate) top: Option<Xid>,
    pub(crate) prepared: Option<Box<Prepared>>,
    work: Vec<(u32, RowCounts)>,
}

impl OpenXact {
    /// The counts of a relation.
    #[inline]
    pub(crate) fn rows(&mut self, relation: u32) -> &mut RowCounts {
        // A transaction goes back and forth between a few relations. What is missed is added up at the end.
        let recent = self.work.len().saturating_sub(8);
        let found = self.work[recent..].iter().rposition(|(number, _)| *number == relation);
        let at = match found {
            Some(at) => recent + at,
            None => {
                self.work.push((relation, RowCounts::default()));
                self.work.len() - 1
            }
        };
        &mut self.work[at].1
    }

    pub(crate) fn absorb(&mut self, part: Self) {
        if part.bytes > 0 {
            self.first = if self.bytes > 0 { self.first.min(part.first) } else { part.first };
        }
        self.bytes += part.bytes;
        self.notable |= part.notable;
        self.work.extend(part.work);
        self.prepared = self.prepared.take().or(part.prepared);
    }

    /// What it is now, taken out; its memory stays.
    pub(crate) fn finish(
        &mut self,
        xid: Xid,
        end: Option<XactEndFacts>,
        shapes: &mut Shapes,
        rel_of: impl Fn(u32) -> RelFileLocator,
    ) -> Transaction {
        let work = shapes.share(&self.work, rel_of);
        let notable = self.notable || self.bytes >= EXTENT_BYTES_MIN;
        let extent = Some(Extent { first: self.first, bytes: self.bytes }).filter(|_| notable && self.bytes > 0);
        Transaction { xid, end, prepared: self.prepared.take(), top: self.top, extent, work }
    }
}

/// Work of a transaction, relations by number, in the order they came.
type RawWork = [(u32, RowCounts)];

/// What transactions did, each combination once.
#[derive(Debug, Clone, Default)]
pub(crate) struct Shapes {
    raw: HashMap<Box<RawWork>, Arc<[RelationWork]>, BuildHasherDefault<NumberHasher>>,
    shared: HashSet<Arc<[RelationWork]>, BuildHasherDefault<NumberHasher>>,
}

/// So many combinations are remembered in the order they came.
const RAW_MAX: usize = 1 << 16;

impl Shapes {
    fn share(&mut self, raw: &RawWork, rel_of: impl Fn(u32) -> RelFileLocator) -> Arc<[RelationWork]> {
        if let Some(known) = self.raw.get(raw) {
            return known.clone();
        }
        let mut work: Vec<RelationWork> =
            raw.iter().map(|(number, rows)| RelationWork { rel: rel_of(*number), rows: *rows }).collect();
        add_up(&mut work);
        let shared = match self.shared.get(&work[..]) {
            Some(known) => known.clone(),
            None => {
                let work: Arc<[RelationWork]> = work.into();
                self.shared.insert(work.clone());
                work
            }
        };
        if self.raw.len() < RAW_MAX {
            self.raw.insert(raw.into(), shared.clone());
        }
        shared
    }
}

/// Sorts by relation, adds up what is of the same one, and leaves out what came to nothing.
pub(crate) fn add_up(work: &mut Vec<RelationWork>) {
    work.sort_unstable_by_key(|entry| entry.rel);
    work.dedup_by(|next, kept| {
        let same = next.rel == kept.rel;
        if same {
            kept.rows.add(&next.rows);
        }
        same
    });
    work.retain(|entry| entry.rows.total() > 0);
}

/// The transactions that were seen and have not ended.
#[derive(Debug, Clone, Default)]
pub(crate) struct OpenXacts {
    numbers: NumberMap<Xid, u32>,
    slots: Vec<OpenXact>,
    free: Vec<u32>,
    recent: Recent<Xid>,
    /// Memory to be used again.
    spare: Vec<Vec<(u32, RowCounts)>>,
}

/// So many pieces of memory are kept.
const SPARE_MAX: usize = 64;

impl OpenXacts {
    /// A transaction's slot; a new one when it has none.
    #[inline]
    pub(crate) fn get(&mut self, xid: Xid) -> &mut OpenXact {
        let number = match self.recent.get(xid, &xid) {
            Some(number) => number,
            None => {
                let number = match self.numbers.get(&xid) {
                    Some(number) => *number,
                    None => self.add(xid),
                };
                self.recent.put(xid, xid, number);
                number
            }
        };
        &mut self.slots[number as usize]
    }

    fn add(&mut self, xid: Xid) -> u32 {
        let number = self.free.pop().unwrap_or_else(|| {
            self.slots.push(OpenXact::default());
            self.slots.len() as u32 - 1
        });
        self.numbers.insert(xid, number);
        self.slots[number as usize].work = self.spare.pop().unwrap_or_default();
        number
    }

    /// Takes back the memory of one that is finished.
    pub(crate) fn recycle(&mut self, open: OpenXact) {
        let mut work = open.work;
        if self.spare.len() < SPARE_MAX && work.capacity() <= 1024 {
            work.clear();
            self.spare.push(work);
        }
    }

    /// Takes a transaction out, when it is there.
    pub(crate) fn take(&mut self, xid: Xid) -> Option<OpenXact> {
        let number = self.numbers.remove(&xid)?;
        self.recent.forget(xid);
        self.free.push(number);
        Some(std::mem::take(&mut self.slots[number as usize]))
    }

    /// All that are left, by id.
    pub(crate) fn drain(mut self) -> Vec<(Xid, OpenXact)> {
        let mut xids: Vec<Xid> = self.numbers.keys().copied().collect();
        xids.sort_unstable();
        xids.into_iter().filter_map(|xid| self.take(xid).map(|open| (xid, open))).collect()
    }
}
