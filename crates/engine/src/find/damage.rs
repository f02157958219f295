//! Where the damage of a `DROP DATABASE` begins.
//!
//! Before it deletes the row of `pg_database`, the server marks it in place as invalid (`dropdb`, `commands/dbcommands.c`,
//! since 15.4 and its like). That record belongs to no transaction, and is replayed whatever becomes of it: a target after
//! it would give a database that cannot be connected to. The index does not hold it; it is looked for in the WAL itself,
//! a segment or two.

use super::route::Route;
use super::types::{EventKind, Hit, ObjectKind};
use crate::wal::archive::segno_of;
use crate::{Context, EngineError};
use pg_format::{Fork, Lsn, SegmentName};
use pg_wal::index::TupleId;
use pg_wal::{Expected, Oid, Rmgr, SegmentReader};

/// `XLOG_HEAP_INPLACE` and `XLOG_HEAP_OPMASK` (`access/heapam_xlog.h`).
const HEAP_INPLACE: u8 = 0x70;
const HEAP_OP_MASK: u8 = 0x70;
/// So many segments before the one in which the transaction begins are looked at.
const BACK_MAX: u64 = 1;

/// Moves the targets of dropped databases before the mark. Drops that were broken off before they removed anything did
/// nothing where there is no mark, and go.
pub(super) async fn begin_before(ctx: &Context, route: &Route, hits: &mut Vec<Hit>) -> Result<(), EngineError> {
    for hit in hits.iter_mut() {
        let Some((row, deleted)) = hit.marked_row else { continue };
        if let Some(lsn) = marked_at(ctx, route, deleted, row).await? {
            hit.target.lsn = hit.target.lsn.min(lsn);
            hit.must_be_marked = false;
        }
    }
    hits.retain(|hit| !hit.must_be_marked);
    tell_earlier_attempts(hits);
    Ok(())
}

/// Before a drop that succeeded the database was invalid already, when an attempt before was broken off.
fn tell_earlier_attempts(hits: &mut [Hit]) {
    let database = |hit: &Hit| hit.objects.iter().find(|object| object.kind == ObjectKind::Database)?.oid;
    let attempts: Vec<(Oid, Lsn)> =
        hits.iter().filter(|hit| hit.broken_off).filter_map(|hit| Some((database(hit)?, hit.target.lsn))).collect();
    for hit in hits.iter_mut().filter(|hit| hit.kind == EventKind::Drop) {
        let earlier = |(oid, lsn): &&(Oid, Lsn)| database(hit) == Some(*oid) && *lsn < hit.target.lsn;
        if let Some((_, lsn)) = attempts.iter().find(earlier) {
            hit.notes.push(format!("an attempt before was broken off: the database is whole before {lsn} only"));
        }
    }
}

/// The last place before `before` where this row of `pg_database` was changed in place.
async fn marked_at(ctx: &Context, route: &Route, before: Lsn, row: TupleId) -> Result<Option<Lsn>, EngineError> {
    let size = route.archive.segment_size();
    let segno = before.segment_no(size).0;
    for segno in (segno.saturating_sub(BACK_MAX)..=segno).rev() {
        let is_it = |name: &&SegmentName| segno_of(**name, size).is_ok_and(|found| found.0 == segno);
        let Some(name) = route.segments.iter().find(is_it) else { continue };
        let plain = match ctx.or_cancel(route.archive.read_plain(*name)).await? {
            Ok(plain) => plain,
            // Then the transaction's first record must do.
            Err(EngineError::Repo(error)) if error.is_damage() || error.is_not_found() => return Ok(None),
            Err(error) => return Err(error),
        };
        if let Some(found) = last_mark(&plain, before, row) {
            return Ok(Some(found));
        }
    }
    Ok(None)
}

fn last_mark(plain: &[u8], before: Lsn, row: TupleId) -> Option<Lsn> {
    let mut reader = SegmentReader::open(plain, &Expected::default()).ok()?;
    let mut found = None;
    while let Some(record) = reader.next_record() {
        if record.lsn >= before {
            break;
        }
        if record.rmgr != Rmgr::Heap || record.header.info & HEAP_OP_MASK != HEAP_INPLACE {
            continue;
        }
        // `xl_heap_inplace` begins with the line pointer.
        let offset = record.main_data().get(..2).map(|bytes| u16::from_le_bytes([bytes[0], bytes[1]]));
        let is_row = record.blocks().first().is_some_and(|block| {
            // pg_database is shared, whatever file it lies in; few other rows there are changed in place.
            (block.rel.tablespace, block.rel.database) == (Oid::GLOBAL_TABLESPACE, Oid(0))
                && block.fork == Fork::Main
                && block.block.0 == row.block
        });
        if is_row && offset == Some(row.offset) {
            found = Some(record.lsn);
        }
    }
    found
}
