//! Repositories that earlier versions wrote, kept in `testdata/repo/vN`, stay readable for ever: every object is read,
//! every chunk is checked against its hashes, and all content has the digest that was recorded when the sample was made.
//!
//! A sample is never rewritten. When this test fails, the reader is wrong.

use anyhow::{Context, Result, bail, ensure};
use repo::chunk::{ChunkDecoder, ChunkRef, PageContent, page_hash};
use repo::manifest::{FileEntry, FileType, Manifest, ManifestFacts, Place};
use repo::map::FileMap;
use repo::pack::{ChunkPages, PackReader};
use repo::wal::{WalObject, plain_hash, read_segment, read_wal_file};
use repo::{BackupId, Cluster, KeySource, Repository};
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use store::{ObjectPath, Store, StoreOptions};

#[tokio::test]
async fn samples_of_version_1_are_read() {
    let samples = testdata().join("v1");
    let digests = std::fs::read_to_string(samples.join("digests")).unwrap_or_default();
    let mut unknown = Vec::new();
    for (name, key) in [("plain", None), ("encrypted", Some("encrypted.key"))] {
        let sample = read_sample(&samples.join(name), key.map(|key| samples.join(key)).as_deref()).await;
        let sample = sample.unwrap_or_else(|error| panic!("sample {name}: {error:#}"));
        let line = format!("{name} {}", sample.digest.finalize());
        if !digests.lines().any(|known| known == line) {
            unknown.push(line);
        }
        // A digest says nothing when little was read.
        let count = |what: &str| sample.seen.get(what).copied().unwrap_or(0);
        for what in ["file", "directory", "zero", "one chunk", "file map", "name", "segment", "backup history"] {
            assert!(count(what) > 0, "sample {name} holds no {what}: {:?}", sample.seen);
        }
        assert!(count("file") > 300 && count("page hash") > 500, "sample {name}: {:?}", sample.seen);
        if name == "encrypted" {
            assert!(count("timeline history") > 0 && count("partial segment") > 0, "{:?}", sample.seen);
        }
    }
    assert!(unknown.is_empty(), "content is not what was recorded; it is now\n{}", unknown.join("\n"));
}

#[tokio::test]
async fn the_encrypted_sample_needs_its_key() {
    let store = open_store(&testdata().join("v1/encrypted")).unwrap();
    let other = KeySource::key_file(&KeySource::new_key_text().unwrap()).unwrap();
    assert!(Repository::open(store.clone(), None).await.is_err());
    assert!(Repository::open(store, Some(&other)).await.is_err());
}

fn testdata() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../testdata/repo")
}

fn open_store(path: &Path) -> Result<Arc<dyn Store>> {
    let path = path.canonicalize().with_context(|| path.display().to_string())?;
    Ok(store::open_store(&path.to_string_lossy(), &StoreOptions::standard())?)
}

#[derive(Default)]
struct Sample {
    digest: blake3::Hasher,
    seen: BTreeMap<&'static str, u64>,
}

impl Sample {
    /// Lengths go before contents, so that nothing can move from one field to the next.
    fn add(&mut self, bytes: impl AsRef<[u8]>) {
        let bytes = bytes.as_ref();
        self.digest.update(&(bytes.len() as u64).to_le_bytes());
        self.digest.update(bytes);
    }

    fn see(&mut self, what: &'static str) {
        *self.seen.entry(what).or_default() += 1;
    }
}

async fn read_sample(path: &Path, key: Option<&Path>) -> Result<Sample> {
    let store = open_store(path)?;
    let key = key.map(|key| anyhow::Ok(KeySource::key_file(&std::fs::read_to_string(key)?)?)).transpose()?;
    let repository = Repository::open(store.clone(), key.as_ref()).await?;
    let mut sample = Sample::default();
    sample.add(&repository.facts().repository_id);
    let objects = store.list_page(None, None, 100_000).await?;
    let mut unread: Vec<ObjectPath> = objects.into_iter().map(|object| object.path).collect();
    unread.retain(|path| !path.as_str().starts_with("pgkeep/"));
    for name in repository.clusters().await? {
        let cluster = repository.cluster(&name);
        let facts = cluster.known_facts().await?;
        sample.add(name.as_str());
        for system in &facts.systems {
            sample.add(format!("{} {} {}", system.system_id, system.pg_major, system.wal_segment_size));
        }
        unread.retain(|path| path.below(&name.facts_prefix()).is_none());
        for id in cluster.backups().await? {
            let packs = read_backup(&mut sample, &cluster, id).await.with_context(|| format!("backup {id}"))?;
            unread.retain(|path| *path != name.manifest(id) && !packs.contains(path));
        }
        for path in unread.extract_if(.., |path| path.below(&name.wal_prefix()).is_some()) {
            read_wal(&mut sample, &repository, &path).await.with_context(|| path.to_string())?;
        }
    }
    ensure!(unread.is_empty(), "objects that nobody reads: {unread:?}");
    Ok(sample)
}

