//! A cluster of very many small tables: what each file costs, and memory.

use super::Options;
use super::field::{Field, Kind, builder, contenders, set_archive_command};
use super::table::Table;
use super::workloads::new_table;
use anyhow::Result;
use testkit::pg::Cluster;

/// Tables of one database; the others are copies of it.
const TABLES_PER_DATABASE: u64 = 20_000;

pub(super) fn many(options: &Options) -> Result<Vec<Table>> {
    // Nobody waits for the server while tables are made; backups wait for nothing but its checkpoints.
    let cluster = builder(options).without_fsync().conf("full_page_writes", "off").start()?;
    let per_database = options.tables.clamp(1, TABLES_PER_DATABASE);
    let databases = options.tables.div_ceil(per_database);
    make_tables(&cluster, per_database, databases)?;
    cluster.sql("ALTER SYSTEM SET full_page_writes = on")?;
    cluster.reload()?;
    let all = contenders(options, &cluster)?;
    let mut field = Field::new(cluster, all, options)?;
    let what = format!("{} tables in {databases} databases", per_database * databases);
    let mut full = new_table(format!("Full backup of {what} (PostgreSQL {})", options.pg), &field);
    let mut later = new_table(String::new(), &field);
    let mut restores = new_table(format!("Restore of {what} (PostgreSQL {})", options.pg), &field);
    for round in 0..options.pairs {
        field.reset_all()?;
        field.archive_all()?;
        for position in field.order(round) {
            full.rows[position].1.extend(field.backup(position, Kind::Full)?);
        }
        for database in 0..databases {
            field.cluster.psql_db(&format!("many{database}"), &update_sql(per_database, round as u64))?;
        }
        for position in field.order(round) {
            later.rows[position].1.extend(field.backup(position, Kind::Incremental)?);
        }
        for position in field.order(round) {
            restores.rows[position].1.extend(field.restore(position, None)?);
        }
    }
    // The server stops faster when nobody takes its last segments.
    set_archive_command(&field.cluster, "/bin/true")?;
    later.title = format!("Incremental backup after updates in 1 % of {what} ({})", field.setting());
    Ok(vec![full, later, restores])
}

fn make_tables(cluster: &Cluster, per_database: u64, databases: u64) -> Result<()> {
    println!("making {per_database} tables in each of {databases} databases ...");
    cluster.sql("CREATE DATABASE many0")?;
    // A transaction holds a lock for each table it makes.
    cluster.psql_db(
        "many0",
        &format!(
            "DO $$ BEGIN FOR i IN 1..{per_database} LOOP
               EXECUTE format('CREATE TABLE t%s (id bigint, at timestamptz, value float8)', i);
               EXECUTE format('INSERT INTO t%s SELECT n, now(), random() FROM generate_series(1, 1 + %s) n', i, i % 40);
               IF i % 200 = 0 THEN COMMIT; END IF;
             END LOOP; END $$"
        ),
    )?;
    // Without a strategy copying goes through the WAL since 15.
    let strategy = if cluster.major() >= 15 { "STRATEGY file_copy" } else { "" };
    for database in 1..databases {
        cluster.sql(&format!("CREATE DATABASE many{database} TEMPLATE many0 {strategy}"))?;
    }
    cluster.sql("CHECKPOINT").map(drop)
}

/// Updates every hundredth table, other ones each time.
fn update_sql(per_database: u64, round: u64) -> String {
    format!(
        "DO $$ DECLARE i int := 1 + {round}; BEGIN WHILE i <= {per_database} LOOP
           EXECUTE format('UPDATE t%s SET value = random()', i);
           i := i + 100;
         END LOOP; END $$"
    )
}
