//! Realistic data in quantity: text, UUIDs, JSON, numerics, timestamps, out-of-line values, and every kind of index.

use super::random::Random;
use crate::pg::Cluster;
use anyhow::{Context, Result, bail};
use std::fmt::Write as _;
use std::io::Write as _;
use std::process::Stdio;

/// What [`fill_with`] puts into a cluster.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct FillOptions {
    /// Size of tables and indexes together, roughly.
    pub megabytes: u64,
    /// Where the random values begin.
    pub seed: u64,
    /// Also a table `big` of more than 1 GiB, so that it has a second segment file.
    pub big_table: bool,
}

/// What was put in.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Filled {
    /// Rows of `orders`.
    pub orders: u64,
    /// Rows of `events`.
    pub events: u64,
    /// Rows of `documents`.
    pub documents: u64,
    /// Size of the database afterwards, from `pg_database_size`.
    pub database_bytes: u64,
}

/// Fills database `postgres` with about this much data; see [`fill_with`].
///
/// # Errors
/// When the server refuses.
pub fn fill(cluster: &Cluster, megabytes: u64) -> Result<Filled> {
    fill_with(cluster, FillOptions { megabytes, seed: 1, big_table: false })
}

const TABLES: &str = "
CREATE TABLE IF NOT EXISTS orders (id bigint, customer int, uid uuid, created timestamptz, status text,
    amount numeric(12,2), note text, details jsonb);
CREATE TABLE IF NOT EXISTS events (id bigint, at timestamptz, kind text, value float8, payload jsonb);
CREATE TABLE IF NOT EXISTS documents (id bigint, title text, tags text[], body text);
";

const INDEXES: [&str; 2] = [
    "
CREATE INDEX IF NOT EXISTS orders_id ON orders (id);
CREATE INDEX IF NOT EXISTS orders_uid ON orders (uid);
CREATE INDEX IF NOT EXISTS orders_customer ON orders (customer, created);
CREATE INDEX IF NOT EXISTS orders_status ON orders USING hash (status) WHERE status = 'disputed';
",
    "
CREATE INDEX IF NOT EXISTS events_id ON events (id);
CREATE INDEX IF NOT EXISTS events_at ON events USING brin (at);
CREATE INDEX IF NOT EXISTS documents_id ON documents USING hash (id);
CREATE INDEX IF NOT EXISTS documents_tags ON documents USING gin (tags);
CREATE INDEX IF NOT EXISTS documents_title ON documents USING gist (to_tsvector('english', title));
",
];

/// Making an index anew is much faster than a random insertion into it for each of many rows.
const DROP_INDEXES: &str = "
DROP INDEX IF EXISTS orders_id, orders_uid, orders_customer, orders_status, events_id, events_at, documents_id,
    documents_tags, documents_title;
";

/// Fills database `postgres`: tables `orders` (half), `events` (a third), `documents` (the rest, with out-of-line
/// values), indexes of every kind, statistics and visibility maps. About 3 GB in a minute and a half on two cores.
///
/// # Errors
/// When the server refuses.
pub fn fill_with(cluster: &Cluster, options: FillOptions) -> Result<Filled> {
    cluster.sql(TABLES)?;
    let before = database_bytes(cluster)?;
    // Measured: bytes on disk, with indexes, per row.
    let bytes = options.megabytes << 20;
    let (orders, events, documents) = (bytes / 2 / 560, bytes / 3 / 240, bytes / 6 / 4000);
    let first = |table: &str| -> Result<u64> {
        let text = cluster.sql(&format!("SELECT coalesce(max(id), 0) FROM {table}"))?;
        text.parse().with_context(|| format!("not a number: {text}"))
    };
    if bytes > before {
        cluster.sql(DROP_INDEXES)?;
    }
    let (first_order, first_event, first_document) = (first("orders")?, first("events")?, first("documents")?);
    let seed = options.seed;
    std::thread::scope(|scope| -> Result<()> {
        let left = scope.spawn(move || -> Result<()> {
            let mut random = Random::new(seed ^ first_order);
            copy_rows(cluster, "orders", first_order..first_order + orders, |id, out| order(&mut random, id, out))?;
            cluster.sql(INDEXES[0])?;
            cluster.sql("VACUUM (ANALYZE) orders").map(drop)
        });
        let right = scope.spawn(move || -> Result<()> {
            let mut random = Random::new(seed ^ first_event ^ 0x5555);
            copy_rows(cluster, "events", first_event..first_event + events, |id, out| event(&mut random, id, out))?;
            copy_rows(cluster, "documents", first_document..first_document + documents, |id, out| {
                document(&mut random, id, out);
            })?;
            cluster.sql(INDEXES[1])?;
            cluster.sql("VACUUM (ANALYZE) events, documents").map(drop)
        });
        join(left)?;
        join(right)
    })?;
    if options.big_table {
        fill_big_table(cluster, seed)?;
    }
    let database_bytes = database_bytes(cluster)?;
    if database_bytes < before {
        bail!("the database shrank from {before} to {database_bytes} bytes while it was filled");
    }
    Ok(Filled { orders, events, documents, database_bytes })
}

fn database_bytes(cluster: &Cluster) -> Result<u64> {
    let text = cluster.sql("SELECT pg_database_size(current_database())")?;
    text.parse().with_context(|| format!("not a number: {text}"))
}

