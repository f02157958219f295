//! The contents of a batch of files: read from packs in their order, decoded, and written where they belong.
//!
//! Stored chunks that lie next to each other are read in one range. A range is worked off by one worker: it opens each
//! file once, writes its pieces and goes on, so that neither open files nor memory grow with the backup.

use super::target::AlignedBuffer;
use crate::{Context, EngineError};
use bytes::Bytes;
use futures::{StreamExt, stream};
use repo::chunk::{ChunkDecoder, ChunkRef};
use repo::manifest::Manifest;
use repo::pack::PackReader;
use repo::{PackId, RepoError, map::FileMap};
use std::cmp::Reverse;
use std::collections::HashMap;
use std::ops::Range;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use tokio::sync::{OnceCell, Semaphore};

/// A range is closed when it has so many bytes.
const RANGE_BYTES_MAX: u64 = 8 << 20;
/// All ranges in flight together, stored and sealed.
const IN_FLIGHT_BYTES_MAX: u64 = 64 << 20;
/// Ranges that are read while the threads are busy with others.
const RANGES_AHEAD: usize = 2;
/// Threads that decode and write, for each worker: while one waits for the disk, another decodes.
const THREADS_PER_WORKER: usize = 2;
/// So many bytes that are not needed are read rather than asking twice.
const GAP_BYTES_MAX: u64 = 128 << 10;
/// Damaged objects and files that are kept for the error.
const DAMAGE_SHOWN_MAX: usize = 200;

/// Where the bytes of one file go as they come in, in any order and from several threads.
pub(crate) trait Destination: Send + Sync + 'static {
    /// What is held while pieces are written one after the other.
    type Open;

    /// The file's path in the backup, for errors.
    fn name(&self) -> &[u8];
    /// The file's length.
    fn len(&self) -> u64;
    /// Pieces that are not in yet.
    fn left(&self) -> &AtomicU32;
    /// Makes ready for writing.
    fn open(&self) -> Result<Self::Open, EngineError>;
    /// Writes bytes at their place in the file.
    fn write(&self, open: &mut Self::Open, bytes: &[u8], at: u64) -> Result<(), EngineError>;
    /// So many pieces were written, all of them in this range of the file.
    fn written(&self, open: Self::Open, range: Range<u64>, pieces: u32) -> Result<(), EngineError>;
    /// All is in, or nothing is to come.
    fn finish(&self, open: &Self::Open) -> Result<(), EngineError>;
}

/// Bytes of a chunk that go to a place in a file.
#[derive(Debug, Clone, Copy)]
struct Use {
    /// Index of the file in its batch.
    file: u32,
    /// Where in the file.
    at: u64,
    /// Where in the chunk's plain bytes.
    from: u32,
    /// How many.
    len: u32,
}

/// A chunk that is needed, and where its pages go: `uses` of the batch.
#[derive(Debug, Clone, Copy)]
struct Piece {
    chunk: ChunkRef,
    first_use: u32,
    uses: u32,
}

/// Files whose contents are fetched together.
pub(crate) struct Batch<T> {
    files: Vec<T>,
    pieces: Vec<Piece>,
    uses: Vec<Use>,
    /// File maps that are to be read first: the file, and where its map lies.
    maps: Vec<(u32, ChunkRef)>,
}

impl<T> Default for Batch<T> {
    fn default() -> Self {
        Self { files: Vec::new(), pieces: Vec::new(), uses: Vec::new(), maps: Vec::new() }
    }
}

impl<T: Destination> Batch<T> {
    /// Whether it is large enough to be worked off: about 16 MiB of bookkeeping.
    pub(crate) fn is_full(&self) -> bool {
        // A map stands for up to 2048 pieces.
        self.files.len() >= 20_000 || self.pieces.len() + self.maps.len() * 2048 >= 120_000
    }

    /// Adds a file that is one chunk.
    pub(crate) fn add_chunk(&mut self, file: T, chunk: ChunkRef) {
        let index = self.files.len() as u32;
        self.add_piece(chunk, &[Use { file: index, at: 0, from: 0, len: chunk.plain_len }]);
        self.files.push(file);
    }

    /// Adds a file whose map must be read.
    pub(crate) fn add_map(&mut self, file: T, map: ChunkRef) {
        self.maps.push((self.files.len() as u32, map));
        self.files.push(file);
    }

