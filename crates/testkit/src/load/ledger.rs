//! Clients that write under load and note, outside of the server, what was acknowledged to them.

use crate::pg::Cluster;
use anyhow::{Context, Result};
use serde::{Deserialize, Serialize};
use std::path::Path;
use std::sync::Arc;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

/// One transaction of a client. It inserts row (`client`, `number`) into table `ledger` and counts it in table
/// `ledger_total`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Entry {
    /// Which client.
    pub client: u32,
    /// Number of the client's transaction.
    pub number: u64,
    /// True when the server acknowledged the COMMIT. If not, the row may be there or not.
    pub acknowledged: bool,
    /// Transaction id, with epoch, where it became known.
    pub xid: Option<u64>,
    /// WAL insert position just before COMMIT: the commit record begins here or later.
    pub lsn_before: Option<u64>,
    /// WAL insert position just after the acknowledgement: the commit record ends here or earlier.
    pub lsn_after: Option<u64>,
    /// The server's clock just before COMMIT, microseconds since 1970.
    pub time_before_us: Option<i64>,
    /// The server's clock just after the acknowledgement, microseconds since 1970.
    pub time_after_us: Option<i64>,
}

/// What all clients noted.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Ledger {
    /// Every transaction that was tried, in each client's order.
    pub entries: Vec<Entry>,
}

/// How the clients behave.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct LoadOptions {
    /// How many clients, each with a connection and a thread of its own.
    pub clients: u32,
    /// How long a client rests between two transactions.
    pub pause: Duration,
}

/// Clients at work. Dropping it stops them.
#[derive(Debug)]
pub struct RunningLoad {
    stop: Arc<AtomicBool>,
    noted: Arc<Mutex<Ledger>>,
    threads: Vec<std::thread::JoinHandle<()>>,
}

const TABLES: &str = "
CREATE TABLE IF NOT EXISTS ledger (client int, number bigint, payload text, at timestamptz DEFAULT now(),
    PRIMARY KEY (client, number));
CREATE INDEX IF NOT EXISTS ledger_at ON ledger (at);
CREATE TABLE IF NOT EXISTS ledger_total (client int PRIMARY KEY, rows bigint);
";

/// How a row's payload follows from its key; must agree with the check in `verify.rs`.
pub(crate) const PAYLOAD_SQL: &str = "repeat(md5(client::text || '/' || number::text), 1 + (number % 5)::int)";

impl Ledger {
    /// Makes the tables `ledger` and `ledger_total` in database `postgres` and starts the clients. They go on through
    /// restarts and crashes of the server until [`RunningLoad::stop`]. Numbers continue where an earlier load on
    /// this cluster ended.
    ///
    /// # Errors
    /// When the tables cannot be made.
    pub fn start(cluster: &Cluster, options: LoadOptions) -> Result<RunningLoad> {
        cluster.sql(TABLES)?;
        let first: u64 = cluster.sql("SELECT coalesce(max(number), 0) + 1 FROM ledger")?.parse()?;
        let stop = Arc::new(AtomicBool::new(false));
        let noted = Arc::new(Mutex::new(Ledger::default()));
        let mut threads = Vec::new();
        for client in 0..options.clients {
            let client = Client {
                conninfo: cluster.conninfo(),
                client,
                number: first,
                pause: options.pause,
                stop: stop.clone(),
                noted: noted.clone(),
            };
            let runtime = tokio::runtime::Builder::new_current_thread()
                .enable_all()
                .build()
                .context("cannot make a runtime for a client")?;
            threads.push(std::thread::spawn(move || runtime.block_on(client.work())));
        }
        Ok(RunningLoad { stop, noted, threads })
    }

    /// How many commits were acknowledged.
    #[must_use]
    pub fn acknowledged(&self) -> usize {
        self.entries.iter().filter(|entry| entry.acknowledged).count()
    }

    /// Adds what a later load on the same cluster noted.
    pub fn extend(&mut self, later: Self) {
        self.entries.extend(later.entries);
    }

    /// Writes the ledger to a file.
    ///
    /// # Errors
    /// When the file cannot be written.
    pub fn save(&self, path: &Path) -> Result<()> {
        std::fs::write(path, serde_json::to_vec(self)?).with_context(|| format!("cannot write {}", path.display()))
    }

    /// Reads a ledger that [`Ledger::save`] wrote.
    ///
    /// # Errors
    /// When there is none.
    pub fn load(path: &Path) -> Result<Self> {
        let bytes = std::fs::read(path).with_context(|| format!("cannot read {}", path.display()))?;
        serde_json::from_slice(&bytes).with_context(|| format!("no ledger in {}", path.display()))
    }
}

impl RunningLoad {
    /// How many commits were acknowledged so far.
    #[must_use]
    pub fn acknowledged(&self) -> usize {
        lock(&self.noted).acknowledged()
    }

