//! Each version: the server and its disk are lost, and what was streamed brings all of it back.

use crate::receiver::{Receiver, lose_spool, site, wait_durable};
use crate::world::{open, restore};
use testkit::pg::Cluster;

fn streams(major: u32) {
    let mut site = site(Cluster::builder(major));
    site.run(&["backup"]).expect(0);
    let mut receiver = Receiver::streaming(&site, &[]);
    site.cluster.sql("CREATE TABLE t AS SELECT g, md5(g::text) FROM generate_series(1, 30000) g").unwrap();
    site.cluster.sql("INSERT INTO t VALUES (0, 'the last one')").unwrap();
    wait_durable(&site, &site.cluster, &mut receiver);
    receiver.kill();
    site.cluster.kill9().unwrap();
    lose_spool(&site);
    let restored = open(&site, &restore(&site, "restored", &["--latest"]));
    assert_eq!(restored.sql("SELECT count(*), min(md5) FILTER (WHERE g = 0) FROM t").unwrap(), "30001|the last one");
}

#[test]
fn postgresql_14_streams() {
    streams(14);
}

#[test]
fn postgresql_16_streams() {
    streams(16);
}

#[test]
fn postgresql_17_streams() {
    streams(17);
}

#[test]
fn postgresql_18_streams() {
    streams(18);
}
