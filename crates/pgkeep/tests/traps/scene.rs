//! A cluster under protection, a series of backups of it, and the proof that each is the cluster.
//!
//! The server does nothing but what a test makes it do, so after a backup its files hold what the backup must hold: they
//! are compared page by page before any recovery, where not even the WAL of the backup itself could hide a page that
//! was missed. In the end the last backup is started, and PostgreSQL judges it.

use crate::support::Site;
use crate::world::{bare, files, protect_locally};
use serde_json::Value;
use std::path::PathBuf;
use std::process::Command;
use std::time::Duration;
use testkit::compare::{
    CopyOf, amcheck, checksums, compare_dirs_with, dumps_are_equal, index_only_scans_agree, visibility_is_true,
    visibility_maps_are_sane,
};
use testkit::load::fill;
use testkit::pg::{Cluster, ClusterBuilder, StopMode};

/// What backups say of how they found the changed pages.
pub(crate) const ALL: &str = "all";
pub(crate) const PAGE_LSN: &str = "page-lsn";
pub(crate) const SUMMARIES: &str = "wal-summaries";
pub(crate) const INDEX: &str = "wal-index";

/// A backup as the program told of it.
#[derive(Debug, Clone)]
pub(crate) struct Taken {
    pub(crate) id: String,
    pub(crate) prior: Option<String>,
    /// How changed pages were found, and why not in a better way.
    pub(crate) used: String,
    pub(crate) reasons: Vec<String>,
    pub(crate) pages_read: u64,
    pub(crate) pages_stored: u64,
    pub(crate) bytes_added: u64,
}

/// What kind of server it is, and how changed pages are to be found on it.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Kind {
    pub(crate) major: u32,
    pub(crate) checksums: bool,
    pub(crate) method: &'static str,
}

impl Kind {
    /// By the repository's index of the WAL, the best way.
    pub(crate) fn indexed(major: u32) -> Self {
        Self { major, checksums: true, method: INDEX }
    }

    /// By the next best way of the version.
    pub(crate) fn without_index(major: u32) -> Self {
        Self { major, checksums: true, method: if major >= 17 { SUMMARIES } else { PAGE_LSN } }
    }

    pub(crate) fn without_checksums(self) -> Self {
        Self { checksums: false, ..self }
    }
}

pub(crate) struct Scene {
    pub(crate) site: Site,
    pub(crate) kind: Kind,
    pub(crate) taken: Vec<Taken>,
    restored: Option<PathBuf>,
    count: usize,
    /// Servers that another one took the place of; their folders hold the repository.
    retired: Vec<Cluster>,
}

impl Scene {
    /// A cluster with a little of everything in it, under protection, without a backup.
    pub(crate) fn start(kind: Kind, more: impl FnOnce(ClusterBuilder) -> ClusterBuilder) -> Self {
        let mut scene = Self::bare(kind, more);
        protect_locally(&mut scene.site);
        scene
    }

    /// The same, not yet protected.
    pub(crate) fn bare(kind: Kind, more: impl FnOnce(ClusterBuilder) -> ClusterBuilder) -> Self {
        // Only what the test itself does changes pages, and only checkpoints write them.
        let quiet = [
            ("autovacuum", "off"),
            ("bgwriter_lru_maxpages", "0"),
            ("checkpoint_timeout", "1h"),
            ("max_wal_size", "8GB"),
            ("max_prepared_transactions", "20"),
            ("track_commit_timestamp", "on"),
            // A segment that is to be gone must not be found under the name of a later one.
            ("wal_recycle", "off"),
        ];
        let mut builder = Cluster::builder(kind.major).without_fsync().in_memory().checksums(kind.checksums);
        for (name, value) in quiet {
            builder = builder.conf(name, value);
        }
        if kind.major >= 17 {
            builder = builder.conf("summarize_wal", "on");
        }
        let site = bare(more(builder));
        fill(&site.cluster, 12).unwrap();
        Self { site, kind, taken: Vec::new(), restored: None, count: 0, retired: Vec::new() }
    }

