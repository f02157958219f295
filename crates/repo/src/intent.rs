//! What a running backup builds on, written before anything else (docs/format.md section 11).

use crate::BackupId;
use serde::{Deserialize, Serialize};

/// A root for garbage collection while a backup runs.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Intent {
    /// The backup that is being made.
    pub backup: BackupId,
    /// The backups it builds on.
    pub priors: Vec<BackupId>,
    /// Host that makes it.
    pub host: String,
    /// Process that makes it.
    pub pid: u32,
    /// When it began.
    pub started: jiff::Timestamp,
}
