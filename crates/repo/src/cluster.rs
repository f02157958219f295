//! What is known of a cluster over time (docs/format.md section 11).

use crate::{BackupId, ClusterName};
use pg_format::{SystemId, Timeline};
use serde::{Deserialize, Serialize};

/// A system identifier that this cluster has or had. It changes when a cluster is made anew, as by a major upgrade.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SystemEntry {
    /// The system identifier.
    pub system_id: SystemId,
    /// PostgreSQL's major version.
    pub pg_major: u32,
    /// WAL segment size in bytes.
    pub wal_segment_size: u64,
    /// Since when pgkeep knows it.
    pub since: jiff::Timestamp,
    /// The timeline that production is on; `latest` means this one.
    pub production_timeline: Timeline,
}

/// A backup that must be kept.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Pin {
    /// The backup.
    pub backup: BackupId,
    /// Until when; for ever when absent.
    pub until: Option<jiff::Timestamp>,
    /// Why.
    pub reason: String,
}

/// What is known of a cluster.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ClusterFacts {
    /// Its name.
    pub name: ClusterName,
    /// Its system identifiers, the present one last.
    pub systems: Vec<SystemEntry>,
    /// Backups that must be kept.
    pub pins: Vec<Pin>,
}

impl ClusterFacts {
    /// Whether production is noted on a lower timeline than this one.
    pub fn is_behind(&self, system_id: SystemId, timeline: Timeline) -> bool {
        self.systems.iter().any(|entry| entry.system_id == system_id && entry.production_timeline < timeline)
    }

    /// The present system identifier.
    pub fn current(&self) -> Option<&SystemEntry> {
        self.systems.last()
    }
}
