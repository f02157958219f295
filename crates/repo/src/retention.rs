//! Retention: which backups are kept, by what rule. Pure: facts in, verdicts out.

use crate::{BackupId, Pin};
use jiff::Timestamp;
use serde::Serialize;

/// Which backups are to be kept. A backup that no rule keeps is expired.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RetentionPolicy {
    /// The newest so many whole backups, and whatever is newer than the oldest of them.
    pub keep_last: u32,
}

/// A backup, as far as retention asks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Candidate {
    /// The backup.
    pub backup: BackupId,
    /// How it is.
    pub state: BackupState,
}

/// How a backup is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum BackupState {
    /// Its manifest can be read, and no page failed its check.
    Whole,
    /// Pages of the cluster failed their check when it was made.
    DamagedPages,
    /// Its manifest cannot be read.
    Unreadable,
}

/// Why a backup is kept.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(tag = "why", rename_all = "kebab-case")]
pub enum KeepReason {
    /// It is one of the newest whole ones; 1 is the newest.
    Last {
        /// Its rank.
        rank: u32,
    },
    /// It does not count, but a backup that does is older.
    NewerThanKept,
    /// It is pinned.
    Pinned {
        /// Until when; for ever when absent.
        until: Option<Timestamp>,
        /// Why.
        reason: String,
    },
    /// What it is cannot be read; a human decides.
    Unreadable,
}

/// What becomes of a backup: kept when there is a reason.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Verdict {
    /// The backup.
    pub backup: BackupId,
    /// Why it is kept; expired when there is none.
    pub keep: Vec<KeepReason>,
}

/// Applies a policy: a verdict for each backup, oldest first. Only whole backups count towards a number, so that backups
/// of a failing disk do not push out the good ones before them.
pub fn plan_expire(backups: &[Candidate], pins: &[Pin], policy: &RetentionPolicy, now: Timestamp) -> Vec<Verdict> {
    let mut sorted = backups.to_vec();
    sorted.sort_by_key(|candidate| std::cmp::Reverse(candidate.backup));
    let mut whole = 0;
    let mut verdicts: Vec<Verdict> = Vec::new();
    for Candidate { backup, state } in sorted {
        let mut keep = Vec::new();
        if state == BackupState::Whole && whole < policy.keep_last {
            whole += 1;
            keep.push(KeepReason::Last { rank: whole });
        } else if whole < policy.keep_last && state == BackupState::DamagedPages {
            keep.push(KeepReason::NewerThanKept);
        }
        if state == BackupState::Unreadable {
            keep.push(KeepReason::Unreadable);
        }
        keep.extend(
            pins.iter()
                .filter(|pin| pin.backup == backup && pin.holds(now))
                .map(|pin| KeepReason::Pinned { until: pin.until, reason: pin.reason.clone() }),
        );
        verdicts.push(Verdict { backup, keep });
    }
    verdicts.reverse();
    verdicts
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(second: i64) -> Timestamp {
        Timestamp::from_second(1_800_000_000 + second).unwrap()
    }

    /// Backups as letters, the oldest first: `w` whole, `d` damaged pages, `u` unreadable. Expected are the letters of
    /// what is kept, `.` for what is expired.
    fn check(backups: &str, keep_last: u32, pinned: &[(usize, Option<i64>)], expect: &str) {
        let candidates: Vec<Candidate> = backups
            .chars()
            .enumerate()
            .map(|(index, letter)| Candidate {
                backup: BackupId::at(at(index as i64)),
                state: match letter {
                    'w' => BackupState::Whole,
                    'd' => BackupState::DamagedPages,
                    _ => BackupState::Unreadable,
                },
            })
            .collect();
        let pins: Vec<Pin> = pinned
            .iter()
            .map(|(index, until)| Pin {
                backup: candidates[*index].backup,
                until: until.map(at),
                reason: String::new(),
            })
            .collect();
        let mut shuffled = candidates.clone();
        shuffled.rotate_left(candidates.len() / 2);
        let verdicts = plan_expire(&shuffled, &pins, &RetentionPolicy { keep_last }, at(1000));
        let found: String = verdicts
            .iter()
            .zip(backups.chars())
            .map(|(verdict, letter)| if verdict.keep.is_empty() { '.' } else { letter })
            .collect();
        assert_eq!(found, expect, "{backups} keep {keep_last} pins {pinned:?}");
        assert!(verdicts.iter().zip(&candidates).all(|(v, c)| v.backup == c.backup), "oldest first");
    }

    #[test]
    fn the_last_whole_ones_are_kept_and_what_is_pinned() {
        check("", 3, &[], "");
        check("www", 3, &[], "www");
        check("www", 5, &[], "www");
        check("wwwww", 2, &[], "...ww");
        check("wwwww", 1, &[], "....w");
        // Backups with damaged pages do not count; they stay as long as an older one counts.
        check("wwwdd", 2, &[], ".wwdd");
        check("wdwdw", 2, &[], "..wdw");
        check("ddd", 1, &[], "ddd");
        // What cannot be read is never expired by itself, and does not count.
        check("uwwuw", 2, &[], "u.wuw");
        check("uuu", 1, &[], "uuu");
        // Pins hold until their time.
        check("wwwww", 1, &[(0, None)], "w...w");
        check("wwwww", 1, &[(0, Some(999)), (1, Some(1000)), (2, Some(1001))], "..w.w");
        check("wwwww", 2, &[(4, None)], "...ww");
    }

    #[test]
    fn the_reasons_are_said() {
        let candidates: Vec<Candidate> =
            (0..2).map(|n| Candidate { backup: BackupId::at(at(n)), state: BackupState::Whole }).collect();
        let pin = Pin { backup: candidates[1].backup, until: None, reason: "audit".into() };
        let verdicts = plan_expire(&candidates, &[pin], &RetentionPolicy { keep_last: 1 }, at(9));
        assert_eq!(
            verdicts[1].keep,
            [KeepReason::Last { rank: 1 }, KeepReason::Pinned { until: None, reason: "audit".into() }]
        );
    }
}
