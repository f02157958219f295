//! `wal push`, and the process in the background that goes on behind its answers.

use super::super::field;
use super::archives::{Archives, open_all};
use crate::config::Config;
use crate::error::{CommandError, CommandResult, Outcome};
use crate::session::{MissingPlace, Session};
use engine::wal::WorkerLock;
use engine::wal::push::{self, PushOptions, PushReport, Pushed, Pusher, PusherOptions, Spool, Waited};
use pg_format::WalFileName;
use serde_json::json;
use std::os::fd::AsFd;
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::time::Duration;

/// How long a push waits for the files it took along.
const PUSH_OTHERS_TIME_MAX: Duration = Duration::from_secs(30);
/// How long a push waits for the background process to come to its file.
const BACKGROUND_TIME_MAX: Duration = Duration::from_secs(60);

/// What a push needs to know before any repository is opened.
struct Plan<'a> {
    session: &'a Session,
    config: &'a Config,
    archives: Archives<'a>,
    spool: Spool,
}

impl<'a> Plan<'a> {
    fn new(session: &'a Session, config: &'a Config, wal_dir: &Path) -> Result<Self, CommandError> {
        let archives = Archives::of(session, config)?;
        let spool = Spool::new(&config.state_dir(&session.environment), &archives.key(), wal_dir);
        Ok(Self { session, config, archives, spool })
    }

    /// The answer for a file that is known to be in each repository that must have it.
    async fn noted(&self, path: &Path) -> Result<Option<PushReport>, CommandError> {
        let required =
            self.archives.repositories.iter().filter(|(_, repository)| self.archives.is_required(repository));
        let stores: Vec<Arc<dyn store::Store>> = required
            .map(|(_, repository)| self.session.open_store(repository, MissingPlace::Refuse))
            .collect::<Result<_, _>>()?;
        let stores: Vec<&dyn store::Store> = stores.iter().map(|store| &**store).collect();
        Ok(self.session.context().or_cancel(push::remembered_in(&stores, &self.spool, path)).await??)
    }

    /// Lets a process in the background push what waits, when that is more than this file; waits until it has this one.
    async fn in_background(&self, wal_dir: &Path, name: WalFileName) -> Result<Waited, CommandError> {
        let is_segment = matches!(name, WalFileName::Segment(_));
        if !is_segment || self.archives.settings.limits.push_ahead == 0 || !push::is_waiting(wal_dir, name) {
            return Ok(Waited::LeftToUs);
        }
        if !self.spool.is_locked() {
            if push::backlog(&self.spool, wal_dir, name).len() < push::BACKLOG_MIN {
                return Ok(Waited::LeftToUs);
            }
            // Without a place for notes, or a process, archiving goes on all the same.
            let started = self.spool.try_lock().map_err(|error| error.to_string()).and_then(|lock| match lock {
                Some(lock) => self.start(lock, wal_dir).map_err(|error| error.to_string()),
                None => Ok(()),
            });
            if let Err(reason) = started {
                tracing::warn!("no background process can be started, so this one pushes: {reason}");
                return Ok(Waited::LeftToUs);
            }
        }
        Ok(push::wait_for(&self.session.context(), &self.spool, wal_dir, name, BACKGROUND_TIME_MAX).await)
    }

    /// Starts the background process. It inherits the lock as its standard input, so that nobody else can have it between.
    fn start(&self, lock: WorkerLock, wal_dir: &Path) -> std::io::Result<()> {
        let mut command = Command::new(&self.session.environment.program);
        command.arg("--config").arg(&self.config.file).arg("--cluster").arg(self.archives.cluster);
        if let Some(name) = &self.session.global.repo {
            command.arg("--repo").arg(name);
        }
        command.args(["wal", "push-ahead"]).arg(wal_dir);
        // Nothing of the server's may be held open: not its log, not its directory.
        command.stdin(Stdio::from(lock.into_file())).stdout(Stdio::null()).stderr(Stdio::null());
        command.current_dir("/").spawn().map(drop)
    }
}

