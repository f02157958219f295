//! A restore, thought through.

use super::choose::{Choice, choose};
use super::place;
use super::programs::find_server;
use super::settings::settings;
use super::{
    ExistingFiles, LinkBecomes, PlannedConfig, PlannedLink, RecoveryTarget, RestorePlan, RestoreRequest, TargetAction,
    WalNeed,
};
use crate::{Context, EngineError, Unit, host_facts};
use repo::manifest::{FileEntry, FileType, Manifest, ManifestFacts};
use repo::{BackupId, ClusterName};
use std::collections::{BTreeMap, HashMap};
use std::path::{Path, PathBuf};
use store::{ObjectPath, Store};

/// Where configuration from outside the data directory is put, inside the restored one.
pub(crate) const CONFIG_DIR: &str = "pgkeep-config";
/// File systems give room in blocks of this size as a rule.
const BLOCK_BYTES: u64 = 4096;
/// WAL segments that recovery keeps in `pg_wal` at the same time, roughly.
const WAL_SEGMENTS_KEPT: u64 = 4;
/// Links that a plan lists; a data directory has a handful.
const LINKS_MAX: usize = 1000;

/// See [`super::plan`].
pub(super) async fn plan(
    ctx: &Context,
    cluster: &repo::Cluster,
    request: &RestoreRequest,
) -> Result<RestorePlan, EngineError> {
    check_request(request)?;
    place::check_path("the target directory", &request.target_dir)?;
    place::check_not_running(&request.target_dir)?;
    place::check_empty("the target directory", &request.target_dir, request.existing)?;
    if request.existing == ExistingFiles::Remove {
        place::check_data_directory(&request.target_dir)?;
    }
    let Choice { facts, why, timeline, wal, window, mut warnings } = choose(ctx, cluster, request).await?;
    let tablespaces = place::place_tablespaces(&request.tablespaces, &request.target_dir, &facts)?;
    for space in tablespaces.iter().filter(|space| !space.in_place) {
        place::check_empty(&format!("tablespace {}'s directory", space.name), &space.destination, request.existing)?;
        place::check_removable(request, space, Path::new(&facts.data_directory))?;
    }
    let manifest = ctx.or_cancel(cluster.open_manifest(facts.backup)).await??;
    let contents = Contents::read(ctx, &manifest).await?;
    check_packs(ctx, cluster, &manifest).await?;
    let mut needs = vec![(
        request.target_dir.clone(),
        contents.bytes_of.get(&None).copied().unwrap_or(0) + WAL_SEGMENTS_KEPT * facts.wal_segment_size,
    )];
    for space in &tablespaces {
        let bytes = contents.bytes_of.get(&Some(space.oid)).copied().unwrap_or(0);
        needs.push((if space.in_place { request.target_dir.clone() } else { space.destination.clone() }, bytes));
    }
    let places = place::places(&needs)?;
    if request.existing == ExistingFiles::Refuse {
        place::check_space(&places)?;
    }
    let told = as_told(request, &facts, &wal);
    let owners = place::resolve_owners(request.owner.as_ref(), &facts.owners, &mut warnings)?;
    let links = contents.planned_links(&mut warnings);
    warn(request, &facts, &mut warnings);
    let config_files = facts
        .config_files
        .iter()
        .map(|file| PlannedConfig {
            origin: file.origin.clone(),
            setting: file.setting.clone(),
            destination: request.target_dir.join(CONFIG_DIR).join(file.path.trim_start_matches("config/")),
        })
        .collect();
    Ok(RestorePlan {
        cluster: cluster.name().clone(),
        backup: facts.backup,
        why,
        system_id: facts.system_id,
        pg_version: facts.pg_version.clone(),
        pg_major: facts.pg_version_num / 10_000,
        start_lsn: facts.start_lsn,
        stop_lsn: facts.stop_lsn,
        stop_time: facts.stop_time,
        target: request.target.clone(),
        exclusive: request.exclusive,
        timeline,
        action: request.action,
        standby: request.standby,
        archive: request.archive,
        wal,
        window,
        target_dir: request.target_dir.clone(),
        settings: settings(&told, timeline, &tablespaces),
        tablespaces,
        places,
        links,
        config_files,
        existing: request.existing,
        files: contents.files,
        directories: contents.directories,
        bytes: contents.bytes,
        fetch_bytes: manifest.packs().iter().map(|pack| pack.used).sum(),
        packs: manifest.packs().len() as u64,
        signal_file: if request.standby { "standby.signal" } else { "recovery.signal" }.to_owned(),
        owners,
        workers: request.workers.clamp(1, 64),
        warnings,
    })
}

