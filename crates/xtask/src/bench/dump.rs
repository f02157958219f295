//! Dumps and loads beside PostgreSQL's own: one large table and many of middling size, two workers each. Processor time is that
//! of the command and of the server: both share the processors, and the server has more to do. WAL is not archived.

use super::Options;
use super::field::builder;
use super::measure::{Run, cpu_seconds_of, dir_bytes, measure, measure_and_hear};
use super::table::Table;
use crate::product::{Build, Product, build};
use anyhow::{Context, Result, ensure};
use std::path::PathBuf;
use std::process::Command;
use std::rc::Rc;
use testkit::pg::Cluster;

const WORKERS: &str = "2";
/// The tables of middling size.
const TABLES: u64 = 20;

/// Who dumps and loads.
enum Who {
    /// With this `--copy-format`.
    Pgkeep(Rc<Product>, String, &'static str),
    /// pg_dump with this `--compress`, or with its default.
    PgDump(Option<&'static str>),
}

struct Contender {
    who: Who,
    dir: PathBuf,
}

/// The dumps, and the loads of what was dumped.
pub(super) fn dump(options: &Options) -> Result<Vec<Table>> {
    let cluster = builder(options).conf("archive_mode", "off").conf("summarize_wal", "off").start()?;
    fill(&cluster, options)?;
    let mut contenders = Vec::new();
    let programs = if options.programs.is_empty() { vec![build(Build::Release)?] } else { options.programs.clone() };
    for (number, program) in programs.iter().enumerate().filter(|_| !options.peers_only) {
        let product = Rc::new(Product::install_in(&cluster, program, &format!("pgkeep-{number}"))?);
        let name = if programs.len() > 1 { program.display().to_string() } else { "pgkeep".to_owned() };
        let dir = product.repo.clone();
        let arguments = product.init_arguments(&cluster);
        let arguments: Vec<&str> = arguments.iter().map(String::as_str).filter(|word| *word != "--apply").collect();
        measure(product.command(&cluster, &arguments), &[0, 4])?;
        for format in ["text", "binary"] {
            contenders.push(Contender { who: Who::Pgkeep(product.clone(), name.clone(), format), dir: dir.clone() });
        }
    }
    if !options.no_peers {
        contenders.push(Contender { who: Who::PgDump(None), dir: cluster.home().join("pg_dump") });
        if options.pg >= 16 {
            contenders.push(Contender { who: Who::PgDump(Some("zstd:1")), dir: cluster.home().join("pg_dump-zstd") });
        }
    }
    ensure!(!contenders.is_empty(), "nobody is left to be measured");
    let size: u64 = cluster.sql("SELECT pg_database_size('postgres') / 1000000")?.parse()?;
    let rows = || contenders.iter().map(|one| (one.name(), Vec::new())).collect();
    let mut dumps = Table { title: format!("Dump of {size} MB (PostgreSQL {}, 2 workers)", options.pg), rows: rows() };
    let mut loads = Table { title: format!("Load of {size} MB (PostgreSQL {}, 2 workers)", options.pg), rows: rows() };
    for round in 0..options.pairs {
        let mut order: Vec<usize> = (0..contenders.len()).collect();
        if round % 2 == 1 {
            order.reverse();
        }
        for position in order {
            let (dumped, loaded) = contenders[position].run(&cluster)?;
            println!("{}: dump {:.1} s, load {:.1} s", contenders[position].name(), dumped.seconds, loaded.seconds);
            dumps.rows[position].1.push(dumped);
            loads.rows[position].1.push(loaded);
        }
    }
    Ok(vec![dumps, loads])
}

/// Two thirds in one table, the rest in twenty; text that compresses about as real text does, an index on each.
fn fill(cluster: &Cluster, options: &Options) -> Result<()> {
    let megabytes = options.megabytes;
    println!("filling a database with {megabytes} MB ...");
    let make = |name: &str, megabytes: u64| {
        // About 230 bytes a row.
        let rows = megabytes * 1_000_000 / 230;
        cluster.sql(&format!(
            "CREATE TABLE {name} AS SELECT g AS id, now() - g * interval '1 second' AS at, (random() * 1e6)::numeric(12, 2) \
             AS amount, md5(random()::text) AS code, 'order ' || g || ' of customer ' || (g::bigint * 7919 % 10007) || ' ' || \
             repeat(md5((g % 1000)::text) || ' ', 2) AS what, jsonb_build_object('n', g % 100, 'k', md5(g::text)) AS more \
             FROM generate_series(1, {rows}) g; ALTER TABLE {name} ADD PRIMARY KEY (id); CREATE INDEX ON {name} (code)"
        ))
    };
    make("large", megabytes * 2 / 3)?;
    for number in 0..TABLES {
        make(&format!("table_{number}"), megabytes / 3 / TABLES)?;
    }
    cluster.sql("VACUUM ANALYZE; CHECKPOINT")?;
    Ok(())
}

/// Adds the server's processor time to a run's.
fn with_server(cluster: &Cluster, run: impl FnOnce() -> Result<(Run, String)>) -> Result<(Run, String)> {
    let before = server_cpu_seconds(cluster)?;
    let (mut measured, said) = run()?;
    // Sessions that have just ended are counted once the postmaster has waited for them.
    std::thread::sleep(std::time::Duration::from_millis(200));
    measured.cpu_seconds += server_cpu_seconds(cluster)? - before;
    Ok((measured, said))
}

/// Processor time of the postmaster, of all children it has waited for, and of those that are there.
fn server_cpu_seconds(cluster: &Cluster) -> Result<f64> {
    let file = std::fs::read_to_string(cluster.data_dir().join("postmaster.pid"))?;
    let postmaster: u32 = file.lines().next().context("postmaster.pid is empty")?.trim().parse()?;
    let children = std::fs::read_to_string(format!("/proc/{postmaster}/task/{postmaster}/children"))?;
    let alive = children.split_whitespace().filter_map(|pid| pid.parse().ok()).map(|pid| cpu_seconds_of(pid, 2));
    Ok(cpu_seconds_of(postmaster, 4) + alive.sum::<f64>())
}

impl Contender {
    fn name(&self) -> String {
        match &self.who {
            Who::Pgkeep(_, name, format) => format!("{name} ({format}, zstd 1)"),
            Who::PgDump(None) => "pg_dump -Fd -j2, pg_restore -j2".to_owned(),
            Who::PgDump(Some(method)) => format!("pg_dump -Fd -j2 --compress={method}, pg_restore -j2"),
        }
    }

    /// Dumps, loads into a new database, and removes both.
    fn run(&self, cluster: &Cluster) -> Result<(Run, Run)> {
        let origin = cluster.conninfo();
        let target = cluster.conninfo_db("loaded");
        let dir = self.dir.to_string_lossy().into_owned();
        cluster.sql("CREATE DATABASE loaded TEMPLATE template0")?;
        cluster.sql("CHECKPOINT")?;
        let (dumped, loaded) = match &self.who {
            Who::Pgkeep(product, _, format) => {
                let before = dir_bytes(&self.dir);
                let pg_dump = cluster.bin("pg_dump")?;
                let bin = pg_dump.parent().context("pg_dump lies nowhere")?.to_string_lossy();
                let dump = ["dump", "--json", "--workers", WORKERS, "--pg-bin", &bin, "--copy-format", format];
                // Programs to compare with may be older.
                let dump = if *format == "text" { &dump[..dump.len() - 2] } else { &dump[..] };
                let (mut dumped, said) =
                    with_server(cluster, || measure_and_hear(product.command(cluster, dump), &[0]))?;
                dumped.stored_bytes = dir_bytes(&self.dir) - before;
                let report = said.lines().find_map(|line| serde_json::from_str::<serde_json::Value>(line).ok());
                let id = report.and_then(|report| report["dump"].as_str().map(str::to_owned));
                let id = id.with_context(|| format!("pgkeep does not name its dump: {said}"))?;
                cluster.sql("CHECKPOINT")?;
                let load = ["load", &id, "--into", &target, "--workers", WORKERS, "--no-analyze", "--pg-bin", &bin];
                let (loaded, _) = with_server(cluster, || measure_and_hear(product.command(cluster, &load), &[0]))?;
                measure(product.command(cluster, &["delete", &id, "--yes"]), &[0])?;
                (dumped, loaded)
            }
            Who::PgDump(method) => {
                let mut command = cluster.command_as_pg(cluster.bin("pg_dump")?);
                command.args(["-Fd", "-j", WORKERS, "-f", &dir, "-d", &origin]);
                command.args(method.iter().map(|method| format!("--compress={method}")));
                let (mut dumped, _) = with_server(cluster, || measure_and_hear(command, &[0]))?;
                dumped.stored_bytes = dir_bytes(&self.dir);
                cluster.sql("CHECKPOINT")?;
                let mut command: Command = cluster.command_as_pg(cluster.bin("pg_restore")?);
                command.args(["-j", WORKERS, "-d", &target, &dir]);
                let (loaded, _) = with_server(cluster, || measure_and_hear(command, &[0]))?;
                std::fs::remove_dir_all(&self.dir)?;
                (dumped, loaded)
            }
        };
        let rows = |database: &str| cluster.psql_db(database, "SELECT count(*), sum(id) FROM large");
        ensure!(rows("postgres")? == rows("loaded")?, "{}: what was loaded is not what was dumped", self.name());
        cluster.sql("DROP DATABASE loaded")?;
        Ok((dumped, loaded))
    }
}
