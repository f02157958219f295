//! Visibility maps: their bits are cleared by WAL records that name the heap page only, and the page of the map keeps
//! its LSN (`visibilitymap_clear`).

use crate::acts::{Act, play_sql};
use crate::scene::Scene;

pub(crate) const ACT: Act = Act { name: "visibility maps", play };

const TABLES: [&str; 12] = [
    "erased", "changed", "moved", "locked", "shared", "refilled", "copied", "undone", "upserted", "cut", "late",
    "frozen",
];

fn play(scene: &mut Scene, step: usize) {
    if step == 0 {
        scene.sql("CREATE SCHEMA vm; CREATE EXTENSION pg_visibility");
        for table in TABLES {
            scene.sql(&format!(
                "CREATE TABLE vm.{table} (id int PRIMARY KEY, t text, n int) WITH (fillfactor = 80);
                 INSERT INTO vm.{table} SELECT g, md5(g::text), 0 FROM generate_series(1, 6000) g"
            ));
        }
        // Room on pages that are all-visible, for rows that come later.
        scene.sql("DELETE FROM vm.refilled WHERE id % 5 = 0; DELETE FROM vm.copied WHERE id % 5 = 0");
        scene.sql("DELETE FROM vm.upserted WHERE id % 5 = 0");
        for table in TABLES {
            if table != "late" {
                scene.sql(&format!("VACUUM (FREEZE) vm.{table}"));
            }
        }
    }
    play_sql(scene, &SCRIPT, step);
}

const SCRIPT: [(usize, &str, &str); 29] = [
    // Everything is visible in the first backup; now a few pages are not.
    (1, "postgres", "DELETE FROM vm.erased WHERE id % 1500 = 7"),
    (1, "postgres", "UPDATE vm.changed SET n = n + 1 WHERE id % 1500 = 7"),
    (1, "postgres", "UPDATE vm.moved SET id = -id WHERE id % 1500 = 7"),
    (1, "postgres", "BEGIN; SELECT 1 FROM vm.locked WHERE id % 1500 = 7 FOR UPDATE; COMMIT"),
    (1, "postgres", "BEGIN; SELECT 1 FROM vm.shared WHERE id % 1500 = 7 FOR KEY SHARE; COMMIT"),
    (1, "postgres", "INSERT INTO vm.refilled VALUES (5, 'again', 1), (3000, 'again', 1)"),
    (1, "postgres", "COPY vm.copied FROM PROGRAM 'seq -f ''%g\tcopied\t1'' 5 5 45'"),
    (1, "postgres", "BEGIN; DELETE FROM vm.undone WHERE id % 1500 = 7; ROLLBACK"),
    (
        1,
        "postgres",
        "INSERT INTO vm.upserted SELECT g, 'up', 1 FROM generate_series(5, 25) g ON CONFLICT (id) DO UPDATE SET n = 9",
    ),
    (1, "postgres", "DELETE FROM vm.cut WHERE id > 3000; VACUUM vm.cut"),
    // Bits are set where the heap does not change otherwise.
    (1, "postgres", "VACUUM vm.late"),
    (1, "postgres", "SELECT pg_truncate_visibility_map('vm.frozen')"),
    (2, "postgres", "VACUUM vm.erased, vm.changed, vm.undone"),
    (2, "postgres", "DELETE FROM vm.moved WHERE id % 1000 = 3; SELECT pg_truncate_visibility_map('vm.moved')"),
    (2, "postgres", "UPDATE vm.locked SET n = 1 WHERE id = 3000; DELETE FROM vm.late WHERE id % 2000 = 11"),
    (2, "postgres", "DELETE FROM vm.shared WHERE id % 2000 = 11"),
    (2, "postgres", "INSERT INTO vm.cut SELECT g, 'back', 1 FROM generate_series(3001, 9000) g"),
    (2, "postgres", "VACUUM (FREEZE) vm.frozen"),
    // Set and cleared again between two backups, and the other way round.
    (3, "postgres", "DELETE FROM vm.erased WHERE id % 1500 = 8; DELETE FROM vm.changed WHERE id = 4000"),
    (3, "postgres", "UPDATE vm.undone SET n = 5 WHERE id = 77"),
    (3, "postgres", "VACUUM vm.locked; DELETE FROM vm.locked WHERE id % 2000 = 12"),
    (3, "postgres", "VACUUM vm.late; DELETE FROM vm.late WHERE id % 2000 = 12"),
    (3, "postgres", "DELETE FROM vm.refilled WHERE id % 2000 = 12; VACUUM vm.refilled"),
    (3, "postgres", "DELETE FROM vm.copied WHERE id % 2000 = 12; VACUUM vm.copied"),
    (3, "postgres", "VACUUM FULL vm.shared; VACUUM vm.shared; DELETE FROM vm.shared WHERE id = 100"),
    (3, "postgres", "TRUNCATE vm.upserted; INSERT INTO vm.upserted SELECT g, 'new' FROM generate_series(1, 4000) g"),
    (3, "postgres", "VACUUM vm.upserted; DELETE FROM vm.upserted WHERE id = 2000"),
    (3, "postgres", "DELETE FROM vm.frozen WHERE id % 1500 = 9"),
    (3, "postgres", "VACUUM vm.cut; DELETE FROM vm.cut WHERE id % 1500 = 9"),
];
