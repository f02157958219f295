//! What an export writes, in its order: fetched window by window, while the one before is written.

use super::plan::{At, Plan, is_tablespace_link};
use super::{ExportOptions, ExportedArchiving};
use crate::restore::fetch::{Batch, Destination, Fetcher};
use crate::restore::paths::is_left_out;
use crate::restore::settings::edit_auto_conf;
use crate::restore::{PlannedOwner, PlannedSetting};
use crate::{Context, EngineError};
use bytes::Bytes;
use futures::{StreamExt, stream};
use pg_format::WalFileName;
use repo::RepoError;
use repo::manifest::{FileEntry, FileType, Manifest, Place};
use repo::map::FileMap;
use repo::wal::{read_segment, read_wal_file};
use std::ops::Range;
use std::path::Path;
use std::sync::atomic::AtomicU32;
use std::sync::{Arc, Mutex, PoisonError};
use tokio::sync::mpsc::Sender;

/// Bytes of files that are fetched together. Three windows are there at most: fetched, waiting, written.
const WINDOW_BYTES: u64 = 32 << 20;
/// Steps of a window: many files are small.
const WINDOW_STEPS: usize = 20_000;
/// File maps that are read ahead.
const MAPS_AHEAD: usize = 16;
/// Beyond so much it is no configuration that the server wrote.
const AUTO_CONF_MAX: u64 = 16 << 20;

const CONTROL: &[u8] = b"data/global/pg_control";
const AUTO_CONF: &[u8] = b"data/postgresql.auto.conf";

/// A part of a file, in memory.
pub(super) struct Part {
    name: Vec<u8>,
    file_len: u64,
    start: u64,
    bytes: Mutex<Vec<u8>>,
    left: AtomicU32,
}

impl Part {
    fn new(entry: &FileEntry, file_len: u64, range: &Range<u64>) -> Arc<Self> {
        Arc::new(Self {
            name: entry.path.clone(),
            file_len,
            start: range.start,
            bytes: Mutex::new(vec![0; (range.end - range.start) as usize]),
            left: AtomicU32::new(1),
        })
    }

