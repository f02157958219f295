//! Random changes, with a backup now and then, some while the changes go on; each is restored and compared.
//!
//! `PGKEEP_TRAPS_SEED` repeats a run, `PGKEEP_TRAPS_ROUNDS` makes it longer. A run with the same seed does the same
//! changes in the same order; where a backup falls among those that go on beside it is the machine's affair.

use crate::scene::{Kind, Scene};
use std::collections::BTreeSet;
use std::sync::atomic::{AtomicBool, Ordering};
use testkit::compare::{compare_dirs, visibility_maps_are_sane};
use testkit::load::Random;
use testkit::pg::Cluster;

const TABLES: u64 = 8;
const ROUNDS: u64 = 6;

/// Makes the statements; knows what is there.
struct Changes {
    random: Random,
    tables: BTreeSet<u64>,
    databases: BTreeSet<u64>,
    major: u32,
    /// While a backup is taken, so that replay makes the changes again.
    beside: bool,
}

impl Changes {
    fn new(seed: u64, major: u32) -> Self {
        Self { random: Random::new(seed), tables: BTreeSet::new(), databases: BTreeSet::new(), major, beside: false }
    }

    /// The next statements, and the database for them.
    fn next(&mut self) -> String {
        let number = self.random.below(TABLES);
        if !self.tables.contains(&number) {
            self.tables.insert(number);
            return self.create(number);
        }
        let (from, rows) = (self.random.below(6000), 1 + self.random.below(900));
        let (part, rest) = (3 + self.random.below(400), self.random.below(3));
        let space = self.random.pick(&["pg_default", "quick"]);
        let t = format!("rnd.t{number}");
        match self.random.below(27) {
            0..3 => format!(
                "INSERT INTO {t} SELECT g, md5((g * {part})::text), g % 7 FROM generate_series({from}, {}) g",
                from + rows
            ),
            3 | 4 => format!("UPDATE {t} SET t = md5(t) WHERE id % {part} = {rest}"),
            5 | 6 => format!("UPDATE {t} SET n = n + 1 WHERE id BETWEEN {from} AND {}", from + rows / 10),
            7 | 8 => format!("DELETE FROM {t} WHERE id % {part} = {rest}"),
            9 => format!("DELETE FROM {t} WHERE id > {from}"),
            10 | 11 => format!("VACUUM {t}"),
            12 => format!("VACUUM (FREEZE, INDEX_CLEANUP on) {t}"),
            13 => format!("VACUUM FULL {t}"),
            14 => format!("TRUNCATE {t}"),
            15 => format!(
                "BEGIN; TRUNCATE {t}; INSERT INTO {t} SELECT g, 'cut', 0 FROM generate_series(1, {rows}) g; COMMIT"
            ),
            16 => format!("REINDEX TABLE {t}"),
            17 => format!("CLUSTER {t} USING t{number}_id"),
            18 => format!("BEGIN; DELETE FROM {t} WHERE id % {part} = {rest}; ROLLBACK"),
            19 => format!(
                "BEGIN; SELECT count(*) FROM (SELECT 1 FROM {t} WHERE id % {part} = {rest} FOR UPDATE) x; COMMIT"
            ),
            20 => format!("ALTER TABLE {t} SET TABLESPACE {space}"),
            21 => format!("ALTER INDEX rnd.t{number}_id SET TABLESPACE {space}"),
            22 => format!("COPY {t} FROM PROGRAM 'seq -f ''%g\tcopied\t1'' 1 {rows}'"),
            23 => {
                self.tables.remove(&number);
                format!("DROP TABLE {t}")
            }
            24 => format!("ALTER TABLE {t} SET UNLOGGED; ALTER TABLE {t} SET LOGGED"),
            25 => format!("SELECT count(*), sum(n) FROM {t}; SELECT nextval('rnd.s')"),
            _ => self.database(),
        }
    }

    fn create(&mut self, number: u64) -> String {
        let rows = 500 + self.random.below(5000);
        let space = self.random.pick(&["pg_default", "quick"]);
        let index = self.random.pick(&["hash (t)", "brin (id)", "spgist (t)", "btree (n)", "btree (t)"]);
        format!(
            "CREATE TABLE rnd.t{number} (id int, t text, n int) WITH (fillfactor = 80) TABLESPACE {space};
             INSERT INTO rnd.t{number} SELECT g, md5(g::text), g % 7 FROM generate_series(1, {rows}) g;
             CREATE INDEX t{number}_id ON rnd.t{number} (id); CREATE INDEX ON rnd.t{number} USING {index}"
        )
    }

    /// Databases come and go under the same OIDs, as copies of either template.
    fn database(&mut self) -> String {
        let number = self.random.below(2);
        if self.databases.remove(&number) {
            return format!("DROP DATABASE d{number}");
        }
        self.databases.insert(number);
        let template = self.random.pick(&["model", "model_b"]);
        // The pages of maps are logged without their content (`RelationCopyStorageUsingBuffer` takes them for standard
        // pages), so a replayed map has no bits. That is no fault of a copy.
        let strategy = if self.beside { "file_copy" } else { self.random.pick(&["file_copy", "wal_log"]) };
        if self.major < 15 {
            return format!("CREATE DATABASE d{number} TEMPLATE {template}");
        }
        format!("CREATE DATABASE d{number} OID {} STRATEGY {strategy} TEMPLATE {template}", 90_000 + number)
    }
}

