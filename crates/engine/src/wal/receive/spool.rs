//! The spool: streamed WAL on this host, durable before it is reported to the server, until the repository has it.
//!
//! One file for each segment, of the segment's size from its beginning, filled with zeros: making what is written durable
//! then costs no change of the file's size. Until it is whole its name ends with `.receiving`. How far such a file is filled
//! is told, after a crash, by the WAL itself: every record has a checksum, and what follows the last one is zeros.

use super::logs::Logs;
use super::track::{Closed, Track};
use crate::EngineError;
use pg_format::{Lsn, SegmentName, SystemId, Timeline, WalSegmentSize};
use pg_wal::{Expected, scan_segment};
use std::fs::{self, File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread::JoinHandle;

const RECEIVING: &str = ".receiving";
const SPARE: &str = "spare";
/// Where catalogs lie.
const CATALOGS: &str = "catalogs.json";
/// Zeros written at a time.
const ZEROS: usize = 1 << 20;

/// Where the spool of one cluster and its repositories lies.
pub(super) fn place(state_dir: &Path, key: &str) -> PathBuf {
    let hash = blake3::hash(key.as_bytes()).to_hex();
    state_dir.join(format!("wal-receive-{}", &hash[..16]))
}

/// The spool of one system identifier.
#[derive(Debug, Clone)]
pub(super) struct Spool {
    dir: PathBuf,
    system: SystemId,
    size: WalSegmentSize,
}

/// A segment's file that was there.
#[derive(Debug, Clone)]
pub(super) struct SpooledFile {
    pub(super) name: SegmentName,
    pub(super) path: PathBuf,
    pub(super) file: Arc<File>,
    /// So many bytes from its beginning are WAL.
    pub(super) filled: u64,
    pub(super) whole: bool,
}

impl Spool {
    pub(super) fn open(place: &Path, system: SystemId, size: WalSegmentSize) -> Result<Self, EngineError> {
        let dir = place.join(system.to_string());
        fs::create_dir_all(&dir)
            .and_then(|()| sync_dir(place))
            .map_err(|error| EngineError::file(&dir, "making the directory", error))?;
        Ok(Self { dir, system, size })
    }

    /// The spool of which there are segments, when one was left here. The files have the size of segments.
    pub(super) fn left_in(place: &Path) -> Option<Self> {
        let dirs = fs::read_dir(place).ok()?.flatten();
        let spools = dirs.filter_map(|dir| {
            let system: SystemId = dir.file_name().to_str()?.parse().ok()?;
            let files = fs::read_dir(dir.path()).ok()?.flatten();
            let segments = files.filter(|file| {
                let name = file.file_name().to_string_lossy().into_owned();
                name.strip_suffix(RECEIVING).unwrap_or(&name).parse::<SegmentName>().is_ok()
            });
            let bytes = segments.filter_map(|file| file.metadata().ok()).map(|meta| meta.len()).max()?;
            let size = WalSegmentSize::new(u32::try_from(bytes).ok()?).ok()?;
            Some(Self { dir: dir.path(), system, size })
        });
        spools.min_by_key(|spool| spool.system)
    }

    pub(super) fn system(&self) -> SystemId {
        self.system
    }

    pub(super) fn size(&self) -> WalSegmentSize {
        self.size
    }

    pub(super) fn dir(&self) -> &Path {
        &self.dir
    }

    fn path(&self, name: SegmentName) -> PathBuf {
        self.dir.join(name.to_string())
    }

    fn receiving(&self, name: SegmentName) -> PathBuf {
        self.dir.join(format!("{name}{RECEIVING}"))
    }

    /// What lies there, in the order of timelines and segments. Reads the files that are not whole.
    pub(super) fn files(&self) -> Result<Vec<SpooledFile>, EngineError> {
        let fail = |error| EngineError::file(&self.dir, "listing", error);
        let mut found = Vec::new();
        for entry in fs::read_dir(&self.dir).map_err(fail)? {
            let entry = entry.map_err(fail)?;
            let text = entry.file_name().to_string_lossy().into_owned();
            let (name, whole) = match text.strip_suffix(RECEIVING) {
                Some(name) => (name, false),
                None => (text.as_str(), true),
            };
            let Ok(name) = name.parse::<SegmentName>() else { continue };
            let path = entry.path();
            let open = OpenOptions::new().read(true).write(true).open(&path);
            let file = open.map_err(|error| EngineError::file(&path, "opening", error))?;
            let filled = if whole { self.size.bytes() } else { self.filled(&file, name, &path)? };
            found.push(SpooledFile { name, path, file: Arc::new(file), filled, whole });
        }
        found.sort_by_key(|found| found.name);
        Ok(found)
    }

    /// How far a file is filled, by the WAL in it.
    fn filled(&self, file: &File, name: SegmentName, path: &Path) -> Result<u64, EngineError> {
        let mut bytes = vec![0; self.size.bytes() as usize];
        let fail = |error| EngineError::file(path, "reading", error);
        let len = file.metadata().map_err(fail)?.len().min(self.size.bytes());
        file.read_exact_at(&mut bytes[..len as usize], 0).map_err(fail)?;
        let start = name.start(self.size).map_err(|error| bad_name(path, &error))?;
        let expected = Expected {
            system_id: Some(self.system),
            segment_size: Some(self.size.bytes() as u32),
            start: Some(start),
            ..Expected::default()
        };
        // Nothing that can be read is nothing that was reported.
        let facts = scan_segment(&bytes, Some(&expected)).ok();
        Ok(facts.map_or(0, |facts| facts.valid_end.saturating_sub(start)).min(self.size.bytes()))
    }

    /// Removes a segment's file: the repository has it.
    pub(super) fn remove(&self, path: &Path) {
        // One that stays is pushed again after a restart, and is there already.
        let _ = fs::remove_file(path);
    }

    /// Where catalogs lie, as it was kept: database, catalog, relfilenode.
    pub(super) fn catalogs(&self) -> Vec<(u32, u32, u32)> {
        let kept = fs::read(self.dir.join(CATALOGS)).ok();
        kept.and_then(|kept| serde_json::from_slice(&kept).ok()).unwrap_or_default()
    }

    /// Keeps where catalogs lie.
    pub(super) fn put_catalogs(&self, catalogs: &[(u32, u32, u32)]) -> Result<(), EngineError> {
        let text = serde_json::to_vec(catalogs).unwrap_or_default();
        self.put(CATALOGS, &text).map(drop)
    }

    /// Keeps a timeline's history file until it is pushed.
    pub(super) fn put_history(&self, name: &str, content: &[u8]) -> Result<PathBuf, EngineError> {
        self.put(name, content)
    }

    fn put(&self, name: &str, content: &[u8]) -> Result<PathBuf, EngineError> {
        let (path, temp) = (self.dir.join(name), self.dir.join(format!("{name}.tmp")));
        let write = || {
            let mut file = create(&temp)?;
            file.write_all(content)?;
            file.sync_all()?;
            fs::rename(&temp, &path)?;
            sync_dir(&self.dir)
        };
        write().map_err(|error| EngineError::file(&path, "writing", error))?;
        Ok(path)
    }

    /// History files that were not pushed yet.
    pub(super) fn histories(&self) -> Vec<PathBuf> {
        let Ok(entries) = fs::read_dir(&self.dir) else { return Vec::new() };
        let is_history = |path: &PathBuf| path.extension().is_some_and(|ending| ending == "history");
        entries.flatten().map(|entry| entry.path()).filter(is_history).collect()
    }
}

/// Writes what arrives, in order. Blocks.
pub(super) struct Writer {
    spool: Spool,
    track: Arc<Track>,
    timeline: Timeline,
    /// The next byte.
    at: Lsn,
    open: Option<Open>,
    /// Makes the next segment's file while this one is written.
    making: Option<JoinHandle<()>>,
    /// Repositories that are written to at once; none when nothing waits for repositories.
    logs: Option<Logs>,
    written: Written,
}

/// How far was written, as the operating system has it: seen also while the writer is at work.
#[derive(Debug, Clone, Default)]
pub(super) struct Written(Arc<AtomicU64>);

impl Written {
    pub(super) fn lsn(&self) -> Lsn {
        Lsn(self.0.load(Ordering::Acquire))
    }

    fn set(&self, lsn: Lsn) {
        self.0.store(lsn.0, Ordering::Release);
    }
}

struct Open {
    name: SegmentName,
    start: Lsn,
    file: Arc<File>,
    path: PathBuf,
    /// So many bytes from its beginning were there before: what arrives again must be the same.
    known: u64,
    /// Something was written and is not durable yet.
    dirty: bool,
}

impl Writer {
    pub(super) fn new(spool: Spool, track: Arc<Track>, logs: Option<Logs>) -> Self {
        let (timeline, at, written) = (Timeline::FIRST, Lsn::INVALID, Written::default());
        Self { spool, track, timeline, at, open: None, making: None, logs, written }
    }

    /// Begins at the start of a segment, anew or again. What other segments lack they will never get from here.
    pub(super) fn begin(&mut self, timeline: Timeline, start: Lsn) {
        self.open = None;
        (self.timeline, self.at) = (timeline, start);
        self.written.set(start);
        self.track.begin(timeline, start, SegmentName::of_lsn(timeline, start, self.spool.size));
        self.end_logs();
    }

    /// The stream is over.
    pub(super) fn end_logs(&mut self) {
        self.logs.iter_mut().for_each(Logs::end_all);
    }

    /// How far was written.
    pub(super) fn written(&self) -> Written {
        self.written.clone()
    }

    /// Writes bytes, without waiting until they are durable. Whole segments are made durable and closed.
    pub(super) fn write(&mut self, batch: &[(Lsn, bytes::Bytes)]) -> Result<(), EngineError> {
        for (at, data) in batch {
            self.append(*at, data)?;
        }
        if let Some(open) = &self.open
            && self.logs.is_some()
        {
            self.track.written(open.name, self.at.0 - open.start.0);
        }
        self.written.set(self.at);
        Ok(())
    }

    /// Brings what was written into the repositories' logs.
    pub(super) fn log(&mut self) {
        if let (Some(logs), Some(open)) = (&mut self.logs, &self.open) {
            logs.write(open.name, &open.file);
        }
    }

    /// Called now and then: see [`Logs::mark_quiet`].
    pub(super) fn mark_quiet(&mut self) {
        self.logs.iter_mut().for_each(Logs::mark_quiet);
    }

    /// Makes durable what was written.
    pub(super) fn sync(&mut self) -> Result<(), EngineError> {
        let Some(open) = &mut self.open else { return Ok(()) };
        open.sync()?;
        self.track.spooled(open.name, self.at.0 - open.start.0);
        Ok(())
    }

    fn append(&mut self, at: Lsn, mut data: &[u8]) -> Result<(), EngineError> {
        if at != self.at {
            let reason = format!("the server sent WAL from {at} on, {} was next", self.at);
            return Err(EngineError::Failed { reason, hint: None });
        }
        while !data.is_empty() {
            let size = self.spool.size.bytes();
            let open = match self.open.take() {
                Some(open) => open,
                None => self.open_segment()?,
            };
            let open = self.open.insert(open);
            let offset = self.at.0 - open.start.0;
            let (part, rest) = data.split_at(data.len().min((size - offset) as usize));
            open.put(offset, part)?;
            self.at = Lsn(self.at.0 + part.len() as u64);
            data = rest;
            if offset + part.len() as u64 == size {
                self.close_segment()?;
            }
        }
        Ok(())
    }

    fn open_segment(&mut self) -> Result<Open, EngineError> {
        let name = SegmentName::of_lsn(self.timeline, self.at, self.spool.size);
        let start = self.at.segment_start(self.spool.size);
        if let Some((file, path, known)) = self.track.file_of(name) {
            // What a process that was killed had written last may not be durable.
            return Ok(Open { name, start, file, path, known, dirty: known > 0 });
        }
        if let Some(making) = self.making.take() {
            // A file that could not be made is made here, and the reason said.
            let _ = making.join();
        }
        let path = self.spool.receiving(name);
        let spare = self.spool.dir.join(SPARE);
        let fail = |error| EngineError::file(&path, "making the file", error);
        if fs::metadata(&spare).map_or(0, |meta| meta.len()) != self.spool.size.bytes() {
            make_zeros(&spare, self.spool.size.bytes()).map_err(fail)?;
        }
        let open = || {
            fs::rename(&spare, &path)?;
            sync_dir(&self.spool.dir)?;
            OpenOptions::new().read(true).write(true).open(&path)
        };
        let file = Arc::new(open().map_err(fail)?);
        self.track.opened(name, start, file.clone(), path.clone());
        let bytes = self.spool.size.bytes();
        self.making = Some(std::thread::spawn(move || drop(make_zeros(&spare, bytes))));
        Ok(Open { name, start, file, path, known: 0, dirty: false })
    }

    fn close_segment(&mut self) -> Result<(), EngineError> {
        let Some(mut open) = self.open.take() else { return Ok(()) };
        if let Some(logs) = &mut self.logs {
            self.track.written(open.name, self.spool.size.bytes());
            logs.write(open.name, &open.file);
        }
        open.sync()?;
        let path = self.spool.path(open.name);
        if path != open.path {
            fs::rename(&open.path, &path)
                .and_then(|()| sync_dir(&self.spool.dir))
                .map_err(|error| EngineError::file(&path, "renaming", error))?;
        }
        self.track.closed(open.name, path, self.spool.size.bytes(), Closed::Whole);
        Ok(())
    }
}

impl Open {
    fn put(&mut self, offset: u64, part: &[u8]) -> Result<(), EngineError> {
        let known = self.known.saturating_sub(offset).min(part.len() as u64) as usize;
        let (again, new) = part.split_at(known);
        if !again.is_empty() {
            let mut there = vec![0; again.len()];
            self.file
                .read_exact_at(&mut there, offset)
                .map_err(|error| EngineError::file(&self.path, "reading", error))?;
            if let Some(at) = there.iter().zip(again).position(|(a, b)| a != b) {
                let at = Lsn(self.start.0 + offset + at as u64);
                return Err(EngineError::refused(
                    format!(
                        "at {at} on timeline {} the server has other WAL than was received before: two servers run on \
                         this timeline, or one of them was put back to an earlier state",
                        self.name.timeline
                    ),
                    format!(
                        "connect to the one that is production; if it is this one, move {} away and begin anew",
                        self.path.display()
                    ),
                ));
            }
        }
        if !new.is_empty() {
            self.file
                .write_all_at(new, offset + known as u64)
                .map_err(|error| EngineError::file(&self.path, "writing", error))?;
            self.dirty = true;
        }
        Ok(())
    }

    fn sync(&mut self) -> Result<(), EngineError> {
        if self.dirty {
            self.file.sync_data().map_err(|error| EngineError::file(&self.path, "making durable", error))?;
            self.dirty = false;
        }
        Ok(())
    }
}

fn bad_name(path: &Path, error: &pg_format::FormatError) -> EngineError {
    EngineError::BadFile { path: path.to_owned(), reason: error.to_string() }
}

fn create(path: &Path) -> io::Result<File> {
    OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(path)
}

/// A file full of zeros, durable under its name or not there.
fn make_zeros(path: &Path, bytes: u64) -> io::Result<()> {
    let temp = path.with_extension("tmp");
    let write = || {
        let mut file = create(&temp)?;
        let zeros = vec![0; ZEROS.min(bytes as usize)];
        let mut left = bytes as usize;
        while left > 0 {
            let part = left.min(zeros.len());
            file.write_all(&zeros[..part])?;
            left -= part;
        }
        file.sync_all()?;
        fs::rename(&temp, path)
    };
    write().inspect_err(|_| drop(fs::remove_file(&temp)))
}

fn sync_dir(dir: &Path) -> io::Result<()> {
    File::open(dir)?.sync_all()
}
