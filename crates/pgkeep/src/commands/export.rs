//! `export`: a backup as PostgreSQL's own tools know it.

use super::{dump, dumps, end, fields, list, restore, stopped_as};
use crate::cli::{Checksums, ExportArgs, ExportForm};
use crate::error::{CommandError, CommandResult};
use crate::output::size;
use crate::session::Session;
use engine::export::{
    self, ExportFormat, ExportOptions, ExportReport, ExportTo, ExportedArchiving, ExportedWal, ManifestChecksums,
};
use std::fs::File;
use std::os::fd::AsFd;
use std::path::Path;

pub(crate) async fn run(session: &Session, args: &ExportArgs) -> CommandResult {
    let opened = session.open(None).await?;
    if let Some(id) = dump::named(&opened.cluster, &args.id).await? {
        return dumps::export(session, &opened, id, args).await;
    }
    let pipe = args.to == Path::new("-");
    if pipe && session.output.json {
        return Err(CommandError::usage("--json prints on standard output, where --to - writes the tar file")
            .hint("leave out --json, or export to a directory"));
    }
    if args.split_size.is_some() {
        return Err(CommandError::usage("--split-size is for dumps")
            .hint("give a dump's ID (`pgkeep list`): `latest` is the latest backup")
            .hint("a tar file of a backup can be piped through split"));
    }
    let compression = args
        .compress
        .as_deref()
        .unwrap_or("none")
        .parse()
        .map_err(|error| CommandError::usage(format!("--compress {error}")))?;
    let tablespaces = args.tablespaces.iter().map(|text| restore::mapping(text)).collect::<Result<Vec<_>, _>>()?;
    let to = if pipe { ExportTo::Pipe(Box::new(standard_output()?)) } else { ExportTo::Directory(absolute(&args.to)?) };
    let options = ExportOptions {
        backup: list::find(&opened.cluster, &args.id).await?,
        format: match args.format {
            Some(ExportForm::Plain) => ExportFormat::Plain,
            Some(ExportForm::Tar) => ExportFormat::Tar,
            Some(ExportForm::Custom | ExportForm::Directory) => {
                return Err(CommandError::usage("--format custom and directory are for dumps").hint("use plain or tar"));
            }
            None if pipe => ExportFormat::Tar,
            None => ExportFormat::Plain,
        },
        compression,
        checksums: match args.checksums {
            Checksums::Crc32c => ManifestChecksums::Crc32c,
            Checksums::Sha256 => ManifestChecksums::Sha256,
        },
        wal: if args.wal { ExportedWal::Include } else { ExportedWal::Leave },
        archiving: if args.archive { ExportedArchiving::AsOrigin } else { ExportedArchiving::Off },
        tablespaces,
        workers: opened.workers(args.workers),
    };
    let report = export::export(&session.context(), &opened.cluster, to, &options).await.map_err(|error| {
        let left = if pipe { "what the reader of the pipe has is cut off" } else { "nothing of the export was kept" };
        stopped_as(error.into(), &format!("stopped on request; {left}"))
    })?;
    report.warnings.iter().for_each(|text| session.output.warn(text));
    let notes = report.notes.iter().map(|note| format!("note: {note}"));
    for line in std::iter::once(text(&report)).chain(notes) {
        // Standard output holds the tar file.
        if pipe { session.output.note(line) } else { session.output.result(line) }
    }
    end(session, "export", fields(&report)?)
}

fn absolute(path: &Path) -> Result<std::path::PathBuf, CommandError> {
    std::path::absolute(path).map_err(|error| CommandError::usage(format!("--to {}: {error}", path.display())))
}

/// Standard output without the line buffer that is made for text.
pub(super) fn standard_output() -> Result<File, CommandError> {
    use std::io::IsTerminal;
    let stdout = std::io::stdout();
    if stdout.is_terminal() {
        return Err(CommandError::usage("standard output is a terminal").hint("pipe it into a program, or into a file"));
    }
    let out = stdout.as_fd().try_clone_to_owned();
    out.map(File::from).map_err(|error| CommandError::failed(format!("standard output cannot be used: {error}")))
}

fn text(report: &ExportReport) -> String {
    let to = report.to.as_ref().map_or_else(|| "standard output".to_owned(), |to| to.display().to_string());
    let wal = match report.wal_files {
        0 => String::new(),
        count => format!(", with {} of WAL", size::count(count, "file", "files")),
    };
    format!(
        "Backup {} is in {to}: {}, {}{wal}, in {:.1} s.",
        report.backup,
        size::count(report.files, "file", "files"),
        size::bytes(report.bytes),
        report.elapsed_ms as f64 / 1000.0
    )
}
