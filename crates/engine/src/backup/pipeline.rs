//! Reading, checking, compressing and packing in parallel.
//!
//! Each worker is a thread with its own buffers and its own pack: it takes a slice of a file (or several small
//! files), reads extent by extent, and hands stored chunks to its pack. Nothing waits for another worker; the one
//! that finishes a file's last slice writes the file's map.

use super::CONTROL_ENTRY;
use super::listing::{Found, Listing, Relation, on_disk};
use super::pages::{BadPage, PageRules};
use crate::{Context, EngineError};
use pg_format::control::{CONTROL_FILE_BYTES, ControlFile};
use repo::chunk::{ChunkEncoder, ChunkRef, EXTENT_PAGES, EncodedChunk, PageContent};
use repo::map::{FileMap, Run};
use repo::pack::{ChunkPages, PACK_LEN, PackWriter, WrittenPack, map_encoder};
use repo::{BackupId, Cluster, Compression, PackId, RepoError};
use std::collections::{HashMap, VecDeque};
use std::fs::File;
use std::io::ErrorKind;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU32, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;
use tokio::runtime::Handle;
use tokio::task::JoinHandle;

/// Extents of a large file that one worker takes at a time: 32 MiB.
const SLICE_EXTENTS: u64 = 64;
/// Small files are taken together until they have so many bytes, or are so many.
const GROUP_BYTES: u64 = 8 << 20;
const GROUP_FILES: usize = 256;
/// Packs of one worker that may be on their way to being durable while it fills the next.
const PACKS_IN_FLIGHT: usize = 2;

/// How often pg_control is read when its checksum does not fit: a write of it was met.
const CONTROL_READS: u32 = 50;
const CONTROL_READ_AGAIN_AFTER: Duration = Duration::from_millis(20);

/// Where a file's content went.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Stored {
    /// Empty, or all zero.
    Zero,
    /// One chunk holds it.
    Chunk(PackId, ChunkRef),
    /// A file map tells.
    Map(PackId, ChunkRef),
}

/// A file that was read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct FileResult {
    /// Its length as it was read.
    pub(super) len: u64,
    /// Where its content went.
    pub(super) stored: Stored,
}

/// What a backup read and wrote.
#[derive(Debug, Default)]
pub(super) struct Outcome {
    /// One for each entry of the listing; none for what is no file and for files that vanished.
    pub(super) files: Vec<Option<FileResult>>,
    /// Object size of each pack.
    pub(super) packs: HashMap<PackId, u64>,
    /// Stored bytes used of each pack.
    pub(super) used: HashMap<PackId, u64>,
    /// Pages that failed their check.
    pub(super) bad_pages: Vec<BadPage>,
    /// Pages read.
    pub(super) pages_read: u64,
    /// Pages stored in chunks.
    pub(super) pages_stored: u64,
}

/// A piece of work: some extents of one file, or several whole small files.
#[derive(Debug, Clone, Copy)]
struct Slice {
    first_file: usize,
    files: usize,
    first_extent: u64,
    extents: u64,
}

/// A part of a file that was read.
struct Part {
    first_page: u64,
    /// Bytes that were read.
    bytes: u64,
    runs: Vec<(Option<(PackId, ChunkRef)>, u64)>,
}

/// A large file of which not all slices were read yet.
struct Assembly {
    slices_left: usize,
    parts: Vec<Part>,
}

/// What all workers share.
pub(super) struct Pipeline {
    ctx: Context,
    handle: Handle,
    cluster: Cluster,
    backup: BackupId,
    root: PathBuf,
    listing: Arc<Listing>,
    rules: PageRules,
    compression: Compression,
    slices: Vec<Slice>,
    next_slice: AtomicUsize,
    next_pack: Arc<AtomicU32>,
    assemblies: Mutex<HashMap<usize, Assembly>>,
    outcome: Mutex<Outcome>,
    pages_read: AtomicU64,
}

fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    // A worker that panicked ends the backup anyway; what others wrote under the lock is whole.
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// What a backup reads from and writes to.
pub(super) struct PipelineSetup {
    pub(super) ctx: Context,
    pub(super) cluster: Cluster,
    pub(super) backup: BackupId,
    pub(super) root: PathBuf,
    pub(super) listing: Arc<Listing>,
    pub(super) rules: PageRules,
    pub(super) compression: Compression,
}

