//! All that is said about a segment in clear fields, found in one pass (DESIGN, section 5).

use crate::error::WalError;
use crate::event::{Event, plain_end};
use crate::page::SegmentInfo;
use crate::reader::{EndReason, Expected, Head, SegmentReader, Tail};
use crate::rmgr::Rmgr;
use crate::types::{Lsn, Timeline, TimestampTz};

/// The earliest and the latest of some moments. They are not in order along the WAL.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct TimeRange {
    /// The earliest.
    pub earliest: TimestampTz,
    /// The latest.
    pub latest: TimestampTz,
}

impl TimeRange {
    fn add(range: &mut Option<Self>, time: TimestampTz) {
        *range = Some(match *range {
            None => Self { earliest: time, latest: time },
            Some(Self { earliest, latest }) => Self { earliest: earliest.min(time), latest: latest.max(time) },
        });
    }

    fn merge(one: Option<Self>, other: Option<Self>) -> Option<Self> {
        let (Some(a), Some(b)) = (one, other) else { return one.or(other) };
        Some(Self { earliest: a.earliest.min(b.earliest), latest: a.latest.max(b.latest) })
    }
}

/// A restore point (`pg_create_restore_point`).
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RestorePointFact {
    /// Its name, in the server's encoding.
    pub name: Vec<u8>,
    /// Where its record begins.
    pub lsn: Lsn,
    /// Where its record ends: what `pg_create_restore_point` returned.
    pub end_lsn: Lsn,
    /// When it was made.
    pub time: TimestampTz,
}

/// A checkpoint record.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct CheckpointFact {
    /// Where the record begins.
    pub lsn: Lsn,
    /// Where replay from it begins.
    pub redo: Lsn,
    /// Its timeline.
    pub timeline: Timeline,
    /// Written at shutdown or at the end of recovery.
    pub shutdown: bool,
}

/// From where on a segment could not be read.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Unreadable {
    /// The first place that could not be read.
    pub lsn: Lsn,
    /// Why.
    pub reason: UnreadableReason,
    /// Pages after it that belong there by their headers: some mean damage in the middle, none mean that nothing
    /// more was written.
    pub valid_pages_after: u32,
}

/// Why a segment could not be read to its end.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum UnreadableReason {
    /// As in a `.partial` file or the current segment.
    #[error("nothing was written there yet")]
    Empty,
    /// Fewer bytes than a segment has.
    #[error("the bytes end before the segment does")]
    CutOff,
    /// Something else stands there.
    #[error(transparent)]
    Invalid(#[from] WalError),
}

/// What one pass over a segment finds.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SegmentFacts {
    /// System identifier, major version, first page's timeline, sizes, and where the segment begins.
    pub info: SegmentInfo,
    /// The timeline of the last page read; later than the first page's when a promotion lies in the segment.
    pub timeline_last: Timeline,
    /// Where valid WAL ends: the segment's end when it is full or switched away from (the rest is padding), else the
    /// first place that could not be read.
    pub valid_end: Lsn,
    /// Where the first record begins that begins here.
    pub first_record_lsn: Option<Lsn>,
    /// Where the last whole record that begins here begins.
    pub last_record_lsn: Option<Lsn>,
    /// Where the last whole record ends, or the head fragment when no record follows it, or the segment's start.
    pub last_lsn: Lsn,
    /// It ends with a switch record.
    pub switched: bool,
    /// Whole records that begin here. Neither head nor tail is counted.
    pub records: u64,
    /// Commits among them, prepared ones when they are committed.
    pub commits: u64,
    /// Aborts among them.
    pub aborts: u64,
    /// When the commits were.
    pub commit_times: Option<TimeRange>,
    /// When the aborts were.
    pub abort_times: Option<TimeRange>,
    /// Restore points, in the order of the WAL.
    pub restore_points: Vec<RestorePointFact>,
    /// Checkpoints, in the order of the WAL.
    pub checkpoints: Vec<CheckpointFact>,
    /// The fragment at the start.
    pub head: Option<Head>,
    /// The fragment at the end.
    pub tail: Option<Tail>,
    /// The first page says that the record before it was lost: the tail of the segment before is to be dropped.
    pub drops_earlier_tail: bool,
    /// Records that begin here and were lost in a crash.
    pub overwritten: Vec<Lsn>,
    /// When it could not be read to its end.
    pub unreadable: Option<Unreadable>,
    /// Whole records whose main data could not be understood; the first 16.
    pub misunderstood: Vec<WalError>,
}

/// At most so many errors are kept of records that were not understood.
const MISUNDERSTOOD_MAX: usize = 16;

impl SegmentFacts {
    /// The earliest and latest end of a transaction, commits and aborts together: recovery to a time stops at either.
    pub fn xact_times(&self) -> Option<TimeRange> {
        TimeRange::merge(self.commit_times, self.abort_times)
    }

