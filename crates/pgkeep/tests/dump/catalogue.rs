//! Dumps are kept as backups are: pins, rules, and what broken-off ones left.

use crate::support::Site;
use serde_json::Value;

fn made(site: &Site, args: &[&str]) -> String {
    let made = site.run(&[&["dump", "--json"][..], args].concat()).expect(0).json();
    made["dump"].as_str().unwrap().to_owned()
}

fn ids(list: &Value) -> Vec<String> {
    list.as_array().unwrap().iter().map(|one| one["id"].as_str().unwrap().to_owned()).collect()
}

#[test]
fn dumps_are_pinned_and_expire_by_a_rule_of_their_own() {
    let site = Site::bare();
    site.init(&[]).expect(0);
    site.cluster.sql("CREATE TABLE t AS SELECT g FROM generate_series(1, 1000) g; CREATE DATABASE other").unwrap();
    let whole: Vec<String> = (0..4).map(|_| made(&site, &[])).collect();
    let part = made(&site, &["--schema-only"]);
    let other = made(&site, &["-d", "other", "--pin", "forever"]);
    let listed = || site.run(&["list", "--json"]).expect(0).json()["dumps"].clone();
    let mut all = whole.clone();
    all.extend([part.clone(), other.clone()]);
    assert_eq!(ids(&listed()), all, "an ID for each, though they were made in the same second");

    // What is pinned is not deleted.
    site.run(&["pin", &whole[0], "--until", "30d", "--reason", "audit"]).expect(0);
    assert_eq!(listed()[0]["pin"]["reason"], "audit");
    let shown = site.run(&["show", &whole[0]]).expect(0);
    assert!(shown.stdout.contains("audit"), "{}", shown.stdout);
    site.run(&["delete", &whole[0], "--yes"]).expect(1).says(&["is pinned", "audit", "pgkeep unpin"]);
    site.run(&["delete", &whole[0], "--dry-run"]).expect(1);

    // Each kind for itself: the one dump of definitions alone is not pushed out by those of everything.
    site.run(&["expire"]).expect(2).says(&["keep-dumps"]);
    let plan = site.run(&["expire", "--keep-dumps", "2", "--dry-run", "--json"]).expect(0).json();
    assert_eq!(plan["dump_plan"]["dumps"][0]["dump"], whole[1].as_str(), "{plan}");
    assert_eq!(plan["dump_plan"]["dumps"].as_array().unwrap().len(), 1, "{plan}");
    assert!(plan["dump_deletion"].is_null() && plan["plan"].is_null(), "{plan}");
    assert_eq!(listed().as_array().unwrap().len(), 6, "a plan changes nothing");
    let config = std::fs::read_to_string(site.config()).unwrap();
    std::fs::write(site.config(), format!("{config}\n[expire]\nkeep-dumps = 2\n")).unwrap();
    let done = site.run(&["expire", "--json"]).expect(0).json();
    assert_eq!(done["dump_deletion"]["deleted"], serde_json::json!([whole[1]]), "{done}");
    assert_eq!(
        ids(&listed()).join(" "),
        [&whole[0], &whole[2], &whole[3], &part, &other].map(String::as_str).join(" ")
    );
    site.run(&["unpin", &whole[0]]).expect(0);
    let said = site.run(&["expire", "--keep-dumps", "1"]).expect(0);
    assert!(said.stdout.contains("DUMP GOES") && said.stdout.contains("Deleted: 2 dumps"), "{}", said.stdout);
    assert_eq!(ids(&listed()).join(" "), [&whole[3], &part, &other].map(String::as_str).join(" "));
    site.run(&["expire", "--keep-all"]).expect(0);
    assert_eq!(listed().as_array().unwrap().len(), 3);
    site.run(&["unpin", &other]).expect(0);
    site.run(&["unpin", &other]).expect(3).says(&["is not pinned"]);
    site.run(&["delete", &other, "--yes"]).expect(0);
    site.run(&["pin", &other]).expect(3);
}

/// A dump is loaded, and its rows are compared with what was counted when it was made.
#[test]
fn a_deep_look_loads_the_dump_and_compares_its_rows() {
    let site = crate::site();
    site.cluster.psql_db("origin", "CREATE TABLE public.times AS SELECT now() AS at, 'x'::bytea AS b").unwrap();
    let id = made(&site, &["-d", "origin", "--globals", "--part-size", "1MB", "-j", "2"]);
    let scratch = site.dir.join("scratch");
    std::fs::create_dir(&scratch).unwrap();
    site.cluster.user().own(&scratch).unwrap();
    let dir = scratch.to_string_lossy().into_owned();
    let deep = ["verify", &id, "--deep", "--json"];
    let found = site.run(&[&deep[..], &["--scratch-dir", &dir]].concat()).expect(0).json();
    let database = &found["deep"]["databases"][0];
    assert_eq!(database["differences"].as_array().unwrap().len(), 0, "{found}");
    assert_eq!(database["not_compared"].as_array().unwrap().len(), 0, "{found}");
    assert_eq!(database["large_objects"], 3, "{found}");
    assert!(database["tables_summed"].as_u64().unwrap() > 10, "{found}");
    assert_eq!(database["tables"], database["tables_summed"]);
    assert_eq!(std::fs::read_dir(&scratch).unwrap().count(), 0, "nothing is left of the server");

    // The same on a server of one's own, where nothing is left either.
    let into = site.cluster.conninfo();
    let found = site.run(&[&deep[..], &["--into", &into]].concat()).expect(0).json();
    assert_eq!(found["deep"]["databases"][0]["differences"].as_array().unwrap().len(), 0, "{found}");
    let left = site.cluster.sql("SELECT count(*) FROM pg_database WHERE datname LIKE 'pgkeep%'").unwrap();
    assert_eq!(left, "0");

    // It is for a dump, and reads more than bytes only when it is asked to.
    site.run(&["verify", "latest", "--into", &into]).expect(2);
    site.run(&["verify", "--all", "--deep"]).expect(0);
}
