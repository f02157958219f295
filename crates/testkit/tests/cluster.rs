//! What clusters of the test kit do.

use std::time::Duration;
use testkit::pg::{Cluster, StopMode, processes_in};

#[test]
fn a_cluster_lives_crashes_and_goes() {
    let mut cluster = Cluster::builder(15).wal_segsize_mb(1).conf("log_line_prefix", "it's %p ").start().unwrap();
    assert_eq!(cluster.sql("SHOW data_checksums").unwrap(), "on");
    assert_eq!(cluster.sql("SHOW wal_segment_size").unwrap(), "1MB");
    assert_eq!(cluster.sql("SHOW log_line_prefix").unwrap(), "it's %p ");
    cluster.sql("CREATE TABLE t (i int); INSERT INTO t VALUES (7)").unwrap();
    let data = cluster.data_dir().to_owned();
    assert!(processes_in(&data).len() > 3);
    cluster.kill9().unwrap();
    assert_eq!(processes_in(&data), Vec::<i32>::new());
    cluster.start_again().unwrap();
    assert_eq!(cluster.sql("SELECT i FROM t").unwrap(), "7");
    assert!(cluster.log().contains("was not properly shut down"), "{}", cluster.log());
    let error = cluster.sql("SELECT nonsense").unwrap_err().to_string();
    assert!(error.contains("column \"nonsense\" does not exist"), "{error}");
    let home = cluster.home().to_owned();
    drop(cluster);
    assert!(!home.exists());
    assert_eq!(processes_in(&data), Vec::<i32>::new());
}

#[test]
fn a_panic_removes_the_server() {
    let (sender, receiver) = std::sync::mpsc::channel();
    let thread = std::thread::spawn(move || {
        let cluster = Cluster::builder(15).start().unwrap();
        sender.send((cluster.home().to_owned(), cluster.postmaster_pid().unwrap())).unwrap();
        panic!("as a failing test does");
    });
    assert!(thread.join().is_err());
    let (home, pid) = receiver.recv().unwrap();
    assert!(!home.exists());
    assert!(!std::path::Path::new(&format!("/proc/{pid}/cwd")).exists());
}

#[test]
fn a_standby_follows_and_is_promoted() {
    let cluster = Cluster::builder(15).without_fsync().start().unwrap();
    let standby = cluster.standby().unwrap();
    cluster.sql("CREATE TABLE t AS SELECT 42 AS i").unwrap();
    let lsn = cluster.sql("SELECT pg_current_wal_insert_lsn()").unwrap();
    standby.wait_replayed(&lsn, Duration::from_secs(60)).unwrap();
    assert_eq!(standby.sql("SELECT i, pg_is_in_recovery() FROM t").unwrap(), "42|t");
    standby.promote().unwrap();
    assert_eq!(standby.sql("SELECT pg_is_in_recovery()").unwrap(), "f");
}

#[test]
fn archiving_and_adopting_a_copy() {
    let mut cluster = Cluster::builder(15).without_fsync().archive_command("/bin/true").tcp().start().unwrap();
    let segment = cluster.switch_wal().unwrap();
    cluster.wait_archived(&segment, Duration::from_secs(60)).unwrap();
    std::net::TcpStream::connect(("127.0.0.1", cluster.port())).unwrap();
    cluster.sql("CREATE TABLE t AS SELECT 1 AS i").unwrap();
    cluster.stop(StopMode::Fast).unwrap();
    let copy = cluster.home().join("copy");
    let copied =
        cluster.run_as_pg("cp", &["-a", cluster.data_dir().to_str().unwrap(), copy.to_str().unwrap()]).unwrap();
    assert!(copied.success());
    let mut adopted = Cluster::adopt(&copy, 15).unwrap();
    adopted.set_option("archive_mode", "off");
    adopted.start_again().unwrap();
    cluster.start_again().unwrap();
    assert_eq!(adopted.sql("SELECT i FROM t").unwrap(), "1");
    assert_eq!(adopted.sql("SHOW archive_mode").unwrap(), "off");
    drop(adopted);
    assert!(copy.join("PG_VERSION").exists(), "an adopted directory stays");
    assert!(Cluster::adopt(&copy, 16).is_err());
}

#[tokio::test]
async fn asynchronous_connections() {
    let cluster = Cluster::builder(15).without_fsync().checksums(false).start().unwrap();
    let client = cluster.connect().await.unwrap();
    let row = client.query_one("SHOW data_checksums", &[]).await.unwrap();
    assert_eq!(row.get::<_, String>(0), "off");
}
