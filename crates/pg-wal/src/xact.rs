//! Ends and preparations of transactions (`access/xact.h`, `access/rmgrdesc/xactdesc.c`).

use crate::bytes::Cursor;
use crate::types::{Lsn, Oid, PgMajor, RelFileLocator, TimestampTz, Xid};

/// A commit or abort, one- or two-phase (`ParseCommitRecord`, `ParseAbortRecord`).
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct XactEnd {
    /// The transaction: for a prepared one, the one that was prepared, not the session's that ends it.
    pub xid: Xid,
    /// When (`xact_time`). Not in order along the WAL.
    pub time: TimestampTz,
    /// All flags (`xinfo`); 0 when the record has none.
    pub xinfo: u32,
    /// The database it ran in, when it is written (`MyDatabaseId`, with `wal_level=logical` or invalidations).
    pub database: Option<Oid>,
    /// That database's tablespace.
    pub tablespace: Option<Oid>,
    /// Its subtransactions.
    pub subxacts: Vec<Xid>,
    /// Relation files it removes.
    pub dropped: Vec<RelFileLocator>,
    /// It ends a prepared transaction (`COMMIT PREPARED`, `ROLLBACK PREPARED`).
    pub prepared: bool,
    /// The name of the prepared transaction, when it is written (`wal_level=logical`).
    pub gid: Option<Vec<u8>>,
    /// LSN and time at the origin, for changes that were replicated here.
    pub origin: Option<(Lsn, TimestampTz)>,
}

/// A transaction made ready for its second phase (`xl_xact_prepare`).
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct XactPrepare {
    /// The transaction.
    pub xid: Xid,
    /// When.
    pub time: TimestampTz,
    /// The database.
    pub database: Oid,
    /// The role.
    pub owner: Oid,
    /// Its name.
    pub gid: Vec<u8>,
    /// Its subtransactions.
    pub subxacts: Vec<Xid>,
    /// Relation files it will remove if it commits.
    pub dropped_on_commit: Vec<RelFileLocator>,
    /// Relation files it will remove if it aborts.
    pub dropped_on_abort: Vec<RelFileLocator>,
}

const HAS_INFO: u8 = 0x80;
const XINFO_HAS_DBINFO: u32 = 1 << 0;
const XINFO_HAS_SUBXACTS: u32 = 1 << 1;
const XINFO_HAS_RELFILES: u32 = 1 << 2;
const XINFO_HAS_INVALS: u32 = 1 << 3;
const XINFO_HAS_TWOPHASE: u32 = 1 << 4;
const XINFO_HAS_ORIGIN: u32 = 1 << 5;
const XINFO_HAS_GID: u32 = 1 << 7;
const XINFO_HAS_DROPPED_STATS: u32 = 1 << 8;

/// `sizeof(SharedInvalidationMessage)` (`storage/sinval.h`), 14 to 18.
const INVAL_LEN: usize = 16;

/// `sizeof(xl_xact_stats_item)`: none in 14; 18 made the object id 64 bits.
fn stats_item_len(major: PgMajor) -> usize {
    if major >= PgMajor::V18 { 16 } else { 12 }
}

/// What tells the four kinds of end apart.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum EndKind {
    Commit { prepared: bool },
    Abort { prepared: bool },
}

pub(crate) fn parse_end(data: &[u8], info: u8, xid: Xid, kind: EndKind, major: PgMajor) -> Option<XactEnd> {
    let mut cursor = Cursor::new(data);
    let time = TimestampTz(cursor.i64()?);
    let xinfo = if info & HAS_INFO != 0 { cursor.u32()? } else { 0 };
    let has = |flag: u32| xinfo & flag != 0;
    let (commits, prepared) = match kind {
        EndKind::Commit { prepared } => (true, prepared),
        EndKind::Abort { prepared } => (false, prepared),
    };
    let mut end = XactEnd {
        xid,
        time,
        xinfo,
        database: None,
        tablespace: None,
        subxacts: Vec::new(),
        dropped: Vec::new(),
        prepared,
        gid: None,
        origin: None,
    };
    if has(XINFO_HAS_DBINFO) {
        end.database = Some(cursor.oid()?);
        end.tablespace = Some(cursor.oid()?);
    }
    if has(XINFO_HAS_SUBXACTS) {
        let count = cursor.u32()?;
        end.subxacts = cursor.u32s(count)?;
    }
    if has(XINFO_HAS_RELFILES) {
        let count = cursor.u32()?;
        end.dropped = cursor.rel_files(count)?;
    }
    if has(XINFO_HAS_DROPPED_STATS) && major >= PgMajor::V15 {
        let count = cursor.u32()? as usize;
        cursor.take(count.checked_mul(stats_item_len(major))?)?;
    }
    if has(XINFO_HAS_INVALS) && commits {
        let count = cursor.u32()? as usize;
        cursor.take(count.checked_mul(INVAL_LEN)?)?;
    }
    if has(XINFO_HAS_TWOPHASE) {
        end.xid = cursor.u32()?;
        if has(XINFO_HAS_GID) {
            end.gid = Some(cursor.c_string()?.to_vec());
        }
    }
    if has(XINFO_HAS_ORIGIN) {
        end.origin = Some((Lsn(cursor.u64()?), TimestampTz(cursor.i64()?)));
    }
    Some(end)
}

pub(crate) fn parse_prepare(data: &[u8], major: PgMajor) -> Option<XactPrepare> {
    let mut cursor = Cursor::new(data);
    let (_magic, _total_len) = (cursor.u32()?, cursor.u32()?);
    let xid = cursor.u32()?;
    let database = cursor.oid()?;
    let time = TimestampTz(cursor.i64()?);
    let owner = cursor.oid()?;
    let subxact_count = cursor.u32()?;
    let commit_count = cursor.u32()?;
    let abort_count = cursor.u32()?;
    if major >= PgMajor::V15 {
        // ncommitstats, nabortstats
        cursor.take(8)?;
    }
    let _inval_count = cursor.u32()?;
    // initfileinval and the padding after it
    cursor.take(2)?;
    let gid_len = usize::from(cursor.u16()?);
    // origin_lsn, origin_timestamp; the size of the struct is a multiple of 8 in all versions
    cursor.take(16)?;
    let gid = cursor.take(gid_len)?;
    let gid = gid.split(|b| *b == 0).next().unwrap_or_default().to_vec();
    cursor.align8();
    let subxacts = cursor.u32s(subxact_count)?;
    cursor.align8();
    let dropped_on_commit = cursor.rel_files(commit_count)?;
    cursor.align8();
    let dropped_on_abort = cursor.rel_files(abort_count)?;
    Some(XactPrepare { xid, time, database, owner, gid, subxacts, dropped_on_commit, dropped_on_abort })
}
