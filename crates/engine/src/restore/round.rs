//! Which pieces of which chunks a restore needs, and in which order they are written.
//!
//! In a backup that stands on many others, the pages of one extent lie in several chunks: most in the one that holds the
//! extent, some in chunks of pages that changed later. Written one by one they would cost more than all the rest. So a
//! round first reads the scattered ones and holds them, and then writes each extent whole when the chunk with most of it
//! comes. What a round holds is bounded; a file that needs more is restored in several rounds.

use super::fetch::Destination;
use repo::chunk::{ChunkRef, EXTENT_PAGES};
use repo::map::FileMap;
use std::mem::size_of;
use std::ops::Range;
use std::sync::atomic::Ordering;
use std::sync::{Arc, OnceLock};

/// Bytes of scattered pages that a round may hold. Two rounds are there at once: one is written, the next one read.
const HELD_BYTES_MAX: u64 = 24 << 20;
/// Bookkeeping of a round.
const BOOKKEEPING_BYTES_MAX: usize = 12 << 20;

/// Bytes of a chunk that go to a place in a file.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Use {
    /// Where in the file.
    pub(crate) at: u64,
    /// Index of the file in its batch.
    pub(crate) file: u32,
    /// Where in the chunk's plain bytes.
    pub(crate) from: u32,
    /// How many.
    pub(crate) len: u32,
    /// Length of the file's extents in bytes; 0 where it has none, and each use is written alone.
    extent: u32,
}

impl Use {
    /// The extent of the file that it lies in.
    pub(crate) fn extent(&self) -> Range<u64> {
        match u64::from(self.extent) {
            0 => self.at..self.at + u64::from(self.len),
            extent => self.at - self.at % extent..self.at - self.at % extent + extent,
        }
    }
}

/// Where pages come from: a chunk, and what is taken from it.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Source {
    chunk: ChunkRef,
    taken: Use,
}

/// A chunk that is needed, and where its pages go: `uses` of its [`Pieces`], all in one file.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Piece {
    pub(crate) chunk: ChunkRef,
    first_use: u32,
    uses: u32,
}

/// Pieces in the order in which they lie in the packs.
#[derive(Debug, Default)]
pub(crate) struct Pieces {
    pub(crate) pieces: Vec<Piece>,
    uses: Vec<Use>,
}

impl Pieces {
    fn of(mut sources: Vec<Source>) -> Self {
        sources.sort_unstable_by_key(|Source { chunk, taken }| (chunk.pack, chunk.offset, taken.file, taken.at));
        let mut all = Self::default();
        for group in sources.chunk_by(|a, b| {
            (a.chunk.pack, a.chunk.offset, a.taken.file) == (b.chunk.pack, b.chunk.offset, b.taken.file)
        }) {
            let (first_use, uses) = (all.uses.len() as u32, group.len() as u32);
            all.pieces.push(Piece { chunk: group[0].chunk, first_use, uses });
            all.uses.extend(group.iter().map(|source| source.taken));
        }
        all
    }

    /// Where the pages of a piece go, in the order of the file.
    pub(crate) fn uses(&self, piece: &Piece) -> &[Use] {
        &self.uses[piece.first_use as usize..(piece.first_use + piece.uses) as usize]
    }
}

/// Pages that are held until the rest of their extent comes.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Part {
    pub(crate) file: u32,
    /// Where in the file.
    pub(crate) at: u64,
    pub(crate) len: u32,
    /// The piece that has them, and where in what is held of it.
    piece: u32,
    from: u32,
}

/// A part of a file, as its map says.
struct Mapped {
    file: u32,
    extents: Vec<Vec<Source>>,
}

/// Files whose contents are fetched together.
pub(crate) struct Batch<T> {
    pub(crate) files: Vec<T>,
    /// Files that are one chunk.
    chunks: Vec<Source>,
    /// Parts of files whose maps were read already.
    mapped: Vec<Mapped>,
    /// File maps that are to be read first: the file, and where its map lies.
    pub(crate) maps: Vec<(u32, ChunkRef)>,
}

impl<T> Default for Batch<T> {
    fn default() -> Self {
        Self { files: Vec::new(), chunks: Vec::new(), mapped: Vec::new(), maps: Vec::new() }
    }
}

