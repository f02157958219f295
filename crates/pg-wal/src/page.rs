//! Headers of WAL pages (`access/xlog_internal.h`).

use crate::bytes::{u16_at, u32_at, u64_at};
use crate::error::WalError;
use crate::types::{Lsn, PgMajor, SystemId, Timeline};

/// `SizeOfXLogShortPHD`.
pub const SHORT_HEADER_LEN: usize = 24;
/// `SizeOfXLogLongPHD`.
pub const LONG_HEADER_LEN: usize = 40;
/// `WalSegMinSize`.
pub const SEGMENT_SIZE_MIN: u32 = 1 << 20;
/// `WalSegMaxSize`.
pub const SEGMENT_SIZE_MAX: u32 = 1 << 30;

/// The flags of a page (`xlp_info`).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PageFlags(pub u16);

impl PageFlags {
    /// `XLP_FIRST_IS_CONTRECORD`.
    pub const CONTRECORD: u16 = 0x0001;
    /// `XLP_LONG_HEADER`.
    pub const LONG_HEADER: u16 = 0x0002;
    /// `XLP_BKP_REMOVABLE`.
    pub const BKP_REMOVABLE: u16 = 0x0004;
    /// `XLP_FIRST_IS_OVERWRITE_CONTRECORD`; the minor releases of 14 have it as well since it was back-patched.
    pub const OVERWRITE_CONTRECORD: u16 = 0x0008;
    /// `XLP_ALL_FLAGS`.
    pub const ALL: u16 = 0x000F;

    /// The page begins with the rest of a record begun earlier.
    pub fn is_contrecord(self) -> bool {
        self.0 & Self::CONTRECORD != 0
    }

    /// The header is the long one.
    pub fn is_long(self) -> bool {
        self.0 & Self::LONG_HEADER != 0
    }

    /// Full-page images that begin in this page may be removed.
    pub fn is_bkp_removable(self) -> bool {
        self.0 & Self::BKP_REMOVABLE != 0
    }

    /// The rest of the record before this page was lost in a crash, and will never come.
    pub fn is_overwrite_contrecord(self) -> bool {
        self.0 & Self::OVERWRITE_CONTRECORD != 0
    }
}

/// The header of one page.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PageHeader {
    /// `xlp_magic`.
    pub magic: u16,
    /// `xlp_info`.
    pub flags: PageFlags,
    /// `xlp_tli`: the timeline of the first record on the page.
    pub timeline: Timeline,
    /// `xlp_pageaddr`.
    pub page_addr: Lsn,
    /// `xlp_rem_len`: bytes of the continued record that are still to come, from this page on.
    pub rem_len: u32,
    /// What only a long header has.
    pub long: Option<LongHeader>,
}

/// What only the header of a segment's first page has (`XLogLongPageHeaderData`).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct LongHeader {
    /// `xlp_sysid`.
    pub system_id: SystemId,
    /// `xlp_seg_size`.
    pub segment_size: u32,
    /// `xlp_xlog_blcksz`: the size of WAL pages, which is not the size of relation pages.
    pub page_size: u32,
}

impl PageHeader {
    /// Reads a header as it stands, without judging it.
    ///
    /// # Errors
    /// Only [`WalError::TooShort`].
    #[inline]
    pub fn parse(page: &[u8]) -> Result<Self, WalError> {
        let short = || WalError::TooShort { have: page.len(), need: SHORT_HEADER_LEN };
        let header = page.get(..SHORT_HEADER_LEN).ok_or_else(short)?;
        let flags = PageFlags(u16_at(header, 2).ok_or_else(short)?);
        let long = if flags.is_long() {
            let short = || WalError::TooShort { have: page.len(), need: LONG_HEADER_LEN };
            Some(LongHeader {
                system_id: SystemId(u64_at(page, 24).ok_or_else(short)?),
                segment_size: u32_at(page, 32).ok_or_else(short)?,
                page_size: u32_at(page, 36).ok_or_else(short)?,
            })
        } else {
            None
        };
        Ok(Self {
            magic: u16_at(header, 0).ok_or_else(short)?,
            flags,
            timeline: Timeline(u32_at(header, 4).ok_or_else(short)?),
            page_addr: Lsn(u64_at(header, 8).ok_or_else(short)?),
            rem_len: u32_at(header, 16).ok_or_else(short)?,
            long,
        })
    }

    /// Bytes the header takes.
    pub fn header_len(&self) -> usize {
        if self.flags.is_long() { LONG_HEADER_LEN } else { SHORT_HEADER_LEN }
    }
}

/// The major version that writes this `XLOG_PAGE_MAGIC`; `None` for betas and versions not reviewed.
pub fn major_of_magic(magic: u16) -> Option<PgMajor> {
    PgMajor::from_wal_page_magic(magic).ok()
}

/// What the first page of a segment says about it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SegmentInfo {
    /// The cluster.
    pub system_id: SystemId,
    /// The major version, from the page magic.
    pub major: PgMajor,
    /// The timeline of the first page. After a promotion in the middle of a segment this is the old timeline, while
    /// the segment's name says the new one.
    pub timeline: Timeline,
    /// Where the segment begins.
    pub start: Lsn,
    /// Bytes of a segment.
    pub segment_size: u32,
    /// Bytes of a WAL page.
    pub page_size: u32,
}

impl SegmentInfo {
    /// Where the next segment begins.
    pub fn end(&self) -> Lsn {
        Lsn(self.start.0.saturating_add(u64::from(self.segment_size)))
    }
}

/// Reads what the first page of a segment says: 40 bytes suffice.
///
/// # Errors
/// When these bytes cannot be the start of a segment of a supported version.
pub fn peek_segment(first_page: &[u8]) -> Result<SegmentInfo, WalError> {
    let header = PageHeader::parse(first_page)?;
    if first_page[..SHORT_HEADER_LEN].iter().all(|b| *b == 0) {
        return Err(WalError::EmptyPage { lsn: Lsn(0) });
    }
    let major = major_of_magic(header.magic).ok_or(WalError::UnknownMagic { found: header.magic })?;
    if header.flags.0 & !PageFlags::ALL != 0 {
        return Err(WalError::UnknownFlags { lsn: header.page_addr, found: header.flags.0 });
    }
    let LongHeader { system_id, segment_size, page_size } = header.long.ok_or(WalError::NoLongHeader)?;
    // IsValidWalSegSize, and configure's --with-wal-blocksize (1 to 64 kB).
    let sizes_fit = segment_size.is_power_of_two()
        && (SEGMENT_SIZE_MIN..=SEGMENT_SIZE_MAX).contains(&segment_size)
        && page_size.is_power_of_two()
        && (1024..=65536).contains(&page_size);
    if !sizes_fit {
        return Err(WalError::BadSizes { segment_size, page_size });
    }
    let start = header.page_addr;
    if !start.0.is_multiple_of(u64::from(segment_size)) || start.0.checked_add(u64::from(segment_size)).is_none() {
        let lsn = Lsn(start.0 & !(u64::from(segment_size) - 1));
        return Err(WalError::OtherAddress { lsn, found: start });
    }
    Ok(SegmentInfo { system_id, major, timeline: header.timeline, start, segment_size, page_size })
}
