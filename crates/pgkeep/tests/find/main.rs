//! Mistakes of every kind, found in nothing but the archive, and undone with the command that was printed.
//!
//! `PGKEEP_SEED` repeats a run: it decides on the version of PostgreSQL (of those that are installed; `PGKEEP_MAJOR` wins), in
//! which order the mistakes are made, and which ones are undone.
#![allow(clippy::print_stdout, reason = "a failed test shows its seed")]
#![allow(clippy::unwrap_used, reason = "tests fail by panicking")]

mod broken;
mod names;
mod open;
mod places;
#[path = "../support/mod.rs"]
mod support;

use pg_format::Lsn;
use serde_json::Value;
use std::time::Duration;
use support::{Said, Site};
use testkit::load::{Ledger, LoadOptions, Random, Target};
use testkit::pg::{Cluster, PgInstall, StopMode};

/// Something that somebody wishes not to have done.
struct Mistake {
    /// What there is before the backup.
    before: &'static str,
    /// What is done after the backup, and is no mistake.
    after: &'static str,
    sql: &'static [&'static str],
    find: &'static [&'static str],
    /// One of the objects, as it is called.
    object: &'static str,
    rows: u64,
    /// What is asked of the restored cluster, in which database, and the answer.
    check: (&'static str, &'static str, &'static str),
    /// Whether it is undone in every run.
    always: bool,
}

const PLAIN: Mistake = Mistake {
    before: "",
    after: "",
    sql: &[],
    find: &[],
    object: "",
    rows: 0,
    check: ("postgres", "", ""),
    always: false,
};

