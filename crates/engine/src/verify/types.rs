//! What is asked of a verification, and what it finds.

use pg_format::{SystemId, Timeline};
use repo::{BackupId, ClusterName};
use serde::Serialize;

/// Which backups are looked at.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Backups {
    /// All of them, and what belongs to none.
    All,
    /// These.
    Only(Vec<BackupId>),
}

/// How much is looked at.
#[derive(Debug, Clone)]
pub struct VerifyOptions {
    /// Which backups.
    pub backups: Backups,
    /// Whether every chunk and every WAL segment is read and compared with its hash, not only headers, tables and maps.
    pub deep: bool,
    /// Whether the WAL that the backups need is looked at.
    pub wal: bool,
    /// How many objects are read at the same time.
    pub workers: usize,
}

/// How bad a finding is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Severity {
    /// Worth knowing; nothing is lost.
    Note,
    /// Something is not as it should be, but nothing that is needed is lost.
    Warning,
    /// Something that is needed is missing or damaged.
    Damage,
}

/// What a finding is about.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum FindingKind {
    /// The object is damaged.
    Damaged,
    /// The object is not there.
    Missing,
    /// Segments are missing between others.
    WalGap,
    /// The object belongs to nothing.
    Stray,
    /// The object's name is not one of a repository.
    Unknown,
    /// It was written by a later version of pgkeep.
    TooNew,
    /// It is there and as it was written, but says that something was wrong then.
    Noted,
}

/// Something that was found.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Finding {
    /// How bad it is.
    pub severity: Severity,
    /// What it is about.
    pub kind: FindingKind,
    /// The object, or the first missing segment's.
    pub object: String,
    /// What is wrong, in words, without the object's name.
    pub what: String,
    /// What it means and what to do, in words.
    pub effect: Option<String>,
    /// The backups that it touches.
    pub backups: Vec<BackupId>,
}

/// How a backup stands.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct BackupVerdict {
    /// The backup.
    pub backup: BackupId,
    /// Whether it can be restored to its own end.
    pub restorable: bool,
    /// Its system identifier, where the manifest could be read.
    pub system_id: Option<SystemId>,
    /// Its timeline.
    pub timeline: Option<Timeline>,
    /// The last segment that follows it without a gap on its timeline.
    pub wal_until: Option<String>,
    /// Files.
    pub files: u64,
    /// Packs.
    pub packs: u64,
}

/// What a verification found.
#[derive(Debug, Clone, Serialize)]
pub struct VerifyReport {
    /// The cluster.
    pub cluster: ClusterName,
    /// The worst of the findings; `None` when there are none.
    pub verdict: Option<Severity>,
    /// Each backup.
    pub backups: Vec<BackupVerdict>,
    /// All findings, the worst first.
    pub findings: Vec<Finding>,
    /// Objects that were looked at.
    pub objects: u64,
    /// Bytes that were read.
    pub bytes: u64,
    /// WAL segments that were looked at.
    pub segments: u64,
}
