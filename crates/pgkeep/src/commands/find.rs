//! `find`: what happened, and the command that restores to just before it.

use super::{end, field, fields};
use crate::cli::{FindArgs, PeriodArgs};
use crate::error::{CommandError, CommandResult};
use crate::output::{size, table};
use crate::quote;
use crate::session::{Opened, Session};
use crate::when;
use engine::find::{self, Filter, FindReport, FindRequest, Hit, Instead, Object, ObjectKind, Pattern};
use jiff::Timestamp;
use jiff::tz::TimeZone;
use pg_format::Timeline;
use serde_json::{Value, json};
use std::collections::BTreeMap;

/// Events that are offered to choose from.
const CHOICES_MAX: usize = 200;
/// Objects that are named in a line.
const NAMED_MAX: usize = 6;

pub(crate) async fn run(session: &Session, args: &FindArgs) -> CommandResult {
    let zone = when::zone(args.when.time_zone.as_deref())?;
    let request = request(session, args, &zone)?;
    let opened = session.open(None).await?;
    let report = find::find(&session.context(), &opened.cluster, &request).await?;
    report.warnings.iter().for_each(|warning| session.output.warn(warning));
    if report.hits.is_empty() {
        return Err(nothing(&report, "nothing like that was found", &zone));
    }
    if report.left_out > 0 {
        let more = size::count(report.left_out, "earlier hit is", "earlier hits are");
        session.output.note(format!("{more} not shown; narrow the search with --from, or say --limit"));
    }
    let shown: Vec<String> = report.hits.iter().map(|hit| text(session, &opened, &report, hit, &zone)).collect();
    session.output.result(shown.join("\n\n"));
    session.output.note(format!("The archive reaches to {}.", reaches(&report, &zone)));
    let mut object = field("cluster", &opened.name)?;
    object.extend(fields(&report)?);
    object.insert("hits".into(), hits_json(session, &opened, &report)?);
    end(session, "find", object)
}

/// The hits with the commands that restore to just before them.
pub(super) fn hits_json(session: &Session, opened: &Opened, report: &FindReport) -> Result<Value, CommandError> {
    let with_command = |hit: &Hit| -> Result<Value, CommandError> {
        let mut object = fields(hit)?;
        let command = hit.reachable.then(|| command(session, opened, report, hit));
        object.insert("restore".into(), json!(command));
        Ok(Value::Object(object))
    };
    Ok(Value::Array(report.hits.iter().map(with_command).collect::<Result<_, _>>()?))
}

fn request(session: &Session, args: &FindArgs, zone: &TimeZone) -> Result<FindRequest, CommandError> {
    let mut filter = Filter::of_words(args.words.iter().map(String::as_str));
    for kind in &args.kinds {
        filter.kinds.push(kind.parse().map_err(|error: String| CommandError::usage(format!("--kind: {error}")))?);
    }
    filter.tables = args.tables.iter().map(|name| Pattern::new(name)).collect();
    filter.schema = args.schema.as_deref().map(Pattern::new);
    filter.database = args.database.as_deref().map(Pattern::new);
    filter.xid = args.xid.as_deref().map(|text| xid("--xid", text)).transpose()?;
    let (from, to) = period(session, &args.when, zone)?;
    let (timeline, system_id) = (args.when.timeline.map(Timeline), args.when.system_id());
    let limit = usize::try_from(args.limit).unwrap_or(usize::MAX);
    Ok(FindRequest { from, to, rows_min: args.min_rows, timeline, system_id, ..FindRequest::of(filter, limit) })
}

/// A transaction ID; of 64 bits the lower 32 are what WAL knows.
pub(super) fn xid(option: &str, text: &str) -> Result<u32, CommandError> {
    let xid = text.parse::<u64>().ok().map(|xid| xid as u32).filter(|xid| *xid >= 3);
    xid.ok_or_else(|| {
        CommandError::usage(format!("{option} {text} is not a transaction ID"))
            .hint("give the number that pg_current_xact_id() showed, such as 74012")
    })
}

