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
    #[error("{}: {action} was refused: {source}", place(path, store))]
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
    #[error("{}: no space left", place(path, store))]
    Full {
        /// The store's URL.
        store: String,
        /// The object being written.
        path: String,
    },
    /// Anything else: the outcome may be unknown, the object may or may not be there.
    #[error("{}: {action} failed: {source}", place(path, store))]
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

/// An object or prefix in its store; the empty prefix is the store itself.
fn place(path: &str, store: &str) -> String {
    if path.is_empty() { store.to_owned() } else { format!("{path} in {store}") }
}

/// What was tried, for the `action` of an error.
pub(crate) mod action {
    pub(crate) const READ: &str = "read";
    pub(crate) const WRITE: &str = "write";
    pub(crate) const LIST: &str = "list";
    pub(crate) const DELETE: &str = "delete";
}

/// Makes [`StoreError::Failed`] from a sentence.
pub(crate) fn failed(store: &str, path: impl ToString, action: &'static str, reason: impl Into<String>) -> StoreError {
    StoreError::Failed { store: store.to_owned(), path: path.to_string(), action, source: reason.into().into() }
}

/// [`StoreError::OutOfRange`] unless `range` lies inside an object of `size` bytes.
pub(crate) fn check_range(
    store: &str,
    path: &ObjectPath,
    range: &std::ops::Range<u64>,
    size: u64,
) -> Result<(), StoreError> {
    if range.start <= range.end && range.end <= size {
        return Ok(());
    }
    Err(StoreError::OutOfRange {
        store: store.to_owned(),
        path: path.clone(),
        start: range.start,
        end: range.end,
        size,
    })
}

/// The error for an object larger than the caller is ready to hold.
pub(crate) fn too_large(store: &str, path: &ObjectPath, size: u64, size_max: u64) -> StoreError {
    failed(
        store,
        path,
        action::READ,
        format!(
            "it has {size} bytes, more than the {size_max} expected at most; it is damaged or not what its name says"
        ),
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_failure_names_the_object_or_the_store_itself() {
        let text = |path: &str| failed("/backup", path, action::LIST, "it is gone").to_string();
        assert_eq!(text("clusters/main"), "clusters/main in /backup: list failed: it is gone");
        assert_eq!(text(""), "/backup: list failed: it is gone");
    }
}
