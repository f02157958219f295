//! Streams of a dump, read back: pieces in order, a few of them ahead.

use crate::DumpError;
use futures::{Stream, StreamExt};
use repo::chunk::{ChunkDecoder, ChunkRef};
use repo::dump::{DumpDataReader, DumpManifest};
use repo::{Cluster, RepoError};
use std::sync::{Arc, Mutex, PoisonError};
use tokio::sync::OnceCell;

/// Pieces of one stream that are read at the same time.
const AHEAD: usize = 3;
/// A stream that is read into memory whole.
const WHOLE_MAX: u64 = 1 << 30;

/// Reads the streams of one dump. Cheap to clone.
#[derive(Clone)]
pub struct StreamReader {
    shared: Arc<Shared>,
}

struct Shared {
    cluster: Cluster,
    manifest: DumpManifest,
    objects: Vec<OnceCell<DumpDataReader>>,
    /// Those that nobody uses now: as many as pieces were read at the same time.
    decoders: Mutex<Vec<ChunkDecoder>>,
}

impl StreamReader {
    /// Of an opened dump.
    pub fn new(cluster: Cluster, manifest: DumpManifest) -> Self {
        let objects = manifest.objects.iter().map(|_| OnceCell::new()).collect();
        Self { shared: Arc::new(Shared { cluster, manifest, objects, decoders: Mutex::default() }) }
    }

    /// The dump.
    pub fn manifest(&self) -> &DumpManifest {
        &self.shared.manifest
    }

    /// The pieces of a stream, in order, each checked against its hash. `stream` is one of the manifest's.
    pub fn pieces(&self, stream: u32) -> impl Stream<Item = Result<Vec<u8>, DumpError>> + Send + Unpin + use<> {
        let chunks = self.shared.manifest.streams.get(stream as usize).cloned().unwrap_or_default();
        let shared = self.shared.clone();
        let read = futures::stream::iter(chunks).map(move |chunk| {
            let shared = shared.clone();
            // A task of its own: decompressing goes on while the piece before is handed on.
            let task = tokio::spawn(async move { shared.read(&chunk).await });
            async move {
                let read = task.await.map_err(|panic| DumpError::Failed {
                    reason: format!("reading stopped unexpectedly: {panic}"),
                    hint: None,
                })?;
                read.map_err(DumpError::from)
            }
        });
        Box::pin(read.buffered(AHEAD))
    }

    /// A stream in memory: definitions.
    pub async fn whole(&self, stream: u32) -> Result<Vec<u8>, DumpError> {
        let len = self.manifest().stream_len(stream);
        if len > WHOLE_MAX {
            return Err(DumpError::Failed { reason: format!("definitions of {len} bytes are too many"), hint: None });
        }
        let mut whole = Vec::new();
        let mut pieces = self.pieces(stream);
        while let Some(piece) = pieces.next().await {
            whole.extend_from_slice(&piece?);
        }
        Ok(whole)
    }
}

impl Shared {
    async fn read(&self, chunk: &ChunkRef) -> Result<Vec<u8>, RepoError> {
        let index = chunk.pack as usize;
        let object = self.manifest.objects[index];
        let open = || self.cluster.open_dump_data(self.manifest.facts.dump, object);
        let object = self.objects[index].get_or_try_init(open).await?;
        let decoders = || self.decoders.lock().unwrap_or_else(PoisonError::into_inner);
        let mut decoder = decoders().pop().unwrap_or_default();
        let read = object.read_with(chunk, &mut decoder).await;
        decoders().push(decoder);
        read
    }
}
