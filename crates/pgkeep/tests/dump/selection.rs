//! What is dumped of a database, and what is loaded of a dump: for each switch pg_dump with the same switch is the oracle.

use crate::support::Site;
use crate::{as_text, same};

/// Something for every switch to find.
const SQL: &str = "CREATE EXTENSION citext; CREATE EXTENSION file_fdw; CREATE SCHEMA app; CREATE SCHEMA \"Odd One\"; \
    COMMENT ON SCHEMA app IS 'the app'; \
    CREATE TABLE app.t (id serial PRIMARY KEY, name citext); COMMENT ON TABLE app.t IS 'a table'; \
    INSERT INTO app.t (name) VALUES ('one'), ('two'); CREATE INDEX t_name ON app.t (name); \
    CREATE TABLE app.other (t int REFERENCES app.t); INSERT INTO app.other VALUES (1); \
    CREATE TABLE \"Odd One\".\"Odd.Table\" (a int); INSERT INTO \"Odd One\".\"Odd.Table\" VALUES (7); \
    CREATE TABLE app.parts (n int, x text) PARTITION BY RANGE (n); \
    CREATE TABLE app.part1 PARTITION OF app.parts FOR VALUES FROM (0) TO (10); INSERT INTO app.parts VALUES (5, 'x'); \
    CREATE TABLE app.base (a int); CREATE TABLE app.child (b int) INHERITS (app.base); INSERT INTO app.child VALUES (1, 2); \
    CREATE UNLOGGED TABLE app.scratch (a int); INSERT INTO app.scratch VALUES (3); \
    CREATE VIEW app.v AS SELECT name FROM app.t; CREATE MATERIALIZED VIEW app.m AS SELECT count(*) FROM app.t; \
    CREATE SEQUENCE app.lonely; SELECT nextval('app.lonely'); \
    CREATE FUNCTION app.f() RETURNS int LANGUAGE sql AS 'SELECT 1'; \
    ALTER TABLE app.t ENABLE ROW LEVEL SECURITY; CREATE POLICY own ON app.t USING (id = 1); \
    CREATE PUBLICATION pub FOR TABLE app.t; \
    CREATE SUBSCRIPTION sub CONNECTION 'dbname=nowhere' PUBLICATION pub WITH (connect = false); \
    SELECT lo_from_bytea(77, 'large'); COMMENT ON LARGE OBJECT 77 IS 'an object'; \
    CREATE SERVER files FOREIGN DATA WRAPPER file_fdw; \
    CREATE ROLE selected_owner; ALTER TABLE app.other OWNER TO selected_owner; GRANT SELECT ON app.t TO selected_owner; \
    ANALYZE";

/// The lines of a dump that differ from run to run.
fn settled(text: &str) -> String {
    let lines = text.lines().filter(|line| !line.starts_with("\\restrict ") && !line.starts_with("\\unrestrict "));
    lines.collect::<Vec<_>>().join("\n")
}

