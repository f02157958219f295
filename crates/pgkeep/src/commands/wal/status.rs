//! `wal status`: what each repository has, what is missing and whom that harms, what waits on the server.

use super::super::{end, field, fields};
use super::archives::Archives;
use super::receiver;
use crate::error::{CommandError, CommandResult, ErrorKind};
use crate::output::size;
use crate::output::table::{Align, Table};
use crate::session::Session;
use crate::when;
use engine::server;
use engine::status::{ClusterStatus, Gap, ServerStatus, StatusOptions, status};
use engine::wal::push::Spool;
use engine::wal::{Queue, WalArchive};
use jiff::Timestamp;
use pg_format::{Timeline, XLogSegNo};
use pg_wire::Client;
use repo::BackupId;
use serde_json::{Value, json};

/// Files that wait longer than this need attention.
const WAIT_SECONDS_MAX: u64 = 600;

pub(super) async fn run(session: &Session) -> CommandResult {
    let config = session.config()?;
    let archives = Archives::of(session, &config)?;
    let mut connected = connect(session, &archives).await;
    let (mut all, mut first, mut server) = (Vec::new(), None, None);
    let several = archives.repositories.len() > 1;
    for (name, repository) in &archives.repositories {
        let required = archives.is_required(repository);
        let opened = match session.open_repository(repository).await {
            Ok(opened) => opened,
            Err(error) if !several || error.kind == ErrorKind::Stopped => return Err(error),
            Err(error) => {
                let harm = if required { "no WAL is acknowledged meanwhile" } else { "it must catch up later" };
                session.output.warn(format!("repository {name} is out of reach, and {harm}: {}", error.message));
                all.push(json!({ "name": name, "url": repository.url, "required": required, "reachable": false }));
                continue;
            }
        };
        let cluster = opened.cluster(&archives.cluster.parse()?);
        if several {
            session.output.result(format!("repository {name} ({})", repository.url));
        }
        let limits = &archives.settings.limits;
        let options = StatusOptions { backup_age_max: None, wal_lag_bytes_max: limits.wal_lag_bytes_max };
        let client = connected.as_mut().map(Ok);
        let found = status(&session.context(), &cluster, client, &options).await?;
        let systems = timelines(session, &cluster).await?;
        say_gaps(session, &found, if several { Some(name) } else { None });
        say_windows(session, &found);
        say_tails(session, &found);
        let missed = missed(session, &config, &archives, &repository.url);
        if missed > 0 {
            let files = size::count(missed as u64, "file", "files");
            session
                .output
                .warn(format!("repository {name} missed {files}; they are brought there when it is in reach"));
        }
        let lag = found.server.as_ref().and_then(|server| server.wal_lag_bytes);
        if let Some(lag) = lag.filter(|lag| *lag > limits.wal_lag_bytes_max) {
            session.output.warn(format!("{} of WAL are not in repository {name} yet", size::bytes(lag)));
        }
        all.push(json!({ "name": name, "url": repository.url, "required": required, "reachable": true,
            "missed_files": missed, "wal_lag_bytes": lag, "gaps": found.gaps, "recoverable": found.recoverable,
            "tails": found.tails, "systems": systems }));
        if first.is_none() {
            first = Some((systems, found.gaps, found.recoverable, found.tails));
            server = found.server;
        }
    }
    let receiver = receiver::say(session, &config, &archives);
    let (systems, gaps, recoverable, tails) = first.unwrap_or_default();
    let server = match (server, &mut connected) {
        (Some(server), Some(client)) => Some(say_server(session, &server, Queue::read(client).await?)),
        _ => None,
    };
    let mut object = field("cluster", archives.cluster)?;
    object.extend(fields(
        &json!({ "systems": systems, "gaps": gaps, "recoverable": recoverable, "tails": tails, "server": server,
        "repositories": all, "receiver": receiver }),
    )?);
    end(session, "wal status", object)
}

/// A connection to the server; without one, what is in the archive can be told all the same.
async fn connect(session: &Session, archives: &Archives<'_>) -> Option<Client> {
    let conninfo = session.conninfo(&archives.settings.pg).ok()?;
    match session.context().or_cancel(server::connect(&conninfo)).await {
        Ok(Ok(client)) => Some(client),
        Ok(Err(error)) => {
            session.output.note(format!("what waits on the server is not known: {error}"));
            None
        }
        Err(_) => None,
    }
}

/// How many files an optional repository still waits for, as pushes on this host noted.
fn missed(session: &Session, config: &crate::config::Config, archives: &Archives<'_>, url: &str) -> usize {
    Spool::missed_by(&config.state_dir(&session.environment), &archives.key(), url)
}

