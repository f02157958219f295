//! `wal receive`: what the engine says of it goes to standard error, one line each, and to the service manager.

use super::super::{field, fields};
use super::archives::{Archives, open_all, opener};
use crate::cli::{FlushPlace, ReceiveArgs};
use crate::error::{CommandError, CommandResult, ErrorKind, Outcome};
use crate::notify::Notify;
use crate::output::{Output, size};
use crate::progress;
use crate::session::Session;
use crate::when;
use engine::Context;
use engine::wal::receive::{
    FlushAt, LostWal, OnReceive, ReceiveCounts, ReceiveEvent, ReceiveOptions, ReceiveTo, drop_slot, receive,
};
use serde_json::json;
use std::sync::Arc;
use std::time::Duration;
use tokio_util::sync::CancellationToken;

pub(super) async fn run(session: &Session, args: &ReceiveArgs) -> CommandResult {
    let config = session.config()?;
    let archives = Archives::of(session, &config)?;
    let cluster = archives.cluster.to_owned();
    let conninfo = session.conninfo(&archives.settings.pg)?;
    if args.drop_slot {
        drop_slot(&session.context(), &conninfo, &args.slot).await?;
        session.output.note(format!("dropped replication slot {}", args.slot));
        let mut object = field("cluster", &cluster)?;
        object.extend(fields(&json!({ "slot": args.slot, "dropped": true }))?);
        session.output.object("wal receive", object);
        return Ok(Outcome::Done);
    }
    for (_, repository) in &archives.repositories {
        session.refuse_foreign_owner(repository)?;
    }
    // What is wrong with a repository is said now; one that is only out of reach is waited for.
    match open_all(session, &archives).await {
        Ok((opened, _)) => {
            for destination in opened.iter().filter(|destination| destination.required) {
                session.context().or_cancel(destination.cluster.known_facts()).await??;
            }
        }
        Err(error) if error.kind == ErrorKind::Failed => tracing::info!("{}", error.message),
        Err(error) => return Err(error),
    }
    let to = |(name, repository): &(&str, &crate::config::RepositoryConfig)| ReceiveTo {
        name: (*name).to_owned(),
        key: repository.url.clone(),
        required: archives.is_required(repository),
    };
    let options = ReceiveOptions {
        conninfo,
        slot: args.slot.clone(),
        flush_at: match args.flush {
            FlushPlace::Spool => FlushAt::Spool,
            FlushPlace::Repository => FlushAt::Repository,
        },
        tail_bytes: size_of("--tail-size", &args.tail_size)?.min(4 << 20),
        tail_interval: interval(&args.tail_interval)?,
        spool_bytes_max: size_of("--spool-max", &args.spool_max)?,
        // Also once it was told to stop: what it has must be brought away.
        open: opener(session, &config, CancellationToken::new()),
        repositories: archives.repositories.iter().map(to).collect(),
        workers: archives.settings.workers(),
        state_dir: config.state_dir(&session.environment),
        state_key: archives.key(),
    };
    let notify = Arc::new(Notify::of(&session.environment));
    let on_event: OnReceive = {
        let (output, notify) = (session.output.clone(), notify.clone());
        Arc::new(move |event| say(&output, &notify, event))
    };
    // Runs for months: what it warns of is said, and not kept for its end.
    let ctx = Context { progress: progress::for_log(&session.output), ..session.context() };
    session.output.note(format!("receiving WAL of cluster {cluster}, process {}", std::process::id()));
    let (cancel, stopping) = (session.cancel.clone(), notify.clone());
    tokio::spawn(async move {
        cancel.cancelled().await;
        stopping.stopping();
    });
    let report = receive(&ctx, options, on_event).await?;
    session.output.note(format!("stopped at {}; {}", report.spooled_lsn, words(&report.counts)));
    if !report.drained {
        session.output.always("what is not in the repository yet is in the spool, and goes there at the next start");
    }
    let mut object = field("cluster", &cluster)?;
    object.extend(field("slot", &args.slot)?);
    object.extend(fields(&report)?);
    session.output.object("wal receive", object);
    Ok(Outcome::Done)
}

