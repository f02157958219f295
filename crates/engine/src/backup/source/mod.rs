//! Where a backup's files come from: what makes a copy of them a backup, where they lie, and which WAL goes with it.
//!
//! | | begins | files | ends | WAL |
//! |---|---|---|---|---|
//! | [`Direct`] | `pg_backup_start` | the data directory | `pg_backup_stop` | in the archive, or carried |
//! | [`Frozen`] | `pg_backup_start` | a frozen copy | `pg_backup_stop`, before they are read | in the archive, or carried |
//! | [`Stream`] | `BASE_BACKUP` | the server sends them | with the last of them | in the archive, or comes along |
//! | [`Stopped`] | at the last checkpoint's redo LSN | the data directory | where its WAL ends | carried |
//!
//! [`Run`](super::run::Run) asks in this order: [`begin`](Source::begin), [`places`](Source::places), then config and
//! names, then [`end`](Source::end), [`carried_wal`](Source::carried_wal) and [`wait_for_wal`](Source::wait_for_wal).

mod direct;
mod freezer;
mod frozen;
mod places;
mod running;
mod stopped;
mod stopper;
mod stream;
mod wal_dir;

pub(super) use direct::Direct;
pub(super) use freezer::Freezer;
pub(super) use frozen::{Frozen, check_copy, places as places_of_copy};
pub(super) use places::Places;
pub(super) use running::{Running, look};
pub(super) use stopped::Stopped;
pub(super) use stopper::Stopper;
pub use stopper::Stopping;
pub(super) use stream::Stream;

use super::base::Coming;
use super::carry::WalFile;
use super::config::OutsideConfig;
use super::names::Names;
use crate::server::ServerFacts;
use crate::{Context, EngineError};
use jiff::Timestamp;
use pg_format::{Lsn, Timeline};
use pg_wire::Client;
use std::time::Duration;

/// Where replay begins.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Begun {
    pub(super) start_lsn: Lsn,
    pub(super) timeline: Timeline,
}

/// What is known when the files were read.
#[derive(Debug, Clone)]
pub(super) struct Ended {
    /// The timeline that the backup began on.
    pub(super) timeline: Timeline,
    pub(super) stop_lsn: Lsn,
    pub(super) stop_time: Timestamp,
    /// `backup_label`, byte for byte; none when the server did not know of the backup.
    pub(super) label: Option<String>,
    /// `tablespace_map`, byte for byte; none when there are no tablespaces.
    pub(super) tablespace_map: Option<String>,
}

