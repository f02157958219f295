//! Import: what `pg_basebackup` wrote becomes a backup in the repository.
//!
//! The base backup is walked twice. The first time nothing is stored: names are judged, and the small files say what it
//! is (`backup_label`, `pg_control`, `PG_VERSION`, `backup_manifest`). The second time each file is summed, compared with
//! `backup_manifest`, and stored. Only when all was right is the manifest written, which makes the backup; else all that
//! was stored is removed again.
//!
//! WAL of the base backup is not pushed into the archive: the last segment is as a rule padded where the server's own
//! goes on, and would keep that one out. Where the archive does not have what is needed, the backup carries it.

mod facts;
mod input;
mod stop;
mod store;
mod survey;

use crate::packing::Packing;
use crate::setup::{RegisterOptions, register_entry};
use crate::wal::archive::WalArchive;
use crate::{Context, EngineError, Unit, blocking, lease_holder, process_is_gone, unfinished};
use input::Input;
use jiff::Timestamp;
use pg_format::exclude::Rules;
use pg_format::{Lsn, PgMajor, SegmentName, SystemId, Timeline, WalFileName, XLogSegNo};
use repo::manifest::DamagedPage;
use repo::{BackupId, Cluster, Compression, Intent, Lease, SystemEntry};
use serde::Serialize;
use std::collections::HashSet;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use stop::{Stop, WalScan};
use store::{Outcome, Store, StoreSetup};
use survey::{Known, Survey};

/// What an unknown cluster means.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum UnknownCluster {
    /// It is refused.
    Refuse,
    /// It is entered in the repository under this name, if the name is free.
    Enter,
}

/// What is asked of an import.
#[derive(Debug, Clone)]
pub struct ImportOptions {
    /// A directory or tar file that `pg_basebackup` wrote.
    pub path: PathBuf,
    /// A text of the operator's; else the base backup's own label.
    pub label: Option<String>,
    /// Where it becomes consistent, for a base backup that does not say it itself.
    pub stop_lsn: Option<Lsn>,
    /// What to do with a cluster that the repository does not know.
    pub unknown_cluster: UnknownCluster,
    /// Threads that compress.
    pub workers: usize,
    /// Compression of chunks.
    pub compression: Compression,
    /// Name and version of the program, for the manifest.
    pub made_by: String,
}

/// What an import did.
#[derive(Debug, Clone, Serialize)]
pub struct ImportReport {
    /// The backup's ID: when the base backup began.
    pub backup: BackupId,
    /// Its cluster.
    pub system_id: SystemId,
    /// PostgreSQL's major version.
    pub pg_major: u32,
    /// Where replay begins.
    pub start_lsn: Lsn,
    /// Where the backup becomes consistent.
    pub stop_lsn: Lsn,
    /// Who says so.
    pub stop_lsn_said_by: String,
    /// Its timeline.
    pub timeline: Timeline,
    /// When the base backup began.
    pub started: Timestamp,
    /// The earliest time that can be recovered to.
    pub stop_time: Timestamp,
    /// Whether each file was compared with `backup_manifest`.
    pub verified: bool,
    /// Files of WAL that the backup carries; 0 when the archive has what is needed.
    pub wal_files: u64,
    /// Files of the data directory and the tablespaces.
    pub files: u64,
    /// Their bytes.
    pub bytes: u64,
    /// Bytes that the repository grew by.
    pub bytes_added: u64,
    /// Pages that failed their check.
    pub damaged: Vec<DamagedPage>,
    /// What a human must read.
    pub warnings: Vec<String>,
}

/// Everything that is known before anything is stored.
struct Base {
    known: Known,
    links: std::collections::BTreeMap<u32, Vec<u8>>,
    spaces: HashSet<u32>,
    stop: Stop,
    started: Timestamp,
    stop_time: Timestamp,
    carried: HashSet<WalFileName>,
    warnings: Vec<String>,
}

