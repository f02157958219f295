//! Any map, cut into rounds anywhere: the file that comes out is the one that went in, and it is finished once, at the end.

use super::super::pieces::{Decoding, Stored};
use super::*;
use crate::EngineError;
use proptest::prelude::*;
use repo::PackId;
use repo::chunk::{ChunkEncoder, PageContent};
use repo::map::Run;
use std::sync::Mutex;
use std::sync::atomic::AtomicU32;

const PAGE: usize = 512;

/// A file in memory.
struct Memory {
    bytes: Mutex<Vec<u8>>,
    left: AtomicU32,
    finished: AtomicU32,
    writes: AtomicU32,
}

impl Memory {
    fn new(len: usize) -> Self {
        let (left, finished, writes) = (AtomicU32::new(1), AtomicU32::new(0), AtomicU32::new(0));
        Self { bytes: Mutex::new(vec![0; len]), left, finished, writes }
    }
}

impl Destination for Memory {
    type Open = ();

    fn name(&self) -> &[u8] {
        b"data/base/1/1"
    }

    fn len(&self) -> u64 {
        self.bytes.lock().unwrap().len() as u64
    }

    fn left(&self) -> &AtomicU32 {
        &self.left
    }

    fn open(&self) -> Result<(), EngineError> {
        Ok(())
    }

    fn write(&self, (): &mut (), bytes: &[u8], at: u64) -> Result<(), EngineError> {
        self.writes.fetch_add(1, Ordering::Relaxed);
        assert_eq!(self.finished.load(Ordering::Relaxed), 0, "written after it was finished");
        self.bytes.lock().unwrap()[at as usize..][..bytes.len()].copy_from_slice(bytes);
        Ok(())
    }

    fn written(&self, (): (), _: Range<u64>, pieces: u32) -> Result<(), EngineError> {
        if self.left.fetch_sub(pieces, Ordering::AcqRel) == pieces { self.finish(&()) } else { Ok(()) }
    }

    fn finish(&self, (): &()) -> Result<(), EngineError> {
        self.finished.fetch_add(1, Ordering::Relaxed);
        Ok(())
    }
}

/// What a page has, by its place.
fn page(number: usize) -> [u8; PAGE] {
    let mut page = [(number % 251) as u8 + 1; PAGE];
    page[..8].copy_from_slice(&(number as u64 + 1).to_le_bytes());
    page
}

/// A file, its map, and the one pack that all its chunks lie in.
struct Stock {
    file: Vec<u8>,
    map: FileMap,
    pack: Vec<u8>,
}

/// Page by page: 0 has zeros, any other number comes from the chunks of so many generations. The last page is cut off.
fn stock(generations: &[u8], cut: usize) -> Stock {
    let len = generations.len() * PAGE - cut;
    let mut file = vec![0; generations.len() * PAGE];
    let mut map = FileMap::new(PAGE as u32, len as u64);
    let (mut pack, mut encoder) = (Vec::new(), ChunkEncoder::new("zstd:1".parse().unwrap()));
    let mut places = vec![None; generations.len()];
    for generation in 1..=*generations.iter().max().unwrap() {
        let mine: Vec<usize> = (0..places.len()).filter(|page| generations[*page] == generation).collect();
        // The oldest has whole extents, with pages that are dead by now; the others what changed, wherever it lies.
        let groups: Vec<Vec<usize>> = if generation == 1 {
            let all: Vec<usize> = (0..places.len()).collect();
            all.chunks(EXTENT_PAGES as usize).map(<[usize]>::to_vec).collect()
        } else {
            mine.chunks(EXTENT_PAGES as usize).map(<[usize]>::to_vec).collect()
        };
        for group in groups {
            let mut plain = Vec::new();
            for number in &group {
                let content = if generations[*number] == generation { page(*number) } else { [77; PAGE] };
                let kept = (len - number * PAGE).min(PAGE);
                plain.extend_from_slice(&content[..kept]);
            }
            let chunk = encoder.encode(&plain, PAGE, PageContent::Other);
            let mut hash16 = [0; 16];
            hash16.copy_from_slice(&chunk.hash[..16]);
            let (offset, stored_len) = (pack.len() as u64, chunk.stored.len() as u32);
            let place = ChunkRef { pack: 0, offset, stored_len, plain_len: chunk.plain_len, hash16 };
            pack.extend_from_slice(chunk.stored);
            let id = PackId { backup: "20260101T000000Z".parse().unwrap(), number: 1 };
            let index = map.add_chunk(id, place);
            for (slot, number) in group.iter().enumerate() {
                if generations[*number] == generation {
                    places[*number] = Some((index, slot as u32));
                    file[number * PAGE..][..PAGE].copy_from_slice(&page(*number));
                }
            }
        }
    }
    places.into_iter().for_each(|from| map.add_run(Run { from, pages: 1 }));
    file.truncate(len);
    Stock { file, map, pack }
}

