//! A restore, done.
//!
//! Order: what is there is removed when that was asked for · files in the order of the manifest, batch by batch · label,
//! map, settings and signal file · everything synced · `pg_control` under a temporary name, synced, renamed. Until the
//! last step no server starts on the directory.

use super::config;
use super::fetch::{Batch, Destination, Fetcher};
use super::files;
use super::paths::{Make, Paths};
use super::settings::edit_auto_conf;
use super::target::Target;
use super::{ExistingFiles, PlannedOwner, PlannedTablespace, RecoveryTarget, RestorePlan, RestoreReport, place};
use crate::{Context, EngineError, Unit};
use base64::Engine as _;
use pg_format::{Oid, PgMajor, TablespaceMap};
use repo::manifest::{FileEntry, FileType, Manifest, ManifestFacts, Place};
use std::collections::BTreeSet;
use std::fs;
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::AtomicU32;
use std::time::Instant;

/// The name that `pg_control` has until everything else is durable.
const CONTROL_TEMPORARY: &str = "pg_control.pgkeep-restore";

/// Directories that a server needs, also when an odd backup does not have them (`initdb`'s list in
/// `src/bin/initdb/initdb.c`).
const NEEDED: [&str; 22] = [
    "global",
    "pg_wal",
    "pg_wal/archive_status",
    "pg_commit_ts",
    "pg_dynshmem",
    "pg_notify",
    "pg_serial",
    "pg_snapshots",
    "pg_subtrans",
    "pg_twophase",
    "pg_multixact",
    "pg_multixact/members",
    "pg_multixact/offsets",
    "base",
    "pg_replslot",
    "pg_tblspc",
    "pg_stat",
    "pg_stat_tmp",
    "pg_xact",
    "pg_logical",
    "pg_logical/snapshots",
    "pg_logical/mappings",
];

/// See [`super::apply`].
pub(super) async fn apply(
    ctx: &Context,
    cluster: &repo::Cluster,
    plan: &RestorePlan,
) -> Result<RestoreReport, EngineError> {
    let begun = Instant::now();
    let result = Restore::open(ctx, cluster, plan).await;
    let result = match result {
        Ok(restore) => restore.run().await,
        Err(error) => return Err(error),
    };
    match result {
        Ok(mut report) => {
            report.elapsed_ms = u64::try_from(begun.elapsed().as_millis()).unwrap_or(u64::MAX);
            Ok(report)
        }
        Err(EngineError::Cancelled) => {
            ctx.progress.warn(&unfinished(plan));
            Err(EngineError::Cancelled)
        }
        Err(error @ EngineError::Failed { .. }) => Err(error),
        Err(error) => Err(EngineError::failed(error.to_string(), unfinished(plan))),
    }
}

fn unfinished(plan: &RestorePlan) -> String {
    format!(
        "{} is not complete and has no pg_control, so no server can start on it; run the restore again with `--force`, \
         or remove the directory",
        plan.target_dir.display()
    )
}

struct Restore<'a> {
    ctx: &'a Context,
    cluster: &'a repo::Cluster,
    plan: &'a RestorePlan,
    manifest: Manifest,
    paths: Paths<'a>,
    /// Whom the data directory belongs to, and with it what is made here.
    owner: PlannedOwner,
    notes: Vec<String>,
    warnings: Vec<String>,
}

impl<'a> Restore<'a> {
    /// Looks once more, and opens the backup: nothing is written before this worked.
    async fn open(ctx: &'a Context, cluster: &'a repo::Cluster, plan: &'a RestorePlan) -> Result<Self, EngineError> {
        // Between the plan and now anything may have happened.
        place::check_not_running(&plan.target_dir)?;
        place::check_empty("the target directory", &plan.target_dir, plan.existing)?;
        for space in plan.tablespaces.iter().filter(|space| !space.in_place) {
            let what = format!("tablespace {}'s directory", space.name);
            place::check_empty(&what, &space.destination, plan.existing)?;
        }
        let manifest = ctx.or_cancel(cluster.open_manifest(plan.backup)).await??;
        let facts = manifest.facts();
        if facts.system_id != plan.system_id || facts.owners.len() != plan.owners.len() {
            return Err(EngineError::refused("the backup is not the one that was planned with", "plan again"));
        }
        let root = ctx.or_cancel(manifest.find(b"data")).await??;
        let owner = plan.owners.get(root.map_or(0, |entry| entry.owner as usize)).copied();
        let owner = owner.unwrap_or(PlannedOwner { uid: None, gid: None });
        let paths = Paths::new(plan);
        Ok(Self { ctx, cluster, plan, manifest, paths, owner, notes: Vec::new(), warnings: Vec::new() })
    }

