//! The damage matrix: every kind of object × every kind of damage. `verify` names the object, and a restore refuses or
//! brings back the same bytes: never a cluster that is silently wrong.

#[allow(dead_code, reason = "the backup tests use the rest of it")]
#[path = "backup/support.rs"]
mod archived;

use archived::{Archived, Result, context, main_of};
use engine::restore::{self, ExistingFiles, RecoveryTarget, RestoreRequest, TargetAction, TimelineChoice, WalCheck};
use engine::verify::{Backups, Severity, VerifyOptions, VerifyReport, verify};
use repo::{Intent, KeySource, Repository};
use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;
use store::{MemoryStore, ObjectPath, Store};

const KEY: &str = "000102030405060708090a0b0c0d0e0f101112131415161718191a1b1c1d1e1f";

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Harm {
    Deleted,
    Truncated,
    Emptied,
    Extended,
    HeaderBit,
    MiddleBit,
    LastBit,
    Swapped,
}

const HARMS: [Harm; 8] = [
    Harm::Deleted,
    Harm::Truncated,
    Harm::Emptied,
    Harm::Extended,
    Harm::HeaderBit,
    Harm::MiddleBit,
    Harm::LastBit,
    Harm::Swapped,
];

/// What kind of object it is, by its name.
fn kind_of(path: &ObjectPath) -> &'static str {
    let text = path.as_str();
    let name = path.name();
    match text {
        _ if text.starts_with("pgkeep/") => "repository",
        _ if text.starts_with("leases/") => "lease",
        _ if text.starts_with("tails/") && name.ends_with(".log") => "tail's log",
        _ if text.starts_with("tails/") => "tail's piece",
        _ if text.contains("/cluster/") => "cluster",
        _ if name == "manifest" => "manifest",
        _ if name == "intent" => "intent",
        _ if text.contains("/packs/") => "pack",
        _ if text.contains("/ids/") => "claim",
        _ if text.contains("/wal-index/") => "wal index",
        _ if name.ends_with(".history") => "history",
        _ if name.ends_with(".backup") => "backup history",
        _ if name.ends_with(".partial") => "partial",
        _ => "segment",
    }
}

async fn harmed(whole: &MemoryStore, path: &ObjectPath, harm: Harm) -> Result<Option<MemoryStore>> {
    let store = whole.snapshot();
    let bytes = store.get(path, 1 << 30).await?.to_vec();
    let flip = |at: usize| {
        let mut bytes = bytes.clone();
        bytes[at] ^= 1;
        bytes
    };
    let new = match harm {
        Harm::Deleted => {
            store.delete(path).await?;
            return Ok(Some(store));
        }
        Harm::Truncated => bytes[..bytes.len() - 1].to_vec(),
        Harm::Emptied => Vec::new(),
        Harm::Extended => [bytes.as_slice(), b"x"].concat(),
        Harm::HeaderBit => flip(30),
        Harm::MiddleBit => flip(bytes.len() / 2),
        Harm::LastBit => flip(bytes.len() - 1),
        Harm::Swapped => {
            let objects = store.list_page(None, None, 10_000).await?;
            let other = objects.iter().find(|other| other.path != *path && kind_of(&other.path) == kind_of(path));
            let Some(other) = other.filter(|_| kind_of(path) != "repository") else { return Ok(None) };
            store.get(&other.path, 1 << 30).await?.to_vec()
        }
    };
    store.damage(path, new.into());
    Ok(Some(store))
}

fn options(deep: bool) -> VerifyOptions {
    VerifyOptions { backups: Backups::All, deep, wal: true, workers: 2 }
}

async fn look(store: &MemoryStore, deep: bool) -> Result<VerifyReport> {
    let key = KeySource::key_file(KEY)?;
    let repository = Repository::open(Arc::new(store.clone()), Some(&key)).await?;
    Ok(verify(&context(), &main_of(&repository), &options(deep)).await?)
}

