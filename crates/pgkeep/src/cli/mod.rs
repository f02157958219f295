//! The command line: every command, argument and help text. No behaviour.

mod dump;
mod expire;
mod find;
mod gentle;
mod receive;
mod restore;
mod serve;
mod setup;
mod transfer;

pub(crate) use dump::{
    CopyFormatArg, DumpArgs, DumpForm, DumpSelectionArgs, LoadArgs, OnErrorArg, SectionArg, ToolArgs,
};
pub(crate) use expire::{DeleteArgs, ExpireArgs, HowArgs, PinArgs, UnpinArgs};
pub(crate) use find::{FindArgs, LogArgs, PeriodArgs, RestorePointCommand};
pub(crate) use gentle::GentleArgs;
pub(crate) use receive::{FlushPlace, ReceiveArgs};
pub(crate) use restore::{Action, RestoreArgs};
pub(crate) use serve::ServeArgs;
pub(crate) use setup::{CheckArgs, InitArgs, KeyArgs};
pub(crate) use transfer::{Checksums, CopyArgs, ExportArgs, ExportForm, ImportBasebackupArgs};

use clap::{Args, Parser, Subcommand, ValueEnum};
use std::path::PathBuf;

/// Backup and recovery for PostgreSQL.
#[derive(Debug, Parser)]
#[command(
    name = "pgkeep",
    version,
    about = "Backup and recovery for PostgreSQL",
    long_about = "Backup and recovery for PostgreSQL.\n\n\
        Start with `pgkeep init`, then `pgkeep check` and `pgkeep backup`. \
        To bring a cluster back to a moment: `pgkeep restore --at TIME --to-dir DIR`.",
    after_help = "Exit codes: 0 done, 1 failed, 2 wrong usage or configuration, 3 not found, \
        4 done, with warnings a human must read.",
    subcommand_required = true,
    arg_required_else_help = true,
    propagate_version = false,
    disable_help_subcommand = true,
    max_term_width = 100
)]
pub(crate) struct Cli {
    #[command(flatten)]
    pub(crate) global: GlobalArgs,
    #[command(subcommand)]
    pub(crate) command: Command,
}

/// What can be said with every command.
#[derive(Debug, Clone, Args)]
#[command(next_help_heading = "Options of every command")]
pub(crate) struct GlobalArgs {
    /// Configuration file; else $PGKEEP_CONFIG, /etc/pgkeep/pgkeep.toml, or your own (~/.config/pgkeep/pgkeep.toml)
    #[arg(long, value_name = "FILE", global = true)]
    pub(crate) config: Option<PathBuf>,
    /// Repository, by its name in the configuration; else the cluster's
    #[arg(long, value_name = "NAME", global = true)]
    pub(crate) repo: Option<String>,
    /// Cluster, by its name in the configuration; else the only or default one
    #[arg(long = "cluster", id = "cluster_option", value_name = "NAME", global = true)]
    pub(crate) cluster: Option<String>,
    /// Print one JSON object on standard output (docs/json.md)
    #[arg(long, global = true)]
    pub(crate) json: bool,
    /// No progress and no notes; warnings and errors only
    #[arg(long, short, global = true, conflicts_with = "verbose")]
    pub(crate) quiet: bool,
    /// Say more: -v what is done, -vv details, -vvv everything
    #[arg(long, short, global = true, action = clap::ArgAction::Count)]
    pub(crate) verbose: u8,
}

/// The commands.
#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    Init(InitArgs),
    Check(CheckArgs),
    /// Is each cluster protected: last backup, recoverable range, WAL, gaps
    ///
    /// Without a name, every cluster of the configuration is shown. Exit code 4 when one needs attention.
    Status(ClusterArgs),
    Backup(BackupArgs),
    List(ListArgs),
    Show(ShowArgs),
    Pin(PinArgs),
    Unpin(UnpinArgs),
    Delete(DeleteArgs),
    Expire(ExpireArgs),
    Verify(VerifyArgs),
    Copy(CopyArgs),
    Find(FindArgs),
    Restore(RestoreArgs),
    #[command(subcommand, arg_required_else_help = true)]
    RestorePoint(RestorePointCommand),
    Export(ExportArgs),
    ImportBasebackup(ImportBasebackupArgs),
    Dump(Box<DumpArgs>),
    Load(LoadArgs),
    /// Archive WAL and bring it back: what PostgreSQL itself calls
    #[command(subcommand, arg_required_else_help = true)]
    Wal(WalCommand),
    /// Make keys for repositories
    #[command(subcommand, arg_required_else_help = true)]
    Key(KeyArgs),
    /// Print the completions for a shell
    #[command(after_help = "For bash: pgkeep completions bash > /usr/share/bash-completion/completions/pgkeep")]
    Completions {
        /// The shell
        #[arg(value_enum)]
        shell: clap_complete::Shell,
    },
    /// Print the manual page, or write those of all commands to a directory
    Man {
        /// Directory for the pages of all commands, such as /usr/local/share/man/man1
        #[arg(long, value_name = "DIR")]
        to: Option<PathBuf>,
    },
    /// Show the version, and which formats and PostgreSQL versions it knows
    Version,
}

