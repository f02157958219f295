//! What heap records do to rows (`access/heapam_xlog.h`; these records are the same in 14 to 18).

use crate::bytes::Cursor;
use crate::record::Record;
use crate::rmgr::Rmgr;
use crate::types::Oid;

const INSERT: u8 = 0x00;
const DELETE: u8 = 0x10;
const UPDATE: u8 = 0x20;
const TRUNCATE: u8 = 0x30;
const HOT_UPDATE: u8 = 0x40;
const MULTI_INSERT: u8 = 0x50;
/// `XLOG_HEAP_OPMASK`; the bit above it says that the page is made anew.
const OP_MASK: u8 = 0x70;

/// `XLH_DELETE_IS_SUPER`: a speculative insertion is taken back.
const DELETE_IS_SUPER: u8 = 1 << 3;
/// `XLH_UPDATE_PREFIX_FROM_OLD`.
pub(crate) const UPDATE_PREFIX_FROM_OLD: u8 = 1 << 5;
/// `XLH_UPDATE_SUFFIX_FROM_OLD`.
pub(crate) const UPDATE_SUFFIX_FROM_OLD: u8 = 1 << 6;

/// What a heap record does to the rows of the relation of its first block.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum HeapChange {
    /// One row is added.
    Insert {
        /// Its line pointer on block 0.
        offset: u16,
    },
    /// Several rows are added to one page.
    MultiInsert {
        /// How many.
        rows: u16,
    },
    /// One row is deleted.
    Delete {
        /// Its line pointer on block 0.
        offset: u16,
    },
    /// A speculative insertion (`ON CONFLICT`) is taken back.
    InsertTakenBack,
    /// One row is replaced by another version.
    Update {
        /// The old version's line pointer, on block 1, or 0 when there is no block 1.
        old_offset: u16,
        /// The new version's, on block 0.
        new_offset: u16,
        /// `XLH_UPDATE_*`.
        flags: u8,
        /// No index had to change.
        hot: bool,
    },
    /// `TRUNCATE`, written with `wal_level=logical` only, for logical decoding.
    Truncate {
        /// The database.
        database: Oid,
        /// The relations, by OID; sequences that are restarted come last.
        relations: Vec<Oid>,
    },
    /// No row comes or goes: locks, confirmations, pruning, freezing.
    None,
}

impl HeapChange {
    /// Reads a record of the resource managers `Heap` and `Heap2`; `None` when it has not the form of its kind.
    #[inline]
    pub fn of(record: &Record<'_>) -> Option<Self> {
        let op = record.header.info & OP_MASK;
        let mut data = Cursor::new(record.main_data());
        Some(match (record.rmgr, op) {
            (Rmgr::Heap, INSERT) => Self::Insert { offset: data.u16()? },
            (Rmgr::Heap, DELETE) => {
                data.take(4)?;
                let offset = data.u16()?;
                data.take(1)?;
                if data.u8()? & DELETE_IS_SUPER != 0 { Self::InsertTakenBack } else { Self::Delete { offset } }
            }
            (Rmgr::Heap, UPDATE | HOT_UPDATE) => {
                data.take(4)?;
                let old_offset = data.u16()?;
                data.take(1)?;
                let flags = data.u8()?;
                data.take(4)?;
                Self::Update { old_offset, new_offset: data.u16()?, flags, hot: op == HOT_UPDATE }
            }
            (Rmgr::Heap, TRUNCATE) => {
                let database = data.oid()?;
                let count = data.u32()?;
                data.take(4)?;
                Self::Truncate { database, relations: data.u32s(count)?.into_iter().map(Oid).collect() }
            }
            (Rmgr::Heap2, MULTI_INSERT) => {
                data.take(2)?;
                Self::MultiInsert { rows: data.u16()? }
            }
            _ => Self::None,
        })
    }
}