    /// Takes the bytes out.
    pub(super) fn take(&self) -> Vec<u8> {
        std::mem::take(&mut *self.bytes.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

impl Destination for Arc<Part> {
    type Open = ();

    fn name(&self) -> &[u8] {
        &self.name
    }

    fn len(&self) -> u64 {
        self.file_len
    }

    fn left(&self) -> &AtomicU32 {
        &self.left
    }

    fn open(&self) -> Result<(), EngineError> {
        Ok(())
    }

    fn write(&self, (): &mut (), bytes: &[u8], at: u64) -> Result<(), EngineError> {
        let from = (at - self.start) as usize;
        let mut all = self.bytes.lock().unwrap_or_else(PoisonError::into_inner);
        all[from..from + bytes.len()].copy_from_slice(bytes);
        Ok(())
    }

    fn written(&self, (): (), _: Range<u64>, _: u32) -> Result<(), EngineError> {
        Ok(())
    }

    fn finish(&self, (): &()) -> Result<(), EngineError> {
        Ok(())
    }
}

/// What a member is besides its content.
#[derive(Debug, Clone, Copy)]
pub(super) struct Meta {
    pub(super) mode: u32,
    pub(super) owner: PlannedOwner,
    pub(super) mtime: u64,
}

/// One thing to write.
pub(super) enum Step {
    Directory(At, Meta),
    /// A tablespace's link.
    Link(At, Vec<u8>, Meta),
    /// A file of so many bytes, which follow.
    File(At, u64, Meta),
    Part(Arc<Part>),
    Zeros(u64),
    Bytes(Bytes),
}

/// What goes to the writer.
pub(super) enum Window {
    Steps(Vec<Step>),
    /// That was all.
    End,
}

/// Why feeding ended early.
pub(super) enum Stopped {
    /// The writer ended; it knows why.
    WriterEnded,
    Error(EngineError),
}

impl<E: Into<EngineError>> From<E> for Stopped {
    fn from(error: E) -> Self {
        Self::Error(error.into())
    }
}

type Mapped = Option<Result<(FileMap, Vec<u32>), RepoError>>;

/// Brings what is to be written.
pub(super) struct Feed<'a> {
    ctx: &'a Context,
    cluster: &'a repo::Cluster,
    manifest: &'a Manifest,
    plan: &'a Plan,
    options: &'a ExportOptions,
    fetcher: Fetcher<'a>,
    steps: Vec<Step>,
    batch: Batch<Arc<Part>>,
    bytes: u64,
    to: Sender<Window>,
}

impl<'a> Feed<'a> {
    pub(super) fn new(
        ctx: &'a Context,
        cluster: &'a repo::Cluster,
        manifest: &'a Manifest,
        plan: &'a Plan,
        options: &'a ExportOptions,
        to: Sender<Window>,
    ) -> Self {
        let fetcher = Fetcher::new(ctx, cluster, manifest, options.workers.clamp(1, 64));
        Self {
            ctx,
            cluster,
            manifest,
            plan,
            options,
            fetcher,
            steps: Vec::new(),
            batch: Batch::default(),
            bytes: 0,
            to,
        }
    }

    pub(super) fn fetched_bytes(&self) -> u64 {
        self.fetcher.fetched_bytes()
    }

    /// Everything, in the order of `perform_base_backup`: label and map first, `pg_control` after all other files, then
    /// WAL.
    pub(super) async fn all(&mut self) -> Result<(), Stopped> {
        let root = self.ctx.or_cancel(self.manifest.find(b"data")).await??;
        let (root_mode, owner) = root.map_or((0o700, 0), |entry| (entry.mode, entry.owner));
        let meta = Meta {
            mode: if root_mode & 0o050 == 0o050 { 0o640 } else { 0o600 },
            owner: self.owner(owner),
            mtime: u64::try_from(self.plan.facts.stop_time.as_second()).unwrap_or(0),
        };
        self.steps.push(Step::Directory(At::Data(Vec::new()), Meta { mode: root_mode, ..meta }));
        for (name, content) in [("backup_label", &self.plan.label), ("tablespace_map", &self.plan.tablespace_map)] {
            if let Some(content) = content {
                self.whole(At::Data(name.into()), Bytes::from(content.clone()), meta);
            }
        }
        let mut control = None;
        let mut carried = Vec::new();
        let mut has_auto_conf = false;
        let mut blocks = self.manifest.files();
        while let Some(entries) = self.ctx.or_cancel(blocks.next()).await?? {
            let fetcher = Fetcher::new(self.ctx, self.cluster, self.manifest, 1);
            let read = |entry: FileEntry| {
                let fetcher = &fetcher;
                async move {
                    let map: Mapped = match &entry.file_type {
                        FileType::File { len, place: Place::Map(chunk), .. } => {
                            Some(fetcher.read_map(chunk, *len).await)
                        }
                        _ => None,
                    };
                    (entry, map)
                }
            };
            let mut mapped = stream::iter(entries).map(read).buffered(MAPS_AHEAD);
            while let Some((entry, map)) = self.ctx.or_cancel(mapped.next()).await? {
                if entry.path == CONTROL {
                    control = Some((entry, map));
                } else if entry.path == AUTO_CONF && self.options.archiving == ExportedArchiving::Off {
                    has_auto_conf = true;
                    self.auto_conf(Some((entry, map)), meta).await?;
                } else if entry.path.starts_with(b"wal/") {
                    // WAL comes last; a standalone backup has a handful of segments.
                    carried.push((entry, map));
                } else {
                    self.entry(entry, map).await?;
                }
            }
        }
        if !has_auto_conf && self.options.archiving == ExportedArchiving::Off {
            self.auto_conf(None, meta).await?;
        }
        let Some((control, map)) = control else {
            let reason = format!("backup {} is damaged: it has no global/pg_control", self.plan.facts.backup);
            return Err(EngineError::Failed { reason, hint: Some("choose another backup".into()) }.into());
        };
        self.entry(control, map).await?;
        for (entry, map) in carried {
            self.entry(entry, map).await?;
        }
        self.wal(meta).await?;
        self.flush().await?;
        self.to.send(Window::End).await.map_err(|_| Stopped::WriterEnded)
    }

    fn owner(&self, index: u32) -> PlannedOwner {
        self.plan.owners.get(index as usize).copied().unwrap_or(PlannedOwner { uid: None, gid: None })
    }

    fn whole(&mut self, at: At, content: Bytes, meta: Meta) {
        self.bytes += content.len() as u64;
        self.steps.push(Step::File(at, content.len() as u64, meta));
        self.steps.push(Step::Bytes(content));
    }

    async fn entry(&mut self, entry: FileEntry, map: Mapped) -> Result<(), Stopped> {
        let Some(at) = At::of(&entry.path, &self.plan.tablespaces)? else { return Ok(()) };
        let meta = Meta { mode: entry.mode, owner: self.owner(entry.owner), mtime: entry.mtime };
        match (&entry.file_type, &at) {
            // It was the first of all.
            (FileType::Directory, At::Data(path)) if path.is_empty() => return Ok(()),
            (FileType::Directory, _) => self.steps.push(Step::Directory(at, meta)),
            // `sendtblspclinks` in basebackup.c: the map has them.
            (FileType::Link { .. }, _) if is_tablespace_link(&entry.path) && self.plan.tablespace_map.is_some() => {}
            (FileType::Link { target }, _) if is_tablespace_link(&entry.path) => {
                self.steps.push(Step::Link(at, target.clone(), meta));
            }
            // `convert_link_to_directory`: the server needs the directory.
            (FileType::Link { .. }, At::Data(path)) if path == b"pg_wal" => {
                self.steps.push(Step::Directory(at, Meta { mode: 0o700, ..meta }));
            }
            (FileType::Link { .. }, _) => {}
            (FileType::File { .. }, At::Data(path)) if std::str::from_utf8(path).is_ok_and(is_left_out) => {}
            (FileType::File { len, place, .. }, _) => {
                let (len, place) = (*len, *place);
                self.steps.push(Step::File(at, len, meta));
                self.content(&entry, len, place, map).await?;
            }
        }
        if self.steps.len() >= WINDOW_STEPS || self.bytes >= WINDOW_BYTES {
            self.flush().await?;
        }
        Ok(())
    }

    async fn content(&mut self, entry: &FileEntry, len: u64, place: Place, map: Mapped) -> Result<(), Stopped> {
        let damaged = |what: &str| EngineError::Failed {
            reason: format!("{}: {what}", String::from_utf8_lossy(&entry.path)),
            hint: Some("the backup is damaged: choose another one".into()),
        };
        match place {
            Place::Zero => self.steps.push(Step::Zeros(len)),
            Place::Chunk(chunk) => {
                if u64::from(chunk.plain_len) != len {
                    return Err(damaged("its chunk is not as long as the file").into());
                }
                let part = Part::new(entry, len, &(0..len));
                self.batch.add_chunk(part.clone(), chunk);
                self.steps.push(Step::Part(part));
                self.bytes += len;
            }
            Place::Map(_) => {
                let (map, packs) = map.ok_or_else(|| damaged("its map was not read"))?.map_err(|error| {
                    let path = String::from_utf8_lossy(&entry.path).into_owned();
                    match error.is_damage() || error.is_not_found() {
                        true => self.damaged(&format!("{error} (needed for {path})")),
                        false => EngineError::Repo(error),
                    }
                })?;
                let mut start = 0;
                while start < len {
                    if self.bytes >= WINDOW_BYTES {
                        self.flush().await?;
                    }
                    let end = len.min(start + (WINDOW_BYTES - self.bytes));
                    let part = Part::new(entry, len, &(start..end));
                    self.batch.add_part(part.clone(), &map, &packs, start..end);
                    self.steps.push(Step::Part(part));
                    self.bytes += end - start;
                    start = end;
                }
            }
        }
        Ok(())
    }

    fn damaged(&self, what: &str) -> EngineError {
        EngineError::failed(
            format!("backup {} is damaged and was not exported: {what}", self.plan.facts.backup),
            "choose another backup; `pgkeep verify --all --deep` says which ones are whole",
        )
    }

    /// Fetches what the window needs, and hands it over.
    async fn flush(&mut self) -> Result<(), Stopped> {
        self.ctx.check()?;
        self.fetcher.run(std::mem::take(&mut self.batch)).await?;
        if let Some(text) = self.fetcher.damage_text() {
            return Err(self.damaged(&text).into());
        }
        self.bytes = 0;
        let steps = std::mem::take(&mut self.steps);
        self.send(steps).await
    }

    async fn send(&mut self, steps: Vec<Step>) -> Result<(), Stopped> {
        let sent = self.ctx.or_cancel(self.to.send(Window::Steps(steps))).await?;
        sent.map_err(|_| Stopped::WriterEnded)
    }

    /// The server's own configuration file, with archiving off. `pg_verifybackup` leaves this file alone.
    async fn auto_conf(&mut self, entry: Option<(FileEntry, Mapped)>, meta: Meta) -> Result<(), Stopped> {
        let (text, meta) = match entry {
            None => (String::new(), meta),
            Some((entry, map)) => {
                let FileType::File { len, place, .. } = entry.file_type else { return Ok(()) };
                let meta = Meta { mode: entry.mode, owner: self.owner(entry.owner), mtime: meta.mtime };
                if len > AUTO_CONF_MAX {
                    let reason = format!("postgresql.auto.conf has {len} bytes");
                    return Err(EngineError::refused(reason, "it cannot be changed: export with `--archive`").into());
                }
                self.flush().await?;
                self.content(&entry, len, place, map).await?;
                self.fetcher.run(std::mem::take(&mut self.batch)).await?;
                if let Some(text) = self.fetcher.damage_text() {
                    return Err(self.damaged(&text).into());
                }
                let mut bytes = Vec::new();
                for step in self.steps.drain(..) {
                    match step {
                        Step::Part(part) => bytes.extend(part.take()),
                        Step::Zeros(len) => bytes.resize(bytes.len() + len as usize, 0),
                        _ => {}
                    }
                }
                self.bytes = 0;
                (String::from_utf8_lossy(&bytes).into_owned(), meta)
            }
        };
        let off = [PlannedSetting { name: "archive_mode".into(), value: "off".into() }];
        let text = edit_auto_conf(Path::new("postgresql.auto.conf"), &text, &off, false)?;
        self.whole(At::Data(b"postgresql.auto.conf".to_vec()), Bytes::from(text), meta);
        Ok(())
    }

    /// WAL from the archive.
    async fn wal(&mut self, meta: Meta) -> Result<(), Stopped> {
        let repository = self.cluster.repository();
        for file in &self.plan.wal {
            let read = async {
                Ok::<_, RepoError>(match file.name {
                    WalFileName::Segment(_) => {
                        Bytes::from(read_segment(repository.store().clone(), repository.keys(), &file.object).await?)
                    }
                    _ => read_wal_file(&**repository.store(), repository.keys(), &file.object).await?,
                })
            };
            let content = match self.ctx.or_cancel(read).await? {
                Err(error) if error.is_damage() || error.is_not_found() => {
                    return Err(self.damaged(&error.to_string()).into());
                }
                other => other?,
            };
            self.whole(At::Wal(file.name.to_string()), content, meta);
            self.flush().await?;
        }
        Ok(())
    }
}