/// Restores and gives a hash for each file, or the error's text.
async fn restore_all(store: &MemoryStore, dir: &Path) -> Result<std::result::Result<BTreeMap<String, String>, String>> {
    let key = KeySource::key_file(KEY)?;
    let repository = Repository::open(Arc::new(store.clone()), Some(&key)).await?;
    let cluster = main_of(&repository);
    let request = RestoreRequest {
        target_dir: dir.to_owned(),
        backup: None,
        target: RecoveryTarget::Latest,
        exclusive: false,
        timeline: TimelineChoice::Latest,
        action: TargetAction::Promote,
        tablespaces: Vec::new(),
        existing: ExistingFiles::Remove,
        standby: false,
        archive: false,
        restore_command: "false".into(),
        owner: None,
        wal_check: WalCheck::Whole,
        workers: 2,
        bin_dirs: Vec::new(),
    };
    let plan = match restore::plan(&context(), &cluster, &request).await {
        Ok(plan) => plan,
        Err(error) => return Ok(Err(error.to_string())),
    };
    if let Err(error) = restore::apply(&context(), &cluster, &plan).await {
        assert!(!dir.join("global/pg_control").exists(), "a failed restore has no pg_control: {error}");
        return Ok(Err(error.to_string()));
    }
    let mut files = BTreeMap::from([("backup".to_owned(), plan.backup.to_string())]);
    files.insert("wal".to_owned(), format!("{:?}", plan.wal));
    let mut todo = vec![dir.to_owned()];
    while let Some(path) = todo.pop() {
        if path.is_dir() {
            todo.extend(std::fs::read_dir(&path)?.map(|entry| Ok(entry?.path())).collect::<Result<Vec<_>>>()?);
        } else {
            let hash = blake3::hash(&std::fs::read(&path)?).to_string();
            files.insert(path.strip_prefix(dir)?.display().to_string(), hash);
        }
    }
    Ok(Ok(files))
}

/// An encrypted repository with a backup, WAL on both sides of it, and one object of every kind.
async fn repository() -> Result<MemoryStore> {
    let archived = Archived::start().await?;
    archived.server.sql("CREATE TABLE t AS SELECT g, md5(g::text) FROM generate_series(1, 100000) g")?;
    archived.backup().await?;
    archived.server.sql("INSERT INTO t SELECT g, md5(g::text) FROM generate_series(1, 1000) g")?;
    archived.server.switch_wal()?;
    archived.backup().await?;
    archived.server.sql("INSERT INTO t SELECT g, md5(g::text) FROM generate_series(1, 1000) g")?;
    let last = archived.server.switch_wal()?;
    let plain = archived.cluster().await?;
    let of_cluster = plain.repository().store();
    loop {
        let names = of_cluster.list_page(Some(&plain.name().wal_prefix()), None, 1000).await?;
        if names.iter().any(|object| object.path.name() == last) {
            break;
        }
        tokio::time::sleep(std::time::Duration::from_millis(20)).await;
    }
    // The same once more, sealed: every object as it would be in an encrypted repository.
    let store = sealed(&archived.memory, &plain).await?;
    stream_tail(&archived, &store).await?;
    Ok(store)
}

/// Offsets in the segment that is being written at which its pieces and logs end; what is between the last two is the
/// second log's.
const TAIL_ENDS: [usize; 4] = [8192, 16_384, 40_000, 70_000];

/// What `wal receive` makes of the segment that is being written: two pieces, then two logs of several frames.
async fn stream_tail(archived: &Archived, store: &MemoryStore) -> Result<()> {
    use repo::tail::{SpareLog, TailLog, TailOf, put_piece};
    archived.server.sql("INSERT INTO t SELECT g, md5(g::text) FROM generate_series(1, 2000) g")?;
    let name = archived.server.sql("SELECT pg_walfile_name(pg_current_wal_flush_lsn())")?;
    let plain = std::fs::read(archived.server.data_dir().join("pg_wal").join(&name))?;
    let key = KeySource::key_file(KEY)?;
    let repository = Repository::open(Arc::new(store.clone()), Some(&key)).await?;
    let (cluster, keys) = (main_of(&repository), repository.keys());
    let of = TailOf {
        system_id: cluster.known_facts().await?.systems[0].system_id,
        segment: name.parse()?,
        size: pg_format::WalSegmentSize::DEFAULT,
    };
    let zstd = repo::Compression::Zstd(1);
    let mut from = 0;
    for to in &TAIL_ENDS[..2] {
        put_piece(store, keys, cluster.name(), of, from as u64..*to as u64, &plain[from..*to], zstd).await?;
        from = *to;
    }
    // Only a disk has logs; there they end with zeros, which say nothing.
    let dir = tempfile::tempdir()?;
    let disk = store::LocalStore::open(dir.path(), store::StoreOptions::standard().local)?;
    for to in &TAIL_ENDS[2..] {
        let spare = SpareLog::make(&disk, 1 << 20).await?.expect("a disk can");
        let (first, rest) = plain[from..*to].split_at(100);
        let log = TailLog::begin(spare, keys, cluster.name(), of, from as u64, first, zstd)?;
        let mut log = log.expect("there is none of that name");
        for part in rest.chunks(6000) {
            assert!(log.append(part)?);
        }
        log.mark()?;
        let path = cluster.name().tail_prefix(of.system_id, of.segment);
        let path = ObjectPath::new(format!("{path}/{from:08X}.log")).expect("made of checked parts");
        let bytes = disk.get(&path, 1 << 30).await?;
        let end = bytes.iter().rposition(|byte| *byte != 0).expect("it has frames") + 1;
        store.put(&path, bytes.slice(..end)).await?;
        from = *to;
    }
    Ok(())
}