fn mistakes() -> Vec<Mistake> {
    vec![
        Mistake {
            before: "CREATE TABLE m_drop (id int PRIMARY KEY, t text); INSERT INTO m_drop SELECT g, 'x' FROM generate_series(1, 3000) g; ANALYZE m_drop",
            sql: &["DROP TABLE m_drop"],
            find: &["drop", "m_drop"],
            object: "postgres.public.m_drop",
            check: ("postgres", "SELECT count(*) FROM m_drop", "3000"),
            ..PLAIN
        },
        Mistake {
            before: "CREATE TABLE m_cascade AS SELECT g FROM generate_series(1, 10) g; CREATE VIEW m_view AS SELECT * FROM m_cascade",
            sql: &["DROP TABLE m_cascade CASCADE"],
            find: &["dropped", "m_view"],
            object: "postgres.public.m_view",
            check: ("postgres", "SELECT count(*) FROM m_view", "10"),
            ..PLAIN
        },
        Mistake {
            before: "CREATE TABLE m_t1 AS SELECT g FROM generate_series(1, 500) g; CREATE TABLE m_t2 AS SELECT g, repeat('x', 10) FROM generate_series(1, 700) g",
            sql: &["TRUNCATE m_t1, m_t2"],
            find: &["truncate", "m_t2"],
            object: "postgres.public.m_t1",
            check: ("postgres", "SELECT (SELECT count(*) FROM m_t1), (SELECT count(*) FROM m_t2)", "500|700"),
            ..PLAIN
        },
        Mistake {
            before: "CREATE TABLE m_part (id int, t text) PARTITION BY RANGE (id); \
                     CREATE TABLE m_part_1 PARTITION OF m_part FOR VALUES FROM (0) TO (1000); \
                     CREATE TABLE m_part_2 PARTITION OF m_part FOR VALUES FROM (1000) TO (9000); \
                     INSERT INTO m_part SELECT g, 'p' FROM generate_series(1, 3000) g",
            sql: &["DROP TABLE m_part"],
            find: &["drop", "m_part"],
            object: "postgres.public.m_part_2",
            check: ("postgres", "SELECT count(*) FROM m_part", "3000"),
            ..PLAIN
        },
        Mistake {
            before: "CREATE TABLE m_sub (id int PRIMARY KEY, v int); INSERT INTO m_sub SELECT g, g FROM generate_series(1, 5000) g",
            sql: &[
                "BEGIN; INSERT INTO m_noise VALUES (1); SAVEPOINT a; DELETE FROM m_sub WHERE id % 2 = 0; SAVEPOINT b; \
                    UPDATE m_sub SET v = 0; ROLLBACK TO b; RELEASE a; COMMIT",
            ],
            find: &["delete", "m_sub"],
            object: "postgres.public.m_sub",
            rows: 2500,
            check: ("postgres", "SELECT count(*), sum(v) FROM m_sub", "5000|12502500"),
            ..PLAIN
        },
        Mistake {
            before: "CREATE TABLE m_prep AS SELECT g FROM generate_series(1, 900) g",
            sql: &[
                "BEGIN; SAVEPOINT s; DROP TABLE m_prep; RELEASE s; PREPARE TRANSACTION 'gone'",
                "COMMIT PREPARED 'gone'",
            ],
            find: &["drop", "m_prep"],
            object: "postgres.public.m_prep",
            check: ("postgres", "ROLLBACK PREPARED 'gone'; SELECT count(*) FROM m_prep", "900"),
            always: true,
            ..PLAIN
        },
        Mistake {
            before: "CREATE TABLE m_toast (id int, big text); ALTER TABLE m_toast ALTER big SET STORAGE EXTERNAL; \
                     INSERT INTO m_toast SELECT g, repeat(md5(g::text), 100) FROM generate_series(1, 1200) g",
            sql: &["DELETE FROM m_toast"],
            find: &["delete", "--table", "m_toast", "--min-rows", "100"],
            object: "postgres.public.m_toast",
            rows: 1200,
            check: ("postgres", "SELECT count(*), sum(length(big)) FROM m_toast", "1200|3840000"),
            ..PLAIN
        },
        Mistake {
            before: "CREATE SCHEMA m_schema; CREATE TABLE m_schema.a AS SELECT g FROM generate_series(1, 77) g; CREATE TABLE m_schema.b (x int)",
            sql: &["DROP SCHEMA m_schema CASCADE"],
            find: &["drop", "schema", "m_schema"],
            object: "postgres.m_schema.a",
            check: ("postgres", "SELECT count(*) FROM m_schema.a", "77"),
            ..PLAIN
        },
        Mistake {
            before: "CREATE TABLE m_upd (id int, v int); INSERT INTO m_upd SELECT g, g FROM generate_series(1, 4000) g",
            sql: &["UPDATE m_upd SET v = 0"],
            find: &["update", "public.m_upd"],
            object: "postgres.public.m_upd",
            rows: 4000,
            check: ("postgres", "SELECT sum(v) FROM m_upd", "8002000"),
            ..PLAIN
        },
        Mistake {
            sql: &["DROP DATABASE m_db"],
            find: &["drop", "database", "m_db"],
            object: "m_db",
            check: ("m_db", "SELECT count(*) FROM inside", "123"),
            always: true,
            ..PLAIN
        },
        Mistake {
            before: "CREATE TABLE m_indexed (a int); CREATE INDEX m_idx ON m_indexed (a)",
            sql: &["DROP INDEX m_idx"],
            find: &["drop", "index", "m_idx"],
            object: "postgres.public.m_idx",
            check: ("postgres", "SELECT count(*) FROM pg_indexes WHERE indexname = 'm_idx'", "1"),
            ..PLAIN
        },
        Mistake {
            before: "CREATE SCHEMA m_other",
            after: "CREATE TABLE m_other.late AS SELECT g FROM generate_series(1, 30) g",
            sql: &["DROP TABLE m_other.late"],
            find: &["drop", "m_other.late"],
            object: "postgres.m_other.late",
            check: ("postgres", "SELECT count(*) FROM m_other.late", "30"),
            ..PLAIN
        },
        Mistake {
            before: "CREATE SCHEMA m_from; CREATE TABLE m_from.m_old AS SELECT g FROM generate_series(1, 40) g",
            after: "CREATE SCHEMA m_to; ALTER TABLE m_from.m_old RENAME TO m_new; ALTER TABLE m_from.m_new SET SCHEMA m_to; \
                    ALTER SCHEMA m_to RENAME TO m_there",
            sql: &["BEGIN; SAVEPOINT a; DROP TABLE m_there.m_new; ROLLBACK TO a; COMMIT", "TRUNCATE m_there.m_new"],
            find: &["truncate", "m_new"],
            object: "postgres.m_there.m_new",
            check: ("postgres", "SELECT count(*) FROM m_there.m_new", "40"),
            ..PLAIN
        },
        Mistake {
            before: "CREATE TABLE m_rewrite (id int, v int); INSERT INTO m_rewrite SELECT g, g FROM generate_series(1, 2000) g",
            sql: &["ALTER TABLE m_rewrite ALTER v TYPE text USING 'lost'"],
            find: &["rewrite", "m_rewrite"],
            object: "postgres.public.m_rewrite",
            check: ("postgres", "SELECT sum(v) FROM m_rewrite", "2001000"),
            ..PLAIN
        },
    ]
}

