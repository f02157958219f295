//! `restore`: from words to a plan, from the plan to a cluster.

use super::{end, field, fields, find, list, not_yet, stopped_as};
use crate::cli::{Action, RestoreArgs};
use crate::error::{CommandError, CommandResult};
use crate::estimate::{Estimate, Memory};
use crate::output::{size, table};
use crate::session::{Opened, Session};
use crate::when;
use engine::find::{Filter, Loss, OpenState, what_is_lost};
use engine::restore::{
    self, ExistingFiles, RecoveryTarget, RestorePlan, RestoreReport, RestoreRequest, StartOptions, StartedServer,
    StartedState, TablespaceMapping, TargetAction, TimelineChoice, WalCheck,
};
use jiff::Timestamp;
use jiff::tz::TimeZone;
use pg_format::Timeline;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

/// How long a started server may take to reach its target.
const START_TIME_MAX: Duration = Duration::from_secs(24 * 3600);

pub(crate) async fn run(session: &Session, args: &RestoreArgs) -> CommandResult {
    if args.delta {
        return Err(not_yet("--delta"));
    }
    let zone = when::zone(args.time_zone.as_deref())?;
    let target = target(session, args, &zone)?;
    let event = event(args)?;
    if event.is_none() {
        check_options(args, &target)?;
    } else if args.exclusive {
        return Err(CommandError::usage("--exclusive goes with --at, --xid or --lsn only"));
    }
    let timeline = timeline(args.timeline.as_deref())?;
    let tablespaces = args.tablespaces.iter().map(|text| mapping(text)).collect::<Result<Vec<_>, _>>()?;
    let target_dir = std::path::absolute(&args.to_dir)
        .map_err(|error| CommandError::usage(format!("--to-dir {}: {error}", args.to_dir.display())))?;
    let opened = session.open(args.which.cluster.as_deref()).await?;
    let backup = match &args.backup {
        Some(name) => Some(list::find(&opened.cluster, name).await?),
        None => None,
    };
    let (mut target, mut exclusive) = (target, args.exclusive);
    if let Some(filter) = event {
        let along = if let TimelineChoice::Number(number) = timeline { Some(number) } else { None };
        let hit = find::only_one(session, &opened, filter, along, &zone).await?;
        session.output.note(format!("just before: {}", find::headline(&hit, &zone)));
        hit.notes.iter().for_each(|note| session.output.note(format!("note: {note}")));
        (target, exclusive) = (RecoveryTarget::Lsn(hit.target.lsn), hit.target.exclusive);
    }
    let request = RestoreRequest {
        target_dir,
        backup,
        target,
        exclusive,
        timeline,
        action: action(args.action),
        tablespaces,
        existing: if args.force { ExistingFiles::Remove } else { ExistingFiles::Refuse },
        standby: args.standby,
        archive: args.archive,
        restore_command: opened.command_strings(&session.environment.program).restore(),
        owner: None,
        wal_check: WalCheck::Facts,
        workers: opened.workers(args.workers),
        bin_dirs: bin_dirs(args.pg_bin.as_deref()),
    };
    carry_out(session, args, &opened, &request, &zone).await
}

async fn carry_out(
    session: &Session,
    args: &RestoreArgs,
    opened: &Opened,
    request: &RestoreRequest,
    zone: &TimeZone,
) -> CommandResult {
    let context = session.context();
    let plan = restore::plan(&context, &opened.cluster, request)
        .await
        .map_err(|error| stopped_as(error.into(), "stopped on request; nothing was written"))?;
    plan.warnings.iter().for_each(|warning| session.output.warn(warning));
    let memory = Memory::new(&opened.config.state_dir(&session.environment), &opened.repository.url);
    let estimate = memory.estimate(&plan);
    let mut object = field("plan", &plan)?;
    object.extend(field("estimate", &estimate)?);
    if args.dry_run {
        session.output.result(plan_text(&plan, estimate.as_ref(), zone));
        if plan.target != RecoveryTarget::Latest {
            // It is told for people to choose; that it is not known is no reason to refuse.
            match what_is_lost(&context, &opened.cluster, &plan).await {
                Ok(loss) => {
                    session.output.result(loss_text(&loss, zone));
                    object.extend(field("lost", &loss)?);
                }
                Err(error) => session.output.warn(format!("what lies after the target is not known: {error}")),
            }
        }
        session.output.result("Nothing was written: this was --dry-run.");
        return end(session, "restore", object);
    }
    session.output.note(plan_text(&plan, estimate.as_ref(), zone));
    let dir = plan.target_dir.display().to_string();
    // The engine has said what to do with what is there.
    let stopped = format!("stopped on request; {dir} is incomplete");
    let report =
        restore::apply(&context, &opened.cluster, &plan).await.map_err(|error| stopped_as(error.into(), &stopped))?;
    report.warnings.iter().filter(|text| !plan.warnings.contains(text)).for_each(|text| session.output.warn(text));
    session.output.result(report_text(&report));
    // How to start it need not be said to who has it started.
    let notes = report.notes.iter().filter(|note| !(args.start && note.starts_with("when it starts")));
    notes.for_each(|note| session.output.result(format!("note: {note}")));
    object.extend(field("restored", fields(&report)?)?);
    let mut replay = None;
    if args.start {
        let options = StartOptions {
            bin_dirs: request.bin_dirs.clone(),
            port: args.port,
            listen_addresses: String::new(),
            timeout: START_TIME_MAX,
        };
        let stopped =
            format!("stopped on request; the files in {dir} are whole, the server on them may still be recovering");
        let begun = Instant::now();
        let server = restore::start(&context, &plan.target_dir, &options)
            .await
            .map_err(|error| stopped_as(error.into(), &stopped))?;
        replay = Some(begun.elapsed());
        server.warnings.iter().for_each(|warning| session.output.warn(warning));
        session.output.result(server_text(&server));
        object.extend(field("server", fields(&server)?)?);
    }
    memory.note(&plan, &report, replay);
    end(session, "restore", object)
}

