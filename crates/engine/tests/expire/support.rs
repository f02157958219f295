//! Backups made of the repository's own parts, without a server: quick, and of any shape that is wanted.

#![allow(unreachable_pub, reason = "a module of a test has no outside")]

use engine::expire::{Deletion, LastBackup, Request, WalExpiry, Which, apply, plan};
use engine::{Context, EngineError, NoProgress};
use jiff::Timestamp;
use pg_format::{Lsn, SystemId, Timeline};
use repo::chunk::{ChunkEncoder, PageContent};
use repo::manifest::{ChangeDetection, DamagedPage, FileEntry, FileType, HostFacts, ManifestFacts, Numbers, Owner};
use repo::pack::ChunkPages;
use repo::retention::RetentionPolicy;
use repo::{BackupId, Cluster, ClusterFacts, Compression, Intent, IntentStart, PackId, Repository, SystemEntry};
use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::atomic::{AtomicI64, Ordering};
use std::sync::{Arc, LazyLock};
use std::time::Duration;
use store::{MemoryStore, ObjectPath, Store};
use tokio_util::sync::CancellationToken;

pub type Result<T = ()> = anyhow::Result<T>;

pub const SYSTEM: SystemId = SystemId(7_300_000_000_000_000_000);
pub const SEGMENT: u64 = 16 << 20;

/// The time in a test: second 0 is when the repository was made.
pub fn at(second: i64) -> Timestamp {
    Timestamp::from_second(1_800_000_000 + second).expect("in range")
}

pub fn id(second: i64) -> BackupId {
    BackupId::at(at(second))
}

pub fn pack(second: i64, number: u32) -> PackId {
    PackId { backup: id(second), number }
}

/// A repository in memory, and a clock that a test moves.
#[derive(Clone)]
pub struct World {
    pub memory: MemoryStore,
    seconds: Arc<AtomicI64>,
}

impl World {
    pub async fn new() -> Result<Self> {
        let world = Self { memory: MemoryStore::new(), seconds: Arc::new(AtomicI64::new(1000)) };
        Repository::create(Arc::new(world.memory.clone()), None, "test", at(0)).await?;
        let entry = SystemEntry {
            system_id: SYSTEM,
            pg_major: 15,
            wal_segment_size: SEGMENT,
            since: at(0),
            production_timeline: Timeline(1),
        };
        let cluster = world.cluster().await?;
        let facts = ClusterFacts { name: cluster.name().clone(), systems: vec![entry], pins: Vec::new() };
        cluster.update_facts(|_| Some(facts.clone())).await?;
        Ok(world)
    }

    /// The same objects in a store of their own.
    pub fn copy(&self) -> Self {
        Self { memory: self.memory.snapshot(), seconds: Arc::new(AtomicI64::new(self.seconds.load(Ordering::Relaxed))) }
    }

    pub async fn cluster(&self) -> Result<Cluster> {
        in_store(Arc::new(self.memory.clone())).await
    }

    pub fn context(&self) -> Context {
        let seconds = self.seconds.clone();
        Context {
            progress: Arc::new(NoProgress),
            cancel: CancellationToken::new(),
            clock: Arc::new(move || at(seconds.load(Ordering::Relaxed))),
        }
    }

    pub fn wait(&self, seconds: i64) {
        self.seconds.fetch_add(seconds, Ordering::Relaxed);
    }

    /// Plans and applies.
    pub async fn run(&self, request: &Request) -> std::result::Result<Deletion, EngineError> {
        let cluster = self.cluster().await.expect("a repository");
        run_in(&self.context(), &cluster, request).await
    }

    /// The packs there are.
    pub async fn packs(&self) -> Result<BTreeSet<String>> {
        let prefix = ObjectPath::new("clusters/main/packs").expect("a path");
        let found = self.memory.list_page(Some(&prefix), None, 100_000).await?;
        Ok(found.iter().filter_map(|object| object.path.below(&prefix).map(str::to_owned)).collect())
    }

    pub async fn names(&self, part: &str) -> Result<Vec<String>> {
        let all = self.memory.list_page(None, None, 100_000).await?;
        Ok(all.iter().map(|object| object.path.to_string()).filter(|name| name.contains(part)).collect())
    }

    /// Every backup there is has every pack that it uses, of the right size and readable.
    pub async fn all_whole(&self) -> Result<Vec<BackupId>> {
        let cluster = self.cluster().await?;
        let backups = cluster.backups().await?;
        for backup in &backups {
            for used in cluster.open_manifest(*backup).await?.packs() {
                let read = async { cluster.open_pack_footer(used.id).await?.footer().await }.await;
                if let Err(error) = read {
                    anyhow::bail!("backup {backup} needs pack {}: {error}", used.id);
                }
            }
        }
        Ok(backups)
    }

    /// Nothing is there that no backup uses.
    pub async fn nothing_left_over(&self) -> Result {
        let cluster = self.cluster().await?;
        let mut used = BTreeSet::new();
        for backup in cluster.backups().await? {
            used.extend(cluster.open_manifest(backup).await?.packs().iter().map(|pack| pack.id.to_string()));
        }
        let there = self.packs().await?;
        anyhow::ensure!(there == used, "left over: {:?}", there.difference(&used).collect::<Vec<_>>());
        anyhow::ensure!(self.names("leases/").await?.is_empty(), "a lease is left");
        let garbage = cluster.garbage().await?.garbage;
        anyhow::ensure!(garbage.unreferenced.is_empty() && garbage.deleted.is_empty(), "{garbage:?}");
        Ok(())
    }
}

pub async fn in_store(store: Arc<dyn Store>) -> Result<Cluster> {
    Ok(Repository::open(store, None).await?.cluster(&"main".parse()?))
}

