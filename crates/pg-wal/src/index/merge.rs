//! Indexes of neighbouring WAL become one.

use std::collections::HashMap;

use crate::index::xacts::{Transaction, add_up};
use crate::index::{Changes, ForkChanges, RelationVolume, WalIndex};
use crate::types::Xid;

impl ForkChanges {
    /// Adds what happened later.
    fn append(&mut self, mut later: Self) {
        if let Some(limit) = later.limit
            && self.limit.is_none_or(|known| limit < known)
        {
            self.limit = Some(limit);
            self.blocks.truncate(self.blocks.partition_point(|block| *block < limit));
        }
        if self.blocks.last() < later.blocks.first() {
            self.blocks.append(&mut later.blocks);
        } else if !later.blocks.is_empty() {
            self.blocks.append(&mut later.blocks);
            // Two sorted halves: the sort takes them as runs.
            self.blocks.sort();
            self.blocks.dedup();
        }
    }
}

impl Changes {
    /// Adds what happened later.
    pub fn append(&mut self, later: Self) {
        self.forks = merge_by(std::mem::take(&mut self.forks), later.forks, |fork| fork.key, ForkChanges::append);
        self.databases.extend(later.databases);
        self.databases.sort_unstable();
        self.databases.dedup();
    }
}

/// Joins two sorted lists; of two entries with the same key the first takes in the second.
fn merge_by<T, K: Ord>(
    first: Vec<T>,
    second: Vec<T>,
    key: impl Fn(&T) -> K,
    mut join: impl FnMut(&mut T, T),
) -> Vec<T> {
    if first.is_empty() {
        return second;
    }
    let mut merged: Vec<T> = Vec::with_capacity(first.len() + second.len());
    let mut second = second.into_iter().peekable();
    for mut entry in first {
        while let Some(other) = second.next_if(|other| key(other) < key(&entry)) {
            merged.push(other);
        }
        if let Some(other) = second.next_if(|other| key(other) == key(&entry)) {
            join(&mut entry, other);
        }
        merged.push(entry);
    }
    merged.extend(second);
    merged
}

impl WalIndex {
    /// Adds the index of the WAL that follows.
    ///
    /// Blocks that were changed before a limit that is not the lowest may stay listed, or be left out when an index
    /// by itself left them out; they count as changed in any case, as they lie behind the lowest limit.
    pub fn append(&mut self, mut later: Self) {
        self.end = self.end.max(later.end);
        self.changes.append(later.changes);
        self.marks.append(&mut later.marks);
        self.catalog.append(&mut later.catalog);
        self.volumes =
            merge_by(std::mem::take(&mut self.volumes), later.volumes, |volume| volume.rel, RelationVolume::add);
        self.images.append(&later.images);
        self.append_transactions(later.transactions);
    }

    fn append_transactions(&mut self, later: Vec<Transaction>) {
        let ended = self.transactions.partition_point(|transaction| transaction.end.is_some());
        let mut open: HashMap<Xid, Transaction> =
            self.transactions.drain(ended..).map(|transaction| (transaction.xid, transaction)).collect();
        for mut transaction in later {
            let subs = transaction.subxacts().to_vec();
            let parts = std::iter::once(transaction.xid).chain(subs).filter_map(|xid| open.remove(&xid));
            for part in parts.collect::<Vec<_>>() {
                transaction.take_in(part);
            }
            if transaction.end.is_some() {
                self.transactions.push(transaction);
            } else {
                open.insert(transaction.xid, transaction);
            }
        }
        let mut open: Vec<Transaction> = open.into_values().collect();
        open.sort_unstable_by_key(|transaction| transaction.xid);
        self.transactions.append(&mut open);
    }
}

impl Transaction {
    /// The subtransactions that its end or its preparation here names.
    pub fn subxacts(&self) -> &[Xid] {
        match (&self.end, &self.prepared) {
            (Some(end), _) if !end.subxacts.is_empty() => &end.subxacts,
            (_, Some(prepared)) => &prepared.subxacts,
            _ => &[],
        }
    }

    /// Adds an earlier part of it.
    fn take_in(&mut self, part: Self) {
        if self.work.is_empty() {
            self.work = part.work;
        } else if !part.work.is_empty() {
            let mut work = [&*self.work, &*part.work].concat();
            add_up(&mut work);
            self.work = work.into();
        }
        self.prepared = self.prepared.take().or(part.prepared);
        self.top = self.top.or(part.top).filter(|_| self.end.is_none());
        self.extent = match (self.extent, part.extent) {
            (Some(mut extent), Some(earlier)) => {
                extent.first = extent.first.min(earlier.first);
                extent.bytes = extent.bytes.saturating_add(earlier.bytes);
                Some(extent)
            }
            (one, other) => one.or(other),
        };
    }
}

impl RelationVolume {
    fn add(&mut self, other: Self) {
        self.records = self.records.saturating_add(other.records);
        self.bytes = self.bytes.saturating_add(other.bytes);
        self.images = self.images.saturating_add(other.images);
        self.image_bytes = self.image_bytes.saturating_add(other.image_bytes);
    }
}
