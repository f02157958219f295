//! Indexes made later, from what is in the archive.

use super::{IndexCatalogue, major_of};
use crate::wal::WalArchive;
use crate::{Context, EngineError, Unit};
use futures::{StreamExt, stream};
use pg_format::{SegmentName, XLogSegNo};
use pg_wal::{Expected, IndexOptions, PgMajor, index_segment};
use repo::wal::{WalObject, read_segment};
use repo::wal_index::{encode_index_object, put_index_object};
use serde::Serialize;

/// Segments looked at at the same time.
const READS_AT_ONCE: usize = 8;

/// What rebuilding did.
#[derive(Debug, Clone, Default, Serialize)]
pub struct RebuildReport {
    /// Segments that have an index of their own, or a rolled-up one.
    pub indexed: u64,
    /// Segments for which one was made.
    pub made: u64,
    /// Segments for which none can be made, with the reason.
    pub failed: Vec<(String, String)>,
    /// Bytes written.
    pub bytes_written: u64,
}

/// Makes the index of each segment that has none.
///
/// # Errors
/// When the store cannot be asked. Segments that are damaged are named in the report.
pub async fn rebuild(ctx: &Context, archive: &WalArchive) -> Result<RebuildReport, EngineError> {
    let major = major_of(archive).await?;
    let catalogue = ctx.or_cancel(IndexCatalogue::load(archive)).await??;
    let count = catalogue.per_rollup();
    let mut report = RebuildReport::default();
    let mut unsure = Vec::new();
    for (timeline, wal) in archive.timelines() {
        for segno in wal.segments.ranges().iter().flat_map(|range| range.first.0..=range.last.0) {
            let rolled_up = catalogue.has(timeline, XLogSegNo(segno - segno % count), count);
            if rolled_up || catalogue.has(timeline, XLogSegNo(segno), 1) {
                report.indexed += 1;
            } else {
                unsure.push(archive.segment_name(timeline, XLogSegNo(segno))?);
            }
        }
    }
    ctx.progress.phase("making WAL indexes", Some(unsure.len() as u64), Unit::Items);
    let mut work = stream::iter(unsure)
        .map(|name| async move { (name, make(archive, major, name).await) })
        .buffer_unordered(READS_AT_ONCE);
    while let Some((name, made)) = ctx.or_cancel(work.next()).await? {
        match made? {
            Made::There => report.indexed += 1,
            Made::Now(bytes) => {
                report.made += 1;
                report.bytes_written += bytes;
            }
            Made::Not(reason) => report.failed.push((name.to_string(), reason)),
        }
        ctx.progress.advance(1);
    }
    report.failed.sort();
    Ok(report)
}

enum Made {
    There,
    Now(u64),
    Not(String),
}

async fn make(archive: &WalArchive, major: PgMajor, name: SegmentName) -> Result<Made, EngineError> {
    let repository = archive.cluster().repository();
    let (store, keys) = (repository.store(), repository.keys());
    let path = archive.cluster().name().wal_file(archive.system_id(), name.timeline, &name.to_string())?;
    let read = async {
        let object = WalObject::open(store.clone(), keys, path.clone()).await?;
        if object.has_index() {
            return Ok(None);
        }
        let (facts, fragments) = (object.facts().await?, object.fragments().await?);
        Ok(Some((facts, fragments, read_segment(store.clone(), keys, &path).await?)))
    };
    let (facts, fragments, plain) = match read.await {
        Ok(Some(read)) => read,
        Ok(None) => return Ok(Made::There),
        Err(error @ repo::RepoError::Store(_)) if !error.is_not_found() => return Err(error.into()),
        Err(error) => return Ok(Made::Not(error.to_string())),
    };
    let expected = Expected {
        system_id: Some(archive.system_id()),
        major: Some(major),
        segment_size: Some(archive.segment_size().into()),
        timeline: Some(name.timeline),
        start: name.start(archive.segment_size()).ok(),
        block_size: None,
    };
    let indexed = tokio::task::spawn_blocking(move || {
        let (_, index) = index_segment(&plain, Some(&expected), &IndexOptions::usual())?;
        index
    });
    let indexed = indexed
        .await
        .map_err(|error| EngineError::Failed { reason: format!("a worker ended: {error}"), hint: None })?;
    let index = match indexed {
        Ok(index) => index,
        Err(error) => return Ok(Made::Not(error.to_string())),
    };
    let path = archive.cluster().name().wal_index(archive.system_id(), name, 1);
    let object = encode_index_object(keys, &path, &[facts], &fragments, &index)?;
    let bytes = object.len() as u64;
    put_index_object(&**store, &path, object).await?;
    Ok(Made::Now(bytes))
}