/// A mistake that was made, and between which places.
struct Made {
    mistake: Mistake,
    begin: Lsn,
    end: Lsn,
}

fn lsn(cluster: &Cluster) -> Lsn {
    cluster.sql("SELECT pg_current_wal_insert_lsn()").unwrap().parse().unwrap()
}

fn lsn_of(value: &Value) -> Lsn {
    value.as_str().unwrap().parse().unwrap()
}

fn name_of(object: &Value) -> String {
    let text = |field: &str| object[field].as_str().map(|text| format!("{text}.")).unwrap_or_default();
    let place = if object["kind"] == "database" { String::new() } else { text("database") + &text("schema") };
    place + object["name"].as_str().unwrap_or("?")
}

fn seed() -> u64 {
    let told = std::env::var("PGKEEP_SEED").ok().and_then(|seed| seed.parse().ok());
    let seed = told.unwrap_or_else(|| {
        std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap().as_nanos() as u64
    });
    println!("PGKEEP_SEED={seed}");
    seed
}

/// Runs a printed command, with a directory in the place of DIR.
fn run_printed(site: &Site, command: &str, dir: &str) -> Said {
    let mut words = command.split(' ').map(|word| if word == "DIR" { dir } else { word });
    assert_eq!(words.next(), Some("pgkeep"));
    let mut command = site.cluster.command_as_pg(&site.program);
    command.env_remove("PGKEEP_CONFIG").env("HOME", &site.dir).args(words);
    Said::of(command.output().unwrap())
}

fn prepare(random: &mut Random) -> Site {
    let told = std::env::var("PGKEEP_MAJOR").ok().and_then(|major| major.parse().ok());
    let installed = PgInstall::installed(&[14, 15, 16, 17, 18]);
    let chosen = installed[random.below(installed.len() as u64) as usize].major();
    let mut site = Site::bare_on(told.unwrap_or(chosen));
    println!("PostgreSQL {}", site.cluster.major());
    for (name, value) in [("max_prepared_transactions", "4"), ("wal_keep_size", "2GB"), ("wal_level", "replica")] {
        site.cluster.append_conf(name, value).unwrap();
    }
    site.init(&["--apply"]).expect(0);
    site.cluster.restart().unwrap();
    site.cluster.sql("CREATE TABLE m_noise (x int); CREATE DATABASE m_db").unwrap();
    site.cluster.psql_db("m_db", "CREATE TABLE inside AS SELECT g FROM generate_series(1, 123) g").unwrap();
    site
}

