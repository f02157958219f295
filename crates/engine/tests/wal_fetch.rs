//! `wal fetch`: the file, "absent" only when that is known, and an error for everything else.
#![allow(clippy::unwrap_used)]

mod wal_support;

use engine::EngineError;
use engine::wal::fetch::{
    AheadOptions, AheadPlace, FetchOptions, FetchOutcome, Origin, fetch, fetch_cached, fetch_from, keep_ahead, prefetch,
};
use engine::wal::push::push;
use pg_format::Timeline;
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;
use store::{Fault, FaultStore, MemoryStore, ObjectPath, Store, What, When};
use testkit::pg::Cluster;
use wal_support::*;

struct Archive {
    memory: MemoryStore,
    cluster: repo::Cluster,
    system: pg_format::SystemId,
    /// The segments archived, and the folder they came from.
    names: Vec<String>,
    wal: PathBuf,
    _temp: tempfile::TempDir,
}

/// The WAL of a real server in a repository in memory.
async fn archive(server: &Cluster, segments: usize) -> Archive {
    let facts = server_facts(server).await;
    write_segments(server, segments);
    let temp = tempfile::tempdir().unwrap();
    let wal = copy_wal(server, &temp.path().join("data"));
    let memory = MemoryStore::new();
    let cluster = registered(Arc::new(memory.clone()), &facts).await;
    let names: Vec<String> = ready(&wal).into_iter().filter(|name| name.len() == 24).collect();
    let options = push_options(Some(&temp.path().join("state")), 64);
    push(&context().0, &cluster, &wal.join(&names[0]), &options).await.unwrap();
    Archive { memory, cluster, system: facts.system_id, names, wal, _temp: temp }
}

impl Archive {
    fn object(&self, name: &str) -> ObjectPath {
        self.cluster.name().wal_file(self.system, Timeline(1), name).unwrap()
    }

    /// A data directory to recover, with the cluster's `pg_control`.
    fn target(&self, dir: &Path) -> PathBuf {
        fs::create_dir_all(dir.join("pg_wal")).unwrap();
        fs::create_dir_all(dir.join("global")).unwrap();
        fs::copy(self.wal.parent().unwrap().join("global/pg_control"), dir.join("global/pg_control")).unwrap();
        dir.join("pg_wal/RECOVERYXLOG")
    }

    fn is(&self, dest: &Path, name: &str) -> bool {
        fs::read(dest).unwrap() == fs::read(self.wal.join(name)).unwrap()
    }
}

