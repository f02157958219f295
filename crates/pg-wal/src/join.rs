//! Records that cross segments, put together from the tail of one, whole segments between, and the head of another.

use crate::bytes::align8;
use crate::error::WalError;
use crate::page::{LONG_HEADER_LEN, SHORT_HEADER_LEN, SegmentInfo};
use crate::reader::{BLOCK_SIZE_USUAL, Head, HeadState, Tail};
use crate::record::{HEADER_LEN, RECORD_LEN_MAX, Record, RecordBody, RecordHeader, check_crc, check_header};
use crate::rmgr::Rmgr;
use crate::types::{Lsn, PgMajor, SystemId};

/// How far a joined record is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Joined {
    /// The next segment's head is needed.
    More,
    /// [`Joiner::record`] gives it.
    Whole,
    /// It was lost in a crash and never was: drop it.
    Overwritten,
}

/// Joins the fragments of one record: the tail of the segment it begins in, then the head of each segment after.
#[derive(Debug, Clone)]
pub struct Joiner {
    tail: Tail,
    major: PgMajor,
    block_size: u32,
    segment_size: u32,
    system_id: SystemId,
    end_lsn: Lsn,
    state: Joined,
    checked: Option<(RecordHeader, Rmgr)>,
    body: RecordBody,
}

impl Joiner {
    /// Begins with the tail of the segment that `info` describes.
    pub fn new(tail: Tail, info: &SegmentInfo) -> Self {
        Self::with_block_size(tail, info, BLOCK_SIZE_USUAL)
    }

    /// As [`Self::new`], for a server built with another `BLCKSZ`.
    pub fn with_block_size(tail: Tail, info: &SegmentInfo, block_size: u32) -> Self {
        Self {
            end_lsn: tail.next,
            tail,
            major: info.major,
            block_size,
            segment_size: info.segment_size,
            system_id: info.system_id,
            state: Joined::More,
            checked: None,
            body: RecordBody::default(),
        }
    }

    /// Where the record begins.
    pub fn lsn(&self) -> Lsn {
        self.tail.lsn
    }

    /// Where the segment begins whose head is needed next.
    pub fn next_segment(&self) -> Lsn {
        self.tail.next
    }

    /// Adds the head of the next segment; `None` when that segment begins with an overwritten continuation
    /// ([`drops_earlier_tail`](crate::SegmentReader::drops_earlier_tail)).
    ///
    /// # Errors
    /// [`WalError::NotContinued`] when the fragment is not of this record, and what is wrong with the whole record.
    pub fn push(&mut self, segment: &SegmentInfo, head: Option<&Head>) -> Result<Joined, WalError> {
        let lsn = self.tail.lsn;
        let not = |what| WalError::NotContinued { lsn, segment: segment.start, what };
        if self.state != Joined::More {
            return Err(not("it is finished"));
        }
        if segment.start != self.tail.next {
            return Err(not("it is not the next segment"));
        }
        let same = (self.system_id, self.major, self.segment_size);
        if (segment.system_id, segment.major, segment.segment_size) != same {
            return Err(not("it is another cluster's segment"));
        }
        let Some(head) = head else {
            self.state = Joined::Overwritten;
            return Ok(self.state);
        };
        if self.tail.total_len < HEADER_LEN as u32 || self.tail.total_len > RECORD_LEN_MAX {
            return Err(WalError::BadRecordLength { lsn, length: self.tail.total_len });
        }
        if u64::from(head.remaining) + self.tail.bytes.len() as u64 != u64::from(self.tail.total_len) {
            return Err(not("another length remains"));
        }
        match head.state {
            HeadState::Overwritten => {
                self.state = Joined::Overwritten;
                return Ok(self.state);
            }
            HeadState::Torn => return Err(not("valid WAL ends inside it")),
            HeadState::Complete if head.bytes.len() != head.remaining as usize => {
                return Err(not("the fragment has another length than it says"));
            }
            HeadState::Continues if head.bytes.len() >= head.remaining as usize => {
                return Err(not("the fragment has another length than it says"));
            }
            HeadState::Complete | HeadState::Continues => {}
        }
        self.tail.bytes.extend_from_slice(&head.bytes);
        self.tail.next = segment.end();
        if head.state == HeadState::Continues {
            return Ok(Joined::More);
        }
        let header = RecordHeader::parse(&self.tail.bytes).ok_or(not("it is shorter than a header"))?;
        let rmgr = check_header(lsn, &header, self.tail.prev, self.major)?;
        check_crc(lsn, &header, &self.tail.bytes)?;
        self.body.decode(lsn, &self.tail.bytes, self.major, self.block_size)?;
        self.end_lsn = end_of_head(segment, head);
        self.checked = Some((header, rmgr));
        self.state = Joined::Whole;
        Ok(self.state)
    }

    /// The joined record, once [`Self::push`] said [`Joined::Whole`].
    pub fn record(&self) -> Option<Record<'_>> {
        let (header, rmgr) = self.checked?;
        Some(Record {
            lsn: self.tail.lsn,
            end_lsn: self.end_lsn,
            header,
            rmgr,
            bytes: &self.tail.bytes,
            body: &self.body,
            major: self.major,
        })
    }
}

/// Where the record that ends with `head` ends, aligned.
fn end_of_head(segment: &SegmentInfo, head: &Head) -> Lsn {
    let page_size = segment.page_size as usize;
    let first = page_size - LONG_HEADER_LEN;
    let rest = head.bytes.len().saturating_sub(first);
    let at = if rest == 0 {
        LONG_HEADER_LEN + head.bytes.len()
    } else {
        let payload = page_size - SHORT_HEADER_LEN;
        // The last page is never without a byte of the record.
        let full = (rest - 1) / payload;
        page_size * (1 + full) + SHORT_HEADER_LEN + (rest - full * payload)
    };
    Lsn(segment.start.0 + align8(at) as u64)
}