    fn add_piece(&mut self, chunk: ChunkRef, uses: &[Use]) {
        self.pieces.push(Piece { chunk, first_use: self.uses.len() as u32, uses: uses.len() as u32 });
        self.uses.extend_from_slice(uses);
    }

    /// Adds a part of a file whose map was read; `packs` are those of the map, as the manifest counts them.
    pub(crate) fn add_part(&mut self, file: T, map: &FileMap, packs: &[u32], part: Range<u64>) {
        let index = self.files.len() as u32;
        self.files.push(file);
        self.add_mapped(index, map, packs, part);
    }

    /// Adds the pieces that a map names for a part of the file.
    fn add_mapped(&mut self, file: u32, map: &FileMap, packs: &[u32], part: Range<u64>) {
        let page = u64::from(map.page_size);
        let mut by_chunk: Vec<(u32, Use)> = Vec::new();
        let mut at = 0;
        for run in &map.runs {
            let len = (run.pages * page).min(map.len - at);
            let (start, end) = (at.max(part.start), (at + len).min(part.end));
            if let Some((chunk, slot)) = run.from.filter(|_| start < end) {
                let from = (u64::from(slot) * page + (start - at)) as u32;
                by_chunk.push((chunk, Use { file, at: start, from, len: (end - start) as u32 }));
            }
            at += len;
        }
        // Stable: the pages of a chunk stay in the order of the file.
        by_chunk.sort_by_key(|(chunk, _)| *chunk);
        let mut count = 0;
        for group in by_chunk.chunk_by(|(a, _), (b, _)| a == b) {
            let chunk = map.chunks[group[0].0 as usize];
            let uses: Vec<Use> = group.iter().map(|(_, place)| *place).collect();
            self.add_piece(ChunkRef { pack: packs[chunk.pack as usize], ..chunk }, &uses);
            count += 1;
        }
        self.files[file as usize].left().store(count, Ordering::Relaxed);
    }
}

/// What turned out to be damaged: object, what is wrong, files that need it.
#[derive(Debug, Default)]
pub(crate) struct Damage {
    found: Vec<(String, Vec<String>)>,
    files: u64,
}

impl Damage {
    fn add<'a, T: Destination>(&mut self, error: &RepoError, files: impl Iterator<Item = &'a T>) {
        let text = error.to_string();
        let index = self.found.iter().position(|(known, _)| *known == text).unwrap_or_else(|| {
            self.found.push((text, Vec::new()));
            self.found.len() - 1
        });
        for file in files {
            self.files += 1;
            let names = &mut self.found[index].1;
            let name = String::from_utf8_lossy(file.name()).into_owned();
            if names.len() < DAMAGE_SHOWN_MAX && !names.contains(&name) {
                names.push(name);
            }
        }
        self.found.truncate(DAMAGE_SHOWN_MAX);
    }

    /// The damage in words; `None` without any.
    pub(crate) fn text(&self) -> Option<String> {
        const FILES: usize = 3;
        if self.found.is_empty() {
            return None;
        }
        let one = |(error, files): &(String, Vec<String>)| {
            let shown = files.iter().take(FILES).cloned().collect::<Vec<_>>().join(", ");
            let more =
                if files.len() > FILES { format!(" and {} more files", files.len() - FILES) } else { String::new() };
            format!("{error} (needed for {shown}{more})")
        };
        Some(self.found.iter().map(one).collect::<Vec<_>>().join("; "))
    }
}

/// A decoder with its buffer, handed from one piece of work to the next.
type Decoding = (ChunkDecoder, AlignedBuffer);

/// Fetches batches of one backup.
pub(crate) struct Fetcher<'a> {
    ctx: &'a Context,
    cluster: &'a repo::Cluster,
    manifest: &'a Manifest,
    readers: Vec<OnceCell<Arc<PackReader>>>,
    pack_index: HashMap<PackId, u32>,
    threads: usize,
    range_bytes: u64,
    decoders: Arc<Mutex<Vec<Decoding>>>,
    running: Arc<Semaphore>,
    damage: Mutex<Damage>,
    fetched: AtomicU64,
}

/// Pieces that are read with one range.
struct Span {
    pack: u32,
    start: u64,
    end: u64,
    pieces: Range<usize>,
}

