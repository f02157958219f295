//! `find` where WAL is elsewhere: on a timeline that was left, on S3, of a cluster that was made anew.

use crate::run_printed;
use crate::support::{Site, s3_options};
use serde_json::Value;
use testkit::pg::StopMode;
use testkit::s3::S3Server;

fn kinds_and_names(found: &Value) -> Vec<(String, String)> {
    let hits = found["hits"].as_array().unwrap().iter();
    hits.map(|hit| {
        let name = hit["objects"][0]["name"].as_str().unwrap_or_default();
        (hit["kind"].as_str().unwrap().to_owned(), name.to_owned())
    })
    .collect()
}

#[test]
fn the_timeline_that_was_left_still_tells_what_happened_on_it() {
    // Its directories are the site's: it is the last to go.
    let _old;
    let mut site = Site::new();
    site.cluster
        .sql("CREATE TABLE keep AS SELECT g FROM generate_series(1, 2000) g; CREATE TABLE old_name (a int)")
        .unwrap();
    site.run(&["backup"]).expect(0);
    site.cluster.sql("ALTER TABLE old_name RENAME TO new_name; DELETE FROM keep WHERE g <= 1500").unwrap();
    site.cluster.sql("DROP TABLE keep").unwrap();
    site.cluster
        .sql("ALTER TABLE new_name RENAME TO left_name; CREATE TABLE lost AS SELECT 1; DROP TABLE left_name")
        .unwrap();
    site.archive();
    site.cluster.stop(StopMode::Fast).unwrap();
    // The restored cluster takes the place of the old one.
    let dir = site.path("second");
    // That it goes into the same archive is warned of.
    site.run(&["restore", "--to-dir", &dir, "--before", "drop keep", "--archive"]).expect(4);
    let second = site.open("second");
    _old = std::mem::replace(&mut site.cluster, second);
    assert_eq!(site.cluster.sql("SELECT count(*) FROM keep").unwrap(), "500");
    site.cluster.sql("DROP TABLE new_name; TRUNCATE keep").unwrap();
    site.archive();

    let here = site.run(&["find", "--json"]).expect(0).json();
    let pair = |kind: &str, name: &str| (kind.to_owned(), name.to_owned());
    let expected =
        [pair("delete", "keep"), pair("timeline-switch", ""), pair("drop", "new_name"), pair("truncate", "keep")];
    assert_eq!((kinds_and_names(&here), &here["timeline"]), (expected.to_vec(), &Value::from(2)), "{here:#}");
    assert_eq!(here["hits"][0]["timeline"], 1);
    let left = site.run(&["find", "--timeline", "1", "--json"]).expect(0).json();
    let expected = [pair("delete", "keep"), pair("drop", "keep"), pair("drop", "left_name")];
    assert_eq!(kinds_and_names(&left), expected, "{left:#}");
    let log = site.run(&["wal", "log", "--timeline", "1"]).expect(0).stdout;
    assert!(log.contains("drop table postgres.public.left_name") && log.starts_with("Timeline 1"), "{log}");
    assert!(log.contains("\nimages "), "{log}");
    // Back to the line that was left, with the command as printed.
    let command = left["hits"][2]["restore"].as_str().unwrap();
    assert!(command.ends_with("--timeline 1"), "{command}");
    let said = run_printed(&site, command, &site.path("back"));
    assert!(matches!(said.code, 0 | 4), "{} {}", said.code, said.stderr);
    let mut back = site.open("back");
    let tables =
        "SELECT string_agg(relname, ',' ORDER BY relname) FROM pg_class WHERE relkind = 'r' AND relnamespace = 2200";
    assert_eq!(back.sql(tables).unwrap(), "left_name,lost");
    back.stop(StopMode::Immediate).unwrap();
}

#[test]
fn it_is_found_on_s3() {
    let server = S3Server::start().unwrap();
    let mut site = Site::bare();
    let key = site.path("key");
    let options = s3_options(&server);
    let (conninfo, url) = (site.cluster.conninfo(), format!("s3://{}/of-main", server.bucket));
    let mut args = vec!["init", "main", "--pg", &conninfo, "--repo", &url, "--apply", "--key-file", &key];
    args.extend(options.iter().map(String::as_str));
    site.run(&args).expect(0);
    site.cluster.restart().unwrap();
    site.cluster.sql("CREATE TABLE there AS SELECT g FROM generate_series(1, 3000) g").unwrap();
    site.run(&["backup"]).expect(0);
    for _ in 0..3 {
        site.cluster.sql("CREATE TABLE passing AS SELECT 1; DROP TABLE passing").unwrap();
        site.archive();
    }
    site.cluster.sql("ALTER TABLE there RENAME TO here").unwrap();
    site.cluster.sql("DROP TABLE here").unwrap();
    site.archive();
    // Whoever reads it is told to slow down, and goes on.
    server.throttle(5);
    let found = site.run(&["find", "drop", "here", "--json"]).expect(0).json();
    assert_eq!(kinds_and_names(&found), [("drop".to_owned(), "here".to_owned())], "{found:#}");
    let log = site.run(&["wal", "log"]).expect(0).stdout;
    assert!(log.contains("drop table postgres.public.here"), "{log}");
    let dir = site.path("restored");
    site.run(&["restore", "--to-dir", &dir, "--before", "drop here"]).expect(0);
    let mut restored = site.open("restored");
    assert_eq!(restored.sql("SELECT count(*) FROM here").unwrap(), "3000");
    restored.stop(StopMode::Immediate).unwrap();
}
