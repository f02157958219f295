//! Backups from a primary and from its standby in turn, from a standby that lags, and from one that was promoted.

use crate::scene::{ALL, Kind, Scene, Taken};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;
use testkit::pg::{Cluster, StopMode};

/// A backup from the standby, while its primary goes on ending segments without changing a page.
fn from_standby(scene: &mut Scene, standby: &Cluster) -> Taken {
    let (from, to) = (scene.site.cluster.conninfo(), standby.conninfo());
    scene.point_at(&from, &to);
    let ended = AtomicBool::new(false);
    let primary = &scene.site.cluster;
    let said = std::thread::scope(|scope| {
        scope.spawn(|| {
            while !ended.load(Ordering::SeqCst) {
                primary.sql("SELECT pg_logical_emit_message(false, 'a', 'b'); SELECT pg_switch_wal()").unwrap();
                std::thread::sleep(Duration::from_millis(300));
            }
        });
        let said = scene.site.run(&["backup", "--json"]);
        ended.store(true, Ordering::SeqCst);
        said
    });
    let said = said.expect(0).json();
    scene.point_at(&to, &from);
    let taken = scene.facts(said["backup"].as_str().unwrap());
    scene.taken.push(taken.clone());
    taken
}

/// Waits until the standby has replayed all there is, with a checkpoint in it.
fn caught_up(scene: &Scene, standby: &Cluster) {
    scene.sql("CHECKPOINT");
    let at = scene.sql("SELECT pg_current_wal_insert_lsn()");
    standby.wait_replayed(&at, Duration::from_secs(60)).unwrap();
}

fn in_turn(kind: Kind) {
    let mut scene = Scene::start(kind, |builder| builder);
    scene.sql("CREATE TABLE turns (id int PRIMARY KEY, t text) WITH (fillfactor = 50)");
    scene.sql("INSERT INTO turns SELECT g, 'none' FROM generate_series(1, 30000) g; VACUUM turns");
    let standby = scene.site.cluster.standby().unwrap();
    let first = scene.whole();
    scene.check(&first);

    scene.sql("UPDATE turns SET t = 'one' WHERE id % 900 = 1; VACUUM turns; DELETE FROM turns WHERE id % 900 = 2");
    caught_up(&scene, &standby);
    let second = from_standby(&mut scene, &standby);
    println!("from the standby: {second:?}");
    scene.check_against(&second, standby.data_dir());
    assert_eq!(second.prior.as_ref(), Some(&first.id), "{second:?}");

    // The standby stands still; what it has is older than the primary's next backup.
    standby.sql("SELECT pg_wal_replay_pause()").unwrap();
    standby.wait_for("SELECT pg_get_wal_replay_pause_state()", "paused", Duration::from_secs(60)).unwrap();
    scene.sql("UPDATE turns SET t = 'two' WHERE id % 900 = 3; DELETE FROM turns WHERE id % 900 = 4");
    let third = scene.backup(&[], 0);
    println!("from the primary: {third:?}");
    scene.check(&third);
    assert_ne!(third.used, ALL, "{third:?}");
    let fourth = from_standby(&mut scene, &standby);
    println!("from the standby that stands still: {fourth:?}");
    scene.check_against(&fourth, standby.data_dir());
    // Its start lies before the end of both others.
    assert!(fourth.prior.is_none() || fourth.prior.as_ref() == Some(&first.id), "{fourth:?}");
    assert!(fourth.used != ALL || !fourth.reasons.is_empty(), "{fourth:?}");
    standby.sql("SELECT pg_wal_replay_resume()").unwrap();
    caught_up(&scene, &standby);
    let fifth = scene.backup(&[], 0);
    println!("from the primary again: {fifth:?}");
    scene.check(&fifth);

    // The standby takes over.
    scene.sql("UPDATE turns SET t = 'three' WHERE id % 900 = 5");
    caught_up(&scene, &standby);
    scene.site.cluster.stop(StopMode::Fast).unwrap();
    standby.promote().unwrap();
    scene.succeed(standby);
    scene.sql("UPDATE turns SET t = 'four' WHERE id % 900 = 6; DELETE FROM turns WHERE id % 900 = 7");
    let sixth = scene.backup(&[], 0);
    println!("from the promoted standby: {sixth:?}");
    scene.check(&sixth);
    assert_eq!(sixth.prior.as_ref(), Some(&fifth.id), "{sixth:?}");
    assert_ne!(sixth.used, ALL, "{sixth:?}");
    scene.sql("UPDATE turns SET t = 'five' WHERE id % 900 = 8; VACUUM turns");
    let seventh = scene.incremental();
    println!("and again: {seventh:?}");
    scene.check(&seventh);
    scene.judge();
}

#[test]
fn primary_and_standby_in_turn() {
    in_turn(Kind::indexed(15));
}

#[test]
fn primary_and_standby_in_turn_by_summaries() {
    in_turn(Kind::indexed(17));
}
