//! Being told to stop: Ctrl-C, SIGTERM. The first one cancels and lets the operation clean up, the second ends at once.

use crate::output::Output;
use tokio::signal::unix::{SignalKind, signal};
use tokio_util::sync::CancellationToken;

/// A token that is cancelled by the first SIGINT, SIGTERM or SIGHUP. `exit_code` is for the second.
pub(crate) fn on_signals(exit_code: u8, output: &Output) -> std::io::Result<CancellationToken> {
    let token = CancellationToken::new();
    let mut interrupt = signal(SignalKind::interrupt())?;
    let mut terminate = signal(SignalKind::terminate())?;
    let mut hangup = signal(SignalKind::hangup())?;
    let (cancelled, output) = (token.clone(), output.clone());
    tokio::spawn(async move {
        loop {
            tokio::select! {
                _ = interrupt.recv() => {}
                _ = terminate.recv() => {}
                _ = hangup.recv() => {}
            }
            if cancelled.is_cancelled() {
                std::process::exit(exit_code.into());
            }
            output.note("stopping and cleaning up; a second Ctrl-C ends at once");
            cancelled.cancel();
        }
    });
    Ok(token)
}
