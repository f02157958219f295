//! Recover, promote, recover from the middle of another timeline, and so on: every state that was once reached can be
//! reached again.

use crate::background::site;
use crate::support::Site;
use crate::world::{open, restore, try_restore};
use std::time::Duration;
use testkit::pg::{Cluster, StopMode};

/// A moment in one of the lives.
struct State {
    point: String,
    timeline: usize,
    words: Vec<String>,
}

fn words(cluster: &Cluster) -> Vec<String> {
    let text = cluster.sql("SELECT coalesce(string_agg(word, ' ' ORDER BY id), '') FROM life").unwrap();
    text.split_whitespace().map(str::to_owned).collect()
}

/// Writes two states, and something after each; all of it is archived then.
fn live(site: &Site, cluster: &Cluster, timeline: usize, states: &mut Vec<State>) {
    for part in ["a", "b"] {
        let point = format!("{timeline}{part}");
        cluster.sql(&format!("INSERT INTO life (word) VALUES ('{point}')")).unwrap();
        states.push(State { point: point.clone(), timeline, words: words(cluster) });
        cluster.sql(&format!("SELECT pg_create_restore_point('{point}')")).unwrap();
        cluster.sql(&format!("INSERT INTO life (word) VALUES ('{point}-after')")).unwrap();
        // Some states share a segment with what follows, others do not.
        if timeline.is_multiple_of(2) {
            cluster.switch_wal().unwrap();
        }
    }
    let segment = cluster.switch_wal().unwrap();
    cluster
        .wait_archived(&segment, Duration::from_secs(60))
        .unwrap_or_else(|error| panic!("{error}\n{}\n{}", site.cluster.log_tail(), cluster.log_tail()));
}

#[test]
fn every_state_of_a_thicket_of_timelines_stays_reachable() {
    let mut site = site();
    site.cluster.sql("CREATE TABLE life (id serial, word text)").unwrap();
    site.run(&["backup"]).expect(0);
    let mut states = Vec::new();
    live(&site, &site.cluster, 1, &mut states);
    site.cluster.stop(StopMode::Immediate).unwrap();
    // Where each further life begins; the second timeline is begun twice, and left twice.
    for (timeline, from) in [(2, "1a"), (3, "2a"), (4, "2b"), (5, "4a"), (6, "3a")] {
        let (from_timeline, name) = (&from[..1], format!("life{timeline}"));
        let said = try_restore(&site, &name, &["--restore-point", from, "--timeline", from_timeline, "--archive"]);
        said.expect(4);
        let mut cluster = Cluster::adopt(&site.dir.join(&name), 15).unwrap();
        cluster.start_again().unwrap();
        cluster.wait_for("SELECT pg_is_in_recovery()", "f", Duration::from_secs(60)).unwrap();
        let begun = states.iter().find(|state| state.point == from).unwrap();
        assert_eq!(words(&cluster), begun.words, "timeline {timeline} begins where {from} was");
        live(&site, &cluster, timeline, &mut states);
        cluster.stop(StopMode::Immediate).unwrap();
    }
    assert_eq!(states.len(), 12);
    site.run(&["wal", "status"]).expect(0);
    site.run(&["verify", "--all", "--deep"]).expect(0);
    for state in &states {
        let (timeline, name) = (state.timeline.to_string(), format!("state{}", state.point));
        let dir = restore(&site, &name, &["--restore-point", &state.point, "--timeline", &timeline]);
        let cluster = open(&site, &dir);
        assert_eq!(words(&cluster), state.words, "{}", state.point);
        drop(cluster);
        std::fs::remove_dir_all(dir).unwrap();
    }
    // "Latest" is the last life, whole.
    let latest = open(&site, &restore(&site, "latest", &["--latest"]));
    assert_eq!(words(&latest).last().map(String::as_str), Some("6b-after"));
}

