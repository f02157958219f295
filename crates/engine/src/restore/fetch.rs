//! The contents of a batch of files: read from packs in their order, decoded, and written where they belong.
//!
//! Stored chunks that lie next to each other are read in one range. A range is worked off by one worker: it opens each
//! file once, writes its pieces and goes on, so that neither open files nor memory grow with the backup. In which order
//! pieces come is [`super::round`]'s.

use super::damage::Damage;
use super::pieces::{Decoding, Stored};
pub(crate) use super::round::Batch;
use super::round::{Extents, Piece, Pieces, Round, RoundBuilder};
use crate::{Context, EngineError};
use bytes::Bytes;
use futures::{StreamExt, stream};
use repo::chunk::{ChunkDecoder, ChunkRef};
use repo::manifest::Manifest;
use repo::pack::PackReader;
use repo::{PackId, RepoError, map::FileMap};
use std::collections::HashMap;
use std::ops::Range;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use tokio::sync::{OnceCell, Semaphore, mpsc};

/// A range is closed when it has so many bytes.
const RANGE_BYTES_MAX: u64 = 8 << 20;
/// All ranges in flight together, stored and sealed.
const IN_FLIGHT_BYTES_MAX: u64 = 48 << 20;
/// Ranges that are read while the threads are busy with others.
const RANGES_AHEAD: usize = 2;
/// Ranges of the next round's scattered pieces that are read at once, while a round is written.
const HOLDS_AT_ONCE: usize = 4;
/// Threads that decode and write, for each worker: while one waits for the disk, another decodes.
const THREADS_PER_WORKER: usize = 2;
/// File maps that are read ahead.
const MAPS_AHEAD: usize = 8;
/// So many bytes that are not needed are read rather than asking twice.
const GAP_BYTES_MAX: u64 = 128 << 10;

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

/// A file of a batch, with its map and the map's packs as the manifest counts them.
type ReadMap = (u32, Result<(FileMap, Vec<u32>), RepoError>);

/// What becomes of the pieces of a round.
#[derive(Debug, Clone, Copy)]
enum Step {
    Hold,
    Write,
}

