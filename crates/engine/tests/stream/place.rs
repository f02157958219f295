//! A server that sends its files, a repository in memory, and what is restored from it.

use super::archived::{Archived, Result, conninfo, context, facts_of, main_of, options, register};
use engine::backup::{self, BackupOptions, BackupReport, SourceOptions, StreamCompression, StreamOptions};
use engine::restore::{
    self, ExistingFiles, RecoveryTarget, RestoreRequest, TablespaceMapping, TargetAction, TimelineChoice, WalCheck,
};
use engine::{Context, EngineError};
use pg_wire::{Conninfo, Surroundings};
use repo::wal::{read_segment, read_wal_file};
use repo::{BackupId, Repository};
use std::sync::Arc;
use std::time::Duration;
use store::{MemoryStore, Store};
use testkit::compare::{amcheck, checksums, compare_dirs, controldata, visibility_is_true, visibility_maps_are_sane};
use testkit::pg::{Cluster, ClusterBuilder, StopMode};

/// As the operator asks for it with nothing but `--source stream`.
pub(crate) fn stream() -> BackupOptions {
    stream_with(StreamCompression::Auto, None)
}

pub(crate) fn stream_with(compression: StreamCompression, max_rate_bytes: Option<u64>) -> BackupOptions {
    BackupOptions { source: SourceOptions::Stream(StreamOptions { compression, max_rate_bytes }), ..options() }
}

/// With an archive, or without one.
enum Server {
    Archived(Box<Archived>),
    Alone(Box<Cluster>),
}

pub(crate) struct Place {
    server: Server,
    pub(crate) memory: MemoryStore,
}

type Made = std::result::Result<BackupReport, EngineError>;

impl Place {
    pub(crate) fn of(archived: Archived) -> Self {
        let memory = archived.memory.clone();
        Self { server: Server::Archived(Box::new(archived)), memory }
    }

    pub(crate) async fn without_archive(builder: ClusterBuilder) -> Result<Self> {
        let server = builder.without_fsync().start()?;
        let memory = MemoryStore::new();
        let store: Arc<dyn Store> = Arc::new(memory.clone());
        let cluster = main_of(&Repository::create(store, None, "test", jiff::Timestamp::now()).await?);
        register(&cluster, &facts_of(&server).await?).await?;
        Ok(Self { server: Server::Alone(Box::new(server)), memory })
    }

    pub(crate) fn server(&self) -> &Cluster {
        match &self.server {
            Server::Archived(archived) => &archived.server,
            Server::Alone(server) => server,
        }
    }

    pub(crate) fn server_mut(&mut self) -> &mut Cluster {
        match &mut self.server {
            Server::Archived(archived) => &mut archived.server,
            Server::Alone(server) => server,
        }
    }

    fn archived(&self) -> &Archived {
        match &self.server {
            Server::Archived(archived) => archived,
            Server::Alone(_) => panic!("it has no archive"),
        }
    }

    pub(crate) async fn cluster(&self) -> Result<repo::Cluster> {
        Ok(main_of(&Repository::open(Arc::new(self.memory.clone()), None).await?))
    }

    pub(crate) async fn backup(&mut self, options: &BackupOptions) -> Made {
        self.backup_with(&context(), options).await
    }

    pub(crate) async fn backup_with(&mut self, ctx: &Context, options: &BackupOptions) -> Made {
        self.run(ctx, &conninfo(self.server()).expect("parsed"), options).await
    }

    pub(crate) async fn backup_of(&self, server: &Cluster, ctx: &Context, options: &BackupOptions) -> Made {
        self.run(ctx, &conninfo(server).expect("parsed"), options).await
    }

    pub(crate) async fn backup_as(&self, user: &str, options: &BackupOptions) -> Made {
        let conninfo = Conninfo { user: user.into(), ..conninfo(self.server()).expect("parsed") };
        self.run(&context(), &conninfo, options).await
    }

    pub(crate) async fn backup_over_tcp(&self, options: &BackupOptions) -> Made {
        let text = format!("host=127.0.0.1 port={} user=postgres dbname=postgres", self.server().port());
        let surroundings = Surroundings::from_vars(std::iter::empty::<(String, String)>());
        self.run(&context(), &Conninfo::parse(&text, &surroundings).expect("parsed"), options).await
    }

    async fn run(&self, ctx: &Context, conninfo: &Conninfo, options: &BackupOptions) -> Made {
        backup::run(ctx, &self.cluster().await.expect("opened"), conninfo, options).await
    }

    /// Stops the server cleanly; its last WAL is in the repository then, and where `restore_command` looks for it.
    pub(crate) async fn stop(&mut self) -> Result {
        self.server().sql("CHECKPOINT; SELECT pg_create_restore_point('end'); SELECT pg_switch_wal()")?;
        self.server_mut().stop(StopMode::Fast)?;
        self.archived().settled().await?;
        lay_out_wal_of(self.server(), &self.cluster().await?).await
    }

