//! What must be in a recovered cluster, judged from the ledger.
//!
//! Commits become visible in the order of their commit records. A client knows its commit record's place only within
//! bounds: between the WAL position before COMMIT and the one after its acknowledgement. So for a target each row
//! must be there, must not be there, or may be either, and rows must appear in the order of the log.

use super::ledger::{Entry, Ledger, PAYLOAD_SQL};
use crate::pg::Cluster;
use anyhow::{Context, Result, bail};
use std::collections::{HashMap, HashSet};

/// Up to where a cluster was recovered.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Target {
    /// All there is.
    End,
    /// `recovery_target_lsn`, inclusive or not.
    Lsn(u64),
    /// `recovery_target_time`, microseconds since 1970.
    TimeUs(i64),
    /// `recovery_target_xid`, inclusive.
    Xid(u64),
    /// `recovery_target_xid`, exclusive.
    BeforeXid(u64),
}

/// What a check found.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Verdict {
    /// Rows of the ledger's table in the cluster.
    pub present: usize,
    /// Rows that had to be there, and are.
    pub required: usize,
    /// Acknowledged rows that had to be absent, and are.
    pub excluded: usize,
    /// Rows that could be either: not acknowledged, or at the very edge of the target.
    pub uncertain: usize,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Fate {
    Required,
    Excluded,
    Either,
}

impl Ledger {
    /// Every acknowledged row is in the cluster, and none that no client tried to write.
    ///
    /// # Errors
    /// Names the rows that are wrong.
    pub fn verify_all(&self, cluster: &Cluster) -> Result<Verdict> {
        self.verify_before(cluster, Target::End)
    }

    /// Exactly what was committed up to the target is in the cluster.
    ///
    /// # Errors
    /// Names the rows that are wrong.
    pub fn verify_before(&self, cluster: &Cluster, target: Target) -> Result<Verdict> {
        let present = read_rows(cluster)?;
        let verdict = self.judge(&present, target)?;
        check_consistency(cluster)?;
        Ok(verdict)
    }

    /// The same for rows that were read already, as (client, number).
    ///
    /// # Errors
    /// Names the rows that are wrong.
    pub fn judge(&self, present: &HashSet<(u32, u64)>, target: Target) -> Result<Verdict> {
        let fates = self.fates(target)?;
        let mut verdict = Verdict { present: present.len(), required: 0, excluded: 0, uncertain: 0 };
        let mut wrong = Vec::new();
        for (entry, fate) in self.entries.iter().zip(&fates) {
            let here = present.contains(&(entry.client, entry.number));
            match (fate, here) {
                (Fate::Required, true) => verdict.required += 1,
                (Fate::Excluded, false) => verdict.excluded += 1,
                (Fate::Either, _) => verdict.uncertain += 1,
                (Fate::Required, false) => wrong.push(format!("missing: {entry:?}")),
                (Fate::Excluded, true) => wrong.push(format!("after the target, yet there: {entry:?}")),
            }
        }
        let tried: HashSet<(u32, u64)> = self.entries.iter().map(|entry| (entry.client, entry.number)).collect();
        wrong.extend(present.difference(&tried).map(|row| format!("nobody wrote {row:?}")));
        wrong.extend(self.out_of_order(present));
        if !wrong.is_empty() {
            let shown = wrong.iter().take(10).cloned().collect::<Vec<_>>().join("\n");
            bail!("{} rows are wrong for target {target:?} ({} present):\n{shown}", wrong.len(), present.len());
        }
        Ok(verdict)
    }

