//! What a local store survives: kill -9, a full disk, a read-only one, one that vanishes.

#![allow(clippy::unwrap_used, reason = "helpers of tests too")]

use bytes::Bytes;
use std::collections::BTreeSet;
use std::io::{BufRead, BufReader, Write};
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::Arc;
use store::{Created, LocalStore, MissingRoot, ObjectPath, Store, StoreError, StoreOptions};

const MIB: usize = 1024 * 1024;
const TEMP_DIR: &str = ".tmp~";

fn path(text: &str) -> ObjectPath {
    ObjectPath::new(text).unwrap()
}

fn open(dir: &Path) -> LocalStore {
    LocalStore::open(dir, StoreOptions::standard().local).unwrap()
}

/// What an object of this name holds in these tests.
fn content(name: &str, len: usize) -> Bytes {
    Bytes::from(name.bytes().cycle().take(len).collect::<Vec<_>>())
}

/// The length an object of this name has: small ones, and ones written in parts.
fn len_of(number: usize) -> usize {
    if number.is_multiple_of(2) { 100 + number } else { 3 * MIB + number }
}

/// Runs one test of this program again, alone, with a variable set that tells it to be the child.
fn child(test: &str, variable: &str, value: &Path) -> Command {
    let mut command = Command::new(std::env::current_exe().unwrap());
    command.args(["--exact", test, "--nocapture", "--test-threads=1"]).env(variable, value);
    command
}

/// The child of the crash test: writes objects until it is killed, and says which are acknowledged.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn writer_to_be_killed() {
    let Some(dir) = std::env::var_os("STORE_TEST_WRITER") else { return };
    let store = Arc::new(open(Path::new(&dir)));
    let writers = (0..4usize).map(|writer| {
        let store = store.clone();
        tokio::spawn(async move {
            for number in (writer..).step_by(4) {
                let name = format!("d{}/{}-{number}", number % 3, std::process::id());
                let bytes = content(&name, len_of(number));
                let created = if number.is_multiple_of(2) {
                    store.put(&path(&name), bytes).await.unwrap()
                } else {
                    let mut writer = store.create(&path(&name)).await.unwrap();
                    for start in (0..bytes.len()).step_by(MIB / 2) {
                        writer.write(bytes.slice(start..bytes.len().min(start + MIB / 2))).await.unwrap();
                    }
                    writer.finish().await.unwrap()
                };
                assert_eq!(created, Created::New);
                // One write each, so that lines stay whole.
                std::io::stdout().write_all(format!("acknowledged {name}\n").as_bytes()).unwrap();
            }
        })
    });
    for writer in writers.collect::<Vec<_>>() {
        writer.await.unwrap();
    }
}

#[tokio::test]
async fn a_killed_writer_leaves_what_was_acknowledged_and_nothing_half_done() {
    let dir = tempfile::tempdir().unwrap();
    let mut acknowledged = BTreeSet::new();
    for round in 0..8 {
        let mut writer =
            child("writer_to_be_killed", "STORE_TEST_WRITER", dir.path()).stdout(Stdio::piped()).spawn().unwrap();
        let mut lines = BufReader::new(writer.stdout.take().unwrap()).lines();
        let mut count = 0;
        while count < 3 + 5 * round {
            let line = lines.next().expect("the writer goes on").unwrap();
            count += usize::from(line.contains("acknowledged "));
            acknowledged.extend(line.split_once("acknowledged ").map(|(_, name)| name.to_owned()));
        }
        writer.kill().unwrap();
        writer.wait().unwrap();
        for line in lines.map_while(Result::ok) {
            acknowledged.extend(line.split_once("acknowledged ").map(|(_, name)| name.to_owned()));
        }
    }
    let store = open(dir.path());
    let visible = store.list_page(None, None, 100_000).await.unwrap();
    for meta in &visible {
        let name = meta.path.as_str();
        let number: usize = name.rsplit_once('-').unwrap().1.parse().unwrap();
        let bytes = store.get(&meta.path, 10 * MIB as u64).await.unwrap();
        assert!(bytes == content(name, len_of(number)), "{name} is not whole");
    }
    let visible: BTreeSet<_> = visible.iter().map(|meta| meta.path.to_string()).collect();
    let lost: Vec<_> = acknowledged.difference(&visible).collect();
    assert!(lost.is_empty(), "acknowledged and lost: {lost:?}");
    assert!(acknowledged.len() > 100, "{}", acknowledged.len());

    // The first write of a new process removes what the dead ones left.
    store.put(&path("after"), "x".into()).await.unwrap();
    assert_eq!(std::fs::read_dir(dir.path().join(TEMP_DIR)).unwrap().count(), 0);
}

