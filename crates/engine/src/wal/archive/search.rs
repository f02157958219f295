//! Questions answered by the facts of single segments: times, restore points, what can be recovered.

use super::{READS_AT_ONCE, WalArchive};
use crate::{Context, EngineError};
use futures::{StreamExt, stream};
use jiff::Timestamp;
use pg_format::{Lsn, SegmentName, Timeline, WalSegmentSize};
use repo::wal::{RestorePoint, WalFacts};
use serde::Serialize;

/// The end of a transaction somewhere in a segment.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct TransactionEnd {
    /// The segment.
    pub segment: SegmentName,
    /// The latest end of a transaction in it.
    pub time: Timestamp,
}

/// A restore point that was looked for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FoundRestorePoint {
    /// The segment it begins in.
    pub segment: SegmentName,
    /// The restore point.
    pub point: RestorePoint,
}

/// What can be recovered from a backup with the WAL that is there.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct RecoverableWindow {
    /// The earliest target: where the backup becomes consistent.
    pub from_lsn: Lsn,
    /// The latest target: the end of the last whole record in the unbroken WAL. `None` when the backup's own WAL is
    /// not there.
    pub to_lsn: Option<Lsn>,
    /// The timeline of `to_lsn`.
    pub to_timeline: Timeline,
    /// The latest end of a transaction that can be recovered; `None` when none ended since the backup, or the archive
    /// has no times.
    pub to_time: Option<Timestamp>,
    /// The last segment of the unbroken WAL.
    pub last_segment: Option<SegmentName>,
    /// The first segment that is missing after it.
    pub next_segment: SegmentName,
}

/// So many segments are looked at for a time before it is given up: an idle server may switch for years.
const WALK_BACK_MAX: usize = 4096;

