//! Relations that are written anew, moved, cut and dropped, and tablespaces that come and go.

use crate::acts::{Act, play_sql};
use crate::scene::Scene;

pub(crate) const ACT: Act = Act { name: "rewrites", play };
pub(crate) const TABLESPACES: Act = Act { name: "tablespaces", play: play_tablespaces };
pub(crate) const PERSISTENCE: Act = Act { name: "logged and unlogged", play: play_persistence };

fn play(scene: &mut Scene, step: usize) {
    play_sql(scene, &SCRIPT, step);
}

const ROWS: &str = "INSERT INTO re.full_one SELECT g, md5(g::text) FROM generate_series(1, 8000) g;
    INSERT INTO re.clustered SELECT g, md5(g::text) FROM generate_series(1, 8000) g;
    INSERT INTO re.indexed SELECT g, md5(g::text) FROM generate_series(1, 8000) g;
    INSERT INTO re.cut SELECT g, md5(g::text) FROM generate_series(1, 8000) g;
    INSERT INTO re.widened SELECT g, md5(g::text) FROM generate_series(1, 4000) g;
    INSERT INTO re.passing SELECT g, md5(g::text) FROM generate_series(1, 4000) g";

const SCRIPT: [(usize, &str, &str); 26] = [
    (0, "postgres", "CREATE SCHEMA re"),
    (
        0,
        "postgres",
        "CREATE TABLE re.full_one (id int PRIMARY KEY, t text); CREATE TABLE re.clustered (id int, t text);
         CREATE INDEX clustered_t ON re.clustered (t); CREATE TABLE re.indexed (id int PRIMARY KEY, t text);
         CREATE INDEX indexed_t ON re.indexed (t); CREATE TABLE re.cut (id int PRIMARY KEY, t text);
         CREATE TABLE re.widened (id int PRIMARY KEY, t text); CREATE TABLE re.passing (id int PRIMARY KEY, t text)",
    ),
    (0, "postgres", ROWS),
    (0, "postgres", "CREATE MATERIALIZED VIEW re.seen AS SELECT id, count(*) FROM re.cut GROUP BY 1"),
    (0, "postgres", "CREATE UNIQUE INDEX seen_id ON re.seen (id)"),
    (1, "postgres", "DELETE FROM re.full_one WHERE id % 3 = 0; VACUUM FULL re.full_one"),
    (1, "postgres", "CLUSTER re.clustered USING clustered_t"),
    (1, "postgres", "REINDEX TABLE re.indexed"),
    (1, "postgres", "TRUNCATE re.cut; INSERT INTO re.cut SELECT g, 'cut' FROM generate_series(1, 3000) g"),
    (1, "postgres", "ALTER TABLE re.widened ALTER id TYPE bigint"),
    (1, "postgres", "DROP TABLE re.passing; CREATE TABLE re.arrived AS SELECT g FROM generate_series(1, 5000) g"),
    (1, "postgres", "VACUUM FULL pg_class; VACUUM FULL pg_attribute; VACUUM FULL pg_proc"),
    (2, "postgres", "REFRESH MATERIALIZED VIEW CONCURRENTLY re.seen"),
    (2, "postgres", "REINDEX TABLE CONCURRENTLY re.indexed"),
    // Made anew and then changed.
    (2, "postgres", "VACUUM FULL re.full_one; UPDATE re.full_one SET t = 'x' WHERE id % 100 = 1"),
    // Cut at the end, and grown again, in the same file.
    (2, "postgres", "DELETE FROM re.cut WHERE id > 1000; VACUUM re.cut"),
    (2, "postgres", "INSERT INTO re.cut SELECT g, md5(g::text) FROM generate_series(5001, 9000) g"),
    (2, "postgres", "BEGIN; TRUNCATE re.arrived; INSERT INTO re.arrived SELECT generate_series(1, 100); COMMIT"),
    (2, "postgres", "BEGIN; TRUNCATE re.widened; INSERT INTO re.widened SELECT 1, 'no'; ROLLBACK"),
    (3, "postgres", "DELETE FROM re.cut; VACUUM re.cut"),
    (3, "postgres", "INSERT INTO re.cut SELECT g, 'short' FROM generate_series(1, 10) g"),
    (3, "postgres", "REFRESH MATERIALIZED VIEW re.seen; VACUUM FULL pg_class; REINDEX TABLE pg_class"),
    (3, "postgres", "CLUSTER re.clustered; DELETE FROM re.clustered WHERE id % 50 = 0; CLUSTER re.clustered"),
    (3, "postgres", "CREATE TABLE re.passing AS SELECT g, md5(g::text) FROM generate_series(1, 4000) g"),
    (3, "postgres", "ALTER TABLE re.widened ADD COLUMN r float DEFAULT random(); DROP INDEX re.indexed_t"),
    (3, "postgres", "DROP TABLE re.arrived"),
];

