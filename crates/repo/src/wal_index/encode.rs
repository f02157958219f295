//! An index becomes bytes.

use super::marks::{put_catalog, put_marks};
use super::{VERSION, detail, difference, flag, part};
use crate::block::{BlockEncoder, Compression};
use crate::coding::{put_bytes, put_varint};
use pg_wal::index::{
    Changes, ForkChanges, Images, MarkKind, Outcome, RelationVolume, RelationWork, Transaction, WalIndex,
};
use pg_wal::{Lsn, RelFileLocator, Xid};
use std::collections::HashMap;

/// Why an index cannot be packed: it was not put together as it should be.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("an index that cannot be written: {what}")]
pub struct NotEncodable {
    what: &'static str,
}

/// The relations that an index speaks of, in order, with their numbers.
pub(super) struct Relations {
    list: Vec<RelFileLocator>,
}

impl Relations {
    fn of(index: &WalIndex) -> Self {
        let mut list: Vec<RelFileLocator> = index.changes.forks.iter().map(|fork| fork.key.rel).collect();
        list.extend(index.volumes.iter().map(|volume| volume.rel));
        for transaction in &index.transactions {
            list.extend(transaction.work.iter().map(|work| work.rel));
            list.extend(transaction.end.iter().flat_map(|end| end.dropped.iter().copied()));
        }
        list.extend(index.marks.iter().filter_map(|mark| match &mark.kind {
            MarkKind::RelationCreate { rel, .. } | MarkKind::RelationTruncate { rel, .. } => Some(*rel),
            _ => None,
        }));
        list.sort_unstable();
        list.dedup();
        Self { list }
    }

    /// The number of a relation that was in the index when this was made.
    pub(super) fn number(&self, rel: &RelFileLocator) -> u64 {
        self.list.binary_search(rel).unwrap_or_default() as u64
    }
}

/// Packs an index into the bytes of its section.
///
/// # Errors
/// When lists that must be in order are not.
pub fn encode(index: &WalIndex) -> Result<Vec<u8>, NotEncodable> {
    let relations = Relations::of(index);
    let mut parts = Parts { encoder: BlockEncoder::new(Compression::Zstd(1)), parts: Vec::new() };
    parts.block(part::RELATIONS, &relations_part(&relations, &index.volumes)?);
    let [forks, blocks, databases] = changes_parts(&relations, &index.changes)?;
    parts.block(part::FORKS, &forks);
    parts.block(part::BLOCKS, &blocks);
    parts.block(part::DATABASES, &databases);
    if !index.marks.is_empty() {
        let mut out = Vec::new();
        put_marks(&mut out, index.start, &index.marks, &relations);
        parts.block(part::MARKS, &out);
    }
    if !index.catalog.is_empty() {
        let mut out = Vec::new();
        put_catalog(&mut out, index.start, &index.catalog);
        parts.block(part::CATALOG, &out);
    }
    transactions_parts(&mut parts, index, &relations)?;
    parts.block(part::IMAGES, &images_part(&index.images)?);

    let mut out = vec![VERSION];
    put_varint(&mut out, index.start.0);
    put_varint(&mut out, index.end.0);
    put_varint(&mut out, index.transactions.len() as u64);
    put_varint(&mut out, parts.parts.len() as u64);
    for (kind, plain_len, stored) in &parts.parts {
        put_varint(&mut out, *kind);
        put_varint(&mut out, stored.len() as u64);
        put_varint(&mut out, *plain_len);
    }
    parts.parts.iter().for_each(|(_, _, stored)| out.extend_from_slice(stored));
    Ok(out)
}

struct Parts {
    encoder: BlockEncoder,
    /// Kind, plain length, stored bytes.
    parts: Vec<(u64, u64, Vec<u8>)>,
}

impl Parts {
    fn block(&mut self, kind: u64, plain: &[u8]) {
        if !plain.is_empty() {
            let mut stored = Vec::new();
            self.encoder.encode(plain, &mut stored);
            self.parts.push((kind, plain.len() as u64, stored));
        }
    }

    /// Byte by byte, because each byte of a number has a distribution of its own.
    fn column(&mut self, kind: u64, values: &[u64]) {
        if values.is_empty() {
            return;
        }
        let all = values.iter().fold(0, |all, value| all | value);
        let planes = 8 - u64::from(all.leading_zeros() / 8);
        let mut stored = Vec::new();
        put_varint(&mut stored, planes);
        let mut block = Vec::new();
        for plane in 0..planes {
            let plain: Vec<u8> = values.iter().map(|value| (value >> (plane * 8)) as u8).collect();
            block.clear();
            self.encoder.encode(&plain, &mut block);
            put_bytes(&mut stored, &block);
        }
        self.parts.push((kind, values.len() as u64, stored));
    }
}

