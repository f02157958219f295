//! The second look: every file is summed, compared with `backup_manifest`, cut into chunks and stored. One thread reads,
//! others compress and write packs.

use super::input::{Visitor, Wanted};
use super::survey::wal_name;
use crate::checksums::Checksum;
use crate::packing::{PackSink, Packing};
use crate::tar::{Member, MemberKind};
use crate::{Context, EngineError};
use pg_format::backup_manifest::ManifestFile;
use pg_format::exclude::{EntryKind, Rules, Verdict, classify};
use pg_format::page::{Checksums, PageCheck, check_page, page_lsn};
use pg_format::relpath::{Fork, RelFile};
use pg_format::{Lsn, WalFileName};
use repo::chunk::{ChunkEncoder, ChunkRef, EXTENT_PAGES, PageContent};
use repo::manifest::{DamagedPage, Owner};
use repo::map::{FileMap, Run};
use repo::pack::{ChunkPages, map_encoder};
use repo::{Compression, PackId};
use std::collections::{HashMap, HashSet};
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;
use tokio::runtime::Handle;

/// Files that `pg_verifybackup` leaves alone (`should_ignore_relpath` in `pg_verifybackup.c`), besides `pg_wal`.
const NOT_VERIFIED: [&[u8]; 4] = [b"backup_manifest", b"postgresql.auto.conf", b"recovery.signal", b"standby.signal"];

/// What the storing side is told.
pub(super) struct StoreSetup {
    pub(super) ctx: Context,
    pub(super) packing: Packing,
    pub(super) compression: Compression,
    pub(super) workers: usize,
    pub(super) page_size: usize,
    pub(super) relseg_blocks: u32,
    pub(super) checksums: bool,
    pub(super) start_lsn: Lsn,
    pub(super) rules: Rules,
    /// The files that the manifest has, when there is one.
    pub(super) expected: Option<HashMap<Vec<u8>, ManifestFile>>,
    /// Files of `pg_wal` that the backup is to carry.
    pub(super) carried: HashSet<WalFileName>,
    /// Where it is read from, for errors.
    pub(super) from: String,
}

/// Where a file's content went.
#[derive(Debug, Clone)]
pub(super) enum Stored {
    Zero,
    Chunk(PackId, ChunkRef),
    Map(PackId, ChunkRef),
}

/// What is to be written down.
#[derive(Debug, Clone)]
pub(super) enum What {
    Directory,
    Link(Vec<u8>),
    File { len: u64, pages: bool, wal: bool, stored: Stored },
}

/// One entry of the manifest to come.
#[derive(Debug, Clone)]
pub(super) struct Entry {
    pub(super) path: Vec<u8>,
    pub(super) mode: u32,
    pub(super) owner: u32,
    pub(super) mtime: u64,
    pub(super) what: What,
}

/// All that was stored.
#[derive(Default)]
pub(super) struct Outcome {
    pub(super) entries: Vec<Entry>,
    pub(super) owners: Vec<Owner>,
    /// Object size of each pack.
    pub(super) packs: HashMap<PackId, u64>,
    /// Stored bytes in use of each pack.
    pub(super) used: HashMap<PackId, u64>,
    pub(super) damaged: Vec<DamagedPage>,
    pub(super) pages: u64,
    pub(super) files: u64,
    pub(super) bytes: u64,
    pub(super) warnings: Vec<String>,
}

/// An extent on its way to a worker.
struct Piece {
    entry: usize,
    path: Arc<[u8]>,
    extent: u64,
    content: PageContent,
    bytes: Vec<u8>,
}

/// Where an extent went; none for zeros.
struct Placed {
    entry: usize,
    extent: u64,
    pages: u64,
    place: Option<(PackId, ChunkRef)>,
}

/// What a worker did.
struct Done {
    placed: Vec<Placed>,
    packs: HashMap<PackId, u64>,
}

/// A file whose bytes are coming.
struct Current {
    entry: usize,
    path: Arc<[u8]>,
    shown: Vec<u8>,
    len: u64,
    got: u64,
    sum: Option<(ManifestFile, Option<Checksum>)>,
    /// None when it is only verified.
    stored: Option<Content>,
}

/// How a file's pages are seen.
#[derive(Clone, Copy)]
struct Content {
    pages: PageContent,
    /// First block of a relation's file.
    first_block: Option<u32>,
}

