//! Which transactions were open at a place, from the WAL before it.
//!
//! The index tells of a transaction that ended later where it began only when it did much. So the WAL itself is read,
//! back to where the server noted which ones ran (`XLOG_RUNNING_XACTS`, `storage/ipc/standby.c`: every 15 seconds when
//! there is WAL, and at checkpoints), or to where it was started.

use super::route::Route;
use crate::wal::archive::segno_of;
use crate::{Context, EngineError};
use pg_format::{Lsn, SegmentName};
use pg_wal::index::XactEndFacts;
use pg_wal::{Event, Expected, Rmgr, SegmentReader, Xid};
use std::collections::{BTreeSet, HashSet, VecDeque};

/// So many segments are read at most.
const SEGMENTS_MAX: usize = 16;
/// The end of a transaction that begins so near to the end of a segment may cross into the next one.
const CROSSING: u64 = 64 << 10;

/// The transactions that were open at a place and had written something.
#[derive(Debug, Default)]
pub(super) struct OpenAt {
    /// Their IDs, and those of subtransactions.
    pub(super) xids: BTreeSet<Xid>,
    /// Whether these are all.
    pub(super) all: bool,
}

/// Ends of transactions that reading segments one by one may miss.
#[derive(Debug, Default)]
pub(super) struct Crossing(VecDeque<(Lsn, Vec<Xid>)>);

impl Crossing {
    /// Notes an end before the place, in the order of the WAL.
    pub(super) fn note(&mut self, xid: Xid, end: &XactEndFacts, segment_size: u64) {
        if segment_size - end.lsn.0 % segment_size > CROSSING {
            return;
        }
        let back = segment_size * (SEGMENTS_MAX as u64 + 1);
        while self.0.front().is_some_and(|(lsn, _)| lsn.0 + back < end.lsn.0) {
            self.0.pop_front();
        }
        self.0.push_back((end.lsn, [&[xid][..], &end.subxacts[..]].concat()));
    }
}

/// What a segment says.
#[derive(Debug, Default)]
struct Said {
    alive: HashSet<Xid>,
    ended: HashSet<Xid>,
    /// It begins with nothing running, or with what the server noted.
    whole: bool,
}

/// Finds the transactions that were open before the record at `cut`.
pub(super) async fn open_at(
    ctx: &Context,
    route: &Route,
    cut: Lsn,
    crossing: &Crossing,
) -> Result<OpenAt, EngineError> {
    let size = route.archive.segment_size();
    let last = Lsn(cut.0.saturating_sub(1)).segment_no(size).0;
    let number = |name: &SegmentName| segno_of(*name, size).map_or(u64::MAX, |segno| segno.0);
    let before = route.segments.iter().rev().skip_while(|name| number(name) > last);
    let mut all = Said::default();
    for (back, name) in before.take(SEGMENTS_MAX).enumerate() {
        if number(name) != last.saturating_sub(back as u64) {
            break;
        }
        let plain = match ctx.or_cancel(route.archive.read_plain(*name)).await? {
            Ok(plain) => plain,
            Err(EngineError::Repo(error)) if error.is_damage() || error.is_not_found() => break,
            Err(error) => return Err(error),
        };
        let Some(said) = read(&plain, cut) else { break };
        all.alive.extend(said.alive);
        all.ended.extend(said.ended);
        if said.whole {
            all.whole = true;
            break;
        }
    }
    all.ended.extend(crossing.0.iter().flat_map(|(_, xids)| xids));
    let xids = all.alive.difference(&all.ended).copied().collect();
    Ok(OpenAt { xids, all: all.whole })
}

/// What the records of a segment before `cut` say; `None` when it is no segment.
fn read(plain: &[u8], cut: Lsn) -> Option<Said> {
    let mut reader = SegmentReader::open(plain, &Expected::default()).ok()?;
    let mut said = Said::default();
    while let Some(record) = reader.next_record() {
        if record.lsn >= cut {
            break;
        }
        if record.header.xid != 0 {
            said.alive.insert(record.header.xid);
        }
        if !matches!(record.rmgr, Rmgr::Transaction | Rmgr::Standby | Rmgr::Xlog) {
            continue;
        }
        match Event::of(&record) {
            Ok(Event::Commit(end) | Event::Abort(end)) => {
                said.ended.insert(end.xid);
                said.ended.extend(end.subxacts);
            }
            // Whoever ended before it may be in it still, so what ended stays ended. Subtransactions may be left out of it.
            Ok(Event::RunningXacts { xids, .. }) => {
                said.alive.extend(xids);
                said.whole = true;
            }
            // Nothing but prepared transactions survives that, and those the index tells.
            Ok(Event::Checkpoint(checkpoint)) if checkpoint.shutdown => {
                said = Said { whole: true, ..Said::default() };
            }
            Ok(Event::EndOfRecovery { .. }) => said = Said { whole: true, ..Said::default() },
            _ => {}
        }
    }
    Some(said)
}