impl<T: Destination> Batch<T> {
    /// Whether it is large enough to be worked off: some MiB of bookkeeping.
    pub(crate) fn is_full(&self) -> bool {
        self.files.len() >= 20_000
    }

    /// Adds a file that is one chunk.
    pub(crate) fn add_chunk(&mut self, file: T, chunk: ChunkRef) {
        let index = self.files.len() as u32;
        let taken = Use { file: index, at: 0, from: 0, len: chunk.plain_len, extent: 0 };
        self.chunks.push(Source { chunk, taken });
        self.files.push(file);
    }

    /// Adds a file whose map must be read.
    pub(crate) fn add_map(&mut self, file: T, map: ChunkRef) {
        self.maps.push((self.files.len() as u32, map));
        self.files.push(file);
    }

    /// Adds a part of a file whose map was read; `packs` are those of the map, as the manifest counts them.
    pub(crate) fn add_part(&mut self, file: T, map: &FileMap, packs: &[u32], part: Range<u64>) {
        let index = self.files.len() as u32;
        self.files.push(file);
        self.mapped.push(Mapped { file: index, extents: Extents::of(index, map, packs, part).collect() });
    }

    /// What is known without reading a map.
    pub(crate) fn first_round(&mut self) -> RoundBuilder {
        let mut round = RoundBuilder::default();
        for source in std::mem::take(&mut self.chunks) {
            round.complete.push(source.taken.file);
            round.whole.push(source);
        }
        for Mapped { file, extents } in std::mem::take(&mut self.mapped) {
            extents.iter().for_each(|extent| round.add(extent));
            round.complete.push(file);
        }
        round
    }
}

/// What a map says of a part of a file, extent by extent; pages of zeros are left out.
pub(crate) struct Extents<'a> {
    file: u32,
    map: &'a FileMap,
    packs: &'a [u32],
    part: Range<u64>,
    /// The next run, and the byte of the file at which what is left of it begins.
    run: usize,
    at: u64,
    /// Pages of that run that were taken already.
    taken: u64,
}

impl<'a> Extents<'a> {
    /// `packs` are those of the map, as the manifest counts them.
    pub(crate) fn of(file: u32, map: &'a FileMap, packs: &'a [u32], part: Range<u64>) -> Self {
        Self { file, map, packs, part, run: 0, at: 0, taken: 0 }
    }
}

impl Iterator for Extents<'_> {
    type Item = Vec<Source>;

    fn next(&mut self) -> Option<Vec<Source>> {
        let page = u64::from(self.map.page_size);
        let extent = EXTENT_PAGES * page;
        let mut sources = Vec::new();
        while let Some(run) = self.map.runs.get(self.run) {
            let border = self.at - self.at % extent + extent;
            let left = (run.pages - self.taken) * page;
            let end = (self.at + left).min(border).min(self.map.len);
            let (start, stop) = (self.at.max(self.part.start), end.min(self.part.end));
            if let Some((chunk, slot)) = run.from.filter(|_| start < stop) {
                let chunk = self.map.chunks[chunk as usize];
                let from = (u64::from(slot) + self.taken) * page + (start - self.at);
                let taken = Use {
                    file: self.file,
                    at: start,
                    from: from as u32,
                    len: (stop - start) as u32,
                    extent: extent as u32,
                };
                sources.push(Source { chunk: ChunkRef { pack: self.packs[chunk.pack as usize], ..chunk }, taken });
            }
            if end == self.at + left || end == self.map.len {
                (self.run, self.taken) = (self.run + 1, 0);
            } else {
                self.taken += (end - self.at) / page;
            }
            self.at = end;
            if end == border && !sources.is_empty() {
                break;
            }
        }
        (!sources.is_empty()).then_some(sources)
    }
}

/// A round that is being put together.
#[derive(Default)]
pub(crate) struct RoundBuilder {
    /// Written when they come, with what is held of their extents.
    whole: Vec<Source>,
    /// Held until the rest of their extents comes.
    scattered: Vec<Source>,
    held_bytes: u64,
    /// Files of which all is in this round and those before it.
    pub(crate) complete: Vec<u32>,
}

