//! A running server whose files are on this host.

use super::super::carry::WalFile;
use super::super::names::Names;
use super::super::session::{BackupSession, slot_name};
use super::super::wal_wait::WalWait;
use super::super::{BackupOptions, Checkpoint};
use super::wal_dir::{self, Whose};
use super::{Begun, Ended};
use crate::hosts::switch_primary;
use crate::server::{ServerFacts, current_lsn};
use crate::{Context, EngineError, blocking};
use pg_format::{Lsn, SegmentName, Timeline, WalFileName, XLogSegNo};
use pg_wire::{Client, Conninfo};
use repo::Cluster;
use std::time::Duration;

/// A running server, and the session that makes copying its files a backup.
pub(in crate::backup) struct Direct<'a> {
    cluster: &'a Cluster,
    conninfo: &'a Conninfo,
    server: &'a ServerFacts,
    checkpoint: Checkpoint,
    wal_timeout: Duration,
    session: BackupSession,
    start_lsn: Lsn,
    standalone: bool,
    /// How the WAL of a standalone backup is kept until it is stored.
    held: Held,
    servers: Option<&'a Conninfo>,
    /// Why the primary could not be asked to end its segment.
    primary_failure: Option<String>,
}

/// How the WAL of a standalone backup is kept until it is stored.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Held {
    /// By a temporary replication slot, in the server's `pg_wal`.
    Slot,
    /// In the archive of the repository.
    Archive,
}

impl<'a> Direct<'a> {
    /// `client` is the session of the backup from now on.
    pub(in crate::backup) fn new(
        cluster: &'a Cluster,
        conninfo: &'a Conninfo,
        server: &'a ServerFacts,
        options: &'a BackupOptions,
        client: Client,
    ) -> Self {
        Self {
            cluster,
            conninfo,
            server,
            checkpoint: options.checkpoint,
            wal_timeout: options.wal_timeout,
            session: BackupSession::new(client, server),
            start_lsn: Lsn::INVALID,
            standalone: options.standalone,
            held: Held::Archive,
            servers: options.servers.as_ref(),
            primary_failure: None,
        }
    }

    /// Whether the backup carries its WAL.
    pub(super) fn is_standalone(&self) -> bool {
        self.standalone
    }

    /// Has the server keep its WAL from now on. Where it will not, the archive has to serve.
    async fn hold_wal(&mut self, ctx: &Context, name: &str) -> Result<(), EngineError> {
        match self.session.hold_wal(name).await? {
            Ok(()) => self.held = Held::Slot,
            Err(reason) if self.server.archive_mode != "off" => {
                tracing::info!(reason, "no slot; WAL is taken from the archive");
                ctx.check()?;
            }
            Err(reason) => {
                return Err(EngineError::refused(
                    format!("the server will not keep the WAL that a standalone backup carries: {reason}"),
                    "connect as a superuser or a role with REPLICATION, and see that max_replication_slots leaves one free; or set up archiving",
                ));
            }
        }
        Ok(())
    }

    /// The WAL that travels in the backup, when it is to carry it.
    pub(super) async fn carried_wal(&mut self, ctx: &Context, ended: &Ended) -> Result<Vec<WalFile>, EngineError> {
        if !self.standalone {
            return Ok(Vec::new());
        }
        let whose = Whose {
            system_id: self.server.system_id,
            major: self.server.major,
            timeline: ended.timeline,
            segment_size: self.server.wal_segment_size,
            block_bytes: self.server.block_size,
        };
        let (start, stop) = (self.start_lsn, ended.stop_lsn);
        let wal_dir = self.server.data_directory.join("pg_wal");
        let found = blocking(move || Ok(wal_dir::find_between(&wal_dir, &whose, start, stop))).await?;
        let missing = match found {
            // Without a slot it may be removed before it is stored.
            Ok(found) if self.held == Held::Slot => return Ok(found.files),
            Ok(_) => None,
            Err(reason) => Some(reason),
        };
        if self.server.archive_mode == "off" {
            return Err(EngineError::failed(
                missing.unwrap_or_else(|| "the WAL is not kept".into()),
                "see max_slot_wal_keep_size: the server may have removed WAL all the same; then run the backup again",
            ));
        }
        self.end_segment(ctx, ended).await?;
        self.wait(ctx, ended).await?;
        let size = self.server.wal_segment_size;
        let names = (start.segment_no(size).0..=stop.segment_no_of_end(size).0)
            .filter_map(|segno| SegmentName::new(ended.timeline, XLogSegNo(segno), size))
            .map(WalFileName::Segment);
        let history = (ended.timeline > Timeline::FIRST).then_some(WalFileName::History(ended.timeline));
        Ok(names.chain(history).map(|name| WalFile { name, path: None }).collect())
    }

