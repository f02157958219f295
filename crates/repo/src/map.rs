//! File maps: which chunk holds each page of one file (docs/format.md section 8).

use crate::PackId;
use crate::chunk::{CHUNK_PLAIN_MAX, ChunkRef};
use crate::coding::{Cursor, Decoded, Malformed, put_bytes, put_varint};

/// The most plain bytes a file map may have.
pub const MAP_MAX: u64 = 64 << 20;
const MAP_VERSION: u8 = 1;
const PAGE_SIZE_MAX: u64 = 32 << 10;

/// Consecutive pages of a file that lie one after the other in the same chunk, or are all zero.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Run {
    /// The chunk and the slot of the run's first page in it; `None` for pages of zeros.
    pub from: Option<(u32, u32)>,
    /// Number of pages.
    pub pages: u64,
}

/// Which chunk holds each page of one file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FileMap {
    /// Page size in bytes.
    pub page_size: u32,
    /// File length in bytes.
    pub len: u64,
    /// The packs that the chunks refer to.
    pub packs: Vec<PackId>,
    /// The chunks; `pack` is an index into `packs`.
    pub chunks: Vec<ChunkRef>,
    /// What the file is made of, from its first page to its last.
    pub runs: Vec<Run>,
}

impl FileMap {
    /// A map without pages yet.
    pub fn new(page_size: u32, len: u64) -> Self {
        Self { page_size, len, packs: Vec::new(), chunks: Vec::new(), runs: Vec::new() }
    }

    /// Number of pages in the file; the last may be short.
    pub fn pages(&self) -> u64 {
        self.len.div_ceil(u64::from(self.page_size.max(1)))
    }

    /// Adds a chunk, with its pack, and returns its index.
    pub fn add_chunk(&mut self, pack: PackId, chunk: ChunkRef) -> u32 {
        // Chunks of one pack come one after the other: the last pack is the likely one.
        let index = self.packs.iter().rposition(|&known| known == pack).unwrap_or_else(|| {
            self.packs.push(pack);
            self.packs.len() - 1
        });
        self.chunks.push(ChunkRef { pack: index as u32, ..chunk });
        (self.chunks.len() - 1) as u32
    }

    /// Appends pages; joins them to the run before where they continue it.
    pub fn add_run(&mut self, run: Run) {
        if run.pages == 0 {
            return;
        }
        if let Some(last) = self.runs.last_mut() {
            let continues = match (last.from, run.from) {
                (None, None) => true,
                (Some((a, slot)), Some((b, next))) => a == b && u64::from(slot) + last.pages == u64::from(next),
                _ => false,
            };
            if continues {
                last.pages += run.pages;
                return;
            }
        }
        self.runs.push(run);
    }

    /// The map's plain bytes.
    pub fn encode(&self) -> Vec<u8> {
        let mut out = vec![MAP_VERSION];
        put_varint(&mut out, self.page_size.into());
        put_varint(&mut out, self.len);
        put_varint(&mut out, self.packs.len() as u64);
        for pack in &self.packs {
            put_bytes(&mut out, pack.backup.to_string().as_bytes());
            put_varint(&mut out, pack.number.into());
        }
        put_varint(&mut out, self.chunks.len() as u64);
        for chunk in &self.chunks {
            chunk.put(&mut out);
        }
        put_varint(&mut out, self.runs.len() as u64);
        for run in &self.runs {
            match run.from {
                None => put_varint(&mut out, 0),
                Some((chunk, slot)) => {
                    put_varint(&mut out, u64::from(chunk) + 1);
                    put_varint(&mut out, slot.into());
                }
            }
            put_varint(&mut out, run.pages);
        }
        out
    }

    /// Reads a map and checks that it covers its file exactly.
    pub fn decode(bytes: &[u8]) -> Result<Self, Malformed> {
        let mut cursor = Cursor::new(bytes);
        let version = cursor.u8()?;
        if version != MAP_VERSION {
            return Err(Malformed(format!("file map of unknown version {version}")));
        }
        let page_size = cursor.bounded("page size", PAGE_SIZE_MAX)?;
        if page_size == 0 {
            return Err(Malformed("page size 0".into()));
        }
        let len = cursor.varint()?;
        let limit = bytes.len() as u64;
        let packs = (0..cursor.bounded("number of packs", limit)?)
            .map(|_| read_pack_id(&mut cursor))
            .collect::<Decoded<Vec<_>>>()?;
        let count = cursor.bounded("number of chunks", limit)?;
        let chunks = (0..count)
            .map(|_| ChunkRef::read(&mut cursor, packs.len(), CHUNK_PLAIN_MAX))
            .collect::<Decoded<Vec<_>>>()?;
        let mut map = Self { page_size: page_size as u32, len, packs, chunks, runs: Vec::new() };
        let mut covered = 0u64;
        for _ in 0..cursor.bounded("number of runs", limit)? {
            let from = match cursor.varint()? {
                0 => None,
                chunk => Some((chunk - 1, cursor.varint()?)),
            };
            let pages = cursor.varint()?;
            if pages == 0 {
                return Err(Malformed("empty run".into()));
            }
            let from = from.map(|(chunk, slot)| map.check_run(covered, chunk, slot, pages)).transpose()?;
            covered = covered.checked_add(pages).ok_or_else(|| Malformed("too many pages".into()))?;
            map.runs.push(Run { from, pages });
        }
        cursor.finish()?;
        if covered != map.pages() {
            return Err(Malformed(format!("file map covers {covered} pages of {}", map.pages())));
        }
        Ok(map)
    }

