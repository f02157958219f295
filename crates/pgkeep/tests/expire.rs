//! Backups that share pages go one after the other, by name and by rule, and the others restore.
#![allow(clippy::unwrap_used, reason = "tests fail by panicking")]

mod support;

use serde_json::Value;
use support::Site;

/// A server with backups that build on each other. Each has a row of its own, and changed pages of a larger table.
fn with_backups(count: i64) -> (Site, Vec<String>) {
    let site = Site::new();
    site.cluster
        .sql("CREATE TABLE big AS SELECT g AS id, repeat('x', 500) AS t FROM generate_series(1, 4000) g")
        .unwrap();
    site.cluster.sql("CREATE TABLE marks (v int)").unwrap();
    let mut ids = Vec::new();
    for number in 0..count {
        site.cluster.sql(&format!("INSERT INTO marks VALUES ({number})")).unwrap();
        site.cluster.sql(&format!("UPDATE big SET t = '{number}' WHERE id % 50 = {number}")).unwrap();
        let made = site.run(&["backup", "--json"]).expect(0).json();
        ids.push(made["backup"].as_str().unwrap().to_owned());
    }
    site.archive();
    (site, ids)
}

fn ids(list: &Value) -> Vec<&str> {
    list.as_array().unwrap().iter().map(|backup| backup["id"].as_str().or(backup["backup"].as_str()).unwrap()).collect()
}

/// The number of files below a directory of the repository.
fn files(site: &Site, below: &str) -> usize {
    fn count(dir: &std::path::Path) -> usize {
        let entries = std::fs::read_dir(dir).map(|entries| entries.flatten().collect()).unwrap_or_else(|_| Vec::new());
        entries.iter().map(|entry| if entry.path().is_dir() { count(&entry.path()) } else { 1 }).sum()
    }
    count(&site.repository().join("clusters/main").join(below))
}

#[test]
fn what_others_build_on_can_go() {
    let (site, ids) = with_backups(4);
    let built: Vec<Value> =
        ids.iter().map(|id| site.run(&["show", id, "--json"]).expect(0).json()["backup"]["prior"].clone()).collect();
    assert_eq!(built[1..], ids[..3].iter().map(|id| Value::from(id.as_str())).collect::<Vec<_>>(), "they share");

    // Without a terminal nothing is asked and nothing is done.
    let packs = files(&site, "packs");
    site.run(&["delete", &ids[0]]).expect(2).says(&["there is no terminal", "--yes"]);
    let shown = site.run(&["delete", &ids[0], "--dry-run"]).expect(0);
    assert!(shown.stdout.contains(&ids[0]) && shown.stdout.contains("STAYS"), "{}", shown.stdout);
    assert_eq!(
        (files(&site, "packs"), site.run(&["list", "--json"]).json()["backups"].as_array().unwrap().len()),
        (packs, 4)
    );

    for id in [&ids[0], &ids[2]] {
        let gone = site.run(&["delete", id, "--yes", "--grace", "0", "--json"]).expect(0).json();
        assert_eq!(gone["deletion"]["deleted"], Value::from(vec![id.as_str()]));
        site.run(&["show", id]).expect(3);
    }
    assert!(files(&site, "packs") < packs);
    let verified = site.run(&["verify", "--all", "--deep", "--json"]).expect(0).json();
    assert_eq!(verified["findings"], Value::from(Vec::<Value>::new()), "nothing is damaged, and nothing left over");
    for (number, id) in [(1, &ids[1]), (3, &ids[3])] {
        let dir = format!("restored-{number}");
        site.run(&["restore", "--to-dir", &site.path(&dir), "--backup", id, "--immediate", "--action", "promote"])
            .expect(0);
        let restored = site.open(&dir);
        assert_eq!(restored.sql("SELECT max(v) FROM marks").unwrap(), number.to_string());
        assert_eq!(restored.sql("SELECT count(*), max(id) FROM big WHERE t = '0'").unwrap(), "80|4000");
    }
    // The last ones: not without saying so.
    let last = [ids[1].as_str(), ids[3].as_str()];
    site.run(&[&["delete", "--yes"], &last[..]].concat()).expect(1).says(&["the last good backup", "--even-the-last"]);
    site.run(&[&["delete", "--yes", "--even-the-last", "--grace", "0"], &last[..]].concat()).expect(0);
    assert_eq!(files(&site, "packs"), 0);
}

