//! Changes by the repository's own WAL index: made from each segment as it is archived, on every version of PostgreSQL.
//!
//! The index of each segment speaks of the records that lie whole in it; those that cross a border are joined here.
//! Segments that are not in the repository yet are read from the server's `pg_wal` and indexed by the same code. It is
//! proven that the run is unbroken: no segment missing, none unreadable, no record without its beginning or its end, and
//! no time at `wal_level=minimal`, when changes are not logged.
//!
//! Indexes are taken whole: what lies before the stretch in its first segment counts as changed too. Where the repository
//! has an index of many segments, and all of them are asked for, it is read instead of theirs.

mod within;

pub(super) use within::changes_within;

use super::set::{Changes, ForkKey};
use super::stretch::Piece;
use super::{Answer, run::Run};
use crate::blocking;
use crate::server::ServerFacts;
use crate::wal::index::{IndexCatalogue, read_index_object};
use crate::{Context, EngineError, Unit};
use futures::{StreamExt, stream};
use pg_format::{Lsn, SegmentName, Timeline, XLogSegNo};
use pg_wal::reader::Expected;
use pg_wal::{IndexOptions, SegmentInfo, WalIndex, index_segment};
use repo::RepoError;
use repo::wal::{WalFacts, WalObject};
use repo::wal_index::{IndexObject, IndexPart, segments_per_rollup};
use std::collections::{BTreeMap, BTreeSet};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

/// Segments asked for at the same time.
const AT_ONCE: usize = 8;
/// So much WAL is read from `pg_wal` at most; where archiving lags behind further, the other ways are quicker.
const UNARCHIVED_BYTES_MAX: u64 = 1 << 30;
/// `XLOG_BLCKSZ` as it usually is; only the ends of joined records depend on it, which nobody asks for here.
const WAL_PAGE: u32 = 8192;

/// What is known of a segment, or of many that follow each other.
pub(super) struct Segment {
    /// The first one's name.
    pub(super) name: SegmentName,
    /// The first one.
    pub(super) info: SegmentInfo,
    /// The last one.
    pub(super) last: SegmentInfo,
    /// Changes and marks; it says how far the segment could be read.
    pub(super) index: WalIndex,
    /// What lies here of a record begun before, and whether it ends here.
    pub(super) head: Vec<u8>,
    pub(super) head_whole: bool,
    /// What lies here of a record that ends later, and the length of all of it.
    pub(super) tail: Option<(Vec<u8>, u32)>,
    /// Whether it is not in the repository.
    pub(super) unarchived: bool,
}

/// The changes of the pieces, or why the index cannot tell.
pub(super) async fn changes(
    ctx: &Context,
    cluster: &repo::Cluster,
    server: &ServerFacts,
    pieces: &[Piece],
) -> Result<Answer, EngineError> {
    let (mut run, names) = match begin(ctx, server, pieces) {
        Ok(begun) => begun,
        Err(answer) => return Ok(answer),
    };
    let mut unarchived = 0;
    let steps = ctx.or_cancel(steps(cluster, server, names)).await??;
    let mut reads = stream::iter(steps).map(|step| read_step(cluster, server, step)).buffered(AT_ONCE);
    while let Some(segments) = ctx.or_cancel(reads.next()).await? {
        let segments = segments?;
        for segment in segments.read {
            let segment = match segment {
                Ok(segment) => segment,
                Err(reason) => return Ok(Answer::Broken(reason)),
            };
            if segment.unarchived {
                unarchived += u64::from(segment.info.segment_size);
            }
            if unarchived > UNARCHIVED_BYTES_MAX {
                return Ok(Answer::Broken("more than 1 GiB of WAL is not in the repository yet".into()));
            }
            if let Err(reason) = run.add(segment) {
                return Ok(Answer::Broken(reason));
            }
        }
        ctx.progress.advance(segments.count);
    }
    Ok(run.finish().map_or_else(Answer::Broken, Answer::Unbroken))
}

/// The run that takes the pieces up, and the segments they lie in; or the answer, where nothing is to be read.
fn begin(ctx: &Context, server: &ServerFacts, pieces: &[Piece]) -> Result<(Run, Vec<SegmentName>), Answer> {
    let (Some(first), Some(last)) = (pieces.first(), pieces.last()) else {
        return Err(Answer::Unbroken(Changes::default()));
    };
    let Some(names) = segments(server, pieces) else {
        return Err(Answer::Broken("the WAL lies beyond all segments".into()));
    };
    ctx.progress.phase("reading the WAL index", Some(names.len() as u64), Unit::Items);
    Ok((Run::new(server, first.start, last.end), names))
}

/// Segments that are read together.
struct Step {
    names: Vec<SegmentName>,
}

/// What was read of a step.
struct StepRead {
    count: u64,
    read: Vec<Result<Segment, String>>,
}

