//! What changes pages without saying so, and what breaks the run of WAL that tells of changes.

use crate::scene::{ALL, Kind, PAGE_LSN, SUMMARIES, Scene};
use std::time::Duration;

/// Hint bits are set by who reads, without WAL when neither checksums nor `wal_log_hints` are on. They need not be backed
/// up, and are no damage.
fn hint_bits(kind: Kind) {
    let mut scene = Scene::start(kind, |builder| builder);
    scene.sql("CREATE TABLE hinted (id int PRIMARY KEY, t text)");
    scene.sql("INSERT INTO hinted SELECT g, md5(g::text) FROM generate_series(1, 40000) g");
    scene.sql("BEGIN; DELETE FROM hinted WHERE id % 2 = 0; ROLLBACK");
    let file = scene.file_of("hinted");
    let before = std::fs::read(&file).unwrap();
    let pages = before.len() as u64 / 8192;
    let whole = scene.whole();
    scene.check(&whole);
    assert_eq!(scene.sql("SELECT count(*) FROM hinted"), "40000");
    scene.sql("CHECKPOINT");
    let after = std::fs::read(&file).unwrap();
    let changed = before.chunks(8192).zip(after.chunks(8192)).filter(|(before, after)| before != after).count() as u64;
    assert!(changed * 10 > pages * 9, "{changed} of {pages} pages have hint bits");
    let taken = scene.incremental();
    println!("{taken:?}");
    scene.check(&taken);
    if kind.checksums {
        assert!(taken.pages_stored >= changed, "{taken:?}: {changed} pages were logged");
    } else {
        assert!(taken.pages_stored < pages / 4, "{taken:?}: {changed} pages differ in hint bits only");
    }
    // A change afterwards takes the whole page, hint bits too.
    scene.sql("UPDATE hinted SET t = 'x' WHERE id % 5000 = 1");
    let taken = scene.incremental();
    scene.check(&taken);
    scene.judge();
}

#[test]
fn hint_bits_without_checksums_are_no_changes() {
    hint_bits(Kind::without_index(15).without_checksums());
    hint_bits(Kind::without_index(17).without_checksums());
}

#[test]
fn hint_bits_with_checksums_are_logged() {
    hint_bits(Kind::without_index(15));
}

/// `VACUUM` marks pages all-visible. Without checksums the mark on the heap page has no page LSN (`visibilitymap_set`);
/// a copy with the map's bit but not the page's would never clear that bit again.
fn became_all_visible(kind: Kind) {
    let mut scene = Scene::start(kind, |builder| builder);
    scene.sql("CREATE TABLE seen (id int PRIMARY KEY, n int)");
    scene.sql("INSERT INTO seen SELECT g, 0 FROM generate_series(1, 30000) g; SELECT count(*) FROM seen");
    let whole = scene.whole();
    scene.check(&whole);
    scene.sql("VACUUM seen");
    for _ in 0..2 {
        let taken = scene.incremental();
        scene.check(&taken);
        scene.sql("VACUUM (DISABLE_PAGE_SKIPPING) seen");
    }
    scene.judge();
}

#[test]
fn pages_that_became_all_visible_are_marked() {
    became_all_visible(Kind::without_index(15).without_checksums());
    became_all_visible(Kind::indexed(15).without_checksums());
    became_all_visible(Kind::without_index(17).without_checksums());
}

