//! Which blocks changed since an earlier backup: the best of three ways, and why not a better one.
//!
//! 1. The repository's own WAL index ([`index`]).
//! 2. The server's WAL summaries, PostgreSQL 17 and later ([`summaries`]).
//! 3. The LSN on every page, for which every page is read: not here, but where pages are read.
//!
//! The first two are believed only when they cover the stretch from the earlier backup's start to this one's without a
//! hole. Whatever is not proven so falls to the next way, with the reason in words for the operator.
//!
//! WAL does not name everything: free space maps, visibility map bits that are cleared, blocks that were added and
//! never written, files that are no relation's. Who uses [`Changes`] reads those in other ways.

mod index;
#[cfg(test)]
mod index_tests;
mod run;
mod set;
mod stretch;
mod summaries;
#[cfg(test)]
mod tests;

pub(super) use set::{Changes, FileChanges, ForkKey};
pub(super) use stretch::Stretch;

use crate::server::ServerFacts;
use crate::{Context, EngineError};
use pg_wire::{Client, WireError};

/// What was found out about changes.
#[derive(Debug)]
pub(super) enum Found {
    /// These blocks changed, and no others that WAL names.
    Changes {
        /// The blocks.
        changes: Changes,
        /// The way: `wal-index` or `wal-summaries`.
        used: &'static str,
        /// Why not a better one.
        reasons: Vec<String>,
    },
    /// Every page must be looked at.
    ScanPages {
        /// Why.
        reasons: Vec<String>,
    },
}

/// What one way answers.
#[derive(Debug)]
enum Answer {
    /// The stretch is covered without a hole.
    Unbroken(Changes),
    /// It is not, or nobody can tell; for the operator.
    Broken(String),
}

/// Finds the changes of a stretch of WAL. To be called when `pg_backup_start` has returned, so that the stretch ends at
/// the redo LSN of a checkpoint, where the server ends a summary.
///
/// `server.data_directory` must be the server's own where it can be read; where it cannot, the connection is asked. Without
/// a connection the server does not run, and its files are all there is.
pub(super) async fn find(
    ctx: &Context,
    cluster: &repo::Cluster,
    server: &ServerFacts,
    client: Option<&mut Client>,
    stretch: &Stretch,
) -> Result<Found, EngineError> {
    let pieces = match stretch.pieces() {
        Ok(pieces) => pieces,
        Err(reason) => return Ok(Found::ScanPages { reasons: vec![reason] }),
    };
    let mut reasons = Vec::new();
    match index::changes(ctx, cluster, server, &pieces).await? {
        Answer::Unbroken(changes) => return Ok(Found::Changes { changes, used: "wal-index", reasons }),
        Answer::Broken(reason) => reasons.push(reason),
    }
    match summaries::changes(ctx, server, client, &pieces, summaries::PATIENCE).await? {
        Answer::Unbroken(changes) => Ok(Found::Changes { changes, used: "wal-summaries", reasons }),
        Answer::Broken(reason) => {
            reasons.push(reason);
            Ok(Found::ScanPages { reasons })
        }
    }
}

/// What WAL of a stretch names, all of which is in the repository; or why that is not known. Unlike [`find`], nothing
/// counts as changed or cut that was so before the stretch.
pub(super) async fn within(
    ctx: &Context,
    cluster: &repo::Cluster,
    server: &ServerFacts,
    stretch: &Stretch,
) -> Result<Result<Changes, String>, EngineError> {
    let pieces = match stretch.pieces() {
        Ok(pieces) => pieces,
        Err(reason) => return Ok(Err(reason)),
    };
    Ok(match index::changes_within(ctx, cluster, server, &pieces).await? {
        Answer::Unbroken(changes) => Ok(changes),
        Answer::Broken(reason) => Err(reason),
    })
}

/// What the server says against a question; the session goes on. A session that is lost is an error.
fn refusal(error: WireError) -> Result<String, EngineError> {
    match error.server_error() {
        Some(refused) if refused.severity == "ERROR" => Ok(refused.to_string()),
        _ => Err(error.into()),
    }
}
