//! Doing the work of a load: sessions that load rows and build indexes, each always with the piece that matters most.

use super::graph::{Graph, Next};
use super::plan::{Job, Plan, Work};
use super::record::Record;
use super::sessions::Settings;
use super::source::{Feed, PartData, Source};
use super::{LoadOptions, Loaded, OnError};
use crate::connection::Server;
use crate::names::literal;
use crate::{DumpError, binary};
use engine::Context;
use pg_wire::Client;
use repo::dump::DataKind;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use tokio::sync::Notify;
use tokio::task::JoinSet;

/// How often a statement is tried that the server ended to let another one go on (a deadlock).
const TRIES: u32 = 4;
/// A table that cannot be truncated or filled with frozen rows is filled without: no right to, or the server will not.
const NOT_FROZEN: [&str; 3] = ["42501", "55000", "0A000"];

/// What the workers share.
struct Shared {
    ctx: Context,
    jobs: Vec<Job>,
    graph: Mutex<Graph>,
    changed: Notify,
    record: Record,
    settings: Settings,
    on_error: OnError,
}

impl Shared {
    fn graph(&self) -> MutexGuard<'_, Graph> {
        self.graph.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The next piece, once there is one; none when all are done.
    async fn next(&self) -> Option<usize> {
        loop {
            let changed = self.changed.notified();
            tokio::pin!(changed);
            // From here on no change is missed.
            changed.as_mut().enable();
            let next = self.graph().take();
            match next {
                Next::Node(number) => return Some(number),
                Next::Over => return None,
                Next::Wait => changed.await,
            }
        }
    }

    fn done(&self, number: usize) {
        self.graph().done(number);
        self.changed.notify_waiters();
    }
}

/// Does all of a plan. Gives what was loaded, and what failed and was passed over.
pub(super) async fn run(
    ctx: &Context,
    options: &LoadOptions,
    server: &Server,
    settings: &Settings,
    source: &Source,
    record: &Record,
    plan: Plan,
) -> Result<(Loaded, Vec<String>), DumpError> {
    let mut loaded = Loaded { tables: plan.tables, ..Loaded::default() };
    let workers = options.workers.max(1).min(plan.jobs.len());
    let graph = Mutex::new(Graph::new(plan.nodes, workers));
    let shared = Arc::new(Shared {
        ctx: ctx.clone(),
        jobs: plan.jobs,
        graph,
        changed: Notify::new(),
        record: record.clone(),
        settings: settings.clone(),
        on_error: options.on_error,
    });
    let mut running = JoinSet::new();
    for _ in 0..workers {
        let (shared, server, settings, source) = (shared.clone(), server.clone(), settings.clone(), source.clone());
        running.spawn(async move {
            let client = settings.connect(&server).await?;
            let feed = source.open().await?;
            let worker = Worker { shared: &shared, client, feed, loaded: Loaded::default(), errors: Vec::new() };
            shared.ctx.or_cancel(worker.work()).await?
        });
    }
    let mut errors = Vec::new();
    // The first failure drops the others: their sessions end with their connections.
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

struct Worker<'a> {
    shared: &'a Shared,
    client: Client,
    feed: Feed,
    loaded: Loaded,
    errors: Vec<String>,
}

