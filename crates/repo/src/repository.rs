//! A repository as a whole: made, opened with its keys, and asked for its clusters and backups.

use crate::keys::Wrap;
use crate::keys::WrappedKey;
use crate::manifest::{Manifest, ManifestFacts, ManifestWriter};
use crate::names::{clusters_prefix, numbered, repository_prefix};
use crate::numbered::{append, get_json, latest, numbers, put_json};
use crate::pack::{PackReader, PackWriter};
use crate::seal::{Kind, random};
use crate::{BackupId, ClusterFacts, ClusterName, Intent, KeySource, Keyring, Lease, LeaseHolder, PackId, RepoError};
use jiff::{SignedDuration, Timestamp};
use pg_format::{SystemId, Timeline};
use serde::{Deserialize, Serialize};
use std::collections::HashSet;
use std::ops::RangeInclusive;
use std::sync::Arc;
use store::{Created, ObjectPath, Store};

/// The format version that this program writes, and the highest it reads.
pub(crate) const FORMAT_VERSION: u32 = 1;

/// How the objects of a repository are sealed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Sealing {
    /// Not encrypted; every change is detected by hashes.
    None,
    /// Encrypted and authenticated.
    #[serde(rename = "aes-256-gcm")]
    Aes256Gcm,
}

/// What a repository is (docs/format.md section 4).
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RepositoryFacts {
    /// Random, 32 hexadecimal digits.
    pub repository_id: String,
    /// The format's version.
    pub format_version: u32,
    /// When it was made.
    pub created: Timestamp,
    /// The program that made it.
    pub created_by: String,
    /// Whether it is encrypted.
    pub seal: Sealing,
    /// Its data keys.
    pub data_keys: Vec<WrappedKey>,
}

/// A repository that was opened.
#[derive(Debug, Clone)]
pub struct Repository {
    store: Arc<dyn Store>,
    keys: Keyring,
    facts: Arc<RepositoryFacts>,
}

/// Who took an ID, before anything else has it.
#[derive(Serialize, Deserialize)]
struct Claim {
    backup: BackupId,
    at: Timestamp,
    pid: u32,
}

/// So long a claim stays.
const CLAIM_LASTS: SignedDuration = SignedDuration::from_hours(24);
/// Who claimed an ID longer ago has written an object with it, or never will.
const CLAIM_IS_NEW: SignedDuration = SignedDuration::from_mins(1);
/// So many may claim IDs in the same moment.
const CLAIMS_AT_ONCE: usize = 1000;

/// Only the field that every version has.
#[derive(Deserialize)]
struct AnyVersion {
    format_version: u32,
}

fn copy_of(name: &ObjectPath) -> ObjectPath {
    ObjectPath::new(format!("{name}.copy")).expect("a number and .copy make a valid name")
}

impl Repository {
    /// Makes a repository. `key` is `None` for one without encryption.
    pub async fn create(
        store: Arc<dyn Store>,
        key: Option<&KeySource>,
        made_by: &str,
        now: Timestamp,
    ) -> Result<Self, RepoError> {
        let repository_id = crate::coding::to_hex(&random::<16>()?);
        let (seal, data_keys, keys) = match key {
            None => (Sealing::None, Vec::new(), Keyring::plain()),
            Some(source) => {
                let data_key = random::<32>()?;
                let wrap = Wrap::seal(source, &repository_id, 1, &data_key)?;
                let wrapped = WrappedKey { number: 1, created: now, wraps: vec![wrap] };
                (Sealing::Aes256Gcm, vec![wrapped], Keyring::from_data_keys(vec![(1, data_key)]))
            }
        };
        let facts = RepositoryFacts {
            repository_id,
            format_version: FORMAT_VERSION,
            created: now,
            created_by: made_by.into(),
            seal,
            data_keys,
        };
        let first = numbered(&repository_prefix(), 1);
        if put_json(&*store, &Keyring::plain(), Kind::Repository, &first, &facts).await? == Created::Exists {
            return Err(RepoError::Conflict { path: first });
        }
        put_json(&*store, &Keyring::plain(), Kind::Repository, &copy_of(&first), &facts).await?;
        Ok(Self { store, keys, facts: Arc::new(facts) })
    }

