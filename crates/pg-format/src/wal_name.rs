//! Names of files in `pg_wal` and in a WAL archive (`src/include/access/xlog_internal.h`).

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Deserializer, Serialize, Serializer};

use crate::error::FormatError;
use crate::ids::Timeline;
use crate::lsn::Lsn;

/// The number of a WAL segment, counted from LSN 0.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct XLogSegNo(pub u64);

impl fmt::Display for XLogSegNo {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// The size of a WAL segment: a power of two from 1 MiB to 1 GiB (`IsValidWalSegSize`). Serialised as bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(into = "u32", try_from = "u32")]
pub struct WalSegmentSize(u32);

impl WalSegmentSize {
    /// 16 MiB, what `initdb` chooses when not told.
    pub const DEFAULT: Self = Self(16 << 20);

    /// The size, when PostgreSQL allows it.
    pub fn new(bytes: u32) -> Result<Self, FormatError> {
        if bytes.is_power_of_two() && (1 << 20..=1 << 30).contains(&bytes) {
            return Ok(Self(bytes));
        }
        Err(FormatError::field(
            "WAL segment size",
            "wal_segment_size",
            bytes,
            "it is a power of two from 1 MiB to 1 GiB",
        ))
    }

    /// The size in bytes; never 0.
    #[must_use]
    pub const fn bytes(self) -> u64 {
        self.0 as u64
    }

    /// Segments per 4 GiB of WAL (`XLogSegmentsPerXLogId`).
    #[must_use]
    pub const fn segments_per_xlog_id(self) -> u64 {
        (1 << 32) / self.bytes()
    }
}

impl From<WalSegmentSize> for u32 {
    fn from(size: WalSegmentSize) -> Self {
        size.0
    }
}

impl TryFrom<u32> for WalSegmentSize {
    type Error = FormatError;

    fn try_from(bytes: u32) -> Result<Self, FormatError> {
        Self::new(bytes)
    }
}

/// The name of a WAL segment: 24 hexadecimal digits, upper case. It is kept as its three parts, since what LSN it
/// stands for depends on the segment size.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct SegmentName {
    /// The timeline.
    pub timeline: Timeline,
    /// The upper 32 bits of the LSN.
    xlog_id: u32,
    /// The segment within those 4 GiB.
    segment: u32,
}

impl SegmentName {
    /// The name of segment `segno` (`XLogFileName`); `None` when its LSN is beyond 64 bits.
    #[must_use]
    pub fn new(timeline: Timeline, segno: XLogSegNo, size: WalSegmentSize) -> Option<Self> {
        let per_id = size.segments_per_xlog_id();
        Some(Self {
            timeline,
            xlog_id: u32::try_from(segno.0 / per_id).ok()?,
            segment: u32::try_from(segno.0 % per_id).ok()?,
        })
    }

    /// The name of the segment that holds the byte at `lsn`.
    #[must_use]
    pub fn of_lsn(timeline: Timeline, lsn: Lsn, size: WalSegmentSize) -> Self {
        Self { timeline, xlog_id: (lsn.0 >> 32) as u32, segment: ((lsn.0 & 0xFFFF_FFFF) / size.bytes()) as u32 }
    }

    /// The number of this segment (`XLogFromFileName`), or an error when no segment of this size has this name.
    pub fn segno(self, size: WalSegmentSize) -> Result<XLogSegNo, FormatError> {
        let per_id = size.segments_per_xlog_id();
        if u64::from(self.segment) >= per_id {
            return Err(FormatError::text(
                "WAL segment name",
                &self.to_string(),
                format!("its last 8 digits must be below {per_id:X} with segments of {} bytes", size.bytes()),
            ));
        }
        Ok(XLogSegNo(u64::from(self.xlog_id) * per_id + u64::from(self.segment)))
    }

    /// The LSN at which this segment starts.
    pub fn start(self, size: WalSegmentSize) -> Result<Lsn, FormatError> {
        Ok(Lsn(self.segno(size)?.0 * size.bytes()))
    }

    /// The LSN at which this segment ends, exclusive; [`Lsn::MAX`] for the very last one.
    pub fn end(self, size: WalSegmentSize) -> Result<Lsn, FormatError> {
        Ok(self.start(size)?.saturating_add(size.bytes()))
    }

