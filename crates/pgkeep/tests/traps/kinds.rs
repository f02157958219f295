//! Every resource manager has its pages: all kinds of indexes, sequences, large objects, out-of-line values, prepared
//! transactions, multixacts, and SLRUs that grow.

use crate::acts::{Act, play_sql};
use crate::scene::Scene;

pub(crate) const ACT: Act = Act { name: "kinds of pages", play };

/// Of each kind of index.
const INDEXES: [(&str, &str); 7] = [
    ("gin_fast", "gin (tags)"),
    ("gin_slow", "gin (tags) WITH (fastupdate = off)"),
    ("gist", "gist (place)"),
    ("spgist", "spgist (place)"),
    ("brin", "brin (id) WITH (pages_per_range = 2)"),
    ("hash", "hash (t)"),
    ("dedup", "btree (few)"),
];

fn insert(from: u32, to: u32) -> String {
    format!(
        "INSERT INTO kind.rows SELECT g, md5(g::text), g % 5, ARRAY['t' || g % 7, 'u' || g % 501],
         point(g * 37 % 1000, g * 91 % 1000), repeat(md5(g::text), (g % 40) * 8) FROM generate_series({from}, {to}) g"
    )
}

fn play(scene: &mut Scene, step: usize) {
    match step {
        0 => {
            scene.sql(
                "CREATE SCHEMA kind; CREATE TABLE kind.rows (id int, t text, few int, tags text[], place point, long text);
                 ALTER TABLE kind.rows ALTER long SET STORAGE external; CREATE SEQUENCE kind.plain;
                 CREATE SEQUENCE kind.cached CACHE 5; CREATE TABLE kind.locks (id int PRIMARY KEY, n int);
                 INSERT INTO kind.locks SELECT g, 0 FROM generate_series(1, 2000) g;
                 CREATE TABLE kind.parent (id int PRIMARY KEY); CREATE TABLE kind.child (p int REFERENCES kind.parent);
                 INSERT INTO kind.parent SELECT generate_series(1, 500)",
            );
            for (name, index) in INDEXES {
                scene.sql(&format!("CREATE INDEX {name} ON kind.rows USING {index}"));
            }
            scene.sql(&insert(1, 1500));
            scene.sql("SELECT lo_from_bytea(70000 + g, decode(repeat(md5(g::text), 300), 'hex')) FROM generate_series(1, 20) g");
            scene.sql("SELECT nextval('kind.plain') FROM generate_series(1, 7); SELECT nextval('kind.cached')");
        }
        1 => {
            scene.sql(&insert(1501, 4500));
            scene.sql("DELETE FROM kind.rows WHERE id % 9 = 0; VACUUM kind.rows");
            // Waits for nobody: the lockers are prepared.
            scene.sql("BEGIN; SELECT 1 FROM kind.locks WHERE id % 7 = 0 FOR KEY SHARE; PREPARE TRANSACTION 'reader'");
            scene.sql("BEGIN; SELECT 1 FROM kind.locks WHERE id % 7 = 0 FOR SHARE; PREPARE TRANSACTION 'other'");
            scene.sql("BEGIN; INSERT INTO kind.child SELECT generate_series(1, 500); PREPARE TRANSACTION 'child'");
            scene.sql("UPDATE kind.locks SET n = 1 WHERE id % 14 = 3; SELECT nextval('kind.plain')");
            // Each row by a subtransaction of its own: transaction ids and their parents.
            scene.sql(
                "DO $$ BEGIN FOR i IN 1..35000 LOOP BEGIN INSERT INTO kind.locks VALUES (10000 + i, i);
                 EXCEPTION WHEN division_by_zero THEN NULL; END; END LOOP; END $$",
            );
        }
        2 => {
            scene.sql(
                "COMMIT PREPARED 'reader'; COMMIT PREPARED 'child'; UPDATE kind.locks SET n = 2 WHERE id % 77 = 1",
            );
            scene.sql(&insert(4501, 5000));
            scene.sql(
                "UPDATE kind.rows SET place = point(id, id), tags = tags || ARRAY['w' || id % 3] WHERE id % 11 = 0",
            );
            scene.sql("SELECT lo_put(70005, 4000, 'changed'::bytea); SELECT lo_unlink(70001); SELECT lo_truncate(lo_open(70002, 131072), 100)");
            scene.sql("SELECT nextval('kind.plain') FROM generate_series(1, 50); SELECT setval('kind.cached', 1000)");
            scene.sql("SELECT pg_logical_emit_message(false, 'pgkeep', 'a message'); SELECT gin_clean_pending_list('kind.gin_fast')");
        }
        _ => {
            scene.sql("ROLLBACK PREPARED 'other'; DELETE FROM kind.rows WHERE id % 4 = 0; VACUUM kind.rows");
            scene.sql("BEGIN; INSERT INTO kind.parent SELECT generate_series(501, 900); SAVEPOINT s");
            scene.sql("SELECT brin_summarize_new_values('kind.brin'); ALTER SEQUENCE kind.plain RESTART 500");
            scene.sql("SELECT nextval('kind.plain'); SELECT nextval('kind.cached') FROM generate_series(1, 3)");
            scene.sql(&insert(5001, 5200));
            scene.sql("UPDATE kind.rows SET long = repeat('new', 3000) WHERE id % 100 = 3; REINDEX INDEX kind.gist");
        }
    }
    play_sql(scene, &[], step);
}
