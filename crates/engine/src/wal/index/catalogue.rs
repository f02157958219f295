//! Which index objects there are: one listing.

use crate::EngineError;
use crate::wal::WalArchive;
use crate::wal::archive::segno_of;
use pg_format::{SegmentName, SystemId, Timeline, WalSegmentSize, XLogSegNo};
use repo::wal_index::segments_per_rollup;
use std::collections::BTreeSet;
use store::ObjectPath;

const LIST_PAGE: usize = 10_000;

/// The index objects of one system identifier.
#[derive(Debug, Clone, Default)]
pub struct IndexCatalogue {
    /// Timeline, first segment, number of segments.
    objects: BTreeSet<(Timeline, u64, u64)>,
    per_rollup: u64,
}

impl IndexCatalogue {
    /// Lists them.
    pub async fn load(archive: &WalArchive) -> Result<Self, EngineError> {
        let timelines = archive.timelines().map(|(timeline, _)| timeline);
        Self::list(archive.cluster(), archive.system_id(), archive.segment_size(), timelines).await
    }

    /// Lists those of some timelines.
    pub(crate) async fn list(
        cluster: &repo::Cluster,
        system: SystemId,
        size: WalSegmentSize,
        timelines: impl IntoIterator<Item = Timeline>,
    ) -> Result<Self, EngineError> {
        let mut found = Self { objects: BTreeSet::new(), per_rollup: segments_per_rollup(size.bytes()) };
        for timeline in timelines {
            let prefix = cluster.name().wal_index_prefix(system, timeline);
            let mut after: Option<ObjectPath> = None;
            loop {
                let page = cluster.repository().store().list_page(Some(&prefix), after.as_ref(), LIST_PAGE).await;
                let page = page.map_err(repo::RepoError::from)?;
                page.iter().for_each(|object| found.note(object.path.name(), size));
                if page.len() < LIST_PAGE {
                    break;
                }
                after = page.last().map(|object| object.path.clone());
            }
        }
        Ok(found)
    }

    /// Notes a listed object; what has another kind of name is left alone.
    fn note(&mut self, name: &str, size: WalSegmentSize) {
        let (segment, count) = name.split_once('.').unwrap_or((name, "1"));
        let (Ok(segment), Ok(count)) = (segment.parse::<SegmentName>(), count.parse()) else { return };
        if let Ok(segno) = segment.segno(size) {
            self.objects.insert((segment.timeline, segno.0, count));
        }
    }

    /// Whether there is an index object of `count` segments from this one on.
    pub fn has(&self, timeline: Timeline, first: XLogSegNo, count: u64) -> bool {
        self.objects.contains(&(timeline, first.0, count))
    }

    /// All of them: timeline, first segment, number of segments. Who removes WAL removes those that cover none of what is
    /// left.
    pub fn objects(&self) -> impl Iterator<Item = (Timeline, XLogSegNo, u64)> + '_ {
        self.objects.iter().map(|(timeline, first, count)| (*timeline, XLogSegNo(*first), *count))
    }

    /// How many segments a rolled-up index covers.
    pub fn per_rollup(&self) -> u64 {
        self.per_rollup
    }

    /// In what steps these segments are read: first segment and count.
    pub(crate) fn steps(
        &self,
        segments: &[SegmentName],
        size: WalSegmentSize,
    ) -> Result<Vec<(SegmentName, u64)>, EngineError> {
        let segnos =
            segments.iter().map(|name| Ok(segno_of(*name, size)?.0)).collect::<Result<Vec<_>, EngineError>>()?;
        let mut steps = Vec::new();
        let mut at = 0;
        while let Some(name) = segments.get(at) {
            let count = self.per_rollup;
            let end = at.saturating_add(usize::try_from(count).unwrap_or(usize::MAX));
            let covered = count > 1
                && self.objects.contains(&(name.timeline, segnos[at], count))
                && segments.get(at..end).is_some_and(|run| run.iter().all(|other| other.timeline == name.timeline))
                && segnos[at..end].iter().zip(segnos[at]..).all(|(segno, expected)| *segno == expected);
            let step = if covered { count } else { 1 };
            steps.push((*name, step));
            at += step as usize;
        }
        Ok(steps)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rolled_up_indexes_serve_where_they_are_covered_whole() {
        let size = WalSegmentSize::new(16 << 20).unwrap();
        let mut catalogue = IndexCatalogue { objects: BTreeSet::new(), per_rollup: 4 };
        for name in
            ["000000010000000000000004.4", "000000010000000000000008.4", "000000010000000000000002", "x", "0.4", "a.b"]
        {
            catalogue.note(name, size);
        }
        assert!(catalogue.has(Timeline(1), XLogSegNo(2), 1) && catalogue.objects.len() == 3);
        let name = |timeline: u32, segno| SegmentName::new(Timeline(timeline), XLogSegNo(segno), size).unwrap();
        let steps = |segments: &[(u32, u64)]| {
            let names: Vec<_> = segments.iter().map(|(timeline, segno)| name(*timeline, *segno)).collect();
            let steps = catalogue.steps(&names, size).unwrap();
            steps.iter().map(|(first, count)| (first.segno(size).unwrap().0, *count)).collect::<Vec<_>>()
        };
        let on_1 = |segnos: std::ops::Range<u64>| segnos.map(|segno| (1, segno)).collect::<Vec<_>>();
        assert_eq!(steps(&on_1(3..13)), [(3, 1), (4, 4), (8, 4), (12, 1)]);
        assert_eq!(steps(&on_1(5..12)), [(5, 1), (6, 1), (7, 1), (8, 4)]);
        assert_eq!(steps(&on_1(4..7)), [(4, 1), (5, 1), (6, 1)]);
        // The timeline is left in the middle of what is covered.
        assert_eq!(steps(&[(1, 4), (1, 5), (2, 6), (2, 7)]), [(4, 1), (5, 1), (6, 1), (7, 1)]);
        assert_eq!(steps(&[]), []);
    }
}
