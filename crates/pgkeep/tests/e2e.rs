//! The main path, as an operator walks it: init, check, backup, a mistake, and back to the moment before.
#![allow(clippy::unwrap_used, reason = "tests fail by panicking")]

mod support;

use support::{MAJOR, Site};
use testkit::pg::Cluster;

/// Two rows before each target, so that it is seen which ones are there.
fn mark(site: &Site, value: i32) {
    site.cluster.sql(&format!("INSERT INTO marks VALUES ({value})")).unwrap();
}

fn marks(restored: &Cluster) -> String {
    restored.sql("SELECT string_agg(v::text, ',' ORDER BY v) FROM marks").unwrap()
}

#[test]
fn a_dropped_table_comes_back() {
    let mut site = Site::bare();
    // Without --apply nothing is set, and it is said what would be.
    let planned = site.init(&[]).expect(0);
    assert!(planned.stdout.contains("archive_command") && planned.stdout.contains("--apply"), "{}", planned.stdout);
    assert!(planned.stderr.contains("KEEP A COPY OF THIS KEY"), "{}", planned.stderr);
    assert_eq!(site.cluster.sql("SHOW archive_mode").unwrap(), "off");
    let applied = site.init(&["--apply"]).expect(0);
    assert!(applied.stdout.contains("RESTART PostgreSQL"), "{}", applied.stdout);
    assert!(!applied.stderr.contains("KEEP A COPY"), "a second key was made: {}", applied.stderr);
    site.run(&["check", "--json"]).expect(1);
    site.cluster.restart().unwrap();
    let again = site.init(&["--apply"]).expect(0);
    assert!(again.stdout.contains("nothing was changed"), "{}", again.stdout);
    let check = site.run(&["check", "--json"]).expect(0).json();
    assert_eq!(check["verdict"], "ok");

    site.cluster.sql("CREATE TABLE orders AS SELECT g AS id FROM generate_series(1, 5000) g").unwrap();
    site.run(&["list"]).expect(0).says(&["There are no backups"]);
    let backup = site.run(&["backup", "--json", "--label", "first"]).expect(0).json();
    let id = backup["backup"].as_str().unwrap().to_owned();
    site.cluster.sql("INSERT INTO orders SELECT g FROM generate_series(5001, 6000) g").unwrap();
    let before = site.cluster.sql("SELECT clock_timestamp()").unwrap();
    site.cluster.sql("DROP TABLE orders").unwrap();
    site.archive();

    let list = site.run(&["list", "--json"]).expect(0).json();
    assert_eq!(
        (list["backups"][0]["id"].as_str(), list["backups"][0]["label"].as_str()),
        (Some(id.as_str()), Some("first"))
    );
    let shown = site.run(&["show", "latest", "--files", "--json"]).expect(0).json();
    assert!(shown["files"].as_array().unwrap().iter().any(|file| file["path"] == "data/global/pg_control"));
    let status = site.run(&["status", "--json"]).expect(0).json();
    assert_eq!(status["clusters"][0]["verdict"], "ok");

    let target = site.path("restored");
    let plan = site.run(&["restore", "--to-dir", &target, "--at", &before, "--dry-run", "--json"]).expect(0).json();
    assert_eq!(plan["plan"]["backup"], id.as_str());
    assert!(!site.dir.join("restored").exists(), "--dry-run wrote something");
    let restored = site.run(&["restore", "--to-dir", &target, "--at", &before, "--start", "--json"]).expect(0).json();
    let conninfo = restored["server"]["conninfo"].as_str().unwrap();
    let psql = |sql: &str| site.cluster.tool("psql", &["-AtX", "-d", conninfo, "-c", sql]).unwrap().trim().to_owned();
    let (rows, archive_mode) = (psql("SELECT count(*) FROM orders"), psql("SHOW archive_mode"));
    site.cluster.tool("pg_ctl", &["-D", &target, "-m", "immediate", "-w", "stop"]).unwrap();
    assert_eq!(rows, "6000");
    assert_eq!(archive_mode, "off", "a restored cluster must not archive into production's repository");
}