/// Stores what it is shown.
pub(super) struct Store {
    setup: Arc<StoreSetup>,
    handle: Handle,
    sender: Option<SyncSender<Piece>>,
    workers: Vec<JoinHandle<Result<Done, EngineError>>>,
    outcome: Outcome,
    owner_index: HashMap<(String, String), u32>,
    verified: HashSet<Vec<u8>>,
    current: Option<Current>,
    extent: Vec<u8>,
    extent_number: u64,
}

impl Store {
    pub(super) fn new(setup: StoreSetup) -> Self {
        let setup = Arc::new(setup);
        let handle = Handle::current();
        let count = setup.workers.clamp(1, 64);
        let (sender, receiver) = sync_channel(2 * count);
        let receiver = Arc::new(Mutex::new(receiver));
        let start = |_| {
            let packs = setup.packing.sink(handle.clone());
            let (setup, receiver) = (setup.clone(), receiver.clone());
            std::thread::spawn(move || store_pieces(&setup, packs, &receiver))
        };
        Self {
            workers: (0..count).map(start).collect(),
            handle,
            sender: Some(sender),
            outcome: Outcome::default(),
            owner_index: HashMap::new(),
            verified: HashSet::new(),
            current: None,
            extent: Vec::new(),
            extent_number: 0,
            setup,
        }
    }

    fn refused(&self, path: &[u8], reason: &str) -> EngineError {
        EngineError::refused(
            format!("{}: {} {reason}", self.setup.from, String::from_utf8_lossy(path)),
            "the base backup is damaged or was changed: nothing was imported; pg_verifybackup says what else is wrong",
        )
    }

    fn owner(&mut self, member: &Member) -> u32 {
        let key = (member.user.clone(), member.group.clone());
        if let Some(index) = self.owner_index.get(&key) {
            return *index;
        }
        let index = self.outcome.owners.len() as u32;
        self.outcome.owners.push(Owner { user: key.0.clone(), group: key.1.clone() });
        self.owner_index.insert(key, index);
        index
    }

    fn add(&mut self, member: &Member, path: Vec<u8>, what: What) -> usize {
        let owner = self.owner(member);
        self.outcome.entries.push(Entry { path, mode: member.mode, owner, mtime: member.mtime, what });
        self.outcome.entries.len() - 1
    }

    /// What the manifest has of a file. One that it does not have is refused.
    fn expectation(&mut self, path: &[u8], len: u64) -> Result<Option<ManifestFile>, EngineError> {
        let Some(expected) = &self.setup.expected else { return Ok(None) };
        if NOT_VERIFIED.contains(&path) || path.starts_with(b"pg_wal/") {
            self.verified.insert(path.to_vec());
            return Ok(None);
        }
        let Some(file) = expected.get(path) else {
            return Err(self.refused(path, "is not in backup_manifest"));
        };
        if file.size_bytes != len {
            let reason = format!("has {len} bytes, backup_manifest says {}", file.size_bytes);
            return Err(self.refused(path, &reason));
        }
        let file = file.clone();
        self.verified.insert(path.to_vec());
        Ok(Some(file))
    }

    fn flush(&mut self) -> Result<(), EngineError> {
        let Some(current) = &self.current else { return Ok(()) };
        let Some(content) = current.stored else { return Ok(()) };
        if self.extent.is_empty() {
            return Ok(());
        }
        let bytes = std::mem::take(&mut self.extent);
        self.outcome.pages += bytes.len().div_ceil(self.setup.page_size) as u64;
        if let Some(first_block) = content.first_block {
            let first = first_block + (self.extent_number * EXTENT_PAGES) as u32;
            let path = [b"data/", current.shown.as_slice()].concat();
            check_pages(&self.setup, &path, first, &bytes, &mut self.outcome);
        }
        let (entry, path) = (current.entry, current.path.clone());
        let piece = Piece { entry, path, extent: self.extent_number, content: content.pages, bytes };
        self.extent_number += 1;
        match self.sender.as_ref().map(|sender| sender.send(piece)) {
            Some(Ok(())) => Ok(()),
            // A worker failed; its error is the one to tell.
            _ => Err(self.join().err().unwrap_or(EngineError::Cancelled)),
        }
    }

    fn join(&mut self) -> Result<Vec<Done>, EngineError> {
        drop(self.sender.take());
        let mut all = Vec::new();
        let mut failure = None;
        for worker in self.workers.drain(..) {
            match worker.join() {
                Ok(Ok(done)) => all.push(done),
                Ok(Err(error)) => failure = failure.or(Some(error)),
                Err(_) => {
                    let error = EngineError::Failed { reason: "a worker stopped unexpectedly".into(), hint: None };
                    failure = failure.or(Some(error));
                }
            }
        }
        failure.map_or(Ok(all), Err)
    }

