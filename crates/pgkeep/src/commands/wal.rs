//! `wal push`, `wal fetch`, `wal status`, `wal index`.

use super::{end, field, fields};
use crate::cli::WalCommand;
use crate::config::Config;
use crate::error::{CommandError, CommandResult, ErrorKind, Outcome};
use crate::output::size;
use crate::output::table::{Align, Table};
use crate::session::{MissingPlace, Session};
use engine::wal::WalArchive;
use engine::wal::archive::SegmentRange;
use engine::wal::fetch::{self, FetchOptions, FetchOutcome};
use engine::wal::index::{RebuildReport, rebuild, roll_up};
use engine::wal::push::{self, PushOptions, PushReport, Pushed};
use pg_format::{Timeline, XLogSegNo};
use serde_json::json;
use std::path::Path;
use std::time::Duration;

/// How long a push waits for the files it took along.
const PUSH_OTHERS_TIME_MAX: Duration = Duration::from_secs(30);

pub(crate) async fn run(session: &Session, command: &WalCommand) -> CommandResult {
    match command {
        WalCommand::Push { path } => push_file(session, path).await,
        WalCommand::Fetch { name, path } => fetch_file(session, name, path).await,
        WalCommand::Status => super::stoppable(session, status(session)).await,
        WalCommand::Index { rebuild } => super::stoppable(session, index(session, *rebuild)).await,
    }
}

/// What state and cache belong to: another repository or cluster must not find it.
fn key(config: &Config, session: &Session) -> Result<String, CommandError> {
    let (name, cluster) = config.cluster(session.named(None)?)?;
    let (_, repository) = config.repository(session.global.repo.as_deref(), Some(cluster))?;
    Ok(format!("{} {name}", repository.url))
}

async fn push_file(session: &Session, path: &Path) -> CommandResult {
    let config = session.config()?;
    let limits = config.cluster(session.named(None)?)?.1.limits;
    let mut options = PushOptions {
        compression: repo::Compression::Zstd(1),
        workers: 1,
        batch: limits.push_ahead + 1,
        others_time_max: PUSH_OTHERS_TIME_MAX,
        state_dir: Some(config.state_dir(&session.environment)),
        state_key: key(&config, session)?,
    };
    let store = {
        let (_, cluster) = config.cluster(session.named(None)?)?;
        let (_, repository) = config.repository(session.global.repo.as_deref(), Some(cluster))?;
        session.open_store(repository, MissingPlace::Refuse)?
    };
    let asked = session.context().or_cancel(push::remembered(&*store, path, &options)).await;
    if let Some(report) = asked?? {
        return pushed(session, &report);
    }
    let opened = session.open_in(config, session.named(None)?).await?;
    session.refuse_foreign_user(&opened)?;
    options.compression = opened.compression(None)?;
    options.workers = opened.workers(None);
    let report = push::push(&session.context(), &opened.cluster, path, &options).await?;
    pushed(session, &report)
}

/// The file is durable: the exit code is 0, whatever there is to warn of. Anything else, and PostgreSQL would ask again.
fn pushed(session: &Session, report: &PushReport) -> CommandResult {
    let how = match report.pushed {
        Pushed::Stored => "stored",
        Pushed::AlreadyThere => "already-there",
        Pushed::Remembered => "remembered",
    };
    tracing::info!("{}: {how}, {} bytes from {}", report.name, report.bytes_stored, report.bytes_read);
    for other in &report.others {
        if let Err(reason) = &other.outcome {
            tracing::warn!("{}: could not be pushed ahead, and will be asked for again: {reason}", other.name);
        }
    }
    let others: Vec<_> = report
        .others
        .iter()
        .map(|other| json!({ "name": other.name.to_string(), "error": other.outcome.as_ref().err() }))
        .collect();
    let mut fields = field("name", report.name.to_string())?;
    fields.extend(field("pushed", how)?);
    fields.extend(field("others", others)?);
    fields.extend(field("bytes_read", report.bytes_read)?);
    fields.extend(field("bytes_stored", report.bytes_stored)?);
    session.output.object("wal push", 0, fields);
    Ok(Outcome::Done)
}

