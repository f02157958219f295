//! Backup: a running cluster's files become a backup in the repository.
//!
//! The order is DESIGN's section 4: intent, `pg_backup_start`, files in parallel, pg_control last, `pg_backup_stop`,
//! then the wait until all WAL from start to stop is in the repository and can be read, and only then the manifest,
//! whose existence makes the backup. Whatever fails before leaves no backup, and what it stored is removed.

mod config;
mod listing;
mod names;
mod pages;
mod pipeline;
mod renewal;
mod session;
mod wal_wait;

use crate::server::{ServerFacts, connect, current_lsn};
use crate::{Context, EngineError, Unit, host_facts, lease_holder, process_is_gone};
use config::OutsideConfig;
use jiff::Timestamp;
use listing::{Found, Lister, Listing};
use names::Names;
use pages::{PageRules, beyond_replay, relation_key};
use pg_format::control::{CONTROL_FILE_PATH, ControlFile, DbState};
use pg_format::exclude::Rules;
use pg_format::page::Checksums;
use pg_format::{Lsn, Timeline};
use pg_wire::{Client, Conninfo};
use pipeline::{Outcome, Pipeline, PipelineSetup, Stored};
use renewal::{Renewal, SharedLease, lease_lost, renew};
use repo::manifest::{
    ChangeDetection, DamagedPage, FileEntry, FileType, ManifestFacts, Numbers, Place, TablespaceFacts,
};
use repo::{BackupId, Cluster, Compression, Intent, RepoError};
use serde::Serialize;
use session::BackupSession;
use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::time::Duration;

const CONTROL_ENTRY: &[u8] = b"data/global/pg_control";
/// Damaged pages beyond so many are counted, not listed.
const DAMAGED_LISTED: usize = 10_000;

/// How the server is to make its checkpoint at the start.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Checkpoint {
    /// At once.
    Fast,
    /// Spread over time, as `checkpoint_completion_target` says.
    Spread,
}

/// What is asked of a backup.
#[derive(Debug, Clone)]
pub struct BackupOptions {
    /// A text of the operator's.
    pub label: Option<String>,
    /// Threads that read and compress.
    pub workers: usize,
    /// Compression of chunks.
    pub compression: Compression,
    /// The checkpoint at the start.
    pub checkpoint: Checkpoint,
    /// How long to wait for the next WAL segment to arrive in the repository before giving up.
    pub wal_timeout: Duration,
    /// Name and version of the program, for the manifest.
    pub made_by: String,
}

/// What a backup did.
#[derive(Debug, Clone, Serialize)]
pub struct BackupReport {
    /// The backup's ID.
    pub backup: BackupId,
    /// Where replay begins.
    pub start_lsn: Lsn,
    /// Where the backup becomes consistent.
    pub stop_lsn: Lsn,
    /// Its timeline.
    pub timeline: Timeline,
    /// How it was found what to read.
    pub change_detection: ChangeDetection,
    /// What was read and stored.
    pub numbers: Numbers,
    /// When it began.
    pub started: Timestamp,
    /// When it was finished.
    pub finished: Timestamp,
    /// Pages that failed their check: a human must look at them.
    pub damaged: Vec<DamagedPage>,
    /// Damaged pages beyond those listed.
    pub damaged_more: u64,
    /// What a human should read.
    pub warnings: Vec<String>,
}

/// Backs up a running cluster from the files on this host.
pub async fn run(
    ctx: &Context,
    cluster: &Cluster,
    conninfo: &Conninfo,
    options: &BackupOptions,
) -> Result<BackupReport, EngineError> {
    let mut client = connect(conninfo).await?;
    let server = ServerFacts::read(&mut client).await?;
    check_cluster(cluster, &server).await?;
    check_server(&server)?;
    check_host(&server)?;
    let lease = cluster.take_lease("backup", lease_holder(), ctx.now(), process_is_gone).await.map_err(busy)?;
    // Work stops when the operator says so, or when the lease is lost; whichever it is, the same way.
    let stop = Context { cancel: ctx.cancel.child_token(), ..ctx.clone() };
    let mut renewal = Renewal::start(lease, &stop);
    let result = leased(&stop, cluster, conninfo, options, client, &server, &renewal.lease).await;
    let lost = renewal.stop().await;
    match (result, lost) {
        (Err(EngineError::Cancelled), Some(error)) if !ctx.cancel.is_cancelled() => Err(error),
        (result, _) => result,
    }
}

