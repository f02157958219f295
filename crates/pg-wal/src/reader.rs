//! Walks the records of one WAL segment without its neighbours (`access/transam/xlogreader.c`).

use crate::bytes::{align8, u32_at};
use crate::error::WalError;
use crate::page::{PageFlags, PageHeader, SHORT_HEADER_LEN, SegmentInfo, peek_segment};
use crate::record::{HEADER_LEN, RECORD_LEN_MAX, Record, RecordBody, RecordHeader, check_crc, check_header};
use crate::rmgr::Rmgr;
use crate::types::{Lsn, PgMajor, SystemId, Timeline};

/// The size of relation pages (`BLCKSZ`) unless the server was built otherwise. WAL does not say it.
pub const BLOCK_SIZE_USUAL: u32 = 8192;

/// `XLOG_SWITCH` (`catalog/pg_control.h`).
pub(crate) const XLOG_SWITCH: u8 = 0x40;

/// What the caller knows about a segment; a segment that says otherwise is refused.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Expected {
    /// Whose WAL it must be.
    pub system_id: Option<SystemId>,
    /// Which major version must have written it.
    pub major: Option<PgMajor>,
    /// The cluster's segment size.
    pub segment_size: Option<u32>,
    /// The timeline of the segment's name: no page may be of a later one.
    pub timeline: Option<Timeline>,
    /// Where the segment must begin, from its name.
    pub start: Option<Lsn>,
    /// The size of relation pages; [`BLOCK_SIZE_USUAL`] when not given.
    pub block_size: Option<u32>,
}

/// The bytes at the start of a segment that belong to a record begun in an earlier one.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Head {
    /// Where the segment begins.
    pub segment_start: Lsn,
    /// Bytes that the record still needed when the segment began, by its first page header.
    pub remaining: u32,
    /// Those of them that are here, page headers taken out.
    pub bytes: Vec<u8>,
    /// How it ends.
    pub state: HeadState,
}

/// How a head fragment ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum HeadState {
    /// The record ends in this segment.
    Complete,
    /// The whole segment belongs to it, and so does the start of the next.
    Continues,
    /// A crash cut it off: a later page says that the rest was lost, and WAL goes on there. The record never was.
    Overwritten,
    /// Valid WAL ends inside it.
    Torn,
}

/// A record that begins in a segment and does not end in it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Tail {
    /// Where it begins.
    pub lsn: Lsn,
    /// The length of the whole record, by its first bytes. Its checksum is not checked yet.
    pub total_len: u32,
    /// What there is of it, page headers taken out. Maybe less than a record header, never less than 8 bytes unless
    /// the segment's bytes were cut off.
    pub bytes: Vec<u8>,
    /// Where the record before it begins, when this segment has it.
    pub prev: Option<Lsn>,
    /// Where its next bytes are expected: the start of the next segment, or the end of bytes cut off.
    pub next: Lsn,
}

/// Why the walk through a segment ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum EndReason {
    /// At the segment's end.
    Full,
    /// At a switch record; the rest of the segment is padding.
    Switch,
    /// Nothing was written there yet: a record of length 0, or an empty page.
    Empty,
    /// The bytes given end before the segment does.
    CutOff,
    /// What stands there is not valid.
    Invalid(WalError),
}

/// Where and why the walk ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct End {
    /// Where valid WAL ends: the segment's end when it is full (a tail is valid), the end of the switch record, or
    /// the first place that could not be read.
    pub lsn: Lsn,
    /// Why.
    pub reason: EndReason,
}

/// Reads one segment: its head, its records one after another, its tail, and where valid WAL ends.
#[derive(Debug)]
pub struct SegmentReader<'a> {
    bytes: &'a [u8],
    info: SegmentInfo,
    magic: u16,
    timeline_max: Timeline,
    timeline_last: Timeline,
    block_size: u32,
    /// Offset of what is to be read next: a record, or the start of a page.
    at: usize,
    prev: Option<Lsn>,
    head: Option<Head>,
    tail: Option<Tail>,
    overwritten: Vec<Lsn>,
    end: Option<End>,
    assembled: Vec<u8>,
    body: RecordBody,
}

