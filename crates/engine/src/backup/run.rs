//! A backup from its beginning to its manifest.

use super::base::{Prepared, Preparing};
use super::carry::{CarriedWal, Carrier, WalFile};
use super::config::OutsideConfig;
use super::footers::Footers;
use super::listing::{Lister, Listing};
use super::names::Names;
use super::packs::{OldPacks, check_present};
use super::pages::{PageRules, beyond_replay};
use super::pipeline::{Outcome, Pipeline, PipelineSetup};
use super::plan::{Base, Plan};
use super::renewal::{SharedLease, lease_lost, renew};
use super::source::{Places, Source, Stream};
use super::stream::Received;
use super::write::{Results, Usage, commit, describe_pages, write_entries, write_wal};
use super::{BackupOptions, BackupReport, CONTROL_ENTRY, DAMAGED_LISTED, SnapshotGuarantee, SourceOptions};
use crate::pace::Pace;
use crate::packing::Packing;
use crate::server::{ServerFacts, Tablespace};
use crate::unfinished;
use crate::{Context, EngineError, Unit, blocking, host_facts};
use pg_format::Lsn;
use pg_format::exclude::Rules;
use pg_format::page::Checksums;
use repo::manifest::{HostFacts, LookAgain, Manifest, ManifestFacts, Numbers, TablespaceFacts};
use repo::{BackupId, Cluster, PackId, RepoError};
use std::collections::{BTreeMap, HashMap, HashSet};
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;
use store::StoreError;

/// How often it is looked whether the time for reading is up.
const LOOK_AT_THE_CLOCK_EVERY: Duration = Duration::from_secs(1);

/// The part of a backup for which the lease is held.
pub(super) async fn leased(
    ctx: &Context,
    cluster: &Cluster,
    options: &BackupOptions,
    mut source: Source<'_>,
    server: &ServerFacts,
    lease: &SharedLease,
) -> Result<BackupReport, EngineError> {
    let run = Run::new(ctx, cluster, options, server, lease).await?;
    let backup = run.backup;
    let result = run.all(&mut source).await;
    match &result {
        Ok(_) => {
            // The manifest is there: what stays does no harm, and the next backup removes it.
            let _ = cluster.delete_intent(backup).await;
            if let Err(error) = unfinished::remove_all(ctx, cluster, backup).await {
                ctx.progress.warn(&format!("not all that broken-off backups left could be removed: {error}"));
            }
        }
        // The manifest was on its way when something failed: it may still arrive, and then it needs its packs.
        Err(_) if run.committing.load(Ordering::Relaxed) => {}
        Err(error) => run.broken_off(error).await,
    }
    result
}

/// All that was read or received.
pub(super) struct Gathered {
    pub(super) listing: Arc<Listing>,
    pub(super) plan: Arc<Plan>,
    pub(super) outcome: Outcome,
    pub(super) config: OutsideConfig,
    names: Names,
    tablespaces: Vec<Tablespace>,
    warnings: Vec<String>,
}

/// One backup that is being made.
pub(super) struct Run<'a> {
    pub(super) ctx: &'a Context,
    pub(super) cluster: &'a Cluster,
    pub(super) options: &'a BackupOptions,
    server: &'a ServerFacts,
    pub(super) backup: BackupId,
    lease: &'a SharedLease,
    /// Set when the manifest is being put in its place.
    committing: AtomicBool,
    pub(super) packing: Packing,
}

impl<'a> Run<'a> {
    /// A backup with a name of its own.
    pub(super) async fn new(
        ctx: &'a Context,
        cluster: &'a Cluster,
        options: &'a BackupOptions,
        server: &'a ServerFacts,
        lease: &'a SharedLease,
    ) -> Result<Self, EngineError> {
        let backup = cluster.new_backup_id(ctx.now()).await?;
        let (committing, packing) = (AtomicBool::new(false), Packing::new(cluster.clone(), backup));
        Ok(Self { ctx, cluster, options, server, backup, lease, committing, packing })
    }
}