impl<'a> Fetcher<'a> {
    pub(crate) fn new(ctx: &'a Context, cluster: &'a repo::Cluster, manifest: &'a Manifest, workers: usize) -> Self {
        let threads = workers * THREADS_PER_WORKER;
        let in_flight = threads as u64 + RANGES_AHEAD as u64;
        Self {
            ctx,
            cluster,
            manifest,
            readers: manifest.packs().iter().map(|_| OnceCell::new()).collect(),
            pack_index: manifest.packs().iter().enumerate().map(|(index, pack)| (pack.id, index as u32)).collect(),
            threads,
            // Each range is there twice for a moment: as it is stored, and opened.
            range_bytes: (IN_FLIGHT_BYTES_MAX / (2 * in_flight)).min(RANGE_BYTES_MAX),
            decoders: Arc::default(),
            running: Arc::new(Semaphore::new(threads)),
            damage: Mutex::default(),
            fetched: AtomicU64::new(0),
        }
    }

    /// Stored bytes read so far.
    pub(crate) fn fetched_bytes(&self) -> u64 {
        self.fetched.load(Ordering::Relaxed)
    }

    /// All damage that was met.
    pub(crate) fn damage_text(&self) -> Option<String> {
        self.damage.lock().unwrap_or_else(PoisonError::into_inner).text()
    }

    async fn reader(&self, pack: u32) -> Result<&Arc<PackReader>, RepoError> {
        let uses = self.manifest.packs()[pack as usize];
        self.readers[pack as usize]
            .get_or_try_init(|| async { Ok(Arc::new(self.cluster.open_pack(uses.id, uses.size).await?)) })
            .await
    }

    /// Reads one chunk and checks it.
    pub(crate) async fn read_chunk(&self, chunk: &ChunkRef) -> Result<Vec<u8>, RepoError> {
        let reader = self.reader(chunk.pack).await?;
        let stored = reader.read(chunk.offset, chunk.stored_len.into()).await?;
        self.fetched.fetch_add(stored.len() as u64, Ordering::Relaxed);
        let mut plain = Vec::new();
        ChunkDecoder::default().decode(&stored, chunk, &mut plain).map_err(|error| RepoError::Damaged {
            path: reader.object().name().clone(),
            reason: format!("chunk at {}: {}", chunk.offset, error.0),
        })?;
        Ok(plain)
    }