    /// The segment after this one on the same timeline.
    pub fn next(self, size: WalSegmentSize) -> Result<Option<Self>, FormatError> {
        Ok(Self::new(self.timeline, XLogSegNo(self.segno(size)?.0 + 1), size))
    }

    /// The segment before this one on the same timeline.
    pub fn previous(self, size: WalSegmentSize) -> Result<Option<Self>, FormatError> {
        let before = self.segno(size)?.0.checked_sub(1);
        Ok(before.and_then(|segno| Self::new(self.timeline, XLogSegNo(segno), size)))
    }

    /// The segment of the same place on another timeline.
    #[must_use]
    pub const fn on_timeline(self, timeline: Timeline) -> Self {
        Self { timeline, ..self }
    }
}

impl fmt::Display for SegmentName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:08X}{:08X}{:08X}", self.timeline.0, self.xlog_id, self.segment)
    }
}

impl FromStr for SegmentName {
    type Err = FormatError;

    fn from_str(text: &str) -> Result<Self, FormatError> {
        let parts = (|| {
            if text.len() != 24 {
                return None;
            }
            Some((upper_hex(text.get(..8)?)?, upper_hex(text.get(8..16)?)?, upper_hex(text.get(16..)?)?))
        })();
        let (timeline, xlog_id, segment) =
            parts.ok_or_else(|| FormatError::text("WAL segment name", text, "it has 24 digits from 0-9 and A-F"))?;
        if timeline == 0 {
            return Err(FormatError::text("WAL segment name", text, "timeline 0 does not exist"));
        }
        Ok(Self { timeline: Timeline(timeline), xlog_id, segment })
    }
}

impl Serialize for SegmentName {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for SegmentName {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        crate::ids::deserialize_text(deserializer, "a WAL segment name of 24 hexadecimal digits")
    }
}

/// Exactly 8 digits from `0123456789ABCDEF`, as `IsXLogFileName` has them.
fn upper_hex(digits: &str) -> Option<u32> {
    let fits = digits.len() == 8 && digits.bytes().all(|b| matches!(b, b'0'..=b'9' | b'A'..=b'F'));
    if fits { u32::from_str_radix(digits, 16).ok() } else { None }
}

/// What `archive_command` can be given and `restore_command` can ask for (`VALID_XFN_CHARS` in
/// `src/include/postmaster/pgarch.h`).
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum WalFileName {
    /// A whole segment.
    Segment(SegmentName),
    /// The last, incomplete segment of a timeline that was left: `….partial`.
    Partial(SegmentName),
    /// A timeline history: `0000000A.history`.
    History(Timeline),
    /// The backup history file of a base backup: `….XXXXXXXX.backup`, offset of the start within the segment.
    BackupHistory(SegmentName, u32),
}

impl WalFileName {
    /// The timeline in the name.
    #[must_use]
    pub const fn timeline(self) -> Timeline {
        match self {
            Self::Segment(name) | Self::Partial(name) | Self::BackupHistory(name, _) => name.timeline,
            Self::History(timeline) => timeline,
        }
    }

    /// The segment in the name, unless it is a timeline history.
    #[must_use]
    pub const fn segment(self) -> Option<SegmentName> {
        match self {
            Self::Segment(name) | Self::Partial(name) | Self::BackupHistory(name, _) => Some(name),
            Self::History(_) => None,
        }
    }
}

impl fmt::Display for WalFileName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Segment(name) => name.fmt(f),
            Self::Partial(name) => write!(f, "{name}.partial"),
            Self::History(timeline) => write!(f, "{:08X}.history", timeline.0),
            Self::BackupHistory(name, offset) => write!(f, "{name}.{offset:08X}.backup"),
        }
    }
}

impl FromStr for WalFileName {
    type Err = FormatError;

    fn from_str(text: &str) -> Result<Self, FormatError> {
        let bad = || {
            FormatError::text(
                "WAL file name",
                text,
                "it is a segment (24 digits from 0-9 and A-F), a segment with .partial or .XXXXXXXX.backup, or \
                 8 digits with .history",
            )
        };
        match text.split_once('.') {
            None => text.parse().map(Self::Segment).map_err(|_| bad()),
            Some((name, "partial")) => name.parse().map(Self::Partial).map_err(|_| bad()),
            Some((digits, "history")) => match upper_hex(digits) {
                Some(timeline) if timeline > 0 => Ok(Self::History(Timeline(timeline))),
                _ => Err(bad()),
            },
            Some((name, rest)) => {
                let offset = rest.strip_suffix(".backup").and_then(upper_hex).ok_or_else(bad)?;
                let name = name.parse().map_err(|_| bad())?;
                Ok(Self::BackupHistory(name, offset))
            }
        }
    }
}

