//! Ways to read a cluster, as they are asked for on the command line: two passes, a standby of several servers, idle I/O.
#![allow(clippy::unwrap_used, reason = "tests fail by panicking")]

mod support;

use serde_json::Value;
use std::time::Duration;
use support::Site;
use testkit::pg::{Cluster, StopMode};

fn fill(site: &Site) {
    let sql = "CREATE TABLE t AS SELECT g AS id, md5(g::text) AS text FROM generate_series(1, 60000) g; CHECKPOINT";
    site.cluster.sql(sql).unwrap();
}

/// What the restored cluster has of the table.
fn sum(cluster: &Cluster) -> String {
    cluster.sql("SELECT count(*) || ' ' || sum(hashtext(text)) FROM t").unwrap()
}

/// A command line with more words.
fn more<'a>(line: &[&'a str], words: &[&'a str]) -> Vec<&'a str> {
    [line, words].concat()
}

#[test]
fn two_passes_stop_the_server_for_the_second_only() {
    let mut site = Site::new();
    fill(&site);
    // The segment in which initdb made the databases says of all their pages that they changed: not from there on.
    site.archive();
    site.cluster.sql("CHECKPOINT").unwrap();
    let data = site.cluster.data_dir().to_string_lossy().into_owned();
    let offline = ["backup", "--source", "offline", "--pgdata", &data, "--json"];

    // What makes no sense is refused before anything is touched.
    site.run(&["backup", "--warm"]).expect(2).says(&["--warm is for `--source offline`"]);
    site.run(&more(&offline, &["--start-command", "true"])).expect(2);
    site.run(&more(&offline, &["--warm-only", "--stop-command", "true"])).expect(2);
    let refused = site.run(&offline).expect(1).json();
    assert!(refused["error"].to_string().contains("a server runs on it"), "{refused}");

    let ctl = site.cluster.bin("pg_ctl").unwrap();
    let log = site.cluster.log_path();
    let stop = format!("'{}' -D '{data}' stop -m fast -w", ctl.display());
    let start = format!("'{}' -D '{data}' start -w -l '{}'", ctl.display(), log.display());
    let made =
        site.run(&more(&offline, &["--warm", "--stop-command", &stop, "--start-command", &start])).expect(0).json();
    let warm = &made["warm_pass"];
    assert!(warm["pages_read"].as_u64().unwrap() > 400, "{made}");
    assert!(made["downtime_seconds"].as_f64().unwrap() > 0.0, "{made}");
    // Only what changed since the warm pass is read again: stopping wrote a checkpoint.
    let again = made["numbers"]["pages_read"].as_u64().unwrap();
    assert!(again * 4 < warm["pages_read"].as_u64().unwrap(), "{made}");
    let before = sum(&site.cluster);
    assert!(site.cluster.is_running(), "it was started again");

    // A stop command that fails: no backup, and the start command runs all the same.
    let mark = site.path("started");
    let failed = site
        .run(&more(
            &offline,
            &["--warm", "--stop-command", "echo it is needed; exit 7", "--start-command", &format!("touch {mark}")],
        ))
        .expect(1)
        .json();
    let error = failed["error"].to_string();
    assert!(error.contains("it is needed") && std::path::Path::new(&mark).exists(), "{failed}");

    // The first pass by itself, and later the second.
    let first = site.run(&more(&offline, &["--warm-only"])).expect(0).json();
    assert_eq!(first["backup"], Value::Null);
    assert!(first["warm_pass"]["id"].is_string(), "{first}");
    site.cluster.stop(StopMode::Fast).unwrap();
    site.run(&more(&offline, &["--warm-only"])).expect(1).says(&[]);
    let second = site.run(&offline).expect(0).json();
    assert!(second["backup"].is_string() && second["standalone"] == true, "{second}");
    site.run(&["list"]).expect(0);
    site.run(&["verify", "--all", "--deep"]).expect(0);
    site.run(&["restore", "--backup", second["backup"].as_str().unwrap(), "--immediate", "--to-dir", &site.path("r")])
        .expect(0);
    assert_eq!(sum(&site.open("r")), before);
}

#[test]
fn a_standby_is_preferred_while_it_is_not_far_behind() {
    let site = Site::new();
    fill(&site);
    let standby = site.cluster.standby().unwrap();
    let lsn = site.cluster.sql("SELECT pg_current_wal_lsn()").unwrap();
    standby.wait_replayed(&lsn, Duration::from_secs(60)).unwrap();
    let config = std::fs::read_to_string(site.config()).unwrap();
    let one = config.lines().find(|line| line.trim_start().starts_with("pg = ")).unwrap().to_owned();
    let pair = |what: &str| {
        let value = |cluster: &Cluster| match what {
            "host" => cluster.socket_dir().to_string_lossy().into_owned(),
            _ => cluster.port().to_string(),
        };
        format!("{},{}", value(&site.cluster), value(&standby))
    };
    let both = format!("pg = \"host={} port={} user=postgres dbname=postgres\"", pair("host"), pair("port"));
    std::fs::write(site.config(), config.replace(&one, &both)).unwrap();

    for source in ["direct", "stream"] {
        let made = site.run(&["backup", "--source", source, "--prefer-standby", "--json"]);
        // A standby's backup waits for WAL of its primary, which must go on to the next segment.
        let made = made.expect(0).json();
        assert_eq!(made["server"]["is_standby"], true, "{source}: {made}");
        let shown = site.run(&["show", made["backup"].as_str().unwrap(), "--json"]).expect(0).json();
        assert_eq!(shown["backup"]["from_standby"], true, "{source}: {shown}");
    }
    // It stands still, and the primary goes on.
    standby.sql("SELECT pg_wal_replay_pause()").unwrap();
    site.cluster.sql("UPDATE t SET text = 'x' WHERE id < 20000").unwrap();
    let made = site.run(&["backup", "--prefer-standby", "--max-lag", "64kB", "--json"]).expect(0).json();
    assert_eq!(made["server"]["is_standby"], false, "{made}");
    let why = made["server"]["why"].to_string();
    assert!(why.contains("is passed over") && why.contains("no standby can be used"), "{why}");
    site.run(&["backup", "--prefer-standby", "--max-lag", "soon"]).expect(2).says(&["--max-lag soon"]);
    // Without being asked for, the primary it is.
    let made = site.run(&["backup", "--json"]).expect(0).json();
    assert_eq!(made["server"], Value::Null, "{made}");
    let latest = site.run(&["show", "latest", "--json"]).expect(0).json();
    assert_eq!(latest["backup"]["from_standby"], false, "{latest}");
}

#[test]
fn idle_io_is_that_of_every_thread() {
    let site = Site::new();
    let log = site.path("class");
    let mut config = std::fs::read_to_string(site.config()).unwrap();
    config += &format!(
        "\n[hooks]\nafter-backup = 'for t in /proc/$PPID/task/*; do ionice -p ${{t##*/}} >> {log}; done; true'\n"
    );
    std::fs::write(site.config(), config).unwrap();
    site.run(&["backup", "--idle-io"]).expect(0);
    let classes = std::fs::read_to_string(&log).unwrap();
    assert!(!classes.is_empty() && classes.lines().all(|line| line.trim() == "idle"), "{classes}");
}
