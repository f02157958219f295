//! A real server whose WAL reaches a repository in memory, and what the backup tests ask of it.

#![allow(unreachable_pub, reason = "a module of a test has no outside")]

use engine::backup::{self, BackupOptions, BackupReport, Checkpoint, Sharing};
use engine::server::{ServerFacts, connect};
use engine::wal::push::{PushOptions, push};
use engine::{Context, NoProgress, Progress, Unit};
use pg_format::SegmentName;
use pg_wire::{Conninfo, Surroundings};
use repo::chunk::ChunkDecoder;
use repo::manifest::{FileEntry, FileType, Manifest, Place};
use repo::map::FileMap;
use repo::wal::{WalEncoder, WalObject, read_segment};
use repo::{ClusterFacts, Compression, Repository, SystemEntry};
use std::path::PathBuf;
use std::sync::{Arc, Mutex};
use std::time::Duration;
use store::{MemoryStore, Store};
use testkit::pg::{Cluster, ClusterBuilder};
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

pub type Result<T = ()> = anyhow::Result<T>;

pub fn context() -> Context {
    Context { progress: Arc::new(NoProgress), cancel: CancellationToken::new(), clock: Arc::new(jiff::Timestamp::now) }
}

pub fn options() -> BackupOptions {
    BackupOptions {
        source: engine::backup::SourceOptions::Direct,
        standalone: false,
        sharing: Sharing::Incremental,
        label: Some("a test".into()),
        workers: 2,
        compression: Compression::Zstd(1),
        checkpoint: Checkpoint::Fast,
        wal_timeout: Duration::from_secs(60),
        servers: None,
        bytes_per_second_max: None,
        stop_reading_at: None,
        made_by: "pgkeep test".into(),
    }
}

pub fn conninfo(server: &Cluster) -> Result<Conninfo> {
    let surroundings = Surroundings::from_vars(std::iter::empty::<(String, String)>());
    Ok(Conninfo::parse(&server.conninfo(), &surroundings)?)
}

pub async fn facts_of(server: &Cluster) -> Result<ServerFacts> {
    Ok(ServerFacts::read(&mut connect(&conninfo(server)?).await?).await?)
}

pub fn main_of(repository: &Repository) -> repo::Cluster {
    repository.cluster(&"main".parse().expect("a valid name"))
}

pub async fn register(cluster: &repo::Cluster, server: &ServerFacts) -> Result {
    let entry = SystemEntry {
        system_id: server.system_id,
        pg_major: server.major.number(),
        wal_segment_size: server.wal_segment_size.bytes(),
        since: jiff::Timestamp::now(),
        production_timeline: server.timeline,
    };
    let facts = ClusterFacts { name: cluster.name().clone(), systems: vec![entry], pins: Vec::new() };
    cluster.update_facts(|_| Some(facts.clone())).await?;
    Ok(())
}

/// A server whose WAL goes to a directory, from where a task pushes it into the repository.
pub struct Archived {
    pub server: Cluster,
    pub memory: MemoryStore,
    archiver: JoinHandle<()>,
}

impl Drop for Archived {
    fn drop(&mut self) {
        self.archiver.abort();
    }
}

impl Archived {
    pub async fn start() -> Result<Self> {
        Self::start_as(Cluster::builder(15)).await
    }

    /// The same with a server of another kind.
    pub async fn start_as(builder: ClusterBuilder) -> Result<Self> {
        // A segment may be recycled when it is in the archive; here it is pushed into the repository a moment later.
        let builder = builder.without_fsync().conf("archive_mode", "on").conf("wal_keep_size", "1GB");
        let mut server = builder.create()?;
        let archive = server.make_dir("archive")?;
        let at = archive.display();
        server.append_conf("archive_command", &format!("cp %p {at}/%f.tmp && mv {at}/%f.tmp {at}/%f"))?;
        server.start_again()?;
        let memory = MemoryStore::new();
        let store: Arc<dyn Store> = Arc::new(memory.clone());
        let cluster = main_of(&Repository::create(store, None, "test", jiff::Timestamp::now()).await?);
        register(&cluster, &facts_of(&server).await?).await?;
        let archiver = tokio::spawn(push_all(archive, cluster));
        Ok(Self { server, memory, archiver })
    }

