//! Reads the WAL of a real cluster twice: with this crate, and with `pg_waldump`.
#![allow(dead_code)]

pub(crate) mod workload;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};
use pg_wal::event::Event;
use pg_wal::{EndReason, Expected, HeadState, Joined, Joiner, Record, Rmgr, SegmentReader};
use testkit::pg::{Cluster, PgInstall};

/// What both readers must agree on, as text.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Line {
    pub(crate) lsn: u64,
    pub(crate) text: String,
    /// Blocks with their images, in the order of their ids.
    pub(crate) blocks: Vec<String>,
    /// What a commit, abort, checkpoint or restore point says; empty for other records.
    pub(crate) meaning: String,
}

/// What a walk over a whole cluster's WAL found.
#[derive(Debug, Default)]
pub(crate) struct Walk {
    pub(crate) lines: Vec<Line>,
    /// Records that crossed a border between segments.
    pub(crate) joined: usize,
    /// Segments that were one continuation from start to end.
    pub whole_segments: usize,
    /// Records lost in a crash and overwritten.
    pub(crate) overwritten: Vec<u64>,
    /// Images restored to pages.
    pub(crate) images: usize,
    /// Restored pages by the name `pg_waldump --save-fullpage` gives them.
    pub(crate) pages: BTreeMap<String, Vec<u8>>,
}

/// The segments in `pg_wal` that were written, in order.
pub(crate) fn segments(cluster: &Cluster) -> Result<Vec<(PathBuf, Vec<u8>)>> {
    let mut found = Vec::new();
    for entry in std::fs::read_dir(cluster.data_dir().join("pg_wal"))? {
        let path = entry?.path();
        let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
        if name.len() == 24 && name.bytes().all(|b| b.is_ascii_hexdigit()) {
            let bytes = std::fs::read(&path)?;
            found.push((path, bytes));
        }
    }
    found.sort();
    // Recycled ones say another place than their name.
    found.retain(|(_, bytes)| pg_wal::peek_segment(bytes).is_ok());
    let segment_size = pg_wal::peek_segment(&found[0].1)?.segment_size;
    found.retain(|(path, bytes)| {
        let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
        let part = |range: std::ops::Range<usize>| u64::from_str_radix(&name[range], 16).unwrap_or_default();
        let start = (part(8..16) << 32) + part(16..24) * u64::from(segment_size);
        pg_wal::peek_segment(bytes).is_ok_and(|info| info.start.0 == start)
    });
    Ok(found)
}

/// Walks all segments of one timeline and joins what crosses their borders. The last must end by being empty or
/// invalid; the others must be full or switched away from.
pub(crate) fn walk(segments: &[(PathBuf, Vec<u8>)]) -> Result<Walk> {
    let mut walk = Walk::default();
    let mut joiner: Option<Joiner> = None;
    for (number, (path, bytes)) in segments.iter().enumerate() {
        let mut reader = SegmentReader::open(bytes, &Expected::default()).with_context(|| format!("{path:?}"))?;
        let info = *reader.info();
        if let Some(open) = &mut joiner {
            if reader.head().is_none() && !reader.drops_earlier_tail() {
                bail!("{path:?} does not continue the record at {}", open.lsn());
            }
            let state = open.push(&info, reader.head())?;
            walk.whole_segments += usize::from(reader.head().is_some_and(|head| head.state == HeadState::Continues));
            match state {
                Joined::More => {}
                Joined::Whole => {
                    walk.joined += 1;
                    note(&mut walk, &open.record().expect("it is whole"))?;
                    joiner = None;
                }
                Joined::Overwritten => {
                    walk.overwritten.push(open.lsn().0);
                    joiner = None;
                }
            }
        } else if number > 0 && (reader.head().is_some() || reader.drops_earlier_tail()) {
            bail!("{path:?} has a head, and the segment before no tail");
        }
        while let Some(record) = reader.next_record() {
            note(&mut walk, &record)?;
        }
        let end = reader.end().context("no end")?.clone();
        match end.reason {
            EndReason::Full | EndReason::Switch => {}
            EndReason::Empty | EndReason::Invalid(_) if number + 1 == segments.len() => {
                assert_eq!(reader.valid_pages_after_end(), 0, "{path:?}");
            }
            reason => bail!("{path:?} ends at {}: {reason:?}", end.lsn),
        }
        walk.overwritten.extend(reader.overwritten().iter().map(|lsn| lsn.0));
        if let (_, Some(tail)) = reader.into_fragments() {
            joiner = Some(Joiner::new(tail, &info));
        }
    }
    Ok(walk)
}

