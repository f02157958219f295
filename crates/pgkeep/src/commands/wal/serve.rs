//! `wal serve`: the resident archiver behind PostgreSQL's archive library.

use super::super::{field, fields, library};
use super::archives::{Archives, open_all, opener};
use crate::cli::ServeArgs;
use crate::error::{CommandError, CommandResult, Outcome};
use crate::output::{Output, size};
use crate::progress;
use crate::session::Session;
use engine::Context;
use engine::wal::serve::{OnEvent, ServeCounts, ServeEvent, ServeOptions, serve};
use std::sync::Arc;

pub(super) async fn run(session: &Session, args: &ServeArgs) -> CommandResult {
    if session.environment.is_root {
        return Err(CommandError::usage(
            "wal serve must run as the operating-system user that PostgreSQL runs as, not as root",
        )
        .hint("sudo -u postgres pgkeep wal serve …, or User= in its unit"));
    }
    let config = session.config()?;
    let archives = Archives::of(session, &config)?;
    let cluster = archives.cluster.to_owned();
    let socket = library::socket(args.socket.as_deref(), &config, &session.environment, &cluster);
    // What is wrong with a repository is said now, not when PostgreSQL asks.
    let (opened, _) = open_all(session, &archives).await?;
    for destination in opened.iter().filter(|destination| destination.required) {
        session.context().or_cancel(destination.cluster.known_facts()).await??;
    }
    let options = ServeOptions {
        socket: socket.clone(),
        open: opener(session, &config, session.cancel.clone()),
        workers: archives.settings.workers(),
        ahead: archives.settings.limits.push_ahead,
        state_dir: config.state_dir(&session.environment),
        state_key: archives.key(),
    };
    let output = session.output.clone();
    let what = format!("cluster {cluster} at {}", socket.display());
    let on_event: OnEvent = Arc::new(move |event| say(&output, &what, event));
    // Runs for months: what it warns of is said, and not kept for its end.
    let ctx = Context { progress: progress::for_log(&session.output), ..session.context() };
    let counts = serve(&ctx, options, on_event).await?;
    session.output.note(format!("stopped; {}", words(&counts)));
    let mut object = field("cluster", &cluster)?;
    object.extend(field("socket", &socket)?);
    object.extend(fields(&counts)?);
    session.output.object("wal serve", object);
    Ok(Outcome::Done)
}

fn say(output: &Output, what: &str, event: ServeEvent) {
    match event {
        ServeEvent::Listening => output.note(format!("serving {what}, process {}", std::process::id())),
        ServeEvent::Connected(pid) => {
            let pid = pid.map_or_else(|| "unknown".into(), |pid| pid.to_string());
            tracing::info!("an archive library has connected, process {pid}");
        }
        ServeEvent::Worked(counts) => output.note(words(&counts)),
        ServeEvent::Failed { name, reason } => output.always(format!("warning: {name} was not archived: {reason}")),
        ServeEvent::WorksAgain { name } => output.always(format!("archiving works again: {name} is in the repository")),
        ServeEvent::Intruder(reason) => output.always(format!("warning: refused: {reason}")),
    }
}

fn words(counts: &ServeCounts) -> String {
    format!(
        "since the start: {} archived ({} stored as {}), {} there already, {} failed",
        size::count(counts.stored, "file", "files"),
        size::bytes(counts.bytes_read),
        size::bytes(counts.bytes_stored),
        counts.already_there,
        counts.failed
    )
}