/// Returns the names of the packs that were read.
async fn read_backup(sample: &mut Sample, cluster: &Cluster, id: BackupId) -> Result<Vec<ObjectPath>> {
    let manifest = cluster.open_manifest(id).await?;
    add_facts(sample, manifest.facts());
    let mut packs = Vec::new();
    for used in manifest.packs() {
        packs.push(cluster.open_pack(used.id, used.size).await?);
    }
    let mut content = BTreeMap::new();
    let mut files = manifest.files();
    while let Some(block) = files.next().await? {
        for entry in block {
            let path = String::from_utf8_lossy(&entry.path).into_owned();
            read_file(sample, &manifest, &packs, &entry).await.with_context(|| path)?;
            if let FileType::File { pages, .. } = entry.file_type {
                content.insert(entry.path.clone(), page_content(&entry.path, pages));
            }
        }
    }
    let mut names = manifest.names();
    while let Some(block) = names.next().await? {
        for name in block {
            sample.see("name");
            let numbers = [name.database, name.tablespace, name.relfilenode, name.oid, name.kind.into()];
            sample.add(format!("{numbers:?}"));
            sample.add(&name.schema);
            sample.add(&name.name);
        }
    }
    for used in manifest.packs() {
        let pack = cluster.open_pack_footer(used.id).await?;
        check_footer(sample, &pack, manifest.facts().block_size as usize, &content).await?;
    }
    Ok(manifest.packs().iter().map(|used| cluster.name().pack(used.id)).collect())
}

/// Which pages are masked before they are hashed (docs/format.md section 7).
fn page_content(path: &[u8], pages: bool) -> PageContent {
    let path = String::from_utf8_lossy(path);
    let is_map = path.contains("_fsm") || path.contains("_vm");
    if pages && !is_map { PageContent::Relation } else { PageContent::Other }
}

/// Facts that identify the backup and bring it back; what is added to facts later does not change the digest.
fn add_facts(sample: &mut Sample, facts: &ManifestFacts) {
    sample.add(format!("{} {} {} {}", facts.backup, facts.cluster, facts.system_id, facts.pg_version_num));
    sample.add(format!("{} {} {}", facts.timeline.0, facts.start_lsn, facts.stop_lsn));
    sample.add(format!("{} {} {}", facts.started, facts.finished, facts.stop_time));
    sample.add(format!("{} {} {}", facts.block_size, facts.wal_segment_size, facts.checksums));
    sample.add(facts.label.as_deref().unwrap_or_default());
    sample.add(facts.backup_label.as_deref().unwrap_or_default());
    sample.add(facts.tablespace_map.as_deref().unwrap_or_default());
    for owner in &facts.owners {
        sample.add(format!("{}:{}", owner.user, owner.group));
    }
    for tablespace in &facts.tablespaces {
        sample.add(format!("{} {} {}", tablespace.oid, tablespace.name, tablespace.in_place));
    }
}

async fn read_file(sample: &mut Sample, manifest: &Manifest, packs: &[PackReader], entry: &FileEntry) -> Result<()> {
    sample.add(&entry.path);
    sample.add(format!("{:o} {} {}", entry.mode, entry.owner, entry.mtime));
    match &entry.file_type {
        FileType::Directory => sample.see("directory"),
        FileType::Link { target } => sample.add(target),
        FileType::File { len, place, pages, wal, .. } => {
            sample.see("file");
            sample.add(format!("{pages} {wal}"));
            let bytes = match place {
                Place::Zero => {
                    sample.see("zero");
                    vec![0; *len as usize]
                }
                Place::Chunk(chunk) => {
                    sample.see("one chunk");
                    read_chunk(&packs[chunk.pack as usize], chunk).await?
                }
                Place::Map(chunk) => {
                    sample.see("file map");
                    let map = read_chunk(&packs[chunk.pack as usize], chunk).await?;
                    let map = FileMap::decode(&map).map_err(|error| anyhow::anyhow!("map: {error:?}"))?;
                    read_mapped(manifest, packs, &map).await?
                }
            };
            ensure!(bytes.len() as u64 == *len, "{} bytes instead of {len}", bytes.len());
            sample.add(bytes);
        }
    }
    Ok(())
}

