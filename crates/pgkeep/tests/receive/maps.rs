//! Names in the index of segments that came by the stream, after a catalog was rewritten: the receiver has no data
//! directory to look into.

use crate::receiver::{Receiver, lose_spool, site, wait_durable};
use crate::support::Site;
use crate::world::files;
use testkit::pg::Cluster;

/// Ends the segment that is written, and waits until its object is in the repository.
fn end_segment(site: &Site, receiver: &mut Receiver) {
    let name = site.cluster.sql("SELECT pg_walfile_name(pg_current_wal_insert_lsn())").unwrap();
    site.cluster.sql("SELECT pg_switch_wal()").unwrap();
    let wal = site.repository().join("clusters/main/wal");
    receiver.wait(&name, || files(&wal).iter().any(|(path, _)| path.ends_with(&name)));
}

fn make_and_drop(site: &Site, receiver: &mut Receiver, table: &str) {
    site.cluster.sql(&format!("CREATE TABLE {table} (a int)")).unwrap();
    end_segment(site, receiver);
    site.cluster.sql(&format!("DROP TABLE {table}")).unwrap();
    end_segment(site, receiver);
}

fn dropped(site: &Site) -> Vec<String> {
    let found = site.run(&["find", "drop", "--json"]).expect(0).json();
    let hits = found["hits"].as_array().unwrap().iter();
    hits.map(|hit| hit["objects"][0]["name"].as_str().unwrap_or_default().to_owned()).collect()
}

#[test]
fn rewritten_catalogs_give_names_to_who_only_streams() {
    let site = site(Cluster::builder(15));
    site.run(&["backup"]).expect(0);
    site.cluster.sql("ALTER SYSTEM SET archive_command = 'false'").unwrap();
    site.cluster.reload().unwrap();
    // A login that can be asked nothing.
    site.cluster.sql("CREATE ROLE streamer LOGIN REPLICATION").unwrap();
    site.cluster.sql("REVOKE CONNECT ON DATABASE postgres FROM PUBLIC").unwrap();
    let config = std::fs::read_to_string(site.config()).unwrap();
    let asked = site.cluster.conninfo();
    let streamer = asked.replace("user=postgres", "user=streamer");
    assert_ne!(asked, streamer);
    std::fs::write(site.config(), config.replace(&asked, &streamer)).unwrap();
    // The WAL tells it.
    let mut receiver = Receiver::streaming(&site, &[]);
    site.cluster.sql("VACUUM FULL pg_class").unwrap();
    end_segment(&site, &mut receiver);
    make_and_drop(&site, &mut receiver, "told_by_wal");
    receiver.kill();
    // It is kept.
    let mut receiver = Receiver::streaming(&site, &[]);
    make_and_drop(&site, &mut receiver, "told_by_the_last_one");
    receiver.stop();
    assert_eq!(dropped(&site), ["told_by_wal", "told_by_the_last_one"]);
    // Who may be asked is asked.
    lose_spool(&site);
    std::fs::write(site.config(), config).unwrap();
    let mut receiver = Receiver::streaming(&site, &[]);
    make_and_drop(&site, &mut receiver, "told_by_the_server");
    // In a segment that is not whole yet.
    site.cluster.sql("CREATE TABLE in_the_tail (a int)").unwrap();
    site.cluster.sql("DROP TABLE in_the_tail").unwrap();
    wait_durable(&site, &site.cluster, &mut receiver);
    receiver.stop();
    let all = ["told_by_wal", "told_by_the_last_one", "told_by_the_server", "in_the_tail"];
    assert_eq!(dropped(&site), all);
}
