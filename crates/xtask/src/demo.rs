//! `cargo xtask demo`: a dropped table comes back, on a real server under load, judged by clients' own notes.

use crate::product::{Build, Product, become_user, build, restart_if_needed};
use crate::sh;
use anyhow::{Context, Result, bail};
use std::path::Path;
use std::time::{Duration, Instant};
use testkit::load::{Ledger, LoadOptions, Target, Verdict, fill};
use testkit::pg::{Cluster, DEFAULT_MAJOR};

#[derive(Debug, clap::Args)]
pub(crate) struct Options {
    /// Keep both servers running, and all files, to look around
    #[arg(long)]
    keep: bool,
    /// PostgreSQL's major version
    #[arg(long, default_value_t = DEFAULT_MAJOR)]
    pg: u32,
    /// Size of the data
    #[arg(long, default_value_t = 150)]
    megabytes: u64,
}

/// What was true just before the mistake.
struct Before {
    orders: String,
    amount: String,
    time: String,
    time_us: i64,
}

pub(crate) fn run(options: &Options) -> Result<()> {
    println!("Building pgkeep ...");
    let program = build(Build::Debug)?;
    let begin = Instant::now();
    let mut cluster = step("a new PostgreSQL server with data", || {
        let cluster = Cluster::builder(options.pg).start()?;
        let filled = fill(&cluster, options.megabytes)?;
        println!("  PostgreSQL {}, {} MB, {} orders", options.pg, filled.database_bytes >> 20, filled.orders);
        Ok(cluster)
    })?;
    let product = Product::install(&cluster, &program)?;
    let load = Ledger::start(&cluster, LoadOptions { clients: 4, pause: Duration::from_millis(2) })?;
    load.wait_for_more(100)?;
    println!("  4 clients write now, and note for themselves each COMMIT that the server acknowledges");

    let init = product.init_arguments(&cluster);
    let init: Vec<&str> = init.iter().map(String::as_str).collect();
    step("set up the protection", || pgkeep(&product, &cluster, &init))?;
    if restart_if_needed(&mut cluster)? {
        println!("  (the server was restarted, as archiving needs; the clients came back by themselves)");
    }
    step("back up, while the clients write", || pgkeep(&product, &cluster, &["backup", "demo"]))?;
    load.wait_for_more(200)?;

    let before = note(&cluster)?;
    cluster.sql("DROP TABLE orders")?;
    println!("\nThe mistake: DROP TABLE orders, with {} rows, just after {}.", before.orders, before.time);
    load.wait_for_more(200)?;
    let noticed = load.acknowledged();
    println!("  Nobody noticed; {noticed} commits are acknowledged by now.");
    step("the WAL up to here is in the repository", || {
        let segment = cluster.switch_wal()?;
        cluster.wait_archived(&segment, Duration::from_secs(60))
    })?;

    let target = cluster.home().join("pgkeep/restored");
    let target_text = target.to_string_lossy().into_owned();
    let bin_dir = cluster.install().bin_dir().to_string_lossy().into_owned();
    let mut restore = vec!["restore", "demo", "--to-dir", &target_text, "--at", &before.time, "--start"];
    if !bin_dir.starts_with("/usr/lib/postgresql/") {
        restore.extend(["--pg-bin", &bin_dir]);
    }
    let restored = step("restore to the moment before, beside the running server", || {
        pgkeep(&product, &cluster, &restore)?;
        let restored = Cluster::attach(&target, options.pg)?;
        wait_for_target(&restored)?;
        Ok(restored)
    });
    let restored = restored.with_context(|| format!("the origin's log ends with\n{}", cluster.log_tail()))?;
    let ledger = load.stop();
    let verdict = judge(&cluster, &restored, &ledger, &before)?;
    conclude(&product, &cluster, &before, verdict, ledger.acknowledged());
    println!("\nAll of it took {:.0} s.", begin.elapsed().as_secs_f64());
    whats_next(&product, &before, &target);
    if options.keep {
        keep(cluster, restored)?;
    } else {
        println!("Everything was removed again; `cargo xtask demo --keep` leaves it to look around.");
    }
    Ok(())
}

/// Says what is done, does it, and says how long it took.
fn step<T>(what: &str, work: impl FnOnce() -> Result<T>) -> Result<T> {
    println!("\n-> {what}");
    let start = Instant::now();
    let result = work().with_context(|| format!("this did not work: {what}"))?;
    println!("  [{:.1} s]", start.elapsed().as_secs_f64());
    Ok(result)
}