async fn code(cluster: &repo::Cluster, name: &str, dest: &Path, options: &FetchOptions) -> (u8, String) {
    let (ctx, notes) = context();
    let _ = fs::remove_file(dest);
    let outcome = fetch(&ctx, cluster, name, dest, options).await;
    let text = match &outcome {
        FetchOutcome::Failed(error) => error.to_string(),
        other => format!("{other:?}"),
    };
    let code = outcome.exit_code(options);
    assert_eq!(dest.exists(), code == 0, "{name}: {text}");
    let left = fs::read_dir(dest.parent().unwrap()).unwrap().count();
    assert_eq!(left, usize::from(code == 0), "{name}: nothing else is left in pg_wal");
    // A standby that is told "absent" for something else is told so loudly.
    let loud = matches!(outcome, FetchOutcome::Failed(_)) && code == 1;
    assert_eq!(notes.0.lock().unwrap().len(), usize::from(loud), "{name}");
    (code, text)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn exit_codes() {
    let server = origin();
    let archive = archive(&server, 6).await;
    let (names, cluster) = (&archive.names, &archive.cluster);
    let temp = tempfile::tempdir().unwrap();
    let dest = archive.target(&temp.path().join("data"));
    let alone = fetch_options(None, 0);
    let standby = FetchOptions { standby: true, ..alone.clone() };

    for name in names {
        assert_eq!(code(cluster, name, &dest, &alone).await.0, 0, "{name}");
        assert!(archive.is(&dest, name), "{name}");
    }
    // The end of the archive.
    let beyond = "0000000100000000000000F0";
    for options in [&alone, &standby] {
        assert_eq!(code(cluster, beyond, &dest, options).await.0, 1);
        assert_eq!(code(cluster, "00000002.history", &dest, options).await.0, 1);
    }
    // A partial one is not the whole one.
    let last = names.last().unwrap();
    let partial = archive.wal.join(format!("{beyond}.partial"));
    let size = pg_format::WalSegmentSize::new(1 << 20).unwrap();
    let mut content = fs::read(archive.wal.join(last)).unwrap();
    // Made to be what its name says: the first page's address.
    let start = beyond.parse::<pg_format::SegmentName>().unwrap().start(size).unwrap();
    content[8..16].copy_from_slice(&start.0.to_le_bytes());
    content[8192..].fill(0);
    fs::write(&partial, &content).unwrap();
    push(&context().0, cluster, &partial, &push_options(None, 1)).await.unwrap();
    assert_eq!(code(cluster, beyond, &dest, &alone).await.0, 1);

    // A hole: something later is there.
    let hole = &names[2];
    let object = archive.memory.get(&archive.object(hole), 1 << 30).await.unwrap();
    archive.memory.delete(&archive.object(hole)).await.unwrap();
    let (exit, text) = code(cluster, hole, &dest, &alone).await;
    assert!(exit == 126 && text.contains("missing") && text.contains(&names[3]), "{exit} {text}");
    assert_eq!(code(cluster, hole, &dest, &standby).await.0, 1);
    archive.memory.put(&archive.object(hole), object.clone()).await.unwrap();

    // It arrives, and what follows it, just after it was asked for: no hole.
    let late = Fault { when: When::path(archive.object(hole).as_str(), 0), what: What::Pretend };
    let store = FaultStore::new(archive.memory.clone(), vec![late]);
    let racing = open_repository(Arc::new(store.clone())).await;
    assert_eq!(code(&racing, hole, &dest, &alone).await, (0, "Found { from_cache: false, ahead: 0 }".into()));
    assert!(store.any_fault_happened());

    // A hole at the end, shown by a timeline that grew out of the one with the hole, later on.
    archive.memory.delete(&archive.object(last)).await.unwrap();
    assert_eq!(code(cluster, last, &dest, &alone).await.0, 1);
    let history = archive.wal.join("00000002.history");
    let switch = last.parse::<pg_format::SegmentName>().unwrap().end(size).unwrap();
    fs::write(&history, format!("1\t{switch}\tno recovery target specified\n")).unwrap();
    push(&context().0, cluster, &history, &push_options(None, 1)).await.unwrap();
    let (exit, text) = code(cluster, last, &dest, &alone).await;
    assert!(exit == 126 && text.contains("timeline 2"), "{exit} {text}");
    assert_eq!(code(cluster, "00000002.history", &dest, &alone).await.0, 0);
    assert_eq!(code(cluster, "00000003.history", &dest, &alone).await.0, 1);

    // Damage: one bit, cut off, swapped with another.
    let mut flipped = object.to_vec();
    flipped[object.len() / 2] ^= 1;
    let another = archive.memory.get(&archive.object(&names[1]), 1 << 30).await.unwrap();
    for damage in [flipped.into(), object.slice(..object.len() - 7), object.slice(..0), another] {
        archive.memory.damage(&archive.object(hole), damage);
        assert_eq!(code(cluster, hole, &dest, &alone).await.0, 126);
        assert_eq!(code(cluster, hole, &dest, &standby).await.0, 1);
    }
    archive.memory.damage(&archive.object(hole), object);
    assert_eq!(code(cluster, hole, &dest, &alone).await.0, 0);

    // An outage, at any call, of a file that is there and of one that is not.
    for name in [&names[0], beyond, "00000003.history"] {
        for call in 0..20 {
            let faulty = FaultStore::new(archive.memory.clone(), Vec::new());
            let through = open_repository(Arc::new(faulty.clone())).await;
            faulty.add_fault(Fault { when: When::call(call).onwards(), what: What::FailBefore });
            let (exit, text) = code(&through, name, &dest, &alone).await;
            if !faulty.any_fault_happened() {
                assert!(call > 0);
                break;
            }
            assert_eq!(exit, 126, "{name}, call {call}: {text}");
            assert_eq!(code(&through, name, &dest, &standby).await.0, 1);
        }
    }

    // Nonsense, a cluster that is not there, and a data directory of another cluster.
    assert_eq!(code(cluster, "RECOVERYXLOG", &dest, &alone).await.0, 126);
    let nobody = cluster.repository().cluster(&"nobody".parse().unwrap());
    assert_eq!(code(&nobody, beyond, &dest, &alone).await.0, 126);
    let other = Cluster::builder(15).create().unwrap();
    let foreign = archive.target(&temp.path().join("foreign"));
    fs::copy(other.data_dir().join("global/pg_control"), temp.path().join("foreign/global/pg_control")).unwrap();
    for options in [&alone, &standby] {
        let (exit, text) = code(cluster, &names[0], &foreign, options).await;
        assert!(exit == 126 && text.contains("system identifier"), "{exit} {text}");
    }
    // A target that cannot be written to.
    let nowhere = temp.path().join("data/missing/RECOVERYXLOG");
    let outcome = fetch(&context().0, cluster, &names[0], &nowhere, &alone).await;
    assert!(matches!(&outcome, FetchOutcome::Failed(EngineError::File { .. })), "{outcome:?}");
    assert_eq!(outcome.exit_code(&alone), 126);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn replay_is_served_from_what_was_fetched_ahead() {
    let server = origin();
    let archive = archive(&server, 9).await;
    let names = &archive.names;
    let temp = tempfile::tempdir().unwrap();
    let cache = temp.path().join("cache");
    let options = fetch_options(Some(&cache), 4);
    let targets: Vec<PathBuf> = ["one", "two"].iter().map(|name| archive.target(&temp.path().join(name))).collect();
    let counted = FaultStore::new(archive.memory.clone(), Vec::new());
    let cluster = open_repository(Arc::new(counted.clone())).await;
    let (ctx, _) = context();

    let mut cached = 0;
    for name in names {
        let before = counted.call_count();
        let outcome = fetch(&ctx, &cluster, name, &targets[0], &options).await;
        assert!(archive.is(&targets[0], name));
        match outcome {
            FetchOutcome::Found { from_cache: true, .. } => {
                cached += 1;
                assert_eq!(counted.call_count(), before, "the repository was not asked");
            }
            FetchOutcome::Found { from_cache: false, ahead } => assert!(ahead <= 4),
            other => panic!("{other:?}"),
        }
    }
    assert!(cached >= names.len() * 3 / 5, "{cached} of {}", names.len());
    let files = || fs::read_dir(&cache).unwrap().flat_map(|dir| fs::read_dir(dir.unwrap().path()).unwrap()).count();
    assert_eq!(files(), 0, "all was used and nothing is left");

    // Two recoveries with one cache, at once; one behind the other.
    let mut tasks = Vec::new();
    for target in targets.clone() {
        let (ctx, cluster, options, names) = (ctx.clone(), cluster.clone(), options.clone(), names.clone());
        let wal = archive.wal.clone();
        tasks.push(tokio::spawn(async move {
            for name in &names {
                let outcome = fetch(&ctx, &cluster, name, &target, &options).await;
                assert!(matches!(outcome, FetchOutcome::Found { .. }), "{outcome:?}");
                assert!(fs::read(&target).unwrap() == fs::read(wal.join(name)).unwrap(), "{name}");
            }
        }));
    }
    for task in tasks {
        task.await.unwrap();
    }

    // A file of the cache that is not whole is not used; the limit holds.
    let small = FetchOptions { cache_bytes_max: (2 << 20) + 100, ..options.clone() };
    assert_eq!(prefetch(&ctx, &cluster, &names[0], &targets[0], &small).await.unwrap(), 2);
    assert_eq!(prefetch(&ctx, &cluster, &names[0], &targets[0], &small).await.unwrap(), 0);
    for file in fs::read_dir(&cache).unwrap().flat_map(|dir| fs::read_dir(dir.unwrap().path()).unwrap()) {
        fs::write(file.unwrap().path(), vec![7; 1 << 20]).unwrap();
    }
    assert!(fetch_cached(&names[1], &targets[0], &small).is_none());
    assert!(matches!(fetch(&ctx, &cluster, &names[1], &targets[0], &small).await, FetchOutcome::Found { .. }));
    assert!(archive.is(&targets[0], &names[1]));
}

fn origin_of(name: &str, cluster: Result<&repo::Cluster, &str>, required: bool) -> Origin {
    Origin { name: name.into(), cluster: cluster.cloned().map_err(str::to_owned), required }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_one_repository_lacks_another_has() {
    let server = origin();
    let facts = server_facts(&server).await;
    let archive = archive(&server, 4).await;
    let (names, near) = (&archive.names, &archive.cluster);
    let memory = MemoryStore::new();
    let far = registered(Arc::new(memory.clone()), &facts).await;
    let options = push_options(Some(&archive.wal.join("../state of far")), 64);
    push(&context().0, &far, &archive.wal.join(&names[0]), &options).await.unwrap();
    let temp = tempfile::tempdir().unwrap();
    let dest = archive.target(&temp.path().join("data"));
    let alone = fetch_options(None, 0);
    let (damaged, lost) = (&names[1], &names[2]);
    archive.memory.damage(&archive.object(damaged), vec![1, 2, 3].into());
    archive.memory.delete(&archive.object(lost)).await.unwrap();
    let beyond = "0000000100000000000000F0";
    let ask = async |origins: Vec<Origin>, name: &str| {
        let (ctx, notes) = context();
        let _ = fs::remove_file(&dest);
        let outcome = fetch_from(&ctx, &origins, name, &dest, &alone).await;
        if outcome.exit_code(&alone) == 0 {
            assert!(archive.is(&dest, name), "{name}");
        }
        let said = notes.0.lock().unwrap().join("\n");
        (outcome.exit_code(&alone), said)
    };
    let (here, there) = (|| origin_of("near", Ok(near), true), || origin_of("far", Ok(&far), true));
    let away = |required| origin_of("away", Err("no route"), required);
    for name in [damaged, lost] {
        assert_eq!(ask(vec![here()], name).await.0, 126, "{name}");
        let (code, said) = ask(vec![here(), there()], name).await;
        assert!(code == 0 && said.contains("from repository far, because in repository near"), "{code} {said}");
    }
    // The first one that has it is enough.
    assert_eq!(ask(vec![there(), away(true)], damaged).await, (0, String::new()));
    let (code, said) = ask(vec![away(true), there()], damaged).await;
    assert!(code == 0 && said.contains("no route"), "{code} {said}");
    // Absent, when each that must have it says so; an optional one cannot have more than those.
    assert_eq!(ask(vec![here(), there()], beyond).await, (1, String::new()));
    let (code, said) = ask(vec![here(), away(false)], beyond).await;
    assert!(code == 1 && said.contains("no route"), "{code} {said}");
    assert_eq!(ask(vec![here(), away(true)], beyond).await.0, 126);
    assert_eq!(ask(vec![away(false)], beyond).await.0, 126);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_process_keeps_ahead_of_replay() {
    let server = origin();
    let archive = archive(&server, 12).await;
    let names = &archive.names;
    let temp = tempfile::tempdir().unwrap();
    let cache = temp.path().join("cache");
    let options = fetch_options(Some(&cache), 4);
    let quick = AheadOptions { idle_time: Duration::from_secs(5), poll_time: Duration::from_millis(2) };
    let mut tasks = Vec::new();
    // Two recoveries at once.
    for name in ["one", "two"] {
        let dest = archive.target(&temp.path().join(name));
        let wal_dir = dest.parent().unwrap().to_owned();
        let place = AheadPlace::of(&wal_dir, &options).expect("it fetches ahead");
        let (options, cluster) = (options.clone(), archive.cluster.clone());
        let lock = place.replay_at(&names[0], &dest).expect("the first call may start it");
        assert!(place.replay_at(&names[0], &dest).is_none(), "it is there already");
        tasks.push((
            dest.clone(),
            place.clone(),
            tokio::spawn(async move {
                let origins = [Origin { name: "near".into(), cluster: Ok(cluster), required: true }];
                keep_ahead(&context().0, &origins, &wal_dir, &place, &lock, &options, &quick).await
            }),
        ));
    }
    for name in &names[1..] {
        for (dest, place, _) in &tasks {
            // What has been asked for is in the cache in a moment, and never something else.
            let begun = std::time::Instant::now();
            while fetch_cached(name, dest, &options).is_none() {
                assert!(begun.elapsed() < Duration::from_secs(30), "{name} does not come");
                tokio::time::sleep(Duration::from_millis(2)).await;
            }
            assert!(archive.is(dest, name), "{name}");
            fs::remove_file(dest).unwrap();
            assert!(place.replay_at(name, dest).is_none());
        }
    }
    for (_, place, task) in tasks {
        assert_eq!(task.await.unwrap(), names.len() as u64 - 1);
        assert!(place.try_lock().unwrap().is_some(), "it has ended");
    }
    let segments = |dir: PathBuf| {
        fs::read_dir(dir).unwrap().filter(|entry| entry.as_ref().unwrap().metadata().unwrap().len() > 1000).count()
    };
    let left: usize = fs::read_dir(&cache).unwrap().map(|dir| segments(dir.unwrap().path())).sum();
    assert_eq!(left, 0, "all was used");
}