impl Run<'_> {
    /// What was stored is kept for the next backup to go on from; but not where it fills the store, for WAL needs the
    /// room more, and not what a server sent: nothing says that the next one is the same.
    pub(super) async fn broken_off(&self, error: &EngineError) {
        let full = matches!(error, EngineError::Repo(RepoError::Store(StoreError::Full { .. })));
        let result = async {
            let is_stream = matches!(self.options.source, SourceOptions::Stream(_));
            if !full && !is_stream && !unfinished::packs_of(self.cluster, self.backup).await?.is_empty() {
                self.ctx.progress.warn(&format!(
                    "what backup {} stored so far is kept: the next backup goes on from it",
                    self.backup
                ));
                return Ok::<(), EngineError>(());
            }
            unfinished::remove(self.cluster, self.backup, &HashSet::new()).await
        };
        if let Err(error) = result.await {
            self.ctx.progress.warn(&format!("after the failure, backup {}: {error}", self.backup));
        }
    }

    async fn all(&self, source: &mut Source<'_>) -> Result<BackupReport, EngineError> {
        let ctx = self.ctx;
        let started = ctx.now();
        let begun = source.begin(ctx, &format!("pgkeep {}", self.backup)).await?;
        let start_lsn = begun.start_lsn;
        let preparing = Preparing {
            ctx,
            cluster: self.cluster,
            server: self.server,
            options: self.options,
            backup: self.backup,
            begun,
            coming: source.coming(),
        };
        let Prepared { base, change_detection, round } = preparing.prepare(source.client()).await?;
        let base = Arc::new(base);

        let Gathered { listing, plan, mut outcome, config, names, tablespaces, warnings } = match source {
            Source::Stream(stream) => self.receive(stream, &base, start_lsn).await?,
            _ => self.read(source, &base, start_lsn).await?,
        };
        source.check_newest(outcome.newest.max(base.warm.as_ref().map_or(Lsn::INVALID, |warm| warm.newest)))?;
        let inserted = source.written_until(self.server).await?;
        let bad_pages = beyond_replay(std::mem::take(&mut outcome.bad_pages), start_lsn, inserted);

        ctx.progress.phase("ending the backup on the server", None, Unit::Items);
        let ended = source.end(ctx).await?;
        if ended.timeline != begun.timeline {
            return Err(EngineError::failed(
                format!("the backup began on timeline {}, the server said {}", ended.timeline, begun.timeline),
                "it changed over in this moment: run the backup again",
            ));
        }
        let mut warnings = [&warnings, &config.warnings, &listing.warnings, &names.warnings, &base.marks.warnings]
            .into_iter()
            .flatten()
            .cloned()
            .collect::<Vec<_>>();
        let carried = match source {
            Source::Stream(stream) => stream.take_carried(),
            _ => self.carry(source.carried_wal(ctx, &ended).await?).await?,
        };
        outcome.packs.extend(&carried.packs);
        for (pack, used) in &carried.used {
            *outcome.used.entry(*pack).or_default() += used;
        }
        source.wait_for_wal(ctx, &ended).await?;

        ctx.progress.phase("writing the manifest", None, Unit::Items);
        let (damaged, damaged_more) = describe_pages(&bad_pages, &listing, &names, DAMAGED_LISTED);
        if damaged_more > 0 {
            warnings.push(format!("{damaged_more} more damaged pages are not listed"));
        }
        let (mut differing, differing_more) = describe_pages(&outcome.differing, &listing, &names, DAMAGED_LISTED);
        let warmed = base.warm.as_ref().and_then(|warm| warm.looked_again).map_or(0, |(_, pages)| pages);
        differing.extend(base.warm.iter().flat_map(|warm| warm.differing.iter().cloned()));
        if differing_more > 0 {
            warnings.push(format!("{differing_more} more pages that differ are not listed"));
        }
        let usage = Usage::new(base.packs(), &outcome, broken_off_packs(&base))?;
        let results = Results::new(&plan, &mut outcome);
        let (mut files, mut bytes) = results.totals();
        for file in &carried.files {
            (files, bytes) = (files + 1, bytes + file.result.len);
        }
        let numbers = Numbers {
            files,
            bytes,
            pages_read: outcome.pages_read,
            pages_stored: outcome.pages_stored,
            bytes_added: outcome.packs.values().sum(),
            bytes_shared: usage.shared(self.backup),
        };
        let facts = ManifestFacts {
            backup: self.backup,
            cluster: self.cluster.name().clone(),
            label: self.options.label.clone(),
            made_by: self.options.made_by.clone(),
            started,
            finished: ctx.now(),
            source: source.name().into(),
            from_standby: self.server.in_recovery,
            standalone: source.is_standalone(),
            system_id: self.server.system_id,
            pg_version_num: self.server.version_num,
            pg_version: self.server.version.clone(),
            catalog_version: self.server.catalog_version,
            timeline: ended.timeline,
            start_lsn,
            stop_lsn: ended.stop_lsn,
            stop_time: ended.stop_time,
            block_size: self.server.block_size,
            relseg_blocks: self.server.relseg_blocks,
            wal_segment_size: self.server.wal_segment_size.bytes(),
            checksums: self.server.checksums,
            data_directory: self.server.data_directory.display().to_string(),
            tablespaces: self.tablespaces(&tablespaces, base.prior.as_ref().map(Manifest::facts)),
            backup_label: ended.label.as_ref().map(|label| base64(label.as_bytes())),
            tablespace_map: ended.tablespace_map.as_ref().map(|map| base64(map.as_bytes())),
            config_files: config.facts(),
            owners: listing.owners.list.clone(),
            prior: base.prior.as_ref().map(|prior| prior.facts().backup),
            resumed: base.resumed(),
            look_again: round.map(|round| LookAgain {
                round,
                rounds: super::footers::ROUNDS,
                pages: outcome.compared + warmed,
                differing,
            }),
            change_detection,
            numbers,
            damaged,
            warnings: warnings.clone(),
            host: self.host(&names),
            compression: self.options.compression.to_string(),
            notes: self.notes(source),
        };
        let mut manifest = self.cluster.create_manifest(self.backup).await?;
        write_entries(&mut manifest, &listing, &names, &results, &usage).await?;
        write_wal(&mut manifest, &carried, &usage).await?;
        // A host that was suspended may have lost the lease, and with it the packs: another backup removes as left over
        // what it finds. The background renewal may not have noticed yet.
        renew(self.lease, self.ctx).await.map_err(|error| lease_lost(&error))?;
        check_present(self.cluster, usage.used.keys().copied()).await?;
        // The last moment to stop: from here on the backup is there.
        self.ctx.check()?;
        self.committing.store(true, Ordering::Relaxed);
        commit(manifest, &facts, &usage).await?;
        self.cluster.raise_production_timeline(self.server.system_id, ended.timeline).await?;
        Ok(BackupReport {
            backup: self.backup,
            source: source.name(),
            standalone: source.is_standalone(),
            guarantee: self.guarantee(),
            start_lsn,
            stop_lsn: ended.stop_lsn,
            timeline: ended.timeline,
            prior: facts.prior,
            resumed: facts.resumed,
            downtime_seconds: source.downtime().map(|time| time.as_secs_f64()),
            change_detection: facts.change_detection,
            numbers,
            started,
            finished: facts.finished,
            damaged: facts.damaged,
            damaged_more,
            look_again: facts.look_again,
            warnings,
        })
    }

    async fn list(
        &self,
        mut places: Places,
        config: &OutsideConfig,
    ) -> Result<(Arc<Listing>, Arc<Places>), EngineError> {
        let mut rules = Rules::new(self.server.major);
        rules.tablespace_version_directory =
            format!("PG_{}_{}", self.server.major.number(), self.server.catalog_version);
        let (relseg, outside) = (self.server.relseg_blocks, config.paths());
        blocking(move || {
            let listing = Lister::new(&mut places, &rules, relseg).list(&outside)?;
            Ok((Arc::new(listing), Arc::new(places)))
        })
        .await
    }

    /// Stores the WAL that travels in the backup.
    async fn carry(&self, files: Vec<WalFile>) -> Result<CarriedWal, EngineError> {
        if files.is_empty() {
            return Ok(CarriedWal::default());
        }
        let carrier = Carrier {
            ctx: self.ctx.clone(),
            packing: self.packing.clone(),
            system_id: self.server.system_id,
            page_size: self.server.block_size,
            compression: self.options.compression,
        };
        let handle = tokio::runtime::Handle::current();
        blocking(move || carrier.store(handle, files)).await
    }

    /// Lists the files, and reads of them what is to be read.
    pub(super) async fn read(
        &self,
        source: &mut Source<'_>,
        base: &Arc<Base>,
        start_lsn: Lsn,
    ) -> Result<Gathered, EngineError> {
        let ctx = self.ctx;
        let places = source.places(ctx, self.server).await?;
        ctx.progress.phase("listing files", None, Unit::Items);
        let config = source.config(self.server).await;
        let (listing, places) = self.list(places, &config).await?;
        let names = source.names(ctx).await?;
        let sizes = (u64::from(self.server.block_size), self.server.relseg_blocks);
        let plan = Arc::new(Plan::make(ctx, base, &listing, sizes).await?);
        ctx.progress.phase("reading files", Some(plan.bytes), Unit::Bytes);
        let setup = PipelineSetup {
            places,
            listing: listing.clone(),
            plan: plan.clone(),
            ..self.pipeline_setup(base, start_lsn)
        };
        let outcome = self.read_files(source, setup).await?;
        let (tablespaces, warnings) = (self.server.tablespaces.clone(), Vec::new());
        Ok(Gathered { listing, plan, outcome, config, names, tablespaces, warnings })
    }

    /// Has the server send the files, and stores of them what changed.
    async fn receive(
        &self,
        stream: &mut Stream<'_>,
        base: &Arc<Base>,
        start_lsn: Lsn,
    ) -> Result<Gathered, EngineError> {
        let names = stream.names(self.ctx).await;
        let setup = self.pipeline_setup(base, start_lsn);
        let Received { listing, plan, outcome, warnings, .. } = stream.receive(self.ctx, setup).await?;
        let tablespaces = stream.tablespaces(&names);
        let config = OutsideConfig::default();
        Ok(Gathered { listing, plan, outcome, config, names, tablespaces, warnings })
    }

    /// All that a pipeline needs but files.
    fn pipeline_setup(&self, base: &Arc<Base>, start_lsn: Lsn) -> PipelineSetup {
        let mut sizes: HashMap<PackId, u64> = base.packs().iter().map(|pack| (pack.id, pack.size)).collect();
        sizes.extend(broken_off_packs(base));
        PipelineSetup {
            ctx: self.ctx.clone(),
            packing: self.packing.clone(),
            places: Arc::default(),
            listing: Arc::default(),
            base: base.clone(),
            plan: Arc::default(),
            packs: Arc::new(OldPacks::new(self.cluster.clone(), sizes)),
            footers: Arc::new(Footers::new(self.cluster.clone())),
            rules: PageRules {
                checksums: if self.server.checksums { Checksums::On } else { Checksums::Off },
                page_size: self.server.block_size as usize,
                relseg_blocks: self.server.relseg_blocks,
            },
            compression: self.options.compression,
            pace: Arc::new(Pace::new(self.options.bytes_per_second_max)),
            start_lsn,
        }
    }

    /// Reads what is to be read, pg_control last: on a standby its minRecoveryPoint must not be older than any page.
    async fn read_files(&self, source: &mut Source<'_>, setup: PipelineSetup) -> Result<Outcome, EngineError> {
        let stop = self.ctx.cancel.child_token();
        let ctx = Context { cancel: stop.clone(), ..self.ctx.clone() };
        let files = Pipeline::new(PipelineSetup { ctx, ..setup.clone() }, |path| path != CONTROL_ENTRY, true);
        let mut running = std::pin::pin!(files.run(self.options.workers));
        let read = tokio::select! {
            outcome = &mut running => Ok(outcome?),
            error = source.lost() => Err(error),
            error = self.time_is_up() => Err(error),
        };
        let mut outcome = match read {
            Ok(outcome) => outcome,
            Err(error) => {
                // What the workers have on its way must have arrived before anybody looks at what is there.
                stop.cancel();
                let _ = running.await;
                return Err(error);
            }
        };
        outcome.add(Pipeline::new(setup, |path| path == CONTROL_ENTRY, false).run(1).await?);
        Ok(outcome)
    }

    /// Waits until the time for reading is up; for ever where there is no such time.
    async fn time_is_up(&self) -> EngineError {
        let Some(at) = self.options.stop_reading_at else { return std::future::pending().await };
        loop {
            let left = at.duration_since(self.ctx.now());
            if left.is_zero() || left.is_negative() {
                return EngineError::TimeIsUp { at };
            }
            // In steps, for a clock may be set and a host suspended.
            let left = left.unsigned_abs();
            tokio::time::sleep(left.min(LOOK_AT_THE_CLOCK_EVERY)).await;
        }
    }

    fn guarantee(&self) -> Option<SnapshotGuarantee> {
        match &self.options.source {
            SourceOptions::Snapshot(snapshot) => Some(snapshot.guarantee),
            SourceOptions::Direct | SourceOptions::Offline { .. } | SourceOptions::Stream(_) => None,
        }
    }

    /// The host that the cluster runs on. Of another one only its collations are known.
    fn host(&self, names: &Names) -> HostFacts {
        let collations = names.collations.clone();
        match self.options.source {
            SourceOptions::Stream(_) => HostFacts { glibc: None, os: None, collations, ..host_facts() },
            _ => HostFacts { collations, ..host_facts() },
        }
    }

    fn notes(&self, source: &Source<'_>) -> BTreeMap<String, serde_json::Value> {
        let guarantee = self.guarantee().and_then(|guarantee| serde_json::to_value(guarantee).ok());
        let downtime = source.downtime().map(|time| time.as_secs_f64().into());
        let notes = [("guarantee", guarantee), ("downtime_seconds", downtime)];
        notes.into_iter().filter_map(|(name, value)| Some((name.to_owned(), value?))).collect()
    }

    /// The tablespaces. Where the server could not be asked for their names, those of the earlier backup count.
    fn tablespaces(&self, tablespaces: &[Tablespace], prior: Option<&ManifestFacts>) -> Vec<TablespaceFacts> {
        let in_place = |location: &str| !Path::new(location).is_absolute();
        let known = |tablespace: &Tablespace| {
            let known = prior?.tablespaces.iter().find(|known| known.oid == tablespace.oid)?;
            (tablespace.name == tablespace.oid.to_string()).then(|| known.name.clone())
        };
        tablespaces
            .iter()
            .map(|tablespace| TablespaceFacts {
                oid: tablespace.oid,
                name: known(tablespace).unwrap_or_else(|| tablespace.name.clone()),
                location: tablespace.location.clone(),
                in_place: in_place(&tablespace.location),
            })
            .collect()
    }
}

pub(super) fn broken_off_packs(base: &Base) -> impl Iterator<Item = (PackId, u64)> {
    base.broken_off.iter().flat_map(|backup| backup.packs.iter().map(|(pack, size)| (*pack, *size)))
}

fn base64(bytes: &[u8]) -> String {
    use base64::Engine;
    base64::engine::general_purpose::STANDARD.encode(bytes)
}