    #[track_caller]
    pub(crate) fn sql(&self, sql: &str) -> String {
        self.site.cluster.sql(sql).unwrap()
    }

    #[track_caller]
    pub(crate) fn sql_in(&self, database: &str, sql: &str) -> String {
        self.site.cluster.psql_db(database, sql).unwrap()
    }

    /// Makes a tablespace in a directory of its own.
    pub(crate) fn tablespace(&self, name: &str) {
        let dir = self.site.cluster.make_dir(&format!("space-{name}")).unwrap();
        self.sql(&format!("CREATE TABLESPACE {name} LOCATION '{}'", dir.display()));
    }

    /// The file of a relation, once all its pages are in it.
    pub(crate) fn file_of(&self, relation: &str) -> PathBuf {
        let path = self.sql(&format!("CHECKPOINT; SELECT pg_relation_filepath('{relation}')"));
        self.site.cluster.data_dir().join(path)
    }

    /// Stops the server, has something done to its files, and starts it again.
    pub(crate) fn while_stopped(&mut self, work: impl FnOnce(&Cluster)) {
        self.site.cluster.stop(StopMode::Fast).unwrap();
        work(&self.site.cluster);
        self.site.cluster.start_again().unwrap();
    }

    /// Deletes a backup, with all that no other one uses.
    #[track_caller]
    pub(crate) fn delete(&mut self, position: usize) {
        let taken = self.taken.remove(position);
        self.site.run(&["delete", &taken.id, "--yes", "--grace", "0"]).expect(0);
    }

    /// Has the program connect to another server.
    pub(crate) fn point_at(&self, from: &str, to: &str) {
        let config = std::fs::read_to_string(self.site.config()).unwrap();
        assert!(config.contains(from), "{config}");
        std::fs::write(self.site.config(), config.replace(from, to)).unwrap();
    }

    /// Another server is the cluster from now on.
    pub(crate) fn succeed(&mut self, cluster: Cluster) {
        self.point_at(&self.site.cluster.conninfo(), &cluster.conninfo());
        let old = std::mem::replace(&mut self.site.cluster, cluster);
        self.retired.push(old);
    }

    /// Where the index is not to be used: takes a segment of WAL from the repository for ever, with the changes in it.
    pub(crate) fn hide_index(&self) {
        if self.kind.method == INDEX {
            return;
        }
        let name = self.sql("SELECT pg_walfile_name(pg_current_wal_insert_lsn())");
        self.site.archive();
        let wal = self.site.repository().join("clusters/main/wal");
        let found: Vec<PathBuf> =
            files(&wal).into_iter().map(|(path, _)| path).filter(|path| path.ends_with(&name)).collect();
        assert_eq!(found.len(), 1, "{name} in {}", wal.display());
        std::fs::remove_file(&found[0]).unwrap();
        // The server has it no more either.
        let kept = self.site.cluster.data_dir().join("pg_wal").join(&name);
        self.site.wait_for("the segment is removed", || {
            self.sql("CHECKPOINT");
            !kept.exists()
        });
    }

    /// Takes a backup, whatever it builds on.
    #[track_caller]
    pub(crate) fn backup(&mut self, options: &[&str], code: i32) -> Taken {
        let said = self.site.run(&[&["backup", "--json"], options].concat()).expect(code).json();
        assert_eq!(said["damaged"].as_array().unwrap().len(), 0, "{said}");
        let taken = self.facts(said["backup"].as_str().unwrap());
        self.taken.push(taken.clone());
        taken
    }

    /// What is known of a backup.
    pub(crate) fn facts(&self, id: &str) -> Taken {
        let shown = self.site.run(&["show", id, "--json"]).expect(0).json();
        let facts = &shown["backup"];
        let text = |value: &Value| value.as_str().map(str::to_owned);
        let number = |name: &str| facts["numbers"][name].as_u64().unwrap();
        let reasons = facts["change_detection"]["reasons"].as_array().unwrap();
        Taken {
            id: id.to_owned(),
            prior: text(&facts["prior"]),
            used: text(&facts["change_detection"]["used"]).unwrap(),
            reasons: reasons.iter().filter_map(text).collect(),
            pages_read: number("pages_read"),
            pages_stored: number("pages_stored"),
            bytes_added: number("bytes_added"),
        }
    }

