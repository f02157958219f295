//! Arguments of `wal serve`.

use clap::Args;
use std::path::PathBuf;

/// Archive what PostgreSQL's archive library asks for, as long as it runs
///
/// For PostgreSQL 15 and later, set up by `pgkeep init --archive-library`: the library hands over the names of finished
/// segments, and this process pushes them, several at once and ahead of being asked. A segment is acknowledged only when
/// it is durable in the repository. While this process does not run, PostgreSQL keeps its WAL and tries again. Run it as a
/// service of the user that PostgreSQL runs as; it ends cleanly on SIGTERM.
#[derive(Debug, Args)]
#[command(after_help = "Example:\n  pgkeep wal serve --cluster main")]
pub(crate) struct ServeArgs {
    /// The socket to listen at: the server's pgkeep.socket; else CLUSTER.sock in the state directory
    #[arg(long, value_name = "PATH")]
    pub(crate) socket: Option<PathBuf>,
}
