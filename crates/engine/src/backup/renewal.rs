//! The lease of a running backup: renewed in the background, and once more just before the backup counts.

use crate::{Context, EngineError};
use repo::{Lease, RepoError};
use std::sync::Arc;

/// A lease that is renewed in the background; none when it was given back.
pub(super) type SharedLease = Arc<tokio::sync::Mutex<Option<Lease>>>;

/// Renews it now. An error when somebody else took it over.
pub(super) async fn renew(lease: &SharedLease, ctx: &Context) -> Result<(), RepoError> {
    match &mut *lease.lock().await {
        Some(lease) => lease.renew(ctx.now()).await,
        None => Ok(()),
    }
}

pub(super) fn lease_lost(error: &RepoError) -> EngineError {
    EngineError::failed(
        format!("the backup was stopped: {error}"),
        "run it again; when this repeats, look at the store's answers and this host's clock",
    )
}

/// Keeps a lease alive, and stops the work when it is lost.
pub(super) struct Renewal {
    pub(super) lease: SharedLease,
    end: tokio_util::sync::CancellationToken,
    task: tokio::task::JoinHandle<Option<EngineError>>,
}

impl Renewal {
    pub(super) fn start(lease: Lease, ctx: &Context) -> Self {
        let lease = Arc::new(tokio::sync::Mutex::new(Some(lease)));
        let end = tokio_util::sync::CancellationToken::new();
        let (shared, ended, ctx) = (lease.clone(), end.clone(), ctx.clone());
        let task = tokio::spawn(async move {
            let mut failures = 0;
            loop {
                tokio::select! {
                    () = ended.cancelled() => {
                        let held = shared.lock().await.take();
                        if let Some(lease) = held {
                            let _ = lease.release().await;
                        }
                        return None;
                    }
                    () = tokio::time::sleep(Lease::renew_every()) => {}
                }
                match renew(&shared, &ctx).await {
                    Ok(()) => failures = 0,
                    // A store that is out of reach for a moment is no reason to give up; being taken over is.
                    Err(error) if failures < 2 && !matches!(error, RepoError::Leased { .. }) => failures += 1,
                    Err(error) => {
                        ctx.cancel.cancel();
                        return Some(lease_lost(&error));
                    }
                }
            }
        });
        Self { lease, end, task }
    }

    pub(super) async fn stop(&mut self) -> Option<EngineError> {
        self.end.cancel();
        (&mut self.task).await.ok().flatten()
    }
}
