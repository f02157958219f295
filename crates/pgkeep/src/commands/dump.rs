//! `dump`, and what the other commands do with dumps.

use super::{direct, end, field, fields, stopped_as};
use crate::cli::{DumpArgs, DumpForm, ToolArgs};
use crate::environment;
use crate::error::{CommandError, CommandResult};
use crate::output::size;
use crate::session::{Opened, Session};
use dump::archive::ArchiveCompression;
use dump::export::{ExportFormat, ExportOptions, ExportReport, ExportTo};
use dump::{Databases, DumpOptions, DumpReport, Globals, Selection, Server, ToolSet};
use pg_format::ByteSize;
use repo::{BackupId, Cluster};
use std::path::{Path, PathBuf};

pub(crate) async fn run(session: &Session, args: &DumpArgs) -> CommandResult {
    let opened = session.open(args.which.cluster.as_deref()).await?;
    session.refuse_foreign_user(&opened)?;
    let part_bytes = args.part_size.parse::<ByteSize>().map_err(|error| {
        CommandError::usage(format!("--part-size {}: {error}", args.part_size)).hint("write a size such as 64MB")
    })?;
    let tools = tools(&args.tools).await;
    let select = &args.selection;
    let options = DumpOptions {
        databases: if args.all { Databases::All } else { Databases::Named(args.database.clone()) },
        globals: if args.globals { Globals::Include } else { Globals::Leave },
        selection: Selection {
            schemas: select.schema.clone(),
            exclude_schemas: select.exclude_schema.clone(),
            tables: select.table.clone(),
            exclude_tables: select.exclude_table.clone(),
            exclude_table_data: select.exclude_table_data.clone(),
            extensions: select.extension.clone(),
            filter: select.filter.clone(),
            schema_only: select.schema_only,
            data_only: select.data_only,
        },
        synchronised: args.synchronised,
        workers: opened.workers(args.workers),
        part_bytes: part_bytes.0.max(1 << 20),
        compression: opened.compression(args.compression.as_deref())?,
        label: args.label.clone(),
        made_by: concat!("pgkeep ", env!("CARGO_PKG_VERSION")).to_owned(),
        tools: tools.clone(),
    };
    if let (None, Some(_)) = (args.format, &args.to) {
        return direct::run(session, &opened, args, options.selection, options.part_bytes).await;
    }
    let server = server(session, &opened.settings.pg)?;
    let report = dump::run(&session.context(), &opened.cluster, &server, &options)
        .await
        .map_err(|error| stopped_as(error.into(), "stopped on request; nothing of the dump was kept"))?;
    report.warnings.iter().for_each(|warning| session.output.warn(warning));
    session.output.result(text(&report));
    let mut all = fields(&report)?;
    if let (Some(form), Some(to)) = (args.format, &args.to) {
        let mut exported = Vec::new();
        for database in &report.databases {
            // Of several databases each has a file of its own below the path.
            let several = report.databases.len() > 1;
            let to = if several { to.join(&database.name) } else { to.clone() };
            if several {
                let made = std::fs::create_dir_all(args.to.as_deref().unwrap_or(Path::new(".")));
                made.map_err(|error| CommandError::failed(format!("{}: {error}", to.display())))?;
            }
            let options =
                export_options(&opened, Some(database.name.clone()), form, None, args.workers, tools.clone())?;
            let made = export_to(session, &opened.cluster, report.dump, ExportTo::Path(to), &options).await?;
            exported.push(made);
        }
        all.extend(field("exported", &exported)?);
    }
    end(session, "dump", all)
}

fn text(report: &DumpReport) -> String {
    let mut lines = Vec::new();
    for database in &report.databases {
        let objects = match database.large_objects {
            0 => String::new(),
            count => format!(", {}", size::count(count, "large object", "large objects")),
        };
        lines.push(format!(
            "{}: {}, {}{objects}, {}",
            database.name,
            size::count(database.tables, "table", "tables"),
            size::count(database.rows, "row", "rows"),
            size::bytes(database.bytes)
        ));
    }
    if let Some(within) = report.synchronised_within_us {
        lines.push(format!("The snapshots lie within {:.3} s.", within as f64 / 1e6));
    }
    lines.push(format!(
        "Dump {} is made: {} in {} of the repository, in {:.1} s.",
        report.dump,
        size::bytes(report.bytes),
        size::bytes(report.stored_bytes),
        report.elapsed_ms as f64 / 1000.0
    ));
    lines.join("\n")
}