    /// What the repository at this place is, or `None` where there is none. Needs no key.
    pub async fn inspect(store: &dyn Store) -> Result<Option<RepositoryFacts>, RepoError> {
        let Some(&number) = numbers(store, &repository_prefix()).await?.last() else {
            // The first copy may have been lost; its second is there still.
            let copy = copy_of(&numbered(&repository_prefix(), 1));
            return match Self::read_facts(store, &copy).await {
                Err(error) if error.is_not_found() => Ok(None),
                other => other.map(Some),
            };
        };
        let name = numbered(&repository_prefix(), number);
        match Self::read_facts(store, &name).await {
            Err(error) if error.is_damage() || error.is_not_found() => {
                // A copy that cannot be read either adds nothing to what is said of the first.
                Self::read_facts(store, &copy_of(&name)).await.map(Some).map_err(|_| error)
            }
            other => other.map(Some),
        }
    }

    async fn read_facts(store: &dyn Store, name: &ObjectPath) -> Result<RepositoryFacts, RepoError> {
        let plain = Keyring::plain();
        let value: serde_json::Value = get_json(store, &plain, Kind::Repository, name).await?;
        let damaged = |e: serde_json::Error| RepoError::damaged(name, format!("content: {e}"));
        let AnyVersion { format_version } = AnyVersion::deserialize(&value).map_err(damaged)?;
        if format_version > FORMAT_VERSION {
            return Err(RepoError::TooNew {
                path: name.clone(),
                what: "format version",
                found: format_version.into(),
                supported: FORMAT_VERSION.into(),
            });
        }
        serde_json::from_value(value).map_err(damaged)
    }

    /// Opens a repository.
    pub async fn open(store: Arc<dyn Store>, key: Option<&KeySource>) -> Result<Self, RepoError> {
        let url = store.url().to_owned();
        let facts = Self::inspect(&*store).await?.ok_or_else(|| RepoError::NotARepository { url: url.clone() })?;
        let keys = match (facts.seal, key) {
            (Sealing::None, None) => Keyring::plain(),
            // Who gives a key expects to be kept from writing in the clear, and from reading what anyone may have written.
            (Sealing::None, Some(_)) => return Err(RepoError::NotEncrypted { url }),
            (Sealing::Aes256Gcm, None) => return Err(RepoError::KeyMissing { url }),
            (Sealing::Aes256Gcm, Some(source)) => Self::unwrap_keys(&facts, source, &url)?,
        };
        Ok(Self { store, keys, facts: Arc::new(facts) })
    }

    fn unwrap_keys(facts: &RepositoryFacts, source: &KeySource, url: &str) -> Result<Keyring, RepoError> {
        let wrong = || RepoError::WrongKey { url: url.into(), method: source.method() };
        let mut keys = Vec::new();
        for data_key in &facts.data_keys {
            let mut opened = None;
            for wrap in &data_key.wraps {
                opened = wrap.open(source, &facts.repository_id, data_key.number)?;
                if opened.is_some() {
                    break;
                }
            }
            keys.push((data_key.number, opened.ok_or_else(wrong)?));
        }
        if keys.is_empty() {
            return Err(wrong());
        }
        Ok(Keyring::from_data_keys(keys))
    }

    /// Where the repository's objects lie.
    pub fn store(&self) -> &Arc<dyn Store> {
        &self.store
    }

    /// Its keys.
    pub fn keys(&self) -> &Keyring {
        &self.keys
    }

    /// What it is.
    pub fn facts(&self) -> &RepositoryFacts {
        &self.facts
    }

