//! Words shared by all modules: relation files, forks, transaction ids, times.

use std::fmt;

pub use pg_format::{BlockNumber, Fork, Lsn, Oid, PgMajor, SystemId, Timeline, TimestampTz};

/// A transaction id, 32 bits, as WAL records carry it; 0 is "none".
pub type Xid = u32;

/// Where a relation's files lie: tablespace, database and file number (`RelFileNode`, `RelFileLocator` since 16).
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct RelFileLocator {
    /// OID of the tablespace.
    pub tablespace: Oid,
    /// OID of the database; 0 for shared relations.
    pub database: Oid,
    /// The relfilenode.
    pub relfilenode: u32,
}

impl fmt::Display for RelFileLocator {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}/{}", self.tablespace, self.database, self.relfilenode)
    }
}
