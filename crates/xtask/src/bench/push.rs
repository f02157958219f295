//! Pushing the segments of a write load, one call after another as the archiver does.

use super::Options;
use super::field::{Field, builder, contenders, report, reset, segments_in_state, set_archive_command};
use super::measure::{dir_bytes, measure};
use super::peers::{Archiving, PgBackRest};
use super::table::Table;
use super::workloads::new_table;
use anyhow::{Context, Result};
use testkit::load::fill;
use testkit::pg::{Cluster, StopMode};

/// The archiver's work on a backlog: the command once for each ready segment, in order, marking it done.
pub(super) fn wal_push(options: &Options) -> Result<Table> {
    let cluster = builder(options).start()?;
    let mut all = contenders(options, &cluster)?;
    if !options.no_peers {
        all.push(Box::new(PgBackRest::install(&cluster, Archiving::Synchronous)?));
    }
    let mut field = Field::new(cluster, all, options)?;
    set_archive_command(&field.cluster, "/bin/false")?;
    println!("writing {} segments of WAL ...", options.segments);
    let mut ready = Vec::new();
    for _ in 0..200 {
        fill(&field.cluster, 64)?;
        ready = segments_in_state(&field.cluster, ".ready")?;
        if ready.len() > options.segments {
            break;
        }
    }
    // A server that stops archives what is ready; this one cannot, and nothing changes while the contenders work.
    field.cluster.stop(StopMode::Immediate)?;
    ready.sort();
    // Some contenders push whatever is ready: the rest must not look like work.
    let rest = ready.split_off(options.segments.min(ready.len()));
    mark(&field.cluster, &rest, ".ready", ".done")?;
    let mut table = new_table(format!("Push of {} ready segments (PostgreSQL {})", ready.len(), options.pg), &field);
    for round in 0..options.pairs {
        for position in field.order(round) {
            let contender = field.contenders[position].as_ref();
            reset(contender)?;
            mark(&field.cluster, &ready, ".done", ".ready")?;
            let command = contender.push_command(&field.cluster).context("this contender cannot archive")?;
            let mut archiver = field.cluster.command_as_pg("bash");
            archiver.arg("-c").arg(archiver_script(&command)).arg("archiver").args(&ready);
            archiver.current_dir(field.cluster.data_dir());
            let mut measured = measure(archiver, contender.accepted())?;
            measured.stored_bytes = dir_bytes(contender.repo());
            report("push", contender, measured);
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
