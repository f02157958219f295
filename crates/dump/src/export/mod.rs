//! A dump in the forms of pg_dump: what pg_restore and psql read, with nothing of pgkeep's in it.

mod compress;
pub(crate) mod custom;
mod directory;
mod plain;
mod pump;
mod script;
mod tar;

use crate::archive::{Archive, ArchiveCompression, Form, Place, write};
use crate::{DumpError, StreamReader, ToolSet, load};
use custom::{Chosen, Writer};
use engine::{Context, Unit};
use repo::dump::{DataKind, DumpedData, DumpedDatabase};
use repo::{BackupId, Cluster};
use serde::Serialize;
use std::collections::HashSet;
use std::path::{Path, PathBuf};
use tokio::io::{AsyncSeekExt, AsyncWriteExt};

/// The form of an export.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ExportFormat {
    /// SQL, for psql.
    Plain,
    /// One file, for pg_restore.
    Custom,
    /// A directory, for pg_restore with many sessions.
    Directory,
    /// A tar file, for pg_restore; not compressed.
    Tar,
}

/// Where an export goes.
pub enum ExportTo {
    /// A file, or a directory, that is not there yet.
    Path(PathBuf),
    /// A pipe; not for directories.
    Pipe(std::fs::File),
}

/// What is asked of an export.
#[derive(Debug, Clone)]
pub struct ExportOptions {
    /// Which database of the dump; the only one otherwise.
    pub database: Option<String>,
    /// The form.
    pub format: ExportFormat,
    /// How data are compressed.
    pub compression: ArchiveCompression,
    /// Cut into files of so many bytes; one file otherwise.
    pub piece_bytes: Option<u64>,
    /// Files written at the same time.
    pub workers: usize,
    /// More switches for pg_restore, for the plain form.
    pub restore_switches: Vec<String>,
    /// PostgreSQL's programs, for the plain form.
    pub tools: ToolSet,
}

/// An export that was made.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct ExportReport {
    /// The dump.
    pub dump: BackupId,
    /// The database.
    pub database: String,
    /// Where it is; none for a pipe.
    pub to: Option<PathBuf>,
    /// The files that it was cut into; none for one file.
    pub pieces: Option<usize>,
    /// Plain bytes of its data.
    pub bytes: u64,
    /// How long it took.
    pub elapsed_ms: u64,
}

/// Exports one database of a dump.
pub async fn export(
    ctx: &Context,
    cluster: &Cluster,
    dump: BackupId,
    to: ExportTo,
    options: &ExportOptions,
) -> Result<ExportReport, DumpError> {
    if pump::is_for(options) {
        return pump::run(ctx, cluster, dump, to, options).await;
    }
    let begun = std::time::Instant::now();
    let manifest = cluster.open_dump(dump).await?;
    if let Some(stream) = manifest.facts.imported.as_ref().and_then(|imported| imported.script) {
        return script::export(ctx, &StreamReader::new(cluster.clone(), manifest), stream, to, options).await;
    }
    let database = load::choose(&manifest, options.database.as_deref())?.clone();
    refuse_binary(&database, "load it, and dump what was loaded")?;
    let reader = StreamReader::new(cluster.clone(), manifest);
    let definitions = reader.whole(database.definitions).await?;
    let archive =
        Archive::parse(&definitions).map_err(|error| DumpError::Failed { reason: error.to_string(), hint: None })?;
    let newer = matches!(options.compression, ArchiveCompression::Zstd(_) | ArchiveCompression::Lz4);
    if newer && archive.header.minor < 15 {
        let name = if options.compression == ArchiveCompression::Lz4 { "lz4" } else { "zstd" };
        return Err(DumpError::refused(
            format!("pg_restore {} does not read {name}", archive.tool_version()),
            format!("use --compress gzip or none; PostgreSQL 16 and later know {name}"),
        ));
    }
    let bytes = database.data.iter().map(|data| data.bytes).sum();
    ctx.progress.phase("exporting", Some(bytes), Unit::Bytes);
    let all: HashSet<i32> = archive.entries.iter().map(|entry| entry.dump_id).collect();
    let chosen = Chosen { data: true, wanted: &all };
    let path = match &to {
        ExportTo::Path(path) => Some(path.clone()),
        ExportTo::Pipe(_) => None,
    };
    match (options.format, to) {
        (ExportFormat::Directory, ExportTo::Pipe(_)) => {
            return Err(DumpError::refused(
                "a directory cannot go into a pipe",
                "use --format custom or plain, or name a path",
            ));
        }
        (ExportFormat::Directory, ExportTo::Path(path)) => {
            let source =
                directory::Source { ctx, reader: &reader, archive: &archive, compression: options.compression };
            let partial = Partial::new(&path)?;
            make_dir(&partial.path)?;
            directory::write_all(&source, &partial.path, &database, options.workers).await?;
            partial.keep(&path)?;
        }
        (ExportFormat::Custom, ExportTo::Pipe(file)) => {
            let mut out = tokio::fs::File::from_std(file);
            let compression = options.compression;
            let mut writer = Writer { ctx, out: &mut out, reader: &reader, archive: &archive, compression, at: 0 };
            writer.write(&database, &chosen).await?;
        }
        (ExportFormat::Custom, ExportTo::Path(path)) => {
            let partial = Partial::new(&path)?;
            let mut out = tokio::io::BufWriter::with_capacity(1 << 20, partial.create().await?);
            let compression = options.compression;
            let mut writer = Writer { ctx, out: &mut out, reader: &reader, archive: &archive, compression, at: 0 };
            let offsets = writer.write(&database, &chosen).await?;
            // Now that the places are known, the head is written once more: it has the same length.
            let head = write(&archive, Form::Custom, compression, |entry| {
                offsets.get(&entry.dump_id).map_or(Place::NoData, |offset| Place::At(*offset))
            });
            let failed = |error| DumpError::file(&path, "writing", error);
            let mut file = out.into_inner();
            file.rewind().await.map_err(failed)?;
            file.write_all(&head).await.map_err(failed)?;
            file.flush().await.map_err(failed)?;
            file.sync_all().await.map_err(failed)?;
            partial.keep(&path)?;
        }
        (ExportFormat::Tar, ExportTo::Pipe(file)) => {
            let mut out = tokio::io::BufWriter::with_capacity(1 << 20, tokio::fs::File::from_std(file));
            tar::write_to(ctx, &mut out, &reader, &archive, &database).await?;
        }
        (ExportFormat::Tar, ExportTo::Path(path)) => {
            let partial = Partial::new(&path)?;
            let mut out = tokio::io::BufWriter::with_capacity(1 << 20, partial.create().await?);
            tar::write_to(ctx, &mut out, &reader, &archive, &database).await?;
            partial.keep(&path)?;
        }
        (ExportFormat::Plain, ExportTo::Pipe(file)) => {
            plain::write_to(ctx, file, &reader, &archive, &database, options).await?;
        }
        (ExportFormat::Plain, ExportTo::Path(path)) => {
            let partial = Partial::new(&path)?;
            let file = partial.create().await?.into_std().await;
            let copy = file.try_clone().map_err(|error| DumpError::file(&path, "writing", error))?;
            plain::write_to(ctx, copy, &reader, &archive, &database, options).await?;
            file.sync_all().map_err(|error| DumpError::file(&path, "writing", error))?;
            partial.keep(&path)?;
        }
    }
    let elapsed_ms = begun.elapsed().as_millis() as u64;
    Ok(ExportReport { dump, database: database.name, to: path, pieces: None, bytes, elapsed_ms })
}