    /// Nothing is wrong with it and nothing is missing at its end.
    pub fn is_whole(&self) -> bool {
        self.unreadable.is_none()
    }

    /// Adds a record to what is counted: one of this segment, or one that was joined from fragments and is to be
    /// counted where it begins.
    pub fn add_record(&mut self, record: &crate::record::Record<'_>) {
        self.records += 1;
        // All other resource managers write nothing that is noted here.
        if !matches!(record.rmgr, Rmgr::Xlog | Rmgr::Transaction) {
            return;
        }
        if let Some((time, commits)) = plain_end(record) {
            let (count, times) = match commits {
                true => (&mut self.commits, &mut self.commit_times),
                false => (&mut self.aborts, &mut self.abort_times),
            };
            *count += 1;
            TimeRange::add(times, time);
            return;
        }
        match Event::of(record) {
            Ok(Event::Commit(end)) => {
                self.commits += 1;
                TimeRange::add(&mut self.commit_times, end.time);
            }
            Ok(Event::Abort(end)) => {
                self.aborts += 1;
                TimeRange::add(&mut self.abort_times, end.time);
            }
            Ok(Event::RestorePoint { time, name }) => {
                let (lsn, end_lsn) = (record.lsn, record.end_lsn);
                self.restore_points.push(RestorePointFact { name, lsn, end_lsn, time });
            }
            Ok(Event::Checkpoint(checkpoint)) => self.checkpoints.push(CheckpointFact {
                lsn: record.lsn,
                redo: checkpoint.redo,
                timeline: checkpoint.timeline,
                shutdown: checkpoint.shutdown,
            }),
            Ok(_) => {}
            Err(error) if self.misunderstood.len() < MISUNDERSTOOD_MAX => self.misunderstood.push(error),
            Err(_) => {}
        }
    }
}

/// Reads a segment once and says what is in it.
///
/// # Errors
/// When `bytes` are no segment of a supported version, or not the one `expected`. Whatever is wrong further on is
/// told in [`SegmentFacts::unreadable`].
pub fn scan_segment(bytes: &[u8], expected: Option<&Expected>) -> Result<SegmentFacts, WalError> {
    let reader = SegmentReader::open(bytes, expected.unwrap_or(&Expected::default()))?;
    Ok(scan_reader(reader, |_| {}))
}

/// As [`scan_segment`], and hands each record to `each` in the same pass: an index is made that way.
///
/// # Errors
/// As [`scan_segment`].
pub fn scan_segment_with(
    bytes: &[u8],
    expected: Option<&Expected>,
    each: impl FnMut(&crate::record::Record<'_>),
) -> Result<SegmentFacts, WalError> {
    let reader = SegmentReader::open(bytes, expected.unwrap_or(&Expected::default()))?;
    Ok(scan_reader(reader, each))
}

fn scan_reader(mut reader: SegmentReader<'_>, mut each: impl FnMut(&crate::record::Record<'_>)) -> SegmentFacts {
    let info = *reader.info();
    let mut facts = SegmentFacts {
        info,
        timeline_last: info.timeline,
        valid_end: info.start,
        first_record_lsn: None,
        last_record_lsn: None,
        last_lsn: reader.head_end(),
        switched: false,
        records: 0,
        commits: 0,
        aborts: 0,
        commit_times: None,
        abort_times: None,
        restore_points: Vec::new(),
        checkpoints: Vec::new(),
        head: None,
        tail: None,
        drops_earlier_tail: reader.drops_earlier_tail(),
        overwritten: Vec::new(),
        unreadable: None,
        misunderstood: Vec::new(),
    };
    while let Some(record) = reader.next_record() {
        facts.first_record_lsn.get_or_insert(record.lsn);
        facts.last_record_lsn = Some(record.lsn);
        facts.last_lsn = record.end_lsn;
        facts.add_record(&record);
        each(&record);
    }
    facts.timeline_last = reader.timeline_last();
    facts.overwritten = reader.overwritten().to_vec();
    if let Some(end) = reader.end() {
        facts.valid_end = end.lsn;
        let reason = match &end.reason {
            EndReason::Full => None,
            EndReason::Switch => {
                facts.switched = true;
                facts.valid_end = info.end();
                None
            }
            EndReason::Empty => Some(UnreadableReason::Empty),
            EndReason::CutOff => Some(UnreadableReason::CutOff),
            EndReason::Invalid(error) => Some(UnreadableReason::Invalid(error.clone())),
        };
        let valid_pages_after = reader.valid_pages_after_end();
        facts.unreadable = reason.map(|reason| Unreadable { lsn: end.lsn, reason, valid_pages_after });
    }
    let (head, tail) = reader.into_fragments();
    if let Some(tail) = &tail {
        facts.first_record_lsn.get_or_insert(tail.lsn);
    }
    (facts.head, facts.tail) = (head, tail);
    facts
}
