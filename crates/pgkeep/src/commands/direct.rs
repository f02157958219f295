//! `dump --to CONNINFO`: from one server into another.

use super::{dump, end, fields, stopped_as};
use crate::cli::{DumpArgs, OnErrorArg};
use crate::environment;
use crate::error::{CommandError, CommandResult};
use crate::output::size;
use crate::session::{Opened, Session};
use ::dump::load::{LoadOptions, Mapping, OnError, Target};
use ::dump::{DirectOptions, DirectReport, Selection, direct};

pub(crate) async fn run(
    session: &Session,
    opened: &Opened,
    args: &DumpArgs,
    selection: Selection,
    part_bytes: u64,
) -> CommandResult {
    let to = args.to.as_deref().and_then(|to| to.to_str()).unwrap_or_default();
    if !to.contains('=') && !to.contains("://") {
        return Err(CommandError::usage(format!(
            "--to {to}: a connection string is wanted, such as 'host=new dbname=shop'"
        ))
        .hint("for a file, say --format too"));
    }
    if args.all || args.globals || args.synchronised || args.label.is_some() || args.database.len() > 1 {
        return Err(CommandError::usage(
            "--to a server copies one database, and keeps nothing of it in the repository",
        )
        .hint("leave out --all, --globals, --synchronised and --label, and name one database"));
    }
    if args.pin.is_some() {
        return Err(CommandError::usage("--pin is for dumps in the repository").hint("leave it out"));
    }
    let into = &args.into;
    let scratch_dir = environment::temp_dir();
    let load = LoadOptions {
        target: match &into.create {
            Some(name) => Target::Create(name.clone()),
            None => Target::Empty,
        },
        no_owner: into.no_owner,
        no_privileges: into.no_privileges,
        no_tablespaces: into.no_tablespaces,
        on_error: match into.on_error {
            OnErrorArg::Stop => OnError::Stop,
            OnErrorArg::Continue => OnError::Continue,
        },
        mapping: Mapping {
            schemas: into.map_schema.clone(),
            owners: into.map_owner.clone(),
            tablespaces: into.map_tablespace.clone(),
        },
        workers: opened.workers(args.workers),
        analyze: !into.no_analyze && !args.selection.schema_only,
        ..LoadOptions::quiet(dump::tools(&args.tools).await, scratch_dir)
    };
    let row_security = dump::row_security(args);
    let (database, role) = (args.database.first().cloned(), args.role.clone());
    let options = DirectOptions { database, selection, role, row_security, part_bytes, load };
    let (from, target) = (dump::server(session, &opened.settings.pg)?, dump::server(session, to)?);
    let report = direct(&session.context(), &from, &target, &options).await.map_err(|error| {
        stopped_as(error.into(), "stopped on request; what was copied until then is in the database")
    })?;
    for unread in &report.unread {
        session.output.warn(format!("{}: {}", unread.what, unread.why));
    }
    report.errors.iter().for_each(|error| session.output.warn(error));
    session.output.result(text(&report));
    end(session, "dump", fields(&report)?)
}

fn text(report: &DirectReport) -> String {
    let objects = match report.large_objects {
        0 => String::new(),
        count => format!(", {}", size::count(count, "large object", "large objects")),
    };
    format!(
        "Database {} as it was at {} is in {}: {}, {}{objects}, {} of data, in {:.1} s.",
        report.database,
        report.snapshot_time,
        report.into,
        size::count(report.tables, "table", "tables"),
        size::count(report.rows, "row", "rows"),
        size::bytes(report.bytes),
        report.elapsed_ms as f64 / 1000.0
    )
}
