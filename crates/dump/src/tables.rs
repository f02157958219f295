//! What is in a database that has data: which tables the login may read, how large they are, and holding them.

use crate::names::{pattern, quoted};
use crate::{DumpError, RowSecurity};
use pg_wire::Client;
use repo::dump::Unread;
use std::collections::{HashMap, HashSet};

/// A table or sequence.
#[derive(Debug, Clone)]
pub(crate) struct Relation {
    pub(crate) oid: u32,
    pub(crate) schema: String,
    pub(crate) name: String,
    /// `r`, `p` or `S`.
    pub(crate) kind: String,
    /// Whether the login may read it at all.
    pub(crate) readable: bool,
    /// Whether policies hide rows of it from the login.
    pub(crate) rows_hidden: bool,
    /// Whether it is a heap, whose rows have places in blocks.
    pub(crate) heap: bool,
    /// Blocks of its own file.
    pub(crate) blocks: u32,
    /// Bytes with TOAST.
    pub(crate) bytes: u64,
    /// For a table of an extension's: which rows are the user's (`WHERE …`).
    pub(crate) condition: Option<String>,
}

impl Relation {
    /// As SQL names it.
    pub(crate) fn sql(&self) -> String {
        format!("{}.{}", quoted(&self.schema), quoted(&self.name))
    }

    fn is_table(&self) -> bool {
        self.kind != "S"
    }

    /// Why its data cannot be read.
    pub(crate) fn unread(&self, policed: RowSecurity) -> Option<Unread> {
        let why = match (self.readable, self.rows_hidden, policed) {
            (false, _, _) => "the login may not read it (SELECT, and USAGE of its schema)",
            (true, true, RowSecurity::LeaveOut) => {
                "row security hides rows of it from the login (its definition is in the dump)"
            }
            (true, true, RowSecurity::WhatIsShown) => {
                "row security hides rows of it from the login (those that it shows are in the dump)"
            }
            _ => return None,
        };
        Some(Unread { what: self.sql(), why: why.to_owned() })
    }

    /// What pg_dump is told to leave out.
    pub(crate) fn exclusion(&self, policed: RowSecurity) -> Option<String> {
        let pattern = pattern(&self.schema, &self.name);
        match (self.readable, self.rows_hidden, policed) {
            (false, _, _) => Some(format!("--exclude-table={pattern}")),
            (true, true, RowSecurity::LeaveOut) => Some(format!("--exclude-table-data={pattern}")),
            _ => None,
        }
    }
}

/// The relations of a database that pg_dump reads data of. Sizes only where locks are held: asking for them waits for
/// whoever has the table for himself.
pub(crate) async fn list(client: &mut Client, sizes: bool) -> Result<Vec<Relation>, DumpError> {
    let (own, all) = if sizes {
        (
            "CASE WHEN c.relkind = 'r' AND a.readable THEN pg_catalog.pg_relation_size(c.oid) ELSE 0 END",
            "CASE WHEN c.relkind = 'r' AND a.readable THEN pg_catalog.pg_table_size(c.oid) ELSE 0 END",
        )
    } else {
        ("0", "0")
    };
    let sql = format!(
        "SELECT c.oid::text AS oid, n.nspname AS schema, c.relname AS name, c.relkind::text AS kind, a.readable, \
         (c.relrowsecurity AND pg_catalog.row_security_active(c.oid)) AS rows_hidden, \
         coalesce(m.amname = 'heap', false) AS heap, \
         (({own}) / pg_catalog.current_setting('block_size')::int8)::text AS blocks, ({all})::text AS bytes, \
         x.condition AS condition \
         FROM pg_catalog.pg_class c JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace \
         LEFT JOIN pg_catalog.pg_am m ON m.oid = c.relam \
         CROSS JOIN LATERAL (SELECT pg_catalog.has_schema_privilege(n.oid, 'USAGE') AND \
          CASE WHEN c.relkind = 'S' THEN pg_catalog.has_sequence_privilege(c.oid, 'SELECT') \
           ELSE pg_catalog.has_table_privilege(c.oid, 'SELECT') END AS readable) a \
         LEFT JOIN LATERAL (SELECT nullif(e.extcondition[pg_catalog.array_position(e.extconfig, c.oid)], '') AS condition \
          FROM pg_catalog.pg_extension e WHERE c.oid = ANY (e.extconfig) LIMIT 1) x ON true \
         WHERE c.relkind IN ('r', 'p', 'S') AND c.relpersistence <> 't' AND n.nspname !~ '^pg_' \
         AND n.nspname <> 'information_schema' ORDER BY c.oid"
    );
    let mut relations = Vec::new();
    for row in client.query(&sql, &[]).await? {
        relations.push(Relation {
            oid: row.get("oid")?,
            schema: row.get("schema")?,
            name: row.get("name")?,
            kind: row.get("kind")?,
            readable: row.bool("readable")?,
            rows_hidden: row.bool("rows_hidden")?,
            heap: row.bool("heap")?,
            blocks: row.get("blocks")?,
            bytes: row.get("bytes")?,
            condition: row.opt_str("condition")?.map(str::to_owned),
        });
    }
    Ok(relations)
}

