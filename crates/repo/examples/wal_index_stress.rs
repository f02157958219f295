//! Looks for WAL that the indexer, the encoder or the decoder cannot stand: real segments with records changed at random
//! (their checksums made right again), and indexes with bytes changed at random:
//! `cargo run --release -p repo --example wal_index_stress -- SECONDS SEED SEGMENTS`.
#![allow(missing_docs, clippy::print_stdout)]

use pg_wal::record::HEADER_LEN;
use pg_wal::{Expected, IndexOptions, SegmentReader, index_segment};
use repo::wal_index;
use std::time::{Duration, Instant};

/// xorshift64*
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        self.0.wrapping_mul(0x2545_F491_4F6C_DD1D)
    }

    fn below(&mut self, end: usize) -> usize {
        (self.next() % end.max(1) as u64) as usize
    }
}

/// A segment, and where its records lie.
type Segment = (Vec<u8>, Vec<(usize, usize)>);

/// Where the records lie that do not go over a page's end.
fn records(bytes: &[u8]) -> Result<Vec<(usize, usize)>, pg_wal::WalError> {
    let mut reader = SegmentReader::open(bytes, &Expected::default())?;
    let (start, page) = (reader.info().start.0, reader.info().page_size as usize);
    let mut found = Vec::new();
    while let Some(record) = reader.next_record() {
        let (at, len) = ((record.lsn.0 - start) as usize, record.bytes.len());
        if at % page + len <= page {
            found.push((at, len));
        }
    }
    Ok(found)
}

fn crc(record: &[u8]) -> u32 {
    let mut digest = crc_fast::Digest::new(crc_fast::CrcAlgorithm::Crc32Iscsi);
    digest.update(&record[HEADER_LEN..]);
    digest.update(&record[..HEADER_LEN - 4]);
    digest.finalize() as u32
}

/// Changes a record in place and makes its checksum right.
fn change(record: &mut [u8], random: &mut Random) {
    for _ in 0..1 + random.below(4) {
        // The header's length and link back stay, or reading ends here.
        let at = if random.below(4) == 0 {
            [4, 5, 16, 17][random.below(4)]
        } else {
            HEADER_LEN + random.below(record.len() - HEADER_LEN)
        };
        let Some(byte) = record.get_mut(at) else { continue };
        *byte = match random.below(5) {
            0 => 0,
            1 => 0xFF,
            2 => *byte ^ 1 << random.below(8),
            3 => byte.wrapping_add(1),
            _ => random.next() as u8,
        };
        if at == 17 {
            *byte %= 23;
        }
    }
    let crc = crc(record).to_le_bytes();
    record[20..24].copy_from_slice(&crc);
}

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let mut args = std::env::args().skip(1);
    let seconds: u64 = args.next().ok_or("how many seconds?")?.parse()?;
    let seed: u64 = args.next().ok_or("which seed?")?.parse()?;
    let segments: Vec<Segment> = args
        .map(|path| {
            let bytes = std::fs::read(path)?;
            let places = records(&bytes)?;
            Ok((bytes, places))
        })
        .collect::<Result<_, Box<dyn std::error::Error>>>()?;
    println!("seed {seed}, {} segments", segments.len());
    let mut random = Random(seed | 1);
    let begin = Instant::now();
    let (mut rounds, mut indexed, mut refused, mut damaged, mut accepted) = (0_u64, 0_u64, 0_u64, 0_u64, 0_u64);
    while begin.elapsed() < Duration::from_secs(seconds) {
        rounds += 1;
        let (bytes, places) = &segments[random.below(segments.len())];
        let mut bytes = bytes.clone();
        for _ in 0..1 + random.below(200) {
            if let Some((at, len)) = places.get(random.below(places.len())) {
                change(&mut bytes[*at..at + len], &mut random);
            }
        }
        let (_, index) = index_segment(&bytes, None, &IndexOptions::usual())?;
        let Ok(index) = index else {
            refused += 1;
            continue;
        };
        indexed += 1;
        let section = wal_index::encode(&index)?;
        let read = wal_index::decode(&section).map_err(|error| format!("round {rounds}: {error:?}"))?;
        if read != index {
            return Err(format!("seed {seed}, round {rounds}: another index comes back").into());
        }
        let mut twice = index.clone();
        twice.append(index);
        let _ = wal_index::encode(&twice);
        for _ in 0..50 {
            let mut section = section.clone();
            for _ in 0..1 + random.below(3) {
                let at = random.below(section.len());
                section[at] ^= 1 << random.below(8);
            }
            match wal_index::decode(&section) {
                Ok(_) => accepted += 1,
                Err(_) => damaged += 1,
            }
        }
    }
    println!("{rounds} rounds: {indexed} indexed, {refused} refused; sections: {damaged} damaged, {accepted} accepted");
    Ok(())
}
