//! Marks and catalog rows as bytes, both ways.

use super::decode::{RelationList, count};
use super::encode::Relations;
use super::{apply_difference, difference};
use crate::coding::{Cursor, Decoded, Malformed, put_bytes, put_varint};
use pg_wal::event::WalLevel;
use pg_wal::index::{
    Catalog, CatalogChange, CatalogChangeKind, CatalogRow, Mark, MarkKind, RowImage, RowPatch, TupleId,
};
use pg_wal::{Fork, Lsn, Oid, Timeline, TimestampTz};

/// Names and paths are as long as the part that they lie in allows.
const TEXT_MAX: u64 = super::decode::PART_MAX;

pub(super) fn put_marks(out: &mut Vec<u8>, start: Lsn, marks: &[Mark], relations: &Relations) {
    put_varint(out, marks.len() as u64);
    let mut lsn = start.0;
    for mark in marks {
        put_varint(out, difference(lsn, mark.lsn.0));
        lsn = mark.lsn.0;
        put_varint(out, mark.xid.into());
        put_mark(out, mark, relations);
    }
}

fn put_mark(out: &mut Vec<u8>, mark: &Mark, relations: &Relations) {
    let put_time = |out: &mut Vec<u8>, time: &TimestampTz| put_varint(out, difference(0, time.0 as u64));
    match &mark.kind {
        MarkKind::RestorePoint { name, time, end } => {
            out.push(1);
            put_bytes(out, name);
            put_time(out, time);
            put_varint(out, difference(mark.lsn.0, end.0));
        }
        MarkKind::Checkpoint { redo, timeline, timeline_prev, shutdown, wal_level } => {
            out.push(2);
            put_varint(out, redo.0);
            put_varint(out, timeline.0.into());
            put_varint(out, timeline_prev.0.into());
            out.push(u8::from(*shutdown));
            put_level(out, *wal_level);
        }
        MarkKind::EndOfRecovery { timeline, timeline_prev, time, wal_level } => {
            out.push(3);
            put_varint(out, timeline.0.into());
            put_varint(out, timeline_prev.0.into());
            put_time(out, time);
            put_level(out, *wal_level);
        }
        MarkKind::WalLevel { level } => {
            out.push(4);
            put_level(out, Some(*level));
        }
        MarkKind::FullPageWrites { on } => out.extend([5, u8::from(*on)]),
        MarkKind::Overwritten { lost, time } => {
            out.push(6);
            put_varint(out, lost.0);
            put_time(out, time);
        }
        MarkKind::DatabaseCreate { database, tablespace, source } => {
            out.push(7);
            put_oids(out, &[*database, *tablespace]);
            out.push(u8::from(source.is_some()));
            if let Some((database, tablespace)) = source {
                put_oids(out, &[*database, *tablespace]);
            }
        }
        MarkKind::DatabaseDrop { database, tablespaces } => {
            out.push(8);
            put_oids(out, &[*database]);
            put_varint(out, tablespaces.len() as u64);
            put_oids(out, tablespaces);
        }
        MarkKind::TablespaceCreate { tablespace, path } => {
            out.push(9);
            put_oids(out, &[*tablespace]);
            put_bytes(out, path);
        }
        MarkKind::TablespaceDrop { tablespace } => {
            out.push(10);
            put_oids(out, &[*tablespace]);
        }
        MarkKind::RelMap { database, files } => {
            out.push(11);
            put_oids(out, &[*database]);
            put_varint(out, files.len() as u64);
            for (oid, file) in files {
                put_oids(out, &[*oid, Oid(*file)]);
            }
        }
        MarkKind::Truncate { database, relations } => {
            out.push(12);
            put_oids(out, &[*database]);
            put_varint(out, relations.len() as u64);
            put_oids(out, relations);
        }
        MarkKind::RelationCreate { rel, fork } => {
            out.push(13);
            put_varint(out, relations.number(rel));
            out.push(fork.number());
        }
        MarkKind::RelationTruncate { rel, blocks } => {
            out.push(14);
            put_varint(out, relations.number(rel));
            put_varint(out, (*blocks).into());
        }
        // The enum may grow before the format does; a reader would stop at a kind without a number.
        _ => out.push(0),
    }
}

fn put_oids(out: &mut Vec<u8>, oids: &[Oid]) {
    oids.iter().for_each(|oid| put_varint(out, oid.0.into()));
}

fn put_level(out: &mut Vec<u8>, level: Option<WalLevel>) {
    put_varint(out, level.map_or(0, |level| u64::from(level.number()) + 1));
}

fn u32_of(cursor: &mut Cursor<'_>) -> Decoded<u32> {
    Ok(cursor.bounded("number", u32::MAX.into())? as u32)
}

fn oid(cursor: &mut Cursor<'_>) -> Decoded<Oid> {
    u32_of(cursor).map(Oid)
}

