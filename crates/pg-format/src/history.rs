//! Timeline history files (`src/backend/access/transam/timeline.c`).

use std::fmt::Write as _;

use serde::{Deserialize, Serialize};

use crate::error::FormatError;
use crate::ids::Timeline;
use crate::lsn::Lsn;

const WHAT: &str = "timeline history";

/// The past of one timeline: the timelines it came from, oldest first.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TimelineHistory {
    /// The timeline that this is the history of.
    pub timeline: Timeline,
    /// Each timeline that was left, with the LSN where that happened.
    pub switches: Vec<Switch>,
}

/// The end of a timeline in a history.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Switch {
    /// The timeline that was left.
    pub timeline: Timeline,
    /// The first LSN that is no longer of it.
    pub lsn: Lsn,
    /// Why, for people.
    pub reason: String,
}

/// A piece of history: WAL from `begin` up to but not including `end` is of this timeline.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Span {
    /// The timeline.
    pub timeline: Timeline,
    /// Where it begins; [`Lsn::INVALID`] for the first.
    pub begin: Lsn,
    /// Where it was left; `None` for the timeline itself, which goes on.
    pub end: Option<Lsn>,
}

impl TimelineHistory {
    /// The history of a timeline without a past, such as 1: it has no file.
    #[must_use]
    pub const fn without_past(timeline: Timeline) -> Self {
        Self { timeline, switches: Vec::new() }
    }

    /// Reads the file of `timeline`.
    pub fn parse(timeline: Timeline, text: &str) -> Result<Self, FormatError> {
        let mut switches: Vec<Switch> = Vec::new();
        for (index, line) in text.lines().enumerate() {
            let line = line.trim_start();
            if line.is_empty() || line.starts_with('#') {
                continue;
            }
            let bad = |reason: &str| FormatError::line(WHAT, index, reason);
            let (tli, rest) =
                line.split_once([' ', '\t']).ok_or_else(|| bad("a line is a timeline, an LSN and a reason"))?;
            let rest = rest.trim_start();
            let (lsn, reason) = rest.split_once([' ', '\t']).unwrap_or((rest.trim_end(), ""));
            let tli: Timeline = tli.parse().map_err(|_| bad("it must start with the number of a timeline"))?;
            let lsn = lsn.parse().map_err(|_| bad("the second field must be the LSN of the switch"))?;
            if tli.0 == 0 || switches.last().is_some_and(|last| tli <= last.timeline) {
                return Err(bad("timelines must be in increasing order"));
            }
            switches.push(Switch { timeline: tli, lsn, reason: reason.trim_end().to_owned() });
        }
        if let Some(last) = switches.last().filter(|last| last.timeline >= timeline) {
            return Err(FormatError::field(
                WHAT,
                "timeline",
                last.timeline,
                format!("it is not before timeline {timeline}, whose history this is"),
            ));
        }
        Ok(Self { timeline, switches })
    }

    /// The text of the file.
    #[must_use]
    pub fn render(&self) -> String {
        let mut text = String::new();
        for (index, switch) in self.switches.iter().enumerate() {
            let gap = if index == 0 { "" } else { "\n" };
            // Writing to a string cannot fail.
            let _ = writeln!(text, "{gap}{}\t{}\t{}", switch.timeline, switch.lsn, switch.reason);
        }
        text
    }

    /// The spans of this history, oldest first; the last one is of the timeline itself.
    #[must_use]
    pub fn ancestry(&self) -> Vec<Span> {
        let mut begin = Lsn::INVALID;
        let mut spans = Vec::with_capacity(self.switches.len() + 1);
        for switch in &self.switches {
            spans.push(Span { timeline: switch.timeline, begin, end: Some(switch.lsn) });
            begin = switch.lsn;
        }
        spans.push(Span { timeline: self.timeline, begin, end: None });
        spans
    }

