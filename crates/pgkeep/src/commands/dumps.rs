//! What `list`, `show`, `delete`, `verify` and `export` do with dumps.

use super::dump::{absolute, export_options, export_to, tools};
use super::{end, field, fields};
use crate::cli::{DumpForm, ExportArgs, ExportForm, ToolArgs};
use crate::error::{CommandError, CommandResult, Outcome};
use crate::output::{size, table};
use crate::session::{Opened, Session};
use crate::when;
use dump::export::ExportTo;
use dump::verify::VerifyReport;
use jiff::{SignedDuration, Timestamp};
use repo::dump::DumpFacts;
use repo::{BackupId, LeaseHolder};
use serde::Serialize;
use serde_json::{Map, Value};
use table::{Align, Table};

/// A dump in the list.
#[derive(Debug, Serialize)]
struct Listed {
    id: BackupId,
    /// `ok`, `incomplete` (the login could not read everything), `unreadable`.
    state: &'static str,
    problem: Option<String>,
    label: Option<String>,
    started: Option<Timestamp>,
    finished: Option<Timestamp>,
    databases: Vec<String>,
    globals: bool,
    pg_version: Option<String>,
    bytes: Option<u64>,
    stored_bytes: Option<u64>,
}

fn listed(id: BackupId, facts: Result<DumpFacts, String>) -> Listed {
    match facts {
        Ok(facts) => Listed {
            id,
            state: if facts.warnings.is_empty() { "ok" } else { "incomplete" },
            problem: facts.warnings.first().cloned(),
            label: facts.label,
            started: Some(facts.started),
            finished: Some(facts.finished),
            databases: facts.databases.into_iter().map(|database| database.name).collect(),
            globals: facts.globals.is_some(),
            pg_version: Some(facts.pg_version),
            bytes: Some(facts.bytes),
            stored_bytes: Some(facts.stored_bytes),
        },
        Err(problem) => Listed {
            id,
            state: "unreadable",
            problem: Some(problem),
            label: None,
            started: None,
            finished: None,
            databases: Vec::new(),
            globals: false,
            pg_version: None,
            bytes: None,
            stored_bytes: None,
        },
    }
}

/// The dumps of a cluster, shown when there are any; the fields for JSON.
pub(super) async fn list(session: &Session, opened: &Opened) -> Result<Map<String, Value>, CommandError> {
    let mut dumps = Vec::new();
    for id in opened.cluster.dumps().await? {
        match opened.cluster.dump_facts(id).await {
            Ok(facts) => dumps.push(listed(id, Ok(facts))),
            Err(error) if error.is_not_found() => {}
            Err(error) if error.is_damage() => dumps.push(listed(id, Err(error.to_string()))),
            Err(error) => return Err(error.into()),
        }
    }
    let zone = when::local_zone();
    let mut shown = Table::new(&[
        ("DUMP", Align::Left),
        ("STARTED", Align::Left),
        ("TOOK", Align::Right),
        ("DATABASES", Align::Left),
        ("SIZE", Align::Right),
        ("STORED", Align::Right),
        ("POSTGRESQL", Align::Left),
        ("STATE", Align::Left),
        ("LABEL", Align::Left),
    ]);
    for dump in &dumps {
        let took = dump.started.zip(dump.finished).map(|(from, to)| to.as_second() - from.as_second());
        let text = |value: Option<String>| value.unwrap_or_else(|| "?".into());
        let more = if dump.globals { " and globals" } else { "" };
        shown.row([
            dump.id.to_string(),
            when::short(dump.started.unwrap_or(dump.id.time()), &zone),
            text(took.map(|seconds| when::length(seconds.max(0).unsigned_abs()))),
            format!("{}{more}", dump.databases.join(", ")),
            text(dump.bytes.map(size::bytes)),
            text(dump.stored_bytes.map(size::bytes)),
            text(dump.pg_version.as_deref().map(|version| version.split(' ').next().unwrap_or_default().to_owned())),
            dump.state.to_owned(),
            dump.label.clone().unwrap_or_default(),
        ]);
    }
    if !dumps.is_empty() {
        session.output.result(shown.render());
    }
    for dump in dumps.iter().filter(|dump| dump.state == "unreadable") {
        session.output.warn(format!("dump {}: {}", dump.id, dump.problem.as_deref().unwrap_or_default()));
    }
    let unfinished = opened.cluster.unfinished_dumps().await?;
    for id in &unfinished {
        session.output.note(format!("Dump {id} is being made, or was broken off; `pgkeep delete {id}` removes it."));
    }
    let mut fields = field("dumps", &dumps)?;
    fields.extend(field("unfinished_dumps", &unfinished)?);
    Ok(fields)
}

