//! Every supported version on this machine runs, and its tools go with it.

use std::time::Duration;
use testkit::load::{Ledger, LoadOptions, fill};
use testkit::pg::{Cluster, PgInstall, SUPPORTED, StopMode};

#[test]
fn every_supported_version_is_installed() {
    for major in SUPPORTED {
        PgInstall::find(major).unwrap();
    }
}

#[test]
fn data_ledger_crash_and_standby_on_every_version() {
    for major in SUPPORTED {
        let mut cluster = Cluster::builder(major).without_fsync().start().unwrap();
        let version = cluster.sql("SHOW server_version_num").unwrap();
        assert_eq!(version.parse::<u32>().unwrap() / 10_000, major);
        fill(&cluster, 8).unwrap();
        let load = Ledger::start(&cluster, LoadOptions { clients: 2, pause: Duration::from_millis(1) }).unwrap();
        load.wait_for_more(20).unwrap();
        cluster.kill9().unwrap();
        cluster.start_again().unwrap();
        load.stop().verify_all(&cluster).unwrap();
        let standby = cluster.standby().unwrap();
        assert_eq!(standby.sql("SELECT pg_is_in_recovery()").unwrap(), "t");
        drop(standby);
        cluster.sql("CREATE EXTENSION amcheck").unwrap();
        cluster.tool("pg_amcheck", &["--all", "--heapallindexed", "--parent-check"]).unwrap();
        cluster.stop(StopMode::Fast).unwrap();
        let data = cluster.data_dir().to_str().unwrap();
        cluster.tool("pg_checksums", &["--check", "-D", data]).unwrap();
    }
}

#[test]
fn checksums_can_be_off_on_every_version() {
    for install in PgInstall::installed(&SUPPORTED) {
        let cluster = Cluster::builder(install.major()).checksums(false).start().unwrap();
        assert_eq!(cluster.sql("SHOW data_checksums").unwrap(), "off");
    }
}
