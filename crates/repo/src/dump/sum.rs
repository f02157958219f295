//! Sums over rows that do not depend on their order (docs/format.md section 17): the rows of a table that was loaded have the same
//! one, wherever PostgreSQL put them.

use serde::{Deserialize, Serialize};
use std::fmt;

/// The sum, modulo 2^64, of a 64-bit hash of each row. As text it is 16 hexadecimal digits.
#[derive(Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct RowSum(u64);

impl RowSum {
    /// Adds a row, with its line end.
    pub fn add(&mut self, row: &[u8]) {
        self.add_hash(crc_fast::checksum(crc_fast::CrcAlgorithm::Crc64Nvme, row));
    }

    /// Adds something that came in pieces.
    pub fn add_pieces(&mut self, pieces: PieceHash) {
        self.add_hash(pieces.0.finalize());
    }

    fn add_hash(&mut self, hash: u64) {
        self.0 = self.0.wrapping_add(mix(hash));
    }

    /// Both together.
    #[must_use]
    pub fn and(self, other: Self) -> Self {
        Self(self.0.wrapping_add(other.0))
    }
}

/// The hash of something that comes in pieces: a large object.
pub struct PieceHash(crc_fast::Digest);

impl PieceHash {
    /// Of a large object: its OID, four bytes, the highest first, and then its content.
    pub fn of_large_object(oid: u32) -> Self {
        let mut digest = crc_fast::Digest::new(crc_fast::CrcAlgorithm::Crc64Nvme);
        digest.update(&oid.to_be_bytes());
        Self(digest)
    }

    /// The next piece.
    pub fn update(&mut self, piece: &[u8]) {
        self.0.update(piece);
    }
}

/// A CRC is linear: two rows that swap fields of the same length would keep the exclusive or of theirs. This is not (the end of
/// MurmurHash3).
fn mix(mut hash: u64) -> u64 {
    hash ^= hash >> 33;
    hash = hash.wrapping_mul(0xff51_afd7_ed55_8ccd);
    hash ^= hash >> 33;
    hash = hash.wrapping_mul(0xc4ce_b9fe_1a85_ec53);
    hash ^ hash >> 33
}

impl fmt::Display for RowSum {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:016x}", self.0)
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
    type Error = std::num::ParseIntError;

    fn try_from(text: String) -> Result<Self, Self::Error> {
        u64::from_str_radix(&text, 16).map(Self)
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

    /// The bytes are the format's: CRC-64/NVME of "123456789" is ae8b14860a799888.
    #[test]
    fn the_hash_is_the_one_of_the_format() {
        assert_eq!(crc_fast::checksum(crc_fast::CrcAlgorithm::Crc64Nvme, b"123456789"), 0xae8b_1486_0a79_9888);
        assert_eq!(mix(1), 0xb456_bcfc_34c2_cb2c);
    }
}
