//! The archive's place fills up, becomes read-only or vanishes while clients write: everybody is told, PostgreSQL keeps
//! its WAL, and when the place is well again nothing acknowledged was lost.

use crate::support::Site;
use crate::world::{backups, bare, files, load, open, protect_locally, restore};
use std::fs;
use std::io::Write;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use testkit::load::{RunningLoad, fill};
use testkit::pg::{Cluster, SmallDisk};

/// Waits until the archiver has failed once more, and looks whether PostgreSQL keeps what could not be archived.
fn archiver_fails(site: &Site, load: &RunningLoad) -> String {
    let failures = || site.cluster.sql("SELECT failed_count FROM pg_stat_archiver").unwrap();
    let before = failures();
    load.wait_for_more(20).unwrap();
    site.cluster.sql("SELECT pg_switch_wal()").unwrap();
    site.wait_for("the archiver fails", || failures() != before);
    let segment = site.cluster.sql("SELECT last_failed_wal FROM pg_stat_archiver").unwrap();
    let wal = site.cluster.data_dir().join("pg_wal");
    assert!(wal.join(&segment).exists() && wal.join(format!("archive_status/{segment}.ready")).exists(), "{segment}");
    segment
}

/// Pushes by hand what the archiver could not.
fn push_fails(site: &Site, segment: &str, words: &[&str]) {
    let path = site.cluster.data_dir().join("pg_wal").join(segment).to_string_lossy().into_owned();
    let said = site.run(&["wal", "push", &path]);
    // 126 and above would make the archiver itself restart, as a signal would.
    assert!((1..=125).contains(&said.code), "exit code {}: {}", said.code, said.stderr);
    said.says(words).says(&["hint"]);
}

/// A backup fails with these words, and says what to do.
fn backup_fails(site: &Site, code: i32, words: &[&str]) {
    site.run(&["backup"]).expect(code).says(words).says(&["hint"]);
}

/// The place is well again: everything arrives, and what is restored from it is whole.
fn heals(site: &Site, load: &RunningLoad) {
    load.wait_for_more(10).unwrap();
    site.archive();
    let status = site.run(&["wal", "status"]);
    assert_eq!(status.code, 0, "{}", status.stderr);
}

#[test]
fn full_or_vanished_archive() {
    let mut site = bare(Cluster::builder(15).without_fsync().wal_segsize_mb(1));
    let repository = site.cluster.make_dir("pgkeep/repo").unwrap();
    let mount = SmallDisk::mount(&repository, site.cluster.user(), "64m");
    protect_locally(&mut site);
    let load = load(&site.cluster);
    load.wait_for_more(20).unwrap();
    site.run(&["backup"]).expect(0);
    let whole = backups(&site);
    assert_eq!((whole.0.len(), whole.1), (1, 0));
    // More than what will be free.
    fill(&site.cluster, 16).unwrap();
    site.archive();

    if mount.is_some() {
        full(&site, &load, &repository);
        assert_eq!(backups(&site), whole, "a failed backup is listed");
    }
    read_only(&site, &load, &repository);
    assert_eq!(backups(&site), whole, "a failed backup is listed");
    if mount.is_none() {
        vanished(&site, &load, &repository);
        assert_eq!(backups(&site), whole, "a failed backup is listed");
    }

    site.run(&["backup"]).expect(0);
    assert_eq!(backups(&site).0.len(), 2);
    let ledger = load.stop();
    site.archive();
    site.run(&["verify", "--all", "--deep"]).expect(0);
    // From the first backup, so that all WAL of the outages is needed.
    let restored = open(&site, &restore(&site, "restored", &["--latest", "--backup", &whole.0[0]]));
    ledger.verify_all(&restored).unwrap();
}

fn full(site: &Site, load: &RunningLoad, repository: &Path) {
    let before = packs(repository);
    let ballast = repository.join("ballast");
    let mut file = fs::File::create(&ballast).unwrap();
    let chunk = vec![1_u8; 64 << 10];
    while file.write_all(&chunk).is_ok() {}
    drop(file);
    // Room for a beginning, not for an end.
    let full = fs::metadata(&ballast).unwrap().len();
    fs::File::options().write(true).open(&ballast).unwrap().set_len(full - (1 << 20)).unwrap();
    backup_fails(site, 1, &["no space left"]);
    assert_eq!(packs(repository), before, "a failed backup left packs");
    fs::File::options().append(true).open(&ballast).unwrap().write_all(&vec![1_u8; 1 << 20]).ok();
    let segment = archiver_fails(site, load);
    push_fails(site, &segment, &["no space left"]);
    fs::remove_file(&ballast).unwrap();
    heals(site, load);
    let parts: Vec<_> = files(repository).into_iter().filter(|(path, _)| !is_object(path)).collect();
    assert!(parts.is_empty(), "half-written files were left: {parts:?}");
}