    /// The names of the clusters in it.
    pub async fn clusters(&self) -> Result<Vec<ClusterName>, RepoError> {
        let listing = self.store.list_level(Some(&clusters_prefix())).await?;
        Ok(listing.prefixes.iter().filter_map(|prefix| prefix.name().parse().ok()).collect())
    }

    /// One cluster, whether anything is known of it or not.
    pub fn cluster(&self, name: &ClusterName) -> Cluster {
        Cluster { repository: self.clone(), name: name.clone() }
    }
}

/// One cluster's part of a repository.
#[derive(Debug, Clone)]
pub struct Cluster {
    repository: Repository,
    name: ClusterName,
}

impl Cluster {
    /// The cluster's name.
    pub fn name(&self) -> &ClusterName {
        &self.name
    }

    /// The repository it lies in.
    pub fn repository(&self) -> &Repository {
        &self.repository
    }

    pub(crate) fn store(&self) -> &Arc<dyn Store> {
        &self.repository.store
    }

    pub(crate) fn keys(&self) -> &Keyring {
        &self.repository.keys
    }

    /// What is known of it, or `None` before its `init`.
    pub async fn facts(&self) -> Result<Option<ClusterFacts>, RepoError> {
        let found = latest(&**self.store(), self.keys(), Kind::Cluster, &self.name.facts_prefix()).await?;
        Ok(found.map(|(_, facts)| facts))
    }

    /// What is known of it; an error before its `init`.
    pub async fn known_facts(&self) -> Result<ClusterFacts, RepoError> {
        self.facts()
            .await?
            .ok_or_else(|| RepoError::UnknownCluster { cluster: self.name.to_string(), url: self.store().url().into() })
    }

    /// Changes what is known of it. `change` gives the new facts, or `None` to leave them; it is asked again when
    /// somebody else changed them in the same moment.
    pub async fn update_facts(
        &self,
        change: impl Fn(Option<&ClusterFacts>) -> Option<ClusterFacts>,
    ) -> Result<Option<ClusterFacts>, RepoError> {
        let prefix = self.name.facts_prefix();
        for _ in 0..20 {
            let found: Option<(u32, ClusterFacts)> =
                latest(&**self.store(), self.keys(), Kind::Cluster, &prefix).await?;
            let Some(new) = change(found.as_ref().map(|(_, facts)| facts)) else {
                return Ok(found.map(|(_, facts)| facts));
            };
            let previous = found.map(|(number, _)| number);
            if append(&**self.store(), self.keys(), Kind::Cluster, &prefix, previous, &new).await?.is_some() {
                return Ok(Some(new));
            }
        }
        Err(RepoError::Conflict { path: prefix })
    }

    /// Notes that production is on this timeline, for every system of this identifier that is noted on a lower one.
    /// The catalogue's production timeline never goes back.
    pub async fn raise_production_timeline(&self, system_id: SystemId, timeline: Timeline) -> Result<(), RepoError> {
        self.update_facts(|facts| {
            let mut facts = facts.filter(|facts| facts.is_behind(system_id, timeline))?.clone();
            for entry in facts.systems.iter_mut().filter(|entry| entry.system_id == system_id) {
                entry.production_timeline = entry.production_timeline.max(timeline);
            }
            Some(facts)
        })
        .await?;
        Ok(())
    }

    /// The IDs of all finished backups, ascending.
    pub async fn backups(&self) -> Result<Vec<BackupId>, RepoError> {
        Ok(self.backup_objects().await?.0)
    }

    /// The IDs of backups that have an intent but no manifest: running or broken off.
    pub async fn unfinished(&self) -> Result<Vec<BackupId>, RepoError> {
        let (finished, intents) = self.backup_objects().await?;
        Ok(intents.into_iter().filter(|id| !finished.contains(id)).collect())
    }

    /// The IDs of all backups that have an intent, finished or not.
    pub async fn intents(&self) -> Result<Vec<BackupId>, RepoError> {
        Ok(self.backup_objects().await?.1)
    }

