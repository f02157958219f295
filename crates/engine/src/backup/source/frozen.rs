//! A frozen copy of the volumes of a running server, made between `pg_backup_start` and `pg_backup_stop`.
//!
//! The backup lasts on the server only as long as the copy takes to be made; reading it may take as long as it will. The
//! guarantee is that of any backup: what is in the copy need not be of one moment.

use super::freezer::Freezer;
use super::places::Places;
use super::{Begun, Direct, Ended};
use crate::server::ServerFacts;
use crate::{Context, EngineError};
use pg_format::control::{CONTROL_FILE_PATH, ControlFile};
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// A running server, and a copy of its volumes.
pub(in crate::backup) struct Frozen<'a> {
    pub(super) direct: Direct<'a>,
    freezer: Arc<Freezer>,
    places: Places,
    ended: Option<Ended>,
}

impl<'a> Frozen<'a> {
    pub(in crate::backup) fn new(direct: Direct<'a>, freezer: Arc<Freezer>, places: Places) -> Self {
        Self { direct, freezer, places, ended: None }
    }

    pub(super) async fn begin(&mut self, ctx: &Context, label: &str) -> Result<Begun, EngineError> {
        self.direct.begin(ctx, label).await
    }

    /// Makes the copy, and ends the backup on the server.
    pub(super) async fn places(&mut self, ctx: &Context, server: &ServerFacts) -> Result<Places, EngineError> {
        self.freezer.freeze(ctx).await?;
        check_copy(&self.places, server)?;
        ctx.progress.phase("ending the backup on the server", None, crate::Unit::Items);
        self.ended = Some(self.direct.end(ctx).await?);
        Ok(self.places.clone())
    }

    pub(super) fn end(&self) -> Result<Ended, EngineError> {
        self.ended.clone().ok_or_else(|| EngineError::Failed { reason: "nothing was frozen".into(), hint: None })
    }
}

/// Where a frozen copy of a server's data directory and its other volumes is.
pub(in crate::backup) fn places(server: &ServerFacts, copy: &Path, maps: &[(PathBuf, PathBuf)]) -> Places {
    let own = (server.data_directory.clone(), copy.to_owned());
    Places::frozen(copy.to_owned(), maps.iter().cloned().chain([own]).collect())
}

/// The copy must be of this server's files.
pub(in crate::backup) fn check_copy(places: &Places, server: &ServerFacts) -> Result<(), EngineError> {
    let path = places.root().join(CONTROL_FILE_PATH);
    let refuse = |what: String| {
        Err(EngineError::refused(
            format!("{}: {what}", places.root().display()),
            "`--snapshot-dir` names the place where the data directory is in the frozen copy, once the freeze command has ended",
        ))
    };
    let bytes = match std::fs::read(&path) {
        Ok(bytes) => bytes,
        Err(error) => return refuse(format!("no frozen data directory is there: {error}")),
    };
    match ControlFile::parse(&bytes) {
        Ok(control) if control.system_id != server.system_id => {
            refuse(format!("the copy has system identifier {}, the server {}", control.system_id, server.system_id))
        }
        _ => Ok(()),
    }
}
