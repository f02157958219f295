//! `import-basebackup`: what `pg_basebackup` wrote becomes a backup.

use super::{end, fields, stopped_as};
use crate::cli::ImportBasebackupArgs;
use crate::error::{CommandError, CommandResult};
use crate::output::size;
use crate::session::Session;
use crate::when;
use engine::import_basebackup::{self, ImportOptions, ImportReport, UnknownCluster};
use jiff::tz::TimeZone;
use pg_format::Lsn;

pub(crate) async fn run(session: &Session, args: &ImportBasebackupArgs) -> CommandResult {
    let stop_lsn = args.stop_lsn.as_deref().map(|text| {
        let bad = |error| CommandError::usage(format!("--stop-lsn {text}: {error}"));
        text.parse::<Lsn>().map_err(bad)
    });
    let stop_lsn = stop_lsn.transpose()?;
    let path = std::path::absolute(&args.path)
        .map_err(|error| CommandError::usage(format!("{}: {error}", args.path.display())))?;
    let opened = session.open(None).await?;
    session.refuse_foreign_user(&opened)?;
    let options = ImportOptions {
        path,
        label: args.label.clone(),
        stop_lsn,
        unknown_cluster: if args.new_cluster { UnknownCluster::Enter } else { UnknownCluster::Refuse },
        workers: opened.workers(args.workers),
        compression: opened.compression(args.compression.as_deref())?,
        made_by: concat!("pgkeep ", env!("CARGO_PKG_VERSION")).to_owned(),
    };
    let report = import_basebackup::import(&session.context(), &opened.cluster, &options)
        .await
        .map_err(|error| stopped_as(error.into(), "stopped on request; nothing was imported"))?;
    let warned = session.output.warnings();
    report.warnings.iter().filter(|text| !warned.contains(text)).for_each(|text| session.output.warn(text));
    for page in &report.damaged {
        session.output.warn(format!("damaged page: {}, block {}: {}", page.path, page.block, page.reason));
    }
    session.output.result(text(&report, &when::local_zone()));
    end(session, "import-basebackup", fields(&report)?)
}

fn text(report: &ImportReport, zone: &TimeZone) -> String {
    let compared =
        if report.verified { "all compared with backup_manifest" } else { "not verified: no backup_manifest" };
    let wal = match report.wal_files {
        0 => "The archive has the WAL it needs".to_owned(),
        count => format!("It carries the WAL it needs ({})", size::count(count, "file", "files")),
    };
    format!(
        "Backup {} of PostgreSQL {}: {}, {} ({compared}), stored as {}.\n{wal}; recoverable from {} on (WAL {} to {}, by {}, on \
         timeline {}).",
        report.backup,
        report.pg_major,
        size::count(report.files, "file", "files"),
        size::bytes(report.bytes),
        size::bytes(report.bytes_added),
        when::both(report.stop_time, zone),
        report.start_lsn,
        report.stop_lsn,
        report.stop_lsn_said_by,
        report.timeline
    )
}