/// From when to when.
pub(super) fn period(
    session: &Session,
    args: &PeriodArgs,
    zone: &TimeZone,
) -> Result<(Option<Timestamp>, Option<Timestamp>), CommandError> {
    let read = |text: &Option<String>| -> Result<Option<Timestamp>, CommandError> {
        let Some(text) = text else { return Ok(None) };
        let reading = when::read(text, Timestamp::now(), zone)?;
        session.output.note(&reading.how);
        Ok(Some(reading.time))
    };
    let (from, to) = (read(&args.from)?, read(&args.to)?);
    if from.zip(to).is_some_and(|(from, to)| from > to) {
        return Err(CommandError::usage("--from lies after --to"));
    }
    Ok((from, to))
}

/// Nothing was found; what there is instead, and what to try.
pub(super) fn nothing(report: &FindReport, message: &str, zone: &TimeZone) -> CommandError {
    let until = reaches(report, zone);
    let mut error = CommandError::not_found(format!("{message} in the archived WAL of timeline {}", report.timeline))
        .hint(format!("the archive reaches from {} to {until}; what came later is not there yet", report.from_lsn));
    let Instead { happened, known, like, databases } = &report.instead;
    if !databases.is_empty() {
        error = error.hint(format!("no database is called like that; there are: {}", databases.join(", ")));
    }
    if !happened.is_empty() {
        error = error.hint(format!("there is something about: {}", happened.join(", ")));
    } else if !known.is_empty() {
        error = error.hint(format!(
            "{}: known, but nothing like that happened to it; `pgkeep wal log --table` shows what did",
            known.join(", ")
        ));
    } else if !like.is_empty() {
        error = error.hint(format!("nothing is called like that; there are: {}", like.join(", ")));
    } else if databases.is_empty() {
        error = error.hint("leave out words, or lower --min-rows; `pgkeep find` alone shows all that is large");
    }
    if !report.other_systems.is_empty() {
        let others: Vec<String> = report.other_systems.iter().map(ToString::to_string).collect();
        error = error.hint(format!(
            "only system identifier {} was searched; of before there is: --system-id {}",
            report.system_id,
            others.join(", --system-id ")
        ));
    }
    error
}

/// Up to where something can be found.
fn reaches(report: &FindReport, zone: &TimeZone) -> String {
    report.to_time.map_or_else(|| report.to_lsn.to_string(), |time| when::seconds(time, zone))
}

/// A hit in lines for people.
fn text(session: &Session, opened: &Opened, report: &FindReport, hit: &Hit, zone: &TimeZone) -> String {
    let mut lines = vec![headline(hit, zone)];
    let mut facts = Vec::new();
    facts.extend(hit.xid.map(|xid| format!("transaction {xid}")));
    facts.push(format!("LSN {}", hit.lsn));
    if hit.timeline != report.timeline {
        facts.push(format!("timeline {}", hit.timeline));
    }
    facts.extend(hit.wal_bytes.map(|bytes| format!("{} of WAL", size::bytes(bytes))));
    lines.push(format!("  {}", facts.join(", ")));
    lines.extend(hit.notes.iter().map(|note| format!("  note: {}", table::printable(note))));
    if hit.reachable {
        lines.push(format!("  {}", command(session, opened, report, hit)));
    }
    lines.join("\n")
}

/// When, what, and to what.
pub(super) fn headline(hit: &Hit, zone: &TimeZone) -> String {
    let time = hit.time.map_or_else(|| "(no time)".to_owned(), |time| when::local(time, zone));
    let what = match &hit.name {
        Some(name) => format!("'{name}'"),
        None => objects(hit),
    };
    table::printable(format!("{time}  {} {what}", hit.words()).trim_end())
}

