//! The program under demonstration and measurement: built, copied to where servers can run it, and called as users
//! call it.

use crate::sh;
use anyhow::{Context, Result, bail};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use testkit::pg::Cluster;

/// Which build of the program.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Build {
    /// Quick to make.
    Debug,
    /// For measurements.
    Release,
}

/// Builds the program and returns its path.
pub(crate) fn build(build: Build) -> Result<PathBuf> {
    let mut command = sh::cargo();
    command.args(["build", "--quiet", "-p", "pgkeep", "--message-format", "json-render-diagnostics"]);
    if build == Build::Release {
        command.arg("--release");
    }
    command.stdin(Stdio::null()).stderr(Stdio::inherit());
    let output = command.output().context("cannot run cargo")?;
    if !output.status.success() {
        bail!("pgkeep does not build");
    }
    let messages = String::from_utf8_lossy(&output.stdout).into_owned();
    let executable = messages.lines().filter_map(|line| serde_json::from_str::<serde_json::Value>(line).ok());
    let executable = executable
        .filter(|message| message["target"]["name"] == "pgkeep")
        .filter_map(|message| message["executable"].as_str().map(PathBuf::from))
        .next_back();
    executable.context("cargo did not say where it put pgkeep")
}

/// The program, installed for one cluster: its configuration, its key, its repository.
#[derive(Debug)]
pub(crate) struct Product {
    pub(crate) program: PathBuf,
    pub(crate) config: PathBuf,
    pub(crate) key: PathBuf,
    pub(crate) repo: PathBuf,
    /// How people who are root become the server's user.
    prefix: String,
}

impl Product {
    /// Copies the program to the cluster's folder. `init` makes the key.
    pub(crate) fn install(cluster: &Cluster, program: &Path) -> Result<Self> {
        Self::install_in(cluster, program, "pgkeep")
    }

    /// The same with the name of the folder, for several builds beside each other.
    pub(crate) fn install_in(cluster: &Cluster, program: &Path, folder: &str) -> Result<Self> {
        let dir = cluster.make_dir(folder)?;
        let copy = dir.join("pgkeep");
        std::fs::copy(program, &copy).with_context(|| format!("cannot copy {}", program.display()))?;
        cluster.user().own(&copy)?;
        let product = Self {
            program: copy,
            config: dir.join("pgkeep.toml"),
            key: dir.join("key"),
            repo: dir.join("repo"),
            prefix: become_user(cluster),
        };
        Ok(product)
    }

    /// A command of the program, run as the server's user.
    pub(crate) fn command(&self, cluster: &Cluster, arguments: &[&str]) -> Command {
        let mut command = cluster.command_as_pg(&self.program);
        command.arg("--config").arg(&self.config).args(arguments);
        command
    }

    /// The same as people type it.
    pub(crate) fn typed(&self, arguments: &[&str]) -> String {
        let quoted =
            arguments.iter().map(|word| if word.contains(' ') { format!("'{word}'") } else { (*word).to_owned() });
        let words: Vec<String> = quoted.collect();
        format!("{}{} --config {} {}", self.prefix, self.program.display(), self.config.display(), words.join(" "))
    }

    /// The arguments of `init` for this cluster.
    pub(crate) fn init_arguments(&self, cluster: &Cluster) -> Vec<String> {
        let path = |path: &Path| path.to_string_lossy().into_owned();
        let words = ["init", "demo", "--pg"].map(str::to_owned).into_iter();
        words
            .chain([cluster.conninfo(), "--repo".to_owned(), path(&self.repo)])
            .chain(["--key-file".to_owned(), path(&self.key), "--apply".to_owned()])
            .collect()
    }
}

/// What to type before a command so that it runs as the server's user.
pub(crate) fn become_user(cluster: &Cluster) -> String {
    let user = cluster.user();
    if user.must_switch { format!("runuser -u {} -- ", user.name) } else { String::new() }
}

/// Restarts the server when a setting waits for it; true when it did.
pub(crate) fn restart_if_needed(cluster: &mut Cluster) -> Result<bool> {
    let pending = cluster.sql("SELECT count(*) > 0 FROM pg_settings WHERE pending_restart")? == "t";
    if pending {
        cluster.restart()?;
    }
    Ok(pending)
}
