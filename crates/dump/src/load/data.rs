//! Data by COPY, by many sessions at the same time.

use super::select::Wanted;
use super::{LoadOptions, Loaded, OnError};
use crate::archive::Archive;
use crate::connection::{Server, for_writing};
use crate::copy::CopyTarget;
use crate::large_objects::{Parser, Step, put};
use crate::{DumpError, StreamReader};
use engine::{Context, Unit};
use futures::StreamExt;
use pg_wire::Client;
use repo::dump::{DataKind, DumpedDatabase};
use std::collections::VecDeque;
use std::sync::{Arc, Mutex, PoisonError};
use tokio::task::JoinSet;

/// A part that is to be loaded.
#[derive(Debug, Clone)]
struct Job {
    what: String,
    kind: DataKind,
    /// The COPY statement, for a table.
    sql: String,
    stream: u32,
    rows: u64,
    bytes: u64,
    /// Bytes of all its parts.
    of_bytes: u64,
}

type Queue = Arc<Mutex<VecDeque<Job>>>;

/// Loads the data that are wanted. Gives what was loaded, and what failed and was passed over.
pub(super) async fn load(
    ctx: &Context,
    options: &LoadOptions,
    server: &Server,
    reader: &StreamReader,
    archive: &Archive,
    database: &DumpedDatabase,
    wanted: &Wanted,
) -> Result<(Loaded, Vec<String>), DumpError> {
    let mut jobs = Vec::new();
    let mut loaded = Loaded::default();
    for data in database.data.iter().filter(|data| wanted.contains(&data.entry)) {
        let bad = |reason: String| DumpError::Failed { reason, hint: None };
        let entry = archive
            .entry(data.entry)
            .ok_or_else(|| bad(format!("the dump's table of contents has no entry {}", data.entry)))?;
        let sql = match data.kind {
            DataKind::LargeObjects => String::new(),
            DataKind::Table => {
                let statement = entry.copy_statement.as_deref().unwrap_or_default();
                CopyTarget::parse(statement).map_err(|error| bad(error.to_string()))?.load(&database.encoding)
            }
        };
        if data.kind == DataKind::Table {
            loaded.tables += 1;
        }
        let of = data.parts.len();
        jobs.extend(data.parts.iter().enumerate().map(|(number, part)| Job {
            of_bytes: data.bytes,
            what: if of > 1 { format!("{}, part {} of {of}", entry.label(), number + 1) } else { entry.label() },
            kind: data.kind,
            sql: sql.clone(),
            stream: part.stream,
            rows: part.rows,
            bytes: part.bytes,
        }));
    }
    // Nothing to copy for a part without rows.
    jobs.retain(|job| job.bytes > 0);
    // The largest table first; the parts of a table in order, so that its rows lie in about the order that they had.
    jobs.sort_by_key(|job| std::cmp::Reverse(job.of_bytes));
    let total = jobs.iter().map(|job| job.bytes).sum();
    ctx.progress.phase("loading data", Some(total), Unit::Bytes);
    let workers = options.workers.max(1).min(jobs.len().max(1));
    let queue: Queue = Arc::new(Mutex::new(jobs.into()));
    let mut running = JoinSet::new();
    for _ in 0..workers {
        let (ctx, server, reader, queue) = (ctx.clone(), server.clone(), reader.clone(), queue.clone());
        let (role, on_error) = (options.role.clone(), options.on_error);
        running.spawn(async move {
            let mut client = for_writing(&server.conninfo).await?;
            if let Some(role) = role {
                client.simple_query(&format!("SET ROLE {}", crate::names::quoted(&role))).await?;
            }
            ctx.or_cancel(work(&ctx, &mut client, &reader, &queue, on_error)).await?
        });
    }
    let mut errors = Vec::new();
    while let Some(done) = running.join_next().await {
        let (some, failed) = done.map_err(|panic| DumpError::Failed {
            reason: format!("a worker stopped unexpectedly: {panic}"),
            hint: None,
        })??;
        loaded.rows += some.rows;
        loaded.bytes += some.bytes;
        loaded.large_objects += some.large_objects;
        errors.extend(failed);
    }
    Ok((loaded, errors))
}

