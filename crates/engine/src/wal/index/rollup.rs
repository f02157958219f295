//! Indexes of many segments put together, so that a day is read in a few requests.

use super::border::{Border, is_one_continuation};
use super::{IndexCatalogue, IndexedRun, major_of, names, read_one, read_own};
use crate::wal::WalArchive;
use crate::wal::archive::segno_of;
use crate::{Context, EngineError, Unit};
use futures::{StreamExt, stream};
use pg_format::{SegmentName, SystemId, Timeline, WalSegmentSize, XLogSegNo};
use pg_wal::{PgMajor, WalIndex};
use repo::wal::{Fragments, WalFacts};
use repo::wal_index::{IndexPart, encode_index_object, put_index_object, segments_per_rollup};
use serde::Serialize;

/// Segments read at the same time for one object.
const READS_AT_ONCE: usize = 4;

/// What rolling up did.
#[derive(Debug, Clone, Default, Serialize)]
pub struct RollUpReport {
    /// Index objects written.
    pub written: u64,
    /// Those that were there already.
    pub there: u64,
    /// The segments for which one cannot be written, with the reason, once for each object.
    pub left_out: Vec<(String, String)>,
    /// Bytes written.
    pub bytes_written: u64,
}

/// Writes an index object for each complete group of segments that has none.
///
/// # Errors
/// When the store cannot be asked.
pub async fn roll_up(ctx: &Context, archive: &WalArchive) -> Result<RollUpReport, EngineError> {
    let major = major_of(archive).await?;
    let catalogue = ctx.or_cancel(IndexCatalogue::load(archive)).await??;
    let mut report = RollUpReport::default();
    let mut wanted: Vec<(Timeline, u64)> = Vec::new();
    let count = catalogue.per_rollup();
    if count < 2 {
        return Ok(report);
    }
    for (timeline, wal) in archive.timelines() {
        for range in wal.segments.ranges() {
            let first = range.first.0.next_multiple_of(count);
            let groups = (first..).step_by(count as usize).take_while(|first| first + count - 1 <= range.last.0);
            for first in groups {
                if catalogue.has(timeline, XLogSegNo(first), count) {
                    report.there += 1;
                } else {
                    wanted.push((timeline, first));
                }
            }
        }
    }
    ctx.progress.phase("rolling up WAL indexes", Some(wanted.len() as u64), Unit::Items);
    for (timeline, first) in wanted {
        ctx.check()?;
        let first = archive.segment_name(timeline, XLogSegNo(first))?;
        match ctx.or_cancel(roll_up_one(archive, &catalogue, major, first, count)).await?? {
            Ok(bytes) => {
                report.written += 1;
                report.bytes_written += bytes;
            }
            Err(reason) => report.left_out.push((first.to_string(), reason)),
        }
        ctx.progress.advance(1);
    }
    Ok(report)
}

/// Writes one; how many bytes it has, or why it cannot be.
async fn roll_up_one(
    archive: &WalArchive,
    catalogue: &IndexCatalogue,
    major: PgMajor,
    first: SegmentName,
    count: u64,
) -> Result<Result<u64, String>, EngineError> {
    let segments = names(archive, first, count)?;
    let mut reads =
        stream::iter(segments).map(|name| read_one(archive, catalogue, name, IndexPart::All)).buffered(READS_AT_ONCE);
    let mut group = Group::new(major);
    while let Some(run) = reads.next().await {
        match run? {
            Ok(run) => {
                if let Some(reason) = group.add(run)? {
                    return Ok(Err(reason));
                }
            }
            Err(hole) => return Ok(Err(format!("{}: {}", hole.segment, hole.reason))),
        }
    }
    group.write(archive.cluster(), archive.system_id(), first, count).await
}

/// Writes the index object of the group that this segment is the last of, when all of it is there. For who has just
/// archived it: nothing is listed, and a group that is not complete is left to [`roll_up`].
pub(crate) async fn roll_up_after(
    cluster: &repo::Cluster,
    system: SystemId,
    size: WalSegmentSize,
    major: PgMajor,
    last: SegmentName,
) -> Result<(), EngineError> {
    let count = segments_per_rollup(size.bytes());
    let segno = segno_of(last, size)?.0;
    if count < 2 || segno % count != count - 1 {
        return Ok(());
    }
    let name = |segno| SegmentName::new(last.timeline, XLogSegNo(segno), size);
    let names: Vec<SegmentName> = (segno + 1 - count..=segno).filter_map(name).collect();
    let mut reads =
        stream::iter(names.clone()).map(|name| read_own(cluster, system, name, IndexPart::All)).buffered(READS_AT_ONCE);
    let mut group = Group::new(major);
    while let Some(run) = reads.next().await {
        match run {
            Ok(Some(run)) => {
                if group.add(run)?.is_some() {
                    return Ok(());
                }
            }
            Ok(None) => return Ok(()),
            Err(error) if error.is_not_found() => return Ok(()),
            Err(error) => return Err(error.into()),
        }
    }
    if let Some(first) = names.first() {
        // Why it cannot be written is told when it is asked for.
        let _ = group.write(cluster, system, *first, count).await?;
    }
    Ok(())
}

/// What is gathered of a group of segments.
struct Group {
    border: Border,
    facts: Vec<WalFacts>,
    fragments: Fragments,
    index: Option<WalIndex>,
}

impl Group {
    fn new(major: PgMajor) -> Self {
        Self { border: Border::new(major), facts: Vec::new(), fragments: Fragments::default(), index: None }
    }

    /// Writes the object; how many bytes it has, or why it cannot be.
    async fn write(
        self,
        cluster: &repo::Cluster,
        system: SystemId,
        first: SegmentName,
        count: u64,
    ) -> Result<Result<u64, String>, EngineError> {
        let Some(index) = self.index else { return Ok(Err("no segments".into())) };
        // An object keeps the fragment at the beginning of its first segment and at the end of its last one, no more.
        if self.facts.first().into_iter().chain(self.facts.last()).any(is_one_continuation) {
            return Ok(Err("a record goes through the whole of its first or last segment".into()));
        }
        let repository = cluster.repository();
        let path = cluster.name().wal_index(system, first, count);
        let object = encode_index_object(repository.keys(), &path, &self.facts, &self.fragments, &index)?;
        let bytes = object.len() as u64;
        put_index_object(&**repository.store(), &path, object).await?;
        Ok(Ok(bytes))
    }

    /// Adds the next segment; the reason when that cannot be.
    fn add(&mut self, run: IndexedRun) -> Result<Option<String>, EngineError> {
        if let Some(cut) = run.facts.iter().find_map(|facts| facts.unreadable.as_ref()) {
            return Ok(Some(format!("{} cannot be read beyond {}: {}", run.first, cut.lsn, cut.reason)));
        }
        let joined = self.border.enter(&run)?;
        let IndexedRun { facts, fragments, index, .. } = run;
        match &mut self.index {
            None => {
                self.fragments.head = fragments.head;
                self.index = Some(index);
            }
            Some(all) => {
                joined.into_iter().for_each(|joined| all.append(joined));
                all.append(index);
            }
        }
        self.fragments.tail = fragments.tail;
        self.facts.extend(facts);
        Ok(None)
    }
}