/// The tail's bytes, or that it is damaged.
async fn read_tail(store: &MemoryStore, path: &ObjectPath) -> Result<std::result::Result<Vec<u8>, String>> {
    let key = KeySource::key_file(KEY)?;
    let repository = Repository::open(Arc::new(store.clone()), Some(&key)).await?;
    let cluster = main_of(&repository);
    let segment = path.as_str().rsplit('/').nth(1).expect("it lies below its segment").parse()?;
    let system_id = cluster.known_facts().await?.systems[0].system_id;
    let of = repo::tail::TailOf { system_id, segment, size: pg_format::WalSegmentSize::DEFAULT };
    match repo::tail::read_tail(store, repository.keys(), cluster.name(), of).await {
        Ok(tail) => Ok(Ok(tail.unwrap_or_default())),
        Err(error) if error.is_damage() => Ok(Err(error.to_string())),
        Err(error) => Err(error.into()),
    }
}

/// Writes everything anew under a key, through the repository's own writers where their content allows it.
async fn sealed(plain_store: &MemoryStore, plain: &repo::Cluster) -> Result<MemoryStore> {
    use repo::seal::{Kind, open_whole, seal_whole};
    let store = MemoryStore::new();
    let now = jiff::Timestamp::now();
    let key = KeySource::key_file(KEY)?;
    let repository = Repository::create(Arc::new(store.clone()), Some(&key), "test", now).await?;
    for object in plain_store.list_page(None, None, 10_000).await? {
        let kind = match kind_of(&object.path) {
            "repository" | "claim" => continue,
            "cluster" => Kind::Cluster,
            "manifest" => Kind::Manifest,
            "intent" => Kind::Intent,
            "pack" => Kind::Pack,
            "lease" => Kind::Lease,
            "history" | "backup history" => Kind::WalFile,
            "wal index" => Kind::WalIndex,
            _ => Kind::Wal,
        };
        let payload =
            open_whole(plain.repository().keys(), kind, &object.path, &plain_store.get(&object.path, 1 << 30).await?)?;
        // Sealed objects are as long as those that are not, so that the sizes in manifests still fit.
        store.put(&object.path, seal_whole(repository.keys(), kind, &object.path, &payload)?).await?;
    }
    let cluster = main_of(&repository);
    let facts = cluster.known_facts().await?;
    let system = facts.systems[0].system_id;
    let history = cluster.name().history(system, pg_format::Timeline(2));
    repo::wal::put_wal_file(&store, repository.keys(), &history, b"1\t0/9000000\tno recovery target specified\n")
        .await?;
    index_objects(&store, &cluster, system).await?;
    let running = cluster.new_backup_id(now).await?;
    cluster
        .put_intent(&Intent { backup: running, priors: vec![], host: "h".into(), pid: 1, started: now, start: None })
        .await?;
    cluster.take_lease("backup", engine::lease_holder(), now, |_| false).await?;
    Ok(store)
}

/// Two index objects, as `wal index --rebuild` writes them for segments that have none of their own.
async fn index_objects(store: &MemoryStore, cluster: &repo::Cluster, system: pg_format::SystemId) -> Result {
    use repo::wal_index::{IndexPart, encode_index_object, put_index_object};
    let keys = cluster.repository().keys();
    let objects = store.list_page(Some(&cluster.name().wal_prefix()), None, 1000).await?;
    for object in objects.iter().filter(|object| kind_of(&object.path) == "segment").take(2) {
        let segment = repo::wal::WalObject::open_for_index(Arc::new(store.clone()), keys, object.path.clone()).await?;
        let index = segment.index(IndexPart::All).await?.expect("it was archived with its index");
        let path = cluster.name().wal_index(system, object.path.name().parse()?, 1);
        let (facts, fragments) = (segment.facts().await?, segment.fragments().await?);
        put_index_object(store, &path, encode_index_object(keys, &path, &[facts], &fragments, &index)?).await?;
    }
    Ok(())
}

/// The first segment that a backup needs.
async fn first_needed(store: &MemoryStore) -> Result<String> {
    let key = KeySource::key_file(KEY)?;
    let cluster = main_of(&Repository::open(Arc::new(store.clone()), Some(&key)).await?);
    let oldest = cluster.backups().await?[0];
    let facts = cluster.manifest_facts(oldest).await?;
    Ok(pg_format::SegmentName::of_lsn(facts.timeline, facts.start_lsn, pg_format::WalSegmentSize::DEFAULT).to_string())
}