/// Works a round off, its pieces one by one and from the last to the first.
fn work_off(round: &Round<Memory>, pack: &[u8]) {
    let mut decoding = Decoding::default();
    let stored = Stored { start: 0, bytes: pack };
    for index in (0..round.scattered.pieces.len()).rev() {
        assert!(decoding.hold(round, &stored, index..index + 1).unwrap().is_empty());
    }
    for index in (0..round.whole.pieces.len()).rev() {
        assert!(decoding.write(round, &stored, index..index + 1, |_| ()).unwrap().is_empty());
    }
    round.done().for_each(|file| file.finish(&()).unwrap());
}

fn restore(stock: &Stock, cuts: &[usize]) -> Memory {
    let files = Arc::new(vec![Memory::new(stock.file.len())]);
    let mut builder = RoundBuilder::default();
    for (nth, extent) in Extents::of(0, &stock.map, &[0], 0..stock.map.len).enumerate() {
        builder.add(&extent);
        if cuts.contains(&nth) {
            work_off(&std::mem::take(&mut builder).build(&files), &stock.pack);
        }
    }
    assert_eq!(files[0].finished.load(Ordering::Relaxed), 0, "not all of it was in a round");
    builder.complete.push(0);
    work_off(&builder.build(&files), &stock.pack);
    Arc::into_inner(files).unwrap().pop().unwrap()
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(48))]

    #[test]
    fn a_file_comes_out_as_it_went_in(
        generations in proptest::collection::vec(prop_oneof![4 => Just(1u8), 2 => 2u8..6, 1 => Just(0u8)], 1..300),
        cut in 0..PAGE,
        cuts in proptest::collection::vec(0usize..5, 0..3),
    ) {
        let stock = stock(&generations, cut);
        let got = restore(&stock, &cuts);
        prop_assert!(got.bytes.into_inner().unwrap() == stock.file);
        prop_assert_eq!(got.finished.into_inner(), 1);
    }
}

#[test]
fn an_extent_of_many_chunks_is_written_at_once() {
    let generations: Vec<u8> =
        (0..3 * EXTENT_PAGES).map(|page| if page % 4 == 0 { 2 + (page % 3) as u8 } else { 1 }).collect();
    let stock = stock(&generations, 0);
    let got = restore(&stock, &[]);
    assert!(got.bytes.into_inner().unwrap() == stock.file);
    assert_eq!(got.writes.into_inner(), 3);
}

/// What is held of an extent turned out to be damaged: the rest is written, and the file is never finished.
#[test]
fn a_file_without_all_its_pieces_is_not_finished() {
    let generations: Vec<u8> = (0..EXTENT_PAGES).map(|page| if page == 9 { 2 } else { 1 }).collect();
    let mut stock = stock(&generations, 0);
    let damaged = stock.map.chunks[1].offset as usize;
    stock.pack[damaged + 2] ^= 1;
    let files = Arc::new(vec![Memory::new(stock.file.len())]);
    let mut builder = RoundBuilder::default();
    Extents::of(0, &stock.map, &[0], 0..stock.map.len).for_each(|extent| builder.add(&extent));
    builder.complete.push(0);
    let round = builder.build(&files);
    assert_eq!(round.done().count(), 0);
    let (mut decoding, stored) = (Decoding::default(), Stored { start: 0, bytes: &stock.pack });
    assert_eq!(decoding.hold(&round, &stored, 0..1).unwrap().len(), 1);
    assert!(decoding.write(&round, &stored, 0..1, |_| ()).unwrap().is_empty());
    assert_eq!(files[0].finished.load(Ordering::Relaxed), 0);
    let bytes = files[0].bytes.lock().unwrap();
    assert!(bytes[..9 * PAGE] == stock.file[..9 * PAGE] && bytes[10 * PAGE..] == stock.file[10 * PAGE..]);
    assert!(bytes[9 * PAGE..10 * PAGE].iter().all(|byte| *byte == 0));
}