fn packs(repository: &Path) -> Vec<(PathBuf, u64)> {
    files(&repository.join("clusters/main/packs"))
}

/// Names of objects do not begin with a dot.
fn is_object(path: &Path) -> bool {
    !path.file_name().unwrap().to_string_lossy().starts_with('.')
}

fn read_only(site: &Site, load: &RunningLoad, repository: &Path) {
    let mut dirs = vec![repository.to_owned()];
    let mut position = 0;
    while let Some(dir) = dirs.get(position).cloned() {
        let entries = fs::read_dir(dir).unwrap().map(|entry| entry.unwrap().path());
        dirs.extend(entries.filter(|path| path.is_dir()));
        position += 1;
    }
    let all = |mode: u32| {
        dirs.iter().for_each(|dir| fs::set_permissions(dir, fs::Permissions::from_mode(mode)).unwrap());
    };
    all(0o500);
    let outcome = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
        let segment = archiver_fails(site, load);
        push_fails(site, &segment, &["refused"]);
        backup_fails(site, 1, &["refused"]);
    }));
    all(0o700);
    outcome.unwrap_or_else(|panic| std::panic::resume_unwind(panic));
    heals(site, load);
}

/// The directory is gone, as when its file system is not mounted.
fn vanished(site: &Site, load: &RunningLoad, repository: &Path) {
    let away = site.dir.join("away");
    fs::rename(repository, &away).unwrap();
    let segment = archiver_fails(site, load);
    push_fails(site, &segment, &["error: /", "is its disk mounted?"]);
    backup_fails(site, 1, &["error: /", "is its disk mounted?"]);
    assert!(!repository.exists(), "a new repository was begun in the place of the one that vanished");
    // The mount point is there, and nothing is mounted on it.
    fs::create_dir(repository).unwrap();
    site.cluster.user().own(repository).unwrap();
    push_fails(site, &segment, &["no pgkeep repository", "mounted"]);
    backup_fails(site, 3, &["no pgkeep repository", "mounted"]);
    assert_eq!(files(repository), Vec::new());
    fs::remove_dir(repository).unwrap();
    fs::rename(&away, repository).unwrap();
    heals(site, load);
}

#[test]
fn an_archive_that_vanishes_under_a_running_backup() {
    let mut site = bare(Cluster::builder(15).without_fsync().wal_segsize_mb(1));
    protect_locally(&mut site);
    let load = load(&site.cluster);
    load.wait_for_more(20).unwrap();
    site.run(&["backup"]).expect(0);
    let whole = backups(&site);
    // Held up, so that the backup waits for its WAL when everything else is stored.
    let command = site.cluster.sql("SHOW archive_command").unwrap();
    site.cluster.sql("ALTER SYSTEM SET archive_command = 'false'").unwrap();
    site.cluster.reload().unwrap();
    let packs = site.repository().join("clusters/main/packs");
    let before = files(&packs).len();
    let mut backup = site.command(&["backup"]).stdout(Stdio::null()).stderr(Stdio::piped()).spawn().unwrap();
    site.wait_for("the backup stores", || files(&packs).len() > before);
    let away = site.dir.join("away");
    fs::rename(site.repository(), &away).unwrap();
    let mut said = String::new();
    std::io::Read::read_to_string(backup.stderr.as_mut().unwrap(), &mut said).unwrap();
    assert_eq!(backup.wait().unwrap().code(), Some(1), "{said}");
    assert!(said.contains("is gone; was its disk unmounted?") && said.contains("hint"), "{said}");
    assert!(!site.repository().exists(), "the vanished repository was begun again");
    fs::rename(&away, site.repository()).unwrap();
    let escaped = command.replace('\'', "''");
    site.cluster.sql(&format!("ALTER SYSTEM SET archive_command = '{escaped}'")).unwrap();
    site.cluster.reload().unwrap();
    // What it stored is not a backup; it neither counts nor stands in the way of the next one.
    assert_eq!(backups(&site).0, whole.0);
    site.run(&["backup"]).expect(0);
    let verified = site.run(&["verify", "--all", "--json"]).expect(0).json();
    assert!(!verified.to_string().contains("that no backup uses"), "left by the broken backup: {verified}");
    assert_eq!((backups(&site).0.len(), backups(&site).1), (2, 0));
    vanished(&site, &load, &site.repository());
    let ledger = load.stop();
    site.archive();
    let restored = open(&site, &restore(&site, "restored", &["--latest", "--backup", &whole.0[0]]));
    ledger.verify_all(&restored).unwrap();
}
