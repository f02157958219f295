//! Packs: about 64 MiB of chunks, with a footer that says what they are (docs/format.md section 7).

use crate::block::Compression;
use crate::chunk::{ChunkRef, EncodedChunk};
use crate::coding::{Cursor, Decoded, Malformed, put_path, put_varint};
use crate::seal::Kind;
use crate::section::{MUST_UNDERSTAND, SectionTable, Sections};
use crate::{ClusterName, Keyring, ObjectReader, ObjectSink, PackId, RepoError};
use bytes::Bytes;
use std::sync::Arc;
use store::Store;

/// A pack is closed when its chunks have this many bytes.
pub const PACK_LEN: u64 = 64 << 20;
const FOOTER_MAX: u64 = 256 << 20;
const SECTION_CHUNKS: u8 = 1;
const SECTION_FOOTER: u8 = 2;
/// What is read to open a pack by its end: the table and, as a rule, the whole footer.
const TAIL_LEN: u64 = 256 << 10;

/// Which pages a chunk holds.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ChunkPages {
    /// Consecutive pages of one extent.
    Base {
        /// The first page's number in the file.
        first: u64,
    },
    /// Any pages of the file, ascending.
    Delta {
        /// The pages' numbers in the file.
        pages: Vec<u64>,
    },
    /// A file map.
    Map,
}

/// One entry of a pack's footer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FooterEntry {
    /// The file's path in the backup.
    pub path: Vec<u8>,
    /// Which of its pages.
    pub pages: ChunkPages,
    /// Offset of the stored chunk in the pack's payload.
    pub offset: u64,
    /// Length of the stored chunk.
    pub stored_len: u32,
    /// Length of the plain bytes.
    pub plain_len: u32,
    /// BLAKE3 of the plain bytes.
    pub hash: [u8; 32],
    /// A hash for each page; none for a file map.
    pub page_hashes: Vec<u64>,
}

impl FooterEntry {
    /// Where the chunk lies and what it must be; its pack is number 0.
    pub fn chunk(&self) -> ChunkRef {
        ChunkRef::new(self.offset, self.stored_len, self.plain_len, &self.hash)
    }
}

/// A pack being written.
pub struct PackWriter {
    id: PackId,
    sink: ObjectSink,
    footer: Vec<u8>,
    entries: u64,
    last_path: Vec<u8>,
}

/// A pack that is durable.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct WrittenPack {
    /// Its name.
    pub id: PackId,
    /// The object's size in bytes.
    pub size: u64,
}

impl PackWriter {
    /// Begins a pack.
    pub async fn create(
        store: Arc<dyn Store>,
        keys: &Keyring,
        cluster: &ClusterName,
        id: PackId,
    ) -> Result<Self, RepoError> {
        let sink = ObjectSink::create(store, keys, Kind::Pack, cluster.pack(id)).await?;
        Ok(Self { id, sink, footer: Vec::new(), entries: 0, last_path: Vec::new() })
    }

    /// The pack's name.
    pub fn id(&self) -> PackId {
        self.id
    }

    /// Bytes of chunks so far.
    pub fn len(&self) -> u64 {
        self.sink.payload_len()
    }

    /// Whether nothing was added yet.
    pub fn is_empty(&self) -> bool {
        self.entries == 0
    }

    /// Adds a chunk of the file `path` and tells where it lies; its pack is number 0.
    pub async fn add(
        &mut self,
        path: &[u8],
        pages: &ChunkPages,
        chunk: &EncodedChunk<'_>,
    ) -> Result<ChunkRef, RepoError> {
        let offset = self.sink.payload_len();
        self.sink.write(chunk.stored).await?;
        let out = &mut self.footer;
        out.push(match pages {
            ChunkPages::Base { .. } => 1,
            ChunkPages::Delta { .. } => 2,
            ChunkPages::Map => 3,
        });
        put_path(out, &self.last_path, path);
        put_varint(out, chunk.stored.len() as u64);
        put_varint(out, chunk.plain_len.into());
        out.extend_from_slice(&chunk.hash);
        match pages {
            ChunkPages::Base { first } => {
                put_varint(out, *first);
                put_varint(out, chunk.page_hashes.len() as u64);
            }
            ChunkPages::Delta { pages } => put_page_list(out, pages),
            ChunkPages::Map => {}
        }
        if *pages != ChunkPages::Map {
            for hash in chunk.page_hashes {
                out.extend_from_slice(&hash.to_le_bytes());
            }
        }
        self.last_path.clear();
        self.last_path.extend_from_slice(path);
        self.entries += 1;
        Ok(ChunkRef::new(offset, chunk.stored.len() as u32, chunk.plain_len, &chunk.hash))
    }

