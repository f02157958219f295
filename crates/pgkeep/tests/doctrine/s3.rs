//! The main path with the repository on an S3 server, which at times is overloaded and loses replies.

use crate::support::{Said, s3_options};
use crate::world::{bare, load, lsn, open, protect, restore};
use testkit::load::Target;
use testkit::pg::Cluster;
use testkit::s3::S3Server;

#[test]
fn s3_repository() {
    let server = S3Server::start().unwrap();
    let mut site = bare(Cluster::builder(15).without_fsync().wal_segsize_mb(1));
    let key = site.path("key");
    let options = s3_options(&server);
    let mut args = vec!["--key-file", &key];
    args.extend(options.iter().map(String::as_str));
    protect(&mut site, &format!("s3://{}/backups/of-main", server.bucket), &args);
    site.run(&["check"]).expect(0);
    let load = load(&site.cluster);
    load.wait_for_more(20).unwrap();
    // As real services do: told to slow down, and answers that do not come through.
    server.throttle(6);
    server.lose_replies(3);
    site.run(&["backup"]).expect(0);
    load.wait_for_more(40).unwrap();
    let target = site.cluster.sql("SELECT pg_current_wal_insert_lsn()").unwrap();
    server.lose_replies(2);
    site.archive();
    load.wait_for_more(40).unwrap();
    let ledger = load.stop();
    site.archive();
    server.throttle(4);
    let restored = open(&site, &restore(&site, "before", &["--lsn", &target, "--exclusive"]));
    let verdict = ledger.verify_before(&restored, Target::Lsn(lsn(&target))).unwrap();
    assert!(verdict.required >= 50 && verdict.excluded >= 30, "{verdict:?}");
    let latest = open(&site, &restore(&site, "latest", &["--latest"]));
    ledger.verify_all(&latest).unwrap();
    site.run(&["verify", "--all", "--deep"]).expect(0);
    site.run(&["status"]).expect(0);
    assert_eq!(server.unfinished_upload_count().unwrap(), 0);

    // A server that is gone is neither an empty repository nor the end of the archive.
    let wal = site.run(&["wal", "status", "--json"]).expect(0).json();
    let name = wal["systems"][0]["timelines"][0]["last"].as_str().unwrap().to_owned();
    let config = std::fs::read_to_string(site.config()).unwrap();
    let elsewhere = site.dir.join("elsewhere.toml");
    std::fs::write(&elsewhere, config.replace(&server.secret_key, "another secret")).unwrap();
    let wrong = |args: &[&str]| {
        let mut command = site.cluster.command_as_pg(&site.program);
        command.env("HOME", site.dir.join("nowhere")).arg("--config").arg(&elsewhere).args(args);
        Said::of(command.output().unwrap())
    };
    wrong(&["list"]).expect(1).says(&["hint"]);
    wrong(&["wal", "fetch", &name, &site.path("segment")]).expect(126);
    assert!(!site.dir.join("segment").exists());
}
