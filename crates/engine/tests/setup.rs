//! A server is registered, set up, checked by doing, and its state told.
#![allow(clippy::unwrap_used)]

mod wal_support;

use bytes::Bytes;
use engine::EngineError;
use engine::server::{self, ServerFacts};
use engine::setup::*;
use engine::status::{StatusOptions, status};
use engine::wal::push::push;
use std::sync::Arc;
use std::time::Duration;
use store::{Created, Listing, MemoryStore, ObjectMeta, ObjectPath, ObjectWriter, Store, StoreError};
use testkit::pg::Cluster;
use tokio_util::sync::CancellationToken;
use wal_support::*;

fn init_options(command: &str, replace: bool) -> InitOptions {
    InitOptions { archive_command: command.into(), library: None, replace_archive_command: replace }
}

async fn plan(server: &Cluster, options: &InitOptions) -> (pg_wire::Client, ServerFacts, InitPlan) {
    let mut client = server::connect(&conninfo(server)).await.unwrap();
    let facts = ServerFacts::read(&mut client).await.unwrap();
    let plan = plan_init(&context().0, &mut client, &facts, options).await.unwrap();
    (client, facts, plan)
}

fn names(changes: &[SettingChange]) -> Vec<&str> {
    changes.iter().map(|change| change.name).collect()
}

/// A store that takes no notice of what is there already, as some servers of the S3 protocol do.
#[derive(Debug)]
struct Overwriting(MemoryStore);

#[async_trait::async_trait]
impl Store for Overwriting {
    fn url(&self) -> &str {
        self.0.url()
    }

    async fn put(&self, path: &ObjectPath, bytes: Bytes) -> Result<Created, StoreError> {
        self.0.delete(path).await?;
        self.0.put(path, bytes).await
    }

    async fn create(&self, path: &ObjectPath) -> Result<Box<dyn ObjectWriter>, StoreError> {
        self.0.create(path).await
    }

    async fn get(&self, path: &ObjectPath, size_max: u64) -> Result<Bytes, StoreError> {
        self.0.get(path, size_max).await
    }

    async fn get_range(&self, path: &ObjectPath, range: std::ops::Range<u64>) -> Result<Bytes, StoreError> {
        self.0.get_range(path, range).await
    }

    async fn get_tail(&self, path: &ObjectPath, len: u64) -> Result<(Bytes, ObjectMeta), StoreError> {
        self.0.get_tail(path, len).await
    }

    async fn head(&self, path: &ObjectPath) -> Result<ObjectMeta, StoreError> {
        self.0.head(path).await
    }

    async fn list_level(&self, prefix: Option<&ObjectPath>) -> Result<Listing, StoreError> {
        self.0.list_level(prefix).await
    }

    async fn list_page(
        &self,
        prefix: Option<&ObjectPath>,
        after: Option<&ObjectPath>,
        limit: usize,
    ) -> Result<Vec<ObjectMeta>, StoreError> {
        self.0.list_page(prefix, after, limit).await
    }