impl Step {
    fn pieces<T>(self, round: &Round<T>) -> &Pieces {
        match self {
            Self::Hold => &round.scattered,
            Self::Write => &round.whole,
        }
    }
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
        let in_flight = (threads + RANGES_AHEAD + HOLDS_AT_ONCE) as u64;
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
        let builder = batch.first_round();
        let maps = std::mem::take(&mut batch.maps);
        let files = Arc::new(batch.files);
        // Both go on beside each other, and must: what reads a map may be the one that opens a pack, for which all others
        // wait. So nothing waits for a round while such a read stands still.
        let (to_rounds, maps_read) = mpsc::channel(1);
        let read = self.read_maps(maps, &files, to_rounds);
        let (read, done) = tokio::join!(read, self.rounds(builder, maps_read, &files));
        done.and(read)
    }

    /// Reads maps, some ahead, and hands them on in their order. Ends early when nobody takes them.
    async fn read_maps<T: Destination>(
        &self,
        maps: Vec<(u32, ChunkRef)>,
        files: &[T],
        to: mpsc::Sender<ReadMap>,
    ) -> Result<(), EngineError> {
        let read = |(file, chunk): (u32, ChunkRef)| {
            let len = files[file as usize].len();
            async move { (file, self.read_map(&chunk, len).await) }
        };
        let mut reads = stream::iter(maps).map(read).buffered(MAPS_AHEAD);
        while let Some(read) = self.ctx.or_cancel(reads.next()).await? {
            if to.send(read).await.is_err() {
                break;
            }
        }
        Ok(())
    }

    async fn rounds<T: Destination>(
        &self,
        mut builder: RoundBuilder,
        mut maps: mpsc::Receiver<ReadMap>,
        files: &Arc<Vec<T>>,
    ) -> Result<(), EngineError> {
        let mut held = None;
        while let Some((file, map)) = maps.recv().await {
            match map {
                Ok((map, packs)) => {
                    for extent in Extents::of(file, &map, &packs, 0..map.len) {
                        builder.add(&extent);
                        if builder.is_full() {
                            let round = std::mem::take(&mut builder).build(files);
                            held = Some(self.next_round(held, round).await?);
                        }
                    }
                    builder.complete.push(file);
                }
                Err(error) if error.is_damage() || error.is_not_found() => {
                    self.note_damage(&error, std::iter::once(&files[file as usize]));
                }
                Err(error) => return Err(error.into()),
            }
        }
        let last = self.next_round(held, builder.build(files)).await?;
        self.write_round(&last).await
    }

    /// Reads what a round is to hold, while the one before it is written.
    async fn next_round<T: Destination>(
        &self,
        before: Option<Arc<Round<T>>>,
        round: Round<T>,
    ) -> Result<Arc<Round<T>>, EngineError> {
        let round = Arc::new(round);
        let write = async {
            match before {
                Some(before) => self.write_round(&before).await,
                None => Ok(()),
            }
        };
        let (written, held) = tokio::join!(write, self.step(&round, Step::Hold, HOLDS_AT_ONCE));
        written.and(held)?;
        Ok(round)
    }

    async fn write_round<T: Destination>(&self, round: &Arc<Round<T>>) -> Result<(), EngineError> {
        self.step(round, Step::Write, self.threads + RANGES_AHEAD).await?;
        round.done().try_for_each(|target| target.finish(&target.open()?))
    }

    async fn step<T: Destination>(&self, round: &Arc<Round<T>>, step: Step, at_once: usize) -> Result<(), EngineError> {
        let spans = self.spans(&step.pieces(round).pieces);
        let mut work = stream::iter(spans).map(|span| self.fetch(round, step, span)).buffer_unordered(at_once);
        while let Some(done) = self.ctx.or_cancel(work.next()).await? {
            done?;
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

    async fn fetch<T: Destination>(&self, round: &Arc<Round<T>>, step: Step, span: Span) -> Result<(), EngineError> {
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
                self.work_on(round, step, span, stored).await
            }
            Err(error) if error.is_damage() && span.pieces.len() > 1 => self.fetch_each(round, step, &span).await,
            Err(error) if error.is_damage() || error.is_not_found() => {
                self.note_pieces(round, step, &error, span.pieces);
                Ok(())
            }
            Err(error) => Err(error.into()),
        }
    }

    /// One by one, to know which pieces of a damaged range are good.
    async fn fetch_each<T: Destination>(
        &self,
        round: &Arc<Round<T>>,
        step: Step,
        span: &Span,
    ) -> Result<(), EngineError> {
        for index in span.pieces.clone() {
            self.ctx.check()?;
            let Piece { chunk, .. } = step.pieces(round).pieces[index];
            let (start, end) = (chunk.offset, chunk.offset + u64::from(chunk.stored_len));
            let read = match self.reader(span.pack).await {
                Ok(reader) => reader.read(start, end - start).await,
                Err(error) => Err(error),
            };
            match read {
                Ok(stored) => {
                    let one = Span { pack: span.pack, start, end, pieces: index..index + 1 };
                    self.work_on(round, step, one, stored).await?;
                }
                Err(error) if error.is_damage() || error.is_not_found() => {
                    self.note_pieces(round, step, &error, index..index + 1);
                }
                Err(error) => return Err(error.into()),
            }
        }
        Ok(())
    }

    fn note_pieces<T: Destination>(&self, round: &Round<T>, step: Step, error: &RepoError, pieces: Range<usize>) {
        let all = step.pieces(round);
        for piece in &all.pieces[pieces] {
            self.note_damage(error, all.uses(piece).iter().map(|place| &round.files[place.file as usize]));
        }
    }

    /// Decodes pieces and holds or writes them, on a thread that may block.
    async fn work_on<T: Destination>(
        &self,
        round: &Arc<Round<T>>,
        step: Step,
        span: Span,
        stored: Bytes,
    ) -> Result<(), EngineError> {
        let permit = self.running.clone().acquire_owned().await.map_err(|error| lost(&error))?;
        let (decoders, progress) = (self.decoders.clone(), self.ctx.progress.clone());
        let there = round.clone();
        let work = tokio::task::spawn_blocking(move || {
            let _permit = permit;
            let stored = Stored { start: span.start, bytes: &stored };
            let pop = || decoders.lock().unwrap_or_else(PoisonError::into_inner).pop();
            let mut decoding = pop().unwrap_or_default();
            let result = match step {
                Step::Hold => decoding.hold(&there, &stored, span.pieces),
                Step::Write => decoding.write(&there, &stored, span.pieces, |bytes| progress.advance(bytes)),
            };
            decoders.lock().unwrap_or_else(PoisonError::into_inner).push(decoding);
            result
        });
        let bad = work.await.map_err(|error| lost(&error))??;
        for (index, reason) in bad {
            let path = self.cluster.name().pack(self.manifest.packs()[span.pack as usize].id);
            let offset = step.pieces(round).pieces[index].chunk.offset;
            let error = RepoError::Damaged { path, reason: format!("chunk at {offset}: {reason}") };
            self.note_pieces(round, step, &error, index..index + 1);
        }
        Ok(())
    }
}

fn lost(error: &dyn std::fmt::Display) -> EngineError {
    EngineError::Failed { reason: format!("a worker ended unexpectedly: {error}"), hint: None }
}