/// Imports a base backup.
///
/// # Errors
/// [`EngineError::Refused`] when it is no whole base backup, was changed, or is of another cluster. Then nothing of it is
/// in the repository.
pub async fn import(ctx: &Context, cluster: &Cluster, options: &ImportOptions) -> Result<ImportReport, EngineError> {
    let input = Arc::new(Input::find(&options.path)?);
    ctx.progress.phase("looking at the base backup", None, Unit::Items);
    let (mut survey, known) = look(ctx, &input, &options.path).await?;
    check_system(ctx, cluster, &known, options).await?;
    let base = complete(ctx, cluster, &input, &mut survey, known, options).await?;
    let lease = cluster.take_lease("backup", lease_holder(), ctx.now(), process_is_gone).await?;
    let result = leased(ctx, cluster, &input, &base, &survey, options, lease).await;
    result.map(|outcome| base.report(outcome))
}

/// The first look.
async fn look(ctx: &Context, input: &Arc<Input>, path: &Path) -> Result<(Survey, Known), EngineError> {
    let (input, cancel, path) = (input.clone(), ctx.cancel.clone(), path.to_owned());
    blocking(move || {
        let mut survey = Survey::new(&path);
        input.walk(&mut survey, &|| cancel.is_cancelled())?;
        let known = survey.known()?;
        Ok((survey, known))
    })
    .await
}

/// The cluster must be the one that the repository knows under this name.
async fn check_system(
    ctx: &Context,
    cluster: &Cluster,
    known: &Known,
    options: &ImportOptions,
) -> Result<(), EngineError> {
    let control = &known.control;
    if PgMajor::from_number(known.major).is_err() {
        return Err(EngineError::refused(
            format!("the base backup is of PostgreSQL {}, which this version of pgkeep does not know", known.major),
            "use a later version of pgkeep",
        ));
    }
    let entry = SystemEntry {
        system_id: control.system_id,
        pg_major: known.major,
        wal_segment_size: control.wal_segment_size.bytes(),
        since: ctx.now(),
        production_timeline: known.label.start_segment.timeline,
    };
    let facts = ctx.or_cancel(cluster.facts()).await??;
    let systems = facts.as_ref().map(|facts| facts.systems.as_slice()).unwrap_or_default();
    if let Some(found) = systems.iter().find(|system| system.system_id == entry.system_id) {
        if found.pg_major == entry.pg_major && found.wal_segment_size == entry.wal_segment_size {
            return Ok(());
        }
        return Err(EngineError::refused(
            format!(
                "the base backup is of PostgreSQL {} with WAL segments of {} bytes; cluster {} is known with {} and {}",
                entry.pg_major,
                entry.wal_segment_size,
                cluster.name(),
                found.pg_major,
                found.wal_segment_size
            ),
            "import it under a name of its own: `--new-cluster`",
        ));
    }
    if systems.is_empty() && options.unknown_cluster == UnknownCluster::Enter {
        register_entry(ctx, cluster, &entry, RegisterOptions { new_system: false }).await?;
        return Ok(());
    }
    let ids: Vec<String> = systems.iter().map(|system| system.system_id.to_string()).collect();
    let has = if ids.is_empty() { "is not known".to_owned() } else { format!("has {}", ids.join(", ")) };
    Err(EngineError::refused(
        format!(
            "the base backup has system identifier {}; cluster {} {has} in the repository",
            entry.system_id,
            cluster.name()
        ),
        "name the cluster it belongs to; with `--new-cluster` it is entered under a name that is not used yet",
    ))
}

