//! The configuration: repositories, clusters, and which of them is meant.
//!
//! The file's form is in `docs/config.md`; reading is strict ([`read`]), and `init` adds to it without touching what
//! the operator wrote ([`write`]).

mod read;
mod write;

pub(crate) use read::parse;
pub(crate) use write::{Addition, add_to_file, check_addition};

use crate::environment::Environment;
use crate::error::CommandError;
use crate::output::size;
use crate::when;
use engine::hosts::LagMax;
use repo::Compression;
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::time::Duration;

/// The system's configuration file.
pub(crate) const SYSTEM_FILE: &str = "/etc/pgkeep/pgkeep.toml";

/// A configuration that was read.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Config {
    /// Where it was read from.
    pub(crate) file: PathBuf,
    /// `[repository.NAME]`.
    pub(crate) repositories: BTreeMap<String, RepositoryConfig>,
    /// `[cluster.NAME]`.
    pub(crate) clusters: BTreeMap<String, ClusterConfig>,
    /// `default-cluster`.
    pub(crate) default_cluster: Option<String>,
    /// `state-dir`.
    pub(crate) state_dir: Option<PathBuf>,
    /// `cache-dir`.
    pub(crate) cache_dir: Option<PathBuf>,
    /// `[hooks]`, for what is no configured cluster's.
    pub(crate) hooks: HooksConfig,
}

/// How a repository is opened.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum KeyConfig {
    /// `key-file`.
    File(PathBuf),
    /// `passphrase-file`.
    Passphrase(PathBuf),
    /// `key-command`.
    Command(String),
    /// `encryption = "none"`.
    None,
}

/// One repository.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct RepositoryConfig {
    /// Where it is.
    pub(crate) url: String,
    /// How it is opened.
    pub(crate) key: KeyConfig,
    /// How new objects are compressed.
    pub(crate) compression: Option<Compression>,
    /// Options of the store.
    pub(crate) options: BTreeMap<String, String>,
    /// `required`: whether WAL is acknowledged only when it is there.
    pub(crate) required: bool,
}

/// How frozen copies are made, and where they are.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct SnapshotConfig {
    /// `freeze-command`.
    pub(crate) freeze: Option<String>,
    /// `release-command`.
    pub(crate) release: Option<String>,
    /// `snapshot-dir`.
    pub(crate) directory: Option<PathBuf>,
}

/// One cluster.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct ClusterConfig {
    /// How to connect.
    pub(crate) pg: String,
    /// Its repository, the first of those in `repository`; may be absent when there is only one.
    pub(crate) repository: Option<String>,
    /// The further ones: they get all WAL, too.
    pub(crate) more_repositories: Vec<String>,
    /// How many things are done at the same time.
    pub(crate) workers: Option<u16>,
    /// `pgdata`: the data directory, for when no server can be asked.
    pub(crate) pgdata: Option<PathBuf>,
    /// `freeze-command`, `release-command` and `snapshot-dir`: how frozen copies are made, and where they are.
    pub(crate) snapshot: SnapshotConfig,
    /// How much and how long.
    pub(crate) limits: Limits,
    /// What is kept: `[cluster.NAME.expire]`, and for what it does not say, `[expire]`.
    pub(crate) expire: ExpireConfig,
    /// What is run before and after: `[cluster.NAME.hooks]`, and for what it does not say, `[hooks]`.
    pub(crate) hooks: HooksConfig,
}

/// The operations that have hooks.
pub(crate) const HOOKED: [&str; 10] =
    ["backup", "check", "delete", "dump", "expire", "export", "import-basebackup", "load", "restore", "verify"];
/// When hooks are run.
pub(crate) const HOOK_MOMENTS: [&str; 3] = ["before", "after", "on-failure"];

/// Commands that are run before and after operations.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct HooksConfig {
    /// By their keys: `before`, `before-backup`.
    pub(crate) commands: BTreeMap<String, String>,
    /// `timeout`: how long each may take.
    pub(crate) timeout: Option<Duration>,
}

impl HooksConfig {
    /// These, and for what they do not say, `others`.
    fn or(mut self, others: &Self) -> Self {
        for (key, command) in &others.commands {
            self.commands.entry(key.clone()).or_insert_with(|| command.clone());
        }
        Self { timeout: self.timeout.or(others.timeout), ..self }
    }
}

impl ClusterConfig {
    /// How many things are done at the same time: as configured, else the processors, at most 8.
    pub(crate) fn workers(&self) -> usize {
        let processors = || std::thread::available_parallelism().map_or(2, |n| n.get().min(8));
        self.workers.map_or_else(processors, usize::from)
    }
}

/// What is kept.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct ExpireConfig {
    /// `keep-last`: so many whole backups are kept.
    pub(crate) keep_last: Option<u32>,
    /// `keep-dumps`: so many dumps of each kind are kept.
    pub(crate) keep_dumps: Option<u32>,
    /// `grace`: how long data stays after nothing uses it.
    pub(crate) grace: Option<Duration>,
}