/// Notes a record in the same words as [`waldump`].
fn note(walk: &mut Walk, record: &Record<'_>) -> Result<()> {
    let header = &record.header;
    // A switch record has nothing, but is shown with the rest of its segment by some versions; see `parse_line`.
    let text = format!(
        "{} tot {} tx {} prev {:X}/{:08X}",
        record.rmgr.name(),
        header.total_len,
        header.xid,
        header.prev.0 >> 32,
        header.prev.0 & 0xFFFF_FFFF
    );
    let mut blocks = Vec::new();
    let mut page = Vec::new();
    for block in record.blocks() {
        let mut text = format!("#{} rel {} fork {} blk {}", block.id, block.rel, block.fork, block.block);
        if let Some(image) = &block.image {
            let apply = if image.apply { "" } else { " for WAL verification" };
            text += &format!(" (FPW{apply}); hole: offset: {}, length: {}", image.hole_offset, image.hole_len);
            if image.compression != pg_wal::image::ImageCompression::None {
                let saved = 8192 - u32::from(image.hole_len) - u32::from(image.len);
                text += &format!(", compression saved: {saved}, method: {:?}", image.compression).to_lowercase();
            }
            pg_wal::restore_block_image(record, block, &mut page)?;
            check_page(&page).with_context(|| format!("{} {text}", record.lsn))?;
            walk.images += 1;
            let name = format!(
                "{:08X}-{:08X}.{}.{}.{}.{}_{}",
                record.lsn.0 >> 32,
                record.lsn.0 & 0xFFFF_FFFF,
                block.rel.tablespace,
                block.rel.database,
                block.rel.relfilenode,
                block.block,
                block.fork
            );
            walk.pages.insert(name, page.clone());
        }
        blocks.push(text);
    }
    let meaning = match Event::of(record)? {
        Event::Commit(end) => {
            let name = if end.prepared { "COMMIT_PREPARED" } else { "COMMIT" };
            end_text(name, &end)
        }
        Event::Abort(end) => {
            let name = if end.prepared { "ABORT_PREPARED" } else { "ABORT" };
            end_text(name, &end)
        }
        Event::Prepare(prepare) => {
            let mut text =
                format!("PREPARE gid {}: {} UTC", String::from_utf8_lossy(&prepare.gid), utc(prepare.time.0));
            add_rels(&mut text, "rels(commit)", &prepare.dropped_on_commit);
            add_rels(&mut text, "rels(abort)", &prepare.dropped_on_abort);
            add_xids(&mut text, &prepare.subxacts);
            text
        }
        Event::RestorePoint { name, .. } => format!("RESTORE_POINT {}", String::from_utf8_lossy(&name)),
        Event::Checkpoint(checkpoint) => format!(
            "{} redo {:X}/{:X}; tli {}; prev tli {}; fpw {}; xid {}:{}; oid {}; multi {}; running xid {}",
            if checkpoint.shutdown { "CHECKPOINT_SHUTDOWN" } else { "CHECKPOINT_ONLINE" },
            checkpoint.redo.0 >> 32,
            checkpoint.redo.0 & 0xFFFF_FFFF,
            checkpoint.timeline,
            checkpoint.timeline_prev,
            checkpoint.full_page_writes,
            checkpoint.next_xid >> 32,
            checkpoint.next_xid & 0xFFFF_FFFF,
            checkpoint.next_oid,
            checkpoint.next_multi,
            checkpoint.oldest_active_xid
        ),
        Event::NextOid { oid } => format!("NEXTOID {oid}"),
        Event::BackupEnd { start } => format!("BACKUP_END {start}"),
        Event::FullPageWritesChange { full_page_writes } => format!("FPW_CHANGE {full_page_writes}"),
        Event::ParameterChange(p) => format!(
            "PARAMETER_CHANGE max_connections={} max_worker_processes={} max_wal_senders={} max_prepared_xacts={} \
             max_locks_per_xact={} wal_level={} wal_log_hints={} track_commit_timestamp={}",
            p.max_connections,
            p.max_worker_processes,
            p.max_wal_senders,
            p.max_prepared_transactions,
            p.max_locks_per_transaction,
            format!("{:?}", p.wal_level).to_lowercase(),
            if p.wal_log_hints { "on" } else { "off" },
            if p.track_commit_timestamp { "on" } else { "off" },
        ),
        Event::OverwriteContrecord { overwritten, time } => {
            format!("OVERWRITE_CONTRECORD lsn {overwritten}; time {} UTC", utc(time.0))
        }
        Event::EndOfRecovery { time, timeline, timeline_prev, .. } => {
            format!("END_OF_RECOVERY tli {timeline}; prev tli {timeline_prev}; time {} UTC", utc(time.0))
        }
        Event::RelationCreate { rel, fork } => format!("CREATE {}", path(&rel, &fork.to_string())),
        Event::RelationTruncate { rel, blocks, forks } => {
            format!("TRUNCATE {} to {blocks} blocks flags {}", path(&rel, "main"), forks.0)
        }
        Event::DatabaseCreateFileCopy { database, tablespace, source_database, source_tablespace } => {
            format!("CREATE_FILE_COPY copy dir {source_tablespace}/{source_database} to {tablespace}/{database}")
        }
        Event::DatabaseCreateWalLog { database, tablespace } => {
            format!("CREATE_WAL_LOG create dir {tablespace}/{database}")
        }
        Event::DatabaseDrop { database, tablespaces } => {
            let dirs: Vec<_> = tablespaces.iter().map(|tablespace| format!(" {tablespace}/{database}")).collect();
            format!("DROP dir{}", dirs.concat())
        }
        Event::TablespaceCreate { tablespace, path } => {
            format!("CREATE {tablespace} \"{}\"", String::from_utf8_lossy(&path))
        }
        Event::TablespaceDrop { tablespace } => format!("DROP {tablespace}"),
        Event::RelMapUpdate { database, tablespace, map_len } => {
            format!("UPDATE database {database} tablespace {tablespace} size {map_len}")
        }
        Event::RunningXacts { next_xid, oldest_running_xid, latest_completed_xid, .. } => format!(
            "RUNNING_XACTS nextXid {next_xid} latestCompletedXid {latest_completed_xid} \
             oldestRunningXid {oldest_running_xid}"
        ),
        Event::Switch => "SWITCH".to_owned(),
        _ => String::new(),
    };
    walk.lines.push(Line { lsn: record.lsn.0, text, blocks, meaning });
    Ok(())
}

