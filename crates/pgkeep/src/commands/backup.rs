//! `backup`.

use super::source;
use super::{end, field, fields, pin, stopped_as, warm};
use crate::cli::{BackupArgs, Source};
use crate::config;
use crate::error::{CommandError, CommandResult};
use crate::gentle;
use crate::output::size;
use crate::session::{Opened, Session};
use crate::when;
use engine::EngineError;
use engine::backup::{self, BackupOptions, BackupReport, Checkpoint, Sharing, SnapshotGuarantee};
use engine::hosts::{self, Chosen};
use jiff::Timestamp;
use jiff::tz::TimeZone;
use pg_wire::{Client, Conninfo};
use repo::Pin;
use serde_json::json;

pub(crate) async fn run(session: &Session, args: &BackupArgs) -> CommandResult {
    let now = Timestamp::now();
    let pinned = args.pin.as_deref().map(|text| pin::until_or_forever(text, now)).transpose()?;
    let opened = session.open(args.which.cluster.as_deref()).await?;
    session.refuse_foreign_user(&opened)?;
    let servers = session.conninfo(&opened.settings.pg)?;
    let chosen = server(session, args, &opened, &servers).await?;
    let conninfo = chosen.as_ref().map_or(&servers, |chosen| &chosen.conninfo);
    let mut options = BackupOptions {
        source: source::options(args, &opened)?,
        standalone: args.standalone,
        sharing: if args.full { Sharing::Full } else { Sharing::Incremental },
        label: args.label.clone(),
        workers: opened.workers(args.workers),
        compression: opened.compression(args.compression.as_deref())?,
        checkpoint: if args.wait_for_checkpoint { Checkpoint::Spread } else { Checkpoint::Fast },
        wal_timeout: opened.settings.limits.wal_timeout,
        servers: Some(servers.clone()),
        bytes_per_second_max: gentle::max_rate(&args.gentle, opened.settings.limits.bytes_per_second_max)?,
        stop_reading_at: gentle::stop_at(&args.gentle, now, &when::local_zone())?,
        made_by: concat!("pgkeep ", env!("CARGO_PKG_VERSION")).to_owned(),
    };
    let nice = args.gentle.nice.or(opened.settings.limits.nice);
    gentle::be_nice(session, nice, args.source != Source::Offline, args.gentle.idle_io);
    let warm_pass = warm::run(session, args, &opened, &options).await?;
    if args.warm_only {
        let mut fields = field("backup", None::<&str>)?;
        fields.extend(field("warm_pass", &warm_pass)?);
        return end(session, "backup", fields);
    }
    if warm_pass.is_some() {
        // From here on nobody is disturbed any more.
        options.bytes_per_second_max = None;
    }
    let context = session.context();
    let report = backup::run(&context, &opened.cluster, conninfo, &options)
        .await
        .map_err(|error| stopped(args.source, error))?;
    drop(context);
    let warned = session.output.warnings();
    report.warnings.iter().filter(|text| !warned.contains(text)).for_each(|text| session.output.warn(text));
    say_damage(session, &report);
    session.output.result(text(&report, &when::local_zone()));
    let mut fields = fields(&report)?;
    if let Some(chosen) = &chosen {
        let server = json!({ "name": chosen.server, "is_standby": chosen.is_standby, "why": chosen.why });
        fields.extend(field("server", server)?);
    }
    if warm_pass.is_some() {
        fields.extend(field("warm_pass", &warm_pass)?);
    }
    if let Some(until) = pinned {
        let pin = Pin { backup: report.backup, until, reason: String::new() };
        // The backup is there; that it is not pinned is for a human to read.
        match pin::put(&opened.cluster, &pin, now).await {
            Ok(()) => session.output.result(pin::said(pin::Pinned::Backup, &pin)),
            Err(error) => session.output.warn(format!(
                "backup {} was made, but not pinned: {}; `pgkeep pin` does it",
                pin.backup, error.message
            )),
        }
        fields.extend(field("pin", &pin)?);
    }
    end(session, "backup", fields)
}

