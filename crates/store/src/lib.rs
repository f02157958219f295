//! Where bytes live: the [`Store`] trait and its implementations.
//!
//! A store keeps named, immutable objects. It knows nothing of backups, keys or formats.
//! What an implementation must hold is written at [`Store`] and proven by one conformance
//! suite (`tests/conformance.rs`) that every implementation passes.

mod blocking;
mod error;
mod local;
mod memory;
mod path;
mod traits;

pub use error::StoreError;
pub use local::{LocalOptions, LocalStore, MissingRoot, PageCache};
pub use memory::MemoryStore;
pub use path::ObjectPath;
pub use traits::{Created, Listing, ObjectMeta, ObjectWriter, Store};