    async fn backup_objects(&self) -> Result<(Vec<BackupId>, Vec<BackupId>), RepoError> {
        const PAGE: usize = 1000;
        let prefix = self.name.backups_prefix();
        let (mut finished, mut intents) = (Vec::new(), Vec::new());
        let mut after: Option<ObjectPath> = None;
        loop {
            let page = self.store().list_page(Some(&prefix), after.as_ref(), PAGE).await?;
            for object in &page {
                let parts = object.path.below(&prefix).and_then(|rest| rest.split_once('/'));
                match parts.and_then(|(id, what)| Some((id.parse().ok()?, what))) {
                    Some((id, "manifest")) => finished.push(id),
                    Some((id, "intent")) => intents.push(id),
                    _ => {}
                }
            }
            if page.len() < PAGE {
                return Ok((finished, intents));
            }
            after = page.last().map(|object| object.path.clone());
        }
    }

    /// An ID for a backup or dump that begins: the time, and later than all there are. So the order of the IDs is the order of
    /// the backups, also after the clock was set back. It is claimed: nobody else gets it, though nothing else is written yet.
    pub async fn new_backup_id(&self, now: Timestamp) -> Result<BackupId, RepoError> {
        let used = self.used_backup_ids().await?;
        let newest = used.iter().max();
        let first = newest.map_or(BackupId::at(now), |newest| newest.next().max(BackupId::at(now)));
        let id = self.claim(first, &used, now).await?;
        self.forget_claims(now).await?;
        Ok(id)
    }

    /// An ID for a backup that was made at some time in the past: the first that is free. It is claimed, too.
    pub async fn past_backup_id(&self, time: Timestamp, now: Timestamp) -> Result<BackupId, RepoError> {
        let used = self.used_backup_ids().await?;
        self.claim(BackupId::at(time), &used, now).await
    }

    /// Whether a backup has this ID, or somebody has just claimed it; `own` is when the dump of this ID was made, which had to
    /// claim it, too, if that was here.
    pub(crate) async fn is_taken(
        &self,
        id: BackupId,
        own: RangeInclusive<Timestamp>,
        now: Timestamp,
    ) -> Result<bool, RepoError> {
        let (finished, intents) = self.backup_objects().await?;
        let packs = self.store().list_level(Some(&self.name.packs_prefix())).await?.prefixes;
        let mut used = packs.iter().filter_map(|path| path.name().parse().ok()).chain(finished).chain(intents);
        if used.any(|used: BackupId| used == id) {
            return Ok(true);
        }
        match get_json::<Claim>(&**self.store(), self.keys(), Kind::Lease, &self.name.claim(id)).await {
            Ok(claim) => Ok(!own.contains(&claim.at) && claim.at.duration_until(now) < CLAIM_IS_NEW),
            Err(error) if error.is_not_found() => Ok(false),
            Err(error) => Err(error),
        }
    }

    /// Claims the first ID from this one on that is not used and that nobody else claims in the same moment.
    async fn claim(&self, first: BackupId, used: &HashSet<BackupId>, now: Timestamp) -> Result<BackupId, RepoError> {
        let mut id = first;
        for _ in 0..used.len() + CLAIMS_AT_ONCE {
            if !used.contains(&id) {
                let path = self.name.claim(id);
                let claim = Claim { backup: id, at: now, pid: std::process::id() };
                let claimed = put_json(&**self.store(), self.keys(), Kind::Lease, &path, &claim).await? == Created::New;
                // Who copies a dump to here says so first, and then looks for claims.
                if claimed && !self.is_copied_to(id).await? {
                    return Ok(id);
                }
            }
            id = id.next();
        }
        Err(RepoError::Conflict { path: self.name.claim(id) })
    }

    async fn is_copied_to(&self, id: BackupId) -> Result<bool, RepoError> {
        match self.store().head(&self.name.dump_intent(id)).await {
            Ok(_) => Ok(true),
            Err(error) if error.is_not_found() => Ok(false),
            Err(error) => Err(error.into()),
        }
    }

