//! Names against a ledger of what was done to the catalogs: everything that `find` names must have been called so, and
//! what it cannot know it shows by number.
//!
//! `PGKEEP_NAMES_STEPS=2000` makes it longer; `PGKEEP_SEED` and `PGKEEP_MAJOR` as in the test of mistakes.

use crate::support::Site;
use crate::{lsn, lsn_of, name_of, seed};
use pg_format::Lsn;
use serde_json::Value;
use std::path::Path;
use testkit::load::Random;
use testkit::pg::{Cluster, PgInstall, StopMode};

/// What one step did, and what `find` may say of it.
struct Step {
    from: Lsn,
    to: Lsn,
    did: String,
    /// Kind, and how the relation was called.
    expected: Vec<(&'static str, String)>,
}

impl std::fmt::Display for Step {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} to {}, expected {:?}: {}", self.from, self.to, self.expected, self.did)
    }
}

struct Table {
    database: usize,
    schema: usize,
    name: String,
}

/// The catalogs as they should be.
struct Model {
    site: Site,
    random: Random,
    databases: Vec<String>,
    /// By database.
    schemas: Vec<Vec<String>>,
    tables: Vec<Table>,
    numbers: u64,
    tablespaces: Vec<&'static str>,
    steps: Vec<Step>,
    /// Catalogs were rewritten: then numbers are allowed.
    rewritten: bool,
}

impl Model {
    fn new(major: u32, random: Random) -> Self {
        // Small segments, so that many records and transactions cross their borders.
        let cluster = Cluster::builder(major).without_fsync().wal_segsize_mb(1).start().unwrap();
        let program = cluster.install_program(Path::new(env!("CARGO_BIN_EXE_pgkeep"))).unwrap();
        let dir = cluster.make_dir("pgkeep").unwrap();
        let mut site = Site { cluster, program, dir };
        for (name, value) in [("max_prepared_transactions", "4"), ("autovacuum", "off"), ("wal_keep_size", "2GB")] {
            site.cluster.append_conf(name, value).unwrap();
        }
        site.init(&["--apply"]).expect(0);
        site.cluster.restart().unwrap();
        for name in ["fast", "slow"] {
            let dir = site.cluster.make_dir(name).unwrap();
            site.cluster.sql(&format!("CREATE TABLESPACE {name} LOCATION '{}'", dir.display())).unwrap();
        }
        site.cluster.sql("CREATE DATABASE second").unwrap();
        let schemas = vec![vec!["public".to_owned()], vec!["public".to_owned()]];
        let databases = vec!["postgres".to_owned(), "second".to_owned()];
        let (tables, steps) = (Vec::new(), Vec::new());
        let tablespaces = vec!["pg_default", "fast", "slow"];
        let mut model =
            Self { site, random, databases, schemas, tables, numbers: 0, tablespaces, steps, rewritten: false };
        for _ in 0..8 {
            model.make_table();
        }
        model.steps.clear();
        model.site.run(&["backup"]).expect(0);
        model
    }

    fn below(&mut self, limit: usize) -> usize {
        self.random.below(limit as u64) as usize
    }

    fn fresh(&mut self, prefix: &str) -> String {
        self.numbers += 1;
        // Names of all lengths: an update of a row leaves out what is the same at its beginning and end.
        let tail = "x".repeat(self.below(40));
        format!("{prefix}{}{tail}", self.numbers)
    }

    fn full(&self, table: &Table) -> String {
        let schema = &self.schemas[table.database][table.schema];
        format!("{}.{schema}.{}", self.databases[table.database], table.name)
    }

    fn local(&self, table: &Table) -> String {
        format!("{}.{}", self.schemas[table.database][table.schema], table.name)
    }

