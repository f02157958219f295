//! What goes wrong in the middle of a dump: pgkeep is killed, the server goes, the store is elsewhere or full; and standbys.

use crate::support::Site;
use std::process::Stdio;
use std::time::Duration;
use testkit::load::Random;
use testkit::pg::Proxy;
use testkit::s3::S3Server;

fn filled(site: &Site) {
    site.cluster
        .sql(
            "CREATE TABLE a AS SELECT g AS id, md5(g::text) AS t FROM generate_series(1, 150000) g; \
             CREATE TABLE b AS SELECT * FROM a; SELECT lo_from_bytea(7, decode(repeat('ab', 100000), 'hex'))",
        )
        .unwrap();
}

fn state(site: &Site) -> (usize, usize) {
    let listed = site.run(&["list", "--json"]).expect(0).json();
    let count = |name: &str| listed[name].as_array().unwrap().len();
    (count("dumps"), count("unfinished_dumps"))
}

#[test]
fn a_dump_that_was_killed_is_no_dump_and_its_data_go() {
    let site = Site::bare();
    site.init(&[]).expect(0);
    filled(&site);
    let seed = std::env::var("PGKEEP_SEED").ok().and_then(|seed| seed.parse().ok());
    let seed = seed.unwrap_or_else(|| u64::from(std::process::id()));
    println!("PGKEEP_SEED={seed}");
    let mut random = Random::new(seed);
    let mut whole = 0;
    for round in 0..8 {
        let args = ["dump", "--part-size", "1MB", "-j", "2"];
        let mut child = site.command(&args).stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
        if round == 0 {
            // Once for certain in the middle: when data are stored.
            let dir = site.repository().join("clusters/main/dumps");
            site.wait_for("it stores data", || {
                std::fs::read_dir(&dir)
                    .is_ok_and(|mut dirs| dirs.any(|dir| dir.unwrap().path().join("intent").exists()))
            });
        } else {
            std::thread::sleep(Duration::from_millis(random.below(600)));
        }
        child.kill().unwrap();
        whole += usize::from(child.wait().unwrap().success());
    }
    // What is listed is whole.
    let listed = site.run(&["list", "--json"]).expect(0).json();
    for dump in listed["dumps"].as_array().unwrap() {
        assert_eq!(dump["state"], "ok", "{listed}");
        site.run(&["verify", dump["id"].as_str().unwrap()]).expect(0);
    }
    assert!(state(&site).0 >= whole && state(&site).1 >= 1, "{listed}");
    // The server is not kept by what was killed, and the next dump is made beside what was left.
    site.run(&["dump", "-j", "2"]).expect(0);
    let done = site.run(&["expire", "--keep-dumps", "1", "--json"]).expect(0).json();
    assert!(done["dump_plan"]["unfinished"].as_array().unwrap().iter().all(|one| one["left"] == true), "{done}");
    assert_eq!(state(&site), (1, 0));
    let left = std::fs::read_dir(site.repository().join("clusters/main/dumps")).unwrap().count();
    assert_eq!(left, 1, "nothing of the others lies in the store");
    site.cluster.sql("DROP TABLE b").unwrap();
    site.run(&["verify", "--all", "--deep"]).expect(0);
}

#[test]
fn a_connection_that_is_lost_is_said_and_nothing_stays() {
    let site = Site::bare();
    site.init(&[]).expect(0);
    filled(&site);
    let proxy = Proxy::start(&site.cluster, "proxy").unwrap();
    let config = std::fs::read_to_string(site.config()).unwrap();
    let own = config.lines().find(|line| line.starts_with("pg = ")).unwrap();
    std::fs::write(site.config(), config.replace(own, &format!("pg = \"{}\"", proxy.conninfo()))).unwrap();
    proxy.delay(Duration::from_millis(2));
    let mut child = site.command(&["dump", "-j", "2"]).stdout(Stdio::null()).stderr(Stdio::piped()).spawn().unwrap();
    let sql = "SELECT count(*) > 0 FROM pg_stat_activity WHERE query LIKE 'COPY%' AND state = 'active'";
    site.wait_for("it copies", || site.cluster.sql(sql).unwrap() == "t" || child.try_wait().unwrap().is_some());
    proxy.cut();
    let output = child.wait_with_output().unwrap();
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert_eq!(output.status.code(), Some(1), "{said}");
    assert!(said.contains("connection") || said.contains("closed"), "{said}");
    proxy.delay(Duration::ZERO);
    assert_eq!(state(&site), (0, 0));
    site.run(&["dump"]).expect(0);
    // The server itself ends: said too.
    site.cluster.sql("CREATE DATABASE gone").unwrap();
    site.run(&["dump", "-d", "gone_and_never_there"]).expect(1).says(&["gone_and_never_there"]);
}

