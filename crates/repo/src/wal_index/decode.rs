//! Bytes become an index, with limits on everything.

use super::marks::{fork, read_catalog, read_marks};
use super::{VERSION, apply_difference, detail, flag, part, unzigzag};
use crate::block::BlockDecoder;
use crate::coding::{Cursor, Decoded, Malformed};
use pg_wal::index::{
    Changes, DatabaseKey, Extent, ForkChanges, ForkKey, ImageCount, Images, Outcome, Prepared, RelationVolume,
    RelationWork, RowCounts, Transaction, WalIndex, XactEndFacts,
};
use pg_wal::{Lsn, Oid, RelFileLocator, TimestampTz, Xid};
use std::collections::BTreeMap;
use std::sync::Arc;

/// Plain bytes of one part, at most.
pub(super) const PART_MAX: u64 = 256 << 20;
const PARTS_MAX: u64 = 32;
/// More cannot be in 1 GiB of WAL.
const TRANSACTIONS_MAX: u64 = 16 << 20;
/// Blocks of all forks together, runs written out.
const BLOCKS_MAX: u64 = 64 << 20;
/// Which parts of an index are wanted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum IndexPart {
    /// Changed blocks, and marks.
    Changes,
    /// What happened: marks, transactions, rows of catalogs, volumes; no blocks.
    History,
    /// All.
    All,
}

/// A number of entries: each takes a byte at least, so it cannot be more than what is left.
pub(super) fn count(cursor: &mut Cursor<'_>) -> Decoded<usize> {
    let left = cursor.remaining() as u64;
    Ok(cursor.bounded("number of entries", left)? as usize)
}

fn u32_of(cursor: &mut Cursor<'_>) -> Decoded<u32> {
    Ok(cursor.bounded("number", u32::MAX.into())? as u32)
}

/// The relations that the other parts speak of by number.
pub(super) struct RelationList {
    list: Vec<RelFileLocator>,
}

impl RelationList {
    pub(super) fn read(&self, cursor: &mut Cursor<'_>) -> Decoded<RelFileLocator> {
        let number = cursor.varint()?;
        let rel = usize::try_from(number).ok().and_then(|number| self.list.get(number));
        rel.copied().ok_or_else(|| Malformed(format!("there is no relation {number}")))
    }
}

/// Unpacks a whole index.
///
/// # Errors
/// What is wrong with the bytes.
pub fn decode(section: &[u8]) -> Decoded<WalIndex> {
    decode_part(section, IndexPart::All)
}

/// Unpacks changed blocks and marks only; the rest is empty.
///
/// # Errors
/// What is wrong with the bytes.
pub fn decode_changes(section: &[u8]) -> Decoded<WalIndex> {
    decode_part(section, IndexPart::Changes)
}

/// Unpacks what is wanted; the rest is empty.
pub(super) fn decode_part(section: &[u8], wanted: IndexPart) -> Decoded<WalIndex> {
    let mut cursor = Cursor::new(section);
    let version = cursor.u8()?;
    if version != VERSION {
        return Err(Malformed(format!("an index of version {version}; {VERSION} is known")));
    }
    let (start, end) = (Lsn(cursor.varint()?), Lsn(cursor.varint()?));
    let transactions = cursor.bounded("number of transactions", TRANSACTIONS_MAX)?;
    let parts = cursor.bounded("number of parts", PARTS_MAX)?;
    let table = (0..parts)
        .map(|_| Ok((cursor.varint()?, cursor.bounded("stored length", PART_MAX)?, cursor.varint()?)))
        .collect::<Decoded<Vec<_>>>()?;
    let mut stored = BTreeMap::new();
    for (kind, stored_len, plain_len) in table {
        let bytes = cursor.take(stored_len as usize)?;
        if stored.insert(kind, (bytes, plain_len)).is_some() {
            return Err(Malformed(format!("part {kind} is there twice")));
        }
    }
    cursor.finish()?;
    let mut parts = Parts { stored, decoder: BlockDecoder::new() };
    let (relations, volumes) = read_relations(&parts.block(part::RELATIONS)?)?;
    let mut changed = |kind| if wanted == IndexPart::History { Ok(Vec::new()) } else { parts.block(kind) };
    let (forks, blocks, databases) = (changed(part::FORKS)?, changed(part::BLOCKS)?, changed(part::DATABASES)?);
    let mut index = WalIndex {
        start,
        end,
        changes: Changes { forks: read_forks(&forks, &blocks, &relations)?, databases: read_databases(&databases)? },
        volumes,
        ..WalIndex::default()
    };
    let marks = parts.block(part::MARKS)?;
    if !marks.is_empty() {
        index.marks = read_marks(&marks, start, &relations)?;
    }
    if wanted != IndexPart::Changes {
        let catalog = parts.block(part::CATALOG)?;
        if !catalog.is_empty() {
            index.catalog = read_catalog(&catalog, start)?;
        }
        index.images = read_images(&parts.block(part::IMAGES)?)?;
        index.transactions = read_transactions(&mut parts, transactions as usize, start, &relations)?;
    }
    Ok(index)
}

