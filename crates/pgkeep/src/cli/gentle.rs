//! What keeps a backup from being in the way of the server.

use clap::Args;

/// What keeps a backup from being in the way of the server.
#[derive(Debug, Clone, Args)]
#[command(next_help_heading = "To be in nobody's way")]
pub(crate) struct GentleArgs {
    /// Read (or have the server send) at most so much per second, such as 50MB; else from the configuration
    #[arg(long, value_name = "SIZE")]
    pub(crate) max_rate: Option<String>,
    /// Stop reading at this time, such as 06:00; the next backup goes on from what was stored
    #[arg(long, value_name = "TIME", conflicts_with = "stop_after")]
    pub(crate) until: Option<String>,
    /// Stop reading after so long, such as 2h; the next backup goes on from what was stored
    #[arg(long, value_name = "TIME")]
    pub(crate) stop_after: Option<String>,
    /// Run at this nice level, 0 to 19; else from the configuration, else 5 beside a server that runs
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u8).range(0..=19))]
    pub(crate) nice: Option<u8>,
    /// Use disks only when nobody else does (`ionice -c 3`; not every I/O scheduler knows that)
    #[arg(long)]
    pub(crate) idle_io: bool,
}
