//! Where each page of one file lies in the repository: taken from the prior's map, changed page by page while the file
//! is read, and written down as the new map.
//!
//! Pure: the rules by which a file's chunks stay few and well used are here, reading and storing are not.

use super::pipeline::Stored;
use repo::PackId;
use repo::chunk::{ChunkRef, EXTENT_PAGES};
use repo::map::{FileMap, Run};
use std::collections::HashMap;

/// The chunk number of a page of zeros.
const ZERO: u32 = u32::MAX;
/// The chunk number of a page that is nowhere yet.
const ABSENT: u32 = u32::MAX - 1;
/// An extent is written anew when what is read to restore it exceeds what it holds by this: 13 tenths.
const READ_TENTHS_MAX: u64 = 13;

/// Where one page lies.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Source {
    chunk: u32,
    slot: u32,
}

const NOWHERE: Source = Source { chunk: ABSENT, slot: 0 };
const ZEROS: Source = Source { chunk: ZERO, slot: 0 };

/// A chunk that pages lie in.
#[derive(Debug, Clone, Copy)]
struct SourceChunk {
    pack: PackId,
    chunk: ChunkRef,
    /// Pages of the file that lie in it.
    live: u32,
    layer: u8,
}

/// A page as it is found in a chunk.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct PageAt {
    pub(super) pack: PackId,
    /// Offset of the chunk in the pack.
    pub(super) offset: u64,
    /// Number of the page in the chunk.
    pub(super) slot: u32,
    /// What stored it: 0 the prior, else a backup that was broken off.
    pub(super) layer: u8,
}

/// How the changed pages of an extent are stored.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Form {
    /// The whole extent as one base chunk.
    Base,
    /// The changed pages alone, in a delta chunk.
    Delta,
}

/// Pages that were stored, or found to be zeros, while the file was read.
#[derive(Debug, Clone)]
pub(super) enum Placed {
    /// Consecutive pages in a chunk of their own.
    Base { first: u64, pages: u64, pack: PackId, chunk: ChunkRef },
    /// Pages of zeros.
    Zero { first: u64, pages: u64 },
    /// Any pages, ascending, in one chunk.
    Delta { pages: Vec<u64>, pack: PackId, chunk: ChunkRef },
}

/// Where each page of a file lies.
#[derive(Debug, Clone)]
pub(super) struct PageSources {
    page_size: u64,
    len: u64,
    chunks: Vec<SourceChunk>,
    pages: Vec<Source>,
}

impl PageSources {
    /// A file of which nothing is in the repository.
    pub(super) fn absent(page_size: usize, len: u64) -> Self {
        let mut sources = Self { page_size: page_size as u64, len: 0, chunks: Vec::new(), pages: Vec::new() };
        sources.resize(len);
        sources
    }

    /// A file as the prior has it. `map` is its map, where `stored` says that there is one.
    pub(super) fn of_prior(page_size: usize, len: u64, stored: &Stored, map: Option<&FileMap>) -> Self {
        let mut sources = Self::absent(page_size, len);
        match (stored, map) {
            (Stored::Zero, _) => sources.pages.fill(ZEROS),
            (Stored::Chunk(pack, chunk), _) => {
                let pages = sources.pages.len() as u64;
                sources.place(&Placed::Base { first: 0, pages, pack: *pack, chunk: *chunk }, 0);
            }
            (Stored::Map(..), Some(map)) => {
                let chunk_of = |chunk: &ChunkRef| SourceChunk {
                    pack: map.packs[chunk.pack as usize],
                    chunk: *chunk,
                    live: 0,
                    layer: 0,
                };
                sources.chunks = map.chunks.iter().map(chunk_of).collect();
                let mut at = 0;
                for run in &map.runs {
                    let end = (at + run.pages as usize).min(sources.pages.len());
                    match run.from {
                        None => sources.pages[at..end].fill(ZEROS),
                        Some((chunk, slot)) => {
                            for (page, slot) in sources.pages[at..end].iter_mut().zip(slot..) {
                                *page = Source { chunk, slot };
                            }
                            sources.chunks[chunk as usize].live += (end - at) as u32;
                        }
                    }
                    at = end;
                }
            }
            // The caller reads the map first; without it nothing is known, and everything is read.
            (Stored::Map(..), None) => {}
        }
        sources
    }

