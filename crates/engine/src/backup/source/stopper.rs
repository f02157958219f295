//! Stopping a server for as long as its files are copied, and starting it again.

use super::running::{Running, look};
use crate::shell::ShellCommand;
use crate::{Context, EngineError, Unit};
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

/// How often it is looked whether the server still runs.
const LOOK_EVERY: Duration = Duration::from_millis(100);
/// How long after its stop command a server may still be there.
const STOPPED_WITHIN: Duration = Duration::from_secs(60);

/// How a server comes to be stopped.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Stopping {
    /// It is stopped already; one that runs is refused.
    Already,
    /// It is waited for until somebody stops it.
    Wait,
    /// It is stopped, and started again when its files are not needed any more, also after a failure.
    Commands {
        /// Stops it; for `sh -c`. It has to end when the server has.
        stop: String,
        /// Starts it; for `sh -c`.
        start: Option<String>,
        /// How long each may take.
        time_max: Duration,
    },
}

/// Stops a server, and starts it again.
///
/// Dropped while the server is stopped (a panic), it runs the start command all the same.
#[derive(Debug)]
pub(in crate::backup) struct Stopper {
    data: PathBuf,
    stopping: Stopping,
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    /// When the stop began, or was seen.
    stopped: Option<Instant>,
    /// How long the server was not there, when that is over.
    downtime: Option<Duration>,
    /// Whether the start command is still to be run.
    must_start: bool,
    /// Why it could not be started.
    failure: Option<String>,
}

impl Stopper {
    pub(in crate::backup) fn new(data: &Path, stopping: &Stopping) -> Self {
        Self { data: data.to_owned(), stopping: stopping.clone(), state: Mutex::default() }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Has the server stopped. Whoever calls must call [`Self::start`], whatever this gives.
    pub(in crate::backup) async fn stop(&self, ctx: &Context) -> Result<(), EngineError> {
        match &self.stopping {
            Stopping::Already => return Ok(()),
            Stopping::Wait => {
                ctx.progress.phase("waiting until the server is stopped", None, Unit::Items);
                while self.runs()? {
                    ctx.or_cancel(tokio::time::sleep(LOOK_EVERY)).await?;
                }
                self.state().stopped = Some(Instant::now());
            }
            Stopping::Commands { stop, start, time_max } => {
                ctx.progress.phase("stopping the server", None, Unit::Items);
                {
                    // Before it runs: a command that fails may have done its work.
                    let mut state = self.state();
                    (state.stopped, state.must_start) = (Some(Instant::now()), start.is_some());
                }
                command("stop", stop, *time_max).run(Some(ctx)).await?;
                let since = Instant::now();
                while self.runs()? && since.elapsed() < STOPPED_WITHIN {
                    ctx.or_cancel(tokio::time::sleep(LOOK_EVERY)).await?;
                }
            }
        }
        Ok(())
    }

    /// Whether it certainly still runs. What nobody can tell is for who looks at the files then.
    fn runs(&self) -> Result<bool, EngineError> {
        Ok(matches!(look(&self.data)?, Running::Yes { .. }))
    }

    /// Starts the server again, once; what goes wrong is kept. Cannot be stopped.
    pub(in crate::backup) async fn start(&self) {
        let must_start = std::mem::take(&mut self.state().must_start);
        if let Stopping::Commands { start: Some(start), time_max, .. } = &self.stopping
            && must_start
        {
            let result = command("start", start, *time_max).run(None).await;
            self.state().failure = result.err().map(|error| error.to_string());
        }
        let mut state = self.state();
        if state.downtime.is_none() {
            state.downtime = state.stopped.map(|stopped| stopped.elapsed());
        }
    }

    /// How long the server was not there for the backup's sake, as far as that is known.
    pub(in crate::backup) fn downtime(&self) -> Option<Duration> {
        self.state().downtime
    }

    /// Why the server was not started again.
    pub(in crate::backup) fn failure(&self) -> Option<String> {
        self.state().failure.clone()
    }
}

impl Drop for Stopper {
    fn drop(&mut self) {
        let must_start = self.state().must_start;
        if let Stopping::Commands { start: Some(start), .. } = &self.stopping
            && must_start
        {
            // Nobody is left to be told.
            let mut command = std::process::Command::new("sh");
            let _ = command.args(["-c", start]).stdin(Stdio::null()).stdout(Stdio::null()).status();
        }
    }
}

fn command(what: &str, command: &str, time_max: Duration) -> ShellCommand {
    ShellCommand { what: what.to_owned(), command: command.to_owned(), environment: Vec::new(), time_max }
}