fn relations_part(relations: &Relations, volumes: &[RelationVolume]) -> Result<Vec<u8>, NotEncodable> {
    let mut out = Vec::new();
    if relations.list.is_empty() {
        return Ok(out);
    }
    put_varint(&mut out, relations.list.len() as u64);
    let mut before: Option<RelFileLocator> = None;
    for rel in &relations.list {
        put_varint(&mut out, rel.tablespace.0.into());
        put_varint(&mut out, rel.database.0.into());
        let same = before.filter(|before| (before.tablespace, before.database) == (rel.tablespace, rel.database));
        put_varint(&mut out, u64::from(rel.relfilenode - same.map_or(0, |before| before.relfilenode)));
        before = Some(*rel);
    }
    let mut volumes = volumes.iter().peekable();
    for rel in &relations.list {
        let volume = volumes.next_if(|volume| volume.rel == *rel);
        let numbers = volume.map_or([0; 4], |v| [v.records, v.bytes, v.images, v.image_bytes]);
        numbers.into_iter().for_each(|number| put_varint(&mut out, number));
    }
    if volumes.next().is_some() {
        return Err(NotEncodable { what: "volumes out of order" });
    }
    Ok(out)
}

fn images_part(images: &Images) -> Result<Vec<u8>, NotEncodable> {
    let mut out = Vec::new();
    if *images == Images::default() {
        return Ok(out);
    }
    out.push(images.first.is_some().into());
    images.first.into_iter().for_each(|first| put_varint(&mut out, difference(0, first as u64)));
    put_varint(&mut out, images.minutes.len() as u64);
    let mut before = 0;
    for (minute, count) in &images.minutes {
        put_varint(&mut out, difference(before, *minute as u64));
        before = *minute as u64;
        [count.images, count.bytes].into_iter().for_each(|number| put_varint(&mut out, number));
    }
    [images.rest.images, images.rest.bytes].into_iter().for_each(|number| put_varint(&mut out, number));
    if !images.minutes.is_sorted_by(|a, b| a.0 < b.0) {
        return Err(NotEncodable { what: "minutes out of order" });
    }
    Ok(out)
}

fn changes_parts(relations: &Relations, changes: &Changes) -> Result<[Vec<u8>; 3], NotEncodable> {
    let (mut forks, mut blocks, mut databases) = (Vec::new(), Vec::new(), Vec::new());
    if !changes.forks.is_sorted_by(|a, b| a.key < b.key) || !changes.databases.is_sorted_by(|a, b| a < b) {
        return Err(NotEncodable { what: "forks or databases out of order" });
    }
    if !changes.forks.is_empty() {
        put_varint(&mut forks, changes.forks.len() as u64);
    }
    let mut before = 0;
    for fork in &changes.forks {
        let number = relations.number(&fork.key.rel);
        put_varint(&mut forks, number - before);
        before = number;
        put_fork(fork, &mut forks, &mut blocks)?;
    }
    if !changes.databases.is_empty() {
        put_varint(&mut databases, changes.databases.len() as u64);
        for key in &changes.databases {
            put_varint(&mut databases, key.tablespace.0.into());
            put_varint(&mut databases, key.database.0.into());
        }
    }
    Ok([forks, blocks, databases])
}

fn put_fork(fork: &ForkChanges, forks: &mut Vec<u8>, blocks: &mut Vec<u8>) -> Result<(), NotEncodable> {
    if !fork.blocks.is_sorted_by(|a, b| a < b) {
        return Err(NotEncodable { what: "blocks out of order" });
    }
    let runs = 1 + fork.blocks.windows(2).filter(|pair| pair[1] != pair[0] + 1).count();
    // A run takes two numbers, a block by itself one.
    let as_runs = runs * 2 < fork.blocks.len();
    let limited = fork.limit.is_some();
    forks.push(fork.key.fork.number() | u8::from(limited) << 2 | u8::from(as_runs) << 3);
    fork.limit.into_iter().for_each(|limit| put_varint(forks, limit.into()));
    if !as_runs {
        put_varint(forks, fork.blocks.len() as u64);
        // The number that the next one must be at least.
        let mut at_least = 0;
        for block in &fork.blocks {
            put_varint(blocks, u64::from(*block) - at_least);
            at_least = u64::from(*block) + 1;
        }
        return Ok(());
    }
    put_varint(forks, runs as u64);
    let mut at_least = 0;
    for run in fork.blocks.chunk_by(|a, b| *b == a + 1) {
        put_varint(blocks, u64::from(run[0]) - at_least);
        put_varint(blocks, run.len() as u64 - 1);
        at_least = u64::from(run[0]) + run.len() as u64 + 1;
    }
    Ok(())
}

