//! Changes by the repository's own WAL index: made from each segment as it is archived, on every version of PostgreSQL.
//!
//! It must answer for each piece of the stretch that every record in it was read: no segment missing or unreadable, and
//! no time at `wal_level=minimal` (`XLOG_PARAMETER_CHANGE`), when changes are not logged.

use super::Answer;
use super::stretch::Piece;
use crate::server::ServerFacts;
use crate::{Context, EngineError};

/// The changes of the pieces, or why the index cannot tell.
#[expect(clippy::unused_async, reason = "it will read the repository")]
pub(super) async fn changes(
    _ctx: &Context,
    _cluster: &repo::Cluster,
    _server: &ServerFacts,
    _pieces: &[Piece],
) -> Result<Answer, EngineError> {
    Ok(Answer::Broken("the WAL in the repository has no index".into()))
}