fn busy(error: RepoError) -> EngineError {
    match error {
        RepoError::Leased { .. } => EngineError::refused(
            error.to_string(),
            "wait until it has ended; a lease of a process that died elsewhere expires within 3 minutes",
        ),
        other => other.into(),
    }
}

/// The part of a backup for which the lease is held.
async fn leased(
    ctx: &Context,
    cluster: &Cluster,
    conninfo: &Conninfo,
    options: &BackupOptions,
    client: Client,
    server: &ServerFacts,
    lease: &SharedLease,
) -> Result<BackupReport, EngineError> {
    // Chosen while what others left is there: their names are never used again, not even within the same second.
    let backup = cluster.new_backup_id(ctx.now()).await?;
    remove_leftovers(ctx, cluster).await?;
    let intent =
        Intent { backup, priors: Vec::new(), host: lease_holder().host, pid: std::process::id(), started: ctx.now() };
    cluster.put_intent(&intent).await?;
    let committing = AtomicBool::new(false);
    let run = Run { ctx, cluster, conninfo, options, server, backup, lease, committing: &committing };
    let result = run.all(client).await;
    match &result {
        Ok(_) => {
            // The manifest is there: an intent that stays does no harm and is removed by the next backup.
            let _ = cluster.delete_intent(backup).await;
        }
        // The manifest was on its way when something failed: it may still arrive, and then it needs its packs. The next
        // backup sees what became of it.
        Err(_) if committing.load(Ordering::Relaxed) => {}
        Err(_) => {
            if let Err(error) = remove_backup_objects(cluster, backup).await {
                ctx.progress.warn(&format!("what the unfinished backup {backup} stored was not removed: {error}"));
            }
        }
    }
    result
}

/// Removes what backups left that ended without finishing, and intents that outlived their backup's end. The lease is
/// held, so none of them still runs.
async fn remove_leftovers(ctx: &Context, cluster: &Cluster) -> Result<(), EngineError> {
    let unfinished = cluster.unfinished().await?;
    for backup in cluster.intents().await? {
        let result = if unfinished.contains(&backup) {
            ctx.progress.warn(&format!("backup {backup} was broken off; what it stored is removed"));
            remove_backup_objects(cluster, backup).await
        } else {
            cluster.delete_intent(backup).await.map_err(EngineError::from)
        };
        if let Err(error) = result {
            ctx.progress.warn(&format!("backup {backup}: not all that it left could be removed: {error}"));
        }
    }
    Ok(())
}

async fn remove_backup_objects(cluster: &Cluster, backup: BackupId) -> Result<(), EngineError> {
    let name = cluster.name();
    let store = cluster.repository().store();
    if cluster.backups().await?.contains(&backup) {
        return Ok(()); // its manifest is there after all
    }
    let prefix =
        name.packs_prefix().join(&backup.to_string()).map_err(|reason| EngineError::Failed { reason, hint: None })?;
    loop {
        let page = store.list_page(Some(&prefix), None, 1000).await.map_err(RepoError::from)?;
        for object in &page {
            store.delete(&object.path).await.map_err(RepoError::from)?;
        }
        if page.is_empty() {
            break;
        }
    }
    Ok(cluster.delete_intent(backup).await?)
}

/// The cluster must be the one that this name stands for.
async fn check_cluster(cluster: &Cluster, server: &ServerFacts) -> Result<(), EngineError> {
    let facts = cluster.known_facts().await.map_err(|error| match error {
        RepoError::UnknownCluster { .. } => {
            EngineError::not_found(error.to_string(), format!("run `pgkeep init {}` first", cluster.name()))
        }
        other => other.into(),
    })?;
    let name = cluster.name();
    match facts.current() {
        Some(known) if known.system_id != server.system_id => Err(EngineError::refused(
            format!(
                "the server has system identifier {}, but cluster {name} in the repository is {}: it is another cluster",
                server.system_id, known.system_id
            ),
            format!(
                "give this cluster a name of its own, or, when it takes the place of the old one (as after a major upgrade), run `pgkeep init {name}` again"
            ),
        )),
        Some(known) if known.pg_major != server.major.number() => Err(EngineError::refused(
            format!(
                "the server runs PostgreSQL {}, the repository knows cluster {name} as {}",
                server.major.number(),
                known.pg_major
            ),
            format!("after a major upgrade, run `pgkeep init {name}` again"),
        )),
        Some(_) => Ok(()),
        None => Err(EngineError::not_found(
            format!("the repository knows no system identifier of cluster {name}"),
            format!("run `pgkeep init {name}` first"),
        )),
    }
}