    async fn delete(&self, path: &ObjectPath) -> Result<(), StoreError> {
        self.0.delete(path).await
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_server_is_set_up_proven_and_reported() {
    let mut server = Cluster::builder(15)
        .wal_segsize_mb(1)
        .conf("wal_level", "minimal")
        .conf("max_wal_senders", "0")
        .without_fsync()
        .start()
        .unwrap();
    let (ctx, _) = context();
    let arrived = server.make_dir("arrived").unwrap();
    // Stands in for `pgkeep wal push %p`: what it lays down is pushed below.
    let command = format!("cp %p {0}/.%f && mv {0}/.%f {0}/%f # pgkeep wal push 'it''s'", arrived.display());
    let options = init_options(&command, false);
    let (mut client, facts, todo) = plan(&server, &options).await;
    assert_eq!(names(&todo.changes), ["wal_level", "archive_mode", "archive_command"]);
    assert!(todo.needs_restart() && todo.conflicts.is_empty(), "{todo:?}");
    let memory = MemoryStore::new();
    let cluster = new_repository(Arc::new(memory.clone())).await;
    let register_options = RegisterOptions { new_system: false };
    assert_eq!(register(&ctx, &cluster, &facts, register_options).await.unwrap(), Registered::New);
    assert_eq!(register(&ctx, &cluster, &facts, register_options).await.unwrap(), Registered::Known);

    // Who may not, changes nothing and is told what is missing.
    server.sql("CREATE ROLE weak LOGIN; GRANT pg_monitor TO weak").unwrap();
    let weak = conninfo(&server).with(&[("user", "weak")], &pg_wire::Surroundings::none()).unwrap();
    let mut weak_client = server::connect(&weak).await.unwrap();
    let weak_facts = ServerFacts::read(&mut weak_client).await.unwrap();
    match apply_init(&ctx, &mut weak_client, &weak_facts, &todo).await {
        Err(EngineError::Refused { reason, hint: Some(hint) }) => {
            assert!(
                reason.contains("ALTER SYSTEM ON PARAMETER wal_level") && reason.contains("pg_reload_conf"),
                "{reason}"
            );
            assert!(hint.contains("archive_mode = 'on'"), "{hint}");
        }
        other => panic!("{other:?}"),
    }
    let applied = apply_init(&ctx, &mut client, &facts, &todo).await.unwrap();
    assert_eq!(applied.pending_restart, ["archive_mode", "wal_level"]);
    // Asked again before the restart: nothing more to change, and the restart still to come.
    let (_, _, again) = plan(&server, &options).await;
    assert!(again.needs_restart(), "{again:?}");
    server.restart().unwrap();
    let (mut client, _, done) = plan(&server, &options).await;
    assert_eq!((names(&done.changes), done.needs_restart()), (vec![], false));
    assert_eq!(server.sql("SHOW archive_command").unwrap(), command);

    // Nothing arrives: said within the time given.
    let check_options = CheckOptions { archive_time_max: Duration::from_millis(300) };
    let level = |findings: &[Finding], name: &str| findings.iter().filter(|f| f.name == name).map(|f| f.level).max();
    let findings = check(&ctx, &conninfo(&server), Ok(cluster.clone()), &check_options).await.unwrap();
    assert_eq!(level(&findings, "archiving"), Some(Level::Failed), "{findings:?}");
    for name in ["repository", "connection", "identity", "privileges", "settings", "clock"] {
        assert_eq!(level(&findings, name), Some(Level::Ok), "{name}: {findings:?}");
    }
    // It arrives.
    let stop = CancellationToken::new();
    let pusher = tokio::spawn({
        let (ctx, cluster, stop) = (ctx.clone(), cluster.clone(), stop.clone());
        async move {
            while !stop.is_cancelled() {
                for entry in std::fs::read_dir(&arrived).unwrap().flatten() {
                    if !entry.file_name().to_string_lossy().starts_with('.') {
                        push(&ctx, &cluster, &entry.path(), &push_options(None, 1)).await.unwrap();
                        std::fs::remove_file(entry.path()).unwrap();
                    }
                }
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
        }
    });
    let check_options = CheckOptions { archive_time_max: Duration::from_secs(60) };
    let findings = check(&ctx, &conninfo(&server), Ok(cluster.clone()), &check_options).await.unwrap();
    assert_eq!(level(&findings, "archiving"), Some(Level::Ok), "{findings:?}");
    let leases = memory.list_page(Some(&store::ObjectPath::new("leases").unwrap()), None, 10).await.unwrap();
    assert_eq!(leases, [], "the check leaves nothing behind");

    // What the state is: no backup yet, archiving works.
    let status_options = StatusOptions { backup_age_max: None, wal_lag_bytes_max: 64 << 20 };
    let told = status(&ctx, &cluster, Some(Ok(&mut client)), &status_options).await.unwrap();
    assert_eq!(told.verdict, Level::Failed);
    assert!(told.problems[0].message.contains("no backup") && told.problems.len() == 1, "{:?}", told.problems);
    let asked = told.server.as_ref().unwrap();
    assert!(asked.wal_lag_bytes.unwrap() <= 4 << 20 && asked.archiver.archived > 0, "{asked:?}");
    assert!(told.wal[0].segments > 0 && told.gaps.is_empty());
    serde_json::to_string(&told).unwrap();
    stop.cancel();
    pusher.await.unwrap();

    // Another tool's command is not replaced unasked, nor one of pgkeep's that leads elsewhere; a placeholder is.
    for (set, replace, conflicts) in [
        ("pgbackrest archive-push %p", false, 1),
        ("pgbackrest archive-push %p", true, 0),
        ("/bin/true", false, 0),
        ("pgkeep --cluster other wal push %p", false, 1),
        ("pgkeep --cluster other wal push %p", true, 0),
        ("/opt/pgkeep wal push %p", false, 0),
    ] {
        server.sql(&format!("ALTER SYSTEM SET archive_command = '{set}'")).unwrap();
        server.reload().unwrap();
        server.wait_for("SHOW archive_command", set, Duration::from_secs(20)).unwrap();
        let (mut client, facts, todo) = plan(&server, &init_options("pgkeep wal push %p", replace)).await;
        assert_eq!((names(&todo.changes), todo.conflicts.len()), (vec!["archive_command"], conflicts), "{set}");
        assert_eq!(apply_init(&ctx, &mut client, &facts, &todo).await.is_ok(), conflicts == 0);
    }
    server.sql("ALTER SYSTEM SET archive_library = 'basic_archive'").unwrap();
    server.reload().unwrap();
    server.wait_for("SHOW archive_library", "basic_archive", Duration::from_secs(20)).unwrap();
    let (_, _, todo) = plan(&server, &options).await;
    assert!(todo.conflicts[0].contains("archive_library"), "{todo:?}");
    let (mut client2, facts, todo) = plan(&server, &init_options(&command, true)).await;
    assert_eq!(names(&todo.changes), ["archive_command", "archive_library"]);
    apply_init(&ctx, &mut client2, &facts, &todo).await.unwrap();

    // Another cluster under the same name; an upgraded one.
    let other = Cluster::builder(15).without_fsync().start().unwrap();
    let other_facts = server_facts(&other).await;
    let error = register(&ctx, &cluster, &other_facts, register_options).await.unwrap_err();
    assert!(matches!(&error, EngineError::Refused { reason, .. } if reason.contains("another cluster")), "{error}");
    let findings = check(&ctx, &conninfo(&other), Ok(cluster.clone()), &check_options).await.unwrap();
    assert_eq!(level(&findings, "identity"), Some(Level::Failed));
    assert_eq!(level(&findings, "archiving"), None, "nothing is done to a server that is not the cluster's");
    let new = register(&ctx, &cluster, &other_facts, RegisterOptions { new_system: true }).await.unwrap();
    assert_eq!(new, Registered::NewSystem(facts.system_id));
    assert_eq!(cluster.known_facts().await.unwrap().systems.len(), 2);

    // A store that overwrites is found out, and the probe does not stay.
    let nowhere = conninfo(&server).with(&[("port", "1")], &pg_wire::Surroundings::none()).unwrap();
    let overwriting = MemoryStore::new();
    let careless = new_repository(Arc::new(Overwriting(overwriting.clone()))).await;
    register(&ctx, &careless, &facts, register_options).await.unwrap();
    let findings = check(&ctx, &nowhere, Ok(careless), &check_options).await.unwrap();
    assert_eq!(level(&findings, "repository"), Some(Level::Failed));
    assert!(findings[0].message.contains("overwrites"), "{findings:?}");
    let leases = overwriting.list_page(Some(&store::ObjectPath::new("leases").unwrap()), None, 10).await.unwrap();
    assert_eq!(leases, []);

    // No repository, no server: findings, not the end.
    let broken = EngineError::refused("no such repository", "make it");
    let findings = check(&ctx, &nowhere, Err(broken), &check_options).await.unwrap();
    assert_eq!(
        findings.iter().map(|f| (f.name, f.level)).collect::<Vec<_>>(),
        [("repository", Level::Failed), ("connection", Level::Failed)]
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_server_that_can_summarize_its_wal_is_told_to() {
    let builder = Cluster::builder(17).conf("wal_level", "minimal").conf("max_wal_senders", "0");
    let mut server = builder.without_fsync().start().unwrap();
    let options = init_options("cp %p /dev/null # pgkeep wal push", false);
    let (mut client, facts, todo) = plan(&server, &options).await;
    assert_eq!(names(&todo.changes), ["wal_level", "archive_mode", "archive_command", "summarize_wal"]);
    let (ctx, _) = context();
    let cluster = new_repository(Arc::new(MemoryStore::new())).await;
    register(&ctx, &cluster, &facts, RegisterOptions { new_system: false }).await.unwrap();
    let settings = |findings: &[Finding]| {
        let texts = findings.iter().filter(|finding| finding.name == "settings").map(|finding| finding.message.clone());
        texts.collect::<Vec<_>>().join("; ")
    };
    let check_options = CheckOptions { archive_time_max: Duration::from_millis(100) };
    let findings = check(&ctx, &conninfo(&server), Ok(cluster.clone()), &check_options).await.unwrap();
    assert!(settings(&findings).contains("summarize_wal is off"), "{findings:?}");
    apply_init(&ctx, &mut client, &facts, &todo).await.unwrap();
    server.restart().unwrap();
    assert_eq!(server.sql("SHOW summarize_wal").unwrap(), "on");
    let findings = check(&ctx, &conninfo(&server), Ok(cluster), &check_options).await.unwrap();
    assert!(!settings(&findings).contains("summarize_wal"), "{findings:?}");
}