/// A command for one cluster.
#[derive(Debug, Clone, Args)]
pub(crate) struct ClusterArgs {
    /// The cluster; need not be named when it is the only or default one
    #[arg(value_name = "CLUSTER")]
    pub(crate) cluster: Option<String>,
}

/// List the backups and dumps of a cluster
#[derive(Debug, Clone, Args)]
pub(crate) struct ListArgs {
    #[command(flatten)]
    pub(crate) which: ClusterArgs,
    /// Also list the restore points in the archived WAL
    #[arg(long)]
    pub(crate) restore_points: bool,
}

/// How the files of a cluster are read.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum Source {
    /// Read in parallel from the data directory on this host
    Direct,
    /// Over the replication protocol, from a server anywhere: a login with REPLICATION is enough
    Stream,
    /// From a server that is stopped, or crashed; no connection is needed
    Offline,
    /// From a frozen copy of the server's volumes, made and dropped by your commands
    Snapshot,
}

/// Back up a cluster.
///
/// Reads the data directory while the server works, checks every page it reads, and waits until the WAL the backup needs
/// is in the repository. Only then does the backup exist. Run it on the database host, as the server's user; with
/// `--source stream` on any host, as anybody.
///
/// Only what changed since the newest backup of this cluster's history is stored. Each backup is complete by itself all
/// the same: any one can be deleted, in any order, and the others restore. A backup that was broken off is gone on from.
#[derive(Debug, Args)]
#[command(
    after_help = "Examples:\n  pgkeep backup\n  pgkeep backup --full\n  pgkeep backup main --label 'before the upgrade'"
)]
pub(crate) struct BackupArgs {
    #[command(flatten)]
    pub(crate) which: ClusterArgs,
    /// Read and store everything, sharing nothing with earlier backups
    #[arg(long)]
    pub(crate) full: bool,
    /// How the files are read
    #[arg(long, value_enum, default_value_t = Source::Direct, hide_possible_values = false)]
    pub(crate) source: Source,
    /// The data directory, for `--source offline`; else from the configuration
    #[arg(long, value_name = "DIR")]
    pub(crate) pgdata: Option<PathBuf>,
    /// For `--source offline`: first read the files while the server runs, then only what changed when it is stopped
    ///
    /// The first pass is no backup. When it is done, the server is stopped with --stop-command, or pgkeep waits until you
    /// stop it.
    #[arg(long)]
    pub(crate) warm: bool,
    /// Make the first of the two passes only; a later `--source offline` goes on from it
    #[arg(long, conflicts_with_all = ["warm", "stop_command"])]
    pub(crate) warm_only: bool,
    /// For `--source offline`: the command that stops the server, run by sh -c; it must end when the server has
    #[arg(long, value_name = "COMMAND")]
    pub(crate) stop_command: Option<String>,
    /// The command that starts it again, when its files are not needed any more, and after any failure
    #[arg(long, value_name = "COMMAND", requires = "stop_command")]
    pub(crate) start_command: Option<String>,
    /// postgresql.conf, for `--source offline`, when it is not where the server was last told
    #[arg(long, value_name = "FILE")]
    pub(crate) config_file: Option<PathBuf>,
    /// For `--source snapshot`: the command that makes the frozen copy, run by sh -c; else from the configuration
    #[arg(long, value_name = "COMMAND")]
    pub(crate) freeze: Option<String>,
    /// For `--source snapshot`: the command that drops the frozen copy; it runs whatever happened
    #[arg(long, value_name = "COMMAND")]
    pub(crate) release: Option<String>,
    /// For `--source snapshot`: where the data directory is in the frozen copy
    #[arg(long, value_name = "DIR")]
    pub(crate) snapshot_dir: Option<PathBuf>,
    /// For `--source snapshot`: where the copy of another live directory (a tablespace, pg_wal) is; may be repeated
    #[arg(long, value_name = "LIVE=COPY")]
    pub(crate) snapshot_map: Vec<String>,
    /// For `--source snapshot`: all volumes are frozen in one moment, so the copy is what a crash would have left
    #[arg(long)]
    pub(crate) crash_consistent: bool,
    /// For `--source stream`: how the server compresses what it sends: auto, none, or gzip, lz4, zstd, with or without
    /// :LEVEL
    ///
    /// `auto` is zstd:1 where a network lies between (PostgreSQL 15 and later), else none.
    #[arg(long, value_name = "METHOD")]
    pub(crate) stream_compression: Option<String>,
    /// Let the backup carry its own WAL, so that it needs no archive to be restored
    #[arg(long)]
    pub(crate) standalone: bool,
    /// A text to know the backup by
    #[arg(long, value_name = "TEXT")]
    pub(crate) label: Option<String>,
    /// Pin the backup: keep it for so long (30d, 6 months), until a moment, or `forever`, whatever the rules say
    #[arg(long, value_name = "TIME")]
    pub(crate) pin: Option<String>,
    /// Files read and compressed at the same time; else from the configuration, else the processors, at most 8
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u16).range(1..=256))]
    pub(crate) workers: Option<u16>,
    /// none, lz4, zstd or zstd:LEVEL; else from the configuration, else zstd
    #[arg(long, value_name = "METHOD")]
    pub(crate) compression: Option<String>,
    /// Wait for the server's next regular checkpoint instead of asking for one at once
    #[arg(long)]
    pub(crate) wait_for_checkpoint: bool,
    /// Of several servers in the connection string take a standby that is not far behind, else the primary
    #[arg(long)]
    pub(crate) prefer_standby: bool,
    /// How far a standby may be behind: a size such as 64MB, or a time such as 30s; else from the configuration
    #[arg(long, value_name = "LAG")]
    pub(crate) max_lag: Option<String>,
    #[command(flatten)]
    pub(crate) gentle: GentleArgs,
}