    /// Runs statements, and notes what may be told of them.
    fn step(&mut self, database: usize, sql: &[&str], expected: Vec<(&'static str, String)>) {
        let from = lsn(&self.site.cluster);
        let name = self.databases[database].clone();
        for sql in sql {
            self.site.cluster.psql_db(&name, sql).unwrap_or_else(|error| panic!("{sql}: {error:#}"));
        }
        let to = lsn(&self.site.cluster);
        self.steps.push(Step { from, to, did: format!("{name}: {}", sql.join("; ")), expected });
    }

    fn make_table(&mut self) {
        let database = self.below(2);
        let schema = self.below(self.schemas[database].len());
        let name = self.fresh("t");
        let table = Table { database, schema, name };
        let (local, full) = (self.local(&table), self.full(&table));
        let sql = format!("CREATE TABLE {local} (id int PRIMARY KEY, t text)");
        let fill = format!("INSERT INTO {local} SELECT g, repeat('y', g) FROM generate_series(1, 30) g");
        self.step(database, &[&sql], vec![]);
        self.step(database, &[&fill], vec![("load", full)]);
        self.tables.push(table);
    }

    fn make_schema(&mut self) {
        let database = self.below(2);
        let name = self.fresh("s");
        self.step(database, &[&format!("CREATE SCHEMA {name}")], vec![]);
        self.schemas[database].push(name);
    }

    /// Something is done to a table.
    fn table_step(&mut self) {
        let at = self.below(self.tables.len());
        let table = &self.tables[at];
        let (database, local, full) = (table.database, self.local(table), self.full(table));
        let step = |model: &mut Self, sql: &str, kind: &'static str| {
            model.step(database, &[sql], vec![(kind, full.clone())]);
        };
        match self.below(18) {
            0 => step(self, &format!("DELETE FROM {local} WHERE id % 2 = 0; UPDATE {local} SET t = t || 'a'"), "any"),
            1 => step(self, &format!("UPDATE {local} SET t = t || 'z'"), "update"),
            2 => step(self, &format!("TRUNCATE {local}; INSERT INTO {local} VALUES (1, 'a'), (2, 'b')"), "any"),
            3 => step(self, &format!("VACUUM FULL {local}"), "rewrite"),
            4 => {
                let index = self.index_of(at);
                step(self, &format!("CLUSTER {local} USING {index}"), "rewrite");
            }
            5 => {
                let column = self.fresh("c");
                step(self, &format!("ALTER TABLE {local} ADD {column} float DEFAULT random()"), "rewrite");
            }
            6 => {
                let space = self.below(3);
                let space = self.tablespaces[space];
                // It may lie there already, and be the database's own.
                step(self, &format!("ALTER TABLE {local} SET TABLESPACE {space}"), "rewrite");
            }
            7 => {
                let name = self.fresh("t");
                self.step(database, &[&format!("ALTER TABLE {local} RENAME TO {name}")], vec![]);
                self.tables[at].name = name;
            }
            8 => {
                let schema = self.below(self.schemas[database].len());
                let name = self.schemas[database][schema].clone();
                if schema != self.tables[at].schema {
                    self.step(database, &[&format!("ALTER TABLE {local} SET SCHEMA {name}")], vec![]);
                    self.tables[at].schema = schema;
                }
            }
            9 => {
                let name = self.fresh("t");
                let sql = format!("BEGIN; DELETE FROM {local}; ALTER TABLE {local} RENAME TO {name}; COMMIT");
                step(self, &sql, "delete");
                self.tables[at].name = name;
            }
            10 => {
                let sql = format!(
                    "BEGIN; SAVEPOINT a; DROP TABLE {local}; ROLLBACK TO a; UPDATE {local} SET t = 'r'; COMMIT"
                );
                step(self, &sql, "update");
            }
            11 => {
                let name = self.fresh("t");
                self.step(database, &[&format!("BEGIN; ALTER TABLE {local} RENAME TO {name}; ROLLBACK")], vec![]);
            }
            12 => self.prepared(at, "COMMIT"),
            13 => self.prepared(at, "ROLLBACK"),
            14 => step(self, &format!("REINDEX TABLE CONCURRENTLY {local}"), "index"),
            15 => self.swap(at),
            _ => {
                self.tables.swap_remove(at);
                step(self, &format!("DROP TABLE {local}"), "drop");
                self.make_table();
            }
        }
    }

    /// The primary key keeps the name that the table had when it was made.
    fn index_of(&self, at: usize) -> String {
        let name = &self.tables[at].name;
        let sql = format!(
            "SELECT conname FROM pg_constraint JOIN pg_class r ON r.oid = conrelid WHERE contype = 'p' AND relname = '{name}'"
        );
        self.site.cluster.psql_db(&self.databases[self.tables[at].database], &sql).unwrap()
    }