impl Pipeline {
    /// Plans the work for the entries of the listing that `wanted` chooses.
    pub(super) fn new(setup: PipelineSetup, next_pack: Arc<AtomicU32>, wanted: impl Fn(&[u8]) -> bool) -> Arc<Self> {
        let extent_bytes = EXTENT_PAGES * setup.rules.page_size as u64;
        let slices = plan_slices(&setup.listing, extent_bytes, wanted);
        let outcome = Outcome { files: vec![None; setup.listing.entries.len()], ..Outcome::default() };
        let mut assemblies = HashMap::new();
        for slice in &slices {
            if slice.extents > 0 {
                let entry = assemblies.entry(slice.first_file);
                entry.or_insert(Assembly { slices_left: 0, parts: Vec::new() }).slices_left += 1;
            }
        }
        Arc::new(Self {
            ctx: setup.ctx,
            handle: Handle::current(),
            cluster: setup.cluster,
            backup: setup.backup,
            root: setup.root,
            listing: setup.listing,
            rules: setup.rules,
            compression: setup.compression,
            slices,
            next_slice: AtomicUsize::new(0),
            next_pack,
            assemblies: Mutex::new(assemblies),
            outcome: Mutex::new(outcome),
            pages_read: AtomicU64::new(0),
        })
    }

    /// Runs `workers` workers to the end. The first error stops them all.
    pub(super) async fn run(self: Arc<Self>, workers: usize) -> Result<Outcome, EngineError> {
        let stop = self.ctx.cancel.child_token();
        let mut running = Vec::new();
        for _ in 0..workers.max(1) {
            let (shared, stop) = (self.clone(), stop.clone());
            running.push(tokio::task::spawn_blocking(move || {
                let result = Worker::new(&shared).run(|| stop.is_cancelled());
                if result.is_err() {
                    stop.cancel();
                }
                result
            }));
        }
        let mut failure = None;
        for worker in running {
            let result = worker.await.unwrap_or_else(|panic| {
                Err(EngineError::Failed { reason: format!("a worker stopped unexpectedly: {panic}"), hint: None })
            });
            // The others were stopped because of the one that failed: its error is the one to tell.
            if let Err(error) = result
                && matches!(failure, None | Some(EngineError::Cancelled))
            {
                failure = Some(error);
            }
        }
        self.ctx.check()?;
        if let Some(error) = failure {
            return Err(error);
        }
        let mut outcome = std::mem::take(&mut *lock(&self.outcome));
        outcome.pages_read = self.pages_read.load(Ordering::Relaxed);
        Ok(outcome)
    }
}

fn plan_slices(listing: &Listing, extent_bytes: u64, wanted: impl Fn(&[u8]) -> bool) -> Vec<Slice> {
    let mut slices: Vec<Slice> = Vec::new();
    let mut group: Option<(Slice, u64)> = None;
    for (index, entry) in listing.entries.iter().enumerate() {
        let Found::File { len, .. } = entry.found else { continue };
        let extents = len.div_ceil(extent_bytes);
        if extents > 1 || !wanted(&entry.path) {
            // A group is a range of entries: one that it must not contain ends it.
            slices.extend(group.take().map(|(slice, _)| slice));
        }
        if !wanted(&entry.path) {
            continue;
        }
        if extents > 1 {
            for first_extent in (0..extents).step_by(SLICE_EXTENTS as usize) {
                let extents = SLICE_EXTENTS.min(extents - first_extent);
                slices.push(Slice { first_file: index, files: 1, first_extent, extents });
            }
            continue;
        }
        // Entries between the files of a group are directories, links and files of other kinds; they are skipped.
        match &mut group {
            Some((slice, bytes)) if *bytes + len <= GROUP_BYTES && index - slice.first_file < GROUP_FILES => {
                slice.files = index - slice.first_file + 1;
                *bytes += len;
            }
            _ => {
                slices.extend(group.take().map(|(slice, _)| slice));
                group = Some((Slice { first_file: index, files: 1, first_extent: 0, extents: 0 }, len));
            }
        }
    }
    slices.extend(group.map(|(slice, _)| slice));
    slices
}

/// One thread's part of the work.
struct Worker<'a> {
    shared: &'a Pipeline,
    /// Taken out while a chunk borrows its buffers.
    encoder: Option<ChunkEncoder>,
    buffer: Vec<u8>,
    pack: Option<PackWriter>,
    finishing: VecDeque<JoinHandle<Result<WrittenPack, RepoError>>>,
    used: HashMap<PackId, u64>,
    bad_pages: Vec<BadPage>,
    pages_stored: u64,
    results: Vec<(usize, FileResult)>,
}

