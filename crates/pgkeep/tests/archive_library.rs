//! PostgreSQL archives through the archive library and `pgkeep wal serve`: real servers of each version, under load, with
//! either side killed, stopped, gone, or unable to store anything.
#![allow(clippy::unwrap_used, reason = "tests fail by panicking")]

mod support;

use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};
use support::{Said, Site};
use testkit::load::{Ledger, LoadOptions, RunningLoad};
use testkit::pg::{Cluster, ClusterBuilder, StopMode};

/// The library, built with this test as one of its dependencies.
fn built_library() -> PathBuf {
    let program = std::env::current_exe().unwrap();
    let near = program.ancestors().skip(1).take(2).map(|dir| dir.join("libpgkeep_archive.so"));
    let newest = near.filter_map(|path| Some((path.metadata().ok()?.modified().ok()?, path))).max();
    newest.expect("cargo builds the library before the tests that depend on it").1
}

/// A running cluster without anything of pgkeep's; program and library lie beside each other.
fn bare(builder: ClusterBuilder) -> Site {
    let cluster = builder.start().unwrap_or_else(|error| panic!("{error:#}"));
    let bin = cluster.make_dir("bin").unwrap();
    let program = bin.join("pgkeep");
    for (from, to) in [
        (PathBuf::from(env!("CARGO_BIN_EXE_pgkeep")), program.clone()),
        (built_library(), bin.join("libpgkeep_archive.so")),
    ] {
        assert!(Command::new("cp").arg(&from).arg(&to).status().unwrap().success());
        cluster.user().own(&to).unwrap();
    }
    let dir = cluster.make_dir("pgkeep").unwrap();
    Site { cluster, program, dir }
}

/// The same, set up for the library and restarted, with nobody serving yet.
fn library_site(builder: ClusterBuilder) -> Site {
    let mut site = bare(builder);
    let said = site.init(&["--apply", "--archive-library"]).expect(0);
    assert!(said.stdout.contains("wal serve"), "{}", said.stdout);
    site.cluster.restart().unwrap();
    assert!(site.cluster.sql("SHOW archive_library").unwrap().ends_with("/libpgkeep_archive.so"));
    assert_eq!(site.cluster.sql("SHOW archive_command").unwrap(), "");
    site
}

/// Small segments, so that there are many, and quick ones.
fn many_segments(major: u32) -> ClusterBuilder {
    Cluster::builder(major).wal_segsize_mb(1)
}

fn socket(site: &Site) -> PathBuf {
    site.dir.join(".local/state/pgkeep/main.sock")
}

/// `pgkeep wal serve`, killed when dropped.
struct Daemon {
    child: Child,
    log: PathBuf,
}

impl Daemon {
    /// Starts it, and waits until it listens.
    fn start(site: &Site) -> Self {
        let daemon = Self::spawn(site, &[]);
        site.wait_for("it listens", || UnixStream::connect(socket(site)).is_ok());
        daemon
    }

    fn spawn(site: &Site, more: &[&str]) -> Self {
        let log = site.dir.join("serve.log");
        let file = std::fs::OpenOptions::new().create(true).append(true).open(&log).unwrap();
        let mut command = site.command(&[&["wal", "serve"][..], more].concat());
        let child = command.stdout(file.try_clone().unwrap()).stderr(file).spawn().unwrap();
        Self { child, log }
    }

    fn log(&self) -> String {
        std::fs::read_to_string(&self.log).unwrap()
    }

    fn signal(&self, signal: &str) {
        let pid = self.child.id().to_string();
        assert!(Command::new("kill").args([signal, &pid]).status().unwrap().success());
    }

    fn kill9(&mut self) {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
    }