struct Parts<'a> {
    stored: BTreeMap<u64, (&'a [u8], u64)>,
    decoder: BlockDecoder,
}

impl Parts<'_> {
    /// A part's plain bytes; none when it is not there.
    fn block(&mut self, kind: u64) -> Decoded<Vec<u8>> {
        debug_assert!(kind < part::COLUMNS, "columns are read otherwise");
        let Some((stored, plain_len)) = self.stored.get(&kind) else { return Ok(Vec::new()) };
        if *plain_len > PART_MAX {
            return Err(Malformed(format!("part {kind} has {plain_len} bytes, at most {PART_MAX} are allowed")));
        }
        self.decoder.decode(stored, *plain_len as usize)
    }

    /// A column of so many values.
    fn column(&mut self, kind: u64, count: usize) -> Decoded<Vec<u64>> {
        let mut values = vec![0; count];
        let Some((stored, plain_len)) = self.stored.get(&kind) else {
            return if count == 0 { Ok(values) } else { Err(Malformed(format!("part {kind} is missing"))) };
        };
        if *plain_len != count as u64 {
            return Err(Malformed(format!("part {kind} has {plain_len} values, {count} are expected")));
        }
        let mut cursor = Cursor::new(stored);
        let planes = cursor.bounded("number of planes", 8)?;
        for plane in 0..planes {
            let block = cursor.bytes(PART_MAX)?;
            let bytes = self.decoder.decode(block, count)?;
            values.iter_mut().zip(&bytes).for_each(|(value, byte)| *value |= u64::from(*byte) << (plane * 8));
        }
        cursor.finish()?;
        Ok(values)
    }
}

fn read_relations(plain: &[u8]) -> Decoded<(RelationList, Vec<RelationVolume>)> {
    let mut list = Vec::new();
    let mut volumes = Vec::new();
    if plain.is_empty() {
        return Ok((RelationList { list }, volumes));
    }
    let mut cursor = Cursor::new(plain);
    let count = count(&mut cursor)?;
    for _ in 0..count {
        let (tablespace, database) = (Oid(u32_of(&mut cursor)?), Oid(u32_of(&mut cursor)?));
        let mut relfilenode = u32_of(&mut cursor)?;
        let before = list
            .last()
            .filter(|before: &&RelFileLocator| (before.tablespace, before.database) == (tablespace, database));
        if let Some(before) = before {
            relfilenode = relfilenode
                .checked_add(before.relfilenode)
                .ok_or_else(|| Malformed("a relfilenode beyond 32 bits".into()))?;
        }
        let rel = RelFileLocator { tablespace, database, relfilenode };
        if list.last().is_some_and(|before| *before >= rel) {
            return Err(Malformed("relations out of order".into()));
        }
        list.push(rel);
    }
    for rel in &list {
        let (records, bytes, images, image_bytes) =
            (cursor.varint()?, cursor.varint()?, cursor.varint()?, cursor.varint()?);
        if records > 0 {
            volumes.push(RelationVolume { rel: *rel, records, bytes, images, image_bytes });
        }
    }
    cursor.finish()?;
    Ok((RelationList { list }, volumes))
}

fn read_forks(plain: &[u8], blocks: &[u8], relations: &RelationList) -> Decoded<Vec<ForkChanges>> {
    let mut forks: Vec<ForkChanges> = Vec::new();
    if plain.is_empty() {
        return Ok(forks);
    }
    let mut cursor = Cursor::new(plain);
    let mut blocks = Cursor::new(blocks);
    let mut left = BLOCKS_MAX;
    let mut number = 0_u64;
    for _ in 0..count(&mut cursor)? {
        number = number.saturating_add(cursor.varint()?);
        let rel = usize::try_from(number).ok().and_then(|number| relations.list.get(number));
        let rel = *rel.ok_or_else(|| Malformed(format!("there is no relation {number}")))?;
        let bits = cursor.u8()?;
        if bits & !0x0F != 0 {
            return Err(Malformed(format!("unknown flags {bits:#x} of a fork")));
        }
        let key = ForkKey { rel, fork: fork(bits & 3)? };
        if forks.last().is_some_and(|before| before.key >= key) {
            return Err(Malformed("forks out of order".into()));
        }
        let limit = if bits & 4 != 0 { Some(u32_of(&mut cursor)?) } else { None };
        // Each takes a byte at least.
        let count = cursor.bounded("number of blocks", blocks.remaining() as u64)?;
        let list = read_blocks(&mut blocks, count, bits & 8 != 0, &mut left)?;
        forks.push(ForkChanges { key, limit, blocks: list });
    }
    cursor.finish()?;
    blocks.finish()?;
    Ok(forks)
}