    fn facts(&self) -> &ManifestFacts {
        self.manifest.facts()
    }

    fn owner_of(&self, entry: &FileEntry) -> PlannedOwner {
        self.plan.owners.get(entry.owner as usize).copied().unwrap_or(self.owner)
    }

    async fn run(mut self) -> Result<RestoreReport, EngineError> {
        let target = &self.plan.target_dir;
        self.prepare_directories()?;
        let fetcher = Fetcher::new(self.ctx, self.cluster, &self.manifest, self.plan.workers);
        self.ctx.progress.phase("restoring files", Some(self.plan.bytes), Unit::Bytes);
        let (control, files, bytes) = self.write_files(&fetcher).await?;
        let control_bytes = match &control {
            Some((_, chunk, _)) => match fetcher.read_chunk(chunk).await {
                Ok(bytes) => Some(bytes),
                Err(error) => return Err(damaged(self.plan, &format!("{error} (needed for global/pg_control)"))),
            },
            None => None,
        };
        if let Some(text) = fetcher.damage_text() {
            return Err(damaged(self.plan, &text));
        }
        let fetched_bytes = fetcher.fetched_bytes();
        drop(fetcher);
        let (Some((entry, ..)), Some(control_bytes)) = (control, control_bytes) else {
            return Err(damaged(self.plan, "the backup has no global/pg_control"));
        };
        if let Err(error) = pg_format::ControlFile::parse(&control_bytes) {
            return Err(damaged(self.plan, &format!("global/pg_control: {error}")));
        }
        self.needed_directories()?;
        self.write_own_files()?;
        self.ctx.check()?;
        self.ctx.progress.phase("making it durable", None, Unit::Items);
        self.sync().await?;
        self.ctx.check()?;
        let global = target.join("global");
        let temporary = global.join(CONTROL_TEMPORARY);
        files::write_whole(&temporary, &control_bytes, entry.mode, self.owner_of(&entry))?;
        let place = global.join("pg_control");
        fs::rename(&temporary, &place).map_err(|error| EngineError::file(&place, "putting in place", error))?;
        files::sync_directory(&global)?;
        self.report(files + 1, bytes + control_bytes.len() as u64, fetched_bytes)
    }

    /// The directories that everything lies in; emptied first when that was asked for.
    fn prepare_directories(&self) -> Result<(), EngineError> {
        let outside = self.plan.tablespaces.iter().filter(|space| !space.in_place).map(|space| &space.destination);
        for dir in std::iter::once(&self.plan.target_dir).chain(outside) {
            if self.plan.existing == ExistingFiles::Remove {
                remove_contents(dir)?;
            }
            if let Some(parent) = dir.parent() {
                fs::create_dir_all(parent).map_err(|error| EngineError::file(parent, "making", error))?;
            }
            files::make_directory(dir, 0o700, self.owner)?;
        }
        Ok(())
    }

    /// Makes directories and links, and fetches all files but `pg_control`, which is given back.
    async fn write_files(
        &self,
        fetcher: &Fetcher<'_>,
    ) -> Result<(Option<(FileEntry, repo::chunk::ChunkRef, PathBuf)>, u64, u64), EngineError> {
        let mut control = None;
        let (mut files, mut bytes) = (0, 0);
        let mut batch = Batch::default();
        let mut blocks = self.manifest.files();
        while let Some(entries) = self.ctx.or_cancel(blocks.next()).await?? {
            self.ctx.check()?;
            for entry in entries {
                let owner = self.owner_of(&entry);
                match self.paths.make(&entry)? {
                    Make::Nothing => {}
                    Make::Directory(path) => {
                        let mode = if entry.file_type == FileType::Directory { entry.mode } else { 0o700 };
                        files::make_directory(&path, mode, owner)?;
                    }
                    Make::Link(path, to) => make_link(&path, &to, owner)?,
                    Make::ControlFile(path) => match &entry.file_type {
                        FileType::File { place: Place::Chunk(chunk), .. } => {
                            let chunk = *chunk;
                            control = Some((entry, chunk, path));
                        }
                        _ => return Err(damaged(self.plan, "global/pg_control is not one chunk")),
                    },
                    Make::File(path) => {
                        let FileType::File { len, place, .. } = entry.file_type else { continue };
                        files += 1;
                        bytes += len;
                        if entry.path.starts_with(b"config/") || entry.path.starts_with(b"wal/") {
                            self.make_parents(&path)?;
                        }
                        let (mode, mtime, name) = (entry.mode, entry.mtime, entry.path);
                        let target = Target { name, path, len, mode, owner, mtime, left: AtomicU32::new(1) };
                        match place {
                            Place::Zero => {
                                target.finish(&target.open()?)?;
                                self.ctx.progress.advance(len);
                            }
                            Place::Chunk(chunk) if u64::from(chunk.plain_len) == len => batch.add_chunk(target, chunk),
                            Place::Chunk(_) => return Err(damaged(self.plan, "a chunk is not as long as its file")),
                            Place::Map(map) => batch.add_map(target, map),
                        }
                    }
                }
            }
            if batch.is_full() {
                fetcher.run(std::mem::take(&mut batch)).await?;
            }
        }
        fetcher.run(batch).await?;
        Ok((control, files, bytes))
    }

