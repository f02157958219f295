//! `DROP DATABASE` that a crash broke off: its files are gone, or it is marked as invalid, and no commit tells of it.

use crate::support::Site;
use crate::{lsn_of, run_printed};
use pg_format::Lsn;
use std::os::unix::fs::FileExt;
use testkit::pg::StopMode;

/// What the server writes just before it ends: as if it had crashed before the record at `lsn` reached the disk.
fn forget_from(site: &mut Site, lsn: Lsn) {
    let segment = format!("00000001{:08X}{:08X}", lsn.0 >> 32, (lsn.0 & 0xFFFF_FFFF) >> 24);
    let offset = lsn.0 % (16 << 20);
    let path = site.cluster.data_dir().join("pg_wal").join(segment);
    let file = std::fs::OpenOptions::new().write(true).open(path).unwrap();
    file.write_all_at(&vec![0; ((16 << 20) - offset) as usize], offset).unwrap();
    site.cluster.start_again().unwrap();
}

/// Where the record of a kind lies that was written since `from`.
fn place_of(site: &Site, from: &str, what: &str) -> Lsn {
    let wal = site.cluster.data_dir().join("pg_wal").to_string_lossy().into_owned();
    // It ends with the WAL, which it takes for a failure.
    let mut command = site.cluster.command_as_pg(site.cluster.bin("pg_waldump").unwrap());
    let shown = command.args(["-p", &wal, "-s", from]).output().unwrap();
    let shown = String::from_utf8_lossy(&shown.stdout).into_owned();
    let line = shown.lines().rfind(|line| line.contains(what)).unwrap_or_else(|| panic!("no {what} in {shown}"));
    line.split("lsn: ").nth(1).unwrap().split(',').next().unwrap().parse().unwrap()
}

#[test]
fn a_drop_database_that_was_broken_off_is_found_and_undone() {
    let mut site = Site::new();
    for (name, rows) in [("emptied", 11), ("marked", 22), ("kept", 33)] {
        site.cluster.sql(&format!("CREATE DATABASE {name}")).unwrap();
        site.cluster.psql_db(name, &format!("CREATE TABLE inside AS SELECT generate_series(1, {rows}) g")).unwrap();
    }
    site.run(&["backup"]).expect(0);
    let mut begun = Vec::new();
    for (database, lost) in [("emptied", "COMMIT"), ("marked", "DROP dir")] {
        site.cluster.sql("CREATE TABLE IF NOT EXISTS before_it AS SELECT 1").unwrap();
        let from = site.cluster.sql("SELECT pg_current_wal_insert_lsn()").unwrap();
        site.cluster.sql(&format!("DROP DATABASE {database}")).unwrap();
        site.cluster.stop(StopMode::Immediate).unwrap();
        let lsn = place_of(&site, &from, lost);
        forget_from(&mut site, lsn);
        begun.push((from.parse::<Lsn>().unwrap(), lsn));
        let there = format!("SELECT count(*) FROM pg_database WHERE datname = '{database}'");
        assert_eq!(site.cluster.sql(&there).unwrap(), "1", "the drop did not commit");
    }
    // What makes a database and fails removes what it made, and has dropped nothing.
    let failing = "CREATE DATABASE never TEMPLATE kept ENCODING 'SQL_ASCII' LC_COLLATE 'C' LC_CTYPE 'C'";
    let _ = site.cluster.sql(failing);
    site.cluster.sql("CREATE TABLE after_it AS SELECT 1").unwrap();
    site.archive();

    let found = site.run(&["find", "drop", "database", "--json"]).expect(0).json();
    let hits = found["hits"].as_array().unwrap();
    assert_eq!(hits.len(), 2, "{found:#}");
    let notes = ["its files were removed", "marked as invalid"];
    for ((hit, (from, lost)), note) in hits.iter().zip(&begun).zip(notes) {
        let target = lsn_of(&hit["target"]["lsn"]);
        assert!(*from <= target && target < *lost, "{from} {lost}: {hit:#}");
        assert!(hit["notes"][0].as_str().unwrap().contains(note) && hit["broken_off"] == true, "{hit:#}");
    }
    for (hit, (database, rows)) in hits.iter().zip([("emptied", "11"), ("marked", "22")]) {
        assert_eq!(hit["objects"][0]["name"], database, "{hit:#}");
        let said = run_printed(&site, hit["restore"].as_str().unwrap(), &site.path(database));
        assert!(matches!(said.code, 0 | 4), "{} {}", said.code, said.stderr);
        let mut restored = site.open(database);
        assert_eq!(restored.psql_db(database, "SELECT count(*) FROM inside").unwrap(), rows);
        restored.stop(StopMode::Immediate).unwrap();
    }
    // A second attempt succeeds, and says that the first one did the damage.
    site.cluster.sql("DROP DATABASE marked").unwrap();
    site.archive();
    let found = site.run(&["find", "drop", "database", "marked", "--json"]).expect(0).json();
    let hits = found["hits"].as_array().unwrap();
    assert_eq!((hits.len(), &hits[1]["broken_off"]), (2, &serde_json::json!(false)), "{found:#}");
    let note = format!("whole before {} only", hits[0]["target"]["lsn"].as_str().unwrap());
    assert!(
        hits[1]["notes"].as_array().unwrap().iter().any(|said| said.as_str().unwrap().contains(&note)),
        "{hits:#?}"
    );
}
