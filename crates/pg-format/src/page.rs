//! Data pages: header, checksum, verdict (`src/include/storage/bufpage.h`, `src/backend/storage/page/bufpage.c`,
//! `src/include/storage/checksum_impl.h`).

use crate::bytes::{le_u16, le_u32};
use crate::error::FormatError;
use crate::lsn::Lsn;

/// The size of a page header without line pointers (`SizeOfPageHeaderData`).
pub const PAGE_HEADER_BYTES: usize = 24;
/// `PD_HAS_FREE_LINES`: a hint.
pub const PD_HAS_FREE_LINES: u16 = 0x0001;
/// `PD_PAGE_FULL`: a hint.
pub const PD_PAGE_FULL: u16 = 0x0002;
/// `PD_ALL_VISIBLE`.
pub const PD_ALL_VISIBLE: u16 = 0x0004;
/// `PD_VALID_FLAG_BITS`.
pub const PD_VALID_FLAG_BITS: u16 = 0x0007;
/// `PG_PAGE_LAYOUT_VERSION` of all supported versions.
pub const PAGE_LAYOUT_VERSION: u8 = 4;

/// Where `pd_checksum` lies in a page.
pub(crate) const CHECKSUM_OFFSET: usize = 8;

/// The fixed part of a page (`PageHeaderData`).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PageHeader {
    /// `pd_lsn`: the end of the last WAL record that changed the page.
    pub lsn: Lsn,
    /// `pd_checksum`.
    pub checksum: u16,
    /// `pd_flags`.
    pub flags: u16,
    /// `pd_lower`: end of the line pointers.
    pub lower: u16,
    /// `pd_upper`: start of the tuples; 0 on a new page.
    pub upper: u16,
    /// `pd_special`: start of the access method's own area.
    pub special: u16,
    /// Page size from `pd_pagesize_version`.
    pub size_bytes: u16,
    /// Layout version from `pd_pagesize_version`.
    pub layout_version: u8,
    /// `pd_prune_xid`.
    pub prune_xid: u32,
}

impl PageHeader {
    /// Reads the header; only the length is checked.
    pub fn parse(page: &[u8]) -> Result<Self, FormatError> {
        let short =
            || FormatError::Truncated { what: "page", needed: PAGE_HEADER_BYTES as u64, actual: page.len() as u64 };
        let head: &[u8; PAGE_HEADER_BYTES] = page.first_chunk().ok_or_else(short)?;
        let half = |at| le_u16(head, at).ok_or_else(short);
        let size_version = half(18)?;
        Ok(Self {
            lsn: page_lsn(head).ok_or_else(short)?,
            checksum: half(8)?,
            flags: half(10)?,
            lower: half(12)?,
            upper: half(14)?,
            special: half(16)?,
            size_bytes: size_version & 0xFF00,
            layout_version: (size_version & 0x00FF) as u8,
            prune_xid: le_u32(head, 20).ok_or_else(short)?,
        })
    }

    /// Whether the page was never initialised (`PageIsNew`).
    #[must_use]
    pub const fn is_new(&self) -> bool {
        self.upper == 0
    }

    /// Whether the header is sane by the rules of `PageIsVerified`, for a page of `page_bytes`.
    #[must_use]
    pub const fn is_sane(&self, page_bytes: usize) -> bool {
        self.flags & !PD_VALID_FLAG_BITS == 0
            && self.lower <= self.upper
            && self.upper <= self.special
            && self.special as usize <= page_bytes
            && self.special.is_multiple_of(8)
    }
}

/// The LSN of a page, without looking at anything else; `None` when there are fewer than 8 bytes.
#[must_use]
pub fn page_lsn(page: &[u8]) -> Option<Lsn> {
    // Two 32-bit halves, the upper one first (`PageXLogRecPtr`).
    Some(Lsn(u64::from(le_u32(page, 0)?) << 32 | u64::from(le_u32(page, 4)?)))
}

/// Whether the cluster's pages have checksums.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Checksums {
    /// `data_checksum_version` is not 0.
    On,
    /// Pages have no checksums; only their headers can be checked.
    Off,
}

/// What [`check_page`] found.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum PageCheck {
    /// All bytes are zero: a page that was added and never written.
    AllZero,
    /// `pd_upper` is 0 but other bytes are not. The server calls such a page invalid when it reads it;
    /// `pg_basebackup` and `pg_checksums` take it for a new one.
    NewWithContent,
    /// The page is right.
    Ok,
    /// The checksum does not fit. When the page's LSN is not before the backup's start, WAL replay restores the page
    /// and this is no damage (`verify_page_checksum` in `src/backend/backup/basebackup.c`).
    ChecksumMismatch {
        /// The checksum on the page.
        expected: u16,
        /// The checksum its bytes give.
        actual: u16,
    },
    /// The header cannot be (`PageIsVerified`).
    BadHeader,
    /// There is not a whole page: its length is not a multiple of 128 bytes, from 1 KiB to 32 KiB.
    BadLength,
}