async fn read_mapped(manifest: &Manifest, packs: &[PackReader], map: &FileMap) -> Result<Vec<u8>> {
    let page = map.page_size as usize;
    let mut chunks = Vec::new();
    for chunk in &map.chunks {
        let id = map.packs[chunk.pack as usize];
        let index = manifest.packs().iter().position(|used| used.id == id).context("a pack the backup does not use")?;
        chunks.push(read_chunk(&packs[index], chunk).await?);
    }
    let mut bytes = Vec::new();
    for run in &map.runs {
        let len = run.pages as usize * page;
        match run.from {
            None => bytes.resize(bytes.len() + len, 0),
            Some((chunk, slot)) => {
                let chunk = &chunks[chunk as usize];
                let start = slot as usize * page;
                bytes.extend_from_slice(&chunk[start..(start + len).min(chunk.len())]);
            }
        }
    }
    bytes.truncate(map.len as usize);
    Ok(bytes)
}

async fn read_chunk(pack: &PackReader, chunk: &ChunkRef) -> Result<Vec<u8>> {
    let stored = pack.read(chunk.offset, chunk.stored_len.into()).await?;
    let mut plain = Vec::new();
    let decoded = ChunkDecoder::default().decode(&stored, chunk, &mut plain);
    decoded.map_err(|error| anyhow::anyhow!("chunk at {}: {error:?}", chunk.offset))?;
    Ok(plain)
}

/// Every chunk of a pack, used or not, against its whole hash and the hashes of its pages.
async fn check_footer(
    sample: &mut Sample,
    pack: &PackReader,
    page_size: usize,
    content: &BTreeMap<Vec<u8>, PageContent>,
) -> Result<()> {
    for entry in pack.footer().await? {
        let hash16 = entry.hash.first_chunk::<16>().copied().context("a hash is longer")?;
        let (offset, stored_len, plain_len) = (entry.offset, entry.stored_len, entry.plain_len);
        let plain = read_chunk(pack, &ChunkRef { pack: 0, offset, stored_len, plain_len, hash16 }).await?;
        ensure!(*blake3::hash(&plain).as_bytes() == entry.hash, "chunk at {offset} has another hash");
        sample.add(&entry.path);
        if entry.pages == ChunkPages::Map {
            continue;
        }
        let path = String::from_utf8_lossy(&entry.path).into_owned();
        let Some(content) = content.get(&entry.path) else { bail!("{path} is not in the manifest") };
        let hashes: Vec<u64> = plain.chunks(page_size).map(|page| page_hash(page, *content, &mut Vec::new())).collect();
        // The samples were made when `PD_ALL_VISIBLE` was not part of the hash. Nothing of that time was released; making
        // them anew before the first release takes this out again.
        let unmarked = plain.chunks(page_size).map(|page| {
            let mut page = page.to_vec();
            pg_format::mask::set_all_visible(&mut page, false);
            page_hash(&page, *content, &mut Vec::new())
        });
        let fits = hashes == entry.page_hashes
            || *content == PageContent::Relation && unmarked.collect::<Vec<_>>() == entry.page_hashes;
        ensure!(fits, "{path}: page hashes differ");
        for hash in entry.page_hashes {
            sample.see("page hash");
            sample.add(hash.to_le_bytes());
        }
    }
    Ok(())
}

async fn read_wal(sample: &mut Sample, repository: &Repository, path: &ObjectPath) -> Result<()> {
    let (store, keys) = (repository.store().clone(), repository.keys());
    sample.add(path.as_str());
    let name = path.name();
    if name.ends_with(".history") || name.ends_with(".backup") {
        sample.see(if name.ends_with(".backup") { "backup history" } else { "timeline history" });
        sample.add(read_wal_file(&*store, keys, path).await?);
        return Ok(());
    }
    sample.see(if name.ends_with(".partial") { "partial segment" } else { "segment" });
    let plain = read_segment(store.clone(), keys, path).await?;
    let object = WalObject::open(store, keys, path.clone()).await?;
    let facts = object.facts().await?;
    ensure!(facts.plain_hash == plain_hash(&plain), "the facts name another hash");
    ensure!(facts.segment_size == 1 << 20, "segments of {} bytes", facts.segment_size);
    sample.add(format!("{} {:?} {}", facts.first_lsn, facts.first_record_lsn, facts.last_lsn));
    sample.add(format!("{} {} {} {}", facts.records, facts.commits, facts.aborts, facts.switched));
    sample.add(format!("{:?} {:?}", facts.earliest_commit, facts.latest_commit));
    for point in &facts.restore_points {
        sample.add(format!("{} {} {} {}", point.name, point.lsn, point.end_lsn, point.time));
    }
    let fragments = object.fragments().await?;
    sample.add(fragments.head);
    sample.add(fragments.tail);
    sample.add(plain);
    Ok(())
}