    /// Writes the footer and makes the pack durable.
    pub async fn finish(mut self) -> Result<WrittenPack, RepoError> {
        let chunks_len = self.sink.payload_len();
        let mut footer = Vec::with_capacity(self.footer.len() + 10);
        put_varint(&mut footer, self.entries);
        footer.append(&mut self.footer);
        let mut table = SectionTable::default();
        table.add_raw(SECTION_CHUNKS, 0, 0, chunks_len);
        let block = table.add_block(SECTION_FOOTER, MUST_UNDERSTAND, chunks_len, &footer);
        self.sink.write(&block).await?;
        self.sink.write(&table.finish()).await?;
        Ok(WrittenPack { id: self.id, size: self.sink.finish().await? })
    }

    /// Gives up; nothing becomes visible.
    pub async fn abort(self) -> Result<(), RepoError> {
        self.sink.abort().await
    }
}

fn put_page_list(out: &mut Vec<u8>, pages: &[u64]) {
    put_varint(out, pages.len() as u64);
    let mut previous = 0;
    for &page in pages {
        put_varint(out, page - previous);
        previous = page;
    }
}

fn read_page_list(cursor: &mut Cursor<'_>) -> Decoded<Vec<u64>> {
    let count = cursor.bounded("number of pages", crate::chunk::EXTENT_PAGES)?;
    let mut pages = Vec::with_capacity(count as usize);
    let mut previous = 0u64;
    for index in 0..count {
        let step = cursor.varint()?;
        if step == 0 && index > 0 {
            return Err(Malformed("pages out of order".into()));
        }
        previous = previous.checked_add(step).ok_or_else(|| Malformed("page number too large".into()))?;
        pages.push(previous);
    }
    Ok(pages)
}

fn parse_footer(plain: &[u8], chunks_len: u64) -> Decoded<Vec<FooterEntry>> {
    let mut cursor = Cursor::new(plain);
    let count = cursor.bounded("number of chunks", plain.len() as u64)?;
    let mut entries = Vec::new();
    let mut path = Vec::new();
    let mut offset = 0u64;
    for _ in 0..count {
        let kind = cursor.u8()?;
        cursor.path(&mut path)?;
        let plain_max = if kind == 3 { crate::map::MAP_MAX } else { crate::chunk::CHUNK_PLAIN_MAX };
        let stored_len = cursor.bounded("stored length", plain_max + 1)? as u32;
        let plain_len = cursor.bounded("plain length", plain_max)? as u32;
        let hash = cursor.array()?;
        let (pages, hashes) = match kind {
            1 => {
                let first = cursor.varint()?;
                (ChunkPages::Base { first }, cursor.bounded("number of pages", crate::chunk::EXTENT_PAGES)?)
            }
            2 => {
                let pages = read_page_list(&mut cursor)?;
                let count = pages.len() as u64;
                (ChunkPages::Delta { pages }, count)
            }
            3 => (ChunkPages::Map, 0),
            other => return Err(Malformed(format!("chunk of unknown type {other}"))),
        };
        let page_hashes = (0..hashes).map(|_| cursor.u64()).collect::<Decoded<_>>()?;
        entries.push(FooterEntry { path: path.clone(), pages, offset, stored_len, plain_len, hash, page_hashes });
        offset += u64::from(stored_len);
    }
    if offset != chunks_len {
        return Err(Malformed(format!("footer speaks of {offset} bytes of chunks, the pack has {chunks_len}")));
    }
    cursor.finish()?;
    Ok(entries)
}

/// A pack being read.
pub struct PackReader {
    object: ObjectReader,
}

impl PackReader {
    /// Opens a pack whose size is known, for reading chunks.
    pub async fn open(
        store: Arc<dyn Store>,
        keys: &Keyring,
        cluster: &ClusterName,
        id: PackId,
        size: u64,
    ) -> Result<Self, RepoError> {
        let object = ObjectReader::open_sized(store, keys, Kind::Pack, cluster.pack(id), size).await?;
        Ok(Self { object })
    }

    /// Opens a pack by its end, for reading the footer.
    pub async fn open_for_footer(
        store: Arc<dyn Store>,
        keys: &Keyring,
        cluster: &ClusterName,
        id: PackId,
    ) -> Result<Self, RepoError> {
        let object = ObjectReader::open(store, keys, Kind::Pack, cluster.pack(id), TAIL_LEN).await?;
        Ok(Self { object })
    }

    /// The object underneath.
    pub fn object(&self) -> &ObjectReader {
        &self.object
    }

