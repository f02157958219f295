//! What is measured: backup and restore of a filled cluster, and pushing the segments of a write load.

use super::Options;
use super::measure::{Run, dir_bytes, measure};
use super::peers::{Archiving, BaseBackup, Contender, PgBackRest, Pgkeep, run};
use super::table::Table;
use crate::product::{Build, Product, build};
use anyhow::{Context, Result, bail};
use std::path::{Path, PathBuf};
use std::time::Duration;
use testkit::load::fill;
use testkit::pg::{Cluster, StopMode};

/// A cluster that archives, with nothing in it yet.
fn new_cluster(options: &Options) -> Result<Cluster> {
    Cluster::builder(options.pg)
        .archive_command("/bin/true")
        .conf("max_wal_size", "4GB")
        .conf("shared_buffers", "512MB")
        .conf("maintenance_work_mem", "256MB")
        .conf("max_wal_senders", "4")
        .start()
}

fn contenders(options: &Options, cluster: &Cluster) -> Result<Vec<Box<dyn Contender>>> {
    let mut all: Vec<Box<dyn Contender>> = Vec::new();
    if !options.peers_only {
        let program = build(Build::Release)?;
        all.push(Box::new(Pgkeep { product: Product::install(cluster, &program)? }));
    }
    all.push(Box::new(PgBackRest::install(cluster, Archiving::Asynchronous)?));
    Ok(all)
}

pub(super) fn backup_and_restore(options: &Options, with_restore: bool) -> Result<Vec<Table>> {
    let mut cluster = new_cluster(options)?;
    println!("filling a cluster with {} MB ...", options.megabytes);
    let filled = fill(&cluster, options.megabytes)?;
    cluster.sql("CHECKPOINT")?;
    let size = dir_bytes(cluster.data_dir()) - dir_bytes(&cluster.data_dir().join("pg_wal"));
    println!("{} MB, {} orders", size >> 20, filled.orders);
    let mut all = contenders(options, &cluster)?;
    if options.pg >= 15 {
        all.push(Box::new(BaseBackup { dir: cluster.home().join("basebackup") }));
    }
    for contender in &all {
        contender.prepare(&mut cluster)?;
        save_empty(contender.as_ref())?;
    }
    let mut backups = new_table(format!("Full backup of {} MB", size / 1_000_000), &all);
    let mut restores = new_table(format!("Restore of {} MB", size / 1_000_000), &all);
    for round in 0..options.pairs {
        for (position, contender) in all.iter().enumerate() {
            set_archive_command(&cluster, "/bin/true")?;
            drain_archiver(&cluster)?;
            reset(contender.as_ref())?;
            if let Some(command) = contender.archive_command(&cluster) {
                set_archive_command(&cluster, &command)?;
            }
            drain_archiver(&cluster)?;
            let mut measured = measure(contender.backup(&cluster), contender.accepted())?;
            measured.stored_bytes = dir_bytes(contender.repo());
            report(&format!("backup {}", round + 1), contender.as_ref(), measured);
            backups.rows[position].1.push(measured);
            if !with_restore {
                continue;
            }
            let target = cluster.make_dir("target")?;
            if let Some(command) = contender.restore(&cluster, &target) {
                let mut measured = measure(command, contender.accepted())?;
                measured.stored_bytes = dir_bytes(&target);
                if measured.stored_bytes < size / 2 {
                    bail!("{} restored only {} bytes of {size}", contender.name(), measured.stored_bytes);
                }
                report(&format!("restore {}", round + 1), contender.as_ref(), measured);
                restores.rows[position].1.push(measured);
            }
            std::fs::remove_dir_all(&target)?;
        }
    }
    set_archive_command(&cluster, "/bin/true")?;
    restores.rows.retain(|(_, runs)| !runs.is_empty());
    Ok(if with_restore { vec![backups, restores] } else { vec![backups] })
}

/// The archiver's work on a backlog: the command once for each ready segment, in order, marking it done.
pub(super) fn wal_push(options: &Options) -> Result<Table> {
    let mut cluster = new_cluster(options)?;
    let mut all = contenders(options, &cluster)?;
    all.push(Box::new(PgBackRest::install(&cluster, Archiving::Synchronous)?));
    for contender in &all {
        contender.prepare(&mut cluster)?;
        save_empty(contender.as_ref())?;
    }
    set_archive_command(&cluster, "/bin/false")?;
    println!("writing {} segments of WAL ...", options.segments);
    let mut ready = Vec::new();
    for _ in 0..200 {
        fill(&cluster, 64)?;
        ready = segments_in_state(&cluster, ".ready")?;
        if ready.len() > options.segments {
            break;
        }
    }
    // A server that stops archives what is ready; this one cannot, and nothing changes while the contenders work.
    cluster.stop(StopMode::Immediate)?;
    ready.sort();
    // Some contenders push whatever is ready: the rest must not look like work.
    let rest = ready.split_off(options.segments.min(ready.len()));
    mark(&cluster, &rest, ".ready", ".done")?;
    let mut table = new_table(format!("Push of {} ready segments", ready.len()), &all);
    for round in 0..options.pairs {
        for (position, contender) in all.iter().enumerate() {
            reset(contender.as_ref())?;
            mark(&cluster, &ready, ".done", ".ready")?;
            let command = contender.push_command(&cluster).context("this contender cannot archive")?;
            let mut archiver = cluster.command_as_pg("bash");
            archiver.arg("-c").arg(archiver_script(&command)).arg("archiver").args(&ready);
            archiver.current_dir(cluster.data_dir());
            let mut measured = measure(archiver, contender.accepted())?;
            measured.stored_bytes = dir_bytes(contender.repo());
            report(&format!("push {}", round + 1), contender.as_ref(), measured);
            table.rows[position].1.push(measured);
        }
    }
    Ok(table)
}

