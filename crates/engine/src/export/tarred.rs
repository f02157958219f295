//! Tar files: `base.tar`, `OID.tar` for each tablespace, `pg_wal.tar` and `backup_manifest` beside them; or one tar file
//! to a pipe, with WAL and manifest in it (`-X fetch` and `inject_manifest` of `pg_basebackup`).

use super::feed::Meta;
use super::manifest::ManifestOut;
use super::plan::{At, Plan};
use super::sink::create;
use super::{ExportOptions, ExportTo, write_error};
use crate::EngineError;
use crate::restore::files;
use crate::tar::{Compressor, TarCompression, TarMeta, TarWriter};
use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::{self, BufWriter, Write};
use std::path::{Path, PathBuf};

/// What is added to names until all is durable.
const UNFINISHED: &str = ".pgkeep-export";
const MANIFEST: &str = "backup_manifest";
const BUFFER: usize = 256 << 10;

/// Where a tar file goes.
enum To {
    File(File),
    Pipe(Box<dyn Write + Send>),
}

impl Write for To {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        match self {
            Self::File(file) => file.write(bytes),
            Self::Pipe(pipe) => pipe.write(bytes),
        }
    }

    fn flush(&mut self) -> io::Result<()> {
        match self {
            Self::File(file) => file.flush(),
            Self::Pipe(pipe) => pipe.flush(),
        }
    }
}

type Tar = TarWriter<Compressor<BufWriter<To>>>;

/// Which tar file.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Which {
    Base,
    Tablespace(u32),
    Wal,
}

/// `backup_manifest`: a file of its own, or kept until the end of the one tar file.
pub(super) enum ManifestTo {
    File(BufWriter<File>),
    Memory(Vec<u8>),
}

impl Write for ManifestTo {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        match self {
            Self::File(file) => file.write(bytes),
            Self::Memory(memory) => memory.write(bytes),
        }
    }

    fn flush(&mut self) -> io::Result<()> {
        match self {
            Self::File(file) => file.flush(),
            Self::Memory(_) => Ok(()),
        }
    }
}

/// Tar files being written.
pub(super) struct TarOut {
    /// None for a pipe.
    dir: Option<PathBuf>,
    /// Whether the directory was made here.
    made: bool,
    compression: TarCompression,
    tars: BTreeMap<Which, Tar>,
    /// The one that the present file goes into.
    open: Which,
    /// What the manifest gets when it goes into the tar file.
    own: TarMeta,
    pub(super) manifest: ManifestOut<ManifestTo>,
}

impl TarOut {
    pub(super) fn create(to: ExportTo, options: &ExportOptions, plan: &Plan) -> Result<Self, EngineError> {
        let (dir, pipe) = match to {
            ExportTo::Directory(dir) => (Some(dir), None),
            ExportTo::Pipe(pipe) => (None, Some(pipe)),
        };
        let made = dir.as_ref().is_some_and(|dir| !dir.exists());
        let manifest_to = match &dir {
            Some(dir) => {
                fs::create_dir_all(dir).map_err(|error| EngineError::file(dir, "making", error))?;
                ManifestTo::File(BufWriter::new(create(&dir.join(format!("{MANIFEST}{UNFINISHED}")))?))
            }
            None => ManifestTo::Memory(Vec::new()),
        };
        let name = dir.clone().unwrap_or_default();
        let manifest = ManifestOut::new(manifest_to, plan, options.checksums);
        let own = TarMeta {
            mode: 0o600,
            uid: rustix::process::geteuid().as_raw(),
            gid: rustix::process::getegid().as_raw(),
            mtime: u64::try_from(plan.facts.stop_time.as_second()).unwrap_or(0),
        };
        let mut this = Self {
            dir,
            made,
            compression: options.compression,
            tars: BTreeMap::new(),
            open: Which::Base,
            own,
            manifest: manifest.map_err(|error| write_error(&name, error))?,
        };
        if let Some(pipe) = pipe {
            let tar = tar(To::Pipe(pipe), this.compression).map_err(|error| write_error(&name, error))?;
            this.tars.insert(Which::Base, tar);
        }
        // Also those with nothing in them yet: each is expected.
        for space in plan.tablespaces.iter().filter(|space| !space.in_place) {
            this.tar(Which::Tablespace(space.oid))?;
        }
        Ok(this)
    }

    /// `pg_basebackup` compresses `pg_wal.tar` with gzip only.
    fn compression_of(&self, which: Which) -> TarCompression {
        match (which, self.compression) {
            (Which::Wal, gzip @ TarCompression::Gzip(_)) => gzip,
            (Which::Wal, _) => TarCompression::None,
            (_, compression) => compression,
        }
    }

    fn name(&self, which: Which) -> String {
        let suffix = self.compression_of(which).suffix();
        match which {
            Which::Base => format!("base.tar{suffix}"),
            Which::Tablespace(oid) => format!("{oid}.tar{suffix}"),
            Which::Wal => format!("pg_wal.tar{suffix}"),
        }
    }

    fn path(&self, which: Which) -> PathBuf {
        self.dir.as_ref().map_or_else(|| PathBuf::from("the pipe"), |dir| dir.join(self.name(which)))
    }

