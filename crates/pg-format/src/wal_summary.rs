//! WAL summaries of PostgreSQL 17 and later: which blocks a stretch of WAL changed (`src/common/blkreftable.c`).
//!
//! Files are named `TTTTTTTTSSSSSSSSSSSSSSSSEEEEEEEEEEEEEEEE.summary`: timeline, start and end LSN.

use std::fmt;
use std::str::FromStr;

use crate::bytes::{crc32c, le_u16, le_u32};
use crate::error::FormatError;
use crate::ids::{BlockNumber, Oid, Timeline};
use crate::lsn::Lsn;
use crate::relpath::Fork;

/// `BLOCKREFTABLE_MAGIC` (`src/include/common/blkreftable.h`).
pub const WAL_SUMMARY_MAGIC: u32 = 0x652B_137B;

const WHAT: &str = "WAL summary";
/// `MAX_ENTRIES_PER_CHUNK`: a chunk of this length is a bitmap.
const BITMAP_WORDS: usize = 4096;
/// `sizeof(BlockRefTableSerializedEntry)`.
const ENTRY_BYTES: usize = 24;

/// The name of a summary file.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct WalSummaryName {
    /// The timeline.
    pub timeline: Timeline,
    /// Where the summarised WAL starts.
    pub start_lsn: Lsn,
    /// Where it ends, exclusive.
    pub end_lsn: Lsn,
}

impl fmt::Display for WalSummaryName {
    /// The file's name.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:08X}{:016X}{:016X}.summary", self.timeline.0, self.start_lsn.0, self.end_lsn.0)
    }
}

impl FromStr for WalSummaryName {
    type Err = FormatError;

    fn from_str(text: &str) -> Result<Self, FormatError> {
        let bad = || FormatError::text("WAL summary name", text, "it is 40 digits from 0-9 and A-F, and .summary");
        let digits = text.strip_suffix(".summary").ok_or_else(bad)?;
        if digits.len() != 40 || !digits.bytes().all(|b| matches!(b, b'0'..=b'9' | b'A'..=b'F')) {
            return Err(bad());
        }
        let part = |range| digits.get(range).and_then(|part| u64::from_str_radix(part, 16).ok()).ok_or_else(bad);
        Ok(Self { timeline: Timeline(part(0..8)? as u32), start_lsn: Lsn(part(8..24)?), end_lsn: Lsn(part(24..40)?) })
    }
}

/// What a stretch of WAL did to one fork of a relation.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ForkChanges {
    /// The tablespace.
    pub tablespace_oid: Oid,
    /// The database; 0 for shared relations.
    pub db_oid: Oid,
    /// The relfilenode.
    pub filenode: u32,
    /// The fork.
    pub fork: Fork,
    /// The shortest length that the fork had, in blocks: 0 when it was made or dropped; `None` when it was not cut.
    /// Blocks from here on count as changed.
    pub limit_block: Option<BlockNumber>,
    /// The blocks that were changed, in order.
    pub blocks: Vec<BlockNumber>,
}

/// A summary whose CRC is right; iterate it for its relations.
#[derive(Debug, Clone)]
pub struct WalSummary<'a> {
    /// What was not read yet: entries, then the end mark.
    rest: &'a [u8],
    done: bool,
}

impl<'a> WalSummary<'a> {
    /// Checks magic, end mark and CRC of a whole file.
    pub fn parse(bytes: &'a [u8]) -> Result<Self, FormatError> {
        let needed = 4 + ENTRY_BYTES + 4;
        let short = || FormatError::Truncated { what: WHAT, needed: needed as u64, actual: bytes.len() as u64 };
        if bytes.len() < needed {
            return Err(short());
        }
        let magic = le_u32(bytes, 0).ok_or_else(short)?;
        if magic != WAL_SUMMARY_MAGIC {
            return Err(FormatError::field(WHAT, "magic", format!("{magic:#010x}"), "this is no WAL summary"));
        }
        let end = bytes.len() - 4;
        let expected = le_u32(bytes, end).ok_or_else(short)?;
        let actual = crc32c(&bytes[..end]);
        if expected != actual {
            return Err(FormatError::Crc { what: WHAT, expected, actual });
        }
        Ok(Self { rest: &bytes[4..end], done: false })
    }