/// Where the bytes of the record just read are.
enum Found {
    InPlace { at: usize, len: usize },
    Assembled { at: usize },
}

/// What stands in the way of reading on.
enum Stop {
    End(EndReason, Lsn),
    Restart,
}

impl<'a> SegmentReader<'a> {
    /// Reads the first page header and the head fragment.
    ///
    /// `bytes` is the segment from its start; fewer than the segment's size are read as far as they go.
    ///
    /// # Errors
    /// When this is no segment of a supported version, or not the one expected.
    pub fn open(bytes: &'a [u8], expected: &Expected) -> Result<Self, WalError> {
        let info = peek_segment(bytes)?;
        check_expected(&info, expected)?;
        if bytes.len() > info.segment_size as usize {
            return Err(WalError::TooLong { have: bytes.len(), segment_size: info.segment_size });
        }
        let timeline_max = expected.timeline.unwrap_or(Timeline(u32::MAX));
        let mut reader = Self {
            bytes,
            info,
            magic: info.major.facts().wal_page_magic,
            timeline_max,
            timeline_last: info.timeline,
            block_size: expected.block_size.unwrap_or(BLOCK_SIZE_USUAL),
            at: 0,
            prev: None,
            head: None,
            tail: None,
            overwritten: Vec::new(),
            end: None,
            assembled: Vec::new(),
            body: RecordBody::default(),
        };
        let first = match reader.page(0) {
            Ok(first) => first,
            Err(reason) => return Err(invalid(reason)),
        };
        if first.flags.is_contrecord() && !first.flags.is_overwrite_contrecord() {
            reader.read_head(first);
        }
        Ok(reader)
    }

    /// What the first page says.
    pub fn info(&self) -> &SegmentInfo {
        &self.info
    }

    /// The fragment at the start; `None` when a record or an overwritten continuation begins there.
    pub fn head(&self) -> Option<&Head> {
        self.head.as_ref()
    }

    /// Where the head fragment ends, or the segment's start without one. Only before the first record was read.
    pub(crate) fn head_end(&self) -> Lsn {
        match &self.head {
            Some(Head { state: HeadState::Complete, .. }) => self.lsn_of(self.at),
            _ => self.info.start,
        }
    }

    /// The first page says that the record which began in an earlier segment was lost.
    pub fn drops_earlier_tail(&self) -> bool {
        PageHeader::parse(self.bytes).is_ok_and(|first| first.flags.is_overwrite_contrecord())
    }

    /// The record at the end that goes on in the next segment; known once [`Self::next_record`] gave `None`.
    pub fn tail(&self) -> Option<&Tail> {
        self.tail.as_ref()
    }

    /// Where and why reading ended; known once [`Self::next_record`] gave `None`.
    pub fn end(&self) -> Option<&End> {
        self.end.as_ref()
    }

    /// Records that began in this segment and were lost in a crash; WAL goes on after them.
    pub fn overwritten(&self) -> &[Lsn] {
        &self.overwritten
    }

    /// The timeline of the last page read.
    pub fn timeline_last(&self) -> Timeline {
        self.timeline_last
    }

    /// Hands out head and tail without copying them.
    pub fn into_fragments(self) -> (Option<Head>, Option<Tail>) {
        (self.head, self.tail)
    }

    /// Pages after the end that belong there by their headers. After a true end there are none: what was recycled
    /// says another address. Some mean that the segment was damaged in the middle.
    pub fn valid_pages_after_end(&self) -> u32 {
        let Some(End { lsn, reason: EndReason::Empty | EndReason::Invalid(_) }) = &self.end else { return 0 };
        let page_size = self.info.page_size as usize;
        let first = ((lsn.0 - self.info.start.0) as usize / page_size + 1) * page_size;
        let mut count = 0;
        for at in (first..self.bytes.len()).step_by(page_size) {
            let fits = PageHeader::parse(&self.bytes[at..])
                .is_ok_and(|page| page.magic == self.magic && page.page_addr == self.lsn_of(at));
            count += u32::from(fits);
        }
        count
    }