#[tokio::test(flavor = "multi_thread")]
async fn every_damage_is_named_and_none_is_restored() -> Result {
    let whole = repository().await?;
    // In memory where that can be had: a restore waits until the whole file system is synced, others' writes too.
    let dir = tempfile::tempdir_in("/dev/shm").or_else(|_| tempfile::tempdir())?;
    let target = dir.path().join("data");
    let good = restore_all(&whole, &target).await?.expect("the whole repository can be restored");
    for deep in [false, true] {
        let report = look(&whole, deep).await?;
        assert!(report.verdict <= Some(Severity::Note), "{:?}", report.findings);
        assert_eq!(report.backups.iter().filter(|backup| backup.restorable).count(), 2);
    }
    // A claim says nothing but that it is there: nobody reads it.
    let mut objects = whole.list_page(None, None, 10_000).await?;
    objects.retain(|object| kind_of(&object.path) != "claim");
    let kinds: std::collections::BTreeSet<&str> = objects.iter().map(|object| kind_of(&object.path)).collect();
    for kind in [
        "repository",
        "cluster",
        "manifest",
        "intent",
        "pack",
        "segment",
        "wal index",
        "history",
        "backup history",
        "lease",
        "tail's piece",
        "tail's log",
    ] {
        assert!(kinds.contains(kind), "there is a {kind}");
    }
    let last = objects.iter().map(|object| &object.path).filter(|path| kind_of(path) == "segment").max();
    let first = first_needed(&whole).await?;
    let mut seen = 0;
    let tail = objects.iter().map(|object| &object.path).find(|path| kind_of(path) == "tail's log").expect("checked");
    let tail = read_tail(&whole, tail).await?.expect("it is whole");
    assert_eq!(tail.len(), TAIL_ENDS[3]);
    for object in &objects {
        for harm in HARMS {
            let path = &object.path;
            let kind = kind_of(path);
            let what = format!("{kind} {path} {harm:?}");
            let Some(store) = harmed(&whole, path, harm).await? else { continue };
            seen += 1;
            let report = look(&store, true).await.map_err(|error| error.context(what.clone()))?;
            let named: Vec<_> = report.findings.iter().filter(|finding| finding.object == path.as_str()).collect();
            if kind.starts_with("tail's") {
                let read = read_tail(&store, path).await?;
                let is_last = path.name() == format!("{:08X}.log", TAIL_ENDS[2]);
                match harm {
                    // The end of a tail that is not there is an end; what lies behind a hole proves that it is one.
                    Harm::Deleted => {
                        let read = read.expect("what is left is whole");
                        assert!(read.len() < tail.len() && tail.starts_with(&read), "{what}");
                        let hole = report.findings.iter().any(|finding| path.as_str().starts_with(&finding.object));
                        assert_eq!(hole, !is_last, "{what}: {:?}", report.findings);
                    }
                    // Behind the mark of a log's end there is nothing to lose, nor in the mark.
                    Harm::Truncated | Harm::Extended | Harm::LastBit if kind == "tail's log" => {
                        assert_eq!(read.as_ref(), Ok(&tail), "{what}");
                        assert!(named.is_empty(), "{what}: {:?}", report.findings);
                    }
                    _ => {
                        assert!(read.is_err(), "{what}");
                        assert!(!named.is_empty(), "{what} is not named in {:?}", report.findings);
                        assert_eq!(report.verdict, Some(Severity::Damage), "{what}");
                    }
                }
                continue;
            }
            let needed = matches!(kind, "manifest" | "pack" | "segment" | "wal index" | "cluster" | "history");
            // What nobody can miss: segments before the first backup, the very last one, what was finished.
            let unmissed = harm == Harm::Deleted
                && (matches!(kind, "intent" | "lease" | "backup history" | "history" | "wal index")
                    || (kind == "segment" && (path.name() < first.as_str() || Some(path) == last)));
            if unmissed {
                continue;
            }
            assert!(!named.is_empty(), "{what} is not named in {:?}", report.findings);
            if needed && harm != Harm::Deleted {
                assert_eq!(report.verdict, Some(Severity::Damage), "{what}: {:?}", report.findings);
            }
            if !matches!(kind, "manifest" | "pack" | "segment") {
                continue;
            }
            let restored = restore_all(&store, &target).await.map_err(|error| error.context(what.clone()))?;
            match restored {
                Err(text) => assert!(text.contains(path.name()) || text.contains("damaged"), "{what}: {text}"),
                Ok(files) if files["backup"] == good["backup"] => assert_eq!(files, good, "{what}"),
                // Another backup and more WAL lead to the same cluster.
                Ok(files) => {
                    assert_eq!(kind, "manifest", "{what}");
                    assert!(files["backup"] < good["backup"], "{what}");
                }
            }
        }
    }
    assert!(seen > 100, "{seen} cases");
    Ok(())
}