impl ExpireConfig {
    /// These, and for what they do not say, `others`.
    fn or(self, others: Self) -> Self {
        Self {
            keep_last: self.keep_last.or(others.keep_last),
            keep_dumps: self.keep_dumps.or(others.keep_dumps),
            grace: self.grace.or(others.grace),
        }
    }
}

/// How much and how long, where the operator says otherwise than usual.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Limits {
    /// `wal-timeout`: how long a backup waits for the next WAL segment to arrive in the repository.
    pub(crate) wal_timeout: Duration,
    /// `push-ahead`: how many further files one push takes along; PostgreSQL asks for each, and is answered at once.
    pub(crate) push_ahead: usize,
    /// `fetch-ahead`: how many segments are fetched ahead of replay.
    pub(crate) fetch_ahead: usize,
    /// `fetch-cache`: how much room they may take, in bytes.
    pub(crate) fetch_cache_bytes: u64,
    /// `backup-age-max`: a last backup older than this needs attention.
    pub(crate) backup_age_max: Duration,
    /// `wal-lag-max`: more WAL than this that is not archived yet needs attention, in bytes.
    pub(crate) wal_lag_bytes_max: u64,
    /// `max-rate`: at most so many bytes are read from files per second by a backup.
    pub(crate) bytes_per_second_max: Option<u64>,
    /// `nice`: the nice level of backups.
    pub(crate) nice: Option<u8>,
    /// `prefer-standby`: of several servers a standby is backed up.
    pub(crate) prefer_standby: bool,
    /// `max-lag`: how far a standby may be behind.
    pub(crate) lag_max: LagMax,
}

impl Limits {
    /// What holds where the configuration says nothing.
    pub(crate) const USUAL: Self = Self {
        wal_timeout: Duration::from_secs(300),
        push_ahead: 31,
        fetch_ahead: 32,
        fetch_cache_bytes: 1 << 30,
        backup_age_max: Duration::from_secs(8 * 24 * 3600),
        wal_lag_bytes_max: 512 << 20,
        bytes_per_second_max: None,
        nice: None,
        prefer_standby: false,
        lag_max: LagMax { bytes: Some(512 << 20), time: None },
    };
}

/// How far a standby may be behind: a size of WAL, or a time.
pub(crate) fn lag(text: &str) -> Option<LagMax> {
    let (bytes, time) = (size::read(text), when::duration(text));
    (bytes.is_some() || time.is_some()).then_some(LagMax { bytes, time })
}

/// Which configuration file is meant, and by what.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Location {
    /// Named by `--config` or `$PGKEEP_CONFIG`: it must be there, except for `init`.
    Named(PathBuf),
    /// One of the usual places has one.
    Found(PathBuf),
    /// None of these is there.
    Nowhere(Vec<PathBuf>),
}

/// Finds the configuration file: `--config`, `$PGKEEP_CONFIG`, the system's, the user's own.
pub(crate) fn locate(option: Option<&Path>, environment: &Environment) -> Location {
    if let Some(path) = option.or(environment.config.as_deref()) {
        return Location::Named(std::path::absolute(path).unwrap_or_else(|_| path.to_owned()));
    }
    let places = usual_places(environment);
    match places.iter().find(|place| place.exists()) {
        Some(place) => Location::Found(place.clone()),
        None => Location::Nowhere(places),
    }
}

fn usual_places(environment: &Environment) -> Vec<PathBuf> {
    let own = environment.config_home.as_ref().map(|home| home.join("pgkeep/pgkeep.toml"));
    std::iter::once(PathBuf::from(SYSTEM_FILE)).chain(own).collect()
}

/// Where `init` writes: the file in use, else the system's when its directory can be made or written to, else the
/// user's own.
pub(crate) fn place_for_init(option: Option<&Path>, environment: &Environment) -> PathBuf {
    match locate(option, environment) {
        Location::Named(path) | Location::Found(path) => path,
        Location::Nowhere(places) => {
            let usable = |place: &&PathBuf| {
                let dir = place.ancestors().skip(1).find(|dir| dir.exists());
                dir.is_some_and(|dir| rustix::fs::access(dir, rustix::fs::Access::WRITE_OK).is_ok())
            };
            places.iter().find(usable).or(places.last()).cloned().unwrap_or_else(|| PathBuf::from(SYSTEM_FILE))
        }
    }
}

/// Reads the configuration, which must be there.
pub(crate) fn load(option: Option<&Path>, environment: &Environment) -> Result<Config, CommandError> {
    match locate(option, environment) {
        Location::Named(path) | Location::Found(path) => load_file(&path),
        Location::Nowhere(places) => {
            let places: Vec<String> = places.iter().map(|place| place.display().to_string()).collect();
            Err(CommandError::usage(format!("there is no configuration file (looked for {})", places.join(" and ")))
                .hint("`pgkeep init` writes one; or name one with --config FILE or $PGKEEP_CONFIG"))
        }
    }
}

