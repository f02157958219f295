//! Loads that are killed and go on, that take part of a dump, and that change names.

use super::{as_text, same, site};
use crate::support::Site;
use std::io::Write;
use std::process::{Child, ChildStdin, Stdio};

/// A session that holds something until it is told to go.
struct Session {
    child: Child,
    stdin: ChildStdin,
}

impl Session {
    fn in_database(site: &Site, database: &str) -> Self {
        let psql = site.cluster.bin("psql").unwrap();
        let mut command = site.cluster.command_as_pg(&psql);
        command.args(["-qX", &format!("--dbname={}", site.cluster.conninfo_db(database))]);
        let mut child = command.stdin(Stdio::piped()).stderr(Stdio::null()).spawn().unwrap();
        let stdin = child.stdin.take().unwrap();
        Self { child, stdin }
    }

    fn say(&mut self, sql: &str) {
        self.stdin.write_all(sql.as_bytes()).unwrap();
        self.stdin.flush().unwrap();
    }

    fn end(self) {
        let Self { mut child, stdin } = self;
        drop(stdin);
        child.wait().unwrap();
    }
}

fn number(site: &Site, database: &str, sql: &str) -> i64 {
    site.cluster.psql_db(database, sql).ok().and_then(|text| text.trim().parse().ok()).unwrap_or(-1)
}

#[test]
fn a_load_that_is_killed_goes_on() {
    let site = site();
    let origin = as_text(&site, "origin");
    let made = site.run(&["dump", "-d", "origin", "--part-size", "1MB", "--json"]).expect(0).json();
    let id = made["dump"].as_str().unwrap();
    let postgres = site.cluster.conninfo();
    let args = ["load", id, "--into", &postgres, "--create", "again", "-j", "3", "--json"];
    let mut killed = 0;
    for round in 0..5 {
        let mut load = site.command(&args).stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
        let mut over = false;
        site.wait_for("a piece is done", || {
            over = load.try_wait().unwrap().is_some();
            over || number(&site, "again", "SELECT count(*) FROM pgkeep_load.done") >= round * 6
        });
        if over {
            break;
        }
        // All sessions come to stand where they note what they did; their transactions outlive the program.
        let mut holder = Session::in_database(&site, "again");
        holder.say("BEGIN; LOCK TABLE pgkeep_load.done IN EXCLUSIVE MODE;\n");
        let waiting = "SELECT count(*) FROM pg_locks WHERE NOT granted AND relation = 'pgkeep_load.done'::regclass";
        site.wait_for("somebody waits", || {
            over = load.try_wait().unwrap().is_some();
            over || number(&site, "again", waiting) > 0
        });
        if round == 1 && !over {
            site.run(&args).expect(1).says(&["is being loaded by somebody else"]);
        }
        load.kill().unwrap();
        load.wait().unwrap();
        killed += i32::from(!over);
        holder.end();
    }
    assert!(killed > 1, "{killed}");
    let other = ["load", id, "--into", &postgres, "--create", "again", "--no-owner"];
    site.run(&other).expect(1).says(&["holds what another load left", "say the same as then"]);
    let done = site.run(&args).expect(0).json();
    assert!(done["went_on_after"].as_u64().unwrap() > 6, "{done}");
    same("after it was killed", &origin, &as_text(&site, "again"));
    site.run(&args).expect(1).says(&["there is a database again"]);
}