/// `show` of a dump.
pub(super) async fn show(session: &Session, opened: &Opened, id: BackupId, tables: bool) -> CommandResult {
    let facts = opened.cluster.dump_facts(id).await?;
    let zone = when::local_zone();
    let took = (facts.finished.as_second() - facts.started.as_second()).max(0).unsigned_abs();
    session.output.result(table::facts(&[
        ("dump", Some(facts.dump.to_string())),
        ("cluster", Some(facts.cluster.to_string())),
        ("label", facts.label.clone()),
        ("started", Some(when::seconds(facts.started, &zone))),
        ("finished", Some(format!("{}, after {}", when::seconds(facts.finished, &zone), when::length(took)))),
        ("PostgreSQL", Some(facts.pg_version.clone())),
        ("globals", Some(if facts.globals.is_some() { "yes" } else { "no" }.to_owned())),
        (
            "synchronised",
            facts.synchronised_within_us.map(|within| format!("snapshots within {:.3} s", within as f64 / 1e6)),
        ),
        ("size", Some(size::bytes(facts.bytes))),
        ("stored", Some(format!("{} ({})", size::bytes(facts.stored_bytes), facts.compression))),
        ("host", Some(facts.host.clone())),
        ("made by", Some(facts.made_by.clone())),
    ]));
    for database in &facts.databases {
        let rows: u64 = database.data.iter().map(|data| data.rows).sum();
        session.output.result(format!(
            "\n{}: {} with data, {}, snapshot of {} (definitions by pg_dump {})",
            database.name,
            size::count(database.data.len() as u64, "table", "tables"),
            size::count(rows, "row", "rows"),
            when::both(database.snapshot_time, &zone),
            database.tools
        ));
        if tables {
            let columns =
                [("ROWS", Align::Right), ("SIZE", Align::Right), ("PARTS", Align::Right), ("TABLE", Align::Left)];
            let mut shown = Table::new(&columns);
            for data in &database.data {
                let name =
                    if data.schema.is_empty() { data.name.clone() } else { format!("{}.{}", data.schema, data.name) };
                let parts = data.parts.len().to_string();
                shown.row([data.rows.to_string(), size::bytes(data.bytes), parts, table::printable(&name).to_string()]);
            }
            session.output.result(shown.render());
        }
    }
    facts.warnings.iter().for_each(|warning| session.output.note(format!("said when it was made: {warning}")));
    end(session, "show", field("dump", &facts)?)
}

/// A dump that is being made would lose what it has stored.
pub(super) async fn refuse_running(
    opened: &Opened,
    unfinished: &[BackupId],
    ids: &[BackupId],
) -> Result<(), CommandError> {
    for id in ids.iter().filter(|id| unfinished.contains(id)) {
        let Some(intent) = opened.cluster.dump_intent(*id).await? else { continue };
        let holder = LeaseHolder {
            host: intent.host.clone(),
            boot: intent.boot,
            pid: intent.pid,
            process_start: intent.process_start,
        };
        let today = intent.started.duration_until(Timestamp::now()) < SignedDuration::from_hours(24);
        if !engine::process_is_gone(&holder) && (today || holder.host == engine::host_facts().name) {
            let message = format!("dump {id} is being made, by process {} on {}", intent.pid, intent.host);
            return Err(CommandError::failed(message)
                .hint("stop it first; what a process of another host left can be deleted after a day"));
        }
    }
    Ok(())
}

