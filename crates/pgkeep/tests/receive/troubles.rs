//! Receivers that are killed, networks that break, stores that fail, WAL that the server has no more.

use crate::receiver::{Receiver, lose_spool, site, state, wait_durable};
use crate::support::Site;
use crate::world::{files, load, open, restore};
use std::time::Duration;
use testkit::load::Random;
use testkit::pg::{Cluster, Proxy};

/// Sends the receiver, and nothing else, through a proxy.
fn through(site: &Site, proxy: &Proxy) {
    let config = std::fs::read_to_string(site.config()).unwrap();
    std::fs::write(site.config(), config.replace(&site.cluster.conninfo(), &proxy.conninfo())).unwrap();
}

/// No pieces are left of segments that are whole.
fn assert_tidy(site: &Site) {
    let tails = site.repository().join("tails");
    let pieces = if tails.exists() { files(&tails) } else { Vec::new() };
    for (piece, _) in pieces {
        let segment = piece.parent().unwrap().file_name().unwrap().to_owned();
        let whole = files(&site.repository().join("clusters/main/wal"));
        assert!(!whole.iter().any(|(path, _)| path.file_name() == Some(&segment)), "{}", piece.display());
    }
}

#[test]
fn nothing_is_lost_whatever_is_killed_cut_or_out_of_reach() {
    let seed = 20_261_121;
    println!("seed {seed}");
    let mut random = Random::new(seed);
    let mut site = site(Cluster::builder(15).conf("archive_timeout", "0"));
    site.run(&["backup"]).expect(0);
    // Archiving by segments is out of order all the while; the stream covers for it.
    site.cluster.sql("ALTER SYSTEM SET archive_command = 'false'").unwrap();
    site.cluster.reload().unwrap();
    let proxy = Proxy::start(&site.cluster, "proxy").unwrap();
    through(&site, &proxy);
    let load = load(&site.cluster);
    let fast = testkit::pg::StopMode::Fast;
    for _ in 0..4 {
        let receiver = Receiver::streaming(&site, &["--tail-size", "64kB"]);
        std::thread::sleep(Duration::from_millis(random.below(400)));
        receiver.kill();
    }
    let mut receiver = Receiver::streaming(&site, &["--tail-size", "64kB"]);
    for _ in 0..3 {
        let before = proxy.accepted();
        load.wait_for_more(20).unwrap();
        proxy.cut();
        receiver.wait("it comes back", || proxy.accepted() > before);
        receiver.wait_streaming(&site.cluster);
    }
    // A server that shuts down waits until the receiver has everything, and no longer.
    site.cluster.stop(fast).unwrap();
    site.cluster.start_again().unwrap();
    receiver.wait_streaming(&site.cluster);
    proxy.stall(true);
    load.wait_for_more(30).unwrap();
    proxy.stall(false);
    // The repository's disk is away for a while.
    let away = site.dir.join("away");
    std::fs::rename(site.repository(), &away).unwrap();
    receiver.wait_said("cannot be written to");
    load.wait_for_more(60).unwrap();
    std::fs::rename(&away, site.repository()).unwrap();
    receiver.wait_said("can be written to\n");
    load.wait_for_more(60).unwrap();
    let ledger = load.stop();
    wait_durable(&site, &site.cluster, &mut receiver);
    let state = state(&site);
    assert!(state["running"] == true && state["rpo_seconds"].as_f64().unwrap() < 5.0, "{state}");
    assert!(state["rpo_worst_day_seconds"].as_f64().unwrap() > 0.0, "{state}");
    receiver.stop();
    assert_tidy(&site);
    lose_spool(&site);
    let restored = open(&site, &restore(&site, "restored", &["--latest"]));
    let verdict = ledger.verify_all(&restored).unwrap();
    assert!(verdict.required >= 200, "{verdict:?}");
    drop(restored);
    site.run(&["verify", "--all"]).expect(0);
}