    /// Claims are for the time between choosing an ID and writing the first object with it.
    async fn forget_claims(&self, now: Timestamp) -> Result<(), RepoError> {
        let old = BackupId::at(now.saturating_sub(CLAIM_LASTS).unwrap_or(Timestamp::MIN));
        for claim in self.store().list_level(Some(&self.name.claims_prefix())).await?.objects {
            if claim.path.name().parse::<BackupId>().is_ok_and(|id| id < old) {
                self.store().delete(&claim.path).await?;
            }
        }
        Ok(())
    }

    /// The IDs of backups, of what unfinished ones left, of dumps (people name both in the same way), and those that somebody
    /// has just claimed.
    async fn used_backup_ids(&self) -> Result<HashSet<BackupId>, RepoError> {
        let (finished, intents) = self.backup_objects().await?;
        let packs = self.store().list_level(Some(&self.name.packs_prefix())).await?.prefixes;
        let dumps = self.store().list_level(Some(&self.name.dumps_prefix())).await?.prefixes;
        let claims = self.store().list_level(Some(&self.name.claims_prefix())).await?.objects;
        let claims = claims.iter().map(|claim| &claim.path);
        let named = packs.iter().chain(&dumps).chain(claims);
        let mut used: HashSet<BackupId> = named.filter_map(|path| path.name().parse().ok()).collect();
        used.extend(finished.into_iter().chain(intents));
        Ok(used)
    }

    /// Says that a backup begins. An error when the ID is taken.
    pub async fn put_intent(&self, intent: &Intent) -> Result<(), RepoError> {
        let path = self.name.intent(intent.backup);
        match put_json(&**self.store(), self.keys(), Kind::Intent, &path, intent).await? {
            Created::New => Ok(()),
            Created::Exists => Err(RepoError::Conflict { path }),
        }
    }

    /// The intent of a backup.
    pub async fn intent(&self, id: BackupId) -> Result<Intent, RepoError> {
        get_json(&**self.store(), self.keys(), Kind::Intent, &self.name.intent(id)).await
    }

    /// Takes back an intent: the backup is finished or given up.
    pub async fn delete_intent(&self, id: BackupId) -> Result<(), RepoError> {
        Ok(self.store().delete(&self.name.intent(id)).await?)
    }

    /// Begins a pack.
    pub async fn create_pack(&self, id: PackId) -> Result<PackWriter, RepoError> {
        PackWriter::create(self.store().clone(), self.keys(), &self.name, id).await
    }

    /// Opens a pack of known size.
    pub async fn open_pack(&self, id: PackId, size: u64) -> Result<PackReader, RepoError> {
        PackReader::open(self.store().clone(), self.keys(), &self.name, id, size).await
    }

    /// Opens a pack by its end.
    pub async fn open_pack_footer(&self, id: PackId) -> Result<PackReader, RepoError> {
        PackReader::open_for_footer(self.store().clone(), self.keys(), &self.name, id).await
    }

    /// Begins the manifest of a backup.
    pub async fn create_manifest(&self, id: BackupId) -> Result<ManifestWriter, RepoError> {
        ManifestWriter::create(self.store().clone(), self.keys(), &self.name, id).await
    }

    /// Whether a backup's manifest is there, which makes it a backup.
    pub async fn has_manifest(&self, id: BackupId) -> Result<bool, RepoError> {
        match self.store().head(&self.name.manifest(id)).await {
            Ok(_) => Ok(true),
            Err(error) if error.is_not_found() => Ok(false),
            Err(error) => Err(error.into()),
        }
    }

    /// Opens a backup.
    pub async fn open_manifest(&self, id: BackupId) -> Result<Manifest, RepoError> {
        Manifest::open(self.store().clone(), self.keys(), &self.name, id).await
    }

