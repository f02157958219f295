//! Leases: who does something that only one may do at a time (docs/format.md section 11).

use crate::names::numbered;
use crate::numbered::{get_json, numbers, put_json};
use crate::seal::Kind;
use crate::{ClusterName, Keyring, RepoError};
use jiff::{SignedDuration, Timestamp};
use serde::{Deserialize, Serialize};
use std::sync::Arc;
use store::{Created, ObjectPath, Store};

/// How long a lease holds without being renewed. Renewals come every third of it.
const HOLDS: SignedDuration = SignedDuration::from_secs(180);
/// How often giving a lease back is tried: one that stays keeps others waiting until it expires.
const RELEASE_TRIES: u32 = 3;

/// The process that takes a lease. What it says of itself is compared on the same host to see whether it still lives.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct LeaseHolder {
    /// Host name.
    pub host: String,
    /// The kernel's boot ID, which differs after each start of the host.
    pub boot: String,
    /// Process ID.
    pub pid: u32,
    /// The process's start time in clock ticks since boot (`/proc/PID/stat`).
    pub process_start: u64,
}

/// The content of a lease object.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct LeaseFacts {
    /// Who holds it.
    pub holder: LeaseHolder,
    /// Since when.
    pub taken: Timestamp,
    /// Until when, unless renewed.
    pub expires: Timestamp,
}

/// A lease that is held. Renew it before it expires; release it at the end.
#[derive(Debug)]
pub struct Lease {
    store: Arc<dyn Store>,
    keys: Keyring,
    prefix: ObjectPath,
    number: u32,
    facts: LeaseFacts,
    cluster: String,
    purpose: String,
}

impl Lease {
    /// Takes the lease, or says who has it. `gone` answers whether a holder's process is known to have ended.
    pub(crate) async fn take(
        store: Arc<dyn Store>,
        keys: Keyring,
        cluster: &ClusterName,
        purpose: &str,
        holder: LeaseHolder,
        now: Timestamp,
        gone: impl Fn(&LeaseHolder) -> bool,
    ) -> Result<Self, RepoError> {
        let prefix = cluster.lease_prefix(purpose)?;
        let known = numbers(&*store, &prefix).await?;
        let highest = known.last().copied().unwrap_or(0);
        let leased =
            |holder: String| RepoError::Leased { cluster: cluster.to_string(), purpose: purpose.into(), holder };
        if highest > 0 {
            match get_json::<LeaseFacts>(&*store, &keys, Kind::Lease, &numbered(&prefix, highest)).await {
                Ok(facts) if facts.expires > now && !gone(&facts.holder) => {
                    let LeaseHolder { host, pid, .. } = &facts.holder;
                    return Err(leased(format!("process {pid} on {host}, since {}", facts.taken)));
                }
                Ok(_) => {}
                Err(error) if error.is_not_found() => {}
                Err(error) => return Err(error),
            }
        }
        let facts = LeaseFacts { holder, taken: now, expires: now + HOLDS };
        let number = highest + 1;
        if put_json(&*store, &keys, Kind::Lease, &numbered(&prefix, number), &facts).await? == Created::Exists {
            return Err(leased("somebody else took it in this moment".into()));
        }
        // Since the look another one may have been given back and a third one taken, with a number that was free again.
        let there = numbers(&*store, &prefix).await;
        let ours = |other: &u32| *other == number || known.contains(other);
        if !there.as_ref().is_ok_and(|there| there.iter().all(ours)) {
            let _ = store.delete(&numbered(&prefix, number)).await;
            there?;
            return Err(leased("somebody else took it in this moment".into()));
        }
        for old in known {
            let _ = store.delete(&numbered(&prefix, old)).await;
        }
        Ok(Self { store, keys, prefix, number, facts, cluster: cluster.to_string(), purpose: purpose.into() })
    }

    /// How often to call [`renew`](Self::renew).
    pub fn renew_every() -> std::time::Duration {
        HOLDS.unsigned_abs() / 3
    }

    /// Holds it longer. Fails when somebody else took it over meanwhile.
    pub async fn renew(&mut self, now: Timestamp) -> Result<(), RepoError> {
        let facts = LeaseFacts { expires: now + HOLDS, ..self.facts.clone() };
        let next = self.number + 1;
        let taken_over = || RepoError::Leased {
            cluster: self.cluster.clone(),
            purpose: self.purpose.clone(),
            holder: "somebody else took it over, because it was not renewed in time".into(),
        };
        let name = numbered(&self.prefix, next);
        if put_json(&*self.store, &self.keys, Kind::Lease, &name, &facts).await? == Created::Exists {
            return Err(taken_over());
        }
        // Whoever takes a lease over clears it away, and may have given back its own by now: then the next number is
        // free, and nothing else tells that what this one protected was touched.
        let there = numbers(&*self.store, &self.prefix).await;
        if !there.as_ref().is_ok_and(|there| there.contains(&self.number)) {
            let _ = self.store.delete(&name).await;
            there?;
            return Err(taken_over());
        }
        // One that stays would keep others waiting after the release.
        let _ = self.remove(self.number).await;
        self.number = next;
        self.facts = facts;
        Ok(())
    }

