//! From the libraries' errors to what the user is told: which kind of failure it is, and what to do next.

use crate::error::{CommandError, ErrorKind};
use engine::EngineError;
use pg_wire::WireError;
use repo::RepoError;
use std::error::Error as _;
use std::io;
use store::StoreError;

impl From<EngineError> for CommandError {
    fn from(error: EngineError) -> Self {
        let text = error.to_string();
        let with = |kind: ErrorKind, hint: Option<String>| {
            let error = Self::new(kind, text.clone());
            match hint {
                Some(hint) => error.hint(hint),
                None => error,
            }
        };
        match error {
            EngineError::Repo(error) => error.into(),
            EngineError::Wire(error) => error.into(),
            EngineError::File { source, .. } => with(ErrorKind::Failed, file_hint(&source).map(str::to_owned)),
            EngineError::BadFile { .. } => with(ErrorKind::Failed, None),
            EngineError::NotFound { hint, .. } => with(ErrorKind::NotFound, hint),
            EngineError::Refused { hint, .. } | EngineError::Failed { hint, .. } => with(ErrorKind::Failed, hint),
            EngineError::Cancelled => Self::new(ErrorKind::Stopped, "stopped on request"),
            EngineError::TimeIsUp { .. } => with(
                ErrorKind::Stopped,
                Some("the next backup goes on from what was stored so far: run it when there is time again".to_owned()),
            ),
            _ => with(ErrorKind::Failed, None),
        }
    }
}

fn file_hint(error: &io::Error) -> Option<&'static str> {
    Some(match error.kind() {
        io::ErrorKind::PermissionDenied => "run pgkeep as the user that PostgreSQL runs as, such as `sudo -u postgres`",
        io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => "free some space, and try again",
        io::ErrorKind::ReadOnlyFilesystem => {
            "the file system is mounted read-only: mount it for writing, or use another"
        }
        io::ErrorKind::NotFound => "check the path",
        _ => return None,
    })
}

impl From<RepoError> for CommandError {
    fn from(error: RepoError) -> Self {
        let text = error.to_string();
        let make = |kind: ErrorKind, hint: &str| Self::new(kind, text.clone()).hint(hint);
        match error {
            RepoError::Store(error) => error.into(),
            RepoError::NotARepository { .. } => make(
                ErrorKind::NotFound,
                "check url in the configuration (and that the disk is mounted); `pgkeep init` makes a new repository",
            ),
            RepoError::AlreadyARepository { .. } => {
                make(ErrorKind::Failed, "use another place, or give init what fits the repository that is there")
            }
            RepoError::Damaged { .. } => make(
                ErrorKind::Failed,
                "`pgkeep verify --all --deep` says what else is damaged and which backups are whole",
            ),
            RepoError::TooNew { .. } => make(
                ErrorKind::Failed,
                "it was written by a newer pgkeep: use that version or a later one here; nothing was changed",
            ),
            RepoError::KeyMissing { .. } => make(
                ErrorKind::Usage,
                "set key-file, passphrase-file or key-command in the repository's section of the configuration",
            ),
            RepoError::NotEncrypted { .. } => make(
                ErrorKind::Usage,
                "if it was made without encryption, say `encryption = \"none\"` instead of the key; if it was encrypted, \
                 somebody changed it: look at the objects below pgkeep/",
            ),
            RepoError::WrongKey { .. } => make(
                ErrorKind::Usage,
                "use the key that this repository was made with (your copy of it); a new key cannot open it",
            ),
            RepoError::BadKey { .. } => make(ErrorKind::Usage, "check that this is the right file or command"),
            RepoError::Leased { .. } => make(
                ErrorKind::Failed,
                "wait until it has ended, or stop it; what a dead process holds is free again after three minutes",
            ),
            RepoError::Conflict { .. } => make(ErrorKind::Failed, "try again"),
            RepoError::OtherContent { .. } => make(
                ErrorKind::Failed,
                "two servers archive under the same cluster name, or a restored one still archives: give each its own \
                 name with `pgkeep init`, or set archive_mode = off in the restored one",
            ),
            RepoError::BadName { .. } => Self::usage(text),
            RepoError::UnknownCluster { ref cluster, .. } => make(
                ErrorKind::NotFound,
                &format!("`pgkeep init {cluster} …` enters it; `pgkeep status` shows the clusters that are known"),
            ),
            _ => Self::failed(text),
        }
    }
}