    fn tar(&mut self, which: Which) -> Result<&mut Tar, EngineError> {
        if !self.tars.contains_key(&which) {
            let dir = self.dir.clone().unwrap_or_default();
            let path = dir.join(format!("{}{UNFINISHED}", self.name(which)));
            let tar = tar(To::File(create(&path)?), self.compression_of(which));
            self.tars.insert(which, tar.map_err(|error| write_error(&path, error))?);
        }
        self.tars.get_mut(&which).ok_or_else(|| EngineError::Failed { reason: "no tar file".into(), hint: None })
    }

    /// The tar file of a member, and its name there.
    fn member(&self, at: &At) -> (Which, Vec<u8>) {
        match at {
            At::Data(path) => (Which::Base, path.clone()),
            At::Tablespace(oid, path) => (Which::Tablespace(*oid), path.clone()),
            At::Wal(name) if self.dir.is_some() => (Which::Wal, name.clone().into_bytes()),
            At::Wal(name) => (Which::Base, format!("pg_wal/{name}").into_bytes()),
        }
    }

    fn meta(&self, meta: Meta) -> TarMeta {
        TarMeta {
            mode: meta.mode,
            uid: meta.owner.uid.unwrap_or(self.own.uid),
            gid: meta.owner.gid.unwrap_or(self.own.gid),
            mtime: meta.mtime,
        }
    }

    fn with(&mut self, which: Which, write: impl FnOnce(&mut Tar) -> io::Result<()>) -> Result<(), EngineError> {
        let path = self.path(which);
        write(self.tar(which)?).map_err(|error| write_error(&path, error))
    }

    pub(super) fn directory(&mut self, at: &At, meta: Meta) -> Result<(), EngineError> {
        let ((which, name), meta) = (self.member(at), self.meta(meta));
        // The data directory itself has no member.
        if name.is_empty() { Ok(()) } else { self.with(which, |tar| tar.directory(&name, meta)) }
    }

    pub(super) fn link(&mut self, at: &At, target: &[u8], meta: Meta) -> Result<(), EngineError> {
        let ((which, name), meta) = (self.member(at), self.meta(meta));
        self.with(which, |tar| tar.link(&name, target, meta))
    }

    pub(super) fn begin(&mut self, at: &At, len: u64, meta: Meta) -> Result<(), EngineError> {
        let ((which, name), meta) = (self.member(at), self.meta(meta));
        self.open = which;
        self.with(which, |tar| tar.file(&name, len, meta))
    }

    pub(super) fn data(&mut self, bytes: &[u8]) -> Result<(), EngineError> {
        self.with(self.open, |tar| tar.data(bytes))
    }

    pub(super) fn finish(self) -> Result<(), EngineError> {
        let (dir, made) = (self.dir.clone(), self.made);
        let finished = self.finish_all();
        if let (Err(_), Some(dir)) = (&finished, &dir) {
            remove(dir, made);
        }
        finished
    }

    fn finish_all(mut self) -> Result<(), EngineError> {
        let tars = std::mem::take(&mut self.tars);
        let named: Vec<(PathBuf, Which, Tar)> =
            tars.into_iter().map(|(which, tar)| (self.path(which), which, tar)).collect();
        let manifest_path = self.dir.clone().unwrap_or_default().join(MANIFEST);
        let manifest = self.manifest.finish().map_err(|error| write_error(&manifest_path, error))?;
        let (dir, manifest) = match (self.dir, manifest) {
            (Some(dir), ManifestTo::File(file)) => (dir, file),
            (_, manifest) => {
                let content = if let ManifestTo::Memory(content) = manifest { content } else { Vec::new() };
                for (path, _, mut tar) in named {
                    tar.file(MANIFEST.as_bytes(), content.len() as u64, self.own)
                        .and_then(|()| tar.data(&content))
                        .and_then(|()| close(tar))
                        .and_then(|mut to| to.flush())
                        .map_err(|error| write_error(&path, error))?;
                }
                return Ok(());
            }
        };
        let mut paths = Vec::new();
        for (path, _, tar) in named {
            let to = close(tar).map_err(|error| write_error(&path, error))?;
            if let To::File(file) = to {
                file.sync_all().map_err(|error| write_error(&path, error))?;
            }
            paths.push(path);
        }
        let file = manifest.into_inner().map_err(|error| write_error(&manifest_path, error.into_error()))?;
        file.sync_all().map_err(|error| write_error(&manifest_path, error))?;
        paths.push(manifest_path);
        for path in paths {
            let mut unfinished = path.clone().into_os_string();
            unfinished.push(UNFINISHED);
            fs::rename(&unfinished, &path).map_err(|error| EngineError::file(&path, "putting in place", error))?;
        }
        files::sync_directory(&dir)
    }

    pub(super) fn give_up(self) {
        if let Some(dir) = &self.dir {
            remove(dir, self.made);
        }
    }
}

/// Everything in the directory is ours: it was empty.
fn remove(dir: &Path, made: bool) {
    for entry in fs::read_dir(dir).into_iter().flatten().flatten() {
        if entry.file_name() != "lost+found" {
            let _ = fs::remove_file(entry.path());
        }
    }
    if made {
        let _ = fs::remove_dir(dir);
    }
}

fn tar(to: To, compression: TarCompression) -> io::Result<Tar> {
    Ok(TarWriter::new(Compressor::new(BufWriter::with_capacity(BUFFER, to), compression)?))
}

fn close(tar: Tar) -> io::Result<To> {
    tar.finish()?.finish()?.into_inner().map_err(|error| error.into_error())
}
