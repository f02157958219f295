//! `wal fetch`, and the process that fetches ahead of replay.

use super::super::field;
use super::archives::{Archives, open_origins};
use crate::config::Config;
use crate::error::{CommandError, CommandResult, ErrorKind, Outcome};
use crate::session::Session;
use engine::wal::WorkerLock;
use engine::wal::fetch::{self, AheadOptions, AheadPlace, FetchOptions, FetchOutcome, keep_ahead};
use std::os::fd::AsFd;
use std::path::Path;
use std::process::{Command, Stdio};

fn options_of(session: &Session, config: &Config, archives: &Archives<'_>) -> FetchOptions {
    let settings = archives.settings;
    FetchOptions {
        ahead: settings.limits.fetch_ahead,
        workers: settings.workers(),
        cache_dir: Some(config.cache_dir(&session.environment)),
        cache_key: archives.key(),
        cache_bytes_max: settings.limits.fetch_cache_bytes,
        standby: false,
    }
}

pub(super) async fn run(session: &Session, name: &str, path: &Path) -> CommandResult {
    let config = session.config()?;
    let archives = Archives::of(session, &config)?;
    // `%p` is relative to the data directory, where PostgreSQL runs the command.
    let standby = path.parent().and_then(Path::parent).is_some_and(|data| data.join("standby.signal").exists());
    let options = FetchOptions { standby, ..options_of(session, &config, &archives) };
    let wal_dir = engine::wal::push::wal_dir_of(path);
    let place = AheadPlace::of(&wal_dir, &options);
    let ahead = |place: &AheadPlace| {
        let lock = place.replay_at(name, path)?;
        start(session, &config, &archives, lock, &wal_dir)
            .inspect_err(|error| tracing::warn!("no process can be started that fetches ahead: {error}"))
            .ok()
    };
    if let Some(outcome) = fetch::fetch_cached(name, path, &options) {
        place.as_ref().and_then(ahead);
        return fetched(session, name, &outcome, &options);
    }
    if let Some(place) = &place {
        place.wait_while_coming(&session.context(), name, path).await;
        if let Some(outcome) = fetch::fetch_cached(name, path, &options) {
            ahead(place);
            return fetched(session, name, &outcome, &options);
        }
    }
    let origins = match open_origins(session, &archives).await {
        Ok(origins) => origins,
        // A standby that is told of an outage would shut down; told that the file is absent it tries again.
        Err(error) if standby && error.kind == ErrorKind::Failed => {
            session.output.error("wal fetch", &error, 1);
            return Ok(Outcome::Code(1));
        }
        Err(error) => return Err(error),
    };
    // This call has one file to fetch; the others are for the process that goes on.
    let alone = FetchOptions { ahead: 0, ..options.clone() };
    let outcome = fetch::fetch_from(&session.context(), &origins, name, path, &alone).await;
    if matches!(outcome, FetchOutcome::Found { .. }) {
        place.as_ref().and_then(ahead);
    }
    fetched(session, name, &outcome, &options)
}

/// Starts the process that fetches ahead. It inherits the lock as its standard input.
fn start(
    session: &Session,
    config: &Config,
    archives: &Archives<'_>,
    lock: WorkerLock,
    wal_dir: &Path,
) -> std::io::Result<()> {
    let mut command = Command::new(&session.environment.program);
    command.arg("--config").arg(&config.file).arg("--cluster").arg(archives.cluster);
    if let Some(name) = &session.global.repo {
        command.arg("--repo").arg(name);
    }
    command.args(["wal", "fetch-ahead"]).arg(wal_dir);
    // Nothing of the server's may be held open: not its log, not its directory.
    command.stdin(Stdio::from(lock.into_file())).stdout(Stdio::null()).stderr(Stdio::null());
    command.current_dir("/").spawn().map(drop)
}

/// The process that fetches ahead, for the recovery in the data directory that `wal_dir` is `pg_wal` of.
pub(super) async fn run_ahead(session: &Session, wal_dir: &Path) -> CommandResult {
    // Its own session: a signal for the server's processes is not for this one.
    let _ = rustix::process::setsid();
    let config = session.config()?;
    let archives = Archives::of(session, &config)?;
    let options = options_of(session, &config, &archives);
    let Some(place) = AheadPlace::of(wal_dir, &options) else { return Ok(Outcome::Done) };
    let inherited = std::io::stdin().as_fd().try_clone_to_owned().ok();
    let lock = match inherited.and_then(|fd| place.inherited(fd.into())) {
        Some(lock) => lock,
        None => match place.try_lock()? {
            Some(lock) => lock,
            None => {
                return Err(CommandError::failed("another process fetches ahead for this recovery already")
                    .hint("let it: it ends when replay no longer moves"));
            }
        },
    };
    let origins = open_origins(session, &archives).await?;
    let fetched =
        keep_ahead(&session.context(), &origins, wal_dir, &place, &lock, &options, &AheadOptions::USUAL).await;
    super::super::end(session, "wal fetch-ahead", field("fetched", fetched)?)
}

fn fetched(session: &Session, name: &str, outcome: &FetchOutcome, options: &FetchOptions) -> CommandResult {
    let code = outcome.exit_code(options);
    let how = match outcome {
        FetchOutcome::Found { from_cache, .. } => {
            tracing::info!("{name}: found{}", if *from_cache { " in the cache" } else { "" });
            "found"
        }
        FetchOutcome::Absent => {
            tracing::info!("{name}: not in the archive");
            "absent"
        }
        FetchOutcome::Failed(error) => {
            if code == 1 {
                // The engine has said why already.
                tracing::debug!("{name}: {error}");
            } else {
                session.output.warn(format!("{name} could not be fetched: {error}"));
            }
            "failed"
        }
    };
    let mut fields = field("name", name)?;
    fields.extend(field("fetched", how)?);
    session.output.object("wal fetch", fields);
    Ok(Outcome::Code(code))
}
