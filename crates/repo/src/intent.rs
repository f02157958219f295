//! What a running backup builds on, written before its first pack (docs/format.md section 11).

use crate::BackupId;
use pg_format::{Lsn, SystemId, Timeline};
use serde::{Deserialize, Serialize};

/// A root for garbage collection while a backup runs, and what a later one needs to go on from it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Intent {
    /// The backup that is being made.
    pub backup: BackupId,
    /// The backups it builds on: finished ones, and ones that were broken off.
    pub priors: Vec<BackupId>,
    /// Host that makes it.
    pub host: String,
    /// Process that makes it.
    pub pid: u32,
    /// When it began.
    pub started: jiff::Timestamp,
    /// Where it began; without it nothing can go on from what it stored.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub start: Option<IntentStart>,
}

/// Where a backup began, and of what.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct IntentStart {
    /// The cluster's system identifier.
    pub system_id: SystemId,
    /// The server's timeline.
    pub timeline: Timeline,
    /// The backup's start LSN: pages that were changed since are not what was stored.
    pub start_lsn: Lsn,
    /// The data directory that is read.
    pub data_directory: String,
    /// Whether the server is a standby.
    pub from_standby: bool,
    /// Whether the cluster has data checksums.
    pub checksums: bool,
    /// Whether it was asked to build on nothing.
    pub full: bool,
}
