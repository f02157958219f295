//! `backup_label` and the backup history file (`build_backup_content` in `src/backend/access/transam/xlogbackup.c`,
//! `read_backup_label` in `src/backend/access/transam/xlogrecovery.c`).
//!
//! These files are kept byte for byte; what is read here is only looked at.

use crate::error::FormatError;
use crate::ids::Timeline;
use crate::lsn::Lsn;
use crate::wal_name::SegmentName;

const WHAT: &str = "backup_label";

/// What a `backup_label` says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BackupLabel {
    /// `START WAL LOCATION`: where replay must start.
    pub start_lsn: Lsn,
    /// The segment of the start, by its name.
    pub start_segment: SegmentName,
    /// `STOP WAL LOCATION`; only in a backup history file.
    pub stop: Option<(Lsn, SegmentName)>,
    /// `CHECKPOINT LOCATION`.
    pub checkpoint_lsn: Lsn,
    /// `BACKUP METHOD`: `streamed`, or `pg_start_backup` of an exclusive backup of 14.
    pub method: Option<String>,
    /// `BACKUP FROM`.
    pub from: Option<BackupFrom>,
    /// `START TIME`, as the server wrote it, in the time zone of its log.
    pub start_time_text: Option<String>,
    /// `LABEL`.
    pub label: Option<String>,
    /// `START TIMELINE`.
    pub start_timeline: Option<Timeline>,
    /// `STOP TIME`; only in a backup history file.
    pub stop_time_text: Option<String>,
    /// `STOP TIMELINE`; only in a backup history file.
    pub stop_timeline: Option<Timeline>,
    /// `INCREMENTAL FROM LSN`: the files cannot be started before `pg_combinebackup`.
    pub incremental_from_lsn: Option<Lsn>,
    /// `INCREMENTAL FROM TLI`.
    pub incremental_from_timeline: Option<Timeline>,
}

/// What kind of server the backup was taken from.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum BackupFrom {
    /// `primary`; `master` in old files.
    Primary,
    /// `standby`.
    Standby,
}

impl BackupLabel {
    /// Reads the file. Unknown lines are skipped, as the server does.
    pub fn parse(text: &str) -> Result<Self, FormatError> {
        let mut start = None;
        let mut checkpoint = None;
        let mut label = Self {
            start_lsn: Lsn::INVALID,
            start_segment: SegmentName::of_lsn(Timeline::FIRST, Lsn::INVALID, crate::WalSegmentSize::DEFAULT),
            stop: None,
            checkpoint_lsn: Lsn::INVALID,
            method: None,
            from: None,
            start_time_text: None,
            label: None,
            start_timeline: None,
            stop_time_text: None,
            stop_timeline: None,
            incremental_from_lsn: None,
            incremental_from_timeline: None,
        };
        for (index, line) in text.lines().enumerate() {
            let Some((key, value)) = line.split_once(": ") else { continue };
            let bad = |error: FormatError| FormatError::line(WHAT, index, error.to_string());
            match key {
                "START WAL LOCATION" => start = Some(location(value).map_err(bad)?),
                "STOP WAL LOCATION" => label.stop = Some(location(value).map_err(bad)?),
                "CHECKPOINT LOCATION" => checkpoint = Some(value.parse().map_err(bad)?),
                "BACKUP METHOD" => label.method = Some(value.to_owned()),
                "BACKUP FROM" => {
                    label.from = match value {
                        "primary" | "master" => Some(BackupFrom::Primary),
                        "standby" => Some(BackupFrom::Standby),
                        _ => return Err(FormatError::line(WHAT, index, format!("unknown kind of server: {value}"))),
                    }
                }
                "START TIME" => label.start_time_text = Some(value.to_owned()),
                "LABEL" => label.label = Some(value.to_owned()),
                "START TIMELINE" => label.start_timeline = Some(value.parse().map_err(bad)?),
                "STOP TIME" => label.stop_time_text = Some(value.to_owned()),
                "STOP TIMELINE" => label.stop_timeline = Some(value.parse().map_err(bad)?),
                "INCREMENTAL FROM LSN" => label.incremental_from_lsn = Some(value.parse().map_err(bad)?),
                "INCREMENTAL FROM TLI" => label.incremental_from_timeline = Some(value.parse().map_err(bad)?),
                _ => {}
            }
        }
        let missing = |field| FormatError::Missing { what: WHAT, field };
        (label.start_lsn, label.start_segment) = start.ok_or(missing("START WAL LOCATION"))?;
        label.checkpoint_lsn = checkpoint.ok_or(missing("CHECKPOINT LOCATION"))?;
        // `read_backup_label` refuses a file whose two timelines differ.
        if let Some(timeline) = label.start_timeline.filter(|&timeline| timeline != label.start_segment.timeline) {
            return Err(FormatError::field(
                WHAT,
                "START TIMELINE",
                timeline,
                format!("the start segment is of timeline {}", label.start_segment.timeline),
            ));
        }
        Ok(label)
    }
}

