//! Indexes of segments that follow each other become the changes of the stretch they cover, or it is said where the run
//! is broken.

use super::index::{Segment, add};
use super::set::Changes;
use crate::server::ServerFacts;
use pg_format::{Lsn, SystemId};
use pg_wal::event::WalLevel;
use pg_wal::index::{Mark, MarkKind};
use pg_wal::{Head, HeadState, IndexBuilder, IndexOptions, Joined, Joiner, Tail};

/// What is gathered of a run of segments, given in order.
pub(super) struct Run {
    system_id: SystemId,
    from: Lsn,
    to: Lsn,
    changes: Changes,
    /// Of the records that cross borders.
    joined: IndexBuilder,
    /// Where the next segment must begin; none before the first one.
    next: Option<Lsn>,
    /// The record that the last segment does not end, and how many of its bytes are missing.
    open: Option<(Joiner, u32)>,
}

impl Run {
    pub(super) fn new(server: &ServerFacts, from: Lsn, to: Lsn) -> Self {
        let options = IndexOptions { block_size: server.block_size, moved_catalogs: Vec::new() };
        Self {
            system_id: server.system_id,
            from,
            to,
            changes: Changes::default(),
            joined: IndexBuilder::new(&options),
            next: None,
            open: None,
        }
    }

    /// Adds the next segment, or says why it does not continue the run.
    pub(super) fn add(&mut self, segment: Segment) -> Result<(), String> {
        let Segment { name, info, last, index, head, head_whole, tail, .. } = segment;
        let end = last.end();
        if info.system_id != self.system_id {
            return Err(format!("WAL segment {name} is of cluster {}, not {}", info.system_id, self.system_id));
        }
        let is_first = self.next.is_none();
        let begins_right = self.next.map_or(info.start <= self.from && self.from < end, |next| next == info.start);
        if !begins_right || index.start != info.start {
            return Err(format!("WAL segment {name} begins at {}, which is not where the run goes on", info.start));
        }
        // The server may still be writing the last one.
        let needed = end.min(self.to);
        if index.end < needed {
            return Err(format!("WAL segment {name} cannot be read from {} on", index.end));
        }
        self.check_level(&index.marks)?;
        let lost = |mark: &Mark| matches!(mark.kind, MarkKind::Overwritten { lost, .. } if lost < info.start);
        let overwritten = index.marks.iter().any(lost);
        match self.open.take() {
            // It began before the stretch.
            None if is_first || head.is_empty() => {}
            None => {
                return Err(format!("WAL segment {name} begins with the end of a record whose beginning is missing"));
            }
            // Lost in a crash: the record never was.
            Some(_) if overwritten && !head_whole => {}
            Some(_) if head.is_empty() => {
                return Err(format!("WAL segment {name} does not go on with the record that the one before it begins"));
            }
            Some((mut joiner, missing)) => {
                let left = missing.saturating_sub(head.len() as u32);
                let state = if head_whole { HeadState::Complete } else { HeadState::Continues };
                let head = Head { segment_start: info.start, remaining: missing, bytes: head, state };
                match joiner.push(&info, Some(&head)) {
                    Ok(Joined::Whole) => {
                        if let Some(record) = joiner.record() {
                            self.joined.add(&record);
                        }
                    }
                    Ok(Joined::More) => self.open = Some((joiner, left)),
                    Ok(Joined::Overwritten) => {}
                    Err(error) => return Err(format!("WAL segment {name}: {error}")),
                }
            }
        }
        if let Some((bytes, total_len)) = tail {
            let missing = total_len.saturating_sub(bytes.len() as u32);
            // Where exactly it begins only names it: at the end of the last record, or a page header later.
            let lsn = Lsn(end.0.saturating_sub(bytes.len() as u64).max(last.start.0));
            let tail = Tail { lsn, total_len, bytes, prev: None, next: end };
            self.open = Some((Joiner::new(tail, &last), missing));
        }
        add(&mut self.changes, &index.changes);
        self.next = Some(end);
        Ok(())
    }

    /// The changes, when the run reaches its end.
    pub(super) fn finish(mut self) -> Result<Changes, String> {
        if self.next.is_none_or(|next| next < self.to) {
            return Err(format!("the WAL index ends before {}", self.to));
        }
        let (from, to) = (self.from, self.to);
        let joined = std::mem::replace(&mut self.joined, IndexBuilder::new(&IndexOptions::usual()));
        let joined = joined.finish(from, to).map_err(|error| error.to_string())?;
        self.check_level(&joined.marks)?;
        add(&mut self.changes, &joined.changes);
        Ok(self.changes)
    }

    /// Changes made at `wal_level=minimal` are not in the WAL.
    fn check_level(&self, marks: &[Mark]) -> Result<(), String> {
        let within = |mark: &&Mark| mark.lsn >= self.from && mark.lsn < self.to;
        match marks.iter().filter(within).find(|mark| mark.wal_level() == Some(WalLevel::Minimal)) {
            None => Ok(()),
            Some(mark) => Err(format!("wal_level was minimal at {}: not all changes since are in the WAL", mark.lsn)),
        }
    }
}