    fn fates(&self, target: Target) -> Result<Vec<Fate>> {
        let by_lsn = |entry: &Entry, present_up_to: u64, absent_from: u64| {
            if entry.lsn_before.is_some_and(|lsn| lsn > absent_from) {
                Fate::Excluded
            } else if entry.acknowledged && entry.lsn_after.is_some_and(|lsn| lsn <= present_up_to) {
                Fate::Required
            } else {
                Fate::Either
            }
        };
        let find_xid = |xid: u64| {
            let found = self.entries.iter().find(|entry| entry.xid == Some(xid));
            found.with_context(|| format!("no client noted transaction {xid}"))
        };
        let fates = match target {
            Target::End => {
                let fate = |entry: &Entry| if entry.acknowledged { Fate::Required } else { Fate::Either };
                self.entries.iter().map(fate).collect()
            }
            Target::Lsn(lsn) => self.entries.iter().map(|entry| by_lsn(entry, lsn, lsn)).collect(),
            Target::Xid(xid) | Target::BeforeXid(xid) => {
                let edge = find_xid(xid)?;
                let from = edge.lsn_before.unwrap_or(0);
                let to = edge.lsn_after.unwrap_or(u64::MAX);
                let own = if matches!(target, Target::Xid(_)) { Fate::Required } else { Fate::Excluded };
                let fate = |entry: &Entry| if entry.xid == Some(xid) { own } else { by_lsn(entry, from, to) };
                self.entries.iter().map(fate).collect()
            }
            Target::TimeUs(time) => self.fates_for_time(time),
        };
        Ok(fates)
    }

    /// Replay stops at the first commit record whose time is later than the target
    /// (`recoveryStopsBefore` in `src/backend/access/transam/xlogrecovery.c`), and times are not in the log's order:
    /// what lies behind such a record is absent even when its own time is earlier.
    fn fates_for_time(&self, time: i64) -> Vec<Fate> {
        let stops = |entry: &&Entry| entry.time_after_us.is_none_or(|after| after > time);
        let first_possible_stop =
            self.entries.iter().filter(stops).filter_map(|entry| entry.lsn_before).min().unwrap_or(u64::MAX);
        let fate = |entry: &Entry| {
            if entry.time_before_us.is_some_and(|before| before > time) {
                Fate::Excluded
            } else if entry.acknowledged
                && entry.time_after_us.is_some_and(|after| after <= time)
                && entry.lsn_after.is_some_and(|lsn| lsn <= first_possible_stop)
            {
                Fate::Required
            } else {
                Fate::Either
            }
        };
        self.entries.iter().map(fate).collect()
    }

    /// An absent acknowledged row whose commit surely came before that of a present one.
    fn out_of_order(&self, present: &HashSet<(u32, u64)>) -> Vec<String> {
        let is_present = |entry: &&Entry| present.contains(&(entry.client, entry.number));
        let Some(last) = self.entries.iter().filter(is_present).filter_map(|entry| entry.lsn_before).max() else {
            return Vec::new();
        };
        let lost =
            |entry: &&Entry| !is_present(entry) && entry.acknowledged && entry.lsn_after.is_some_and(|lsn| lsn < last);
        let lost = self.entries.iter().filter(lost);
        lost.map(|entry| format!("missing, though a later commit is there: {entry:?}")).collect()
    }
}

fn read_rows(cluster: &Cluster) -> Result<HashSet<(u32, u64)>> {
    let text = cluster.sql("SELECT client, number FROM ledger")?;
    let parse = |line: &str| -> Option<(u32, u64)> {
        let (client, number) = line.split_once('|')?;
        Some((client.parse().ok()?, number.parse().ok()?))
    };
    text.lines().map(|line| parse(line).with_context(|| format!("not a ledger row: {line}"))).collect()
}

