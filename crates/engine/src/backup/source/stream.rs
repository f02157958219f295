//! A running server, wherever it is, that sends its files over the replication protocol.

use super::super::base::Coming;
use super::super::carry::{Carried, CarriedWal};
use super::super::changes::{self, Stretch};
use super::super::footers::{Marks, turn_after};
use super::super::names::Names;
use super::super::pipeline::PipelineSetup;
use super::super::prior::{self, Start};
use super::super::session::slot_name;
use super::super::stream::{self, Incoming, Received, WalCame, broken_off};
use super::super::wal_wait::WalWait;
use super::super::{BackupOptions, Checkpoint, Sharing, StreamCompression, StreamOptions};
use super::{Begun, Ended};
use crate::hosts::switch_primary;
use crate::server::{ServerFacts, Tablespace, connect};
use crate::{Context, EngineError, Unit};
use jiff::Timestamp;
use pg_format::history::TimelineHistory;
use pg_format::{Lsn, SegmentName, Timeline, WalFileName, XLogSegNo};
use pg_wire::{BaseBackup, BaseBackupCompression, BaseBackupOptions, Client, Conninfo};
use repo::{BackupId, Cluster};
use std::time::Duration;

/// The bounds of `MAX_RATE` in KiB a second (`MAX_RATE_LOWER`, `MAX_RATE_UPPER` in `src/backend/backup/basebackup.c`).
const MAX_RATE_KIB: std::ops::RangeInclusive<u64> = 32..=1_048_576;

/// A running server, and the session over which its files come.
pub(in crate::backup) struct Stream<'a> {
    cluster: &'a Cluster,
    conninfo: &'a Conninfo,
    server: &'a ServerFacts,
    options: StreamOptions,
    checkpoint: Checkpoint,
    wal_timeout: Duration,
    workers: usize,
    standalone: bool,
    servers: Option<&'a Conninfo>,
    /// The session, while nothing is received over it.
    client: Option<Client>,
    /// Keeps WAL for a backup that is to carry it.
    slot: Option<Client>,
    history: TimelineHistory,
    /// What the server has begun to send.
    incoming: Option<Incoming>,
    tablespaces: Vec<Tablespace>,
    data_mode: u32,
    sharing: Sharing,
    /// The backup since which the server was asked for changes, with where it began.
    upon: Option<Upon>,
    /// Why it was not asked for changes only.
    reasons: Vec<String>,
    start_lsn: Lsn,
    ended: Option<Ended>,
    carried: CarriedWal,
}

/// A backup since which the server was asked for changes.
struct Upon {
    backup: BackupId,
    /// Where it began.
    from: (Timeline, Lsn),
}

fn stretch(from: (Timeline, Lsn), to: (Timeline, Lsn), history: &TimelineHistory) -> Stretch {
    Stretch { from, to, history: Some(history.clone()).filter(|history| !history.switches.is_empty()) }
}

