//! `dump` and `load`, against real servers; pg_dump of what came back is the oracle.
#![allow(clippy::unwrap_used, reason = "tests fail by panicking")]

#[path = "dump/binary.rs"]
mod binary;
#[path = "dump/catalogue.rs"]
mod catalogue;
#[path = "dump/copies.rs"]
mod copies;
#[path = "dump/direct.rs"]
mod direct;
#[path = "dump/import.rs"]
mod import;
#[path = "dump/loading.rs"]
mod loading;
#[path = "dump/mapping.rs"]
mod mapping;
#[path = "dump/pieces.rs"]
mod pieces;
#[path = "dump/selection.rs"]
mod selection;
mod support;
#[path = "dump/trouble.rs"]
mod trouble;
#[path = "dump/versions.rs"]
mod versions;

use std::process::Stdio;
use support::{Said, Site};

const FEATURES: &str = include_str!("dump_features.sql");

/// A site with a database `origin` that has something of every kind.
fn site() -> Site {
    let site = Site::bare();
    site.init(&[]).expect(0);
    site.cluster.sql("CREATE DATABASE origin").unwrap();
    site.cluster.psql_db("origin", FEATURES).unwrap();
    site
}

/// A database as pg_dump writes it, with its settings, but not under its name.
fn as_text(site: &Site, database: &str) -> String {
    let conninfo = format!("--dbname={}", site.cluster.conninfo_db(database));
    site.cluster.tool("pg_dump", &["--restrict-key=key", "--no-sync", &conninfo]).unwrap()
}

/// The rows of each table in a fixed order. Where a row lies in a table is PostgreSQL's to choose: also pg_restore, with
/// one session, puts a short one into a gap that a long one left.
fn ordered(text: &str) -> String {
    let (mut lines, mut rows): (Vec<&str>, Option<Vec<&str>>) = (Vec::new(), None);
    for line in text.lines() {
        match &mut rows {
            Some(found) if line != "\\." => found.push(line),
            Some(found) => {
                found.sort_unstable();
                lines.append(found);
                lines.push(line);
                rows = None;
            }
            None => {
                lines.push(line);
                rows = (line.starts_with("COPY ") && line.ends_with(" FROM stdin;")).then(Vec::new);
            }
        }
    }
    lines.join("\n")
}

#[track_caller]
fn same(what: &str, origin: &str, found: &str) {
    let (origin, found) = (ordered(origin), ordered(found));
    if origin != found {
        let differs = origin.lines().zip(found.lines()).find(|(a, b)| a != b);
        panic!("{what}: {} and {} bytes; first difference: {differs:#?}", origin.len(), found.len());
    }
}

#[test]
fn a_database_comes_back_text_for_text() {
    let site = site();
    let origin = as_text(&site, "origin");
    let made = site.run(&["dump", "-d", "origin", "--part-size", "1MB", "-j", "3", "--json"]).expect(0).json();
    assert_eq!(made["databases"][0]["large_objects"], 3, "{made}");
    let id = made["dump"].as_str().unwrap();
    let shown = site.run(&["show", id, "--json"]).expect(0).json();
    let data = shown["dump"]["databases"][0]["data"].as_array().unwrap();
    let big = data.iter().find(|data| data["name"] == "big").unwrap();
    assert!(big["parts"].as_array().unwrap().len() > 2, "a large table is read in parts: {big}");
    assert_eq!(big["rows"].to_string(), site.cluster.psql_db("origin", "SELECT count(*) FROM app.big").unwrap());

    let postgres = site.cluster.conninfo();
    site.run(&["load", id, "--into", &postgres, "--create", "copy1", "-j", "1"]).expect(0);
    same("loaded", &origin, &as_text(&site, "copy1"));
    let settings = "SELECT (SELECT setconfig FROM pg_db_role_setting s WHERE setdatabase = d.oid), \
        shobj_description(oid, 'pg_database') FROM pg_database d WHERE datname = current_database()";
    let of = |database: &str| site.cluster.psql_db(database, settings).unwrap();
    assert_eq!(of("copy1"), of("origin"), "the database's own settings and comment");
    let said = site.run(&["load", id, "--into", &postgres, "--create", "copy2", "-j", "4"]).expect(0);
    assert!(said.stdout.contains("3 large objects"), "{}", said.stdout);
    same("loaded by four", &origin, &as_text(&site, "copy2"));
    site.run(&["load", id, "--into", &postgres, "--create", "copy3", "--single-transaction"]).expect(0);
    same("in one transaction", &origin, &as_text(&site, "copy3"));

    // What is there is not mixed with what is loaded.
    let copy1 = site.cluster.conninfo_db("copy1");
    site.run(&["load", id, "--into", &copy1]).expect(1).says(&["is not empty", "--create"]);
    site.run(&["load", id, "--into", &postgres, "--create", "copy1"]).expect(1).says(&["there is a database copy1"]);
    let said = site.run(&["load", id, "--into", &copy1, "--force", "--on-error", "continue", "--schema-only"]);
    said.expect(4).says(&["already exists"]);

    // One table with what belongs to it.
    site.cluster.sql("CREATE DATABASE part").unwrap();
    let some = site.cluster.conninfo_db("part");
    site.cluster.psql_db("part", "CREATE SCHEMA app").unwrap();
    site.run(&["load", id, "--into", &some, "-t", "app.big", "--no-owner"]).expect(0);
    let found = "SELECT count(*), count(*) FILTER (WHERE indisprimary) FROM pg_index i JOIN pg_class c ON c.oid = indrelid \
        JOIN pg_namespace n ON n.oid = relnamespace WHERE nspname = 'app'";
    assert_eq!(site.cluster.psql_db("part", found).unwrap(), "1|1");
    assert_eq!(site.cluster.psql_db("part", "SELECT count(*) FROM app.big").unwrap(), big["rows"].to_string());
}

