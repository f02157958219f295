//! Who is measured: pgkeep, pgBackRest, and PostgreSQL's own `pg_basebackup`.

use crate::product::Product;
use anyhow::{Context, Result, bail};
use std::path::{Path, PathBuf};
use std::process::Command;
use testkit::pg::Cluster;

/// One that backs up, restores and archives.
pub(super) trait Contender {
    /// As it stands in the table.
    fn name(&self) -> &'static str;
    /// Makes an empty repository for the running cluster. Called once.
    fn prepare(&self, cluster: &mut Cluster) -> Result<()>;
    /// The folder with what it stores.
    fn repo(&self) -> &Path;
    /// A full backup.
    fn backup(&self, cluster: &Cluster) -> Command;
    /// A restore of the last backup; none if it cannot.
    fn restore(&self, cluster: &Cluster, target: &Path) -> Option<Command>;
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
}

/// pgkeep itself, as its users call it.
pub(super) struct Pgkeep {
    pub(super) product: Product,
}

impl Contender for Pgkeep {
    fn name(&self) -> &'static str {
        "pgkeep (zstd 1, 2 workers)"
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

    fn backup(&self, cluster: &Cluster) -> Command {
        self.product.command(cluster, &["backup", "demo", "--full", "--workers", "2", "--compression", "zstd:1"])
    }

    fn restore(&self, cluster: &Cluster, target: &Path) -> Option<Command> {
        Some(self.product.command(
            cluster,
            &["restore", "demo", "--to-dir", &target.to_string_lossy(), "--latest", "--workers", "2"],
        ))
    }

    fn archive_command(&self, _cluster: &Cluster) -> Option<String> {
        let (program, config) = (self.product.program.display(), self.product.config.display());
        Some(format!("{program} --config {config} -q wal push %p"))
    }

    fn accepted(&self) -> &'static [i32] {
        &[0, 4]
    }
}

/// Debian's pgBackRest with the settings that the goals name.
pub(super) struct PgBackRest {
    config: PathBuf,
    repo: PathBuf,
    archiving: Archiving,
}

/// How pgBackRest pushes WAL.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Archiving {
    /// `archive-async=y`: a process goes on in the background.
    Asynchronous,
    /// Its default: each call pushes its own segment.
    Synchronous,
}

impl PgBackRest {
    /// Writes its configuration into the cluster's folder.
    pub(super) fn install(cluster: &Cluster, archiving: Archiving) -> Result<Self> {
        if crate::sh::which("pgbackrest").is_none() {
            bail!("pgBackRest is not here: run `cargo xtask setup`");
        }
        let dir = cluster.make_dir(&format!("pgbackrest-{archiving:?}").to_lowercase())?;
        let repo = dir.join("repo");
        let lines = [
            "[global]".to_owned(),
            format!("repo1-path={}", repo.display()),
            format!("log-path={0}/log\nlock-path={0}/lock\nspool-path={0}/spool", dir.display()),
            "process-max=2\ncompress-type=zst\ncompress-level=1\nrepo1-bundle=y\nstart-fast=y".to_owned(),
            "archive-push-queue-max=1TiB\nlog-level-console=warn\nlog-level-file=off".to_owned(),
            "[global:archive-push]\nprocess-max=2".to_owned(),
            "[demo]".to_owned(),
            format!("pg1-path={}", cluster.data_dir().display()),
            format!("pg1-port={}\npg1-socket-path={}", cluster.port(), cluster.socket_dir().display()),
            "pg1-user=postgres".to_owned(),
        ];
        let config = dir.join("pgbackrest.conf");
        std::fs::write(&config, lines.join("\n") + "\n")?;
        for name in ["log", "lock", "spool", "repo"] {
            std::fs::create_dir_all(dir.join(name)).with_context(|| format!("cannot make {name}"))?;
        }
        cluster.user().own(&dir)?;
        Ok(Self { config, repo, archiving })
    }

    fn command(&self, cluster: &Cluster, arguments: &[&str]) -> Command {
        let mut command = cluster.command_as_pg("pgbackrest");
        command.arg(format!("--config={}", self.config.display())).arg("--stanza=demo").args(arguments);
        command
    }
}

impl Contender for PgBackRest {
    fn name(&self) -> &'static str {
        match self.archiving {
            Archiving::Asynchronous => "pgBackRest (zst 1, process-max 2, bundles)",
            Archiving::Synchronous => "pgBackRest (zst 1, archive-async off, its default)",
        }
    }

    fn prepare(&self, cluster: &mut Cluster) -> Result<()> {
        run(self.command(cluster, &["stanza-create"]), &[0])
    }

    fn repo(&self) -> &Path {
        &self.repo
    }

    fn backup(&self, cluster: &Cluster) -> Command {
        self.command(cluster, &["backup", "--type=full", "--no-expire-auto"])
    }

    fn restore(&self, cluster: &Cluster, target: &Path) -> Option<Command> {
        let target = format!("--pg1-path={}", target.display());
        Some(self.command(cluster, &["restore", &target]))
    }

    fn archive_command(&self, _cluster: &Cluster) -> Option<String> {
        Some(format!("pgbackrest --config={} --stanza=demo archive-push %p", self.config.display()))
    }

    fn push_command(&self, cluster: &Cluster) -> Option<String> {
        let command = self.archive_command(cluster)?;
        Some(match self.archiving {
            Archiving::Asynchronous => command.replace(" archive-push", " archive-push --archive-async"),
            Archiving::Synchronous => command,
        })
    }
}

/// PostgreSQL's own copy, compressed by the server.
pub(super) struct BaseBackup {
    pub(super) dir: PathBuf,
}

impl Contender for BaseBackup {
    fn name(&self) -> &'static str {
        "pg_basebackup (server-zstd 1, 2 workers)"
    }

    fn prepare(&self, cluster: &mut Cluster) -> Result<()> {
        std::fs::create_dir_all(&self.dir)?;
        cluster.user().own(&self.dir)
    }

    fn repo(&self) -> &Path {
        &self.dir
    }

    fn backup(&self, cluster: &Cluster) -> Command {
        // A missing program shows when the command is run.
        let mut command =
            cluster.command_as_pg(cluster.bin("pg_basebackup").unwrap_or_else(|_| "pg_basebackup".into()));
        command.args(["-Ft", "-X", "fetch", "-c", "fast", "--compress=server-zstd:level=1,workers=2"]);
        command.args(["-d", &cluster.conninfo(), "-D"]).arg(self.dir.join("copy"));
        command
    }

    fn restore(&self, _cluster: &Cluster, _target: &Path) -> Option<Command> {
        None
    }

    fn archive_command(&self, _cluster: &Cluster) -> Option<String> {
        None
    }
}

/// Runs a command that is not measured.
pub(super) fn run(command: Command, accepted: &[i32]) -> Result<()> {
    super::measure::measure(command, accepted).map(drop)
}
