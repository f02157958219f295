//! Where names were lost on the way, and what that says of the names of backups.

use pg_format::Lsn;
use pg_wal::Oid;

/// From a place on, names that were known do not hold any more: what happened to the catalogs there is not known.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Doubt {
    /// In this database; in all when it is `None`.
    pub(super) database: Option<Oid>,
    /// Where.
    pub(super) lsn: Lsn,
    /// Until here it was not seen either what happened to schemas; the same place when that was seen again at once.
    pub(super) schemas_until: Lsn,
}

impl Doubt {
    /// Names were lost here, and what happens after that is seen.
    pub(super) fn at(database: Option<Oid>, lsn: Lsn) -> Self {
        Self { database, lsn, schemas_until: lsn }
    }

    /// Whether a name that held at `from` need not hold at `to`.
    pub(super) fn lies_between(&self, from: Lsn, to: Lsn, database: Oid) -> bool {
        self.lsn >= from && self.lsn <= to && self.is_of(database)
    }

    /// The same for the name of a schema.
    pub(super) fn schemas_lie_between(&self, from: Lsn, to: Lsn, database: Oid) -> bool {
        self.schemas_until >= from && self.lsn <= to && self.is_of(database)
    }

    fn is_of(&self, database: Oid) -> bool {
        self.database.is_none_or(|of| of == database || !database.is_valid())
    }
}
