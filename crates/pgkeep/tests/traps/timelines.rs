//! A cluster that pgkeep restored goes on archiving in the place of its origin, on a new timeline, and is backed up again:
//! what it builds on must be of its own history.

use crate::scene::{ALL, Kind, Scene};
use crate::world::try_restore;
use std::time::Duration;
use testkit::pg::{Cluster, StopMode};

fn backed_up_again(kind: Kind) {
    let mut scene = Scene::start(kind, |builder| builder);
    scene.sql("CREATE TABLE lives (id int PRIMARY KEY, t text) WITH (fillfactor = 50)");
    scene.sql("INSERT INTO lives SELECT g, 'none' FROM generate_series(1, 30000) g; VACUUM lives");
    scene.whole();
    scene.sql("UPDATE lives SET t = 'before' WHERE id % 900 = 1");
    let before = scene.incremental();
    scene.check(&before);
    scene.sql("UPDATE lives SET t = 'up to the fork' WHERE id % 900 = 2");
    let fork = scene.sql("SELECT pg_current_wal_insert_lsn()");
    // A future that will not have been.
    scene.sql("UPDATE lives SET t = 'never' WHERE id % 900 = 3; DELETE FROM lives WHERE id % 900 = 4");
    scene.sql("DROP TABLE documents; CREATE TABLE never AS SELECT generate_series(1, 9000) AS id");
    let never = scene.backup(&[], 0);
    scene.check(&never);
    scene.site.archive();
    scene.site.cluster.stop(StopMode::Fast).unwrap();

    try_restore(&scene.site, "second", &["--lsn", &fork, "--exclusive", "--archive"]).expect(4);
    let mut second = Cluster::adopt(&scene.site.dir.join("second"), kind.major).unwrap();
    second.start_again().unwrap();
    second.wait_for("SELECT pg_is_in_recovery()", "f", Duration::from_secs(60)).unwrap();
    scene.succeed(second);
    assert_eq!(scene.sql("SELECT count(*) FROM lives WHERE t IN ('before', 'up to the fork')"), "68");
    scene.sql("UPDATE lives SET t = 'second' WHERE id % 900 = 5");
    scene.hide_index();
    let first = scene.backup(&[], 0);
    println!("after the fork: {first:?}");
    scene.check(&first);
    assert_eq!(first.prior.as_ref(), Some(&before.id), "not the one of the other future: {first:?}");
    assert_ne!(first.used, ALL, "{first:?}");
    scene.sql("UPDATE lives SET t = 'third' WHERE id % 900 = 6");
    let next = scene.incremental();
    println!("then: {next:?}");
    scene.check(&next);
    scene.judge();
    // The abandoned one is as whole as it was.
    scene.restore(&never.id);
    scene.verify();
}

#[test]
fn a_restored_cluster_is_backed_up_again() {
    backed_up_again(Kind::indexed(15));
}

#[test]
fn a_restored_cluster_is_backed_up_again_by_page_lsn() {
    backed_up_again(Kind::without_index(14));
}

#[test]
fn a_restored_cluster_is_backed_up_again_by_summaries() {
    backed_up_again(Kind::without_index(18));
}
