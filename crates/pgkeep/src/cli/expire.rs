//! `delete`, `expire`, `pin`, `unpin`.

use super::ClusterArgs;
use clap::Args;

/// Delete backups or dumps
///
/// Shows what goes and asks first. Every other backup stays whole, whatever it shares with these. Data that nothing uses
/// any more stays for the grace, for restores that are reading it, and goes with a later `delete` or `expire`. Backups may
/// run meanwhile. A dump shares nothing and goes at once.
#[derive(Debug, Args)]
#[command(
    after_help = "Examples:\n  pgkeep delete 20261120T200910Z --dry-run\n  pgkeep delete 20261120T200910Z --yes\n\n\
        Exit code 4 when the store did not delete everything, as with locked objects; what stayed is listed."
)]
pub(crate) struct DeleteArgs {
    /// The IDs of backups or of dumps, as `pgkeep list` shows them
    #[arg(value_name = "ID", required = true)]
    pub(crate) ids: Vec<String>,
    /// Do not ask
    #[arg(long, short)]
    pub(crate) yes: bool,
    /// Also when no good backup of the cluster would be left
    #[arg(long)]
    pub(crate) even_the_last: bool,
    #[command(flatten)]
    pub(crate) how: HowArgs,
}

/// Delete the backups and dumps that no rule keeps, and the WAL that no backup needs
///
/// Kept are the newest N whole backups, whatever is newer than the oldest of these, and what is pinned. N comes from the
/// command line or the configuration. WAL goes as far as it lies before the start of the oldest backup that stays. Dumps have
/// a number of their own, counted for each kind: dumps of the same databases with the same selection. What broken-off dumps
/// left goes, too.
#[derive(Debug, Args)]
#[command(
    after_help = "Examples:\n  pgkeep expire --keep-last 7 --dry-run\n  pgkeep expire --keep-dumps 14\n  pgkeep expire --keep-all --grace 0   \
        # a full disk: remove at once what nothing uses"
)]
pub(crate) struct ExpireArgs {
    #[command(flatten)]
    pub(crate) which: ClusterArgs,
    /// Keep the newest so many; else from the configuration
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..))]
    pub(crate) keep_last: Option<u32>,
    /// Keep the newest so many dumps of each kind; else from the configuration, else all
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..))]
    pub(crate) keep_dumps: Option<u32>,
    /// Expire no backup and no dump: only remove what nothing uses any more
    #[arg(long, conflicts_with_all = ["keep_last", "keep_dumps"])]
    pub(crate) keep_all: bool,
    #[command(flatten)]
    pub(crate) how: HowArgs,
}

/// How a deletion is done.
#[derive(Debug, Clone, Args)]
pub(crate) struct HowArgs {
    /// Show what would go and what stays, and change nothing
    #[arg(long)]
    pub(crate) dry_run: bool,
    /// How long data stays after nothing uses it, such as 36h, 2d or 0; else from the configuration, else 1d
    #[arg(long, value_name = "TIME")]
    pub(crate) grace: Option<String>,
}

/// Pin a backup or dump: nothing deletes it
#[derive(Debug, Args)]
#[command(after_help = "Examples:\n  pgkeep pin latest --until 30d --reason 'before the upgrade'\n  \
        pgkeep pin 20261120T200910Z --until '2027-01-31'")]
pub(crate) struct PinArgs {
    /// The ID of a backup or dump as `pgkeep list` shows it, or `latest` (the backup)
    #[arg(value_name = "ID")]
    pub(crate) id: String,
    /// How long: a time from now (30d, 6 months) or a moment; else for ever
    #[arg(long, value_name = "TIME")]
    pub(crate) until: Option<String>,
    /// Why
    #[arg(long, value_name = "TEXT", default_value = "", hide_default_value = true)]
    pub(crate) reason: String,
}

/// Take the pin of a backup or dump away
#[derive(Debug, Args)]
pub(crate) struct UnpinArgs {
    /// The ID of a backup or dump as `pgkeep list` shows it, or `latest` (the backup)
    #[arg(value_name = "ID")]
    pub(crate) id: String,
}
