//! WAL: what of it the repository has, how it gets there, how it comes back.
//!
//! - [`archive`]: what is in the repository, for all who plan with it (restore, verify, backup, status);
//! - [`push`]: `archive_command`; [`serve`]: `archive_library`; [`fetch`]: `restore_command`;
//! - [`receive`]: WAL streamed as it is written, and its tail;
//! - [`index`]: what the WAL changed, read, rolled up, made later.

pub mod archive;
pub mod fetch;
pub mod index;
mod lock;
pub mod push;
mod queue;
pub mod receive;
pub mod serve;
pub(crate) mod tail;

pub use archive::WalArchive;
pub use lock::WorkerLock;
pub use queue::Queue;