/// Transactions are whole, rows are unharmed, and every index agrees with the table.
fn check_consistency(cluster: &Cluster) -> Result<()> {
    let answers: HashMap<&str, String> = [
        ("rows with a wrong payload", format!("SELECT count(*) FROM ledger WHERE payload <> {PAYLOAD_SQL}")),
        (
            "clients whose total does not agree with their rows",
            "SELECT count(*) FROM (SELECT client, count(*) AS rows FROM ledger GROUP BY client) r
             FULL JOIN ledger_total t USING (client) WHERE t.rows IS DISTINCT FROM r.rows"
                .to_owned(),
        ),
        (
            "rows by which index and table differ",
            "SET enable_indexscan = off; SET enable_indexonlyscan = off; SET enable_bitmapscan = off;
             SELECT count(*) FROM ledger WHERE number > 0 \\gset by_table_
             RESET enable_indexscan; RESET enable_indexonlyscan; RESET enable_bitmapscan; SET enable_seqscan = off;
             SELECT count(*) - :by_table_count FROM ledger WHERE number > 0"
                .to_owned(),
        ),
    ]
    .into_iter()
    .map(|(name, sql)| Ok((name, cluster.sql(&sql)?)))
    .collect::<Result<_>>()?;
    let bad: Vec<String> =
        answers.iter().filter(|(_, answer)| *answer != "0").map(|(name, answer)| format!("{answer} {name}")).collect();
    if !bad.is_empty() {
        bail!("the ledger's tables are inconsistent: {}", bad.join(", "));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn entry(number: u64, lsn: (u64, u64), time: (i64, i64)) -> Entry {
        Entry {
            client: 0,
            number,
            acknowledged: true,
            xid: Some(100 + number),
            lsn_before: Some(lsn.0),
            lsn_after: Some(lsn.1),
            time_before_us: Some(time.0),
            time_after_us: Some(time.1),
        }
    }

    fn ledger() -> Ledger {
        let mut uncertain = entry(4, (40, 50), (4000, 4500));
        uncertain.acknowledged = false;
        uncertain.lsn_after = None;
        uncertain.time_after_us = None;
        Ledger {
            entries: vec![
                entry(1, (10, 20), (1000, 1500)),
                entry(2, (20, 30), (2000, 2500)),
                entry(3, (30, 40), (3000, 3500)),
                uncertain,
            ],
        }
    }

    fn check(present: &[u64], target: Target) -> Result<Verdict> {
        ledger().judge(&present.iter().map(|number| (0, *number)).collect(), target)
    }

    #[test]
    fn the_end_needs_every_acknowledged_row() {
        assert!(check(&[1, 2, 3], Target::End).is_ok());
        assert!(check(&[1, 2, 3, 4], Target::End).is_ok());
        assert!(check(&[1, 2], Target::End).unwrap_err().to_string().contains("missing"));
        assert!(check(&[1, 2, 3, 9], Target::End).unwrap_err().to_string().contains("nobody wrote"));
    }

    #[test]
    fn a_position_divides_the_rows() {
        assert!(check(&[1, 2], Target::Lsn(30)).is_ok());
        assert!(check(&[1, 2, 3], Target::Lsn(30)).is_ok(), "a commit that may begin at the target may be there");
        assert!(check(&[1], Target::Lsn(30)).is_err());
        assert!(check(&[1, 2, 3], Target::Lsn(29)).is_err());
    }

    #[test]
    fn a_transaction_divides_the_rows() {
        assert!(check(&[1, 2], Target::Xid(102)).is_ok());
        assert!(check(&[1], Target::Xid(102)).is_err());
        assert!(check(&[1], Target::BeforeXid(102)).is_ok());
        assert!(check(&[1, 2], Target::BeforeXid(102)).is_err());
        assert!(check(&[1], Target::Xid(999)).is_err());
    }

    #[test]
    fn a_time_divides_the_rows_in_the_order_of_the_log() {
        assert!(check(&[1, 2], Target::TimeUs(2600)).is_ok());
        assert!(check(&[1], Target::TimeUs(2600)).is_err());
        assert!(check(&[1, 2, 3], Target::TimeUs(2600)).is_err());
        // Row 2's commit record may carry a time after the target, so that replay stops before row 3.
        let mut disordered = ledger();
        disordered.entries[1].time_after_us = Some(9000);
        let present = HashSet::from([(0, 1)]);
        assert!(disordered.judge(&present, Target::TimeUs(3600)).is_ok());
    }

    #[test]
    fn a_hole_is_found() {
        let error = check(&[2], Target::TimeUs(1400)).unwrap_err().to_string();
        assert!(error.contains("a later commit is there") || error.contains("after the target"), "{error}");
    }
}