/// The event that `--before` and `--before-xid` name.
fn event(args: &RestoreArgs) -> Result<Option<Filter>, CommandError> {
    if let Some(words) = &args.before {
        let filter = Filter::of_words([words.as_str()]);
        if filter == Filter::default() {
            return Err(CommandError::usage("--before needs words").hint("such as --before 'drop orders'"));
        }
        return Ok(Some(filter));
    }
    let xid = args.before_xid.as_deref().map(|text| find::xid("--before-xid", text)).transpose()?;
    Ok(xid.map(|xid| Filter { xid: Some(xid), ..Filter::default() }))
}

fn target(session: &Session, args: &RestoreArgs, zone: &TimeZone) -> Result<RecoveryTarget, CommandError> {
    if let Some(text) = &args.at {
        let now = Timestamp::now();
        let reading = when::read(text, now, zone)?;
        if reading.time > now {
            return Err(CommandError::usage(format!("--at lies in the future: {}", reading.how))
                .hint("check the time zone, or give the offset, such as +00"));
        }
        session.output.note(&reading.how);
        return Ok(RecoveryTarget::Time(reading.time));
    }
    if let Some(text) = &args.xid {
        // 64-bit IDs, as pg_current_xact_id() shows them, carry the epoch above the 32 bits that recovery knows.
        let xid = text.parse::<u64>().ok().filter(|xid| *xid as u32 >= 3);
        return xid.map(|xid| RecoveryTarget::Xid(xid as u32)).ok_or_else(|| {
            CommandError::usage(format!("--xid {text} is not a transaction ID"))
                .hint("give the number that pg_current_xact_id() showed, such as 74012")
        });
    }
    if let Some(text) = &args.lsn {
        return text.parse().map(RecoveryTarget::Lsn).map_err(|_| {
            CommandError::usage(format!("--lsn {text} is not a place in the WAL"))
                .hint("write it as PostgreSQL shows it, such as 0/3000028")
        });
    }
    if let Some(name) = &args.restore_point {
        return Ok(RecoveryTarget::RestorePoint(name.clone()));
    }
    Ok(if args.immediate { RecoveryTarget::Immediate } else { RecoveryTarget::Latest })
}

fn check_options(args: &RestoreArgs, target: &RecoveryTarget) -> Result<(), CommandError> {
    let has_edges = matches!(target, RecoveryTarget::Time(_) | RecoveryTarget::Xid(_) | RecoveryTarget::Lsn(_));
    if args.exclusive && !has_edges {
        return Err(CommandError::usage("--exclusive goes with --at, --xid or --lsn only"));
    }
    if args.action.is_some() && (*target == RecoveryTarget::Latest || args.standby) {
        return Err(CommandError::usage("--action needs a target to act at")
            .hint("give --at, --xid, --lsn, --restore-point or --immediate; the end of the WAL always promotes"));
    }
    Ok(())
}

fn action(action: Option<Action>) -> TargetAction {
    match action {
        Some(Action::Pause) => TargetAction::Pause,
        Some(Action::Shutdown) => TargetAction::Shutdown,
        Some(Action::Promote) | None => TargetAction::Promote,
    }
}

fn timeline(text: Option<&str>) -> Result<TimelineChoice, CommandError> {
    match text {
        None | Some("latest") => Ok(TimelineChoice::Latest),
        Some("current") => Ok(TimelineChoice::Current),
        Some(text) => {
            let number = text.parse().ok().filter(|number| *number > 0);
            number
                .map(|number| TimelineChoice::Number(Timeline(number)))
                .ok_or_else(|| CommandError::usage(format!("--timeline {text}: current, latest or a number is wanted")))
        }
    }
}

