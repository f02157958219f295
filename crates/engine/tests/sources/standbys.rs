//! Which server is backed up, and what is asked of the primary.

use super::archived::{Archived, Result, conninfo, context, options};
use super::site::hint_of;
use engine::EngineError;
use engine::backup::{self, BackupOptions};
use engine::hosts::{Chosen, LagMax, prefer_standby};
use pg_wire::{Client, Conninfo};
use std::time::Duration;
use testkit::pg::{Cluster, StopMode};

/// A connection string with several servers.
fn all(servers: &[&Cluster]) -> Result<Conninfo> {
    let mut first = conninfo(servers[0])?;
    for server in &servers[1..] {
        first.hosts.extend(conninfo(server)?.hosts);
    }
    Ok(first)
}

async fn choose(servers: &[&Cluster], lag_max: LagMax) -> std::result::Result<Chosen, EngineError> {
    let any = async |client: &mut Client| backup::is_here(client).await;
    prefer_standby(&context(), &all(servers).expect("parsed"), lag_max, any).await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_standby_that_is_not_behind_is_preferred() -> Result {
    let mut archived = Archived::start().await?;
    let mut standby = archived.server.standby()?;
    let bytes = LagMax { bytes: Some(1 << 20), time: None };
    let chosen = choose(&[&archived.server, &standby], bytes).await?;
    assert!(chosen.is_standby && chosen.server.contains(&standby.port().to_string()), "{chosen:?}");
    assert!(chosen.why.iter().any(|why| why.contains("bytes of WAL behind")), "{chosen:?}");

    // It falls behind.
    standby.sql("SELECT pg_wal_replay_pause()")?;
    standby.wait_for("SELECT pg_get_wal_replay_pause_state()", "paused", Duration::from_secs(60))?;
    archived.server.sql("CREATE TABLE t AS SELECT n, repeat('x', 500) FROM generate_series(1, 5000) n")?;
    let chosen = choose(&[&standby, &archived.server], bytes).await?;
    assert!(!chosen.is_standby && chosen.why.join(" ").contains("1048576 are allowed"), "{chosen:?}");
    let chosen = choose(&[&standby, &archived.server], LagMax { bytes: Some(1 << 40), time: None }).await?;
    assert!(chosen.is_standby, "{chosen:?}");
    let late = LagMax { bytes: None, time: Some(Duration::ZERO) };
    assert!(!choose(&[&standby, &archived.server], late).await?.is_standby);

    // It does not run, or the primary does not.
    standby.stop(StopMode::Fast)?;
    let chosen = choose(&[&standby, &archived.server], bytes).await?;
    assert!(!chosen.is_standby && chosen.why.join(" ").contains("cannot be asked"), "{chosen:?}");
    standby.start_again()?;
    archived.server.stop(StopMode::Fast)?;
    let text = hint_of(&choose(&[&standby, &archived.server], bytes).await.unwrap_err());
    assert!(text.contains("not known") && text.contains("none of the servers"), "{text}");
    assert!(choose(&[&standby, &archived.server], LagMax { bytes: None, time: None }).await?.is_standby);

    // A failover that left the old primary running; another cluster's server.
    standby.promote()?;
    archived.server.start_again()?;
    let text = hint_of(&choose(&[&standby, &archived.server], bytes).await.unwrap_err());
    assert!(text.contains("both say that they are the primary"), "{text}");
    let other = Cluster::builder(15).without_fsync().start()?;
    let text = hint_of(&choose(&[&other, &archived.server], bytes).await.unwrap_err());
    assert!(text.contains("not servers of one cluster"), "{text}");
    Ok(())
}

/// Nothing happens on the primary: without a switch, the segment that the backup ends in would never be archived.
#[tokio::test(flavor = "multi_thread")]
async fn a_backup_of_an_idle_standby_ends_at_once() -> Result {
    let archived = Archived::start().await?;
    archived.server.sql("CREATE TABLE t AS SELECT generate_series(1, 1000) x")?;
    let standby = archived.server.standby()?;
    let back_up = async |servers: Option<Conninfo>| -> Result<backup::BackupReport> {
        // A restart point for the standby to begin at, and then silence.
        archived.server.sql("CHECKPOINT")?;
        let lsn = archived.server.sql("SELECT pg_current_wal_lsn()")?;
        standby.wait_replayed(&lsn, Duration::from_secs(60))?;
        standby.sql("CHECKPOINT")?;
        let options = BackupOptions { servers, ..options() };
        let cluster = archived.cluster().await?;
        Ok(backup::run(&context(), &cluster, &conninfo(&standby)?, &options).await?)
    };
    // By the connection string, and by the standby's own way to its primary.
    let first = back_up(Some(all(&[&standby, &archived.server])?)).await?;
    assert!(first.warnings.is_empty(), "{first:?}");
    let second = back_up(None).await?;
    assert_eq!(second.prior, Some(first.backup));
    let cluster = archived.cluster().await?;
    let manifest = cluster.open_manifest(second.backup).await?;
    assert!(manifest.facts().from_standby);

    // Nobody to be asked: it is said what to do.
    archived.server.sql("INSERT INTO t VALUES (1); CHECKPOINT")?;
    standby.wait_replayed(&archived.server.sql("SELECT pg_current_wal_lsn()")?, Duration::from_secs(60))?;
    standby.sql("CHECKPOINT")?;
    standby.sql("ALTER SYSTEM SET primary_conninfo = 'host=/nonexistent port=1'")?;
    let impatient = BackupOptions { wal_timeout: Duration::from_secs(1), ..options() };
    standby.reload()?;
    standby.wait_for("SHOW primary_conninfo", "host=/nonexistent port=1", Duration::from_secs(60))?;
    let error = backup::run(&context(), &cluster, &conninfo(&standby)?, &impatient).await.unwrap_err();
    assert!(hint_of(&error).contains("did not reach the repository"), "{}", hint_of(&error));
    Ok(())
}

/// The path of the data directory is that of a server here, but another one was asked.
#[tokio::test(flavor = "multi_thread")]
async fn a_server_elsewhere_with_the_same_path_is_refused() -> Result {
    let archived = Archived::start().await?;
    let pid_file = archived.server.data_dir().join("postmaster.pid");
    let text = std::fs::read_to_string(&pid_file)?;
    let mut lines: Vec<&str> = text.lines().collect();
    lines[3] = "1";
    std::fs::write(&pid_file, lines.join("\n"))?;
    let error = archived_backup(&archived).await.unwrap_err();
    std::fs::write(&pid_file, &text)?;
    assert!(hint_of(&error).contains("is not the one whose files are here"), "{}", hint_of(&error));
    archived_backup(&archived).await?;
    Ok(())
}

async fn archived_backup(archived: &Archived) -> std::result::Result<backup::BackupReport, EngineError> {
    let (cluster, conninfo) = (archived.cluster().await.expect("opened"), conninfo(&archived.server).expect("parsed"));
    backup::run(&context(), &cluster, &conninfo, &options()).await
}