/// Chooses a server, when a standby is preferred and there is one to connect to.
async fn server(
    session: &Session,
    args: &BackupArgs,
    opened: &Opened,
    servers: &Conninfo,
) -> Result<Option<Chosen>, CommandError> {
    let limits = &opened.settings.limits;
    let lag_max = match &args.max_lag {
        None => limits.lag_max,
        Some(text) => config::lag(text).ok_or_else(|| {
            CommandError::usage(format!("--max-lag {text}: neither a size such as 64MB nor a time such as 30s"))
                .hint("write a whole number and its unit")
        })?,
    };
    if args.source == Source::Offline || !(args.prefer_standby || limits.prefer_standby) {
        return Ok(None);
    }
    let usable = async |client: &mut Client| match args.source {
        // The server itself sends the files.
        Source::Stream => Ok(()),
        _ => backup::is_here(client).await,
    };
    let chosen = hosts::prefer_standby(&session.context(), servers, lag_max, usable).await?;
    chosen.why.iter().for_each(|why| session.output.note(why));
    Ok(Some(chosen))
}

/// A backup that was stopped, in words; one whose time was up says so itself.
pub(super) fn stopped(source: Source, error: EngineError) -> CommandError {
    let what = match source {
        Source::Stream => "stopped on request; of what the server had sent nothing is kept",
        _ => "stopped on request; the next backup goes on from what was stored so far",
    };
    match error {
        EngineError::Cancelled => stopped_as(error.into(), what),
        other => other.into(),
    }
}

fn say_damage(session: &Session, report: &BackupReport) {
    for page in &report.damaged {
        let relation = page.relation.as_deref().map(|name| format!(" ({name})")).unwrap_or_default();
        session.output.warn(format!("damaged page: {}{relation}, block {}: {}", page.path, page.block, page.reason));
    }
    if report.damaged_more > 0 {
        session.output.warn(format!("and {} more damaged pages", report.damaged_more));
    }
    if !report.damaged.is_empty() {
        session.output.note(
            "hint: the backup is kept, it may be the only one. Where an earlier backup had such a page whole and nothing \
             changed it since, that copy stays; look for an older backup for the others, and check the disks",
        );
    }
    let differing = report.look_again.iter().flat_map(|again| &again.differing);
    for page in differing {
        let relation = page.relation.as_deref().map(|name| format!(" ({name})")).unwrap_or_default();
        session.output.warn(format!("{}{relation}, block {}: {}", page.path, page.block, page.reason));
    }
}

fn text(report: &BackupReport, zone: &TimeZone) -> String {
    let seconds = report.finished.duration_since(report.started).as_secs_f64();
    let numbers = &report.numbers;
    let share = if numbers.bytes > 0 { numbers.bytes_added as f64 * 100.0 / numbers.bytes as f64 } else { 0.0 };
    let built = report.prior.map_or_else(
        || "full".to_owned(),
        |prior| format!("builds on {prior}, changes found by {}", report.change_detection.used),
    );
    let guarantee = report.guarantee.map_or("", |guarantee| match guarantee {
        SnapshotGuarantee::Backup => "\nThe frozen copy was made within a backup: its volumes need not be of one moment.",
        SnapshotGuarantee::CrashConsistent => {
            "\nThe frozen copy was taken for one of one moment: it recovers as after a crash, if that is true. What could be \
             checked was: no page is newer than the WAL in it."
        }
    });
    let downtime = report
        .downtime_seconds
        .map_or_else(String::new, |seconds| format!("\nThe server was stopped for {seconds:.1} s."));
    let carries = if report.standalone { " It carries this WAL itself and needs no archive." } else { "" };
    format!(
        "Backup {} ({built}): {}, {}, {} read, stored as {} ({share:.1} %), in {seconds:.1} s.\n\
         Recoverable from {} on (WAL {} to {} on timeline {}).{carries}{guarantee}{downtime}",
        report.backup,
        size::count(numbers.files, "file", "files"),
        size::bytes(numbers.bytes),
        size::count(numbers.pages_read, "page", "pages"),
        size::bytes(numbers.bytes_added),
        when::both(report.finished, zone),
        report.start_lsn,
        report.stop_lsn,
        report.timeline
    )
}