    /// Restores, starts, and waits until it takes writes.
    pub(crate) async fn restored(&self, name: &str, backup: BackupId, target: RecoveryTarget) -> Result<Cluster> {
        let mut copy = self.laid_out(name, backup, target, TargetAction::Promote).await?;
        copy.start_again()?;
        copy.wait_for("SELECT pg_is_in_recovery()", "f", Duration::from_secs(60))?;
        Ok(copy)
    }

    /// Restores what was there when the server was stopped, compares it with that page by page before anybody has asked it
    /// anything (a query prunes pages), and starts it then.
    pub(crate) async fn restored_and_compared(&self, name: &str, backup: BackupId) -> Result<Cluster> {
        let end = RecoveryTarget::RestorePoint("end".into());
        let mut copy = self.laid_out(name, backup, end, TargetAction::Shutdown).await?;
        // It ends by itself when it is there; whether that is after it was ready is its affair.
        copy.start_again().ok();
        for _ in 0..1500 {
            if !copy.is_running() {
                break;
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        anyhow::ensure!(copy.log().contains("recovery stopping at restore point"), "{}", copy.log_tail());
        let comparison = compare_dirs(self.server().data_dir(), copy.data_dir())?;
        comparison.require_equal().map_err(|error| error.context(format!("{name} of {}", copy.major())))?;
        anyhow::ensure!(comparison.pages > 1000, "{comparison:?}");
        visibility_maps_are_sane(copy.data_dir())?;
        if copy.major() > 14 && controldata(&copy, "Data page checksum version")? != "0" {
            // Of 14 there is none, and that of 15 does not know its tablespaces.
            checksums(&copy)?;
        }
        copy.set_option("recovery_target_action", "promote");
        copy.start_again()?;
        copy.wait_for("SELECT pg_is_in_recovery()", "f", Duration::from_secs(60))?;
        visibility_is_true(&copy, "postgres")?;
        amcheck(&copy)?;
        Ok(copy)
    }

    async fn laid_out(
        &self,
        name: &str,
        backup: BackupId,
        target: RecoveryTarget,
        action: TargetAction,
    ) -> Result<Cluster> {
        let cluster = self.cluster().await?;
        let facts = cluster.manifest_facts(backup).await?;
        let dir = self.server().make_dir("restored")?;
        let elsewhere = |oid: u32| TablespaceMapping { from: oid.to_string(), to: dir.join(format!("{name}-{oid}")) };
        let request = RestoreRequest {
            target_dir: dir.join(name),
            backup: Some(backup),
            target,
            exclusive: false,
            timeline: TimelineChoice::Current,
            action,
            tablespaces: facts.tablespaces.iter().map(|space| elsewhere(space.oid)).collect(),
            existing: ExistingFiles::Refuse,
            standby: false,
            archive: false,
            restore_command: match &self.server {
                Server::Archived(_) => format!("cp {}/%f %p", self.server().home().join("wal").display()),
                Server::Alone(_) => "exit 126".into(),
            },
            owner: None,
            wal_check: WalCheck::Whole,
            workers: 2,
            bin_dirs: vec![self.server().install().bin_dir().to_owned()],
        };
        let plan = restore::plan(&context(), &cluster, &request).await?;
        restore::apply(&context(), &cluster, &plan).await?;
        let mut copy = Cluster::adopt(&request.target_dir, self.server().major())?;
        copy.set_option("autovacuum", "off");
        Ok(copy)
    }

    /// Removes what was restored.
    pub(crate) fn remove(&self, name: &str) -> Result {
        let dir = self.server().make_dir("restored")?;
        for entry in std::fs::read_dir(dir)?.flatten() {
            if entry.file_name().to_string_lossy().starts_with(name) {
                std::fs::remove_dir_all(entry.path())?;
            }
        }
        Ok(())
    }

    /// Waits until what the server has handed over is in the repository.
    pub(crate) async fn archived_settled(&self) -> Result {
        self.archived().settled().await
    }

    pub(crate) async fn holds_what_the_server_has(&self, backup: BackupId) -> Result<u64> {
        self.archived().holds_what_the_server_has(backup).await
    }

    pub(crate) async fn only_finished_backups(&self) -> Result {
        self.archived().only_finished_backups().await
    }
}

/// Takes all WAL out of the repository to where `restore_command` looks for it.
async fn lay_out_wal_of(server: &Cluster, cluster: &repo::Cluster) -> Result {
    let dir = server.make_dir("wal")?;
    let (repository, store) = (cluster.repository(), cluster.repository().store());
    for object in store.list_page(Some(&cluster.name().wal_prefix()), None, 100_000).await? {
        let name = object.path.name();
        if name.len() != 24 && !name.ends_with(".history") {
            continue;
        }
        let bytes = if name.len() == 24 {
            read_segment(store.clone(), repository.keys(), &object.path).await?
        } else {
            read_wal_file(&**store, repository.keys(), &object.path).await?.to_vec()
        };
        std::fs::write(dir.join(name), bytes)?;
    }
    server.user().own(&dir)
}