    /// The next record, checked and decoded; `None` at the end, then see [`Self::end`] and [`Self::tail`].
    #[inline]
    pub fn next_record(&mut self) -> Option<Record<'_>> {
        let (found, header, rmgr) = loop {
            if self.end.is_some() {
                return None;
            }
            match self.find_record() {
                Ok(found) => break found,
                Err(Stop::Restart) => {}
                Err(Stop::End(reason, lsn)) => self.end = Some(End { lsn, reason }),
            }
        };
        let (start, bytes): (usize, &[u8]) = match found {
            Found::InPlace { at, len } => (at, &self.bytes[at..at + len]),
            Found::Assembled { at } => (at, &self.assembled),
        };
        let lsn = Lsn(self.info.start.0 + start as u64);
        let decoded = check_crc(lsn, &header, bytes)
            .and_then(|()| self.body.decode(lsn, bytes, self.info.major, self.block_size));
        if let Err(error) = decoded {
            self.end = Some(End { lsn, reason: EndReason::Invalid(error) });
            return None;
        }
        self.prev = Some(lsn);
        let end_lsn = self.lsn_of(self.at);
        if rmgr == Rmgr::Xlog && header.op() == XLOG_SWITCH {
            self.end = Some(End { lsn: end_lsn, reason: EndReason::Switch });
        }
        Some(Record { lsn, end_lsn, header, rmgr, bytes, body: &self.body, major: self.info.major })
    }

    fn lsn_of(&self, at: usize) -> Lsn {
        Lsn(self.info.start.0 + at as u64)
    }

    /// Reads and judges the page header at `at`.
    #[inline]
    fn page(&mut self, at: usize) -> Result<PageHeader, EndReason> {
        let lsn = self.lsn_of(at);
        let bytes = self.bytes.get(at..).unwrap_or_default();
        let Ok(header) = PageHeader::parse(bytes) else { return Err(EndReason::CutOff) };
        if header.magic != self.magic {
            if bytes[..SHORT_HEADER_LEN].iter().all(|b| *b == 0) {
                return Err(EndReason::Empty);
            }
            let error = WalError::OtherMagic { lsn, found: header.magic, expected: self.magic };
            return Err(EndReason::Invalid(error));
        }
        let (low, high) = (self.timeline_last, self.timeline_max);
        let error = if header.flags.0 & !PageFlags::ALL != 0 {
            WalError::UnknownFlags { lsn, found: header.flags.0 }
        } else if header.page_addr != lsn {
            WalError::OtherAddress { lsn, found: header.page_addr }
        } else if header.timeline < low || header.timeline > high {
            WalError::OtherTimeline { lsn, found: header.timeline, low, high }
        } else if let Some(long) = header.long.filter(|long| long.system_id != self.info.system_id) {
            WalError::OtherSystem { found: long.system_id, expected: self.info.system_id }
        } else {
            self.timeline_last = header.timeline;
            return Ok(header);
        };
        Err(EndReason::Invalid(error))
    }

    /// Collects the head fragment over as many pages as it takes.
    fn read_head(&mut self, first: PageHeader) {
        let page_size = self.info.page_size as usize;
        let segment_size = self.info.segment_size as usize;
        let start = self.info.start;
        let mut head =
            Head { segment_start: start, remaining: first.rem_len, bytes: Vec::new(), state: HeadState::Torn };
        let mut remaining = first.rem_len as usize;
        let (mut page_at, mut header) = (0, first);
        self.end = loop {
            let page = self.lsn_of(page_at);
            if !header.flags.is_contrecord() || header.rem_len == 0 || header.rem_len as usize != remaining {
                let what = "another length remains than its header says";
                let error = WalError::BadContinuation { lsn: start, page, what };
                break Some(End { lsn: page, reason: EndReason::Invalid(error) });
            }
            let from = page_at + header.header_len();
            let len = remaining.min(page_size - header.header_len());
            let there = self.bytes.len().saturating_sub(from).min(len);
            head.bytes.extend_from_slice(&self.bytes[self.bytes.len().min(from)..][..there]);
            if there < len {
                break Some(End { lsn: self.lsn_of(self.bytes.len()), reason: EndReason::CutOff });
            }
            remaining -= len;
            if remaining == 0 {
                head.state = HeadState::Complete;
                self.at = from + align8(len);
                break None;
            }
            page_at += page_size;
            if page_at >= segment_size {
                head.state = HeadState::Continues;
                break Some(End { lsn: self.info.end(), reason: EndReason::Full });
            }
            match self.page(page_at) {
                Ok(next) if next.flags.is_overwrite_contrecord() => {
                    head.state = HeadState::Overwritten;
                    self.at = page_at;
                    break None;
                }
                Ok(next) => header = next,
                Err(reason) => break Some(End { lsn: self.lsn_of(page_at), reason }),
            }
        };
        self.head = Some(head);
    }

    /// Finds the next record and leaves `at` behind it.
    #[inline]
    fn find_record(&mut self) -> Result<(Found, RecordHeader, Rmgr), Stop> {
        let page_size = self.info.page_size as usize;
        if self.at >= self.info.segment_size as usize {
            return Err(Stop::End(EndReason::Full, self.info.end()));
        }
        if self.at & (page_size - 1) == 0 {
            let page = self.lsn_of(self.at);
            let header = self.page(self.at).map_err(|reason| Stop::End(reason, page))?;
            if header.flags.is_contrecord() {
                let what = "it continues a record that none began";
                let error = WalError::BadContinuation { lsn: page, page, what };
                return Err(Stop::End(EndReason::Invalid(error), page));
            }
            self.at += header.header_len();
        }
        let at = self.at;
        let lsn = self.lsn_of(at);
        let Some(total_len) = u32_at(self.bytes, at) else {
            self.keep_tail_cut_off(at, 0);
            return Err(Stop::End(EndReason::CutOff, self.lsn_of(self.bytes.len())));
        };
        if total_len == 0 {
            return Err(Stop::End(EndReason::Empty, lsn));
        }
        let invalid = |error| Stop::End(EndReason::Invalid(error), lsn);
        if total_len < HEADER_LEN as u32 || total_len > RECORD_LEN_MAX {
            return Err(invalid(WalError::BadRecordLength { lsn, length: total_len }));
        }
        let page_left = page_size - (at & (page_size - 1));
        let checked = if page_left >= HEADER_LEN && self.bytes.len() - at >= HEADER_LEN {
            let header = RecordHeader::parse(&self.bytes[at..]).ok_or(Stop::Restart)?;
            Some((header, check_header(lsn, &header, self.prev, self.info.major).map_err(invalid)?))
        } else {
            None
        };
        let len = total_len as usize;
        if len <= page_left {
            if self.bytes.len() - at < len {
                self.keep_tail_cut_off(at, total_len);
                return Err(Stop::End(EndReason::CutOff, self.lsn_of(self.bytes.len())));
            }
            // A record that fits its page has its header there too.
            let (header, rmgr) = checked.ok_or(invalid(WalError::BadRecordLength { lsn, length: total_len }))?;
            self.at = at + align8(len);
            return Ok((Found::InPlace { at, len }, header, rmgr));
        }
        let (header, rmgr) = self.assemble(at, len, checked)?;
        Ok((Found::Assembled { at }, header, rmgr))
    }

    fn keep_tail_cut_off(&mut self, at: usize, total_len: u32) {
        self.assembled.clear();
        self.assembled.extend_from_slice(&self.bytes[at.min(self.bytes.len())..]);
        self.keep_tail(at, total_len, self.bytes.len());
    }

    /// Makes what was assembled the tail, unless it is nothing.
    fn keep_tail(&mut self, at: usize, total_len: u32, next: usize) {
        if !self.assembled.is_empty() {
            let bytes = std::mem::take(&mut self.assembled);
            self.tail = Some(Tail { lsn: self.lsn_of(at), total_len, bytes, prev: self.prev, next: self.lsn_of(next) });
        }
    }

    /// Puts a record together that goes over the end of its page.
    fn assemble(
        &mut self,
        at: usize,
        total_len: usize,
        mut checked: Option<(RecordHeader, Rmgr)>,
    ) -> Result<(RecordHeader, Rmgr), Stop> {
        let page_size = self.info.page_size as usize;
        let segment_size = self.info.segment_size as usize;
        let lsn = self.lsn_of(at);
        let invalid = |error| Stop::End(EndReason::Invalid(error), lsn);
        let mut page_at = (at & !(page_size - 1)) + page_size;
        self.assembled.clear();
        self.assembled.extend_from_slice(&self.bytes[at..self.bytes.len().min(page_at)]);
        loop {
            if page_at >= segment_size {
                self.keep_tail(at, total_len as u32, segment_size);
                return Err(Stop::End(EndReason::Full, self.info.end()));
            }
            let page = self.lsn_of(page_at);
            let header = match self.page(page_at) {
                Ok(header) => header,
                Err(EndReason::CutOff) => {
                    self.keep_tail(at, total_len as u32, self.bytes.len());
                    return Err(Stop::End(EndReason::CutOff, self.lsn_of(self.bytes.len())));
                }
                // Its first part is of no use: valid WAL ended where it begins.
                Err(reason) => return Err(Stop::End(reason, lsn)),
            };
            if header.flags.is_overwrite_contrecord() {
                self.overwritten.push(lsn);
                self.at = page_at;
                return Err(Stop::Restart);
            }
            if !header.flags.is_contrecord() {
                let what = "it does not continue it";
                return Err(invalid(WalError::BadContinuation { lsn, page, what }));
            }
            let remaining = total_len - self.assembled.len();
            if header.rem_len as usize != remaining {
                let what = "another length remains than its header says";
                return Err(invalid(WalError::BadContinuation { lsn, page, what }));
            }
            let from = page_at + header.header_len();
            let len = remaining.min(page_size - header.header_len());
            let there = self.bytes.len().saturating_sub(from).min(len);
            self.assembled.extend_from_slice(&self.bytes[from.min(self.bytes.len())..][..there]);
            if checked.is_none()
                && let Some(header) = RecordHeader::parse(&self.assembled)
            {
                checked = Some((header, check_header(lsn, &header, self.prev, self.info.major).map_err(invalid)?));
            }
            if there < len {
                self.keep_tail(at, total_len as u32, self.bytes.len());
                return Err(Stop::End(EndReason::CutOff, self.lsn_of(self.bytes.len())));
            }
            if len == remaining {
                self.at = from + align8(len);
                return checked.ok_or(invalid(WalError::BadRecordLength { lsn, length: total_len as u32 }));
            }
            page_at += page_size;
        }
    }
}

fn invalid(reason: EndReason) -> WalError {
    match reason {
        EndReason::Invalid(error) => error,
        _ => WalError::EmptyPage { lsn: Lsn(0) },
    }
}

fn check_expected(info: &SegmentInfo, expected: &Expected) -> Result<(), WalError> {
    if let Some(major) = expected.major.filter(|major| *major != info.major) {
        return Err(WalError::OtherMajor { found: info.major, expected: major });
    }
    if let Some(system_id) = expected.system_id.filter(|id| *id != info.system_id) {
        return Err(WalError::OtherSystem { found: info.system_id, expected: system_id });
    }
    if let Some(size) = expected.segment_size.filter(|size| *size != info.segment_size) {
        return Err(WalError::OtherSegmentSize { found: info.segment_size, expected: size });
    }
    if let Some(start) = expected.start.filter(|start| *start != info.start) {
        return Err(WalError::OtherAddress { lsn: start, found: info.start });
    }
    Ok(())
}
