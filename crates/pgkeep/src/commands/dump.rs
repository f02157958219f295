//! `dump`, and what the other commands do with dumps.

use super::{direct, end, field, fields, pin, stopped_as};
use crate::cli::{CopyFormatArg, DumpArgs, DumpForm, DumpSelectionArgs, SectionArg, ToolArgs};
use crate::environment;
use crate::error::{CommandError, CommandResult};
use crate::output::size;
use crate::session::{Opened, Session};
use crate::when;
use dump::archive::ArchiveCompression;
use dump::export::{ExportFormat, ExportOptions, ExportReport, ExportTo};
use dump::import::{ImportFrom, ImportOptions};
use dump::{
    CopyFormat, Databases, DumpOptions, DumpReport, Globals, PATTERN_SWITCHES, RowSecurity, Selection, Server, ToolSet,
};
use jiff::Timestamp;
use pg_format::ByteSize;
use repo::{BackupId, Cluster, Pin};
use std::path::{Path, PathBuf};

pub(crate) async fn run(session: &Session, args: &DumpArgs) -> CommandResult {
    let now = Timestamp::now();
    let pinned = args.pin.as_deref().map(|text| pin::until_or_forever(text, now)).transpose()?;
    let opened = session.open(args.which.cluster.as_deref()).await?;
    session.refuse_foreign_user(&opened)?;
    if let (None, None, Some(_)) = (&args.import, args.format, &args.to) {
        return direct::run(session, &opened, args, selection(&args.selection)?, part_bytes(args)?).await;
    }
    if let Some(form) = args.format {
        // What is wrong with it is said before the dump is made.
        export_options(&opened, None, &how_exported(args, form), ToolSet::default())?;
    }
    let report = match &args.import {
        Some(from) => import(session, &opened, args, from).await?,
        None => make(session, &opened, args).await?,
    };
    report.warnings.iter().for_each(|warning| session.output.warn(warning));
    session.output.result(text(&report));
    let mut all = fields(&report)?;
    if let Some(until) = pinned {
        let pin = Pin { backup: report.dump, until, reason: String::new() };
        // The dump is there; that it is not pinned is for a human to read.
        match pin::put(&opened.cluster, &pin, now).await {
            Ok(()) => session.output.result(pin::said(pin::Pinned::Dump, &pin)),
            Err(error) => session
                .output
                .warn(format!("dump {} was made, but not pinned: {}; `pgkeep pin` does it", pin.backup, error.message)),
        }
        all.extend(field("pin", &pin)?);
    }
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
            let tools = tools(&args.tools).await;
            let how = how_exported(args, form);
            let options = export_options(&opened, Some(database.name.clone()), &how, tools)?;
            let made = export_to(session, &opened.cluster, report.dump, ExportTo::Path(to), &options).await?;
            exported.push(made);
        }
        all.extend(field("exported", &exported)?);
    }
    end(session, "dump", all)
}

fn part_bytes(args: &DumpArgs) -> Result<u64, CommandError> {
    let size = args.part_size.parse::<ByteSize>().map_err(|error| {
        CommandError::usage(format!("--part-size {}: {error}", args.part_size)).hint("write a size such as 64MB")
    })?;
    Ok(size.0.max(1 << 20))
}

/// What becomes of rows that policies hide.
pub(super) fn row_security(args: &DumpArgs) -> RowSecurity {
    match args.selection.enable_row_security {
        true => RowSecurity::WhatIsShown,
        false => RowSecurity::LeaveOut,
    }
}

const MADE_BY: &str = concat!("pgkeep ", env!("CARGO_PKG_VERSION"));

async fn make(session: &Session, opened: &Opened, args: &DumpArgs) -> Result<DumpReport, CommandError> {
    let options = DumpOptions {
        databases: if args.all { Databases::All } else { Databases::Named(args.database.clone()) },
        globals: if args.globals { Globals::Include } else { Globals::Leave },
        selection: selection(&args.selection)?,
        role: args.role.clone(),
        row_security: row_security(args),
        synchronised: args.synchronised,
        workers: opened.workers(args.workers),
        part_bytes: part_bytes(args)?,
        copy_format: match args.copy_format {
            CopyFormatArg::Text => CopyFormat::Text,
            CopyFormatArg::Binary => CopyFormat::Binary,
        },
        compression: opened.compression(args.compression.as_deref())?,
        label: args.label.clone(),
        made_by: MADE_BY.to_owned(),
        tools: tools(&args.tools).await,
    };
    let server = server(session, &opened.settings.pg)?;
    dump::run(&session.context(), &opened.cluster, &server, &options)
        .await
        .map_err(|error| stopped_as(error.into(), "stopped on request; nothing of the dump was kept"))
}

