//! The downtime of a backup in two passes: the second pass of pgkeep beside that of rsync, which compares every file.

use super::Options;
use super::changes::touch_percent;
use super::field::{builder, one_program, settle};
use super::measure::{Run, measure, median};
use super::peers::{Contender, Pgkeep, run};
use super::table::Table;
use crate::product::Product;
use anyhow::{Context, Result};
use std::path::Path;
use std::process::Command;
use testkit::load::fill;
use testkit::pg::{Cluster, StopMode};

/// Each round: a first pass of both while the server runs, random updates, a stop, and the second passes.
pub(super) fn warm(options: &Options) -> Result<Table> {
    let mut cluster = builder(options).start()?;
    let pgkeep =
        Pgkeep { product: Product::install(&cluster, &one_program(options)?)?, build: None, arguments: Vec::new() };
    pgkeep.prepare(&mut cluster)?;
    println!("filling a cluster of PostgreSQL {} with {} MB ...", cluster.major(), options.megabytes);
    fill(&cluster, options.megabytes)?;
    cluster.sql("CHECKPOINT")?;
    let copy = cluster.make_dir("copy")?;
    let peer = crate::setup::program("rsync", "rsync").context("rsync is what it is compared with")?;
    let (mut ours, mut theirs, mut percents) = (Vec::new(), Vec::new(), Vec::new());
    for round in 0..options.pairs {
        run(rsync(&peer, &cluster, &copy), &[0, 24])?; // 24: files vanished, as they do
        run(offline(&pgkeep.product, &cluster, &["--warm-only"]), pgkeep.accepted())?;
        percents.push(touch_percent(&cluster, options.percent)?.percent());
        cluster.stop(StopMode::Fast)?;
        let second = |of_pgkeep: bool, runs: &mut Vec<Run>| -> Result<()> {
            settle()?;
            let (name, made) = if of_pgkeep {
                ("pgkeep", measure(offline(&pgkeep.product, &cluster, &[]), pgkeep.accepted())?)
            } else {
                let mut command = rsync(&peer, &cluster, &copy);
                command.arg("--checksum");
                ("rsync", measure(command, &[0])?)
            };
            println!("second pass: {name}: {:.2} s, {:.2} s of CPU", made.seconds, made.cpu_seconds);
            runs.push(made);
            Ok(())
        };
        if round % 2 == 0 {
            second(true, &mut ours)?;
            second(false, &mut theirs)?;
        } else {
            second(false, &mut theirs)?;
            second(true, &mut ours)?;
        }
        cluster.start_again()?;
    }
    let title = format!(
        "Second pass of a backup of {} MB when the server is stopped, after updates of {:.2} % of the pages (PostgreSQL {})",
        options.megabytes,
        median(percents.into_iter()),
        cluster.major()
    );
    let rows = vec![("pgkeep (two passes)".to_owned(), ours), ("rsync --checksum, without pg_wal".to_owned(), theirs)];
    Ok(Table { title, rows })
}

fn offline(product: &Product, cluster: &Cluster, more: &[&str]) -> Command {
    let data = cluster.data_dir().to_string_lossy();
    let words = ["backup", "demo", "--source", "offline", "--pgdata", &data, "--workers", "2"];
    product.command(cluster, &[&words[..], more].concat())
}

fn rsync(program: &Path, cluster: &Cluster, to: &Path) -> Command {
    let mut command = cluster.command_as_pg(program);
    command.args(["-a", "--delete", "--exclude", "/pg_wal/*"]);
    command.arg(format!("{}/", cluster.data_dir().display())).arg(format!("{}/", to.display()));
    command
}