/// `delete` of dumps. Nothing else uses what they stored, so it goes at once.
pub(super) async fn delete(
    session: &Session,
    opened: &Opened,
    ids: &[BackupId],
    dry_run: bool,
) -> Result<Map<String, Value>, CommandError> {
    let mut deleted = Vec::new();
    for id in ids {
        if dry_run {
            session.output.result(format!("Dump {id} would be deleted."));
            continue;
        }
        let (objects, bytes) = opened.cluster.delete_dump(*id).await?;
        session.output.result(format!(
            "Dump {id} is deleted: {}, {}.",
            size::count(objects, "object", "objects"),
            size::bytes(bytes)
        ));
        deleted.push(serde_json::json!({ "dump": id, "objects": objects, "bytes": bytes }));
    }
    field("dumps", &deleted)
}

/// `verify` of a dump: every byte of it is read.
pub(super) async fn verify(session: &Session, opened: &Opened, id: BackupId) -> CommandResult {
    let report = one(session, opened, id).await?;
    if report.problems.is_empty() {
        return end(session, "verify", fields(&report)?);
    }
    session.output.object("verify", fields(&report)?);
    Ok(Outcome::Code(1))
}

/// The dumps among all that is verified. They are read whole or not at all.
pub(super) async fn verify_all(
    session: &Session,
    opened: &Opened,
    deep: bool,
) -> Result<Vec<VerifyReport>, CommandError> {
    let ids = opened.cluster.dumps().await?;
    if !deep && !ids.is_empty() {
        let dumps = size::count(ids.len() as u64, "dump", "dumps");
        session.output.note(format!("note: {dumps} not looked at: `verify --all --deep` reads them"));
        return Ok(Vec::new());
    }
    let mut reports = Vec::new();
    for id in ids {
        reports.push(one(session, opened, id).await?);
    }
    Ok(reports)
}

async fn one(session: &Session, opened: &Opened, id: BackupId) -> Result<VerifyReport, CommandError> {
    let report = ::dump::verify::verify(&session.context(), &opened.cluster, id).await?;
    report.problems.iter().for_each(|problem| session.output.result(format!("DAMAGE dump {id}: {problem}")));
    let read = format!(
        "{} of {} read, {} counted",
        size::bytes(report.bytes),
        size::count(report.streams, "stream", "streams"),
        size::count(report.rows, "row", "rows")
    );
    session.output.result(match report.problems.len() {
        0 => format!("Dump {id} is whole ({read})."),
        _ => format!("Dump {id} is damaged ({read})."),
    });
    Ok(report)
}

/// `export` of a dump.
pub(super) async fn export(session: &Session, opened: &Opened, id: BackupId, args: &ExportArgs) -> CommandResult {
    let form = match args.format {
        None | Some(ExportForm::Custom) => DumpForm::Custom,
        Some(ExportForm::Plain) => DumpForm::Plain,
        Some(ExportForm::Directory) => DumpForm::Directory,
        Some(ExportForm::Tar) => DumpForm::Tar,
    };
    let pipe = args.to == std::path::Path::new("-");
    let to = if pipe { ExportTo::Pipe(super::export::standard_output()?) } else { ExportTo::Path(absolute(&args.to)?) };
    let compress = (args.compress != "none" || pipe).then_some(args.compress.as_str());
    let tools = tools(&ToolArgs { pg_bin: args.pg_bin.clone() }).await;
    let options = export_options(opened, args.database.clone(), form, compress, args.workers, tools)?;
    let report = export_to(session, &opened.cluster, id, to, &options).await?;
    end(session, "export", fields(&report)?)
}
