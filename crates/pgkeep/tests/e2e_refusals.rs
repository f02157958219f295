//! What cannot be done is refused with words that help, and nothing is lost or half done.
#![allow(clippy::unwrap_used, reason = "tests fail by panicking")]

mod support;

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::process::Stdio;
use support::{Said, Site};

/// A site with one backup and some WAL after it.
fn with_backup() -> Site {
    let site = Site::new();
    site.cluster.sql("CREATE TABLE t AS SELECT g FROM generate_series(1, 1000) g").unwrap();
    site.run(&["backup"]).expect(0);
    site.cluster.sql("SELECT pg_create_restore_point('known')").unwrap();
    site.archive();
    site
}

#[test]
fn targets_that_cannot_be_reached_are_refused_before_a_byte_is_written() {
    let site = with_backup();
    let target = site.path("restored");
    let restore = |options: &[&str]| site.run(&[&["restore", "--to-dir", &target][..], options].concat());
    restore(&["--restore-point", "unknown"]).expect(3).says(&["unknown", "known"]);
    restore(&["--at", "2001-01-01 00:00"])
        .expect(1)
        .says(&["was read in this host's", "before the end of the first backup"]);
    restore(&["--at", "2100-01-01 00:00Z"]).expect(2).says(&["lies in the future"]);
    restore(&["--at", "soon"]).expect(2).says(&["'10 minutes ago'"]);
    restore(&["--lsn", "FF/0"]).expect(1).says(&["beyond the WAL"]);
    restore(&["--xid", "2000000000"]).expect(3).says(&["2000000000"]);
    restore(&["--timeline", "7", "--latest"]).expect(1).says(&["timeline 7"]);
    restore(&["--backup", "20010101T000000Z"]).expect(3).says(&["pgkeep list"]);
    restore(&["--before", "drop"]).expect(3).says(&["no such event"]);
    restore(&["--delta"]).expect(2).says(&["not in this version"]);
    assert!(!site.dir.join("restored").exists());

    let running = site.cluster.data_dir().to_string_lossy().into_owned();
    site.run(&["restore", "--to-dir", &running, "--force"]).expect(1).says(&["running server"]);
    let full = site.cluster.make_dir("pgkeep/full").unwrap();
    fs::write(full.join("mine"), "keep").unwrap();
    site.run(&["restore", "--to-dir", &site.path("full")]).expect(1).says(&["not empty"]);
    assert_eq!(fs::read_to_string(full.join("mine")).unwrap(), "keep");

    // A segment between backup and target is gone: said before a byte is written, and seen by status and verify.
    let wal = find(&site.repository().join("clusters/main/wal"), |name| name.len() == 24);
    fs::remove_file(wal.last().unwrap()).unwrap();
    let later = site.cluster.sql("SELECT pg_create_restore_point('later')");
    assert!(later.is_ok());
    site.archive();
    restore(&["--latest"]).expect(1).says(&["WAL needed after backup", "not in the repository", "hint"]);
    assert_ne!(restore(&["--restore-point", "later"]).code, 0, "it lies behind the gap");
    assert!(!site.dir.join("restored").exists());
    site.run(&["status"]).expect(4);
    site.run(&["wal", "status"]).expect(4).says(&["WAL is missing"]);
}

/// Files below `dir` whose name fits, sorted.
fn find(dir: &std::path::Path, fits: fn(&str) -> bool) -> Vec<std::path::PathBuf> {
    let mut found = Vec::new();
    for entry in fs::read_dir(dir).into_iter().flatten().flatten() {
        let path = entry.path();
        if path.is_dir() {
            found.extend(find(&path, fits));
        } else if fits(&entry.file_name().to_string_lossy()) {
            found.push(path);
        }
    }
    found.sort();
    found
}