    pub async fn cluster(&self) -> Result<repo::Cluster> {
        Ok(main_of(&Repository::open(Arc::new(self.memory.clone()), None).await?))
    }

    /// Waits until what the server has handed over is in the repository.
    pub async fn settled(&self) -> Result {
        for _ in 0..500 {
            if std::fs::read_dir(self.server.home().join("archive"))?.next().is_none() {
                break;
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        Ok(())
    }

    pub async fn backup(&self) -> Result<BackupReport> {
        // A segment that the server has handed over, and that is not pushed yet, is in neither place.
        self.settled().await?;
        Ok(backup::run(&context(), &self.cluster().await?, &conninfo(&self.server)?, &options()).await?)
    }

    /// Every object belongs to a finished backup or to one that shares it, and what those refer to is there.
    pub async fn only_finished_backups(&self) -> Result {
        let cluster = self.cluster().await?;
        let mut used = std::collections::HashSet::new();
        for id in cluster.backups().await? {
            let manifest = cluster.open_manifest(id).await?;
            for pack in manifest.packs() {
                anyhow::ensure!(pack.used > 0 && pack.used <= pack.size, "{id}: {pack:?}");
                cluster.open_pack(pack.id, pack.size).await?;
                used.insert(cluster.name().pack(pack.id).to_string());
            }
        }
        for name in self.backup_objects().await? {
            anyhow::ensure!(name.ends_with("manifest") || used.contains(&name), "{name} belongs to no backup");
        }
        Ok(())
    }

    /// Compares the backup with the files of the server, which has been quiet since before it: every page is the same but
    /// for hint bits, or was written after the backup's start, and every page of the file is there.
    pub async fn holds_what_the_server_has(&self, backup: repo::BackupId) -> Result<u64> {
        let cluster = self.cluster().await?;
        let manifest = cluster.open_manifest(backup).await?;
        let start = manifest.facts().start_lsn;
        let mut compared = 0;
        let mut blocks = manifest.files();
        while let Some(entries) = blocks.next().await? {
            for entry in entries {
                let path = String::from_utf8(entry.path.clone())?;
                let FileType::File { pages, .. } = entry.file_type else { continue };
                if ["pg_control", "pg_xact", "pg_stat", "pg_logical"].iter().any(|part| path.contains(part)) {
                    continue;
                }
                let ours = content(&cluster, &manifest, &entry).await?;
                let theirs = std::fs::read(self.server.data_dir().join(path.strip_prefix("data/").expect("inside")))?;
                anyhow::ensure!(ours.len() == theirs.len(), "{path}: {} bytes, {} there", ours.len(), theirs.len());
                for (block, (ours, theirs)) in ours.chunks(8192).zip(theirs.chunks(8192)).enumerate() {
                    let (mut a, mut b) = (ours.to_vec(), theirs.to_vec());
                    if pages && !path.ends_with("_vm") && !path.ends_with("_fsm") {
                        pg_format::mask::mask_page(&mut a);
                        pg_format::mask::mask_page(&mut b);
                    }
                    let later = pages && pg_format::page::page_lsn(theirs) >= Some(start);
                    anyhow::ensure!(a == b || later, "{path}: block {block} is not what the server has");
                    compared += 1;
                }
            }
        }
        Ok(compared)
    }

    /// Makes the WAL in the repository such as versions before the index archived it.
    pub async fn remove_wal_indexes(&self) -> Result {
        let cluster = self.cluster().await?;
        let (repository, store) = (cluster.repository(), cluster.repository().store().clone());
        for object in store.list_page(None, None, 100_000).await? {
            if !object.path.as_str().contains("/wal/") || object.path.name().parse::<SegmentName>().is_err() {
                continue;
            }
            let wal = WalObject::open(store.clone(), repository.keys(), object.path.clone()).await?;
            if wal.has_index() {
                let plain = read_segment(store.clone(), repository.keys(), &object.path).await?;
                let (facts, fragments) = (wal.facts().await?, wal.fragments().await?);
                let mut encoder = WalEncoder::new(Compression::Zstd(1));
                let bytes = encoder.encode(repository.keys(), &object.path, &plain, &facts, &fragments)?;
                store.delete(&object.path).await?;
                store.put(&object.path, bytes).await?;
            }
        }
        Ok(())
    }

    /// What lies in the repository apart from WAL, cluster facts and the repository object.
    pub async fn backup_objects(&self) -> Result<Vec<String>> {
        let objects = self.memory.list_page(None, None, 100_000).await?;
        let names = objects.iter().map(|object| object.path.to_string());
        Ok(names.filter(|name| ["/backups/", "/packs/", "leases/"].iter().any(|part| name.contains(part))).collect())
    }
}

async fn push_all(archive: PathBuf, cluster: repo::Cluster) {
    let options = PushOptions {
        compression: Compression::Zstd(1),
        workers: 1,
        batch: 1,
        others_time_max: Duration::ZERO,
        state_dir: None,
        state_key: String::new(),
    };
    loop {
        let names: Vec<PathBuf> = std::fs::read_dir(&archive)
            .map(|entries| entries.flatten().map(|entry| entry.path()).collect())
            .unwrap_or_default();
        for path in names.iter().filter(|path| path.extension().is_none_or(|extension| extension != "tmp")) {
            if push(&context(), &cluster, path, &options).await.is_ok() {
                let _ = std::fs::remove_file(path);
            }
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

/// The content of a file as the backup holds it.
pub async fn content(cluster: &repo::Cluster, manifest: &Manifest, entry: &FileEntry) -> Result<Vec<u8>> {
    let FileType::File { len, place, .. } = &entry.file_type else { anyhow::bail!("not a file") };
    let mut decoder = ChunkDecoder::default();
    let mut out = Vec::new();
    let (reference, is_map) = match place {
        Place::Zero => return Ok(vec![0; *len as usize]),
        Place::Chunk(chunk) => (chunk, false),
        Place::Map(chunk) => (chunk, true),
    };
    let pack = manifest.packs()[reference.pack as usize];
    let reader = cluster.open_pack(pack.id, pack.size).await?;
    let stored = reader.read(reference.offset, reference.stored_len.into()).await?;
    decoder.decode(&stored, reference, &mut out).map_err(|e| anyhow::anyhow!(e.0))?;
    if !is_map {
        return Ok(out);
    }
    let map = FileMap::decode(&out).map_err(|e| anyhow::anyhow!(e.0))?;
    let page = map.page_size as usize;
    let mut file = Vec::new();
    for run in &map.runs {
        let Some((chunk, slot)) = run.from else {
            file.resize(file.len() + run.pages as usize * page, 0);
            continue;
        };
        let chunk = &map.chunks[chunk as usize];
        let id = map.packs[chunk.pack as usize];
        let size = manifest.packs().iter().find(|pack| pack.id == id).expect("listed").size;
        let stored = cluster.open_pack(id, size).await?.read(chunk.offset, chunk.stored_len.into()).await?;
        decoder.decode(&stored, chunk, &mut out).map_err(|e| anyhow::anyhow!(e.0))?;
        let end = ((slot as usize + run.pages as usize) * page).min(out.len());
        file.extend_from_slice(&out[slot as usize * page..end]);
    }
    file.truncate(*len as usize);
    Ok(file)
}

/// Does something the first time a phase begins.
struct AtPhase<F>(&'static str, Mutex<Option<F>>);

impl<F: FnOnce() + Send> Progress for AtPhase<F> {
    fn phase(&self, name: &str, _: Option<u64>, _: Unit) {
        if name == self.0
            && let Some(action) = self.1.lock().expect("not poisoned").take()
        {
            action();
        }
    }
    fn advance(&self, _: u64) {}
    fn warn(&self, _: &str) {}
}

/// A context that acts when a phase begins.
pub fn at_phase(name: &'static str, action: impl FnOnce() + Send + 'static) -> Context {
    Context { progress: Arc::new(AtPhase(name, Mutex::new(Some(action)))), ..context() }
}
