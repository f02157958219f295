//! `copy --to REPO`: dumps in another repository.

use crate::support::Site;
use crate::{as_text, same};
use std::path::PathBuf;
use std::process::Stdio;

/// A site with a second repository, `far`, that has another key, and none of the cluster's backups.
fn with_far(key: &[&str]) -> Site {
    let site = Site::bare();
    site.init(&[]).expect(0);
    let (conninfo, far) = (site.cluster.conninfo(), site.path("far"));
    let args = ["init", "main", "--pg", &conninfo, "--repo", &far, "--repo-name", "far"];
    let key: Vec<String> =
        key.iter().map(|word| if word.ends_with(".key") { site.path(word) } else { (*word).to_owned() }).collect();
    let key: Vec<&str> = key.iter().map(String::as_str).collect();
    let before = site.cluster.sql("SHOW archive_command").unwrap();
    let refused = site.run(&[&args[..], &key].concat()).expect(2);
    assert!(refused.stderr.contains("--for-copies"), "{}", refused.stderr);
    site.run(&[&args[..], &key, &["--for-copies"]].concat()).expect(0);
    let config = std::fs::read_to_string(site.config()).unwrap();
    assert!(config.contains("[repository.far]") && config.contains("repository = \"main\""), "{config}");
    assert_eq!(site.cluster.sql("SHOW archive_command").unwrap(), before);
    site.cluster.sql("CREATE DATABASE origin").unwrap();
    let sql = "CREATE TABLE t AS SELECT g AS id, md5(g::text) || md5((-g)::text) AS x FROM generate_series(1, 120000) g; \
        ALTER TABLE t ADD PRIMARY KEY (id); SELECT lo_from_bytea(7, 'large')";
    site.cluster.psql_db("origin", sql).unwrap();
    site
}

fn objects(site: &Site, repository: &str, id: &str) -> Vec<PathBuf> {
    let dir = site.dir.join(repository).join("clusters/main/dumps").join(id);
    let Ok(entries) = std::fs::read_dir(dir) else { return Vec::new() };
    let mut found: Vec<PathBuf> = entries.map(|entry| entry.unwrap().path()).collect();
    found.sort();
    found
}

#[test]
fn a_dump_is_the_same_in_another_repository() {
    let site = with_far(&["--no-encryption"]);
    let origin = as_text(&site, "origin");
    let made = |args: &[&str]| {
        let made = site.run(&[&["dump", "-d", "origin", "--json"][..], args].concat()).expect(0).json();
        made["dump"].as_str().unwrap().to_owned()
    };
    let id = made(&["--globals", "--label", "the first"]);
    let second = made(&["--schema-only"]);
    let copied = site.run(&["copy", &id, "--to", "far", "--json"]).expect(0).json();
    assert_eq!((&copied["to"], &copied["dumps"][0]["dump"]), (&"far".into(), &id.as_str().into()), "{copied}");
    assert_eq!(copied["dumps"][0]["was_there"], false, "{copied}");
    let shown = |repository: &str| {
        let shown = site.run(&["--repo", repository, "show", &id, "--json"]).expect(0).json();
        shown["dump"].clone()
    };
    assert_eq!(shown("main"), shown("far"));
    site.run(&["--repo", "far", "verify", &id]).expect(0);
    // Without the first repository.
    std::fs::rename(site.repository(), site.dir.join("away")).unwrap();
    let into = site.cluster.conninfo();
    site.run(&["--repo", "far", "load", &id, "--into", &into, "--create", "again"]).expect(0);
    same("from the copy", &origin, &as_text(&site, "again"));
    std::fs::rename(site.dir.join("away"), site.repository()).unwrap();
    let again = site.run(&["copy", &id, "latest", &id, "--to", "far", "--json"]).expect(0).json();
    assert_eq!(again["dumps"][0]["was_there"], true, "{again}");
    assert_eq!(again["dumps"].as_array().unwrap().len(), 2, "each once: {again}");
    assert_eq!(again["dumps"][1]["dump"], second.as_str());
    let said = site.run(&["copy", "--all", "--to", "far"]).expect(0).stdout;
    assert!(said.contains("is in far already"), "{said}");
    // Deleted there it can be copied again; its own repository is not touched.
    site.run(&["--repo", "far", "delete", &id, "--yes"]).expect(0);
    site.run(&["copy", "--all", "--to", "far"]).expect(0);
    site.run(&["--repo", "far", "verify", &id]).expect(0);
    // And back, from what is not encrypted to what is.
    site.run(&["delete", &id, "--yes"]).expect(0);
    site.run(&["--repo", "far", "copy", &id, "--to", "main"]).expect(0);
    site.run(&["verify", &id]).expect(0);
    let in_clear = |repository: &str| {
        let objects = objects(&site, repository, &id);
        objects.iter().any(|path| std::fs::read(path).unwrap().windows(9).any(|some| some == b"the first"))
    };
    assert!(!in_clear("repo"), "it is sealed");

    site.run(&["copy", &id, "--to", "main"]).expect(2).says(&["is the repository that it is copied from"]);
    site.run(&["copy", &id, "--to", "nowhere"]).expect(3).says(&["nowhere"]);
    site.run(&["copy", "--to", "far"]).expect(2);
    site.run(&["copy", "20200101T000000Z", "--to", "far"]).expect(3).says(&["no dump"]);
    // Damage is found on the way, and nothing is listed there.
    let path = objects(&site, "repo", &second).into_iter().find(|path| !path.ends_with("manifest")).unwrap();
    let mut bytes = std::fs::read(&path).unwrap();
    let middle = bytes.len() / 2;
    bytes[middle] ^= 1;
    std::fs::write(&path, bytes).unwrap();
    site.run(&["--repo", "far", "delete", &second, "--yes"]).expect(0);
    site.run(&["copy", &second, "--to", "far"]).expect(1);
    let listed = site.run(&["--repo", "far", "list", "--json"]).expect(0).json();
    assert_eq!(listed["dumps"].as_array().unwrap().len(), 1, "{listed}");
}

