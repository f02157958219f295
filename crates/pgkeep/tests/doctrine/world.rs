//! Sites of any version and kind of repository, load on them, and what was restored from them.

use crate::support::{Said, Site};
use std::path::{Path, PathBuf};
use std::time::Duration;
use testkit::load::{Ledger, LoadOptions, RunningLoad};
use testkit::pg::{Cluster, ClusterBuilder};

/// Three clients that write all the time, with room for the rest of a small machine.
pub(crate) fn load(cluster: &Cluster) -> RunningLoad {
    Ledger::start(cluster, LoadOptions { clients: 3, pause: Duration::from_millis(2) }).unwrap()
}

/// A running cluster as the builder describes it, and the program beside it.
pub(crate) fn bare(builder: ClusterBuilder) -> Site {
    // A missing version is a failure here; the message says how to get it.
    let cluster = builder.start().unwrap_or_else(|error| panic!("{error:#}"));
    let program = cluster.install_program(Path::new(env!("CARGO_BIN_EXE_pgkeep"))).unwrap();
    let dir = cluster.make_dir("pgkeep").unwrap();
    Site { cluster, program, dir }
}

/// `init --apply` with the repository at `url` and further options, then the restart that it asks for.
pub(crate) fn protect(site: &mut Site, url: &str, more: &[&str]) {
    let conninfo = site.cluster.conninfo();
    let args = ["init", "main", "--pg", &conninfo, "--repo", url, "--apply"];
    let said = site.run(&[&args[..], more].concat()).expect(0);
    assert!(said.stdout.contains("RESTART PostgreSQL"), "{}", said.stdout);
    site.cluster.restart().unwrap();
    assert_eq!(site.cluster.sql("SHOW archive_mode").unwrap(), "on");
    assert!(site.cluster.sql("SHOW archive_command").unwrap().contains(" wal push "));
}

/// The same with a repository in a directory, encrypted with a key file.
pub(crate) fn protect_locally(site: &mut Site) {
    let (url, key) = (site.path("repo"), site.path("key"));
    protect(site, &url, &["--key-file", &key]);
}

/// Runs `restore` into a new directory with this name.
pub(crate) fn restore(site: &Site, name: &str, options: &[&str]) -> PathBuf {
    try_restore(site, name, options).expect(0);
    PathBuf::from(site.path(name))
}

/// The same, to see what it says.
pub(crate) fn try_restore(site: &Site, name: &str, options: &[&str]) -> Said {
    let target = site.path(name);
    let mut command = site.command(&[&["restore", "--to-dir", &target][..], options].concat());
    // Versions that are not in a usual place are looked for here; where they are not found, that is a warning.
    let usual = std::env::var("PATH").unwrap();
    command.env("PATH", format!("{}:{usual}", site.cluster.install().bin_dir().display()));
    Said::of(command.output().unwrap())
}

/// Starts a server on what was restored, and waits for the end of recovery.
pub(crate) fn open(site: &Site, dir: &Path) -> Cluster {
    let mut restored = Cluster::adopt(dir, site.cluster.major()).unwrap();
    restored.start_again().unwrap();
    restored.wait_for("SELECT pg_is_in_recovery()", "f", Duration::from_secs(60)).unwrap();
    assert_eq!(restored.sql("SHOW archive_mode").unwrap(), "off");
    assert!(restored.sql("SHOW restore_command").unwrap().contains(" wal fetch "));
    restored
}

/// `X/Y` as a number.
pub(crate) fn lsn(text: &str) -> u64 {
    text.parse::<pg_format::Lsn>().unwrap().0
}

/// Every file below a directory with its size, sorted.
pub(crate) fn files(dir: &Path) -> Vec<(PathBuf, u64)> {
    let mut found = Vec::new();
    let mut todo = vec![dir.to_owned()];
    while let Some(dir) = todo.pop() {
        for entry in std::fs::read_dir(&dir).unwrap() {
            let entry = entry.unwrap();
            match entry.metadata() {
                Ok(facts) if facts.is_dir() => todo.push(entry.path()),
                Ok(facts) => found.push((entry.path(), facts.len())),
                // A temporary file that went meanwhile.
                Err(_) => {}
            }
        }
    }
    found.sort();
    found
}

/// The ids of the backups that are whole, and how many are not.
pub(crate) fn backups(site: &Site) -> (Vec<String>, usize) {
    let list = site.run(&["list", "--json"]).expect(0).json();
    let ids = list["backups"].as_array().unwrap().iter().map(|backup| backup["id"].as_str().unwrap().to_owned());
    (ids.collect(), list["unfinished"].as_array().unwrap().len())
}