/// The archives of 17 and later have another form: large objects in groups, a kind for each relation.
#[test]
fn a_newer_version_comes_back_too() {
    let site = Site::bare_on(17);
    site.init(&[]).expect(0);
    site.cluster.sql("CREATE DATABASE origin").unwrap();
    site.cluster.psql_db("origin", FEATURES).unwrap();
    let origin = as_text(&site, "origin");
    let bin = site.cluster.bin("pg_dump").unwrap().parent().unwrap().to_string_lossy().into_owned();
    let postgres = site.cluster.conninfo();
    site.run(&["dump", "-d", "origin", "--part-size", "1MB", "--pg-bin", &bin]).expect(0);
    site.run(&["load", "latest", "--into", &postgres, "--create", "copy", "--pg-bin", &bin]).expect(0);
    same("17, loaded", &origin, &as_text(&site, "copy"));
    let listed = site.run(&["list", "--json"]).expect(0).json();
    let (id, dir) = (listed["dumps"][0]["id"].as_str().unwrap(), site.path("dir"));
    site.run(&["export", id, "--to", &dir, "--format", "directory", "--compress", "zstd"]).expect(0);
    site.cluster.sql("CREATE DATABASE exported").unwrap();
    let into = format!("--dbname={}", site.cluster.conninfo_db("exported"));
    site.cluster.tool("pg_restore", &["--exit-on-error", "-j", "2", &into, &dir]).unwrap();
    same("17, a directory with zstd", &origin, &as_text(&site, "exported"));
}

#[test]
fn a_dump_is_given_out_in_the_forms_of_pg_dump() {
    let site = site();
    let origin = as_text(&site, "origin");
    let file = site.path("first.dump");
    let args = ["dump", "-d", "origin", "--part-size", "1MB", "--format", "custom", "--to", &file, "--json"];
    let id = site.run(&args).expect(0).json()["dump"].as_str().unwrap().to_owned();
    let restore = |into: &str, args: &[&str]| {
        site.cluster.sql(&format!("CREATE DATABASE {into}")).unwrap();
        let conninfo = format!("--dbname={}", site.cluster.conninfo_db(into));
        site.cluster.tool("pg_restore", &[&["--exit-on-error", &conninfo][..], args].concat()).unwrap();
    };
    restore("custom", &["-j", "2", &file]);
    same("custom, with two sessions", &origin, &as_text(&site, "custom"));
    for compress in ["none", "gzip:1"] {
        let (dir, database) = (site.path(&format!("dir-{compress}")), format!("dir_{}", &compress[..4]));
        site.run(&["export", &id, "--to", &dir, "--format", "directory", "--compress", compress]).expect(0);
        restore(&database, &["-j", "2", &dir]);
        same(&format!("directory, {compress}"), &origin, &as_text(&site, &database));
    }
    let tar = site.path("out.tar");
    site.run(&["export", &id, "--to", &tar, "--format", "tar"]).expect(0);
    restore("tar", &[&tar]);
    same("tar", &origin, &as_text(&site, "tar"));
    let sql = site.path("out.sql");
    site.run(&["export", &id, "--to", &sql, "--format", "plain"]).expect(0);
    site.cluster.sql("CREATE DATABASE plain").unwrap();
    let conninfo = format!("--dbname={}", site.cluster.conninfo_db("plain"));
    site.cluster.tool("psql", &["-qX", "--set=ON_ERROR_STOP=1", &conninfo, "-f", &sql]).unwrap();
    same("plain", &origin, &as_text(&site, "plain"));
    // Through a pipe.
    let piped = site.path("piped.dump");
    let out = std::fs::File::create(&piped).unwrap();
    let output = site.command(&["export", &id, "--to", "-"]).stdout(out).stderr(Stdio::piped()).output().unwrap();
    Said::of(output).expect(0);
    let listed = site.cluster.tool("pg_restore", &["--list", &piped]).unwrap();
    assert!(listed.contains("TABLE DATA app big"), "{listed}");

    // What pg_dump wrote is loaded as well.
    for (number, path) in [&tar, &sql, &piped].into_iter().enumerate() {
        let name = format!("foreign_{number}");
        site.run(&["load", path, "--into", &site.cluster.conninfo(), "--create", &name]).expect(0);
        same(path, &origin, &as_text(&site, &name));
    }
    site.run(&["export", &id, "--to", &sql, "--format", "plain"]).expect(1).says(&["is there already"]);
    site.run(&["export", &id, "--to", &site.path("z"), "--compress", "zstd"]).expect(1).says(&["does not read zstd"]);
}