pub(crate) fn mapping(text: &str) -> Result<TablespaceMapping, CommandError> {
    let bad = || {
        CommandError::usage(format!("--tablespace {text}: write OLD=NEW"))
            .hint("OLD is the tablespace's name, OID or location; NEW is an absolute path of an empty directory")
    };
    // A path may hold '='; the new one is absolute, so the last "=/" separates.
    let at = text.rfind("=/").ok_or_else(bad)?;
    if at == 0 {
        return Err(bad());
    }
    Ok(TablespaceMapping { from: text[..at].to_owned(), to: PathBuf::from(&text[at + 1..]) })
}

/// Where PostgreSQL's programs are: as told, else Debian's and Red Hat's places, else the PATH.
pub(crate) fn bin_dirs(told: Option<&Path>) -> Vec<PathBuf> {
    if let Some(dir) = told {
        return vec![dir.to_owned()];
    }
    let mut dirs = Vec::new();
    for (base, prefix) in [("/usr/lib/postgresql", ""), ("/usr", "pgsql-"), ("/opt/postgresql", "")] {
        let entries = std::fs::read_dir(base).into_iter().flatten().flatten();
        let named = entries.filter(|entry| entry.file_name().to_string_lossy().starts_with(prefix));
        dirs.extend(named.map(|entry| entry.path().join("bin")).filter(|dir| dir.join("postgres").exists()));
    }
    dirs.sort();
    dirs.extend(crate::environment::path_dirs().into_iter().filter(|dir| dir.join("postgres").exists()));
    dirs
}

fn target_text(target: &RecoveryTarget, exclusive: bool, zone: &TimeZone) -> String {
    let edge = if exclusive { "just before" } else { "up to" };
    match target {
        RecoveryTarget::Latest => "to the end of the archived WAL".into(),
        RecoveryTarget::Immediate => "until the backup is consistent".into(),
        RecoveryTarget::Time(time) => format!("{edge} {}", when::both(*time, zone)),
        RecoveryTarget::Xid(xid) => format!("{edge} transaction {xid}"),
        RecoveryTarget::Lsn(lsn) => format!("{edge} {lsn}"),
        RecoveryTarget::RestorePoint(name) => format!("up to the restore point '{name}'"),
    }
}

fn plan_text(plan: &RestorePlan, estimate: Option<&Estimate>, zone: &TimeZone) -> String {
    let archive = if plan.archive { "as on the origin" } else { "off, so that it cannot write into this archive" };
    let then = match (plan.standby, plan.action) {
        (true, _) => "goes on replaying, as a standby",
        (false, TargetAction::Pause) => "pauses, read-only",
        (false, TargetAction::Promote) => "takes writes, on a new timeline",
        (false, TargetAction::Shutdown) => "shuts down",
    };
    let wal = &plan.wal;
    let mut lines = vec![table::facts(&[
        ("cluster", Some(plan.cluster.to_string())),
        ("backup", Some(format!("{}: {}", plan.backup, plan.why))),
        ("recover", Some(target_text(&plan.target, plan.exclusive, zone))),
        ("timeline", Some(plan.timeline.to_string())),
        ("then it", Some(then.to_owned())),
        (
            "WAL",
            Some(if wal.segments == 0 {
                "all that is needed is in the backup itself".to_owned()
            } else {
                format!(
                    "{}, {} to {}, all in the repository",
                    size::count(wal.segments, "segment", "segments"),
                    wal.first,
                    wal.last
                )
            }),
        ),
        ("PostgreSQL", Some(plan.pg_version.clone())),
        ("data directory", Some(plan.target_dir.display().to_string())),
        (
            "size",
            Some(format!(
                "{}, {}; {} to fetch",
                size::count(plan.files, "file", "files"),
                size::bytes(plan.bytes),
                size::bytes(plan.fetch_bytes)
            )),
        ),
        ("time", estimate.map(Estimate::text)),
        ("archiving", Some(archive.to_owned())),
    ])];
    for space in plan.tablespaces.iter().filter(|space| !space.in_place) {
        lines.push(format!("tablespace {}: {} (was {})", space.name, space.destination.display(), space.origin));
    }
    for file in &plan.config_files {
        lines.push(format!("configuration {} is put beside it: {}", file.origin, file.destination.display()));
    }
    if plan.existing == ExistingFiles::Remove {
        lines.push("what is in these directories now is removed first".into());
    }
    lines.join("\n")
}