    /// Waits until at least `count` more commits are acknowledged than now.
    ///
    /// # Errors
    /// When they are not within a minute.
    pub fn wait_for_more(&self, count: usize) -> Result<()> {
        let wanted = self.acknowledged() + count;
        let start = std::time::Instant::now();
        while self.acknowledged() < wanted {
            if start.elapsed() > Duration::from_secs(60) {
                anyhow::bail!("only {} of {wanted} commits were acknowledged in a minute", self.acknowledged());
            }
            std::thread::sleep(Duration::from_millis(5));
        }
        Ok(())
    }

    /// Ends the clients, each after its current transaction, and returns what they noted.
    #[must_use]
    pub fn stop(mut self) -> Ledger {
        self.end();
        std::mem::take(&mut *lock(&self.noted))
    }

    fn end(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        for thread in self.threads.drain(..) {
            thread.join().ok();
        }
    }
}

impl Drop for RunningLoad {
    fn drop(&mut self) {
        self.end();
    }
}

fn lock(ledger: &Mutex<Ledger>) -> std::sync::MutexGuard<'_, Ledger> {
    ledger.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
}

struct Client {
    conninfo: String,
    client: u32,
    number: u64,
    pause: Duration,
    stop: Arc<AtomicBool>,
    noted: Arc<Mutex<Ledger>>,
}

impl Client {
    async fn work(mut self) {
        while !self.stop.load(Ordering::Relaxed) {
            let Ok(connection) = crate::pg::connect_to(&self.conninfo).await else {
                // The server is down; it may come back.
                tokio::time::sleep(Duration::from_millis(50)).await;
                continue;
            };
            while !self.stop.load(Ordering::Relaxed) {
                let number = self.number;
                self.number += 1;
                // Noted before it is tried: what happens to it from here on is no surprise.
                let (mut entry, position) = self.begin_entry(number);
                let committed = self.transaction(&connection, &mut entry).await;
                lock(&self.noted).entries[position] = entry;
                if committed.is_err() {
                    break;
                }
                tokio::time::sleep(self.pause).await;
            }
        }
    }

    fn begin_entry(&self, number: u64) -> (Entry, usize) {
        let entry = Entry {
            client: self.client,
            number,
            acknowledged: false,
            xid: None,
            lsn_before: None,
            lsn_after: None,
            time_before_us: None,
            time_after_us: None,
        };
        let mut noted = lock(&self.noted);
        noted.entries.push(entry.clone());
        (entry, noted.entries.len() - 1)
    }

    async fn transaction(&self, connection: &tokio_postgres::Client, entry: &mut Entry) -> Result<()> {
        let (client, number) = (entry.client, entry.number);
        let rows = connection
            .simple_query(&format!(
                "BEGIN;
                 INSERT INTO ledger (client, number, payload)
                     SELECT client, number, {PAYLOAD_SQL} FROM (SELECT {client} AS client, {number}::bigint AS number) k;
                 INSERT INTO ledger_total VALUES ({client}, 1)
                     ON CONFLICT (client) DO UPDATE SET rows = ledger_total.rows + 1;
                 SELECT pg_current_xact_id(), {NOW_SQL}"
            ))
            .await?;
        let [xid, lsn, time] = first_row::<3>(&rows)?;
        entry.xid = Some(xid.parse()?);
        entry.lsn_before = Some(parse_lsn(&lsn)?);
        entry.time_before_us = Some(time.parse()?);
        connection.simple_query("COMMIT").await?;
        entry.acknowledged = true;
        let rows = connection.simple_query(&format!("SELECT {NOW_SQL}")).await?;
        let [lsn, time] = first_row::<2>(&rows)?;
        entry.lsn_after = Some(parse_lsn(&lsn)?);
        entry.time_after_us = Some(time.parse()?);
        Ok(())
    }
}

const NOW_SQL: &str = "pg_current_wal_insert_lsn(), (extract(epoch FROM clock_timestamp()) * 1000000)::bigint";

fn first_row<const N: usize>(messages: &[tokio_postgres::SimpleQueryMessage]) -> Result<[String; N]> {
    let row = messages
        .iter()
        .find_map(|message| match message {
            tokio_postgres::SimpleQueryMessage::Row(row) => Some(row),
            _ => None,
        })
        .context("the server sent no row")?;
    let mut fields = [const { String::new() }; N];
    for (position, field) in fields.iter_mut().enumerate() {
        *field = row.get(position).context("the server sent NULL")?.to_owned();
    }
    Ok(fields)
}

/// Reads `X/Y` as PostgreSQL prints an LSN.
pub(crate) fn parse_lsn(text: &str) -> Result<u64> {
    let (high, low) = text.split_once('/').with_context(|| format!("'{text}' is no LSN"))?;
    let part = |digits| u64::from_str_radix(digits, 16).with_context(|| format!("'{text}' is no LSN"));
    Ok(part(high)? << 32 | part(low)?)
}