    /// The next relation, or `None` at the end mark.
    fn read(&mut self) -> Result<Option<ForkChanges>, FormatError> {
        let entry = self.take(ENTRY_BYTES)?;
        let field = |index: usize| le_u32(entry, index * 4).unwrap_or(0);
        if entry.iter().all(|&byte| byte == 0) {
            return if self.rest.is_empty() {
                Ok(None)
            } else {
                Err(FormatError::field(WHAT, "end", self.rest.len(), "there are bytes after the end mark"))
            };
        }
        let fork = Fork::from_number(field(3))
            .ok_or_else(|| FormatError::field(WHAT, "forknum", field(3), "no such fork is known"))?;
        let sizes = self.take((field(5) as usize).saturating_mul(2))?;
        let mut blocks = Vec::new();
        for chunk in 0..sizes.len() / 2 {
            let size = usize::from(le_u16(sizes, chunk * 2).unwrap_or(0));
            if size > BITMAP_WORDS || chunk > usize::from(u16::MAX) {
                return Err(FormatError::field(WHAT, "chunk size", size, "a chunk is larger than can be"));
            }
            let words = self.take(size * 2)?;
            read_chunk(words, (chunk as u32) << 16, &mut blocks);
        }
        blocks.sort_unstable();
        Ok(Some(ForkChanges {
            tablespace_oid: Oid(field(0)),
            db_oid: Oid(field(1)),
            filenode: field(2),
            fork,
            limit_block: Some(BlockNumber(field(4))).filter(|&limit| limit != BlockNumber::INVALID),
            blocks,
        }))
    }

    fn take(&mut self, count: usize) -> Result<&'a [u8], FormatError> {
        let (taken, rest) = self.rest.split_at_checked(count).ok_or(FormatError::Truncated {
            what: WHAT,
            needed: count as u64,
            actual: self.rest.len() as u64,
        })?;
        self.rest = rest;
        Ok(taken)
    }
}

/// A chunk is a bitmap when it has its full length, else a list of offsets.
fn read_chunk(words: &[u8], first: u32, blocks: &mut Vec<BlockNumber>) {
    let is_bitmap = words.len() == BITMAP_WORDS * 2;
    for (index, word) in words.as_chunks::<2>().0.iter().enumerate() {
        let word = u16::from_le_bytes(*word);
        if is_bitmap {
            let base = first + index as u32 * 16;
            blocks.extend((0..16).filter(|bit| word >> bit & 1 == 1).map(|bit| BlockNumber(base + bit)));
        } else {
            blocks.push(BlockNumber(first + u32::from(word)));
        }
    }
}

