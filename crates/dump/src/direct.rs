//! From one server into another, with nothing between: definitions by pg_dump and pg_restore, rows from COPY to COPY, as many
//! sessions on either side.

use crate::connection::{Server, for_reading};
use crate::load::{Load, LoadOptions, Origin, Phase, Source};
use crate::tables::{self, Holder};
use crate::tools::Tools;
use crate::{DumpError, RowSecurity, Selection, data, definitions};
use engine::{Context, Unit};
use jiff::Timestamp;
use repo::dump::Unread;
use serde::Serialize;
use std::collections::HashSet;
use std::sync::Arc;
use std::time::Instant;

/// Rows that policies hide are left out.
const POLICED: RowSecurity = RowSecurity::LeaveOut;
/// How often it is begun, when somebody waits to change a table.
const TRIES: u32 = 3;

/// What is copied from where.
#[derive(Debug, Clone)]
pub struct DirectOptions {
    /// The database; else the one of the connection.
    pub database: Option<String>,
    /// What of it, as of a dump.
    pub selection: Selection,
    /// Tables with more bytes than this are copied in parts of about so many.
    pub part_bytes: u64,
    /// How it is loaded.
    pub load: LoadOptions,
}

/// A database that was copied.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct DirectReport {
    /// The database.
    pub database: String,
    /// The database that it is in now.
    pub into: String,
    /// Whether that was made for it.
    pub created: bool,
    /// When its snapshot was taken, by the origin's clock.
    pub snapshot_time: Timestamp,
    /// Where the WAL was then.
    pub snapshot_lsn: Option<String>,
    /// Tables.
    pub tables: u64,
    /// Rows.
    pub rows: u64,
    /// Large objects.
    pub large_objects: u64,
    /// Plain bytes of data.
    pub bytes: u64,
    /// How long it took.
    pub elapsed_ms: u64,
    /// How long each phase of the load took.
    pub phases: Vec<Phase>,
    /// What the login at the origin could not read.
    pub unread: Vec<Unread>,
    /// What failed, with `OnError::Continue`.
    pub errors: Vec<String>,
}

/// Copies a database of `origin` into `target`.
pub async fn direct(
    ctx: &Context,
    origin: &Server,
    target: &Server,
    options: &DirectOptions,
) -> Result<DirectReport, DumpError> {
    let begun = Instant::now();
    ctx.progress.phase("connecting", None, Unit::Items);
    let client = for_reading(&origin.conninfo).await?;
    let origin = origin.pinned(&client)?;
    let version = client.server_version_num().unwrap_or(0);
    client.close().await;
    let name = options.database.clone().unwrap_or_else(|| origin.conninfo.dbname.clone());
    let place = origin.database(&name)?;
    // Definitions are written by the newer version, where it is installed, as is done by hand when one moves to it.
    let there = for_reading(&target.conninfo).await?;
    let newer = there.server_version_num().unwrap_or(0).max(version) / 10_000;
    there.close().await;
    let set = &options.load.tools;
    let tools = set.for_major(newer, "the newer server").or_else(|_| set.for_major(version / 10_000, "the server"))?;
    let mut read = ctx.or_cancel(read(ctx, &place, tools, &options.selection)).await?;
    for _ in 1..TRIES {
        if !read.as_ref().is_err_and(|error| error.to_string().contains("statement timeout")) {
            break;
        }
        ctx.progress.warn("somebody waits to change a table; it begins again after him");
        read = ctx.or_cancel(self::read(ctx, &place, tools, &options.selection)).await?;
    }
    let Read { mut holder, encoding, mut archive, mut unread } = read?;
    let cut = data::Cut { binary: HashSet::new(), part_bytes: options.part_bytes };
    let mut plan = data::plan(&archive, &mut holder, &encoding, &cut).await?;
    unread.append(&mut plan.unread);
    let mut wanted = options.load.selection.wanted(&archive)?;
    options.load.mapping.apply(&mut archive, &mut wanted).iter().for_each(|warning| ctx.progress.warn(warning));
    let Holder { mut client, snapshot, time, lsn, .. } = holder;
    client.simple_query("SET bytea_output = hex").await?;
    let place = Origin { server: place, snapshot, holder: tokio::sync::Mutex::new(client) };
    let load = Load {
        ctx,
        options: &options.load,
        tools,
        archive: &archive,
        wanted: &wanted,
        encoding: &encoding,
        source: Source::Server(Arc::new(place)),
        data: plan.for_loading(),
        database: None,
        // The snapshot ends with this run.
        what: None,
    };
    let done = load.run(target, Vec::new()).await?;
    Ok(DirectReport {
        database: name,
        into: done.into,
        created: done.created,
        snapshot_time: time,
        snapshot_lsn: lsn,
        tables: done.loaded.tables,
        rows: done.loaded.rows,
        large_objects: done.loaded.large_objects,
        bytes: done.loaded.bytes,
        elapsed_ms: begun.elapsed().as_millis() as u64,
        phases: done.phases,
        unread,
        errors: done.errors,
    })
}

/// What was read before the data.
struct Read {
    holder: Holder,
    encoding: String,
    archive: crate::archive::Archive,
    unread: Vec<Unread>,
}

/// Holds the tables, takes the snapshot, and reads definitions at it.
async fn read(ctx: &Context, server: &Server, tools: &Tools, selection: &Selection) -> Result<Read, DumpError> {
    let mut client = for_reading(&server.conninfo).await?;
    let locked = tables::lock_tables(&mut client).await?;
    let mut holder = tables::snapshot(client, locked).await?;
    let sql = "SELECT pg_catalog.pg_encoding_to_char(encoding) AS encoding FROM pg_catalog.pg_database \
         WHERE datname = pg_catalog.current_database()";
    let encoding = match holder.client.query_one(sql, &[]).await?.str("encoding")? {
        own @ ("SQL_ASCII" | "MULE_INTERNAL") => own.to_owned(),
        _ => "UTF8".to_owned(),
    };
    ctx.progress.phase("reading definitions", None, Unit::Items);
    let mut exclusions: Vec<String> = holder.relations.values().filter_map(|one| one.exclusion(POLICED)).collect();
    exclusions.sort();
    let definitions =
        definitions::read(ctx, tools, server, &holder.snapshot, &encoding, selection, &exclusions).await?;
    let mut unread: Vec<Unread> = holder.relations.values().filter_map(|one| one.unread(POLICED)).collect();
    unread.sort_by(|a, b| a.what.cmp(&b.what));
    Ok(Read { holder, encoding, archive: definitions.archive, unread })
}