async fn work(
    ctx: &Context,
    client: &mut Client,
    reader: &StreamReader,
    queue: &Queue,
    on_error: OnError,
) -> Result<(Loaded, Vec<String>), DumpError> {
    let next = || queue.lock().unwrap_or_else(PoisonError::into_inner).pop_front();
    let (mut loaded, mut errors) = (Loaded::default(), Vec::new());
    while let Some(job) = next() {
        let result = match job.kind {
            DataKind::Table => copy_in(ctx, client, reader, &job).await,
            DataKind::LargeObjects => large_objects(ctx, client, reader, &job).await,
        };
        match (result, job.kind) {
            (Ok(rows), DataKind::Table) => loaded.rows += rows,
            (Ok(objects), DataKind::LargeObjects) => loaded.large_objects += objects,
            // Only what the server says of these data is passed over; not a damaged repository, nor a lost connection.
            (Err(DumpError::Wire(error)), _) if on_error == OnError::Continue && error.sqlstate().is_some() => {
                errors.push(format!("{}: {error}", job.what));
                continue;
            }
            (Err(DumpError::Wire(error)), _) => {
                let reason = format!("{} could not be loaded: {error}", job.what);
                return Err(DumpError::Failed { reason, hint: error.hint() });
            }
            (Err(error), _) => return Err(error),
        }
        loaded.bytes += job.bytes;
    }
    Ok((loaded, errors))
}

async fn copy_in(ctx: &Context, client: &mut Client, reader: &StreamReader, job: &Job) -> Result<u64, DumpError> {
    let mut pieces = reader.pieces(job.stream);
    let mut copy = client.copy_in(&job.sql).await?;
    while let Some(piece) = pieces.next().await {
        match piece {
            Ok(piece) => {
                copy.send(&piece).await?;
                ctx.progress.advance(piece.len() as u64);
            }
            Err(error) => {
                let _ = copy.abort("the dump could not be read").await;
                return Err(error);
            }
        }
    }
    let rows = copy.finish().await?;
    // A trigger of the table's, or rows that go to partitions, may change the count; fewer than there are is told.
    if rows < job.rows {
        tracing::warn!(rows, expected = job.rows, "{}: fewer rows than in the dump", job.what);
    }
    Ok(rows)
}

async fn large_objects(ctx: &Context, client: &mut Client, reader: &StreamReader, job: &Job) -> Result<u64, DumpError> {
    let bad = |error: crate::archive::BadArchive| DumpError::Failed { reason: error.to_string(), hint: None };
    let mut pieces = reader.pieces(job.stream);
    let (mut parser, mut at, mut count) = (Parser::default(), (0, 0), 0);
    client.simple_query("BEGIN").await?;
    let result = async {
        while let Some(piece) = pieces.next().await {
            let piece = piece?;
            ctx.progress.advance(piece.len() as u64);
            for step in parser.feed(&piece).map_err(bad)? {
                match step {
                    Step::Begin(oid) => at = (oid, 0),
                    Step::Bytes(bytes) => {
                        put(client, at.0, at.1, &bytes).await?;
                        at.1 += bytes.len() as u64;
                    }
                    Step::End => count += 1,
                }
            }
        }
        parser.finish().map_err(bad)
    }
    .await;
    client.simple_query(if result.is_ok() { "COMMIT" } else { "ROLLBACK" }).await?;
    result.map(|()| count)
}

/// Analyzes tables, with as many sessions.
pub(super) async fn analyze(
    ctx: &Context,
    server: &Server,
    tables: Vec<String>,
    workers: usize,
) -> Result<Vec<String>, DumpError> {
    ctx.progress.phase("analyzing", Some(tables.len() as u64), Unit::Items);
    let workers = workers.max(1).min(tables.len().max(1));
    let queue = Arc::new(Mutex::new(VecDeque::from(tables)));
    let mut running = JoinSet::new();
    for _ in 0..workers {
        let (ctx, server, queue) = (ctx.clone(), server.clone(), queue.clone());
        running.spawn(async move {
            let mut client = for_writing(&server.conninfo).await?;
            let next = || queue.lock().unwrap_or_else(PoisonError::into_inner).pop_front();
            let mut errors = Vec::new();
            while let Some(table) = next() {
                match ctx.or_cancel(client.simple_query(&format!("ANALYZE {table}"))).await? {
                    Ok(_) => {}
                    Err(error) if error.sqlstate().is_some() => errors.push(format!("ANALYZE {table}: {error}")),
                    Err(error) => return Err(DumpError::from(error)),
                }
                ctx.progress.advance(1);
            }
            Ok(errors)
        });
    }
    let mut errors = Vec::new();
    while let Some(done) = running.join_next().await {
        errors.extend(done.map_err(|panic| DumpError::Failed {
            reason: format!("a worker stopped unexpectedly: {panic}"),
            hint: None,
        })??);
    }
    Ok(errors)
}
