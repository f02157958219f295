//! From bytes to chunks in data objects. One for each worker: it compresses a piece while the next one arrives, and makes
//! an object durable while the next one fills.

use crate::DumpError;
use repo::chunk::ChunkRef;
use repo::dump::{DATA_OBJECT_LEN, DumpDataWriter, DumpEncoder, DumpObject, EncodedPiece};
use repo::{BackupId, Cluster, Compression, RepoError};
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use tokio::task::{JoinHandle, JoinSet};

/// Plain bytes of a chunk.
const PIECE: usize = 1 << 20;
/// Objects of one sink that may be on their way to being durable while it fills the next.
const OBJECTS_IN_FLIGHT: usize = 2;

/// What all sinks of a dump share.
pub(crate) struct Sinks {
    cluster: Cluster,
    dump: BackupId,
    compression: Compression,
    next_object: AtomicU32,
    plain: AtomicU64,
    stored: AtomicU64,
}

impl Sinks {
    pub(crate) fn new(cluster: Cluster, dump: BackupId, compression: Compression) -> Arc<Self> {
        let (next_object, plain, stored) = (AtomicU32::new(1), AtomicU64::new(0), AtomicU64::new(0));
        Arc::new(Self { cluster, dump, compression, next_object, plain, stored })
    }

    /// A worker's own.
    pub(crate) fn sink(self: &Arc<Self>) -> Sink {
        Sink {
            shared: self.clone(),
            open: None,
            finishing: JoinSet::new(),
            objects: Vec::new(),
            encoder: Some(DumpEncoder::new(self.compression)),
            encoding: None,
            buffer: Vec::with_capacity(PIECE),
            chunks: Vec::new(),
            plain: 0,
        }
    }

    /// Plain and stored bytes so far.
    pub(crate) fn bytes(&self) -> (u64, u64) {
        (self.plain.load(Ordering::Relaxed), self.stored.load(Ordering::Relaxed))
    }
}

type Encoding = JoinHandle<(DumpEncoder, EncodedPiece, Vec<u8>)>;

/// A stream that was written.
#[derive(Debug, Default)]
pub(crate) struct Written {
    pub(crate) chunks: Vec<ChunkRef>,
    pub(crate) bytes: u64,
}

/// Takes streams, one after the other.
pub(crate) struct Sink {
    shared: Arc<Sinks>,
    open: Option<DumpDataWriter>,
    /// Dropped with the sink: what is not durable then never becomes visible.
    finishing: JoinSet<Result<DumpObject, RepoError>>,
    objects: Vec<DumpObject>,
    encoder: Option<DumpEncoder>,
    encoding: Option<Encoding>,
    buffer: Vec<u8>,
    chunks: Vec<ChunkRef>,
    plain: u64,
}

impl Sink {
    /// Adds to the stream where there is room at once; else says that [`Sink::write`] must.
    #[inline]
    pub(crate) fn put(&mut self, bytes: &[u8]) -> bool {
        let fits = bytes.len() < PIECE - self.buffer.len();
        if fits {
            self.buffer.extend_from_slice(bytes);
        }
        fits
    }

    /// Adds to the stream.
    pub(crate) async fn write(&mut self, mut bytes: &[u8]) -> Result<(), DumpError> {
        while !bytes.is_empty() {
            let (now, later) = bytes.split_at(bytes.len().min(PIECE - self.buffer.len()));
            self.buffer.extend_from_slice(now);
            bytes = later;
            if self.buffer.len() == PIECE {
                self.piece().await?;
            }
        }
        Ok(())
    }

    /// Ends the stream.
    pub(crate) async fn end(&mut self) -> Result<Written, DumpError> {
        if !self.buffer.is_empty() {
            self.piece().await?;
        }
        self.place().await?;
        Ok(Written { chunks: std::mem::take(&mut self.chunks), bytes: std::mem::take(&mut self.plain) })
    }

    /// Ends the last object; gives all, once they are durable.
    pub(crate) async fn finish(mut self) -> Result<Vec<DumpObject>, DumpError> {
        if let Some(open) = self.open.take() {
            self.close(open);
        }
        self.settle(0).await?;
        Ok(self.objects)
    }

    /// Hands the buffer over to be compressed, once the one before it has its place.
    async fn piece(&mut self) -> Result<(), DumpError> {
        let spare = self.place().await?;
        let plain = std::mem::replace(&mut self.buffer, spare);
        self.plain += plain.len() as u64;
        let mut encoder = self.encoder.take().unwrap_or_else(|| DumpEncoder::new(self.shared.compression));
        self.encoding = Some(tokio::task::spawn_blocking(move || {
            let piece = encoder.encode(&plain);
            (encoder, piece, plain)
        }));
        Ok(())
    }

    /// Waits for the piece that is being compressed and stores it; gives its memory back.
    async fn place(&mut self) -> Result<Vec<u8>, DumpError> {
        let Some(encoding) = self.encoding.take() else { return Ok(Vec::with_capacity(PIECE)) };
        let (encoder, piece, mut plain) = encoding
            .await
            .map_err(|panic| DumpError::Failed { reason: format!("compressing stopped: {panic}"), hint: None })?;
        self.encoder = Some(encoder);
        self.shared.plain.fetch_add(plain.len() as u64, Ordering::Relaxed);
        self.shared.stored.fetch_add(piece.stored_len(), Ordering::Relaxed);
        let mut object = match self.open.take() {
            Some(open) => open,
            None => {
                let number = self.shared.next_object.fetch_add(1, Ordering::Relaxed);
                self.shared.cluster.create_dump_data(self.shared.dump, number).await?
            }
        };
        self.chunks.push(object.add(&piece).await?);
        if object.len() >= DATA_OBJECT_LEN {
            self.close(object);
            self.settle(OBJECTS_IN_FLIGHT).await?;
        } else {
            self.open = Some(object);
        }
        plain.clear();
        Ok(plain)
    }

    fn close(&mut self, object: DumpDataWriter) {
        let number = object.number();
        self.finishing.spawn(async move { Ok(DumpObject { number, size: object.finish().await? }) });
    }

    /// Waits until no more than `left` objects are on their way.
    async fn settle(&mut self, left: usize) -> Result<(), DumpError> {
        while self.finishing.len() > left {
            let Some(done) = self.finishing.join_next().await else { break };
            let object = done.map_err(|panic| DumpError::Failed {
                reason: format!("writing a data object stopped unexpectedly: {panic}"),
                hint: None,
            })??;
            self.objects.push(object);
        }
        Ok(())
    }
}
