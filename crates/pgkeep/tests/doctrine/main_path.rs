//! The main path on every supported version: backup under load, a mistake, and back to just before it.

use crate::support::Site;
use crate::world::{bare, load, lsn, open, protect_locally, restore};
use testkit::load::{Entry, Ledger, Target};
use testkit::pg::Cluster;

/// How the moment before the mistake is named.
enum Moment {
    Lsn,
    Time,
    TimeExclusive,
    RestorePoint,
    Transaction,
}

/// A moment as `restore` takes it, and as the ledger is judged by.
struct Before {
    options: Vec<String>,
    target: Target,
    /// The mistake itself, where it is a transaction that stands for the target.
    mistake: Option<Entry>,
}

/// Notes the moment, then makes the mistake.
fn mistake(cluster: &Cluster, moment: &Moment) -> Before {
    let before = |options: &[&str], target| Before {
        options: options.iter().map(|&option| option.to_owned()).collect(),
        target,
        mistake: None,
    };
    let time = || {
        let time = cluster.sql("SELECT clock_timestamp()").unwrap();
        let micros = cluster.sql(&format!("SELECT (extract(epoch FROM '{time}'::timestamptz) * 1000000)::bigint"));
        (time, Target::TimeUs(micros.unwrap().parse().unwrap()))
    };
    let insert_lsn = || cluster.sql("SELECT pg_current_wal_insert_lsn()").unwrap();
    let found = match moment {
        Moment::Lsn => {
            let text = insert_lsn();
            before(&["--lsn", &text, "--exclusive"], Target::Lsn(lsn(&text)))
        }
        Moment::Time => {
            let (text, target) = time();
            before(&["--at", &text], target)
        }
        Moment::TimeExclusive => {
            let (text, target) = time();
            before(&["--at", &text, "--exclusive"], target)
        }
        Moment::RestorePoint => {
            let text = cluster.sql("SELECT pg_create_restore_point('before the mistake')").unwrap();
            before(&["--restore-point", "before the mistake"], Target::Lsn(lsn(&text)))
        }
        Moment::Transaction => {
            let said = cluster
                .sql("BEGIN; DROP TABLE orders; SELECT pg_current_xact_id(), pg_current_wal_insert_lsn(); COMMIT")
                .unwrap();
            let (xid, lsn_before) = said.split_once('|').unwrap();
            let number = xid.parse().unwrap();
            let entry = Entry {
                client: 99,
                number: 1,
                acknowledged: true,
                xid: Some(number),
                lsn_before: Some(lsn(lsn_before)),
                lsn_after: Some(lsn(&insert_lsn())),
                time_before_us: None,
                time_after_us: None,
            };
            let found = before(&["--xid", xid, "--exclusive"], Target::BeforeXid(number));
            return Before { mistake: Some(entry), ..found };
        }
    };
    cluster.sql("DROP TABLE orders").unwrap();
    found
}

const ORDERS: &str = "SELECT count(*), sum(id), sum(length(note)) FROM orders";

fn main_path(major: u32, moment: &Moment) {
    let mut site = bare(Cluster::builder(major).checksums(true).without_fsync());
    let fast = site.cluster.make_dir("fast").unwrap();
    site.cluster.sql(&format!("CREATE TABLESPACE fast LOCATION '{}'", fast.display())).unwrap();
    site.cluster
        .sql(
            "CREATE TABLE orders TABLESPACE fast AS SELECT id, md5(id::text) AS note FROM generate_series(1, 20000) id",
        )
        .unwrap();
    protect_locally(&mut site);
    let load = load(&site.cluster);
    load.wait_for_more(20).unwrap();
    let backup = site.run(&["backup", "--json"]).expect(0).json();
    assert_eq!(backup["damaged"].as_array().unwrap().len(), 0, "{backup}");
    site.cluster.sql("UPDATE orders SET note = note || 'x' WHERE id % 3 = 0").unwrap();
    load.wait_for_more(60).unwrap();
    let orders = site.cluster.sql(ORDERS).unwrap();
    let before = mistake(&site.cluster, moment);
    load.wait_for_more(60).unwrap();
    let ledger = load.stop();
    site.archive();

    let options: Vec<&str> = before.options.iter().map(String::as_str).collect();
    let restored = restore_beside(&site, "before", &options);
    let mut notes = Ledger { entries: ledger.entries.clone() };
    notes.entries.extend(before.mistake);
    let verdict = notes.verify_before(&restored, before.target).unwrap();
    assert!(verdict.required >= 80 && verdict.excluded >= 50, "{verdict:?}");
    assert_eq!(restored.sql(ORDERS).unwrap(), orders);
    drop(restored);

    let latest = restore_beside(&site, "latest", &["--latest"]);
    ledger.verify_all(&latest).unwrap();
    assert_eq!(latest.sql("SELECT to_regclass('orders') IS NULL").unwrap(), "t");
    ledger.verify_all(&site.cluster).unwrap();
    site.run(&["verify", "--all", "--deep"]).expect(0);
}

/// Restores into a directory of that name, with the tablespace in another one, and looks where both are.
fn restore_beside(site: &Site, name: &str, options: &[&str]) -> Cluster {
    let elsewhere = site.path(&format!("{name}-fast"));
    let mapping = format!("fast={elsewhere}");
    let dir = restore(site, name, &[options, &["--tablespace", &mapping]].concat());
    let restored = open(site, &dir);
    let place = "SELECT pg_tablespace_location(oid) FROM pg_tablespace WHERE spcname = 'fast'";
    assert_eq!(restored.sql(place).unwrap(), elsewhere);
    assert_eq!(restored.sql("SHOW data_checksums").unwrap(), "on");
    restored
}

#[test]
fn main_path_on_14() {
    main_path(14, &Moment::RestorePoint);
}

#[test]
fn main_path_on_15() {
    main_path(15, &Moment::Lsn);
}

#[test]
fn main_path_on_16() {
    main_path(16, &Moment::Time);
}

#[test]
fn main_path_on_17() {
    main_path(17, &Moment::Transaction);
}

#[test]
fn main_path_on_18() {
    main_path(18, &Moment::TimeExclusive);
}