    /// Makes the databases older than they are: of one that is no older than a backup nobody knows whether it was made
    /// before it, and its pages are compared in other ways.
    fn age(&self) {
        let data = self.site.cluster.data_dir();
        for dir in ["base", "pg_tblspc"] {
            for (path, _) in files(&data.join(dir)).iter().filter(|(path, _)| path.ends_with("PG_VERSION")) {
                let done = Command::new("touch").args(["-d", "2025-01-02 03:04:05"]).arg(path).status().unwrap();
                assert!(done.success());
            }
        }
    }

    /// The first backup, which is whole.
    #[track_caller]
    pub(crate) fn whole(&mut self) -> Taken {
        self.age();
        let taken = self.backup(&[], 0);
        assert_eq!((taken.used.as_str(), &taken.prior), (ALL, &None), "{taken:?}");
        taken
    }

    /// One that must build on the one before it, in the way of this kind of scene.
    #[track_caller]
    pub(crate) fn incremental(&mut self) -> Taken {
        let method = self.kind.method;
        let prior = self.taken.last().unwrap().id.clone();
        self.hide_index();
        let taken = self.backup(&[], 0);
        assert_eq!((taken.used.as_str(), taken.prior.as_ref()), (method, Some(&prior)), "{taken:?}");
        taken
    }

    /// Restores a backup as it is, and compares its files with the cluster's, which has not changed since.
    #[track_caller]
    pub(crate) fn check(&mut self, taken: &Taken) {
        let origin = self.site.cluster.data_dir().to_owned();
        self.check_against(taken, &origin);
    }

    /// The same with another directory as origin.
    #[track_caller]
    pub(crate) fn check_against(&mut self, taken: &Taken, origin: &std::path::Path) {
        let dir = self.restore(&taken.id);
        let comparison = compare_dirs_with(origin, &dir, CopyOf::AtRest).unwrap();
        assert!(comparison.files > 300 && comparison.pages > 2000, "{comparison:?}");
        comparison.require_equal().unwrap_or_else(|error| panic!("{taken:?} {error:#}"));
        visibility_maps_are_sane(&dir).unwrap_or_else(|error| panic!("{taken:?}: {error:#}"));
    }

    /// Restores a backup, to be recovered to where it is consistent. What was restored before is removed.
    #[track_caller]
    pub(crate) fn restore(&mut self, id: &str) -> PathBuf {
        self.restore_to(id, &["--immediate"])
    }

    /// The same, to a target.
    #[track_caller]
    pub(crate) fn restore_to(&mut self, id: &str, target: &[&str]) -> PathBuf {
        if let Some(old) = self.restored.take() {
            std::fs::remove_dir_all(&old).unwrap();
            std::fs::remove_dir_all(format!("{}-spaces", old.display())).ok();
        }
        self.count += 1;
        let dir = self.site.path(&format!("restored-{}", self.count));
        let shown = self.site.run(&["show", id, "--json"]).expect(0).json();
        let args = ["restore", "--to-dir", &dir, "--backup", id, "--timeline", "current"];
        let mut args: Vec<String> = args.iter().chain(target).map(|arg| (*arg).to_owned()).collect();
        for space in shown["backup"]["tablespaces"].as_array().unwrap() {
            if space["in_place"] == false {
                let name = space["name"].as_str().unwrap();
                args.extend(["--tablespace".to_owned(), format!("{name}={dir}-spaces/{name}")]);
            }
        }
        let args: Vec<&str> = args.iter().map(String::as_str).collect();
        let mut command = self.site.command(&args);
        let usual = std::env::var("PATH").unwrap();
        command.env("PATH", format!("{}:{usual}", self.site.cluster.install().bin_dir().display()));
        crate::support::Said::of(command.output().unwrap()).expect(0);
        self.restored = Some(PathBuf::from(&dir));
        PathBuf::from(dir)
    }

