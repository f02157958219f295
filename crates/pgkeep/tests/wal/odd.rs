//! Places that are full, two clusters with one archive, sizes of segments and compressions of page images.

use crate::background::{segments, site, waiting};
use crate::world::{bare, load, open, protect_locally, restore};
use std::process::Command;
use testkit::pg::{Cluster, SmallDisk};

#[test]
fn a_second_cluster_with_the_same_archive_command_is_refused() {
    let site = site();
    site.run(&["backup"]).expect(0);
    let command = site.cluster.sql("SHOW archive_command").unwrap();
    let builder = Cluster::builder(15).without_fsync().wal_segsize_mb(1);
    let other = builder.conf("archive_mode", "on").conf("archive_command", &command).start().unwrap();
    segments(&other, 4);
    let failed = || other.sql("SELECT failed_count > 1 FROM pg_stat_archiver").unwrap() == "t";
    site.wait_for("the other's archiver fails", failed);
    assert!(other.log().contains("system identifier"), "{}", other.log_tail());
    assert!(waiting(&other) >= 4 && other.sql("SELECT archived_count FROM pg_stat_archiver").unwrap() == "0");
    // The first one is as it was.
    segments(&site.cluster, 3);
    site.archive();
    site.run(&["wal", "status"]).expect(0);
    site.run(&["verify", "--all", "--deep"]).expect(0);
}

#[test]
fn a_full_pg_wal_and_a_full_cache_lose_nothing() {
    let site = site();
    site.run(&["backup"]).expect(0);
    segments(&site.cluster, 6);
    site.archive();
    let target = site.cluster.make_dir("target/pg_wal").unwrap();
    let (Some(_small), Some(_cache)) = (
        SmallDisk::mount(&target, site.cluster.user(), "512k"),
        SmallDisk::mount(&site.cluster.make_dir("pgkeep/cache").unwrap(), site.cluster.user(), "1536k"),
    ) else {
        eprintln!("mounting is not allowed here: not tested");
        return;
    };
    let name = site.cluster.sql("SELECT pg_walfile_name(pg_current_wal_lsn() - 2000000)").unwrap();
    // No room for a segment: an error, not the end of the archive; and nothing is left behind.
    let dest = target.join("RECOVERYXLOG").to_string_lossy().into_owned();
    site.run(&["wal", "fetch", &name, &dest]).expect(126).says(&["RECOVERYXLOG"]);
    assert_eq!(std::fs::read_dir(&target).unwrap().count(), 0);
    // The cache has room for one segment: what does not fit is fetched when it is asked for.
    let rows = site.cluster.sql("SELECT count(*), sum(hashtext(text)) FROM t").unwrap();
    let restored = open(&site, &restore(&site, "restored", &["--latest"]));
    assert_eq!(restored.sql("SELECT count(*), sum(hashtext(text)) FROM t").unwrap(), rows);
}

#[test]
fn a_server_whose_pg_wal_ran_full_archives_all_of_it_afterwards() {
    let mut site = site();
    site.run(&["backup"]).expect(0);
    let command = site.cluster.sql("SHOW archive_command").unwrap();
    // pg_wal on a file system of its own.
    let (pg_wal, elsewhere) = (site.cluster.data_dir().join("pg_wal"), site.cluster.make_dir("wal-volume").unwrap());
    site.cluster.stop(testkit::pg::StopMode::Fast).unwrap();
    let Some(_mount) = SmallDisk::mount(&elsewhere, site.cluster.user(), "60m") else {
        eprintln!("mounting is not allowed here: not tested");
        return;
    };
    let moved = Command::new("cp").arg("-a").arg(format!("{}/.", pg_wal.display())).arg(&elsewhere).status().unwrap();
    assert!(moved.success());
    std::fs::remove_dir_all(&pg_wal).unwrap();
    std::os::unix::fs::symlink(&elsewhere, &pg_wal).unwrap();
    site.cluster.append_conf("wal_keep_size", "0").unwrap();
    site.cluster.append_conf("max_wal_size", "32MB").unwrap();
    site.cluster.start_again().unwrap();
    site.cluster.sql("ALTER SYSTEM SET archive_command = 'false'").unwrap();
    site.cluster.reload().unwrap();
    let load = load(&site.cluster);
    load.wait_for_more(20).unwrap();
    let mut full = false;
    for _ in 0..200 {
        let rows = "CREATE TABLE IF NOT EXISTS t (text text); INSERT INTO t SELECT md5(random()::text) FROM generate_series(1, 20000)";
        if site.cluster.sql(rows).is_err() {
            full = true;
            break;
        }
    }
    assert!(full, "pg_wal never ran full");
    let ledger = load.stop();
    let _ = site.cluster.kill9();
    // Room, and an archive again.
    let grown = Command::new("mount").args(["-o", "remount,size=400m"]).arg(&elsewhere).status().unwrap();
    assert!(grown.success());
    let quoted = command.replace('\'', "''");
    let auto = site.cluster.data_dir().join("postgresql.auto.conf");
    let text = std::fs::read_to_string(&auto).unwrap();
    let lines: Vec<&str> = text.lines().filter(|line| !line.starts_with("archive_command")).collect();
    std::fs::write(&auto, format!("{}\narchive_command = '{quoted}'\n", lines.join("\n"))).unwrap();
    site.cluster.start_again().unwrap();
    site.archive();
    site.wait_for("all is archived", || waiting(&site.cluster) == 0);
    site.run(&["wal", "status"]).expect(0);
    let restored = open(&site, &restore(&site, "restored", &["--latest"]));
    ledger.verify_all(&restored).unwrap();
}

#[test]
fn segments_of_each_size_and_page_images_of_each_compression_are_indexed() {
    for (megabytes, compression) in [(1, "pglz"), (16, "lz4"), (64, "zstd"), (16, "off")] {
        let builder =
            Cluster::builder(15).without_fsync().wal_segsize_mb(megabytes).conf("wal_compression", compression);
        let mut site = bare(builder.conf("full_page_writes", "on"));
        protect_locally(&mut site);
        let what = format!("{megabytes} MB, {compression}");
        site.cluster
            .sql("CREATE TABLE t AS SELECT g AS id, md5(g::text) AS text FROM generate_series(1, 50000) g")
            .unwrap();
        site.run(&["backup"]).expect(0);
        // Page images of all of it, and a moment later the rows again.
        site.cluster.sql("CHECKPOINT; UPDATE t SET text = text || 'x' WHERE id % 3 = 0").unwrap();
        site.archive();
        let rebuilt = site.run(&["wal", "index", "--rebuild", "--json"]).expect(0).json();
        let counts = &rebuilt["systems"][0]["rebuilt"];
        assert!(counts["made"] == 0 && counts["had_one"].as_u64() > Some(0), "{what}: {rebuilt}");
        let backup = site.run(&["backup", "--json"]).expect(0).json();
        assert!(backup.to_string().contains("wal-index"), "{what}: {backup}");
        let rows = site.cluster.sql("SELECT count(*), sum(hashtext(text)) FROM t").unwrap();
        let first = site.run(&["list", "--json"]).expect(0).json()["backups"][0]["id"].as_str().unwrap().to_owned();
        for (name, backup) in [("by-wal", first.as_str()), ("by-backup", "latest")] {
            let options: &[&str] = if backup == "latest" { &["--latest"] } else { &["--latest", "--backup", backup] };
            let restored = open(&site, &restore(&site, name, options));
            assert_eq!(restored.sql("SELECT count(*), sum(hashtext(text)) FROM t").unwrap(), rows, "{what}: {name}");
        }
    }
}