#[test]
fn a_dump_is_of_one_moment_whoever_writes_meanwhile() {
    let site = Site::bare();
    site.init(&[]).expect(0);
    site.cluster
        .sql("CREATE TABLE a (n int); CREATE TABLE b (n int); INSERT INTO a SELECT g FROM generate_series(1, 200000) g")
        .unwrap();
    site.cluster.sql("INSERT INTO b SELECT n FROM a").unwrap();
    let write = "DO $$ BEGIN LOOP INSERT INTO a VALUES (0); DELETE FROM b WHERE ctid IN (SELECT ctid FROM b LIMIT 1); \
        INSERT INTO b VALUES (0), (0); COMMIT; END LOOP; END $$";
    let conninfo = format!("--dbname={}", site.cluster.conninfo());
    let psql = site.cluster.bin("psql").unwrap();
    let mut writer = site.cluster.command_as_pg(&psql);
    let mut writer = writer.args(["-qX", &conninfo, "-c", write]).stderr(Stdio::null()).spawn().unwrap();
    site.wait_for("it writes", || site.cluster.sql("SELECT count(*) > 200000 FROM b").unwrap() == "t");
    // Somebody else waits for the tables for himself, again and again.
    let lock = "DO $$ BEGIN FOR i IN 1 .. 20 LOOP SET LOCAL lock_timeout = '1s'; BEGIN LOCK TABLE a, b IN ACCESS EXCLUSIVE MODE; \
        EXCEPTION WHEN lock_not_available THEN END; COMMIT; PERFORM pg_sleep(0.05); END LOOP; END $$";
    let mut locker = site.cluster.command_as_pg(&psql);
    let mut locker = locker.args(["-qX", &conninfo, "-c", lock]).stderr(Stdio::null()).spawn().unwrap();
    let made = site.run(&["dump", "--part-size", "1MB", "-j", "3", "--json"]).expect(0).json();
    let _ = (writer.kill(), writer.wait());
    let _ = (locker.kill(), locker.wait());
    site.cluster.sql("SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE query LIKE 'DO $$%'").unwrap();
    site.cluster.sql("CREATE DATABASE copy").unwrap();
    let id = made["dump"].as_str().unwrap();
    site.run(&["load", id, "--into", &site.cluster.conninfo_db("copy")]).expect(0);
    let counts = site.cluster.psql_db(
        "copy",
        "SELECT (SELECT count(*) FROM a) - (SELECT count(*) FROM b), (SELECT count(*) FROM a) > 200000",
    );
    assert_eq!(counts.unwrap(), "0|t", "each transaction adds one row to each table");
}

#[test]
fn who_is_no_superuser_is_told_what_was_left_out() {
    let site = Site::bare();
    site.init(&[]).expect(0);
    site.cluster.sql(
        "CREATE ROLE limited LOGIN; CREATE SCHEMA closed; CREATE TABLE closed.t (a int); CREATE TABLE mine (a int); \
         INSERT INTO mine VALUES (1); CREATE TABLE theirs (a serial); GRANT SELECT ON mine TO limited; \
         CREATE TABLE policed (a int); ALTER TABLE policed ENABLE ROW LEVEL SECURITY; GRANT SELECT ON policed TO limited; \
         SELECT lo_from_bytea(77, 'x')",
    )
    .unwrap();
    // The same with a role that one takes on, from server to server.
    let args = ["dump", "--to", &site.cluster.conninfo(), "--create", "as_role", "--role", "limited", "--json"];
    let copied = site.run(&args).expect(4).says(&["closed", "theirs"]).json();
    assert_eq!(copied["rows"], 1, "{copied}");
    let shown =
        ["dump", "--to", &site.cluster.conninfo(), "--create", "shown", "--role", "limited", "--enable-row-security"];
    site.run(&shown).expect(4).says(&["policed"]);
    let config = std::fs::read_to_string(site.config()).unwrap();
    assert!(config.contains("user=postgres"), "{config}");
    std::fs::write(site.config(), config.replace("user=postgres", "user=limited")).unwrap();
    let said = site.run(&["dump", "--json"]).expect(4);
    let made = said.json();
    let unread = made["databases"][0]["unread"].to_string();
    for name in ["closed", "theirs", "theirs_a_seq", "policed", "large objects 77"] {
        assert!(unread.contains(name), "{name}: {unread}");
    }
    assert!(!unread.contains("mine"), "{unread}");
    assert_eq!(made["databases"][0]["rows"], 1);
    let listed = site.run(&["list", "--json"]).expect(0).json();
    assert_eq!(listed["dumps"][0]["state"], "incomplete", "{listed}");
}