async fn import(session: &Session, opened: &Opened, args: &DumpArgs, from: &Path) -> Result<DumpReport, CommandError> {
    if selection(&args.selection)? != Selection::default() || args.selection.enable_row_security {
        return Err(CommandError::usage("a dump is taken in whole: nothing of it can be selected")
            .hint("`pgkeep load` selects what is loaded"));
    }
    let pipe = from == Path::new("-");
    let from = if pipe { ImportFrom::StandardInput } else { ImportFrom::Path(absolute(from)?) };
    let options = ImportOptions {
        from,
        workers: opened.workers(args.workers),
        part_bytes: part_bytes(args)?,
        compression: opened.compression(args.compression.as_deref())?,
        label: args.label.clone(),
        made_by: MADE_BY.to_owned(),
        zone: when::local_zone(),
    };
    dump::import::import(&session.context(), &opened.cluster, &options)
        .await
        .map_err(|error| stopped_as(error.into(), "stopped on request; nothing of the dump was kept"))
}

/// What is selected, as pg_dump's switches.
fn selection(args: &DumpSelectionArgs) -> Result<Selection, CommandError> {
    let filter = match &args.filter {
        Some(path) => Some(absolute(path)?.display().to_string()),
        None => None,
    };
    let patterns = [
        &args.schema,
        &args.exclude_schema,
        &args.table,
        &args.table_and_children,
        &args.exclude_table,
        &args.exclude_table_and_children,
        &args.exclude_table_data,
        &args.exclude_table_data_and_children,
        &args.extension,
        &args.exclude_extension,
    ];
    let all =
        PATTERN_SWITCHES.iter().zip(patterns).fold(Selection::default(), |all, (name, some)| all.with(name, some));
    let sections = args.section.iter().map(|section| match section {
        SectionArg::PreData => "pre-data",
        SectionArg::Data => "data",
        SectionArg::PostData => "post-data",
    });
    Ok(all
        .with("filter", filter)
        .with("include-foreign-data", &args.include_foreign_data)
        .with("section", sections)
        .when(args.strict_names, "strict-names")
        .when(args.schema_only, "schema-only")
        .when(args.data_only, "data-only")
        // As the versions before 16 call them, and later ones still do.
        .when(args.large_objects, "blobs")
        .when(args.no_large_objects, "no-blobs")
        .when(args.no_unlogged_table_data, "no-unlogged-table-data")
        .when(args.statistics, "statistics")
        .when(args.no_comments, "no-comments")
        .when(args.no_publications, "no-publications")
        .when(args.no_subscriptions, "no-subscriptions")
        .when(args.no_security_labels, "no-security-labels")
        .when(args.no_policies, "no-policies"))
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

/// How a dump is given out.
pub(super) struct HowExported<'a> {
    pub(super) form: DumpForm,
    pub(super) compress: Option<&'a str>,
    pub(super) split_size: Option<&'a str>,
    pub(super) workers: Option<u16>,
}

fn how_exported(args: &DumpArgs, form: DumpForm) -> HowExported<'_> {
    let (compress, split_size) = (args.compress.as_deref(), args.split_size.as_deref());
    HowExported { form, compress, split_size, workers: args.workers }
}

pub(super) fn export_options(
    opened: &Opened,
    database: Option<String>,
    how: &HowExported<'_>,
    tools: ToolSet,
) -> Result<ExportOptions, CommandError> {
    // Archives are compressed unless told otherwise; text is not, for people read it.
    let compression = match (how.form, how.compress) {
        (DumpForm::Custom | DumpForm::Directory, None) => ArchiveCompression::Gzip(6),
        (_, None) => ArchiveCompression::None,
        (form, Some(text)) => {
            let found = compression(text)?;
            if form == DumpForm::Tar && found != ArchiveCompression::None {
                return Err(CommandError::usage("pg_restore reads no compressed tar file").hint("use --format custom"));
            }
            found
        }
    };
    let piece_bytes = how.split_size.map(|text| {
        let parsed = text.parse::<ByteSize>().map(|size| size.0).ok().filter(|size| *size >= 1 << 16);
        parsed.ok_or_else(|| {
            CommandError::usage(format!("--split-size {text}: a size of at least 64kB is wanted")).hint("such as 1GB")
        })
    });
    Ok(ExportOptions {
        database,
        format: match how.form {
            DumpForm::Plain => ExportFormat::Plain,
            DumpForm::Custom => ExportFormat::Custom,
            DumpForm::Directory => ExportFormat::Directory,
            DumpForm::Tar => ExportFormat::Tar,
        },
        compression,
        piece_bytes: piece_bytes.transpose()?,
        workers: opened.workers(how.workers),
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
        "lz4" if !text.contains(':') => Some(ArchiveCompression::Lz4),
        "zstd" => level(3, 1..=22).map(ArchiveCompression::Zstd),
        _ => None,
    };
    found.ok_or_else(|| {
        CommandError::usage(format!("--compress {text}: none, gzip, gzip:LEVEL, lz4, zstd or zstd:LEVEL is wanted"))
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
    let place = match (&report.to, report.pieces) {
        (None, _) => "standard output".to_owned(),
        (Some(to), None) => to.display().to_string(),
        (Some(to), Some(pieces)) => {
            format!("{}.000 and so on ({})", to.display(), size::count(pieces as u64, "piece", "pieces"))
        }
    };
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
    std::path::absolute(path).map_err(|error| CommandError::usage(format!("{}: {error}", path.display())))
}
