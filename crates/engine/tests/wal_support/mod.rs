//! What the WAL tests share: a repository, a context, and a real server whose WAL waits to be archived.
#![allow(dead_code, unreachable_pub, missing_docs, clippy::unwrap_used)]

use engine::server::{self, ServerFacts};
use engine::setup::{RegisterOptions, register};
use engine::wal::fetch::FetchOptions;
use engine::wal::push::PushOptions;
use engine::{Context, Progress, Unit};
use pg_wire::{Conninfo, Surroundings};
use repo::{Compression, KeySource, Repository};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};
use std::time::Duration;
use store::Store;
use testkit::pg::Cluster;
use tokio_util::sync::CancellationToken;

pub const KEY: &str = "000102030405060708090a0b0c0d0e0f101112131415161718191a1b1c1d1e1f";

/// Keeps what a human would read.
#[derive(Default)]
pub struct Notes(pub Mutex<Vec<String>>);

impl Progress for Notes {
    fn phase(&self, _: &str, _: Option<u64>, _: Unit) {}
    fn advance(&self, _: u64) {}
    fn warn(&self, text: &str) {
        self.0.lock().unwrap().push(text.to_owned());
    }
}

pub fn context() -> (Context, Arc<Notes>) {
    let notes = Arc::new(Notes::default());
    let ctx =
        Context { progress: notes.clone(), cancel: CancellationToken::new(), clock: Arc::new(jiff::Timestamp::now) };
    (ctx, notes)
}

pub fn conninfo(cluster: &Cluster) -> Conninfo {
    Conninfo::parse(&cluster.conninfo(), &Surroundings::none()).unwrap()
}

pub async fn server_facts(cluster: &Cluster) -> ServerFacts {
    let mut client = server::connect(&conninfo(cluster)).await.unwrap();
    ServerFacts::read(&mut client).await.unwrap()
}

pub async fn new_repository(store: Arc<dyn Store>) -> repo::Cluster {
    let key = KeySource::key_file(KEY).unwrap();
    let repository = Repository::create(store, Some(&key), "test", jiff::Timestamp::now()).await.unwrap();
    repository.cluster(&"main".parse().unwrap())
}

/// The same repository through another store, such as one with faults.
pub async fn open_repository(store: Arc<dyn Store>) -> repo::Cluster {
    let key = KeySource::key_file(KEY).unwrap();
    Repository::open(store, Some(&key)).await.unwrap().cluster(&"main".parse().unwrap())
}

pub async fn registered(store: Arc<dyn Store>, facts: &ServerFacts) -> repo::Cluster {
    let cluster = new_repository(store).await;
    register(&context().0, &cluster, facts, RegisterOptions { new_system: false }).await.unwrap();
    cluster
}

pub fn push_options(state_dir: Option<&Path>, batch: usize) -> PushOptions {
    PushOptions {
        compression: Compression::Zstd(1),
        workers: 2,
        batch,
        others_time_max: Duration::from_secs(60),
        state_dir: state_dir.map(Path::to_owned),
        state_key: "repository main".into(),
    }
}

pub fn fetch_options(cache: Option<&Path>, ahead: usize) -> FetchOptions {
    FetchOptions {
        ahead,
        workers: 2,
        cache_dir: cache.map(Path::to_owned),
        cache_key: "repository main".into(),
        cache_bytes_max: 64 << 20,
        standby: false,
    }
}

/// A server with segments of 1 MiB whose archive command always fails, so that what is ready waits.
pub fn origin() -> Cluster {
    Cluster::builder(15)
        .wal_segsize_mb(1)
        .conf("archive_mode", "on")
        .conf("archive_command", "false")
        .conf("max_wal_size", "64MB")
        .without_fsync()
        .start()
        .unwrap()
}

/// Writes WAL of at least so many segments, with commits in each.
pub fn write_segments(cluster: &Cluster, count: usize) {
    cluster.sql("CREATE TABLE IF NOT EXISTS t (id int, text text)").unwrap();
    for number in 0..count {
        cluster
            .sql(&format!(
                "INSERT INTO t SELECT {number}, md5(random()::text) FROM generate_series(1, 2000); SELECT pg_switch_wal()"
            ))
            .unwrap();
    }
}

/// A copy of what a push looks at: `pg_wal` with its marks, and `pg_control`.
pub fn copy_wal(cluster: &Cluster, to: &Path) -> PathBuf {
    let data = cluster.data_dir();
    for dir in ["pg_wal/archive_status", "global"] {
        std::fs::create_dir_all(to.join(dir)).unwrap();
    }
    std::fs::copy(data.join("global/pg_control"), to.join("global/pg_control")).unwrap();
    for dir in ["pg_wal", "pg_wal/archive_status"] {
        for entry in std::fs::read_dir(data.join(dir)).unwrap() {
            let entry = entry.unwrap();
            if entry.file_type().unwrap().is_file() {
                std::fs::copy(entry.path(), to.join(dir).join(entry.file_name())).unwrap();
            }
        }
    }
    to.join("pg_wal")
}

/// The names of the files that wait, in order.
pub fn ready(wal_dir: &Path) -> Vec<String> {
    let mut names: Vec<String> = std::fs::read_dir(wal_dir.join("archive_status"))
        .unwrap()
        .filter_map(|entry| Some(entry.unwrap().file_name().to_str()?.strip_suffix(".ready")?.to_owned()))
        .collect();
    names.sort();
    names
}
