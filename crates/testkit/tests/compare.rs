//! The page comparison says equal where PostgreSQL's own recovery made a copy, and finds a changed bit.

use std::os::unix::fs::FileExt;
use std::time::Duration;
use testkit::compare::{amcheck, checksums, compare_dirs, controldata, dumps_are_equal, index_only_scans_agree};
use testkit::load::{Ledger, LoadOptions, fill};
use testkit::pg::{Cluster, StopMode};

#[test]
fn a_standby_equals_its_primary_until_a_byte_changes() {
    let mut primary = Cluster::builder(15).without_fsync().start().unwrap();
    fill(&primary, 8).unwrap();
    primary
        .sql(
            "CREATE UNLOGGED TABLE fleeting AS SELECT g FROM generate_series(1, 1000) g;
             CREATE SEQUENCE s; SELECT nextval('s'); CREATE INDEX ON documents USING spgist (title)",
        )
        .unwrap();
    let mut standby = primary.standby().unwrap();
    let load = Ledger::start(&primary, LoadOptions { clients: 2, pause: Duration::ZERO }).unwrap();
    load.wait_for_more(200).unwrap();
    primary
        .sql("DELETE FROM orders WHERE id % 7 = 0; VACUUM orders; UPDATE events SET value = 0 WHERE id % 50 = 0")
        .unwrap();
    let ledger = load.stop();
    let lsn = primary.sql("SELECT pg_current_wal_insert_lsn()").unwrap();
    standby.wait_replayed(&lsn, Duration::from_secs(60)).unwrap();
    ledger.verify_all(&standby).unwrap();
    index_only_scans_agree(&standby, "postgres").unwrap();
    primary.stop(StopMode::Fast).unwrap();
    standby.stop(StopMode::Fast).unwrap();
    assert_eq!(controldata(&primary, "Database cluster state").unwrap(), "shut down");
    let comparison = compare_dirs(primary.data_dir(), standby.data_dir()).unwrap();
    comparison.require_equal().unwrap();
    assert!(comparison.files > 500 && comparison.pages > 3000, "{comparison:?}");
    checksums(&standby).unwrap();

    // PostgreSQL's own checks, on running servers.
    primary.start_again().unwrap();
    let path = primary.sql("SELECT pg_relation_filepath('orders')").unwrap();
    primary.stop(StopMode::Fast).unwrap();
    standby.set_option("shared_buffers", "32MB");
    std::fs::remove_file(standby.data_dir().join("standby.signal")).unwrap();
    standby.start_again().unwrap();
    primary.start_again().unwrap();
    dumps_are_equal(&primary, &standby).unwrap();
    amcheck(&standby).unwrap();
    standby.sql("UPDATE orders SET note = 'other' WHERE id = (SELECT min(id) FROM orders)").unwrap();
    assert!(dumps_are_equal(&primary, &standby).unwrap_err().to_string().contains("differ in line"));
    primary.stop(StopMode::Fast).unwrap();
    standby.stop(StopMode::Fast).unwrap();

    // One byte of a row changes; a file goes; a strange file comes.
    let file = std::fs::OpenOptions::new().read(true).write(true).open(standby.data_dir().join(&path)).unwrap();
    let mut byte = [0_u8];
    file.read_exact_at(&mut byte, 8192 * 3 - 20).unwrap();
    file.write_all_at(&[byte[0] ^ 1], 8192 * 3 - 20).unwrap();
    std::fs::write(standby.data_dir().join("base/1/stranger"), "x").unwrap();
    std::fs::remove_file(standby.data_dir().join("PG_VERSION")).unwrap();
    let found = compare_dirs(primary.data_dir(), standby.data_dir()).unwrap();
    let texts: Vec<String> = found.differences.iter().map(ToString::to_string).collect();
    assert!(texts.iter().any(|text| text.starts_with(&format!("{path}: "))), "{texts:?}");
    assert!(texts.contains(&"base/1/stranger: only in the copy".to_owned()), "{texts:?}");
    assert!(texts.contains(&"PG_VERSION: only in the origin".to_owned()), "{texts:?}");
    assert!(checksums(&standby).is_err());
}