#[test]
fn a_rule_and_pins_say_what_stays() {
    let (site, ids) = with_backups(4);
    site.run(&["expire"]).expect(2).says(&["nothing says which backups", "--keep-last N", "[cluster.main.expire]"]);
    let config = std::fs::read_to_string(site.config()).unwrap();
    std::fs::write(site.config(), format!("{config}\n[cluster.main.expire]\nkeep-last = 2\ngrace = \"1h\"\n")).unwrap();

    site.run(&["pin", &ids[1], "--until", "30d", "--reason", "audit"]).expect(0);
    site.run(&["pin", "latest", "--until", "2001-01-01"]).expect(2).says(&["is over already"]);
    site.run(&["pin", "20010101T000000Z"]).expect(3);
    let list = site.run(&["list", "--json"]).expect(0).json();
    assert_eq!(
        (list["backups"][1]["pin"]["reason"].as_str(), list["backups"][0]["pin"].as_str()),
        (Some("audit"), None)
    );
    assert!(site.run(&["show", &ids[1]]).expect(0).stdout.contains("audit"));
    site.run(&["delete", &ids[1], "--yes"]).expect(1).says(&["is pinned until", "(audit)", "pgkeep unpin"]);

    let (packs, wal) = (files(&site, "packs"), files(&site, "wal"));
    let gone = site.run(&["expire", "--json"]).expect(0).json();
    assert_eq!(gone["deletion"]["deleted"], Value::from(vec![ids[0].as_str()]));
    assert_eq!(files(&site, "packs"), packs, "the grace is not over");
    assert!(files(&site, "wal") < wal, "WAL before the oldest backup is gone");
    // What is kept for the grace is nothing to warn of.
    site.run(&["verify", "--all"]).expect(0);
    let freed = site.run(&["expire", "--keep-all", "--grace", "0", "--json"]).expect(0).json();
    assert_eq!(
        (freed["deletion"]["deleted"].as_array().unwrap().len(), freed["plan"]["backups"].as_array().unwrap().len()),
        (0, 0)
    );
    assert!(freed["deletion"]["freed_packs"].as_u64().unwrap() > 0 && files(&site, "packs") < packs);

    site.run(&["unpin", &ids[1]]).expect(0);
    site.run(&["unpin", &ids[1]]).expect(3);
    site.run(&["expire", "--grace", "0"]).expect(0);
    let list = site.run(&["list", "--json"]).expect(0).json();
    assert_eq!(self::ids(&list["backups"]), ids[2..]);
    site.run(&["verify", "--all", "--deep"]).expect(0);
    site.run(&["status"]).expect(0);
    // The oldest one recovers to the end.
    site.run(&["restore", "--to-dir", &site.path("restored"), "--backup", &ids[2], "--latest"]).expect(0);
    assert_eq!(site.open("restored").sql("SELECT count(*) FROM marks").unwrap(), "4");
}

#[test]
fn a_backup_is_pinned_as_it_is_made() {
    let site = Site::new();
    site.run(&["backup", "--pin", "soon"]).expect(2);
    let made = site.run(&["backup", "--pin", "forever", "--json"]).expect(0).json();
    assert_eq!(made["pin"]["until"], Value::Null);
    let id = made["backup"].as_str().unwrap();
    assert_eq!(made["pin"]["backup"], id);
    site.run(&["delete", id, "--yes", "--even-the-last"]).expect(1).says(&["is pinned for ever"]);
}