impl From<StoreError> for CommandError {
    fn from(error: StoreError) -> Self {
        let mut text = error.to_string();
        // The reason of a network failure lies in the sources.
        let mut source = error.source().and_then(std::error::Error::source);
        while let Some(deeper) = source {
            let more = deeper.to_string();
            if !text.contains(&more) {
                text += &format!(": {more}");
            }
            source = deeper.source();
        }
        let make = |kind: ErrorKind, hint: &str| Self::new(kind, text.clone()).hint(hint);
        match error {
            StoreError::NotFound { .. } | StoreError::OutOfRange { .. } => {
                make(ErrorKind::Failed, "`pgkeep verify --all` says what is missing and which backups are whole")
            }
            StoreError::Denied { .. } => make(
                ErrorKind::Failed,
                "let this user in: owner and mode of the directory and whether it is mounted read-only, or the \
                 credentials and the bucket's policy",
            ),
            StoreError::Full { .. } => {
                make(ErrorKind::Failed, "free some space; what is in the repository already is whole")
            }
            StoreError::BadUrl { .. } => Self::usage(text),
            StoreError::Failed { .. } => make(
                ErrorKind::Failed,
                "check that the place can be reached (mounted disk, network, endpoint), and try again",
            ),
            _ => Self::failed(text),
        }
    }
}

impl From<WireError> for CommandError {
    fn from(error: WireError) -> Self {
        let kind = if matches!(error, WireError::Conninfo(_)) { ErrorKind::Usage } else { ErrorKind::Failed };
        let made = Self::new(kind, error.to_string());
        match error.hint() {
            Some(hint) => made.hint(hint),
            None => made,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use store::ObjectPath;

    fn path() -> ObjectPath {
        ObjectPath::new("clusters/main/wal/1".to_owned()).unwrap()
    }

    #[test]
    fn every_failure_has_its_exit_code_and_a_next_step() {
        let url = || "/backup".to_owned();
        let errors: Vec<(CommandError, u8)> = vec![
            (RepoError::NotARepository { url: url() }.into(), 3),
            (RepoError::WrongKey { url: url(), method: "key-file" }.into(), 2),
            (RepoError::KeyMissing { url: url() }.into(), 2),
            (RepoError::TooNew { path: path(), what: "format version", found: 2, supported: 1 }.into(), 1),
            (RepoError::Damaged { path: path(), reason: "tag".into() }.into(), 1),
            (RepoError::OtherContent { path: path() }.into(), 1),
            (RepoError::UnknownCluster { cluster: "main".into(), url: url() }.into(), 3),
            (
                RepoError::Leased { cluster: "main".into(), purpose: "backup".into(), holder: "process 1".into() }
                    .into(),
                1,
            ),
            (StoreError::Full { store: url(), path: "x".into() }.into(), 1),
            (
                StoreError::Denied {
                    store: url(),
                    path: "x".into(),
                    action: "write",
                    source: Box::new(io::Error::from(io::ErrorKind::ReadOnlyFilesystem)),
                }
                .into(),
                1,
            ),
            (EngineError::not_found("no restore point 'x'", "see `pgkeep wal status`").into(), 3),
            (EngineError::refused("the directory is not empty", "name another").into(), 1),
            (EngineError::file("/x", "open", io::Error::from(io::ErrorKind::PermissionDenied)).into(), 1),
            (WireError::NoSocket { paths: vec!["/tmp/.s.PGSQL.1".into()] }.into(), 1),
        ];
        for (error, code) in errors {
            assert_eq!(error.kind.exit_code(), code, "{error}");
            assert!(!error.hints.is_empty(), "{error}");
        }
    }
}