/// Reads `X/X (file 000000010000000000000002)`.
fn location(value: &str) -> Result<(Lsn, SegmentName), FormatError> {
    let parts = value.split_once(" (file ").and_then(|(lsn, rest)| Some((lsn, rest.strip_suffix(')')?)));
    let (lsn, file) =
        parts.ok_or_else(|| FormatError::text("WAL location", value, "it is an LSN with the name of its file"))?;
    Ok((lsn.parse()?, file.parse()?))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const TEXT: &str = "START WAL LOCATION: 0/2000028 (file 000000010000000000000002)\n\
        CHECKPOINT LOCATION: 0/2000060\nBACKUP METHOD: streamed\nBACKUP FROM: primary\n\
        START TIME: 2026-11-20 20:09:10 UTC\nLABEL: nightly: all\nSTART TIMELINE: 1\n";

    #[test]
    fn good() {
        let label = BackupLabel::parse(TEXT).unwrap();
        assert_eq!(label.start_lsn, Lsn(0x200_0028));
        assert_eq!(label.start_segment.to_string(), "000000010000000000000002");
        assert_eq!(label.checkpoint_lsn, Lsn(0x200_0060));
        assert_eq!(label.from, Some(BackupFrom::Primary));
        assert_eq!(label.label.as_deref(), Some("nightly: all"));
        assert_eq!(label.start_time_text.as_deref(), Some("2026-11-20 20:09:10 UTC"));
        assert_eq!(label.incremental_from_lsn, None);

        let text = format!("{TEXT}INCREMENTAL FROM LSN: 0/1000028\nINCREMENTAL FROM TLI: 1\n");
        assert_eq!(BackupLabel::parse(&text).unwrap().incremental_from_lsn, Some(Lsn(0x100_0028)));
        let text =
            TEXT.replace("CHECKPOINT", "STOP WAL LOCATION: 0/3000000 (file 000000010000000000000002)\nCHECKPOINT");
        assert_eq!(BackupLabel::parse(&text).unwrap().stop.unwrap().0, Lsn(0x300_0000));
    }

    #[test]
    fn bad() {
        assert!(BackupLabel::parse("").is_err());
        assert!(BackupLabel::parse(&TEXT.replace("CHECKPOINT", "X")).is_err());
        assert!(BackupLabel::parse(&TEXT.replace("TIMELINE: 1", "TIMELINE: 2")).is_err());
        assert!(BackupLabel::parse(&TEXT.replace("primary", "moon")).is_err());
        let error = BackupLabel::parse(&TEXT.replace("0/2000060", "zero")).unwrap_err();
        assert!(error.to_string().contains("line 2"), "{error}");
    }

    proptest! {
        #[test]
        fn never_panics(text in "((START WAL LOCATION|CHECKPOINT LOCATION|X): [0-9A-F/() file]{0,40}\n){0,4}.*") {
            let _ = BackupLabel::parse(&text);
        }
    }
}
