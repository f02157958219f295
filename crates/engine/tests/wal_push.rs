//! `wal push` with the WAL of real servers: whole, once, never the wrong one, and nothing acknowledged is ever missing.
#![allow(clippy::unwrap_used)]

mod wal_support;

use engine::EngineError;
use engine::wal::WalArchive;
use engine::wal::push::{
    Destination, OutOfReach, PushReport, Pushed, Pusher, PusherOptions, Spool, Waited, WorkOptions, backlog, push,
    push_to, remembered, remembered_in, wait_for, work,
};
use pg_format::{Timeline, WalSegmentSize, XLogSegNo};
use repo::wal::{WalObject, read_segment, read_wal_file};
use std::fs;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;
use store::{Fault, FaultStore, LocalStore, MemoryStore, MissingRoot, Store, StoreOptions, What, When};
use wal_support::*;

fn reason(result: Result<PushReport, EngineError>) -> String {
    match result {
        Err(EngineError::Refused { reason, hint: Some(hint) }) => format!("{reason} / {hint}"),
        Err(error) => error.to_string(),
        Ok(report) => panic!("not refused: {report:?}"),
    }
}

/// Fails unless the repository has the file with just this content.
async fn assert_archived(cluster: &repo::Cluster, system: pg_format::SystemId, file: &Path) {
    let name = file.file_name().unwrap().to_str().unwrap();
    let (repository, content) = (cluster.repository(), fs::read(file).unwrap());
    let timeline = Timeline(u32::from_str_radix(&name[..8], 16).unwrap());
    if name.ends_with(".history") {
        let path = cluster.name().history(system, timeline);
        let stored = read_wal_file(&**repository.store(), repository.keys(), &path).await.unwrap();
        assert!(stored == content, "{name}");
        return;
    }
    let path = cluster.name().wal_file(system, timeline, name).unwrap();
    if name.ends_with(".backup") {
        assert!(read_wal_file(&**repository.store(), repository.keys(), &path).await.unwrap() == content, "{name}");
    } else {
        let stored = read_segment(repository.store().clone(), repository.keys(), &path).await.unwrap();
        assert!(stored == content, "{name}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_servers_wal_is_pushed_whole_and_once_and_nothing_else_is() {
    let server = origin();
    let facts = server_facts(&server).await;
    let system = facts.system_id;
    write_segments(&server, 8);
    server.sql("SELECT pg_backup_start('x', true); SELECT lsn FROM pg_backup_stop(false)").unwrap();
    write_segments(&server, 1);

    let temp = tempfile::tempdir().unwrap();
    let mut local = StoreOptions::standard().local;
    local.missing_root = MissingRoot::Create;
    let store: Arc<dyn Store> = Arc::new(LocalStore::open(&temp.path().join("repo"), local).unwrap());
    let cluster = registered(store.clone(), &facts).await;
    let wal = copy_wal(&server, &temp.path().join("data"));
    let names = ready(&wal);
    assert!(names.len() >= 9 && names.iter().any(|name| name.ends_with(".backup")), "{names:?}");

    // One call pushes a batch; the calls for the others ask nobody.
    let (ctx, notes) = context();
    let options = push_options(Some(&temp.path().join("state")), 5);
    let first = push(&ctx, &cluster, &wal.join(&names[0]), &options).await.unwrap();
    assert_eq!(first.pushed, Pushed::Stored);
    assert_eq!(first.others.len(), 4);
    for name in &names[..5] {
        assert_archived(&cluster, system, &wal.join(name)).await;
        let known = remembered(&*store, &wal.join(name), &options).await.unwrap();
        assert_eq!(known.expect("remembered").pushed, Pushed::Remembered, "{name}");
    }
    assert!(remembered(&*store, &wal.join(&names[5]), &options).await.unwrap().is_none());
    // A note is not enough: a repository that lost the object, or was made anew at the same place, gets it again.
    let lost = cluster.name().wal_file(system, Timeline(1), &names[1]).unwrap();
    store.delete(&lost).await.unwrap();
    assert!(remembered(&*store, &wal.join(&names[1]), &options).await.unwrap().is_none());
    assert_eq!(push(&ctx, &cluster, &wal.join(&names[1]), &options).await.unwrap().pushed, Pushed::Stored);
    assert_archived(&cluster, system, &wal.join(&names[1])).await;
    // The rest; the archiver marks what was archived.
    for name in &names {
        push(&ctx, &cluster, &wal.join(name), &options).await.unwrap();
        let mark = |kind| wal.join("archive_status").join(format!("{name}.{kind}"));
        fs::rename(mark("ready"), mark("done")).unwrap();
    }
    for name in &names {
        assert_archived(&cluster, system, &wal.join(name)).await;
    }
    assert_eq!(*notes.0.lock().unwrap(), [] as [&str; 0]);

    // The state is lost: the same content is success, and said to be there.
    let alone = push_options(None, 1);
    for name in &names {
        let again = push(&ctx, &cluster, &wal.join(name), &alone).await.unwrap();
        assert_eq!((again.pushed, again.bytes_stored), (Pushed::AlreadyThere, 0), "{name}");
    }

    // What the archive says of it is what PostgreSQL says.
    let archive = WalArchive::load(&cluster, system).await.unwrap();
    assert_eq!(archive.segment_size(), WalSegmentSize::new(1 << 20).unwrap());
    assert_eq!(archive.gaps(Timeline(1)), []);
    assert_eq!(archive.timeline(Timeline(1)).unwrap().backups.len(), 1);
    let segments: Vec<&String> = names.iter().filter(|name| name.len() == 24).collect();
    assert_eq!(archive.ranges(Timeline(1))[0].count(), segments.len() as u64);

    // Other content under a name that is taken.
    let (one, two) = (wal.join(segments[0]), wal.join(segments[1]));
    let original = fs::read(&one).unwrap();
    let mut other = original.clone();
    other[600_000] ^= 1;
    fs::write(&one, &other).unwrap();
    let text = reason(push(&ctx, &cluster, &one, &options).await);
    assert!(text.contains("already with other content") && text.contains("two servers"), "{text}");
    fs::write(&one, &original).unwrap();
    let backup = wal.join(names.iter().find(|name| name.ends_with(".backup")).unwrap());
    fs::write(&backup, "something else").unwrap();
    assert!(reason(push(&ctx, &cluster, &backup, &alone).await).contains("other content"));

    // A segment under another's name, cut short, with a name that is none.
    let beyond = wal.join("0000000100000000000000F0");
    fs::copy(&two, &beyond).unwrap();
    assert!(reason(push(&ctx, &cluster, &beyond, &alone).await).contains("not what its name says"));
    fs::write(&beyond, &original[..700_000]).unwrap();
    assert!(reason(push(&ctx, &cluster, &beyond, &alone).await).contains("700000 bytes"));
    for bad in ["RECOVERYXLOG", "000000010000000000000001.ready", "00000001000000000000000g"] {
        let text = reason(push(&ctx, &cluster, &wal.join(bad), &alone).await);
        assert!(text.contains("WAL file name") && text.contains("%p"), "{text}");
    }
    assert!(matches!(
        push(&ctx, &cluster, &wal.join("0000000100000000000000F1"), &alone).await,
        Err(EngineError::File { .. })
    ));

    // A partial file, of any state of completeness, lies beside the whole one.
    let partial = wal.join(format!("{}.partial", segments[1]));
    let mut content = fs::read(&two).unwrap();
    content[500_000..].fill(0);
    fs::write(&partial, content).unwrap();
    assert_eq!(push(&ctx, &cluster, &partial, &alone).await.unwrap().pushed, Pushed::Stored);
    assert_archived(&cluster, system, &partial).await;
    assert_archived(&cluster, system, &two).await;

    // Damaged WAL is kept all the same, and said to be: PostgreSQL will never write it again.
    let next = wal.join("0000000100000000000000F2");
    fs::write(&next, vec![0xA5; 1 << 20]).unwrap();
    let report = push(&ctx, &cluster, &next, &alone).await.unwrap();
    assert!(report.warnings[0].contains("cannot be read beyond 0/F200000"), "{:?}", report.warnings);
    assert_archived(&cluster, system, &next).await;
    let path = cluster.name().wal_file(system, Timeline(1), "0000000100000000000000F2").unwrap();
    let object = WalObject::open(store, cluster.repository().keys(), path).await.unwrap();
    assert!(object.facts().await.unwrap().unreadable.is_some());
    assert_eq!(notes.0.lock().unwrap().len(), 1);

    // A history raises the timeline that "latest" means; a lower one later does not lower it.
    let history = wal.join("00000003.history");
    fs::write(&history, "1\t0/3000000\tno recovery target specified\n").unwrap();
    let report = push(&ctx, &cluster, &history, &alone).await.unwrap();
    assert_eq!(report.production_timeline, Some(Timeline(3)));
    assert_eq!(push(&ctx, &cluster, &two, &alone).await.unwrap().production_timeline, None);
    let known = cluster.known_facts().await.unwrap();
    assert_eq!(known.current().unwrap().production_timeline, Timeline(3));
    let archive = WalArchive::load(&cluster, system).await.unwrap();
    assert_eq!(archive.history_of(Timeline(3)).unwrap().switches.len(), 1);
    assert!(archive.history_of(Timeline(2)).is_err());
    assert!(!archive.has(Timeline(1), XLogSegNo(0xF1)));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn another_clusters_wal_is_refused() {
    let (one, other) = (origin(), origin());
    let temp = tempfile::tempdir().unwrap();
    let facts = server_facts(&one).await;
    let cluster = registered(Arc::new(MemoryStore::new()), &facts).await;
    write_segments(&other, 2);
    let wal = copy_wal(&other, &temp.path().join("data"));
    let history = wal.join("00000002.history");
    fs::write(&history, "1\t0/3000000\tx\n").unwrap();
    let (ctx, _) = context();
    let options = push_options(None, 1);
    let segment = wal.join(&ready(&wal)[0]);
    for file in [&segment, &history] {
        let text = reason(push(&ctx, &cluster, file, &options).await);
        assert!(text.contains("system identifier") && text.contains("pgkeep init main"), "{text}");
    }
    // Not even when the data directory around it says nothing.
    fs::remove_file(temp.path().join("data/global/pg_control")).unwrap();
    assert!(push(&ctx, &cluster, &segment, &options).await.is_err());
    // The server was upgraded under the catalogue's eyes.
    cluster
        .update_facts(|facts| {
            let mut facts = facts.cloned()?;
            facts.systems[0].pg_major = 14;
            Some(facts)
        })
        .await
        .unwrap();
    write_segments(&one, 2);
    let wal = copy_wal(&one, &temp.path().join("one"));
    let text = reason(push(&ctx, &cluster, &wal.join(&ready(&wal)[0]), &options).await);
    assert!(text.contains("upgraded"), "{text}");
    let archive = WalArchive::load(&cluster, facts.system_id).await.unwrap();
    assert_eq!(archive.timelines().count(), 0, "nothing was stored");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nothing_acknowledged_is_missing_whichever_call_of_the_store_fails() {
    let server = origin();
    let facts = server_facts(&server).await;
    write_segments(&server, 3);
    let temp = tempfile::tempdir().unwrap();
    let wal = copy_wal(&server, &temp.path().join("data"));
    fs::write(wal.join("00000002.history"), "1\t0/3000000\tx\n").unwrap();
    fs::write(wal.join("archive_status/00000002.history.ready"), "").unwrap();
    let mut names = ready(&wal);
    names.truncate(4);
    for extra in ready(&wal).iter().filter(|name| !names.contains(name)) {
        fs::remove_file(wal.join("archive_status").join(format!("{extra}.ready"))).unwrap();
    }
    let empty = MemoryStore::new();
    registered(Arc::new(empty.clone()), &facts).await;
    let (ctx, _) = context();
    let (mut runs, mut acknowledged, mut failed) = (0, 0, 0);
    for what in [What::FailBefore, What::FailAfter, What::Tear, What::Full, What::Deny] {
        let mut call = 0;
        loop {
            let memory = empty.snapshot();
            let faulty = FaultStore::new(memory.clone(), Vec::new());
            let cluster = open_repository(Arc::new(faulty.clone())).await;
            let whole = open_repository(Arc::new(memory.clone())).await;
            faulty.add_fault(Fault { when: When::call(call), what });
            let state = tempfile::tempdir().unwrap();
            let options = push_options(Some(state.path()), 8);
            let mut said = Vec::new();
            for name in &names {
                match push(&ctx, &cluster, &wal.join(name), &options).await {
                    Ok(report) => {
                        said.push(name.clone());
                        let fine = report.others.iter().filter(|other| other.outcome.is_ok());
                        said.extend(fine.map(|other| other.name.to_string()));
                    }
                    Err(error) => {
                        failed += 1;
                        assert!(matches!(error, EngineError::Repo(_)), "call {call}, {what:?}: {error}");
                    }
                }
            }
            acknowledged += said.len();
            for name in &said {
                assert_archived(&whole, facts.system_id, &wal.join(name)).await;
            }
            // Whatever an earlier call noted is there as well, and the next run converges.
            faulty.heal();
            for name in &names {
                push(&ctx, &cluster, &wal.join(name), &options).await.unwrap();
                assert_archived(&whole, facts.system_id, &wal.join(name)).await;
            }
            let known = whole.known_facts().await.unwrap();
            assert_eq!(known.current().unwrap().production_timeline, Timeline(2));
            runs += 1;
            call += 1;
            if !faulty.any_fault_happened() {
                break;
            }
        }
    }
    assert!(
        runs > 25 && failed > 10 && acknowledged > runs,
        "{runs} runs, {failed} failed, {acknowledged} acknowledged"
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_file_that_fails_does_not_hold_up_another() {
    let server = origin();
    let facts = server_facts(&server).await;
    write_segments(&server, 3);
    let temp = tempfile::tempdir().unwrap();
    let wal = copy_wal(&server, &temp.path().join("data"));
    let cluster = registered(Arc::new(MemoryStore::new()), &facts).await;
    let names = ready(&wal);
    fs::write(wal.join(&names[1]), "short").unwrap();
    let (ctx, _) = context();
    let options = push_options(Some(&temp.path().join("state")), 8);
    let report = push(&ctx, &cluster, &wal.join(&names[0]), &options).await.unwrap();
    let outcomes: Vec<bool> = report.others.iter().map(|other| other.outcome.is_ok()).collect();
    assert_eq!(outcomes.iter().filter(|fine| !**fine).count(), 1);
    assert!(outcomes.len() >= 2);
    assert!(push(&ctx, &cluster, &wal.join(&names[1]), &options).await.is_err(), "and when its turn comes, it fails");

    // A store that stops answering for the others: the one asked for is acknowledged all the same, in time.
    let memory = MemoryStore::new();
    registered(Arc::new(memory.clone()), &facts).await;
    let faulty = FaultStore::new(memory, Vec::new());
    let cluster = open_repository(Arc::new(faulty.clone())).await;
    faulty.add_fault(Fault { when: When::path(&names[2], 0).onwards(), what: What::Stall });
    let mut options = push_options(Some(&temp.path().join("other state")), 8);
    options.others_time_max = std::time::Duration::from_millis(200);
    let report = push(&ctx, &cluster, &wal.join(&names[0]), &options).await.unwrap();
    assert_eq!(report.pushed, Pushed::Stored);
    assert!(faulty.any_fault_happened());
    assert!(remembered(&faulty, &wal.join(&names[2]), &options).await.unwrap().is_none());

    // Two at once, with one state between them.
    faulty.heal();
    let paths: Vec<_> = names.iter().filter(|name| **name != names[1]).map(|name| wal.join(name)).collect();
    let options = push_options(Some(&temp.path().join("shared state")), 8);
    for result in futures::future::join_all(paths.iter().map(|path| push(&ctx, &cluster, path, &options))).await {
        result.unwrap();
    }
    for path in &paths {
        assert_archived(&cluster, facts.system_id, path).await;
    }
}

fn destination(name: &str, cluster: &repo::Cluster, required: bool) -> Destination {
    let compression = repo::Compression::Zstd(1);
    Destination { name: name.into(), cluster: cluster.clone(), compression, required, key: format!("url of {name}") }
}

fn segments(wal: &Path) -> Vec<String> {
    ready(wal).into_iter().filter(|name| name.len() == 24).collect()
}

const QUICK: WorkOptions =
    WorkOptions { idle_time: Some(Duration::from_millis(300)), poll_time: Duration::from_millis(5), life_max: None };

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_background_works_off_what_waits_and_leaves_the_rest_to_who_is_asked() {
    let server = origin();
    let facts = server_facts(&server).await;
    write_segments(&server, 6);
    let temp = tempfile::tempdir().unwrap();
    let wal = copy_wal(&server, &temp.path().join("data"));
    let memory = MemoryStore::new();
    let cluster = registered(Arc::new(memory.clone()), &facts).await;
    let names = segments(&wal);
    assert!(names.len() >= 6, "{names:?}");
    fs::write(wal.join(&names[2]), "short").unwrap();
    let (ctx, notes) = context();
    let options = push_options(Some(&temp.path().join("state")), 8);
    let spool = options.spool(&wal.join(&names[0])).unwrap();
    let parsed = |name: &String| name.parse::<pg_format::WalFileName>().unwrap();
    assert_eq!(backlog(&spool, &wal, parsed(&names[0])).len(), ready(&wal).len() - 1);

    let lock = spool.try_lock().unwrap().expect("nobody has it");
    let pusher_options = PusherOptions { workers: 2, spool: Some(spool.clone()), warn_later: true, catalogs: None };
    let to = vec![destination("near", &cluster, true)];
    let pusher = Pusher::open(&ctx, to, Vec::new(), &wal, &pusher_options).await.unwrap();
    let asking = async {
        for name in &names {
            let waited = wait_for(&ctx, &spool, &wal, parsed(name), Duration::from_secs(60)).await;
            let remembered = remembered_in(&[&memory], &spool, &wal.join(name)).await.unwrap();
            if *name == names[2] {
                assert_eq!((waited, remembered.is_some()), (Waited::LeftToUs, false));
                continue;
            }
            assert_eq!(waited, Waited::Noted, "{name}");
            assert_eq!(remembered.expect("durable and noted").pushed, Pushed::Remembered);
            assert_archived(&cluster, facts.system_id, &wal.join(name)).await;
        }
    };
    let (report, ()) = tokio::join!(work(&ctx, &pusher, &lock, &QUICK), asking);
    let report = report.unwrap();
    assert_eq!((report.pushed, report.failed.len()), (ready(&wal).len() as u64 - 1, 1), "{report:?}");
    assert_eq!(report.failed[0].0, parsed(&names[2]));
    // Who is asked for it says why.
    let error = push(&ctx, &cluster, &wal.join(&names[2]), &options).await.unwrap_err();
    assert!(error.to_string().contains("5 bytes"), "{error}");
    assert_eq!(*notes.0.lock().unwrap(), [] as [&str; 0]);
    drop(lock);

    // Nobody works: who waits is told at once.
    fs::write(wal.join("archive_status/0000000100000000000000F0.ready"), "").unwrap();
    let waited = wait_for(&ctx, &spool, &wal, parsed(&"0000000100000000000000F0".into()), Duration::MAX).await;
    assert_eq!(waited, Waited::LeftToUs);

    // The repository lost an object: all notes go, and what is missing comes back.
    let lost = cluster.name().wal_file(facts.system_id, Timeline(1), &names[4]).unwrap();
    memory.delete(&lost).await.unwrap();
    assert!(remembered_in(&[&memory], &spool, &wal.join(&names[4])).await.unwrap().is_none());
    assert!(remembered_in(&[&memory], &spool, &wal.join(&names[5])).await.unwrap().is_none());
    let lock = spool.try_lock().unwrap().unwrap();
    let report = work(&ctx, &pusher, &lock, &QUICK).await.unwrap();
    assert_eq!(report.pushed, ready(&wal).len() as u64 - 2, "without the short one and the one that is not there");
    assert_archived(&cluster, facts.system_id, &wal.join(&names[4])).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_background_gives_up_when_the_store_does() {
    let server = origin();
    let facts = server_facts(&server).await;
    write_segments(&server, 4);
    let temp = tempfile::tempdir().unwrap();
    let wal = copy_wal(&server, &temp.path().join("data"));
    let empty = MemoryStore::new();
    registered(Arc::new(empty.clone()), &facts).await;
    let names = segments(&wal);
    let (ctx, _) = context();
    let mut gave_up = 0;
    for what in [What::FailBefore, What::Full, What::Pretend] {
        for call in 0..6 {
            let memory = empty.snapshot();
            let faulty = FaultStore::new(memory.clone(), Vec::new());
            let cluster = open_repository(Arc::new(faulty.clone())).await;
            let state = tempfile::tempdir().unwrap();
            let options = push_options(Some(state.path()), 8);
            let spool = options.spool(&wal.join(&names[0])).unwrap();
            let lock = spool.try_lock().unwrap().unwrap();
            let pusher_options =
                PusherOptions { workers: 1, spool: Some(spool.clone()), warn_later: true, catalogs: None };
            let to = vec![destination("near", &cluster, true)];
            let pusher = Pusher::open(&ctx, to, Vec::new(), &wal, &pusher_options).await.unwrap();
            // The call that follows, and all after it; a lying store lies once.
            let when = When::call(call);
            faulty.add_fault(Fault { when: if what == What::Pretend { when } else { when.onwards() }, what });
            let report = work(&ctx, &pusher, &lock, &QUICK).await.unwrap();
            gave_up += usize::from(!report.failed.is_empty());
            drop(lock);
            // Nothing is believed that is not there.
            for name in &names {
                let known = remembered_in(&[&memory], &spool, &wal.join(name)).await.unwrap();
                if known.is_some() {
                    assert_archived(&cluster_in(&memory).await, facts.system_id, &wal.join(name)).await;
                }
            }
            faulty.heal();
            let lock = spool.try_lock().unwrap().unwrap();
            work(&ctx, &pusher, &lock, &QUICK).await.unwrap();
            for name in &names {
                push(&ctx, &cluster, &wal.join(name), &options).await.unwrap();
                assert_archived(&cluster_in(&memory).await, facts.system_id, &wal.join(name)).await;
            }
        }
    }
    assert!(gave_up >= 6, "{gave_up}");
}

async fn cluster_in(memory: &MemoryStore) -> repo::Cluster {
    open_repository(Arc::new(memory.clone())).await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn several_repositories_get_all_wal_and_the_optional_one_later() {
    let server = origin();
    let facts = server_facts(&server).await;
    write_segments(&server, 6);
    let temp = tempfile::tempdir().unwrap();
    let wal = copy_wal(&server, &temp.path().join("data"));
    let names = segments(&wal);
    let history = wal.join("00000002.history");
    fs::write(&history, "1\t0/3000000\tx\n").unwrap();
    let near = registered(Arc::new(MemoryStore::new()), &facts).await;
    let memory = MemoryStore::new();
    registered(Arc::new(memory.clone()), &facts).await;
    let faulty = FaultStore::new(memory.clone(), Vec::new());
    let far = open_repository(Arc::new(faulty.clone())).await;
    let whole = cluster_in(&memory).await;
    let (ctx, notes) = context();
    let mut options = push_options(Some(&temp.path().join("state")), 1);
    options.state_key = "near far main".into();
    let missed = || Spool::missed_by(&temp.path().join("state"), &options.state_key, "url of far");
    let to = |far_required| vec![destination("near", &near, true), destination("far", &far, far_required)];

    // Both are there: both have it, each under its own key.
    let report = push_to(&ctx, to(true), Vec::new(), &wal.join(&names[0]), &options).await.unwrap();
    assert_eq!(report.pushed, Pushed::Stored);
    for cluster in [&near, &whole] {
        assert_archived(cluster, facts.system_id, &wal.join(&names[0])).await;
    }
    // One that must have it is out of reach: no success.
    faulty.add_fault(Fault { when: When::call(0).onwards(), what: What::FailBefore });
    push_to(&ctx, to(true), Vec::new(), &wal.join(&names[1]), &options).await.unwrap_err();
    // One that need not: success, loudly, and it is noted what is missing there.
    for file in [&wal.join(&names[1]), &wal.join(&names[2]), &history] {
        notes.0.lock().unwrap().clear();
        let report = push_to(&ctx, to(false), Vec::new(), file, &options).await.unwrap();
        let said = notes.0.lock().unwrap().join("\n");
        assert!(said.contains("is not in repository far") && said.contains("later"), "{said}");
        assert_eq!(report.warnings.len(), 1, "{:?}", report.warnings);
        assert_archived(&near, facts.system_id, file).await;
    }
    // Not even opened.
    let closed = OutOfReach { name: "far".into(), key: "url of far".into(), reason: "no route".into() };
    let only_near = vec![destination("near", &near, true)];
    push_to(&ctx, only_near, vec![closed], &wal.join(&names[3]), &options).await.unwrap();
    assert_eq!(missed(), 4);
    // All optional is refused.
    let none = vec![destination("far", &far, false)];
    assert!(push_to(&ctx, none, Vec::new(), &wal.join(&names[4]), &options).await.is_err());

    // It is back: it gets what comes, and what it missed.
    faulty.heal();
    push_to(&ctx, to(false), Vec::new(), &wal.join(&names[4]), &options).await.unwrap();
    push_to(&ctx, to(false), Vec::new(), &wal.join(&names[5]), &options).await.unwrap();
    assert_eq!(missed(), 0);
    for name in &names[..6] {
        assert_archived(&whole, facts.system_id, &wal.join(name)).await;
    }
    assert_archived(&whole, facts.system_id, &history).await;
    // With the index, as if it had been pushed there.
    let path = whole.name().wal_file(facts.system_id, Timeline(1), &names[1]).unwrap();
    let object = WalObject::open(whole.repository().store().clone(), whole.repository().keys(), path).await.unwrap();
    assert!(object.has_index());
}