#[tokio::test]
async fn a_live_writer_is_not_cleaned_away_by_another_store() {
    let dir = tempfile::tempdir().unwrap();
    let mut writer = open(dir.path()).create(&path("slow")).await.unwrap();
    writer.write("one ".into()).await.unwrap();
    open(dir.path()).put(&path("other"), "x".into()).await.unwrap();
    writer.write("two".into()).await.unwrap();
    assert_eq!(writer.finish().await.unwrap(), Created::New);
    assert_eq!(open(dir.path()).get(&path("slow"), 100).await.unwrap(), "one two");
}

#[tokio::test]
async fn finishing_one_object_runs_beside_writing_the_next() {
    let dir = tempfile::tempdir().unwrap();
    let store = open(dir.path());
    let mut finishing = Vec::new();
    for number in 0..4 {
        let name = format!("pack{number}");
        let mut writer = store.create(&path(&name)).await.unwrap();
        writer.write(content(&name, 5 * MIB)).await.unwrap();
        finishing.push(tokio::spawn(writer.finish()));
    }
    for finished in finishing {
        assert_eq!(finished.await.unwrap().unwrap(), Created::New);
    }
    for number in 0..4 {
        let name = format!("pack{number}");
        assert!(store.get(&path(&name), 5 * MIB as u64).await.unwrap() == content(&name, 5 * MIB));
    }
}

#[tokio::test]
async fn what_is_no_object_is_not_listed_and_not_touched() {
    let dir = tempfile::tempdir().unwrap();
    let store = open(dir.path());
    std::fs::create_dir(dir.path().join("lost+found")).unwrap();
    std::fs::create_dir_all(dir.path().join("empty/directory")).unwrap();
    std::fs::write(dir.path().join("with space"), "x").unwrap();
    std::os::unix::fs::symlink("nowhere", dir.path().join("dangling")).unwrap();
    std::os::unix::fs::symlink("..", dir.path().join("empty/loop")).unwrap();
    store.put(&path("object"), "x".into()).await.unwrap();
    std::fs::remove_file(dir.path().join("empty/loop")).unwrap();
    let names: Vec<_> = store.list_page(None, None, 10).await.unwrap().into_iter().map(|meta| meta.path).collect();
    assert_eq!(names, [path("object")]);
    let level = store.list_level(None).await.unwrap();
    assert_eq!((level.objects.len(), level.prefixes.len()), (1, 0));
    store.delete(&path("object")).await.unwrap();
    assert!(dir.path().join("with space").exists() && dir.path().join("lost+found").exists());
    assert!(dir.path().exists());
}

#[tokio::test]
async fn modes_are_those_of_the_options() {
    let umask = std::fs::read_to_string("/proc/self/status").unwrap();
    let umask = umask.lines().find_map(|line| line.strip_prefix("Umask:")).unwrap();
    let umask = u32::from_str_radix(umask.trim(), 8).unwrap();
    for (file_mode, dir_mode) in [(0o640, 0o750), (0o600, 0o700)] {
        let dir = tempfile::tempdir().unwrap();
        let options = store::LocalOptions { file_mode, dir_mode, ..StoreOptions::standard().local };
        let store = LocalStore::open(dir.path(), options).unwrap();
        store.put(&path("a/b"), "x".into()).await.unwrap();
        let mode = |name: &str| dir.path().join(name).metadata().unwrap().permissions().mode() & 0o7777;
        assert_eq!(mode("a"), dir_mode & !umask);
        assert_eq!(mode("a/b"), file_mode & !umask);
        assert_eq!(mode(TEMP_DIR), dir_mode & !umask);
    }
}

