//! The WAL index as bytes (docs/format.md section 15).
//!
//! What an index holds and how it is made is in [`pg_wal::index`]; here it is packed into parts, each compressed by
//! itself, and unpacked with limits on everything.

mod decode;
mod encode;
mod marks;
mod rollup;
#[cfg(test)]
mod tests;

pub use decode::{IndexPart, decode, decode_changes};
pub use encode::{NotEncodable, encode};
pub use rollup::{IndexObject, encode_index_object, put_index_object, segments_per_rollup};
pub(crate) use rollup::{read_fragments, read_index};

/// Version of the section.
const VERSION: u8 = 1;

/// Kinds of parts.
mod part {
    pub(super) const RELATIONS: u64 = 1;
    pub(super) const FORKS: u64 = 2;
    pub(super) const BLOCKS: u64 = 3;
    pub(super) const DATABASES: u64 = 4;
    pub(super) const MARKS: u64 = 5;
    pub(super) const CATALOG: u64 = 6;
    pub(super) const SHAPES: u64 = 7;
    pub(super) const DETAILS: u64 = 8;
    pub(super) const IMAGES: u64 = 9;
    /// From here on parts are columns.
    pub(super) const COLUMNS: u64 = 32;
    pub(super) const FLAGS: u64 = 32;
    pub(super) const XIDS: u64 = 33;
    pub(super) const ENDS: u64 = 34;
    pub(super) const TIMES: u64 = 35;
    pub(super) const WORK: u64 = 36;
}

/// Bits of the column `flags`.
mod flag {
    pub(super) const OUTCOME: u64 = 3;
    pub(super) const COMMIT: u64 = 1;
    pub(super) const ABORT: u64 = 2;
    pub(super) const PREPARED: u64 = 4;
    pub(super) const DETAILS: u64 = 8;
}

/// Bits of the mask that begins a transaction's details.
mod detail {
    pub(super) const EXTENT: u8 = 1;
    pub(super) const DATABASE: u8 = 2;
    pub(super) const SUBXACTS: u8 = 4;
    pub(super) const DROPPED: u8 = 8;
    pub(super) const PREPARED: u8 = 16;
    pub(super) const TOP: u8 = 32;
    pub(super) const ALL: u8 = 63;
}

/// A signed number as an unsigned one: small ones stay small.
fn zigzag(number: i64) -> u64 {
    (number << 1 ^ number >> 63) as u64
}

fn unzigzag(number: u64) -> i64 {
    (number >> 1) as i64 ^ -((number & 1) as i64)
}

/// The zigzag number of the difference from `from` to `to`, which wraps.
fn difference(from: u64, to: u64) -> u64 {
    zigzag(to.wrapping_sub(from) as i64)
}

/// The other way.
fn apply_difference(from: u64, difference: u64) -> u64 {
    from.wrapping_add(unzigzag(difference) as u64)
}
