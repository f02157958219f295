//! The server and its disk vanish under load: a moment is lost, or, when commits wait for the receiver, nothing.

use crate::receiver::{Receiver, lose_spool, rounds, site};
use crate::world::{load, open, restore};
use std::collections::HashSet;
use testkit::load::Ledger;
use testkit::pg::Cluster;

/// How far back from the last acknowledged commit the first lost one lies, in seconds, and how many are lost.
fn lost(ledger: &Ledger, restored: &Cluster) -> (f64, usize) {
    let rows = restored.sql("SELECT client || ' ' || number FROM ledger").unwrap();
    let present: HashSet<(u32, u64)> = rows
        .lines()
        .map(|row| {
            let (client, number) = row.split_once(' ').unwrap();
            (client.parse().unwrap(), number.parse().unwrap())
        })
        .collect();
    let acknowledged = || ledger.entries.iter().filter(|entry| entry.acknowledged);
    let lost: Vec<_> = acknowledged().filter(|entry| !present.contains(&(entry.client, entry.number))).collect();
    let last = acknowledged().filter_map(|entry| entry.time_before_us).max().unwrap();
    let first = lost.iter().filter_map(|entry| entry.time_before_us).min().unwrap_or(last);
    ((last - first) as f64 / 1e6, lost.len())
}

#[test]
fn a_lost_server_costs_a_moment_or_nothing() {
    let mut site = site(Cluster::builder(15));
    site.run(&["backup"]).expect(0);
    let mut all = Ledger::default();
    let mut windows = Vec::new();
    for round in 0..rounds() {
        for (mode, names, options) in [
            ("async", "", &[][..]),
            ("spool", "pgkeep", &[][..]),
            ("repository", "pgkeep", &["--flush", "repository"][..]),
        ] {
            site.cluster.sql(&format!("ALTER SYSTEM SET synchronous_standby_names = '{names}'")).unwrap();
            site.cluster.reload().unwrap();
            let receiver = Receiver::streaming(&site, options);
            let load = load(&site.cluster);
            load.wait_for_more(150).unwrap();
            // The server's host and the receiver's at the same moment; what is acknowledged in between counts.
            receiver.kill();
            site.cluster.kill9().unwrap();
            let ledger = load.stop();
            if mode == "spool" {
                // The receiver's host comes back, and the server does not.
                let receiver = Receiver::start(&site, options);
                receiver_drains(&site, receiver);
            } else {
                lose_spool(&site);
            }
            let restored = open(&site, &restore(&site, &format!("{mode}{round}"), &["--latest"]));
            let (seconds, count) = lost(&ledger, &restored);
            println!("{mode}, round {round}: {count} commits lost, {seconds:.3} s");
            all.extend(ledger);
            if mode == "async" {
                windows.push(seconds);
                assert!(seconds < 2.0, "{count} acknowledged commits are lost, of {seconds} s");
            } else {
                let verdict = all.verify_all(&restored).unwrap();
                assert!(verdict.required >= 150, "{verdict:?}");
            }
            drop(restored);
            // It was not lost after all: the next round goes on from there.
            site.cluster.start_again().unwrap();
        }
    }
    windows.sort_by(f64::total_cmp);
    println!("lost by the asynchronous one, in seconds: {windows:.3?}");
}

/// Without a server, what lies in the spool goes to the repository.
fn receiver_drains(site: &crate::support::Site, mut receiver: Receiver) {
    receiver.wait("it is drained", || {
        let state = crate::receiver::state(site);
        let (spooled, durable) = (&state["spooled_lsn"], &state["repositories"][0]["durable_lsn"]);
        state["running"] == true && state["server"].is_null() && (spooled == durable || state["spool_segments"] == 0)
    });
    receiver.stop();
}
