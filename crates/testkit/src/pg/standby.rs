//! Standbys, and waiting for servers to reach a state.

use super::builder::{append, free_port, new_home, push_setting};
use super::cluster::Cluster;
use super::process;
use anyhow::{Result, bail};
use std::time::{Duration, Instant};

impl Cluster {
    /// Makes a standby of this cluster with `pg_basebackup -R` and starts it. It is independent of this value's life,
    /// but streams from its server.
    ///
    /// # Errors
    /// When the copy or the start fails.
    pub fn standby(&self) -> Result<Cluster> {
        let home = new_home(self.user())?;
        let data = home.path().join("data");
        let mut command = self.command_as_pg(self.bin("pg_basebackup")?);
        command.args(["-R", "-X", "stream", "-c", "fast", "-d", &self.conninfo(), "-D"]).arg(&data);
        process::run_ok(command, None)?;
        let port = free_port()?;
        let mut conf = String::from("\n# Settings of the test kit's standby\n");
        push_setting(&mut conf, "port", &port.to_string());
        push_setting(&mut conf, "listen_addresses", "");
        push_setting(&mut conf, "unix_socket_directories", &home.path().join("s").to_string_lossy());
        append(&data.join("postgresql.conf"), &conf)?;
        let mut standby = Cluster::new(self.install().clone(), self.user().clone(), home, data, port, Vec::new())?;
        standby.start_again()?;
        Ok(standby)
    }

    /// Asks again and again until the SQL's answer is `expected`.
    ///
    /// # Errors
    /// When it is not within `limit`, or the SQL fails.
    pub fn wait_for(&self, sql: &str, expected: &str, limit: Duration) -> Result<()> {
        let start = Instant::now();
        loop {
            let answer = self.sql(sql)?;
            if answer == expected {
                return Ok(());
            }
            if start.elapsed() > limit {
                bail!("`{sql}` is still '{answer}' and not '{expected}' after {limit:?}; log:\n{}", self.log_tail());
            }
            std::thread::sleep(Duration::from_millis(50));
        }
    }

    /// Writes a checkpoint, ends the current WAL segment and returns its name.
    ///
    /// # Errors
    /// When the server refuses.
    pub fn switch_wal(&self) -> Result<String> {
        self.sql("CHECKPOINT; SELECT pg_walfile_name(pg_switch_wal())")
    }

    /// Waits until the archiver has archived this segment or a later one of the same timeline.
    ///
    /// # Errors
    /// When it has not within `limit`; the archiver's own counters and the log are in the message.
    pub fn wait_archived(&self, segment: &str, limit: Duration) -> Result<()> {
        let sql = format!("SELECT coalesce(max(last_archived_wal) >= '{segment}', false) FROM pg_stat_archiver");
        self.wait_for(&sql, "t", limit)
    }

    /// Waits until a standby has replayed up to this LSN.
    ///
    /// # Errors
    /// When it has not within `limit`.
    pub fn wait_replayed(&self, lsn: &str, limit: Duration) -> Result<()> {
        self.wait_for(&format!("SELECT pg_last_wal_replay_lsn() >= '{lsn}'"), "t", limit)
    }
}
