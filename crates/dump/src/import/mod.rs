//! Taking in what pg_dump or pg_dumpall wrote, anywhere. Archives (custom, directory, tar) are taken apart into the form that every
//! dump here has (docs/format.md section 17), so that they are verified, selected from and loaded in parallel like others; SQL
//! text is kept as it is.

mod archives;
pub(crate) mod blocks;
mod input;
mod rows;
mod script;

use crate::archive::{Archive, ArchiveCompression, Form, Place, write};
use crate::run::{Stored, begin, commit};
use crate::sink::{Sinks, Written};
use crate::{DumpError, DumpReport};
use engine::{Context, Unit};
use jiff::Timestamp;
use jiff::tz::TimeZone;
use repo::dump::{DataKind, DumpFacts, DumpObject, DumpedData, DumpedDatabase, DumpedPart, ImportedDump};
use repo::{BackupId, Cluster, Compression};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use tokio::runtime::Handle;

/// What is taken in.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ImportFrom {
    /// A file, or the directory of a directory-format archive.
    Path(PathBuf),
    /// Standard input: everything but a directory.
    StandardInput,
}

/// What is asked of an import.
#[derive(Debug, Clone)]
pub struct ImportOptions {
    /// From where.
    pub from: ImportFrom,
    /// Files of a directory that are read at the same time.
    pub workers: usize,
    /// The data of a table are cut into parts of about so many bytes, which are loaded at the same time.
    pub part_bytes: u64,
    /// How data are compressed.
    pub compression: Compression,
    /// A text to know it by.
    pub label: Option<String>,
    /// The program, for the manifest.
    pub made_by: String,
    /// The zone in which the archive's own time is meant, which does not say it.
    pub zone: TimeZone,
}

/// Takes a dump into the repository.
pub async fn import(ctx: &Context, cluster: &Cluster, options: &ImportOptions) -> Result<DumpReport, DumpError> {
    let started = ctx.now();
    let dump = begin(ctx, cluster, started).await?;
    let taking = Taking {
        ctx: ctx.clone(),
        sinks: Sinks::new(cluster.clone(), dump, options.compression),
        handle: Handle::current(),
        part_bytes: options.part_bytes.max(1),
    };
    let made = async {
        let (facts, stored) = take(&taking, cluster, options, dump, started).await?;
        commit(ctx, cluster, facts, stored).await
    };
    match ctx.or_cancel(made).await.and_then(|made| made) {
        Ok(facts) => Ok(DumpReport::of(&facts)),
        Err(error) => {
            if let Err(left) = cluster.delete_dump(dump, ctx.now()).await {
                tracing::warn!(error = %left, "what a failed import stored could not be deleted");
            }
            Err(error)
        }
    }
}

/// What all who read share.
#[derive(Clone)]
struct Taking {
    ctx: Context,
    sinks: Arc<Sinks>,
    /// For what waits, from a thread that reads.
    handle: Handle,
    part_bytes: u64,
}

/// A part of an entry's data.
struct TakenPart {
    rows: u64,
    written: Written,
}

/// The data of an entry.
struct TakenData {
    /// Its place among the archive's entries.
    entry: usize,
    kind: DataKind,
    parts: Vec<TakenPart>,
}

/// An archive that was read.
struct TakenArchive {
    format: &'static str,
    archive: Archive,
    data: Vec<TakenData>,
    objects: Vec<DumpObject>,
}

/// SQL text that was read.
struct TakenScript {
    written: Written,
    objects: Vec<DumpObject>,
    about: script::About,
}

/// What was read.
enum Taken {
    Archive(TakenArchive),
    Script(TakenScript),
}

/// What cannot be read, and why.
pub(super) fn refused(what: impl std::fmt::Display) -> DumpError {
    DumpError::Failed {
        reason: format!("the dump cannot be taken in: {what}"),
        hint: Some("whether it is whole, pg_restore --list or psql says".into()),
    }
}

/// Does something that reads and waits on a thread of its own.
async fn on_thread<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, DumpError> + Send + 'static,
) -> Result<T, DumpError> {
    tokio::task::spawn_blocking(work)
        .await
        .unwrap_or_else(|panic| Err(DumpError::Failed { reason: format!("reading stopped: {panic}"), hint: None }))
}

