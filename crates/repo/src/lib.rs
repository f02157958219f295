//! The repository format of pgkeep, and the only place that knows it.
//!
//! What is written here is laid down in `docs/format.md`, section by section. The crate turns
//! pages, files and WAL segments into sealed objects of a [`store::Store`] and back; it opens no
//! connection to PostgreSQL and decides nothing about when or what to back up.

pub mod block;
pub mod chunk;
mod cluster;
mod coding;
pub mod dump;
mod error;
pub mod garbage;
mod intent;
pub mod keys;
mod lease;
pub mod manifest;
pub mod map;
mod names;
mod numbered;
mod object;
pub mod pack;
mod repository;
pub mod retention;
pub mod seal;
mod section;
pub mod tail;
pub mod wal;
pub mod wal_index;

pub use block::{Codec, Compression};
pub use cluster::{ClusterFacts, Pin, SystemEntry};
pub use error::RepoError;
pub use garbage::Garbage;
pub use intent::{Intent, IntentStart};
pub use keys::{KeySource, Keyring};
pub use lease::{Lease, LeaseFacts, LeaseHolder};
pub use names::{BackupId, ClusterName, PackId};
pub use object::{ObjectReader, ObjectSink};
pub use repository::{Cluster, Repository, RepositoryFacts, Sealing};