    /// Starts what was restored last, waits until it has recovered, and has PostgreSQL compare it with its origin, which
    /// has not changed since. The server still runs.
    #[track_caller]
    pub(crate) fn open(&self) -> Cluster {
        let dir = self.restored.as_ref().unwrap();
        let mut copy = Cluster::adopt(dir, self.kind.major).unwrap();
        copy.set_option("autovacuum", "off");
        copy.start_again().unwrap();
        copy.wait_for("SELECT pg_is_in_recovery()", "f", Duration::from_secs(60)).unwrap();
        dumps_are_equal(&self.site.cluster, &copy).unwrap();
        for database in databases(&copy) {
            index_only_scans_agree(&copy, &database).unwrap();
            visibility_is_true(&copy, &database).unwrap();
            // A value that was given out is not given out again.
            let sequences = "SELECT schemaname, sequencename, coalesce(last_value, 0) FROM pg_sequences ORDER BY 1, 2";
            let (here, there) = (copy.psql_db(&database, sequences).unwrap(), self.sql_in(&database, sequences));
            assert_eq!(here.lines().count(), there.lines().count());
            for (here, there) in here.lines().zip(there.lines()) {
                let value = |line: &str| line.rsplit('|').next().unwrap().parse::<i64>().unwrap();
                assert!(value(here) >= value(there), "sequence {there} is {here} in the copy");
            }
        }
        // Slow where there are many databases, and the less sure ways to find changes come through here as well.
        if self.kind.method != INDEX {
            amcheck(&copy).unwrap();
        }
        copy
    }

    /// All that is in the repository is whole, but for the WAL that this scene took out of it.
    #[track_caller]
    pub(crate) fn verify(&self) {
        let said = self.site.run(&["verify", "--all", "--deep", "--json"]);
        let hides = self.kind.method != INDEX;
        assert!(said.code == 0 || hides, "{}{}", said.stdout, said.stderr);
        let said = said.json();
        let backups = said["backups"].as_array().unwrap();
        assert_eq!(backups.len(), self.taken.len(), "{said}");
        assert!(backups.iter().all(|backup| backup["restorable"] == true), "{said}");
        let is_hidden = |finding: &Value| finding.to_string().contains("/wal/");
        assert!(said["findings"].as_array().unwrap().iter().all(|finding| hides && is_hidden(finding)), "{said}");
    }

    /// [`Scene::open`], then the copy lives on for a moment and is looked at again.
    #[track_caller]
    pub(crate) fn judge(&self) {
        let mut copy = self.open();
        for database in databases(&copy) {
            copy.psql_db(&database, LIVE_ON).unwrap();
            index_only_scans_agree(&copy, &database).unwrap();
            visibility_is_true(&copy, &database).unwrap();
        }
        copy.psql_db("postgres", "VACUUM").unwrap();
        copy.stop(StopMode::Fast).unwrap();
        if self.kind.checksums {
            checksums(&copy).unwrap();
        }
        let log = copy.log();
        // What VACUUM says when map and page do not agree (`vacuumlazy.c`).
        for word in ["visibility map bit", "visibility map", "corrupt", "PANIC", "invalid page", "unexpected"] {
            assert!(!log.contains(word), "{word} in {log}");
        }
    }
}

/// Changes some rows of every table of a user.
const LIVE_ON: &str = r"
SET session_replication_role = replica;
DO $$ DECLARE t regclass; BEGIN
  FOR t IN SELECT c.oid FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace
    WHERE c.relkind = 'r' AND n.nspname NOT LIKE 'pg\_%' AND n.nspname <> 'information_schema'
      AND c.relpersistence = 'p' LOOP
    EXECUTE format('DELETE FROM %s WHERE ctid IN (SELECT min(ctid) FROM %s GROUP BY (ctid::text::point)[0]::int / 3)', t, t);
  END LOOP;
END $$";

/// The names of the databases of users.
pub(crate) fn databases(cluster: &Cluster) -> Vec<String> {
    let names = cluster.sql("SELECT datname FROM pg_database WHERE datallowconn ORDER BY 1").unwrap();
    names.lines().filter(|name| *name != "template1").map(str::to_owned).collect()
}
