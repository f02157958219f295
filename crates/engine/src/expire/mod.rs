//! Deleting backups, by name or by rule, and removing what nothing uses any more.
//!
//! The rules are in docs/format.md, section 13: a plan is made and shown, then carried out under the lease `delete`, by
//! who looks again first. Backups run beside it. Whatever ends it, what remains is whole, and the next run finds the rest.

mod apply;
mod lease;
mod plan;
mod survey;
mod wal;

pub use apply::{Deletion, NotDeleted, apply};
pub use plan::{DeletionPlan, DoomedBackup, KeptBackup, UnfinishedBackup, plan};
pub use wal::WalPlan;

use repo::BackupId;
use repo::retention::RetentionPolicy;
use std::time::Duration;

/// Which backups are to be deleted.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Which {
    /// None: only what nothing uses any more is removed.
    Nothing,
    /// These.
    Backups {
        /// Their IDs.
        ids: Vec<BackupId>,
        /// Whether the last good one may be among them.
        last: LastBackup,
    },
    /// Those that no rule keeps.
    ByPolicy(RetentionPolicy),
}

/// Whether the last good backup of a cluster may be deleted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LastBackup {
    /// It is refused.
    Keep,
    /// It was said explicitly.
    MayGo,
}

/// What becomes of WAL that no backup needs any more.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum WalExpiry {
    /// It stays.
    Keep,
    /// It is deleted.
    Delete,
}

/// What is to be deleted.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Request {
    /// The backups.
    pub which: Which,
    /// How long data stays after nothing refers to it any more, for restores that are reading it.
    pub grace: Duration,
    /// Whether WAL goes too.
    pub wal: WalExpiry,
}