    /// Directories above configuration files, which the manifest need not have.
    fn make_parents(&self, path: &Path) -> Result<(), EngineError> {
        let mut missing: Vec<&Path> = Vec::new();
        for parent in path.ancestors().skip(1) {
            if parent == self.plan.target_dir || parent.is_dir() {
                break;
            }
            missing.push(parent);
        }
        missing.into_iter().rev().try_for_each(|dir| files::make_directory(dir, 0o700, self.owner))
    }

    fn needed_directories(&self) -> Result<(), EngineError> {
        let target = &self.plan.target_dir;
        let mode = fs::metadata(target).map_err(|error| EngineError::file(target, "looking at", error))?.mode() & 0o777;
        let major = PgMajor::from_number(self.plan.pg_major).ok();
        let more = major.map_or(&[][..], |major| major.facts().wal_subdirectories);
        let more = more.iter().map(|name| format!("pg_wal/{}", name.trim_start_matches("pg_wal/")));
        for name in NEEDED.iter().map(|name| (*name).to_owned()).chain(more) {
            let path = target.join(name);
            if !path.exists() {
                files::make_directory(&path, mode, self.owner)?;
            }
        }
        Ok(())
    }

    /// Label, tablespace map, configuration, settings and the signal file.
    fn write_own_files(&mut self) -> Result<(), EngineError> {
        let target = self.plan.target_dir.clone();
        let mode = fs::metadata(&target).map_err(|error| EngineError::file(&target, "looking at", error))?.mode();
        // As the server does: group members may read when they may read the data directory.
        let mode = if mode & 0o050 == 0o050 { 0o640 } else { 0o600 };
        let owner = self.owner;
        let decode = |what: &str, text: &Option<String>| match text {
            None => Ok(None),
            Some(text) => match base64::engine::general_purpose::STANDARD.decode(text) {
                Ok(bytes) => Ok(Some(bytes)),
                Err(error) => Err(damaged(self.plan, &format!("{what} in the manifest: {error}"))),
            },
        };
        let label = decode("backup_label", &self.facts().backup_label)?;
        let map = decode("tablespace_map", &self.facts().tablespace_map)?;
        if let Some(label) = label {
            files::write_whole(&target.join("backup_label"), &label, mode, owner)?;
        }
        if let Some(map) = map {
            let map = mapped(&map, &self.plan.tablespaces)
                .map_err(|error| damaged(self.plan, &format!("tablespace_map in the manifest: {error}")))?;
            files::write_whole(&target.join("tablespace_map"), &map, mode, owner)?;
        }
        let mut notes = Vec::new();
        for copy in config::copies(self.plan, &mut notes)? {
            files::write_whole(&copy.path, &copy.text, mode, owner)?;
        }
        self.notes.append(&mut notes);
        let auto = target.join("postgresql.auto.conf");
        let text = match fs::read(&auto) {
            Ok(bytes) => String::from_utf8_lossy(&bytes).into_owned(),
            Err(error) if error.kind() == io::ErrorKind::NotFound => String::new(),
            Err(error) => return Err(EngineError::file(&auto, "reading", error)),
        };
        let text = edit_auto_conf(&auto, &text, &self.plan.settings, self.plan.archive)?;
        files::write_whole(&auto, text.as_bytes(), mode, owner)?;
        files::write_whole(&target.join(&self.plan.signal_file), b"", mode, owner)
    }