fn join(thread: std::thread::ScopedJoinHandle<'_, Result<()>>) -> Result<()> {
    match thread.join() {
        Ok(result) => result,
        Err(panic) => std::panic::resume_unwind(panic),
    }
}

/// One more than the blocks of a full segment, each block with a row of its own.
fn fill_big_table(cluster: &Cluster, seed: u64) -> Result<()> {
    cluster.sql("CREATE TABLE big (id bigint, filler text); ALTER TABLE big ALTER filler SET STORAGE plain")?;
    let mut random = Random::new(seed ^ 0xb16);
    // A row of about 4100 bytes fills a page of 8 KiB alone.
    copy_rows(cluster, "big", 0..131_200, |id, out| {
        write!(out, "{id}\t").expect("writing to a String cannot fail");
        let tail = random.next_u64();
        for _ in 0..128 {
            write!(out, "{tail:032x}").expect("writing to a String cannot fail");
        }
        out.push('\n');
    })
}

/// Streams generated lines of COPY's text format into a table.
fn copy_rows(
    cluster: &Cluster,
    table: &str,
    ids: std::ops::Range<u64>,
    mut row: impl FnMut(u64, &mut String),
) -> Result<()> {
    let mut command = cluster.command_as_pg(cluster.bin("psql")?);
    command.args(["-Xq", "-v", "ON_ERROR_STOP=1", "-d", &cluster.conninfo()]);
    command.args(["-c", &format!("COPY {table} FROM STDIN")]);
    let mut child = command
        .stdin(Stdio::piped())
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .spawn()
        .context("cannot run psql")?;
    let mut pipe = child.stdin.take().context("psql has no standard input")?;
    let mut buffer = String::with_capacity(1 << 17);
    let mut written = Ok(());
    for id in ids {
        row(id + 1, &mut buffer);
        if buffer.len() > 1 << 16 {
            written = pipe.write_all(buffer.as_bytes());
            buffer.clear();
            if written.is_err() {
                break;
            }
        }
    }
    let written = written.and_then(|()| pipe.write_all(buffer.as_bytes()));
    drop(pipe);
    let output = child.wait_with_output().context("cannot wait for psql")?;
    if !output.status.success() || written.is_err() {
        bail!("COPY into {table} failed: {}", String::from_utf8_lossy(&output.stderr).trim());
    }
    Ok(())
}

/// A time within 2025 and 2026, later for higher ids, with some disorder.
fn timestamp(random: &mut Random, id: u64, out: &mut String) {
    let second = (id * 7 + random.below(600)) % (600 * 86_400);
    let (day, rest) = (second / 86_400, second % 86_400);
    let (year, day) = if day < 336 { (2025, day) } else { (2026, day - 336) };
    let (month, day) = (day / 28 % 12 + 1, day % 28 + 1);
    let (hour, minute, second) = (rest / 3600, rest / 60 % 60, rest % 60);
    let micros = random.below(1_000_000);
    write!(out, "{year}-{month:02}-{day:02} {hour:02}:{minute:02}:{second:02}.{micros:06}+00")
        .expect("writing to a String cannot fail");
}

fn order(random: &mut Random, id: u64, out: &mut String) {
    write!(out, "{id}\t{}\t", random.below(200_000)).expect("writing to a String cannot fail");
    random.uuid(out);
    out.push('\t');
    timestamp(random, id, out);
    let status = random.pick(&["new", "paid", "packed", "shipped", "delivered", "delivered", "returned", "disputed"]);
    write!(out, "\t{status}\t{}.{:02}\t", random.below(90_000), random.below(100))
        .expect("writing to a String cannot fail");
    let words = 6 + random.below(20);
    random.words(words, out);
    out.push_str("\t{\"items\": [");
    let items = 1 + random.below(3);
    for item in 0..items {
        let comma = if item > 0 { ", " } else { "" };
        write!(
            out,
            "{comma}{{\"sku\": \"{:08X}\", \"quantity\": {}, \"price\": {}.{:02}}}",
            random.next_u64() >> 32,
            1 + random.below(9),
            random.below(500),
            random.below(100)
        )
        .expect("writing to a String cannot fail");
    }
    let channel = random.pick(&["web", "phone", "shop", "partner"]);
    writeln!(out, "], \"channel\": \"{channel}\", \"gift\": {}}}", random.below(2) == 1)
        .expect("writing to a String cannot fail");
}

fn event(random: &mut Random, id: u64, out: &mut String) {
    write!(out, "{id}\t").expect("writing to a String cannot fail");
    timestamp(random, id, out);
    let kind = random.pick(&["click", "view", "login", "logout", "search", "purchase", "error"]);
    let value = random.next_u64() as f64 / 1e17;
    let ip = random.next_u64();
    writeln!(
        out,
        "\t{kind}\t{value}\t{{\"session\": \"{:016x}\", \"ip\": \"10.{}.{}.{}\", \"ms\": {}}}",
        random.next_u64(),
        ip & 255,
        (ip >> 8) & 255,
        (ip >> 16) & 255,
        random.below(3000)
    )
    .expect("writing to a String cannot fail");
}

fn document(random: &mut Random, id: u64, out: &mut String) {
    write!(out, "{id}\t").expect("writing to a String cannot fail");
    random.words(5, out);
    write!(out, "\t{{tag{},tag{}}}\t", random.below(500), random.below(500)).expect("writing to a String cannot fail");
    let words = 200 + random.below(1600);
    random.words(words, out);
    out.push('\n');
}
