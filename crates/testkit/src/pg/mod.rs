//! Real PostgreSQL servers for tests: found, made, started, killed and removed.
//!
//! Nothing here imitates PostgreSQL. A test asks for a major version, gets a cluster of its own in a temporary
//! directory, and loses it when the value is dropped, also on panic.

mod builder;
mod cluster;
mod install;
mod process;
mod proxy;
mod small_disk;
mod standby;
mod user;

pub use builder::ClusterBuilder;
pub(crate) use cluster::connect_to;
pub use cluster::{Cluster, StopMode};
pub use install::{PgInstall, tools_dirs};
pub use process::{Output, processes_in, sweep_stale};
pub use proxy::Proxy;
pub use small_disk::SmallDisk;
pub use user::{ServerUser, server_user};

/// The PostgreSQL major versions that pgkeep supports, oldest first.
pub const SUPPORTED: [u32; 5] = [14, 15, 16, 17, 18];

/// The version that tests use when the version does not matter.
pub const DEFAULT_MAJOR: u32 = 15;