#[test]
fn dumps_of_all_databases_are_listed_verified_and_deleted() {
    let site = Site::bare();
    site.init(&[]).expect(0);
    site.cluster.sql("CREATE ROLE someone LOGIN PASSWORD 'x'").unwrap();
    for name in ["one", "\"Two, too\""] {
        site.cluster.sql(&format!("CREATE DATABASE {name}")).unwrap();
    }
    site.cluster.psql_db("one", "CREATE TABLE t AS SELECT md5(g::text) FROM generate_series(1, 20000) g").unwrap();
    let args = ["dump", "--all", "--globals", "--synchronised", "--label", "all of it", "--json"];
    let made = site.run(&args).expect(0).json();
    assert_eq!(made["databases"].as_array().unwrap().len(), 3, "{made}");
    assert!(made["synchronised_within_us"].is_u64(), "{made}");
    let id = made["dump"].as_str().unwrap();
    let listed = site.run(&["list"]).expect(0);
    assert!(listed.stdout.contains("one, postgres") || listed.stdout.contains("Two, too"), "{}", listed.stdout);
    assert!(listed.stdout.contains("and globals") && listed.stdout.contains("all of it"), "{}", listed.stdout);
    site.run(&["verify", id]).expect(0);
    site.run(&["verify", "--all"]).expect(0).says(&["1 dump not looked at"]);
    let all = site.run(&["verify", "--all", "--deep", "--json"]).expect(0).json();
    assert!(all["dumps"][0]["rows"].as_u64().unwrap() >= 20_000, "{all}");
    site.run(&["load", id, "--into", &site.cluster.conninfo()]).expect(1).says(&["3 databases", "--database"]);
    site.run(&["load", id, "--into", &site.cluster.conninfo(), "-d", "x"]).expect(3).says(&["no database \"x\""]);
    site.cluster.sql("DROP ROLE someone").unwrap();
    let into = site.cluster.conninfo();
    site.run(&["load", id, "--into", &into, "-d", "one", "--create", "one again", "--globals"]).expect(0);
    assert_eq!(site.cluster.psql_db("'one again'", "SELECT count(*) FROM t").unwrap(), "20000");
    assert_eq!(site.cluster.sql("SELECT rolcanlogin FROM pg_roles WHERE rolname = 'someone'").unwrap(), "t");

    // One byte of the data is changed.
    let dir = site.repository().join("clusters/main/dumps").join(id);
    let largest = std::fs::read_dir(&dir).unwrap().map(|entry| entry.unwrap().path());
    let largest = largest.filter(|path| path.file_name().unwrap() != "manifest");
    let largest = largest.max_by_key(|path| std::fs::metadata(path).unwrap().len()).unwrap();
    let mut bytes = std::fs::read(&largest).unwrap();
    let middle = bytes.len() / 2;
    bytes[middle] ^= 1;
    std::fs::write(&largest, bytes).unwrap();
    let said = site.run(&["verify", id]).expect(1);
    assert!(said.stdout.contains("DAMAGE") && said.stdout.contains("public.t"), "{}", said.stdout);
    site.run(&["verify", "--all", "--deep"]).expect(1);
    site.run(&["load", id, "--into", &into, "-d", "one", "--create", "damaged", "--on-error", "continue"]).expect(1);

    site.run(&["delete", id, "--dry-run"]).expect(0);
    site.run(&["delete", id]).expect(2).says(&["--yes"]);
    site.run(&["delete", id, "--yes"]).expect(0);
    assert!(!dir.exists());
    site.run(&["load", id, "--into", &into]).expect(3).says(&["there are no dumps"]);

    // What cannot be made leaves nothing.
    site.run(&["dump", "-d", "nothing"]).expect(1).says(&["nothing"]);
    site.run(&["dump", "-d", "one", "--table", "absent"]).expect(1).says(&["no matching tables"]);
    site.run(&["dump", "-d", "one", "--pg-bin", "/nonexistent"]).expect(1).says(&["--pg-bin", "none was found"]);
    let left = site.run(&["list", "--json"]).expect(0).json();
    assert!(
        left["dumps"].as_array().unwrap().is_empty() && left["unfinished_dumps"].as_array().unwrap().is_empty(),
        "{left}"
    );
}
