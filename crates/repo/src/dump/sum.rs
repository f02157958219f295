//! Sums over rows that do not depend on their order (docs/format.md section 17): the rows of a table that was loaded have the same
//! one, wherever PostgreSQL put them.

use serde::{Deserialize, Serialize};
use std::fmt;

const KIND: &str = "xxh3:";

/// The sum, modulo 2^64, of a 64-bit hash of each row (XXH3). As text it is `xxh3:` and 16 hexadecimal digits.
#[derive(Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct RowSum(u64);

impl RowSum {
    /// Adds a row, with its line end where it is text.
    #[inline]
    pub fn add(&mut self, row: &[u8]) {
        self.0 = self.0.wrapping_add(xxhash_rust::xxh3::xxh3_64(row));
    }

    /// Adds something that came in pieces.
    pub fn add_pieces(&mut self, pieces: PieceHash) {
        self.0 = self.0.wrapping_add(pieces.0.digest());
    }

    /// Both together.
    #[must_use]
    pub fn and(self, other: Self) -> Self {
        Self(self.0.wrapping_add(other.0))
    }
}

/// The hash of something that comes in pieces: a large object.
pub struct PieceHash(Box<xxhash_rust::xxh3::Xxh3>);

impl PieceHash {
    /// Of a large object: its OID, four bytes, the highest first, and then its content.
    pub fn of_large_object(oid: u32) -> Self {
        let mut digest = Box::new(xxhash_rust::xxh3::Xxh3::new());
        digest.update(&oid.to_be_bytes());
        Self(digest)
    }

    /// The next piece.
    pub fn update(&mut self, piece: &[u8]) {
        self.0.update(piece);
    }
}

/// A part's sum, as its manifest has it. One of another kind, as the first dumps have it (digits alone), is not known: nothing is
/// compared with it.
pub(super) fn known<'de, D: serde::Deserializer<'de>>(from: D) -> Result<Option<RowSum>, D::Error> {
    let text = Option::<String>::deserialize(from)?;
    let older = |text: &String| text.len() == 16 && text.bytes().all(|byte| byte.is_ascii_hexdigit());
    text.filter(|text| !older(text)).map(RowSum::try_from).transpose().map_err(serde::de::Error::custom)
}

impl fmt::Display for RowSum {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{KIND}{:016x}", self.0)
    }
}

impl fmt::Debug for RowSum {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl From<RowSum> for String {
    fn from(sum: RowSum) -> Self {
        sum.to_string()
    }
}

impl TryFrom<String> for RowSum {
    type Error = String;

    fn try_from(text: String) -> Result<Self, Self::Error> {
        let digits = text.strip_prefix(KIND).filter(|digits| digits.len() == 16);
        let sum = digits.and_then(|digits| u64::from_str_radix(digits, 16).ok());
        sum.map(Self).ok_or_else(|| format!("{text:?} is no sum of rows"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sum(rows: &[&str]) -> RowSum {
        let mut sum = RowSum::default();
        rows.iter().for_each(|row| sum.add(row.as_bytes()));
        sum
    }

    #[test]
    fn the_order_of_rows_does_not_matter_and_all_else_does() {
        let all = sum(&["1\ta\n", "2\tb\n", "2\tb\n"]);
        assert_eq!(all, sum(&["2\tb\n", "1\ta\n", "2\tb\n"]));
        assert_eq!(all, sum(&["1\ta\n"]).and(sum(&["2\tb\n", "2\tb\n"])));
        for other in [&["1\ta\n", "2\tb\n"][..], &["1\tb\n", "2\ta\n", "2\tb\n"], &["1\ta\n", "1\ta\n", "2\tb\n"]] {
            assert_ne!(all, sum(other), "{other:?}");
        }
        assert_ne!(sum(&["\n"]), RowSum::default(), "a row of nothing is a row");
        assert_eq!(RowSum::try_from(String::from(all)).unwrap(), all);
        assert!(RowSum::try_from("x".to_owned()).is_err());
    }

    #[test]
    fn a_large_object_is_the_same_in_any_pieces() {
        let of = |pieces: &[&[u8]]| {
            let mut hash = PieceHash::of_large_object(7);
            pieces.iter().for_each(|piece| hash.update(piece));
            let mut sum = RowSum::default();
            sum.add_pieces(hash);
            sum
        };
        assert_eq!(of(&[b"abc", b"", b"def"]), of(&[b"abcdef"]));
        assert_ne!(of(&[]), of(&[b"\0"]));
    }

    /// The bytes are the format's.
    #[test]
    fn the_hash_is_the_one_of_the_format() {
        assert_eq!(sum(&[""]).to_string(), "xxh3:2d06800538d394c2", "as xxhash's own tests have it");
    }

    #[test]
    fn sums_of_the_first_dumps_are_not_known_and_others_are_refused() {
        #[derive(Deserialize)]
        struct Part {
            #[serde(deserialize_with = "known")]
            sum: Option<RowSum>,
        }
        let read = |text: &str| serde_json::from_str::<Part>(&format!("{{\"sum\": {text}}}")).map(|part| part.sum);
        assert_eq!(read("null").unwrap(), None);
        assert_eq!(read("\"00112233445566ff\"").unwrap(), None);
        assert_eq!(read("\"xxh3:00000000000000ff\"").unwrap(), Some(RowSum(255)));
        for bad in ["\"xxh3:ff\"", "\"sha1:00112233445566ff\"", "\"x\"", "1"] {
            assert!(read(bad).is_err(), "{bad}");
        }
    }
}
