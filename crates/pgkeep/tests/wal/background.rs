//! The processes that go on behind the answers: a backlog drains although they are killed, and replay is served ahead.

use crate::support::Site;
use crate::world::{bare, open, protect_locally, restore};
use std::path::Path;
use std::process::Command;
use testkit::pg::Cluster;

/// Small segments, so that there are many; state and cache where the test can look.
pub(crate) fn site() -> Site {
    let mut site = bare(Cluster::builder(15).without_fsync().wal_segsize_mb(1).conf("wal_keep_size", "1GB"));
    protect_locally(&mut site);
    let config = std::fs::read_to_string(site.config()).unwrap();
    let (state, cache) = (site.path("state"), site.path("cache"));
    std::fs::write(site.config(), format!("state-dir = \"{state}\"\ncache-dir = \"{cache}\"\n{config}")).unwrap();
    site
}

/// Writes so many segments, each with a row of its own.
pub(crate) fn segments(cluster: &Cluster, count: usize) {
    cluster.sql("CREATE TABLE IF NOT EXISTS t (id serial, text text)").unwrap();
    for _ in 0..count {
        let rows = "INSERT INTO t (text) SELECT md5(random()::text) FROM generate_series(1, 1000)";
        cluster.sql(&format!("{rows}; SELECT pg_switch_wal()")).unwrap();
    }
}

pub(crate) fn waiting(cluster: &Cluster) -> usize {
    let dir = cluster.data_dir().join("pg_wal/archive_status");
    let names = std::fs::read_dir(dir).unwrap().map(|entry| entry.unwrap().file_name());
    names.filter(|name| name.to_string_lossy().ends_with(".ready")).count()
}

/// Waits until the archiver has archived all there is. It waits up to a minute after failures, but a reload wakes it; new
/// segments would too, and can come faster than they are archived.
pub(crate) fn wait_for_backlog(site: &Site, mut meanwhile: impl FnMut()) {
    site.wait_for("the backlog drains", || {
        site.cluster.sql("SELECT pg_reload_conf()").unwrap();
        meanwhile();
        waiting(&site.cluster) == 0
    });
}

/// The processes of this site that do this in the background.
fn background(site: &Site, what: &str) -> Vec<u32> {
    let config = site.config().to_string_lossy().into_owned();
    let is_it = |pid: &u32| {
        let words = std::fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
        let words: Vec<String> =
            words.split(|byte| *byte == 0).map(|word| String::from_utf8_lossy(word).into()).collect();
        words.contains(&config) && words.iter().any(|word| word == what)
    };
    let processes =
        std::fs::read_dir("/proc").unwrap().filter_map(|entry| entry.ok()?.file_name().to_str()?.parse().ok());
    processes.filter(is_it).collect()
}

fn set_archive_command(cluster: &Cluster, command: &str) {
    cluster.sql(&format!("ALTER SYSTEM SET archive_command = '{}'", command.replace('\'', "''"))).unwrap();
    cluster.reload().unwrap();
}

/// Every segment that the server still has and took for archived is in the repository, as it is.
pub(crate) fn assert_archived(site: &Site, cluster: &Cluster) -> usize {
    let wal = cluster.data_dir().join("pg_wal");
    let mut compared = 0;
    for entry in std::fs::read_dir(wal.join("archive_status")).unwrap() {
        let name = entry.unwrap().file_name().to_string_lossy().into_owned();
        let Some(name) = name.strip_suffix(".done").filter(|name| name.len() == 24) else { continue };
        let Ok(content) = std::fs::read(wal.join(name)) else { continue };
        let fetched = site.dir.join("fetched");
        site.run(&["wal", "fetch", name, &fetched.to_string_lossy()]).expect(0);
        assert!(std::fs::read(&fetched).unwrap() == content, "{name}");
        std::fs::remove_file(&fetched).unwrap();
        compared += 1;
    }
    compared
}

#[test]
fn a_backlog_drains_in_the_background_and_kill_9_loses_nothing() {
    let site = site();
    let command = site.cluster.sql("SHOW archive_command").unwrap();
    set_archive_command(&site.cluster, "false");
    segments(&site.cluster, 60);
    assert!(waiting(&site.cluster) >= 60);
    set_archive_command(&site.cluster, &command);
    let (mut seen, mut killed) = (0, 0);
    wait_for_backlog(&site, || {
        for pid in background(&site, "push-ahead") {
            seen += 1;
            if killed < 4 {
                killed += 1;
                Command::new("kill").args(["-9", &pid.to_string()]).status().unwrap();
            }
        }
    });
    assert!(seen > 0 && killed > 0, "nothing went on in the background: {seen}");
    assert!(assert_archived(&site, &site.cluster) >= 60);
    site.run(&["wal", "status"]).expect(0);
    // It ends by itself, and holds nothing of the server's.
    site.wait_for("the background ends", || background(&site, "push-ahead").is_empty());
    let state = files_below(&site.dir.join("state"));
    assert!(!state.iter().any(|name| name.ends_with(".tmp")), "{state:?}");
}

fn files_below(dir: &Path) -> Vec<String> {
    crate::world::files(dir).into_iter().map(|(path, _)| path.to_string_lossy().into_owned()).collect()
}

#[test]
fn a_segment_that_cannot_be_pushed_is_told_by_who_is_asked_and_stays() {
    let site = site();
    let command = site.cluster.sql("SHOW archive_command").unwrap();
    set_archive_command(&site.cluster, "false");
    segments(&site.cluster, 8);
    let repository = site.repository();
    let away = site.dir.join("away");
    std::fs::rename(&repository, &away).unwrap();
    set_archive_command(&site.cluster, &command);
    let before = waiting(&site.cluster);
    let failed = || site.cluster.sql("SELECT failed_count FROM pg_stat_archiver").unwrap().parse::<u64>().unwrap();
    let count = failed();
    site.wait_for("the archiver fails", || {
        site.cluster.sql("SELECT pg_reload_conf()").unwrap();
        failed() > count + 1
    });
    assert!(waiting(&site.cluster) >= before, "nothing is dropped");
    assert!(site.cluster.log().contains("is its disk mounted?"), "{}", site.cluster.log_tail());
    std::fs::rename(&away, &repository).unwrap();
    wait_for_backlog(&site, || {});
    assert!(assert_archived(&site, &site.cluster) >= 8);
}

#[test]
fn replay_is_served_ahead_by_a_process_that_ends() {
    let site = site();
    site.run(&["backup"]).expect(0);
    segments(&site.cluster, 40);
    site.archive();
    let rows = site.cluster.sql("SELECT count(*), sum(hashtext(text)) FROM t").unwrap();
    // Two recoveries at once, with one cache directory.
    let dirs = ["one", "two"].map(|name| restore(&site, name, &["--latest"]));
    let opened: Vec<Cluster> = std::thread::scope(|scope| {
        let threads = dirs.each_ref().map(|dir| scope.spawn(|| open(&site, dir)));
        threads.map(|thread| thread.join().unwrap()).into()
    });
    for cluster in &opened {
        assert_eq!(cluster.sql("SELECT count(*), sum(hashtext(text)) FROM t").unwrap(), rows);
    }
    let caches: Vec<_> = std::fs::read_dir(site.dir.join("cache")).unwrap().map(|dir| dir.unwrap().path()).collect();
    assert_eq!(caches.len(), 2, "a directory for each recovery: {caches:?}");
    drop(opened);
    site.wait_for("it ends", || background(&site, "fetch-ahead").is_empty());
}
