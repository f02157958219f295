//! Every kind of object on every version, one version a run: `PGKEEP_SEED` decides which of those that are installed (`PGKEEP_MAJOR`
//! wins).

use crate::support::Site;
use crate::{FEATURES, as_text, same};
use testkit::pg::{PgInstall, SUPPORTED};

#[test]
fn every_kind_of_object_comes_back_on_one_of_the_versions() {
    let number = |name: &str| std::env::var(name).ok().and_then(|text| text.parse::<u64>().ok());
    let installed = PgInstall::installed(&SUPPORTED);
    let seed = number("PGKEEP_SEED").unwrap_or_else(|| u64::from(std::process::id()));
    let chosen = installed[(seed % installed.len() as u64) as usize].major();
    let major = number("PGKEEP_MAJOR").map_or(chosen, |major| major as u32);
    println!("PGKEEP_SEED={seed}, PostgreSQL {major}");
    let site = Site::bare_on(major);
    site.init(&[]).expect(0);
    site.cluster.sql("CREATE DATABASE origin").unwrap();
    // 14 does not know publications of columns and rows.
    let features = match major {
        14 => FEATURES.replace("app.people (id, name) WHERE (id > 10), app.orders", "app.people, app.orders"),
        _ => FEATURES.to_owned(),
    };
    site.cluster.psql_db("origin", &features).unwrap();
    let origin = as_text(&site, "origin");
    let bin = site.cluster.bin("pg_dump").unwrap().parent().unwrap().to_string_lossy().into_owned();
    let postgres = site.cluster.conninfo();
    let made = site.run(&["dump", "-d", "origin", "--part-size", "1MB", "-j", "2", "--pg-bin", &bin, "--json"]);
    let made = made.expect(0).json();
    assert_eq!(made["databases"][0]["large_objects"], 3, "{made}");
    let id = made["dump"].as_str().unwrap();
    // Not --create: for 14 the definitions are those of a later pg_dump, which says more of a database than 14 understands.
    site.cluster.sql("CREATE DATABASE copy TEMPLATE template0").unwrap();
    let copy = site.cluster.conninfo_db("copy");
    site.run(&["load", id, "--into", &copy, "-j", "2", "--pg-bin", &bin]).expect(0);
    same("loaded", &origin, &as_text(&site, "copy"));
    // The rows are those that were dumped, as the server sees them.
    let deep = ["verify", id, "--deep", "--into", &postgres, "--pg-bin", &bin, "--json"];
    let deep = site.run(&deep).expect(if major == 14 { 4 } else { 0 }).json();
    assert_eq!(deep["deep"]["databases"][0]["differences"].as_array().unwrap().len(), 0, "{deep}");
}
