//! What is asked of a restore, what is planned, and what was done.

use jiff::Timestamp;
use pg_format::{Lsn, SystemId, Timeline};
use repo::{BackupId, ClusterName};
use serde::Serialize;
use std::path::PathBuf;

/// Up to where the cluster is recovered.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(tag = "kind", content = "value", rename_all = "kebab-case")]
pub enum RecoveryTarget {
    /// To the end of the WAL in the repository.
    Latest,
    /// Only until the backup is consistent.
    Immediate,
    /// To a moment.
    Time(Timestamp),
    /// To the end of a transaction, by its ID of 32 bits.
    Xid(u32),
    /// To a place in the WAL.
    Lsn(Lsn),
    /// To a named restore point.
    RestorePoint(String),
}

/// Which timeline recovery follows.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(tag = "kind", content = "value", rename_all = "kebab-case")]
pub enum TimelineChoice {
    /// The one the repository knows as production's.
    Latest,
    /// The one the backup was made on.
    Current,
    /// This one.
    Number(Timeline),
}

/// What the server does when it reached its target.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum TargetAction {
    /// Recovery waits; queries can be run, and `pg_wal_replay_resume()` goes on.
    Pause,
    /// Recovery ends, on a new timeline, and the server takes writes.
    Promote,
    /// The server stops.
    Shutdown,
}

impl TargetAction {
    /// As `recovery_target_action` has it.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Pause => "pause",
            Self::Promote => "promote",
            Self::Shutdown => "shutdown",
        }
    }
}

/// What is done with a directory that is not empty.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum ExistingFiles {
    /// Refuse.
    Refuse,
    /// Remove what is in it first. A running server's directory is refused all the same.
    Remove,
    /// Keep the files that are right already.
    Delta,
}

/// How the WAL between the backup and the target is looked at before anything is written.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum WalCheck {
    /// Each segment is there, and says of itself what it must.
    Facts,
    /// Each segment is read whole and compared with its hash.
    Whole,
}

/// Where a tablespace goes.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct TablespaceMapping {
    /// The tablespace: its name, its OID or its path on the origin.
    pub from: String,
    /// The directory that it is restored to.
    pub to: PathBuf,
}

/// A user and a group, by name or number.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct OwnerName {
    /// The user.
    pub user: String,
    /// The group; the user's own one when absent.
    pub group: Option<String>,
}

/// What a restore is asked to do.
#[derive(Debug, Clone)]
pub struct RestoreRequest {
    /// The data directory to make. An absolute path.
    pub target_dir: PathBuf,
    /// The backup; chosen by the target when absent.
    pub backup: Option<BackupId>,
    /// Up to where to recover.
    pub target: RecoveryTarget,
    /// Whether recovery stops just before the target instead of just after it. Counts for time, transaction and LSN.
    pub exclusive: bool,
    /// Which timeline to follow.
    pub timeline: TimelineChoice,
    /// What the server does at the target.
    pub action: TargetAction,
    /// Tablespaces that go elsewhere than where they are on the origin.
    pub tablespaces: Vec<TablespaceMapping>,
    /// What to do with files that are there.
    pub existing: ExistingFiles,
    /// Whether to make a standby that follows the archive, and its primary where `primary_conninfo` is set.
    pub standby: bool,
    /// Whether the restored cluster archives as the origin did. Off: `archive_mode` is off, so that it cannot push into
    /// production's archive.
    pub archive: bool,
    /// What is written as `restore_command`, with `%f` and `%p` in it.
    pub restore_command: String,
    /// Whom the files belong to; needs root. Else they belong to whom they did on the origin (root) or to this process's
    /// user.
    pub owner: Option<OwnerName>,
    /// How the WAL is looked at beforehand.
    pub wal_check: WalCheck,
    /// Threads that decode and write.
    pub workers: usize,
    /// Where PostgreSQL's programs may be, such as `/usr/lib/postgresql/15/bin`: to warn when there are none of the
    /// backup's major version.
    pub bin_dirs: Vec<PathBuf>,
}

/// A restore that was thought through and can be done. Nothing was written yet.
#[derive(Debug, Clone, Serialize)]
pub struct RestorePlan {
    /// The cluster's name in the repository.
    pub cluster: ClusterName,
    /// The backup that is restored.
    pub backup: BackupId,
    /// Why this one, in words.
    pub why: String,
    /// Its system identifier.
    pub system_id: SystemId,
    /// PostgreSQL's version, as text.
    pub pg_version: String,
    /// PostgreSQL's major version.
    pub pg_major: u32,
    /// Where replay begins.
    pub start_lsn: Lsn,
    /// Where the backup becomes consistent.
    pub stop_lsn: Lsn,
    /// When that was: the earliest moment that this backup can be recovered to.
    pub stop_time: Timestamp,
    /// Up to where it is recovered.
    pub target: RecoveryTarget,
    /// Whether just before the target.
    pub exclusive: bool,
    /// The timeline that is followed, as a number.
    pub timeline: Timeline,
    /// What the server does there.
    pub action: TargetAction,
    /// Whether a standby is made.
    pub standby: bool,
    /// Whether the restored cluster archives.
    pub archive: bool,
    /// The WAL that is replayed.
    pub wal: WalNeed,
    /// What the repository could recover to, on this timeline.
    pub window: Window,
    /// The data directory.
    pub target_dir: PathBuf,
    /// The tablespaces.
    pub tablespaces: Vec<PlannedTablespace>,
    /// The places that are written to, with the room there.
    pub places: Vec<PlannedPlace>,
    /// Links other than those of tablespaces.
    pub links: Vec<PlannedLink>,
    /// Configuration from outside the data directory.
    pub config_files: Vec<PlannedConfig>,
    /// What is done with files that are there.
    pub existing: ExistingFiles,
    /// Files.
    pub files: u64,
    /// Directories.
    pub directories: u64,
    /// The files' bytes together.
    pub bytes: u64,
    /// Stored bytes that are fetched from the repository.
    pub fetch_bytes: u64,
    /// Packs that they lie in.
    pub packs: u64,
    /// `recovery.signal` or `standby.signal`.
    pub signal_file: String,
    /// What is written to `postgresql.auto.conf`, in this order.
    pub settings: Vec<PlannedSetting>,
    /// Whom the files belong to, by user and group ID, when this process may give them away: one for each owner of the
    /// backup, in its order.
    pub owners: Vec<PlannedOwner>,
    /// Threads that decode and write.
    pub workers: usize,
    /// What a human should read.
    pub warnings: Vec<String>,
}