    /// Reads stored chunks: any bytes of the pack's payload.
    pub async fn read(&self, offset: u64, len: u64) -> Result<Bytes, RepoError> {
        self.object.read(offset..offset.saturating_add(len)).await
    }

    /// Reads what the pack holds.
    pub async fn footer(&self) -> Result<Vec<FooterEntry>, RepoError> {
        let sections = Sections::read(&self.object, &[SECTION_CHUNKS, SECTION_FOOTER]).await?;
        let damaged = |reason: String| RepoError::damaged(self.object.name(), reason);
        let chunks = sections.get(SECTION_CHUNKS).ok_or_else(|| damaged("has no chunks".into()))?;
        if chunks.offset != 0 {
            return Err(damaged("chunks do not begin at 0".into()));
        }
        let plain = sections.read_block(&self.object, SECTION_FOOTER, "footer", FOOTER_MAX).await?;
        parse_footer(&plain, chunks.stored_len).map_err(|Malformed(reason)| damaged(format!("footer: {reason}")))
    }
}

/// The encoder for file maps, which are small and many.
pub fn map_encoder() -> crate::chunk::ChunkEncoder {
    crate::chunk::ChunkEncoder::new(Compression::Zstd(3))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::chunk::{ChunkDecoder, ChunkEncoder, PageContent};
    use store::MemoryStore;

    fn pages(count: usize, seed: u8) -> Vec<u8> {
        (0..count * 8192).map(|i| (i / 8192) as u8 ^ seed ^ (i % 97) as u8).collect()
    }

    #[tokio::test]
    async fn packs_say_what_they_hold() {
        let store: Arc<dyn Store> = Arc::new(MemoryStore::new());
        let cluster: ClusterName = "main".parse().unwrap();
        let id = PackId { backup: "20261120T200910Z".parse().unwrap(), number: 1 };
        for keys in [Keyring::plain(), Keyring::for_test()] {
            let mut encoder = ChunkEncoder::new(Compression::Zstd(1));
            let mut pack = PackWriter::create(store.clone(), &keys, &cluster, id).await.unwrap();
            let chunks: [(&str, ChunkPages, Vec<u8>); 4] = [
                ("data/base/1/1259", ChunkPages::Base { first: 64 }, pages(64, 1)),
                ("data/base/1/1259", ChunkPages::Delta { pages: vec![0, 3, 4, 1_000_000] }, pages(4, 9)),
                ("data/base/1/2600", ChunkPages::Base { first: 0 }, pages(1, 3)[..100].to_vec()),
                ("data/base/1/1259", ChunkPages::Map, b"a map".to_vec()),
            ];
            let mut places = Vec::new();
            for (path, which, plain) in &chunks {
                let chunk = encoder.encode(plain, 8192, PageContent::Other);
                places.push(pack.add(path.as_bytes(), which, &chunk).await.unwrap());
            }
            let written = pack.finish().await.unwrap();
            let reader = PackReader::open_for_footer(store.clone(), &keys, &cluster, id).await.unwrap();
            assert_eq!(reader.object().size(), written.size);
            let footer = reader.footer().await.unwrap();
            assert_eq!(footer.len(), 4);
            let sized = PackReader::open(store.clone(), &keys, &cluster, id, written.size).await.unwrap();
            for ((entry, (path, which, plain)), placed) in footer.iter().zip(&chunks).zip(places) {
                assert_eq!(entry.path, path.as_bytes());
                assert_eq!(entry.pages, *which);
                if *which != ChunkPages::Map {
                    let expect: Vec<u64> = plain
                        .chunks(8192)
                        .map(|p| crate::chunk::page_hash(p, PageContent::Other, &mut Vec::new()))
                        .collect();
                    assert_eq!(entry.page_hashes, expect);
                }
                let chunk = entry.chunk();
                assert_eq!(chunk, placed);
                let stored = sized.read(entry.offset, entry.stored_len.into()).await.unwrap();
                let mut out = Vec::new();
                ChunkDecoder::default().decode(&stored, &chunk, &mut out).unwrap();
                assert_eq!(&out, plain);
                let wrong = ChunkRef { hash16: [0; 16], ..chunk };
                assert!(ChunkDecoder::default().decode(&stored, &wrong, &mut out).is_err());
            }
            store.delete(&cluster.pack(id)).await.unwrap();
        }
    }

    proptest::proptest! {
        #[test]
        fn parsing_a_footer_never_panics(bytes: Vec<u8>, len: u64) {
            let _ = parse_footer(&bytes, len);
        }
    }
}