/// How the segments are read: many at once, where the repository has an index of them all.
async fn steps(
    cluster: &repo::Cluster,
    server: &ServerFacts,
    names: Vec<SegmentName>,
) -> Result<Vec<Step>, EngineError> {
    let size = server.wal_segment_size;
    if (names.len() as u64) < segments_per_rollup(size.bytes()) {
        // No listing for what cannot be there.
        return Ok(names.into_iter().map(|name| Step { names: vec![name] }).collect());
    }
    let timelines: BTreeSet<_> = names.iter().map(|name| name.timeline).collect();
    let catalogue = IndexCatalogue::list(cluster, server.system_id, size, timelines).await?;
    let mut left = names.iter().copied();
    let steps = catalogue.steps(&names, size)?.into_iter();
    Ok(steps.map(|(_, count)| Step { names: left.by_ref().take(count as usize).collect() }).collect())
}

async fn read_step(cluster: &repo::Cluster, server: &ServerFacts, step: Step) -> Result<StepRead, EngineError> {
    let count = step.names.len() as u64;
    if count > 1 {
        match rolled_up(cluster, server, &step.names).await {
            Ok(segment) => return Ok(StepRead { count, read: vec![Ok(segment)] }),
            // The segments' own say the same.
            Err(error) if error.is_not_found() || error.is_damage() => {}
            Err(error) => return Err(error.into()),
        }
    }
    let mut read_all = Vec::new();
    for name in step.names {
        read_all.push(read(cluster, server, name).await?);
    }
    Ok(StepRead { count, read: read_all })
}

/// The index of many segments that follow each other.
async fn rolled_up(cluster: &repo::Cluster, server: &ServerFacts, names: &[SegmentName]) -> Result<Segment, RepoError> {
    let (name, count) = (names[0], names.len() as u64);
    let (system, size) = (server.system_id, server.wal_segment_size);
    let run = read_index_object(cluster, system, size, name, count, IndexPart::Changes).await?;
    let (Some(first), Some(last)) = (run.facts.first(), run.facts.last()) else {
        let path = cluster.name().wal_index(system, name, count);
        return Err(RepoError::Damaged { path, reason: "it is of no segments".into() });
    };
    let total = u32::try_from(last.tail_total).unwrap_or(u32::MAX);
    Ok(Segment {
        name,
        info: info_of(server, first),
        last: info_of(server, last),
        index: run.index,
        head: run.fragments.head,
        head_whole: first.head_whole,
        tail: (last.tail_len > 0).then_some((run.fragments.tail, total)),
        unarchived: false,
    })
}

fn info_of(server: &ServerFacts, facts: &WalFacts) -> SegmentInfo {
    SegmentInfo {
        system_id: facts.system_id,
        major: server.major,
        timeline: facts.timeline,
        start: facts.first_lsn,
        segment_size: u32::try_from(facts.segment_size).unwrap_or(u32::MAX),
        page_size: WAL_PAGE,
    }
}

/// The segments of the pieces, in order. A segment in which the timeline was left is taken from the later timeline: the
/// server copies to it what came before (`XLogInitNewTimeline`), and the earlier one may never be archived whole.
fn segments(server: &ServerFacts, pieces: &[Piece]) -> Option<Vec<SegmentName>> {
    let size = server.wal_segment_size;
    let mut timelines = BTreeMap::new();
    for piece in pieces {
        for segno in piece.start.segment_no(size).0..=piece.end.segment_no_of_end(size).0 {
            timelines.insert(segno, piece.timeline);
        }
    }
    timelines.into_iter().map(|(segno, timeline)| SegmentName::new(timeline, XLogSegNo(segno), size)).collect()
}

/// A segment from the repository or from `pg_wal`, or why it cannot be told what changed in it.
async fn read(
    cluster: &repo::Cluster,
    server: &ServerFacts,
    name: SegmentName,
) -> Result<Result<Segment, String>, EngineError> {
    let unusable = |error: &RepoError| format!("WAL segment {name} in the repository cannot be used: {error}");
    // Twice, for it may be archived and removed from `pg_wal` just now.
    for _ in 0..2 {
        match archived(cluster, server, name).await {
            Ok(Some(segment)) => return Ok(Ok(segment)),
            Ok(None) => return Ok(Err(format!("WAL segment {name} in the repository has no index"))),
            Err(error) if error.is_not_found() => {}
            Err(error) => return Ok(Err(unusable(&error))),
        }
        let dir = server.data_directory.join("pg_wal");
        let (expected, options) = expected(server, name);
        let read = move || {
            let found = unarchived(&dir.join(name.to_string()), name, &expected, &options);
            let renamed = || unarchived(&recycled(&dir, name, expected.start?)?, name, &expected, &options);
            Ok(found.or_else(renamed))
        };
        if let Some(segment) = blocking(read).await? {
            return Ok(segment);
        }
    }
    Ok(Err(format!("WAL segment {name} is not in the repository, and not in pg_wal")))
}