/// A heap, index, map or sequence page has a sound header, or is all zeros.
fn check_page(page: &[u8]) -> Result<()> {
    let at = |at: usize| u16::from_le_bytes([page[at], page[at + 1]]);
    let (lower, upper, special, version) = (at(12), at(14), at(16), at(18));
    if page.len() != 8192 || version != 8192 + 4 || lower > upper || upper > special || special > 8192 {
        bail!("a restored page has the header {lower} {upper} {special} {version}");
    }
    Ok(())
}

fn end_text(name: &str, end: &pg_wal::event::XactEnd) -> String {
    let mut text = name.to_owned();
    if end.prepared {
        text += &format!(" {}:", end.xid);
    }
    text += &format!(" {} UTC", utc(end.time.0));
    add_rels(&mut text, "rels", &end.dropped);
    add_xids(&mut text, &end.subxacts);
    text
}

fn add_rels(text: &mut String, label: &str, rels: &[pg_wal::RelFileLocator]) {
    if !rels.is_empty() {
        *text += &format!("; {label}:");
        rels.iter().for_each(|rel| *text += &format!(" {}", path(rel, "main")));
    }
}

fn add_xids(text: &mut String, xids: &[u32]) {
    if !xids.is_empty() {
        *text += "; subxacts:";
        xids.iter().for_each(|xid| *text += &format!(" {xid}"));
    }
}

/// `GetRelationPath`, with the tablespace's version folder left out.
fn path(rel: &pg_wal::RelFileLocator, fork: &str) -> String {
    let fork = if fork == "main" { String::new() } else { format!("_{fork}") };
    match rel.tablespace.0 {
        1664 => format!("global/{}{fork}", rel.relfilenode),
        1663 => format!("base/{}/{}{fork}", rel.database, rel.relfilenode),
        other => format!("pg_tblspc/{other}/{}/{}{fork}", rel.database, rel.relfilenode),
    }
}

