//! What of a load is done, kept in the database that is loaded: each piece is noted in the transaction that loads it. So a
//! load that was broken off, however that was, goes on with exactly what is missing.
//!
//! Each run has a key of its own, and every transaction of it first locks the row that holds the key: who goes on changes
//! the key, which waits until the sessions that a killed run left behind have ended, and stops those that begin later.

use crate::DumpError;
use crate::names::literal;
use engine::Context;
use pg_wire::Client;
use std::collections::HashSet;

/// The schema, in the target while it is loaded.
pub(super) const SCHEMA: &str = engine::find::LOAD_SCHEMA;
/// Held by the session that leads a load: one at a time in a database.
const LOCK: &str = "8085876893456789012";

/// What is done; none of it, when nothing can be kept there.
#[derive(Debug, Clone, Default)]
pub(super) struct Record {
    /// The run's key.
    run: Option<String>,
    done: HashSet<String>,
}

/// What a database holds of an earlier load.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Earlier {
    /// Nothing.
    Nothing,
    /// A load of this, that was broken off.
    BrokenOff(String),
}

/// Whether a load was broken off in the database of `client`.
pub(super) async fn earlier(client: &mut Client) -> Result<Earlier, DumpError> {
    let sql = format!("SELECT pg_catalog.to_regclass('{SCHEMA}.state') IS NOT NULL AS there");
    if !client.query_one(&sql, &[]).await?.bool("there")? {
        return Ok(Earlier::Nothing);
    }
    let row = client.query_opt(&format!("SELECT what FROM {SCHEMA}.state"), &[]).await?;
    Ok(row.map_or(Ok(Earlier::Nothing), |row| row.get("what").map(Earlier::BrokenOff))?)
}

/// Takes the database for this load. `client` stays open until the end.
pub(super) async fn only_one(client: &mut Client, name: &str) -> Result<(), DumpError> {
    let sql = format!("SELECT pg_catalog.pg_try_advisory_lock({LOCK}) AS got");
    if client.query_one(&sql, &[]).await?.bool("got")? {
        return Ok(());
    }
    Err(DumpError::refused(
        format!("database {name} is being loaded by somebody else now"),
        "wait until that load has ended (its sessions are in pg_stat_activity)",
    ))
}

impl Record {
    /// Nothing is kept, and a load that is broken off begins anew.
    pub(super) fn none() -> Self {
        Self::default()
    }

    /// Begins a record of a load of `what`. Who may not make a schema loads without one.
    pub(super) async fn begin(client: &mut Client, what: &str, run: &str) -> Result<Self, DumpError> {
        let sql = format!(
            "BEGIN; CREATE SCHEMA {SCHEMA}; CREATE TABLE {SCHEMA}.state (what text, run text); \
             CREATE TABLE {SCHEMA}.done (piece text); INSERT INTO {SCHEMA}.state VALUES ({}, {}); COMMIT",
            literal(what),
            literal(run)
        );
        match client.simple_query(&sql).await {
            Ok(_) => Ok(Self { run: Some(run.to_owned()), done: HashSet::new() }),
            Err(error) if error.sqlstate() == Some("42501") => {
                client.simple_query("ROLLBACK").await?;
                tracing::warn!("the login may not make a schema: if this load is broken off, it must begin anew");
                Ok(Self::none())
            }
            Err(error) => Err(error.into()),
        }
    }

    /// Goes on with what an earlier run has begun, once its last sessions have ended.
    pub(super) async fn go_on(ctx: &Context, client: &mut Client, run: &str) -> Result<Self, DumpError> {
        let sql = format!("UPDATE {SCHEMA}.state SET run = {}", literal(run));
        ctx.or_cancel(client.simple_query(&sql)).await??;
        let rows = client.query(&format!("SELECT piece FROM {SCHEMA}.done"), &[]).await?;
        let done = rows.into_iter().map(|row| row.get("piece")).collect::<Result<_, _>>()?;
        Ok(Self { run: Some(run.to_owned()), done })
    }

    /// Whether a piece is done.
    pub(super) fn has(&self, piece: &str) -> bool {
        self.done.contains(piece)
    }

    /// How many are.
    pub(super) fn len(&self) -> usize {
        self.done.len()
    }

    pub(super) fn is_kept(&self) -> bool {
        self.run.is_some()
    }

    /// The first statement of a transaction: fails when somebody else went on with this load.
    pub(super) fn fence(&self) -> String {
        let Some(run) = &self.run else { return String::new() };
        format!(
            "SELECT 1 / pg_catalog.count(*) AS this_load_was_taken_over FROM \
             (SELECT FROM {SCHEMA}.state WHERE run = {} FOR SHARE) s; ",
            literal(run)
        )
    }

    /// The last one: what it did.
    pub(super) fn note(&self, pieces: &[String]) -> String {
        if self.run.is_none() || pieces.is_empty() {
            return String::new();
        }
        let values: Vec<String> = pieces.iter().map(|piece| format!("({})", literal(piece))).collect();
        format!("INSERT INTO {SCHEMA}.done VALUES {}; ", values.join(", "))
    }

    /// Takes it away: the load is whole.
    pub(super) fn drop(&self) -> String {
        if self.run.is_some() { format!("DROP SCHEMA {SCHEMA} CASCADE; ") } else { String::new() }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn without_a_record_nothing_is_said() {
        let none = Record::none();
        assert_eq!((none.fence(), none.note(&["1/0".into()]), none.drop()), Default::default());
        let some = Record { run: Some("it's".into()), done: HashSet::new() };
        assert!(some.fence().contains("run = 'it''s' FOR SHARE"), "{}", some.fence());
        assert_eq!(some.note(&["1/0".into(), "2".into()]), "INSERT INTO pgkeep_load.done VALUES ('1/0'), ('2'); ");
        assert_eq!(some.note(&[]), "");
    }
}
