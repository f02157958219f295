//! `load`.

use super::{dump, end, field, fields, stopped_as};
use crate::cli::{LoadArgs, OnErrorArg, SectionArg};
use crate::environment;
use crate::error::{CommandError, CommandResult};
use crate::output::size;
use crate::session::{Opened, Session};
use ::dump::Server;
use ::dump::load::{LoadOptions, LoadReport, LoadSelection, Mapping, OnError, Parts, Target, foreign, load};
use std::path::Path;

pub(crate) async fn run(session: &Session, args: &LoadArgs) -> CommandResult {
    let foreign = args.id.contains('/').then(|| Path::new(&args.id));
    // What lies in a file of its own needs no repository.
    let opened = if foreign.is_some() { None } else { Some(session.open(None).await?) };
    if args.list {
        return list(session, args, opened.as_ref()).await;
    }
    let server = dump::server(session, args.into.as_deref().unwrap_or_default())?;
    let target = match &args.create {
        Some(name) => Target::Create(name.clone()),
        None if args.force => Target::Any,
        None => Target::Empty,
    };
    let options = LoadOptions {
        database: args.database.clone(),
        target,
        selection: selection(args)?,
        mapping: Mapping {
            schemas: args.map_schema.clone(),
            owners: args.map_owner.clone(),
            tablespaces: args.map_tablespace.clone(),
        },
        globals: args.globals,
        no_owner: args.no_owner,
        no_privileges: args.no_privileges,
        no_tablespaces: args.no_tablespaces,
        role: args.role.clone(),
        single_transaction: args.single_transaction,
        on_error: match args.on_error {
            OnErrorArg::Stop => OnError::Stop,
            OnErrorArg::Continue => OnError::Continue,
        },
        workers: match &opened {
            Some(opened) => opened.workers(args.workers),
            None => args.workers.map_or_else(processors, usize::from),
        },
        maintenance_memory: args.maintenance_memory.clone(),
        analyze: !args.no_analyze && parts(args).data,
        tools: dump::tools(&args.tools).await,
        scratch_dir: environment::temp_dir(),
    };
    let Some(opened) = opened else { return from_file(session, Path::new(&args.id), &server, &options).await };
    let id = dump::find(&opened.cluster, &args.id).await?;
    let report = load(&session.context(), &opened.cluster, id, &server, &options)
        .await
        .map_err(|error| stopped_as(error.into(), "stopped on request; say the same again, and it goes on"))?;
    report.errors.iter().for_each(|error| session.output.warn(error));
    session.output.result(text(&report));
    end(session, "load", fields(&report)?)
}

/// What is chosen of a dump.
fn selection(args: &LoadArgs) -> Result<LoadSelection, CommandError> {
    let list = args.use_list.as_deref().map(std::fs::read_to_string).transpose().map_err(|error| {
        let path = args.use_list.as_deref().unwrap_or(Path::new("")).display();
        CommandError::usage(format!("--use-list {path}: {error}")).hint("`pgkeep load ID --list` prints a list")
    })?;
    Ok(LoadSelection { schemas: args.schema.clone(), tables: args.table.clone(), parts: parts(args), list })
}

/// Prints the list of a dump's entries.
async fn list(session: &Session, args: &LoadArgs, opened: Option<&Opened>) -> CommandResult {
    let Some(opened) = opened else {
        return Err(CommandError::usage("--list is for dumps in the repository")
            .hint("pg_restore --list prints that of a file of pg_dump's"));
    };
    let id = dump::find(&opened.cluster, &args.id).await?;
    let list = ::dump::load::list(&opened.cluster, id, args.database.as_deref(), &selection(args)?).await?;
    session.output.result(list.trim_end());
    end(session, "load", field("list", &list)?)
}

fn processors() -> usize {
    std::thread::available_parallelism().map_or(2, |count| count.get().min(8))
}

/// What pg_dump wrote, to a file or a directory.
async fn from_file(session: &Session, path: &Path, server: &Server, options: &LoadOptions) -> CommandResult {
    if options.globals || options.database.is_some() {
        return Err(
            CommandError::usage("--globals and --database are for dumps in the repository").hint("leave them out")
        );
    }
    let report = foreign(&session.context(), path, server, options).await.map_err(|error| {
        stopped_as(error.into(), "stopped on request; what was loaded until then is in the database")
    })?;
    report.errors.iter().for_each(|error| session.output.warn(error));
    session.output.result(format!(
        "{} ({}) is in {}, in {:.1} s.",
        report.path.display(),
        report.format,
        report.into,
        report.elapsed_ms as f64 / 1000.0
    ));
    end(session, "load", fields(&report)?)
}

fn parts(args: &LoadArgs) -> Parts {
    let is = |section: SectionArg| args.section.is_empty() || args.section.contains(&section);
    Parts {
        definitions: is(SectionArg::PreData) && !args.data_only,
        data: is(SectionArg::Data) && !args.schema_only,
        indexes: is(SectionArg::PostData) && !args.data_only,
    }
}

fn text(report: &LoadReport) -> String {
    let objects = match report.large_objects {
        0 => String::new(),
        count => format!(", {}", size::count(count, "large object", "large objects")),
    };
    let phases: Vec<String> =
        report.phases.iter().map(|phase| format!("{} {:.1} s", phase.name, phase.elapsed_ms as f64 / 1000.0)).collect();
    let went_on = match report.went_on_after {
        Some(pieces) => format!(
            "An earlier load was broken off; it went on after {}.\n",
            size::count(pieces as u64, "piece", "pieces")
        ),
        None => String::new(),
    };
    format!(
        "{went_on}Database {} of dump {} is in {}: {}, {}{objects}, {} of data, in {:.1} s ({}).",
        report.database,
        report.dump,
        report.into,
        size::count(report.tables, "table", "tables"),
        size::count(report.rows, "row", "rows"),
        size::bytes(report.bytes),
        report.elapsed_ms as f64 / 1000.0,
        phases.join(", ")
    )
}