    /// The facts of a backup.
    pub async fn manifest_facts(&self, id: BackupId) -> Result<ManifestFacts, RepoError> {
        Manifest::read_facts(self.store().clone(), self.keys(), &self.name, id).await
    }

    /// Takes a lease; see [`Lease`].
    pub async fn take_lease(
        &self,
        purpose: &str,
        holder: LeaseHolder,
        now: Timestamp,
        gone: impl Fn(&LeaseHolder) -> bool,
    ) -> Result<Lease, RepoError> {
        Lease::take(self.store().clone(), self.keys().clone(), &self.name, purpose, holder, now, gone).await
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use store::MemoryStore;

    const KEY: &str = "000102030405060708090a0b0c0d0e0f101112131415161718191a1b1c1d1e1f";
    const OTHER: &str = "ff0102030405060708090a0b0c0d0e0f101112131415161718191a1b1c1d1e1f";

    fn now() -> Timestamp {
        "2026-11-20T20:09:10.5Z".parse().unwrap()
    }

    #[tokio::test]
    async fn only_the_right_key_opens_a_repository() {
        let store: Arc<dyn Store> = Arc::new(MemoryStore::new());
        assert!(matches!(Repository::open(store.clone(), None).await, Err(RepoError::NotARepository { .. })));
        let key = KeySource::key_file(KEY).unwrap();
        Repository::create(store.clone(), Some(&key), "test", now()).await.unwrap();
        assert!(Repository::create(store.clone(), Some(&key), "test", now()).await.is_err(), "made twice");
        assert!(matches!(Repository::open(store.clone(), None).await, Err(RepoError::KeyMissing { .. })));
        let other = KeySource::key_file(OTHER).unwrap();
        assert!(matches!(Repository::open(store.clone(), Some(&other)).await, Err(RepoError::WrongKey { .. })));
        Repository::open(store.clone(), Some(&key)).await.unwrap();
    }

    #[tokio::test]
    async fn with_a_key_nothing_is_written_in_the_clear() {
        let store: Arc<dyn Store> = Arc::new(MemoryStore::new());
        let key = KeySource::key_file(KEY).unwrap();
        Repository::create(store.clone(), Some(&key), "test", now()).await.unwrap();
        // Whoever can write to the store can put a higher number there that says "none".
        let plain: Arc<dyn Store> = Arc::new(MemoryStore::new());
        let facts = Repository::create(plain, None, "test", now()).await.unwrap().facts().clone();
        let second = numbered(&repository_prefix(), 2);
        put_json(&*store, &Keyring::plain(), Kind::Repository, &second, &facts).await.unwrap();
        assert!(matches!(Repository::open(store, Some(&key)).await, Err(RepoError::NotEncrypted { .. })));
    }

    #[tokio::test]
    async fn the_second_copy_stands_in_for_the_first() {
        let store = MemoryStore::new();
        let first = numbered(&repository_prefix(), 1);
        let shared: Arc<dyn Store> = Arc::new(store.snapshot());
        Repository::create(shared.clone(), None, "test", now()).await.unwrap();
        let object = shared.get(&first, 10_000).await.unwrap();
        let mut damaged = object.to_vec();
        damaged[100] ^= 1;
        shared.delete(&first).await.unwrap();
        Repository::open(shared.clone(), None).await.unwrap();
        shared.put(&first, damaged.into()).await.unwrap();
        Repository::open(shared.clone(), None).await.unwrap();
        shared.delete(&copy_of(&first)).await.unwrap();
        assert!(Repository::open(shared, None).await.unwrap_err().is_damage());
    }

    #[tokio::test]
    async fn a_newer_format_is_refused_by_name() {
        let store: Arc<dyn Store> = Arc::new(MemoryStore::new());
        let newer = serde_json::json!({ "format_version": 2, "something": "new" });
        let first = numbered(&repository_prefix(), 1);
        put_json(&*store, &Keyring::plain(), Kind::Repository, &first, &newer).await.unwrap();
        let error = Repository::open(store, None).await.unwrap_err();
        assert!(matches!(error, RepoError::TooNew { found: 2, supported: 1, .. }), "{error}");
    }

    #[tokio::test]
    async fn ids_are_never_used_twice() {
        let store: Arc<dyn Store> = Arc::new(MemoryStore::new());
        let repository = Repository::create(store, None, "test", now()).await.unwrap();
        let cluster = repository.cluster(&"main".parse().unwrap());
        let mut seen = Vec::new();
        for _ in 0..3 {
            let id = cluster.new_backup_id(now()).await.unwrap();
            assert!(!seen.contains(&id));
            seen.push(id);
            let intent =
                Intent { backup: id, priors: Vec::new(), host: "h".into(), pid: 1, started: now(), start: None };
            cluster.put_intent(&intent).await.unwrap();
            assert!(cluster.put_intent(&intent).await.is_err());
            assert_eq!(cluster.intent(id).await.unwrap(), intent);
        }
        assert_eq!(cluster.unfinished().await.unwrap(), seen);
        let pack = cluster.create_pack(PackId { backup: seen[2].next(), number: 1 }).await.unwrap();
        pack.finish().await.unwrap();
        let next = seen[2].next().next();
        assert_eq!(cluster.new_backup_id(now()).await.unwrap(), next, "a pack takes its ID too");
        let day = jiff::SignedDuration::from_hours(24);
        let after = next.next();
        assert_eq!(cluster.new_backup_id(now() - day).await.unwrap(), after, "claimed, and the clock was set back");
        assert_eq!(cluster.new_backup_id(now() + day).await.unwrap(), BackupId::at(now() + day));
        assert_eq!(cluster.past_backup_id(now() - day, now()).await.unwrap(), BackupId::at(now() - day));
        assert_eq!(cluster.past_backup_id(now() - day, now()).await.unwrap(), BackupId::at(now() - day).next());
        assert_eq!(cluster.past_backup_id(now(), now()).await.unwrap(), after.next());
        // Claims are forgotten after a day; what has objects stays used.
        let later = now() + day + day + day;
        assert_eq!(cluster.new_backup_id(later).await.unwrap(), BackupId::at(later));
        assert_eq!(cluster.past_backup_id(now(), now()).await.unwrap(), next);
    }

    #[tokio::test]
    async fn two_who_do_not_see_each_other_take_different_ids() {
        let store: Arc<dyn Store> = Arc::new(MemoryStore::new());
        let repository = Repository::create(store, None, "test", now()).await.unwrap();
        let cluster = repository.cluster(&"main".parse().unwrap());
        let all = (0..20).map(|_| cluster.new_backup_id(now()));
        let taken: HashSet<BackupId> = futures::future::try_join_all(all).await.unwrap().into_iter().collect();
        assert_eq!(taken.len(), 20);
    }

    #[tokio::test]
    async fn cluster_facts_change_one_after_the_other() {
        let store: Arc<dyn Store> = Arc::new(MemoryStore::new());
        let repository =
            Repository::create(store, Some(&KeySource::key_file(KEY).unwrap()), "test", now()).await.unwrap();
        let name: ClusterName = "main".parse().unwrap();
        let cluster = repository.cluster(&name);
        assert!(cluster.facts().await.unwrap().is_none());
        let add_pin = |old: Option<&ClusterFacts>| {
            let mut facts = old.cloned().unwrap_or(ClusterFacts { name: name.clone(), systems: vec![], pins: vec![] });
            facts.pins.push(crate::Pin { backup: BackupId::at(now()), until: None, reason: "x".into() });
            Some(facts)
        };
        let all = (0..8).map(|_| cluster.update_facts(add_pin));
        for result in futures::future::join_all(all).await {
            result.unwrap();
        }
        assert_eq!(cluster.known_facts().await.unwrap().pins.len(), 8);
        assert_eq!(repository.clusters().await.unwrap(), [name]);
    }
}
