//! What `list`, `show`, `delete`, `verify` and `export` do with dumps.

use super::dump::{HowExported, absolute, export_options, export_to, tools};
use super::expire::because;
use super::{end, field, fields, stopped_as};
use crate::cli::{DumpForm, ExportArgs, ExportForm, ToolArgs, VerifyArgs};
use crate::environment;
use crate::error::{CommandError, CommandResult, Outcome};
use crate::output::{size, table};
use crate::session::{Opened, Session};
use crate::when;
use ::dump::ScratchPlace;
use ::dump::deep::{DeepOptions, DeepPlace, DeepReport};
use ::dump::expire::{DumpExpiry, apply, plan};
use ::dump::export::ExportTo;
use ::dump::verify::VerifyReport;
use jiff::Timestamp;
use repo::dump::{DataKind, DumpDeletion, DumpFacts};
use repo::retention::{KeepReason, RetentionPolicy};
use repo::{BackupId, Pin};
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
    /// The file or directory that it was taken in from.
    imported_from: Option<String>,
    /// What keeps it from being deleted.
    pin: Option<Pin>,
}

fn listed(id: BackupId, facts: Result<DumpFacts, String>) -> Listed {
    match facts {
        Ok(facts) => Listed {
            id,
            state: if facts.warnings.is_empty() { "ok" } else { "incomplete" },
            problem: facts.warnings.first().cloned(),
            databases: held(&facts),
            label: facts.label,
            started: Some(facts.started),
            finished: Some(facts.finished),
            globals: facts.globals.is_some(),
            pg_version: Some(facts.pg_version),
            bytes: Some(facts.bytes),
            stored_bytes: Some(facts.stored_bytes),
            imported_from: facts.imported.map(|imported| imported.path),
            pin: None,
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
            imported_from: None,
            pin: None,
        },
    }
}

/// The databases that a dump holds, or that its text connects to.
fn held(facts: &DumpFacts) -> Vec<String> {
    let names = facts.databases.iter().map(|database| database.name.clone());
    names.chain(facts.imported.iter().flat_map(|imported| imported.connects_to.iter().cloned())).collect()
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
    let (zone, now) = (when::local_zone(), Timestamp::now());
    if let Some(known) = opened.cluster.facts().await? {
        dumps.iter_mut().for_each(|dump| dump.pin = known.pin_of(dump.id, now).cloned());
    }
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
            if dump.pin.is_some() { format!("{}, pinned", dump.state) } else { dump.state.to_owned() },
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
        session.output.note(format!(
            "Dump {id} is being made, or was broken off; `pgkeep expire` or `delete {id}` removes what is left."
        ));
    }
    let mut fields = field("dumps", &dumps)?;
    fields.extend(field("unfinished_dumps", &unfinished)?);
    Ok(fields)
}