/// Where a backup's files come from.
pub(super) enum Source<'a> {
    /// A running server on this host.
    Direct(Box<Direct<'a>>),
    /// A frozen copy of a running server's volumes, made within a backup.
    Frozen(Box<Frozen<'a>>),
    /// A server that does not run, or a copy that was frozen in one moment.
    Stopped(Box<Stopped>),
    /// A running server that sends its files.
    Stream(Box<Stream<'a>>),
}

impl Source<'_> {
    /// As manifests and the command line call it.
    pub(super) fn name(&self) -> &'static str {
        match self {
            Self::Direct(_) => "direct",
            Self::Frozen(_) => "snapshot",
            Self::Stopped(stopped) => stopped.name(),
            Self::Stream(_) => "stream",
        }
    }

    /// Begins the backup. Files may be read only afterwards.
    pub(super) async fn begin(&mut self, ctx: &Context, label: &str) -> Result<Begun, EngineError> {
        match self {
            Self::Direct(direct) => direct.begin(ctx, label).await,
            Self::Frozen(frozen) => frozen.begin(ctx, label).await,
            Self::Stopped(stopped) => Ok(stopped.begin()),
            Self::Stream(stream) => stream.begin(ctx, label).await,
        }
    }

    /// How the files come. To be asked when the backup has begun.
    pub(super) fn coming(&self) -> Coming {
        match self {
            Self::Direct(_) | Self::Frozen(_) | Self::Stopped(_) => Coming::ByReading,
            Self::Stream(stream) => stream.coming(),
        }
    }

    /// The session with the server, for questions. None where there is no server.
    pub(super) fn client(&mut self) -> Option<&mut Client> {
        match self {
            Self::Direct(direct) => Some(direct.client()),
            Self::Frozen(frozen) => Some(frozen.direct.client()),
            Self::Stopped(_) | Self::Stream(_) => None,
        }
    }

    /// Where the files lie. They may be read once this has returned.
    pub(super) async fn places(&mut self, ctx: &Context, server: &ServerFacts) -> Result<Places, EngineError> {
        match self {
            Self::Direct(_) => Ok(Places::of(server.data_directory.clone())),
            Self::Frozen(frozen) => frozen.places(ctx, server).await,
            Self::Stopped(stopped) => Ok(stopped.places()),
            Self::Stream(_) => Ok(Places::default()),
        }
    }

    /// Configuration from outside the data directory.
    pub(super) async fn config(&mut self, server: &ServerFacts) -> OutsideConfig {
        match self {
            // What lies here under these names is another host's.
            Self::Stream(_) => OutsideConfig::default(),
            _ => OutsideConfig::find(self.client(), server).await,
        }
    }

    /// The names that numbers have now.
    pub(super) async fn names(&mut self, ctx: &Context) -> Result<Names, EngineError> {
        match self {
            Self::Direct(direct) => direct.names(ctx).await,
            Self::Frozen(frozen) => frozen.direct.names(ctx).await,
            Self::Stopped(_) => Ok(Names::default()),
            Self::Stream(stream) => Ok(stream.names(ctx).await),
        }
    }

    /// Waits until what makes the backup valid is lost, and says so. For ever where nothing can be.
    pub(super) async fn lost(&mut self) -> EngineError {
        match self {
            Self::Direct(direct) => direct.lost().await,
            Self::Frozen(_) | Self::Stopped(_) | Self::Stream(_) => std::future::pending().await,
        }
    }

    /// Up to where there is WAL: no page has a later LSN.
    pub(super) async fn written_until(&mut self, server: &ServerFacts) -> Result<Lsn, EngineError> {
        match self {
            Self::Direct(direct) => direct.written_until(server).await,
            Self::Frozen(frozen) => Ok(frozen.end()?.stop_lsn),
            Self::Stopped(stopped) => Ok(stopped.end_of_wal()),
            Self::Stream(stream) => Ok(stream.end()?.stop_lsn),
        }
    }

    /// Judges the latest LSN on any page that was read.
    pub(super) fn check_newest(&self, newest: Lsn) -> Result<(), EngineError> {
        match self {
            // What the server has not written to WAL yet it does not write to pages.
            Self::Direct(_) | Self::Frozen(_) | Self::Stream(_) => Ok(()),
            Self::Stopped(stopped) => stopped.check_newest(newest),
        }
    }

    /// Ends the backup: all files were read.
    pub(super) async fn end(&mut self, ctx: &Context) -> Result<Ended, EngineError> {
        match self {
            Self::Direct(direct) => direct.end(ctx).await,
            Self::Frozen(frozen) => frozen.end(),
            Self::Stopped(stopped) => stopped.end(),
            Self::Stream(stream) => stream.end(),
        }
    }

    /// The files of WAL that travel in the backup, in ascending order of their names.
    pub(super) async fn carried_wal(&mut self, ctx: &Context, ended: &Ended) -> Result<Vec<WalFile>, EngineError> {
        match self {
            Self::Direct(direct) => direct.carried_wal(ctx, ended).await,
            Self::Frozen(frozen) => frozen.direct.carried_wal(ctx, ended).await,
            Self::Stopped(stopped) => Ok(stopped.wal()),
            // It is stored already.
            Self::Stream(_) => Ok(Vec::new()),
        }
    }

    /// Waits until the WAL that does not travel in the backup can be read; the last step before the manifest.
    pub(super) async fn wait_for_wal(&mut self, ctx: &Context, ended: &Ended) -> Result<(), EngineError> {
        match self {
            Self::Direct(direct) => direct.wait_for_wal(ctx, ended).await,
            Self::Frozen(frozen) => frozen.direct.wait_for_wal(ctx, ended).await,
            // WAL was read since it was looked last: a server that was started meanwhile may have recycled some.
            Self::Stopped(stopped) => {
                stopped.end()?;
                // Nothing of its files is needed any more.
                stopped.release().await;
                Ok(())
            }
            Self::Stream(stream) => stream.wait_for_wal(ctx, ended).await,
        }
    }

    /// How long the server was stopped for this, once it need not be any more.
    pub(super) fn downtime(&self) -> Option<Duration> {
        match self {
            Self::Direct(_) | Self::Frozen(_) | Self::Stream(_) => None,
            Self::Stopped(stopped) => stopped.downtime(),
        }
    }

    /// Whether the backup carries the WAL that it needs.
    pub(super) fn is_standalone(&self) -> bool {
        match self {
            Self::Direct(direct) => direct.is_standalone(),
            Self::Frozen(frozen) => frozen.direct.is_standalone(),
            Self::Stopped(_) => true,
            Self::Stream(stream) => stream.is_standalone(),
        }
    }
}
