//! Arguments of `restore`.

use super::ClusterArgs;
use clap::{Args, ValueEnum};
use std::path::PathBuf;

/// What PostgreSQL does when the target is reached.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum Action {
    /// Stop replay and take read-only connections, to look around
    Pause,
    /// End recovery on a new timeline and take writes
    Promote,
    /// Stop the server
    Shutdown,
}

/// Bring a cluster back, to the newest state or to a moment
///
/// Chooses the backup and the timeline for the target, checks that all WAL to reach it is there, and only then writes.
/// The restored cluster does not archive into the repository unless told.
#[derive(Debug, Args)]
#[command(group = clap::ArgGroup::new("target").multiple(false))]
#[command(after_help = "A time may be '2026-11-20 20:09:10+01', '2026-11-20 20:09 Europe/Berlin', '10 minutes ago', \
        'yesterday 14:00'. Without a zone it is read in this host's zone; how it was read is shown.\n\n\
        Examples:\n  \
        pgkeep restore main --to-dir /srv/restored --latest --start\n  \
        pgkeep restore main --to-dir /srv/restored --at '10 minutes ago' --dry-run\n  \
        pgkeep restore main --to-dir /srv/restored --before 'drop orders' --start\n  \
        pgkeep restore main --to-dir /srv/restored --restore-point before_import --action pause")]
pub(crate) struct RestoreArgs {
    #[command(flatten)]
    pub(crate) which: ClusterArgs,
    /// The new data directory; must be empty or not there
    #[arg(long, value_name = "DIR")]
    pub(crate) to_dir: PathBuf,
    /// Begin from this backup instead of the one nearest to the target
    #[arg(long, value_name = "ID")]
    pub(crate) backup: Option<String>,

    /// Target: the last commit up to this time
    #[arg(long, value_name = "TIME", group = "target", help_heading = "Target")]
    pub(crate) at: Option<String>,
    /// Target: just before this event, in the words of `pgkeep find`, such as 'drop orders'; there must be only one
    #[arg(long, value_name = "EVENT", group = "target", help_heading = "Target")]
    pub(crate) before: Option<String>,
    /// Target: just before this transaction did anything that a recovery would keep
    #[arg(long, value_name = "XID", group = "target", help_heading = "Target")]
    pub(crate) before_xid: Option<String>,
    /// Target: the commit of this transaction
    #[arg(long, value_name = "XID", group = "target", help_heading = "Target")]
    pub(crate) xid: Option<String>,
    /// Target: this place in the WAL, such as 0/3000028
    #[arg(long, value_name = "LSN", group = "target", help_heading = "Target")]
    pub(crate) lsn: Option<String>,
    /// Target: this restore point (pg_create_restore_point)
    #[arg(long, value_name = "NAME", group = "target", help_heading = "Target")]
    pub(crate) restore_point: Option<String>,
    /// Target: as soon as the backup is consistent
    #[arg(long, group = "target", help_heading = "Target")]
    pub(crate) immediate: bool,
    /// Target: the end of the archived WAL (as without a target)
    #[arg(long, group = "target", help_heading = "Target")]
    pub(crate) latest: bool,
    /// Stop just before the target instead of just after it (--at, --xid, --lsn)
    #[arg(long, help_heading = "Target")]
    pub(crate) exclusive: bool,
    /// Timeline: current (the backup's), latest (production's), or a number
    #[arg(long, value_name = "TIMELINE", help_heading = "Target")]
    pub(crate) timeline: Option<String>,
    /// Read and show times in this zone, such as Europe/Berlin or UTC; else in this host's
    #[arg(long, value_name = "ZONE", help_heading = "Target")]
    pub(crate) time_zone: Option<String>,
    /// What PostgreSQL does at the target; else promote
    #[arg(long, value_enum, help_heading = "Target")]
    pub(crate) action: Option<Action>,

    /// Put a tablespace elsewhere: its location, name or OID = the new directory; may be repeated
    #[arg(long = "tablespace", value_name = "OLD=NEW", help_heading = "Where and how")]
    pub(crate) tablespaces: Vec<String>,
    /// Keep files that are right already (not in this version)
    #[arg(long, help_heading = "Where and how")]
    pub(crate) delta: bool,
    /// Replace what is in the directories (never those of a running server)
    #[arg(long, help_heading = "Where and how")]
    pub(crate) force: bool,
    /// Make it a standby, which goes on replaying what is archived
    #[arg(long, help_heading = "Where and how", conflicts_with = "target")]
    pub(crate) standby: bool,
    /// Leave archiving on: the restored cluster takes the place of the old one
    #[arg(long, help_heading = "Where and how")]
    pub(crate) archive: bool,
    /// Start PostgreSQL on it, on a free port, and wait until it has recovered
    #[arg(long, help_heading = "Where and how")]
    pub(crate) start: bool,
    /// The port for --start, instead of a free one
    #[arg(long, value_name = "PORT", requires = "start", help_heading = "Where and how")]
    pub(crate) port: Option<u16>,
    /// The directory with pg_ctl and postgres for --start, instead of the usual places
    #[arg(long, value_name = "DIR", requires = "start", help_heading = "Where and how")]
    pub(crate) pg_bin: Option<PathBuf>,
    /// Files written at the same time; else from the configuration, else the processors, at most 8
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u16).range(1..=256), help_heading = "Where and how")]
    pub(crate) workers: Option<u16>,
    /// Say what would be done, and do nothing
    #[arg(long, help_heading = "Where and how")]
    pub(crate) dry_run: bool,
}
