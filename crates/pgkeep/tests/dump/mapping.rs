//! Other names: the oracle is the server's own renaming of what is there.

use crate::support::Site;
use crate::{as_text, same};

/// Schemas, and much that is called like them and is none.
const SQL: &str = "CREATE SCHEMA app; CREATE SCHEMA other; CREATE EXTENSION citext WITH SCHEMA app; \
    CREATE TYPE app.mood AS ENUM ('sad', 'ok'); CREATE TYPE app.pair AS (app int, t int); \
    CREATE TABLE app.t (id serial PRIMARY KEY, t int, app app.mood DEFAULT 'ok', name app.citext, p app.pair); \
    INSERT INTO app.t (t, name, p) SELECT g, g, ROW(g, g)::app.pair FROM generate_series(1, 100) g; \
    CREATE TABLE app.app (t int REFERENCES app.t, u int); CREATE TABLE other.t (other int, app text DEFAULT 'app.t'); \
    CREATE TABLE app.parts (n int, app int) PARTITION BY RANGE (n); \
    CREATE TABLE other.part1 PARTITION OF app.parts FOR VALUES FROM (0) TO (10); \
    CREATE FUNCTION app.twice(app int) RETURNS int LANGUAGE sql IMMUTABLE AS 'SELECT app * 2'; \
    CREATE FUNCTION app.t(app.t) RETURNS int LANGUAGE sql IMMUTABLE RETURN 7; \
    CREATE FUNCTION app.whole(app app.mood) RETURNS SETOF app.t LANGUAGE sql BEGIN ATOMIC \
      SELECT app.* FROM app.t app, other.t WHERE app.t > 1 AND app.app = whole.app; END; \
    CREATE OPERATOR app.|+| (LEFTARG = int, RIGHTARG = int, FUNCTION = int4pl); \
    CREATE INDEX t_expr ON app.t (app.twice(t)) WHERE app = 'ok'; CREATE STATISTICS app.s ON t, app FROM app.t; \
    CREATE VIEW app.alias AS SELECT app.t, app.id FROM app.t app WHERE app.t OPERATOR(app.|+|) 1 > 2; \
    CREATE VIEW app.same AS SELECT app.t, app.u FROM app.app JOIN other.t other ON other.other = app.u; \
    CREATE VIEW app.deep AS SELECT app.t, (SELECT count(*) FROM app.app WHERE app.u = t.t) FROM app.app, app.t \
      WHERE EXISTS (SELECT FROM app.parts app WHERE app.app = t.id AND app.n IN (SELECT app.u FROM app.app)); \
    CREATE VIEW app.typed AS SELECT app.t::text::app.mood, r.x FROM app.t(NULL::app.t) app(t), \
      json_to_record('{}') AS r(app app.mood, x int), LATERAL app.twice(app.t) x(x), LATERAL (SELECT app.t) y(app_t), app.twice(1) z; \
    CREATE VIEW other.joined AS WITH app AS (SELECT t.t FROM app.t) SELECT app.t FROM app LEFT JOIN (app.app a CROSS JOIN other.t) USING (t); \
    CREATE MATERIALIZED VIEW app.m AS SELECT (app.p).app, (app.p).t, EXTRACT(year FROM now()) AS y FROM app.t app; \
    CREATE RULE r AS ON UPDATE TO app.alias DO INSTEAD UPDATE app.t app SET t = new.t WHERE app.id = old.id AND app.t IS DISTINCT FROM new.t; \
    CREATE POLICY p ON app.t TO mapped_before USING (EXISTS (SELECT FROM app.app app WHERE app.t = t.t)); \
    CREATE FUNCTION app.trigger() RETURNS trigger LANGUAGE plpgsql AS 'BEGIN RETURN NULL; END'; \
    CREATE TRIGGER tr AFTER UPDATE OF app ON app.t FOR EACH ROW WHEN (new.app IS DISTINCT FROM old.app) EXECUTE FUNCTION app.trigger(); \
    CREATE PUBLICATION pub FOR TABLES IN SCHEMA app; CREATE AGGREGATE app.agg(app.mood) (SFUNC = array_append, STYPE = app.mood[]); \
    ALTER FUNCTION app.trigger() SET search_path = app, other; COMMENT ON FUNCTION app.twice(int) IS 'app.twice'; \
    GRANT USAGE ON SCHEMA app TO mapped_before; GRANT SELECT ON app.t TO mapped_after; ALTER TABLE app.app OWNER TO mapped_before; \
    GRANT EXECUTE ON FUNCTION app.twice(int) TO mapped_before WITH GRANT OPTION; \
    ALTER DEFAULT PRIVILEGES FOR ROLE mapped_before IN SCHEMA app GRANT SELECT ON TABLES TO mapped_after; \
    ALTER TABLE other.t OWNER TO mapped_after";