fn timeline(cursor: &mut Cursor<'_>) -> Decoded<Timeline> {
    u32_of(cursor).map(Timeline)
}

fn time(cursor: &mut Cursor<'_>) -> Decoded<TimestampTz> {
    Ok(TimestampTz(apply_difference(0, cursor.varint()?) as i64))
}

fn yes(cursor: &mut Cursor<'_>) -> Decoded<bool> {
    match cursor.u8()? {
        0 => Ok(false),
        1 => Ok(true),
        other => Err(Malformed(format!("{other} where 0 or 1 is expected"))),
    }
}

fn level(cursor: &mut Cursor<'_>) -> Decoded<Option<WalLevel>> {
    let number = cursor.bounded("wal_level", u64::from(u32::MAX) + 1)?;
    Ok(number.checked_sub(1).map(|number| WalLevel::from_number(number as u32)))
}

fn oids(cursor: &mut Cursor<'_>) -> Decoded<Vec<Oid>> {
    let count = count(cursor)?;
    (0..count).map(|_| oid(cursor)).collect()
}

pub(super) fn read_marks(plain: &[u8], start: Lsn, relations: &RelationList) -> Decoded<Vec<Mark>> {
    let mut cursor = Cursor::new(plain);
    let count = count(&mut cursor)?;
    let mut marks = Vec::with_capacity(count.min(1024));
    let mut lsn = start.0;
    for _ in 0..count {
        lsn = apply_difference(lsn, cursor.varint()?);
        let xid = u32_of(&mut cursor)?;
        let kind = read_mark(&mut cursor, Lsn(lsn), relations)?;
        marks.push(Mark { lsn: Lsn(lsn), xid, kind });
    }
    cursor.finish()?;
    Ok(marks)
}

fn read_mark(cursor: &mut Cursor<'_>, lsn: Lsn, relations: &RelationList) -> Decoded<MarkKind> {
    Ok(match cursor.u8()? {
        1 => MarkKind::RestorePoint {
            name: cursor.bytes(TEXT_MAX)?.to_vec(),
            time: time(cursor)?,
            end: Lsn(apply_difference(lsn.0, cursor.varint()?)),
        },
        2 => MarkKind::Checkpoint {
            redo: Lsn(cursor.varint()?),
            timeline: timeline(cursor)?,
            timeline_prev: timeline(cursor)?,
            shutdown: yes(cursor)?,
            wal_level: level(cursor)?,
        },
        3 => MarkKind::EndOfRecovery {
            timeline: timeline(cursor)?,
            timeline_prev: timeline(cursor)?,
            time: time(cursor)?,
            wal_level: level(cursor)?,
        },
        4 => MarkKind::WalLevel { level: level(cursor)?.ok_or(Malformed("no wal_level".into()))? },
        5 => MarkKind::FullPageWrites { on: yes(cursor)? },
        6 => MarkKind::Overwritten { lost: Lsn(cursor.varint()?), time: time(cursor)? },
        7 => {
            let (database, tablespace) = (oid(cursor)?, oid(cursor)?);
            let source = if yes(cursor)? { Some((oid(cursor)?, oid(cursor)?)) } else { None };
            MarkKind::DatabaseCreate { database, tablespace, source }
        }
        8 => MarkKind::DatabaseDrop { database: oid(cursor)?, tablespaces: oids(cursor)? },
        9 => MarkKind::TablespaceCreate { tablespace: oid(cursor)?, path: cursor.bytes(TEXT_MAX)?.to_vec() },
        10 => MarkKind::TablespaceDrop { tablespace: oid(cursor)? },
        11 => {
            let database = oid(cursor)?;
            let count = count(cursor)?;
            let file = |cursor: &mut Cursor<'_>| Ok((oid(cursor)?, u32_of(cursor)?));
            MarkKind::RelMap { database, files: (0..count).map(|_| file(cursor)).collect::<Decoded<_>>()? }
        }
        12 => MarkKind::Truncate { database: oid(cursor)?, relations: oids(cursor)? },
        13 => MarkKind::RelationCreate { rel: relations.read(cursor)?, fork: fork(cursor.u8()?)? },
        14 => MarkKind::RelationTruncate { rel: relations.read(cursor)?, blocks: u32_of(cursor)? },
        other => return Err(Malformed(format!("a mark of the unknown kind {other}"))),
    })
}

pub(super) fn fork(number: u8) -> Decoded<Fork> {
    Fork::from_number(number.into()).ok_or_else(|| Malformed(format!("there is no fork {number}")))
}

fn catalog_number(catalog: Catalog) -> u8 {
    match catalog {
        Catalog::Class => 0,
        Catalog::Namespace => 1,
        Catalog::Database => 2,
        Catalog::Tablespace => 3,
    }
}

