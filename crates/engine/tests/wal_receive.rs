//! `wal receive` with a real server and a store that goes wrong: what is in the repository is what the server has in
//! `pg_wal`, byte for byte.
#![allow(clippy::unwrap_used)]

mod wal_support;

use engine::EngineError;
use engine::wal::WalArchive;
use engine::wal::push::Destination;
use engine::wal::receive::{FlushAt, ReceiveEvent, ReceiveOptions, ReceiveReport, ReceiveTo, read_state, receive};
use pg_format::{Lsn, Timeline};
use repo::Compression;
use repo::tail::{TailOf, list_tails, read_chain};
use repo::wal::read_segment;
use std::path::Path;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};
use store::{CallKind, Fault, FaultStore, MemoryStore, What, When};
use testkit::pg::{Cluster, StopMode};
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;
use wal_support::*;

type Events = Arc<Mutex<Vec<ReceiveEvent>>>;

fn options(server: &Cluster, cluster: &repo::Cluster, state: &Path, flush_at: FlushAt) -> ReceiveOptions {
    let destination = Destination {
        name: "memory".into(),
        cluster: cluster.clone(),
        compression: Compression::Zstd(1),
        required: true,
        key: "memory:".into(),
    };
    ReceiveOptions {
        conninfo: conninfo(server),
        slot: "pgkeep".into(),
        flush_at,
        tail_bytes: 64 << 10,
        tail_interval: Duration::from_millis(20),
        spool_bytes_max: 1 << 30,
        open: Arc::new(move || {
            let destination = destination.clone();
            Box::pin(async move { Ok((vec![destination], Vec::new())) })
        }),
        repositories: vec![ReceiveTo { name: "memory".into(), key: "memory:".into(), required: true }],
        workers: 2,
        state_dir: state.to_owned(),
        state_key: "memory: main".into(),
    }
}

struct Running {
    cancel: CancellationToken,
    events: Events,
    running: JoinHandle<Result<ReceiveReport, EngineError>>,
}

fn start(options: ReceiveOptions) -> Running {
    let (ctx, _) = context();
    let (events, cancel) = (Events::default(), ctx.cancel.clone());
    let kept = events.clone();
    let running =
        tokio::spawn(
            async move { receive(&ctx, options, Arc::new(move |event| kept.lock().unwrap().push(event))).await },
        );
    Running { cancel, events, running }
}