/// Refuses what cannot give a valid backup.
fn check_server(server: &ServerFacts) -> Result<(), EngineError> {
    let apply = "`pgkeep init --apply` sets what is needed";
    if server.wal_level == "minimal" {
        return Err(EngineError::refused("wal_level is minimal: WAL does not hold what a backup needs", apply));
    }
    if server.archive_mode == "off" && !server.in_recovery {
        let reason = "archive_mode is off: the WAL that a backup needs would not reach the repository";
        return Err(EngineError::refused(reason, format!("{apply}; then restart the server")));
    }
    Ok(())
}

/// The files must be on this host, and be those of the server that was asked.
fn check_host(server: &ServerFacts) -> Result<(), EngineError> {
    let path = server.data_directory.join(CONTROL_FILE_PATH);
    let elsewhere = "run the backup on the database host, as the user that owns the data directory";
    let control = match std::fs::read(&path) {
        Err(error) => {
            return Err(EngineError::refused(
                format!("{}: the data directory cannot be read on this host: {error}", path.display()),
                elsewhere,
            ));
        }
        Ok(bytes) => ControlFile::parse(&bytes),
    };
    match control {
        Ok(control) if control.system_id != server.system_id => Err(EngineError::refused(
            format!(
                "{} has system identifier {}, the server {}: the server is not the one whose files are here",
                server.data_directory.display(),
                control.system_id,
                server.system_id
            ),
            elsewhere,
        )),
        // Another server of the same cluster: a standby on this host, a stopped copy, and the one that was asked runs
        // elsewhere (or in a container) with the same path. Its files and this backup's label would not go together.
        Ok(control) if !state_fits(control.state, server.in_recovery) => Err(EngineError::refused(
            format!(
                "{} says in its pg_control that it is {:?}, but the server that was asked is {}: it is not the one whose \
                 files are here",
                server.data_directory.display(),
                control.state,
                if server.in_recovery { "a standby" } else { "in production" },
            ),
            format!("{elsewhere}; when it was promoted in this moment, run the backup again"),
        )),
        // A checksum that does not fit may be a write that was met; it is read again with the backup.
        _ => Ok(()),
    }
}

/// What pg_control says of a server that takes queries.
fn state_fits(state: DbState, in_recovery: bool) -> bool {
    state == if in_recovery { DbState::InArchiveRecovery } else { DbState::InProduction }
}

/// One backup that is being made.
struct Run<'a> {
    ctx: &'a Context,
    cluster: &'a Cluster,
    conninfo: &'a Conninfo,
    options: &'a BackupOptions,
    server: &'a ServerFacts,
    backup: BackupId,
    lease: &'a SharedLease,
    /// Set when the manifest is being put in its place.
    committing: &'a AtomicBool,
}