    /// Ends the work after a failure: nothing may arrive in the repository later.
    pub(super) fn give_up(mut self) {
        let _ = self.join();
    }

    /// All was shown: writes the maps, and gives what there is.
    pub(super) fn finish(mut self) -> Result<Outcome, EngineError> {
        if let Some(expected) = &self.setup.expected
            && let Some(path) =
                expected.keys().find(|path| !self.verified.contains(*path) && !path.starts_with(b"pg_wal/"))
        {
            let error = self.refused(path, "is in backup_manifest and not there");
            self.give_up();
            return Err(error);
        }
        let mut placed: Vec<Placed> = Vec::new();
        for done in self.join()? {
            placed.extend(done.placed);
            self.outcome.packs.extend(done.packs);
        }
        placed.sort_by_key(|place| (place.entry, place.extent));
        let mut maps = self.setup.packing.sink(self.handle.clone());
        for parts in placed.chunk_by(|a, b| a.entry == b.entry) {
            let entry = &mut self.outcome.entries[parts[0].entry];
            let What::File { len, stored, .. } = &mut entry.what else { continue };
            let mut map = FileMap::new(self.setup.page_size as u32, *len);
            for part in parts {
                let from = part.place.map(|(pack, chunk)| {
                    *self.outcome.used.entry(pack).or_default() += u64::from(chunk.stored_len);
                    (map.add_chunk(pack, chunk), 0)
                });
                map.add_run(Run { from, pages: part.pages });
            }
            *stored = match (parts, map.chunks.is_empty()) {
                (_, true) => Stored::Zero,
                ([Placed { place: Some((pack, chunk)), .. }], _) => Stored::Chunk(*pack, *chunk),
                _ => {
                    let plain = map.encode();
                    let (pack, chunk) = maps.add(&entry.path, &ChunkPages::Map, &map_encoder().encode_plain(&plain))?;
                    *self.outcome.used.entry(pack).or_default() += u64::from(chunk.stored_len);
                    Stored::Map(pack, chunk)
                }
            };
        }
        self.outcome.packs.extend(maps.finish()?);
        self.outcome.entries.sort_by(|a, b| a.path.cmp(&b.path));
        self.outcome.entries.dedup_by(|a, b| a.path == b.path);
        Ok(self.outcome)
    }
}

/// Notes pages that fail their check and that replay will not write anew.
fn check_pages(setup: &StoreSetup, path: &[u8], first: u32, bytes: &[u8], outcome: &mut Outcome) {
    let sums = if setup.checksums { Checksums::On } else { Checksums::Off };
    for (page, block) in bytes.chunks_exact(setup.page_size).zip(first..) {
        let check = check_page(page, block, sums);
        // As pg_basebackup takes it: a page with content and no header is a new one.
        if check.is_ok() || check == PageCheck::NewWithContent || page_lsn(page).unwrap_or_default() >= setup.start_lsn
        {
            continue;
        }
        outcome.damaged.push(DamagedPage {
            path: String::from_utf8_lossy(path).into_owned(),
            relation: None,
            block,
            reason: match check {
                PageCheck::ChecksumMismatch { expected, actual } => {
                    format!("its checksum is {expected:04x}, its content gives {actual:04x}")
                }
                _ => "the page header is not valid".into(),
            },
        });
    }
}

fn relation(path: &[u8], relseg_blocks: u32) -> Option<(PageContent, u32)> {
    let file = RelFile::parse(std::str::from_utf8(path).ok()?).filter(|file| file.temp_backend.is_none())?;
    let content = match file.fork {
        Fork::Main | Fork::Init => PageContent::Relation,
        Fork::Fsm | Fork::Vm => PageContent::Other,
    };
    Some((content, file.first_block(relseg_blocks)?.0))
}

