//! Arguments of `wal receive`.

use clap::{Args, ValueEnum};

/// When the server is told that WAL is durable.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum FlushPlace {
    /// Once it is durable in the spool on this host
    Spool,
    /// Once it is in each repository that must have it
    Repository,
}

/// Stream WAL as it is written, so that a lost server costs a moment, or nothing
///
/// Connects as a standby does, with a replication slot, and keeps what arrives durable in a spool on this host. The end of it
/// goes to the repository every moment, and each whole segment as `wal push` stores it; archiving by segments may go on
/// beside it, and nothing is stored twice. Interruptions, restarts, and a standby that takes over are followed; of several
/// hosts in the connection string the primary is taken. Run it as a service, best on another host than the server. It ends
/// cleanly on SIGTERM and may be killed at any time.
///
/// To lose nothing, name it (pgkeep, or your application_name) in the server's synchronous_standby_names.
#[derive(Debug, Args)]
#[command(after_help = "Examples:\n  pgkeep wal receive --cluster main\n  pgkeep wal receive --flush repository\n  \
                        pgkeep wal receive --drop-slot")]
pub(crate) struct ReceiveArgs {
    /// The physical replication slot; it is made when it is not there
    #[arg(long, value_name = "NAME", default_value = engine::wal::receive::SLOT)]
    pub(crate) slot: String,
    /// When the server is told that WAL is durable: what synchronous commits wait for
    #[arg(long, value_enum, value_name = "WHERE", default_value_t = FlushPlace::Spool)]
    pub(crate) flush: FlushPlace,
    /// How long what has arrived waits at most before it is sent to the repository
    #[arg(long, value_name = "TIME", default_value = "1s")]
    pub(crate) tail_interval: String,
    /// How much of it may wait before it is sent at once; at most 4MB
    #[arg(long, value_name = "SIZE", default_value = "1MB")]
    pub(crate) tail_size: String,
    /// With so much in the spool nothing more is received, until the repository takes it
    #[arg(long, value_name = "SIZE", default_value = "16GB")]
    pub(crate) spool_max: String,
    /// Drop the slot and end: of a receiver that does not come back. A slot that nobody uses keeps WAL for ever
    #[arg(long)]
    pub(crate) drop_slot: bool,
}