/// What lies after the target.
fn loss_text(loss: &Loss, zone: &TimeZone) -> String {
    const SHOWN: usize = 15;
    let read_to = loss.read_to;
    let mut lines = Vec::new();
    if loss.transactions == 0 {
        lines.push(format!("No transaction committed after the target in the archived WAL, which ends at {read_to}."));
    } else {
        let time = |time: Option<Timestamp>| time.map_or("?".to_owned(), |time| when::local(time, zone));
        let committed = size::count(loss.transactions, "transaction", "transactions");
        lines.push(format!(
            "NOT in it: {committed}, committed from {} to {}, as far as WAL is archived ({read_to})",
            time(loss.first_time),
            time(loss.last_time)
        ));
    }
    for relation in loss.relations.iter().take(SHOWN) {
        lines.push(format!("  {}: {}", relation.object, find::rows(&relation.object)));
    }
    let more = loss.relations.len().saturating_sub(SHOWN) as u64 + loss.relations_left_out;
    if more > 0 {
        lines.push(format!("  and {}", size::count(more, "more relation", "more relations")));
    }
    lines.extend(loss.events.iter().take(SHOWN).map(|hit| format!("  {}", find::headline(hit, zone))));
    if !loss.same_instant.is_empty() {
        let xids: Vec<String> = loss.same_instant.iter().map(u32::to_string).collect();
        lines.push(format!("Committed at the very instant, but not in it: transactions {}", xids.join(", ")));
    }
    for open in &loss.open {
        let what = match open.state {
            OpenState::Committed => "committed later, so it is not in it".to_owned(),
            OpenState::Aborted => "was rolled back later".to_owned(),
            OpenState::Unknown => "its end is not archived".to_owned(),
            OpenState::Prepared => {
                let gid = open.prepared.as_deref().unwrap_or("?");
                format!("is prepared there as '{gid}': end it with COMMIT PREPARED or ROLLBACK PREPARED")
            }
        };
        lines.push(format!("Open at the target: transaction {}, {what}", open.xid));
    }
    if loss.open_left_out > 0 {
        lines.push(format!("and {} more were open", loss.open_left_out));
    }
    if !loss.open_complete {
        lines.push("note: more may have been open there; WAL that would tell could not be read".into());
    }
    lines.extend(loss.warnings.iter().map(|warning| format!("note: {warning}")));
    lines.iter().map(|line| table::printable(line)).collect::<Vec<_>>().join("\n")
}

fn report_text(report: &RestoreReport) -> String {
    let seconds = report.elapsed_ms as f64 / 1000.0;
    let rate = report.bytes as f64 / seconds.max(0.001);
    format!(
        "Restored backup {} to {}: {}, {} in {seconds:.1} s ({}/s).",
        report.backup,
        report.target_dir.display(),
        size::count(report.files, "file", "files"),
        size::bytes(report.bytes),
        size::bytes(rate as u64)
    )
}

fn server_text(server: &StartedServer) -> String {
    let state = match server.state {
        StartedState::Promoted => "PostgreSQL runs on it and takes writes.",
        StartedState::Paused => "PostgreSQL has reached the target and waits there, read-only.",
        StartedState::Standby => "PostgreSQL runs on it as a standby.",
        StartedState::ShutDown => "PostgreSQL reached the target and shut down, as told.",
    };
    let runs = server.state != StartedState::ShutDown;
    let facts = table::facts(&[
        ("connect", runs.then(|| format!("psql '{}'", server.conninfo))),
        (
            "go on from there",
            (server.state == StartedState::Paused).then(|| "SELECT pg_wal_replay_resume()".to_owned()),
        ),
        ("replayed to", server.replayed_lsn.map(|lsn| lsn.to_string())),
        ("last transaction", server.replayed_time.clone()),
        ("log", Some(server.log.display().to_string())),
        ("stop", runs.then(|| server.stop_command.clone())),
    ]);
    format!("{state}\n{facts}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tablespaces_and_timelines_are_read() {
        let fast = mapping("fast=/srv/fast").unwrap();
        assert_eq!((fast.from.as_str(), fast.to), ("fast", PathBuf::from("/srv/fast")));
        let odd = mapping("/a=b=/c").unwrap();
        assert_eq!((odd.from.as_str(), odd.to), ("/a=b", PathBuf::from("/c")));
        for bad in ["", "fast", "fast=", "=/x", "fast=relative"] {
            assert_eq!(mapping(bad).unwrap_err().kind.exit_code(), 2, "{bad}");
        }
        assert_eq!(timeline(Some("3")).unwrap(), TimelineChoice::Number(Timeline(3)));
        assert_eq!(timeline(None).unwrap(), TimelineChoice::Latest);
        assert!(timeline(Some("0")).is_err() && timeline(Some("newest")).is_err());
    }
}
