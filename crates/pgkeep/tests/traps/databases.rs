//! Databases that are made, made again under the same OID, and moved. With the strategy FILE_COPY, and before 15 always,
//! the pages of a new database keep the LSNs of its template, which are older than the prior backup.

use crate::acts::{Act, play_sql};
use crate::scene::Scene;

pub(crate) const ACT: Act = Act { name: "databases", play };

fn play(scene: &mut Scene, step: usize) {
    if step == 0 {
        scene.tablespace("wide");
        scene.tablespace("apart");
        // Two templates with the same files: relation for relation, block for block, only the rows are others.
        scene.sql("CREATE DATABASE model");
        scene.sql_in("model", "CREATE TABLE t (id int PRIMARY KEY, v text); CREATE TABLE only_here (x int)");
        scene.sql_in("model", "INSERT INTO t SELECT g, 'a' || md5(g::text) FROM generate_series(1, 8000) g");
        // Where a database's files lie in another tablespace, there is no PG_VERSION beside them.
        scene.sql_in("model", "CREATE TABLE far (id int PRIMARY KEY, v text) TABLESPACE apart");
        scene.sql_in("model", "INSERT INTO far SELECT g, md5(g::text) FROM generate_series(1, 4000) g");
        scene.sql_in("model", "INSERT INTO only_here SELECT generate_series(1, 3000); VACUUM FREEZE");
        scene.sql("CREATE DATABASE model_b TEMPLATE model");
        scene.sql_in("model_b", "UPDATE t SET v = 'b' || md5(v) WHERE id % 3 = 0; DELETE FROM t WHERE id % 10 = 1");
        scene.sql_in("model_b", "UPDATE far SET v = 'b' || v WHERE id % 4 = 0");
        scene.sql_in("model_b", "DROP TABLE only_here; VACUUM FREEZE; SELECT count(*) FROM t");
        scene.sql("CREATE DATABASE travels TEMPLATE model");
    }
    if scene.kind.major >= 15 {
        play_sql(scene, &WITH_OID, step);
    }
    play_sql(scene, &ALWAYS, step);
}

const ALWAYS: [(usize, &str, &str); 8] = [
    (1, "postgres", "CREATE DATABASE young TEMPLATE model_b"),
    (1, "postgres", "ALTER DATABASE travels SET TABLESPACE wide"),
    (2, "travels", "UPDATE t SET v = 'moved' WHERE id < 50"),
    (2, "postgres", "ALTER DATABASE travels SET TABLESPACE pg_default; DROP DATABASE young"),
    // There and back between two backups, and not without a change on the way.
    (3, "postgres", "ALTER DATABASE travels SET TABLESPACE wide"),
    (3, "travels", "UPDATE t SET v = 'on the way' WHERE id BETWEEN 100 AND 120"),
    (3, "postgres", "ALTER DATABASE travels SET TABLESPACE pg_default"),
    (3, "postgres", "CREATE DATABASE young TEMPLATE model"),
];

const WITH_OID: [(usize, &str, &str); 12] = [
    (0, "postgres", "CREATE DATABASE again OID 90001 STRATEGY file_copy TEMPLATE model"),
    (0, "postgres", "CREATE DATABASE there OID 90002 STRATEGY file_copy TEMPLATE model TABLESPACE wide"),
    (0, "postgres", "CREATE DATABASE logged OID 90003 STRATEGY wal_log TEMPLATE model"),
    // The same OIDs, the same paths, other pages, and no page LSN says so.
    (1, "postgres", "DROP DATABASE again; CREATE DATABASE again OID 90001 STRATEGY file_copy TEMPLATE model_b"),
    (
        1,
        "postgres",
        "DROP DATABASE there; CREATE DATABASE there OID 90002 STRATEGY file_copy TEMPLATE model_b TABLESPACE wide",
    ),
    (1, "postgres", "DROP DATABASE logged; CREATE DATABASE logged OID 90003 STRATEGY wal_log TEMPLATE model_b"),
    (2, "postgres", "DROP DATABASE again; CREATE DATABASE again OID 90001 STRATEGY wal_log TEMPLATE model"),
    (2, "there", "UPDATE t SET v = 'changed' WHERE id % 500 = 2"),
    (2, "postgres", "DROP DATABASE logged; CREATE DATABASE logged OID 90003 STRATEGY file_copy TEMPLATE model"),
    (3, "postgres", "DROP DATABASE again; CREATE DATABASE again OID 90001 STRATEGY file_copy TEMPLATE model_b"),
    (3, "postgres", "DROP DATABASE again; CREATE DATABASE again OID 90001 STRATEGY file_copy TEMPLATE there"),
    (3, "again", "INSERT INTO t SELECT g, 'more' FROM generate_series(20000, 20100) g"),
];
