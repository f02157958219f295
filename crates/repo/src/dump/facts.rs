//! What a dump's manifest and intent say, as JSON.

use super::RowSum;
use crate::{BackupId, ClusterName};
use jiff::Timestamp;
use serde::{Deserialize, Serialize};

/// That a dump is being made, and by whom.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct DumpIntent {
    /// The dump.
    pub dump: BackupId,
    /// Host that makes it.
    pub host: String,
    /// Process that makes it.
    pub pid: u32,
    /// The host's boot.
    pub boot: String,
    /// When the process started, in clock ticks since boot.
    pub process_start: u64,
    /// When it began.
    pub started: Timestamp,
}

/// That a dump is being deleted: from here on nothing pins it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct DeletionMark {
    /// The dump.
    pub(crate) dump: BackupId,
    /// Since when.
    pub(crate) at: Timestamp,
}

/// What kind of data an entry has.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum DataKind {
    /// Rows as `COPY … TO STDOUT` gives them.
    Table,
    /// Rows as `COPY … TO STDOUT (FORMAT binary)` gives them.
    TableBinary,
    /// Large objects.
    LargeObjects,
}

impl DataKind {
    /// Whether it is rows of a table, in whichever form.
    pub fn is_table(self) -> bool {
        matches!(self, Self::Table | Self::TableBinary)
    }
}

/// A part of an entry's data.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct DumpedPart {
    /// Index of the stream in the manifest.
    pub stream: u32,
    /// Rows, or large objects.
    pub rows: u64,
    /// Plain bytes.
    pub bytes: u64,
    /// The sum of its rows or large objects.
    #[serde(default, deserialize_with = "super::sum::known")]
    pub sum: Option<RowSum>,
}

/// The data of one entry of the table of contents.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct DumpedData {
    /// The entry's dump ID in the table of contents.
    pub entry: i32,
    /// What it is.
    pub kind: DataKind,
    /// Schema; empty for large objects.
    pub schema: String,
    /// Table, or which large objects.
    pub name: String,
    /// Rows, or large objects.
    pub rows: u64,
    /// Plain bytes.
    pub bytes: u64,
    /// The parts, in order.
    pub parts: Vec<DumpedPart>,
}

impl DumpedData {
    /// The sum of all its rows or large objects; none when a part has none.
    pub fn sum(&self) -> Option<RowSum> {
        self.parts.iter().try_fold(RowSum::default(), |sum, part| Some(sum.and(part.sum?)))
    }
}

/// Something that was left out because the login could not read it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Unread {
    /// What: a table, as SQL names it.
    pub what: String,
    /// Why.
    pub why: String,
}

/// One database of a dump.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct DumpedDatabase {
    /// Its name.
    pub name: String,
    /// Encoding of definitions and data.
    pub encoding: String,
    /// When its snapshot was taken, by the server's clock.
    pub snapshot_time: Timestamp,
    /// Where the WAL was when the snapshot was taken; none on a standby.
    pub snapshot_lsn: Option<String>,
    /// Version of the pg_dump that made the definitions.
    pub tools: String,
    /// Index of the stream with the definitions.
    pub definitions: u32,
    /// Entries with data.
    pub data: Vec<DumpedData>,
    /// What could not be read.
    pub unread: Vec<Unread>,
}

/// Where a dump comes from that was not made here.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ImportedDump {
    /// The file or directory that it was read from.
    pub path: String,
    /// `custom`, `directory`, `tar` or `plain`.
    pub format: String,
    /// Index of the stream with the SQL text, of the plain form; there are no databases then.
    pub script: Option<u32>,
    /// The databases that the text connects to, as pg_dumpall and `pg_dump --create` write it.
    pub connects_to: Vec<String>,
}

/// What a dump is.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct DumpFacts {
    /// Its ID.
    pub dump: BackupId,
    /// The cluster's name.
    pub cluster: ClusterName,
    /// A text to know it by.
    pub label: Option<String>,
    /// The program that made it.
    pub made_by: String,
    /// Host it was made on.
    pub host: String,
    /// When it began.
    pub started: Timestamp,
    /// When the last data were stored.
    pub finished: Timestamp,
    /// The cluster's system identifier, where the login may ask.
    pub system_id: Option<String>,
    /// `server_version`.
    pub pg_version: String,
    /// `server_version_num`.
    pub pg_version_num: u32,
    /// How it was compressed.
    pub compression: String,
    /// Plain bytes of all streams.
    pub bytes: u64,
    /// Bytes stored for them.
    pub stored_bytes: u64,
    /// Microseconds between the first and the last snapshot, with several databases.
    pub synchronised_within_us: Option<u64>,
    /// Index of the stream with roles, tablespaces and settings.
    pub globals: Option<u32>,
    /// The databases.
    pub databases: Vec<DumpedDatabase>,
    /// What of each database was asked for, as switches of pg_dump; none for all.
    #[serde(default)]
    pub selection: Vec<String>,
    /// Where it comes from, when it was not made here.
    #[serde(default)]
    pub imported: Option<ImportedDump>,
    /// What a human should read.
    pub warnings: Vec<String>,
}