/// Microseconds since 2000 as `YYYY-MM-DD HH:MM:SS.ffffff`.
fn utc(micros: i64) -> String {
    let (mut days, rest) = (micros.div_euclid(86_400_000_000), micros.rem_euclid(86_400_000_000));
    let mut year = 2000;
    let leap = |year: i64| (year % 4 == 0 && year % 100 != 0) || year % 400 == 0;
    while days >= 365 + i64::from(leap(year)) {
        days -= 365 + i64::from(leap(year));
        year += 1;
    }
    let months = [31, 28 + i64::from(leap(year)), 31, 30, 31, 30, 31, 31, 30, 31, 30, 31];
    let mut month = 0;
    while days >= months[month] {
        days -= months[month];
        month += 1;
    }
    let (seconds, fraction) = (rest / 1_000_000, rest % 1_000_000);
    let (hour, minute, second) = (seconds / 3600, seconds / 60 % 60, seconds % 60);
    format!("{year:04}-{:02}-{:02} {hour:02}:{minute:02}:{second:02}.{fraction:06}", month + 1, days + 1)
}

/// Reads the same WAL with `pg_waldump --bkp-details`.
pub(crate) fn waldump(cluster: &Cluster, first: &Path, timeline: u32, extra: &[&str]) -> Result<Vec<Line>> {
    let info = pg_wal::peek_segment(&std::fs::read(first)?)?;
    let mut command = cluster.command_as_pg(cluster.bin("pg_waldump")?);
    command.env("TZ", "UTC").args(["--bkp-details", "--path"]).arg(cluster.data_dir().join("pg_wal"));
    command.args(["--start", &info.start.to_string(), "--timeline", &timeline.to_string()]).args(extra);
    let output = command.output()?;
    // It ends with an error where the WAL does.
    let text = String::from_utf8_lossy(&output.stdout);
    let mut lines: Vec<Line> = Vec::new();
    for line in text.lines() {
        if let Some(rest) = line.strip_prefix("rmgr: ") {
            lines.push(parse_line(rest).with_context(|| line.to_owned())?);
        } else if let Some(rest) = line.strip_prefix("\tblkref ") {
            let block = rest.trim().replacen(": rel", " rel", 1).to_lowercase().replace("fpw", "FPW");
            lines.last_mut().context("a block before any record")?.blocks.push(block.replace("wal ver", "WAL ver"));
        }
    }
    if lines.is_empty() {
        bail!("pg_waldump gave nothing: {}", String::from_utf8_lossy(&output.stderr));
    }
    Ok(lines)
}

fn parse_line(line: &str) -> Option<Line> {
    let between = |from: &str, to: &str| {
        let rest = &line[line.find(from)? + from.len()..];
        Some(rest[..rest.find(to)?].trim())
    };
    let rmgr = line.split_whitespace().next()?;
    let total = between("tot):", ", tx:")?.split_once('/')?.1.trim();
    let xid = between("tx:", ",")?;
    let (high, low) = between("lsn: ", ",")?.split_once('/')?;
    let (prev_high, prev_low) = between("prev ", ",")?.split_once('/')?;
    let lsn = u64::from_str_radix(high, 16).ok()? << 32 | u64::from_str_radix(low, 16).ok()?;
    let prev = u64::from_str_radix(prev_high, 16).ok()? << 32 | u64::from_str_radix(prev_low, 16).ok()?;
    let desc = line[line.find("desc: ")? + 6..].trim();
    Some(Line {
        lsn,
        text: format!("{rmgr} tot {total} tx {xid} prev {:X}/{:08X}", prev >> 32, prev & 0xFFFF_FFFF),
        blocks: Vec::new(),
        meaning: meaning(rmgr, desc),
    })
}