/// The request in the terms of the server that recovers.
fn as_told(request: &RestoreRequest, facts: &ManifestFacts, wal: &WalNeed) -> RestoreRequest {
    let mut told = request.clone();
    if !facts.standalone || wal.segments > 0 || request.standby {
        return told;
    }
    // All WAL lies in pg_wal already. What an archive has from elsewhere must not get in between; only the numbers of
    // timelines that were taken are asked for, and it does no harm when nobody answers.
    told.restore_command =
        format!("case %f in *.history) ({}) || exit 1 ;; *) exit 1 ;; esac", request.restore_command);
    if facts.backup_label.is_none() {
        // It is consistent where its WAL ends. After that no record comes at which recovery could see that it has reached
        // a target, which would be fatal.
        told.target = RecoveryTarget::Latest;
    }
    told
}

fn check_request(request: &RestoreRequest) -> Result<(), EngineError> {
    let refuse = |reason: &str, hint: &str| Err(EngineError::refused(reason, hint));
    if request.existing == ExistingFiles::Delta {
        return refuse(
            "restoring only what differs (`--delta`) is not there yet",
            "restore to an empty directory, or let its files be removed first with `--force`",
        );
    }
    if request.standby && request.target != RecoveryTarget::Latest {
        return refuse("a standby follows its primary and has no target", "leave out the target, or `--standby`");
    }
    if request.restore_command.is_empty() {
        return refuse("recovery needs a restore_command", "give one that calls `pgkeep wal fetch %f %p`");
    }
    if let RecoveryTarget::RestorePoint(name) = &request.target
        && (name.is_empty() || name.len() > 63)
    {
        return refuse("a restore point's name has 1 to 63 bytes", "see `pgkeep find` for the names there are");
    }
    Ok(())
}

/// Every pack of the backup must be there, with its size: said before anything is written.
pub(crate) async fn check_packs(
    ctx: &Context,
    cluster: &repo::Cluster,
    manifest: &Manifest,
) -> Result<(), EngineError> {
    ctx.progress.phase("checking the packs", Some(manifest.packs().len() as u64), Unit::Items);
    let store = cluster.repository().store();
    let mut backups: Vec<BackupId> = manifest.packs().iter().map(|pack| pack.id.backup).collect();
    backups.sort_unstable();
    backups.dedup();
    let mut bad = Vec::new();
    for backup in backups {
        // One listing answers for thousands of packs.
        let sizes = ctx.or_cancel(pack_sizes(&**store, cluster.name(), backup)).await??;
        for pack in manifest.packs().iter().filter(|pack| pack.id.backup == backup) {
            ctx.progress.advance(1);
            let path = cluster.name().pack(pack.id);
            match sizes.get(&path) {
                Some(size) if *size == pack.size => {}
                Some(size) => bad.push(format!("{path} has {size} bytes instead of {}", pack.size)),
                None => bad.push(format!("{path} is not there")),
            }
        }
    }
    if bad.is_empty() {
        return Ok(());
    }
    bad.sort();
    let more = if bad.len() > 5 { format!(" and {} more", bad.len() - 5) } else { String::new() };
    bad.truncate(5);
    Err(EngineError::refused(
        format!("backup {} is damaged: {}{more}", manifest.facts().backup, bad.join("; ")),
        "choose another backup with `--backup`; `pgkeep verify` says which ones are whole",
    ))
}

/// The sizes of all packs that a backup wrote.
async fn pack_sizes(
    store: &dyn Store,
    cluster: &ClusterName,
    backup: BackupId,
) -> Result<HashMap<ObjectPath, u64>, EngineError> {
    const PAGE: usize = 1000;
    let failed = |reason: String| EngineError::Failed { reason, hint: None };
    let prefix = cluster.packs_prefix().join(&backup.to_string()).map_err(failed)?;
    let (mut sizes, mut after) = (HashMap::new(), None);
    loop {
        let page = store.list_page(Some(&prefix), after.as_ref(), PAGE).await.map_err(repo::RepoError::from)?;
        let whole = page.len() < PAGE;
        after = page.last().map(|object| object.path.clone());
        sizes.extend(page.into_iter().map(|object| (object.path, object.size)));
        if whole {
            return Ok(sizes);
        }
    }
}

/// What a backup has in it, summed up.
#[derive(Default)]
struct Contents {
    files: u64,
    directories: u64,
    bytes: u64,
    /// Bytes on disk, by tablespace OID; `None` for the data directory.
    bytes_of: BTreeMap<Option<u32>, u64>,
    links: Vec<(Vec<u8>, Vec<u8>)>,
    /// Links, by index, that have something below them in the backup.
    parents: Vec<bool>,
}

/// The OID and the rest of a path in a tablespace.
pub(crate) fn in_tablespace(path: &[u8]) -> Option<(u32, &[u8])> {
    let rest = path.strip_prefix(b"data/pg_tblspc/")?;
    let digits = rest.iter().position(|&byte| byte == b'/').unwrap_or(rest.len());
    let oid = std::str::from_utf8(&rest[..digits]).ok()?.parse().ok()?;
    Some((oid, rest.get(digits + 1..).unwrap_or(b"")))
}