/// A segment in the repository; none when it has no index.
async fn archived(
    cluster: &repo::Cluster,
    server: &ServerFacts,
    name: SegmentName,
) -> Result<Option<Segment>, RepoError> {
    let repository = cluster.repository();
    let (store, keys) = (repository.store(), repository.keys());
    let path = cluster.name().wal_file(server.system_id, name.timeline, &name.to_string())?;
    let object = WalObject::open_for_index(store.clone(), keys, path).await?;
    let index = match object.index(IndexPart::Changes).await? {
        Some(index) => index,
        None => {
            let path = cluster.name().wal_index(server.system_id, name, 1);
            match IndexObject::open(store.clone(), keys, path).await {
                Ok(made_later) => made_later.index(IndexPart::Changes).await?,
                Err(error) if error.is_not_found() => return Ok(None),
                Err(error) => return Err(error),
            }
        }
    };
    let (facts, fragments) = (object.facts().await?, object.fragments().await?);
    let info = info_of(server, &facts);
    let total = u32::try_from(facts.tail_total).unwrap_or(u32::MAX);
    Ok(Some(Segment {
        name,
        info,
        last: info,
        index,
        head: fragments.head,
        head_whole: facts.head_whole,
        tail: (facts.tail_len > 0).then_some((fragments.tail, total)),
        unarchived: false,
    }))
}

fn expected(server: &ServerFacts, name: SegmentName) -> (Expected, IndexOptions) {
    let expected = Expected {
        system_id: Some(server.system_id),
        major: Some(server.major),
        segment_size: Some(server.wal_segment_size.into()),
        timeline: Some(name.timeline),
        start: name.start(server.wal_segment_size).ok(),
        block_size: Some(server.block_size),
    };
    (expected, IndexOptions { block_size: server.block_size, moved_catalogs: Vec::new() })
}

/// A segment in `pg_wal`; none when it is not to be had there.
fn unarchived(
    path: &Path,
    name: SegmentName,
    expected: &Expected,
    options: &IndexOptions,
) -> Option<Result<Segment, String>> {
    let bytes = std::fs::read(path).ok()?;
    let path: PathBuf = path.into();
    let bad = |error: pg_wal::WalError| format!("{}: {error}", path.display());
    let (facts, index) = match index_segment(&bytes, Some(expected), options) {
        // It has become another one's file while it was read.
        Err(_) if !path.exists() => return None,
        Err(error) => return Some(Err(bad(error))),
        Ok((facts, index)) => (facts, index),
    };
    Some(index.map_err(bad).map(|index| Segment {
        name,
        info: facts.info,
        last: facts.info,
        index,
        head_whole: facts.head.as_ref().is_some_and(|head| head.state == pg_wal::HeadState::Complete),
        head: facts.head.map(|head| head.bytes).unwrap_or_default(),
        tail: facts.tail.map(|tail| (tail.bytes, tail.total_len)),
        unarchived: true,
    }))
}

/// The file that a segment's content is still in, under the name of a later segment. The server renames files that it does
/// not need any more (`InstallXLogFileSegment` in `src/backend/access/transam/xlog.c`), as when it is stopped, and they keep
/// their content until that segment is written. How much of it is still there is told by reading it.
fn recycled(dir: &Path, name: SegmentName, start: Lsn) -> Option<PathBuf> {
    // XLogPageHeaderData (`src/include/access/xlog_internal.h`): magic, flags, timeline, address of the page.
    let is_it = |path: &PathBuf| {
        let mut header = [0; 16];
        let read = std::fs::File::open(path).and_then(|file| file.read_exact_at(&mut header, 0));
        let timeline = u32::from_le_bytes([header[4], header[5], header[6], header[7]]);
        let mut address = [0; 8];
        address.copy_from_slice(&header[8..]);
        read.is_ok() && Timeline(timeline) == name.timeline && Lsn(u64::from_le_bytes(address)) == start
    };
    let entries = std::fs::read_dir(dir).ok()?.flatten();
    let segments = entries.filter(|entry| entry.file_name().to_str().is_some_and(|n| n.parse::<SegmentName>().is_ok()));
    segments.map(|entry| entry.path()).find(is_it)
}

/// Adds what an index says.
pub(super) fn add(changes: &mut Changes, more: &pg_wal::index::Changes) {
    for fork in &more.forks {
        let rel = fork.key.rel;
        let key = ForkKey {
            tablespace: rel.tablespace.0,
            database: rel.database.0,
            relfilenode: rel.relfilenode,
            fork: fork.key.fork,
        };
        if let Some(limit) = fork.limit {
            changes.set_limit(key, limit);
        }
        changes.add_blocks(key, fork.blocks.iter().copied());
    }
    for database in &more.databases {
        changes.add_database(database.tablespace.0, database.database.0);
    }
}