#[test]
fn the_end_of_an_old_timeline_that_was_never_archived_hinders_nobody() {
    let mut site = site();
    site.cluster.sql("CREATE TABLE life (id serial, word text)").unwrap();
    site.run(&["backup"]).expect(0);
    site.cluster.sql("INSERT INTO life (word) VALUES ('kept')").unwrap();
    site.archive();
    // In a segment that nobody archives: the host is lost with it.
    site.cluster.sql("INSERT INTO life (word) VALUES ('lost')").unwrap();
    site.cluster.kill9().unwrap();
    try_restore(&site, "second", &["--latest", "--archive"]).expect(4);
    let mut second = Cluster::adopt(&site.dir.join("second"), 15).unwrap();
    second.start_again().unwrap();
    second.wait_for("SELECT pg_is_in_recovery()", "f", Duration::from_secs(60)).unwrap();
    assert_eq!(words(&second), ["kept"]);
    second.sql("INSERT INTO life (word) VALUES ('new')").unwrap();
    let segment = second.switch_wal().unwrap();
    second.wait_archived(&segment, Duration::from_secs(60)).unwrap();
    second.stop(StopMode::Immediate).unwrap();
    site.run(&["wal", "status"]).expect(0);
    site.run(&["verify", "--all"]).expect(0);
    let latest = open(&site, &restore(&site, "latest", &["--latest"]));
    assert_eq!(words(&latest), ["kept", "new"]);
    drop(latest);
    let old = open(&site, &restore(&site, "old", &["--latest", "--timeline", "1"]));
    assert_eq!(words(&old), ["kept"]);
}

#[test]
fn a_partial_segment_renamed_by_an_operator_serves_its_timeline_only() {
    let mut site = site();
    site.cluster.sql("CREATE TABLE life (id serial, word text)").unwrap();
    site.run(&["backup"]).expect(0);
    site.archive();
    let mut standby = site.cluster.standby().unwrap();
    site.cluster.sql("INSERT INTO life (word) VALUES ('shared')").unwrap();
    let lsn = site.cluster.sql("SELECT pg_current_wal_lsn()").unwrap();
    standby.wait_replayed(&lsn, Duration::from_secs(60)).unwrap();
    site.cluster.kill9().unwrap();
    standby.promote().unwrap();
    standby.sql("INSERT INTO life (word) VALUES ('second')").unwrap();
    let segment = standby.switch_wal().unwrap();
    standby.wait_archived(&segment, Duration::from_secs(60)).unwrap();
    // The promoted one archives what it had of the old timeline's last segment.
    let dir = site.repository().join("clusters/main/wal");
    let partials = || -> Vec<String> {
        let names = crate::world::files(&dir)
            .into_iter()
            .map(|(path, _)| path.file_name().unwrap().to_string_lossy().into_owned());
        names.filter(|name| name.ends_with(".partial")).collect()
    };
    site.wait_for("the partial segment is archived", || !partials().is_empty());
    let partial = partials().remove(0);
    let name = partial.strip_suffix(".partial").unwrap();
    // The operator renames it, as PostgreSQL's documentation tells, and archives it under its new name.
    let pg_wal = site.cluster.make_dir("by-hand/pg_wal").unwrap();
    let renamed = pg_wal.join(name).to_string_lossy().into_owned();
    site.run(&["wal", "fetch", &partial, &renamed]).expect(0);
    site.run(&["wal", "push", &renamed]).expect(0);
    let old = open(&site, &restore(&site, "old", &["--latest", "--timeline", "1"]));
    assert_eq!(words(&old), ["shared"]);
    drop(old);
    let new = open(&site, &restore(&site, "new", &["--latest"]));
    assert_eq!(words(&new), ["shared", "second"]);
    drop(new);
    // The lost host comes back and goes on: its own segment of this name is another one, and is refused.
    site.cluster.start_again().unwrap();
    site.cluster.sql("INSERT INTO life (word) VALUES ('third'); SELECT pg_switch_wal()").unwrap();
    let log = || site.cluster.log().contains("already with other content");
    site.wait_for("it is refused", log);
    standby.stop(StopMode::Fast).unwrap();
}
