//! Records that cross from one segment to the next, from the fragments that the archive keeps of them.

use super::IndexedRun;
use super::rebuild::{Moved, told_by};
use crate::EngineError;
use pg_format::Lsn;
use pg_wal::{Head, HeadState, IndexBuilder, IndexOptions, Joined, Joiner, PgMajor, SegmentInfo, Tail, WalIndex, page};
use repo::wal::WalFacts;

/// `XLOG_BLCKSZ`, unless configured otherwise when the server was built; only the places of joined records depend on it.
const PAGE: u64 = 8192;

/// What is open at a border.
pub(super) struct Border {
    major: PgMajor,
    /// The record that the last segment began and did not end, and how many of its bytes are to come.
    open: Option<(Joiner, u32)>,
    /// Catalogs that were rewritten on the way, so that a record which changes their rows is understood.
    moved: Moved,
}

impl Border {
    pub(super) fn new(major: PgMajor) -> Self {
        Self { major, open: None, moved: Moved::new() }
    }

    /// Catalogs that were rewritten in what was entered.
    pub(super) fn moved(&self) -> &Moved {
        &self.moved
    }

    /// What was open is lost: the next segment is not there.
    pub(super) fn lose(&mut self) {
        self.open = None;
    }

    /// Goes on to the next segments; the index of the record that crossed the border to the first of them.
    ///
    /// # Errors
    /// When the fragments are no record.
    pub(super) fn enter(&mut self, run: &IndexedRun) -> Result<Option<WalIndex>, EngineError> {
        let (Some(first), Some(last)) = (run.facts.first(), run.facts.last()) else { return Ok(None) };
        let joined = self.head(first, &run.fragments.head)?;
        self.moved.extend(told_by(&run.index));
        if let Some(joined) = &joined {
            self.moved.extend(told_by(joined));
        }
        if let Some(tail) = tail_of(last, &run.fragments.tail) {
            let missing = tail.total_len.saturating_sub(tail.bytes.len() as u32);
            self.open = Some((Joiner::new(tail, &self.info(last)), missing));
        }
        Ok(joined)
    }

    fn info(&self, facts: &WalFacts) -> SegmentInfo {
        SegmentInfo {
            system_id: facts.system_id,
            major: self.major,
            timeline: facts.timeline,
            start: facts.first_lsn,
            segment_size: facts.segment_size as u32,
            page_size: PAGE as u32,
        }
    }

    fn head(&mut self, facts: &WalFacts, bytes: &[u8]) -> Result<Option<WalIndex>, EngineError> {
        let Some((mut joiner, missing)) = self.open.take() else { return Ok(None) };
        let info = self.info(facts);
        if joiner.next_segment() != info.start || bytes.is_empty() {
            // Another run, or the segment begins anew: the record was lost in a crash and never was.
            return Ok(None);
        }
        let state = match (facts.head_whole, is_one_continuation(facts)) {
            (true, _) => HeadState::Complete,
            (false, true) => HeadState::Continues,
            (false, false) => return Ok(None),
        };
        let len = bytes.len() as u32;
        let head = Head { segment_start: info.start, remaining: missing, bytes: bytes.to_vec(), state };
        let broken = |error: &dyn std::fmt::Display| EngineError::Failed {
            reason: format!("the record that crosses into the WAL segment at {}: {error}", info.start),
            hint: None,
        };
        match joiner.push(&info, Some(&head)).map_err(|error| broken(&error))? {
            Joined::Overwritten => Ok(None),
            Joined::More => {
                self.open = Some((joiner, missing.saturating_sub(len)));
                Ok(None)
            }
            Joined::Whole => {
                let Some(record) = joiner.record() else { return Ok(None) };
                let mut builder =
                    IndexBuilder::new(&IndexOptions { moved_catalogs: self.moved.clone(), ..IndexOptions::usual() });
                builder.add(&record);
                builder.finish(record.lsn, record.end_lsn).map(Some).map_err(|error| broken(&error))
            }
        }
    }
}

/// Whether a record goes through a whole segment. Such a segment has nothing else in it; in one with records, WAL goes on
/// after what was lost in a crash.
pub(super) fn is_one_continuation(facts: &WalFacts) -> bool {
    let nothing_else = facts.records == 0 && facts.tail_len == 0 && !facts.switched && facts.unreadable.is_none();
    facts.head_len > 0 && !facts.head_whole && nothing_else
}

/// The record that a segment begins and does not end.
fn tail_of(facts: &WalFacts, bytes: &[u8]) -> Option<Tail> {
    if facts.tail_len == 0 || facts.unreadable.is_some() {
        return None;
    }
    // It begins where the last whole record ends; behind the page header, when that is where a page begins.
    let end = facts.last_lsn.0;
    let header = match (end.is_multiple_of(PAGE), end == facts.first_lsn.0) {
        (true, true) => page::LONG_HEADER_LEN,
        (true, false) => page::SHORT_HEADER_LEN,
        (false, _) => 0,
    };
    Some(Tail {
        lsn: Lsn(end + header as u64),
        total_len: u32::try_from(facts.tail_total).ok()?,
        bytes: bytes.to_vec(),
        prev: None,
        next: Lsn(facts.first_lsn.0 + facts.segment_size),
    })
}