#[test]
fn every_kind_of_mistake_is_found_and_undone() {
    let mut random = Random::new(seed());
    let mut site = prepare(&mut random);
    let mut todo = mistakes();
    for mistake in todo.iter().filter(|mistake| !mistake.before.is_empty()) {
        site.cluster.sql(mistake.before).unwrap();
    }
    site.run(&["backup"]).expect(0);
    let load = Ledger::start(&site.cluster, LoadOptions { clients: 2, pause: Duration::from_millis(3) }).unwrap();
    for mistake in todo.iter().filter(|mistake| !mistake.after.is_empty()) {
        site.cluster.sql(mistake.after).unwrap();
    }
    let mut made = Vec::new();
    while !todo.is_empty() {
        let mistake = todo.swap_remove(random.below(todo.len() as u64) as usize);
        load.wait_for_more(4).unwrap();
        if random.below(3) == 0 {
            // Rows are told by what changed on a page since its image.
            site.cluster.sql("CHECKPOINT").unwrap();
        }
        let begin = lsn(&site.cluster);
        for sql in mistake.sql {
            site.cluster.sql(sql).unwrap();
            load.wait_for_more(2).unwrap();
        }
        made.push(Made { mistake, begin, end: lsn(&site.cluster) });
    }
    load.wait_for_more(4).unwrap();
    let ledger = load.stop();
    site.archive();
    site.cluster.stop(StopMode::Fast).unwrap();

    // From here on there is only the archive.
    let mut undone = 0;
    for (number, Made { mistake, begin, end }) in made.iter().enumerate() {
        let found = site.run(&[&["find", "--json"][..], mistake.find].concat()).expect(0).json();
        let hits = found["hits"].as_array().unwrap();
        assert_eq!(hits.len(), 1, "{:?}: {found:#}", mistake.find);
        let hit = &hits[0];
        let names: Vec<String> = hit["objects"].as_array().unwrap().iter().map(name_of).collect();
        assert!(names.iter().any(|name| name == mistake.object), "{:?}: {names:?}", mistake.find);
        assert_eq!(hit["rows"].as_u64(), Some(mistake.rows), "{:?}", mistake.find);
        let target = lsn_of(&hit["target"]["lsn"]);
        assert!(*begin <= target && target < *end, "{:?}: {begin} {target} {end}", mistake.find);
        is_a_commit(&site, hit);
        if mistake.always || random.below(5) == 0 && undone < 5 {
            undone += 1;
            undo(&site, mistake, hit, target, &ledger, number);
        }
    }
    let plain = site.run(&["find", "drop", "m_drop"]).expect(0);
    let words = ["drop table postgres.public.m_drop (about 3000 rows), with 1 index", "--exclusive", "transaction "];
    for word in words {
        assert!(plain.stdout.contains(word), "{}", plain.stdout);
    }
    // What did not happen is not found, and what was called otherwise then has not its old name.
    for (words, hint) in
        [(["drop", "m_new"], "reaches"), (["truncate", "m_old"], "reaches"), (["drop", "m_dro"], "m_drop")]
    {
        site.run(&[&["find"][..], &words].concat()).expect(3).says(&["was found", hint]);
    }
    // A planner that is told the words comes to the same place, and says what is lost.
    let drop = made.iter().find(|made| made.mistake.find == ["drop", "m_drop"]).unwrap();
    let dir = site.path("planned");
    let args = ["restore", "--to-dir", &dir, "--before", "drop m_drop", "--dry-run", "--json"];
    let planned = site.run(&args);
    assert!(matches!(planned.code, 0 | 4), "{} {}", planned.code, planned.stderr);
    let planned = planned.json();
    let target = lsn_of(&planned["plan"]["target"]["value"]);
    assert!(drop.begin <= target && target < drop.end && planned["plan"]["exclusive"] == true, "{planned:#}");
    let lost = &planned["lost"];
    let at_least = ledger.entries.iter().filter(|entry| entry.lsn_before.is_some_and(|lsn| lsn > target.0)).count();
    let at_most = ledger.entries.iter().filter(|entry| entry.lsn_after.is_none_or(|lsn| lsn > target.0)).count();
    let relations = lost["relations"].as_array().unwrap();
    let of_ledger = relations.iter().find(|relation| relation["name"] == "ledger").unwrap();
    let rows = of_ledger["rows_inserted"].as_u64().unwrap() as usize;
    assert!((at_least..=at_most).contains(&rows), "{at_least} {rows} {at_most}");
    let events = lost["events"].as_array().unwrap();
    assert!(events.iter().any(|event| event["xid"].is_u64() && event["lsn"] == planned["plan"]["target"]["value"]));
}