/// Show all that is known of a backup or a dump
#[derive(Debug, Args)]
pub(crate) struct ShowArgs {
    /// The backup's ID as `pgkeep list` shows it, or `latest`
    #[arg(value_name = "ID")]
    pub(crate) id: String,
    /// Also list the files; of a dump, the tables
    #[arg(long)]
    pub(crate) files: bool,
}

/// Verify that backups and dumps are whole: objects, hashes, and the WAL each backup needs
///
/// Of a dump that is named every byte is read. With --deep it is also loaded, into a server that is made for it and goes again,
/// or into databases made for it on a server of yours, and the rows of each table are counted and summed up as they were
/// when it was made.
#[derive(Debug, Args)]
#[command(after_help = "Exit code 1 when something is damaged or missing; what exactly is listed.")]
pub(crate) struct VerifyArgs {
    /// The ID of a backup or dump as `pgkeep list` shows it, or `latest` (the backup, as without an ID)
    #[arg(value_name = "ID", conflicts_with = "all")]
    pub(crate) id: Option<String>,
    /// All backups and all WAL of the cluster
    #[arg(long)]
    pub(crate) all: bool,
    /// Read every stored byte again, decompress it and compare hashes; load a dump that is named
    #[arg(long)]
    pub(crate) deep: bool,
    /// For a dump: load it into databases that are made on this server, and dropped again
    #[arg(long, value_name = "CONNINFO", requires = "deep")]
    pub(crate) into: Option<String>,
    /// For a dump: a directory with room for a server with its databases; else the one for short-lived files
    #[arg(long, value_name = "DIR", requires = "deep", conflicts_with = "into")]
    pub(crate) scratch_dir: Option<PathBuf>,
    #[command(flatten)]
    pub(crate) tools: ToolArgs,
}

/// What PostgreSQL calls.
#[derive(Debug, Subcommand)]
pub(crate) enum WalCommand {
    /// Archive a WAL segment or history file: PostgreSQL's archive_command
    ///
    /// Succeeds only when the file is durable in the repository. The same name with the same content succeeds, with
    /// other content fails. `pgkeep init` shows the setting.
    Push {
        /// The file: PostgreSQL's %p
        #[arg(value_name = "PATH")]
        path: PathBuf,
    },
    /// Push what waits in a server's pg_wal until nothing does for a while; `wal push` starts it
    #[command(hide = true)]
    PushAhead {
        /// The server's pg_wal, from the root on
        #[arg(value_name = "DIR")]
        wal_dir: PathBuf,
    },
    /// Bring a WAL segment or history file back: PostgreSQL's restore_command
    ///
    /// Exit code 0 found, 1 known to be absent, 126 everything else: PostgreSQL takes 1 to 125 as the end of the
    /// archive, and would end recovery there. `pgkeep restore` writes the setting.
    Fetch {
        /// The file's name: PostgreSQL's %f
        #[arg(value_name = "NAME")]
        name: String,
        /// Where to put it: PostgreSQL's %p
        #[arg(value_name = "PATH")]
        path: PathBuf,
    },
    /// Fetch ahead of a recovery's replay until it no longer moves; `wal fetch` starts it
    #[command(hide = true)]
    FetchAhead {
        /// The recovering server's pg_wal, from the root on
        #[arg(value_name = "DIR")]
        wal_dir: PathBuf,
    },
    Serve(ServeArgs),
    Receive(ReceiveArgs),
    Log(LogArgs),
    /// What is in the WAL archive: timelines, ranges, gaps
    Status,
    /// Roll up the indexes of archived WAL, so that a day of it is read in a few requests
    ///
    /// Each segment is indexed as it is archived: which blocks it changed, which transactions ended in it. Incremental
    /// backups and searches read that.
    Index {
        /// Also make the index of each segment that has none, from the archive
        #[arg(long)]
        rebuild: bool,
    },
}