#[tokio::test]
async fn a_missing_root_is_made_only_when_told() {
    let dir = tempfile::tempdir().unwrap();
    let root = dir.path().join("not/yet");
    let standard = StoreOptions::standard().local;
    match LocalStore::open(&root, standard) {
        Err(error @ StoreError::Failed { .. }) => assert!(error.to_string().contains("mounted"), "{error}"),
        other => panic!("{other:?}"),
    }
    assert!(!dir.path().join("not").exists());
    let create = store::LocalOptions { missing_root: MissingRoot::Create, ..standard };
    LocalStore::open(&root, create).unwrap().put(&path("a"), "x".into()).await.unwrap();
    assert_eq!(LocalStore::open(&root, standard).unwrap().get(&path("a"), 1).await.unwrap(), "x");
    std::fs::write(dir.path().join("file"), "x").unwrap();
    assert!(LocalStore::open(&dir.path().join("file"), create).is_err());
    assert!(matches!(LocalStore::open(Path::new("relative"), create), Err(StoreError::BadUrl { .. })));
}

/// Every call on a store whose directory is gone is an error, and none of them "not found".
async fn assert_gone(store: &LocalStore) {
    let name = path("a/object");
    let outcomes = [
        ("put", store.put(&path("new/object"), "x".into()).await.map(drop)),
        ("create", store.create(&name).await.map(drop)),
        ("get", store.get(&name, 100).await.map(drop)),
        ("get_range", store.get_range(&name, 0..0).await.map(drop)),
        ("get_tail", store.get_tail(&name, 1).await.map(drop)),
        ("head", store.head(&path("absent")).await.map(drop)),
        ("list_level", store.list_level(None).await.map(drop)),
        ("list_page", store.list_page(None, None, 10).await.map(drop)),
        ("delete", store.delete(&name).await),
    ];
    for (call, outcome) in outcomes {
        match outcome {
            Err(error @ StoreError::Failed { .. }) => assert!(error.to_string().contains("mounted"), "{call}: {error}"),
            other => panic!("{call}: {other:?}"),
        }
    }
}

#[tokio::test]
async fn a_vanished_or_replaced_root_is_an_error() {
    let dir = tempfile::tempdir().unwrap();
    let (root, away) = (dir.path().join("root"), dir.path().join("away"));
    std::fs::create_dir(&root).unwrap();
    let store = open(&root);
    store.put(&path("a/object"), "x".into()).await.unwrap();
    let mut writer = store.create(&path("late")).await.unwrap();
    writer.write("x".into()).await.unwrap();
    std::fs::rename(&root, &away).unwrap();
    assert_gone(&store).await;
    std::fs::create_dir(&root).unwrap();
    assert_gone(&store).await;
    assert!(matches!(writer.finish().await, Err(StoreError::Failed { .. })));
    assert_eq!(std::fs::read_dir(&root).unwrap().count(), 0, "nothing is made in the wrong directory");
    // Back in its place it works again, and nothing was lost.
    std::fs::remove_dir(&root).unwrap();
    std::fs::rename(&away, &root).unwrap();
    assert_eq!(store.get(&path("a/object"), 1).await.unwrap(), "x");
    assert_eq!(store.list_page(None, None, 10).await.unwrap().len(), 1);
}

