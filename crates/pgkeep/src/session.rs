//! One run of the program: what the commands share.

use crate::cli::GlobalArgs;
use crate::config::{self, ClusterConfig, Config, RepositoryConfig};
use crate::environment::Environment;
use crate::error::CommandError;
use crate::output::Output;
use crate::quote::CommandStrings;
use crate::{keys, progress};
use engine::Context;
use jiff::Timestamp;
use pg_wire::Conninfo;
use repo::{Cluster, ClusterName, Compression, Repository};
use std::path::Path;
use std::sync::Arc;
use store::{MissingRoot, StoreOptions};
use tokio_util::sync::CancellationToken;

/// What every command is given.
pub(crate) struct Session {
    pub(crate) global: GlobalArgs,
    pub(crate) environment: Environment,
    pub(crate) output: Output,
    pub(crate) cancel: CancellationToken,
}

/// A cluster of the configuration, in its opened repository.
pub(crate) struct Opened {
    pub(crate) config: Config,
    pub(crate) name: String,
    pub(crate) settings: ClusterConfig,
    pub(crate) repository_name: String,
    pub(crate) repository: RepositoryConfig,
    pub(crate) cluster: Cluster,
}

/// What is done with a local repository's directory that is not there.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum MissingPlace {
    Refuse,
    Create,
}

impl Session {
    /// For the engine: clock, progress, the signal to stop.
    pub(crate) fn context(&self) -> Context {
        Context {
            progress: progress::for_output(&self.output),
            cancel: self.cancel.clone(),
            clock: Arc::new(Timestamp::now),
        }
    }

    /// The configuration.
    pub(crate) fn config(&self) -> Result<Config, CommandError> {
        config::load(self.global.config.as_deref(), &self.environment)
    }

    /// The cluster that was named, as argument or with `--cluster`.
    pub(crate) fn named<'a>(&'a self, positional: Option<&'a str>) -> Result<Option<&'a str>, CommandError> {
        match (positional, self.global.cluster.as_deref()) {
            (Some(a), Some(b)) if a != b => {
                Err(CommandError::usage(format!("two clusters are named, '{a}' and --cluster '{b}'")).hint("name one"))
            }
            (a, b) => Ok(a.or(b)),
        }
    }

    /// Opens the repository of the cluster that is meant.
    pub(crate) async fn open(&self, positional: Option<&str>) -> Result<Opened, CommandError> {
        let config = self.config()?;
        self.open_in(config, self.named(positional)?).await
    }

    /// The same with a configuration that was read already.
    pub(crate) async fn open_in(&self, config: Config, named: Option<&str>) -> Result<Opened, CommandError> {
        let (name, settings) = config.cluster(named)?;
        let (name, settings) = (name.to_owned(), settings.clone());
        let (repository_name, repository) = config.repository(self.global.repo.as_deref(), Some(&settings))?;
        let (repository_name, repository) = (repository_name.to_owned(), repository.clone());
        let opened = self.open_repository(&repository).await?;
        let cluster = opened.cluster(&name.parse::<ClusterName>()?);
        Ok(Opened { config, name, settings, repository_name, repository, cluster })
    }

    /// Opens a repository with its key.
    pub(crate) async fn open_repository(&self, repository: &RepositoryConfig) -> Result<Repository, CommandError> {
        let store = self.open_store(repository, MissingPlace::Refuse)?;
        let loaded = self.context().or_cancel(keys::load(&repository.key)).await??;
        loaded.warnings.into_iter().for_each(|warning| self.output.note(format!("warning: {warning}")));
        Ok(self.context().or_cancel(Repository::open(store, loaded.key.as_ref())).await??)
    }

    /// Opens the store that a repository lies in.
    pub(crate) fn open_store(
        &self,
        repository: &RepositoryConfig,
        missing: MissingPlace,
    ) -> Result<Arc<dyn store::Store>, CommandError> {
        let mut options = StoreOptions::from_pairs(&repository.options)
            .map_err(|error| CommandError::usage(error.to_string()).hint("the options are listed in docs/config.md"))?;
        options.s3.environment.clone_from(&self.environment.aws);
        options.s3.credentials_file.clone_from(&self.environment.aws_credentials_file);
        if missing == MissingPlace::Create {
            options.local.missing_root = MissingRoot::Create;
        }
        Ok(store::open_store(&repository.url, &options)?)
    }

    /// Root must not write into a directory of another user's: that user could not go on with what root made there.
    pub(crate) fn refuse_foreign_user(&self, opened: &Opened) -> Result<(), CommandError> {
        self.refuse_foreign_owner(&opened.repository)
    }

    /// The same before it is opened.
    pub(crate) fn refuse_foreign_owner(&self, repository: &RepositoryConfig) -> Result<(), CommandError> {
        use std::os::unix::fs::MetadataExt;
        let path = repository.url.strip_prefix("file://").unwrap_or(&repository.url);
        let owner = path.starts_with('/').then(|| std::fs::metadata(path).ok()).flatten().map(|found| found.uid());
        match owner.filter(|uid| self.environment.is_root && *uid != 0) {
            None => Ok(()),
            Some(uid) => {
                let user = crate::environment::user_name(uid);
                let message =
                    format!("the repository {path} belongs to {user}, who could not use what root writes there");
                Err(CommandError::usage(message).hint(format!("run it as that user: sudo -u {user} pgkeep …")))
            }
        }
    }

    /// A connection string, completed from the environment.
    pub(crate) fn conninfo(&self, text: &str) -> Result<Conninfo, CommandError> {
        let mut params = pg_wire::Params::parse(text).map_err(pg_wire::WireError::from)?;
        if params.get("application_name").is_none() {
            params.set("fallback_application_name", "pgkeep").map_err(pg_wire::WireError::from)?;
        }
        let conninfo = params.resolve(&self.environment.pg).map_err(pg_wire::WireError::from)?;
        for warning in &conninfo.warnings {
            self.output.note(format!("warning: {warning}"));
        }
        Ok(conninfo)
    }
}

impl Opened {
    /// How new objects are compressed.
    pub(crate) fn compression(&self, option: Option<&str>) -> Result<Compression, CommandError> {
        match option {
            Some(text) => text.parse().map_err(CommandError::usage),
            None => Ok(self.repository.compression.unwrap_or(Compression::Zstd(1))),
        }
    }

    /// How many things are done at the same time.
    pub(crate) fn workers(&self, option: Option<u16>) -> usize {
        option.map_or_else(|| self.settings.workers(), usize::from)
    }

    /// For `archive_command` and `restore_command`. The repository is named when it is not the cluster's own.
    pub(crate) fn command_strings<'a>(&'a self, program: &'a Path) -> CommandStrings<'a> {
        let mut own = self.settings.repository.iter().chain(&self.settings.more_repositories);
        let is_own = own.any(|name| *name == self.repository_name);
        let named = (!is_own && self.config.repositories.len() > 1).then_some(self.repository_name.as_str());
        CommandStrings { program, config: &self.config.file, repository: named, cluster: &self.name }
    }
}