async fn fetch_file(session: &Session, name: &str, path: &Path) -> CommandResult {
    let config = session.config()?;
    // `%p` is relative to the data directory, where PostgreSQL runs the command.
    let standby = path.parent().and_then(Path::parent).is_some_and(|data| data.join("standby.signal").exists());
    let limits = config.cluster(session.named(None)?)?.1.limits;
    let mut options = FetchOptions {
        ahead: limits.fetch_ahead,
        workers: 1,
        cache_dir: Some(config.cache_dir(&session.environment)),
        cache_key: key(&config, session)?,
        cache_bytes_max: limits.fetch_cache_bytes,
        standby,
    };
    if let Some(outcome) = fetch::fetch_cached(name, path, &options) {
        return fetched(session, name, &outcome, &options);
    }
    let opened = match session.open_in(config, session.named(None)?).await {
        Ok(opened) => opened,
        // A standby that is told of an outage would shut down; told that the file is absent it tries again.
        Err(error) if standby && error.kind == ErrorKind::Failed => {
            session.output.error("wal fetch", &error, 1);
            return Ok(Outcome::Code(1));
        }
        Err(error) => return Err(error),
    };
    options.workers = opened.workers(None);
    let outcome = fetch::fetch(&session.context(), &opened.cluster, name, path, &options).await;
    fetched(session, name, &outcome, &options)
}

fn fetched(session: &Session, name: &str, outcome: &FetchOutcome, options: &FetchOptions) -> CommandResult {
    let code = outcome.exit_code(options);
    let how = match outcome {
        FetchOutcome::Found { from_cache, ahead } => {
            tracing::info!(
                "{name}: found{}, {ahead} more fetched ahead",
                if *from_cache { " in the cache" } else { "" }
            );
            "found"
        }
        FetchOutcome::Absent => {
            tracing::info!("{name}: not in the archive");
            "absent"
        }
        FetchOutcome::Failed(error) => {
            if code == 1 {
                // The engine has said why already.
                tracing::debug!("{name}: {error}");
            } else {
                session.output.warn(format!("{name} could not be fetched: {error}"));
            }
            "failed"
        }
    };
    let mut fields = field("name", name)?;
    fields.extend(field("fetched", how)?);
    session.output.object("wal fetch", code, fields);
    Ok(Outcome::Code(code))
}

async fn status(session: &Session) -> CommandResult {
    let opened = session.open(None).await?;
    let facts = opened.cluster.known_facts().await?;
    let mut table = Table::new(&[
        ("SYSTEM", Align::Left),
        ("TIMELINE", Align::Right),
        ("FIRST", Align::Left),
        ("LAST", Align::Left),
        ("SEGMENTS", Align::Right),
        ("STORED", Align::Right),
        ("GAPS", Align::Right),
    ]);
    let mut systems = Vec::new();
    for system in &facts.systems {
        let archive = WalArchive::load(&opened.cluster, system.system_id).await?;
        let mut timelines = Vec::new();
        for (timeline, wal) in archive.timelines() {
            let name = |segno: Option<XLogSegNo>| name_of(&archive, timeline, segno);
            let (first, last) = (name(wal.segments.first())?, name(wal.segments.last())?);
            let gaps = archive
                .gaps(timeline)
                .into_iter()
                .map(|gap| gap_of(&archive, timeline, gap))
                .collect::<Result<Vec<_>, _>>()?;
            for gap in &gaps {
                session.output.warn(format!(
                    "WAL is missing: {} of timeline {timeline}, {} to {}; recovery cannot pass there, take a new backup",
                    size::count(gap.segments, "segment", "segments"),
                    gap.first,
                    gap.last
                ));
            }
            table.row([
                system.system_id.to_string(),
                timeline.to_string(),
                first.clone().unwrap_or_else(|| "-".into()),
                last.clone().unwrap_or_else(|| "-".into()),
                wal.segments.count().to_string(),
                size::bytes(wal.stored_bytes),
                gaps.len().to_string(),
            ]);
            timelines.push(json!({ "timeline": timeline.0, "first": first, "last": last,
                "segments": wal.segments.count(), "partials": wal.partials.len(), "stored_bytes": wal.stored_bytes,
                "gaps": gaps }));
        }
        systems.push(json!({ "system_id": system.system_id.to_string(), "pg_major": system.pg_major,
            "production_timeline": system.production_timeline.0, "timelines": timelines }));
    }
    session.output.result(table.render());
    let mut object = field("cluster", &opened.name)?;
    object.extend(fields(&json!({ "systems": systems }))?);
    end(session, "wal status", object)
}

