//! The facts of a backup, as JSON.

use crate::{BackupId, ClusterName};
use jiff::Timestamp;
use pg_format::{Lsn, SystemId, Timeline};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

/// What a backup is, from where, and how it was made.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ManifestFacts {
    /// The backup's ID.
    pub backup: BackupId,
    /// The cluster's name in the repository.
    pub cluster: ClusterName,
    /// What the operator wrote at it.
    pub label: Option<String>,
    /// The program that made it, with its version.
    pub made_by: String,
    /// When reading began.
    pub started: Timestamp,
    /// When the last page was stored and the WAL was there.
    pub finished: Timestamp,
    /// How the files were read: `direct`, `stream`, `offline`, `snapshot`.
    pub source: String,
    /// Whether the server was a standby.
    pub from_standby: bool,
    /// Whether the backup carries the WAL that it needs.
    pub standalone: bool,
    /// The cluster's system identifier.
    pub system_id: SystemId,
    /// `server_version_num`.
    pub pg_version_num: u32,
    /// `server_version`, as text.
    pub pg_version: String,
    /// Catalog version number of pg_control.
    pub catalog_version: u32,
    /// Timeline of the start LSN.
    pub timeline: Timeline,
    /// Where replay begins (the label's START WAL LOCATION).
    pub start_lsn: Lsn,
    /// Where the backup becomes consistent.
    pub stop_lsn: Lsn,
    /// When `pg_backup_stop` returned, by the server's clock: the earliest time that can be recovered to.
    pub stop_time: Timestamp,
    /// Block size in bytes.
    pub block_size: u32,
    /// Blocks in a segment of a relation.
    pub relseg_blocks: u32,
    /// WAL segment size in bytes.
    pub wal_segment_size: u64,
    /// Whether the cluster has data checksums.
    pub checksums: bool,
    /// The data directory's path.
    pub data_directory: String,
    /// The tablespaces, without pg_default and pg_global.
    pub tablespaces: Vec<TablespaceFacts>,
    /// `backup_label`, base64 of the bytes; absent for a backup of a stopped server.
    pub backup_label: Option<String>,
    /// `tablespace_map`, base64 of the bytes; absent when the server gave none.
    pub tablespace_map: Option<String>,
    /// Configuration files from outside the data directory.
    pub config_files: Vec<ConfigFile>,
    /// Users and groups that files belong to; files refer to them by index.
    pub owners: Vec<Owner>,
    /// The backup that this one builds on.
    pub prior: Option<BackupId>,
    /// Backups that were broken off and that this one went on from.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub resumed: Vec<BackupId>,
    /// What was compared of the pages that nothing says have changed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub look_again: Option<LookAgain>,
    /// How it was found which pages changed.
    pub change_detection: ChangeDetection,
    /// How much was read and stored.
    pub numbers: Numbers,
    /// Pages that failed their check, with the relation's name where it is known.
    pub damaged: Vec<DamagedPage>,
    /// What a human should read.
    pub warnings: Vec<String>,
    /// The host that the cluster ran on.
    pub host: HostFacts,
    /// Compression, as it was asked for.
    pub compression: String,
    /// Anything else; a reader may ignore it.
    pub notes: BTreeMap<String, serde_json::Value>,
}

/// A tablespace.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TablespaceFacts {
    /// Its OID.
    pub oid: u32,
    /// Its name.
    pub name: String,
    /// Where it lies on the origin.
    pub location: String,
    /// Whether it is a directory inside `pg_tblspc` instead of a link.
    pub in_place: bool,
}

/// A configuration file from outside the data directory.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ConfigFile {
    /// Its path in the backup, `config/...`.
    pub path: String,
    /// Its path on the origin.
    pub origin: String,
    /// The setting that names it (`config_file`, `hba_file`, `ident_file`), or `include`.
    pub setting: String,
}

/// A user and group, by name.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Owner {
    /// User name, or number where it has no name.
    pub user: String,
    /// Group name, or number where it has no name.
    pub group: String,
}

/// How it was found which pages changed since the prior.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ChangeDetection {
    /// `all` (every page read and stored), `wal-index`, `wal-summaries`, `page-lsn`.
    pub used: String,
    /// Why not a better one.
    pub reasons: Vec<String>,
}

/// The slice of unchanged pages that a backup read again and compared with what was stored of them.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct LookAgain {
    /// The turn, from 0; each pack is looked at in one of them.
    pub round: u32,
    /// After so many turns everything was looked at.
    pub rounds: u32,
    /// Pages that were compared.
    pub pages: u64,
    /// Pages that differed; they were stored again.
    pub differing: Vec<DamagedPage>,
}

/// How much a backup read and stored.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Numbers {
    /// Files, without directories and links.
    pub files: u64,
    /// The files' bytes together.
    pub bytes: u64,
    /// Pages read from the cluster.
    pub pages_read: u64,
    /// Pages stored by this backup.
    pub pages_stored: u64,
    /// Bytes that this backup added to the repository.
    pub bytes_added: u64,
    /// Stored bytes that it shares with earlier backups.
    pub bytes_shared: u64,
}

/// A page that failed its check.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct DamagedPage {
    /// The file's path in the backup.
    pub path: String,
    /// The relation's name, where it is known.
    pub relation: Option<String>,
    /// The block's number in the relation fork.
    pub block: u32,
    /// What is wrong with it.
    pub reason: String,
}

/// The host that the cluster ran on, as far as it matters for where it can be restored.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct HostFacts {
    /// Host name.
    pub name: String,
    /// Operating system, as os-release tells it.
    pub os: Option<String>,
    /// glibc's version.
    pub glibc: Option<String>,
    /// Versions of the collations in use.
    pub collations: Vec<Collation>,
}

/// The version of a collation provider, as a database recorded it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Collation {
    /// Database name.
    pub database: String,
    /// `libc`, `icu` or `builtin`.
    pub provider: String,
    /// Locale name.
    pub locale: String,
    /// The provider's version.
    pub version: Option<String>,
}
