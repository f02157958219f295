//! How much processor time the index of WAL segments takes to make, and how large it is, one core:
//! `cargo run --release -p repo --example wal_index_speed -- SEGMENTS`.
#![allow(missing_docs, clippy::print_stdout)]

use pg_wal::{IndexOptions, index_segment, scan_segment};
use repo::block::BlockEncoder;
use repo::{Compression, wal_index};
use std::time::Duration;

/// Processor time of this process, which other processes hardly change.
fn cpu_time() -> Duration {
    let text = std::fs::read_to_string("/proc/self/schedstat").unwrap_or_default();
    Duration::from_nanos(text.split(' ').next().and_then(|ns| ns.parse().ok()).unwrap_or(0))
}

fn timed<T>(total: &mut Duration, work: impl FnOnce() -> T) -> T {
    let begin = cpu_time();
    let value = work();
    *total += cpu_time() - begin;
    value
}

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let (mut scan, mut index, mut pack, mut unpack, mut compress) = Default::default();
    let (mut plain, mut stored, mut packed, mut records, mut transactions) = (0, 0, 0, 0, 0);
    let mut encoder = BlockEncoder::new(Compression::Zstd(1));
    let mut segments = 0;
    for path in std::env::args().skip(1) {
        let bytes = std::fs::read(&path)?;
        let facts = timed(&mut scan, || scan_segment(&bytes, None))?;
        if facts.unreadable.is_some() {
            continue;
        }
        let (_, made) = timed(&mut index, || index_segment(&bytes, None, &IndexOptions::usual()))?;
        let made = made?;
        let section = timed(&mut pack, || wal_index::encode(&made))?;
        let read = timed(&mut unpack, || wal_index::decode(&section));
        assert!(read.is_ok_and(|read| read == made));
        let mut out = Vec::new();
        timed(&mut compress, || bytes.chunks(4 << 20).map(|block| encoder.encode(block, &mut out)).sum::<usize>());
        segments += 1;
        plain += bytes.len();
        stored += out.len();
        packed += section.len();
        records += facts.records;
        transactions += made.transactions.len();
    }
    let rate = |time: Duration| plain as f64 / 1e6 / time.as_secs_f64();
    println!("{segments} segments, {plain} bytes, {records} records, {transactions} transactions");
    println!("zstd 1: {stored} bytes, {:.0} MB/s", rate(compress));
    println!("index: {packed} bytes, {:.2} % of that", packed as f64 * 100.0 / stored as f64);
    println!("reading records: {:.0} MB/s; with index: {:.0} MB/s", rate(scan), rate(index));
    println!("packing: {:.0} MB/s of WAL; unpacking: {:.0}", rate(pack), rate(unpack));
    Ok(())
}
