//! pgBackRest with the settings that the goals name.

use super::peers::{Contender, names, run};
use crate::setup::{self, Program};
use anyhow::{Context, Result};
use std::path::{Path, PathBuf};
use std::process::Command;
use testkit::pg::Cluster;

/// pgBackRest with two processes, zstd level 1, bundles, and blocks of changed files where its version has that.
pub(super) struct PgBackRest {
    program: Program,
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
    /// Writes its configuration into the cluster's folder. Fetches the program if it is not there.
    pub(super) fn install(cluster: &Cluster, archiving: Archiving) -> Result<Self> {
        let program = setup::pgbackrest()?;
        let dir = cluster.make_dir(&format!("pgbackrest-{archiving:?}").to_lowercase())?;
        let repo = dir.join("repo");
        let mut lines = vec![
            "[global]".to_owned(),
            format!("repo1-path={}", repo.display()),
            format!("log-path={0}/log\nlock-path={0}/lock\nspool-path={0}/spool", dir.display()),
            "process-max=2\ncompress-type=zst\ncompress-level=1\nrepo1-bundle=y\nstart-fast=y".to_owned(),
            "archive-push-queue-max=1TiB\nlog-level-console=warn\nlog-level-file=off".to_owned(),
        ];
        if program.has_block_incremental() {
            lines.push("repo1-block=y".to_owned());
        }
        lines.extend([
            "[global:archive-push]\nprocess-max=2".to_owned(),
            "[demo]".to_owned(),
            format!("pg1-path={}", cluster.data_dir().display()),
            format!("pg1-port={}\npg1-socket-path={}", cluster.port(), cluster.socket_dir().display()),
            "pg1-user=postgres".to_owned(),
        ]);
        let config = dir.join("pgbackrest.conf");
        std::fs::write(&config, lines.join("\n") + "\n")?;
        for name in ["log", "lock", "spool", "repo"] {
            std::fs::create_dir_all(dir.join(name)).with_context(|| format!("cannot make {name}"))?;
        }
        cluster.user().own(&dir)?;
        Ok(Self { program, config, repo, archiving })
    }

    fn command(&self, cluster: &Cluster, arguments: &[&str]) -> Command {
        let mut command = cluster.command_as_pg(&self.program.path);
        command.arg(format!("--config={}", self.config.display())).arg("--stanza=demo").args(arguments);
        command
    }
}

impl Contender for PgBackRest {
    fn name(&self) -> String {
        let block = if self.program.has_block_incremental() { ", block incremental" } else { "" };
        let how = match self.archiving {
            Archiving::Asynchronous => format!("zst 1, process-max 2, bundles{block}"),
            Archiving::Synchronous => "zst 1, archive-async off, its default".to_owned(),
        };
        format!("pgBackRest {} ({how})", self.program.version_text())
    }

    fn prepare(&self, cluster: &mut Cluster) -> Result<()> {
        run(self.command(cluster, &["stanza-create"]), &[0])
    }

    fn repo(&self) -> &Path {
        &self.repo
    }

    fn wal_dirs(&self) -> Vec<PathBuf> {
        vec![self.repo.join("archive")]
    }

    fn full(&self, cluster: &Cluster) -> Command {
        self.command(cluster, &["backup", "--type=full", "--no-expire-auto"])
    }

    fn incremental(&self, cluster: &Cluster) -> Option<Command> {
        Some(self.command(cluster, &["backup", "--type=incr", "--no-expire-auto"]))
    }

    fn backups(&self) -> Result<Vec<String>> {
        // `20261121-040644F` is a full backup, `20261121-040644F_20261121-050000I` one that builds on it.
        let is_backup = |name: &String| name.starts_with(|first: char| first.is_ascii_digit());
        let mut names: Vec<String> = names(&self.repo.join("backup/demo"))?.into_iter().filter(is_backup).collect();
        names.sort_by_key(|name| name.rsplit('_').next().map(str::to_owned));
        Ok(names)
    }

    fn restore(&self, cluster: &Cluster, target: &Path, backup: Option<&str>) -> Option<Command> {
        let target = format!("--pg1-path={}", target.display());
        let mut command = self.command(cluster, &["restore", &target]);
        if let Some(name) = backup {
            command.arg(format!("--set={name}")).arg("--type=immediate");
        }
        Some(command)
    }

    fn archive_command(&self, _cluster: &Cluster) -> Option<String> {
        let (program, config) = (self.program.path.display(), self.config.display());
        Some(format!("{program} --config={config} --stanza=demo archive-push %p"))
    }

    fn push_command(&self, cluster: &Cluster) -> Option<String> {
        let command = self.archive_command(cluster)?;
        Some(match self.archiving {
            Archiving::Asynchronous => command.replace(" archive-push", " archive-push --archive-async"),
            Archiving::Synchronous => command,
        })
    }
}
