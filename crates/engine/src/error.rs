//! What can go wrong, sorted by what it means for the user.

use repo::RepoError;
use std::path::PathBuf;

/// Every failure of an operation.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum EngineError {
    /// The repository failed.
    #[error(transparent)]
    Repo(#[from] RepoError),
    /// The server, or the way to it, failed.
    #[error(transparent)]
    Wire(#[from] pg_wire::WireError),
    /// A file or directory on this host failed.
    #[error("{path}: {action} failed: {source}")]
    File {
        /// The file or directory.
        path: PathBuf,
        /// What was tried.
        action: &'static str,
        /// The cause.
        source: std::io::Error,
    },
    /// A file of PostgreSQL's does not have the form it must have.
    #[error("{path}: {reason}")]
    BadFile {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        reason: String,
    },
    /// What was asked for is not there: a backup, a restore point, a cluster.
    #[error("{what}")]
    NotFound {
        /// What was looked for, and where.
        what: String,
        /// What to do next.
        hint: Option<String>,
    },
    /// It cannot be done, and nothing was done.
    #[error("{reason}")]
    Refused {
        /// Why not.
        reason: String,
        /// What to do next.
        hint: Option<String>,
    },
    /// It was begun and could not be finished.
    #[error("{reason}")]
    Failed {
        /// What happened.
        reason: String,
        /// What to do next.
        hint: Option<String>,
    },
    /// Told to stop.
    #[error("stopped on request")]
    Cancelled,
    /// The time that was set for it is over.
    #[error("the time for reading files was up at {at}, before all were read: no backup was made")]
    TimeIsUp {
        /// When it was to end.
        at: jiff::Timestamp,
    },
}

impl EngineError {
    /// A failure of a file operation.
    pub fn file(path: impl Into<PathBuf>, action: &'static str, source: std::io::Error) -> Self {
        Self::File { path: path.into(), action, source }
    }

    /// Refused, with what to do next.
    pub fn refused(reason: impl Into<String>, hint: impl Into<String>) -> Self {
        Self::Refused { reason: reason.into(), hint: Some(hint.into()) }
    }

    /// Failed, with what to do next.
    pub fn failed(reason: impl Into<String>, hint: impl Into<String>) -> Self {
        Self::Failed { reason: reason.into(), hint: Some(hint.into()) }
    }

    /// Not found, with what to do next.
    pub fn not_found(what: impl Into<String>, hint: impl Into<String>) -> Self {
        Self::NotFound { what: what.into(), hint: Some(hint.into()) }
    }
}