/// How to get a mount namespace of one's own, so that nothing mounted here outlives the test.
fn in_mount_namespace(mut inner: Command) -> Option<Command> {
    let root = rustix::process::geteuid().is_root();
    let arguments: &[&str] = if root { &["--mount"] } else { &["--user", "--map-root-user", "--mount"] };
    let probe = Command::new("unshare").args(arguments).arg("true").status();
    if !probe.is_ok_and(|status| status.success()) {
        return None;
    }
    let mut command = Command::new("unshare");
    command.args(arguments).arg(inner.get_program()).args(inner.get_args());
    for (name, value) in inner.get_envs() {
        command.env(name, value.unwrap_or_default());
    }
    inner.env_clear();
    Some(command)
}

#[test]
fn a_full_read_only_or_unmounted_disk() {
    let dir = tempfile::tempdir().unwrap();
    let Some(mut command) = in_mount_namespace(child("disk_to_be_filled", "STORE_TEST_DISK", dir.path())) else {
        // Who may make neither mounts nor namespaces still has the unit test of the error mapping.
        assert!(!rustix::process::geteuid().is_root(), "unshare --mount failed as root");
        eprintln!("only the mapping of errors was tested: no mount namespaces for this user");
        return;
    };
    let output = command.output().unwrap();
    let text = String::from_utf8_lossy(&output.stdout) + String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success() && text.contains("disk tested"), "{text}");
}

fn run(program: &str, arguments: &[&str]) {
    assert!(Command::new(program).args(arguments).status().unwrap().success(), "{program} {arguments:?}");
}

/// The child of the test above, in a mount namespace of its own.
#[tokio::test]
async fn disk_to_be_filled() {
    let Some(dir) = std::env::var_os("STORE_TEST_DISK") else { return };
    let dir = dir.to_str().unwrap();
    run("mount", &["-t", "tmpfs", "-o", "size=8m", "tmpfs", dir]);
    let store = open(Path::new(dir));

    let mut count = 0;
    let full = loop {
        match store.put(&path(&format!("a/{count}")), content("a", MIB)).await {
            Ok(created) => assert_eq!(created, Created::New),
            Err(error) => break error,
        }
        count += 1;
        assert!(count < 20, "8 MiB never fill");
    };
    assert!(matches!(full, StoreError::Full { .. }), "{full}");
    assert_eq!(store.list_page(None, None, 100).await.unwrap().len(), count, "nothing half written is visible");
    assert!(store.head(&path(&format!("a/{count}"))).await.unwrap_err().is_not_found());

    // The same in parts; and the failed writers left nothing: there is room for one object again.
    store.delete(&path("a/0")).await.unwrap();
    let mut writer = store.create(&path("b/big")).await.unwrap();
    let mut outcome = Ok(());
    for _ in 0..40 {
        outcome = writer.write(content("b", MIB / 2)).await;
        if outcome.is_err() {
            break;
        }
    }
    let error = match outcome {
        Ok(()) => writer.finish().await.unwrap_err(),
        Err(error) => {
            assert!(writer.finish().await.is_err(), "a writer that failed cannot finish");
            error
        }
    };
    assert!(matches!(error, StoreError::Full { .. }), "{error}");
    assert_eq!(store.put(&path("a/0"), content("a", MIB)).await.unwrap(), Created::New);

    run("mount", &["-o", "remount,ro", dir]);
    for error in [
        store.put(&path("c/new"), "x".into()).await.map(drop).unwrap_err(),
        store.create(&path("c/new")).await.map(drop).unwrap_err(),
        store.delete(&path("a/0")).await.unwrap_err(),
    ] {
        assert!(matches!(error, StoreError::Denied { .. }), "{error}");
    }
    assert!(store.get(&path("a/0"), MIB as u64).await.unwrap() == content("a", MIB));
    assert_eq!(open(Path::new(dir)).list_page(None, None, 100).await.unwrap().len(), count);

    run("umount", &["--lazy", dir]);
    assert_gone(&store).await;
    assert_eq!(std::fs::read_dir(dir).unwrap().count(), 0, "nothing is made under the mount point");
    println!("disk tested");
}