#[test]
fn wal_that_the_server_gave_up_is_named_and_found_in_the_archive() {
    let site = site(
        Cluster::builder(15)
            .conf("max_slot_wal_keep_size", "1MB")
            .conf("wal_keep_size", "0")
            .conf("max_wal_size", "2MB"),
    );
    site.run(&["backup"]).expect(0);
    let mut receiver = Receiver::streaming(&site, &[]);
    site.cluster.sql("CREATE TABLE t AS SELECT 1 AS a").unwrap();
    wait_durable(&site, &site.cluster, &mut receiver);
    receiver.stop();
    // The tail's segment and some more are archived by segments, and removed from the server.
    for _ in 0..6 {
        site.cluster.sql("INSERT INTO t SELECT g FROM generate_series(1, 5000) g").unwrap();
        site.archive();
        site.cluster.sql("CHECKPOINT").unwrap();
    }
    assert_eq!(site.cluster.sql("SELECT wal_status FROM pg_replication_slots").unwrap(), "lost");
    lose_spool(&site);
    let mut receiver = Receiver::streaming(&site, &[]);
    site.cluster.sql("INSERT INTO t VALUES (0)").unwrap();
    site.cluster.sql("SELECT pg_create_restore_point('in the tail')").unwrap();
    site.cluster.sql("INSERT INTO t VALUES (-1)").unwrap();
    wait_durable(&site, &site.cluster, &mut receiver);
    assert!(receiver.said().contains("made anew"), "{}", receiver.said());
    receiver.stop();
    assert_tidy(&site);
    // Planned and found like any other target.
    let restored = open(&site, &restore(&site, "restored", &["--restore-point", "in the tail"]));
    assert_eq!(restored.sql("SELECT count(*), min(a) FROM t").unwrap(), "30002|0");

    // An archive command that takes without keeping: now WAL is really lost, and that is said.
    site.cluster.sql("ALTER SYSTEM SET archive_command = 'true'").unwrap();
    site.cluster.reload().unwrap();
    for _ in 0..6 {
        site.cluster.sql("INSERT INTO t SELECT g FROM generate_series(1, 5000) g").unwrap();
        site.archive();
        site.cluster.sql("CHECKPOINT").unwrap();
    }
    let mut receiver = Receiver::start(&site, &[]);
    receiver.wait_said("the repository lacks");
    receiver.wait_streaming(&site.cluster);
    receiver.stop();
    site.run(&["wal", "receive", "--drop-slot"]).expect(0);
    assert_eq!(site.cluster.sql("SELECT count(*) FROM pg_replication_slots").unwrap(), "0");
    site.run(&["wal", "receive", "--drop-slot"]).expect(3).says(&["there is no replication slot pgkeep"]);
}

/// Slot and receiver are gone for a while, and archiving takes without keeping: what `pg_wal` still has is no loss.
#[test]
fn what_neither_slot_nor_archive_kept_comes_from_pg_wal() {
    let site = site(Cluster::builder(15).conf("wal_keep_size", "64MB"));
    site.run(&["backup"]).expect(0);
    let mut receiver = Receiver::streaming(&site, &[]);
    site.cluster.sql("CREATE TABLE t AS SELECT 0 AS a").unwrap();
    wait_durable(&site, &site.cluster, &mut receiver);
    let archive = site.cluster.sql("SHOW archive_command").unwrap();
    let segment = || {
        site.cluster.sql("INSERT INTO t SELECT g FROM generate_series(1, 5000) g").unwrap();
        site.archive();
    };
    let set_archive = |command: &str| {
        let command = command.replace('\'', "''");
        site.cluster.sql(&format!("ALTER SYSTEM SET archive_command = '{command}'")).unwrap();
        site.cluster.reload().unwrap();
        site.cluster.wait_for("SHOW archive_command", &command.replace("''", "'"), Duration::from_secs(20)).unwrap();
    };
    // With the login of a superuser, who may look into pg_wal, and with one who may only stream.
    site.cluster.sql("CREATE ROLE streamer LOGIN REPLICATION").unwrap();
    for login in ["postgres", "streamer"] {
        let config = std::fs::read_to_string(site.config()).unwrap();
        std::fs::write(site.config(), config.replace("user=postgres", &format!("user={login}"))).unwrap();
        receiver.stop();
        site.run(&["wal", "receive", "--drop-slot"]).expect(0);
        lose_spool(&site);
        set_archive("true");
        segment();
        segment();
        // Archiving goes on behind the gap.
        set_archive(&archive);
        segment();
        site.cluster.sql("CHECKPOINT").unwrap();
        receiver = Receiver::streaming(&site, &[]);
        assert!(receiver.said().contains("with a slot made now"), "{}", receiver.said());
        wait_durable(&site, &site.cluster, &mut receiver);
        assert!(!receiver.said().contains("does not have the WAL"), "{}", receiver.said());
        receiver.wait("the gap is filled", || {
            site.run(&["wal", "status", "--json"]).json()["gaps"].as_array().is_some_and(Vec::is_empty)
        });
    }
    receiver.stop();
    assert_tidy(&site);
    let restored = open(&site, &restore(&site, "restored", &["--latest"]));
    assert_eq!(restored.sql("SELECT count(*) FROM t").unwrap(), "30001");
}

