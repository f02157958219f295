//! `dump --to CONNINFO`: to a later major version, and when the way to the target is lost.

use crate::support::Site;
use crate::{FEATURES, same, site};
use std::process::Stdio;
use std::time::Duration;
use testkit::pg::{Cluster, Proxy};

/// A database as the pg_dump of `by` writes it.
fn text_by(by: &Cluster, conninfo: &str) -> String {
    by.tool("pg_dump", &["--restrict-key=key", "--no-sync", &format!("--dbname={conninfo}")]).unwrap()
}

/// The versions by turns: `PGKEEP_SEED` decides.
#[test]
fn a_database_moves_to_a_later_version() {
    let seed = std::env::var("PGKEEP_SEED").ok().and_then(|seed| seed.parse().ok());
    let seed = seed.unwrap_or_else(|| u64::from(std::process::id()));
    let (from, to) = [(14, 17), (16, 18)][(seed % 2) as usize];
    println!("PGKEEP_SEED={seed}, PostgreSQL {from} to {to}");
    let site = Site::bare_on(from);
    site.init(&[]).expect(0);
    site.cluster.sql("CREATE DATABASE origin").unwrap();
    let features = match from {
        14 => FEATURES.replace("app.people (id, name) WHERE (id > 10), app.orders", "app.people, app.orders"),
        _ => FEATURES.to_owned(),
    };
    site.cluster.psql_db("origin", &features).unwrap();
    let new = Cluster::builder(to).without_fsync().start().unwrap();
    let bin = new.bin("pg_dump").unwrap().parent().unwrap().to_string_lossy().into_owned();
    for name in ["dump_owner", "dump_reader"] {
        new.sql(&format!("CREATE ROLE {name}")).unwrap();
    }
    let postgres = new.conninfo();
    let args = ["dump", "-d", "origin", "--to", &postgres, "--create", "moved", "--part-size", "1MB", "-j", "2"];
    site.run(&[&args[..], &["--pg-bin", &bin]].concat()).expect(0);
    // The oracle: what PostgreSQL's own programs make of it there.
    new.sql("CREATE DATABASE restored TEMPLATE template0").unwrap();
    let archive = site.path("oracle.dump");
    let origin = site.cluster.conninfo_db("origin");
    new.tool("pg_dump", &["-Fc", "--no-sync", "-f", &archive, &format!("--dbname={origin}")]).unwrap();
    let restored = new.conninfo_db("restored");
    new.tool("pg_restore", &["--exit-on-error", &format!("--dbname={restored}"), &archive]).unwrap();
    let moved = text_by(&new, &new.conninfo_db("moved"));
    same("moved", &text_by(&new, &restored), &moved);
    assert!(moved.contains("name 500") && moved.contains("CREATE PUBLICATION"));
}

#[test]
fn a_copy_goes_on_when_its_target_comes_back() {
    let site = site();
    let origin = crate::as_text(&site, "origin");
    let target = Cluster::builder(15).without_fsync().start().unwrap();
    target.sql("CREATE ROLE dump_owner; CREATE ROLE dump_reader").unwrap();
    let proxy = Proxy::start(&target, "target").unwrap();
    let args = [
        "dump",
        "-d",
        "origin",
        "--to",
        &proxy.conninfo(),
        "--create",
        "copy",
        "--part-size",
        "1MB",
        "-j",
        "2",
        "--json",
    ];
    let mut child = site.command(&args).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    let done = "SELECT count(*) FROM pgkeep_load.done WHERE piece LIKE '%/%'";
    let mut over = false;
    site.wait_for("some tables are copied", || {
        over = child.try_wait().unwrap().is_some();
        over || target.psql_db("copy", done).is_ok_and(|count| count.parse::<u32>().unwrap() > 2)
    });
    // Slow from here on, so that it is in the middle; then gone for a while.
    proxy.delay(Duration::from_millis(20));
    proxy.cut();
    proxy.refuse(true);
    std::thread::sleep(Duration::from_millis(1500));
    proxy.refuse(false);
    proxy.delay(Duration::ZERO);
    let output = child.wait_with_output().unwrap();
    let said = crate::support::Said::of(output).expect(4).says(&["it goes on when the server is there again"]);
    let made = said.json();
    assert!(made["went_on_after"].as_u64().unwrap() > 2 && !over, "{made}");
    same("after it was cut off", &origin, &text_by(&target, &target.conninfo_db("copy")));
    // A program that was killed cannot: its snapshot is gone, and the next one says so.
    target.psql_db(
        "copy",
        "CREATE SCHEMA pgkeep_load; CREATE TABLE pgkeep_load.state AS SELECT 'copy of database x' AS what, '1' AS run; \
         CREATE TABLE pgkeep_load.done (piece text)",
    )
    .unwrap();
    site.run(&args).expect(1).says(&["cannot go on", "drop the database"]);
}
