//! Pushing the segments of a write load, one call after another as the archiver does.

use super::Options;
use super::field::{Field, builder, contenders, report, reset, segments_in_state, set_archive_command, settle};
use super::measure::{Run, dir_bytes, measure, measure_with_background};
use super::peers::{Archiving, PgBackRest};
use super::table::Table;
use super::workloads::new_table;
use anyhow::{Context, Result};
use testkit::load::fill;
use testkit::pg::{Cluster, StopMode};

/// To compare with: the command-line program, which does nothing but compress, and keeps checksums as well.
const FLOOR: &str = "zstd -1 of the segments, 2 processes, flushed";

/// The archiver's work on a backlog: the command once for each ready segment, in order, marking it done. Processor time
/// is that of all processes, those in the background included; the time is that of the archiver.
pub(super) fn wal_push(options: &Options) -> Result<Table> {
    let cluster = builder(options).start()?;
    let mut all = contenders(options, &cluster)?;
    if !options.no_peers {
        all.push(Box::new(PgBackRest::install(&cluster, Archiving::Synchronous)?));
    }
    let mut field = Field::new(cluster, all, options)?;
    let ready = write_backlog(&mut field.cluster, options.segments)?;
    let mut table = new_table(format!("Push of {} ready segments (PostgreSQL {})", ready.len(), options.pg), &field);
    let mut floor = Vec::new();
    for round in 0..options.pairs {
        floor.push(measure_floor(&field.cluster, &ready)?);
        for position in field.order(round) {
            let contender = field.contenders[position].as_ref();
            reset(contender)?;
            mark(&field.cluster, &ready, ".done", ".ready")?;
            let command = contender.push_command(&field.cluster).context("this contender cannot archive")?;
            let mut archiver = field.cluster.command_as_pg("bash");
            archiver.arg("-c").arg(archiver_script(&command)).arg("archiver").args(&ready);
            archiver.current_dir(field.cluster.data_dir());
            settle()?;
            let mut measured = measure_with_background(archiver, contender.accepted())?;
            measured.stored_bytes = dir_bytes(contender.repo());
            report("push", contender, measured);
            table.rows[position].1.push(measured);
        }
    }
    table.rows.push((FLOOR.to_owned(), floor));
    Ok(table)
}

/// Has the server write so many segments and archive none; it is stopped then. Their names, in order.
pub(super) fn write_backlog(cluster: &mut Cluster, segments: usize) -> Result<Vec<String>> {
    set_archive_command(cluster, "/bin/false")?;
    println!("writing {segments} segments of WAL ...");
    let mut ready = Vec::new();
    for _ in 0..400 {
        fill(cluster, 64)?;
        ready = segments_in_state(cluster, ".ready")?;
        if ready.len() > segments {
            break;
        }
    }
    // A server that stops archives what is ready; this one cannot, and nothing changes while the contenders work.
    cluster.stop(StopMode::Immediate)?;
    ready.sort();
    // Some contenders push whatever is ready: the rest must not look like work.
    let rest = ready.split_off(segments.min(ready.len()));
    mark(cluster, &rest, ".ready", ".done")?;
    Ok(ready)
}

fn measure_floor(cluster: &Cluster, ready: &[String]) -> Result<Run> {
    crate::setup::program("zstd", "zstd").context("the floor needs zstd")?;
    let target = cluster.make_dir("floor")?;
    let script =
        "cd pg_wal; printf '%s\\n' \"${@:2}\" | xargs -P 2 -I{} zstd -1 -q {} -o \"$1/{}.zst\"; sync -f \"$1\"";
    let mut command = cluster.command_as_pg("bash");
    command.args(["-c", &format!("set -eo pipefail; {script}"), "floor"]).arg(&target).args(ready);
    command.current_dir(cluster.data_dir());
    settle()?;
    let mut run = measure(command, &[0])?;
    run.stored_bytes = dir_bytes(&target);
    println!("{FLOOR}: {:.2} s, {:.2} s of CPU", run.seconds, run.cpu_seconds);
    std::fs::remove_dir_all(&target)?;
    Ok(run)
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
