//! Chunks: up to 64 page images of one file (docs/format.md section 6).

use crate::block::{BlockDecoder, BlockEncoder, Compression, is_zero};
use crate::coding::{Cursor, Decoded, Malformed, put_varint};

/// Pages in an extent, and at most in a chunk.
pub const EXTENT_PAGES: u64 = 64;
/// The most plain bytes a chunk may have: 64 pages of 32 KiB.
pub const CHUNK_PLAIN_MAX: u64 = 2 << 20;

/// How pages are compared when it is asked whether one changed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum PageContent {
    /// Pages of a relation: hint bits and the like are masked before hashing.
    Relation,
    /// Anything else, compared as it is.
    Other,
}

/// Where a chunk lies and what it must be.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ChunkRef {
    /// Index of the pack in the table that goes with this reference.
    pub pack: u32,
    /// Offset in the pack's payload, in bytes.
    pub offset: u64,
    /// Length of the stored block in bytes.
    pub stored_len: u32,
    /// Length of the plain bytes.
    pub plain_len: u32,
    /// The first 16 bytes of the BLAKE3 hash of the plain bytes.
    pub hash16: [u8; 16],
}

impl ChunkRef {
    /// A chunk in pack number 0. `hash` is the BLAKE3 hash of the plain bytes.
    pub(crate) fn new(offset: u64, stored_len: u32, plain_len: u32, hash: &[u8; 32]) -> Self {
        let mut hash16 = [0; 16];
        hash16.copy_from_slice(&hash[..16]);
        Self { pack: 0, offset, stored_len, plain_len, hash16 }
    }

    pub(crate) fn put(&self, out: &mut Vec<u8>) {
        put_varint(out, self.pack.into());
        put_varint(out, self.offset);
        put_varint(out, self.stored_len.into());
        put_varint(out, self.plain_len.into());
        out.extend_from_slice(&self.hash16);
    }

    /// `plain_max`: 2 MiB for chunks of pages, more for file maps.
    pub(crate) fn read(cursor: &mut Cursor<'_>, packs: usize, plain_max: u64) -> Decoded<Self> {
        let pack = cursor.varint()?;
        if pack >= packs as u64 {
            return Err(Malformed(format!("pack {pack} of {packs}")));
        }
        Ok(Self {
            pack: pack as u32,
            // So that adding a length to it cannot overflow.
            offset: cursor.bounded("offset", u64::MAX >> 1)?,
            stored_len: cursor.bounded("stored length", plain_max + 1)? as u32,
            plain_len: cursor.bounded("plain length", plain_max)? as u32,
            hash16: cursor.array()?,
        })
    }
}

/// A chunk, ready to be put in a pack. Its buffers belong to the encoder.
pub struct EncodedChunk<'a> {
    /// The block to be stored.
    pub stored: &'a [u8],
    /// Length of the plain bytes.
    pub plain_len: u32,
    /// BLAKE3 of the plain bytes.
    pub hash: [u8; 32],
    /// The hash of each page, for comparison.
    pub page_hashes: &'a [u64],
    /// Whether all plain bytes are zero: such pages need no chunk.
    pub is_zero: bool,
}

/// Makes chunks. Keeps its working memory; one for each worker.
pub struct ChunkEncoder {
    block: BlockEncoder,
    stored: Vec<u8>,
    page_hashes: Vec<u64>,
    masked: Vec<u8>,
}

impl ChunkEncoder {
    /// An encoder for one kind of compression.
    pub fn new(compression: Compression) -> Self {
        Self { block: BlockEncoder::new(compression), stored: Vec::new(), page_hashes: Vec::new(), masked: Vec::new() }
    }

    /// Hashes and compresses `plain`, at most 64 pages of `page_size` bytes.
    pub fn encode(&mut self, plain: &[u8], page_size: usize, content: PageContent) -> EncodedChunk<'_> {
        self.stored.clear();
        self.page_hashes.clear();
        for page in plain.chunks(page_size) {
            let hash = page_hash(page, content, &mut self.masked);
            self.page_hashes.push(hash);
        }
        self.block.encode(plain, &mut self.stored);
        EncodedChunk {
            is_zero: is_zero(plain),
            hash: *blake3::hash(plain).as_bytes(),
            plain_len: plain.len() as u32,
            stored: &self.stored,
            page_hashes: &self.page_hashes,
        }
    }

    /// Compresses bytes that are no pages, such as a file map.
    pub fn encode_plain(&mut self, plain: &[u8]) -> EncodedChunk<'_> {
        self.encode(plain, usize::MAX, PageContent::Other)
    }
}

/// The hash by which a page is compared with what was stored (docs/format.md section 7).
/// `scratch` is working memory.
pub fn page_hash(page: &[u8], content: PageContent, scratch: &mut Vec<u8>) -> u64 {
    match content {
        PageContent::Other => xxhash_rust::xxh3::xxh3_64(page),
        PageContent::Relation => {
            scratch.clear();
            scratch.extend_from_slice(page);
            pg_format::mask::mask_page(scratch);
            xxhash_rust::xxh3::xxh3_64(scratch)
        }
    }
}

/// Reads chunks. Keeps its working memory; one for each worker.
#[derive(Default)]
pub struct ChunkDecoder {
    block: BlockDecoder,
}

impl ChunkDecoder {
    /// Decodes a stored chunk into `out` (resized to fit) and checks it against its hash.
    pub fn decode(&mut self, stored: &[u8], chunk: &ChunkRef, out: &mut Vec<u8>) -> Result<(), Malformed> {
        out.resize(chunk.plain_len as usize, 0);
        self.decode_into(stored, chunk, out)
    }

    /// The same into memory of the plain bytes' length.
    pub fn decode_into(&mut self, stored: &[u8], chunk: &ChunkRef, out: &mut [u8]) -> Result<(), Malformed> {
        self.block.decode_into(stored, out)?;
        if blake3::hash(out).as_bytes()[..16] != chunk.hash16 {
            return Err(Malformed("content does not have the hash that was noted when it was written".into()));
        }
        Ok(())
    }
}