    /// Ends it as a service manager does.
    fn terminate(&mut self) -> i32 {
        self.signal("-TERM");
        self.child.wait().unwrap().code().unwrap_or(-1)
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn load(cluster: &Cluster) -> RunningLoad {
    Ledger::start(cluster, LoadOptions { clients: 3, pause: Duration::from_millis(2) }).unwrap()
}

fn stat(site: &Site, field: &str) -> u64 {
    site.cluster.sql(&format!("SELECT {field} FROM pg_stat_archiver")).unwrap().parse().unwrap()
}

/// Files with a `.ready` mark.
fn ready(cluster: &Cluster) -> usize {
    let dir = cluster.data_dir().join("pg_wal/archive_status");
    let names = std::fs::read_dir(dir).unwrap().flatten().map(|entry| entry.file_name());
    names.filter(|name| name.to_string_lossy().ends_with(".ready")).count()
}

fn write_wal(site: &Site, segments: usize) {
    for _ in 0..segments {
        site.cluster.sql("SELECT txid_current(); SELECT pg_switch_wal()").unwrap();
    }
}

/// Has the archiver look again at once, until nothing waits.
fn drain(site: &Site) {
    site.wait_for("all is archived", || {
        site.cluster.sql("SELECT pg_reload_conf()").unwrap();
        ready(&site.cluster) == 0
    });
}

/// Both sides are killed under load; what was acknowledged is in the archive.
fn survives(major: u32) {
    let mut site = library_site(many_segments(major));
    let mut daemon = Daemon::start(&site);
    let load = load(&site.cluster);
    load.wait_for_more(20).unwrap();
    site.run(&["backup"]).expect(0);
    load.wait_for_more(60).unwrap();
    site.archive();
    // The other side is killed, and is away for a while.
    daemon.kill9();
    load.wait_for_more(60).unwrap();
    write_wal(&site, 3);
    assert!(ready(&site.cluster) > 0, "nothing is marked as archived meanwhile");
    let mut daemon = Daemon::start(&site);
    site.archive();
    // The server is killed.
    load.wait_for_more(60).unwrap();
    site.cluster.kill9().unwrap();
    site.cluster.start_again().unwrap();
    load.wait_for_more(60).unwrap();
    // Both at the same time.
    daemon.kill9();
    site.cluster.kill9().unwrap();
    let daemon = Daemon::start(&site);
    site.cluster.start_again().unwrap();
    load.wait_for_more(60).unwrap();
    let ledger = load.stop();
    site.archive();
    drain(&site);
    assert!(!site.cluster.log().contains("terminated by signal 6"), "{}", site.cluster.log_tail());
    assert!(!site.cluster.log().contains("a bug in the archive library"));
    // A whole life of a server: stopped and started, and all of it archived before the end.
    site.cluster.stop(StopMode::Fast).unwrap();
    assert_eq!(ready(&site.cluster), 0, "the last round archives what there is");
    site.cluster.start_again().unwrap();
    site.run(&["verify", "--all"]).expect(0);
    site.run(&["check"]).expect(0);
    let status = site.run(&["status"]).expect(0);
    assert!(status.stdout.contains("protected"), "{}", status.stdout);

    let target = site.path("whole");
    let mut restore = site.command(&["restore", "--to-dir", &target, "--latest"]);
    // Versions that are not in a usual place are looked for here; where they are not found, that is a warning.
    let usual = std::env::var("PATH").unwrap();
    restore.env("PATH", format!("{}:{usual}", site.cluster.install().bin_dir().display()));
    Said::of(restore.output().unwrap()).expect(0);
    let mut whole = Cluster::adopt(Path::new(&target), major).unwrap();
    whole.start_again().unwrap();
    whole.wait_for("SELECT pg_is_in_recovery()", "f", Duration::from_secs(60)).unwrap();
    let verdict = ledger.verify_all(&whole).unwrap();
    assert!(verdict.required >= 240, "{verdict:?}");
    assert!(!daemon.log().contains("panicked"), "{}", daemon.log());
}

#[test]
fn postgresql_15() {
    survives(15);
}

#[test]
fn postgresql_16() {
    survives(16);
}

#[test]
fn postgresql_17() {
    survives(17);
}

#[test]
fn postgresql_18() {
    survives(18);
}

#[test]
fn nobody_serves_and_the_server_keeps_its_wal() {
    let site = library_site(many_segments(17).without_fsync());
    write_wal(&site, 5);
    site.wait_for("the archiver fails", || stat(&site, "failed_count") > 0);
    assert_eq!(stat(&site, "archived_count"), 0);
    assert!(ready(&site.cluster) >= 5);
    let log = site.cluster.log();
    assert!(log.contains("was not archived: pgkeep wal serve does not run (nobody listens at"), "{log}");
    // Both who look say what is missing.
    let said = site.run(&["check", "--timeout", "1"]).expect(1);
    assert!(said.stdout.contains("nobody listens at pgkeep.socket"), "{}", said.stdout);
    let said = site.run(&["status"]).expect(4);
    assert!(said.stdout.contains("nobody listens at pgkeep.socket"), "{}", said.stdout);
    let daemon = Daemon::start(&site);
    drain(&site);
    assert!(stat(&site, "archived_count") >= 5);
    let said = site.run(&["check"]).expect(0);
    assert!(said.stdout.contains("through archive_library"), "{}", said.stdout);
    assert!(daemon.log().contains("serving cluster main"), "{}", daemon.log());
}

#[test]
fn a_repository_that_takes_nothing() {
    let site = library_site(many_segments(16).without_fsync());
    let daemon = Daemon::start(&site);
    site.archive();
    let (repository, away) = (site.repository(), site.dir.join("away"));
    std::fs::rename(&repository, &away).unwrap();
    write_wal(&site, 3);
    site.wait_for("the archiver fails", || stat(&site, "failed_count") > 0);
    let before = stat(&site, "archived_count");
    assert!(site.cluster.log().contains("was not archived: "), "{}", site.cluster.log_tail());
    assert!(daemon.log().contains("was not archived: "), "{}", daemon.log());
    write_wal(&site, 3);
    assert!(ready(&site.cluster) >= 6);
    std::fs::rename(&away, &repository).unwrap();
    drain(&site);
    assert!(stat(&site, "archived_count") >= before + 6);
    site.wait_for("it says so", || daemon.log().contains("archiving works again"));
    site.run(&["wal", "status"]).expect(0);
}

#[test]
fn another_clusters_wal_is_refused() {
    let site = library_site(many_segments(15).without_fsync());
    let daemon = Daemon::start(&site);
    site.archive();
    let other = Cluster::builder(15)
        .wal_segsize_mb(1)
        .without_fsync()
        .conf("archive_mode", "on")
        .conf("archive_library", &site.cluster.sql("SHOW archive_library").unwrap())
        .conf("pgkeep.socket", &socket(&site).to_string_lossy());
    let other = other.start().unwrap();
    other.sql("SELECT txid_current(); SELECT pg_switch_wal()").unwrap();
    site.wait_for("it is refused", || other.log().contains("system identifier"));
    assert!(other.log().contains("was not archived"), "{}", other.log_tail());
    assert_eq!(other.sql("SELECT archived_count FROM pg_stat_archiver").unwrap(), "0");
    // The cluster that it is there for goes on, on a connection of its own.
    site.archive();
    drop(daemon);
}

/// The process stands still, as on a machine that is out of memory. PostgreSQL stops all the same, and soon.
fn stops_while_it_hangs(major: u32) {
    let mut site = library_site(many_segments(major).without_fsync());
    let daemon = Daemon::start(&site);
    site.archive();
    daemon.signal("-STOP");
    write_wal(&site, 2);
    // The archiver waits for an answer now.
    site.wait_for("it is asked", || {
        site.cluster.sql("SELECT count(*) FROM pg_stat_activity WHERE backend_type = 'archiver'").unwrap() == "1"
            && ready(&site.cluster) >= 2
    });
    // Barriers pass: this waits for every process of the server.
    let begin = Instant::now();
    site.cluster.sql("CREATE DATABASE short").unwrap();
    site.cluster.sql("DROP DATABASE short").unwrap();
    let dropped = begin.elapsed();
    let begin = Instant::now();
    site.cluster.stop(StopMode::Fast).unwrap();
    let took = begin.elapsed();
    assert!(took < Duration::from_secs(20), "it took {took:?}");
    assert!(dropped < Duration::from_secs(30), "it took {dropped:?}");
    assert!(ready(&site.cluster) >= 2, "nothing is taken for archived");
    assert!(site.cluster.log().contains("has not answered for"), "{}", site.cluster.log_tail());
    daemon.signal("-CONT");
    site.cluster.start_again().unwrap();
    drain(&site);
    site.run(&["wal", "status"]).expect(0);
}

#[test]
fn postgresql_15_stops_while_it_hangs() {
    stops_while_it_hangs(15);
}

#[test]
fn postgresql_18_stops_while_it_hangs() {
    stops_while_it_hangs(18);
}

#[test]
fn one_server_for_a_socket_and_a_clean_end() {
    let site = library_site(many_segments(17).without_fsync());
    let mut daemon = Daemon::start(&site);
    let second = site.run(&["wal", "serve"]).expect(1);
    second.says(&["another `pgkeep wal serve` listens there"]);
    // Nothing but the protocol is spoken, and only with the server's user.
    let mut stranger = UnixStream::connect(socket(&site)).unwrap();
    stranger.write_all(b"GET / HTTP/1.1\r\n\r\n").unwrap();
    let mut answer = String::new();
    stranger.read_to_string(&mut answer).unwrap();
    assert!(answer.starts_with("FAILED "), "{answer}");
    if site.cluster.user().must_switch {
        assert!(answer.contains("only user"), "{answer}");
    }
    let mode = std::os::unix::fs::PermissionsExt::mode(&std::fs::metadata(socket(&site)).unwrap().permissions());
    assert_eq!(mode & 0o777, 0o600);
    site.archive();
    assert_eq!(daemon.terminate(), 0, "{}", daemon.log());
    assert!(!socket(&site).exists());
    assert!(daemon.log().contains("stopped; since the start: "), "{}", daemon.log());
    // As its successor starts, it goes on.
    let mut daemon = Daemon::start(&site);
    site.archive();
    drain(&site);
    // With --json it ends with one object.
    daemon.kill9();
    let child = site.command(&["wal", "serve", "--json"]).stdout(Stdio::piped()).stderr(Stdio::null()).spawn().unwrap();
    site.wait_for("it listens", || UnixStream::connect(socket(&site)).is_ok());
    site.archive();
    assert!(Command::new("kill").arg(child.id().to_string()).status().unwrap().success());
    let output = child.wait_with_output().unwrap();
    let object: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(object["command"], "wal serve");
    assert!(object["stored"].as_u64().unwrap() >= 1, "{object}");
    if site.cluster.user().must_switch {
        let root =
            Command::new(&site.program).arg("--config").arg(site.config()).args(["wal", "serve"]).output().unwrap();
        assert_eq!(root.status.code(), Some(2));
    }
}

#[test]
fn from_the_command_to_the_library_and_back() {
    let mut site = bare(many_segments(16).without_fsync());
    site.init(&["--apply"]).expect(0);
    site.cluster.restart().unwrap();
    site.archive();
    let begun = stat(&site, "archived_count");
    // No restart is needed: the archiver starts anew by itself.
    let daemon = Daemon::start(&site);
    let plan = site.init(&["--archive-library"]).expect(0);
    assert!(plan.stdout.contains("archive_library = ") && plan.stdout.contains("pgkeep.socket = "), "{}", plan.stdout);
    let said = site.init(&["--apply", "--archive-library"]).expect(0);
    assert!(!said.stdout.contains("RESTART"), "{}", said.stdout);
    site.archive();
    site.run(&["check"]).expect(0);
    let again = site.init(&["--apply", "--archive-library"]).expect(0);
    assert!(again.stdout.contains("set up for archiving already"), "{}", again.stdout);
    // Another socket is another place for WAL.
    let other = site.init(&["--apply", "--archive-library", "--socket", "/tmp/pgkeep-other.sock"]).expect(1);
    other.says(&["pgkeep.socket is set to"]);
    // Back: not by accident.
    site.init(&["--apply"]).expect(1).says(&["archive_library is set to"]);
    let said = site.init(&["--apply", "--replace-archive-command"]).expect(0);
    assert!(said.stdout.contains("archive_command = "), "{}", said.stdout);
    drop(daemon);
    site.archive();
    site.run(&["check"]).expect(0);
    assert!(stat(&site, "archived_count") >= begun + 2);
    // A server that does not find the library is not changed.
    let wrong = site.dir.join("wrong.so");
    std::fs::write(&wrong, "no library").unwrap();
    site.cluster.user().own(&wrong).unwrap();
    let option = format!("--archive-library={}", wrong.display());
    site.init(&["--apply", "--replace-archive-command", &option]).expect(1).says(&["cannot load"]);
    assert_eq!(site.cluster.sql("SHOW archive_library").unwrap(), "");
}

#[test]
fn a_library_without_a_socket_is_not_configured() {
    for major in [15, 17] {
        let mut site = bare(Cluster::builder(major).without_fsync().conf("archive_mode", "on"));
        let library = site.program.with_file_name("libpgkeep_archive.so");
        site.cluster.append_conf("archive_library", &library.to_string_lossy()).unwrap();
        site.cluster.restart().unwrap();
        site.cluster.sql("SELECT txid_current(); SELECT pg_switch_wal()").unwrap();
        site.wait_for("it says so", || site.cluster.log().contains("\"pgkeep.socket\" is not set"));
        assert!(site.cluster.log().contains("archiving is not configured"), "{}", site.cluster.log_tail());
        assert_eq!(stat(&site, "archived_count"), 0);
    }
}
