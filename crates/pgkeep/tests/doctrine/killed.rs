//! pgkeep itself is killed, at every step of a backup and in the middle of pushes: the next run converges, nothing that
//! is listed is half, and nothing acknowledged is lost.

use crate::support::Site;
use crate::world::{backups, bare, files, load, open, protect_locally, restore};
use std::collections::BTreeSet;
use std::io::Read;
use std::path::PathBuf;
use std::process::{Child, Stdio};
use std::time::Duration;
use testkit::pg::Cluster;

/// The names of the files below this directory of the repository.
fn names(site: &Site, dir: &str) -> BTreeSet<PathBuf> {
    let dir = site.repository().join(dir);
    let found = if dir.exists() { files(&dir) } else { Vec::new() };
    found.into_iter().map(|(path, _)| path).collect()
}

fn spawn(site: &Site, args: &[&str]) -> Child {
    site.command(args).stdout(Stdio::null()).stderr(Stdio::piped()).spawn().unwrap()
}

#[test]
fn a_killed_backup_or_push_is_made_good_by_the_next() {
    let mut site = bare(Cluster::builder(15).without_fsync().wal_segsize_mb(1));
    protect_locally(&mut site);
    let load = load(&site.cluster);
    load.wait_for_more(20).unwrap();
    site.run(&["backup"]).expect(0);
    let first = backups(&site).0[0].clone();
    let command = site.cluster.sql("SHOW archive_command").unwrap().replace('\'', "''");

    // It waits for WAL at the end, so that none is whole before it is killed.
    site.cluster.sql("ALTER SYSTEM SET archive_command = 'false'").unwrap();
    site.cluster.reload().unwrap();
    for dir in ["leases", "clusters/main/backups", "clusters/main/packs"] {
        let before = names(&site, dir);
        let mut backup = spawn(&site, &["backup"]);
        // What the one before left may be removed meanwhile; its names are not used again.
        site.wait_for(dir, || {
            if let Some(status) = backup.try_wait().unwrap() {
                let mut said = String::new();
                backup.stderr.take().unwrap().read_to_string(&mut said).unwrap();
                panic!("{status} before anything appeared in {dir}: {said}");
            }
            names(&site, dir).difference(&before).next().is_some()
        });
        backup.kill().unwrap();
        backup.wait().unwrap();
        assert_eq!(backups(&site).0, std::slice::from_ref(&first), "killed when something appeared in {dir}");
    }
    // A session that has gone ends its backup mode: nothing hinders the server.
    site.wait_for("the sessions end", || {
        let sql = "SELECT count(*) FROM pg_stat_activity WHERE application_name LIKE 'pgkeep%'";
        site.cluster.sql(sql).unwrap() == "0"
    });

    // Wherever a push is when it is killed, the segment is whole in the archive or not there. The places differ with the
    // machine's speed; what must come out does not.
    load.wait_for_more(20).unwrap();
    let segment = site.cluster.sql("SELECT pg_walfile_name(pg_switch_wal())").unwrap();
    let path = site.cluster.data_dir().join("pg_wal").join(&segment).to_string_lossy().into_owned();
    for milliseconds in 0..25 {
        let mut push = spawn(&site, &["wal", "push", &path]);
        std::thread::sleep(Duration::from_millis(milliseconds));
        push.kill().unwrap();
        push.wait().unwrap();
    }
    site.cluster.sql(&format!("ALTER SYSTEM SET archive_command = '{command}'")).unwrap();
    site.cluster.reload().unwrap();
    load.wait_for_more(20).unwrap();
    site.archive();
    site.run(&["wal", "push", &path]).expect(0);

    site.run(&["backup"]).expect(0);
    let (whole, unfinished) = backups(&site);
    assert_eq!((whole.len(), unfinished), (2, 0));
    let ledger = load.stop();
    site.archive();
    let verified = site.run(&["verify", "--all", "--deep", "--json"]).expect(0).json();
    assert!(!verified.to_string().contains("that no backup uses"), "left by killed backups: {verified}");
    site.run(&["wal", "status"]).expect(0);
    for backup in &whole {
        let restored = open(&site, &restore(&site, backup, &["--latest", "--backup", backup]));
        ledger.verify_all(&restored).unwrap();
    }
}