async fn take(
    taking: &Taking,
    cluster: &Cluster,
    options: &ImportOptions,
    dump: BackupId,
    started: Timestamp,
) -> Result<(DumpFacts, Stored), DumpError> {
    let (name, total) = match &options.from {
        ImportFrom::Path(path) => (path.display().to_string(), size_of(path)?),
        ImportFrom::StandardInput => ("standard input".to_owned(), None),
    };
    taking.ctx.progress.phase("taking the dump in", total, Unit::Bytes);
    let taken = match &options.from {
        ImportFrom::Path(path) if path.is_dir() => {
            Taken::Archive(archives::directory(taking, path, options.workers).await?)
        }
        from => {
            let (taking, from) = (taking.clone(), from.clone());
            on_thread(move || input::take(&taking, &from)).await?
        }
    };
    let mut stored = Stored::default();
    let mut facts = DumpFacts {
        dump,
        cluster: cluster.name().clone(),
        label: options.label.clone(),
        made_by: options.made_by.clone(),
        host: engine::host_facts().name,
        started,
        finished: started,
        system_id: None,
        pg_version: String::new(),
        pg_version_num: 0,
        compression: options.compression.to_string(),
        bytes: 0,
        stored_bytes: 0,
        synchronised_within_us: None,
        globals: None,
        databases: Vec::new(),
        selection: Vec::new(),
        imported: None,
        warnings: Vec::new(),
    };
    let mut imported = ImportedDump { path: name, format: "plain".into(), script: None, connects_to: Vec::new() };
    match taken {
        Taken::Script(script) => {
            stored.objects = script.objects;
            imported.script = Some(stored.add(script.written));
            imported.connects_to = script.about.connects_to;
            facts.pg_version = script.about.version;
        }
        Taken::Archive(taken) => {
            imported.format = taken.format.to_owned();
            let text =
                |text: &Option<Vec<u8>>| String::from_utf8_lossy(text.as_deref().unwrap_or_default()).into_owned();
            facts.pg_version = text(&taken.archive.header.server_version);
            stored.objects = taken.objects;
            let definitions = definitions(taking, &taken.archive, &mut stored).await?;
            let made = made_at(&taken.archive.header.created, &options.zone).unwrap_or(started);
            facts.databases.push(DumpedDatabase {
                name: text(&taken.archive.header.database),
                encoding: taken.archive.encoding().unwrap_or_else(|| "UTF8".into()),
                snapshot_time: made,
                snapshot_lsn: None,
                tools: taken.archive.tool_version(),
                definitions,
                data: described(&taken.archive, taken.data, &mut stored)?,
                unread: Vec::new(),
            });
        }
    }
    facts.imported = Some(imported);
    facts.pg_version_num = version_num(&facts.pg_version);
    (facts.bytes, facts.stored_bytes) = taking.sinks.bytes();
    facts.finished = taking.ctx.now();
    Ok((facts, stored))
}

fn size_of(path: &Path) -> Result<Option<u64>, DumpError> {
    if !path.is_dir() {
        return Ok(Some(crate::pieces::Whole::find(path)?.bytes));
    }
    let entries = std::fs::read_dir(path).map_err(|error| DumpError::file(path, "reading", error))?;
    Ok(Some(entries.filter_map(|entry| Some(entry.ok()?.metadata().ok()?.len())).sum()))
}

/// Header and table of contents in the form of the repository.
async fn definitions(taking: &Taking, archive: &Archive, stored: &mut Stored) -> Result<u32, DumpError> {
    let head = write(archive, Form::Custom, ArchiveCompression::None, |entry| {
        if entry.has_data { Place::Unknown } else { Place::NoData }
    });
    let mut sink = taking.sinks.sink();
    sink.write(&head).await?;
    let written = sink.end().await?;
    stored.objects.extend(sink.finish().await?);
    Ok(stored.add(written))
}

/// The data in the order of the table of contents; each entry that must have some has some.
fn described(archive: &Archive, mut taken: Vec<TakenData>, stored: &mut Stored) -> Result<Vec<DumpedData>, DumpError> {
    taken.sort_by_key(|data| data.entry);
    let text = |text: &Option<Vec<u8>>| String::from_utf8_lossy(text.as_deref().unwrap_or_default()).into_owned();
    let mut described = Vec::new();
    for data in taken {
        let entry = &archive.entries[data.entry];
        let parts: Vec<DumpedPart> = data
            .parts
            .into_iter()
            .map(|part| {
                let bytes = part.written.bytes;
                // Another session wrote these rows, with settings of its own: their sum is not that of ours.
                DumpedPart { stream: stored.add(part.written), rows: part.rows, bytes, sum: None }
            })
            .collect();
        described.push(DumpedData {
            entry: entry.dump_id,
            kind: data.kind,
            schema: text(&entry.namespace),
            name: text(&entry.tag),
            rows: parts.iter().map(|part| part.rows).sum(),
            bytes: parts.iter().map(|part| part.bytes).sum(),
            parts,
        });
    }
    let there: std::collections::HashSet<i32> = described.iter().map(|data| data.entry).collect();
    match archive.entries.iter().find(|entry| entry.has_data && !there.contains(&entry.dump_id)) {
        Some(entry) => Err(refused(format!("it has no data of {}: it is cut off", entry.label()))),
        None => Ok(described),
    }
}

/// When an archive was made: `struct tm` of the local time there.
fn made_at(created: &[i32; 7], zone: &TimeZone) -> Option<Timestamp> {
    let part = |value: i32| i8::try_from(value).ok();
    let [second, minute, hour, day, month, year, _] = *created;
    let year = i16::try_from(year.checked_add(1900)?).ok()?;
    let (month, day) = (part(month.checked_add(1)?)?, part(day)?);
    let time =
        jiff::civil::DateTime::new(year, month, day, part(hour)?, part(minute)?, part(second)?.min(59), 0).ok()?;
    Some(time.to_zoned(zone.clone()).ok()?.timestamp())
}

/// `15.20 (Debian …)` as `server_version_num`.
fn version_num(version: &str) -> u32 {
    let number = version.split_whitespace().next().unwrap_or_default();
    let digits = |text: &str| text.chars().take_while(char::is_ascii_digit).collect::<String>().parse::<u32>().ok();
    let (major, minor) = number.split_once('.').unwrap_or((number, "0"));
    digits(major).filter(|major| *major < 1000).map_or(0, |major| major * 10_000 + digits(minor).unwrap_or(0).min(9999))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions_and_times_are_read() {
        assert_eq!(version_num("15.20 (Debian 15.20-0+deb12u1)"), 150_020);
        assert_eq!(version_num("18beta1"), 180_000);
        assert_eq!(version_num(""), 0);
        let made = made_at(&[5, 4, 3, 21, 10, 126, 0], &TimeZone::UTC).unwrap();
        assert_eq!(made.to_string(), "2026-11-21T03:04:05Z");
        assert_eq!(made_at(&[5, 4, 3, 41, 10, 126, 0], &TimeZone::UTC), None);
    }
}