fn read_blocks(cursor: &mut Cursor<'_>, count: u64, runs: bool, left: &mut u64) -> Decoded<Vec<u32>> {
    let mut list = Vec::with_capacity(if runs { 0 } else { count as usize });
    let mut at_least = 0_u64;
    for _ in 0..count {
        let first = at_least.saturating_add(cursor.varint()?);
        let len = if runs { cursor.varint()?.saturating_add(1) } else { 1 };
        // One more than the last block.
        let end = first.saturating_add(len);
        if end > u64::from(u32::MAX) + 1 {
            return Err(Malformed("a block beyond 32 bits".into()));
        }
        *left = left.checked_sub(len).ok_or_else(|| Malformed(format!("more than {BLOCKS_MAX} blocks")))?;
        list.extend((first..end).map(|block| block as u32));
        at_least = if runs { end + 1 } else { end };
    }
    Ok(list)
}

fn read_databases(plain: &[u8]) -> Decoded<Vec<DatabaseKey>> {
    let mut list: Vec<DatabaseKey> = Vec::new();
    if plain.is_empty() {
        return Ok(list);
    }
    let mut cursor = Cursor::new(plain);
    for _ in 0..count(&mut cursor)? {
        let key = DatabaseKey { tablespace: Oid(u32_of(&mut cursor)?), database: Oid(u32_of(&mut cursor)?) };
        if list.last().is_some_and(|before| *before >= key) {
            return Err(Malformed("databases out of order".into()));
        }
        list.push(key);
    }
    cursor.finish()?;
    Ok(list)
}

fn read_images(plain: &[u8]) -> Decoded<Images> {
    let mut images = Images::default();
    if plain.is_empty() {
        return Ok(images);
    }
    let mut cursor = Cursor::new(plain);
    images.first = match cursor.u8()? {
        0 => None,
        1 => Some(unzigzag(cursor.varint()?)),
        other => return Err(Malformed(format!("{other} is neither yes nor no"))),
    };
    let mut minute = 0;
    for _ in 0..count(&mut cursor)? {
        minute = apply_difference(minute, cursor.varint()?);
        let found = ImageCount { images: cursor.varint()?, bytes: cursor.varint()? };
        if images.minutes.last().is_some_and(|(before, _)| *before >= minute as i64) {
            return Err(Malformed("minutes out of order".into()));
        }
        images.minutes.push((minute as i64, found));
    }
    images.rest = ImageCount { images: cursor.varint()?, bytes: cursor.varint()? };
    cursor.finish()?;
    Ok(images)
}

fn read_shapes(plain: &[u8], relations: &RelationList) -> Decoded<Vec<Arc<[RelationWork]>>> {
    if plain.is_empty() {
        return Ok(Vec::new());
    }
    let mut cursor = Cursor::new(plain);
    let mut shapes = Vec::new();
    for _ in 0..count(&mut cursor)? {
        let entries = count(&mut cursor)?;
        let mut shape = Vec::with_capacity(entries.min(1024));
        for _ in 0..entries {
            let rel = relations.read(&mut cursor)?;
            let rows = RowCounts {
                inserted: cursor.varint()?,
                multi_inserted: cursor.varint()?,
                updated: cursor.varint()?,
                hot_updated: cursor.varint()?,
                deleted: cursor.varint()?,
            };
            shape.push(RelationWork { rel, rows });
        }
        shapes.push(shape.into());
    }
    cursor.finish()?;
    Ok(shapes)
}

