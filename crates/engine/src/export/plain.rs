//! A data directory. `pg_control` and `backup_manifest` get their names last: without the first no server starts, and
//! without the second `pg_verifybackup` has nothing to go by.

use super::feed::Meta;
use super::manifest::ManifestOut;
use super::plan::{At, Plan};
use super::sink::create;
use super::{ExportOptions, write_error};
use crate::EngineError;
use crate::restore::apply::remove_contents;
use crate::restore::{PlannedOwner, PlannedTablespace, files};
use std::collections::BTreeSet;
use std::ffi::OsStr;
use std::fs::{self, File};
use std::io::{BufWriter, Write};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{MetadataExt, PermissionsExt, fchown};
use std::path::{Path, PathBuf};
use std::time::{Duration, UNIX_EPOCH};

/// What is added to names until all is durable.
const UNFINISHED: &str = ".pgkeep-export";
const CONTROL: &[u8] = b"global/pg_control";
const MANIFEST: &str = "backup_manifest";

/// A data directory being written.
pub(super) struct PlainOut {
    root: PathBuf,
    tablespaces: Vec<PlannedTablespace>,
    /// Directories that were not there before.
    made: Vec<PathBuf>,
    open: Option<(PathBuf, File, Meta)>,
    pub(super) manifest: ManifestOut<BufWriter<File>>,
}

impl PlainOut {
    pub(super) fn create(root: PathBuf, options: &ExportOptions, plan: &Plan) -> Result<Self, EngineError> {
        let spaces = plan.tablespaces.iter().filter(|space| !space.in_place).map(|space| space.destination.clone());
        let mut made = Vec::new();
        for dir in std::iter::once(root.clone()).chain(spaces) {
            if !dir.exists() {
                made.push(dir.clone());
            }
            fs::create_dir_all(&dir).map_err(|error| EngineError::file(&dir, "making", error))?;
        }
        let path = root.join(format!("{MANIFEST}{UNFINISHED}"));
        let file = create(&path)?;
        let manifest = ManifestOut::new(BufWriter::new(file), plan, options.checksums)
            .map_err(|error| write_error(&path, error))?;
        Ok(Self { root, tablespaces: plan.tablespaces.clone(), made, open: None, manifest })
    }

    fn destination(&self, oid: u32) -> Result<&Path, EngineError> {
        let space = self.tablespaces.iter().find(|space| space.oid == oid);
        space
            .map(|space| space.destination.as_path())
            .ok_or_else(|| EngineError::Failed { reason: format!("tablespace {oid} has no place"), hint: None })
    }

    fn path(&self, at: &At) -> Result<PathBuf, EngineError> {
        Ok(match at {
            At::Data(path) if path.is_empty() => self.root.clone(),
            At::Data(path) if path == CONTROL => self.control(),
            At::Data(path) => self.root.join(OsStr::from_bytes(path)),
            At::Tablespace(oid, path) => self.destination(*oid)?.join(OsStr::from_bytes(path)),
            At::Wal(name) => self.root.join("pg_wal").join(name),
        })
    }

    fn control(&self) -> PathBuf {
        self.root.join(format!("{}{UNFINISHED}", String::from_utf8_lossy(CONTROL)))
    }

    pub(super) fn directory(&mut self, at: &At, meta: Meta) -> Result<(), EngineError> {
        files::make_directory(&self.path(at)?, meta.mode, meta.owner)
    }

    /// A tablespace's link, to where it goes here.
    pub(super) fn link(&mut self, at: &At, meta: Meta) -> Result<(), EngineError> {
        let path = self.path(at)?;
        let oid = path.file_name().and_then(|name| name.to_str()).and_then(|name| name.parse().ok()).unwrap_or(0);
        let to = self.destination(oid)?.to_owned();
        files::make_directory(&to, 0o700, meta.owner)?;
        std::os::unix::fs::symlink(&to, &path).map_err(|error| EngineError::file(&path, "linking", error))
    }

    pub(super) fn begin(&mut self, at: &At, meta: Meta) -> Result<(), EngineError> {
        let path = self.path(at)?;
        if let Some(parent) = path.parent().filter(|parent| !parent.is_dir()) {
            fs::create_dir_all(parent).map_err(|error| EngineError::file(parent, "making", error))?;
        }
        let file = create(&path)?;
        self.open = Some((path, file, meta));
        Ok(())
    }

    pub(super) fn data(&mut self, bytes: &[u8]) -> Result<(), EngineError> {
        match &mut self.open {
            Some((path, file, _)) => file.write_all(bytes).map_err(|error| write_error(path, error)),
            None => Ok(()),
        }
    }

    /// The file is whole.
    pub(super) fn end(&mut self) -> Result<(), EngineError> {
        let Some((path, file, meta)) = self.open.take() else { return Ok(()) };
        let fail = |action| move |error| EngineError::file(path, action, error);
        let PlannedOwner { uid, gid } = meta.owner;
        let given = || if uid.is_some() || gid.is_some() { fchown(&file, uid, gid) } else { Ok(()) };
        given()
            .and_then(|()| file.set_permissions(PermissionsExt::from_mode(meta.mode)))
            .and_then(|()| file.set_modified(UNIX_EPOCH + Duration::from_secs(meta.mtime)))
            .map_err(fail("setting owner, mode and time of"))
    }

    pub(super) fn finish(self) -> Result<(), EngineError> {
        let control = self.control();
        let (root, tablespaces, made) = (self.root, self.tablespaces, self.made);
        let finished = (|| {
            let manifest = root.join(MANIFEST);
            let file = self.manifest.finish().and_then(|out| out.into_inner().map_err(|error| error.into_error()));
            let file = file.map_err(|error| write_error(&manifest, error))?;
            // As pg_basebackup leaves it, and the data directory's owner's.
            let meta = fs::metadata(&root).map_err(|error| EngineError::file(&root, "looking at", error))?;
            fchown(&file, Some(meta.uid()), Some(meta.gid()))
                .map_err(|error| EngineError::file(&manifest, "giving away", error))?;
            let mut devices = BTreeSet::new();
            let spaces = tablespaces.iter().filter(|space| !space.in_place).map(|space| &space.destination);
            for dir in std::iter::once(&root).chain(spaces) {
                let device = fs::metadata(dir).map_err(|error| EngineError::file(dir, "looking at", error))?.dev();
                if devices.insert(device) {
                    files::sync_file_system(dir)?;
                }
            }
            let rename = |from: &Path, to: &Path| {
                fs::rename(from, to).map_err(|error| EngineError::file(to, "putting in place", error))
            };
            rename(&root.join(format!("{MANIFEST}{UNFINISHED}")), &manifest)?;
            rename(&control, &root.join(OsStr::from_bytes(CONTROL)))?;
            files::sync_directory(&root.join("global"))?;
            files::sync_directory(&root)
        })();
        if finished.is_err() {
            remove(&root, &tablespaces, &made);
        }
        finished
    }

    pub(super) fn give_up(self) {
        remove(&self.root, &self.tablespaces, &self.made);
    }
}

/// Everything in these directories is ours: they were empty.
fn remove(root: &Path, tablespaces: &[PlannedTablespace], made: &[PathBuf]) {
    let spaces = tablespaces.iter().filter(|space| !space.in_place).map(|space| space.destination.as_path());
    for dir in spaces.chain([root]) {
        // What cannot be removed has no pg_control and no manifest.
        let _ = remove_contents(dir);
        if made.iter().any(|made| made == dir) {
            let _ = fs::remove_dir(dir);
        }
    }
}