impl RoundBuilder {
    /// Adds an extent.
    pub(crate) fn add(&mut self, extent: &[Source]) {
        let name = |source: &Source| (source.chunk.pack, source.chunk.offset);
        // The chunk with most of it. There are few: the extent has 64 pages.
        let mut chunks: Vec<((u32, u64), u64)> = Vec::new();
        for source in extent {
            let len = u64::from(source.taken.len);
            match chunks.iter_mut().rev().find(|(known, _)| *known == name(source)) {
                Some((_, sum)) => *sum += len,
                None => chunks.push((name(source), len)),
            }
        }
        let most = chunks.iter().max_by_key(|(_, sum)| *sum).map(|(chunk, _)| *chunk);
        for source in extent {
            if Some(name(source)) == most {
                self.whole.push(*source);
            } else {
                self.held_bytes += u64::from(source.taken.len);
                self.scattered.push(*source);
            }
        }
    }

    /// Whether no more should be added.
    pub(crate) fn is_full(&self) -> bool {
        let sources = self.whole.len() + self.scattered.len();
        self.held_bytes >= HELD_BYTES_MAX || sources * size_of::<Source>() >= BOOKKEEPING_BYTES_MAX
    }

    /// The round. Each file is given the number of its pieces.
    pub(crate) fn build<T: Destination>(self, files: &Arc<Vec<T>>) -> Round<T> {
        let (whole, scattered) = (Pieces::of(self.whole), Pieces::of(self.scattered));
        for piece in &whole.pieces {
            files[whole.uses(piece)[0].file as usize].left().fetch_add(1, Ordering::AcqRel);
        }
        // A file counts one more until all of it is in a round.
        let is_done = |file: &u32| files[*file as usize].left().fetch_sub(1, Ordering::AcqRel) == 1;
        let done = self.complete.into_iter().filter(is_done).collect();
        let mut parts = Vec::with_capacity(scattered.uses.len());
        for (index, piece) in scattered.pieces.iter().enumerate() {
            let mut from = 0;
            for taken in scattered.uses(piece) {
                parts.push(Part { file: taken.file, at: taken.at, len: taken.len, piece: index as u32, from });
                from += taken.len;
            }
        }
        parts.sort_unstable_by_key(|part| (part.file, part.at));
        let held = scattered.pieces.iter().map(|_| OnceLock::new()).collect();
        Round { files: files.clone(), whole, scattered, parts, held, done }
    }
}

/// Pieces that are worked off together: first the scattered ones, which are held, then the rest, with which they are
/// written.
pub(crate) struct Round<T> {
    pub(crate) files: Arc<Vec<T>>,
    pub(crate) whole: Pieces,
    pub(crate) scattered: Pieces,
    /// What is held, sorted by file and place.
    parts: Vec<Part>,
    /// For each scattered piece the bytes of its uses, one after the other.
    held: Vec<OnceLock<Vec<u8>>>,
    /// Files in which nothing is left to be written.
    done: Vec<u32>,
}

impl<T> Round<T> {
    /// Files in which this round has nothing to write, and no later one.
    pub(crate) fn done(&self) -> impl Iterator<Item = &T> {
        self.done.iter().map(|file| &self.files[*file as usize])
    }

    /// What is held of an extent of a file.
    pub(crate) fn parts(&self, file: u32, extent: &Range<u64>) -> &[Part] {
        let start = self.parts.partition_point(|part| (part.file, part.at) < (file, extent.start));
        let parts = &self.parts[start..];
        &parts[..parts.partition_point(|part| (part.file, part.at) < (file, extent.end))]
    }

    /// Keeps the bytes of a scattered piece.
    pub(crate) fn hold(&self, piece: usize, bytes: Vec<u8>) {
        // It is decoded once.
        let _ = self.held[piece].set(bytes);
    }

    /// The bytes of a part; `None` when they were damaged.
    pub(crate) fn held(&self, part: &Part) -> Option<&[u8]> {
        self.held[part.piece as usize].get().map(|bytes| &bytes[part.from as usize..][..part.len as usize])
    }
}

#[cfg(test)]
#[path = "round_tests.rs"]
mod tests;
