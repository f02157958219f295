//! A segment in the spool, and what the repositories have of it.

use super::PieceRules;
use pg_format::{Lsn, SegmentName};
use std::fs::File;
use std::ops::Range;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Instant;

/// So many pieces of one kind in a row are written anew as one.
pub(super) const FAN: usize = 32;

/// Whether a segment grows.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in crate::wal::receive) enum Closed {
    /// It does.
    No,
    /// It has all its bytes.
    Whole,
    /// It never will have.
    Abandoned,
}

/// What a repository has of a segment.
#[derive(Debug, Clone, Default)]
pub(super) struct InRepo {
    /// Its pieces were listed.
    pub(super) looked: bool,
    /// So many bytes lie in pieces, from the segment's start on.
    pub(super) sent: u64,
    /// The pieces, each with how often it was written anew.
    pub(super) pieces: Vec<(Range<u64>, u8)>,
    /// The segment's object is there.
    pub(super) whole: bool,
    /// Since when something waits to be sent.
    pub(super) since: Option<Instant>,
    /// What arrives is written to a log there, by who receives it.
    pub(super) logged: bool,
}

/// A segment in the spool.
#[derive(Debug)]
pub(super) struct Segment {
    pub(super) name: SegmentName,
    pub(super) start: Lsn,
    pub(super) file: Arc<File>,
    pub(super) path: PathBuf,
    pub(super) filled: u64,
    pub(super) closed: Closed,
    pub(super) at: Vec<InRepo>,
}

impl Segment {
    /// More of it is there. Says whether someone who sends pieces has something to do or to wait for that is new.
    pub(super) fn fill(&mut self, filled: u64, rules: &PieceRules) -> bool {
        if filled <= self.filled {
            return false;
        }
        let before = self.filled;
        self.filled = filled;
        let now = Instant::now();
        let mut news = false;
        for at in self.at.iter_mut().filter(|at| !at.whole) {
            let begins = (before..filled).contains(&at.sent);
            if begins {
                at.since = Some(now);
            }
            let unsent = |filled: u64| filled.saturating_sub(at.sent);
            let due = rules.at_once || (unsent(before) < rules.bytes && unsent(filled) >= rules.bytes);
            news |= !at.logged && (begins || due);
        }
        news
    }

    /// Whether the repository has all that it will ever get of it as pieces, or its object.
    pub(super) fn is_in(&self, place: usize) -> bool {
        let at = &self.at[place];
        at.whole || (self.closed == Closed::Abandoned && at.sent >= self.filled)
    }
}

impl InRepo {
    /// Where the next piece begins: at the end of what was sent, or with the small ones before that it makes superfluous.
    pub(super) fn next_from(&self) -> (u64, u8) {
        let Some((_, level)) = self.pieces.last() else { return (self.sent, 0) };
        let same = self.pieces.iter().rev().take_while(|(_, other)| other == level).count();
        match self.pieces.get(self.pieces.len() - FAN.min(self.pieces.len())) {
            Some((first, _)) if same >= FAN => (first.start, level + 1),
            _ => (self.sent, 0),
        }
    }
}
