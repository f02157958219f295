//! The ledger against crashes and recovery, and the filled data.

use std::time::Duration;
use testkit::load::{FillOptions, Ledger, LoadOptions, Target, fill, fill_with};
use testkit::pg::Cluster;

const LOAD: LoadOptions = LoadOptions { clients: 3, pause: Duration::from_millis(1) };

#[test]
fn acknowledged_commits_survive_a_kill() {
    let mut cluster = Cluster::builder(15).start().unwrap();
    let load = Ledger::start(&cluster, LOAD).unwrap();
    load.wait_for_more(100).unwrap();
    cluster.kill9().unwrap();
    cluster.start_again().unwrap();
    load.wait_for_more(100).unwrap();
    let mut ledger = load.stop();
    let verdict = ledger.verify_all(&cluster).unwrap();
    assert!(verdict.required >= 200, "{verdict:?}");

    // A second load goes on; and a lost row is noticed.
    let load = Ledger::start(&cluster, LOAD).unwrap();
    load.wait_for_more(10).unwrap();
    ledger.extend(load.stop());
    ledger.verify_all(&cluster).unwrap();
    cluster.sql("UPDATE ledger_total SET rows = rows + 1 WHERE client = 0").unwrap();
    assert!(ledger.verify_all(&cluster).unwrap_err().to_string().contains("inconsistent"));
    cluster.sql("DELETE FROM ledger WHERE client = 1 AND number = 1").unwrap();
    let error = ledger.verify_all(&cluster).unwrap_err().to_string();
    assert!(error.contains("missing: Entry { client: 1, number: 1,"), "{error}");
}

/// PostgreSQL's own recovery to an LSN, a transaction and a time, judged by the ledger.
#[test]
fn recovery_targets_agree_with_the_ledger() {
    let archive = tempfile::Builder::new().prefix("arch").tempdir().unwrap();
    testkit::pg::server_user().unwrap().own(archive.path()).unwrap();
    let place = archive.path().display();
    let mut cluster = Cluster::builder(15)
        .without_fsync()
        .wal_segsize_mb(1)
        .archive_command(&format!("cp %p {place}/%f"))
        .start()
        .unwrap();
    let base = cluster.home().join("base");
    cluster.sql("CREATE TABLE ledger_early (i int)").unwrap();
    let load = Ledger::start(&cluster, LOAD).unwrap();
    load.wait_for_more(30).unwrap();
    cluster.tool("pg_basebackup", &["-c", "fast", "-d", &cluster.conninfo(), "-D", base.to_str().unwrap()]).unwrap();
    load.wait_for_more(60).unwrap();
    let lsn = cluster.sql("SELECT pg_current_wal_insert_lsn()").unwrap();
    load.wait_for_more(60).unwrap();
    let time = cluster.sql("SELECT clock_timestamp()").unwrap();
    let time_us: i64 = cluster
        .sql(&format!("SELECT (extract(epoch FROM '{time}'::timestamptz) * 1000000)::bigint"))
        .unwrap()
        .parse()
        .unwrap();
    load.wait_for_more(60).unwrap();
    let ledger = load.stop();
    let segment = cluster.switch_wal().unwrap();
    cluster.wait_archived(&segment, Duration::from_secs(60)).unwrap();
    cluster.stop(testkit::pg::StopMode::Fast).unwrap();

    let (high, low) = lsn.split_once('/').unwrap();
    let lsn_number = u64::from_str_radix(high, 16).unwrap() << 32 | u64::from_str_radix(low, 16).unwrap();
    let middle = ledger.entries.iter().rfind(|entry| entry.time_after_us.is_some_and(|at| at < time_us)).unwrap();
    let xid = middle.xid.unwrap();
    let targets = [
        ("recovery_target_lsn", lsn, Target::Lsn(lsn_number)),
        ("recovery_target_time", time, Target::TimeUs(time_us)),
        ("recovery_target_xid", xid.to_string(), Target::Xid(xid)),
    ];
    for (name, value, target) in targets {
        let copy = cluster.home().join(name);
        assert!(cluster.run_as_pg("cp", &["-a", base.to_str().unwrap(), copy.to_str().unwrap()]).unwrap().success());
        std::fs::write(copy.join("recovery.signal"), "").unwrap();
        testkit::pg::server_user().unwrap().own(&copy).unwrap();
        let mut restored = Cluster::adopt(&copy, 15).unwrap();
        for (option, value) in [
            ("archive_mode", "off"),
            ("restore_command", &format!("cp {place}/%f %p")),
            (name, value.as_str()),
            ("recovery_target_action", "promote"),
        ] {
            restored.set_option(option, value);
        }
        restored.start_again().unwrap();
        restored.wait_for("SELECT pg_is_in_recovery()", "f", Duration::from_secs(60)).unwrap();
        let verdict = ledger.verify_before(&restored, target).unwrap();
        assert!(verdict.required >= 60 && verdict.excluded >= 30, "{name}: {verdict:?}");
        // The judge can say no: this is not the end.
        assert!(ledger.verify_all(&restored).is_err());
    }
}

#[test]
fn filled_data_is_of_the_wanted_size_and_kind() {
    let cluster = Cluster::builder(15).without_fsync().start().unwrap();
    let filled = fill(&cluster, 40).unwrap();
    let megabytes = filled.database_bytes >> 20;
    assert!((36..=64).contains(&megabytes), "{filled:?}");
    assert_eq!(cluster.sql("SELECT count(*) FROM orders").unwrap(), filled.orders.to_string());
    assert_eq!(
        cluster
            .sql(
                "SELECT count(DISTINCT amname) >= 5 FROM pg_class c JOIN pg_am a ON a.oid = relam
        WHERE relkind = 'i' AND relnamespace = 'public'::regnamespace"
            )
            .unwrap(),
        "t"
    );
    assert_eq!(
        cluster.sql("SELECT pg_relation_size(reltoastrelid) > 0 FROM pg_class WHERE relname = 'documents'").unwrap(),
        "t"
    );
    // Again: more rows, no clash of ids.
    fill_with(&cluster, FillOptions { megabytes: 4, seed: 2, big_table: false }).unwrap();
    assert_eq!(cluster.sql("SELECT count(*) = count(DISTINCT id) FROM orders").unwrap(), "t");
}
