//! What every operation is given: a clock, a way to report, a way to be stopped.

use crate::EngineError;
use jiff::Timestamp;
use std::sync::Arc;
use tokio_util::sync::CancellationToken;

/// What a number in a progress report counts.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Unit {
    /// Bytes.
    Bytes,
    /// Things: files, segments, objects.
    Items,
}

/// Where an operation reports how far it is. Calls come from any thread and must return at once.
pub trait Progress: Send + Sync {
    /// A phase begins, such as `reading files`. `total` is `None` where it is not known. The phase before is over.
    fn phase(&self, name: &str, total: Option<u64>, unit: Unit);

    /// So much more of the phase is done.
    fn advance(&self, by: u64);

    /// Something that a human should read, and that does not end the operation.
    fn warn(&self, text: &str);
}

/// For those who do not want to know.
#[derive(Debug, Clone, Copy)]
pub struct NoProgress;

impl Progress for NoProgress {
    fn phase(&self, _: &str, _: Option<u64>, _: Unit) {}
    fn advance(&self, _: u64) {}
    fn warn(&self, _: &str) {}
}

/// Tells the time.
pub type Clock = Arc<dyn Fn() -> Timestamp + Send + Sync>;

/// What every operation is given.
#[derive(Clone)]
pub struct Context {
    /// Where to report.
    pub progress: Arc<dyn Progress>,
    /// Cancelled when the operation is to stop and clean up (Ctrl-C).
    pub cancel: CancellationToken,
    /// The time.
    pub clock: Clock,
}

impl Context {
    /// The time now.
    pub fn now(&self) -> Timestamp {
        (self.clock)()
    }

    /// An error when the operation was told to stop.
    pub fn check(&self) -> Result<(), EngineError> {
        if self.cancel.is_cancelled() { Err(EngineError::Cancelled) } else { Ok(()) }
    }

    /// Waits for `future`, or for being told to stop.
    pub async fn or_cancel<T>(&self, future: impl Future<Output = T>) -> Result<T, EngineError> {
        tokio::select! {
            biased;
            () = self.cancel.cancelled() => Err(EngineError::Cancelled),
            value = future => Ok(value),
        }
    }
}

/// Does what may block, away from the threads that must not.
pub(crate) async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, EngineError> + Send + 'static,
) -> Result<T, EngineError> {
    tokio::task::spawn_blocking(work).await.unwrap_or_else(|panic| {
        Err(EngineError::Failed { reason: format!("a worker stopped unexpectedly: {panic}"), hint: None })
    })
}