    /// Number of pages.
    pub(super) fn pages(&self) -> u64 {
        self.pages.len() as u64
    }

    /// Makes the file longer or shorter. A page that was short, or becomes so, is nowhere.
    pub(super) fn resize(&mut self, len: u64) {
        let pages = len.div_ceil(self.page_size) as usize;
        let last = self.pages.len().min(pages).checked_sub(1);
        for page in pages..self.pages.len() {
            self.forget(page);
        }
        self.pages.resize(pages, NOWHERE);
        self.len = len;
        // Only the last page of the shorter one can have had, or get, another length.
        if let Some(page) = last
            && let Source { chunk, slot } = self.pages[page]
            && self.chunks.get(chunk as usize).is_some_and(|chunk| !self.fits(page as u64, &chunk.chunk, slot))
        {
            self.forget(page);
        }
    }

    /// Whether a page in a chunk is as long as the file's page.
    fn fits(&self, page: u64, chunk: &ChunkRef, slot: u32) -> bool {
        let wanted = self.len.saturating_sub(page * self.page_size).min(self.page_size);
        let there = u64::from(chunk.plain_len).saturating_sub(u64::from(slot) * self.page_size).min(self.page_size);
        wanted == there
    }

    /// Says that a page has to be read.
    pub(super) fn forget(&mut self, page: usize) {
        let source = std::mem::replace(&mut self.pages[page], NOWHERE);
        if let Some(chunk) = self.chunks.get_mut(source.chunk as usize) {
            chunk.live -= 1;
        }
    }

    /// Whether the page is nowhere in the repository.
    pub(super) fn is_absent(&self, page: u64) -> bool {
        self.pages.get(page as usize).is_none_or(|source| source.chunk == ABSENT)
    }

    /// Where the page lies, unless it is nowhere, or all zero.
    pub(super) fn at(&self, page: u64) -> Option<PageAt> {
        let source = self.pages.get(page as usize)?;
        let chunk = self.chunks.get(source.chunk as usize)?;
        Some(PageAt { pack: chunk.pack, offset: chunk.chunk.offset, slot: source.slot, layer: chunk.layer })
    }

    /// The layer that a page is of; pages of zeros are the prior's.
    pub(super) fn layer(&self, page: u64) -> u8 {
        self.at(page).map_or(0, |at| at.layer)
    }

    /// The chunk that holds exactly these pages, one after the other and nothing else.
    pub(super) fn chunk_of(&self, first: u64, bytes: u64) -> Option<&ChunkRef> {
        let pages = bytes.div_ceil(self.page_size);
        let run = self.pages.get(first as usize..(first + pages) as usize)?;
        let chunk = self.chunks.get(run.first()?.chunk as usize)?;
        let whole = u64::from(chunk.chunk.plain_len) == bytes
            && run.iter().zip(0..).all(|(source, slot)| source.chunk == run[0].chunk && source.slot == slot);
        whole.then_some(&chunk.chunk)
    }

    /// Whether all these pages are known to be zeros.
    pub(super) fn is_zero(&self, first: u64, pages: u64) -> bool {
        self.pages
            .get(first as usize..(first + pages) as usize)
            .is_some_and(|run| run.iter().all(|page| *page == ZEROS))
    }

    /// Notes where pages went. `layer` is 0 but for what a broken-off backup had stored.
    pub(super) fn place(&mut self, placed: &Placed, layer: u8) {
        let number = self.chunks.len() as u32;
        let (pack, chunk, live) = match placed {
            Placed::Zero { first, pages } => {
                for page in *first..first + pages {
                    self.set(page, ZEROS);
                }
                return;
            }
            Placed::Base { first, pages, pack, chunk } => {
                let slots = 0..*pages as u32;
                let live = slots.filter(|&slot| self.set_from(first + u64::from(slot), number, chunk, slot)).count();
                (*pack, *chunk, live)
            }
            Placed::Delta { pages, pack, chunk } => {
                let slots = pages.iter().zip(0..);
                (*pack, *chunk, slots.filter(|(page, slot)| self.set_from(**page, number, chunk, *slot)).count())
            }
        };
        self.chunks.push(SourceChunk { pack, chunk, live: live as u32, layer });
    }

