//! What of a server's WAL lies in its `pg_wal`: the segments of a running backup, or, where none runs, the segments from the last checkpoint's redo LSN on, and where
//! valid WAL ends. Segments after that are recycled ones, with the WAL of other places in them.

use super::super::carry::WalFile;
use crate::EngineError;
use pg_format::control::ControlFile;
use pg_format::{Lsn, PgMajor, SegmentName, SystemId, Timeline, WalFileName, WalSegmentSize, XLogSegNo};
use pg_wal::{EndReason, Expected, HeadState, SegmentReader};
use std::io::ErrorKind;
use std::path::Path;

/// The WAL that recovery will read.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct FoundWal {
    pub(super) files: Vec<WalFile>,
    /// Where valid WAL ends: the end of the last whole record.
    pub(super) end: Lsn,
}

/// One segment, looked at.
struct Looked {
    end: Lsn,
    /// Where a record begins that goes on in the next segment.
    open: Option<Lsn>,
    goes_on: bool,
    has_checkpoint: bool,
}

/// Whose WAL it must be.
pub(super) struct Whose {
    pub(super) system_id: SystemId,
    pub(super) major: PgMajor,
    pub(super) timeline: Timeline,
    pub(super) segment_size: WalSegmentSize,
    pub(super) block_bytes: u32,
}

/// Finds what recovery of a server that does not run will read, from its last checkpoint's redo LSN on.
pub(super) fn find(wal_dir: &Path, control: &ControlFile, major: PgMajor) -> Result<FoundWal, EngineError> {
    let whose = Whose {
        system_id: control.system_id,
        major,
        timeline: control.checkpoint.timeline,
        segment_size: control.wal_segment_size,
        block_bytes: control.block_bytes,
    };
    let redo = control.checkpoint.redo;
    let (found, has_checkpoint) = walk(wal_dir, &whose, redo, control.checkpoint_lsn, None)?;
    let broken = |what: String| {
        EngineError::refused(
            format!("{}: {what}; a server could not start from these files", wal_dir.display()),
            "look for the missing files (on the origin's WAL volume, or in the archive) and put them back",
        )
    };
    if !has_checkpoint {
        return Err(broken(format!(
            "the WAL of the last checkpoint, from {redo} to its record at {}, is not there whole",
            control.checkpoint_lsn
        )));
    }
    if control.min_recovery_point > found.end {
        return Err(broken(format!(
            "WAL ends at {}, but the files are consistent only at {}",
            found.end, control.min_recovery_point
        )));
    }
    Ok(found)
}

/// Finds the WAL of a backup, from its start to its stop LSN, while a server runs; says what is missing of it.
pub(super) fn find_between(wal_dir: &Path, whose: &Whose, start: Lsn, stop: Lsn) -> Result<FoundWal, String> {
    let last = stop.segment_no_of_end(whose.segment_size);
    match walk(wal_dir, whose, start, Lsn::INVALID, Some(last)) {
        Ok((found, _)) if found.end >= stop => Ok(found),
        Ok((found, _)) => {
            Err(format!("of the WAL up to {stop}, {} has it only up to {}", wal_dir.display(), found.end))
        }
        Err(error) => Err(error.to_string()),
    }
}

/// Walks from segment to segment, as far as valid WAL goes. Also says whether a record was met at `checkpoint`.
fn walk(
    wal_dir: &Path,
    whose: &Whose,
    from: Lsn,
    checkpoint: Lsn,
    last: Option<XLogSegNo>,
) -> Result<(FoundWal, bool), EngineError> {
    let (size, timeline) = (whose.segment_size, whose.timeline);
    let (mut files, mut end, mut open, mut has_checkpoint) = (Vec::new(), from, None, false);
    for segno in from.segment_no(size).0..=last.map_or(u64::MAX, |last| last.0) {
        let Some(name) = SegmentName::new(timeline, XLogSegNo(segno), size) else { break };
        let path = wal_dir.join(name.to_string());
        let bytes = match std::fs::read(&path) {
            Ok(bytes) => bytes,
            Err(error) if error.kind() == ErrorKind::NotFound => break,
            Err(error) => return Err(EngineError::file(path, "reading", error)),
        };
        let expected = Expected {
            system_id: Some(whose.system_id),
            segment_size: u32::try_from(size.bytes()).ok(),
            timeline: Some(timeline),
            start: name.start(size).ok(),
            block_size: Some(whose.block_bytes),
            major: Some(whose.major),
        };
        let Some(looked) = look(&bytes, &expected, checkpoint, open) else { break };
        files.push(WalFile { name: WalFileName::Segment(name), path: Some(path) });
        has_checkpoint |= looked.has_checkpoint;
        (end, open) = (looked.open.unwrap_or(looked.end), looked.open);
        if !looked.goes_on {
            break;
        }
    }
    if timeline > Timeline::FIRST {
        // Recovery along a numbered timeline wants its history.
        let path = wal_dir.join(WalFileName::History(timeline).to_string());
        if path.is_file() {
            files.push(WalFile { name: WalFileName::History(timeline), path: Some(path) });
        }
    }
    Ok((FoundWal { files, end }, has_checkpoint))
}

/// Looks at a segment; none when it is not the WAL that continues what was before it.
fn look(bytes: &[u8], expected: &Expected, checkpoint: Lsn, open: Option<Lsn>) -> Option<Looked> {
    let mut reader = SegmentReader::open(bytes, expected).ok()?;
    let start = reader.info().start;
    let mut open_before = None;
    if open.is_some() {
        match reader.head().map(|head| head.state) {
            Some(HeadState::Complete | HeadState::Overwritten) => {}
            Some(HeadState::Continues) => open_before = open,
            Some(HeadState::Torn) => {
                return Some(Looked { end: start, open, goes_on: false, has_checkpoint: false });
            }
            None if reader.drops_earlier_tail() => {}
            None => return None,
        }
    }
    let mut has_checkpoint = false;
    while let Some(record) = reader.next_record() {
        has_checkpoint |= record.lsn == checkpoint;
    }
    let end = reader.end()?;
    let goes_on = matches!(end.reason, EndReason::Full | EndReason::Switch);
    let tail = reader.tail().map(|tail| tail.lsn).filter(|_| goes_on);
    Some(Looked { end: end.lsn, open: open_before.or(tail), goes_on, has_checkpoint })
}
