//! Arguments of the commands that set things up: `init`, `check`, `key`.

use super::ClusterArgs;
use clap::{Args, Subcommand};
use std::path::PathBuf;

/// Prepare a repository and a cluster for each other
///
/// Makes the repository (or joins the one that is there), enters the cluster in it, writes both to the configuration
/// file, and says which settings PostgreSQL needs; with --apply it sets them. Running it again changes nothing that is
/// right already. Run it as the operating-system user that PostgreSQL runs as.
#[derive(Debug, Args)]
#[command(after_help = "Examples:\n  \
        sudo -u postgres pgkeep init main --pg 'host=/var/run/postgresql' --repo /backup/pgkeep \\\n      \
        --key-file /etc/pgkeep/main.key --apply\n  \
        pgkeep init main --pg service=main --repo s3://bucket/pgkeep --passphrase-file /etc/pgkeep/passphrase")]
#[command(group = clap::ArgGroup::new("key").required(true).multiple(false))]
pub(crate) struct InitArgs {
    /// The cluster's name in repository and configuration: a-z 0-9 _ -
    #[arg(value_name = "CLUSTER")]
    pub(crate) cluster: String,
    /// How to connect: a connection string or URI as libpq takes it; put no password in it, use a passfile
    #[arg(long, value_name = "CONNINFO")]
    pub(crate) pg: String,
    /// Where the repository is: /path, file:///path or s3://bucket/prefix
    #[arg(long = "repo", id = "repo", value_name = "URL", required = true)]
    pub(crate) url: String,
    /// Encrypt with the key in this file; made with a new key when it is not there
    #[arg(long, value_name = "FILE", group = "key")]
    pub(crate) key_file: Option<PathBuf>,
    /// Encrypt with the passphrase in this file
    #[arg(long, value_name = "FILE", group = "key")]
    pub(crate) passphrase_file: Option<PathBuf>,
    /// Encrypt with the key that this command prints (64 hexadecimal digits)
    #[arg(long, value_name = "COMMAND", group = "key")]
    pub(crate) key_command: Option<String>,
    /// Do not encrypt; every change is still detected
    #[arg(long, group = "key")]
    pub(crate) no_encryption: bool,
    /// Set what PostgreSQL needs (archive_mode, archive_command, wal_level) with ALTER SYSTEM
    #[arg(long)]
    pub(crate) apply: bool,
    /// Replace an archive_command or archive_library that is another tool's or leads elsewhere
    #[arg(long)]
    pub(crate) replace_archive_command: bool,
    /// Archive through pgkeep's archive library and `pgkeep wal serve`, not archive_command (PostgreSQL 15 and later)
    #[arg(long, value_name = "FILE", require_equals = true)]
    pub(crate) archive_library: Option<Option<PathBuf>>,
    /// The socket that the archive library and `pgkeep wal serve` meet at; else CLUSTER.sock in the state directory
    #[arg(long, value_name = "PATH", requires = "archive_library")]
    pub(crate) socket: Option<PathBuf>,
    /// Take another system identifier than the one known as this cluster's next life, as after a major upgrade
    #[arg(long)]
    pub(crate) new_system: bool,
    /// none, lz4, zstd or zstd:LEVEL, to be written to the configuration
    #[arg(long, value_name = "METHOD")]
    pub(crate) compression: Option<String>,
    /// The repository's name in the configuration
    #[arg(long, value_name = "NAME", default_value = "main")]
    pub(crate) repo_name: String,
    /// Make the repository for copies of dumps (`pgkeep copy`): the cluster archives where it did, PostgreSQL stays as it is
    #[arg(long, conflicts_with_all = ["apply", "replace_archive_command", "archive_library"])]
    pub(crate) for_copies: bool,
    /// A setting of the store, such as endpoint=https://s3.example.org (docs/config.md); may be repeated
    #[arg(long = "store-option", value_name = "KEY=VALUE")]
    pub(crate) store_options: Vec<String>,
}

/// Prove that backup and archiving work, by doing it
///
/// Connects, looks at the settings, writes to the repository and reads back, and has PostgreSQL archive a segment.
#[derive(Debug, Args)]
pub(crate) struct CheckArgs {
    #[command(flatten)]
    pub(crate) which: ClusterArgs,
    /// Wait so many seconds for PostgreSQL to archive a segment
    #[arg(long, value_name = "SECONDS", default_value_t = 60)]
    pub(crate) timeout: u64,
}

/// Keys.
#[derive(Debug, Subcommand)]
pub(crate) enum KeyArgs {
    /// Write a new random key to a file that only you can read
    New {
        /// The file; it must not be there yet
        #[arg(value_name = "FILE")]
        file: PathBuf,
    },
}
