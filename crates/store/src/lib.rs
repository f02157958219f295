//! Where bytes live: the [`Store`] trait and its implementations.
//!
//! A store keeps named, immutable objects. It knows nothing of backups, keys or formats.
//! What an implementation must hold is written at [`Store`] and proven by one conformance
//! suite (`tests/conformance.rs`) that every implementation passes.

mod blocking;
mod error;
mod fault;
mod local;
mod memory;
mod open;
mod path;
mod s3;
mod traits;

pub use error::StoreError;
pub use fault::{Call, CallKind, Fault, FaultStore, What, When};
pub use local::{LocalOptions, LocalStore, MissingRoot, PageCache};
pub use memory::MemoryStore;
pub use open::{OPTION_KEYS, OptionError, StoreOptions, open_store};
pub use path::ObjectPath;
pub use s3::{S3Options, S3Store, Secret};
pub use traits::{Created, Listing, LogFile, ObjectMeta, ObjectWriter, Store};
