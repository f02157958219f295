//! A server without an archive, a repository in memory, and restores that get nothing but the backup.

use super::archived::{Result, conninfo, context, facts_of, main_of, options, register};
use engine::backup::{self, BackupOptions, BackupReport, SourceOptions, Stopping};
use engine::restore::{
    self, ExistingFiles, RecoveryTarget, RestoreReport, RestoreRequest, TablespaceMapping, TargetAction,
    TimelineChoice, WalCheck,
};
use engine::{Context, EngineError};
use repo::Repository;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;
use store::{MemoryStore, Store};
use testkit::compare::{amcheck, checksums, dumps_are_equal};
use testkit::pg::{Cluster, StopMode};

pub(crate) struct Site {
    pub(crate) server: Cluster,
    pub(crate) memory: MemoryStore,
}

impl Site {
    pub(crate) async fn start(major: u32, settings: &[(&str, &str)]) -> Result<Self> {
        let builder = Cluster::builder(major).checksums(true).without_fsync();
        let server = settings.iter().fold(builder, |builder, (name, value)| builder.conf(name, value)).start()?;
        let memory = MemoryStore::new();
        let store: Arc<dyn Store> = Arc::new(memory.clone());
        let cluster = main_of(&Repository::create(store, None, "test", jiff::Timestamp::now()).await?);
        register(&cluster, &facts_of(&server).await?).await?;
        Ok(Self { server, memory })
    }

    pub(crate) async fn cluster(&self) -> Result<repo::Cluster> {
        Ok(main_of(&Repository::open(Arc::new(self.memory.clone()), None).await?))
    }

    pub(crate) fn offline(&self) -> BackupOptions {
        let data_directory = self.server.data_dir().to_owned();
        BackupOptions { source: offline_of(&data_directory, Stopping::Already), ..options() }
    }

    pub(crate) async fn backup(&self, options: &BackupOptions) -> std::result::Result<BackupReport, EngineError> {
        self.backup_with(&context(), options).await
    }

    pub(crate) async fn backup_with(
        &self,
        ctx: &Context,
        options: &BackupOptions,
    ) -> std::result::Result<BackupReport, EngineError> {
        let (cluster, conninfo) = (self.cluster().await.expect("opened"), conninfo(&self.server).expect("parsed"));
        backup::run(ctx, &cluster, &conninfo, options).await
    }

    /// A restore that has no WAL but the backup's own.
    pub(crate) fn request(&self, name: &str, target: RecoveryTarget) -> Result<RestoreRequest> {
        Ok(RestoreRequest {
            target_dir: self.server.make_dir("restored")?.join(name),
            backup: None,
            target,
            exclusive: false,
            timeline: TimelineChoice::Latest,
            action: TargetAction::Promote,
            tablespaces: Vec::new(),
            existing: ExistingFiles::Refuse,
            standby: false,
            archive: false,
            restore_command: "exit 126".into(),
            owner: None,
            wal_check: WalCheck::Whole,
            workers: 2,
            bin_dirs: vec![self.server.install().bin_dir().to_owned()],
        })
    }

    pub(crate) fn elsewhere(&self, space: &str, name: &str) -> Result<Vec<TablespaceMapping>> {
        Ok(vec![TablespaceMapping { from: self.oid_of(space)?, to: self.server.make_dir("restored")?.join(name) }])
    }

    /// By its link: a server that does not run gives no names.
    fn oid_of(&self, _space: &str) -> Result<String> {
        let entry = std::fs::read_dir(self.server.data_dir().join("pg_tblspc"))?.next();
        Ok(entry.expect("one tablespace")?.file_name().to_string_lossy().into_owned())
    }

    pub(crate) async fn restore(&self, request: &RestoreRequest) -> Result<RestoreReport> {
        let cluster = self.cluster().await?;
        let plan = restore::plan(&context(), &cluster, request).await?;
        Ok(restore::apply(&context(), &cluster, &plan).await?)
    }

    /// Starts what was restored, and waits until it takes writes.
    pub(crate) fn open(&self, dir: &Path) -> Result<Cluster> {
        let mut server = Cluster::adopt(dir, self.server.major())?;
        server.start_again()?;
        server.wait_for("SELECT pg_is_in_recovery()", "f", Duration::from_secs(60))?;
        Ok(server)
    }

    /// Restores the newest backup, with the one tablespace beside it, and starts it.
    pub(crate) async fn copy(&self, name: &str, target: RecoveryTarget) -> Result<Cluster> {
        let request = self.request(name, target)?;
        let tablespaces = self.elsewhere("fast", &format!("{name}-fast"))?;
        self.restore(&RestoreRequest { tablespaces, ..request.clone() }).await?;
        self.open(&request.target_dir)
    }

    /// The copy has what the server has, and is sound.
    pub(crate) fn is_equal_to(&self, mut copy: Cluster) -> Result {
        dumps_are_equal(&self.server, &copy)?;
        amcheck(&copy)?;
        copy.stop(StopMode::Fast)?;
        checksums(&copy)
    }

    /// Restores the newest backup, and compares it with the server. What is not logged is emptied before.
    pub(crate) async fn comes_up_equal(&self, name: &str, target: RecoveryTarget) -> Result {
        let copy = self.copy(name, target).await?;
        self.server.sql("TRUNCATE fleeting")?;
        self.is_equal_to(copy)
    }
}

/// The files of a server that is stopped so.
pub(crate) fn offline_of(data_directory: &Path, stopping: Stopping) -> SourceOptions {
    SourceOptions::Offline { data_directory: data_directory.to_owned(), config_file: None, stopping }
}

/// An error with what to do about it.
pub(crate) fn hint_of(error: &EngineError) -> String {
    match error {
        EngineError::Refused { hint, .. } | EngineError::Failed { hint, .. } | EngineError::NotFound { hint, .. } => {
            format!("{error} | {}", hint.as_deref().unwrap_or("no hint"))
        }
        other => other.to_string(),
    }
}