fn transactions_parts(parts: &mut Parts, index: &WalIndex, relations: &Relations) -> Result<(), NotEncodable> {
    let list = &index.transactions;
    let mut shapes: HashMap<&[RelationWork], u64> = HashMap::new();
    // Transactions that did the same share it in memory: mostly the address tells.
    let mut known: HashMap<*const RelationWork, u64> = HashMap::new();
    let mut shape_list: Vec<&[RelationWork]> = Vec::new();
    let (mut flags, mut xids, mut work) = (Vec::new(), Vec::new(), Vec::new());
    let (mut ends, mut times, mut details) = (Vec::new(), Vec::new(), Vec::new());
    let (mut xid, mut lsn, mut time) = (0, index.start.0, 0);
    for transaction in list {
        let shape = *known.entry(transaction.work.as_ptr()).or_insert_with(|| {
            *shapes.entry(&*transaction.work).or_insert_with(|| {
                shape_list.push(&*transaction.work);
                shape_list.len() as u64 - 1
            })
        });
        work.push(shape);
        xids.push(difference(xid, transaction.xid.into()));
        xid = transaction.xid.into();
        let mut bits = 0;
        if let Some(end) = &transaction.end {
            if ends.len() != flags.len() {
                return Err(NotEncodable { what: "transactions that ended come after some that did not" });
            }
            bits = match end.outcome {
                Outcome::Commit => flag::COMMIT,
                Outcome::Abort => flag::ABORT,
            };
            bits |= if end.prepared { flag::PREPARED } else { 0 };
            let ahead = end.lsn.0.checked_sub(lsn).filter(|ahead| ahead.is_multiple_of(8));
            ends.push(ahead.ok_or(NotEncodable { what: "ends of transactions out of order" })? / 8);
            lsn = end.lsn.0;
            times.push(difference(time, end.time.0 as u64));
            time = end.time.0 as u64;
        }
        if put_details(&mut details, transaction, index.start, relations) {
            bits |= flag::DETAILS;
        }
        flags.push(bits);
    }
    let mut shape_part = Vec::new();
    if !shape_list.is_empty() {
        put_varint(&mut shape_part, shape_list.len() as u64);
    }
    for shape in shape_list {
        put_varint(&mut shape_part, shape.len() as u64);
        for entry in shape {
            put_varint(&mut shape_part, relations.number(&entry.rel));
            let rows = &entry.rows;
            for number in [rows.inserted, rows.multi_inserted, rows.updated, rows.hot_updated, rows.deleted] {
                put_varint(&mut shape_part, number);
            }
        }
    }
    parts.block(part::SHAPES, &shape_part);
    parts.block(part::DETAILS, &details);
    for (kind, column) in
        [(part::FLAGS, flags), (part::XIDS, xids), (part::ENDS, ends), (part::TIMES, times), (part::WORK, work)]
    {
        parts.column(kind, &column);
    }
    Ok(())
}

/// Appends a transaction's details, when it has any.
fn put_details(out: &mut Vec<u8>, transaction: &Transaction, start: Lsn, relations: &Relations) -> bool {
    let end = transaction.end.as_ref();
    let database = end.and_then(|end| end.database);
    let subxacts = end.map_or(&[][..], |end| &end.subxacts);
    let dropped = end.map_or(&[][..], |end| &end.dropped);
    let bit = |set: bool, bit: u8| if set { bit } else { 0 };
    let mask = bit(transaction.extent.is_some(), detail::EXTENT)
        | bit(database.is_some(), detail::DATABASE)
        | bit(!subxacts.is_empty(), detail::SUBXACTS)
        | bit(!dropped.is_empty(), detail::DROPPED)
        | bit(transaction.prepared.is_some(), detail::PREPARED)
        | bit(transaction.top.is_some(), detail::TOP);
    if mask == 0 {
        return false;
    }
    out.push(mask);
    if let Some(extent) = &transaction.extent {
        put_varint(out, difference(start.0, extent.first.0));
        put_varint(out, extent.bytes);
    }
    if let Some(database) = database {
        put_varint(out, database.0.into());
    }
    if !subxacts.is_empty() {
        put_xids(out, subxacts);
    }
    if !dropped.is_empty() {
        put_varint(out, dropped.len() as u64);
        dropped.iter().for_each(|rel| put_varint(out, relations.number(rel)));
    }
    if let Some(prepared) = &transaction.prepared {
        put_varint(out, difference(start.0, prepared.lsn.0));
        put_varint(out, difference(0, prepared.time.0 as u64));
        put_bytes(out, &prepared.gid);
        put_varint(out, prepared.database.0.into());
        put_xids(out, &prepared.subxacts);
    }
    if let Some(top) = transaction.top {
        put_varint(out, top.into());
    }
    true
}

/// Ascending, each once; anything else is put in order first.
fn put_xids(out: &mut Vec<u8>, xids: &[Xid]) {
    let mut sorted = xids.to_vec();
    sorted.sort_unstable();
    sorted.dedup();
    put_varint(out, sorted.len() as u64);
    let mut at_least = 0;
    for xid in sorted {
        put_varint(out, u64::from(xid) - at_least);
        at_least = u64::from(xid) + 1;
    }
}