/// A session whose transaction keeps a snapshot for others, and holds all tables that have data in it.
pub(crate) struct Holder {
    pub(crate) client: Client,
    /// For `SET TRANSACTION SNAPSHOT`.
    pub(crate) snapshot: String,
    pub(crate) time: jiff::Timestamp,
    pub(crate) lsn: Option<String>,
    pub(crate) relations: HashMap<u32, Relation>,
}

/// How often all is begun anew because tables came or went meanwhile.
const TRIES: u32 = 5;
/// Tables in one LOCK statement.
const LOCKED_AT_ONCE: usize = 200;

/// Locks all tables (ACCESS SHARE: reading and writing go on, changing their form waits), so that none is dropped,
/// truncated or rewritten before its data are read. This comes before the snapshot: so definitions, which PostgreSQL
/// reads as they are now, are those of the snapshot. `client` has no transaction open.
pub(crate) async fn lock_tables(client: &mut Client) -> Result<HashSet<u32>, DumpError> {
    client.simple_query("SET lock_timeout = '60s'").await?;
    for attempt in 1.. {
        let relations = list(client, false).await?;
        client.simple_query("BEGIN TRANSACTION ISOLATION LEVEL REPEATABLE READ, READ ONLY").await?;
        match lock(client, relations.iter()).await {
            Ok(locked) => return Ok(locked),
            Err(error) => {
                client.simple_query("ROLLBACK").await?;
                // Something was dropped or renamed since it was listed.
                let gone = matches!(error.sqlstate(), Some("42P01" | "3F000" | "42501"));
                if !gone || attempt == TRIES {
                    return Err(lock_error(error));
                }
            }
        }
    }
    unreachable!("the last attempt returns")
}

async fn lock(
    client: &mut Client,
    relations: impl Iterator<Item = &Relation>,
) -> Result<HashSet<u32>, pg_wire::WireError> {
    let tables: Vec<&Relation> = relations.filter(|relation| relation.is_table() && relation.readable).collect();
    for some in tables.chunks(LOCKED_AT_ONCE) {
        // ONLY: partitions and children are in the list themselves, those that may be read.
        let names: Vec<String> = some.iter().map(|table| format!("ONLY {}", table.sql())).collect();
        client.simple_query(&format!("LOCK TABLE {} IN ACCESS SHARE MODE", names.join(", "))).await?;
    }
    Ok(tables.iter().map(|table| table.oid).collect())
}

fn lock_error(error: pg_wire::WireError) -> DumpError {
    match error.sqlstate() {
        Some("55P03") => DumpError::failed(
            format!("a table is held by somebody else for longer than a minute: {error}"),
            "wait until that has ended (an ALTER TABLE, VACUUM FULL, or a transaction left open; see pg_locks), and \
             try again",
        ),
        Some("53200") => DumpError::failed(
            format!("the server has no room for that many locks: {error}"),
            "raise max_locks_per_transaction (a dump needs three locks for each table while it runs)",
        ),
        _ => error.into(),
    }
}

/// Takes the snapshot, in the transaction that has the locks.
pub(crate) async fn snapshot(mut client: Client, locked: HashSet<u32>) -> Result<Holder, DumpError> {
    let sql = "SELECT pg_catalog.pg_export_snapshot() AS snapshot, \
         to_char(clock_timestamp() AT TIME ZONE 'UTC', 'YYYY-MM-DD\"T\"HH24:MI:SS.US\"Z\"') AS time, \
         CASE WHEN pg_is_in_recovery() THEN NULL ELSE pg_current_wal_insert_lsn()::text END AS lsn";
    let row = client.query_one(sql, &[]).await?;
    let (snapshot, lsn) = (row.get("snapshot")?, row.opt_str("lsn")?.map(str::to_owned));
    let time = row.get("time")?;
    // What was made between the list and the snapshot; from here on the list does not change.
    let names = list(&mut client, false).await?;
    let new = names.iter().filter(|relation| !locked.contains(&relation.oid));
    lock(&mut client, new).await.map_err(lock_error)?;
    let relations = list(&mut client, true).await?;
    Ok(Holder { client, snapshot, time, lsn, relations: relations.into_iter().map(|one| (one.oid, one)).collect() })
}

/// Joins a transaction to a snapshot.
pub(crate) async fn join_snapshot(client: &mut Client, snapshot: &str) -> Result<(), DumpError> {
    let sql = format!(
        "BEGIN TRANSACTION ISOLATION LEVEL REPEATABLE READ, READ ONLY; SET TRANSACTION SNAPSHOT {}",
        crate::names::literal(snapshot)
    );
    client.simple_query(&sql).await?;
    Ok(())
}