/// Makes a description comparable: only for the records that [`note`] gives a meaning.
fn meaning(rmgr: &str, desc: &str) -> String {
    let cut = |desc: &str, keep: &[&str]| {
        let mut parts = desc.split("; ");
        let mut text = parts.next().unwrap_or_default().to_owned();
        for part in parts.filter(|part| keep.iter().any(|keep| part.starts_with(keep))) {
            text += &format!("; {part}");
        }
        text
    };
    let kind = desc.split(' ').next().unwrap_or_default();
    let no_version_dir = |desc: &str| {
        let words = desc.split(' ').map(|word| {
            let parts: Vec<_> = word.split('/').filter(|part| !part.starts_with("PG_1")).collect();
            parts.join("/")
        });
        words.collect::<Vec<_>>().join(" ")
    };
    match (rmgr, kind) {
        ("Transaction", "COMMIT" | "ABORT" | "COMMIT_PREPARED" | "ABORT_PREPARED" | "PREPARE") => {
            let text = no_version_dir(&cut(desc, &["rels", "subxacts"]));
            // 18 writes the subtransactions of a prepared transaction after its statistics; both are after `rels`.
            text.trim_end().to_owned()
        }
        ("XLOG", "CHECKPOINT_SHUTDOWN" | "CHECKPOINT_ONLINE") => {
            let text = cut(desc, &["tli", "prev tli", "fpw", "xid", "oid", "multi", "oldest running"]);
            text.replace("oldest running", "running").trim_end().to_owned()
        }
        ("XLOG", "NEXTOID" | "BACKUP_END" | "FPW_CHANGE" | "RESTORE_POINT" | "PARAMETER_CHANGE" | "SWITCH") => {
            desc.trim_end().to_owned()
        }
        ("XLOG", "OVERWRITE_CONTRECORD") => desc.to_owned(),
        ("XLOG", "END_OF_RECOVERY") => cut(desc, &["prev tli", "time"]),
        ("Storage", _) => no_version_dir(desc),
        ("Database", "CREATE_FILE_COPY" | "CREATE_WAL_LOG" | "DROP") | ("Tablespace" | "RelMap", _) => desc.to_owned(),
        ("Standby", "RUNNING_XACTS") => {
            let words: Vec<_> = desc.split([' ', ';']).filter(|word| !word.is_empty()).collect();
            words[..7.min(words.len())].join(" ")
        }
        _ => String::new(),
    }
}

/// Fails at the first record on which the two readers differ.
pub(crate) fn compare(ours: &[Line], theirs: &[Line]) {
    for (index, (ours, theirs)) in ours.iter().zip(theirs).enumerate() {
        let lsn = format!("{:X}/{:X}", ours.lsn >> 32, ours.lsn & 0xFFFF_FFFF);
        assert_eq!(ours, theirs, "record {index} at {lsn}: left is ours, right is pg_waldump's");
    }
    assert_eq!(ours.len(), theirs.len(), "number of records");
}

/// All supported versions that are installed; 15 must be.
pub(crate) fn majors() -> Result<Vec<u32>> {
    PgInstall::find(15)?;
    Ok(PgInstall::installed(&testkit::pg::SUPPORTED).iter().map(PgInstall::major).collect())
}

/// How often each resource manager wrote a record.
pub(crate) fn count_rmgrs(lines: &[Line]) -> BTreeMap<String, usize> {
    let mut counts = BTreeMap::new();
    for line in lines {
        *counts.entry(line.text.split(' ').next().unwrap_or_default().to_owned()).or_default() += 1;
    }
    counts
}

/// The names of all resource managers that a server without extensions can write.
pub(crate) fn builtin_rmgrs() -> Vec<String> {
    (0..22).filter_map(|id| Rmgr::from_id(id, pg_wal::PgMajor::V15)).map(Rmgr::name).collect()
}

/// Hands all records of consecutive segments to `each`, in order, those that cross borders too.
pub(crate) fn each_record(segments: &[(PathBuf, Vec<u8>)], mut each: impl FnMut(&Record<'_>)) -> Result<()> {
    let mut joiner: Option<Joiner> = None;
    for (_, bytes) in segments {
        let mut reader = SegmentReader::open(bytes, &Expected::default())?;
        let info = *reader.info();
        if let Some(open) = &mut joiner {
            match open.push(&info, reader.head())? {
                Joined::More => {}
                Joined::Whole => {
                    each(&open.record().context("it is whole")?);
                    joiner = None;
                }
                Joined::Overwritten => joiner = None,
            }
        }
        while let Some(record) = reader.next_record() {
            each(&record);
        }
        if let (_, Some(tail)) = reader.into_fragments() {
            joiner = Some(Joiner::new(tail, &info));
        }
    }
    Ok(())
}