impl<'a> Worker<'a> {
    fn new(shared: &'a Pipeline) -> Self {
        Self {
            encoder: Some(ChunkEncoder::new(shared.compression)),
            buffer: vec![0; EXTENT_PAGES as usize * shared.rules.page_size],
            shared,
            pack: None,
            finishing: VecDeque::new(),
            used: HashMap::new(),
            bad_pages: Vec::new(),
            pages_stored: 0,
            results: Vec::new(),
        }
    }

    fn run(mut self, stopped: impl Fn() -> bool) -> Result<(), EngineError> {
        let shared = self.shared;
        while let Some(&slice) = shared.slices.get(shared.next_slice.fetch_add(1, Ordering::Relaxed)) {
            if slice.extents > 0 {
                self.large_file(slice, &stopped)?;
            } else {
                for index in slice.first_file..slice.first_file + slice.files {
                    self.small_file(index, &stopped)?;
                }
            }
        }
        if let Some(pack) = self.pack.take() {
            self.finish_pack(pack);
        }
        while let Some(task) = self.finishing.pop_front() {
            self.await_pack(task)?;
        }
        let mut outcome = lock(&shared.outcome);
        for (index, result) in self.results {
            outcome.files[index] = Some(result);
        }
        for (pack, used) in self.used {
            *outcome.used.entry(pack).or_default() += used;
        }
        outcome.bad_pages.append(&mut self.bad_pages);
        outcome.pages_stored += self.pages_stored;
        Ok(())
    }

    fn small_file(&mut self, index: usize, stopped: &impl Fn() -> bool) -> Result<(), EngineError> {
        let shared = self.shared;
        let entry = &shared.listing.entries[index];
        let Found::File { len, relation } = entry.found else { return Ok(()) };
        if len == 0 && relation.is_some() {
            self.results.push((index, FileResult { len: 0, stored: Stored::Zero }));
            return Ok(());
        }
        let Some(file) = open(&on_disk(&shared.root, &entry.path))? else { return Ok(()) };
        let part = self.read_part(index, &file, 0, 1, stopped)?;
        let stored = match part.runs.as_slice() {
            [(Some((pack, chunk)), _)] => Stored::Chunk(*pack, *chunk),
            _ => Stored::Zero,
        };
        self.results.push((index, FileResult { len: part.bytes, stored }));
        Ok(())
    }

    fn large_file(&mut self, slice: Slice, stopped: &impl Fn() -> bool) -> Result<(), EngineError> {
        let shared = self.shared;
        let entry = &shared.listing.entries[slice.first_file];
        let part = match open(&on_disk(&shared.root, &entry.path))? {
            Some(file) => Some(self.read_part(slice.first_file, &file, slice.first_extent, slice.extents, stopped)?),
            None => None,
        };
        let parts = {
            let mut assemblies = lock(&shared.assemblies);
            let assembly = assemblies.get_mut(&slice.first_file).expect("planned together with its slices");
            assembly.parts.extend(part);
            assembly.slices_left -= 1;
            if assembly.slices_left > 0 {
                return Ok(());
            }
            assemblies.remove(&slice.first_file).map(|assembly| assembly.parts).unwrap_or_default()
        };
        if parts.is_empty() {
            return Ok(()); // it vanished before any of it was read: replay drops it
        }
        self.file_map(slice.first_file, parts)
    }

    /// Joins the parts of a file and writes its map.
    fn file_map(&mut self, index: usize, mut parts: Vec<Part>) -> Result<(), EngineError> {
        let shared = self.shared;
        let path = &shared.listing.entries[index].path;
        let page_size = shared.rules.page_size as u64;
        parts.sort_unstable_by_key(|part| part.first_page);
        // A file that was cut while it was read ends where the first read fell short. What it got again behind that
        // point is newer than the start LSN: replay writes it.
        let mut map = FileMap::new(page_size as u32, 0);
        for part in &parts {
            if part.first_page * page_size != map.len {
                break;
            }
            map.len += part.bytes;
            for (from, pages) in &part.runs {
                let from = from.map(|(pack, chunk)| (map.add_chunk(pack, chunk), 0));
                map.add_run(Run { from, pages: *pages });
            }
        }
        let stored = if map.chunks.is_empty() {
            Stored::Zero
        } else {
            let plain = map.encode();
            let mut encoder = map_encoder();
            let (pack, chunk) = self.add(path, &ChunkPages::Map, &encoder.encode_plain(&plain))?;
            Stored::Map(pack, chunk)
        };
        self.results.push((index, FileResult { len: map.len, stored }));
        Ok(())
    }