    /// Sets a page that a chunk holds; whether it is one of the file's.
    fn set_from(&mut self, page: u64, number: u32, chunk: &ChunkRef, slot: u32) -> bool {
        let fits = self.fits(page, chunk, slot);
        self.set(page, if fits { Source { chunk: number, slot } } else { NOWHERE }) && fits
    }

    /// Sets where one page lies; whether the file has that page.
    fn set(&mut self, page: u64, source: Source) -> bool {
        let Some(known) = self.pages.get_mut(page as usize) else { return false };
        let old = std::mem::replace(known, source);
        // The chunk that is being placed is not in the list yet: one page of it never replaces another.
        if let Some(chunk) = self.chunks.get_mut(old.chunk as usize) {
            chunk.live -= 1;
        }
        true
    }

    /// How the changed pages of an extent are to be stored. `changed` are their numbers, at least one. What must be read
    /// to restore the extent stays within bounds; `budget` is how many unchanged pages may be written again for that.
    pub(super) fn form(&self, first: u64, changed: &[u64], budget: &mut u64) -> Form {
        let end = (first + EXTENT_PAGES).min(self.pages());
        let pages = end - first;
        let unchanged = pages - changed.len() as u64;
        if unchanged <= changed.len() as u64 {
            return Form::Base;
        }
        // For each chunk: pages of this extent that stay in it, and that leave it.
        let mut chunks: Vec<(u32, u64, u64)> = Vec::new();
        let mut next_changed = changed.iter().copied().peekable();
        for (page, source) in (first..end).zip(&self.pages[first as usize..end as usize]) {
            let stays = next_changed.next_if_eq(&page).is_none();
            if source.chunk as usize >= self.chunks.len() {
                continue;
            }
            let index = chunks.iter().position(|(chunk, ..)| *chunk == source.chunk).unwrap_or_else(|| {
                chunks.push((source.chunk, 0, 0));
                chunks.len() - 1
            });
            if stays {
                chunks[index].1 += 1;
            } else {
                chunks[index].2 += 1;
            }
        }
        let mut read = changed.len() as u64;
        for (chunk, stay, leave) in chunks.into_iter().filter(|(_, stay, _)| *stay > 0) {
            let chunk = &self.chunks[chunk as usize];
            let live = u64::from(chunk.live).saturating_sub(leave).max(1);
            read += (self.chunk_pages(chunk) * stay).div_ceil(live);
        }
        if read * 10 > pages * READ_TENTHS_MAX && *budget >= unchanged {
            *budget -= unchanged;
            return Form::Base;
        }
        Form::Delta
    }

    fn chunk_pages(&self, chunk: &SourceChunk) -> u64 {
        u64::from(chunk.chunk.plain_len).div_ceil(self.page_size)
    }

    /// Pages in chunks of several pages of which three quarters or more are dead: reading them costs more than storing
    /// them anew.
    pub(super) fn forget_mostly_dead(&mut self) {
        let dead = |chunk: &SourceChunk| chunk.live > 0 && self.chunk_pages(chunk) >= 4 * u64::from(chunk.live);
        let dead: Vec<bool> = self.chunks.iter().map(dead).collect();
        if dead.contains(&true) {
            for page in 0..self.pages.len() {
                if dead.get(self.pages[page].chunk as usize) == Some(&true) {
                    self.forget(page);
                }
            }
        }
    }

    /// Says that what lies in these packs has to be read: they are to be left.
    pub(super) fn forget_packs(&mut self, leave: impl Fn(PackId) -> bool) {
        let left: Vec<bool> = self.chunks.iter().map(|chunk| leave(chunk.pack)).collect();
        for page in 0..self.pages.len() {
            if left.get(self.pages[page].chunk as usize) == Some(&true) {
                self.forget(page);
            }
        }
    }

    /// The chunks in use, each once: pack and stored length.
    #[cfg(test)]
    pub(super) fn chunks_in_use(&self) -> impl Iterator<Item = (PackId, u64)> {
        let used = self.chunks.iter().filter(|chunk| chunk.live > 0);
        used.map(|chunk| (chunk.pack, u64::from(chunk.chunk.stored_len)))
    }

