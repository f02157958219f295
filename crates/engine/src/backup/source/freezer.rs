//! The user's commands that make and drop a frozen copy of the volumes: run in a shell, never left without the second.

use crate::{Context, EngineError};
use std::process::{Output, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

/// How much of what a command printed is shown.
const SHOWN_BYTES: usize = 2000;

/// Makes and drops the frozen copy.
///
/// Dropped while the copy is there (a panic), it runs the release command all the same.
#[derive(Debug)]
pub(in crate::backup) struct Freezer {
    freeze: String,
    release: String,
    time_max: Duration,
    /// Set before the first command runs: one that fails may have done half of its work.
    begun: AtomicBool,
}

impl Freezer {
    pub(in crate::backup) fn new(freeze: &str, release: &str, time_max: Duration) -> Self {
        Self { freeze: freeze.to_owned(), release: release.to_owned(), time_max, begun: AtomicBool::new(false) }
    }

    /// Makes the copy. Can be stopped; the copy is to be released whatever this gives.
    pub(in crate::backup) async fn freeze(&self, ctx: &Context) -> Result<(), EngineError> {
        ctx.progress.phase("freezing the volumes", None, crate::Unit::Items);
        self.begun.store(true, Ordering::SeqCst);
        run("freeze", &self.freeze, self.time_max, Some(ctx)).await
    }

    /// Drops the copy, if one was made. Cannot be stopped.
    pub(in crate::backup) async fn release(&self) -> Result<(), EngineError> {
        if !self.begun.swap(false, Ordering::SeqCst) {
            return Ok(());
        }
        run("release", &self.release, self.time_max, None).await
    }
}

impl Drop for Freezer {
    fn drop(&mut self) {
        if self.begun.load(Ordering::SeqCst) {
            // Nobody is left to be told.
            let _ = std::process::Command::new("sh")
                .args(["-c", &self.release])
                .stdin(Stdio::null())
                .stdout(Stdio::null())
                .status();
        }
    }
}

/// Runs a command in a process group of its own, so that Ctrl-C at a terminal does not reach it.
async fn run(what: &str, command: &str, time_max: Duration, ctx: Option<&Context>) -> Result<(), EngineError> {
    let failed = |how: String| {
        EngineError::failed(
            format!("the {what} command `{command}` {how}"),
            "run it by hand, as the user that runs pgkeep; it must end with exit code 0 when all is done",
        )
    };
    let child = tokio::process::Command::new("sh")
        .args(["-c", command])
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .process_group(0)
        .kill_on_drop(true)
        .spawn()
        .map_err(|error| failed(format!("cannot be run: {error}")))?;
    let group = child.id().and_then(|id| rustix::process::Pid::from_raw(i32::try_from(id).ok()?));
    let ended = async {
        let waited = tokio::time::timeout(time_max, child.wait_with_output());
        match ctx {
            Some(ctx) => ctx.or_cancel(waited).await,
            None => Ok(waited.await),
        }
    };
    let end_group = || {
        if let Some(group) = group {
            let _ = rustix::process::kill_process_group(group, rustix::process::Signal::KILL);
        }
    };
    match ended.await {
        Err(cancelled) => {
            end_group();
            Err(cancelled)
        }
        Ok(Err(_)) => {
            end_group();
            Err(failed(format!("did not end within {} s and was killed", time_max.as_secs())))
        }
        Ok(Ok(Err(error))) => Err(failed(format!("failed: {error}"))),
        Ok(Ok(Ok(output))) if output.status.success() => Ok(()),
        Ok(Ok(Ok(output))) => Err(failed(format!("ended with {}{}", output.status, said(&output)))),
    }
}

/// The end of what it printed.
fn said(output: &Output) -> String {
    let all = [&output.stdout[..], &output.stderr[..]].concat();
    let text = String::from_utf8_lossy(&all[all.len().saturating_sub(SHOWN_BYTES)..]).trim().to_owned();
    if text.is_empty() { text } else { format!(": {text}") }
}