/// Finds out where and when it ends, and where its WAL is.
async fn complete(
    ctx: &Context,
    cluster: &Cluster,
    input: &Arc<Input>,
    survey: &mut Survey,
    known: Known,
    options: &ImportOptions,
) -> Result<Base, EngineError> {
    let mapped = known.map.entries.iter().map(|(oid, _)| oid.0);
    if let Some(oid) = survey.links.keys().copied().chain(mapped).find(|oid| !survey.spaces.contains(oid)) {
        return Err(EngineError::refused(
            format!("tablespace {oid} is not in the base backup"),
            format!("put {oid}.tar, or what pg_tblspc/{oid} leads to, where it belongs; nothing was imported"),
        ));
    }
    let archive = ctx.or_cancel(WalArchive::load(cluster, known.control.system_id)).await??;
    let mut scan = WalScan::new(&known);
    if !survey.segments.is_empty() {
        let (input, cancel) = (input.clone(), ctx.cancel.clone());
        scan = blocking(move || {
            input.walk_wal(&mut scan, &|| cancel.is_cancelled())?;
            Ok(scan)
        })
        .await?;
    }
    let stop = stop::find(&known, survey, Some(&archive), options.stop_lsn, scan.end).await?;
    let (timeline, start) = (known.label.start_segment.timeline, known.label.start_lsn);
    let size = archive.segment_size();
    let last = Lsn(stop.lsn.0.saturating_sub(1)).segment_no(size);
    let needed: Vec<XLogSegNo> = (start.segment_no(size).0..=last.0).map(XLogSegNo).collect();
    let mut warnings = Vec::new();
    let mut carried = HashSet::new();
    let mut latest_end = scan.latest_end;
    if needed.iter().all(|number| archive.has(timeline, *number)) {
        for number in &needed {
            latest_end = latest_end.max(archive.facts(timeline, *number).await?.latest_end());
        }
    } else {
        for number in &needed {
            let name = archive.segment_name(timeline, *number)?;
            check_carried(survey, name, size.bytes())?;
            carried.insert(WalFileName::Segment(name));
        }
        let history = WalFileName::History(timeline);
        if timeline != Timeline::FIRST && survey.wal_file(&history.to_string()).is_some() {
            carried.insert(history);
        }
    }
    let (started, guessed) = facts::start_time(&known, survey.label_mtime);
    warnings.extend(guessed);
    let seen = survey.last_mtime.try_into().ok().and_then(|seconds| Timestamp::from_second(seconds).ok());
    // Without any WAL to look at, the newest file is as late as can be.
    let stop_time = latest_end.or(seen).unwrap_or(started).max(started);
    if known.manifest.is_none() {
        warnings.push("it has no backup_manifest: its files could not be verified, only read".into());
    }
    Ok(Base {
        links: std::mem::take(&mut survey.links),
        spaces: std::mem::take(&mut survey.spaces),
        known,
        stop,
        started,
        stop_time,
        carried,
        warnings,
    })
}

fn check_carried(survey: &Survey, name: SegmentName, size: u64) -> Result<(), EngineError> {
    match survey.segments.get(&name) {
        Some(len) if *len == size => Ok(()),
        Some(len) => Err(EngineError::refused(
            format!("WAL segment {name} in the base backup has {len} bytes instead of {size}"),
            "archive the WAL that it needs (`pgkeep wal push`), and import it then",
        )),
        None => Err(EngineError::refused(
            format!("WAL segment {name}, which the base backup needs, is neither in it nor in the archive"),
            "archive the WAL that it needs (`pgkeep wal push`), and import it then",
        )),
    }
}

/// The part for which the lease is held.
async fn leased(
    ctx: &Context,
    cluster: &Cluster,
    input: &Arc<Input>,
    base: &Base,
    survey: &Survey,
    options: &ImportOptions,
    mut lease: Lease,
) -> Result<(BackupId, Outcome, u64), EngineError> {
    let result = async {
        let backup = cluster.past_backup_id(base.started, ctx.now()).await?;
        let intent = Intent {
            backup,
            priors: Vec::new(),
            host: lease_holder().host,
            pid: std::process::id(),
            started: ctx.now(),
            start: None,
        };
        cluster.put_intent(&intent).await?;
        let stored = match check_wal_floor(cluster, base).await {
            Ok(()) => stored(ctx, cluster, input, base, survey, options, backup, &mut lease).await,
            Err(error) => Err(facts::WriteError::Nothing(error)),
        };
        let written = match stored {
            Ok(outcome) => facts::write(ctx, cluster, base, options, backup, outcome).await,
            Err(error) => Err(error),
        };
        match written {
            Ok((outcome, size)) => {
                // The manifest is there: what stays of the intent does no harm.
                let _ = cluster.delete_intent(backup).await;
                Ok((backup, outcome, size))
            }
            // A manifest that was on its way may still arrive, and then it needs its packs.
            Err(facts::WriteError::Unclear(error)) => Err(error),
            Err(facts::WriteError::Nothing(error)) => {
                if let Err(left) = unfinished::remove(cluster, backup, &HashSet::new()).await {
                    ctx.progress.warn(&format!("what was stored of {backup} could not be removed: {left}"));
                }
                Err(error)
            }
        }
    }
    .await;
    if let Err(error) = lease.release().await {
        ctx.progress.warn(&format!("the lease could not be given back, it expires within 3 minutes: {error}"));
    }
    result
}

