//! Which segments lead from one place to another, across timelines.

use super::WalArchive;
use crate::EngineError;
use pg_format::history::Span;
use pg_format::{Lsn, SegmentName, Timeline, TimelineHistory, XLogSegNo};

/// A segment that a recovery reads.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct NeededSegment {
    /// Its name: of the copy that is there, or of the one that should be.
    pub name: SegmentName,
    /// Whether it is in the repository.
    pub present: bool,
}

impl WalArchive {
    /// The segments that hold the WAL from `start` on `start_timeline` up to `end` (exclusive) on `end_timeline`, in
    /// order. An error when the one does not lead to the other.
    pub fn segments_for(
        &self,
        start: Lsn,
        start_timeline: Timeline,
        end: Lsn,
        end_timeline: Timeline,
    ) -> Result<Vec<NeededSegment>, EngineError> {
        let history = self.history_between(start, start_timeline, end_timeline)?;
        let spans = history.ancestry();
        let (first, last) = (start.segment_no(self.segment_size).0, end.segment_no_of_end(self.segment_size).0);
        let mut needed = Vec::new();
        // A range that is empty still needs the segment of its start: replay reads the record there.
        for segno in first..=last.max(first) {
            needed.push(self.choose(&spans, XLogSegNo(segno), Some(end))?);
        }
        Ok(needed)
    }

    /// Those of [`segments_for`](Self::segments_for) that are missing.
    pub fn missing_between(
        &self,
        start: Lsn,
        start_timeline: Timeline,
        end: Lsn,
        end_timeline: Timeline,
    ) -> Result<Vec<SegmentName>, EngineError> {
        let needed = self.segments_for(start, start_timeline, end, end_timeline)?;
        Ok(needed.into_iter().filter(|segment| !segment.present).map(|segment| segment.name).collect())
    }

    /// The history of `end_timeline`, when what is at `start` on `start_timeline` is part of it.
    pub fn history_between(
        &self,
        start: Lsn,
        start_timeline: Timeline,
        end_timeline: Timeline,
    ) -> Result<TimelineHistory, EngineError> {
        let history = if start_timeline == end_timeline {
            // Its past does not matter then, nor a missing history file.
            self.history_of(end_timeline).unwrap_or_else(|_| TimelineHistory::without_past(end_timeline))
        } else {
            self.history_of(end_timeline)?
        };
        if history.continues_from(start, start_timeline) {
            return Ok(history);
        }
        let reason = match history.switch_point(start_timeline) {
            Some(left) => format!("timeline {end_timeline} left timeline {start_timeline} at {left}, before {start}"),
            None => format!("timeline {end_timeline} did not grow out of timeline {start_timeline}"),
        };
        Err(EngineError::refused(reason, "choose a timeline whose history leads there, or an earlier backup"))
    }

    /// The last segment of the unbroken WAL from `start` on `start_timeline` along the history of `end_timeline`, and
    /// the first one missing after it; `None` for the first when not even the segment of `start` is there.
    pub fn unbroken_from(
        &self,
        start: Lsn,
        start_timeline: Timeline,
        end_timeline: Timeline,
    ) -> Result<(Option<SegmentName>, SegmentName), EngineError> {
        let spans = self.history_between(start, start_timeline, end_timeline)?.ancestry();
        let mut segno = start.segment_no(self.segment_size);
        let mut last = None;
        loop {
            let needed = self.choose(&spans, segno, None)?;
            if !needed.present {
                return Ok((last, needed.name));
            }
            // Whole ranges at a step, but never past the segment in which the next timeline begins.
            let range = self.timeline(needed.name.timeline).and_then(|wal| wal.segments.range_of(segno));
            let here = spans.iter().find(|span| span.timeline == needed.name.timeline);
            let end = here.and_then(|span| span.end).map(|end| end.segment_no(self.segment_size));
            let mut to = range.map_or(segno, |range| range.last);
            if let Some(end) = end {
                to = to.min(XLogSegNo(end.0.saturating_sub(1))).max(segno);
            }
            last = Some(self.segment_name(needed.name.timeline, to)?);
            segno = XLogSegNo(to.0 + 1);
        }
    }

    /// The copy of a segment that a recovery along these spans reads up to `end`.
    ///
    /// PostgreSQL tries the timelines from the newest to the oldest, leaving out those that begin in a later segment.
    /// An older one's copy serves only as far as that timeline was not left.
    fn choose(&self, spans: &[Span], segno: XLogSegNo, end: Option<Lsn>) -> Result<NeededSegment, EngineError> {
        let segment_end = Lsn((segno.0 + 1).saturating_mul(self.segment_size.bytes()));
        let until = end.map_or(segment_end, |end| end.min(segment_end));
        let begun = |span: &&Span| span.begin.segment_no(self.segment_size) <= segno;
        let mut wanted = None;
        for span in spans.iter().rev().filter(begun) {
            if span.end.is_some_and(|left| left < until) {
                // It was left before the end that is wanted; so were all older ones.
                break;
            }
            let name = self.segment_name(span.timeline, segno)?;
            if self.has(span.timeline, segno) {
                return Ok(NeededSegment { name, present: true });
            }
            // When none is there, the one to look for is the oldest that would do: it was written as whole segment
            // first. Where two timelines share the segment, the end decides.
            wanted = Some(name);
        }
        let newest = spans.iter().rev().find(begun).map_or(Timeline::FIRST, |span| span.timeline);
        let name = wanted.map_or_else(|| self.segment_name(newest, segno), Ok)?;
        Ok(NeededSegment { name, present: false })
    }
}
