//! Where a base backup becomes consistent, and when that was: said by the best witness there is.

use super::input::{Visitor, Wanted};
use super::survey::{Known, Survey, wal_name};
use crate::EngineError;
use crate::tar::{Member, MemberKind};
use crate::wal::archive::WalArchive;
use jiff::Timestamp;
use pg_format::{BackupLabel, Lsn, PgMajor, SegmentName, WalFileName};
use pg_wal::{Event, Expected, SegmentReader};
use repo::wal::{read_wal_file, timestamp};

/// No segment is longer.
const SEGMENT_MAX: u64 = 1 << 30;

/// Where it ends, and who says so.
pub(super) struct Stop {
    pub(super) lsn: Lsn,
    pub(super) said_by: &'static str,
}

/// `backup_manifest` says it; else a backup history file, in the backup or in the archive; else the record in the WAL
/// that the backup brings; else the operator.
pub(super) async fn find(
    known: &Known,
    survey: &Survey,
    archive: Option<&WalArchive>,
    given: Option<Lsn>,
    in_wal: Option<Lsn>,
) -> Result<Stop, EngineError> {
    let start = known.label.start_lsn;
    let timeline = known.label.start_segment.timeline;
    let ranges = known.manifest.as_ref().map(|manifest| manifest.wal_ranges.as_slice()).unwrap_or_default();
    if let Some(range) = ranges.first() {
        if ranges.len() > 1 || range.timeline != timeline {
            return Err(EngineError::refused(
                "backup_manifest has WAL of more than one timeline: the server changed over during the backup",
                "such a backup cannot be imported; make another one",
            ));
        }
        if range.start_lsn != start {
            return Err(EngineError::refused(
                format!("backup_manifest begins at {}, backup_label at {start}", range.start_lsn),
                "they are not of the same base backup",
            ));
        }
        return Ok(Stop { lsn: range.end_lsn, said_by: "backup_manifest" });
    }
    for content in survey.histories() {
        if let Some(lsn) = stop_of(content, start) {
            return Ok(Stop { lsn, said_by: "the backup history file in pg_wal" });
        }
    }
    if let Some(archive) = archive {
        let backups = archive.timeline(timeline).map(|wal| wal.backups.as_slice()).unwrap_or_default();
        for (segment, offset) in backups.iter().filter(|(segment, _)| *segment == known.label.start_segment) {
            let cluster = archive.cluster();
            let name = WalFileName::BackupHistory(*segment, *offset).to_string();
            let path = cluster.name().wal_file(archive.system_id(), timeline, &name)?;
            let repository = cluster.repository();
            let content = read_wal_file(&**repository.store(), repository.keys(), &path).await?;
            if let Some(lsn) = stop_of(&content, start) {
                return Ok(Stop { lsn, said_by: "the backup history file in the archive" });
            }
        }
    }
    if let Some(lsn) = in_wal {
        return Ok(Stop { lsn, said_by: "the end-of-backup record in pg_wal" });
    }
    match given {
        Some(lsn) if lsn > start => Ok(Stop { lsn, said_by: "the operator" }),
        Some(lsn) => Err(EngineError::refused(
            format!("the stop LSN {lsn} lies before the start LSN {start}"),
            "give the end that pg_backup_stop or pg_basebackup -v said",
        )),
        None => Err(EngineError::refused(
            "where this base backup becomes consistent is not known: it has neither backup_manifest nor a backup history \
             file, and no end-of-backup record is in its pg_wal",
            "archive the WAL it needs first (the history file comes with it), or give `--stop-lsn` as pg_basebackup -v \
             said it (\"write-ahead log end point\")",
        )),
    }
}

/// The stop LSN in a backup history file of this very backup.
fn stop_of(content: &[u8], start: Lsn) -> Option<Lsn> {
    let history = BackupLabel::parse(&String::from_utf8_lossy(content)).ok()?;
    (history.start_lsn == start).then_some(history.stop?.0)
}

/// Reads the WAL that the base backup brings, one segment at a time.
pub(super) struct WalScan {
    expected: Expected,
    start: Lsn,
    first: SegmentName,
    bytes: Option<Vec<u8>>,
    /// Where the record ends that says that the backup ended (`do_pg_backup_stop` in `xlog.c`).
    pub(super) end: Option<Lsn>,
    /// The last end of a transaction.
    pub(super) latest_end: Option<Timestamp>,
}

impl WalScan {
    pub(super) fn new(known: &Known) -> Self {
        Self {
            expected: Expected {
                system_id: Some(known.control.system_id),
                major: PgMajor::from_number(known.major).ok(),
                ..Expected::default()
            },
            start: known.label.start_lsn,
            first: known.label.start_segment,
            bytes: None,
            end: None,
            latest_end: None,
        }
    }

    fn scan(&mut self, bytes: &[u8]) {
        let Ok(mut reader) = SegmentReader::open(bytes, &self.expected) else { return };
        while let Some(record) = reader.next_record() {
            match Event::of(&record) {
                Ok(Event::BackupEnd { start }) if start == self.start => self.end = Some(record.end_lsn),
                Ok(Event::Commit(end) | Event::Abort(end)) => {
                    self.latest_end = self.latest_end.max(Some(timestamp(end.time)));
                }
                _ => {}
            }
        }
    }
}

impl Visitor for WalScan {
    fn member(&mut self, member: &Member) -> Result<Wanted, EngineError> {
        let wanted = match (&member.kind, wal_name(&member.name)) {
            (MemberKind::File(len), Some(WalFileName::Segment(name))) => {
                let fits = name.timeline == self.first.timeline && name >= self.first;
                fits && *len <= SEGMENT_MAX
            }
            _ => false,
        };
        self.bytes = wanted.then(Vec::new);
        Ok(if wanted { Wanted::Bytes } else { Wanted::Nothing })
    }

    fn data(&mut self, bytes: &[u8]) -> Result<(), EngineError> {
        if let Some(all) = &mut self.bytes {
            all.extend_from_slice(bytes);
        }
        Ok(())
    }

    fn end(&mut self) -> Result<(), EngineError> {
        if let Some(bytes) = self.bytes.take() {
            self.scan(&bytes);
        }
        Ok(())
    }
}
