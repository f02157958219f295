//! From one server into another, with nothing between: definitions by pg_dump and pg_restore, rows from COPY to COPY, as many
//! sessions on either side.

use crate::connection::{Server, for_reading};
use crate::load::{self, Done, Load, LoadOptions, Origin, Phase, Source};
use crate::reading::{Read, Reading};
use crate::tables::Holder;
use crate::{DumpError, RowSecurity, Selection, data};
use engine::{Context, Unit};
use jiff::Timestamp;
use repo::dump::Unread;
use serde::Serialize;
use std::collections::HashSet;
use std::sync::Arc;
use std::time::{Duration, Instant};

/// How often it goes on after the connection to the target was lost, and the time between.
const GO_ON: u32 = 20;
const WAIT: Duration = Duration::from_secs(1);

/// What is copied from where.
#[derive(Debug, Clone)]
pub struct DirectOptions {
    /// The database; else the one of the connection.
    pub database: Option<String>,
    /// What of it, as of a dump.
    pub selection: Selection,
    /// `SET ROLE` first, at the origin.
    pub role: Option<String>,
    /// Of tables with row security, what the policies show.
    pub row_security: RowSecurity,
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
    /// Pieces that were there already when it last went on, after the connection to the target was lost.
    pub went_on_after: Option<usize>,
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
    let reading = Reading {
        ctx,
        server: &origin,
        tools,
        selection: &options.selection,
        role: options.role.as_deref(),
        row_security: options.row_security,
    };
    let Read { mut holder, definitions, encoding, mut unread } = ctx.or_cancel(reading.read(&name, None)).await??;
    let mut archive = definitions.archive;
    let cut = data::Cut { binary: HashSet::new(), part_bytes: options.part_bytes, readers: data::Readers::Any };
    let mut plan = data::plan(&archive, &mut holder, &encoding, &cut).await?;
    unread.append(&mut plan.unread);
    let mut wanted = options.load.selection.wanted(&archive)?;
    options.load.mapping.apply(&mut archive, &mut wanted).iter().for_each(|warning| ctx.progress.warn(warning));
    let Holder { client, snapshot, time, lsn, .. } = holder;
    let setup = crate::options::setup(options.role.as_deref(), options.row_security);
    let words = load::copy_in_words(&name, &snapshot, time);
    let place = Arc::new(Origin { server: place, snapshot, setup, holder: tokio::sync::Mutex::new(client) });
    let load = Load {
        ctx,
        options: &options.load,
        tools,
        archive: &archive,
        wanted: &wanted,
        encoding: &encoding,
        source: Source::Server(place.clone()),
        data: plan.for_loading(),
        database: None,
        // The snapshot ends with this run, which can go on as long as it lives.
        what: Some(words),
    };
    let done = through(ctx, &load, target, &place).await?;
    Ok(DirectReport {
        database: name,
        into: done.into,
        created: matches!(options.load.target, load::Target::Create(_)),
        went_on_after: done.went_on,
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

/// Loads; goes on when the connection to the target was lost, or the target restarted.
async fn through(ctx: &Context, load: &Load<'_>, target: &Server, origin: &Origin) -> Result<Done, DumpError> {
    let mut first = None;
    for attempt in 0.. {
        let error = match load.run(target, Vec::new()).await {
            Ok(done) => return Ok(done),
            Err(error) => error,
        };
        let lost = load::is_lost(&error);
        // The first error says what happened; later ones, that it could not be helped.
        let error = first.unwrap_or(error);
        if !lost || attempt == GO_ON || !is_held(origin).await {
            return Err(error);
        }
        if attempt == 0 {
            ctx.progress.warn(&format!("{error}; it goes on when the server is there again"));
        }
        first = Some(error);
        ctx.or_cancel(tokio::time::sleep(WAIT)).await?;
    }
    unreachable!("the last attempt returns")
}

/// Whether the origin still has the snapshot.
async fn is_held(origin: &Origin) -> bool {
    origin.holder.lock().await.simple_query("SELECT 1").await.is_ok()
}