    fn note_damage<'t, T: Destination>(&self, error: &RepoError, files: impl Iterator<Item = &'t T>) {
        self.damage.lock().unwrap_or_else(PoisonError::into_inner).add(error, files);
    }

    /// Works off a batch. Damage is noted and goes on; anything else ends it.
    pub(crate) async fn run<T: Destination>(&self, batch: Batch<T>) -> Result<(), EngineError> {
        let result = self.work_off(batch).await;
        if result.is_err() {
            // What is being written must have ended before anybody looks at the files, or removes them.
            let _ = self.running.acquire_many(self.threads as u32).await;
        }
        result
    }

    async fn work_off<T: Destination>(&self, mut batch: Batch<T>) -> Result<(), EngineError> {
        self.read_maps(&mut batch).await?;
        // The newest packs first: what they hold of a file lies here and there in it, and waits in the page cache until
        // the older and larger pieces around it come. Then all is written to the disk in one go.
        batch.pieces.sort_by_key(|piece| (Reverse(piece.chunk.pack), piece.chunk.offset));
        let spans = self.spans(&batch.pieces);
        let batch = Arc::new(batch);
        let mut work = stream::iter(spans)
            .map(|span| self.fetch(batch.clone(), span))
            .buffer_unordered(self.threads + RANGES_AHEAD);
        while let Some(done) = self.ctx.or_cancel(work.next()).await? {
            done?;
        }
        Ok(())
    }

    async fn read_maps<T: Destination>(&self, batch: &mut Batch<T>) -> Result<(), EngineError> {
        const AT_ONCE: usize = 16;
        let maps = std::mem::take(&mut batch.maps);
        let lens: Vec<u64> = maps.iter().map(|(file, _)| batch.files[*file as usize].len()).collect();
        let read =
            |((file, chunk), len): ((u32, ChunkRef), u64)| async move { (file, self.read_map(&chunk, len).await) };
        let mut reads = stream::iter(maps.into_iter().zip(lens)).map(read).buffered(AT_ONCE);
        while let Some((file, map)) = self.ctx.or_cancel(reads.next()).await? {
            match map {
                Ok((map, packs)) => {
                    batch.add_mapped(file, &map, &packs, 0..map.len);
                    let target = &batch.files[file as usize];
                    if target.left().load(Ordering::Relaxed) == 0 {
                        target.finish(&target.open()?)?;
                    }
                }
                Err(error) if error.is_damage() || error.is_not_found() => {
                    self.note_damage(&error, std::iter::once(&batch.files[file as usize]));
                }
                Err(error) => return Err(error.into()),
            }
        }
        Ok(())
    }

    /// Reads the map of a file of `len` bytes, and its packs as the manifest counts them.
    pub(crate) async fn read_map(&self, chunk: &ChunkRef, len: u64) -> Result<(FileMap, Vec<u32>), RepoError> {
        let damaged = |reason: String| RepoError::Damaged {
            path: self.cluster.name().pack(self.manifest.packs()[chunk.pack as usize].id),
            reason,
        };
        let plain = self.read_chunk(chunk).await?;
        let map = FileMap::decode(&plain).map_err(|error| damaged(format!("file map: {}", error.0)))?;
        if map.len != len {
            return Err(damaged(format!("file map is of a file of {} bytes, not {len}", map.len)));
        }
        let packs: Option<Vec<u32>> = map.packs.iter().map(|pack| self.pack_index.get(pack).copied()).collect();
        let packs = packs.ok_or_else(|| damaged("file map names a pack that the manifest does not".into()))?;
        Ok((map, packs))
    }

    fn spans(&self, pieces: &[Piece]) -> Vec<Span> {
        let mut spans: Vec<Span> = Vec::new();
        for (index, piece) in pieces.iter().enumerate() {
            let chunk = &piece.chunk;
            let end = chunk.offset + u64::from(chunk.stored_len);
            if let Some(last) = spans.last_mut()
                && last.pack == chunk.pack
                && chunk.offset <= last.end + GAP_BYTES_MAX
                && end.max(last.end) - last.start <= self.range_bytes
            {
                last.end = last.end.max(end);
                last.pieces.end = index + 1;
            } else {
                spans.push(Span { pack: chunk.pack, start: chunk.offset, end, pieces: index..index + 1 });
            }
        }
        spans
    }

    async fn fetch<T: Destination>(&self, batch: Arc<Batch<T>>, span: Span) -> Result<(), EngineError> {
        self.ctx.check()?;
        let read = match self.reader(span.pack).await {
            Ok(reader) => {
                // A task of its own: ranges are unsealed in parallel.
                let (reader, start, len) = (reader.clone(), span.start, span.end - span.start);
                tokio::spawn(async move { reader.read(start, len).await }).await.map_err(|error| lost(&error))?
            }
            Err(error) => Err(error),
        };
        match read {
            Ok(stored) => {
                self.fetched.fetch_add(stored.len() as u64, Ordering::Relaxed);
                self.write(batch, span.pack, span.start, stored, span.pieces).await
            }
            Err(error) if error.is_damage() && span.pieces.len() > 1 => self.fetch_each(batch, &span).await,
            Err(error) if error.is_damage() || error.is_not_found() => {
                self.note_pieces(&batch, &error, span.pieces);
                Ok(())
            }
            Err(error) => Err(error.into()),
        }
    }

    /// One by one, to know which pieces of a damaged range are good.
    async fn fetch_each<T: Destination>(&self, batch: Arc<Batch<T>>, span: &Span) -> Result<(), EngineError> {
        for index in span.pieces.clone() {
            self.ctx.check()?;
            let chunk = batch.pieces[index].chunk;
            let read = match self.reader(span.pack).await {
                Ok(reader) => reader.read(chunk.offset, chunk.stored_len.into()).await,
                Err(error) => Err(error),
            };
            match read {
                Ok(stored) => self.write(batch.clone(), span.pack, chunk.offset, stored, index..index + 1).await?,
                Err(error) if error.is_damage() || error.is_not_found() => {
                    self.note_pieces(&batch, &error, index..index + 1);
                }
                Err(error) => return Err(error.into()),
            }
        }
        Ok(())
    }

    fn note_pieces<T: Destination>(&self, batch: &Batch<T>, error: &RepoError, pieces: Range<usize>) {
        for piece in &batch.pieces[pieces] {
            let uses = &batch.uses[piece.first_use as usize..(piece.first_use + piece.uses) as usize];
            self.note_damage(error, uses.iter().map(|place| &batch.files[place.file as usize]));
        }
    }

    /// Decodes pieces and writes them, on a thread that may block.
    async fn write<T: Destination>(
        &self,
        batch: Arc<Batch<T>>,
        pack: u32,
        start: u64,
        stored: Bytes,
        pieces: Range<usize>,
    ) -> Result<(), EngineError> {
        let permit = self.running.clone().acquire_owned().await.map_err(|error| lost(&error))?;
        let (decoders, progress) = (self.decoders.clone(), self.ctx.progress.clone());
        let batch_there = batch.clone();
        let work = tokio::task::spawn_blocking(move || {
            let _permit = permit;
            let pop = || decoders.lock().unwrap_or_else(PoisonError::into_inner).pop();
            let (mut decoder, mut plain) = pop().unwrap_or_default();
            let result = write_pieces(&batch_there, start, &stored, pieces, &mut decoder, &mut plain, &*progress);
            decoders.lock().unwrap_or_else(PoisonError::into_inner).push((decoder, plain));
            result
        });
        let bad = work.await.map_err(|error| lost(&error))??;
        for (index, reason) in bad {
            let path = self.cluster.name().pack(self.manifest.packs()[pack as usize].id);
            let offset = batch.pieces[index].chunk.offset;
            let error = RepoError::Damaged { path, reason: format!("chunk at {offset}: {reason}") };
            self.note_pieces(&batch, &error, index..index + 1);
        }
        Ok(())
    }
}