/// All three at once, each with two names that change places, and 18's statistics.
#[test]
fn names_change_places_and_what_is_only_called_so_stays() {
    let site = Site::bare_on(18);
    site.init(&[]).expect(0);
    site.cluster.sql("CREATE DATABASE origin").unwrap();
    site.cluster.sql("CREATE ROLE mapped_before; CREATE ROLE mapped_after; CREATE ROLE mapped_third").unwrap();
    for name in ["fast", "slow"] {
        let dir = site.cluster.make_dir(name).unwrap();
        site.cluster.sql(&format!("CREATE TABLESPACE {name} LOCATION '{}'", dir.display())).unwrap();
    }
    site.cluster.psql_db("origin", SQL).unwrap();
    let placed = "CREATE TABLE app.on_fast (a int PRIMARY KEY USING INDEX TABLESPACE slow) TABLESPACE fast; \
        CREATE TABLE app.parted (a int) PARTITION BY LIST (a) TABLESPACE fast; \
        CREATE INDEX on_slow ON app.t (t) TABLESPACE slow; CREATE MATERIALIZED VIEW app.mv TABLESPACE fast AS SELECT 1 AS one; \
        ALTER TABLE app.t SET (autovacuum_enabled = off); ANALYZE";
    site.cluster.psql_db("origin", placed).unwrap();
    let bin = site.cluster.bin("pg_dump").unwrap().parent().unwrap().to_string_lossy().into_owned();
    site.run(&["dump", "-d", "origin", "--statistics", "--pg-bin", &bin]).expect(0);
    for name in ["mapped", "direct"] {
        site.cluster.sql(&format!("CREATE DATABASE {name}")).unwrap();
    }
    let names = [
        "--map-schema=app=other",
        "--map-schema=other=app",
        "--map-owner=mapped_before=mapped_after",
        "--map-owner=mapped_after=mapped_third",
        "--map-tablespace=fast=slow",
        "--map-tablespace=slow=fast",
    ];
    let mapped = site.cluster.conninfo_db("mapped");
    site.run(&[&["load", "latest", "--into", &mapped, "--pg-bin", &bin][..], &names].concat()).expect(0);
    let direct = site.cluster.conninfo_db("direct");
    let args = ["dump", "-d", "origin", "--to", &direct, "--statistics", "--pg-bin", &bin];
    site.run(&[&args[..], &names].concat()).expect(0);
    let change = "ALTER SCHEMA app RENAME TO between; ALTER SCHEMA other RENAME TO app; ALTER SCHEMA between RENAME TO other; \
        ALTER FUNCTION other.trigger() SET search_path = other, app; \
        ALTER TABLE app.t OWNER TO mapped_third; ALTER TABLE other.app OWNER TO mapped_after; \
        REVOKE SELECT ON other.t FROM mapped_after; GRANT SELECT ON other.t TO mapped_third; \
        REVOKE USAGE ON SCHEMA other FROM mapped_before; GRANT USAGE ON SCHEMA other TO mapped_after; \
        REVOKE EXECUTE ON FUNCTION other.twice(int) FROM mapped_before; \
        GRANT EXECUTE ON FUNCTION other.twice(int) TO mapped_after WITH GRANT OPTION; \
        ALTER DEFAULT PRIVILEGES FOR ROLE mapped_before IN SCHEMA other REVOKE SELECT ON TABLES FROM mapped_after; \
        ALTER DEFAULT PRIVILEGES FOR ROLE mapped_after IN SCHEMA other GRANT SELECT ON TABLES TO mapped_third; \
        ALTER POLICY p ON other.t TO mapped_after; \
        ALTER TABLE other.on_fast SET TABLESPACE slow; ALTER INDEX other.on_fast_pkey SET TABLESPACE fast; \
        ALTER TABLE other.parted SET TABLESPACE slow; ALTER INDEX other.on_slow SET TABLESPACE fast; \
        ALTER MATERIALIZED VIEW other.mv SET TABLESPACE slow";
    site.cluster.psql_db("origin", change).unwrap();
    let origin = as_text(&site, "origin");
    same("loaded under other names", &origin, &as_text(&site, "mapped"));
    same("copied under other names", &origin, &as_text(&site, "direct"));
    let stats =
        "SELECT count(*), string_agg(DISTINCT schemaname, ' ') FROM pg_stats WHERE schemaname IN ('app', 'other')";
    let of = |database: &str| site.cluster.psql_db(database, stats).unwrap();
    assert_ne!(of("origin"), "0|", "there are statistics");
    assert_eq!((of("mapped"), of("direct")), (of("origin"), of("origin")));

    // What must not be lost by it: a database in a tablespace that is not there.
    site.cluster.sql("CREATE DATABASE placed TABLESPACE fast").unwrap();
    site.run(&["dump", "-d", "placed", "--pg-bin", &bin]).expect(0);
    let space =
        "SELECT spcname FROM pg_database d JOIN pg_tablespace t ON t.oid = dattablespace WHERE datname = 'again'";
    for (more, expect) in
        [(&["--map-tablespace", "fast=slow"][..], "slow"), (&["--no-tablespaces"], "pg_default"), (&[], "fast")]
    {
        let into = site.cluster.conninfo();
        let args = ["load", "latest", "--into", &into, "--create", "again", "--pg-bin", &bin];
        site.run(&[&args[..], more].concat()).expect(0);
        assert_eq!(site.cluster.sql(space).unwrap(), expect, "{more:?}");
        site.cluster.sql("DROP DATABASE again").unwrap();
    }
}