    /// Whether the byte of WAL at `lsn` on `timeline` is part of this history (`tliOfPointInHistory`).
    #[must_use]
    pub fn is_on_history(&self, lsn: Lsn, timeline: Timeline) -> bool {
        self.timeline_of(lsn) == timeline
    }

    /// The timeline of this history that has the byte of WAL at `lsn` (`tliOfPointInHistory`).
    #[must_use]
    pub fn timeline_of(&self, lsn: Lsn) -> Timeline {
        self.switches.iter().find(|switch| lsn < switch.lsn).map_or(self.timeline, |switch| switch.timeline)
    }

    /// Where this history left `timeline` (`tliSwitchPoint`); `None` when it did not, or never was on it.
    #[must_use]
    pub fn switch_point(&self, timeline: Timeline) -> Option<Lsn> {
        self.switches.iter().find(|switch| switch.timeline == timeline).map(|switch| switch.lsn)
    }

    /// Whether a backup that ended at `lsn` (exclusive) on `timeline` can be followed into this history.
    #[must_use]
    pub fn continues_from(&self, lsn: Lsn, timeline: Timeline) -> bool {
        timeline == self.timeline || self.switch_point(timeline).is_some_and(|switch| lsn <= switch)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const TEXT: &str = "# a comment\n\n1\t0/3000060\tno recovery target specified\n\n2\t0/5000000\tbefore 2026-11-20\n";

    #[test]
    fn good() {
        let history = TimelineHistory::parse(Timeline(5), TEXT).unwrap();
        assert_eq!(history.switches[0].reason, "no recovery target specified");
        let span =
            |tli, begin, end: Option<u64>| Span { timeline: Timeline(tli), begin: Lsn(begin), end: end.map(Lsn) };
        assert_eq!(
            history.ancestry(),
            [span(1, 0, Some(0x300_0060)), span(2, 0x300_0060, Some(0x500_0000)), span(5, 0x500_0000, None)]
        );
        assert_eq!(history.timeline_of(Lsn(0x300_005F)), Timeline(1));
        assert_eq!(history.timeline_of(Lsn(0x300_0060)), Timeline(2));
        assert!(history.is_on_history(Lsn(u64::MAX), Timeline(5)));
        assert!(!history.is_on_history(Lsn(0x300_0060), Timeline(1)));
        assert!(history.continues_from(Lsn(0x300_0060), Timeline(1)));
        assert!(!history.continues_from(Lsn(0x300_0061), Timeline(1)));
        assert!(!history.continues_from(Lsn(1), Timeline(4)));
        let alone = TimelineHistory::without_past(Timeline(1));
        assert_eq!(alone.ancestry(), [span(1, 0, None)]);
    }

    #[test]
    fn bad() {
        for text in
            ["x\t0/1\t", "1", "1\t", "1\tzero\tx", "2\t0/1\tx\n1\t0/2\tx", "5\t0/1\tx", "7\t0/1\tx", "0\t0/1\tx"]
        {
            assert!(TimelineHistory::parse(Timeline(5), text).is_err(), "{text:?}");
        }
    }

    proptest! {
        #[test]
        fn round_trip(steps in proptest::collection::vec((1u32..100, any::<u64>(), "[a-zA-Z0-9][a-zA-Z0-9 ]{0,20}[a-z]"), 0..6)) {
            let mut timeline = 0;
            let switches: Vec<_> = steps.into_iter().map(|(step, lsn, reason)| {
                timeline += step;
                Switch { timeline: Timeline(timeline), lsn: Lsn(lsn), reason }
            }).collect();
            let history = TimelineHistory { timeline: Timeline(timeline + 1), switches };
            prop_assert_eq!(TimelineHistory::parse(history.timeline, &history.render()), Ok(history));
        }

        #[test]
        fn never_panics(text in "([0-9]{0,3}[\t ][0-9A-F/]{0,8}[\t ]?.*\n){0,4}", timeline: u32) {
            let _ = TimelineHistory::parse(Timeline(timeline), &text);
        }
    }
}