fn size_of(option: &str, text: &str) -> Result<u64, CommandError> {
    size::read(text)
        .ok_or_else(|| CommandError::usage(format!("{option} {text}: write a size such as 256kB, 1MB or 16GB")))
}

fn interval(text: &str) -> Result<Duration, CommandError> {
    let milliseconds = text.trim().strip_suffix("ms").and_then(|number| number.trim_end().parse().ok());
    let time = milliseconds.map(Duration::from_millis).or_else(|| when::duration(text));
    time.filter(|time| *time <= Duration::from_secs(3600)).ok_or_else(|| {
        CommandError::usage(format!("--tail-interval {text}: write a time such as 250ms or 1s, at most an hour"))
    })
}

fn say(output: &Output, notify: &Notify, event: ReceiveEvent) {
    match event {
        ReceiveEvent::Alive => notify.alive(),
        ReceiveEvent::Attached { server, timeline, start, slot_made } => {
            let slot = if slot_made { ", with a slot made now" } else { "" };
            let text = format!("streaming from {server}, timeline {timeline}, from {start} on{slot}");
            notify.ready();
            notify.status(&text);
            output.note(text);
        }
        ReceiveEvent::Detached { reason } => {
            let text = format!("the stream is interrupted: {reason}");
            notify.status(&text);
            output.always(format!("warning: {text}; it is tried again"));
        }
        ReceiveEvent::Switched { from, to, at } => {
            output.always(format!("the server left timeline {from} at {at}: timeline {to} is received from there on"));
        }
        ReceiveEvent::Lost(lost) => output.always(format!("warning: {}", lost_words(&lost))),
        ReceiveEvent::Warning(text) => output.always(format!("warning: {text}")),
        ReceiveEvent::StoreFails { repository, reason } => output.always(format!(
            "warning: repository {repository} cannot be written to: {reason}; it is tried again, and until then WAL is kept \
             in the spool"
        )),
        ReceiveEvent::StoreWorks { repository } => output.always(format!("repository {repository} can be written to")),
        ReceiveEvent::SpoolFull => output.always(
            "warning: the spool is full: nothing is received until the repository takes what lies there, and the server \
             keeps its WAL",
        ),
        ReceiveEvent::Worked(counts) => {
            let text = words(&counts);
            notify.status(&text);
            output.note(text);
        }
        // The engine may come to say more.
        _ => {}
    }
}

fn lost_words(lost: &LostWal) -> String {
    let what = format!(
        "the server does not have the WAL of timeline {} from {} to {} any more",
        lost.timeline, lost.from, lost.to
    );
    match (lost.asked, lost.missing.first(), lost.missing.last()) {
        (true, None, _) | (true, _, None) => {
            format!("{what}; archiving has brought it to the repository: nothing is lost")
        }
        (true, Some(first), Some(last)) => format!(
            "{what}, and the repository lacks {} of it, {first} to {last}: no backup before it can be recovered beyond {}. Push \
             what another server or pg_wal still has of it, and take a new backup",
            size::count(lost.missing.len() as u64, "segment", "segments"),
            lost.from
        ),
        _ => format!("{what}; whether the repository has it is not known now: see `pgkeep wal status`"),
    }
}

fn words(counts: &ReceiveCounts) -> String {
    format!(
        "since the start: {} received; {} stored as {} ({} there already); {} of tails, {} listings, {} deleted{}",
        size::bytes(counts.bytes_received),
        size::count(counts.segments, "segment", "segments"),
        size::bytes(counts.bytes_stored),
        counts.segments_there,
        size::count(counts.pieces, "piece", "pieces"),
        counts.listings,
        counts.pieces_deleted,
        match counts.frames {
            0 => String::new(),
            frames => format!("; {} written to logs", size::count(frames, "frame", "frames")),
        },
    )
}