#[test]
fn a_part_is_loaded_under_other_names_and_in_another_order() {
    let site = Site::bare();
    site.init(&[]).expect(0);
    site.cluster.sql("CREATE DATABASE origin; ").unwrap();
    site.cluster.sql("CREATE ROLE before; CREATE ROLE after; CREATE ROLE reader").unwrap();
    let sql = "CREATE SCHEMA app AUTHORIZATION before; CREATE TYPE app.mood AS ENUM ('sad', 'ok'); \
        CREATE FUNCTION app.twice(int) RETURNS int LANGUAGE sql IMMUTABLE AS 'SELECT $1 * 2'; \
        CREATE TABLE app.t (id serial PRIMARY KEY, mood app.mood DEFAULT 'ok', CHECK (app.twice(id) > 0)); \
        INSERT INTO app.t (mood) SELECT 'sad' FROM generate_series(1, 100); ALTER TABLE app.t OWNER TO before; \
        CREATE FUNCTION app.count() RETURNS bigint LANGUAGE sql AS $$ SELECT count(*) FROM app.t $$; \
        CREATE TABLE app.u (t int REFERENCES app.t, x text DEFAULT 'app.t'); CREATE INDEX u_expr ON app.u (app.twice(t)); \
        INSERT INTO app.u SELECT id FROM app.t; CREATE VIEW app.v AS SELECT t.id, u.x FROM app.t JOIN app.u ON u.t = t.id; \
        GRANT SELECT ON app.t TO reader; GRANT INSERT ON app.u TO before; COMMENT ON INDEX app.u_expr IS 'app.u_expr'; \
        CREATE POLICY p ON app.u TO before USING (app.twice(t) > 1)";
    site.cluster.psql_db("origin", sql).unwrap();
    site.run(&["dump", "-d", "origin"]).expect(0);
    // The oracle is PostgreSQL's own renaming of what is there.
    let text = |database: &str| {
        let conninfo = format!("--dbname={}", site.cluster.conninfo_db(database));
        site.cluster.tool("pg_dump", &["--restrict-key=key", "--no-sync", &conninfo]).unwrap()
    };
    site.cluster.sql("CREATE DATABASE mapped").unwrap();
    let mapped = site.cluster.conninfo_db("mapped");
    let args = ["load", "latest", "--into", &mapped, "--map-schema", "app=New One", "--map-owner", "before=after"];
    site.run(&args).expect(4).says(&["count()", "still speaks of schema app"]);
    let change = "ALTER SCHEMA app RENAME TO \"New One\"; REASSIGN OWNED BY before TO after; \
        ALTER POLICY p ON \"New One\".u TO after; REVOKE INSERT ON \"New One\".u FROM before; GRANT INSERT ON \"New One\".u TO after";
    site.cluster.psql_db("origin", change).unwrap();
    same("other names", &text("origin"), &text("mapped"));
    // Beside what is there.
    site.cluster.psql_db("mapped", "CREATE SCHEMA app; CREATE TABLE app.kept AS SELECT 1 AS one").unwrap();
    let beside =
        ["load", "latest", "--into", &mapped, "--force", "-t", "app.t", "--map-schema", "app=beside", "--no-owner"];
    site.run(&beside).expect(1).says(&["type \"beside.mood\" does not exist"]);
    site.cluster.psql_db("mapped", "DROP SCHEMA IF EXISTS pgkeep_load, beside CASCADE").unwrap();
    let both =
        ["load", "latest", "--into", &mapped, "--force", "-n", "app", "--map-schema", "app=beside", "--no-owner"];
    site.run(&both).expect(4);
    assert_eq!(site.cluster.psql_db("mapped", "SELECT count(*) FROM beside.v").unwrap(), "100");

    let listed = site.run(&["load", "latest", "--list"]).expect(0).stdout;
    assert!(listed.contains("TABLE DATA app t before") && listed.contains("INDEX app u_expr postgres"), "{listed}");
    let chosen =
        |line: &&str| !line.contains(" INDEX ") && !line.contains(" DATA app u ") && !line.contains(" INDEX u_expr ");
    let edited: Vec<&str> = listed.lines().filter(chosen).collect();
    let file = site.path("list");
    std::fs::write(&file, edited.join("\n")).unwrap();
    site.cluster.sql("CREATE DATABASE listed").unwrap();
    let some = site.cluster.conninfo_db("listed");
    site.run(&["load", "latest", "--into", &some, "--use-list", &file, "-j", "1"]).expect(0);
    let count = "SELECT (SELECT count(*) FROM app.t), (SELECT count(*) FROM app.u), to_regclass('app.u_expr') IS NULL";
    assert_eq!(site.cluster.psql_db("listed", count).unwrap(), "100|0|t");
    std::fs::write(&file, "999999; nothing").unwrap();
    site.run(&["load", "latest", "--into", &some, "--use-list", &file]).expect(1).says(&["line 1", "names no entry"]);
}

#[test]
fn a_database_is_copied_into_another_server() {
    let site = site();
    let origin = as_text(&site, "origin");
    let postgres = site.cluster.conninfo();
    let args =
        ["dump", "-d", "origin", "--to", &postgres, "--create", "copied", "--part-size", "1MB", "-j", "3", "--json"];
    let made = site.run(&args).expect(0).json();
    same("copied", &origin, &as_text(&site, "copied"));
    assert_eq!((&made["into"], &made["large_objects"]), (&"copied".into(), &3.into()), "{made}");
    let rows = site.cluster.psql_db("origin", "SELECT count(*) FROM app.big").unwrap();
    assert!(made["rows"].as_u64().unwrap() > rows.parse().unwrap(), "{made}");
    site.run(&args).expect(1).says(&["there is a database copied"]);
    let copied = site.cluster.conninfo_db("copied");
    site.run(&["dump", "-d", "origin", "--to", &copied]).expect(1).says(&["is not empty"]);
    site.run(&["dump", "-d", "origin", "--to", "/srv/x"]).expect(2).says(&["a connection string is wanted"]);
    site.run(&["dump", "--all", "--to", &copied]).expect(2).says(&["one database"]);
    let left = site.run(&["list", "--json"]).expect(0).json();
    assert!(left["dumps"].as_array().unwrap().is_empty(), "nothing is kept: {left}");
}
