//! Indexes made later, from what is in the archive.

use super::{IndexCatalogue, major_of};
use crate::wal::WalArchive;
use crate::{Context, EngineError, Unit};
use bytes::Bytes;
use futures::{StreamExt, stream};
use pg_format::{SegmentName, XLogSegNo};
use pg_wal::index::{Catalog, MarkKind};
use pg_wal::{Expected, IndexOptions, Oid, PgMajor, WalIndex, index_segment};
use repo::wal::{WalObject, read_segment};
use repo::wal_index::{encode_index_object, put_index_object};
use serde::Serialize;
use std::sync::{Mutex, PoisonError};

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
    if unsure.is_empty() {
        return Ok(report);
    }
    // Where catalogs lie that were rewritten: as backups noted it, and as the WAL that is read here tells.
    let moved = Mutex::new(moved_catalogs(ctx, archive).await?);
    ctx.progress.phase("making WAL indexes", Some(unsure.len() as u64), Unit::Items);
    let moved_now = || moved.lock().unwrap_or_else(PoisonError::into_inner).clone();
    let mut work = stream::iter(unsure)
        .map(|name| async move {
            let known = moved_now();
            (name, known.len(), make(archive, major, name, known).await)
        })
        .buffered(READS_AT_ONCE);
    while let Some((name, known, made)) = ctx.or_cancel(work.next()).await? {
        let mut made = made?;
        let present = moved_now();
        if matches!(made, Made::Now(..)) && known != present.len() {
            // An earlier segment told of a rewrite after this one was begun.
            made = make(archive, major, name, present).await?;
        }
        match made {
            Made::There => report.indexed += 1,
            Made::Now(object, told) => {
                moved.lock().unwrap_or_else(PoisonError::into_inner).extend(told);
                let path = archive.cluster().name().wal_index(archive.system_id(), name, 1);
                report.made += 1;
                report.bytes_written += object.len() as u64;
                put_index_object(&**archive.cluster().repository().store(), &path, object).await?;
            }
            Made::Not(reason) => report.failed.push((name.to_string(), reason)),
        }
        ctx.progress.advance(1);
    }
    report.failed.sort();
    Ok(report)
}

/// Database, catalog, and the number of its file.
pub(crate) type Moved = Vec<(Oid, Catalog, u32)>;

/// Catalogs that do not lie in the file they had first, by the names of all backups: file numbers are not given out twice.
async fn moved_catalogs(ctx: &Context, archive: &WalArchive) -> Result<Moved, EngineError> {
    let mut moved = Moved::new();
    let cluster = archive.cluster();
    for id in ctx.or_cancel(cluster.backups()).await?? {
        moved.extend(catalogs_of(ctx, cluster, id).await?);
    }
    moved.sort_unstable();
    moved.dedup();
    Ok(moved)
}

/// The same by the names of one backup.
pub(crate) async fn catalogs_of(
    ctx: &Context,
    cluster: &repo::Cluster,
    id: repo::BackupId,
) -> Result<Moved, EngineError> {
    let mut moved = Moved::new();
    // A backup that cannot be read tells nothing; others say so.
    let Ok(manifest) = ctx.or_cancel(cluster.open_manifest(id)).await? else { return Ok(moved) };
    let mut blocks = manifest.names();
    while let Ok(Some(entries)) = ctx.or_cancel(blocks.next()).await? {
        let catalogs = entries.into_iter().filter_map(|entry| {
            let catalog = Catalog::of_oid(Oid(entry.oid)).filter(|_| entry.relfilenode != entry.oid)?;
            Some((Oid(entry.database), catalog, entry.relfilenode))
        });
        moved.extend(catalogs);
    }
    Ok(moved)
}

/// What an index tells of catalogs that were rewritten.
pub(super) fn told_by(index: &WalIndex) -> Moved {
    let maps = index.marks.iter().filter_map(|mark| match &mark.kind {
        MarkKind::RelMap { database, files } => Some((*database, files)),
        _ => None,
    });
    maps.flat_map(|(database, files)| files.iter().map(move |(oid, file)| (database, *oid, *file)))
        .filter_map(|(database, oid, file)| Some((database, Catalog::of_oid(oid).filter(|_| oid.0 != file)?, file)))
        .collect()
}

enum Made {
    There,
    /// The object, and where it says that catalogs lie.
    Now(Bytes, Moved),
    Not(String),
}

async fn make(archive: &WalArchive, major: PgMajor, name: SegmentName, moved: Moved) -> Result<Made, EngineError> {
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
        let options = IndexOptions { moved_catalogs: moved, ..IndexOptions::usual() };
        let (_, index) = index_segment(&plain, Some(&expected), &options)?;
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
    Ok(Made::Now(object, told_by(&index)))
}