    /// Makes all that was written durable: one sync for each file system.
    async fn sync(&self) -> Result<(), EngineError> {
        let mut devices = BTreeSet::new();
        let outside = self.plan.tablespaces.iter().filter(|space| !space.in_place).map(|space| &space.destination);
        for dir in std::iter::once(&self.plan.target_dir).chain(outside) {
            let device = fs::metadata(dir).map_err(|error| EngineError::file(dir, "looking at", error))?.dev();
            if devices.insert(device) {
                let there = dir.clone();
                let synced = tokio::task::spawn_blocking(move || files::sync_file_system(&there)).await;
                synced.map_err(|error| EngineError::Failed {
                    reason: format!("syncing {} ended unexpectedly: {error}", dir.display()),
                    hint: None,
                })??;
            }
        }
        Ok(())
    }

    fn report(mut self, files: u64, bytes: u64, fetched_bytes: u64) -> Result<RestoreReport, EngineError> {
        let plan = self.plan;
        let what = match &plan.target {
            _ if plan.standby => "follows the archive and its primary as a standby".to_owned(),
            RecoveryTarget::Latest => "recovers to the end of the WAL and takes writes".to_owned(),
            _ => format!("recovers to its target, then: {}", plan.action.as_str()),
        };
        let dir = plan.target_dir.display();
        self.notes.insert(0, format!("when it starts, the server {what}: pg_ctl -D {dir} start"));
        if !plan.archive {
            self.notes.push(
                "archiving is off in it: `ALTER SYSTEM RESET archive_mode` when it takes the origin's place".into(),
            );
        }
        let mut warnings = plan.warnings.clone();
        warnings.append(&mut self.warnings);
        Ok(RestoreReport {
            backup: plan.backup,
            target_dir: plan.target_dir.clone(),
            pg_major: plan.pg_major,
            files,
            bytes,
            fetched_bytes,
            elapsed_ms: 0,
            target: plan.target.clone(),
            timeline: plan.timeline,
            action: plan.action,
            standby: plan.standby,
            notes: self.notes,
            warnings,
        })
    }
}

/// The tablespace map with the places where the tablespaces are now; unchanged when none was moved.
fn mapped(bytes: &[u8], spaces: &[PlannedTablespace]) -> Result<Vec<u8>, pg_format::FormatError> {
    let mut map = TablespaceMap::parse(bytes)?;
    let mut moved = false;
    for (oid, path) in &mut map.entries {
        let space = spaces.iter().find(|space| Oid(space.oid) == *oid);
        if let Some(space) = space.filter(|space| space.destination.as_os_str().as_bytes() != path.as_slice()) {
            *path = space.destination.as_os_str().as_bytes().to_vec();
            moved = true;
        }
    }
    Ok(if moved { map.render() } else { bytes.to_vec() })
}

fn damaged(plan: &RestorePlan, what: &str) -> EngineError {
    EngineError::Failed {
        reason: format!("backup {} is damaged and was not restored: {what}", plan.backup),
        hint: Some(format!("choose another backup with `--backup`; {}", unfinished(plan))),
    }
}

fn make_link(path: &Path, to: &Path, owner: PlannedOwner) -> Result<(), EngineError> {
    std::os::unix::fs::symlink(to, path).map_err(|error| EngineError::file(path, "linking", error))?;
    if owner.uid.is_some() || owner.gid.is_some() {
        std::os::unix::fs::lchown(path, owner.uid, owner.gid)
            .map_err(|error| EngineError::file(path, "giving away", error))?;
    }
    Ok(())
}

/// Removes what is in a directory, `pg_control` first, so that nothing starts on what is left. Links are not followed.
pub(crate) fn remove_contents(dir: &Path) -> Result<(), EngineError> {
    let control = dir.join("global/pg_control");
    match fs::remove_file(&control) {
        Ok(()) => files::sync_directory(&dir.join("global"))?,
        Err(error) if matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::NotADirectory) => {}
        Err(error) => return Err(EngineError::file(control, "removing", error)),
    }
    let entries = match fs::read_dir(dir) {
        Ok(entries) => entries,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        Err(error) => return Err(EngineError::file(dir, "listing", error)),
    };
    for entry in entries {
        let entry = entry.map_err(|error| EngineError::file(dir, "listing", error))?;
        let path = entry.path();
        if entry.file_name() == "lost+found" {
            continue;
        }
        let is_dir = entry.file_type().map_err(|error| EngineError::file(&path, "looking at", error))?.is_dir();
        let removed = if is_dir { fs::remove_dir_all(&path) } else { fs::remove_file(&path) };
        removed.map_err(|error| EngineError::file(&path, "removing", error))?;
    }
    Ok(())
}
