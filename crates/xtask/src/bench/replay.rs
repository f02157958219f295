//! Replay of WAL that `wal fetch` brings, against the same WAL lying in `pg_wal` already.

use super::Options;
use super::field::{builder, pgkeep_beside, segments_in_state, set_archive_command, settle};
use super::measure::{Run, dir_bytes, reap_background};
use super::table::Table;
use anyhow::{Context, Result, bail};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};
use testkit::load::fill;
use testkit::pg::{Cluster, StopMode};

/// Who gives replay its WAL.
struct Way {
    name: &'static str,
    restore_command: String,
    in_pg_wal: bool,
    runs: Vec<Run>,
}

/// A copy of a stopped cluster recovers through the WAL of all that came after it. The time is what PostgreSQL says that
/// redo took.
pub(super) fn replay(options: &Options) -> Result<Table> {
    let mut cluster = builder(options).conf("wal_keep_size", "1TB").start()?;
    let product = pgkeep_beside(options, &cluster)?;
    fill(&cluster, options.megabytes.min(256))?;
    let first = cluster.sql("SELECT pg_walfile_name(pg_current_wal_insert_lsn())")?;
    cluster.stop(StopMode::Fast)?;
    let base = cluster.home().join("base");
    copy(&cluster, cluster.data_dir(), &base)?;
    cluster.start_again()?;
    let push = format!("{} --config {} -q wal push %p", product.program.display(), product.config.display());
    set_archive_command(&cluster, &push)?;
    println!("writing {} segments of WAL ...", options.segments);
    let begun = segments_in_state(&cluster, ".done")?.len();
    while segments_in_state(&cluster, ".done")?.len() + segments_in_state(&cluster, ".ready")?.len()
        < begun + options.segments
    {
        fill(&cluster, 64)?;
    }
    let last = cluster.switch_wal()?;
    cluster.wait_archived(&last, Duration::from_secs(600))?;
    cluster.stop(StopMode::Immediate)?;
    let fetch = format!("{} --config {} -q wal fetch %f %p", product.program.display(), product.config.display());
    let mut ways = [
        Way { name: "pgkeep wal fetch", restore_command: fetch, in_pg_wal: false, runs: Vec::new() },
        Way { name: "in pg_wal already", restore_command: "/bin/false".into(), in_pg_wal: true, runs: Vec::new() },
        Way {
            name: "cp from a directory",
            restore_command: format!("cp {}/%f %p", wal_of(&cluster).display()),
            in_pg_wal: false,
            runs: Vec::new(),
        },
    ];
    let names = super::peers::names(&wal_of(&cluster))?.into_iter();
    let names: Vec<String> = names.filter(|name| name.len() == 24 && *name >= first && *name <= last).collect();
    for round in 0..options.pairs {
        let mut order: Vec<usize> = (0..ways.len()).collect();
        if round % 2 == 1 {
            order.reverse();
        }
        for position in order {
            let way = &mut ways[position];
            let run = recover(options, &cluster, &base, way, &names)?;
            println!("replay: {}: {:.2} s, {:.2} s of CPU", way.name, run.seconds, run.cpu_seconds);
            way.runs.push(run);
        }
    }
    let rows = ways.into_iter().map(|way| (way.name.to_owned(), way.runs)).collect();
    Ok(Table { title: format!("Replay of {} segments (PostgreSQL {})", names.len(), options.pg), rows })
}

fn wal_of(cluster: &Cluster) -> PathBuf {
    cluster.data_dir().join("pg_wal")
}

fn copy(cluster: &Cluster, from: &Path, to: &Path) -> Result<()> {
    let mut command = cluster.command_as_pg("cp");
    command.args(["-a", "--reflink=auto"]).arg(from).arg(to);
    super::peers::run(command, &[0])
}

/// Recovers a copy of `base`; what redo took.
fn recover(options: &Options, origin: &Cluster, base: &Path, way: &Way, names: &[String]) -> Result<Run> {
    let data = origin.home().join("recovered");
    copy(origin, base, &data)?;
    let mut cluster = Cluster::adopt(&data, options.pg)?;
    for (name, value) in [
        ("archive_mode", "off"),
        ("restore_command", way.restore_command.as_str()),
        ("recovery_target_action", "shutdown"),
        ("recovery_target_timeline", "current"),
        ("log_line_prefix", "%m "),
    ] {
        cluster.append_conf(name, value)?;
    }
    std::fs::write(data.join("recovery.signal"), "")?;
    origin.user().own(&data.join("recovery.signal"))?;
    // What the base has must be fetched like the others; and nobody may find what is left of recycled ones.
    for name in super::peers::names(&data.join("pg_wal"))?.iter().filter(|name| name.len() == 24) {
        std::fs::remove_file(data.join("pg_wal").join(name))?;
    }
    for name in names.iter().filter(|_| way.in_pg_wal) {
        let to = data.join("pg_wal").join(name);
        std::fs::copy(wal_of(origin).join(name), &to)?;
        origin.user().own(&to)?;
    }
    settle()?;
    let before = super::measure::cpu_seconds_of_children();
    let begun = Instant::now();
    cluster.start_again()?;
    while cluster.sql("SELECT pg_is_in_recovery()")? == "t" {
        if begun.elapsed() > Duration::from_secs(900) {
            bail!("recovery does not end; the log ends with\n{}", cluster.log_tail());
        }
        std::thread::sleep(Duration::from_millis(50));
    }
    let log = cluster.log();
    cluster.stop(StopMode::Fast)?;
    reap_background();
    let cpu_seconds = super::measure::cpu_seconds_of_children() - before;
    let seconds = redo_seconds(&log).with_context(|| format!("PostgreSQL does not say how long redo took:\n{log}"))?;
    drop(cluster);
    let run = Run { seconds, cpu_seconds, memory_bytes: 0, stored_bytes: dir_bytes(&data) };
    std::fs::remove_dir_all(&data)?;
    Ok(run)
}

/// `redo done at … system usage: CPU: …, elapsed: 12.34 s` (`src/backend/access/transam/xlogrecovery.c`).
fn redo_seconds(log: &str) -> Option<f64> {
    let line = log.lines().find(|line| line.contains("redo done at"))?;
    line.rsplit_once("elapsed: ")?.1.trim().strip_suffix('s')?.trim().parse().ok()
}

#[cfg(test)]
mod tests {
    #[test]
    fn the_time_of_redo() {
        let log =
            "x\n2026 LOG:  redo done at 0/3000060 system usage: CPU: user: 1.10 s, system: 0.00 s, elapsed: 12.34 s\n";
        assert_eq!(super::redo_seconds(log), Some(12.34));
        assert_eq!(super::redo_seconds("nothing"), None);
    }
}
