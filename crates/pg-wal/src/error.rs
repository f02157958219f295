//! What can be wrong with WAL.

use crate::types::{Lsn, PgMajor, SystemId, Timeline};

/// What was wrong with a page, a record or a segment, and where.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum WalError {
    /// Fewer bytes than a header needs.
    #[error("{have} bytes are too few for a WAL page header, {need} are needed")]
    TooShort {
        /// Bytes there.
        have: usize,
        /// Bytes needed.
        need: usize,
    },
    /// The page begins with zeros: it was never written.
    #[error("the page at {lsn} is empty")]
    EmptyPage {
        /// Where the page should begin.
        lsn: Lsn,
    },
    /// No supported major version writes this magic.
    #[error("unknown WAL page magic {found:04X} (PostgreSQL 14 to 18 are known)")]
    UnknownMagic {
        /// The magic found.
        found: u16,
    },
    /// A page has another magic than the segment's first page, or than was expected.
    #[error("WAL page magic {found:04X} at {lsn} instead of {expected:04X}")]
    OtherMagic {
        /// The page.
        lsn: Lsn,
        /// What it has.
        found: u16,
        /// What the first page has.
        expected: u16,
    },
    /// Flag bits that no supported version sets.
    #[error("unknown WAL page flags {found:04X} at {lsn}")]
    UnknownFlags {
        /// The page.
        lsn: Lsn,
        /// All its flags.
        found: u16,
    },
    /// A segment's first page has no long header.
    #[error("the first page has no long header: this is not the start of a WAL segment")]
    NoLongHeader,
    /// Sizes in the long header that PostgreSQL cannot have.
    #[error("WAL segment size {segment_size} with page size {page_size} cannot be")]
    BadSizes {
        /// `xlp_seg_size`.
        segment_size: u32,
        /// `xlp_xlog_blcksz`.
        page_size: u32,
    },
    /// A page says it belongs elsewhere in the WAL stream.
    #[error("the page at {lsn} says it is at {found}")]
    OtherAddress {
        /// Where the page lies.
        lsn: Lsn,
        /// What it says.
        found: Lsn,
    },
    /// The timeline goes back, or is beyond the segment's own.
    #[error("the page at {lsn} is of timeline {found}, not within {low} to {high}")]
    OtherTimeline {
        /// The page.
        lsn: Lsn,
        /// What it says.
        found: Timeline,
        /// The page's before.
        low: Timeline,
        /// The segment's.
        high: Timeline,
    },
    /// Another cluster's WAL.
    #[error("WAL of the system {found}, not of {expected}")]
    OtherSystem {
        /// What the segment says.
        found: SystemId,
        /// Whose WAL was expected.
        expected: SystemId,
    },
    /// Another major version's WAL.
    #[error("WAL of PostgreSQL {found}, not of {expected:?}")]
    OtherMajor {
        /// What the segment says.
        found: PgMajor,
        /// What was expected.
        expected: PgMajor,
    },
    /// Another segment size than the cluster's.
    #[error("a WAL segment of a cluster with segments of {found} bytes, not {expected}")]
    OtherSegmentSize {
        /// What the segment says.
        found: u32,
        /// What was expected.
        expected: u32,
    },
    /// More bytes than a segment has.
    #[error("{have} bytes are more than the segment size {segment_size}")]
    TooLong {
        /// Bytes there.
        have: usize,
        /// `xlp_seg_size`.
        segment_size: u32,
    },
    /// A record's length is impossible.
    #[error("the record at {lsn} has the impossible length {length}")]
    BadRecordLength {
        /// The record.
        lsn: Lsn,
        /// `xl_tot_len`.
        length: u32,
    },
    /// A resource manager that no version has.
    #[error("the record at {lsn} has the unknown resource manager {rmgr}")]
    UnknownRmgr {
        /// The record.
        lsn: Lsn,
        /// `xl_rmid`.
        rmgr: u8,
    },
    /// The record does not point back at the one before.
    #[error("the record at {lsn} points back to {found}, which is not the record before")]
    BadPrevLink {
        /// The record.
        lsn: Lsn,
        /// `xl_prev`.
        found: Lsn,
    },
    /// The record's checksum does not match.
    #[error("the record at {lsn} has a wrong checksum")]
    BadCrc {
        /// The record.
        lsn: Lsn,
    },
    /// A page continues a record that nothing began, or does not continue one that was begun.
    #[error("the page at {page} does not fit the record at {lsn}: {what}")]
    BadContinuation {
        /// The record being read; the page itself when none was begun.
        lsn: Lsn,
        /// The page.
        page: Lsn,
        /// What does not fit.
        what: &'static str,
    },
    /// The insides of a record do not add up.
    #[error("the record at {lsn} cannot be decoded: {what}")]
    BadRecord {
        /// The record.
        lsn: Lsn,
        /// What does not fit.
        what: &'static str,
    },
    /// A full-page image cannot be restored.
    #[error("the image of block reference {block_id} in the record at {lsn} cannot be restored: {what}")]
    BadImage {
        /// The record.
        lsn: Lsn,
        /// Which block reference.
        block_id: u8,
        /// What went wrong.
        what: &'static str,
    },
    /// Two fragments that are not of one record.
    #[error("the fragment at {segment} does not continue the record at {lsn}: {what}")]
    NotContinued {
        /// The record.
        lsn: Lsn,
        /// The segment whose head was offered.
        segment: Lsn,
        /// What does not fit.
        what: &'static str,
    },
}
