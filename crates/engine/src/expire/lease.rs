//! The lease of a deletion, renewed as the work goes on.

use crate::{Context, EngineError, lease_holder, process_is_gone};
use jiff::{SignedDuration, Timestamp};
use repo::{Cluster, Lease, RepoError};

/// Held while something is deleted. It keeps two deletions in order; what makes each one safe are its own looks.
pub(super) struct Held {
    lease: Lease,
    renewed: Timestamp,
}

impl Held {
    pub(super) async fn take(ctx: &Context, cluster: &Cluster) -> Result<Self, EngineError> {
        let now = ctx.now();
        let lease = cluster.take_lease("delete", lease_holder(), now, process_is_gone).await?;
        Ok(Self { lease, renewed: now })
    }

    /// Renews it when it is time. To be called between pieces of work that are short against it.
    pub(super) async fn keep(&mut self, ctx: &Context) -> Result<(), EngineError> {
        let now = ctx.now();
        let every = SignedDuration::try_from(Lease::renew_every()).unwrap_or(SignedDuration::ZERO);
        let age = now.duration_since(self.renewed);
        if age.abs() < every {
            return Ok(());
        }
        match self.lease.renew(now).await {
            Ok(()) => self.renewed = now,
            // There is time to try again.
            Err(error) if age.abs() < every * 2 && !matches!(error, RepoError::Leased { .. }) => {}
            Err(error) => return Err(error.into()),
        }
        Ok(())
    }

    pub(super) async fn release(self, ctx: &Context) {
        if let Err(error) = self.lease.release().await {
            ctx.progress.warn(&format!("the lease could not be given back, it expires within 3 minutes: {error}"));
        }
    }
}
