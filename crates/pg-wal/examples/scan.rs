//! Scans WAL segments and prints what they are and how fast that went:
//! `cargo run --release -p pg-wal --example scan -- FILE...`
#![allow(clippy::print_stdout)]

use std::time::Instant;

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let files: Vec<Vec<u8>> = std::env::args().skip(1).map(std::fs::read).collect::<Result<_, _>>()?;
    let rounds = (2_000_000_000 / files.iter().map(Vec::len).sum::<usize>().max(1)).clamp(1, 200);
    let (mut bytes, mut records, mut blocks) = (0_usize, 0_u64, 0_usize);
    let start = Instant::now();
    for round in 0..rounds {
        for file in &files {
            let facts = pg_wal::facts::scan_segment_with(file, None, |record| blocks += record.blocks().len())?;
            bytes += (facts.last_lsn.0 - facts.info.start.0) as usize;
            records += facts.records;
            if round == 0 {
                println!(
                    "{} to {}: {} records, {} commits, {} aborts, {:?}",
                    facts.info.start, facts.valid_end, facts.records, facts.commits, facts.aborts, facts.unreadable
                );
            }
        }
    }
    let seconds = start.elapsed().as_secs_f64();
    println!(
        "{:.2} GB/s, {:.1} million records/s, {:.0} bytes and {:.2} blocks per record, {rounds} rounds of {} files",
        bytes as f64 / seconds / 1e9,
        records as f64 / seconds / 1e6,
        bytes as f64 / records.max(1) as f64,
        blocks as f64 / records.max(1) as f64,
        files.len()
    );
    Ok(())
}
