//! `pgkeep find` and `pgkeep wal log` over an archive of many segments, rolled up as archiving leaves it.

use super::Options;
use super::field::{builder, pgkeep_beside, segments_in_state, set_archive_command, settle};
use super::measure::{dir_bytes, measure};
use super::table::Table;
use anyhow::Result;
use std::time::Duration;
use testkit::load::fill;
use testkit::pg::StopMode;

/// Bulk loads and small transactions in turn, until so many segments are archived; then the archive is asked.
pub(super) fn find(options: &Options) -> Result<Table> {
    let mut cluster = builder(options).start()?;
    let product = pgkeep_beside(options, &cluster)?;
    let push = format!("{} --config {} -q wal push %p", product.program.display(), product.config.display());
    set_archive_command(&cluster, &push)?;
    cluster.tool("pgbench", &["-i", "-q", "-s", "10", "postgres"])?;
    super::peers::run(product.command(&cluster, &["backup", "-q"]), &[0, 4])?;
    println!("writing {} segments of WAL ...", options.segments);
    let first = written(&cluster)?;
    while written(&cluster)? < first + options.segments as u64 {
        cluster.tool("pgbench", &["-n", "-c", "2", "-T", "3", "postgres"])?;
        fill(&cluster, 128)?;
    }
    cluster.sql("CREATE TABLE mistake (x int); DROP TABLE mistake")?;
    let last = cluster.switch_wal()?;
    cluster.wait_archived(&last, Duration::from_secs(900))?;
    let left = segments_in_state(&cluster, ".ready")?.len();
    let segments = written(&cluster)? - first;
    cluster.stop(StopMode::Fast)?;
    super::peers::run(product.command(&cluster, &["wal", "index", "-q"]), &[0, 4])?;
    println!("{segments} segments are archived, {left} wait");
    let contenders: [(&str, &[&str]); 3] = [
        ("find drop mistake", &["find", "drop", "mistake", "-q"]),
        ("find", &["find", "-q"]),
        ("wal log", &["wal", "log", "-q"]),
    ];
    let mut rows: Vec<_> = contenders.iter().map(|(name, _)| ((*name).to_owned(), Vec::new())).collect();
    for _ in 0..options.pairs {
        for ((name, arguments), (_, runs)) in contenders.iter().zip(&mut rows) {
            settle()?;
            let mut run = measure(product.command(&cluster, arguments), &[0, 4])?;
            run.stored_bytes = dir_bytes(&product.repo);
            println!("{name}: {:.2} s, {:.2} s of CPU", run.seconds, run.cpu_seconds);
            runs.push(run);
        }
    }
    Ok(Table { title: format!("Searching {segments} segments of WAL (PostgreSQL {})", options.pg), rows })
}

/// How many segments were written since the beginning.
fn written(cluster: &testkit::pg::Cluster) -> Result<u64> {
    Ok(cluster.sql("SELECT pg_wal_lsn_diff(pg_current_wal_lsn(), '0/0')::bigint / (16 << 20)")?.parse()?)
}