fn objects(hit: &Hit) -> String {
    let side = |object: &&Object| matches!(object.kind, ObjectKind::Index | ObjectKind::Toast | ObjectKind::Sequence);
    let only_side = hit.objects.iter().all(|object| side(&object));
    let main: Vec<&Object> = hit.objects.iter().filter(|object| only_side || !side(object)).collect();
    let first = main.first().map(|object| object.kind);
    let one = |object: &&Object| {
        let kind = if Some(object.kind) == first { String::new() } else { format!("{} ", object.kind.words()) };
        let rows = rows(object);
        if rows.is_empty() { format!("{kind}{object}") } else { format!("{kind}{object} ({rows})") }
    };
    let mut parts: Vec<String> = main.iter().take(NAMED_MAX).map(one).collect();
    let more = (main.len().saturating_sub(NAMED_MAX)) as u64 + hit.objects_left_out;
    if more > 0 {
        parts.push(format!("and {more} more"));
    }
    let mut counts: BTreeMap<ObjectKind, u64> = BTreeMap::new();
    if !only_side {
        hit.objects.iter().filter(side).for_each(|object| *counts.entry(object.kind).or_default() += 1);
    }
    let counts = counts.into_iter().map(|(kind, count)| {
        let many = if kind == ObjectKind::Index { "indexes".to_owned() } else { format!("{}s", kind.words()) };
        format!("with {}", size::count(count, kind.words(), &many))
    });
    parts.into_iter().chain(counts).collect::<Vec<_>>().join(", ")
}

/// What is known of an object's rows.
pub(super) fn rows(object: &Object) -> String {
    let parts =
        [(object.rows_deleted, "deleted"), (object.rows_updated, "updated"), (object.rows_inserted, "inserted")];
    let mut parts: Vec<String> = parts
        .into_iter()
        .filter(|(rows, _)| *rows > 0)
        .map(|(rows, what)| format!("{} {what}", size::count(rows, "row", "rows")))
        .collect();
    parts.extend(object.rows_before.map(|rows| format!("about {}", size::count(rows, "row", "rows"))));
    parts.join(", ")
}

/// The command that restores to just before a hit.
fn command(session: &Session, opened: &Opened, report: &FindReport, hit: &Hit) -> String {
    let word = |text: &str| {
        let plain = |c: char| c.is_ascii_alphanumeric() || "_-./:".contains(c);
        if !text.is_empty() && text.chars().all(plain) { text.to_owned() } else { quote::shell(text) }
    };
    let mut command = "pgkeep".to_owned();
    if let Some(config) = &session.global.config {
        command += &format!(" --config {}", word(&config.to_string_lossy()));
    }
    if let Some(repository) = &session.global.repo {
        command += &format!(" --repo {}", word(repository));
    }
    command += &format!(" restore {} --to-dir DIR", word(&opened.name));
    match &hit.target.restore_point {
        Some(name) => command += &format!(" --restore-point {}", word(name)),
        None => command += &format!(" --lsn {}", hit.target.lsn),
    }
    if hit.target.exclusive {
        command += " --exclusive";
    }
    if let Some(backup) = hit.target.backup {
        command += &format!(" --backup {backup}");
    }
    if !report.is_production {
        command += &format!(" --timeline {}", report.timeline);
    }
    command
}

/// The one hit that is meant, for `restore --before`. Several are a list to choose from.
pub(super) async fn only_one(
    session: &Session,
    opened: &Opened,
    filter: Filter,
    timeline: Option<Timeline>,
    zone: &TimeZone,
) -> Result<Hit, CommandError> {
    // Who asks for the delete means the large one, when there is a large one.
    let request = FindRequest { timeline, prefer_large: true, ..FindRequest::of(filter, CHOICES_MAX) };
    let report = find::find(&session.context(), &opened.cluster, &request).await?;
    if report.smaller > 0 {
        let smaller = size::count(report.smaller, "change", "changes");
        session.output.note(format!("{smaller} of fewer than {} rows not considered", find::ROWS_MIN));
    }
    report.warnings.iter().for_each(|warning| session.output.warn(warning));
    match report.targets()[..] {
        [] => Err(nothing(&report, "there is no such event", zone)),
        [hit] if hit.reachable => Ok(hit.clone()),
        [hit] => Err(CommandError::not_found(format!("no backup reaches what was before: {}", headline(hit, zone)))
            .hint("`pgkeep list` shows the backups; only what happened after one was finished can be undone")),
        ref several => {
            for hit in several {
                session.output.always(text(session, opened, &report, hit, zone));
            }
            let left_out = if report.left_out > 0 { " at least" } else { "" };
            let message = format!("{left_out} {} events are meant, at different places", several.len());
            Err(CommandError::usage(message.trim_start().to_owned())
                .hint("choose one of those above, and use its command")
                .field("choices", hits_json(session, opened, &report)?))
        }
    }
}
