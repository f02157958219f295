//! What a dump gives back to who asked for it.

use jiff::Timestamp;
use repo::BackupId;
use repo::dump::{DataKind, DumpFacts, Unread};
use serde::Serialize;

/// A dump that was made.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct DumpReport {
    /// Its ID.
    pub dump: BackupId,
    /// When it began.
    pub started: Timestamp,
    /// How long it took.
    pub elapsed_ms: u64,
    /// The databases.
    pub databases: Vec<DatabaseReport>,
    /// Whether roles, tablespaces and settings are in it.
    pub globals: bool,
    /// Plain bytes of definitions and data.
    pub bytes: u64,
    /// Bytes stored for them.
    pub stored_bytes: u64,
    /// Microseconds between the first and the last snapshot, with several databases.
    pub synchronised_within_us: Option<u64>,
    /// What a human should read.
    pub warnings: Vec<String>,
}

/// One database of it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct DatabaseReport {
    /// Its name.
    pub name: String,
    /// Tables with data.
    pub tables: u64,
    /// Their rows.
    pub rows: u64,
    /// Tables of those whose rows are in binary form.
    pub tables_binary: u64,
    /// Large objects.
    pub large_objects: u64,
    /// Plain bytes of the data.
    pub bytes: u64,
    /// When its snapshot was taken, by the server's clock.
    pub snapshot_time: Timestamp,
    /// Where the WAL was then.
    pub snapshot_lsn: Option<String>,
    /// What the login could not read.
    pub unread: Vec<Unread>,
}

impl DumpReport {
    /// From the facts that were written.
    pub(crate) fn of(facts: &DumpFacts) -> Self {
        let elapsed = facts.finished.as_millisecond() - facts.started.as_millisecond();
        let databases = facts.databases.iter().map(|database| {
            let of = |table: bool| database.data.iter().filter(move |data| data.kind.is_table() == table);
            DatabaseReport {
                name: database.name.clone(),
                tables: of(true).count() as u64,
                rows: of(true).map(|data| data.rows).sum(),
                tables_binary: of(true).filter(|data| data.kind == DataKind::TableBinary).count() as u64,
                large_objects: of(false).map(|data| data.rows).sum(),
                bytes: database.data.iter().map(|data| data.bytes).sum(),
                snapshot_time: database.snapshot_time,
                snapshot_lsn: database.snapshot_lsn.clone(),
                unread: database.unread.clone(),
            }
        });
        Self {
            dump: facts.dump,
            started: facts.started,
            elapsed_ms: elapsed.max(0).unsigned_abs(),
            databases: databases.collect(),
            globals: facts.globals.is_some(),
            bytes: facts.bytes,
            stored_bytes: facts.stored_bytes,
            synchronised_within_us: facts.synchronised_within_us,
            warnings: facts.warnings.clone(),
        }
    }
}