impl Visitor for Store {
    fn member(&mut self, member: &Member) -> Result<Wanted, EngineError> {
        let path = member.name.clone();
        let text = String::from_utf8_lossy(&path).into_owned();
        let in_backup = [b"data/", path.as_slice()].concat();
        match &member.kind {
            MemberKind::Directory => {
                if !matches!(classify(&text, EntryKind::Directory, &self.setup.rules), Verdict::Omit(_)) {
                    self.add(member, in_backup, What::Directory);
                }
                Ok(Wanted::Nothing)
            }
            MemberKind::Link(target) => {
                self.add(member, in_backup, What::Link(target.clone()));
                Ok(Wanted::Nothing)
            }
            MemberKind::File(len) => {
                let carried = wal_name(&path).filter(|name| self.setup.carried.contains(name));
                let is_wal = carried.is_some();
                let is_included = classify(&text, EntryKind::File, &self.setup.rules) == Verdict::Include;
                let relation = relation(&path, self.setup.relseg_blocks);
                let expected = self.expectation(&path, *len)?;
                let sum = expected.map(|file| {
                    let sum = file.checksum.as_ref().map(|(algorithm, _)| Checksum::new(*algorithm));
                    (file, sum)
                });
                let stored = (is_wal || is_included).then_some(Content {
                    pages: relation.map_or(PageContent::Other, |(content, _)| content),
                    first_block: relation.map(|(_, first)| first),
                });
                if stored.is_none() && sum.is_none() {
                    return Ok(Wanted::Nothing);
                }
                let to = carried.map_or(in_backup, |name| format!("wal/{name}").into_bytes());
                let entry = match stored {
                    Some(_) => {
                        self.outcome.files += u64::from(!is_wal);
                        self.outcome.bytes += if is_wal { 0 } else { *len };
                        let pages = relation.is_some();
                        let is_segment = is_wal && matches!(carried, Some(WalFileName::Segment(_)));
                        let what = What::File { len: *len, pages, wal: is_segment, stored: Stored::Zero };
                        self.add(member, to.clone(), what)
                    }
                    None => 0,
                };
                self.extent.clear();
                self.extent_number = 0;
                self.current = Some(Current { entry, path: to.into(), shown: path, len: *len, got: 0, sum, stored });
                Ok(Wanted::Bytes)
            }
        }
    }

    fn data(&mut self, mut bytes: &[u8]) -> Result<(), EngineError> {
        let extent_bytes = EXTENT_PAGES as usize * self.setup.page_size;
        let Some(current) = &mut self.current else { return Ok(()) };
        current.got += bytes.len() as u64;
        if let Some((_, Some(sum))) = &mut current.sum {
            sum.update(bytes);
        }
        self.setup.ctx.progress.advance(bytes.len() as u64);
        if current.stored.is_none() {
            return Ok(());
        }
        while !bytes.is_empty() {
            let take = bytes.len().min(extent_bytes - self.extent.len());
            self.extent.extend_from_slice(&bytes[..take]);
            bytes = &bytes[take..];
            if self.extent.len() == extent_bytes {
                self.flush()?;
            }
        }
        Ok(())
    }

    fn end(&mut self) -> Result<(), EngineError> {
        self.flush()?;
        let Some(current) = self.current.take() else { return Ok(()) };
        if current.got != current.len {
            return Err(self.refused(&current.shown, "is not as long as it was said to be"));
        }
        if let Some((file, Some(sum))) = current.sum
            && let Some((_, expected)) = &file.checksum
            && sum.finish() != *expected
        {
            return Err(self.refused(&current.shown, "is not what backup_manifest has the checksum of"));
        }
        Ok(())
    }
}

/// What one thread does that compresses and writes.
fn store_pieces(
    setup: &StoreSetup,
    mut packs: PackSink,
    receiver: &Mutex<Receiver<Piece>>,
) -> Result<Done, EngineError> {
    match place_pieces(setup, &mut packs, receiver) {
        Ok(placed) => Ok(Done { placed, packs: packs.finish()? }),
        Err(error) => {
            packs.give_up();
            Err(error)
        }
    }
}

fn place_pieces(
    setup: &StoreSetup,
    packs: &mut PackSink,
    receiver: &Mutex<Receiver<Piece>>,
) -> Result<Vec<Placed>, EngineError> {
    let mut encoder = ChunkEncoder::new(setup.compression);
    let mut placed = Vec::new();
    loop {
        let next = receiver.lock().unwrap_or_else(PoisonError::into_inner).recv();
        let Ok(piece) = next else { return Ok(placed) };
        setup.ctx.check()?;
        let pages = piece.bytes.len().div_ceil(setup.page_size) as u64;
        let chunk = encoder.encode(&piece.bytes, setup.page_size, piece.content);
        let place = if chunk.is_zero {
            None
        } else {
            let first = piece.extent * EXTENT_PAGES;
            Some(packs.add(&piece.path, &ChunkPages::Base { first }, &chunk)?)
        };
        placed.push(Placed { entry: piece.entry, extent: piece.extent, pages, place });
    }
}
