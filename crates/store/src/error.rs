//! What can go wrong in a store.

use crate::ObjectPath;

/// Every failure of a store, with the object it concerns.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum StoreError {
    /// The object is known to be absent: the store answered, and it is not there.
    #[error("{path}: not found in {store}")]
    NotFound {
        /// The store's URL.
        store: String,
        /// The object asked for.
        path: ObjectPath,
    },
    /// The range asked for does not lie inside the object.
    #[error("{path} in {store}: bytes {start}..{end} asked for, but it has only {size}")]
    OutOfRange {
        /// The store's URL.
        store: String,
        /// The object asked for.
        path: ObjectPath,
        /// First byte asked for.
        start: u64,
        /// One past the last byte asked for.
        end: u64,
        /// The object's size in bytes.
        size: u64,
    },
    /// The store refused: credentials, permission, a read-only file system.
    #[error("{path} in {store}: {action} was refused: {source}")]
    Denied {
        /// The store's URL.
        store: String,
        /// The object or prefix concerned.
        path: String,
        /// What was tried: `read`, `write`, `list`, `delete`.
        action: &'static str,
        /// The cause.
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    /// No room: disk or quota is full.
    #[error("{path} in {store}: no space left")]
    Full {
        /// The store's URL.
        store: String,
        /// The object being written.
        path: String,
    },
    /// Anything else: the outcome may be unknown, the object may or may not be there.
    #[error("{path} in {store}: {action} failed: {source}")]
    Failed {
        /// The store's URL.
        store: String,
        /// The object or prefix concerned.
        path: String,
        /// What was tried: `read`, `write`, `list`, `delete`.
        action: &'static str,
        /// The cause.
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    /// The URL or the options of a store cannot be used.
    #[error("store {url}: {reason}")]
    BadUrl {
        /// The URL as given.
        url: String,
        /// What is wrong, and what would be right.
        reason: String,
    },
}

impl StoreError {
    /// Whether the store answered that the object is not there.
    pub fn is_not_found(&self) -> bool {
        matches!(self, Self::NotFound { .. })
    }
}