    /// In a subtransaction of a prepared one that outlives a restart.
    fn prepared(&mut self, at: usize, end: &str) {
        let table = &self.tables[at];
        let (database, local, full) = (table.database, self.local(table), self.full(table));
        let name = self.fresh("t");
        let begin = format!(
            "BEGIN; DELETE FROM {local}; SAVEPOINT a; ALTER TABLE {local} RENAME TO {name}; RELEASE a; PREPARE TRANSACTION 'p'"
        );
        self.step(database, &[&begin], vec![]);
        self.restart();
        let end_sql = format!("{end} PREPARED 'p'");
        let committed = end == "COMMIT";
        self.step(database, &[&end_sql], if committed { vec![("delete", full)] } else { vec![] });
        if committed {
            self.tables[at].name = name;
        }
    }

    /// A table is filled anew and takes the place of the old one, which goes.
    fn swap(&mut self, at: usize) {
        let table = &self.tables[at];
        let (database, name) = (table.database, table.name.clone());
        let (local, full) = (self.local(table), self.full(table));
        let schema = self.schemas[database][table.schema].clone();
        let (new, old) = (self.fresh("n"), self.fresh("o"));
        let sql = format!(
            "BEGIN; CREATE TABLE {schema}.{new} AS SELECT * FROM {local}; ALTER TABLE {local} RENAME TO {old}; \
             ALTER TABLE {schema}.{new} RENAME TO {name}; ALTER TABLE {local} ADD PRIMARY KEY (id); \
             DROP TABLE {schema}.{old}; COMMIT"
        );
        self.step(database, &[&sql], vec![("drop", full.clone()), ("load", full)]);
    }

    fn restart(&mut self) {
        let mode = if self.below(2) == 0 { StopMode::Fast } else { StopMode::Immediate };
        self.site.cluster.stop(mode).unwrap();
        self.site.cluster.start_again().unwrap();
    }

    fn any_step(&mut self) {
        match self.below(24) {
            0 => self.make_table(),
            1 => self.make_schema(),
            2 => {
                let database = self.below(2);
                let schema = self.below(self.schemas[database].len());
                if schema > 0 {
                    let (old, new) = (self.schemas[database][schema].clone(), self.fresh("s"));
                    self.step(database, &[&format!("ALTER SCHEMA {old} RENAME TO {new}")], vec![]);
                    self.schemas[database][schema] = new;
                }
            }
            3 => self.step(0, &["CHECKPOINT"], vec![]),
            4 => self.step(0, &["SELECT pg_switch_wal()"], vec![]),
            5 => self.restart(),
            6 => {
                let new = self.fresh("d");
                let old = std::mem::replace(&mut self.databases[1], new.clone());
                self.step(0, &[&format!("ALTER DATABASE {old} RENAME TO {new}")], vec![]);
            }
            7 if self.below(3) == 0 => {
                self.rewritten = true;
                let database = self.below(2);
                self.step(database, &["VACUUM FULL pg_class", "VACUUM FULL pg_namespace"], vec![]);
            }
            8 if self.below(3) == 0 => {
                drop(self.site.run(&["backup"]).expect(0));
            }
            9 if self.below(2) == 0 => {
                let space = self.below(2);
                let (space, database) = (["fast", "slow"][space], self.databases[1].clone());
                // Refused where some of its tables lie by themselves.
                let from = lsn(&self.site.cluster);
                let _ = self.site.cluster.sql(&format!("ALTER DATABASE {database} SET TABLESPACE {space}"));
                let (to, did) = (lsn(&self.site.cluster), format!("moved {database} to {space}"));
                self.steps.push(Step { from, to, did, expected: vec![] });
            }
            10 => {
                let matview = self.fresh("m");
                let full = format!("postgres.public.{matview}");
                let make = format!("CREATE MATERIALIZED VIEW {matview} AS SELECT g FROM generate_series(1, 9) g");
                self.step(0, &[&make], vec![("load", full.clone())]);
                self.step(0, &[&format!("REFRESH MATERIALIZED VIEW {matview}")], vec![("rewrite", full.clone())]);
                self.step(0, &[&format!("DROP MATERIALIZED VIEW {matview}")], vec![("drop", full)]);
            }
            11 => {
                let (parent, part) = (self.fresh("p"), self.fresh("q"));
                let make = format!(
                    "CREATE TABLE {parent} (a int) PARTITION BY LIST (a); CREATE TABLE {part} PARTITION OF {parent} \
                     FOR VALUES IN (1); ALTER TABLE {parent} DETACH PARTITION {part}"
                );
                self.step(0, &[&make], vec![]);
                let names = [&part, &parent].map(|name| ("drop", format!("postgres.public.{name}")));
                self.step(0, &[&format!("DROP TABLE {part}, {parent}")], names.to_vec());
            }
            12 => {
                let sql =
                    "BEGIN; CREATE TEMP TABLE passing (a int) ON COMMIT DROP; INSERT INTO passing VALUES (1); COMMIT";
                self.step(0, &[sql], vec![]);
            }
            _ => self.table_step(),
        }
    }
}