/// The timelines of each system, as a table and as JSON.
async fn timelines(session: &Session, cluster: &repo::Cluster) -> Result<Vec<Value>, CommandError> {
    let facts = cluster.known_facts().await?;
    let mut table = Table::new(&[
        ("SYSTEM", Align::Left),
        ("TIMELINE", Align::Right),
        ("FIRST", Align::Left),
        ("LAST", Align::Left),
        ("SEGMENTS", Align::Right),
        ("STORED", Align::Right),
    ]);
    let mut systems = Vec::new();
    for system in &facts.systems {
        let archive = WalArchive::load(cluster, system.system_id).await?;
        let mut timelines = Vec::new();
        for (timeline, wal) in archive.timelines() {
            let name = |segno: XLogSegNo| name_of(&archive, timeline, segno);
            let mut ranges = Vec::new();
            for (number, range) in wal.segments.ranges().iter().enumerate() {
                let (first, last) = (name(range.first)?, name(range.last)?);
                table.row([
                    if number == 0 { system.system_id.to_string() } else { String::new() },
                    timeline.to_string(),
                    first.clone(),
                    last.clone(),
                    range.count().to_string(),
                    if number == 0 { size::bytes(wal.stored_bytes) } else { String::new() },
                ]);
                ranges.push(json!({ "first": first, "last": last, "segments": range.count() }));
            }
            let gaps = archive
                .gaps(timeline)
                .into_iter()
                .map(|gap| Ok(json!({ "first": name(gap.first)?, "last": name(gap.last)?, "segments": gap.count() })));
            let gaps = gaps.collect::<Result<Vec<_>, CommandError>>()?;
            let ends = |segno: Option<XLogSegNo>| segno.map(name).transpose();
            timelines.push(json!({ "timeline": timeline.0, "first": ends(wal.segments.first())?,
                "last": ends(wal.segments.last())?, "segments": wal.segments.count(), "partials": wal.partials.len(),
                "stored_bytes": wal.stored_bytes, "ranges": ranges, "gaps": gaps }));
        }
        systems.push(json!({ "system_id": system.system_id.to_string(), "pg_major": system.pg_major,
            "production_timeline": system.production_timeline.0, "timelines": timelines }));
    }
    session.output.result(table.render());
    Ok(systems)
}

fn name_of(archive: &WalArchive, timeline: Timeline, segno: XLogSegNo) -> Result<String, CommandError> {
    Ok(archive.segment_name(timeline, segno)?.to_string())
}

fn say_gaps(session: &Session, found: &ClusterStatus, repository: Option<&str>) {
    let list = |ids: &[BackupId]| ids.iter().map(ToString::to_string).collect::<Vec<_>>().join(", ");
    for Gap { timeline, first, last, segments, cut_backups, lost_backups } in &found.gaps {
        let mut harm = Vec::new();
        if !lost_backups.is_empty() {
            harm.push(format!("cannot be restored: {}", list(lost_backups)));
        }
        if !cut_backups.is_empty() {
            harm.push(format!("cannot be recovered beyond: {}", list(cut_backups)));
        }
        let harm = if harm.is_empty() { "no backup needs it".to_owned() } else { harm.join("; ") };
        let place = repository.map(|name| format!(" in repository {name}")).unwrap_or_default();
        session.output.warn(format!(
            "WAL is missing{place}: {} of timeline {timeline}, {first} to {last}; {harm}; push what a server still has of \
             it, and take a new backup",
            size::count(*segments, "segment", "segments")
        ));
    }
}

fn say_windows(session: &Session, found: &ClusterStatus) {
    let zone = when::local_zone();
    for range in &found.recoverable {
        let to = range.to_time.map_or_else(|| range.to_lsn.to_string(), |time| when::seconds(time, &zone));
        session.output.result(format!(
            "recoverable: {} to {to}, timeline {}, from {}",
            when::seconds(range.from_time, &zone),
            range.timeline,
            size::count(range.backups.len() as u64, "backup", "backups")
        ));
    }
}

/// What was streamed of segments that are not whole yet, whoever brought it.
fn say_tails(session: &Session, found: &ClusterStatus) {
    let now = Timestamp::now();
    for tail in &found.tails {
        let frames = match tail.frames {
            0 => String::new(),
            frames => format!(", {} in logs", size::count(frames, "frame", "frames")),
        };
        let written = tail.written.map(|written| format!(", the last of it {}", when::ago(written, now)));
        session.output.result(format!(
            "streamed: up to {} of timeline {}, in {}{frames}{}",
            tail.end_lsn,
            tail.timeline,
            size::count(tail.pieces, "piece", "pieces"),
            written.unwrap_or_default()
        ));
    }
}

/// The archiver and its queue; loud when the queue does not drain.
fn say_server(session: &Session, server: &ServerStatus, queue: Option<Queue>) -> Value {
    let archiver = &server.archiver;
    if server.archive_mode != "off" && archiver.failing {
        session.output.warn(format!("{}; see the server's log for why", archiver.describe()));
    } else {
        session.output.result(format!("server: {}", archiver.describe()));
    }
    let waits = queue.and_then(|queue| Some((queue.files, queue.oldest_seconds?)));
    let lag = server.wal_lag_bytes.map(|lag| format!("{} not archived", size::bytes(lag))).unwrap_or_default();
    if let Some((files, seconds)) = waits {
        let text = format!(
            "{} to be archived, the oldest for {seconds} s; {lag}",
            size::count(files, "file waits", "files wait")
        );
        if seconds > WAIT_SECONDS_MAX {
            session.output.warn(format!("{text}; archiving does not keep up, or it stands still"));
        } else {
            session.output.result(text);
        }
    } else if !lag.is_empty() {
        session.output.result(format!("nothing waits to be archived; {lag}"));
    }
    json!({ "timeline": server.timeline, "current_lsn": server.current_lsn, "in_recovery": server.in_recovery,
        "archive_mode": server.archive_mode, "wal_lag_bytes": server.wal_lag_bytes,
        "wal_lag_seconds": queue.map(|queue| queue.oldest_seconds.unwrap_or(0)),
        "waiting_files": queue.map(|queue| queue.files), "archiver": archiver })
}
