//! The repositories that a cluster's WAL goes to, as configured and opened.

use crate::config::{ClusterConfig, Config, RepositoryConfig};
use crate::environment::Environment;
use crate::error::{CommandError, ErrorKind};
use crate::session::Session;
use engine::EngineError;
use engine::wal::fetch::Origin;
use engine::wal::push::{Destination, OutOfReach};
use engine::wal::serve::OpenArchives;
use repo::ClusterName;
use std::sync::Arc;
use tokio_util::sync::CancellationToken;

/// The repositories of a cluster, or the one that was named.
pub(crate) struct Archives<'a> {
    pub(super) cluster: &'a str,
    pub(super) settings: &'a ClusterConfig,
    pub(super) repositories: Vec<(&'a str, &'a RepositoryConfig)>,
}

impl<'a> Archives<'a> {
    /// Those that are meant.
    pub(super) fn of(session: &Session, config: &'a Config) -> Result<Self, CommandError> {
        Self::of_cluster(session, config, session.named(None)?)
    }

    /// Those of a cluster.
    pub(crate) fn of_cluster(session: &Session, config: &'a Config, name: Option<&str>) -> Result<Self, CommandError> {
        let (cluster, settings) = config.cluster(name)?;
        let repositories = config.archives(session.global.repo.as_deref(), settings)?;
        Ok(Self { cluster, settings, repositories })
    }

    /// Whether WAL must be there before it is acknowledged. One that was named alone always must have it.
    pub(super) fn is_required(&self, repository: &RepositoryConfig) -> bool {
        repository.required || self.repositories.len() == 1
    }

    /// What notes and caches belong to: with other repositories or another cluster they must not be found.
    pub(super) fn key(&self) -> String {
        let urls: Vec<&str> = self.repositories.iter().map(|(_, repository)| repository.url.as_str()).collect();
        format!("{} {}", urls.join(" "), self.cluster)
    }
}

/// Opens them. One that is not required and cannot be opened is said to be out of reach.
pub(super) async fn open_all(
    session: &Session,
    archives: &Archives<'_>,
) -> Result<(Vec<Destination>, Vec<OutOfReach>), CommandError> {
    let cluster: ClusterName = archives.cluster.parse()?;
    let (mut destinations, mut out_of_reach) = (Vec::new(), Vec::new());
    for (name, repository) in &archives.repositories {
        session.refuse_foreign_owner(repository)?;
        let required = archives.is_required(repository);
        match session.open_repository(repository).await {
            Ok(opened) => destinations.push(Destination {
                name: (*name).to_owned(),
                cluster: opened.cluster(&cluster),
                compression: repository.compression.unwrap_or(repo::Compression::Zstd(1)),
                required,
                key: repository.url.clone(),
            }),
            Err(error) if required || error.kind == ErrorKind::Stopped => return Err(error),
            Err(error) => out_of_reach.push(OutOfReach {
                name: (*name).to_owned(),
                key: repository.url.clone(),
                reason: error.message,
            }),
        }
    }
    Ok((destinations, out_of_reach))
}

/// Opens the repositories, now and later, from the configuration as it was at the start, until `cancel` says otherwise.
pub(super) fn opener(session: &Session, config: &Config, cancel: CancellationToken) -> OpenArchives {
    let session = Arc::new(Session {
        global: session.global.clone(),
        environment: Environment::read(),
        output: session.output.clone(),
        cancel,
    });
    let config = Arc::new(config.clone());
    Arc::new(move || {
        let (session, config) = (session.clone(), config.clone());
        Box::pin(async move {
            let opened = async { open_all(&session, &Archives::of(&session, &config)?).await };
            opened.await.map_err(|error: CommandError| EngineError::Failed {
                reason: error.message,
                hint: error.hints.into_iter().next(),
            })
        })
    })
}

/// Opens them for fetching, in their order; each that cannot be opened says why. When none can be, that is the error.
pub(super) async fn open_origins(session: &Session, archives: &Archives<'_>) -> Result<Vec<Origin>, CommandError> {
    let cluster: ClusterName = archives.cluster.parse()?;
    let mut origins = Vec::new();
    let mut first_error = None;
    for (name, repository) in &archives.repositories {
        let opened = match session.open_repository(repository).await {
            Ok(opened) => Ok(opened.cluster(&cluster)),
            Err(error) if error.kind == ErrorKind::Stopped => return Err(error),
            Err(error) => {
                let reason = error.message.clone();
                first_error.get_or_insert(error);
                Err(reason)
            }
        };
        let required = archives.is_required(repository);
        origins.push(Origin { name: (*name).to_owned(), cluster: opened, required });
    }
    match first_error.filter(|_| origins.iter().all(|origin| origin.cluster.is_err())) {
        Some(error) => Err(error),
        None => Ok(origins),
    }
}
