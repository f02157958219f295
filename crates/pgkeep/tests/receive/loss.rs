//! The server and its disk vanish under load: a moment is lost, or, when commits wait for the receiver, nothing.

use crate::receiver::{Receiver, lose_spool, rounds, site, wait_durable};
use crate::support::Site;
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

/// A mistake of which no segment was archived yet is found all the same.
fn found_in_the_tail(site: &Site, receiver: &mut Receiver) {
    site.archive();
    site.cluster.sql("CREATE TABLE mistake AS SELECT 1 AS x").unwrap();
    site.cluster.sql("DROP TABLE mistake").unwrap();
    wait_durable(site, &site.cluster, receiver);
    let found = site.run(&["find", "drop", "mistake"]).expect(0);
    assert!(found.stdout.contains("drop table postgres.public.mistake"), "{}", found.stdout);
    let before = site.path("before");
    site.run(&["restore", "--to-dir", &before, "--before", "drop mistake", "--dry-run"]).expect(0);
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
            let mut receiver = Receiver::streaming(&site, options);
            if windows.is_empty() {
                found_in_the_tail(&site, &mut receiver);
            }
            let load = load(&site.cluster);
            load.wait_for_more(50).unwrap();
            wait_durable(&site, &site.cluster, &mut receiver);
            let status = site.run(&["status"]);
            assert!(status.stdout.contains("streams from"), "{}", status.stdout);
            load.wait_for_more(200).unwrap();
            // The server's host and the receiver's at the same moment; what is acknowledged in between counts.
            receiver.kill();
            site.cluster.kill9().unwrap();
            let ledger = load.stop();
            if mode == "spool" {
                // The receiver's host comes back, and the server does not.
                let mut receiver = Receiver::start(&site, options);
                receiver.wait_said("the stream is interrupted");
                receiver.stop();
            } else {
                lose_spool(&site);
            }
            let restored = open(&site, &restore(&site, &format!("{mode}{round}"), &["--latest"]));
            let (seconds, count) = lost(&ledger, &restored);
            println!("{mode}, round {round}: {count} commits lost, {seconds:.3} s");
            all.extend(ledger);
            if mode == "async" {
                windows.push(seconds);
                // Two seconds are the goal, for those who measure it; a machine that does much else gets more.
                let goal = if rounds() > 1 { 2.0 } else { 20.0 };
                assert!(seconds < goal, "{count} acknowledged commits are lost, of {seconds} s");
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