/// At `wal_level=minimal` the server changes relations without WAL, and `wal_log` of them is missing for ever.
#[test]
fn a_time_without_wal() {
    for major in [15, 17] {
        let mut scene = Scene::start(Kind::indexed(major), |builder| builder);
        scene.sql("CREATE TABLE silent (id int PRIMARY KEY, t text)");
        scene.sql("INSERT INTO silent SELECT g, md5(g::text) FROM generate_series(1, 5000) g");
        let whole = scene.whole();
        scene.check(&whole);
        let minimal = [("wal_level", "minimal"), ("archive_mode", "off"), ("max_wal_senders", "0")];
        let usual = [("wal_level", "replica"), ("archive_mode", "on"), ("max_wal_senders", "10")];
        let set = |scene: &mut Scene, settings: &[(&str, &str)], summaries: &str| {
            for (name, value) in settings {
                scene.sql(&format!("ALTER SYSTEM SET {name} = '{value}'"));
            }
            if major >= 17 {
                scene.sql(&format!("ALTER SYSTEM SET summarize_wal = {summaries}"));
            }
            scene.site.cluster.restart().unwrap();
        };
        set(&mut scene, &minimal, "off");
        scene.sql(
            "BEGIN; TRUNCATE silent; INSERT INTO silent SELECT g, 'minimal' FROM generate_series(1, 4000) g; COMMIT",
        );
        scene.sql("CREATE TABLE wordless AS SELECT g, md5(g::text) FROM generate_series(1, 5000) g");
        scene.sql("BEGIN; CREATE TABLE ix (id int); INSERT INTO ix SELECT generate_series(1, 5000)");
        scene.sql("UPDATE orders SET note = 'minimal' WHERE id % 500 = 1; REINDEX TABLE silent");
        set(&mut scene, &usual, "on");
        scene.sql("UPDATE silent SET t = 'again' WHERE id % 500 = 1");
        let taken = scene.backup(&[], 0);
        println!("{major}: {taken:?}");
        scene.check(&taken);
        assert!(taken.used == PAGE_LSN && !taken.reasons.is_empty(), "{taken:?}");
        scene.sql("UPDATE silent SET t = 'later' WHERE id % 500 = 2");
        let next = scene.backup(&[], 0);
        scene.check(&next);
        assert_ne!(next.used, ALL, "{next:?}");
        scene.judge();
    }
}

/// Summaries with a hole are not used; who reads the backup's facts sees why.
#[test]
fn a_hole_in_the_summaries() {
    let mut scene = Scene::start(Kind::without_index(18), |builder| builder);
    let whole = scene.whole();
    scene.check(&whole);
    let switch = |scene: &Scene, value: &str| {
        scene.sql(&format!("ALTER SYSTEM SET summarize_wal = {value}"));
        scene.site.cluster.reload().unwrap();
        let wanted = if value == "on" { "1" } else { "0" };
        let sql = "SELECT count(*) FROM pg_stat_activity WHERE backend_type = 'walsummarizer'";
        scene.site.cluster.wait_for(sql, wanted, Duration::from_secs(60)).unwrap();
    };
    let remove_summaries = |scene: &Scene| {
        for entry in std::fs::read_dir(scene.site.cluster.data_dir().join("pg_wal/summaries")).unwrap() {
            std::fs::remove_file(entry.unwrap().path()).unwrap();
        }
    };
    scene.sql("UPDATE orders SET note = 'in the hole' WHERE id % 700 = 1; CHECKPOINT");
    switch(&scene, "off");
    remove_summaries(&scene);
    switch(&scene, "on");
    scene.sql("UPDATE orders SET note = 'behind it' WHERE id % 700 = 2");
    scene.hide_index();
    let taken = scene.backup(&[], 0);
    println!("{taken:?}");
    scene.check(&taken);
    // The server summarizes again what it still has of the WAL.
    assert!([PAGE_LSN, SUMMARIES].contains(&taken.used.as_str()), "{taken:?}");

    // Some files of the middle only.
    scene.sql("UPDATE orders SET note = 'one' WHERE id % 700 = 3; CHECKPOINT");
    scene.site.archive();
    scene.sql("UPDATE orders SET note = 'two' WHERE id % 700 = 4; CHECKPOINT");
    scene.site.archive();
    let at = scene.sql("SELECT pg_current_wal_insert_lsn()");
    scene.sql("CHECKPOINT");
    let sql = format!("SELECT bool_or(end_lsn >= '{at}') FROM pg_available_wal_summaries()");
    scene.site.cluster.wait_for(&sql, "t", Duration::from_secs(60)).unwrap();
    switch(&scene, "off");
    let dir = scene.site.cluster.data_dir().join("pg_wal/summaries");
    let mut names: Vec<_> = std::fs::read_dir(&dir).unwrap().map(|entry| entry.unwrap().path()).collect();
    names.sort();
    std::fs::remove_file(&names[names.len() - 2]).unwrap();
    switch(&scene, "on");
    scene.sql("UPDATE orders SET note = 'three' WHERE id % 700 = 5");
    scene.hide_index();
    let taken = scene.backup(&[], 0);
    println!("{taken:?}");
    scene.check(&taken);
    assert!(taken.used == PAGE_LSN && !taken.reasons.is_empty(), "{taken:?}");
    scene.sql("UPDATE orders SET note = 'four' WHERE id % 700 = 6");
    let taken = scene.incremental();
    scene.check(&taken);
    scene.judge();
}