#[derive(Debug, serde::Serialize)]
struct Gap {
    first: String,
    last: String,
    segments: u64,
}

fn name_of(archive: &WalArchive, timeline: Timeline, segno: Option<XLogSegNo>) -> Result<Option<String>, CommandError> {
    let name = segno.map(|segno| archive.segment_name(timeline, segno)).transpose()?;
    Ok(name.map(|name| name.to_string()))
}

fn gap_of(archive: &WalArchive, timeline: Timeline, gap: SegmentRange) -> Result<Gap, CommandError> {
    Ok(Gap {
        first: archive.segment_name(timeline, gap.first)?.to_string(),
        last: archive.segment_name(timeline, gap.last)?.to_string(),
        segments: gap.count(),
    })
}

/// Makes indexes that are missing, when asked for, and rolls up what is complete.
async fn index(session: &Session, make_missing: bool) -> CommandResult {
    let opened = session.open(None).await?;
    let facts = opened.cluster.known_facts().await?;
    let ctx = session.context();
    let mut systems = Vec::new();
    let mut lines = Vec::new();
    for system in &facts.systems {
        let archive = WalArchive::load(&opened.cluster, system.system_id).await?;
        let made = if make_missing { Some(rebuild(&ctx, &archive).await?) } else { None };
        let rolled = roll_up(&ctx, &archive).await?;
        for (segment, reason) in made.iter().flat_map(|made: &RebuildReport| &made.failed) {
            session.output.warn(format!("{segment}: no index can be made: {reason}"));
        }
        for (segment, reason) in &rolled.left_out {
            session.output.warn(format!("not rolled up, from {segment} on: {reason}"));
        }
        if let Some(made) = &made {
            lines.push(format!(
                "{}: {} made, {} had one",
                system.system_id,
                size::count(made.made, "index", "indexes"),
                size::count(made.indexed, "segment", "segments"),
            ));
        }
        lines.push(format!(
            "{}: {} written, {} there already",
            system.system_id,
            size::count(rolled.written, "rolled-up index", "rolled-up indexes"),
            rolled.there,
        ));
        let reasons = |list: &[(String, String)]| -> Vec<_> {
            list.iter().map(|(segment, reason)| json!({ "segment": segment, "reason": reason })).collect()
        };
        let rebuilt = made.map(|made| {
            json!({ "made": made.made, "had_one": made.indexed, "bytes_written": made.bytes_written,
                "failed": reasons(&made.failed) })
        });
        systems.push(json!({ "system_id": system.system_id.to_string(), "rebuilt": rebuilt, "rolled_up": {
            "written": rolled.written, "there": rolled.there, "bytes_written": rolled.bytes_written,
            "left_out": reasons(&rolled.left_out) } }));
    }
    session.output.result(lines.join("\n"));
    let mut object = field("cluster", &opened.name)?;
    object.extend(fields(&json!({ "systems": systems }))?);
    end(session, "wal index", object)
}