/// How a hit's relation may be called, in the light of what was done.
fn is_right(step: &Step, kind: &str, object: &Value) -> bool {
    step.expected.iter().any(|(expected, full)| {
        let same_kind =
            *expected == kind || *expected == "any" && ["delete", "update", "truncate", "load"].contains(&kind);
        let unsure_kind = kind == "files-removed" && ["drop", "truncate", "rewrite", "any"].contains(expected);
        // What is not known of the three is left out.
        let parts = ["database", "schema", "name"].iter().zip(full.splitn(3, '.'));
        let same = parts.into_iter().all(|(field, part)| object[field].as_str().is_none_or(|told| told == part));
        (same_kind || unsure_kind) && same
    })
}

#[test]
fn what_is_named_was_called_so() {
    let mut random = Random::new(seed());
    let told = std::env::var("PGKEEP_MAJOR").ok().and_then(|major| major.parse().ok());
    let installed = PgInstall::installed(&[14, 15, 16, 17, 18]);
    let chosen = installed[random.below(installed.len() as u64) as usize].major();
    println!("PostgreSQL {}", told.unwrap_or(chosen));
    let steps = std::env::var("PGKEEP_NAMES_STEPS").ok().and_then(|steps| steps.parse().ok()).unwrap_or(60);
    let mut model = Model::new(told.unwrap_or(chosen), random);
    for _ in 0..steps {
        model.any_step();
    }
    model.site.archive();
    let args = ["find", "--min-rows", "1", "--limit", "1000000", "--json"];
    let found = model.site.run(&args).expect(0).json();
    let (mut named, mut nameless, mut wrong) = (0, 0, Vec::new());
    let mut told: Vec<Vec<&str>> = model.steps.iter().map(|_| Vec::new()).collect();
    for hit in found["hits"].as_array().unwrap() {
        let (at, kind) = (lsn_of(&hit["lsn"]), hit["kind"].as_str().unwrap());
        let Some(number) = model.steps.iter().position(|step| step.from <= at && at < step.to) else { continue };
        let step = &model.steps[number];
        told[number].push(kind);
        for object in hit["objects"].as_array().unwrap() {
            let side = ["index", "toast", "sequence", "schema"].contains(&object["kind"].as_str().unwrap());
            if side || object["named_later"] == true {
                continue;
            }
            if object["name"].is_null() {
                nameless += 1;
            } else if is_right(step, kind, object) {
                named += 1;
            } else {
                wrong.push(format!("{kind} {}: {step}", name_of(object)));
            }
        }
    }
    println!("{} steps, {named} named, {nameless} by number", model.steps.len());
    model.steps.iter().for_each(|step| println!("{step}"));
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
    // Nothing is missed: what is expected is told, if by number.
    for (step, kinds) in model.steps.iter().zip(&told) {
        for (expected, _) in &step.expected {
            let unsure = ["drop", "truncate", "rewrite"].contains(expected) && kinds.contains(&"files-removed");
            // A table may lie in that tablespace already, and a delete may find no row.
            let nothing =
                ["any", "index", "rewrite"].contains(expected) || ["delete", "update", "load"].contains(expected);
            assert!(kinds.contains(expected) || unsure || nothing, "{expected} is missing: {step} {kinds:?}");
        }
    }
    let floor = if model.rewritten { named > 0 } else { nameless == 0 };
    assert!(floor, "{named} named, {nameless} by number");
}
