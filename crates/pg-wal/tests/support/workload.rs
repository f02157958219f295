//! Work that makes records of every resource manager.
#![allow(dead_code)]

use anyhow::Result;
use testkit::pg::Cluster;

pub(crate) fn workload(cluster: &mut Cluster) -> Result<()> {
    cluster.sql(
        "CREATE EXTENSION bloom; CREATE EXTENSION btree_gist;
         CREATE TABLE t (id serial PRIMARY KEY, n int, txt text, p point, r int4range, a int[]);
         CREATE INDEX ON t USING hash (txt); CREATE INDEX ON t USING gin (a); CREATE INDEX ON t USING gist (r);
         CREATE INDEX ON t USING spgist (p); CREATE INDEX ON t USING brin (n) WITH (pages_per_range = 2);
         CREATE INDEX ON t USING bloom (n);
         CREATE SEQUENCE s CACHE 1; CREATE UNLOGGED TABLE u (x int); CREATE TABLE parent (k int PRIMARY KEY);
         CREATE TABLE child (k int REFERENCES parent); INSERT INTO parent SELECT generate_series(1, 50);",
    )?;
    for kind in ["off", "pglz", "on", "lz4", "zstd"] {
        // 14 knows on and off only, and some builds lack lz4 and zstd.
        let setting = if cluster.sql(&format!("SET wal_compression = {kind}")).is_ok() { kind } else { "on" };
        cluster.sql(&format!(
            "CHECKPOINT; SET wal_compression = {setting};
             INSERT INTO t (n, txt, p, r, a) SELECT g, md5(g::text) || repeat('x', g % 50), point(g, -g),
                int4range(g, g + 10), ARRAY[g % 7, g % 11, g] FROM generate_series(1, 2000) g;
             UPDATE t SET n = n + 1, txt = txt || 'y' WHERE id % 3 = 0; DELETE FROM t WHERE id % 5 = 0;
             SELECT nextval('s'), nextval('s'); VACUUM (FREEZE) t; ANALYZE t;
             SELECT pg_logical_emit_message(true, 'p', repeat('m', 3000)), pg_logical_emit_message(false, 'q', 'now')"
        ))?;
    }
    cluster.sql("SELECT pg_create_restore_point('before the mistake')")?;
    // Records longer than a segment, so that whole segments are one continuation.
    cluster.sql("SELECT pg_logical_emit_message(false, 'long', repeat('0123456789', 350000))")?;
    cluster.sql("SELECT pg_logical_emit_message(true, 'long', repeat('abcdefghij', 250000))")?;
    cluster.sql(
        "BEGIN; SAVEPOINT a; INSERT INTO t (n) VALUES (1); SAVEPOINT b; INSERT INTO t (n) VALUES (2);
         ROLLBACK TO b; INSERT INTO t (n) VALUES (3); RELEASE a; CREATE TABLE gone (x int); DROP TABLE gone; COMMIT;
         BEGIN; CREATE TABLE never (x int); INSERT INTO never VALUES (1); ROLLBACK;
         BEGIN; SAVEPOINT z; INSERT INTO t (n) VALUES (4); CREATE TABLE two (x int); PREPARE TRANSACTION 'first';
         BEGIN; DROP TABLE u; INSERT INTO t (n) VALUES (5); PREPARE TRANSACTION 'second';
         COMMIT PREPARED 'first'; ROLLBACK PREPARED 'second';
         DROP TABLE two; TRUNCATE u; TRUNCATE child;",
    )?;
    // More subtransactions than PGPROC caches: they are assigned, and in the commit.
    cluster.sql(
        "DO $$ BEGIN FOR i IN 1..100 LOOP BEGIN INSERT INTO t (n) VALUES (i); EXCEPTION WHEN others THEN NULL; END; \
         END LOOP; END $$",
    )?;
    // Two lockers of one row make a multixact.
    cluster.sql(
        "BEGIN; SELECT 1 FROM parent WHERE k = 1 FOR KEY SHARE; SAVEPOINT m; UPDATE parent SET k = k WHERE k = 1;
         COMMIT;
         BEGIN; INSERT INTO child VALUES (2); SAVEPOINT m; SELECT * FROM parent WHERE k = 2 FOR UPDATE; COMMIT;",
    )?;
    cluster.sql("DELETE FROM t; VACUUM t")?; // cuts the table off at its end
    cluster.sql("SELECT pg_replication_origin_create('elsewhere')")?;
    cluster.sql(
        "SELECT pg_replication_origin_session_setup('elsewhere');
         BEGIN; SELECT pg_replication_origin_xact_setup('1/ABCDEF', '2020-02-02 02:02:02+00');
         INSERT INTO t (n) VALUES (6); COMMIT; SELECT pg_replication_origin_session_reset()",
    )?;
    cluster.sql("SELECT pg_replication_origin_drop('elsewhere')")?;
    cluster.sql("CREATE DATABASE one")?;
    if cluster.major() >= 15 {
        cluster.sql("CREATE DATABASE copied STRATEGY file_copy")?;
        cluster.sql("DROP DATABASE copied")?;
    }
    let place = cluster.make_dir("place")?;
    cluster.sql(&format!("CREATE TABLESPACE there LOCATION '{}'", place.display()))?;
    cluster.sql("CREATE TABLE far (x int) TABLESPACE there; INSERT INTO far SELECT generate_series(1, 1000)")?;
    cluster.sql("VACUUM FULL pg_class; VACUUM FULL pg_database")?;
    cluster.sql("DROP TABLE far; DROP DATABASE one")?;
    cluster.sql("DROP TABLESPACE there")?;
    for _ in 0..3 {
        cluster.sql("INSERT INTO t (n) SELECT generate_series(1, 500)")?;
        cluster.sql("SELECT pg_switch_wal()")?;
    }
    // Many records, so that many cross segments.
    for _ in 0..30 {
        cluster.sql(
            "INSERT INTO t (n, txt, a) SELECT g, repeat(md5(random()::text), 20), ARRAY[g] \
             FROM generate_series(1, 800) g",
        )?;
    }
    // Settings that a standby must know, images that serve checks only, and hint bits.
    cluster.append_conf("max_connections", "50")?;
    cluster.append_conf("wal_log_hints", "on")?;
    cluster.append_conf("wal_consistency_checking", "all")?;
    cluster.restart()?;
    cluster.sql("INSERT INTO t (n, txt, a, r, p) VALUES (1, 'x', '{1}', '[1,2)', '(1,2)'); SELECT count(*) FROM t")?;
    cluster.append_conf("full_page_writes", "off")?;
    cluster.append_conf("wal_consistency_checking", "")?;
    cluster.reload()?;
    cluster.sql("CHECKPOINT; INSERT INTO t (n) VALUES (7); ALTER SYSTEM RESET ALL")?;
    Ok(())
}