pub async fn run_in(ctx: &Context, cluster: &Cluster, request: &Request) -> std::result::Result<Deletion, EngineError> {
    let plan = plan(ctx, cluster, request).await?;
    apply(ctx, cluster, request, &plan).await
}

/// Deletes these at once.
pub fn delete(ids: &[BackupId]) -> Request {
    let which = Which::Backups { ids: ids.to_vec(), last: LastBackup::MayGo };
    Request { which, grace: Duration::ZERO, wal: WalExpiry::Keep }
}

/// Removes only what nothing uses.
pub fn tidy() -> Request {
    Request { which: Which::Nothing, grace: Duration::ZERO, wal: WalExpiry::Keep }
}

pub fn keep_last(keep_last: u32) -> Request {
    let which = Which::ByPolicy(RetentionPolicy { keep_last });
    Request { which, grace: Duration::ZERO, wal: WalExpiry::Delete }
}

/// What a synthetic backup is like.
#[derive(Clone)]
pub struct Made {
    pub id: BackupId,
    pub own_packs: u32,
    pub shared: Vec<PackId>,
    pub start_lsn: Lsn,
    pub timeline: Timeline,
    pub damaged: bool,
}

impl Made {
    pub fn new(second: i64, own_packs: u32, shared: &[PackId]) -> Self {
        let start_lsn = Lsn(SEGMENT * second as u64 + 40);
        Self { id: id(second), own_packs, shared: shared.to_vec(), start_lsn, timeline: Timeline(1), damaged: false }
    }

    pub fn intent(&self, priors: &[BackupId]) -> Intent {
        Intent {
            backup: self.id,
            priors: priors.to_vec(),
            host: "elsewhere".into(),
            pid: 1,
            started: self.id.time(),
            start: Some(IntentStart {
                system_id: SYSTEM,
                timeline: self.timeline,
                start_lsn: self.start_lsn,
                data_directory: "/data".into(),
                from_standby: false,
                checksums: true,
                full: false,
            }),
        }
    }

    pub async fn put_packs(&self, cluster: &Cluster) -> Result {
        for number in 1..=self.own_packs {
            let mut pack = cluster.create_pack(PackId { backup: self.id, number }).await?;
            let plain = [number as u8; 100];
            let mut encoder = ChunkEncoder::new(Compression::None);
            let chunk = encoder.encode(&plain, 8192, PageContent::Other);
            pack.add(b"data/base/1/1", &ChunkPages::Base { first: 0 }, &chunk).await?;
            pack.finish().await?;
        }
        Ok(())
    }

    /// All packs that it uses.
    pub fn packs(&self) -> Vec<PackId> {
        let own = (1..=self.own_packs).map(|number| PackId { backup: self.id, number });
        self.shared.iter().copied().chain(own).collect()
    }

    pub async fn put_manifest(&self, cluster: &Cluster) -> Result {
        let mut manifest = cluster.create_manifest(self.id).await?;
        let mut sizes = HashMap::new();
        for pack in self.packs() {
            manifest.use_pack(pack, 100);
            // Packs of a test are all of one size.
            sizes.insert(pack, 1);
        }
        let entry =
            FileEntry { path: b"data".to_vec(), mode: 0o700, owner: 0, mtime: 0, file_type: FileType::Directory };
        manifest.add_file(&entry).await?;
        manifest.finish(&self.facts(cluster), &sizes).await?;
        Ok(())
    }

    pub async fn put(&self, world: &World) -> Result<Self> {
        let cluster = world.cluster().await?;
        self.put_packs(&cluster).await?;
        self.put_manifest(&cluster).await?;
        Ok(self.clone())
    }

    fn facts(&self, cluster: &Cluster) -> ManifestFacts {
        static DAMAGED: LazyLock<DamagedPage> = LazyLock::new(|| DamagedPage {
            path: "data/base/1/1".into(),
            relation: None,
            block: 0,
            reason: "checksum".into(),
        });
        ManifestFacts {
            backup: self.id,
            cluster: cluster.name().clone(),
            label: None,
            made_by: "test".into(),
            started: self.id.time(),
            finished: self.id.time(),
            source: "direct".into(),
            from_standby: false,
            standalone: false,
            system_id: SYSTEM,
            pg_version_num: 150_020,
            pg_version: "15.20".into(),
            catalog_version: 1,
            timeline: self.timeline,
            start_lsn: self.start_lsn,
            stop_lsn: Lsn(self.start_lsn.0 + 100),
            stop_time: self.id.time(),
            block_size: 8192,
            relseg_blocks: 131_072,
            wal_segment_size: SEGMENT,
            checksums: true,
            data_directory: "/data".into(),
            tablespaces: Vec::new(),
            backup_label: None,
            tablespace_map: None,
            config_files: Vec::new(),
            owners: vec![Owner { user: "postgres".into(), group: "postgres".into() }],
            prior: None,
            resumed: Vec::new(),
            look_again: None,
            change_detection: ChangeDetection { used: "all".into(), reasons: Vec::new() },
            numbers: Numbers::default(),
            damaged: if self.damaged { vec![DAMAGED.clone()] } else { Vec::new() },
            warnings: Vec::new(),
            host: HostFacts { name: "db1".into(), os: None, glibc: None, collations: Vec::new() },
            compression: "none".into(),
            notes: BTreeMap::new(),
        }
    }
}

/// A chain: each backup has two packs of its own and uses one of each before it.
pub async fn chain(world: &World, count: i64) -> Result<Vec<Made>> {
    let mut made = Vec::new();
    for second in 1..=count {
        let shared: Vec<PackId> = (1..second).map(|earlier| pack(earlier, 1)).collect();
        made.push(Made::new(second, 2, &shared).put(world).await?);
    }
    Ok(made)
}