    /// Gives it back.
    pub async fn release(self) -> Result<(), RepoError> {
        self.remove(self.number).await
    }

    async fn remove(&self, number: u32) -> Result<(), RepoError> {
        let object = numbered(&self.prefix, number);
        let mut result = self.store.delete(&object).await;
        for _ in 1..RELEASE_TRIES {
            if result.is_ok() {
                break;
            }
            result = self.store.delete(&object).await;
        }
        Ok(result?)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use store::MemoryStore;

    fn holder(pid: u32) -> LeaseHolder {
        LeaseHolder { host: "db1".into(), boot: "b".into(), pid, process_start: 1 }
    }

    #[tokio::test]
    async fn one_at_a_time_until_released_expired_or_gone() {
        let store: Arc<dyn Store> = Arc::new(MemoryStore::new());
        let cluster: ClusterName = "main".parse().unwrap();
        let now: Timestamp = "2026-11-20T20:00:00Z".parse().unwrap();
        let take = |pid, now, gone: bool| {
            Lease::take(store.clone(), Keyring::plain(), &cluster, "backup", holder(pid), now, move |_| gone)
        };
        let mut first = take(1, now, false).await.unwrap();
        assert!(matches!(take(2, now, false).await, Err(RepoError::Leased { .. })));
        first.renew(now + SignedDuration::from_secs(60)).await.unwrap();
        let later = now + SignedDuration::from_secs(200);
        assert!(take(2, later, false).await.is_err(), "renewed until 240 s");
        first.release().await.unwrap();
        let second = take(2, later, false).await.unwrap();
        let mut third = take(3, later, true).await.unwrap();
        let mut second = second;
        assert!(second.renew(later).await.is_err(), "taken over: the process was thought gone");
        third.renew(later).await.unwrap();
        let expired = later + SignedDuration::from_secs(1000);
        assert!(take(4, expired, false).await.is_ok());
    }

    fn here() -> (Arc<dyn Store>, ClusterName, Timestamp) {
        let now = "2026-11-20T20:00:00Z".parse().unwrap();
        (Arc::new(MemoryStore::new()), "main".parse().unwrap(), now)
    }

    /// A host that was suspended: another one took the lease over, did its work, and gave the lease back.
    #[tokio::test]
    async fn what_was_taken_over_and_given_back_cannot_be_renewed() {
        let (store, cluster, now) = here();
        let take =
            |pid, now| Lease::take(store.clone(), Keyring::plain(), &cluster, "backup", holder(pid), now, |_| false);
        let mut first = take(1, now).await.unwrap();
        let later = now + SignedDuration::from_secs(181);
        take(2, later).await.unwrap().release().await.unwrap();
        assert!(matches!(first.renew(later).await, Err(RepoError::Leased { .. })));
        // Also when the first one's clock stood still.
        assert!(matches!(first.renew(now).await, Err(RepoError::Leased { .. })));
        assert!(take(3, later).await.is_ok(), "the attempt leaves nothing");
    }

    /// Between looking and taking, the lease looked at was given back and another one was taken.
    #[tokio::test]
    async fn two_never_hold_it_at_once() {
        let (store, cluster, now) = here();
        let facts = LeaseFacts { holder: holder(1), taken: now, expires: now };
        let prefix = cluster.lease_prefix("backup").unwrap();
        put_json(&*store, &Keyring::plain(), Kind::Lease, &numbered(&prefix, 5), &facts).await.unwrap();
        let meanwhile = LeaseFacts { holder: holder(2), taken: now, expires: now + HOLDS };
        let beside = |_: &LeaseHolder| {
            let (store, name) = (store.clone(), numbered(&prefix, 1));
            let meanwhile = meanwhile.clone();
            let put = async move { put_json(&*store, &Keyring::plain(), Kind::Lease, &name, &meanwhile).await };
            futures::FutureExt::now_or_never(put).expect("memory answers at once").unwrap();
            true
        };
        let live = LeaseFacts { expires: now + HOLDS, ..facts };
        store.delete(&numbered(&prefix, 5)).await.unwrap();
        put_json(&*store, &Keyring::plain(), Kind::Lease, &numbered(&prefix, 5), &live).await.unwrap();
        let taken = Lease::take(store.clone(), Keyring::plain(), &cluster, "backup", holder(3), now, beside).await;
        assert!(matches!(taken, Err(RepoError::Leased { .. })));
        assert_eq!(numbers(&*store, &prefix).await.unwrap().first(), Some(&1), "the other one's is untouched");
    }
}