impl WalArchive {
    /// The segments that a recovery reads from `start` on `start_timeline` along the history of `end_timeline`, up to
    /// the first one missing, with their facts; several are read ahead.
    pub fn facts_from(
        &self,
        start: Lsn,
        start_timeline: Timeline,
        end_timeline: Timeline,
    ) -> Result<impl futures::Stream<Item = Result<(SegmentName, WalFacts), EngineError>> + '_, EngineError> {
        let (_, missing) = self.unbroken_from(start, start_timeline, end_timeline)?;
        let end = missing
            .start(self.segment_size)
            .map_err(|error| EngineError::Failed { reason: error.to_string(), hint: None })?;
        let names: Vec<SegmentName> = if end.0 <= start.segment_start(self.segment_size).0 {
            Vec::new()
        } else {
            let needed = self.segments_for(start, start_timeline, end, end_timeline)?;
            needed.into_iter().take_while(|segment| segment.present).map(|segment| segment.name).collect()
        };
        Ok(stream::iter(names).map(|name| self.named_facts(name)).buffered(READS_AT_ONCE))
    }

    async fn named_facts(&self, name: SegmentName) -> Result<(SegmentName, WalFacts), EngineError> {
        let segno = segno_of(name, self.segment_size)?;
        Ok((name, self.facts(name.timeline, segno).await?))
    }

    /// The latest end of a transaction on a timeline, looked for from its last segment back. Commit times are not in
    /// order, so this is the latest of the last segment that has any.
    pub async fn latest_transaction_end(
        &self,
        ctx: &Context,
        timeline: Timeline,
    ) -> Result<Option<TransactionEnd>, EngineError> {
        let ranges = self.ranges(timeline);
        let back = ranges.iter().rev().flat_map(|range| (range.first.0..=range.last.0).rev()).take(WALK_BACK_MAX);
        let names: Vec<SegmentName> =
            back.map(|n| self.segment_name(timeline, pg_format::XLogSegNo(n))).collect::<Result<_, _>>()?;
        self.latest_of(ctx, names).await
    }

    /// The first of these segments, looked at in this order, in which a transaction ended.
    async fn latest_of(&self, ctx: &Context, names: Vec<SegmentName>) -> Result<Option<TransactionEnd>, EngineError> {
        // Nearly always the first one answers; only then is more read at once.
        let (first, rest) = names.split_at(names.len().min(1));
        for (names, at_once) in [(first, 1), (rest, READS_AT_ONCE)] {
            let mut facts = stream::iter(names.to_vec()).map(|name| self.named_facts(name)).buffered(at_once);
            while let Some(facts) = ctx.or_cancel(facts.next()).await? {
                let (segment, facts) = facts?;
                if let Some(time) = facts.latest_end() {
                    return Ok(Some(TransactionEnd { segment, time }));
                }
            }
        }
        Ok(None)
    }

    /// The first segment, on the way from `start` on `start_timeline` along the history of `end_timeline`, in which a
    /// transaction ended after `time`: recovery to `time` ends there. Times are not in order, so it is looked for from
    /// the start. `None` when there is none in the unbroken WAL: the archive does not reach `time`.
    pub async fn first_end_after(
        &self,
        ctx: &Context,
        start: Lsn,
        start_timeline: Timeline,
        end_timeline: Timeline,
        time: Timestamp,
    ) -> Result<Option<TransactionEnd>, EngineError> {
        let mut facts = std::pin::pin!(self.facts_from(start, start_timeline, end_timeline)?);
        while let Some(facts) = ctx.or_cancel(facts.next()).await? {
            let (segment, facts) = facts?;
            if let Some(latest) = facts.latest_end().filter(|latest| *latest > time) {
                return Ok(Some(TransactionEnd { segment, time: latest }));
            }
        }
        Ok(None)
    }

    /// All restore points of this name on the way from `start` on `start_timeline` along the history of
    /// `end_timeline`; recovery ends at the first one after the backup.
    pub async fn find_restore_point(
        &self,
        ctx: &Context,
        start: Lsn,
        start_timeline: Timeline,
        end_timeline: Timeline,
        name: &str,
    ) -> Result<Vec<FoundRestorePoint>, EngineError> {
        let history = self.history_between(start, start_timeline, end_timeline)?;
        let mut found = Vec::new();
        let mut facts = std::pin::pin!(self.facts_from(start, start_timeline, end_timeline)?);
        while let Some(facts) = ctx.or_cancel(facts.next()).await? {
            let (segment, facts) = facts?;
            let points = facts.restore_points.into_iter();
            // The copy of a segment that two timelines share may belong to an older one beyond the place where it was
            // left, when only that one is there.
            let on_way = points.filter(|point| {
                point.name == name && point.lsn >= start && history.timeline_of(point.lsn) >= start_timeline
            });
            found.extend(on_way.map(|point| FoundRestorePoint { segment, point }));
        }
        Ok(found)
    }

    /// What can be recovered from a backup that starts at `start`, on `timeline`, and is consistent at `stop`, along
    /// the history of `end_timeline`.
    pub async fn recoverable_window(
        &self,
        ctx: &Context,
        start: Lsn,
        stop: Lsn,
        timeline: Timeline,
        end_timeline: Timeline,
    ) -> Result<RecoverableWindow, EngineError> {
        let (last_segment, next_segment) = self.unbroken_from(start, timeline, end_timeline)?;
        let mut window = RecoverableWindow {
            from_lsn: stop,
            to_lsn: None,
            to_timeline: last_segment.map_or(timeline, |segment| segment.timeline),
            to_time: None,
            last_segment,
            next_segment,
        };
        let Some(last) = last_segment else { return Ok(window) };
        let (_, facts) = self.named_facts(last).await?;
        if facts.last_lsn < stop {
            return Ok(window);
        }
        window.to_lsn = Some(facts.last_lsn);
        window.to_time = facts.latest_end();
        if window.to_time.is_none() {
            let end = last.end(self.segment_size).unwrap_or(Lsn::MAX);
            let mut way = self.segments_for(start, timeline, end, end_timeline)?;
            way.pop();
            let back = way.into_iter().rev().filter(|segment| segment.present).map(|segment| segment.name);
            window.to_time = self.latest_of(ctx, back.take(WALK_BACK_MAX).collect()).await?.map(|end| end.time);
        }
        Ok(window)
    }
}

pub(crate) fn segno_of(name: SegmentName, size: WalSegmentSize) -> Result<pg_format::XLogSegNo, EngineError> {
    name.segno(size).map_err(|error| EngineError::Refused { reason: error.to_string(), hint: None })
}
