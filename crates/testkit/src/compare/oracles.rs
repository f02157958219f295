//! What PostgreSQL's own programs say about a cluster.

use crate::pg::Cluster;
use anyhow::{Context, Result, bail};
use std::io::{BufRead, BufReader};
use std::process::{Child, Stdio};

/// `pg_amcheck` on all databases of a running cluster: tables, indexes, and every heap row found in its indexes.
/// Makes the extension `amcheck` in `pg_catalog` for the time of the check (`--install-missing`).
///
/// # Errors
/// When something is corrupt; the program's findings are in the message.
pub fn amcheck(cluster: &Cluster) -> Result<()> {
    cluster.tool("pg_amcheck", &["--all", "--install-missing", "--heapallindexed", "--parent-check"]).map(drop)
}

/// `pg_checksums --check` on a stopped cluster.
///
/// # Errors
/// When a page's checksum is wrong, or checksums are off.
pub fn checksums(cluster: &Cluster) -> Result<()> {
    let data = cluster.data_dir().to_string_lossy().into_owned();
    cluster.tool("pg_checksums", &["--check", "-D", &data]).map(drop)
}

/// One line's value of `pg_controldata`, such as `Database cluster state`.
///
/// # Errors
/// When the program fails or prints no such line.
pub fn controldata(cluster: &Cluster, field: &str) -> Result<String> {
    let data = cluster.data_dir().to_string_lossy().into_owned();
    let text = cluster.tool("pg_controldata", &["-D", &data])?;
    let value = text.lines().find_map(|line| line.strip_prefix(field)?.strip_prefix(':'));
    Ok(value.with_context(|| format!("pg_controldata prints no '{field}'"))?.trim().to_owned())
}

/// `pg_dumpall` of two running clusters is equal, but for what may differ: rows of unlogged tables, places of
/// tablespaces, random tokens, and the values of sequences (WAL runs up to 32 values ahead of them).
///
/// # Errors
/// With the first line that differs.
pub fn dumps_are_equal(origin: &Cluster, copy: &Cluster) -> Result<()> {
    let (mut left, mut right) = (Dump::start(origin)?, Dump::start(copy)?);
    let mut line = 0_u64;
    loop {
        let (in_origin, in_copy) = (left.next_line()?, right.next_line()?);
        line += 1;
        if in_origin != in_copy {
            bail!("the dumps differ in line {line}: origin {in_origin:?}, copy {in_copy:?}");
        }
        if in_origin.is_none() {
            break;
        }
    }
    if line < 20 {
        bail!("a dump of {line} lines proves nothing");
    }
    left.finish()?;
    right.finish()
}

struct Dump {
    child: Child,
    lines: std::io::Lines<BufReader<std::process::ChildStdout>>,
}

impl Dump {
    fn start(cluster: &Cluster) -> Result<Self> {
        let mut command = cluster.command_as_pg(cluster.bin("pg_dumpall")?);
        command
            .args(["--no-unlogged-table-data", "-d", &cluster.conninfo()])
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::null());
        let mut child = command.spawn().context("cannot run pg_dumpall")?;
        let stdout = child.stdout.take().context("pg_dumpall has no standard output")?;
        Ok(Self { child, lines: BufReader::new(stdout).lines() })
    }

    fn next_line(&mut self) -> Result<Option<String>> {
        let volatile = |line: &String| line.starts_with("\\restrict") || line.starts_with("\\unrestrict");
        for line in self.lines.by_ref() {
            let line = line.context("pg_dumpall printed what is no text")?;
            if volatile(&line) {
                continue;
            }
            if line.starts_with("CREATE TABLESPACE") {
                return Ok(line.split(" LOCATION ").next().map(str::to_owned));
            }
            if line.starts_with("SELECT pg_catalog.setval(") {
                return Ok(line.split(", ").next().map(str::to_owned));
            }
            return Ok(Some(line));
        }
        Ok(None)
    }

    fn finish(mut self) -> Result<()> {
        let status = self.child.wait().context("cannot wait for pg_dumpall")?;
        if !status.success() {
            bail!("pg_dumpall ended with {status}");
        }
        Ok(())
    }
}

impl Drop for Dump {
    fn drop(&mut self) {
        // After an early end the program would wait for a reader for ever.
        self.child.kill().ok();
        self.child.wait().ok();
    }
}

/// Counts each user table by sequential scan and by its indexes: a wrong visibility map shows here.
///
/// # Errors
/// Names the tables whose counts differ.
pub fn index_only_scans_agree(cluster: &Cluster, database: &str) -> Result<()> {
    let tables = cluster.psql_db(
        database,
        "SELECT DISTINCT i.indrelid::regclass, quote_ident(a.attname) FROM pg_index i
         JOIN pg_class c ON c.oid = i.indexrelid JOIN pg_am m ON m.oid = c.relam AND m.amname = 'btree'
         JOIN pg_class t ON t.oid = i.indrelid AND t.relkind = 'r'
         JOIN pg_namespace n ON n.oid = t.relnamespace AND n.nspname NOT LIKE 'pg\\_%' AND n.nspname <> 'information_schema'
         JOIN pg_attribute a ON a.attrelid = t.oid AND a.attnum = i.indkey[0] WHERE i.indpred IS NULL",
    )?;
    let mut wrong = Vec::new();
    for (table, column) in tables.lines().filter_map(|line| line.split_once('|')) {
        let count = |setting: &str| {
            let sql = format!("{setting} SELECT count(*), count({column}) FROM {table} WHERE {column} IS NOT NULL");
            cluster.psql_db(database, &sql)
        };
        let by_table =
            count("SET enable_indexscan = off; SET enable_indexonlyscan = off; SET enable_bitmapscan = off;")?;
        let by_index = count("SET enable_seqscan = off; SET enable_bitmapscan = off;")?;
        if by_table != by_index {
            wrong.push(format!("{table} by {column}: {by_table} rows in the table, {by_index} by index"));
        }
    }
    if !wrong.is_empty() {
        bail!("index and table differ: {}", wrong.join("; "));
    }
    Ok(())
}

/// The visibility maps of a database tell the truth, by `pg_visibility`'s own check. Makes that extension where it is
/// missing, so not for a server that takes no writes.
///
/// # Errors
/// Names the tables with rows that are not visible or not frozen although their map says so.
pub fn visibility_is_true(cluster: &Cluster, database: &str) -> Result<()> {
    let wrong = cluster.psql_db(
        database,
        "SET client_min_messages = error; CREATE EXTENSION IF NOT EXISTS pg_visibility;
         SELECT c.oid::regclass FROM pg_class c
         WHERE c.relkind IN ('r', 'm', 't') AND c.relpersistence = 'p'
         AND (EXISTS (SELECT FROM pg_check_visible(c.oid)) OR EXISTS (SELECT FROM pg_check_frozen(c.oid)))",
    )?;
    if !wrong.is_empty() {
        bail!("maps of {database} lie about {}", wrong.replace('\n', ", "));
    }
    Ok(())
}