    async fn wait(&self, ctx: &Context, ended: &Ended) -> Result<(), EngineError> {
        let primary_failure = self.primary_failure.as_deref();
        let (cluster, server, timeout) = (self.cluster, self.server, self.wal_timeout);
        let wal = WalWait { ctx, cluster, server, timeout, primary_failure };
        wal.until_readable(self.conninfo, ended.timeline, self.start_lsn, ended.stop_lsn).await
    }

    pub(super) async fn begin(&mut self, ctx: &Context, label: &str) -> Result<Begun, EngineError> {
        if self.standalone {
            self.hold_wal(ctx, &slot_name(label)).await?;
        }
        ctx.progress.phase("waiting for the server's checkpoint", None, crate::Unit::Items);
        let start_lsn = ctx.or_cancel(self.session.start(self.server, label, self.checkpoint)).await??;
        self.start_lsn = start_lsn;
        // The one that the backup's checkpoint was made on: a standby may have followed a switch since it was asked.
        let sql = "SELECT timeline_id::text AS timeline FROM pg_control_checkpoint()";
        let timeline: Timeline = self.client().query_one(sql, &[]).await?.get("timeline")?;
        Ok(Begun { start_lsn, timeline })
    }

    pub(super) fn client(&mut self) -> &mut Client {
        self.session.client()
    }

    pub(super) async fn names(&mut self, ctx: &Context) -> Result<Names, EngineError> {
        Names::read(ctx, self.session.client(), self.conninfo).await
    }

    pub(super) async fn lost(&mut self) -> EngineError {
        self.session.lost().await
    }

    pub(super) async fn written_until(&mut self, server: &ServerFacts) -> Result<Lsn, EngineError> {
        current_lsn(self.session.client(), server.in_recovery).await
    }

    pub(super) async fn end(&mut self, ctx: &Context) -> Result<Ended, EngineError> {
        ctx.or_cancel(self.session.stop(self.start_lsn)).await?
    }

    /// A standby cannot end a segment: the primary is asked to, or it would be archived only when it is full.
    async fn end_segment(&mut self, ctx: &Context, ended: &Ended) -> Result<(), EngineError> {
        if !self.server.in_recovery {
            return Ok(());
        }
        let size = self.server.wal_segment_size;
        let Some(segment) = SegmentName::new(ended.timeline, ended.stop_lsn.segment_no_of_end(size), size) else {
            return Ok(());
        };
        ctx.progress.phase("asking the primary to end its WAL segment", None, crate::Unit::Items);
        let (servers, system_id) = (self.servers, self.server.system_id);
        let segment = segment.to_string();
        let asked = switch_primary(servers, Ok(self.session.client()), system_id, &segment);
        self.primary_failure = ctx.or_cancel(asked).await?.err();
        if let Some(failure) = &self.primary_failure {
            tracing::info!(failure, "the primary could not be asked to end its WAL segment");
        }
        Ok(())
    }

    pub(super) async fn wait_for_wal(&mut self, ctx: &Context, ended: &Ended) -> Result<(), EngineError> {
        if !self.standalone {
            self.end_segment(ctx, ended).await?;
        }
        self.session.close().await;
        if self.standalone { Ok(()) } else { self.wait(ctx, ended).await }
    }
}