pub(super) async fn run(session: &Session, path: &Path) -> CommandResult {
    let config = session.config()?;
    let name = push::name_of(path)?;
    let wal_dir = push::wal_dir_of(path);
    let plan = Plan::new(session, &config, &wal_dir)?;
    if let Some(report) = plan.noted(path).await? {
        return pushed(session, &report);
    }
    if plan.in_background(&wal_dir, name).await? == Waited::Noted
        && let Some(report) = plan.noted(path).await?
    {
        return pushed(session, &report);
    }
    let settings = plan.archives.settings;
    let (destinations, out_of_reach) = open_all(session, &plan.archives).await?;
    let options = PushOptions {
        compression: repo::Compression::Zstd(1),
        workers: settings.workers(),
        batch: settings.limits.push_ahead + 1,
        others_time_max: PUSH_OTHERS_TIME_MAX,
        state_dir: Some(config.state_dir(&session.environment)),
        state_key: plan.archives.key(),
    };
    let report = push::push_to(&session.context(), destinations, out_of_reach, path, &options).await?;
    pushed(session, &report)
}

/// The background process: pushes what waits in `wal_dir` until nothing does for a while.
pub(super) async fn run_ahead(session: &Session, wal_dir: &Path) -> CommandResult {
    // Its own session: a signal for the server's processes is not for this one.
    let _ = rustix::process::setsid();
    let config = session.config()?;
    let plan = Plan::new(session, &config, wal_dir)?;
    let inherited = std::io::stdin().as_fd().try_clone_to_owned().ok();
    let inherited = inherited.and_then(|fd| plan.spool.inherited(fd.into()));
    let lock = match inherited {
        Some(lock) => lock,
        None => match plan.spool.try_lock()? {
            Some(lock) => lock,
            None => {
                return Err(CommandError::failed("another process pushes what waits there already")
                    .hint("let it; `pgkeep wal status` shows how far it is"));
            }
        },
    };
    let (destinations, out_of_reach) = open_all(session, &plan.archives).await?;
    let ctx = session.context();
    let workers = plan.archives.settings.workers();
    let options = PusherOptions { workers, spool: Some(plan.spool.clone()), warn_later: true, catalogs: None };
    let pusher = Pusher::open(&ctx, destinations, out_of_reach, wal_dir, &options).await?;
    let report = push::work(&ctx, &pusher, &lock, &push::WorkOptions::USUAL).await?;
    for (name, reason) in &report.failed {
        session.output.warn(format!("{name} could not be pushed, and is left to archive_command: {reason}"));
    }
    for warning in report.warnings {
        session.output.warn(warning);
    }
    let mut fields = field("pushed", report.pushed)?;
    fields.extend(field("failed", report.failed.len())?);
    super::super::end(session, "wal push-ahead", fields)
}

/// The file is durable: the exit code is 0, whatever there is to warn of. Anything else, and PostgreSQL would ask again.
fn pushed(session: &Session, report: &PushReport) -> CommandResult {
    let how = match report.pushed {
        Pushed::Stored => "stored",
        Pushed::AlreadyThere => "already-there",
        Pushed::Remembered => "remembered",
    };
    if report.pushed == Pushed::Remembered {
        report.warnings.iter().for_each(|warning| session.output.warn(warning));
    }
    tracing::info!("{}: {how}, {} bytes from {}", report.name, report.bytes_stored, report.bytes_read);
    for other in &report.others {
        if let Err(reason) = &other.outcome {
            tracing::warn!("{}: could not be pushed ahead, and will be asked for again: {reason}", other.name);
        }
    }
    let others: Vec<_> = report
        .others
        .iter()
        .map(|other| json!({ "name": other.name.to_string(), "error": other.outcome.as_ref().err() }))
        .collect();
    let mut fields = field("name", report.name.to_string())?;
    fields.extend(field("pushed", how)?);
    fields.extend(field("others", others)?);
    fields.extend(field("bytes_read", report.bytes_read)?);
    fields.extend(field("bytes_stored", report.bytes_stored)?);
    session.output.object("wal push", fields);
    Ok(Outcome::Done)
}
