//! Data objects: chunks of streams, back to back.

use super::PIECE_MAX;
use crate::block::{BlockEncoder, Compression};
use crate::chunk::{ChunkDecoder, ChunkRef};
use crate::coding::Malformed;
use crate::{ObjectReader, ObjectSink, RepoError};
use bytes::Bytes;

/// Compresses and hashes pieces of streams. One for each thread; it keeps its memory.
pub struct DumpEncoder {
    blocks: BlockEncoder,
}

/// A piece that is ready to be stored.
#[derive(Debug, Clone)]
pub struct EncodedPiece {
    stored: Vec<u8>,
    plain_len: u32,
    hash: [u8; 32],
}

impl DumpEncoder {
    /// For one kind of compression.
    pub fn new(compression: Compression) -> Self {
        Self { blocks: BlockEncoder::for_rows(compression) }
    }

    /// Compresses at most [`PIECE_MAX`] bytes.
    pub fn encode(&mut self, plain: &[u8]) -> EncodedPiece {
        assert!(plain.len() as u64 <= PIECE_MAX, "a piece of {} bytes", plain.len());
        let mut stored = Vec::new();
        self.blocks.encode(plain, &mut stored);
        EncodedPiece { stored, plain_len: plain.len() as u32, hash: *blake3::hash(plain).as_bytes() }
    }
}

impl EncodedPiece {
    /// Bytes that it takes in the repository.
    pub fn stored_len(&self) -> u64 {
        self.stored.len() as u64
    }
}

/// A data object that is being written.
pub struct DumpDataWriter {
    pub(super) number: u32,
    pub(super) sink: ObjectSink,
}

impl DumpDataWriter {
    /// Its number in the dump.
    pub fn number(&self) -> u32 {
        self.number
    }

    /// Bytes of chunks so far.
    pub fn len(&self) -> u64 {
        self.sink.payload_len()
    }

    /// Whether nothing was added yet.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Adds a piece. The reference has this object's own *number* as its index; the manifest's writer sets the right one.
    pub async fn add(&mut self, piece: &EncodedPiece) -> Result<ChunkRef, RepoError> {
        let offset = self.sink.payload_len();
        self.sink.write(&piece.stored).await?;
        let place = ChunkRef::new(offset, piece.stored.len() as u32, piece.plain_len, &piece.hash);
        Ok(ChunkRef { pack: self.number, ..place })
    }

    /// Makes it durable; gives the object's size.
    pub async fn finish(self) -> Result<u64, RepoError> {
        self.sink.finish().await
    }

    /// Gives up; nothing becomes visible.
    pub async fn abort(self) -> Result<(), RepoError> {
        self.sink.abort().await
    }
}

/// A data object that is being read.
pub struct DumpDataReader {
    pub(super) object: ObjectReader,
}

impl DumpDataReader {
    /// Reads one piece, and checks it against its hash.
    pub async fn read(&self, place: &ChunkRef) -> Result<Vec<u8>, RepoError> {
        self.read_with(place, &mut ChunkDecoder::default()).await
    }

    /// The same with a decoder that is kept: its working memory need not be had anew for every piece.
    pub async fn read_with(&self, place: &ChunkRef, decoder: &mut ChunkDecoder) -> Result<Vec<u8>, RepoError> {
        Ok(self.both(place, decoder).await?.1)
    }

    /// Reads one piece as it is stored, to store it elsewhere, and checks it against its hash.
    pub async fn read_stored(&self, place: &ChunkRef) -> Result<EncodedPiece, RepoError> {
        let (stored, plain) = self.both(place, &mut ChunkDecoder::default()).await?;
        Ok(EncodedPiece {
            stored: stored.to_vec(),
            plain_len: plain.len() as u32,
            hash: *blake3::hash(&plain).as_bytes(),
        })
    }

    async fn both(&self, place: &ChunkRef, decoder: &mut ChunkDecoder) -> Result<(Bytes, Vec<u8>), RepoError> {
        let stored = self.object.read(place.offset..place.offset.saturating_add(place.stored_len.into())).await?;
        let mut plain = Vec::new();
        decoder
            .decode(&stored, place, &mut plain)
            .map_err(|Malformed(reason)| RepoError::damaged(self.object.name(), reason))?;
        Ok((stored, plain))
    }

    /// The object's size in bytes.
    pub fn size(&self) -> u64 {
        self.object.size()
    }
}