/// pg_restore and psql take rows as text only.
pub(crate) fn refuse_binary(database: &DumpedDatabase, instead: &str) -> Result<(), DumpError> {
    let binary: Vec<&DumpedData> = database.data.iter().filter(|data| data.kind == DataKind::TableBinary).collect();
    match binary.first() {
        None => Ok(()),
        Some(first) => Err(DumpError::refused(
            format!(
                "rows of {} tables of database {} ({}.{}, for one) are in binary form, which pg_restore and psql do not read",
                binary.len(),
                database.name,
                first.schema,
                first.name
            ),
            format!("make the dump with --copy-format text, or {instead}"),
        )),
    }
}

/// A table's rows in binary form, where only text can go.
pub(crate) fn not_text(data: &DumpedData) -> DumpError {
    let reason = format!("rows of {}.{} are in binary form", data.schema, data.name);
    DumpError::refused(reason, "make the dump with --copy-format text")
}

/// A file or directory under another name until it is whole; gone when it does not become so.
struct Partial {
    path: PathBuf,
    kept: bool,
}

impl Partial {
    fn new(path: &Path) -> Result<Self, DumpError> {
        if std::fs::symlink_metadata(path).is_ok() {
            return Err(DumpError::refused(
                format!("{} is there already", path.display()),
                "name another path, or remove it",
            ));
        }
        let name = path.file_name().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default();
        Ok(Self { path: path.with_file_name(format!(".{name}.{}.partial", std::process::id())), kept: false })
    }

    async fn create(&self) -> Result<tokio::fs::File, DumpError> {
        let mut options = tokio::fs::OpenOptions::new();
        let opened = options.write(true).read(true).create_new(true).mode(0o600).open(&self.path).await;
        opened.map_err(|error| DumpError::file(&self.path, "creating it", error))
    }

    /// Gives it its name, durably.
    fn keep(mut self, path: &Path) -> Result<(), DumpError> {
        let sync = |path: &Path| std::fs::File::open(path).and_then(|file| file.sync_all());
        let renamed = sync(&self.path).and_then(|()| std::fs::rename(&self.path, path));
        renamed.map_err(|error| DumpError::file(path, "giving it its name", error))?;
        self.kept = true;
        let parent = path.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."));
        sync(parent).map_err(|error| DumpError::file(parent, "making the name durable", error))
    }
}

impl Drop for Partial {
    fn drop(&mut self) {
        if !self.kept {
            let _ = std::fs::remove_dir_all(&self.path);
            let _ = std::fs::remove_file(&self.path);
        }
    }
}

fn make_dir(path: &Path) -> Result<(), DumpError> {
    use std::os::unix::fs::DirBuilderExt;
    let made = std::fs::DirBuilder::new().mode(0o700).create(path);
    made.map_err(|error| DumpError::file(path, "creating the directory", error))
}
