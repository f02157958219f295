//! What is known of a cluster over time (docs/format.md section 11).

use crate::{BackupId, Cluster, ClusterName, RepoError};
use pg_format::{SystemId, Timeline};
use serde::{Deserialize, Serialize};

/// A system identifier that this cluster has or had. It changes when a cluster is made anew, as by a major upgrade.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SystemEntry {
    /// The system identifier.
    pub system_id: SystemId,
    /// PostgreSQL's major version.
    pub pg_major: u32,
    /// WAL segment size in bytes.
    pub wal_segment_size: u64,
    /// Since when pgkeep knows it.
    pub since: jiff::Timestamp,
    /// The timeline that production is on; `latest` means this one.
    pub production_timeline: Timeline,
}

/// A backup or dump that must be kept.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Pin {
    /// The backup or dump.
    pub backup: BackupId,
    /// Until when; for ever when absent.
    pub until: Option<jiff::Timestamp>,
    /// Why.
    pub reason: String,
}

impl Pin {
    /// Whether it keeps its backup at this time.
    pub fn holds(&self, now: jiff::Timestamp) -> bool {
        self.until.is_none_or(|until| until > now)
    }
}

/// What is known of a cluster.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ClusterFacts {
    /// Its name.
    pub name: ClusterName,
    /// Its system identifiers, the present one last.
    pub systems: Vec<SystemEntry>,
    /// Backups and dumps that must be kept.
    pub pins: Vec<Pin>,
}

impl ClusterFacts {
    /// Whether production is noted on a lower timeline than this one.
    pub fn is_behind(&self, system_id: SystemId, timeline: Timeline) -> bool {
        self.systems.iter().any(|entry| entry.system_id == system_id && entry.production_timeline < timeline)
    }

    /// The present system identifier.
    pub fn current(&self) -> Option<&SystemEntry> {
        self.systems.last()
    }

    /// The pin that keeps a backup at this time.
    pub fn pin_of(&self, backup: BackupId, now: jiff::Timestamp) -> Option<&Pin> {
        self.pins.iter().find(|pin| pin.backup == backup && pin.holds(now))
    }
}

/// Pins.
impl Cluster {
    /// Pins a backup or dump, in the place of a pin that it has. An error when it is not there, or is being deleted: the pin is
    /// written first and then it is looked, as a deletion looks for pins after it said what it deletes.
    pub async fn pin(&self, pin: &Pin, now: jiff::Timestamp) -> Result<(), RepoError> {
        self.known_facts().await?;
        self.change_pins(now, |pins| {
            pins.retain(|other| other.backup != pin.backup);
            pins.push(pin.clone());
        })
        .await?;
        // In this order: a deletion takes its mark away when the manifest is gone.
        let deleted = self.garbage().await?.garbage.deleted.contains_key(&pin.backup);
        let deleted = deleted || self.is_dump_marked(pin.backup).await?;
        let store = self.repository().store();
        let there = match store.head(&self.name().manifest(pin.backup)).await {
            // IDs of dumps are never those of backups.
            Err(error) if error.is_not_found() => store.head(&self.name().dump_manifest(pin.backup)).await,
            found => found,
        };
        let error = match there {
            Ok(_) if !deleted => return Ok(()),
            Ok(_) => RepoError::BeingDeleted { backup: pin.backup.to_string() },
            Err(error) => error.into(),
        };
        self.unpin(pin.backup, now).await?;
        Err(error)
    }

    /// Takes a backup's pin away and gives it back; `None` when it had none.
    pub async fn unpin(&self, backup: BackupId, now: jiff::Timestamp) -> Result<Option<Pin>, RepoError> {
        let facts = self.known_facts().await?;
        let Some(pin) = facts.pins.iter().find(|pin| pin.backup == backup).cloned() else { return Ok(None) };
        self.change_pins(now, |pins| pins.retain(|other| other.backup != backup)).await?;
        Ok(pin.holds(now).then_some(pin))
    }

    /// Changes the pins; those whose time is over go at this occasion.
    async fn change_pins(&self, now: jiff::Timestamp, change: impl Fn(&mut Vec<Pin>)) -> Result<(), RepoError> {
        self.update_facts(|facts| {
            let mut facts = facts?.clone();
            facts.pins.retain(|pin| pin.holds(now));
            change(&mut facts.pins);
            facts.pins.sort_by_key(|pin| pin.backup);
            Some(facts)
        })
        .await?;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Repository;
    use crate::garbage::{Deleted, Garbage};
    use std::sync::Arc;
    use store::MemoryStore;

    fn now() -> jiff::Timestamp {
        "2026-11-20T20:09:10Z".parse().unwrap()
    }

    async fn with_backup() -> (Cluster, BackupId) {
        let repository = Repository::create(Arc::new(MemoryStore::new()), None, "test", now()).await.unwrap();
        let cluster = repository.cluster(&"main".parse().unwrap());
        let facts = ClusterFacts { name: cluster.name().clone(), systems: vec![], pins: vec![] };
        cluster.update_facts(|_| Some(facts.clone())).await.unwrap();
        let id = BackupId::at(now());
        // Whether it is there is all that is asked.
        cluster.repository().store().put(&cluster.name().manifest(id), vec![1].into()).await.unwrap();
        (cluster, id)
    }

    fn pin(backup: BackupId, until: Option<&str>) -> Pin {
        Pin { backup, until: until.map(|time| time.parse().unwrap()), reason: "audit".into() }
    }

    #[tokio::test]
    async fn pins_are_put_replaced_and_taken_away() {
        let (cluster, id) = with_backup().await;
        let forever = pin(id, None);
        cluster.pin(&forever, now()).await.unwrap();
        assert_eq!(cluster.known_facts().await.unwrap().pin_of(id, now()), Some(&forever));
        let until = pin(id, Some("2026-11-21T00:00:00Z"));
        cluster.pin(&until, now()).await.unwrap();
        let facts = cluster.known_facts().await.unwrap();
        assert_eq!(facts.pins, std::slice::from_ref(&until));
        assert_eq!(facts.pin_of(id, "2026-11-21T00:00:00Z".parse().unwrap()), None, "its time is over");
        assert_eq!(cluster.unpin(id, now()).await.unwrap(), Some(until));
        assert_eq!(cluster.unpin(id, now()).await.unwrap(), None);
    }

    #[tokio::test]
    async fn what_is_not_there_or_going_is_not_pinned() {
        let (cluster, id) = with_backup().await;
        assert!(cluster.pin(&pin(id.next(), None), now()).await.unwrap_err().is_not_found());
        let deleted = Deleted { at: now(), packs: None };
        let garbage = Garbage { deleted: [(id, deleted)].into(), ..Garbage::default() };
        cluster.put_garbage(None, &garbage, now()).await.unwrap();
        let error = cluster.pin(&pin(id, None), now()).await.unwrap_err();
        assert!(matches!(error, RepoError::BeingDeleted { .. }), "{error}");
        assert_eq!(cluster.known_facts().await.unwrap().pins, []);
    }
}