    /// Reads extents of a file, checks them and stores them.
    fn read_part(
        &mut self,
        index: usize,
        file: &File,
        first_extent: u64,
        extents: u64,
        stopped: &impl Fn() -> bool,
    ) -> Result<Part, EngineError> {
        let shared = self.shared;
        let entry = &shared.listing.entries[index];
        let Found::File { len: listed, relation } = entry.found else { unreachable!("only files are planned") };
        let page_size = shared.rules.page_size as u64;
        let extent_bytes = self.buffer.len() as u64;
        let len = present_len(file, listed, relation, extent_bytes);
        let first_page = first_extent * EXTENT_PAGES;
        let mut part = Part { first_page, bytes: 0, runs: Vec::new() };
        let mut buffer = std::mem::take(&mut self.buffer);
        for extent in first_extent..first_extent + extents {
            if stopped() {
                return Err(EngineError::Cancelled);
            }
            let start = extent * extent_bytes;
            let wanted = (len.saturating_sub(start)).min(extent_bytes) as usize;
            read_ahead(file, start + extent_bytes, extent_bytes);
            let fail = |error| EngineError::file(on_disk(&shared.root, &entry.path), "reading", error);
            let mut got = read_full(file, &mut buffer[..wanted], start).map_err(fail)?;
            if &*entry.path == CONTROL_ENTRY {
                let again = |buffer: &mut [u8]| {
                    std::thread::sleep(CONTROL_READ_AGAIN_AFTER);
                    if stopped() { Err(ErrorKind::Interrupted.into()) } else { read_full(file, buffer, start) }
                };
                got = whole_control(got, &mut buffer[..wanted], control_fault, again).map_err(|reason| {
                    if stopped() {
                        EngineError::Cancelled
                    } else {
                        bad_control(on_disk(&shared.root, &entry.path), reason)
                    }
                })?;
            }
            if got == 0 {
                break;
            }
            let page = extent * EXTENT_PAGES;
            let plain = &mut buffer[..got];
            if let Some(relation) = relation {
                self.bad_pages.append(&mut shared.rules.check(file, index, relation, page, plain));
            }
            let content = relation.map_or(PageContent::Other, |relation| relation.content);
            let pages = (got as u64).div_ceil(page_size);
            let mut encoder = self.encoder.take().expect("put back after each use");
            let chunk = encoder.encode(plain, page_size as usize, content);
            let from = if chunk.is_zero {
                None
            } else {
                self.pages_stored += pages;
                Some(self.add(&entry.path, &ChunkPages::Base { first: page }, &chunk)?)
            };
            self.encoder = Some(encoder);
            shared.pages_read.fetch_add(pages, Ordering::Relaxed);
            shared.ctx.progress.advance(got as u64);
            part.runs.push((from, pages));
            part.bytes += got as u64;
            if got < wanted {
                break;
            }
        }
        self.buffer = buffer;
        Ok(part)
    }

    /// Stores a chunk in this worker's pack.
    fn add(
        &mut self,
        path: &[u8],
        pages: &ChunkPages,
        chunk: &EncodedChunk<'_>,
    ) -> Result<(PackId, ChunkRef), EngineError> {
        let shared = self.shared;
        let handle = &shared.handle;
        let mut pack = match self.pack.take() {
            Some(pack) => pack,
            None => {
                let number = shared.next_pack.fetch_add(1, Ordering::Relaxed);
                let id = PackId { backup: shared.backup, number };
                handle.block_on(shared.cluster.create_pack(id))?
            }
        };
        let offset = handle.block_on(pack.add(path, pages, chunk))?;
        let id = pack.id();
        *self.used.entry(id).or_default() += chunk.stored.len() as u64;
        let placed = ChunkRef {
            pack: 0,
            offset,
            stored_len: chunk.stored.len() as u32,
            plain_len: chunk.plain_len,
            hash16: chunk.hash[..16].try_into().expect("16 of 32 bytes"),
        };
        if pack.len() >= PACK_LEN {
            self.finish_pack(pack);
            while self.finishing.len() > PACKS_IN_FLIGHT {
                if let Some(task) = self.finishing.pop_front() {
                    self.await_pack(task)?;
                }
            }
        } else {
            self.pack = Some(pack);
        }
        Ok((id, placed))
    }

    /// Making a pack durable takes a while; the worker goes on meanwhile.
    fn finish_pack(&mut self, pack: PackWriter) {
        self.finishing.push_back(self.shared.handle.spawn(pack.finish()));
    }

