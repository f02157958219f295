//! The server is killed under load, and what was acknowledged is judged twice: from the archive alone, as when the
//! host is lost, and after the server came back.

use crate::world::{bare, files, load, open, protect_locally, restore};
use pg_format::{SegmentName, WalSegmentSize};
use testkit::load::Target;
use testkit::pg::Cluster;

#[test]
fn ledger_survives_kill9() {
    let mut site = bare(Cluster::builder(15).wal_segsize_mb(1));
    protect_locally(&mut site);
    let load = load(&site.cluster);
    load.wait_for_more(20).unwrap();
    site.run(&["backup"]).expect(0);
    load.wait_for_more(100).unwrap();
    // Something lies in the archive after the backup, and the next segment is begun.
    site.archive();
    load.wait_for_more(60).unwrap();
    site.cluster.kill9().unwrap();
    assert!(load.acknowledged() >= 180);

    // The host is lost: only the archive is left. It ends somewhere, and up to there nothing may be missing.
    let status = site.run(&["wal", "status", "--json"]).expect(0).json();
    let last = status["systems"][0]["timelines"][0]["last"].as_str().unwrap().to_owned();
    let name: SegmentName = last.parse().unwrap();
    let end = name.segno(WalSegmentSize::new(1 << 20).unwrap()).unwrap();
    let end = (end.0 + 1) << 20;
    let dir = restore(&site, "lost", &["--latest"]);
    let before = files(&site.repository());
    let mut lost = open(&site, &dir);
    // It writes, and still nothing of it comes into the archive.
    lost.sql("CREATE TABLE after AS SELECT g FROM generate_series(1, 1000) g; SELECT pg_switch_wal()").unwrap();
    lost.sql("CHECKPOINT").unwrap();
    lost.stop(testkit::pg::StopMode::Fast).unwrap();
    assert_eq!(files(&site.repository()), before, "the restored server wrote into the archive of its origin");
    lost.start_again().unwrap();
    assert_eq!(lost.sql("SHOW archive_mode").unwrap(), "off");

    // The host comes back, and the clients with it.
    site.cluster.start_again().unwrap();
    assert!(site.cluster.log().contains("was not properly shut down"));
    load.wait_for_more(60).unwrap();
    let ledger = load.stop();
    let verdict = ledger.verify_before(&lost, Target::Lsn(end)).unwrap();
    assert!(verdict.required >= 120 && verdict.excluded >= 60, "{verdict:?}");
    drop(lost);
    site.archive();
    let whole = open(&site, &restore(&site, "whole", &["--latest"]));
    let verdict = ledger.verify_all(&whole).unwrap();
    assert!(verdict.required >= 240, "{verdict:?}");
    site.run(&["verify", "--all"]).expect(0);
    site.run(&["status"]).expect(0);
}
