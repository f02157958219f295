//! Statistics of what was loaded: ANALYZE, with many sessions.

use super::sessions::Settings;
use crate::DumpError;
use crate::connection::Server;
use engine::{Context, Unit};
use pg_wire::Client;
use std::collections::{HashSet, VecDeque};
use std::sync::{Arc, Mutex, PoisonError};
use tokio::task::JoinSet;

/// The tables and materialized views of these (schema and name), largest first, as SQL names them.
pub(super) async fn tables(client: &mut Client, loaded: &HashSet<(String, String)>) -> Result<Vec<String>, DumpError> {
    let sql = "SELECT n.nspname AS schema, c.relname AS name, pg_catalog.format('%I.%I', n.nspname, c.relname) AS sql \
         FROM pg_catalog.pg_class c JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace \
         WHERE n.nspname !~ '^pg_' AND n.nspname <> 'information_schema' AND c.relkind IN ('r', 'm') \
         AND c.relpersistence <> 't' ORDER BY pg_catalog.pg_relation_size(c.oid) DESC";
    let mut tables = Vec::new();
    for row in client.query(sql, &[]).await? {
        if loaded.contains(&(row.get("schema")?, row.get("name")?)) {
            tables.push(row.get("sql")?);
        }
    }
    Ok(tables)
}

/// Analyzes tables, with as many sessions.
pub(super) async fn analyze(
    ctx: &Context,
    server: &Server,
    settings: &Settings,
    tables: Vec<String>,
    workers: usize,
) -> Result<Vec<String>, DumpError> {
    ctx.progress.phase("analyzing", Some(tables.len() as u64), Unit::Items);
    let workers = workers.max(1).min(tables.len().max(1));
    let queue = Arc::new(Mutex::new(VecDeque::from(tables)));
    let mut running = JoinSet::new();
    for _ in 0..workers {
        let (ctx, server, queue, settings) = (ctx.clone(), server.clone(), queue.clone(), settings.clone());
        running.spawn(async move {
            let mut client = settings.connect(&server).await?;
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