/// Commits wait for a repository on this disk, which is killed, slow, full of holes and away: none is lost, and asynchronous
/// ones never wait.
#[test]
fn commits_that_waited_for_the_repository_are_there_whatever_happened() {
    let mut site = site(Cluster::builder(15).conf("archive_timeout", "0"));
    site.run(&["backup"]).expect(0);
    site.cluster.sql("ALTER SYSTEM SET archive_command = 'false'").unwrap();
    site.cluster.sql("ALTER SYSTEM SET synchronous_standby_names = 'pgkeep'").unwrap();
    site.cluster.reload().unwrap();
    let proxy = Proxy::start(&site.cluster, "proxy").unwrap();
    through(&site, &proxy);
    let options = ["--flush", "repository"];
    let mut receiver = Receiver::streaming(&site, &options);
    let load = load(&site.cluster);
    load.wait_for_more(100).unwrap();
    let logs = || files(&site.repository().join("tails")).iter().filter(|(path, _)| path.extension().is_some()).count();
    assert!(logs() > 0, "commits are written to a log");
    // A network that takes its time, then one that breaks.
    proxy.delay(Duration::from_millis(5));
    load.wait_for_more(30).unwrap();
    proxy.delay(Duration::ZERO);
    proxy.cut();
    load.wait_for_more(30).unwrap();
    for _ in 0..3 {
        receiver.kill();
        receiver = Receiver::streaming(&site, &options);
        load.wait_for_more(30).unwrap();
    }
    // While the repository is away, those who do not want to wait need not, and the others do.
    let away = site.dir.join("away");
    std::fs::rename(site.repository(), &away).unwrap();
    receiver.wait_said("cannot be written to");
    site.cluster.sql("SET synchronous_commit = local; CREATE TABLE meanwhile AS SELECT 1 AS a").unwrap();
    site.cluster.sql("SET synchronous_commit = remote_write; INSERT INTO meanwhile VALUES (2)").unwrap();
    std::fs::rename(&away, site.repository()).unwrap();
    receiver.wait_said("can be written to\n");
    load.wait_for_more(100).unwrap();
    // Another program's hands: the log that is written to is gone.
    for (path, _) in files(&site.repository().join("tails")) {
        if path.extension().is_some() {
            std::fs::remove_file(path).unwrap();
        }
    }
    load.wait_for_more(60).unwrap();
    receiver.kill();
    site.cluster.kill9().unwrap();
    let ledger = load.stop();
    lose_spool(&site);
    let restored = open(&site, &restore(&site, "restored", &["--latest"]));
    let verdict = ledger.verify_all(&restored).unwrap();
    assert!(verdict.required >= 300, "{verdict:?}");
    assert_eq!(restored.sql("SELECT count(*) FROM meanwhile").unwrap(), "2");
}
