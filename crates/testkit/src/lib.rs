//! Real clusters, load, and page comparison, for the tests of the other crates.
//!
//! It knows nothing of pgkeep's own formats and does not imitate PostgreSQL: every cluster is a real server of the
//! asked version. Works as root (servers then run as `postgres` or `nobody`) and as an ordinary user.
//!
//! - [`pg`]: find an installation, make a cluster, start, stop, kill, promote it, make a standby;
//! - [`load`]: fill a cluster with realistic data, run clients that note every acknowledged commit;
//! - [`compare`]: two stopped data directories page by page, and what PostgreSQL's own checks say.
//!
//! ```no_run
//! use testkit::pg::{Cluster, StopMode};
//!
//! # fn main() -> anyhow::Result<()> {
//! let mut cluster = Cluster::builder(15).checksums(true).conf("wal_level", "replica").start()?;
//! cluster.sql("CREATE TABLE t AS SELECT g FROM generate_series(1, 1000) g")?;
//! assert_eq!(cluster.sql("SELECT count(*) FROM t")?, "1000");
//! cluster.kill9()?;
//! cluster.start_again()?;
//!
//! // Programs that read the data directory run as the server's user.
//! let data = cluster.data_dir().to_string_lossy().into_owned();
//! cluster.stop(StopMode::Fast)?;
//! println!("{}", cluster.tool("pg_controldata", &["-D", &data])?);
//!
//! // A data directory that something else made, such as a restore.
//! let mut restored = Cluster::adopt(cluster.data_dir(), 15)?;
//! restored.start_again()?;
//! # Ok(())
//! # }
//! ```

pub mod compare;
pub mod load;
pub mod pg;
#[cfg(feature = "s3")]
pub mod s3;