fn play_tablespaces(scene: &mut Scene, step: usize) {
    match step {
        0 => {
            scene.tablespace("quick");
            scene.tablespace("doomed");
        }
        1 => scene.tablespace("fresh"),
        2 => scene.tablespace("later"),
        _ => {}
    }
    play_sql(scene, &SPACES, step);
}

const SPACES: [(usize, &str, &str); 14] = [
    (0, "postgres", "CREATE SCHEMA ts; CREATE TABLE ts.mover (id int PRIMARY KEY, t text)"),
    (0, "postgres", "INSERT INTO ts.mover SELECT g, repeat(md5(g::text), 3) FROM generate_series(1, 6000) g"),
    (0, "postgres", "CREATE TABLE ts.stays TABLESPACE quick AS SELECT g, md5(g::text) FROM generate_series(1, 6000) g"),
    (0, "postgres", "CREATE TABLE ts.goes TABLESPACE doomed AS SELECT g, md5(g::text) FROM generate_series(1, 3000) g"),
    (0, "postgres", "VACUUM ts.mover, ts.stays, ts.goes"),
    (1, "postgres", "ALTER TABLE ts.mover SET TABLESPACE fresh; DROP TABLE ts.goes"),
    (1, "postgres", "DROP TABLESPACE doomed"),
    (1, "postgres", "UPDATE ts.mover SET t = 'x' WHERE id % 700 = 1; UPDATE ts.stays SET md5 = 'y' WHERE g % 700 = 1"),
    (2, "postgres", "ALTER INDEX ts.mover_pkey SET TABLESPACE later; ALTER TABLE ts.mover SET TABLESPACE pg_default"),
    (2, "postgres", "DELETE FROM ts.mover WHERE id % 900 = 1; CREATE INDEX stays_g ON ts.stays (g) TABLESPACE later"),
    (2, "postgres", "CREATE TABLE ts.goes TABLESPACE fresh AS SELECT g FROM generate_series(1, 3000) g"),
    (
        3,
        "postgres",
        "ALTER TABLE ALL IN TABLESPACE quick SET TABLESPACE fresh; ALTER TABLE ts.mover SET TABLESPACE quick",
    ),
    (3, "postgres", "DELETE FROM ts.stays WHERE g % 900 = 1; DROP TABLE ts.goes"),
    (3, "postgres", "ALTER INDEX ts.mover_pkey SET TABLESPACE pg_default; REINDEX INDEX ts.stays_g"),
];

fn play_persistence(scene: &mut Scene, step: usize) {
    play_sql(scene, &PERSISTENCES, step);
}

const PERSISTENCES: [(usize, &str, &str); 11] = [
    (0, "postgres", "CREATE SCHEMA lg; CREATE TABLE lg.on_off (id int PRIMARY KEY, t text)"),
    (0, "postgres", "CREATE UNLOGGED TABLE lg.off_on (id int PRIMARY KEY, t text)"),
    (0, "postgres", "INSERT INTO lg.on_off SELECT g, md5(g::text) FROM generate_series(1, 4000) g"),
    (0, "postgres", "INSERT INTO lg.off_on SELECT g, md5(g::text) FROM generate_series(1, 4000) g"),
    (1, "postgres", "ALTER TABLE lg.on_off SET UNLOGGED; ALTER TABLE lg.off_on SET LOGGED"),
    (1, "postgres", "UPDATE lg.on_off SET t = 'x'; UPDATE lg.off_on SET t = 'y' WHERE id % 300 = 1"),
    (2, "postgres", "ALTER TABLE lg.on_off SET LOGGED; DELETE FROM lg.off_on WHERE id % 300 = 2"),
    (2, "postgres", "CREATE UNLOGGED TABLE lg.fleeting AS SELECT generate_series(1, 1000) AS g"),
    (3, "postgres", "ALTER TABLE lg.on_off SET UNLOGGED; ALTER TABLE lg.on_off SET LOGGED"),
    (3, "postgres", "UPDATE lg.on_off SET t = 'z' WHERE id = 7; ALTER TABLE lg.fleeting SET LOGGED"),
    (3, "postgres", "ALTER TABLE lg.off_on SET UNLOGGED"),
];