impl PageCheck {
    /// Whether nothing is wrong.
    #[must_use]
    pub const fn is_ok(self) -> bool {
        matches!(self, Self::Ok | Self::AllZero)
    }
}

/// Checks a page as `PageIsVerified` (`src/backend/storage/page/bufpage.c`) does.
///
/// `block` counts over all segments of the relation: segment number × segment size in blocks + block in the segment.
#[must_use]
pub fn check_page(page: &[u8], block: u32, checksums: Checksums) -> PageCheck {
    if !is_page_length(page.len()) {
        return PageCheck::BadLength;
    }
    let Ok(header) = PageHeader::parse(page) else {
        return PageCheck::BadLength;
    };
    if header.is_new() {
        return if is_all_zero(page) { PageCheck::AllZero } else { PageCheck::NewWithContent };
    }
    if checksums == Checksums::On {
        let actual = page_checksum(page, block);
        if actual != header.checksum {
            return PageCheck::ChecksumMismatch { expected: header.checksum, actual };
        }
    }
    if header.is_sane(page.len()) { PageCheck::Ok } else { PageCheck::BadHeader }
}

/// Whether every byte is zero.
#[must_use]
pub fn is_all_zero(bytes: &[u8]) -> bool {
    let (chunks, rest) = bytes.as_chunks::<128>();
    chunks.iter().all(|chunk| chunk.iter().fold(0, |all, byte| all | byte) == 0) && rest.iter().all(|&byte| byte == 0)
}

const fn is_page_length(bytes: usize) -> bool {
    bytes.is_power_of_two() && bytes >= 1 << 10 && bytes <= 1 << 15
}

/// Checksums that run side by side (`N_SUMS`).
const SUMS: usize = 32;
/// Bytes that one round takes.
const ROUND_BYTES: usize = SUMS * 4;
const FNV_PRIME: u32 = 16_777_619;

/// `checksumBaseOffsets`.
const BASE_OFFSETS: [u32; SUMS] = [
    0x5B1F_36E9,
    0xB852_5960,
    0x02AB_50AA,
    0x1DE6_6D2A,
    0x79FF_467A,
    0x9BB9_F8A3,
    0x217E_7CD2,
    0x83E1_3D2C,
    0xF8D4_474F,
    0xE39E_B970,
    0x42C6_AE16,
    0x9932_16FA,
    0x7B09_3B5D,
    0x98DA_FF3C,
    0xF718_902A,
    0x0B1C_9CDB,
    0xE58F_764B,
    0x1876_36BC,
    0x5D7B_3BB1,
    0xE73D_E7DE,
    0x92BE_C979,
    0xCCA6_C0B2,
    0x304A_0979,
    0x85AA_43D4,
    0x7831_25BB,
    0x6CA8_EAA2,
    0xE407_EAC6,
    0x4B5C_FC3E,
    0x9FBF_8C76,
    0x15CA_20BE,
    0xF2CA_9FD3,
    0x959B_D756,
];

/// The checksum that belongs on a page (`pg_checksum_page` in `src/include/storage/checksum_impl.h`). The checksum
/// that is on it is ignored.
///
/// Plain code that LLVM vectorises: about 10 GB/s on one core with baseline x86-64 (`examples/page_speed.rs`).
///
/// `block` counts over all segments of the relation. Bytes beyond the last multiple of 128 are ignored; a page of a
/// real cluster has none.
#[must_use]
pub fn page_checksum(page: &[u8], block: u32) -> u16 {
    let (rounds, _) = page.as_chunks::<ROUND_BYTES>();
    let sum = match rounds.split_first() {
        // A known number of rounds lets the compiler keep all sums in registers.
        Some((first, rest)) => match <&[[u8; ROUND_BYTES]; 63]>::try_from(rest) {
            Ok(rest) => checksum_rounds(first, rest),
            Err(_) => checksum_rounds(first, rest),
        },
        None => 0,
    };
    // The offset of one avoids a checksum of zero.
    ((sum ^ block) % 65_535 + 1) as u16
}

#[inline(always)]
fn checksum_rounds(first: &[u8; ROUND_BYTES], rest: &[[u8; ROUND_BYTES]]) -> u32 {
    let mut sums = BASE_OFFSETS;
    let mut head = *first;
    head[CHECKSUM_OFFSET] = 0;
    head[CHECKSUM_OFFSET + 1] = 0;
    mix(&mut sums, &head);
    for round in rest {
        mix(&mut sums, round);
    }
    for _ in 0..2 {
        mix(&mut sums, &[0; ROUND_BYTES]);
    }
    sums.iter().fold(0, |all, sum| all ^ sum)
}

/// One round: `CHECKSUM_COMP` on each sum.
#[inline(always)]
fn mix(sums: &mut [u32; SUMS], round: &[u8; ROUND_BYTES]) {
    let (words, _) = round.as_chunks::<4>();
    for (sum, word) in sums.iter_mut().zip(words) {
        let mixed = *sum ^ u32::from_le_bytes(*word);
        *sum = mixed.wrapping_mul(FNV_PRIME) ^ (mixed >> 17);
    }
}

#[cfg(test)]
mod tests;
