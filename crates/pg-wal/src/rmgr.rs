//! Resource managers (`access/rmgrlist.h`; the same list in 14 to 18).

use crate::types::PgMajor;

/// Who wrote a record.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[allow(missing_docs)]
pub enum Rmgr {
    Xlog,
    Transaction,
    Storage,
    Clog,
    Database,
    Tablespace,
    MultiXact,
    RelMap,
    Standby,
    Heap2,
    Heap,
    Btree,
    Hash,
    Gin,
    Gist,
    Sequence,
    SpGist,
    Brin,
    CommitTs,
    ReplicationOrigin,
    Generic,
    LogicalMessage,
    /// An extension's, 15 and later (`RM_MIN_CUSTOM_ID` to `RM_MAX_CUSTOM_ID`).
    Custom(u8),
}

const BUILTIN: [(Rmgr, &str); 22] = [
    (Rmgr::Xlog, "XLOG"),
    (Rmgr::Transaction, "Transaction"),
    (Rmgr::Storage, "Storage"),
    (Rmgr::Clog, "CLOG"),
    (Rmgr::Database, "Database"),
    (Rmgr::Tablespace, "Tablespace"),
    (Rmgr::MultiXact, "MultiXact"),
    (Rmgr::RelMap, "RelMap"),
    (Rmgr::Standby, "Standby"),
    (Rmgr::Heap2, "Heap2"),
    (Rmgr::Heap, "Heap"),
    (Rmgr::Btree, "Btree"),
    (Rmgr::Hash, "Hash"),
    (Rmgr::Gin, "Gin"),
    (Rmgr::Gist, "Gist"),
    (Rmgr::Sequence, "Sequence"),
    (Rmgr::SpGist, "SPGist"),
    (Rmgr::Brin, "BRIN"),
    (Rmgr::CommitTs, "CommitTs"),
    (Rmgr::ReplicationOrigin, "ReplicationOrigin"),
    (Rmgr::Generic, "Generic"),
    (Rmgr::LogicalMessage, "LogicalMessage"),
];

impl Rmgr {
    /// From `xl_rmid`; `None` when this version can have no such resource manager.
    #[inline]
    pub fn from_id(id: u8, major: PgMajor) -> Option<Self> {
        match BUILTIN.get(usize::from(id)) {
            Some((rmgr, _)) => Some(*rmgr),
            None if id >= 128 && major != PgMajor::V14 => Some(Self::Custom(id)),
            None => None,
        }
    }

    /// The name `pg_waldump` prints.
    pub fn name(self) -> String {
        match self {
            Self::Custom(id) => format!("custom{id:03}"),
            builtin => BUILTIN.iter().find(|(rmgr, _)| *rmgr == builtin).map_or("", |(_, name)| name).to_owned(),
        }
    }
}