/// Waits until the repository has all that the server has flushed.
async fn wait_durable(server: &Cluster, state: &Path, events: &Events) {
    let end: Lsn = server.sql("SELECT pg_current_wal_flush_lsn()").unwrap().parse().unwrap();
    let begin = Instant::now();
    loop {
        let found = read_state(state, "memory: main").map(|state| state.repositories[0].durable_lsn);
        if found.is_some_and(|durable| durable >= end) {
            return;
        }
        assert!(begin.elapsed() < Duration::from_secs(60), "{found:?} of {end}: {:?}", events.lock().unwrap());
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

/// Compares what the repository has with the server's files. Gives how many segments are whole.
async fn compare(server: &Cluster, memory: &MemoryStore, cluster: &repo::Cluster) -> usize {
    let facts = server_facts(server).await;
    let archive = WalArchive::load(cluster, facts.system_id).await.unwrap();
    let wal_dir = server.data_dir().join("pg_wal");
    let store: Arc<dyn store::Store> = Arc::new(memory.clone());
    let keys = cluster.repository().keys();
    let mut whole = 0;
    for range in archive.ranges(Timeline(1)) {
        for number in range.first.0..=range.last.0 {
            let name = archive.segment_name(Timeline(1), pg_format::XLogSegNo(number)).unwrap();
            let path = archive.segment_path(name).unwrap();
            let there = read_segment(store.clone(), keys, &path).await.unwrap();
            assert!(there == std::fs::read(wal_dir.join(name.to_string())).unwrap(), "{name}");
            whole += 1;
        }
    }
    assert_eq!(archive.gaps(Timeline(1)), []);
    let tails = list_tails(memory, cluster.name(), facts.system_id).await.unwrap();
    assert_eq!(tails.len(), 1, "only of the segment that is not whole: {tails:?}");
    for (segment, pieces) in tails {
        let of = TailOf { system_id: facts.system_id, segment, size: facts.wal_segment_size };
        let there = read_chain(memory, keys, of, &pieces).await.unwrap().unwrap();
        let file = std::fs::read(wal_dir.join(segment.to_string())).unwrap();
        assert!(there == file[..there.len()], "{segment}");
    }
    whole
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn whatever_the_store_does_the_repository_converges_to_the_servers_wal() {
    let server = origin();
    let facts = server_facts(&server).await;
    let memory = MemoryStore::new();
    registered(Arc::new(memory.clone()), &facts).await;
    let faulty = FaultStore::new(memory.clone(), Vec::new());
    let cluster = open_repository(Arc::new(faulty.clone())).await;
    let temp = tempfile::tempdir().unwrap();
    let faults = [
        (CallKind::Put, "tails/", What::FailBefore),
        (CallKind::Put, "tails/", What::FailAfter),
        (CallKind::Put, "tails/", What::Tear),
        (CallKind::Put, "/wal/", What::FailAfter),
        (CallKind::Put, "", What::Full),
        (CallKind::ListPage, "tails/", What::FailBefore),
        (CallKind::Delete, "tails/", What::FailBefore),
        (CallKind::Head, "/wal/", What::FailBefore),
    ];
    // The last one meets no faults: what failed deletions left is removed when it begins.
    for (flush_at, fails) in [(FlushAt::Spool, true), (FlushAt::Repository, true), (FlushAt::Spool, false)] {
        let Running { cancel, events, running } = start(options(&server, &cluster, temp.path(), flush_at));
        write_segments(&server, 1);
        wait_durable(&server, temp.path(), &events).await;
        for (kind, path, what) in faults.into_iter().filter(|_| fails) {
            for nth in 0..2 {
                let when = When { kind: Some(kind), path_contains: Some(path.to_owned()), nth, times: 2 };
                faulty.add_fault(Fault { when, what });
            }
            server.sql("INSERT INTO t SELECT g, md5(g::text) FROM generate_series(1, 3000) g").unwrap();
            write_segments(&server, 1);
            faulty.heal();
        }
        // The beginning of a segment that stays one.
        server.sql("INSERT INTO t VALUES (0, 'the tail')").unwrap();
        wait_durable(&server, temp.path(), &events).await;
        cancel.cancel();
        let report = running.await.unwrap().unwrap();
        assert!(report.drained && report.counts.pieces > 0, "{report:?}");
        let failed = events.lock().unwrap().iter().any(|event| matches!(event, ReceiveEvent::StoreFails { .. }));
        assert_eq!(failed, fails, "{:?}", events.lock().unwrap());
    }
    assert!(faulty.any_fault_happened());
    assert!(compare(&server, &memory, &cluster).await >= 16);
}

/// Commits that wait for the spool go on, a server that shuts down is let go, and what was acknowledged gets to the repository
/// once it answers again.
#[tokio::test(flavor = "multi_thread", worker_threads = 3)]
async fn a_store_that_stops_answering_holds_up_only_those_who_wait_for_it() {
    let mut server = origin();
    let facts = server_facts(&server).await;
    let memory = MemoryStore::new();
    registered(Arc::new(memory.clone()), &facts).await;
    let faulty = FaultStore::new(memory.clone(), Vec::new());
    let cluster = open_repository(Arc::new(faulty.clone())).await;
    let temp = tempfile::tempdir().unwrap();
    write_segments(&server, 1);
    let set_standby = |server: &Cluster, name: &str| {
        server.sql(&format!("ALTER SYSTEM SET synchronous_standby_names = '{name}'")).unwrap();
        server.reload().unwrap();
        server.wait_for("SHOW synchronous_standby_names", name, Duration::from_secs(20)).unwrap();
    };
    let streams = "SELECT count(*) FROM pg_stat_replication WHERE state = 'streaming'";
    for flush_at in [FlushAt::Spool, FlushAt::Repository] {
        let Running { cancel, events, running } = start(options(&server, &cluster, temp.path(), flush_at));
        server.wait_for(streams, "1", Duration::from_secs(60)).unwrap();
        set_standby(&server, "*");
        let when = When { kind: Some(CallKind::Put), path_contains: None, nth: 0, times: usize::MAX };
        faulty.add_fault(Fault { when, what: What::Stall });
        if flush_at == FlushAt::Spool {
            server.sql("INSERT INTO t SELECT g, md5(g::text) FROM generate_series(1, 3000) g").unwrap();
        } else {
            server.sql("SET synchronous_commit = local; INSERT INTO t VALUES (-1, 'nobody waits')").unwrap();
            server.sql("SET synchronous_commit = remote_write; INSERT INTO t VALUES (-2, 'written')").unwrap();
            server.stop(StopMode::Fast).unwrap();
            let let_go =
                |event: &ReceiveEvent| matches!(event, ReceiveEvent::Detached { reason } if reason.contains("let go"));
            assert!(events.lock().unwrap().iter().any(let_go), "{:?}", events.lock().unwrap());
            server.start_again().unwrap();
        }
        set_standby(&server, "");
        cancel.cancel();
        let report = running.await.unwrap().unwrap();
        assert!(!report.drained, "{report:?}");
        faulty.heal();
    }
    assert!(faulty.any_fault_happened());
    let Running { cancel, events, running } = start(options(&server, &cluster, temp.path(), FlushAt::Spool));
    wait_durable(&server, temp.path(), &events).await;
    cancel.cancel();
    assert!(running.await.unwrap().unwrap().drained);
    compare(&server, &memory, &cluster).await;
}
