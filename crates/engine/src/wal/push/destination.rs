//! The repositories that WAL is pushed to.

use crate::{Context, EngineError};
use pg_format::{SystemId, Timeline};
use repo::{ClusterFacts, Compression};
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use std::time::{Duration, Instant};
use store::ObjectPath;

/// How long the file asked for waits for a repository that need not have it.
pub(super) const OPTIONAL_TIME_MAX: Duration = Duration::from_secs(10);
/// A repository that could not be reached is left alone for so long.
const LEFT_ALONE: Duration = Duration::from_secs(30);

/// A repository, opened.
#[derive(Debug, Clone)]
pub struct Destination {
    /// Its name, for messages.
    pub name: String,
    /// The cluster in it.
    pub cluster: repo::Cluster,
    /// How segments are compressed.
    pub compression: Compression,
    /// Whether a file is acknowledged only when it is there.
    pub required: bool,
    /// Its URL: what notes about it belong to.
    pub key: String,
}

/// A repository that need not have everything at once, and cannot be opened now.
#[derive(Debug, Clone)]
pub struct OutOfReach {
    /// Its name, for messages.
    pub name: String,
    /// Its URL: what notes about it belong to.
    pub key: String,
    /// Why.
    pub reason: String,
}

/// A destination at work.
#[derive(Debug)]
pub(super) struct Target {
    pub(super) to: Destination,
    pub(super) facts: ClusterFacts,
    begun: Instant,
    /// Milliseconds after `begun` when it was found out of reach, and one; 0 while it is not.
    down: AtomicU64,
    /// The highest timeline that this process noted production to be on.
    raised: AtomicU32,
}

impl Target {
    pub(super) async fn open(ctx: &Context, to: Destination) -> Result<Self, EngineError> {
        let facts = ctx.or_cancel(to.cluster.known_facts()).await??;
        Ok(Self { to, facts, begun: Instant::now(), down: AtomicU64::new(0), raised: AtomicU32::new(0) })
    }

    fn now_ms(&self) -> u64 {
        self.begun.elapsed().as_millis() as u64 + 1
    }

    /// Whether it was out of reach a moment ago.
    pub(super) fn is_down(&self) -> bool {
        let since = self.down.load(Ordering::Relaxed);
        since > 0 && self.now_ms().saturating_sub(since) < LEFT_ALONE.as_millis() as u64
    }

    pub(super) fn set_down(&self, down: bool) {
        self.down.store(if down { self.now_ms() } else { 0 }, Ordering::Relaxed);
    }

    /// Notes that production is on a higher timeline now; says so when that is new.
    pub(super) async fn raise_timeline(&self, system_id: SystemId, timeline: Timeline) -> Result<bool, EngineError> {
        // Systems follow each other, and each begins at timeline 1: only the present one's is kept in mind.
        let present = self.facts.current().is_some_and(|entry| entry.system_id == system_id);
        let raised = present && self.raised.load(Ordering::Relaxed) >= timeline.0;
        if raised || !self.facts.is_behind(system_id, timeline) {
            return Ok(false);
        }
        self.to.cluster.raise_production_timeline(system_id, timeline).await?;
        if present {
            self.raised.fetch_max(timeline.0, Ordering::Relaxed);
        }
        Ok(true)
    }

    /// Refuses WAL of a system that this repository does not know as the first one does.
    pub(super) fn check_system(&self, system: SystemId, object: &ObjectPath) -> Result<(), EngineError> {
        if self.facts.systems.iter().any(|entry| entry.system_id == system) {
            return Ok(());
        }
        let cluster = self.to.cluster.name();
        Err(EngineError::refused(
            format!("{object}: WAL of system identifier {system}, which repository {} does not know", self.to.name),
            format!("run `pgkeep init {cluster}` with --repo for this repository, too"),
        ))
    }
}