impl Iterator for WalSummary<'_> {
    type Item = Result<ForkChanges, FormatError>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.done {
            return None;
        }
        let item = self.read().transpose();
        self.done = !matches!(item, Some(Ok(_)));
        item
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::collections::BTreeSet;

    /// Writes a summary as `blkreftable.c` does.
    fn write(forks: &[ForkChanges]) -> Vec<u8> {
        let mut out = WAL_SUMMARY_MAGIC.to_le_bytes().to_vec();
        for fork in forks {
            let chunks = fork.blocks.last().map_or(0, |last| (last.0 >> 16) + 1);
            let limit = fork.limit_block.unwrap_or(BlockNumber::INVALID).0;
            let head =
                [fork.tablespace_oid.0, fork.db_oid.0, fork.filenode, u32::from(fork.fork.number()), limit, chunks];
            out.extend(head.iter().flat_map(|field| field.to_le_bytes()));
            let chunk = |number: u32| fork.blocks.iter().filter(move |block| block.0 >> 16 == number);
            let is_bitmap = |number| chunk(number).count() >= BITMAP_WORDS;
            for number in 0..chunks {
                let size = if is_bitmap(number) { BITMAP_WORDS } else { chunk(number).count() };
                out.extend((size as u16).to_le_bytes());
            }
            for number in 0..chunks {
                if is_bitmap(number) {
                    let mut words = [0u16; BITMAP_WORDS];
                    chunk(number).for_each(|block| words[(block.0 & 0xFFFF) as usize / 16] |= 1 << (block.0 % 16));
                    out.extend(words.iter().flat_map(|word| word.to_le_bytes()));
                } else {
                    out.extend(chunk(number).flat_map(|block| (block.0 as u16).to_le_bytes()));
                }
            }
        }
        out.extend([0; ENTRY_BYTES]);
        let crc = crc32c(&out);
        out.extend(crc.to_le_bytes());
        out
    }

    fn fork(blocks: impl IntoIterator<Item = u32>, limit: Option<u32>) -> ForkChanges {
        ForkChanges {
            tablespace_oid: Oid(1663),
            db_oid: Oid(5),
            filenode: 16384,
            fork: Fork::Main,
            limit_block: limit.map(BlockNumber),
            blocks: blocks.into_iter().map(BlockNumber).collect(),
        }
    }

    fn read(bytes: &[u8]) -> Result<Vec<ForkChanges>, FormatError> {
        WalSummary::parse(bytes)?.collect()
    }

    #[test]
    fn lists_and_bitmaps() {
        let forks = [fork([0, 7, 65_535, 65_536, 300_000], None), fork(0..5000, Some(0)), fork([], Some(12))];
        let bytes = write(&forks);
        assert_eq!(read(&bytes).unwrap(), forks);
        for at in [0, 5, 40, bytes.len() - 1] {
            let mut bad = bytes.clone();
            bad[at] ^= 1;
            assert!(read(&bad).is_err(), "byte {at}");
        }
        assert!(read(&bytes[..bytes.len() - 1]).is_err());
        assert!(read(&[]).is_err());
    }

    #[test]
    fn names() {
        let name: WalSummaryName = "0000000100000000010000280000000002000060.summary".parse().unwrap();
        assert_eq!(
            name,
            WalSummaryName { timeline: Timeline(1), start_lsn: Lsn(0x100_0028), end_lsn: Lsn(0x200_0060) }
        );
        assert_eq!(name.to_string(), "0000000100000000010000280000000002000060.summary");
        for bad in ["", ".summary", "000000010000000001000028000000000200006.summary", "temp.summary"] {
            assert!(bad.parse::<WalSummaryName>().is_err());
        }
    }

    proptest! {
        #[test]
        fn round_trip(blocks: BTreeSet<u32>, near in proptest::collection::btree_set(0u32..200_000, 0..100), limit: Option<u16>) {
            // Blocks near the end of the number space would make large files.
            let blocks: BTreeSet<u32> = blocks.into_iter().map(|block| block % 1_000_000).chain(near).collect();
            let forks = [fork(blocks, limit.map(u32::from))];
            prop_assert_eq!(read(&write(&forks)).unwrap(), forks);
        }

        #[test]
        fn never_panics(mut bytes in proptest::collection::vec(any::<u8>(), 0..200), chunks in 0u32..9) {
            let _ = read(&bytes);
            if bytes.len() > 40 {
                bytes[..4].copy_from_slice(&WAL_SUMMARY_MAGIC.to_le_bytes());
                bytes[16..20].copy_from_slice(&0u32.to_le_bytes());
                bytes[24..28].copy_from_slice(&chunks.to_le_bytes());
                let end = bytes.len() - 4;
                let crc = crc32c(&bytes[..end]);
                bytes[end..].copy_from_slice(&crc.to_le_bytes());
                let _ = read(&bytes);
            }
        }
    }
}
