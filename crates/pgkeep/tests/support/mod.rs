//! A cluster, a repository and the real program, as an operator would set them up.
#![allow(dead_code, reason = "each test program uses a part of it")]
#![allow(clippy::unwrap_used, reason = "tests fail by panicking")]

use serde_json::Value;
use std::path::PathBuf;
use std::process::{Command, Output, Stdio};
use std::time::{Duration, Instant};
use testkit::pg::Cluster;
use testkit::s3::S3Server;

/// The version that most tests run on.
pub(crate) const MAJOR: u32 = 15;

/// What the program said.
pub(crate) struct Said {
    pub(crate) code: i32,
    pub(crate) stdout: String,
    pub(crate) stderr: String,
}

impl Said {
    pub(crate) fn of(output: Output) -> Self {
        let text = |bytes: Vec<u8>| String::from_utf8_lossy(&bytes).into_owned();
        Self { code: output.status.code().unwrap_or(-1), stdout: text(output.stdout), stderr: text(output.stderr) }
    }

    /// It must have ended so.
    #[track_caller]
    pub(crate) fn expect(self, code: i32) -> Self {
        assert_eq!(self.code, code, "stdout: {}\nstderr: {}", self.stdout, self.stderr);
        self
    }

    /// Standard error must hold all of these.
    #[track_caller]
    pub(crate) fn says(self, words: &[&str]) -> Self {
        for word in words {
            assert!(self.stderr.contains(word), "no {word:?} in {}", self.stderr);
        }
        self
    }

    /// Standard output must be one JSON object.
    #[track_caller]
    pub(crate) fn json(&self) -> Value {
        serde_json::from_str(&self.stdout).unwrap_or_else(|error| panic!("{error}: {}", self.stdout))
    }
}

/// What `init` must be told of an S3 server of the test kit, beside the URL.
pub(crate) fn s3_options(server: &S3Server) -> Vec<String> {
    let options = [
        format!("endpoint={}", server.endpoint),
        "allow-http=true".into(),
        format!("access-key-id={}", server.access_key),
        format!("secret-access-key={}", server.secret_key),
    ];
    options.into_iter().flat_map(|option| ["--store-option".to_owned(), option]).collect()
}

/// A cluster under protection.
pub(crate) struct Site {
    pub(crate) cluster: Cluster,
    pub(crate) program: PathBuf,
    pub(crate) dir: PathBuf,
}

impl Site {
    /// A running cluster without anything of pgkeep's.
    pub(crate) fn bare() -> Self {
        Self::bare_on(MAJOR)
    }

    /// The same on another version.
    pub(crate) fn bare_on(major: u32) -> Self {
        let cluster = Cluster::builder(major).without_fsync().start().unwrap();
        // By a program of its own: while this process has a file open for writing, a child that another test starts in
        // the same moment has it too, and the file cannot be run (ETXTBSY).
        let program = cluster.make_dir("bin").unwrap().join("pgkeep");
        let copied = Command::new("cp").arg(env!("CARGO_BIN_EXE_pgkeep")).arg(&program).status().unwrap();
        assert!(copied.success());
        cluster.user().own(&program).unwrap();
        let dir = cluster.make_dir("pgkeep").unwrap();
        Self { cluster, program, dir }
    }

    /// The same after `init --apply` and a restart.
    pub(crate) fn new() -> Self {
        let mut site = Self::bare();
        site.init(&["--apply"]).expect(0);
        site.cluster.restart().unwrap();
        site
    }

    pub(crate) fn config(&self) -> PathBuf {
        self.dir.join("pgkeep.toml")
    }

    pub(crate) fn repository(&self) -> PathBuf {
        self.dir.join("repo")
    }

    pub(crate) fn path(&self, name: &str) -> String {
        self.dir.join(name).to_string_lossy().into_owned()
    }

    pub(crate) fn init(&self, more: &[&str]) -> Said {
        let (conninfo, repository, key) = (self.cluster.conninfo(), self.path("repo"), self.path("key"));
        let args = ["init", "main", "--pg", &conninfo, "--repo", &repository, "--key-file", &key];
        self.run(&[&args[..], more].concat())
    }

    /// The program's command line, as the server's user.
    pub(crate) fn command(&self, args: &[&str]) -> Command {
        let mut command = self.cluster.command_as_pg(&self.program);
        command.env_remove("PGKEEP_CONFIG").env("HOME", &self.dir).stdin(Stdio::null());
        command.arg("--config").arg(self.config()).args(args);
        command
    }

    /// Runs the program to its end.
    pub(crate) fn run(&self, args: &[&str]) -> Said {
        Said::of(self.command(args).output().unwrap())
    }

    /// Has the server end its segment, and waits until that is in the repository.
    pub(crate) fn archive(&self) {
        // A transaction, so that there is something to switch from.
        let name = self.cluster.sql("SELECT txid_current()").unwrap();
        assert!(!name.is_empty());
        let segment = self.cluster.sql("SELECT pg_walfile_name(pg_switch_wal())").unwrap();
        self.wait_for("the segment is archived", || {
            let last = self.cluster.sql("SELECT coalesce(last_archived_wal, '') FROM pg_stat_archiver").unwrap();
            last.chars().take(24).collect::<String>() >= segment
        });
    }

    /// Asks again and again, for a minute.
    pub(crate) fn wait_for(&self, what: &str, mut done: impl FnMut() -> bool) {
        let begin = Instant::now();
        while !done() {
            assert!(
                begin.elapsed() < Duration::from_secs(60),
                "{what}: not within a minute\n{}",
                self.cluster.log_tail()
            );
            std::thread::sleep(Duration::from_millis(20));
        }
    }

    /// Starts the test kit's own server on a restored directory.
    pub(crate) fn open(&self, dir: &str) -> Cluster {
        let mut restored = Cluster::adopt(&self.dir.join(dir), self.cluster.major()).unwrap();
        restored.start_again().unwrap();
        self.wait_for("recovery ends", || restored.sql("SELECT pg_is_in_recovery()").unwrap() == "f");
        restored
    }
}