fn lost(error: &dyn std::fmt::Display) -> EngineError {
    EngineError::Failed { reason: format!("a worker ended unexpectedly: {error}"), hint: None }
}

/// The file that is open, and what was written to it.
struct Open<'a, T: Destination> {
    target: &'a T,
    index: u32,
    file: T::Open,
    pieces: u32,
    start: u64,
    end: u64,
}

impl<T: Destination> Open<'_, T> {
    fn close(self) -> Result<(), EngineError> {
        self.target.written(self.file, self.start..self.end, self.pieces)
    }
}

/// Writes the pieces of a range; gives those that are damaged.
fn write_pieces<T: Destination>(
    batch: &Batch<T>,
    start: u64,
    stored: &[u8],
    pieces: Range<usize>,
    decoder: &mut ChunkDecoder,
    plain: &mut AlignedBuffer,
    progress: &dyn crate::Progress,
) -> Result<Vec<(usize, String)>, EngineError> {
    let mut bad = Vec::new();
    let mut open: Option<Open<'_, T>> = None;
    for index in pieces {
        let Piece { chunk, first_use, uses } = batch.pieces[index];
        let from = (chunk.offset - start) as usize;
        let block = &stored[from..from + chunk.stored_len as usize];
        let plain = plain.get(chunk.plain_len as usize);
        if let Err(error) = decoder.decode_into(block, &chunk, plain) {
            bad.push((index, error.0));
            continue;
        }
        let uses = &batch.uses[first_use as usize..(first_use + uses) as usize];
        for (nth, place) in uses.iter().enumerate() {
            if open.as_ref().is_none_or(|open| open.index != place.file) {
                open.take().map_or(Ok(()), Open::close)?;
                let target = &batch.files[place.file as usize];
                let file = target.open()?;
                open = Some(Open { target, index: place.file, file, pieces: 0, start: place.at, end: place.at });
            }
            if let Some(open) = &mut open {
                let bytes = &plain[place.from as usize..(place.from + place.len) as usize];
                open.target.write(&mut open.file, bytes, place.at)?;
                open.start = open.start.min(place.at);
                open.end = open.end.max(place.at + bytes.len() as u64);
                // All uses of a piece are of one file; it is done with the last one.
                open.pieces += u32::from(nth + 1 == uses.len());
                progress.advance(bytes.len() as u64);
            }
        }
    }
    open.take().map_or(Ok(()), Open::close)?;
    Ok(bad)
}