impl Worker<'_> {
    async fn work(mut self) -> Result<(Loaded, Vec<String>), DumpError> {
        let shared = self.shared;
        while let Some(number) = shared.next().await {
            let job = &shared.jobs[number];
            let done = match &job.work {
                Work::Rows { sql, frozen, kind, parts } => self.rows(job, sql, frozen.as_ref(), (*kind, parts)).await,
                Work::LargeObjects(part) => self.large_objects(job, part).await,
                Work::Statement { sql, tablespace, sorts } => {
                    self.statement(job, sql, tablespace.as_deref(), *sorts).await
                }
            };
            match done {
                Ok(()) => {}
                // Only what the server says of this piece is passed over; not a damaged repository, nor a lost connection.
                Err(DumpError::Wire(error)) if shared.on_error == OnError::Continue && error.sqlstate().is_some() => {
                    self.client.simple_query("ROLLBACK").await?;
                    self.errors.push(format!("{}: {error}", job.what));
                }
                // The way to the server is gone, not this piece bad.
                Err(DumpError::Wire(error)) if error.is_transient() => return Err(error.into()),
                Err(DumpError::Wire(error)) => {
                    let reason = format!("{} could not be loaded: {error}", job.what);
                    return Err(DumpError::Failed { reason, hint: error.hint() });
                }
                Err(error) => return Err(error),
            }
            shared.done(number);
        }
        self.client.close().await;
        Ok((self.loaded, self.errors))
    }

    /// Begins a transaction that is of this run.
    async fn begin(&mut self, more: &str) -> Result<(), DumpError> {
        self.client.simple_query(&format!("BEGIN; {}{more}", self.shared.record.fence())).await?;
        Ok(())
    }

    /// Ends it, with the note of what it did.
    async fn commit(&mut self, job: &Job) -> Result<(), DumpError> {
        self.client.simple_query(&format!("{}COMMIT", self.shared.record.note(&job.pieces))).await?;
        Ok(())
    }

    async fn rows(
        &mut self,
        job: &Job,
        sql: &str,
        frozen: Option<&(String, String)>,
        parts: (DataKind, &[PartData]),
    ) -> Result<(), DumpError> {
        if let Some((truncate, sql)) = frozen {
            match self.fill(job, truncate, sql, parts).await {
                Err(DumpError::Wire(error)) if error.sqlstate().is_some_and(|state| NOT_FROZEN.contains(&state)) => {
                    tracing::info!(%error, "{}: filled without freezing its rows", job.what);
                    self.client.simple_query("ROLLBACK").await?;
                }
                done => return done,
            }
        }
        self.fill(job, "", sql, parts).await
    }

    async fn fill(
        &mut self,
        job: &Job,
        before: &str,
        sql: &str,
        (kind, parts): (DataKind, &[PartData]),
    ) -> Result<(), DumpError> {
        self.begin(before).await?;
        let mut copy = self.client.copy_in(sql).await?;
        let binary = kind == DataKind::TableBinary;
        if binary {
            copy.send(&binary::HEADER).await?;
        }
        let (mut bytes, mut expected) = (0, 0);
        for part in parts {
            match self.feed.rows(&self.shared.ctx, part, &mut copy).await {
                Ok(fed) => {
                    bytes += fed.bytes;
                    expected += fed.rows.unwrap_or(0);
                }
                Err(error) => {
                    let _ = copy.abort("the data could not be read").await;
                    return Err(error);
                }
            }
        }
        if binary {
            copy.send(&binary::TRAILER).await?;
        }
        let rows = copy.finish().await?;
        // A trigger of the table's may change the count; fewer than there are is told.
        if rows < expected {
            tracing::warn!(rows, expected, "{}: fewer rows than in the dump", job.what);
        }
        self.commit(job).await?;
        self.loaded.rows += rows;
        self.loaded.bytes += bytes;
        Ok(())
    }

    async fn large_objects(&mut self, job: &Job, part: &PartData) -> Result<(), DumpError> {
        self.begin("").await?;
        let fed = self.feed.large_objects(&self.shared.ctx, part, &mut self.client).await?;
        self.commit(job).await?;
        self.loaded.large_objects += fed.rows.unwrap_or(0);
        self.loaded.bytes += fed.bytes;
        Ok(())
    }

    async fn statement(
        &mut self,
        job: &Job,
        sql: &str,
        tablespace: Option<&str>,
        sorts: Option<u64>,
    ) -> Result<(), DumpError> {
        let resources = self.shared.settings.for_building(sorts, self.shared.graph().idle());
        let tablespace = tablespace
            .map_or_else(String::new, |tablespace| format!("SET LOCAL default_tablespace = {}; ", literal(tablespace)));
        let record = &self.shared.record;
        let all =
            format!("BEGIN; {}{resources}{tablespace}{sql}\n; {}COMMIT", record.fence(), record.note(&job.pieces));
        for attempt in 1.. {
            match self.client.simple_query(&all).await {
                Ok(_) => return Ok(()),
                Err(error) if error.sqlstate() == Some("40P01") && attempt < TRIES => {
                    self.client.simple_query("ROLLBACK").await?;
                }
                Err(error) => return Err(error.into()),
            }
        }
        unreachable!("the last attempt returns")
    }
}