#[test]
fn every_kind_of_target_is_reached() {
    let site = Site::new();
    site.cluster.sql("CREATE TABLE marks (v int)").unwrap();
    site.run(&["backup"]).expect(0);
    mark(&site, 1);
    let xid = site.cluster.sql("BEGIN; INSERT INTO marks VALUES (2); SELECT pg_current_xact_id(); COMMIT").unwrap();
    mark(&site, 3);
    let lsn = site.cluster.sql("SELECT pg_current_wal_insert_lsn()").unwrap();
    mark(&site, 4);
    site.cluster.sql("SELECT pg_create_restore_point('before five')").unwrap();
    mark(&site, 5);
    site.archive();
    for (number, (options, expect)) in [
        (&["--xid", xid.trim()][..], "1,2"),
        (&["--xid", xid.trim(), "--exclusive"], "1"),
        (&["--lsn", lsn.trim(), "--exclusive"], "1,2,3"),
        (&["--restore-point", "before five"], "1,2,3,4"),
        (&["--immediate"], ""),
        (&["--latest"], "1,2,3,4,5"),
        (&[], "1,2,3,4,5"),
    ]
    .into_iter()
    .enumerate()
    {
        let name = format!("restored{number}");
        let target = site.path(&name);
        site.run(&[&["restore", "--to-dir", &target][..], options].concat()).expect(0);
        let restored = site.open(&name);
        assert_eq!(marks(&restored), expect, "{options:?}");
        assert_eq!(restored.sql("SHOW archive_mode").unwrap(), "off");
    }
}

#[test]
fn a_target_can_be_looked_at_before_it_is_taken() {
    let site = Site::new();
    site.cluster.sql("CREATE TABLE marks (v int)").unwrap();
    site.run(&["backup"]).expect(0);
    mark(&site, 1);
    site.cluster.sql("SELECT pg_create_restore_point('here')").unwrap();
    mark(&site, 2);
    site.archive();
    let target = site.path("paused");
    site.run(&["restore", "--to-dir", &target, "--restore-point", "here", "--action", "pause"]).expect(0);
    let mut restored = Cluster::adopt(&site.dir.join("paused"), MAJOR).unwrap();
    restored.start_again().unwrap();
    site.wait_for("replay pauses", || restored.sql("SELECT pg_get_wal_replay_pause_state()").unwrap() == "paused");
    assert_eq!(marks(&restored), "1");
    assert_eq!(restored.sql("SELECT pg_is_in_recovery()").unwrap(), "t");
}

/// The server sends its files: upon a backup of files that were read here, and under one.
#[test]
fn a_streamed_backup_is_a_backup_like_any_other() {
    let site = Site::new();
    site.cluster
        .sql("CREATE TABLE marks (v int); CREATE TABLE t AS SELECT g FROM generate_series(1, 50000) g")
        .unwrap();
    let direct = site.run(&["backup", "--json"]).expect(0).json();
    mark(&site, 1);
    let streamed = site.run(&["backup", "--source", "stream", "--max-rate", "100MB", "--json"]).expect(0).json();
    assert_eq!((&streamed["source"], &streamed["prior"]), (&"stream".into(), &direct["backup"]));
    let said = site.run(&["backup", "--source", "stream", "--stream-compression", "zstd:2"]).expect(0);
    assert!(said.stdout.contains("builds on") && said.stdout.contains("changes found by page-lsn"), "{}", said.stdout);
    let id = streamed["backup"].as_str().unwrap();
    assert!(site.run(&["show", id]).expect(0).stdout.contains("stream"));
    site.run(&["verify", "--all", "--deep"]).expect(0);
    site.archive();
    let target = site.path("restored");
    site.run(&["restore", "--to-dir", &target, "--backup", id, "--latest"]).expect(0);
    let mut restored = Cluster::adopt(&site.dir.join("restored"), MAJOR).unwrap();
    restored.start_again().unwrap();
    restored.wait_for("SELECT pg_is_in_recovery()", "f", std::time::Duration::from_secs(60)).unwrap();
    assert_eq!(restored.sql("SELECT count(*), sum(g) FROM t").unwrap(), "50000|1250025000");
    assert_eq!(marks(&restored), "1");

    site.run(&["backup", "--stream-compression", "none"]).expect(2).says(&["is for `--source stream`"]);
    site.run(&["backup", "--source", "stream", "--stream-compression", "rar"]).expect(2).says(&["zstd:3"]);
    site.run(&["backup", "--source", "stream", "--max-rate", "fast"]).expect(2).says(&["--max-rate"]);
    site.run(&["backup", "--source", "stream", "--max-rate", "1kB"]).expect(1).says(&["32"]);
}