/// Runs the program before the reader's eyes. Exit code 4 is success with a warning, which was shown.
fn pgkeep(product: &Product, cluster: &Cluster, arguments: &[&str]) -> Result<()> {
    println!("  $ {}", product.typed(arguments));
    let mut command = product.command(cluster, arguments);
    let status = command.stdin(std::process::Stdio::null()).status().context("cannot run pgkeep")?;
    if !matches!(status.code(), Some(0 | 4)) {
        bail!("pgkeep {} ended with {status}", arguments.first().unwrap_or(&""));
    }
    Ok(())
}

fn note(cluster: &Cluster) -> Result<Before> {
    let time = cluster.sql("SET timezone = 'UTC'; SELECT clock_timestamp()")?;
    let micros = cluster.sql(&format!("SELECT (extract(epoch FROM '{time}'::timestamptz) * 1000000)::bigint"))?;
    let sums = cluster.sql("SELECT count(*), sum(amount) FROM orders")?;
    let (orders, amount) = sums.split_once('|').context("no sums")?;
    Ok(Before { orders: orders.to_owned(), amount: amount.to_owned(), time_us: micros.parse()?, time })
}

/// Recovery is over when the server takes writes or pauses at the target.
fn wait_for_target(restored: &Cluster) -> Result<()> {
    let sql = "SELECT CASE WHEN pg_is_in_recovery() THEN pg_get_wal_replay_pause_state() = 'paused' ELSE true END";
    restored.wait_for(sql, "t", Duration::from_secs(120))
}

fn judge(cluster: &Cluster, restored: &Cluster, ledger: &Ledger, before: &Before) -> Result<Verdict> {
    let sums = restored.sql("SELECT count(*), sum(amount) FROM orders")?;
    if sums != format!("{}|{}", before.orders, before.amount) {
        bail!("orders came back different: {sums}, it was {}|{}", before.orders, before.amount);
    }
    let verdict = ledger.verify_before(restored, Target::TimeUs(before.time_us))?;
    ledger.verify_all(cluster).context("the origin lost something")?;
    Ok(verdict)
}

fn conclude(product: &Product, cluster: &Cluster, before: &Before, verdict: Verdict, acknowledged: usize) {
    println!("\nWhat happened");
    println!(
        "  Table orders is back: {} rows, amounts add up to {}, as before the mistake.",
        before.orders, before.amount
    );
    println!("  Clients noted {acknowledged} acknowledged commits. In the restored cluster,");
    println!("    {:>7} that were acknowledged before the moment are all there,", verdict.required);
    println!("    {:>7} that began after it are all absent,", verdict.excluded);
    println!("    {:>7} were on their way at that very moment and may be either.", verdict.uncertain);
    println!("  The running server was not touched: it has every acknowledged commit, and still no table orders.");
    let sizes = [("data directory", cluster.data_dir().to_path_buf()), ("repository", product.repo.clone())];
    for (name, path) in sizes {
        if let Ok(text) = sh::quiet(std::process::Command::new("du").arg("-sh").arg(&path)) {
            println!("  Size of the {name}: {}", text.split_whitespace().next().unwrap_or("?"));
        }
    }
}

fn whats_next(product: &Product, before: &Before, target: &Path) {
    let other = target.with_file_name("another").to_string_lossy().into_owned();
    println!("\nWhat to try next (after `cargo xtask demo --keep`)");
    println!("  {}", product.typed(&["status", "demo"]));
    println!("  {}", product.typed(&["list"]));
    println!("  {}", product.typed(&["verify", "--all"]));
    println!("  {}", product.typed(&["restore", "demo", "--to-dir", &other, "--at", &before.time, "--dry-run"]));
}

/// Leaves the servers running and says how to reach and how to end them.
fn keep(mut cluster: Cluster, mut restored: Cluster) -> Result<()> {
    let psql = cluster.bin("psql")?;
    let pg_ctl = cluster.bin("pg_ctl")?;
    let prefix = become_user(&cluster);
    println!("\nEverything is kept, and both servers run. To look around:");
    for (name, server) in [("the origin", &cluster), ("the restored cluster", &restored)] {
        println!("  {name}: {prefix}{} '{}'", psql.display(), server.conninfo());
    }
    println!("To end and remove it:");
    for server in [&restored, &cluster] {
        println!("  {prefix}{} stop -m fast -D {}", pg_ctl.display(), server.data_dir().display());
    }
    println!("  rm -r {} {}", restored.home().display(), cluster.home().display());
    cluster.keep();
    restored.keep();
    Ok(())
}