/// The WAL in the archive that it needs may be going in this moment. Asked after the intent is there: either the floor is
/// seen here, or the intent there.
async fn check_wal_floor(cluster: &Cluster, base: &Base) -> Result<(), EngineError> {
    let (timeline, start) = (base.known.label.start_segment.timeline, base.known.label.start_lsn);
    let floor = cluster.wal_floor(base.known.control.system_id, timeline).await?;
    match floor.filter(|floor| base.carried.is_empty() && start < *floor) {
        None => Ok(()),
        Some(floor) => Err(EngineError::refused(
            format!(
                "the base backup begins at {start}, and WAL before {floor}, where the oldest backup begins, was expired"
            ),
            "take a base backup with the WAL that it needs in it (`pg_basebackup -X stream`), or a newer one",
        )),
    }
}

/// The second look: everything is stored.
#[expect(clippy::too_many_arguments, reason = "the parts of one call, kept apart for reading")]
async fn stored(
    ctx: &Context,
    cluster: &Cluster,
    input: &Arc<Input>,
    base: &Base,
    survey: &Survey,
    options: &ImportOptions,
    backup: BackupId,
    lease: &mut Lease,
) -> Result<Outcome, facts::WriteError> {
    let control = &base.known.control;
    let major = control.major().map_err(|error| EngineError::Failed { reason: error.to_string(), hint: None })?;
    let mut rules = Rules::new(major);
    rules.tablespace_version_directory = format!("PG_{}_{}", base.known.major, control.catalog_version);
    let expected = base
        .known
        .manifest
        .as_ref()
        .map(|manifest| manifest.files.iter().map(|file| (file.path.clone(), file.clone())).collect());
    let stop = Context { cancel: ctx.cancel.child_token(), ..ctx.clone() };
    let setup = StoreSetup {
        ctx: stop.clone(),
        packing: Packing::new(cluster.clone(), backup),
        compression: options.compression,
        workers: options.workers,
        page_size: control.block_bytes as usize,
        relseg_blocks: control.relation_segment_blocks,
        checksums: control.has_data_checksums(),
        start_lsn: base.known.label.start_lsn,
        rules,
        expected,
        carried: base.carried.clone(),
        from: options.path.display().to_string(),
    };
    ctx.progress.phase("importing files", Some(survey.bytes), Unit::Bytes);
    let (input, cancel) = (input.clone(), stop.cancel.clone());
    let mut work = tokio::task::spawn_blocking(move || {
        let mut store = Store::new(setup);
        match input.walk(&mut store, &|| cancel.is_cancelled()) {
            Ok(()) => store.finish(),
            Err(error) => {
                store.give_up();
                Err(error)
            }
        }
    });
    let mut lost = None;
    let done = loop {
        tokio::select! {
            done = &mut work => break done,
            () = tokio::time::sleep(Lease::renew_every()) => {
                if let Err(error) = lease.renew(ctx.now()).await {
                    stop.cancel.cancel();
                    lost = Some(error);
                }
            }
        }
    };
    let done = done.unwrap_or_else(|panic| {
        Err(EngineError::Failed { reason: format!("the import stopped unexpectedly: {panic}"), hint: None })
    });
    match (done, lost) {
        (Err(EngineError::Cancelled), Some(error)) => Err(EngineError::from(error).into()),
        (done, _) => {
            let outcome = done?;
            lease.renew(ctx.now()).await.map_err(EngineError::from)?;
            Ok(outcome)
        }
    }
}

impl Base {
    fn report(self, (backup, outcome, bytes_added): (BackupId, Outcome, u64)) -> ImportReport {
        ImportReport {
            backup,
            system_id: self.known.control.system_id,
            pg_major: self.known.major,
            start_lsn: self.known.label.start_lsn,
            stop_lsn: self.stop.lsn,
            stop_lsn_said_by: self.stop.said_by.to_owned(),
            timeline: self.known.label.start_segment.timeline,
            started: self.started,
            stop_time: self.stop_time,
            verified: self.known.manifest.is_some(),
            wal_files: self.carried.len() as u64,
            files: outcome.files,
            bytes: outcome.bytes,
            bytes_added,
            damaged: outcome.damaged,
            warnings: self.warnings.into_iter().chain(outcome.warnings).collect(),
        }
    }
}