/// Reads one file.
pub(crate) fn load_file(path: &Path) -> Result<Config, CommandError> {
    let text = std::fs::read_to_string(path).map_err(|error| {
        let message = CommandError::usage(format!("{}: cannot read the configuration: {error}", path.display()));
        match error.kind() {
            std::io::ErrorKind::NotFound => message.hint("check the path; `pgkeep init` writes a new configuration"),
            std::io::ErrorKind::PermissionDenied => {
                message.hint("run pgkeep as the user that PostgreSQL runs as, or let your group read the file")
            }
            _ => message,
        }
    })?;
    parse(&text, path)
}

impl Config {
    /// The cluster that is meant: the one named, the default, or the only one.
    pub(crate) fn cluster(&self, named: Option<&str>) -> Result<(&str, &ClusterConfig), CommandError> {
        if let Some(name) = named {
            return self.clusters.get_key_value(name).map(|(name, cluster)| (name.as_str(), cluster)).ok_or_else(
                || {
                    let error = CommandError::not_found(format!(
                        "cluster '{name}' is not in the configuration {}",
                        self.file.display()
                    ));
                    match self.cluster_names().as_slice() {
                        [] => error.hint(format!("add it with `pgkeep init {name} --pg CONNINFO --repo URL …`")),
                        names => error.hint(format!("known clusters: {}", names.join(", "))),
                    }
                },
            );
        }
        if let Some(name) = &self.default_cluster {
            return self.cluster(Some(name));
        }
        let mut all = self.clusters.iter();
        match (all.next(), all.next()) {
            (Some((name, cluster)), None) => Ok((name, cluster)),
            (None, _) => Err(CommandError::usage(format!("{} names no cluster", self.file.display()))
                .hint("add one with `pgkeep init CLUSTER --pg CONNINFO --repo URL …`")),
            _ => Err(CommandError::usage("which cluster? There are several in the configuration").hint(format!(
                "name one of: {}; or set default-cluster in {}",
                self.cluster_names().join(", "),
                self.file.display()
            ))),
        }
    }

    /// The repository that is meant: the one named, the cluster's, or the only one.
    pub(crate) fn repository(
        &self,
        named: Option<&str>,
        cluster: Option<&ClusterConfig>,
    ) -> Result<(&str, &RepositoryConfig), CommandError> {
        let names = || self.repositories.keys().cloned().collect::<Vec<_>>().join(", ");
        if let Some(name) = named.or(cluster.and_then(|cluster| cluster.repository.as_deref())) {
            return self.repositories.get_key_value(name).map(|(name, found)| (name.as_str(), found)).ok_or_else(
                || {
                    let error = CommandError::not_found(format!(
                        "repository '{name}' is not in the configuration {}",
                        self.file.display()
                    ));
                    error.hint(format!("known repositories: {}", names()))
                },
            );
        }
        let mut all = self.repositories.iter();
        match (all.next(), all.next()) {
            (Some((name, found)), None) => Ok((name, found)),
            (None, _) => Err(CommandError::usage(format!("{} names no repository", self.file.display()))
                .hint("add one with `pgkeep init CLUSTER --pg CONNINFO --repo URL …`")),
            _ => Err(CommandError::usage("which repository? There are several in the configuration").hint(format!(
                "set repository in the cluster's section of {}, or use --repo with one of: {}",
                self.file.display(),
                names()
            ))),
        }
    }

    /// The repositories that a cluster's WAL goes to: the one named, else all of the cluster's, the first one first.
    pub(crate) fn archives(
        &self,
        named: Option<&str>,
        cluster: &ClusterConfig,
    ) -> Result<Vec<(&str, &RepositoryConfig)>, CommandError> {
        let mut all = vec![self.repository(named, Some(cluster))?];
        if named.is_none() {
            for name in &cluster.more_repositories {
                all.push(self.repository(Some(name), None)?);
            }
        }
        Ok(all)
    }

    fn cluster_names(&self) -> Vec<String> {
        self.clusters.keys().cloned().collect()
    }

    /// Where pgkeep remembers things between calls.
    pub(crate) fn state_dir(&self, environment: &Environment) -> PathBuf {
        let own = || environment.state_home.as_ref().map(|home| home.join("pgkeep"));
        self.state_dir.clone().or_else(own).unwrap_or_else(|| PathBuf::from("/var/lib/pgkeep"))
    }

    /// Where pgkeep keeps what it could fetch again.
    pub(crate) fn cache_dir(&self, environment: &Environment) -> PathBuf {
        let own = || environment.cache_home.as_ref().map(|home| home.join("pgkeep"));
        self.cache_dir.clone().or_else(own).unwrap_or_else(|| PathBuf::from("/var/cache/pgkeep"))
    }
}

#[cfg(test)]
mod tests;
