//! How fast one core makes chunks of the files given, and how small: `cargo run --release -p repo --example
//! chunk_speed -- zstd:1 FILE...`. The parts (page hashes, chunk hash, compression) are timed apart and together.

#![allow(clippy::print_stdout, reason = "this is a program")]

use repo::block::BlockEncoder;
use repo::chunk::{ChunkEncoder, PageContent, page_hash};
use std::time::Instant;

fn main() {
    let mut args = std::env::args().skip(1);
    let compression: repo::Compression =
        args.next().as_deref().unwrap_or("zstd:1").parse().expect("none, lz4, zstd:LEVEL");
    let files: Vec<Vec<u8>> = args.map(|path| std::fs::read(path).expect("a file that can be read")).collect();
    let plain: u64 = files.iter().map(|file| file.len() as u64).sum();
    let chunks = || files.iter().flat_map(|file| file.chunks(64 * 8192));
    let report = |what: &str, began: Instant, stored: u64| {
        let seconds = began.elapsed().as_secs_f64();
        println!("{what:<14}{:>8.0} MB/s   {stored} of {plain} bytes", plain as f64 / 1e6 / seconds);
    };

    let mut scratch = Vec::new();
    let began = Instant::now();
    let mut hashes = 0u64;
    for page in chunks().flat_map(|chunk| chunk.chunks(8192)) {
        hashes ^= page_hash(page, PageContent::Relation, &mut scratch);
    }
    report("page hashes", began, hashes & 1);

    let began = Instant::now();
    let mut hash = 0u8;
    for chunk in chunks() {
        hash ^= blake3::hash(chunk).as_bytes()[0];
    }
    report("chunk hashes", began, u64::from(hash & 1));

    let mut block = BlockEncoder::new(compression);
    let mut out = Vec::new();
    let began = Instant::now();
    let mut stored = 0;
    for chunk in chunks() {
        out.clear();
        stored += block.encode(chunk, &mut out) as u64;
    }
    report("compression", began, stored);

    let mut encoder = ChunkEncoder::new(compression);
    let began = Instant::now();
    let mut stored = 0;
    for chunk in chunks() {
        stored += encoder.encode(chunk, 8192, PageContent::Relation).stored.len() as u64;
    }
    report("all", began, stored);
}
