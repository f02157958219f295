//! `cargo xtask bench`: pgkeep and its peers on the same cluster, in turns (A B B A), so that what else the machine
//! does hits all alike. The result is a table of medians and their ratio to pgkeep's.

mod changes;
mod dump;
mod field;
mod find;
mod floors;
mod incremental;
mod load;
mod many;
mod measure;
mod peers;
mod pgbackrest;
mod push;
mod receive;
mod replay;
mod stream;
mod table;
mod warm;
mod workloads;

use anyhow::Result;
use clap::ValueEnum;
use testkit::pg::DEFAULT_MAJOR;

#[derive(Debug, clap::Args)]
pub(crate) struct Options {
    /// What to measure; without it backup, restore, incremental and wal-push
    #[arg(value_enum)]
    benches: Vec<Bench>,
    /// Size of the data
    #[arg(long, default_value_t = 3072)]
    megabytes: u64,
    /// Size of the data in the second part of `growth`
    #[arg(long, default_value_t = 20_480, value_name = "MEGABYTES")]
    grow_to: u64,
    /// Share of the pages that random updates touch before an incremental backup
    #[arg(long, default_value_t = 1.0)]
    percent: f64,
    /// Leave gaps in pgkeep's archive, so that it must find changed pages without its index of the WAL
    #[arg(long)]
    no_wal_index: bool,
    /// How many incremental backups `chain` makes
    #[arg(long, default_value_t = 30)]
    links: usize,
    /// How many tables `many` makes
    #[arg(long, default_value_t = 200_000)]
    tables: u64,
    /// How many times each contender runs
    #[arg(long, default_value_t = 3)]
    pairs: usize,
    /// How many WAL segments are pushed
    #[arg(long, default_value_t = 100)]
    segments: usize,
    /// PostgreSQL's major version
    #[arg(long, default_value_t = DEFAULT_MAJOR)]
    pg: u32,
    /// Measure this pgkeep instead of a build of this tree; may be repeated to compare builds
    #[arg(long = "program", value_name = "FILE")]
    programs: Vec<std::path::PathBuf>,
    /// Leave pgkeep out, to measure the peers alone
    #[arg(long, conflicts_with = "programs")]
    peers_only: bool,
    /// Leave the peers out
    #[arg(long, conflicts_with = "peers_only")]
    no_peers: bool,
    /// Show what contenders say in backups
    #[arg(long, short)]
    verbose: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Bench {
    /// Full backup with zstd level 1 and two workers
    Backup,
    /// Restore of that backup into a new directory
    Restore,
    /// Backup of what changed after random updates
    Incremental,
    /// The same change to a small cluster and to a large one (needs three times the disk space)
    Growth,
    /// Incremental backups in a row, then restores of the first and of the last
    Chain,
    /// Full backup, incremental backup and restore of very many small tables
    Many,
    /// Transactions per second of pgbench while backups are made
    Load,
    /// Full backup over the replication protocol, beside pg_basebackup with server-side zstd
    Stream,
    /// The second pass of an offline backup, beside rsync's (needs rsync)
    Warm,
    /// Ready segments of a real write load, one call after another as the archiver does
    WalPush,
    /// Commits that wait for `wal receive`, beside pg_receivewal --synchronous
    Receive,
    /// `find` and `wal log` over an archive of `--segments`; 640 are 10 GB
    Find,
    /// Dumps and loads of one large table and twenty of middling size, beside pg_dump and pg_restore
    Dump,
    /// Replay of archived segments through `wal fetch`, and with the segments in pg_wal
    Replay,
}

pub(crate) fn run(options: &Options) -> Result<()> {
    let usual = [Bench::Backup, Bench::Restore, Bench::Incremental, Bench::WalPush];
    let wanted = if options.benches.is_empty() { &usual[..] } else { &options.benches };
    let is_wanted = |bench| wanted.contains(&bench);
    let mut tables = Vec::new();
    if is_wanted(Bench::Backup) || is_wanted(Bench::Restore) {
        tables.extend(workloads::backup_and_restore(options, is_wanted(Bench::Restore))?);
    }
    if is_wanted(Bench::Incremental) {
        tables.push(incremental::incremental(options)?);
    }
    if is_wanted(Bench::Growth) {
        tables.extend(incremental::growth(options)?);
    }
    if is_wanted(Bench::Chain) {
        tables.extend(incremental::chain(options)?);
    }
    if is_wanted(Bench::Many) {
        tables.extend(many::many(options)?);
    }
    if is_wanted(Bench::Load) {
        tables.push(load::load(options)?);
    }
    if is_wanted(Bench::Stream) {
        tables.push(stream::stream(options)?);
    }
    if is_wanted(Bench::Warm) {
        tables.push(warm::warm(options)?);
    }
    if is_wanted(Bench::WalPush) {
        tables.push(push::wal_push(options)?);
    }
    if is_wanted(Bench::Receive) {
        tables.extend(receive::receive(options)?);
    }
    if is_wanted(Bench::Find) {
        tables.push(find::find(options)?);
    }
    if is_wanted(Bench::Replay) {
        tables.push(replay::replay(options)?);
    }
    if is_wanted(Bench::Dump) {
        tables.extend(dump::dump(options)?);
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
