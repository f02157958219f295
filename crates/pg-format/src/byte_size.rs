//! Sizes in bytes, as people write and read them.

use std::fmt;
use std::str::FromStr;

use serde::de::Visitor;
use serde::{Deserialize, Deserializer, Serialize, Serializer};

use crate::error::FormatError;

/// A number of bytes. Units are powers of 1024, with or without the `i`, as PostgreSQL's own settings are read.
/// Serialised as a plain number; read from a number or from text.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ByteSize(pub u64);

const UNITS: [&str; 6] = ["B", "KiB", "MiB", "GiB", "TiB", "PiB"];

impl ByteSize {
    /// `count` × 1024 bytes.
    #[must_use]
    pub const fn kib(count: u64) -> Self {
        Self(count << 10)
    }

    /// `count` × 1024² bytes.
    #[must_use]
    pub const fn mib(count: u64) -> Self {
        Self(count << 20)
    }

    /// `count` × 1024³ bytes.
    #[must_use]
    pub const fn gib(count: u64) -> Self {
        Self(count << 30)
    }

    /// The number of bytes.
    #[must_use]
    pub const fn bytes(self) -> u64 {
        self.0
    }
}

impl fmt::Display for ByteSize {
    /// For people: the largest unit that leaves at least 1, with one decimal unless it is whole.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut unit = (63 - (self.0 | 1).leading_zeros() as usize) / 10;
        unit = unit.min(UNITS.len() - 1);
        let shift = 10 * unit as u32;
        if self.0.trailing_zeros() >= shift || self.0 == 0 {
            return f.pad(&format!("{} {}", self.0 >> shift, UNITS[unit]));
        }
        let scaled = self.0 as f64 / (1u64 << shift) as f64;
        // 1023.96 MiB must not be shown as "1024.0 MiB".
        if scaled >= 1023.95 && unit + 1 < UNITS.len() {
            return f.pad(&format!("1.0 {}", UNITS[unit + 1]));
        }
        f.pad(&format!("{scaled:.1} {}", UNITS[unit]))
    }
}

impl FromStr for ByteSize {
    type Err = FormatError;

    /// Reads `64MiB`, `1 GB`, `16MB`, `8k`, `0.5GiB`, `1048576`.
    fn from_str(text: &str) -> Result<Self, FormatError> {
        let bad = |reason: &str| FormatError::text("size", text, reason);
        let trimmed = text.trim();
        let split = trimmed.find(|c: char| !c.is_ascii_digit() && c != '.').unwrap_or(trimmed.len());
        let (number, unit) = trimmed.split_at(split);
        let shift = match unit.trim_start().to_ascii_lowercase().as_str() {
            "" | "b" => 0,
            "k" | "kb" | "kib" => 10,
            "m" | "mb" | "mib" => 20,
            "g" | "gb" | "gib" => 30,
            "t" | "tb" | "tib" => 40,
            "p" | "pb" | "pib" => 50,
            _ => return Err(bad("the unit is one of B, kB, MB, GB, TB (1 kB is 1024 bytes)")),
        };
        let (whole, fraction) = number.split_once('.').unwrap_or((number, ""));
        if whole.is_empty() || (number.contains('.') && fraction.is_empty()) || fraction.len() > 9 {
            return Err(bad("it starts with a number, like 64MiB"));
        }
        let whole: u64 = whole.parse().map_err(|_| bad("the number is too large"))?;
        let mut bytes = u128::from(whole) << shift;
        if !fraction.is_empty() {
            let digits: u128 = fraction.parse().map_err(|_| bad("it starts with a number, like 64MiB"))?;
            bytes += (digits << shift) / 10u128.pow(fraction.len() as u32);
        }
        u64::try_from(bytes).map(Self).map_err(|_| bad("the number is too large"))
    }
}

impl Serialize for ByteSize {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_u64(self.0)
    }
}

impl<'de> Deserialize<'de> for ByteSize {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Size;

        impl Visitor<'_> for Size {
            type Value = ByteSize;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a size like \"64MiB\" or a number of bytes")
            }

            fn visit_u64<E: serde::de::Error>(self, value: u64) -> Result<ByteSize, E> {
                Ok(ByteSize(value))
            }

            fn visit_i64<E: serde::de::Error>(self, value: i64) -> Result<ByteSize, E> {
                u64::try_from(value).map(ByteSize).map_err(E::custom)
            }

            fn visit_str<E: serde::de::Error>(self, text: &str) -> Result<ByteSize, E> {
                text.parse().map_err(E::custom)
            }
        }

        deserializer.deserialize_any(Size)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn read() {
        let check = |text: &str, expect: Option<u64>| {
            assert_eq!(text.parse::<ByteSize>().ok().map(|size| size.0), expect, "{text}");
        };
        check("64MiB", Some(64 << 20));
        check("1 GB", Some(1 << 30));
        check("16MB", Some(16 << 20));
        check("8k", Some(8192));
        check("0.5GiB", Some(1 << 29));
        check(" 1048576 ", Some(1 << 20));
        check("18446744073709551615", Some(u64::MAX));
        for bad in ["", "MB", "-1", "1.", ".5", "1.2.3", "1 XB", "18446744073709551616", "99999999PB", "1é"] {
            check(bad, None);
        }
    }

    #[test]
    fn show() {
        let check = |bytes: u64, expect: &str| assert_eq!(ByteSize(bytes).to_string(), expect);
        check(0, "0 B");
        check(1023, "1023 B");
        check(1024, "1 KiB");
        check(1536, "1.5 KiB");
        check(16 << 20, "16 MiB");
        check((1 << 30) - 1, "1.0 GiB");
        check(u64::MAX, "16384.0 PiB");
    }

    proptest! {
        #[test]
        fn never_panics(text in ".*", bytes: u64) {
            let _ = text.parse::<ByteSize>();
            prop_assert!(ByteSize(bytes).to_string().parse::<ByteSize>().is_ok() || bytes > 1 << 62);
        }
    }
}
