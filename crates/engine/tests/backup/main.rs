//! Full backups of a real server: what they hold, what they refuse, and what is left when they fail.

mod beside;
mod hooked;
mod support;
mod unchanged;

use engine::backup::{self, BackupOptions, BackupReport, Sharing};
use engine::{Context, EngineError};
use repo::manifest::FileType;
use repo::{BackupId, Intent, PackId, Repository};
use std::sync::{Arc, Condvar, Mutex};
use std::time::Duration;
use store::{Fault, FaultStore, MemoryStore, What, When};
use support::{Archived, Result, at_phase, conninfo, content, context, facts_of, main_of, options, register};
use testkit::pg::{Cluster, StopMode};
use tokio_util::sync::CancellationToken;

#[tokio::test(flavor = "multi_thread")]
async fn a_backup_holds_every_file_of_a_quiet_server() -> Result {
    let archived = Archived::start().await?;
    let server = &archived.server;
    let space = server.make_dir("space")?;
    server.sql(&format!("CREATE TABLESPACE fast LOCATION '{}'", space.display()))?;
    server.sql("CREATE TABLE big AS SELECT g, md5(g::text) AS t FROM generate_series(1, 300000) g")?;
    server.sql("CREATE TABLE there (x int) TABLESPACE fast")?;
    server.sql("INSERT INTO there SELECT generate_series(1, 1000)")?;
    server.sql("CREATE UNLOGGED TABLE unlogged AS SELECT generate_series(1, 1000)")?;
    server.sql("VACUUM (ANALYZE, FREEZE)")?;
    server.sql("CHECKPOINT")?;
    let report = archived.backup().await?;
    assert!(report.warnings.is_empty(), "{:?}", report.warnings);
    assert!(report.damaged.is_empty());
    assert!(report.start_lsn < report.stop_lsn);

    let cluster = archived.cluster().await?;
    let manifest = cluster.open_manifest(report.backup).await?;
    let facts = manifest.facts();
    assert_eq!(facts.tablespaces.len(), 1);
    assert_eq!(facts.tablespaces[0].name, "fast");
    let unlogged = server.sql("SELECT pg_relation_filepath('unlogged')")?;
    let mut compared = 0;
    let mut blocks = manifest.files();
    while let Some(entries) = blocks.next().await? {
        for entry in entries {
            let path = String::from_utf8(entry.path.clone())?;
            assert_ne!(path, format!("data/{unlogged}"), "of an unlogged relation only the init fork is kept");
            let FileType::File { .. } = entry.file_type else { continue };
            // These go on changing in a server that runs, or at the backup's end.
            if ["pg_control", "pg_xact", "pg_stat", "pg_logical"].iter().any(|part| path.contains(part)) {
                continue;
            }
            let on_disk = server.data_dir().join(path.strip_prefix("data/").expect("all is inside"));
            assert_eq!(content(&cluster, &manifest, &entry).await?, std::fs::read(&on_disk)?, "{path}");
            compared += 1;
        }
    }
    assert!(compared > 900, "{compared} files compared");
    for present in ["data/PG_VERSION", "data/global/pg_control", "data/pg_wal/archive_status", "data/pg_replslot"] {
        assert!(manifest.find(present.as_bytes()).await?.is_some(), "{present}");
    }
    for absent in ["data/postmaster.pid", "data/postmaster.opts"] {
        assert!(manifest.find(absent.as_bytes()).await?.is_none(), "{absent}");
    }
    let init = format!("data/{unlogged}_init");
    assert!(manifest.find(init.as_bytes()).await?.is_some(), "the init fork is there");
    let mut names = manifest.names();
    let mut found = Vec::new();
    while let Some(entries) = names.next().await? {
        found.extend(entries.into_iter().map(|entry| entry.name));
    }
    for name in ["big", "there", "fast", "postgres", "pg_class"] {
        assert!(found.iter().any(|known| known == name), "{name}");
    }
    let left = archived.backup_objects().await?;
    assert!(left.iter().all(|name| !name.contains("intent") && !name.contains("leases")), "{left:?}");
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn damaged_pages_are_named_and_the_backup_is_kept() -> Result {
    let mut archived = Archived::start().await?;
    archived.server.sql("CREATE TABLE hurt AS SELECT g, md5(g::text) FROM generate_series(1, 20000) g")?;
    let path = archived.server.sql("SELECT pg_relation_filepath('hurt')")?;
    archived.server.stop(StopMode::Fast)?;
    let on_disk = archived.server.data_dir().join(&path);
    let mut bytes = std::fs::read(&on_disk)?;
    bytes[3 * 8192 + 5000] ^= 1;
    std::fs::write(&on_disk, bytes)?;
    archived.server.start_again()?;
    let report = archived.backup().await?;
    let damaged: Vec<_> = report.damaged.iter().map(|page| (page.relation.as_deref(), page.block)).collect();
    assert_eq!(damaged, [(Some("public.hurt"), 3)]);
    assert_eq!(archived.cluster().await?.manifest_facts(report.backup).await?.damaged, report.damaged);
    Ok(())
}

const PHASES: [&str; 5] = [
    "listing files",
    "reading files",
    "ending the backup on the server",
    "waiting for WAL in the repository",
    "writing the manifest",
];

#[tokio::test(flavor = "multi_thread")]
async fn stopped_at_any_phase_the_next_backup_goes_on() -> Result {
    let archived = Archived::start().await?;
    let cluster = archived.cluster().await?;
    for phase in PHASES {
        let token = CancellationToken::new();
        let cancel = token.clone();
        let ctx = engine::Context { cancel: token, ..at_phase(phase, move || cancel.cancel()) };
        let result = backup::run(&ctx, &cluster, &conninfo(&archived.server)?, &options()).await;
        assert!(matches!(result, Err(EngineError::Cancelled)), "{phase}: {result:?}");
        assert_eq!(cluster.backups().await?, [], "{phase}");
        let left = archived.backup_objects().await?;
        let intents = left.iter().filter(|name| name.ends_with("intent"));
        let packs: Vec<&String> = left.iter().filter(|name| name.contains("/packs/")).collect();
        assert_eq!(left.len(), intents.count() + packs.len(), "the lease was given back: {left:?}");
        for pack in packs {
            let id = pack.split('/').nth(3).expect("clusters/NAME/packs/ID/N");
            assert!(left.iter().any(|name| name.ends_with(&format!("{id}/intent"))), "{pack} without an intent");
        }
    }
    let report = archived.backup().await?;
    assert!(report.numbers.pages_stored < report.numbers.pages_read / 10, "{:?}", report.numbers);
    assert!(!report.resumed.is_empty());
    archived.only_finished_backups().await
}

/// Incremental backups upon each other, with changes of all kinds between them.
#[tokio::test(flavor = "multi_thread")]
async fn an_incremental_backup_stores_what_changed_and_holds_everything() -> Result {
    for used in ["wal-index", "page-lsn"] {
        incremental_backups(used).await?;
    }
    Ok(())
}

async fn incremental_backups(used: &str) -> Result {
    let archived = Archived::start().await?;
    let server = &archived.server;
    server.sql("CREATE TABLE big AS SELECT n, repeat(md5(n::text), 10) AS t FROM generate_series(1, 60000) n")?;
    server.sql("CREATE TABLE cut AS SELECT n, repeat(md5(n::text), 10) AS t FROM generate_series(1, 20000) n")?;
    server.sql("CREATE INDEX ON big (n)")?;
    let first = archived.backup().await?;
    assert_eq!((first.prior, first.change_detection.used.as_str()), (None, "all"));
    let mut prior = first.backup;
    for (step, sql) in [
        "SELECT 1",
        "UPDATE big SET n = n + 1 WHERE n % 5000 = 77",
        "DELETE FROM cut WHERE n > 10000; VACUUM cut",
        "INSERT INTO cut SELECT n, repeat(md5(n::text), 9) AS t FROM generate_series(1, 15000) n",
        "DROP TABLE IF EXISTS other; CREATE TABLE other AS SELECT * FROM big WHERE n < 9000",
        "VACUUM FULL cut; DROP TABLE other",
    ]
    .into_iter()
    .enumerate()
    {
        for sql in sql.split("; ") {
            server.sql(sql)?;
        }
        server.sql("CHECKPOINT")?;
        if used == "page-lsn" {
            archived.remove_wal_indexes().await?;
        }
        let report = archived.backup().await?;
        assert_eq!(report.prior, Some(prior), "{step}");
        assert_eq!(report.change_detection.used, used, "{step}: {:?}", report.change_detection);
        let numbers = report.numbers;
        assert!(numbers.bytes_shared > 0, "{step}: {numbers:?}");
        if step < 2 {
            assert!(numbers.pages_stored < 300, "{step}: {numbers:?}");
        }
        assert!(archived.holds_what_the_server_has(report.backup).await? > 1000);
        archived.only_finished_backups().await?;
        prior = report.backup;
    }
    let full = BackupOptions { sharing: Sharing::Full, ..options() };
    let report = backup::run(&context(), &archived.cluster().await?, &conninfo(server)?, &full).await?;
    assert_eq!((report.prior, report.numbers.bytes_shared), (None, 0));
    Ok(())
}

/// Everything was stored but the manifest when a backup was broken off; then some pages changed.
#[tokio::test(flavor = "multi_thread")]
async fn what_is_stored_and_current_is_not_stored_again() -> Result {
    let archived = Archived::start().await?;
    let server = &archived.server;
    server.sql("CREATE TABLE big AS SELECT n, repeat(md5(n::text), 10) AS t FROM generate_series(1, 40000) n")?;
    // With checksums the first look at a row writes its page to WAL.
    server.sql("VACUUM (FREEZE)")?;
    let cluster = archived.cluster().await?;
    for sharing in [Sharing::Full, Sharing::Incremental, Sharing::Incremental] {
        let token = CancellationToken::new();
        let cancel = token.clone();
        let ctx =
            engine::Context { cancel: token, ..at_phase("ending the backup on the server", move || cancel.cancel()) };
        let options = BackupOptions { sharing, ..options() };
        let finished = cluster.backups().await?;
        let broken_off = backup::run(&ctx, &cluster, &conninfo(server)?, &options).await;
        assert!(matches!(broken_off, Err(EngineError::Cancelled)), "{broken_off:?}");
        // A page here and there, one row in the middle, and a table more.
        server.sql("UPDATE big SET n = n + 1 WHERE n % 10000 = 77")?;
        server.sql(&format!("CREATE TABLE small{} AS SELECT 1 AS n", finished.len()))?;
        server.sql("CHECKPOINT")?;
        let report = backup::run(&context(), &cluster, &conninfo(server)?, &options).await?;
        assert_eq!(report.resumed.len(), 1, "{report:?}");
        assert!(report.numbers.pages_stored < 300, "{:?}", report.numbers);
        assert!(archived.holds_what_the_server_has(report.backup).await? > 1000);
        archived.only_finished_backups().await?;
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_server_that_dies_voids_the_backup() -> Result {
    for phase in ["reading files", "ending the backup on the server"] {
        let mut archived = Archived::start().await?;
        let pid = archived.server.postmaster_pid()?;
        let ctx = at_phase(phase, move || {
            // As the kernel's out-of-memory killer would.
            let _ = std::process::Command::new("kill").args(["-9", &pid.to_string()]).status();
            std::thread::sleep(Duration::from_millis(500));
        });
        let cluster = archived.cluster().await?;
        let error = backup::run(&ctx, &cluster, &conninfo(&archived.server)?, &options()).await.unwrap_err();
        assert!(matches!(error, EngineError::Failed { .. } | EngineError::Wire(_)), "{phase}: {error}");
        assert_eq!(cluster.backups().await?, [], "{phase}");
        archived.server.kill9().ok();
        archived.server.start_again()?;
        archived.backup().await?;
        archived.only_finished_backups().await?;
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_standby_that_is_promoted_voids_the_backup() -> Result {
    let archived = Archived::start().await?;
    let standby = Arc::new(archived.server.standby()?);
    let promoted = standby.clone();
    let ctx = at_phase("ending the backup on the server", move || {
        tokio::task::block_in_place(|| promoted.promote().expect("a standby can be promoted"));
    });
    let cluster = archived.cluster().await?;
    let error = backup::run(&ctx, &cluster, &conninfo(&standby)?, &options()).await.unwrap_err();
    assert!(error.to_string().contains("promoted"), "{error}");
    assert_eq!(cluster.backups().await?, []);
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn two_backups_at_once_are_refused_and_leftovers_are_removed() -> Result {
    let archived = Archived::start().await?;
    let arrived = Arc::new(tokio::sync::Notify::new());
    let gate = Arc::new((Mutex::new(false), Condvar::new()));
    let (signal, held) = (arrived.clone(), gate.clone());
    let ctx = at_phase("writing the manifest", move || {
        signal.notify_one();
        tokio::task::block_in_place(|| {
            let open = held.0.lock().expect("not poisoned");
            drop(held.1.wait_while(open, |open| !*open).expect("not poisoned"));
        });
    });
    let (cluster, info) = (archived.cluster().await?, conninfo(&archived.server)?);
    let first = tokio::spawn(async move { backup::run(&ctx, &cluster, &info, &options()).await });
    arrived.notified().await;
    let second = backup::run(&context(), &archived.cluster().await?, &conninfo(&archived.server)?, &options()).await;
    *gate.0.lock().expect("not poisoned") = true;
    gate.1.notify_all();
    let error = second.unwrap_err().to_string();
    assert!(error.contains("already running"), "{error}");
    let first = first.await??;

    // What a backup left that was killed: an intent and packs without a manifest.
    let cluster = archived.cluster().await?;
    let dead_since = jiff::Timestamp::now() + jiff::SignedDuration::from_secs(10);
    let (dead, started) = (BackupId::at(dead_since), dead_since);
    assert!(dead > first.backup);
    cluster
        .put_intent(&Intent { backup: dead, priors: vec![], host: "h".into(), pid: 1, started, start: None })
        .await?;
    cluster.create_pack(PackId { backup: dead, number: 1 }).await?.finish().await?;
    // Even within the same second its name is not used again.
    let clock = Arc::new(move || dead_since);
    let next = backup::run(&Context { clock, ..context() }, &cluster, &conninfo(&archived.server)?, &options()).await?;
    assert!(next.backup > dead, "{} after {dead}", next.backup);
    assert!(archived.backup_objects().await?.iter().all(|name| !name.contains(&dead.to_string())));
    Ok(())
}

/// A host that was suspended at the end of its backup: another one took the lease over, removed what it took for left
/// over, and gave the lease back.
#[tokio::test(flavor = "multi_thread")]
async fn a_backup_that_lost_its_lease_does_not_count() -> Result {
    let archived = Archived::start().await?;
    let cluster = archived.cluster().await?;
    let other = archived.cluster().await?;
    let ctx = at_phase("writing the manifest", move || {
        let take_over = async move {
            let holder = repo::LeaseHolder { host: "b".into(), boot: "b".into(), pid: 1, process_start: 1 };
            let lease = other.take_lease("backup", holder, jiff::Timestamp::now(), |_| true).await.unwrap();
            let store = other.repository().store();
            for object in store.list_page(Some(&other.name().packs_prefix()), None, 1000).await.unwrap() {
                store.delete(&object.path).await.unwrap();
            }
            lease.release().await.unwrap();
        };
        tokio::task::block_in_place(|| tokio::runtime::Handle::current().block_on(take_over));
    });
    let result = backup::run(&ctx, &cluster, &conninfo(&archived.server)?, &options()).await;
    assert_eq!(cluster.backups().await?, [], "nothing may count whose packs are gone");
    let error = result.unwrap_err().to_string();
    assert!(error.contains("took it over"), "{error}");
    archived.backup().await?;
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn wal_that_never_arrives_means_no_backup() -> Result {
    let archived = Archived::start().await?;
    archived.server.append_conf("archive_command", "false")?;
    archived.server.reload()?;
    let short = BackupOptions { wal_timeout: Duration::from_secs(3), ..options() };
    let cluster = archived.cluster().await?;
    let error = backup::run(&context(), &cluster, &conninfo(&archived.server)?, &short).await.unwrap_err();
    assert!(error.to_string().contains("did not reach the repository"), "{error}");
    assert_eq!(cluster.backups().await?, []);
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn what_cannot_be_backed_up_is_refused() -> Result {
    let archived = Archived::start().await?;
    let other =
        Cluster::builder(15).without_fsync().conf("wal_level", "minimal").conf("max_wal_senders", "0").start()?;
    let cluster = archived.cluster().await?;
    let refused = async |server: &Cluster, says: &str| -> Result {
        let error = backup::run(&context(), &cluster, &conninfo(server)?, &options()).await.unwrap_err();
        assert!(matches!(error, EngineError::Refused { .. }), "{error}");
        assert!(error.to_string().contains(says), "{error}");
        Ok(())
    };
    refused(&other, "another cluster").await?;
    register(&cluster, &facts_of(&other).await?).await?;
    refused(&other, "wal_level is minimal").await?;
    let unknown = cluster.repository().cluster(&"unknown".parse()?);
    let error = backup::run(&context(), &unknown, &conninfo(&archived.server)?, &options()).await.unwrap_err();
    assert!(matches!(error, EngineError::NotFound { .. }), "{error}");
    Ok(())
}

/// Every call that a backup makes fails once, in two ways; afterwards no half backup is there, and the next one works.
#[tokio::test(flavor = "multi_thread")]
async fn a_store_that_fails_at_any_call_leaves_no_half_backup() -> Result {
    let archived = Archived::start().await?;
    let info = conninfo(&archived.server)?;
    type Attempt = (std::result::Result<BackupReport, EngineError>, FaultStore<MemoryStore>, usize);
    let attempt = async |fault: Option<(usize, What)>| -> Result<Attempt> {
        let store = FaultStore::new(archived.memory.clone(), Vec::new());
        let cluster = main_of(&Repository::open(Arc::new(store.clone()), None).await?);
        let opening = store.call_count();
        if let Some((call, what)) = fault {
            store.add_fault(Fault { when: When::call(call), what });
        }
        let result = backup::run(&context(), &cluster, &info, &options()).await;
        let calls = store.call_count() - opening;
        Ok((result, store, calls))
    };
    let (result, _, calls) = attempt(None).await?;
    result?;
    assert!(calls > 10, "{calls} calls");
    for call in 0..calls {
        for what in [What::FailBefore, What::FailAfter] {
            let (result, store, _) = attempt(Some((call, what))).await?;
            let cluster = archived.cluster().await?;
            match result {
                Ok(report) => assert!(cluster.backups().await?.contains(&report.backup)),
                Err(_) => assert!(store.any_fault_happened(), "call {call} {what:?}"),
            }
            // The manifest may be there although its writer was told that it failed; then it is whole.
            for backup in cluster.backups().await? {
                for pack in cluster.open_manifest(backup).await?.packs() {
                    cluster.open_pack(pack.id, pack.size).await?;
                }
            }
        }
    }
    archived.backup().await?;
    archived.only_finished_backups().await
}

#[tokio::test(flavor = "multi_thread")]
async fn configuration_outside_the_data_directory_is_backed_up() -> Result {
    let mut archived = Archived::start().await?;
    let etc = archived.server.make_dir("etc")?;
    archived.server.stop(StopMode::Fast)?;
    let data = archived.server.data_dir().to_owned();
    for name in ["pg_hba.conf", "pg_ident.conf"] {
        std::fs::rename(data.join(name), etc.join(name))?;
    }
    std::fs::create_dir(etc.join("conf.d"))?;
    std::fs::write(etc.join("conf.d/extra.conf"), "work_mem = '5MB'\n")?;
    let conf = std::fs::read_to_string(data.join("postgresql.conf"))?;
    let more = format!(
        "{conf}\nhba_file = '{0}/pg_hba.conf'\nident_file = '{0}/pg_ident.conf'\ninclude_dir '{0}/conf.d'\n",
        etc.display()
    );
    std::fs::write(data.join("postgresql.conf"), more)?;
    testkit::pg::server_user()?.own(&etc)?;
    archived.server.start_again()?;
    let report = archived.backup().await?;
    let cluster = archived.cluster().await?;
    let manifest = cluster.open_manifest(report.backup).await?;
    let found: Vec<&str> = manifest.facts().config_files.iter().map(|file| file.origin.as_str()).collect();
    for name in ["conf.d/extra.conf", "pg_hba.conf", "pg_ident.conf"] {
        let path = etc.join(name);
        assert!(found.contains(&path.to_str().expect("UTF-8")), "{name} in {found:?}");
        let entry = manifest.find(format!("config{}", path.display()).as_bytes()).await?.expect("in the backup");
        assert_eq!(content(&cluster, &manifest, &entry).await?, std::fs::read(&path)?);
    }
    Ok(())
}