fn from_env(name: &str) -> Option<u64> {
    std::env::var(name).ok()?.parse().ok()
}

fn random_changes(kind: Kind, own_seed: u64) {
    let seed = from_env("PGKEEP_TRAPS_SEED").unwrap_or(own_seed);
    let rounds = from_env("PGKEEP_TRAPS_ROUNDS").unwrap_or(ROUNDS);
    println!("{kind:?}: PGKEEP_TRAPS_SEED={seed} PGKEEP_TRAPS_ROUNDS={rounds}");
    let mut scene = Scene::start(kind, |builder| builder);
    scene.tablespace("quick");
    scene.sql("CREATE SCHEMA rnd; CREATE SEQUENCE rnd.s; CREATE DATABASE model");
    scene.sql_in("model", "CREATE TABLE t AS SELECT g AS id, md5(g::text) AS t FROM generate_series(1, 3000) g");
    scene.sql_in("model", "CREATE INDEX t_id ON t (id); VACUUM FREEZE");
    scene.sql("CREATE DATABASE model_b TEMPLATE model");
    scene.sql_in("model_b", "UPDATE t SET t = 'b' WHERE id % 3 = 0; VACUUM FREEZE; SELECT count(*) FROM t");
    let mut changes = Changes::new(seed, kind.major);
    for _ in 0..20 {
        scene.sql(&changes.next());
    }
    scene.whole();
    for round in 0..rounds {
        for _ in 0..changes.random.below(12) {
            let sql = changes.next();
            println!("{round}: {sql}");
            scene.sql(&sql);
        }
        scene.hide_index();
        let options: &[&str] = if changes.random.below(6) == 0 { &["--full"] } else { &[] };
        if changes.random.below(2) == 0 {
            let taken = scene.backup(options, 0);
            println!("{round}: {taken:?}");
            scene.check(&taken);
        } else {
            moving(&mut scene, &mut changes, options, round);
        }
    }
    if rounds >= ROUNDS {
        assert!(scene.taken.iter().skip(1).any(|taken| taken.prior.is_some()), "none of them was incremental");
    }
    // Any of them but the last, while there are some.
    while scene.taken.len() > 3 {
        let position = changes.random.below(scene.taken.len() as u64 - 1) as usize;
        scene.delete(position);
    }
    let last = scene.backup(&[], 0);
    scene.check(&last);
    scene.judge();
    scene.verify();
}

/// A backup while changes go on; it is compared after replay to where they end.
fn moving(scene: &mut Scene, changes: &mut Changes, options: &[&str], round: u64) {
    let ended = AtomicBool::new(false);
    changes.beside = true;
    let site = &scene.site;
    let said = std::thread::scope(|scope| {
        let mover = scope.spawn(|| {
            while !ended.load(Ordering::SeqCst) {
                let sql = changes.next();
                println!("{round}, beside the backup: {sql}");
                site.cluster.sql(&sql).unwrap();
            }
        });
        let said = site.run(&[&["backup", "--json"], options].concat());
        ended.store(true, Ordering::SeqCst);
        mover.join().unwrap();
        said
    });
    changes.beside = false;
    let said = said.expect(0).json();
    let taken = scene.facts(said["backup"].as_str().unwrap());
    println!("{round}: {taken:?}");
    scene.taken.push(taken.clone());
    let point = format!("round {round}");
    scene.sql(&format!("CHECKPOINT; SELECT pg_create_restore_point('{point}')"));
    scene.site.archive();
    let dir = scene.restore_to(&taken.id, &["--restore-point", &point, "--action", "shutdown"]);
    let mut copy = Cluster::adopt(&dir, scene.kind.major).unwrap();
    copy.set_option("autovacuum", "off");
    // It shuts itself down at the target; whether that is after it was ready is its affair.
    copy.start_again().ok();
    scene.site.wait_for("replay to the restore point", || !copy.is_running());
    assert!(copy.log().contains("recovery stopping at restore point"), "{}", copy.log_tail());
    let comparison = compare_dirs(scene.site.cluster.data_dir(), &dir).unwrap();
    comparison.require_equal().unwrap_or_else(|error| panic!("round {round}, {taken:?}: {error:#}"));
    visibility_maps_are_sane(&dir).unwrap_or_else(|error| panic!("round {round}, {taken:?}: {error:#}"));
}

#[test]
fn random_changes_by_page_lsn() {
    random_changes(Kind::without_index(15).without_checksums(), 20_261_121);
}

#[test]
fn random_changes_by_summaries() {
    random_changes(Kind::without_index(18), 11_212_026);
}

#[test]
fn random_changes_by_index() {
    random_changes(Kind::indexed(15), 21_112_026);
}
