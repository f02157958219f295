//! How much processor time the index of WAL segments takes to make, and how large it is, one core:
//! `cargo run --release -p repo --example wal_index_speed -- SEGMENTS`.
#![allow(missing_docs, clippy::print_stdout)]

use pg_wal::{IndexOptions, WalIndex, index_segment, scan_segment};
use repo::block::BlockEncoder;
use repo::{Compression, wal_index};
use std::time::Duration;

/// Processor time of this process, which other processes hardly change. The kernel counts it every few milliseconds.
fn cpu_time() -> Duration {
    let text = std::fs::read_to_string("/proc/self/schedstat").unwrap_or_default();
    Duration::from_nanos(text.split(' ').next().and_then(|ns| ns.parse().ok()).unwrap_or(0))
}

/// Does the work on all of them, as often as it takes to measure it, and says how fast that was.
fn rate<T, U>(inputs: &[T], plain: usize, work: impl Fn(&T) -> U) -> f64 {
    let begin = cpu_time();
    let mut rounds = 0;
    while rounds == 0 || cpu_time() - begin < Duration::from_millis(800) {
        inputs.iter().for_each(|input| drop(std::hint::black_box(work(input))));
        rounds += 1;
    }
    (plain * rounds) as f64 / 1e6 / (cpu_time() - begin).as_secs_f64()
}

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let mut segments: Vec<Vec<u8>> = Vec::new();
    for path in std::env::args().skip(1) {
        let bytes = std::fs::read(&path)?;
        if scan_segment(&bytes, None)?.unreadable.is_none() {
            segments.push(bytes);
        }
    }
    let index = |bytes: &Vec<u8>| -> Result<WalIndex, pg_wal::WalError> {
        index_segment(bytes, None, &IndexOptions::usual())?.1
    };
    let compress = |bytes: &Vec<u8>| {
        let (mut encoder, mut out) = (BlockEncoder::new(Compression::Zstd(1)), Vec::new());
        bytes.chunks(4 << 20).map(|block| encoder.encode(block, &mut out)).sum::<usize>()
    };
    let plain = segments.iter().map(Vec::len).sum();
    let indexes = segments.iter().map(index).collect::<Result<Vec<_>, _>>()?;
    let sections = indexes.iter().map(wal_index::encode).collect::<Result<Vec<_>, _>>()?;
    for (section, index) in sections.iter().zip(&indexes) {
        assert!(wal_index::decode(section).is_ok_and(|read| read == *index));
    }
    let records: u64 = segments.iter().map(|bytes| scan_segment(bytes, None).map_or(0, |facts| facts.records)).sum();
    let transactions: usize = indexes.iter().map(|index| index.transactions.len()).sum();
    let stored: usize = segments.iter().map(compress).sum();
    let packed: usize = sections.iter().map(Vec::len).sum();
    println!("{} segments, {plain} bytes, {records} records, {transactions} transactions", segments.len());
    println!("index: {packed} bytes, {:.2} % of {stored} with zstd 1", packed as f64 * 100.0 / stored as f64);
    println!("zstd 1: {:.0} MB/s", rate(&segments, plain, compress));
    println!("reading records: {:.0} MB/s", rate(&segments, plain, |bytes| scan_segment(bytes, None)));
    println!("reading and indexing: {:.0} MB/s", rate(&segments, plain, index));
    println!("packing: {:.0} MB/s of WAL", rate(&indexes, plain, wal_index::encode));
    println!("unpacking: {:.0} MB/s of WAL", rate(&sections, plain, |section| wal_index::decode(section)));
    Ok(())
}