impl Serialize for WalFileName {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for WalFileName {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        crate::ids::deserialize_text(deserializer, "the name of a WAL file")
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn any_size() -> impl Strategy<Value = WalSegmentSize> {
        (20u32..=30).prop_map(|shift| WalSegmentSize::new(1 << shift).unwrap())
    }

    #[test]
    fn sizes() {
        for bad in [0, 1, 1 << 19, 3 << 20, 1 << 31] {
            assert!(WalSegmentSize::new(bad).is_err(), "{bad}");
        }
        assert_eq!(WalSegmentSize::DEFAULT.segments_per_xlog_id(), 256);
    }

    #[test]
    fn names() {
        let size = WalSegmentSize::DEFAULT;
        let check = |text: &str, timeline: u32, segno: u64| {
            let name: SegmentName = text.parse().unwrap();
            assert_eq!(name.timeline, Timeline(timeline));
            assert_eq!(name.segno(size), Ok(XLogSegNo(segno)));
            assert_eq!(SegmentName::new(Timeline(timeline), XLogSegNo(segno), size), Some(name));
            assert_eq!(name.to_string(), text);
        };
        check("000000010000000000000001", 1, 1);
        check("0000000A00000001000000FF", 10, 511);
        check("FFFFFFFFFFFFFFFF000000FF", u32::MAX, (1 << 40) - 1);
        let name: SegmentName = "000000010000000000000100".parse().unwrap();
        assert!(name.segno(size).is_err());
        assert!(name.segno(WalSegmentSize::new(1 << 20).unwrap()).is_ok());
        for bad in [
            "00000001000000000000001",
            "00000001000000000000000a",
            "000000000000000000000001",
            "0000000100000000000000é",
        ] {
            assert!(bad.parse::<SegmentName>().is_err(), "{bad}");
        }
        let last: SegmentName = "00000001FFFFFFFF000000FF".parse().unwrap();
        assert_eq!(last.next(size), Ok(None));
        assert_eq!(last.end(size), Ok(Lsn::MAX));
        let first: SegmentName = "000000010000000000000000".parse().unwrap();
        assert_eq!(first.previous(size), Ok(None));
        assert_eq!(first.next(size).unwrap().unwrap().to_string(), "000000010000000000000001");
    }

    #[test]
    fn file_names() {
        for good in [
            "000000010000000000000001",
            "000000010000000000000001.partial",
            "0000000A.history",
            "000000010000000000000001.00000028.backup",
        ] {
            assert_eq!(good.parse::<WalFileName>().unwrap().to_string(), good);
        }
        for bad in [
            "",
            "00000000.history",
            "0000000a.history",
            "000000010000000000000001.history",
            "000000010000000000000001.backup",
            "000000010000000000000001.00000028.partial",
            "000000010000000000000001.partial.partial",
            "000000010000000000000001 ",
            "../00000001.history",
            "archive_status",
            "000000010000000000000001.ready",
        ] {
            assert!(bad.parse::<WalFileName>().is_err(), "{bad}");
        }
    }

    proptest! {
        #[test]
        fn lsn_round_trip(lsn: u64, timeline in 1u32.., size in any_size()) {
            let name = SegmentName::of_lsn(Timeline(timeline), Lsn(lsn), size);
            prop_assert_eq!(name.segno(size).unwrap(), Lsn(lsn).segment_no(size));
            prop_assert_eq!(name.start(size).unwrap(), Lsn(lsn).segment_start(size));
            prop_assert_eq!(name.to_string().parse::<SegmentName>(), Ok(name));
        }

        #[test]
        fn order_is_text_order(a: (u32, u32, u32), b: (u32, u32, u32)) {
            let name = |(t, x, s): (u32, u32, u32)| SegmentName { timeline: Timeline(t), xlog_id: x, segment: s };
            prop_assert_eq!(name(a).cmp(&name(b)), name(a).to_string().cmp(&name(b).to_string()));
        }

        #[test]
        fn never_panics(text in "[0-9A-F.a-zé]{0,45}") {
            if let Ok(name) = text.parse::<WalFileName>() {
                prop_assert_eq!(name.to_string(), text);
            }
        }
    }
}
