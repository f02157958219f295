//! The user's commands that make and drop a frozen copy of the volumes: run in a shell, never left without the second.

use crate::shell::ShellCommand;
use crate::{Context, EngineError};
use std::process::Stdio;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

/// Makes and drops the frozen copy.
///
/// Dropped while the copy is there (a panic), it runs the release command all the same.
#[derive(Debug)]
pub(in crate::backup) struct Freezer {
    freeze: ShellCommand,
    release: ShellCommand,
    /// Set before the first command runs: one that fails may have done half of its work.
    begun: AtomicBool,
}

impl Freezer {
    pub(in crate::backup) fn new(freeze: &str, release: &str, time_max: Duration) -> Self {
        let command = |what: &str, command: &str| ShellCommand {
            what: what.to_owned(),
            command: command.to_owned(),
            environment: Vec::new(),
            time_max,
        };
        Self { freeze: command("freeze", freeze), release: command("release", release), begun: AtomicBool::new(false) }
    }

    /// Makes the copy. Can be stopped; the copy is to be released whatever this gives.
    pub(in crate::backup) async fn freeze(&self, ctx: &Context) -> Result<(), EngineError> {
        ctx.progress.phase("freezing the volumes", None, crate::Unit::Items);
        self.begun.store(true, Ordering::SeqCst);
        self.freeze.run(Some(ctx)).await
    }

    /// Drops the copy, if one was made. Cannot be stopped.
    pub(in crate::backup) async fn release(&self) -> Result<(), EngineError> {
        if !self.begun.swap(false, Ordering::SeqCst) {
            return Ok(());
        }
        self.release.run(None).await
    }
}

impl Drop for Freezer {
    fn drop(&mut self) {
        if self.begun.load(Ordering::SeqCst) {
            // Nobody is left to be told.
            let _ = std::process::Command::new("sh")
                .args(["-c", &self.release.command])
                .stdin(Stdio::null())
                .stdout(Stdio::null())
                .status();
        }
    }
}
