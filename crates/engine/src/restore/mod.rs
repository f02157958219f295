//! Restore: a backup becomes a data directory that recovers to a target.
//!
//! [`plan`] decides everything and writes nothing: which backup, whether the WAL to the target is there, where files go
//! and whether there is room. [`apply`] does what a plan says. [`start`] starts a server on what was restored.

pub(crate) mod apply;
mod choose;
mod config;
mod damage;
pub(crate) mod fetch;
pub(crate) mod files;
pub(crate) mod paths;
mod pieces;
pub(crate) mod place;
pub(crate) mod plan;
mod programs;
mod round;
mod search;
pub(crate) mod settings;
mod start;
pub(crate) mod target;
mod types;

pub use types::{
    ExistingFiles, LinkBecomes, OwnerName, PlannedConfig, PlannedLink, PlannedOwner, PlannedPlace, PlannedSetting,
    PlannedTablespace, RecoveryTarget, RestorePlan, RestoreReport, RestoreRequest, StartOptions, StartedServer,
    StartedState, TablespaceMapping, TargetAction, TimelineChoice, WalCheck, WalNeed, Window,
};

use crate::{Context, EngineError};
use std::path::Path;

/// Thinks a restore through: refuses what cannot succeed, and says what would be done. Writes nothing.
pub async fn plan(
    ctx: &Context,
    cluster: &repo::Cluster,
    request: &RestoreRequest,
) -> Result<RestorePlan, EngineError> {
    plan::plan(ctx, cluster, request).await
}

/// Does what a plan says. A restore that fails or is stopped leaves no `pg_control`, so that no server starts on it.
pub async fn apply(ctx: &Context, cluster: &repo::Cluster, plan: &RestorePlan) -> Result<RestoreReport, EngineError> {
    apply::apply(ctx, cluster, plan).await
}

/// Starts a server on a restored data directory, with a port and socket of its own, and waits until recovery has
/// reached its target.
pub async fn start(ctx: &Context, data: &Path, options: &StartOptions) -> Result<StartedServer, EngineError> {
    start::start(ctx, data, options).await
}
