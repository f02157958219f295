//! Segments that are not whole yet, as the last ones of their timelines: for those who plan a recovery.

use super::WalArchive;
use crate::EngineError;
use crate::wal::tail::{self, Tail};
use jiff::Timestamp;
use pg_format::{Lsn, SegmentName, Timeline, XLogSegNo};
use repo::tail::{TailOf, list_tails};
use repo::wal::{WalFacts, read_segment};
use serde::Serialize;

/// A segment that is not whole yet, as the end of its timeline.
#[derive(Debug, Clone, Serialize)]
pub struct TailStatus {
    /// The timeline.
    pub timeline: Timeline,
    /// The segment.
    pub segment: SegmentName,
    /// Up to here it is there.
    pub end_lsn: Lsn,
    /// When the last of it was written, by the store's clock.
    pub written: Option<Timestamp>,
    /// In how many pieces it lies, logs included.
    pub pieces: u64,
    /// How many frames the logs have.
    pub frames: u64,
    /// Bytes of the segment that are there.
    #[serde(skip)]
    bytes: u64,
}

impl WalArchive {
    /// The tails that are counted.
    pub fn tails(&self) -> Vec<TailStatus> {
        self.tails.values().cloned().collect()
    }

    /// Counts tails, too: of each timeline the one that follows its whole segments. [`has`](Self::has) and what builds on
    /// it then says that the segment is there, which holds for recovery and for nothing else.
    pub async fn with_tails(mut self) -> Result<Self, EngineError> {
        let store = self.cluster.repository().store().clone();
        let tails = list_tails(&*store, self.cluster.name(), self.system_id).await?;
        for (name, pieces) in tails {
            let (Ok(segno), end) = (name.segno(self.segment_size), pieces.end()) else { continue };
            let last = self.last_segment(name.timeline);
            let follows = last.is_none_or(|last| last.0 + 1 == segno.0);
            // One that is not whole ends the timeline.
            let ended = last.is_some_and(|last| {
                self.tails.get(&(name.timeline, last)).is_some_and(|tail| !self.is_size(tail.bytes))
            });
            if end > 0 && follows && !ended {
                self.timelines.entry(name.timeline).or_default().segments.insert(segno);
                let start = segno.0.saturating_mul(self.segment_size.bytes());
                let tail = TailStatus {
                    timeline: name.timeline,
                    segment: name,
                    end_lsn: Lsn(start.saturating_add(end)),
                    written: pieces.modified_ms().and_then(|ms| Timestamp::from_millisecond(ms).ok()),
                    pieces: pieces.pieces.len() as u64,
                    frames: pieces.pieces.iter().filter_map(|piece| piece.frames).sum(),
                    bytes: end,
                };
                self.tails.insert((name.timeline, segno), tail);
            }
        }
        Ok(self)
    }

    fn is_size(&self, bytes: u64) -> bool {
        bytes >= self.segment_size.bytes()
    }

    /// Whether a segment is there as a tail only.
    pub fn is_tail(&self, name: SegmentName) -> bool {
        name.segno(self.segment_size).is_ok_and(|segno| self.tails.contains_key(&(name.timeline, segno)))
    }

    /// Where the WAL of a timeline ends: in its tail, when that is counted, else with its last segment.
    pub fn end_lsn(&self, timeline: Timeline) -> Option<Lsn> {
        let last = self.last_segment(timeline)?;
        let size = self.segment_size.bytes();
        let filled = self.tails.get(&(timeline, last)).map_or(size, |tail| tail.bytes);
        Some(Lsn(last.0.saturating_mul(size).saturating_add(filled)))
    }

    /// A segment's plain bytes; of a tail, with zeros up to the segment's size.
    pub async fn read_plain(&self, name: SegmentName) -> Result<Vec<u8>, EngineError> {
        if self.is_tail(name)
            && let Some(tail) = self.tail(name).await?
        {
            return Ok(tail.segment);
        }
        let repository = self.cluster.repository();
        Ok(read_segment(repository.store().clone(), repository.keys(), &self.segment_path(name)?).await?)
    }

    async fn tail(&self, name: SegmentName) -> Result<Option<Tail>, EngineError> {
        tail::read(&self.cluster, self.tail_of(name)).await
    }

    fn tail_of(&self, name: SegmentName) -> TailOf {
        TailOf { system_id: self.system_id, segment: name, size: self.segment_size }
    }

    /// The facts of a tail; none when it is gone: the segment is whole now.
    pub(super) async fn tail_facts(
        &self,
        timeline: Timeline,
        segno: XLogSegNo,
    ) -> Result<Option<WalFacts>, EngineError> {
        if !self.tails.contains_key(&(timeline, segno)) {
            return Ok(None);
        }
        let name = self.segment_name(timeline, segno)?;
        self.tail(name).await?.map(|tail| tail::facts(&tail, self.tail_of(name))).transpose()
    }
}
