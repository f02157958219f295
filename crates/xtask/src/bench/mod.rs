//! `cargo xtask bench`: pgkeep and its peers on the same cluster, in turns (A B A B), so that what else the machine
//! does hits all alike. The result is a table of medians and their ratio to pgkeep's.

mod measure;
mod peers;
mod table;
mod workloads;

use anyhow::Result;
use clap::ValueEnum;
use testkit::pg::DEFAULT_MAJOR;

#[derive(Debug, clap::Args)]
pub(crate) struct Options {
    /// What to measure; all without it
    #[arg(value_enum)]
    benches: Vec<Bench>,
    /// Size of the data
    #[arg(long, default_value_t = 3072)]
    megabytes: u64,
    /// How many times each contender runs
    #[arg(long, default_value_t = 3)]
    pairs: usize,
    /// How many WAL segments are pushed
    #[arg(long, default_value_t = 100)]
    segments: usize,
    /// PostgreSQL's major version
    #[arg(long, default_value_t = DEFAULT_MAJOR)]
    pg: u32,
    /// Leave pgkeep out, to measure the peers alone
    #[arg(long)]
    peers_only: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Bench {
    /// Full backup with zstd level 1 and two workers
    Backup,
    /// Restore of that backup into a new directory
    Restore,
    /// Ready segments of a real write load, one call after another as the archiver does
    WalPush,
}

pub(crate) fn run(options: &Options) -> Result<()> {
    let all = [Bench::Backup, Bench::Restore, Bench::WalPush];
    let wanted = if options.benches.is_empty() { &all[..] } else { &options.benches };
    let mut tables = Vec::new();
    if wanted.contains(&Bench::Backup) || wanted.contains(&Bench::Restore) {
        tables.extend(workloads::backup_and_restore(options, wanted.contains(&Bench::Restore))?);
    }
    if wanted.contains(&Bench::WalPush) {
        tables.push(workloads::wal_push(options)?);
    }
    println!("\nmade by: {}", command_line());
    for table in tables {
        println!("\n{table}");
    }
    Ok(())
}

fn command_line() -> String {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    format!("cargo xtask {}", arguments.join(" "))
}