fn read_transactions(
    parts: &mut Parts<'_>,
    count: usize,
    start: Lsn,
    relations: &RelationList,
) -> Decoded<Vec<Transaction>> {
    let shapes = read_shapes(&parts.block(part::SHAPES)?, relations)?;
    let details = parts.block(part::DETAILS)?;
    let mut details = Cursor::new(&details);
    let flags = parts.column(part::FLAGS, count)?;
    let xids = parts.column(part::XIDS, count)?;
    let work = parts.column(part::WORK, count)?;
    let ended = flags.iter().filter(|bits| *bits & flag::OUTCOME != 0).count();
    let ends = parts.column(part::ENDS, ended)?;
    let times = parts.column(part::TIMES, ended)?;
    let mut list = Vec::with_capacity(count);
    let (mut xid, mut lsn, mut time) = (0_u64, start.0, 0_u64);
    for (at, bits) in flags.iter().enumerate() {
        xid = apply_difference(xid, xids[at]);
        let shape = usize::try_from(work[at]).ok().and_then(|number| shapes.get(number));
        let shape = shape.ok_or_else(|| Malformed(format!("there is no shape {}", work[at])))?;
        let outcome = match bits & flag::OUTCOME {
            0 => None,
            flag::COMMIT => Some(Outcome::Commit),
            flag::ABORT => Some(Outcome::Abort),
            _ => return Err(Malformed("a transaction with an unknown end".into())),
        };
        if bits & !(flag::OUTCOME | flag::PREPARED | flag::DETAILS) != 0 {
            return Err(Malformed(format!("unknown flags {bits:#x} of a transaction")));
        }
        if outcome.is_some() && at >= ended {
            return Err(Malformed("transactions out of order".into()));
        }
        let end = outcome.map(|outcome| {
            lsn = lsn.wrapping_add(ends[at].wrapping_mul(8));
            time = time.wrapping_add(unzigzag(times[at]) as u64);
            XactEndFacts {
                outcome,
                lsn: Lsn(lsn),
                time: TimestampTz(time as i64),
                prepared: bits & flag::PREPARED != 0,
                database: None,
                subxacts: Box::default(),
                dropped: Box::default(),
            }
        });
        let xid = Xid::try_from(xid).map_err(|_| Malformed("a transaction id beyond 32 bits".into()))?;
        let mut transaction = Transaction { xid, end, prepared: None, top: None, extent: None, work: shape.clone() };
        if bits & flag::DETAILS != 0 {
            read_details(&mut details, &mut transaction, start, relations)?;
        }
        list.push(transaction);
    }
    details.finish()?;
    Ok(list)
}

fn read_details(
    cursor: &mut Cursor<'_>,
    transaction: &mut Transaction,
    start: Lsn,
    relations: &RelationList,
) -> Decoded<()> {
    let mask = cursor.u8()?;
    let has = |bit: u8| mask & bit != 0;
    if mask == 0 || mask & !detail::ALL != 0 {
        return Err(Malformed(format!("unknown details {mask:#x} of a transaction")));
    }
    if has(detail::EXTENT) {
        let first = Lsn(apply_difference(start.0, cursor.varint()?));
        transaction.extent = Some(Extent { first, bytes: cursor.varint()? });
    }
    if has(detail::DATABASE | detail::SUBXACTS | detail::DROPPED) {
        let end = transaction.end.as_mut().ok_or_else(|| Malformed("an end's details without an end".into()))?;
        if has(detail::DATABASE) {
            end.database = Some(Oid(u32_of(cursor)?));
        }
        if has(detail::SUBXACTS) {
            end.subxacts = read_xids(cursor)?.into();
        }
        if has(detail::DROPPED) {
            let count = count(cursor)?;
            end.dropped = (0..count).map(|_| relations.read(cursor)).collect::<Decoded<_>>()?;
        }
    }
    if has(detail::PREPARED) {
        transaction.prepared = Some(Box::new(Prepared {
            lsn: Lsn(apply_difference(start.0, cursor.varint()?)),
            time: TimestampTz(apply_difference(0, cursor.varint()?) as i64),
            gid: cursor.bytes(PART_MAX)?.to_vec(),
            database: Oid(u32_of(cursor)?),
            subxacts: read_xids(cursor)?,
        }));
    }
    if has(detail::TOP) {
        transaction.top = Some(u32_of(cursor)?);
    }
    Ok(())
}

fn read_xids(cursor: &mut Cursor<'_>) -> Decoded<Vec<Xid>> {
    let count = count(cursor)?;
    let mut at_least = 0_u64;
    let mut list = Vec::with_capacity(count);
    for _ in 0..count {
        let xid = at_least.saturating_add(cursor.varint()?);
        list.push(Xid::try_from(xid).map_err(|_| Malformed("a transaction id beyond 32 bits".into()))?);
        at_least = xid + 1;
    }
    Ok(list)
}
