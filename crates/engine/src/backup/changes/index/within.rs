//! The changes of a stretch, exactly: the first segment is indexed anew from where the stretch starts. For questions where
//! too much is as wrong as too little, of WAL that is in the repository.

use super::{AT_ONCE, Segment, archived, begin, expected};
use crate::backup::changes::Answer;
use crate::backup::changes::stretch::Piece;
use crate::server::ServerFacts;
use crate::{Context, EngineError};
use futures::{StreamExt, stream};
use pg_format::{Lsn, SegmentName};
use pg_wal::{IndexBuilder, SegmentReader};
use repo::Cluster;
use repo::wal::read_segment;

/// The changes of the pieces, or why the index cannot tell.
pub(in crate::backup::changes) async fn changes_within(
    ctx: &Context,
    cluster: &Cluster,
    server: &ServerFacts,
    pieces: &[Piece],
) -> Result<Answer, EngineError> {
    let (mut run, names) = match begin(ctx, server, pieces) {
        Ok(begun) => begun,
        Err(answer) => return Ok(answer),
    };
    let start = pieces[0].start;
    let read = |name: SegmentName| async move { (name, archived(cluster, server, name).await) };
    let mut reads = stream::iter(names).map(read).buffered(AT_ONCE);
    while let Some((name, segment)) = ctx.or_cancel(reads.next()).await? {
        let mut segment = match segment {
            Ok(Some(segment)) => segment,
            Ok(None) => return Ok(Answer::Broken(format!("WAL segment {name} in the repository has no index"))),
            Err(error) => {
                return Ok(Answer::Broken(format!("WAL segment {name} in the repository cannot be used: {error}")));
            }
        };
        if segment.info.start <= start && start < segment.info.end() {
            match from_start(cluster, server, &segment, start).await {
                Ok(changes) => segment.index.changes = changes,
                Err(reason) => return Ok(Answer::Broken(reason)),
            }
        }
        if let Err(reason) = run.add(segment) {
            return Ok(Answer::Broken(reason));
        }
        ctx.progress.advance(1);
    }
    Ok(run.finish().map_or_else(Answer::Broken, Answer::Unbroken))
}

/// What the records of a segment change that begin at `start` or later.
async fn from_start(
    cluster: &Cluster,
    server: &ServerFacts,
    segment: &Segment,
    start: Lsn,
) -> Result<pg_wal::index::Changes, String> {
    let (repository, name) = (cluster.repository(), segment.name);
    let unusable = |error: repo::RepoError| format!("WAL segment {name} in the repository cannot be used: {error}");
    let path = cluster.name().wal_file(server.system_id, name.timeline, &name.to_string()).map_err(unusable)?;
    let bytes = read_segment(repository.store().clone(), repository.keys(), &path).await.map_err(unusable)?;
    let (expected, options) = expected(server, name);
    let bad = |error: pg_wal::WalError| format!("WAL segment {name}: {error}");
    let mut reader = SegmentReader::open(&bytes, &expected).map_err(bad)?;
    let mut builder = IndexBuilder::new(&options);
    while let Some(record) = reader.next_record() {
        if record.lsn >= start {
            builder.add(&record);
        }
    }
    builder.finish(segment.info.start, segment.index.end).map(|index| index.changes).map_err(bad)
}
