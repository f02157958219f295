//! A site with a receiver beside it.

use crate::support::{Said, Site};
use crate::world::{bare, protect_locally};
use std::fs::File;
use std::process::{Child, Stdio};
use std::time::{Duration, Instant};
use testkit::pg::{Cluster, ClusterBuilder};

/// How often what depends on the moment is tried.
pub(crate) fn rounds() -> usize {
    std::env::var("PGKEEP_RECEIVE_ROUNDS").ok().and_then(|rounds| rounds.parse().ok()).unwrap_or(1)
}

/// Small segments, archiving as `init` sets it up, and the state where the test can look.
pub(crate) fn site(builder: ClusterBuilder) -> Site {
    let mut site = bare(builder.without_fsync().wal_segsize_mb(1));
    protect_locally(&mut site);
    let config = std::fs::read_to_string(site.config()).unwrap();
    let (state, cache) = (site.path("state"), site.path("cache"));
    std::fs::write(site.config(), format!("state-dir = \"{state}\"\ncache-dir = \"{cache}\"\n{config}")).unwrap();
    site
}

/// `wal receive` as a process. Dropping it kills it.
pub(crate) struct Receiver {
    child: Child,
    log: std::path::PathBuf,
}

impl Receiver {
    pub(crate) fn start(site: &Site, options: &[&str]) -> Self {
        let log = site.dir.join(format!("receive-{:?}.log", Instant::now()).replace([' ', '{', '}', ':', ','], ""));
        let args = [&["wal", "receive", "--tail-interval", "250ms"][..], options].concat();
        let mut command = site.command(&args);
        command.stdout(Stdio::null()).stderr(File::create(&log).unwrap());
        Self { child: command.spawn().unwrap(), log }
    }

    /// The same, once it streams from this server.
    pub(crate) fn streaming(site: &Site, options: &[&str]) -> Self {
        let mut receiver = Self::start(site, options);
        receiver.wait_streaming(&site.cluster);
        receiver
    }

    pub(crate) fn wait_streaming(&mut self, cluster: &Cluster) {
        let sql = "SELECT count(*) FROM pg_stat_replication WHERE application_name = 'pgkeep' AND state = 'streaming'";
        self.wait("it streams", || cluster.sql(sql).is_ok_and(|count| count == "1"));
    }

    /// Waits for a minute, and as long as the receiver lives.
    pub(crate) fn wait(&mut self, what: &str, mut done: impl FnMut() -> bool) {
        let begin = Instant::now();
        while !done() {
            let over = self.child.try_wait().unwrap();
            assert!(over.is_none(), "{what}: the receiver ended with {over:?}\n{}", self.said());
            assert!(begin.elapsed() < Duration::from_secs(60), "{what}: not within a minute\n{}", self.said());
            std::thread::sleep(Duration::from_millis(20));
        }
    }

    /// Waits until it says this.
    pub(crate) fn wait_said(&mut self, words: &str) {
        let log = self.log.clone();
        self.wait(words, || std::fs::read_to_string(&log).unwrap_or_default().contains(words));
    }

    pub(crate) fn said(&self) -> String {
        std::fs::read_to_string(&self.log).unwrap_or_default()
    }

    /// `kill -9`.
    pub(crate) fn kill(mut self) {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
    }

    /// SIGTERM; it must end well, with everything in the repository.
    pub(crate) fn stop(mut self) {
        let pid = self.child.id().to_string();
        assert!(std::process::Command::new("kill").arg(pid).status().unwrap().success());
        let status = self.child.wait().unwrap();
        assert_eq!(status.code(), Some(0), "{}", self.said());
        assert!(!self.said().contains("goes there at the next start"), "{}", self.said());
    }
}

impl Drop for Receiver {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// What `wal status` says of the receiver.
pub(crate) fn state(site: &Site) -> serde_json::Value {
    let said: Said = site.run(&["wal", "status", "--json"]);
    said.json()["receiver"].clone()
}

/// The state and spool of the receiver's host are gone.
pub(crate) fn lose_spool(site: &Site) {
    let state = site.dir.join("state");
    for entry in std::fs::read_dir(state).unwrap().flatten() {
        if entry.file_name().to_string_lossy().starts_with("wal-receive-") {
            std::fs::remove_dir_all(entry.path()).unwrap();
        }
    }
}

/// Waits until all that the server has flushed is durable in the repository.
pub(crate) fn wait_durable(site: &Site, cluster: &Cluster, receiver: &mut Receiver) {
    let end: pg_format::Lsn = cluster.sql("SELECT pg_current_wal_flush_lsn()").unwrap().parse().unwrap();
    receiver.wait("it is in the repository", || {
        let state = state(site);
        let durable = state["repositories"][0]["durable_lsn"].as_str().unwrap_or("0/0").parse::<pg_format::Lsn>();
        durable.unwrap() >= end
    });
}
