//! Commits that wait for who receives the WAL: pgbench with `pgkeep wal receive` and with `pg_receivewal --synchronous` as
//! the synchronous standby. And WAL as fast as pgbench can write it, until who receives has it all.

use super::Options;
use super::field::{builder, one_program, settle};
use super::measure::Run;
use super::table::Table;
use crate::product::{Product, restart_if_needed};
use anyhow::{Context, Result, bail};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};
use testkit::pg::Cluster;

/// How long pgbench runs each time.
const SECONDS: u32 = 15;
/// The table tells the time for so many commits, so that less is better, as in the others.
const COMMITS: f64 = 10_000.0;
/// Rows that do not compress, many in a transaction: mostly WAL.
const BULK: &str = "INSERT INTO bulk SELECT md5(random()::text) || md5(random()::text) || md5(random()::text) \
                    FROM generate_series(1, 5000);\n";
const GIB: f64 = 1024.0 * 1024.0 * 1024.0;
/// With one client the rate is the latency; with several, what arrives together is flushed together.
const CLIENTS: [u32; 2] = [1, 8];

/// Each round: each contender alone with the server, with one client and with several. The first row is what the goal
/// speaks of.
pub(super) fn receive(options: &Options) -> Result<Vec<Table>> {
    let mut cluster = builder(options).start()?;
    let product = Product::install(&cluster, &one_program(options)?)?;
    let arguments = product.init_arguments(&cluster);
    let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
    super::peers::run(product.command(&cluster, &arguments), &[0])?;
    restart_if_needed(&mut cluster)?;
    cluster.tool("pgbench", &["-i", "-q", "-s", "20", "postgres"])?;
    cluster.sql("CREATE TABLE wait (id bigserial, at timestamptz DEFAULT now())")?;
    let script = cluster.home().join("commit.sql");
    std::fs::write(&script, "INSERT INTO wait DEFAULT VALUES;\n")?;
    cluster.user().own(&script)?;
    let bulk = cluster.home().join("bulk.sql");
    cluster.sql("CREATE TABLE bulk (a text)")?;
    std::fs::write(&bulk, BULK)?;
    cluster.user().own(&bulk)?;
    let mut tables: Vec<Table> = CLIENTS
        .iter()
        .map(|clients| Table {
            title: format!("{COMMITS} synchronous commits of {clients} clients (PostgreSQL {})", options.pg),
            rows: contenders().iter().map(|(name, _)| ((*name).to_owned(), Vec::new())).collect(),
        })
        .collect();
    tables.push(Table {
        title: format!("1 GiB of WAL, until who receives has all of it (PostgreSQL {})", options.pg),
        rows: contenders().iter().map(|(name, _)| ((*name).to_owned(), Vec::new())).collect(),
    });
    for round in 0..options.pairs {
        let mut order: Vec<usize> = (0..contenders().len()).collect();
        if round % 2 == 1 {
            order.reverse();
        }
        for position in order {
            let (name, start) = contenders()[position];
            let mut child = start(&cluster, &product)?;
            let commits = CLIENTS.iter().map(|clients| commits(&cluster, &script, *clients, name));
            let mut runs = commits.collect::<Result<Vec<_>>>();
            set_standby(&cluster, "")?;
            if let Ok(runs) = &mut runs {
                runs.push(wal(&cluster, &product, &bulk, name)?);
            }
            child.kill().and_then(|()| child.wait())?;
            for (table, run) in tables.iter_mut().zip(runs?) {
                table.rows[position].1.push(run);
            }
            cluster.sql("SELECT pg_drop_replication_slot(slot_name) FROM pg_replication_slots WHERE NOT active").ok();
        }
    }
    Ok(tables)
}

type Start = fn(&Cluster, &Product) -> Result<Child>;

fn contenders() -> [(&'static str, Start); 4] {
    [
        ("pgkeep, spool", |cluster, product| pgkeep(cluster, product, "spool")),
        ("pgkeep, repository on this disk", |cluster, product| pgkeep(cluster, product, "repository")),
        ("pg_receivewal --synchronous", receivewal),
        ("nobody is waited for", |_, _| Ok(Command::new("sleep").arg("3600").spawn()?)),
    ]
}

fn pgkeep(cluster: &Cluster, product: &Product, flush: &str) -> Result<Child> {
    let command = product.command(cluster, &["wal", "receive", "--flush", flush]);
    attach(cluster, command, "pgkeep")
}

fn receivewal(cluster: &Cluster, _: &Product) -> Result<Child> {
    let dir =
        cluster.make_dir(&format!("receivewal-{}", cluster.sql("SELECT clock_timestamp()::time")?.replace(':', "")))?;
    let conninfo = format!("{} application_name=receivewal", cluster.conninfo());
    let create = ["--create-slot", "--if-not-exists", "--slot", "receivewal", "-d", &conninfo];
    cluster.tool("pg_receivewal", &create)?;
    let mut command = cluster.command_as_pg(cluster.bin("pg_receivewal")?);
    command.args(["--synchronous", "--slot", "receivewal", "-d", &conninfo, "-D"]).arg(&dir);
    attach(cluster, command, "receivewal")
}

/// Starts it, lets it catch up, and lets commits wait for it.
fn attach(cluster: &Cluster, mut command: Command, name: &str) -> Result<Child> {
    let child = command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null()).spawn()?;
    let streams = format!(
        "SELECT coalesce(bool_or(state = 'streaming'), false) FROM pg_stat_replication WHERE application_name = '{name}'"
    );
    cluster.wait_for(&streams, "t", Duration::from_secs(60))?;
    set_standby(cluster, name)?;
    Ok(child)
}