    /// The file's length, and how it is to be written down: `None` for a page that is nowhere, which must not be.
    pub(super) fn describe(&self) -> Option<(u64, Described)> {
        let mut map = FileMap::new(self.page_size as u32, self.len);
        let mut numbers: HashMap<u32, u32> = HashMap::new();
        for source in &self.pages {
            let from = match source.chunk {
                ABSENT => return None,
                ZERO => None,
                chunk => {
                    let known = &self.chunks[chunk as usize];
                    let number = numbers.entry(chunk).or_insert_with(|| map.add_chunk(known.pack, known.chunk));
                    Some((*number, source.slot))
                }
            };
            map.add_run(Run { from, pages: 1 });
        }
        let described = match (map.chunks.as_slice(), map.runs.as_slice()) {
            ([], _) => Described::Zero,
            ([chunk], [Run { from: Some((0, 0)), .. }]) if u64::from(chunk.plain_len) == self.len => {
                Described::Chunk(map.packs[0], *chunk)
            }
            _ => Described::Map(map),
        };
        Some((self.len, described))
    }
}

/// How a file is written down in the manifest.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Described {
    /// Empty, or all zero.
    Zero,
    /// One chunk is the file.
    Chunk(PackId, ChunkRef),
    /// A map says.
    Map(FileMap),
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const PAGE: usize = 8192;

    fn pack(number: u32) -> PackId {
        PackId { backup: "20261120T200910Z".parse().unwrap(), number }
    }

    fn chunk(offset: u64, pages: u64) -> ChunkRef {
        ChunkRef {
            pack: 0,
            offset,
            stored_len: 100,
            plain_len: (pages * PAGE as u64) as u32,
            hash16: [offset as u8; 16],
        }
    }

    /// A file of `extents` base chunks, as a full backup makes it.
    fn full(extents: u64) -> PageSources {
        let mut sources = PageSources::absent(PAGE, extents * 64 * PAGE as u64);
        for extent in 0..extents {
            let placed = Placed::Base { first: extent * 64, pages: 64, pack: pack(1), chunk: chunk(extent * 100, 64) };
            sources.place(&placed, 0);
        }
        sources
    }

    fn delta(sources: &mut PageSources, number: u32, pages: &[u64]) {
        let placed = Placed::Delta { pages: pages.to_vec(), pack: pack(number), chunk: chunk(7, pages.len() as u64) };
        sources.place(&placed, 0);
    }

    fn map(sources: &PageSources) -> FileMap {
        match sources.describe() {
            Some((_, Described::Map(map))) => map,
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn a_map_comes_back_as_it_was_written() {
        let mut sources = full(3);
        delta(&mut sources, 2, &[3, 70, 71, 191]);
        sources.place(&Placed::Zero { first: 100, pages: 3 }, 0);
        let first = map(&sources);
        let stored = Stored::Map(pack(2), chunk(9, 1));
        let again = PageSources::of_prior(PAGE, first.len, &stored, Some(&first));
        assert_eq!(map(&again), first);
        assert_eq!(again.at(70), Some(PageAt { pack: pack(2), offset: 7, slot: 1, layer: 0 }));
        assert_eq!(again.at(100), None);
        assert_eq!(again.chunks_in_use().count(), 4);
        assert!(again.is_zero(100, 3) && !again.is_zero(99, 3));
        let first_extent = again.chunk_of(64, 64 * PAGE as u64);
        assert_eq!(first_extent, None, "not all of it is in one chunk");
    }

    #[test]
    fn chunks_that_nothing_refers_to_are_left_out() {
        let mut sources = full(1);
        delta(&mut sources, 2, &[1, 2]);
        delta(&mut sources, 3, &[1, 2]);
        assert_eq!(map(&sources).packs, [pack(1), pack(3)]);
        let placed = Placed::Base { first: 0, pages: 64, pack: pack(4), chunk: chunk(0, 64) };
        sources.place(&placed, 0);
        assert_eq!(sources.describe(), Some((64 * PAGE as u64, Described::Chunk(pack(4), chunk(0, 64)))));
        assert_eq!(sources.chunks_in_use().collect::<Vec<_>>(), [(pack(4), 100)]);
    }

    #[test]
    fn a_file_that_grows_or_is_cut_has_pages_to_read() {
        let mut sources = PageSources::absent(PAGE, 2 * PAGE as u64 + 100);
        let one = ChunkRef { plain_len: 2 * PAGE as u32 + 100, ..chunk(0, 0) };
        sources.place(&Placed::Base { first: 0, pages: 3, pack: pack(1), chunk: one }, 0);
        assert_eq!(sources.describe(), Some((2 * PAGE as u64 + 100, Described::Chunk(pack(1), one))));
        sources.resize(5 * PAGE as u64);
        assert_eq!((0..5).map(|page| sources.is_absent(page)).collect::<Vec<_>>(), [false, false, true, true, true]);
        assert_eq!(sources.describe(), None, "pages are missing");
        sources.resize(2 * PAGE as u64 - 1);
        assert!(!sources.is_absent(0) && sources.is_absent(1), "a page that became short is read");
        sources.resize(PAGE as u64);
        assert_eq!(map(&sources).runs, [Run { from: Some((0, 0)), pages: 1 }], "the chunk holds more than the file");
    }

    #[test]
    fn scattered_changes_are_deltas_until_too_much_is_dead() {
        let mut sources = full(1);
        let mut budget = 1000;
        assert_eq!(sources.form(0, &(0..32).collect::<Vec<_>>(), &mut budget), Form::Base, "half of it changed");
        for (backup, page) in (0..19).enumerate() {
            assert_eq!(sources.form(0, &[page], &mut budget), Form::Delta, "{backup}");
            delta(&mut sources, backup as u32 + 2, &[page]);
        }
        assert_eq!(budget, 1000);
        assert_eq!(sources.form(0, &[19], &mut 10), Form::Delta, "no budget for it");
        assert_eq!(sources.form(0, &[19], &mut budget), Form::Base);
        assert_eq!(budget, 1000 - 63);
        assert_eq!(full(1).form(0, &[0], &mut 0), Form::Delta);
    }

    #[test]
    fn a_delta_chunk_that_is_mostly_dead_is_left() {
        let mut sources = full(4);
        let pages: Vec<u64> = (0..40).map(|nth| nth * 6).collect();
        delta(&mut sources, 2, &pages);
        delta(&mut sources, 3, &pages[..30]);
        sources.forget_mostly_dead();
        let read: Vec<u64> = (0..sources.pages()).filter(|page| sources.is_absent(*page)).collect();
        assert_eq!(read, pages[30..], "10 of 40 were alive");
    }

    proptest! {
        /// Whatever is placed upon whatever: each page comes from where it was put last.
        #[test]
        fn the_last_one_to_place_a_page_has_it(steps in proptest::collection::vec((0u64..192, 1u64..60, 0u8..3), 1..40)) {
            let mut sources = full(3);
            let mut expect: Vec<Option<(u32, u32)>> = (0..192).map(|page| Some((1, page % 64))).collect();
            for (number, (first, count, kind)) in steps.into_iter().enumerate() {
                let number = number as u32 + 2;
                let end = (first + count).min(192);
                let pages: Vec<u64> = (first..end).step_by(if kind == 1 { 3 } else { 1 }).collect();
                let placed = match kind {
                    0 => Placed::Zero { first, pages: end - first },
                    1 => Placed::Delta { pages: pages.clone(), pack: pack(number), chunk: chunk(1, pages.len() as u64) },
                    _ => Placed::Base { first, pages: end - first, pack: pack(number), chunk: chunk(1, end - first) },
                };
                sources.place(&placed, 0);
                for (slot, page) in pages.iter().enumerate() {
                    expect[*page as usize] = (kind != 0).then_some((number, slot as u32));
                }
            }
            for (page, expect) in (0..).zip(&expect) {
                prop_assert_eq!(sources.at(page).map(|at| (at.pack.number, at.slot)), *expect);
            }
            let mut live: Vec<u32> = expect.iter().flatten().map(|(pack, _)| *pack).collect();
            live.sort_unstable();
            live.dedup();
            let mut used: Vec<u32> = sources.chunks_in_use().map(|(pack, _)| pack.number).collect();
            used.dedup();
            prop_assert_eq!(used, live);
            if let Some((_, Described::Map(map))) = sources.describe() {
                let decoded = FileMap::decode(&map.encode()).unwrap();
                let again = PageSources::of_prior(PAGE, map.len, &Stored::Map(pack(1), chunk(0, 1)), Some(&decoded));
                for page in 0..192 {
                    prop_assert_eq!(again.at(page).map(|at| (at.pack, at.slot)), sources.at(page).map(|at| (at.pack, at.slot)));
                }
            }
        }
    }
}
