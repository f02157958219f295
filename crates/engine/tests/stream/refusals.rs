//! What a stream is refused for, and what is left when it breaks off.

use super::archived::{Archived, Result, at_phase};
use super::place::{Place, stream, stream_with};
use engine::EngineError;
use engine::backup::{BackupOptions, StreamCompression};
use std::sync::Arc;
use store::{Fault, FaultStore, Store, What, When};
use testkit::pg::{Cluster, StopMode};
use tokio_util::sync::CancellationToken;

/// An error with what to do about it.
fn hint_of(error: &EngineError) -> String {
    match error {
        EngineError::Refused { hint, .. } | EngineError::Failed { hint, .. } | EngineError::NotFound { hint, .. } => {
            format!("{error} | {}", hint.as_deref().unwrap_or("no hint"))
        }
        other => other.to_string(),
    }
}

async fn nothing_is_left(place: &Place) -> Result {
    let objects = place.memory.list_page(None, None, 100_000).await?;
    let names: Vec<String> = objects.iter().map(|object| object.path.to_string()).collect();
    let left = |name: &&String| ["/backups/", "/packs/", "leases/"].iter().any(|part| name.contains(part));
    assert_eq!(names.iter().filter(left).collect::<Vec<_>>(), Vec::<&String>::new());
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_missing_is_said() -> Result {
    let mut place = Place::of(Archived::start_as(Cluster::builder(15).conf("max_wal_senders", "1")).await?);
    let server = place.server();
    server.sql("CREATE ROLE plain LOGIN; CREATE ROLE mover LOGIN REPLICATION")?;
    let error = place.backup_as("plain", &stream()).await.unwrap_err();
    let text = hint_of(&error);
    assert!(
        text.contains("may not use the replication protocol") && text.contains("ALTER ROLE plain REPLICATION"),
        "{text}"
    );

    // All sessions for replication are taken.
    let taken = super::archived::conninfo(server)?;
    let taken = pg_wire::Conninfo { replication: pg_wire::conninfo::ReplicationMode::Physical, ..taken };
    // The server takes a moment to be done with the one that it refused.
    let taken = loop {
        match pg_wire::Client::connect(&taken).await {
            Ok(client) => break client,
            Err(error) if error.sqlstate() == Some("53300") => {
                tokio::time::sleep(std::time::Duration::from_millis(50)).await;
            }
            Err(error) => return Err(error.into()),
        }
    };
    let error = place.backup_as("mover", &stream()).await.unwrap_err();
    assert!(hint_of(&error).contains("raise max_wal_senders"), "{}", hint_of(&error));
    taken.close().await;

    // pg_hba.conf has no line for replication.
    let hba = place.server().data_dir().join("pg_hba.conf");
    let before = std::fs::read_to_string(&hba)?;
    let kept: Vec<&str> = before.lines().filter(|line| !line.contains("replication")).collect();
    std::fs::write(&hba, kept.join("\n") + "\n")?;
    place.server().reload()?;
    let error = loop {
        match place.backup_as("mover", &stream()).await {
            Err(error) if !hint_of(&error).contains("max_wal_senders") => break error,
            // The server takes a moment to see it, and the standby to go.
            _ => tokio::time::sleep(std::time::Duration::from_millis(50)).await,
        }
    };
    let text = hint_of(&error);
    assert!(text.contains("word replication as its database") && text.contains("local replication mover"), "{text}");
    nothing_is_left_of_unfinished(&place).await?;

    // Nothing archives, and the backup is not to carry its WAL.
    let mut alone = Place::without_archive(Cluster::builder(15)).await?;
    let error = alone.backup(&stream()).await.unwrap_err();
    assert!(hint_of(&error).contains("--standalone"), "{}", hint_of(&error));
    nothing_is_left(&alone).await?;
    place.server_mut().stop(StopMode::Fast)?;
    Ok(())
}

async fn nothing_is_left_of_unfinished(place: &Place) -> Result {
    assert_eq!(place.cluster().await?.unfinished().await?, []);
    Ok(())
}

/// The server's process is killed, the operator stops it, the store fills up: nothing of it is left, and the next one
/// works.
#[tokio::test(flavor = "multi_thread")]
async fn a_stream_that_breaks_off_leaves_nothing() -> Result {
    let mut place = Place::of(Archived::start().await?);
    place
        .server()
        .sql("CREATE TABLE big AS SELECT n, repeat(md5(random()::text), 10) AS t FROM generate_series(1, 100000) n")?;
    let slow = stream_with(StreamCompression::None, Some(32 << 20));
    let (bin, psql) = (place.server().bin("psql")?, place.server().conninfo());
    let ctx = at_phase("receiving files", move || {
        std::thread::spawn(move || {
            std::thread::sleep(std::time::Duration::from_millis(300));
            let sql = "SELECT pg_terminate_backend(pid) FROM pg_stat_replication WHERE state = 'backup'";
            std::process::Command::new(&bin).args(["-X", "-d", &psql, "-c", sql]).output()
        });
    });
    let error = place.backup_with(&ctx, &slow).await.unwrap_err();
    let text = hint_of(&error);
    assert!(text.contains("the connection that the backup comes over was lost"), "{text}");
    assert!(text.contains("nothing can be gone on from"), "{text}");
    nothing_is_left(&place).await?;

    let token = CancellationToken::new();
    let cancel = token.clone();
    let ctx = engine::Context {
        cancel: token,
        ..at_phase("receiving files", move || {
            std::thread::spawn(move || {
                std::thread::sleep(std::time::Duration::from_millis(300));
                cancel.cancel();
            });
        })
    };
    let error = place.backup_with(&ctx, &slow).await.unwrap_err();
    assert!(matches!(error, EngineError::Cancelled), "{error:?}");
    nothing_is_left(&place).await?;
    place.server().wait_for(
        "SELECT count(*) FROM pg_stat_replication WHERE state = 'backup'",
        "0",
        std::time::Duration::from_secs(60),
    )?;

    let report = place.backup(&stream()).await?;
    assert!(report.resumed.is_empty(), "{report:?}");
    assert!(place.holds_what_the_server_has(report.backup).await? > 1000);
    Ok(())
}

/// Whichever call of the store fails, there is a backup that holds everything, or none and nothing of one.
#[tokio::test(flavor = "multi_thread")]
async fn a_store_that_fails_leaves_no_half_backup() -> Result {
    let place = Place::without_archive(Cluster::builder(15)).await?;
    place.server().sql("CREATE TABLE t AS SELECT n, md5(n::text) AS t FROM generate_series(1, 20000) n")?;
    let standalone = BackupOptions { standalone: true, ..stream() };
    let mut call = 0;
    let mut failed = 0;
    loop {
        let faulty = FaultStore::new(place.memory.clone(), Vec::new());
        let repository = repo::Repository::open(Arc::new(faulty.clone()), None).await?;
        let cluster = super::archived::main_of(&repository);
        faulty.add_fault(Fault { when: When::call(call), what: What::FailBefore });
        let conninfo = super::archived::conninfo(place.server())?;
        let before = place.cluster().await?.backups().await?.len();
        let result = engine::backup::run(&super::archived::context(), &cluster, &conninfo, &standalone).await;
        let after = place.cluster().await?.backups().await?;
        match result {
            Ok(report) => assert!(after.contains(&report.backup), "call {call}"),
            Err(_) => {
                failed += 1;
                assert!(after.len() <= before + 1, "call {call}");
            }
        }
        for id in after {
            let manifest = place.cluster().await?.open_manifest(id).await?;
            for pack in manifest.packs() {
                place.cluster().await?.open_pack(pack.id, pack.size).await?;
            }
        }
        if !faulty.any_fault_happened() || call > 60 {
            break;
        }
        call += 3;
    }
    assert!(failed > 3, "{failed}");
    Ok(())
}