fn set_standby(cluster: &Cluster, name: &str) -> Result<()> {
    cluster.sql(&format!("ALTER SYSTEM SET synchronous_standby_names = '{name}'"))?;
    cluster.reload()?;
    cluster.wait_for("SHOW synchronous_standby_names", name, Duration::from_secs(20))
}

fn commits(cluster: &Cluster, script: &std::path::Path, clients: u32, name: &str) -> Result<Run> {
    settle()?;
    let (seconds, count, script) = (SECONDS.to_string(), clients.to_string(), script.to_string_lossy().into_owned());
    let arguments = ["-n", "-c", &count, "-j", "1", "-T", &seconds, "-f", &script, "postgres"];
    let said = cluster.tool("pgbench", &arguments)?;
    let rate = said.lines().find_map(|line| line.strip_prefix("tps = ")?.split(' ').next()?.parse::<f64>().ok());
    let rate = rate.with_context(|| format!("pgbench does not tell its rate: {said}"))?;
    if rate < 0.1 {
        bail!("commits hang with {name}: {said}");
    }
    println!(
        "{name}, {clients} clients: {rate:.0} commits per second, {:.2} ms each",
        f64::from(clients) * 1000.0 / rate
    );
    Ok(Run { seconds: COMMITS / rate, cpu_seconds: 0.0, memory_bytes: 0, stored_bytes: 0 })
}

/// How long it takes, for each GiB, until what was written as fast as may be is durable where it is streamed to.
fn wal(cluster: &Cluster, product: &Product, script: &std::path::Path, name: &str) -> Result<Run> {
    cluster.sql("TRUNCATE bulk")?;
    cluster.sql("CHECKPOINT")?;
    settle()?;
    let lsn = || cluster.sql("SELECT pg_current_wal_flush_lsn()");
    let (first, begun) = (lsn()?, Instant::now());
    let (seconds, script) = (SECONDS.to_string(), script.to_string_lossy().into_owned());
    cluster.tool("pgbench", &["-n", "-c", "2", "-j", "1", "-T", &seconds, "-f", &script, "postgres"])?;
    let (last, written) = (lsn()?, begun.elapsed().as_secs_f64());
    let bytes: f64 = cluster.sql(&format!("SELECT pg_wal_lsn_diff('{last}', '{first}')"))?.parse()?;
    let behind = format!(
        "SELECT coalesce(max(pg_wal_lsn_diff('{last}', flush_lsn)), 0)::bigint FROM pg_stat_replication WHERE flush_lsn < '{last}'"
    );
    let backlog = cluster.sql(&behind)?;
    cluster.wait_for(&behind, "0", Duration::from_secs(300))?;
    let seconds = begun.elapsed().as_secs_f64();
    print!(
        "{name}: WAL at {:.0} MB/s, {backlog} bytes behind at its end, {:.2} s until it had them",
        bytes / 1e6 / written,
        seconds - written
    );
    if name.starts_with("pgkeep") {
        let repository = || {
            let said = product.command(cluster, &["wal", "status", "--json"]).output()?;
            let said: serde_json::Value = serde_json::from_slice(&said.stdout)?;
            let durable = said["receiver"]["repositories"][0]["durable_lsn"].as_str().unwrap_or("0/0");
            Ok::<_, anyhow::Error>(cluster.sql(&format!("SELECT '{durable}'::pg_lsn >= '{last}'"))? == "t")
        };
        while !repository()? {
            if begun.elapsed() > Duration::from_secs(300) {
                bail!("the repository does not get all of it");
            }
            std::thread::sleep(Duration::from_millis(100));
        }
        print!(", {:.1} s until the repository had them", begun.elapsed().as_secs_f64() - written);
    }
    println!();
    Ok(Run { seconds: seconds * GIB / bytes, cpu_seconds: 0.0, memory_bytes: 0, stored_bytes: 0 })
}
