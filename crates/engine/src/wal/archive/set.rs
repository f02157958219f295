//! Segment numbers as unbroken ranges: a year of WAL is a few numbers.

use pg_format::XLogSegNo;
use serde::Serialize;

/// Segments from `first` to `last`, both included.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub struct SegmentRange {
    /// The first segment.
    pub first: XLogSegNo,
    /// The last segment.
    pub last: XLogSegNo,
}

impl SegmentRange {
    /// How many segments it has.
    pub fn count(&self) -> u64 {
        (self.last.0 - self.first.0).saturating_add(1)
    }

    /// Whether it has this segment.
    pub fn contains(&self, segno: XLogSegNo) -> bool {
        (self.first..=self.last).contains(&segno)
    }
}

/// A set of segment numbers.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct SegmentSet {
    ranges: Vec<SegmentRange>,
}

impl SegmentSet {
    /// Adds a segment; fast when it is the highest so far.
    pub fn insert(&mut self, segno: XLogSegNo) {
        // The first range that does not end before the segment's neighbour.
        let at = self.ranges.partition_point(|range| range.last.0.saturating_add(1) < segno.0);
        match self.ranges.get_mut(at) {
            Some(range) if range.contains(segno) => {}
            Some(range) if range.last.0.checked_add(1) == Some(segno.0) => {
                range.last = segno;
                let next = self.ranges.get(at + 1).copied();
                if let Some(next) = next.filter(|next| segno.0.checked_add(1) == Some(next.first.0)) {
                    self.ranges[at].last = next.last;
                    self.ranges.remove(at + 1);
                }
            }
            Some(range) if segno.0.checked_add(1) == Some(range.first.0) => range.first = segno,
            _ => self.ranges.insert(at, SegmentRange { first: segno, last: segno }),
        }
    }

    /// Whether it has this segment.
    pub fn contains(&self, segno: XLogSegNo) -> bool {
        self.range_of(segno).is_some()
    }

    /// The unbroken range that has this segment.
    pub fn range_of(&self, segno: XLogSegNo) -> Option<SegmentRange> {
        let at = self.ranges.partition_point(|range| range.last < segno);
        self.ranges.get(at).copied().filter(|range| range.contains(segno))
    }

    /// The unbroken ranges, ascending.
    pub fn ranges(&self) -> &[SegmentRange] {
        &self.ranges
    }

    /// What lies between the ranges.
    pub fn gaps(&self) -> Vec<SegmentRange> {
        let between = |pair: &[SegmentRange]| SegmentRange {
            first: XLogSegNo(pair[0].last.0 + 1),
            last: XLogSegNo(pair[1].first.0 - 1),
        };
        self.ranges.windows(2).map(between).collect()
    }

    /// The lowest segment.
    pub fn first(&self) -> Option<XLogSegNo> {
        self.ranges.first().map(|range| range.first)
    }

    /// The highest segment.
    pub fn last(&self) -> Option<XLogSegNo> {
        self.ranges.last().map(|range| range.last)
    }

    /// How many segments there are.
    pub fn count(&self) -> u64 {
        self.ranges.iter().map(SegmentRange::count).sum()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn set(numbers: &[u64]) -> SegmentSet {
        let mut set = SegmentSet::default();
        numbers.iter().for_each(|number| set.insert(XLogSegNo(*number)));
        set
    }

    fn range(first: u64, last: u64) -> SegmentRange {
        SegmentRange { first: XLogSegNo(first), last: XLogSegNo(last) }
    }

    #[test]
    fn any_order_gives_the_same_ranges() {
        // Every order of six numbers with a hole.
        let numbers = [1, 2, 3, 5, 6, 9];
        let expect = [range(1, 3), range(5, 6), range(9, 9)];
        let mut order: Vec<u64> = numbers.to_vec();
        let mut seen = 0;
        permute(&mut order, 0, &mut |order| {
            assert_eq!(set(order).ranges(), expect, "{order:?}");
            seen += 1;
        });
        assert_eq!(seen, 720);
    }

    fn permute(items: &mut Vec<u64>, at: usize, each: &mut impl FnMut(&[u64])) {
        if at == items.len() {
            return each(items);
        }
        for other in at..items.len() {
            items.swap(at, other);
            permute(items, at + 1, each);
            items.swap(at, other);
        }
    }

    #[test]
    fn questions() {
        let set = set(&[1, 2, 2, 5, u64::MAX]);
        assert_eq!(set.gaps(), [range(3, 4), range(6, u64::MAX - 1)]);
        assert_eq!(set.range_of(XLogSegNo(2)), Some(range(1, 2)));
        assert!(!set.contains(XLogSegNo(3)) && set.contains(XLogSegNo(u64::MAX)) && !set.contains(XLogSegNo(0)));
        assert_eq!((set.first(), set.last(), set.count()), (Some(XLogSegNo(1)), Some(XLogSegNo(u64::MAX)), 4));
        assert_eq!(SegmentSet::default().gaps(), []);
    }
}