#[test]
fn wrong_keys_and_foreign_repositories_are_told_apart() {
    let site = with_backup();
    let other_key = site.path("other.key");
    site.run(&["key", "new", &other_key]).expect(0).says(&["KEEP A COPY"]);
    site.run(&["key", "new", &other_key]).expect(1).says(&["never overwritten"]);
    let config = fs::read_to_string(site.config()).unwrap();
    let with = |from: &str, to: &str, args: &[&str]| -> Said {
        assert!(config.contains(from), "{config}");
        let file = site.dir.join("changed.toml");
        fs::write(&file, config.replace(from, to)).unwrap();
        let mut command = site.cluster.command_as_pg(&site.program);
        command.arg("--config").arg(&file).args(args).env("HOME", &site.dir).stdin(Stdio::null());
        Said::of(command.output().unwrap())
    };
    let key = format!("key-file = \"{}\"", site.path("key"));
    with(&key, &format!("key-file = \"{other_key}\""), &["list"]).expect(2).says(&["does not open", "hint"]);
    with(&key, "key-file = \"/nowhere\"", &["list"]).expect(2).says(&["/nowhere", "your copy"]);
    with(&key, "encryption = \"none\"", &["list"]).expect(2).says(&["encrypted and no key was given"]);
    with(&key, "key_file = \"/x\"", &["list"]).expect(2).says(&["line 5", "did you mean 'key-file'"]);
    let repo = format!("url = \"{}\"", site.path("repo"));
    let empty = site.cluster.make_dir("pgkeep/empty").unwrap();
    with(&repo, &format!("url = \"{}\"", empty.display()), &["list"]).expect(3).says(&["no pgkeep repository", "init"]);
    with(&repo, "url = \"gs://bucket\"", &["list"]).expect(2).says(&["this version has no gs"]);
    let conninfo = format!("port={}", site.cluster.port());
    with(&conninfo, "port=1", &["backup"]).expect(1).says(&["socket", "hint"]);
    site.run(&["list", "nobody"]).expect(3).says(&["known clusters: main"]);

    // Another cluster may not take the name, nor archive into it.
    let other = Site::bare();
    let conninfo = other.cluster.conninfo();
    let args = ["init", "main", "--pg", &conninfo, "--repo", &site.path("repo"), "--key-file", &site.path("key")];
    let said = other.run(&args);
    assert_eq!(said.code, 1, "{}", said.stderr);
    assert!(said.stderr.contains("system identifier"), "{}", said.stderr);
    assert!(!other.config().exists(), "the configuration was written though the cluster was refused");
    let plain = ["init", "b", "--pg", &conninfo, "--repo", &site.path("repo"), "--no-encryption"];
    other.run(&plain).expect(1).says(&["it is encrypted"]);
}

#[test]
fn only_one_backup_runs_and_a_stopped_one_is_gone_on_from() {
    let site = with_backup();
    // The archiver is held up, so that the backup waits for its WAL.
    site.cluster.sql("ALTER SYSTEM SET archive_command = 'false'").unwrap();
    site.cluster.reload().unwrap();
    let mut first = site.command(&["backup"]).stdout(Stdio::null()).stderr(Stdio::piped()).spawn().unwrap();
    let leases = site.repository().join("leases/clusters/main/backup");
    site.wait_for("the backup has begun", || fs::read_dir(&leases).is_ok_and(|mut entries| entries.next().is_some()));
    site.run(&["backup"]).expect(1).says(&["already running", "hint"]);
    site.wait_for("the backup stores", || !find(&site.repository(), |name| name == "000001").is_empty());
    let pid = rustix::process::Pid::from_raw(first.id().cast_signed()).unwrap();
    rustix::process::kill_process(pid, rustix::process::Signal::INT).unwrap();
    let status = first.wait().unwrap();
    let mut said = String::new();
    std::io::Read::read_to_string(first.stderr.as_mut().unwrap(), &mut said).unwrap();
    assert_eq!(status.code(), Some(1), "{said}");
    assert!(said.contains("stopped on request; the next backup goes on from what was stored so far"), "{said}");
    let list = site.run(&["list", "--json"]).expect(0).json();
    assert_eq!(list["backups"].as_array().unwrap().len(), 1);
    site.init(&["--apply", "--replace-archive-command"]).expect(0);
    site.run(&["backup"]).expect(0);
    let list = site.run(&["list", "--json"]).expect(0).json();
    assert_eq!(list["unfinished"].as_array().unwrap().len(), 0, "{list}");
}

