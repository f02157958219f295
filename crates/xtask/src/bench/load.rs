//! What a server's clients feel of a backup: pgbench, while full backups are made one after the other.

use super::Options;
use super::field::{Field, Kind};
use super::measure::Run;
use super::table::Table;
use super::workloads::new_table;
use anyhow::{Context, Result};
use testkit::pg::Cluster;

/// How long pgbench runs each time.
const SECONDS: u32 = 20;
/// The table tells the time for so many transactions, so that less is better, as in the others.
const TRANSACTIONS: f64 = 10_000.0;

/// Each round: pgbench alone, and beside the backups of each contender.
pub(super) fn load(options: &Options) -> Result<Table> {
    let field = Field::filled(options, options.megabytes)?;
    field.cluster.tool("pgbench", &["-i", "-q", "-s", "20", "postgres"])?;
    let size = field.data_bytes() / 1_000_000;
    let title = format!(
        "{TRANSACTIONS} transactions of pgbench beside full backups of {size} MB (PostgreSQL {}, 2 clients)",
        options.pg
    );
    let mut table = new_table(title, &field);
    let mut alone = Vec::new();
    for round in 0..options.pairs {
        alone.push(pgbench(&field.cluster, "nothing")?);
        for position in field.order(round) {
            field.reset(position)?;
            let (cluster, name) = (&field.cluster, table.rows[position].0.as_str());
            let run = std::thread::scope(|scope| -> Result<Run> {
                let clients = scope.spawn(|| pgbench(cluster, name));
                while !clients.is_finished() {
                    field.backup(position, Kind::Full)?;
                }
                clients.join().map_err(|_| anyhow::anyhow!("pgbench was lost"))?
            })?;
            table.rows[position].1.push(run);
        }
    }
    table.rows.push(("nothing beside".to_owned(), alone));
    Ok(table)
}

fn pgbench(cluster: &Cluster, beside: &str) -> Result<Run> {
    let seconds = SECONDS.to_string();
    let said = cluster.tool("pgbench", &["-n", "-c", "2", "-j", "1", "-T", &seconds, "postgres"])?;
    let rate = said.lines().find_map(|line| line.strip_prefix("tps = ")?.split(' ').next()?.parse::<f64>().ok());
    let rate = rate.with_context(|| format!("pgbench does not tell its rate: {said}"))?;
    println!("pgbench beside {beside}: {rate:.0} transactions per second");
    Ok(Run { seconds: TRANSACTIONS / rate, cpu_seconds: 0.0, memory_bytes: 0, stored_bytes: 0 })
}