impl Run<'_> {
    async fn all(&self, client: Client) -> Result<BackupReport, EngineError> {
        let ctx = self.ctx;
        let started = ctx.now();
        ctx.progress.phase("waiting for the server's checkpoint", None, Unit::Items);
        let label = format!("pgkeep {}", self.backup);
        let mut session =
            ctx.or_cancel(BackupSession::start(client, self.server, &label, self.options.checkpoint)).await??;
        let start_lsn = session.start_lsn();

        ctx.progress.phase("listing files", None, Unit::Items);
        let config = OutsideConfig::find(session.client(), self.server).await;
        let listing = Arc::new(self.list(&config).await?);
        let names = Names::read(ctx, session.client(), self.conninfo).await?;

        ctx.progress.phase("reading files", Some(listing.bytes), Unit::Bytes);
        let mut outcome = self.read_files(&mut session, &listing).await?;
        let inserted = current_lsn(session.client(), self.server.in_recovery).await?;
        let bad_pages = beyond_replay(std::mem::take(&mut outcome.bad_pages), start_lsn, inserted);

        ctx.progress.phase("ending the backup on the server", None, Unit::Items);
        let stopped = ctx.or_cancel(session.stop()).await??;
        let start = stopped.check_label(start_lsn)?;
        let mut warnings = [config.warnings.clone(), listing.warnings.clone(), names.warnings.clone()].concat();
        let wal =
            wal_wait::WalWait { ctx, cluster: self.cluster, server: self.server, timeout: self.options.wal_timeout };
        wal.until_readable(self.conninfo, start.timeline, start_lsn, stopped.stop_lsn).await?;

        ctx.progress.phase("writing the manifest", None, Unit::Items);
        let mut damaged: Vec<DamagedPage> = bad_pages
            .iter()
            .map(|page| {
                let path = &listing.entries[page.file].path;
                DamagedPage {
                    path: String::from_utf8_lossy(path).into_owned(),
                    relation: relation_key(path).and_then(|key| names.relation(key)),
                    block: page.block,
                    reason: page.reason.clone(),
                }
            })
            .collect();
        damaged.sort_by(|a, b| (&a.path, a.block).cmp(&(&b.path, b.block)));
        let damaged_more = damaged.len().saturating_sub(DAMAGED_LISTED) as u64;
        damaged.truncate(DAMAGED_LISTED);
        if damaged_more > 0 {
            warnings.push(format!("{damaged_more} more damaged pages are not listed"));
        }
        let numbers = Numbers {
            files: outcome.files.iter().flatten().count() as u64,
            bytes: outcome.files.iter().flatten().map(|file| file.len).sum(),
            pages_read: outcome.pages_read,
            pages_stored: outcome.pages_stored,
            bytes_added: outcome.packs.values().sum(),
            bytes_shared: 0,
        };
        let facts = ManifestFacts {
            backup: self.backup,
            cluster: self.cluster.name().clone(),
            label: self.options.label.clone(),
            made_by: self.options.made_by.clone(),
            started,
            finished: ctx.now(),
            source: "direct".into(),
            from_standby: self.server.in_recovery,
            standalone: false,
            system_id: self.server.system_id,
            pg_version_num: self.server.version_num,
            pg_version: self.server.version.clone(),
            catalog_version: self.server.catalog_version,
            timeline: start.timeline,
            start_lsn,
            stop_lsn: stopped.stop_lsn,
            stop_time: stopped.stop_time,
            block_size: self.server.block_size,
            relseg_blocks: self.server.relseg_blocks,
            wal_segment_size: self.server.wal_segment_size.bytes(),
            checksums: self.server.checksums,
            data_directory: self.server.data_directory.display().to_string(),
            tablespaces: self.tablespaces(),
            backup_label: Some(base64(stopped.label.as_bytes())),
            tablespace_map: stopped.tablespace_map.as_ref().map(|map| base64(map.as_bytes())),
            config_files: config.facts(),
            owners: listing.owners.list.clone(),
            prior: None,
            change_detection: ChangeDetection {
                used: "all".into(),
                reasons: vec!["every page is read and stored: this version makes full backups only".into()],
            },
            numbers,
            damaged,
            warnings: warnings.clone(),
            host: repo::manifest::HostFacts { collations: names.collations.clone(), ..host_facts() },
            compression: self.options.compression.to_string(),
            notes: BTreeMap::new(),
        };
        self.write_manifest(&listing, &names, &outcome, &facts).await?;
        self.cluster.raise_production_timeline(self.server.system_id, start.timeline).await?;
        Ok(BackupReport {
            backup: self.backup,
            start_lsn,
            stop_lsn: stopped.stop_lsn,
            timeline: start.timeline,
            change_detection: facts.change_detection,
            numbers,
            started,
            finished: facts.finished,
            damaged: facts.damaged,
            damaged_more,
            warnings,
        })
    }

    async fn list(&self, config: &OutsideConfig) -> Result<Listing, EngineError> {
        let mut rules = Rules::new(self.server.major);
        rules.tablespace_version_directory =
            format!("PG_{}_{}", self.server.major.number(), self.server.catalog_version);
        let (root, relseg, outside) = (self.server.data_directory.clone(), self.server.relseg_blocks, config.paths());
        blocking(move || Lister::new(&root, &rules, relseg).list(&outside)).await
    }

    /// Reads everything, pg_control last: on a standby its minRecoveryPoint must not be older than any page.
    async fn read_files(&self, session: &mut BackupSession, listing: &Arc<Listing>) -> Result<Outcome, EngineError> {
        let next_pack = Arc::new(AtomicU32::new(1));
        let setup = |listing| PipelineSetup {
            ctx: self.ctx.clone(),
            cluster: self.cluster.clone(),
            backup: self.backup,
            root: self.server.data_directory.clone(),
            listing,
            rules: PageRules {
                checksums: if self.server.checksums { Checksums::On } else { Checksums::Off },
                page_size: self.server.block_size as usize,
                relseg_blocks: self.server.relseg_blocks,
            },
            compression: self.options.compression,
        };
        let files = Pipeline::new(setup(listing.clone()), next_pack.clone(), |path| path != CONTROL_ENTRY);
        let mut outcome = tokio::select! {
            outcome = files.run(self.options.workers) => outcome?,
            error = session.lost() => return Err(error),
        };
        let last = Pipeline::new(setup(listing.clone()), next_pack, |path| path == CONTROL_ENTRY).run(1).await?;
        for (index, file) in last.files.into_iter().enumerate() {
            outcome.files[index] = outcome.files[index].or(file);
        }
        outcome.packs.extend(last.packs);
        outcome.used.extend(last.used);
        outcome.pages_read += last.pages_read;
        outcome.pages_stored += last.pages_stored;
        Ok(outcome)
    }

    fn tablespaces(&self) -> Vec<TablespaceFacts> {
        let in_place = |location: &str| !Path::new(location).is_absolute();
        self.server
            .tablespaces
            .iter()
            .map(|tablespace| TablespaceFacts {
                oid: tablespace.oid,
                name: tablespace.name.clone(),
                location: tablespace.location.clone(),
                in_place: in_place(&tablespace.location),
            })
            .collect()
    }

    async fn write_manifest(
        &self,
        listing: &Listing,
        names: &Names,
        outcome: &Outcome,
        facts: &ManifestFacts,
    ) -> Result<(), EngineError> {
        let mut manifest = self.cluster.create_manifest(self.backup).await?;
        for name in &names.entries {
            manifest.add_name(name).await?;
        }
        let mut used = outcome.used.clone();
        for (entry, result) in listing.entries.iter().zip(&outcome.files) {
            let file_type = match (&entry.found, result) {
                (Found::Directory, _) => FileType::Directory,
                (Found::Link(target), _) => FileType::Link { target: target.clone() },
                (Found::File { .. }, None) => continue,
                (Found::File { relation, .. }, Some(result)) => {
                    let mut place_in = |pack, chunk: repo::chunk::ChunkRef| {
                        let index = manifest.use_pack(pack, used.remove(&pack).unwrap_or(0));
                        repo::chunk::ChunkRef { pack: index, ..chunk }
                    };
                    let place = match result.stored {
                        Stored::Zero => Place::Zero,
                        Stored::Chunk(pack, chunk) => Place::Chunk(place_in(pack, chunk)),
                        Stored::Map(pack, chunk) => Place::Map(place_in(pack, chunk)),
                    };
                    FileType::File { len: result.len, place, settled: None, pages: relation.is_some(), wal: false }
                }
            };
            let path = entry.path.to_vec();
            let entry = FileEntry { path, mode: entry.mode, owner: entry.owner, mtime: entry.mtime, file_type };
            manifest.add_file(&entry).await?;
        }
        // Packs that only file maps refer to are used as well.
        for (pack, bytes) in used {
            manifest.use_pack(pack, bytes);
        }
        // A host that was suspended may have lost the lease, and with it the packs: another backup removes as left over
        // what it finds. The background renewal may not have noticed yet.
        renew(self.lease, self.ctx).await.map_err(|error| lease_lost(&error))?;
        // The last moment to stop: from here on the backup is there.
        self.ctx.check()?;
        self.committing.store(true, Ordering::Relaxed);
        manifest.finish(facts, &outcome.packs).await?;
        Ok(())
    }
}

fn base64(bytes: &[u8]) -> String {
    use base64::Engine;
    base64::engine::general_purpose::STANDARD.encode(bytes)
}

async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, EngineError> + Send + 'static,
) -> Result<T, EngineError> {
    tokio::task::spawn_blocking(work).await.unwrap_or_else(|panic| {
        Err(EngineError::Failed { reason: format!("a worker stopped unexpectedly: {panic}"), hint: None })
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn files_of_another_server_are_told_by_their_state() {
        assert!(state_fits(DbState::InProduction, false) && state_fits(DbState::InArchiveRecovery, true));
        for (state, in_recovery) in [
            (DbState::InArchiveRecovery, false),
            (DbState::ShutDown, false),
            (DbState::InProduction, true),
            (DbState::ShutDownInRecovery, true),
        ] {
            assert!(!state_fits(state, in_recovery), "{state:?}");
        }
    }
}
