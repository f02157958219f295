//! Small numbers that must not be confused: timelines, system identifiers, OIDs, block numbers.

use std::fmt;
use std::marker::PhantomData;
use std::str::FromStr;

use serde::de::Visitor;
use serde::{Deserialize, Deserializer, Serialize, Serializer};

use crate::error::FormatError;

macro_rules! number {
    ($(#[$doc:meta])* $name:ident, $inner:ty, $what:literal) => {
        $(#[$doc])*
        #[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
        pub struct $name(pub $inner);

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                self.0.fmt(f)
            }
        }

        impl FromStr for $name {
            type Err = FormatError;

            fn from_str(text: &str) -> Result<Self, FormatError> {
                if text.starts_with('+') {
                    return Err(FormatError::text($what, text, "write it as a plain decimal number"));
                }
                text.parse().map(Self).map_err(|error| FormatError::text($what, text, format!("{error}")))
            }
        }
    };
}

macro_rules! serde_as_number {
    ($($name:ident),*) => {$(
        impl Serialize for $name {
            fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
                self.0.serialize(serializer)
            }
        }

        impl<'de> Deserialize<'de> for $name {
            fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
                Deserialize::deserialize(deserializer).map(Self)
            }
        }
    )*};
}

number!(
    /// A timeline: the number that changes each time a cluster is promoted or recovered to a point in time.
    Timeline, u32, "timeline"
);
number!(
    /// The system identifier that `initdb` gives a cluster. It is serialised as text, because JSON's numbers lose digits.
    SystemId, u64, "system identifier"
);
number!(
    /// An object identifier; 0 is "invalid".
    Oid, u32, "OID"
);
number!(
    /// The number of a block within a relation's fork, counted over all its segments.
    BlockNumber, u32, "block number"
);
serde_as_number!(Timeline, Oid, BlockNumber);

impl Timeline {
    /// The timeline of a new cluster.
    pub const FIRST: Self = Self(1);
}

impl Oid {
    /// `InvalidOid`.
    pub const INVALID: Self = Self(0);
    /// `DEFAULTTABLESPACE_OID`: `base/` (`src/include/catalog/pg_tablespace.dat`).
    pub const DEFAULT_TABLESPACE: Self = Self(1663);
    /// `GLOBALTABLESPACE_OID`: `global/`.
    pub const GLOBAL_TABLESPACE: Self = Self(1664);

    /// Whether this names an object.
    #[must_use]
    pub const fn is_valid(self) -> bool {
        self.0 != 0
    }
}

impl BlockNumber {
    /// `InvalidBlockNumber`.
    pub const INVALID: Self = Self(u32::MAX);
}

impl Serialize for SystemId {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for SystemId {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserialize_text(deserializer, "a system identifier as text")
    }
}

/// Deserialises a value from its text form.
pub(crate) fn deserialize_text<'de, D, T>(deserializer: D, expecting: &'static str) -> Result<T, D::Error>
where
    D: Deserializer<'de>,
    T: FromStr<Err = FormatError>,
{
    struct Text<T>(&'static str, PhantomData<T>);

    impl<T: FromStr<Err = FormatError>> Visitor<'_> for Text<T> {
        type Value = T;

        fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
            f.write_str(self.0)
        }

        fn visit_str<E: serde::de::Error>(self, text: &str) -> Result<T, E> {
            text.parse().map_err(E::custom)
        }
    }

    deserializer.deserialize_str(Text(expecting, PhantomData))
}