/// PostgreSQL's own tool must see the transaction's commit there.
fn is_a_commit(site: &Site, hit: &Value) {
    // Not every installation of another version has it, and one of another version cannot read this WAL.
    let of_this_version = |tool: &str| site.cluster.bin(tool).unwrap().parent().map(ToOwned::to_owned);
    if of_this_version("pg_waldump") != of_this_version("postgres") {
        return;
    }
    let wal = site.cluster.data_dir().join("pg_wal").to_string_lossy().into_owned();
    let args = ["-p", &wal, "-t", "1", "-s", hit["lsn"].as_str().unwrap(), "-n", "1"];
    let shown = site.cluster.tool("pg_waldump", &args).unwrap();
    let xid = hit["xid"].as_u64().unwrap();
    let prepared = shown.contains("COMMIT_PREPARED") && shown.contains(&xid.to_string());
    let plain = shown.contains("COMMIT ") && shown.contains(&format!("tx: {xid:>10}"));
    assert!(prepared || plain, "{hit:#}: {shown}");
}

fn undo(site: &Site, mistake: &Mistake, hit: &Value, target: Lsn, ledger: &Ledger, number: usize) {
    let name = format!("undone{number}");
    let said = run_printed(site, hit["restore"].as_str().unwrap(), &site.path(&name));
    // It warns where the programs of this version are not in a usual place.
    assert!(matches!(said.code, 0 | 4), "{} {}", said.code, said.stderr);
    let mut restored = site.open(&name);
    let (database, sql, answer) = mistake.check;
    assert_eq!(restored.psql_db(database, sql).unwrap(), answer, "{:?}", mistake.find);
    ledger.verify_before(&restored, Target::Lsn(target.0)).unwrap();
    restored.stop(StopMode::Immediate).unwrap();
    drop(restored);
    let _ = std::fs::remove_dir_all(site.dir.join(&name));
}

#[test]
fn what_is_ambiguous_is_a_list_and_restore_points_are_targets() {
    let site = Site::new();
    site.cluster.sql("CREATE TABLE twice (v int); CREATE TABLE marks (v int)").unwrap();
    site.run(&["backup"]).expect(0);
    site.cluster.sql("INSERT INTO marks VALUES (1)").unwrap();
    let made = site.run(&["restore-point", "create", "before it", "--json"]).expect(0).json();
    assert_eq!(made["made"][0]["restore_point"]["name"], "before it");
    site.cluster.sql("INSERT INTO marks VALUES (2); DROP TABLE twice").unwrap();
    site.cluster.sql("CREATE TABLE twice (v int)").unwrap();
    let xid = site.cluster.sql("BEGIN; DROP TABLE twice; SELECT pg_current_xact_id(); COMMIT").unwrap();
    site.cluster.sql("INSERT INTO marks SELECT g FROM generate_series(3, 20000) g").unwrap();
    site.archive();

    let target = site.path("restored");
    let said = site.run(&["restore", "--to-dir", &target, "--before", "drop twice", "--dry-run"]).expect(2);
    assert_eq!(said.stderr.matches("--exclusive").count(), 2, "{}", said.stderr);
    let args = ["restore", "--to-dir", &target, "--before", "drop twice", "--dry-run", "--json"];
    let said = site.run(&args).expect(2).json();
    let choices = said["choices"].as_array().unwrap();
    let commands: Vec<&str> = choices.iter().filter_map(|choice| choice["restore"].as_str()).collect();
    assert!(commands.len() == 2 && commands[0] != commands[1] && said["error"]["kind"] == "usage", "{said:#}");
    site.run(&["restore", "--to-dir", &target, "--before", "drop nothing", "--dry-run"]).expect(3);
    site.run(&["find", "drop", "twcie"]).expect(3).says(&["there is something about: postgres.public.twice"]);
    site.run(&["find", "delete", "mrks"]).expect(3).says(&["there are: postgres.public.marks"]);
    site.run(&["find", "truncate", "marks"]).expect(3).says(&["postgres.public.marks: known"]);
    site.run(&["find", "drop", "--database", "shop"]).expect(3).says(&["there are: postgres, template0, template1"]);
    site.run(&["find", "--time-zone", "Europe/Berlni"]).expect(2).says(&["Europe/Berlin"]);
    site.run(&["find", "--system-id", "7"]).expect(3).says(&["it had"]);
    let summer = site.run(&["find", "drop", "twice", "--time-zone", "Pacific/Kiritimati"]).expect(0).stdout;
    assert!(summer.contains(" +14  drop table postgres.public.twice"), "{summer}");
    let xid = xid.trim();
    let planned =
        site.run(&["restore", "--to-dir", &target, "--before-xid", xid, "--dry-run", "--json"]).expect(0).json();
    let hit = site.run(&["find", "--xid", xid, "--json"]).expect(0).json();
    assert_eq!(planned["plan"]["target"]["value"], hit["hits"][0]["target"]["lsn"]);

    let listed = site.run(&["list", "--restore-points", "--json"]).expect(0).json();
    assert_eq!(listed["restore_points"][0]["name"], "before it");
    let found = site.run(&["find", "restore-point", "--json"]).expect(0).json();
    run_printed_with(&site, &found["hits"][0], "named");
    let restored = site.open("named");
    assert_eq!(restored.sql("SELECT string_agg(v::text, ',') FROM marks").unwrap(), "1");
    drop(restored);

    let log = site.run(&["wal", "log", "--json"]).expect(0).json();
    let marks = log["relations"].as_array().unwrap().iter().find(|relation| relation["name"] == "marks").unwrap();
    assert_eq!(marks["rows_inserted"], 20000);
    assert!(log["transactions"][0]["objects"][0]["name"] == "marks", "{log:#}");
    let by_minute = log["minutes"].as_array().unwrap().iter().map(|minute| minute["images"].as_u64().unwrap());
    let (by_minute, all) = (by_minute.sum::<u64>(), log["images"].as_u64().unwrap());
    assert!(0 < by_minute && by_minute <= all, "{by_minute} {all}");
    let text = site.run(&["wal", "log", "--table", "marks"]).expect(0).stdout;
    assert!(text.contains("load table postgres.public.marks (19998 rows inserted)"), "{text}");
    assert!(!text.contains("drop table"), "{text}");
    site.run(&["restore-point", "create", ""]).expect(2);
    site.run(&["find", "--kind", "nonsense"]).expect(2);
}

