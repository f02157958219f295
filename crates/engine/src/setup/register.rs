//! What a repository knows of a cluster: made at `init`, and when a cluster was made anew.

use crate::server::ServerFacts;
use crate::{Context, EngineError};
use pg_format::{SystemId, Timeline};
use repo::{ClusterFacts, SystemEntry};
use std::sync::{Mutex, PoisonError};

/// How a cluster is registered.
#[derive(Debug, Clone, Copy)]
pub struct RegisterOptions {
    /// Whether another system identifier than the one known is taken as this cluster's next life.
    pub new_system: bool,
}

/// What registering changed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Registered {
    /// The cluster was not known before.
    New,
    /// It was known just so.
    Known,
    /// It has a new system identifier; the one before is told.
    NewSystem(SystemId),
    /// It is on a higher timeline than was known.
    NewTimeline(Timeline),
}

/// Notes a server's cluster in the repository, under the cluster's name there.
///
/// # Errors
/// [`EngineError::Refused`] when another cluster has this name already, or it is not the same as it was.
pub async fn register(
    ctx: &Context,
    cluster: &repo::Cluster,
    server: &ServerFacts,
    options: RegisterOptions,
) -> Result<Registered, EngineError> {
    let entry = SystemEntry {
        system_id: server.system_id,
        pg_major: server.major.number(),
        wal_segment_size: server.wal_segment_size.bytes(),
        since: ctx.now(),
        production_timeline: server.timeline,
    };
    register_entry(ctx, cluster, &entry, options).await
}

/// The same for a cluster that is known otherwise than from its server.
pub(crate) async fn register_entry(
    ctx: &Context,
    cluster: &repo::Cluster,
    entry: &SystemEntry,
    options: RegisterOptions,
) -> Result<Registered, EngineError> {
    // Asked again when somebody else changes the facts in the same moment: the last answer counts.
    let answer = Mutex::new(Ok(Registered::Known));
    let store = |value| *answer.lock().unwrap_or_else(PoisonError::into_inner) = value;
    let update = cluster.update_facts(|known| match decide(cluster, known, entry, options) {
        Ok((registered, facts)) => {
            store(Ok(registered));
            facts
        }
        Err(error) => {
            store(Err(error));
            None
        }
    });
    ctx.or_cancel(update).await??;
    answer.into_inner().unwrap_or_else(PoisonError::into_inner)
}

fn decide(
    cluster: &repo::Cluster,
    known: Option<&ClusterFacts>,
    entry: &SystemEntry,
    options: RegisterOptions,
) -> Result<(Registered, Option<ClusterFacts>), EngineError> {
    let name = cluster.name();
    let current = known.and_then(ClusterFacts::current);
    let (Some(known), Some(current)) = (known, current) else {
        let pins = known.map(|facts| facts.pins.clone()).unwrap_or_default();
        let facts = ClusterFacts { name: name.clone(), systems: vec![entry.clone()], pins };
        return Ok((Registered::New, Some(facts)));
    };
    if current.system_id != entry.system_id {
        if !options.new_system {
            return Err(other_system(cluster, known, current, entry));
        }
        let mut facts = known.clone();
        facts.systems.retain(|system| system.system_id != entry.system_id);
        facts.systems.push(entry.clone());
        return Ok((Registered::NewSystem(current.system_id), Some(facts)));
    }
    if current.pg_major != entry.pg_major || current.wal_segment_size != entry.wal_segment_size {
        return Err(EngineError::refused(
            format!(
                "cluster {name} is known with PostgreSQL {} and WAL segments of {} bytes; the server of the same system \
                 identifier has PostgreSQL {} and {} bytes",
                current.pg_major, current.wal_segment_size, entry.pg_major, entry.wal_segment_size
            ),
            "its archive cannot go on under this name: run `pgkeep init` with a new cluster name, and keep the old one's \
             backups as long as they are needed",
        ));
    }
    if current.production_timeline >= entry.production_timeline {
        return Ok((Registered::Known, None));
    }
    let mut facts = known.clone();
    if let Some(current) = facts.systems.last_mut() {
        current.production_timeline = entry.production_timeline;
    }
    Ok((Registered::NewTimeline(entry.production_timeline), Some(facts)))
}

fn other_system(
    cluster: &repo::Cluster,
    known: &ClusterFacts,
    current: &SystemEntry,
    entry: &SystemEntry,
) -> EngineError {
    let name = cluster.name();
    let url = cluster.repository().store().url();
    let is = if entry.pg_major > current.pg_major {
        format!("it was upgraded from PostgreSQL {} to {}, or is another cluster", current.pg_major, entry.pg_major)
    } else if known.systems.iter().any(|system| system.system_id == entry.system_id) {
        "it is one that this cluster had before".to_owned()
    } else {
        "it is another cluster, or was made anew".to_owned()
    };
    EngineError::refused(
        format!(
            "the server has system identifier {}, but cluster {name} in {url} has {}: {is}",
            entry.system_id, current.system_id
        ),
        format!(
            "if the server takes the place of {name}, run init again with --new-system (backups made before stay); if it \
             is another cluster, give it another name"
        ),
    )
}
