//! Words shared by all modules: relation files, forks, transaction ids, times.

use std::fmt;

pub use pg_format::{Lsn, PgMajor, SystemId, Timeline, TimestampTz};

/// A transaction id, 32 bits, as WAL records carry it; 0 is "none".
pub type Xid = u32;

/// Which file of a relation (`common/relpath.h`, `ForkNumber`).
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Fork {
    /// The data itself.
    Main,
    /// The free space map, `_fsm`.
    FreeSpace,
    /// The visibility map, `_vm`.
    Visibility,
    /// The initial fork of an unlogged relation, `_init`.
    Init,
}

impl Fork {
    /// From PostgreSQL's number; `None` for one that no version has.
    pub fn from_number(number: u32) -> Option<Self> {
        Some(match number {
            0 => Self::Main,
            1 => Self::FreeSpace,
            2 => Self::Visibility,
            3 => Self::Init,
            _ => return None,
        })
    }

    /// PostgreSQL's number.
    pub fn number(self) -> u8 {
        self as u8
    }

    /// The name `pg_waldump` prints.
    pub fn name(self) -> &'static str {
        match self {
            Self::Main => "main",
            Self::FreeSpace => "fsm",
            Self::Visibility => "vm",
            Self::Init => "init",
        }
    }
}

/// Where a relation's files lie: tablespace, database and file number (`RelFileNode`, `RelFileLocator` since 16).
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct RelFileLocator {
    /// OID of the tablespace.
    pub tablespace: u32,
    /// OID of the database; 0 for shared relations.
    pub database: u32,
    /// The relfilenode.
    pub relfilenode: u32,
}

impl fmt::Display for RelFileLocator {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}/{}", self.tablespace, self.database, self.relfilenode)
    }
}