/// What `pgarch_ArchiverCopyLoop` does (`src/backend/postmaster/pgarch.c`), without its waits.
fn archiver_script(command: &str) -> String {
    let command = command.replace("%p", "\"pg_wal/$name\"").replace("%f", "\"$name\"");
    format!(
        "set -e\nfor name in \"$@\"; do\n  {command}\n  mv \"pg_wal/archive_status/$name.ready\" \
         \"pg_wal/archive_status/$name.done\"\ndone\n"
    )
}

fn segments_in_state(cluster: &Cluster, state: &str) -> Result<Vec<String>> {
    let dir = cluster.data_dir().join("pg_wal/archive_status");
    let names = std::fs::read_dir(&dir).with_context(|| format!("cannot read {}", dir.display()))?;
    let names = names.filter_map(Result::ok).map(|entry| entry.file_name().to_string_lossy().into_owned());
    Ok(names.filter_map(|name| name.strip_suffix(state).map(str::to_owned)).filter(|name| name.len() == 24).collect())
}

fn mark(cluster: &Cluster, segments: &[String], from: &str, to: &str) -> Result<()> {
    let dir = cluster.data_dir().join("pg_wal/archive_status");
    for name in segments {
        let old = dir.join(format!("{name}{from}"));
        if old.exists() {
            std::fs::rename(&old, dir.join(format!("{name}{to}")))?;
        }
    }
    Ok(())
}

fn new_table(title: String, all: &[Box<dyn Contender>]) -> Table {
    Table { title, rows: all.iter().map(|contender| (contender.name().to_owned(), Vec::new())).collect() }
}

fn report(what: &str, contender: &dyn Contender, run: Run) {
    let (megabytes, memory) = (run.stored_bytes >> 20, run.memory_bytes >> 20);
    println!("{what}: {}: {:.2} s, {megabytes} MiB stored, {memory} MiB memory", contender.name(), run.seconds);
}

/// Changes who archives. Nothing of the former is under way afterwards, and the archiver surely uses the new command:
/// it looks for changes before each segment.
fn set_archive_command(cluster: &Cluster, command: &str) -> Result<()> {
    let quoted = command.replace('\'', "''");
    cluster.sql(&format!("ALTER SYSTEM SET archive_command = '{quoted}'"))?;
    cluster.reload()?;
    let answered = format!("SELECT current_setting('archive_command') = '{quoted}'");
    cluster.wait_for(&answered, "t", Duration::from_secs(20))
}

/// Waits until the archiver has nothing to do.
fn drain_archiver(cluster: &Cluster) -> Result<()> {
    // A switch without anything to archive does nothing, so something is written first.
    let segment = cluster.sql("SELECT pg_create_restore_point('drain'); SELECT pg_walfile_name(pg_switch_wal())")?;
    let segment = segment.lines().last().unwrap_or_default();
    cluster.wait_archived(segment, Duration::from_secs(120))
}

fn empty_copy(contender: &dyn Contender) -> PathBuf {
    contender.repo().with_extension("empty")
}

/// Keeps a copy of the repository as it was made, so that every run begins with the same.
fn save_empty(contender: &dyn Contender) -> Result<()> {
    copy(contender.repo(), &empty_copy(contender))
}

fn reset(contender: &dyn Contender) -> Result<()> {
    let repo = contender.repo();
    std::fs::remove_dir_all(repo).with_context(|| format!("cannot remove {}", repo.display()))?;
    if let Some(spool) = repo.parent().map(|dir| dir.join("spool/archive")).filter(|dir| dir.exists()) {
        std::fs::remove_dir_all(spool)?;
    }
    copy(&empty_copy(contender), repo)?;
    // What earlier runs wrote must not be flushed during this one.
    run(std::process::Command::new("sync"), &[0])
}

fn copy(from: &Path, to: &Path) -> Result<()> {
    let mut command = std::process::Command::new("cp");
    command.arg("-a").arg(from).arg(to);
    run(command, &[0])
}
