//! Arguments of `find`, `wal log`, `restore-point`.

use clap::{Args, Subcommand};
use pg_format::SystemId;

/// Kinds of event.
const KINDS: [&str; 9] =
    ["drop", "truncate", "delete", "update", "load", "rewrite", "files-removed", "restore-point", "timeline-switch"];

/// Find what happened - drops, truncates, large deletes and updates - and the command that restores to just before it
///
/// Searches the index of the archived WAL; no server is needed. Words are kinds (drop, truncate, delete, update, load,
/// rewrite), objects (table, index, schema, database), and names: all must be met. Names may have `*` in them, and their
/// schema and database before them.
///
/// The target is a place in the WAL and not a time: commit times are not in order. What is not known for certain is shown
/// by its number.
#[derive(Debug, Args)]
#[command(
    after_help = "Examples:\n  pgkeep find drop orders\n  pgkeep find delete --table 'sales.*' --from yesterday\n  \
        pgkeep find --kind truncate --schema sales\n  pgkeep find --xid 74012\n\n\
        Exit code 3 when nothing was found."
)]
pub(crate) struct FindArgs {
    /// Kinds of event, kinds of object, and names
    #[arg(value_name = "WORDS")]
    pub(crate) words: Vec<String>,
    /// What happened; may be repeated
    #[arg(long = "kind", value_name = "KIND", value_parser = clap::builder::PossibleValuesParser::new(KINDS))]
    pub(crate) kinds: Vec<String>,
    /// A relation it happened to, as [[database.]schema.]name or by its OID; may be repeated
    #[arg(long = "table", value_name = "NAME")]
    pub(crate) tables: Vec<String>,
    /// In this schema
    #[arg(long, value_name = "NAME")]
    pub(crate) schema: Option<String>,
    /// In this database
    #[arg(long, value_name = "NAME")]
    pub(crate) database: Option<String>,
    /// By this transaction, whatever it did
    #[arg(long, value_name = "XID")]
    pub(crate) xid: Option<String>,
    /// Changes of at least so many rows; else 1000 deleted or updated, 10000 that came in; 1 with a kind and a name
    #[arg(long, value_name = "N")]
    pub(crate) min_rows: Option<u64>,
    #[command(flatten)]
    pub(crate) when: PeriodArgs,
    /// Show at most so many, the latest ones
    #[arg(long, value_name = "N", default_value_t = 50, value_parser = clap::value_parser!(u32).range(1..))]
    pub(crate) limit: u32,
}

/// Of which time and timeline.
#[derive(Debug, Clone, Args)]
pub(crate) struct PeriodArgs {
    /// Not before this time, such as 'yesterday 22:00' or '2 hours ago'
    #[arg(long, value_name = "TIME")]
    pub(crate) from: Option<String>,
    /// Not after this time
    #[arg(long, value_name = "TIME")]
    pub(crate) to: Option<String>,
    /// Along the history of this timeline; else production's
    #[arg(long, value_name = "N")]
    pub(crate) timeline: Option<u32>,
    /// In the WAL of this system identifier, such as from before a major upgrade; else the present one's
    #[arg(long = "system-id", value_name = "ID")]
    pub(crate) system: Option<u64>,
    /// Read and show times in this zone, such as Europe/Berlin or UTC; else in this host's
    #[arg(long, value_name = "ZONE")]
    pub(crate) time_zone: Option<String>,
}

impl PeriodArgs {
    /// The system identifier that was named.
    pub(crate) fn system_id(&self) -> Option<SystemId> {
        self.system.map(SystemId)
    }
}

/// Show the history of a cluster: what happened, how much was written when, and by whom
///
/// Read from the index of the archived WAL; no server is needed. Good for "what wrote all this WAL last night", and, with
/// --timeline, for what a timeline holds that was left.
#[derive(Debug, Args)]
#[command(after_help = "Examples:\n  pgkeep wal log --from 'yesterday 22:00' --to 'today 06:00'\n  \
        pgkeep wal log --table orders\n  pgkeep wal log --timeline 1")]
pub(crate) struct LogArgs {
    #[command(flatten)]
    pub(crate) when: PeriodArgs,
    /// Only what was done to this relation; may be repeated
    #[arg(long = "table", value_name = "NAME")]
    pub(crate) tables: Vec<String>,
    /// So many relations and transactions
    #[arg(long, value_name = "N", default_value_t = 10)]
    pub(crate) top: u16,
}

/// Make named restore points
#[derive(Debug, Subcommand)]
pub(crate) enum RestorePointCommand {
    /// Make a restore point on one or more clusters, as before a migration
    ///
    /// It is a target for `pgkeep restore --restore-point NAME` as soon as its WAL is archived, which is asked for at once.
    #[command(after_help = "Examples:\n  pgkeep restore-point create before-migration-42\n  \
            pgkeep restore-point create before-migration-42 --on main --on billing")]
    Create {
        /// Its name, 1 to 63 bytes; use each name once
        #[arg(value_name = "NAME")]
        name: String,
        /// On this cluster instead of the only or default one; may be repeated
        #[arg(long = "on", value_name = "CLUSTER", conflicts_with = "all")]
        clusters: Vec<String>,
        /// On every cluster of the configuration
        #[arg(long)]
        all: bool,
        /// Do not end the WAL segment: it is a target once that is full, or archive_timeout is over
        #[arg(long)]
        no_switch: bool,
    },
}
