//! `backup --warm`: the pass while the server runs.

use super::backup::stopped;
use crate::cli::BackupArgs;
use crate::error::CommandError;
use crate::output::size;
use crate::session::{Opened, Session};
use engine::backup::{self, BackupOptions, SourceOptions, WarmReport};

/// Makes the warm pass, if one is asked for and the server runs.
pub(super) async fn run(
    session: &Session,
    args: &BackupArgs,
    opened: &Opened,
    options: &BackupOptions,
) -> Result<Option<WarmReport>, CommandError> {
    let SourceOptions::Offline { data_directory, config_file, .. } = &options.source else { return Ok(None) };
    if !(args.warm || args.warm_only) {
        return Ok(None);
    }
    let context = session.context();
    let report = backup::warm(&context, &opened.cluster, data_directory, config_file.as_deref(), options).await;
    drop(context);
    let Some(report) = report.map_err(|error| stopped(args.source, error))? else {
        let stopped = format!("no server runs on {}", data_directory.display());
        if args.warm_only {
            return Err(CommandError::failed(format!("{stopped}: there is nothing to be warm for"))
                .hint("leave out --warm-only: the backup is made at once"));
        }
        session.output.note(format!("{stopped}: it is read at once"));
        return Ok(None);
    };
    let warned = session.output.warnings();
    report.warnings.iter().filter(|text| !warned.contains(text)).for_each(|text| session.output.warn(text));
    let seconds = report.finished.duration_since(report.started).as_secs_f64();
    let did = format!(
        "Warm pass {}: {} read while the server runs, {} added, in {seconds:.1} s. It is no backup.",
        report.id,
        size::count(report.pages_read, "page", "pages"),
        size::bytes(report.bytes_added),
    );
    if args.warm_only {
        session.output.result(did);
        session
            .output
            .result("Stop the server, and run `pgkeep backup --source offline`: it reads what changed since.");
    } else {
        session.output.note(did);
        if args.stop_command.is_none() {
            session.output.always(
                "STOP THE SERVER NOW (pg_ctl stop -m fast): the backup is made when it has stopped. Ctrl-C keeps the warm \
                 pass for a later `pgkeep backup --source offline`.",
            );
        }
    }
    Ok(Some(report))
}
