//! The stretch of WAL between two backups, piece by piece along its history, and whether summaries cover it.
//!
//! The rules are those of `PrepareForIncrementalBackup` (`src/backend/backup/basebackup_incremental.c`) and
//! `WalSummariesAreComplete` (`src/backend/backup/walsummary.c`).

use pg_format::history::TimelineHistory;
use pg_format::wal_summary::WalSummaryName;
use pg_format::{Lsn, Timeline};

/// A stretch of WAL on one history: from the prior's start LSN to the new backup's start LSN.
#[derive(Debug, Clone)]
pub(in crate::backup) struct Stretch {
    /// Where the prior started.
    pub(in crate::backup) from: (Timeline, Lsn),
    /// Where the new backup starts; exclusive.
    pub(in crate::backup) to: (Timeline, Lsn),
    /// The history of `to`'s timeline; none for a timeline without a past.
    pub(in crate::backup) history: Option<TimelineHistory>,
}

/// WAL of one timeline, from `start` up to but not including `end`; never empty.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Piece {
    pub(super) timeline: Timeline,
    pub(super) start: Lsn,
    pub(super) end: Lsn,
}

impl Stretch {
    /// The pieces of the stretch, oldest first, none when there is no WAL in it; or why it is no stretch of one history.
    pub(super) fn pieces(&self) -> Result<Vec<Piece>, String> {
        let ((from_timeline, from), (to_timeline, to)) = (self.from, self.to);
        let alone = TimelineHistory::without_past(to_timeline);
        let history = self.history.as_ref().unwrap_or(&alone);
        if history.timeline != to_timeline {
            return Err(format!("the history of timeline {} is not that of timeline {to_timeline}", history.timeline));
        }
        let spans = history.ancestry();
        let Some(first) = spans.iter().position(|span| span.timeline == from_timeline) else {
            return Err(format!(
                "timeline {from_timeline}, on which the earlier backup was made, is not in the history of timeline \
                 {to_timeline}"
            ));
        };
        let mut pieces = Vec::new();
        for (index, span) in spans.iter().enumerate().skip(first) {
            let start = if index == first { from } else { span.begin };
            let end = span.end.unwrap_or(to);
            if start < span.begin || start > end {
                return Err(format!(
                    "WAL from {start} to {end} is asked for on timeline {}, which is not how timeline {to_timeline} \
                     came about",
                    span.timeline
                ));
            }
            if start < end {
                pieces.push(Piece { timeline: span.timeline, start, end });
            }
        }
        Ok(pieces)
    }
}

impl Piece {
    /// Whether a summary tells something of this piece. It may reach beyond it: a standby may have summarised more of a
    /// timeline than the history that it was promoted into has of it.
    pub(super) fn meets(&self, summary: &WalSummaryName) -> bool {
        summary.timeline == self.timeline && summary.start_lsn < self.end && summary.end_lsn > self.start
    }

    /// The first hole that the summaries leave in this piece, which they may overlap in any way.
    pub(super) fn first_hole(&self, summaries: &[WalSummaryName]) -> Option<Self> {
        let mut here: Vec<_> = summaries.iter().filter(|summary| self.meets(summary)).collect();
        here.sort_unstable();
        let mut covered = self.start;
        for summary in here {
            if summary.start_lsn > covered {
                return Some(Self { start: covered, end: summary.start_lsn, ..*self });
            }
            covered = covered.max(summary.end_lsn);
        }
        (covered < self.end).then_some(Self { start: covered, ..*self })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// `2: 1@300 3@500` is the history of timeline 2 … written as pairs of timeline and switch.
    fn history(timeline: u32, switches: &[(u32, u64)]) -> TimelineHistory {
        let line = |(tli, lsn): &(u32, u64)| format!("{tli}\t{}\treason\n", Lsn(*lsn));
        TimelineHistory::parse(Timeline(timeline), &switches.iter().map(line).collect::<String>()).unwrap()
    }

    fn piece((timeline, start, end): (u32, u64, u64)) -> Piece {
        Piece { timeline: Timeline(timeline), start: Lsn(start), end: Lsn(end) }
    }

    #[test]
    fn pieces_follow_the_history() {
        let past = [(1, 300), (3, 500)];
        let check = |from: (u32, u64), to: (u32, u64), switches: &[(u32, u64)], expect: Option<&[(u32, u64, u64)]>| {
            let stretch = Stretch {
                from: (Timeline(from.0), Lsn(from.1)),
                to: (Timeline(to.0), Lsn(to.1)),
                history: (!switches.is_empty()).then(|| history(to.0, switches)),
            };
            let expect = expect.map(|pieces| pieces.iter().copied().map(piece).collect::<Vec<_>>());
            assert_eq!(stretch.pieces().ok(), expect, "{from:?} {to:?} {switches:?}");
        };
        check((1, 100), (1, 200), &[], Some(&[(1, 100, 200)]));
        check((1, 100), (1, 100), &[], Some(&[]));
        check((1, 101), (1, 100), &[], None);
        check((1, 100), (2, 200), &[], None);
        check((1, 100), (4, 600), &past, Some(&[(1, 100, 300), (3, 300, 500), (4, 500, 600)]));
        check((3, 400), (4, 600), &past, Some(&[(3, 400, 500), (4, 500, 600)]));
        check((4, 550), (4, 600), &past, Some(&[(4, 550, 600)]));
        // At the switch itself nothing of the old timeline is left.
        check((1, 300), (4, 500), &past, Some(&[(3, 300, 500)]));
        // Another history, or WAL that this one does not have.
        check((2, 300), (4, 600), &past, None);
        check((1, 301), (4, 600), &past, None);
        check((3, 299), (4, 600), &past, None);
        check((1, 100), (4, 499), &past, None);
        // Two promotions with nothing in between.
        check((1, 100), (3, 400), &[(1, 300), (2, 300)], Some(&[(1, 100, 300), (3, 300, 400)]));
        let stretch =
            Stretch { from: (Timeline(1), Lsn(1)), to: (Timeline(5), Lsn(9)), history: Some(history(4, &past)) };
        assert!(stretch.pieces().unwrap_err().contains("not that of timeline 5"));
    }

    #[test]
    fn holes_are_found() {
        let check = |summaries: &[(u32, u64, u64)], expect: Option<(u64, u64)>| {
            let name = |&(timeline, start, end): &(u32, u64, u64)| WalSummaryName {
                timeline: Timeline(timeline),
                start_lsn: Lsn(start),
                end_lsn: Lsn(end),
            };
            let names: Vec<_> = summaries.iter().map(name).collect();
            let hole = piece((1, 100, 200)).first_hole(&names);
            assert_eq!(hole, expect.map(|(start, end)| piece((1, start, end))), "{summaries:?}");
        };
        check(&[], Some((100, 200)));
        check(&[(1, 100, 200)], None);
        check(&[(1, 50, 250)], None);
        check(&[(1, 150, 200), (1, 100, 150)], None);
        check(&[(1, 100, 150), (1, 151, 200)], Some((150, 151)));
        check(&[(1, 101, 200)], Some((100, 101)));
        check(&[(1, 100, 199)], Some((199, 200)));
        check(&[(1, 0, 100), (1, 200, 300)], Some((100, 200)));
        // Another timeline's.
        check(&[(2, 100, 200)], Some((100, 200)));
        check(&[(1, 100, 150), (2, 150, 200)], Some((150, 200)));
        // Overlapping, one within another.
        check(&[(1, 90, 180), (1, 100, 120), (1, 170, 210)], None);
        check(&[(1, 90, 180), (1, 100, 120), (1, 181, 210)], Some((180, 181)));
    }
}
