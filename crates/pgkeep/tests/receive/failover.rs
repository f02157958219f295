//! A standby is promoted in the middle of a segment: the stream follows it, and the line that was left stays reachable.

use crate::receiver::{Receiver, rounds, site, wait_durable};
use crate::world::{load, open, restore};
use std::time::Duration;
use testkit::pg::Cluster;

#[test]
fn the_stream_follows_a_promoted_standby_and_both_lines_are_kept() {
    for _ in 0..rounds().min(5) {
        follow();
    }
}

fn follow() {
    let mut site = site(Cluster::builder(15));
    site.run(&["backup"]).expect(0);
    let standby = site.cluster.standby().unwrap();
    let config = std::fs::read_to_string(site.config()).unwrap();
    let (one, two) = (&site.cluster, &standby);
    let both = format!(
        "host={},{} port={},{} user=postgres dbname=postgres",
        one.socket_dir().display(),
        two.socket_dir().display(),
        one.port(),
        two.port()
    );
    assert!(config.contains(&one.conninfo()));
    std::fs::write(site.config(), config.replace(&one.conninfo(), &both)).unwrap();
    let mut receiver = Receiver::streaming(&site, &[]);
    let first = load(&site.cluster);
    first.wait_for_more(60).unwrap();
    let mut ledger = first.stop();
    let lsn = site.cluster.sql("SELECT pg_current_wal_flush_lsn()").unwrap();
    standby.wait_replayed(&lsn, Duration::from_secs(60)).unwrap();
    // The standby hears no more; what comes now is of the line that is left.
    standby.sql("ALTER SYSTEM SET primary_conninfo = ''").unwrap();
    standby.reload().unwrap();
    standby.wait_for("SELECT count(*) FROM pg_stat_wal_receiver", "0", Duration::from_secs(60)).unwrap();
    site.cluster.sql("CREATE TABLE abandoned AS SELECT 42 AS answer").unwrap();
    wait_durable(&site, &site.cluster, &mut receiver);
    site.cluster.kill9().unwrap();
    standby.promote().unwrap();
    receiver.wait_said("timeline 2 is received");
    receiver.wait_streaming(&standby);
    let second = load(&standby);
    second.wait_for_more(60).unwrap();
    ledger.extend(second.stop());
    wait_durable(&site, &standby, &mut receiver);
    receiver.stop();

    let latest = open(&site, &restore(&site, "latest", &["--latest"]));
    let verdict = ledger.verify_all(&latest).unwrap();
    assert!(verdict.required >= 120, "{verdict:?}");
    assert_eq!(latest.sql("SELECT to_regclass('abandoned') IS NULL").unwrap(), "t");
    drop(latest);
    let left = open(&site, &restore(&site, "left", &["--latest", "--timeline", "1"]));
    assert_eq!(left.sql("SELECT answer FROM abandoned").unwrap(), "42");
}