impl Contents {
    async fn read(ctx: &Context, manifest: &Manifest) -> Result<Self, EngineError> {
        ctx.progress.phase("reading the manifest", None, Unit::Items);
        let mut contents = Self::default();
        let mut blocks = manifest.files();
        while let Some(entries) = ctx.or_cancel(blocks.next()).await?? {
            ctx.progress.advance(entries.len() as u64);
            for entry in &entries {
                contents.add(entry);
            }
        }
        Ok(contents)
    }

    fn add(&mut self, entry: &FileEntry) {
        // Entries come in order of their paths, so a link comes before what lies below it.
        for (index, (link, _)) in self.links.iter().enumerate() {
            if entry.path.strip_prefix(link.as_slice()).is_some_and(|rest| rest.starts_with(b"/")) {
                self.parents[index] = true;
            }
        }
        match &entry.file_type {
            FileType::Directory => {
                self.directories += 1;
                *self.bytes_of.entry(in_tablespace(&entry.path).map(|(oid, _)| oid)).or_default() += BLOCK_BYTES;
            }
            FileType::File { len, .. } => {
                self.files += 1;
                self.bytes += len;
                let room = len.next_multiple_of(BLOCK_BYTES);
                *self.bytes_of.entry(in_tablespace(&entry.path).map(|(oid, _)| oid)).or_default() += room;
            }
            FileType::Link { target } => {
                let is_tablespace = in_tablespace(&entry.path).is_some_and(|(_, rest)| rest.is_empty());
                if !is_tablespace && self.links.len() < LINKS_MAX {
                    self.links.push((entry.path.clone(), target.clone()));
                    self.parents.push(false);
                }
            }
        }
    }

    fn planned_links(&self, warnings: &mut Vec<String>) -> Vec<PlannedLink> {
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
        let mut planned = Vec::new();
        for ((path, target), has_children) in self.links.iter().zip(&self.parents) {
            let path = text(path.strip_prefix(b"data/").unwrap_or(path));
            let target = text(target);
            // PostgreSQL needs pg_wal to be a directory even when nothing in it was backed up.
            let becomes = if *has_children || path == "pg_wal" { LinkBecomes::Directory } else { LinkBecomes::Link };
            match becomes {
                LinkBecomes::Directory => warnings.push(format!(
                    "{path} was a link to {target} on the origin; it is restored as a directory, so that nothing is written there"
                )),
                LinkBecomes::Link if target.starts_with('/') => {
                    warnings.push(format!("{path} is restored as a link to {target}: see that this is right on this host"));
                }
                LinkBecomes::Link => {}
            }
            planned.push(PlannedLink { path, target, becomes });
        }
        planned
    }
}

/// What a human should know about this backup on this host.
fn warn(request: &RestoreRequest, facts: &ManifestFacts, warnings: &mut Vec<String>) {
    let here = host_facts();
    if let (Some(origin), Some(here)) = (&facts.host.glibc, &here.glibc)
        && origin != here
    {
        warnings.push(format!(
            "this host has glibc {here}, the origin {origin}: text may sort differently, and indexes on text be wrong; \
             REINDEX them after the restore"
        ));
    }
    if facts.tablespaces.iter().any(|space| space.in_place) {
        warnings.push(
            "tablespaces in place need allow_in_place_tablespaces during recovery: it is set, reset it afterwards"
                .into(),
        );
    }
    let damaged = facts.damaged.len();
    if let Some(first) = facts.damaged.first() {
        let relation = first.relation.as_deref().unwrap_or(&first.path);
        warnings.push(format!(
            "{damaged} pages were damaged on the origin already, such as block {} of {relation}: they are restored as they were",
            first.block
        ));
    }
    let major = facts.pg_version_num / 10_000;
    if let Err(others) = find_server(&request.bin_dirs, major) {
        let found: Vec<String> = others.iter().map(u32::to_string).collect();
        let found = if found.is_empty() { "none was found".into() } else { format!("found: {}", found.join(", ")) };
        warnings.push(format!("the backup needs PostgreSQL {major}, whose programs are not on this host ({found})"));
    }
    if request.target == RecoveryTarget::Latest && request.action != TargetAction::Promote && !request.standby {
        warnings.push(format!(
            "`{}` has no effect without a target: recovery to the end of the WAL ends with promotion",
            request.action.as_str()
        ));
    }
    if request.archive {
        warnings.push(
            "the restored cluster archives as its origin does: make sure that it does not push into the same archive"
                .into(),
        );
    }
    let outside: Vec<PathBuf> = facts.config_files.iter().map(|file| PathBuf::from(&file.origin)).collect();
    if let Some(first) = outside.first() {
        warnings.push(format!(
            "{} configuration files lay outside the data directory, such as {}: they are restored to {}",
            outside.len(),
            first.display(),
            request.target_dir.join(CONFIG_DIR).display()
        ));
    }
}
