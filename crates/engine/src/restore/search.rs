//! Searching the WAL for a restore point or a transaction.

use crate::text;
use crate::wal::archive::WalArchive;
use crate::{Context, EngineError, Unit};
use futures::{StreamExt, stream};
use pg_format::{Lsn, SegmentName};
use pg_wal::{Event, Joined, Joiner, SegmentInfo, SegmentReader};
use repo::wal::{RestorePoint, WalFacts};
use std::sync::Arc;

/// Names that are listed when one is not found.
const SHOWN: usize = 10;
/// Segments decoded at the same time.
const AT_ONCE: usize = 3;

/// A search for a restore point by its name.
pub(super) struct PointSearch<'a> {
    name: &'a str,
    found: Vec<(SegmentName, RestorePoint)>,
    /// One of that name that lies before the end of every backup.
    too_early: Option<RestorePoint>,
    others: Vec<RestorePoint>,
}

impl<'a> PointSearch<'a> {
    pub(super) fn new(name: &'a str) -> Self {
        Self { name, found: Vec::new(), too_early: None, others: Vec::new() }
    }

    /// Notes the restore points of a segment; `after` is where the backup becomes consistent.
    pub(super) fn look_at(&mut self, segment: SegmentName, facts: &WalFacts, after: Lsn) {
        for point in &facts.restore_points {
            if point.name != self.name {
                self.others.push(point.clone());
            } else if point.lsn < after {
                self.too_early = Some(point.clone());
            } else {
                self.found.push((segment, point.clone()));
            }
        }
    }

    /// The restore point, when it is there. A name that was used twice is refused: recovery would stop at the first.
    pub(super) fn found(&self) -> Result<Option<(SegmentName, RestorePoint)>, EngineError> {
        match self.found.as_slice() {
            [] => Ok(None),
            [one] => Ok(Some(one.clone())),
            several => {
                let places: Vec<String> =
                    several.iter().map(|(_, point)| format!("{} ({})", point.lsn, text::time(point.time))).collect();
                Err(EngineError::refused(
                    format!(
                        "there are {} restore points named {:?}: at {}",
                        several.len(),
                        self.name,
                        places.join(", ")
                    ),
                    "say which one by its LSN: `--lsn`",
                ))
            }
        }
    }

    /// The error that says which restore points there are. `missing` is a segment that is missing, with others beyond.
    pub(super) fn not_found(mut self, missing: Option<SegmentName>) -> EngineError {
        if let Some(point) = self.too_early {
            return EngineError::refused(
                format!(
                    "restore point {:?} (LSN {}, {}) lies before the end of the first backup that could be used",
                    self.name,
                    point.lsn,
                    text::time(point.time)
                ),
                "choose a later target",
            );
        }
        // The nearest in spelling first, then the latest.
        let likeness = |other: &str| self.name.bytes().zip(other.bytes()).take_while(|(a, b)| a == b).count();
        self.others.sort_by_key(|point| std::cmp::Reverse((likeness(&point.name), point.lsn)));
        self.others.dedup_by(|a, b| a.name == b.name && a.lsn == b.lsn);
        let known: Vec<String> = self
            .others
            .iter()
            .take(SHOWN)
            .map(|point| format!("{:?} ({})", point.name, text::time(point.time)))
            .collect();
        let gap = missing.map(|name| format!("; WAL is missing from {name} on, and what it held is not known"));
        EngineError::not_found(
            format!("there is no restore point {:?} in the WAL after a backup{}", self.name, gap.unwrap_or_default()),
            if known.is_empty() {
                "there are no restore points at all".into()
            } else {
                format!("there are: {}", known.join(", "))
            },
        )
    }
}

/// The end of a transaction.
#[derive(Debug, Clone, Copy)]
pub(super) struct FoundTransaction {
    /// The segment in which its record ends.
    pub(super) segment: SegmentName,
    /// Where its record begins.
    pub(super) lsn: Lsn,
    /// Where its record ends.
    pub(super) end_lsn: Lsn,
}

/// What reading one segment gives.
struct Scanned {
    found: Option<(Lsn, Lsn)>,
    info: SegmentInfo,
    head: Option<pg_wal::Head>,
    tail: Option<pg_wal::Tail>,
    drops_earlier_tail: bool,
}

fn ends(record: &pg_wal::Record<'_>, xid: u32) -> bool {
    match Event::of(record) {
        // Recovery compares with the transaction's own ID, not with those of subtransactions.
        Ok(Event::Commit(end) | Event::Abort(end)) => end.xid == xid,
        _ => false,
    }
}

fn scan(plain: &[u8], xid: u32) -> Result<Scanned, pg_wal::WalError> {
    let mut reader = SegmentReader::open(plain, &pg_wal::Expected::default())?;
    let mut found = None;
    while let Some(record) = reader.next_record() {
        if record.rmgr == pg_wal::Rmgr::Transaction && ends(&record, xid) {
            found.get_or_insert((record.lsn, record.end_lsn));
        }
    }
    let (info, drops_earlier_tail) = (*reader.info(), reader.drops_earlier_tail());
    let (head, tail) = reader.into_fragments();
    Ok(Scanned { found, info, head, tail, drops_earlier_tail })
}

/// Looks for the commit or abort of a transaction in these segments, which follow each other. The first one counts, as
/// in recovery.
pub(super) async fn find_transaction(
    ctx: &Context,
    archive: &WalArchive,
    names: &[SegmentName],
    xid: u32,
) -> Result<Option<FoundTransaction>, EngineError> {
    ctx.progress.phase("looking for the transaction in the WAL", Some(names.len() as u64), Unit::Items);
    let shared = Arc::new(archive.clone());
    let read = |name: SegmentName| {
        let (archive, path) = (shared.clone(), archive.segment_path(name));
        async move {
            let path = path?;
            let scanned = tokio::spawn(async move {
                let plain = archive.read_plain(name).await?;
                let damaged = |reason| EngineError::from(repo::RepoError::Damaged { path, reason });
                scan(&plain, xid).map_err(|error| damaged(error.to_string()))
            });
            let scanned = scanned.await.map_err(|error| EngineError::Failed {
                reason: format!("reading {name} ended unexpectedly: {error}"),
                hint: None,
            })?;
            Ok::<_, EngineError>((name, scanned?))
        }
    };
    let mut reads = stream::iter(names.iter().copied()).map(read).buffered(AT_ONCE);
    let mut found = None;
    let mut open: Option<Joiner> = None;
    while let Some(next) = ctx.or_cancel(reads.next()).await? {
        let (segment, scanned) = next?;
        ctx.progress.advance(1);
        if let Some(joiner) = &mut open {
            let head = if scanned.drops_earlier_tail { None } else { scanned.head.as_ref() };
            if joiner.push(&scanned.info, head) == Ok(Joined::Whole)
                && let Some(record) = joiner.record().filter(|record| ends(record, xid))
            {
                found.get_or_insert(FoundTransaction { segment, lsn: record.lsn, end_lsn: record.end_lsn });
            }
        }
        if let Some((lsn, end_lsn)) = scanned.found {
            found.get_or_insert(FoundTransaction { segment, lsn, end_lsn });
        }
        if let Some(tail) = scanned.tail {
            open = Some(Joiner::new(tail, &scanned.info));
        }
    }
    Ok(found)
}
