//! Log sequence numbers: byte positions in the write-ahead log (`src/include/access/xlogdefs.h`).

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Deserializer, Serialize, Serializer};

use crate::error::FormatError;
use crate::wal_name::{WalSegmentSize, XLogSegNo};

/// A position in the write-ahead log, in bytes; written `X/X` in hexadecimal. 0 is "invalid".
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Lsn(pub u64);

impl Lsn {
    /// `InvalidXLogRecPtr`: no position.
    pub const INVALID: Self = Self(0);
    /// The highest position there can be.
    pub const MAX: Self = Self(u64::MAX);

    /// Whether this is a position at all.
    #[must_use]
    pub const fn is_valid(self) -> bool {
        self.0 != 0
    }

    /// The position itself, or `None` for [`Lsn::INVALID`].
    #[must_use]
    pub const fn valid(self) -> Option<Self> {
        if self.is_valid() { Some(self) } else { None }
    }

    /// This position plus `bytes`, or `None` beyond 64 bits.
    #[must_use]
    pub const fn checked_add(self, bytes: u64) -> Option<Self> {
        match self.0.checked_add(bytes) {
            Some(value) => Some(Self(value)),
            None => None,
        }
    }

    /// This position plus `bytes`, at most [`Lsn::MAX`].
    #[must_use]
    pub const fn saturating_add(self, bytes: u64) -> Self {
        Self(self.0.saturating_add(bytes))
    }

    /// The bytes from `earlier` to this position; 0 when `earlier` is later.
    #[must_use]
    pub const fn saturating_sub(self, earlier: Self) -> u64 {
        self.0.saturating_sub(earlier.0)
    }

    /// The bytes from `earlier` to this position; `None` when `earlier` is later.
    #[must_use]
    pub const fn checked_sub(self, earlier: Self) -> Option<u64> {
        self.0.checked_sub(earlier.0)
    }

    /// The number of the segment that holds the byte at this position (`XLByteToSeg`).
    #[must_use]
    pub const fn segment_no(self, size: WalSegmentSize) -> XLogSegNo {
        XLogSegNo(self.0 / size.bytes())
    }

    /// The number of the segment that holds the byte before this position (`XLByteToPrevSeg`): the last one needed
    /// for WAL that ends here.
    #[must_use]
    pub const fn segment_no_of_end(self, size: WalSegmentSize) -> XLogSegNo {
        XLogSegNo(self.0.saturating_sub(1) / size.bytes())
    }

    /// The offset of this position in its segment (`XLogSegmentOffset`).
    #[must_use]
    pub const fn segment_offset(self, size: WalSegmentSize) -> u64 {
        self.0 % size.bytes()
    }

    /// The first position of this position's segment.
    #[must_use]
    pub const fn segment_start(self, size: WalSegmentSize) -> Self {
        Self(self.0 - self.0 % size.bytes())
    }

    /// This position rounded down to a multiple of `unit` bytes; unchanged for a unit of 0.
    #[must_use]
    pub const fn align_down(self, unit: u64) -> Self {
        match self.0.checked_rem(unit) {
            Some(rest) => Self(self.0 - rest),
            None => self,
        }
    }

    /// This position rounded up to a multiple of `unit` bytes; unchanged for a unit of 0 or beyond 64 bits.
    #[must_use]
    pub const fn align_up(self, unit: u64) -> Self {
        match self.0.checked_next_multiple_of(unit) {
            Some(value) => Self(value),
            None => self,
        }
    }
}

impl fmt::Display for Lsn {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // `pad` would need an allocation; widths are rarely asked for.
        if f.width().is_some() {
            return f.pad(&format!("{:X}/{:X}", self.0 >> 32, self.0 as u32));
        }
        write!(f, "{:X}/{:X}", self.0 >> 32, self.0 as u32)
    }
}

impl FromStr for Lsn {
    type Err = FormatError;

    /// Reads `X/X`, each half 1 to 8 hexadecimal digits, as `pg_lsn_in` (`src/backend/utils/adt/pg_lsn.c`) does.
    fn from_str(text: &str) -> Result<Self, FormatError> {
        let bad = |reason: &str| FormatError::text("LSN", text, reason);
        let (high, low) = text
            .split_once('/')
            .ok_or_else(|| bad("write it as two hexadecimal numbers with a slash, like 0/16B3748"))?;
        let half = |digits: &str| {
            if digits.is_empty() || digits.len() > 8 || !digits.bytes().all(|b| b.is_ascii_hexdigit()) {
                return Err(bad("each half has 1 to 8 hexadecimal digits"));
            }
            u32::from_str_radix(digits, 16).map_err(|_| bad("each half has 1 to 8 hexadecimal digits"))
        };
        Ok(Self(u64::from(half(high)?) << 32 | u64::from(half(low)?)))
    }
}

impl Serialize for Lsn {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for Lsn {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        crate::ids::deserialize_text(deserializer, "an LSN like \"0/16B3748\"")
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn text_forms() {
        let check = |text: &str, expect: Option<u64>| {
            assert_eq!(text.parse::<Lsn>().ok().map(|lsn| lsn.0), expect, "{text}");
        };
        check("0/0", Some(0));
        check("0/16B3748", Some(0x16B_3748));
        check("ffffffff/FFFFFFFF", Some(u64::MAX));
        check("1/2", Some(0x1_0000_0002));
        for bad in ["", "/", "0/", "/0", "0", "0/0/0", "123456789/0", "0/123456789", "+1/0", "g/0", " 0/0", "0/é"] {
            check(bad, None);
        }
        assert_eq!(Lsn(0x1_0000_00AB).to_string(), "1/AB");
        assert_eq!(format!("[{:>6}]", Lsn(1)), "[   0/1]");
    }

    #[test]
    fn segments() {
        let size = WalSegmentSize::DEFAULT;
        let at = Lsn(0x200_0000);
        assert_eq!(at.segment_no(size), XLogSegNo(2));
        assert_eq!(at.segment_no_of_end(size), XLogSegNo(1));
        assert_eq!(Lsn(0x200_0028).segment_offset(size), 0x28);
        assert_eq!(Lsn(0x2FF_FFFF).segment_start(size), at);
        assert_eq!(Lsn(8193).align_down(8192), Lsn(8192));
        assert_eq!(Lsn(8193).align_up(8192), Lsn(16384));
        assert_eq!(Lsn(5).align_up(0), Lsn(5));
        assert_eq!(Lsn::MAX.align_up(8192), Lsn::MAX);
    }

    proptest! {
        #[test]
        fn round_trip(value: u64) {
            prop_assert_eq!(Lsn(value).to_string().parse::<Lsn>(), Ok(Lsn(value)));
        }

        #[test]
        fn never_panics(text in ".*") {
            let _ = text.parse::<Lsn>();
        }
    }
}