pub(super) fn put_catalog(out: &mut Vec<u8>, start: Lsn, changes: &[CatalogChange]) {
    put_varint(out, changes.len() as u64);
    let mut lsn = start.0;
    for change in changes {
        put_varint(out, difference(lsn, change.lsn.0));
        lsn = change.lsn.0;
        put_varint(out, change.xid.into());
        put_oids(out, &[change.database]);
        out.push(catalog_number(change.catalog));
        match &change.kind {
            CatalogChangeKind::Page { block, rows } => {
                out.push(1);
                put_varint(out, (*block).into());
                put_varint(out, rows.len() as u64);
                for (offset, row) in rows {
                    put_varint(out, (*offset).into());
                    put_row(out, row);
                }
            }
            CatalogChangeKind::Insert { at, row } => {
                out.push(2);
                put_tid(out, at);
                put_new(out, row);
            }
            CatalogChangeKind::Update { old, new, row } => {
                out.push(3);
                put_tid(out, old);
                put_tid(out, new);
                put_new(out, row);
            }
            CatalogChangeKind::Delete { at } => {
                out.push(4);
                put_tid(out, at);
            }
        }
    }
}

fn put_tid(out: &mut Vec<u8>, tid: &TupleId) {
    put_varint(out, tid.block.into());
    put_varint(out, tid.offset.into());
}

fn put_row(out: &mut Vec<u8>, row: &RowImage) {
    put_varint(out, row.len.into());
    put_bytes(out, &row.head);
}

fn put_new(out: &mut Vec<u8>, row: &CatalogRow) {
    match row {
        CatalogRow::Unknown => out.push(0),
        CatalogRow::Whole(row) => {
            out.push(1);
            put_row(out, row);
        }
        CatalogRow::Patch(patch) => {
            out.push(2);
            [patch.len, patch.prefix, patch.suffix].into_iter().for_each(|number| put_varint(out, number.into()));
            put_bytes(out, &patch.bytes);
        }
    }
}

pub(super) fn read_catalog(plain: &[u8], start: Lsn) -> Decoded<Vec<CatalogChange>> {
    let mut cursor = Cursor::new(plain);
    let total = count(&mut cursor)?;
    let mut changes = Vec::with_capacity(total.min(1024));
    let mut lsn = start.0;
    for _ in 0..total {
        lsn = apply_difference(lsn, cursor.varint()?);
        let (xid, database) = (u32_of(&mut cursor)?, oid(&mut cursor)?);
        let number = cursor.u8()?;
        let catalog = Catalog::ALL
            .into_iter()
            .find(|catalog| catalog_number(*catalog) == number)
            .ok_or_else(|| Malformed(format!("there is no catalog {number}")))?;
        let kind = match cursor.u8()? {
            1 => {
                let block = u32_of(&mut cursor)?;
                let rows = count(&mut cursor)?;
                let row = |cursor: &mut Cursor<'_>| Ok((u16_of(cursor)?, read_row(cursor, catalog)?));
                let rows = (0..rows).map(|_| row(&mut cursor)).collect::<Decoded<_>>()?;
                CatalogChangeKind::Page { block, rows }
            }
            2 => CatalogChangeKind::Insert { at: read_tid(&mut cursor)?, row: read_new(&mut cursor, catalog)? },
            3 => CatalogChangeKind::Update {
                old: read_tid(&mut cursor)?,
                new: read_tid(&mut cursor)?,
                row: read_new(&mut cursor, catalog)?,
            },
            4 => CatalogChangeKind::Delete { at: read_tid(&mut cursor)? },
            other => return Err(Malformed(format!("a catalog change of the unknown kind {other}"))),
        };
        changes.push(CatalogChange { lsn: Lsn(lsn), xid, database, catalog, kind });
    }
    cursor.finish()?;
    Ok(changes)
}

fn u16_of(cursor: &mut Cursor<'_>) -> Decoded<u16> {
    Ok(cursor.bounded("number", u16::MAX.into())? as u16)
}

fn read_tid(cursor: &mut Cursor<'_>) -> Decoded<TupleId> {
    Ok(TupleId { block: u32_of(cursor)?, offset: u16_of(cursor)? })
}

fn read_row(cursor: &mut Cursor<'_>, catalog: Catalog) -> Decoded<RowImage> {
    Ok(RowImage { len: u16_of(cursor)?, head: cursor.bytes(catalog.head_len() as u64)?.to_vec() })
}

fn read_new(cursor: &mut Cursor<'_>, catalog: Catalog) -> Decoded<CatalogRow> {
    Ok(match cursor.u8()? {
        0 => CatalogRow::Unknown,
        1 => CatalogRow::Whole(read_row(cursor, catalog)?),
        2 => CatalogRow::Patch(RowPatch {
            len: u16_of(cursor)?,
            prefix: u16_of(cursor)?,
            suffix: u16_of(cursor)?,
            bytes: cursor.bytes(catalog.head_len() as u64)?.to_vec(),
        }),
        other => return Err(Malformed(format!("a row of the unknown kind {other}"))),
    })
}