#[test]
fn a_standby_is_dumped_like_its_primary() {
    let site = Site::bare();
    site.init(&[]).expect(0);
    filled(&site);
    let standby = site.cluster.standby().unwrap();
    let lsn = site.cluster.sql("SELECT pg_current_wal_lsn()").unwrap();
    standby.wait_replayed(&lsn, Duration::from_secs(60)).unwrap();
    let config = std::fs::read_to_string(site.config()).unwrap();
    let own = config.lines().find(|line| line.starts_with("pg = ")).unwrap();
    std::fs::write(site.config(), config.replace(own, &format!("pg = \"{}\"", standby.conninfo()))).unwrap();
    let made = site.run(&["dump", "--globals", "--part-size", "1MB", "-j", "2", "--json"]).expect(0).json();
    assert!(made["databases"][0]["snapshot_lsn"].is_null(), "{made}");
    assert_eq!((&made["databases"][0]["rows"], &made["databases"][0]["large_objects"]), (&300_000.into(), &1.into()));
    site.run(&["load", "latest", "--into", &site.cluster.conninfo(), "--create", "copy"]).expect(0);
    let sum = "SELECT sum(hashtext(t::text)) FROM (SELECT * FROM a UNION ALL SELECT * FROM b) t";
    assert_eq!(site.cluster.psql_db("copy", sum).unwrap(), site.cluster.sql(sum).unwrap());
}

#[test]
fn a_dump_lives_on_s3_as_on_disk() {
    let server = S3Server::start().unwrap();
    let site = Site::bare();
    let (conninfo, key) = (site.cluster.conninfo(), site.path("key"));
    let options = [
        format!("endpoint={}", server.endpoint),
        "allow-http=true".into(),
        format!("access-key-id={}", server.access_key),
        format!("secret-access-key={}", server.secret_key),
    ];
    let url = format!("s3://{}/dumps", server.bucket);
    let mut args = vec!["init", "main", "--pg", &conninfo, "--repo", &url, "--key-file", &key];
    args.extend(options.iter().flat_map(|option| ["--store-option", option]));
    site.run(&args).expect(0);
    filled(&site);
    // As real services do: told to slow down, and answers that do not come through.
    server.throttle(5);
    server.lose_replies(3);
    let id = site.run(&["dump", "--part-size", "1MB", "-j", "2", "--json"]).expect(0).json()["dump"].clone();
    let id = id.as_str().unwrap();
    server.lose_replies(1);
    site.run(&["verify", id]).expect(0);
    site.run(&["load", id, "--into", &conninfo, "--create", "copy", "-j", "2"]).expect(0);
    assert_eq!(site.cluster.psql_db("copy", "SELECT count(*), lo_get(7, 0, 2) FROM b").unwrap(), "150000|\\xabab");
    site.run(&["pin", id]).expect(0);
    site.run(&["delete", id, "--yes"]).expect(1).says(&["is pinned"]);
    site.run(&["unpin", id]).expect(0);
    site.run(&["dump"]).expect(0);
    site.run(&["expire", "--keep-dumps", "1"]).expect(0);
    assert_eq!(state(&site), (1, 0));
    assert_eq!(server.unfinished_upload_count().unwrap(), 0);
}
