//! What happened at one place of the WAL and is neither a block, a row nor a transaction's end.

use crate::event::WalLevel;
use crate::types::{Fork, Lsn, Oid, RelFileLocator, Timeline, TimestampTz, Xid};

/// Something that happened.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Mark {
    /// Where its record begins.
    pub lsn: Lsn,
    /// The transaction that wrote it; 0 for none, and for what is done before a transaction has its id.
    pub xid: Xid,
    /// What.
    pub kind: MarkKind,
}

/// What happened.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum MarkKind {
    /// A named restore point.
    RestorePoint {
        /// Its name, in the server's encoding.
        name: Vec<u8>,
        /// When.
        time: TimestampTz,
        /// Where its record ends, which is what recovery to it replays.
        end: Lsn,
    },
    /// A checkpoint record.
    Checkpoint {
        /// Where replay from it begins.
        redo: Lsn,
        /// Its timeline.
        timeline: Timeline,
        /// The one before, when it begins a new one; else the same.
        timeline_prev: Timeline,
        /// Written at shutdown.
        shutdown: bool,
        /// The `wal_level`, 17 and later.
        wal_level: Option<WalLevel>,
    },
    /// A new timeline begins without a checkpoint.
    EndOfRecovery {
        /// The new timeline.
        timeline: Timeline,
        /// The one it left.
        timeline_prev: Timeline,
        /// When.
        time: TimestampTz,
        /// The `wal_level`, 17 and later.
        wal_level: Option<WalLevel>,
    },
    /// A `wal_level` was told: where replay begins (17 and later), or after settings changed.
    WalLevel {
        /// From here on.
        level: WalLevel,
    },
    /// `full_page_writes` was switched.
    FullPageWrites {
        /// Whether it is on from here on.
        on: bool,
    },
    /// A record was lost in a crash.
    Overwritten {
        /// Where it began.
        lost: Lsn,
        /// When that was found.
        time: TimestampTz,
    },
    /// A database was made.
    DatabaseCreate {
        /// The database.
        database: Oid,
        /// Where.
        tablespace: Oid,
        /// The database and tablespace its directory was copied from, when it was copied as files.
        source: Option<(Oid, Oid)>,
    },
    /// A database's directories were removed, at once.
    DatabaseDrop {
        /// The database.
        database: Oid,
        /// In which tablespaces.
        tablespaces: Vec<Oid>,
    },
    /// A tablespace was made.
    TablespaceCreate {
        /// The tablespace.
        tablespace: Oid,
        /// Its directory; empty when it lies in place.
        path: Vec<u8>,
    },
    /// A tablespace was removed, at once.
    TablespaceDrop {
        /// The tablespace.
        tablespace: Oid,
    },
    /// Mapped catalogs have these files now.
    RelMap {
        /// The database, 0 for the shared map.
        database: Oid,
        /// OIDs of catalogs with their relfilenodes; of those that give names only.
        files: Vec<(Oid, u32)>,
    },
    /// `TRUNCATE`, with `wal_level=logical` only. Else it shows as a new relfilenode in the table's catalog row.
    Truncate {
        /// The database.
        database: Oid,
        /// The relations, by OID.
        relations: Vec<Oid>,
    },
    /// A fork's file was made.
    RelationCreate {
        /// The relation.
        rel: RelFileLocator,
        /// The fork.
        fork: Fork,
    },
    /// A relation was cut off in place, at once (vacuum; tables truncated in the transaction that made them).
    RelationTruncate {
        /// The relation.
        rel: RelFileLocator,
        /// How many blocks its main fork keeps.
        blocks: u32,
    },
}

impl Mark {
    /// The `wal_level` that this mark tells, when it tells one.
    pub fn wal_level(&self) -> Option<WalLevel> {
        match &self.kind {
            MarkKind::Checkpoint { wal_level, .. } | MarkKind::EndOfRecovery { wal_level, .. } => *wal_level,
            MarkKind::WalLevel { level } => Some(*level),
            _ => None,
        }
    }
}