    fn await_pack(&mut self, task: JoinHandle<Result<WrittenPack, RepoError>>) -> Result<(), EngineError> {
        let written = self.shared.handle.block_on(task).map_err(|panic| EngineError::Failed {
            reason: format!("writing a pack stopped unexpectedly: {panic}"),
            hint: None,
        })??;
        lock(&self.shared.outcome).packs.insert(written.id, written.size);
        Ok(())
    }
}

/// Opens a file; none when it vanished: the relation was dropped, and replay drops it too.
fn open(path: &Path) -> Result<Option<File>, EngineError> {
    match File::open(path) {
        Ok(file) => Ok(Some(file)),
        Err(error) if error.kind() == ErrorKind::NotFound => Ok(None),
        Err(error) => Err(EngineError::file(path, "opening", error)),
    }
}

/// How much of a file is read. What the server or a human rewrites whole, such as `postgresql.auto.conf`, may have become
/// longer since it was listed, and no WAL adds what would be cut off.
fn present_len(file: &File, listed: u64, relation: Option<Relation>, small_max: u64) -> u64 {
    if relation.is_some() || listed > small_max {
        return listed;
    }
    file.metadata().map_or(listed, |meta| meta.len().max(listed).min(small_max))
}

/// Reads pg_control again until it is whole: what is stored must be what was checked, for a read may meet a write of the
/// server's. `got` bytes are in the buffer; gives how many are in it then, or what is wrong.
fn whole_control(
    mut got: usize,
    buffer: &mut [u8],
    fault: impl Fn(&[u8]) -> Option<String>,
    mut again: impl FnMut(&mut [u8]) -> std::io::Result<usize>,
) -> Result<usize, String> {
    for _ in 1..CONTROL_READS {
        if fault(&buffer[..got]).is_none() {
            return Ok(got);
        }
        got = again(buffer).map_err(|error| error.to_string())?;
    }
    fault(&buffer[..got]).map_or(Ok(got), Err)
}

fn control_fault(bytes: &[u8]) -> Option<String> {
    match ControlFile::parse(bytes) {
        Ok(_) if bytes.len() == CONTROL_FILE_BYTES => None,
        Ok(_) => Some(format!("it has {} bytes, {CONTROL_FILE_BYTES} expected", bytes.len())),
        Err(error) => Some(error.to_string()),
    }
}

fn bad_control(path: PathBuf, reason: String) -> EngineError {
    EngineError::BadFile { path, reason }
}

/// Reads until the buffer is full or the file ends.
fn read_full(file: &File, buffer: &mut [u8], start: u64) -> std::io::Result<usize> {
    let mut filled = 0;
    while filled < buffer.len() {
        match file.read_at(&mut buffer[filled..], start + filled as u64) {
            Ok(0) => break,
            Ok(read) => filled += read,
            Err(error) if error.kind() == ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    Ok(filled)
}

/// Asks the kernel to have the next extent ready; it is only a hint.
fn read_ahead(file: &File, start: u64, len: u64) {
    let _ = rustix::fs::fadvise(file, start, std::num::NonZeroU64::new(len), rustix::fs::Advice::WillNeed);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_torn_pg_control_is_read_again_into_what_is_stored() {
        let fault = |bytes: &[u8]| (bytes != b"whole").then(|| "torn".to_owned());
        let mut buffer = *b"whoXX";
        let mut reads = 0;
        let again = |buffer: &mut [u8]| {
            reads += 1;
            buffer.copy_from_slice(if reads < 3 { b"XXole" } else { b"whole" });
            Ok(5)
        };
        assert_eq!(whole_control(5, &mut buffer, fault, again), Ok(5));
        assert_eq!(&buffer, b"whole");
        assert_eq!(whole_control(4, &mut buffer, fault, |_| Ok(4)), Err("torn".to_owned()));
    }

    #[test]
    fn files_that_wal_does_not_restore_are_read_as_long_as_they_are() {
        let mut file = tempfile::tempfile().unwrap();
        std::io::Write::write_all(&mut file, &[7; 300]).unwrap();
        assert_eq!(present_len(&file, 100, None, 1000), 300, "rewritten since it was listed");
        assert_eq!(present_len(&file, 0, None, 1000), 300);
        assert_eq!(present_len(&file, 100, None, 250), 250, "a buffer is the most");
        let relation = super::super::listing::Relation { first_block: 0, content: PageContent::Relation };
        assert_eq!(present_len(&file, 100, Some(relation), 1000), 100, "replay extends it");
    }
}