#[test]
fn a_copy_that_was_broken_off_goes_on() {
    let site = with_far(&["--key-file", "far.key"]);
    let made = site.run(&["dump", "-d", "origin", "--compression", "none", "-j", "2", "--part-size", "1MB", "--json"]);
    let made = made.expect(0).json();
    let id = made["dump"].as_str().unwrap();
    let count = objects(&site, "repo", id).len() - 1;
    assert!(count > 1, "{count} data objects");
    let args = ["copy", id, "--to", "far", "-j", "1", "--json"];
    // Killed, whenever that was.
    for _ in 0..3 {
        let mut child = site.command(&args).stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
        site.wait_for("it has begun", || !objects(&site, "far", id).is_empty() || child.try_wait().unwrap().is_some());
        child.kill().unwrap();
        child.wait().unwrap();
    }
    let listed = site.run(&["--repo", "far", "list", "--json"]).expect(0).json();
    let there = |list: &str| listed[list].as_array().unwrap().len();
    assert_eq!(there("dumps") + there("unfinished_dumps"), 1, "{listed}");
    site.run(&args).expect(0);
    site.run(&["--repo", "far", "verify", id]).expect(0);
    // As it could have been left: one object is missing, one is not right, the others are kept.
    let data = || objects(&site, "far", id).into_iter().filter(|path| !path.ends_with("manifest")).collect::<Vec<_>>();
    assert_eq!(data().len(), count);
    let largest = data().into_iter().max_by_key(|path| std::fs::metadata(path).unwrap().len()).unwrap();
    let mut bytes = std::fs::read(&largest).unwrap();
    let middle = bytes.len() / 2;
    bytes[middle] ^= 1;
    std::fs::write(&largest, bytes).unwrap();
    std::fs::remove_file(data().into_iter().find(|path| *path != largest).unwrap()).unwrap();
    std::fs::remove_file(site.dir.join(format!("far/clusters/main/dumps/{id}/manifest"))).unwrap();
    let copied = site.run(&args).expect(0).json();
    assert_eq!(copied["dumps"][0]["kept_objects"], count - 2, "{copied}");
    site.run(&["--repo", "far", "verify", id]).expect(0);
    // What is left of one that nobody goes on with is taken away as of any dump.
    std::fs::remove_file(site.dir.join(format!("far/clusters/main/dumps/{id}/manifest"))).unwrap();
    site.run(&["--repo", "far", "expire", "--keep-dumps", "1"]).expect(0);
    assert!(objects(&site, "far", id).is_empty());
}