#[test]
fn a_repository_that_cannot_be_written_fails_loudly() {
    let site = with_backup();
    let packs = site.repository().join("clusters/main");
    let tree = |mode: u32| {
        for dir in ["", "/backups", "/packs", "/wal"] {
            let path = format!("{}{dir}", packs.display());
            fs::set_permissions(path, fs::Permissions::from_mode(mode)).unwrap();
        }
    };
    tree(0o500);
    let said = site.run(&["backup"]);
    tree(0o700);
    assert_eq!(said.code, 1, "{}", said.stderr);
    assert!(said.stderr.contains("refused") && said.stderr.contains("hint:"), "{}", said.stderr);
    site.run(&["backup"]).expect(0);
}

#[test]
fn wal_fetch_never_looks_like_the_end_of_the_archive_by_mistake() {
    let site = with_backup();
    let dest = site.path("segment");
    let stored = find(&site.repository().join("clusters/main/wal"), |name| name.len() == 24);
    let name = stored[0].file_name().unwrap().to_string_lossy().into_owned();
    site.run(&["wal", "fetch", &name, &dest]).expect(0);
    assert_eq!(fs::metadata(&dest).unwrap().len(), 16 << 20);
    site.run(&["wal", "fetch", "0000000100000000000000FF", &dest]).expect(1);
    site.run(&["wal", "fetch", "00000009.history", &dest]).expect(1);
    // Everything that is wrong is 126: arguments, names, configuration, repository.
    site.run(&["wal", "fetch", "nonsense", &dest]).expect(126);
    site.run(&["wal", "fetch", &name]).expect(126);
    site.run(&["wal", "fetch", &name, &dest, "--no-such-option"]).expect(126);
    site.run(&["--cluster", "nobody", "wal", "fetch", &name, &dest]).expect(126);
    let moved = site.dir.join("moved");
    fs::rename(site.repository(), &moved).unwrap();
    site.run(&["wal", "fetch", "0000000100000000000000FF", &dest]).expect(126);
    fs::rename(&moved, site.repository()).unwrap();
    let mut damaged = fs::read(&stored[0]).unwrap();
    let middle = damaged.len() / 2;
    damaged[middle] ^= 1;
    fs::remove_file(&stored[0]).unwrap();
    fs::write(&stored[0], damaged).unwrap();
    fs::set_permissions(&stored[0], fs::Permissions::from_mode(0o644)).unwrap();
    let _ = fs::remove_dir_all(site.dir.join(".cache"));
    site.run(&["wal", "fetch", &name, &dest]).expect(126);
}

#[test]
fn who_is_told_to_stop_says_so_in_the_exit_code() {
    let site = Site::bare();
    let config = format!(
        "[repository.main]\nurl = \"{}\"\nkey-command = \"exec sleep 300\"\n[cluster.main]\npg = \"\"\n",
        site.cluster.make_dir("pgkeep/repo").unwrap().display()
    );
    fs::write(site.config(), config).unwrap();
    // 1 would be the end of the archive, and 143 a stopped server.
    for (args, code) in [(&["list"][..], 1), (&["wal", "fetch", "000000010000000000000001", "/nowhere"], 126)] {
        let mut child = site.command(args).stdout(Stdio::null()).stderr(Stdio::piped()).spawn().unwrap();
        let tasks = format!("/proc/{}/task", child.id());
        let has_child = || {
            let tasks = fs::read_dir(&tasks).into_iter().flatten().flatten();
            tasks.flat_map(|task| fs::read_to_string(task.path().join("children"))).any(|list| !list.is_empty())
        };
        site.wait_for("the key command runs", has_child);
        let pid = rustix::process::Pid::from_raw(child.id().cast_signed()).unwrap();
        rustix::process::kill_process(pid, rustix::process::Signal::TERM).unwrap();
        let mut said = String::new();
        std::io::Read::read_to_string(child.stderr.as_mut().unwrap(), &mut said).unwrap();
        assert_eq!(child.wait().unwrap().code(), Some(code), "{args:?}: {said}");
        assert!(said.contains("stopped on request"), "{said}");
    }
}