#[test]
fn what_is_selected_is_what_pg_dump_selects() {
    let site = Site::bare_on(18);
    site.init(&[]).expect(0);
    site.cluster.sql("CREATE DATABASE origin").unwrap();
    site.cluster.psql_db("origin", SQL).unwrap();
    let rows = site.path("rows.csv");
    site.cluster
        .psql_db(
            "origin",
            &format!(
                "COPY (VALUES (1), (2)) TO '{rows}'; CREATE FOREIGN TABLE app.far (a int) SERVER files OPTIONS (filename '{rows}')"
            ),
        )
        .unwrap();
    let bin = site.cluster.bin("pg_dump").unwrap().parent().unwrap().to_string_lossy().into_owned();
    let filter = site.path("filter");
    std::fs::write(&filter, "include table app.*\nexclude table app.other\nexclude table_data app.t\n").unwrap();
    let dump = |switches: &[&str], to: &str| {
        let common = ["dump", "-d", "origin", "-j", "1", "--pg-bin", &bin, "--format", "plain", "--to", to];
        site.run(&[&common[..], switches].concat())
    };
    // Short forms and repeated ones among them; each with a second switch where that says more.
    let cases: [&[&str]; 29] = [
        &[],
        &["-n", "app"],
        &["--schema", "\"Odd\"*", "--schema", "nothing"],
        &["-n", "app", "--large-objects"],
        &["-N", "app"],
        &["--exclude-schema", "a*"],
        &["-t", "app.t"],
        &["--table", "\"Odd One\".\"Odd.Table\"", "-t", "app.(base|child)"],
        &["-t", "app.t", "--large-objects", "--no-comments"],
        &["-t", "app.lonely", "-t", "app.v"],
        &["-T", "app.other"],
        &["--exclude-table", "app.p*", "--exclude-table", "*.t"],
        &["--table-and-children", "app.parts"],
        &["--exclude-table-and-children", "app.base"],
        &["--exclude-table-data", "app.t"],
        &["--exclude-table-data-and-children", "app.parts"],
        &["-e", "citext"],
        &["--exclude-extension", "cit*"],
        &["--filter", &filter],
        &["--include-foreign-data", "files", "-t", "app.far"],
        &["-t", "app.t", "-t", "app.base", "--strict-names"],
        &["--section", "pre-data"],
        &["--section", "data", "--section", "post-data"],
        &["--schema-only"],
        &["--data-only", "--no-unlogged-table-data"],
        &["--no-large-objects"],
        &["--statistics", "-n", "app"],
        &["--no-comments", "--no-publications", "--no-subscriptions"],
        &["--no-security-labels", "--no-policies"],
    ];
    let conninfo = format!("--dbname={}", site.cluster.conninfo_db("origin"));
    for (number, switches) in cases.iter().enumerate() {
        let out = site.path(&format!("{number}.sql"));
        dump(switches, &out).expect(0);
        let found = std::fs::read_to_string(&out).unwrap();
        let oracle = site.cluster.tool("pg_dump", &[&["--no-sync", &conninfo][..], switches].concat()).unwrap();
        assert!(oracle.len() > 1000, "{switches:?} selects something: {oracle}");
        same(&format!("{switches:?}"), &settled(&oracle), &settled(&found));
    }
    // What matches nothing is said, as pg_dump says it.
    let missing = site.path("missing");
    let bad = site.path("bad");
    std::fs::write(&bad, "include tables app.t\n").unwrap();
    for (switches, words) in [
        (&["-t", "app.nothing"][..], "no matching tables were found"),
        (&["-n", "ap"], "no matching schemas were found"),
        (&["-e", "nothing"], "no matching extensions were found"),
        (&["-t", "app.t", "-t", "app.nothing", "--strict-names"], "app.nothing"),
        (&["--include-foreign-data", "nowhere"], "no matching foreign servers were found"),
        (&["--filter", &missing], "missing"),
        (&["--filter", &bad], "line 1"),
    ] {
        dump(switches, &site.path("none.sql")).expect(1).says(&[words]);
    }
    dump(&["--schema-only", "--data-only"], &site.path("none.sql")).expect(2);
    dump(&["--section", "data", "--data-only"], &site.path("none.sql")).expect(2);
    assert!(!std::path::Path::new(&site.path("none.sql")).exists());
    // A pattern that excludes nothing excludes nothing.
    let out = site.path("all.sql");
    dump(&["-T", "app.nothing", "-N", "nothing"], &out).expect(0);
    let whole = std::fs::read_to_string(site.path("0.sql")).unwrap();
    same("-T nothing", &settled(&whole), &settled(&std::fs::read_to_string(&out).unwrap()));
}

#[test]
fn what_is_loaded_of_a_dump_is_what_is_said() {
    let site = Site::bare();
    site.init(&[]).expect(0);
    site.cluster.sql("CREATE DATABASE origin").unwrap();
    site.cluster.psql_db("origin", SQL).unwrap();
    site.run(&["dump", "-d", "origin"]).expect(0);
    let origin = as_text(&site, "origin");
    let archive = site.path("oracle.dump");
    let from = format!("--dbname={}", site.cluster.conninfo_db("origin"));
    site.cluster.tool("pg_dump", &["-Fc", "--no-sync", "-f", &archive, &from]).unwrap();
    let fresh = |name: &str| {
        site.cluster.sql(&format!("CREATE DATABASE {name}")).unwrap();
        site.cluster.conninfo_db(name)
    };
    let load = |into: &str, more: &[&str]| site.run(&[&["load", "latest", "--into", into][..], more].concat());

    let sections = fresh("sections");
    load(&sections, &["--section", "pre-data"]).expect(0);
    load(&sections, &["--section", "data", "--section", "post-data"]).expect(0);
    same("section by section", &origin, &as_text(&site, "sections"));
    let halves = fresh("halves");
    load(&halves, &["--schema-only"]).expect(0);
    assert_eq!(site.cluster.psql_db("halves", "SELECT count(*) FROM app.t").unwrap(), "0");
    load(&halves, &["--data-only"]).expect(0);
    // Subscriptions are objects of the whole cluster, and a second of the same name would want another slot.
    same("definitions, then data", &origin, &as_text(&site, "halves"));
    let (nobody, oracle) = (fresh("nobody"), fresh("oracle"));
    load(&nobody, &["-O", "-x"]).expect(0);
    site.cluster.tool("pg_restore", &["-O", "-x", "--exit-on-error", &format!("--dbname={oracle}"), &archive]).unwrap();
    same("without owners and privileges", &as_text(&site, "oracle"), &as_text(&site, "nobody"));

    // One schema: what pg_dump of that schema would have given.
    let schema = fresh("schema");
    site.cluster.psql_db("schema", "CREATE EXTENSION citext; CREATE EXTENSION file_fdw").unwrap();
    load(&schema, &["-n", "Odd One"]).expect(0);
    let of = |database: &str| {
        let conninfo = format!("--dbname={}", site.cluster.conninfo_db(database));
        site.cluster.tool("pg_dump", &["--restrict-key=key", "-n", "\"Odd One\"", "--strict-names", &conninfo]).unwrap()
    };
    same("one schema", &of("origin"), &of("schema"));
    load(&schema, &["--force", "-t", "app.nothing"]).expect(3).says(&["no table \"app.nothing\"", "app.t"]);
    load(&schema, &["--force", "-n", "ap"]).expect(3).says(&["no schema \"ap\"", "app"]);
}