/// `show` of a dump.
pub(super) async fn show(session: &Session, opened: &Opened, id: BackupId, tables: bool) -> CommandResult {
    let facts = opened.cluster.dump_facts(id).await?;
    let known = opened.cluster.facts().await?;
    let pin = known.as_ref().and_then(|known| known.pin_of(id, Timestamp::now()));
    let zone = when::local_zone();
    let took = (facts.finished.as_second() - facts.started.as_second()).max(0).unsigned_abs();
    session.output.result(table::facts(&[
        ("dump", Some(facts.dump.to_string())),
        ("cluster", Some(facts.cluster.to_string())),
        ("label", facts.label.clone()),
        ("pin", pin.map(|pin| because(&pin_reason(pin), &zone))),
        ("started", Some(when::seconds(facts.started, &zone))),
        ("finished", Some(format!("{}, after {}", when::seconds(facts.finished, &zone), when::length(took)))),
        ("PostgreSQL", Some(facts.pg_version.clone())),
        ("selection", (!facts.selection.is_empty()).then(|| facts.selection.join(" "))),
        ("taken in from", facts.imported.as_ref().map(|from| format!("{} ({})", from.path, from.format))),
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
    if let Some(script) = facts.imported.as_ref().filter(|imported| imported.script.is_some()) {
        let connects = script.connects_to.join(", ");
        let connects = if connects.is_empty() { "the one it is loaded into".to_owned() } else { connects };
        session.output.result(format!("\nSQL text; databases: {connects}"));
    }
    for database in &facts.databases {
        let rows: u64 = database.data.iter().map(|data| data.rows).sum();
        let binary = database.data.iter().filter(|data| data.kind == DataKind::TableBinary).count();
        let binary = if binary > 0 { format!(" ({binary} in binary form)") } else { String::new() };
        session.output.result(format!(
            "\n{}: {} with data{binary}, {}, snapshot of {} (definitions by pg_dump {})",
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
    let mut fields = field("dump", &facts)?;
    fields.extend(field("pin", pin)?);
    end(session, "show", fields)
}

fn pin_reason(pin: &Pin) -> KeepReason {
    KeepReason::Pinned { until: pin.until, reason: pin.reason.clone() }
}

/// Refuses to delete what is pinned, and dumps that are being made.
pub(super) async fn refuse(session: &Session, opened: &Opened, ids: &[BackupId]) -> Result<(), CommandError> {
    let (context, known) = (session.context(), opened.cluster.facts().await?);
    for id in ids {
        if let Some(pin) = known.as_ref().and_then(|known| known.pin_of(*id, Timestamp::now())) {
            return Err(pinned(pin));
        }
        ::dump::expire::refuse_running(&context, &opened.cluster, *id).await?;
    }
    Ok(())
}

fn pinned(pin: &Pin) -> CommandError {
    let until = pin.until.map_or_else(|| "for ever".to_owned(), |until| format!("until {until}"));
    let reason = if pin.reason.is_empty() { String::new() } else { format!(" ({})", pin.reason) };
    CommandError::failed(format!("dump {} is pinned {until}{reason}", pin.backup))
        .hint(format!("`pgkeep unpin {}` takes the pin away", pin.backup))
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
        let (objects, bytes) = match opened.cluster.delete_dump(*id, Timestamp::now()).await? {
            DumpDeletion::Deleted { objects, bytes } => (objects, bytes),
            DumpDeletion::Pinned(pin) => return Err(pinned(&pin)),
        };
        session.output.result(format!(
            "Dump {id} is deleted: {}, {}.",
            size::count(objects, "object", "objects"),
            size::bytes(bytes)
        ));
        deleted.push(serde_json::json!({ "dump": id, "objects": objects, "bytes": bytes }));
    }
    field("dumps", &deleted)
}

/// The part of `expire` that is about dumps.
pub(super) async fn expire(
    session: &Session,
    opened: &Opened,
    policy: Option<&RetentionPolicy>,
    dry_run: bool,
) -> Result<Map<String, Value>, CommandError> {
    let context = session.context();
    let planned = plan(&context, &opened.cluster, policy).await?;
    show_expiry(session, &planned, policy.is_some());
    let mut fields = field("dump_plan", &planned)?;
    if dry_run {
        return Ok(fields);
    }
    let deleted = apply(&context, &opened.cluster, &planned)
        .await
        .map_err(|error| stopped_as(error.into(), "stopped on request; what remains of the dumps is whole"))?;
    if !deleted.deleted.is_empty() {
        session.output.result(format!(
            "Deleted: {}. Freed: {} in {}.",
            size::count(deleted.deleted.len() as u64, "dump", "dumps"),
            size::bytes(deleted.freed_bytes),
            size::count(deleted.objects, "object", "objects")
        ));
    }
    deleted.spared.iter().for_each(|id| session.output.note(format!("Dump {id} was pinned meanwhile, and stays.")));
    fields.extend(field("dump_deletion", &deleted)?);
    Ok(fields)
}

fn show_expiry(session: &Session, planned: &DumpExpiry, by_rule: bool) {
    let (output, zone) = (&session.output, when::local_zone());
    if planned.dumps.is_empty() && by_rule {
        output.result("No dump goes.");
    }
    if !planned.dumps.is_empty() {
        let columns = [("DUMP GOES", Align::Left), ("STARTED", Align::Left), ("DATABASES", Align::Left)];
        let columns = [&columns[..], &[("STORED", Align::Right), ("LABEL", Align::Left)]].concat();
        let mut shown = Table::new(&columns);
        for dump in &planned.dumps {
            shown.row([
                dump.dump.to_string(),
                when::short(dump.started, &zone),
                dump.databases.join(", "),
                size::bytes(dump.stored_bytes),
                dump.label.clone().unwrap_or_default(),
            ]);
        }
        output.result(shown.render());
    }
    if by_rule && !planned.kept.is_empty() {
        let mut shown = Table::new(&[("DUMP STAYS", Align::Left), ("BECAUSE", Align::Left)]);
        for kept in &planned.kept {
            let because: Vec<String> = kept.because.iter().map(|reason| because(reason, &zone)).collect();
            shown.row([kept.dump.to_string(), because.join("; ")]);
        }
        output.result(shown.render());
    }
    for dump in &planned.unfinished {
        output.note(match dump.left {
            true => format!("What is left of dump {}, which was broken off, goes.", dump.dump),
            false => format!("Dump {} is being made, or was broken off on another host: it stays.", dump.dump),
        });
    }
}

/// `verify` of a dump: every byte of it is read; with `--deep` it is loaded, and compared.
pub(super) async fn verify(session: &Session, opened: &Opened, id: BackupId, args: &VerifyArgs) -> CommandResult {
    let report = one(session, opened, id).await?;
    let mut object = fields(&report)?;
    if !report.problems.is_empty() {
        session.output.object("verify", object);
        return Ok(Outcome::Code(1));
    }
    if args.deep {
        let deep = deeply(session, opened, id, args).await?;
        object.extend(field("deep", &deep)?);
        if deep.databases.iter().any(|database| !database.differences.is_empty()) {
            session.output.object("verify", object);
            return Ok(Outcome::Code(1));
        }
    }
    end(session, "verify", object)
}

/// Loads a dump somewhere and says what came of it.
async fn deeply(
    session: &Session,
    opened: &Opened,
    id: BackupId,
    args: &VerifyArgs,
) -> Result<DeepReport, CommandError> {
    let scratch_dir = environment::temp_dir();
    let place = match &args.into {
        Some(conninfo) => DeepPlace::Server(Box::new(super::dump::server(session, conninfo)?)),
        None => {
            let owner = session.environment.is_root.then(environment::server_owner).flatten();
            let dir = args.scratch_dir.clone().unwrap_or_else(|| scratch_dir.clone());
            let dir = std::path::absolute(&dir)
                .map_err(|error| CommandError::usage(format!("--scratch-dir {}: {error}", dir.display())))?;
            DeepPlace::Scratch(ScratchPlace { dir, owner })
        }
    };
    let tools = tools(&args.tools).await;
    let options = DeepOptions { place, workers: opened.workers(None), tools, scratch_dir };
    let deep = ::dump::deep::deep(&session.context(), &opened.cluster, id, &options)
        .await
        .map_err(|error| stopped_as(error.into(), "stopped on request; what was made for it is gone"))?;
    for database in &deep.databases {
        let name = &database.name;
        database.differences.iter().for_each(|what| session.output.result(format!("DIFFERENT {name}: {what}")));
        database.not_compared.iter().for_each(|what| session.output.warn(format!("{name}: {what}")));
        let objects = match database.large_objects {
            0 => String::new(),
            count => format!(", {}", size::count(count, "large object", "large objects")),
        };
        let said = match (database.differences.len(), database.not_compared.len()) {
            (0, 0) => "is what was dumped",
            (0, _) => "is what was dumped, as far as it could be loaded here",
            _ => "is not what was dumped",
        };
        session.output.result(format!(
            "Database {name}, loaded, {said}: {} compared ({} by their rows), {}{objects}.",
            size::count(database.tables, "table", "tables"),
            database.tables_summed,
            size::count(database.rows, "row", "rows"),
        ));
    }
    Ok(deep)
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
    let how = HowExported {
        form,
        compress: args.compress.as_deref(),
        split_size: args.split_size.as_deref(),
        workers: args.workers,
    };
    let tools = tools(&ToolArgs { pg_bin: args.pg_bin.clone() }).await;
    let options = export_options(opened, args.database.clone(), &how, tools)?;
    let report = export_to(session, &opened.cluster, id, to, &options).await?;
    end(session, "export", fields(&report)?)
}
