//! Backups that are killed, and what the next one makes of them.

use crate::scene::{Kind, Scene};
use crate::world::files;
use std::collections::BTreeSet;
use std::process::Stdio;

/// Starts a backup that waits for WAL at its end, and kills it when its pages are stored.
fn killed(scene: &Scene) {
    let command = scene.sql("SHOW archive_command").replace('\'', "''");
    scene.sql("ALTER SYSTEM SET archive_command = 'false'");
    scene.site.cluster.reload().unwrap();
    // The server notes the end of a backup in a file, and keeps it until it is archived.
    let ends = || {
        let wal = files(&scene.site.cluster.data_dir().join("pg_wal")).into_iter().map(|(path, _)| path);
        wal.filter(|path| path.extension().is_some_and(|extension| extension == "backup")).collect::<BTreeSet<_>>()
    };
    let before = ends();
    let mut backup = scene.site.command(&["backup"]).stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
    scene.site.wait_for("the end of the backup on the server", || {
        assert!(backup.try_wait().unwrap().is_none(), "it ended by itself");
        ends().difference(&before).next().is_some()
    });
    backup.kill().unwrap();
    backup.wait().unwrap();
    let sql = "SELECT count(*) FROM pg_stat_activity WHERE application_name LIKE 'pgkeep%'";
    scene.site.cluster.wait_for(sql, "0", std::time::Duration::from_secs(60)).unwrap();
    scene.sql(&format!("ALTER SYSTEM SET archive_command = '{command}'"));
    scene.site.cluster.reload().unwrap();
}

fn made_good(kind: Kind) {
    let mut scene = Scene::start(kind, |builder| builder);
    scene.sql("CREATE TABLE halves (id int PRIMARY KEY, t text) WITH (fillfactor = 50)");
    scene.sql("INSERT INTO halves SELECT g, md5(g::text) FROM generate_series(1, 30000) g; VACUUM halves");

    // The very first one: nothing else to build on.
    killed(&scene);
    scene.sql("UPDATE halves SET t = 'after the first' WHERE id % 900 = 1; DELETE FROM halves WHERE id % 900 = 2");
    let first = scene.backup(&[], 0);
    println!("after one that was killed: {first:?}");
    scene.check(&first);
    assert!(first.pages_stored * 4 < first.pages_read, "{first:?}");

    // One that builds on another; pages changed before, in it and after it.
    scene.sql("UPDATE halves SET t = 'before' WHERE id % 900 = 3; CREATE TABLE grown AS SELECT * FROM halves");
    killed(&scene);
    scene.sql("UPDATE halves SET t = 'after' WHERE id % 900 = 4; UPDATE halves SET t = 'twice' WHERE id % 900 = 3");
    scene.sql("TRUNCATE grown; INSERT INTO grown SELECT * FROM halves WHERE id < 500");
    killed(&scene);
    scene.sql("VACUUM halves; DELETE FROM halves WHERE id % 900 = 5");
    let second = scene.backup(&[], 0);
    println!("after two that were killed: {second:?}");
    scene.check(&second);
    assert!(second.pages_stored * 4 < first.pages_stored.max(2000), "{second:?}");
    scene.sql("UPDATE halves SET t = 'last' WHERE id % 900 = 6");
    let third = scene.incremental();
    scene.check(&third);
    scene.judge();
    scene.verify();
}

#[test]
fn killed_backups_are_made_good() {
    made_good(Kind::without_index(15));
}

#[test]
fn killed_backups_are_made_good_by_index() {
    made_good(Kind::indexed(18));
}