impl<'a> Stream<'a> {
    /// `client` is the session that the files will come over.
    pub(in crate::backup) fn new(
        cluster: &'a Cluster,
        conninfo: &'a Conninfo,
        server: &'a ServerFacts,
        (options, stream): (&'a BackupOptions, &StreamOptions),
        client: Client,
    ) -> Self {
        Self {
            cluster,
            conninfo,
            server,
            options: stream.clone(),
            checkpoint: options.checkpoint,
            wal_timeout: options.wal_timeout,
            workers: options.workers,
            standalone: options.standalone,
            servers: options.servers.as_ref(),
            client: Some(client),
            slot: None,
            history: TimelineHistory::without_past(Timeline::FIRST),
            incoming: None,
            tablespaces: Vec::new(),
            data_mode: 0o700,
            sharing: options.sharing,
            upon: None,
            reasons: Vec::new(),
            start_lsn: Lsn::INVALID,
            ended: None,
            carried: CarriedWal::default(),
        }
    }

    /// Whether the backup carries its WAL.
    pub(super) fn is_standalone(&self) -> bool {
        self.standalone
    }

    pub(super) fn coming(&self) -> Coming {
        let (history, upon) = (self.history.clone(), self.upon.as_ref().map(|upon| upon.backup));
        let mut reasons = self.reasons.clone();
        if upon.is_some() {
            return Coming::ByThemselves { history, used: "wal-summaries", reasons, upon };
        }
        reasons.push("the server sends every page; which of them changed is told by their LSNs".to_owned());
        Coming::ByThemselves { history, used: "page-lsn", reasons, upon }
    }

    /// Shows the server what the newest backup has, so that it sends only what changed since. Says why not, where that is
    /// worth saying.
    async fn show_prior(
        &self,
        ctx: &Context,
        client: &mut Client,
        start: &Start,
    ) -> Result<Result<Upon, Option<String>>, EngineError> {
        let Some(summarizes) = self.server.summarize_wal else { return Ok(Err(None)) };
        if self.sharing == Sharing::Full {
            return Ok(Err(None));
        }
        if !summarizes {
            return Ok(Err(Some("summarize_wal is off: the server cannot tell what changed".into())));
        }
        if self.standalone {
            return Ok(Err(Some("a standalone backup has no archive to compare the server's changes with".into())));
        }
        let Some(prior) = prior::choose(ctx, self.cluster, self.server, start).await?.prior else {
            return Ok(Err(None));
        };
        let facts = prior.facts();
        let from = (facts.timeline, facts.start_lsn);
        // Whether there is an index at all: of the WAL that is being written there is one when the backup has ended.
        let there = Stretch { from, to: (facts.timeline, facts.stop_lsn), history: None };
        if let Err(reason) = changes::within(ctx, self.cluster, self.server, &there).await? {
            return Ok(Err(Some(format!("the server's changes could not be compared with the WAL index: {reason}"))));
        }
        let marks = Marks::find(ctx, self.cluster, prior.packs(), turn_after(facts)).await?;
        let manifest = stream::manifest(ctx, &prior, &marks, self.server).await?;
        match ctx.or_cancel(client.upload_manifest(&manifest)).await? {
            Ok(()) => Ok(Ok(Upon { backup: facts.backup, from })),
            Err(error) if error.server_error().is_some_and(|said| said.severity == "ERROR") => {
                Ok(Err(Some(format!("the server did not take what the earlier backup has: {error}"))))
            }
            Err(error) => Err(broken_off(error)),
        }
    }

    /// The tablespaces, with their OIDs for names.
    pub(in crate::backup) fn tablespaces(&self, names: &Names) -> Vec<Tablespace> {
        let named = |space: &Tablespace| {
            let name = names.tablespace(space.oid).unwrap_or_else(|| space.oid.to_string());
            Tablespace { name, ..space.clone() }
        };
        self.tablespaces.iter().map(named).collect()
    }

    pub(super) async fn begin(&mut self, ctx: &Context, label: &str) -> Result<Begun, EngineError> {
        if self.standalone {
            self.hold_wal(&slot_name(label)).await?;
        }
        let mut client = self.client.take().expect("nothing is received yet");
        let system = client.identify_system().await?;
        let timeline = system.timeline;
        self.history = stream::history(&mut client, timeline).await?;
        let start = Start { timeline, lsn: system.xlogpos, history: self.history.clone() };
        match self.show_prior(ctx, &mut client, &start).await? {
            Ok(upon) => self.upon = Some(upon),
            Err(reason) => self.reasons.extend(reason),
        }
        let mode = client.show("data_directory_mode").await?;
        self.data_mode = u32::from_str_radix(&mode, 8).unwrap_or(0o700);
        ctx.progress.phase("waiting for the server's checkpoint", None, Unit::Items);
        let compression = self.compression(&client);
        let packed = compression.as_ref().map(|(method, _)| *method);
        let options = BaseBackupOptions {
            label: label.to_owned(),
            fast_checkpoint: self.checkpoint == Checkpoint::Fast,
            sizes: true,
            with_wal: self.standalone,
            wait_for_archive: false,
            // The server reads a page again that it met in the middle of a write; here it cannot be.
            verify_checksums: true,
            with_manifest: false,
            incremental: self.upon.is_some(),
            max_rate_kib: self.max_rate_kib()?,
            compression: compression.map(|(method, level)| BaseBackupCompression { method: method.to_owned(), level }),
        };
        let (backup, packed) = self.start(ctx, client, options, packed).await?;
        let is_incremental = self.upon.is_some();
        let (start_lsn, now) = (backup.start_lsn(), backup.timeline());
        if now != timeline {
            return Err(EngineError::failed(
                format!("the server changed from timeline {timeline} to {now} in this moment"),
                "run the backup again",
            ));
        }
        let spaces = backup.archives().iter().filter_map(|archive| archive.tablespace.as_ref());
        let known = |space: &pg_wire::BaseBackupTablespace| Tablespace {
            oid: space.oid,
            name: space.oid.to_string(),
            location: space.location.clone(),
        };
        self.tablespaces = spaces.map(known).collect();
        self.start_lsn = start_lsn;
        self.incoming = Some(Incoming { backup, packed, with_wal: self.standalone, is_incremental });
        Ok(Begun { start_lsn, timeline })
    }

    /// Has the server begin. Compression that it was not built with is done without, unless it was asked for; and all is
    /// sent where it cannot tell what changed.
    async fn start(
        &mut self,
        ctx: &Context,
        mut client: Client,
        mut options: BaseBackupOptions,
        mut packed: Option<&'static str>,
    ) -> Result<(BaseBackup, Option<&'static str>), EngineError> {
        loop {
            let refused = match ctx.or_cancel(client.base_backup(&options)).await? {
                Ok(backup) => return Ok((backup, packed)),
                Err(refused) => *refused,
            };
            // Feature not supported, or, where the specification is looked at first, a syntax error.
            let is_unknown = matches!(refused.error.sqlstate(), Some("0A000" | "42601"));
            let is_refusal = refused.error.server_error().is_some_and(|said| said.severity == "ERROR");
            if is_unknown && packed.is_some() && self.options.compression == StreamCompression::Auto {
                tracing::info!(error = %refused.error, "the server cannot compress: the stream comes as it is");
                (options.compression, packed) = (None, None);
            } else if is_refusal && options.incremental {
                self.reasons.push(format!("the server would not send changes only: {}", refused.error));
                (options.incremental, self.upon) = (false, None);
            } else {
                return Err(broken_off(refused.error));
            }
            client = refused.client;
        }
    }

    /// How the server is to compress: not where nothing but a socket on this host lies between.
    fn compression(&self, client: &Client) -> Option<(&'static str, Option<u32>)> {
        if self.server.major.number() < 15 {
            return None;
        }
        match self.options.compression {
            StreamCompression::Auto if client.target().starts_with('/') => None,
            StreamCompression::Auto => Some(("zstd", Some(1))),
            StreamCompression::None => None,
            StreamCompression::Gzip(level) => Some(("gzip", level)),
            StreamCompression::Lz4(level) => Some(("lz4", level)),
            StreamCompression::Zstd(level) => Some(("zstd", level)),
        }
    }

    fn max_rate_kib(&self) -> Result<Option<u32>, EngineError> {
        let Some(rate) = self.options.max_rate_bytes else { return Ok(None) };
        let kib = rate.div_ceil(1024);
        if !MAX_RATE_KIB.contains(&kib) {
            return Err(EngineError::refused(
                format!(
                    "a rate of {kib} KiB a second: the server takes {} to {}",
                    MAX_RATE_KIB.start(),
                    MAX_RATE_KIB.end()
                ),
                "choose one between them, or leave it out",
            ));
        }
        Ok(u32::try_from(kib).ok())
    }

    /// Has the server keep its WAL from now on. Where it will not, it may have removed some when it is to send it, and
    /// says so then.
    async fn hold_wal(&mut self, name: &str) -> Result<(), EngineError> {
        let mut client = stream::session(self.conninfo).await?;
        match client.create_temporary_slot(name).await {
            Ok(()) => self.slot = Some(client),
            Err(error) if error.server_error().is_some_and(|said| said.severity == "ERROR") => {
                tracing::info!(%error, "no slot; WAL is kept as long as the server keeps it anyway");
            }
            Err(error) => return Err(error.into()),
        }
        Ok(())
    }

    /// The names that numbers have now, if the login may ask.
    pub(in crate::backup) async fn names(&mut self, ctx: &Context) -> Names {
        let asked = async {
            let mut client = connect(self.conninfo).await?;
            let names = Names::read(ctx, &mut client, self.conninfo).await?;
            client.close().await;
            Ok::<_, EngineError>(names)
        };
        asked.await.unwrap_or_else(|error| {
            tracing::info!(%error, "names of relations are not noted: the login has no session for questions");
            Names::default()
        })
    }

    /// Receives all files, and stores what of them changed. The listing and the plan of `setup` are not looked at.
    pub(in crate::backup) async fn receive(
        &mut self,
        ctx: &Context,
        setup: PipelineSetup,
    ) -> Result<Received, EngineError> {
        let incoming = self.incoming.take().expect("the backup has begun");
        let timeline = incoming.backup.timeline();
        let again = setup.clone();
        let mut received = stream::receive(ctx, incoming, setup, self.server, self.workers, self.data_mode).await?;
        if received.timeline != timeline {
            return Err(EngineError::failed(
                format!("the server followed a change from timeline {timeline} to {} meanwhile", received.timeline),
                "the backup is void: run it again",
            ));
        }
        // The server's clock: what it says of moments is what is asked for when a moment is recovered to.
        let stop_time = match stream::server_time(&mut received.client).await {
            Some(time) => time,
            None => {
                let told = i64::try_from(received.label_time).ok().and_then(|told| Timestamp::from_second(told).ok());
                ctx.now().max(told.unwrap_or_default())
            }
        };
        self.carried = self.carry(&received.wal, timeline, received.stop_lsn)?;
        self.ended = Some(Ended {
            timeline,
            stop_lsn: received.stop_lsn,
            stop_time,
            label: Some(received.label.clone()),
            tablespace_map: received.tablespace_map.clone(),
        });
        self.slot = None;
        if received.is_in_part() {
            self.put_together(ctx, &mut received, again).await?;
        }
        Ok(received)
    }

    /// Puts files together of which only what changed came, when it is known from the archive where they were cut.
    async fn put_together(
        &self,
        ctx: &Context,
        received: &mut Received,
        setup: PipelineSetup,
    ) -> Result<(), EngineError> {
        let (ended, Some(upon)) = (self.end()?, &self.upon) else {
            return Err(EngineError::Failed { reason: "changes came that nobody asked for".into(), hint: None });
        };
        self.wait(ctx, &ended).await?;
        let stretch = stretch(upon.from, (ended.timeline, self.start_lsn), &self.history);
        let changes = changes::within(ctx, self.cluster, self.server, &stretch).await?.map_err(|reason| {
            EngineError::failed(
                format!("the server's changes cannot be compared with the WAL index: {reason}"),
                "run `pgkeep wal index --rebuild`, and the backup again; `pgkeep backup --full` needs none of it",
            )
        })?;
        received.settle(ctx, setup, changes, self.workers).await
    }

    /// The WAL that came along, which must be all that the backup needs.
    fn carry(&self, came: &[WalCame], timeline: Timeline, stop: Lsn) -> Result<CarriedWal, EngineError> {
        if !self.standalone {
            return Ok(CarriedWal::default());
        }
        let size = self.server.wal_segment_size;
        for segno in self.start_lsn.segment_no(size).0..=stop.segment_no_of_end(size).0 {
            let name = SegmentName::new(timeline, XLogSegNo(segno), size).map(WalFileName::Segment);
            let whole = |file: &&WalCame| Some(file.name) == name && file.result.len == size.bytes();
            if !came.iter().any(|file| whole(&file)) {
                let name = name.map_or_else(|| segno.to_string(), |name| name.to_string());
                return Err(EngineError::failed(
                    format!("WAL segment {name}, which the backup needs, did not come with it"),
                    "run the backup again",
                ));
            }
        }
        let carried = |file: &WalCame| Carried { name: file.name, result: file.result, mtime: file.mtime };
        // Their packs are counted with all others.
        Ok(CarriedWal { files: came.iter().map(carried).collect(), ..CarriedWal::default() })
    }

    /// The WAL that came along, stored already.
    pub(in crate::backup) fn take_carried(&mut self) -> CarriedWal {
        std::mem::take(&mut self.carried)
    }

    pub(super) fn end(&self) -> Result<Ended, EngineError> {
        self.ended.clone().ok_or_else(|| EngineError::Failed { reason: "nothing was received".into(), hint: None })
    }

    pub(super) async fn wait_for_wal(&mut self, ctx: &Context, ended: &Ended) -> Result<(), EngineError> {
        if self.standalone { Ok(()) } else { self.wait(ctx, ended).await }
    }

    async fn wait(&self, ctx: &Context, ended: &Ended) -> Result<(), EngineError> {
        let primary_failure = ctx.or_cancel(self.end_segment(ended)).await?.err();
        let primary_failure = primary_failure.as_deref();
        let (cluster, server, timeout) = (self.cluster, self.server, self.wal_timeout);
        let wal = WalWait { ctx, cluster, server, timeout, primary_failure };
        wal.until_readable(self.conninfo, ended.timeline, self.start_lsn, ended.stop_lsn).await
    }

    /// Has the primary of a standby end the segment that the backup ends in. Gives, within, why it could not be asked: a
    /// login that may do no more than replicate asks nobody.
    async fn end_segment(&self, ended: &Ended) -> Result<(), String> {
        let size = self.server.wal_segment_size;
        let segment = SegmentName::new(ended.timeline, ended.stop_lsn.segment_no_of_end(size), size);
        let Some(segment) = segment.filter(|_| self.server.in_recovery) else { return Ok(()) };
        let mut session = connect(self.conninfo).await;
        switch_primary(
            self.servers,
            session.as_mut().map_err(|error| &*error),
            self.server.system_id,
            &segment.to_string(),
        )
        .await
    }
}