    /// Checks that a run's pages lie inside its chunk and that only the file's last page is short.
    fn check_run(&self, first_page: u64, chunk: u64, slot: u64, pages: u64) -> Decoded<(u32, u32)> {
        let found = usize::try_from(chunk).ok().and_then(|index| self.chunks.get(index));
        let chunk_ref = found.ok_or_else(|| Malformed(format!("chunk {chunk} of {}", self.chunks.len())))?;
        let size = u64::from(self.page_size);
        let outside = || Malformed(format!("pages {slot}+{pages} lie outside chunk {chunk}"));
        let end_page = slot.checked_add(pages).filter(|&end| end <= CHUNK_PLAIN_MAX).ok_or_else(outside)?;
        let plain = u64::from(chunk_ref.plain_len);
        let file_end = first_page.checked_add(pages).and_then(|end| end.checked_mul(size)).ok_or_else(outside)?;
        let short_by = file_end.saturating_sub(self.len).min(size - 1);
        if end_page * size - short_by > plain {
            return Err(outside());
        }
        Ok((chunk as u32, slot as u32))
    }
}

pub(crate) fn read_pack_id(cursor: &mut Cursor<'_>) -> Decoded<PackId> {
    let text = std::str::from_utf8(cursor.bytes(64)?).map_err(|_| Malformed("backup ID is not text".into()))?;
    let backup = text.parse().map_err(|_| Malformed(format!("{text:?} is not a backup ID")))?;
    let number = cursor.bounded("number of a pack", u32::MAX.into())? as u32;
    Ok(PackId { backup, number })
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn chunk(pages: u64) -> ChunkRef {
        ChunkRef { pack: 0, offset: 77, stored_len: 1000, plain_len: (pages * 8192) as u32, hash16: [3; 16] }
    }

    /// A file of base chunks in which some pages were replaced by a delta chunk, some are zero.
    fn sample() -> FileMap {
        let first: PackId = PackId { backup: "20261120T200910Z".parse().unwrap(), number: 1 };
        let second: PackId = PackId { backup: "20261121T200910Z".parse().unwrap(), number: 9 };
        let mut map = FileMap::new(8192, 150 * 8192 + 100);
        let base = map.add_chunk(first, chunk(64));
        let delta = map.add_chunk(second, chunk(3));
        let tail = map.add_chunk(first, ChunkRef { plain_len: 22 * 8192 + 100, ..chunk(0) });
        for (from, pages) in [
            (Some((base, 0)), 10),
            (Some((delta, 0)), 1),
            (Some((base, 11)), 53),
            (None, 60),
            (None, 2),
            (Some((delta, 1)), 1),
            (Some((delta, 2)), 1),
            (Some((tail, 0)), 23),
        ] {
            map.add_run(Run { from, pages });
        }
        map
    }

    #[test]
    fn maps_round_trip_with_delta_chunks() {
        let map = sample();
        assert_eq!(map.packs.len(), 2);
        assert_eq!(map.runs.len(), 6, "runs that continue are joined");
        assert_eq!(FileMap::decode(&map.encode()).unwrap(), map);
    }

    #[test]
    fn maps_that_do_not_fit_their_file_are_refused() {
        let change = |edit: fn(&mut FileMap)| {
            let mut map = sample();
            edit(&mut map);
            FileMap::decode(&map.encode())
        };
        assert!(change(|map| map.len += 8192).is_err(), "a page is missing");
        assert!(change(|map| map.len -= 8192).is_err(), "a page too many");
        assert!(change(|map| map.runs[0].from = Some((9, 0))).is_err(), "unknown chunk");
        assert!(change(|map| map.runs[0].from = Some((0, 60))).is_err(), "beyond the chunk");
        assert!(change(|map| map.chunks[2].plain_len -= 1).is_err(), "short page too short");
        assert!(change(|map| map.chunks[0].pack = 2).is_err(), "unknown pack");
        assert!(change(|map| map.chunks[0].offset = u64::MAX).is_err(), "an offset that overflows");
    }

    proptest! {
        #[test]
        fn decoding_never_panics(bytes: Vec<u8>) {
            let _ = FileMap::decode(&bytes);
        }

        #[test]
        fn a_damaged_map_never_panics(at in 0usize..200, value: u8) {
            let mut bytes = sample().encode();
            let at = at % bytes.len();
            bytes[at] = value;
            let _ = FileMap::decode(&bytes);
        }
    }
}