/// Without a segment nothing of before is relied on; another backup tells what things are called.
#[test]
fn behind_a_gap_names_begin_anew() {
    let site = Site::new();
    site.run(&["backup"]).expect(0);
    site.cluster.sql("CREATE TABLE kept AS SELECT g FROM generate_series(1, 3000) g").unwrap();
    site.archive();
    site.cluster.sql("ALTER TABLE kept RENAME TO renamed").unwrap();
    let lost = site.cluster.sql("SELECT pg_walfile_name(pg_current_wal_lsn())").unwrap();
    site.archive();
    site.cluster.sql("DELETE FROM renamed").unwrap();
    site.archive();
    site.run(&["find", "delete", "renamed"]).expect(0);
    let system = site.cluster.sql("SELECT system_identifier FROM pg_control_system()").unwrap();
    let segment = site.repository().join(format!("clusters/main/wal/{system}/00000001/{lost}"));
    std::fs::remove_file(segment).unwrap();

    let found = site.run(&["find", "delete", "--json"]).expect(4).says(&[&lost, "not known"]).json();
    let object = &found["hits"][0]["objects"][0];
    assert_eq!((object["name"].is_null(), object["rows_deleted"].as_u64()), (true, Some(3000)), "{found:#}");
    site.run(&["find", "delete", "kept"]).expect(3);
    site.run(&["backup"]).expect(0);
    site.archive();
    let found = site.run(&["find", "delete", "renamed", "--json"]).expect(4).json();
    assert_eq!(found["hits"][0]["objects"][0]["schema"], "public");
    // The later backup does not reach it, nor the first one through the gap: so there is no command.
    assert!(found["hits"][0]["restore"].is_null(), "{found:#}");
}

/// The command of a restore point has its name in quotes; a shell takes them off.
fn run_printed_with(site: &Site, hit: &Value, name: &str) {
    let program = site.program.to_string_lossy().into_owned();
    let command = hit["restore"].as_str().unwrap().replacen("pgkeep", &program, 1).replace("DIR", &site.path(name));
    let mut shell = site.cluster.command_as_pg("sh");
    shell.env_remove("PGKEEP_CONFIG").env("HOME", &site.dir).args(["-c", &command]);
    Said::of(shell.output().unwrap()).expect(0);
}
