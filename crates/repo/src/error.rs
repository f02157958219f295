//! What can go wrong with a repository.

use store::{ObjectPath, StoreError};

/// Every failure of the repository layer, with the object it concerns.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum RepoError {
    /// The store failed; the object itself may be well.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// There is no repository at this place.
    #[error("{url}: there is no pgkeep repository here")]
    NotARepository {
        /// Where it was looked for.
        url: String,
    },
    /// `init` found a repository where it was to make one.
    #[error("{url}: a pgkeep repository with other settings is here already: {reason}")]
    AlreadyARepository {
        /// Where it was found.
        url: String,
        /// What differs.
        reason: String,
    },
    /// The object is not what was written: edited, truncated, swapped or not pgkeep's.
    #[error("{path}: damaged: {reason}")]
    Damaged {
        /// The object.
        path: ObjectPath,
        /// What does not fit.
        reason: String,
    },
    /// Written by a later version of pgkeep.
    #[error("{path}: {what} {found} is not known to this version of pgkeep, which reads up to {supported}")]
    TooNew {
        /// The object.
        path: ObjectPath,
        /// What is newer: `format version`, `must-understand flags`, ...
        what: &'static str,
        /// What the object says.
        found: u64,
        /// The highest this program understands.
        supported: u64,
    },
    /// No key was given, and the repository is encrypted.
    #[error("{url}: the repository is encrypted and no key was given")]
    KeyMissing {
        /// The repository.
        url: String,
    },
    /// A key was given, and the repository is not encrypted.
    #[error("{url}: a key was given, but the repository says that it is not encrypted")]
    NotEncrypted {
        /// The repository.
        url: String,
    },
    /// The key given opens none of the repository's wraps.
    #[error("{url}: the {method} given does not open this repository")]
    WrongKey {
        /// The repository.
        url: String,
        /// `passphrase`, `key-file` or `key-command`.
        method: &'static str,
    },
    /// A key's text cannot be used.
    #[error("{what}: {reason}")]
    BadKey {
        /// Which key.
        what: String,
        /// What is wrong with it, and what would be right.
        reason: String,
    },
    /// Somebody else is doing what only one may do at a time.
    #[error("{purpose} of cluster {cluster} is already running: {holder}")]
    Leased {
        /// The cluster's name.
        cluster: String,
        /// What is being done.
        purpose: String,
        /// Who does it, since when.
        holder: String,
    },
    /// Somebody else wrote the object in the same moment.
    #[error("{path}: was written by somebody else at the same time")]
    Conflict {
        /// The object.
        path: ObjectPath,
    },
    /// The backup is being deleted.
    #[error("backup {backup} is being deleted")]
    BeingDeleted {
        /// Its ID.
        backup: String,
    },
    /// An object of this name holds other content, and may not be replaced.
    #[error("{path}: is in the repository already with other content")]
    OtherContent {
        /// The object.
        path: ObjectPath,
    },
    /// A name given by the user or found in the store is not allowed.
    #[error("{name:?} is not a valid {what}: {reason}")]
    BadName {
        /// The name.
        name: String,
        /// What it should name.
        what: &'static str,
        /// The rule it breaks.
        reason: String,
    },
    /// The cluster has no objects in this repository.
    #[error("cluster {cluster} is not in the repository {url}")]
    UnknownCluster {
        /// The cluster's name.
        cluster: String,
        /// The repository.
        url: String,
    },
    /// The system's random number generator or a cipher failed.
    #[error("cryptography failed: {reason}")]
    Crypto {
        /// What failed.
        reason: String,
    },
}

impl RepoError {
    /// Whether the object is known to be absent.
    pub fn is_not_found(&self) -> bool {
        matches!(self, Self::Store(error) if error.is_not_found())
    }

    /// Whether what is in the store is not what was written (as opposed to a store out of reach).
    pub fn is_damage(&self) -> bool {
        matches!(self, Self::Damaged { .. } | Self::TooNew { .. })
            || matches!(self, Self::Store(StoreError::OutOfRange { .. }))
    }

    pub(crate) fn damaged(path: &ObjectPath, reason: impl Into<String>) -> Self {
        Self::Damaged { path: path.clone(), reason: reason.into() }
    }
}