/// The WAL that a recovery reads.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct WalNeed {
    /// The first segment's name.
    pub first: String,
    /// The last segment's name that is known to be needed.
    pub last: String,
    /// How many they are. All of them are in the repository.
    pub segments: u64,
    /// Where replay is known to end, when it is.
    pub end_lsn: Option<Lsn>,
}

/// What can be recovered to.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Window {
    /// The timeline this is said of.
    pub timeline: Timeline,
    /// The end of the oldest usable backup.
    pub first_lsn: Option<Lsn>,
    /// Its moment.
    pub first_time: Option<Timestamp>,
    /// The end of the WAL that follows the backup without a gap.
    pub last_lsn: Option<Lsn>,
    /// The latest end of a transaction in it.
    pub last_time: Option<Timestamp>,
}

/// A tablespace and where it goes.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct PlannedTablespace {
    /// Its OID.
    pub oid: u32,
    /// Its name.
    pub name: String,
    /// Where it was.
    pub origin: String,
    /// Where it goes; the directory inside `pg_tblspc` for one in place.
    pub destination: PathBuf,
    /// Whether it stays a directory inside `pg_tblspc`.
    pub in_place: bool,
}

/// A file system that is written to.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct PlannedPlace {
    /// The directories on it that are written to.
    pub directories: Vec<PathBuf>,
    /// Bytes that will be needed there.
    pub needed_bytes: u64,
    /// Bytes that are free there.
    pub free_bytes: u64,
}

/// A symbolic link of the data directory that is not a tablespace's.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct PlannedLink {
    /// Its path in the data directory.
    pub path: String,
    /// Where it points on the origin.
    pub target: String,
    /// What is made of it.
    pub becomes: LinkBecomes,
}

/// What is made of a link.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum LinkBecomes {
    /// The same link.
    Link,
    /// A directory, because what it points to is in the backup and its place on this host may be the origin's.
    Directory,
}

/// A configuration file from outside the data directory.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct PlannedConfig {
    /// Its path on the origin.
    pub origin: String,
    /// The setting that named it, or `include`.
    pub setting: String,
    /// Where it is restored to.
    pub destination: PathBuf,
}

/// A setting to be written.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct PlannedSetting {
    /// Its name.
    pub name: String,
    /// Its value.
    pub value: String,
}

/// Whom files belong to.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub struct PlannedOwner {
    /// User ID; unchanged when absent.
    pub uid: Option<u32>,
    /// Group ID; unchanged when absent.
    pub gid: Option<u32>,
}

/// What a restore did.
#[derive(Debug, Clone, Serialize)]
pub struct RestoreReport {
    /// The backup that was restored.
    pub backup: BackupId,
    /// The data directory.
    pub target_dir: PathBuf,
    /// PostgreSQL's major version.
    pub pg_major: u32,
    /// Files written.
    pub files: u64,
    /// Their bytes.
    pub bytes: u64,
    /// Stored bytes that were fetched.
    pub fetched_bytes: u64,
    /// How long it took, in milliseconds.
    pub elapsed_ms: u64,
    /// Up to where the server will recover, when it starts.
    pub target: RecoveryTarget,
    /// The timeline that it will follow.
    pub timeline: Timeline,
    /// What it does then.
    pub action: TargetAction,
    /// Whether it is a standby.
    pub standby: bool,
    /// What to know and do next, for people.
    pub notes: Vec<String>,
    /// What a human should read.
    pub warnings: Vec<String>,
}

/// How a restored server is started.
#[derive(Debug, Clone)]
pub struct StartOptions {
    /// Where PostgreSQL's programs may be.
    pub bin_dirs: Vec<PathBuf>,
    /// The port; a free one when absent.
    pub port: Option<u16>,
    /// `listen_addresses`; empty for only the Unix socket.
    pub listen_addresses: String,
    /// How long to wait until recovery has reached its target.
    pub timeout: std::time::Duration,
}

/// How far a started server came.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum StartedState {
    /// Recovery ended; it takes writes.
    Promoted,
    /// Recovery reached its target and waits.
    Paused,
    /// It is a standby that takes queries.
    Standby,
    /// It reached its target and stopped, as it was told.
    ShutDown,
}

/// A restored server that runs.
#[derive(Debug, Clone, Serialize)]
pub struct StartedServer {
    /// How far it came.
    pub state: StartedState,
    /// The folder of its Unix socket.
    pub socket_dir: PathBuf,
    /// Its port.
    pub port: u16,
    /// How to connect.
    pub conninfo: String,
    /// Its log.
    pub log: PathBuf,
    /// The command that stops it.
    pub stop_command: String,
    /// Where replay ended.
    pub replayed_lsn: Option<Lsn>,
    /// The time of the last transaction replayed, as the server prints it.
    pub replayed_time: Option<String>,
    /// Where recovery stopped at its target, in the server's words.
    pub stopped_at: Option<String>,
    /// What a human should read.
    pub warnings: Vec<String>,
}
