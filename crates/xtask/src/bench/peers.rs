//! Who is measured: pgkeep, pgBackRest, and PostgreSQL's own `pg_basebackup`.

use super::measure::dir_bytes;
use crate::product::Product;
use anyhow::{Context, Result};
use std::path::{Path, PathBuf};
use std::process::Command;
use testkit::pg::Cluster;

pub(super) use super::pgbackrest::{Archiving, PgBackRest};

/// One that backs up, restores and archives.
pub(super) trait Contender {
    /// As it stands in the table.
    fn name(&self) -> String;
    /// Makes an empty repository for the running cluster. Called once.
    fn prepare(&self, cluster: &mut Cluster) -> Result<()>;
    /// The folder with what it stores.
    fn repo(&self) -> &Path;
    /// The folders in [`Contender::repo`] that hold WAL.
    fn wal_dirs(&self) -> Vec<PathBuf>;
    /// A full backup.
    fn full(&self, cluster: &Cluster) -> Command;
    /// A backup of what changed since the last one; none if it cannot.
    fn incremental(&self, cluster: &Cluster) -> Option<Command>;
    /// The names of its backups, oldest first.
    fn backups(&self) -> Result<Vec<String>>;
    /// A restore of the backup of this name, the last without; none if it cannot.
    fn restore(&self, cluster: &Cluster, target: &Path, backup: Option<&str>) -> Option<Command>;
    /// What the archiver calls for a segment, `%p` and `%f` as PostgreSQL replaces them; none if it cannot.
    fn archive_command(&self, cluster: &Cluster) -> Option<String>;
    /// The same with everything on that makes a backlog go fast.
    fn push_command(&self, cluster: &Cluster) -> Option<String> {
        self.archive_command(cluster)
    }
    /// Exit codes that count as success.
    fn accepted(&self) -> &'static [i32] {
        &[0]
    }

    /// Bytes of all its backups, WAL not counted.
    fn backup_bytes(&self) -> u64 {
        dir_bytes(self.repo()) - self.wal_dirs().iter().map(|dir| dir_bytes(dir)).sum::<u64>()
    }
}

/// pgkeep itself, as its users call it.
pub(super) struct Pgkeep {
    pub(super) product: Product,
    /// Tells builds apart when there are several.
    pub(super) build: Option<String>,
    /// More arguments for backups.
    pub(super) arguments: Vec<String>,
}

impl Contender for Pgkeep {
    fn name(&self) -> String {
        format!("{} (zstd 1, 2 workers)", self.build.as_deref().unwrap_or("pgkeep"))
    }

    fn prepare(&self, cluster: &mut Cluster) -> Result<()> {
        let arguments = self.product.init_arguments(cluster);
        // Without `--apply`: the benchmark sets the archive command itself, for one contender at a time.
        let arguments: Vec<&str> = arguments.iter().map(String::as_str).filter(|word| *word != "--apply").collect();
        let mut command = self.product.command(cluster, &arguments);
        command.args(["--compression", "zstd:1"]);
        run(command, &[0, 4])
    }

    fn repo(&self) -> &Path {
        &self.product.repo
    }

    fn wal_dirs(&self) -> Vec<PathBuf> {
        let cluster = self.product.repo.join("clusters/demo");
        vec![cluster.join("wal"), cluster.join("wal-index")]
    }

    fn full(&self, cluster: &Cluster) -> Command {
        let words = ["backup", "demo", "--full", "--workers", "2", "--compression", "zstd:1"];
        let mut command = self.product.command(cluster, &words);
        command.args(&self.arguments);
        command
    }

    fn incremental(&self, cluster: &Cluster) -> Option<Command> {
        let mut command =
            self.product.command(cluster, &["backup", "demo", "--workers", "2", "--compression", "zstd:1"]);
        command.args(&self.arguments);
        Some(command)
    }

    fn backups(&self) -> Result<Vec<String>> {
        let dir = self.product.repo.join("clusters/demo/backups");
        Ok(names(&dir)?.into_iter().filter(|name| dir.join(name).join("manifest").exists()).collect())
    }

    fn restore(&self, cluster: &Cluster, target: &Path, backup: Option<&str>) -> Option<Command> {
        let target = target.to_string_lossy();
        let mut command = self.product.command(cluster, &["restore", "demo", "--to-dir", &target, "--workers", "2"]);
        match backup {
            Some(id) => command.args(["--backup", id, "--immediate"]),
            None => command.arg("--latest"),
        };
        Some(command)
    }

    fn archive_command(&self, _cluster: &Cluster) -> Option<String> {
        let (program, config) = (self.product.program.display(), self.product.config.display());
        Some(format!("{program} --config {config} -q wal push %p"))
    }

    fn accepted(&self) -> &'static [i32] {
        &[0, 4]
    }
}

/// PostgreSQL's own copy, compressed by the server.
pub(super) struct BaseBackup {
    pub(super) dir: PathBuf,
    /// As `--compress` takes it.
    pub(super) compress: &'static str,
}

impl Contender for BaseBackup {
    fn name(&self) -> String {
        format!("pg_basebackup ({})", self.compress)
    }

    fn prepare(&self, cluster: &mut Cluster) -> Result<()> {
        std::fs::create_dir_all(&self.dir)?;
        cluster.user().own(&self.dir)
    }

    fn repo(&self) -> &Path {
        &self.dir
    }

    fn wal_dirs(&self) -> Vec<PathBuf> {
        Vec::new()
    }

    fn full(&self, cluster: &Cluster) -> Command {
        // A missing program shows when the command is run.
        let mut command =
            cluster.command_as_pg(cluster.bin("pg_basebackup").unwrap_or_else(|_| "pg_basebackup".into()));
        command.args(["-Ft", "-X", "none", "-c", "fast", "--compress", self.compress]);
        command.args(["-d", &cluster.conninfo(), "-D"]).arg(self.dir.join("copy"));
        command
    }

    fn incremental(&self, _cluster: &Cluster) -> Option<Command> {
        None
    }

    fn backups(&self) -> Result<Vec<String>> {
        names(&self.dir)
    }

    fn restore(&self, _cluster: &Cluster, _target: &Path, _backup: Option<&str>) -> Option<Command> {
        None
    }

    fn archive_command(&self, _cluster: &Cluster) -> Option<String> {
        None
    }
}

/// Sorted names in a folder.
pub(super) fn names(dir: &Path) -> Result<Vec<String>> {
    let entries = std::fs::read_dir(dir).with_context(|| format!("cannot read {}", dir.display()))?;
    let mut names: Vec<String> =
        entries.filter_map(Result::ok).map(|entry| entry.file_name().to_string_lossy().into_owned()).collect();
    names.sort();
    Ok(names)
}

/// Runs a command that is not measured.
pub(super) fn run(command: Command, accepted: &[i32]) -> Result<()> {
    super::measure::measure(command, accepted).map(drop)
}
