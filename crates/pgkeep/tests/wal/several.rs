//! A cluster with two repositories: both have all WAL, one may be out of reach, and each mends what the other lost.

use crate::background::{segments, site, wait_for_backlog, waiting};
use crate::support::Site;
use serde_json::Value;

/// A site whose WAL also goes to a repository that need not have it at once.
fn with_far() -> Site {
    let site = site();
    let config = std::fs::read_to_string(site.config()).unwrap();
    assert!(config.contains("repository = \"main\""), "{config}");
    let config = config.replace("repository = \"main\"", "repository = [\"main\", \"far\"]");
    let (far, key) = (site.path("far"), site.path("far.key"));
    let section = format!("\n[repository.far]\nurl = \"{far}\"\nkey-file = \"{key}\"\nrequired = false\n");
    std::fs::write(site.config(), config + &section).unwrap();
    let conninfo = site.cluster.conninfo();
    let args = ["init", "main", "--pg", &conninfo, "--repo", &far, "--repo-name", "far", "--key-file", &key];
    site.run(&args).expect(0);
    site
}

fn wal_status(site: &Site, code: i32) -> Value {
    site.run(&["wal", "status", "--json"]).expect(code).json()
}

#[test]
fn both_repositories_get_the_wal_and_heal_each_other() {
    let site = with_far();
    site.run(&["backup"]).expect(0);
    segments(&site.cluster, 5);
    site.archive();
    let status = wal_status(&site, 0);
    let last =
        |status: &Value, number: usize| status["repositories"][number]["systems"][0]["timelines"][0]["last"].clone();
    assert_eq!(last(&status, 0), last(&status, 1), "{status}");
    assert!(last(&status, 0).is_string(), "{status}");

    // The optional one is out of reach: archiving goes on, loudly.
    let (far, away) = (site.dir.join("far"), site.dir.join("away"));
    std::fs::rename(&far, &away).unwrap();
    segments(&site.cluster, 5);
    site.archive();
    assert_eq!(waiting(&site.cluster), 0);
    let said = site.run(&["wal", "status"]).expect(4).says(&["repository far is out of reach"]);
    assert!(said.stdout.contains("repository main"), "{}", said.stdout);
    assert!(site.cluster.log().contains("is not in repository far"), "{}", site.cluster.log_tail());
    std::fs::rename(&away, &far).unwrap();
    site.run(&["wal", "status"]).expect(4).says(&["repository far missed"]);
    // What comes next brings what was missed along.
    site.wait_for("it catches up", || {
        segments(&site.cluster, 1);
        site.archive();
        let status = site.run(&["wal", "status", "--json"]).json();
        status["repositories"][1]["missed_files"] == 0
    });
    let status = wal_status(&site, 0);
    assert_eq!(last(&status, 0), last(&status, 1), "{status}");
    assert_eq!(status["repositories"][1]["systems"][0]["timelines"][0]["gaps"], serde_json::json!([]));

    // Damage in the first is healed from the second when it is needed.
    let wal = crate::world::files(&site.repository().join("clusters/main/wal"));
    let objects: Vec<_> =
        wal.into_iter().map(|(path, _)| path).filter(|path| path.file_name().unwrap().len() == 24).collect();
    let (one, two) = (&objects[objects.len() / 2], &objects[objects.len() / 2 + 1]);
    std::fs::remove_file(one).unwrap();
    std::fs::write(two, "not a segment").unwrap();
    let target = site.path("segment");
    for object in [one, two] {
        let name = object.file_name().unwrap().to_string_lossy().into_owned();
        site.run(&["--repo", "main", "wal", "fetch", &name, &target]).expect(126);
        site.run(&["wal", "fetch", &name, &target]).expect(0).says(&["from repository far"]);
        let fetched = std::fs::read(&target).unwrap();
        assert!(fetched == std::fs::read(site.cluster.data_dir().join("pg_wal").join(&name)).unwrap(), "{name}");
        std::fs::remove_file(&target).unwrap();
    }
    site.run(&["wal", "status"]).expect(4).says(&["WAL is missing in repository main"]);
    site.run(&["--repo", "far", "wal", "status"]).expect(0);
}

#[test]
fn a_required_repository_out_of_reach_stops_archiving_and_loses_nothing() {
    let site = with_far();
    let config = std::fs::read_to_string(site.config()).unwrap();
    std::fs::write(site.config(), config.replace("required = false\n", "")).unwrap();
    let (far, away) = (site.dir.join("far"), site.dir.join("away"));
    std::fs::rename(&far, &away).unwrap();
    segments(&site.cluster, 3);
    let failed = || site.cluster.sql("SELECT failed_count > 0 FROM pg_stat_archiver").unwrap() == "t";
    site.wait_for("the archiver fails", failed);
    assert!(waiting(&site.cluster) >= 3);
    site.run(&["wal", "status"]).expect(4).says(&["repository far is out of reach, and no WAL is acknowledged"]);
    std::fs::rename(&away, &far).unwrap();
    wait_for_backlog(&site, || {});
    site.run(&["wal", "status"]).expect(0);
}