/// PostgreSQL's programs on this host.
pub(super) async fn tools(args: &ToolArgs) -> ToolSet {
    ToolSet::find(args.pg_bin.as_deref(), &environment::path_dirs()).await
}

/// Where to connect, and what for other databases there is completed from.
pub(super) fn server(session: &Session, conninfo: &str) -> Result<Server, CommandError> {
    Ok(Server { conninfo: session.conninfo(conninfo)?, surroundings: session.environment.pg.clone() })
}

/// The dump that an argument names, when it names one: an ID. Backups have theirs from the same clock.
pub(super) async fn named(cluster: &Cluster, name: &str) -> Result<Option<BackupId>, CommandError> {
    let Ok(id) = name.parse::<BackupId>() else { return Ok(None) };
    Ok(cluster.dumps().await?.contains(&id).then_some(id))
}

/// The dump that must be there: an ID, or `latest`.
pub(super) async fn find(cluster: &Cluster, name: &str) -> Result<BackupId, CommandError> {
    let all = cluster.dumps().await?;
    let found = match name {
        "latest" => all.last().copied(),
        _ => Some(name.parse::<BackupId>()?).filter(|id| all.contains(id)),
    };
    found.ok_or_else(|| {
        let error = CommandError::not_found(format!("there is no dump {name} of cluster '{}'", cluster.name()));
        match all.last() {
            Some(last) => error.hint(format!("`pgkeep list` shows the dumps; the latest is {last}")),
            None => error.hint("there are no dumps yet; `pgkeep dump` makes one"),
        }
    })
}

pub(super) fn export_options(
    opened: &Opened,
    database: Option<String>,
    form: DumpForm,
    compress: Option<&str>,
    workers: Option<u16>,
    tools: ToolSet,
) -> Result<ExportOptions, CommandError> {
    Ok(ExportOptions {
        database,
        format: match form {
            DumpForm::Plain => ExportFormat::Plain,
            DumpForm::Custom => ExportFormat::Custom,
            DumpForm::Directory => ExportFormat::Directory,
            DumpForm::Tar => ExportFormat::Tar,
        },
        compression: compression(compress.unwrap_or("gzip"))?,
        workers: opened.workers(workers),
        restore_switches: Vec::new(),
        tools,
    })
}

fn compression(text: &str) -> Result<ArchiveCompression, CommandError> {
    let (method, level) = text.split_once(':').unwrap_or((text, ""));
    let level = |default: i32, range: std::ops::RangeInclusive<i32>| match level {
        "" => Some(default),
        level => level.parse().ok().filter(|level| range.contains(level)),
    };
    let found = match method {
        "none" if !text.contains(':') => Some(ArchiveCompression::None),
        "gzip" => level(6, 1..=9).map(ArchiveCompression::Gzip),
        "zstd" => level(3, 1..=22).map(ArchiveCompression::Zstd),
        _ => None,
    };
    found.ok_or_else(|| {
        CommandError::usage(format!("--compress {text}: none, gzip, gzip:LEVEL, zstd or zstd:LEVEL is wanted"))
            .hint("pg_restore before 16 reads gzip only")
    })
}

pub(super) async fn export_to(
    session: &Session,
    cluster: &Cluster,
    id: BackupId,
    to: ExportTo,
    options: &ExportOptions,
) -> Result<ExportReport, CommandError> {
    let report = dump::export::export(&session.context(), cluster, id, to, options)
        .await
        .map_err(|error| stopped_as(error.into(), "stopped on request; nothing of the export was kept"))?;
    let place = report.to.as_ref().map_or_else(|| "standard output".to_owned(), |to| to.display().to_string());
    let said = format!(
        "Database {} of dump {} is in {place}: {} of data, in {:.1} s.",
        report.database,
        report.dump,
        size::bytes(report.bytes),
        report.elapsed_ms as f64 / 1000.0
    );
    if report.to.is_some() {
        session.output.result(said)
    } else {
        session.output.note(said)
    }
    Ok(report)
}

/// An absolute path, so that what is said of it means something elsewhere.
pub(super) fn absolute(path: &Path) -> Result<PathBuf, CommandError> {
    std::path::absolute(path).map_err(|error| CommandError::usage(format!("--to {}: {error}", path.display())))
}
