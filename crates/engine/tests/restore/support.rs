//! What the restore tests share: requests, WAL for `restore_command`, and starting what was restored.

use super::archived::{Archived, Result, context};
use anyhow::Context as _;
use engine::restore::{
    self, ExistingFiles, RecoveryTarget, RestoreReport, RestoreRequest, TargetAction, TimelineChoice, WalCheck,
};
use repo::wal::{read_segment, read_wal_file};
use std::path::{Path, PathBuf};
use std::time::Duration;
use store::Store;
use testkit::pg::Cluster;

/// A request for a directory that does not exist yet, with all else as plain as can be.
pub(crate) fn request(archived: &Archived, name: &str, target: RecoveryTarget) -> Result<RestoreRequest> {
    Ok(RestoreRequest {
        target_dir: archived.server.make_dir("restored")?.join(name),
        backup: None,
        target,
        exclusive: false,
        timeline: TimelineChoice::Latest,
        action: TargetAction::Promote,
        tablespaces: Vec::new(),
        existing: ExistingFiles::Refuse,
        standby: false,
        archive: false,
        restore_command: format!("cp {}/%f %p", archived.server.home().join("wal").display()),
        owner: None,
        wal_check: WalCheck::Whole,
        workers: 2,
        bin_dirs: vec![archived.server.install().bin_dir().to_owned()],
    })
}

/// Plans and does it.
pub(crate) async fn restored(archived: &Archived, request: &RestoreRequest) -> Result<RestoreReport> {
    let cluster = archived.cluster().await?;
    let plan = restore::plan(&context(), &cluster, request).await?;
    assert!(!request.target_dir.join("PG_VERSION").exists(), "a plan writes nothing");
    Ok(restore::apply(&context(), &cluster, &plan).await?)
}

/// Why a plan is refused.
pub(crate) async fn refusal(archived: &Archived, request: &RestoreRequest) -> Result<String> {
    let before = request.target_dir.exists();
    let error = match restore::plan(&context(), &archived.cluster().await?, request).await {
        Ok(plan) => anyhow::bail!("planned with {}: {}", plan.backup, plan.why),
        Err(error) => error,
    };
    assert_eq!(request.target_dir.exists(), before, "nothing is made");
    let hint = match &error {
        engine::EngineError::Refused { hint, .. } | engine::EngineError::NotFound { hint, .. } => hint.clone(),
        other => anyhow::bail!("not refused, but failed: {other:?}"),
    };
    Ok(format!("{error} | {}", hint.context("every refusal says what to do")?))
}

/// Ends the segment and waits until it is in the repository.
pub(crate) async fn switch(archived: &Archived) -> Result<String> {
    let name = archived.server.switch_wal()?;
    wait_for_wal(archived, &name).await?;
    Ok(name)
}

/// Waits until a file of WAL is in the repository.
pub(crate) async fn wait_for_wal(archived: &Archived, name: &str) -> Result {
    for _ in 0..1500 {
        let objects = archived.memory.list_page(None, None, 100_000).await?;
        if objects.iter().any(|object| object.path.name() == name) {
            return Ok(());
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    anyhow::bail!("{name} did not reach the repository: {}", archived.server.log_tail())
}

/// Takes all WAL out of the repository to where `restore_command` looks for it.
pub(crate) async fn lay_out_wal(archived: &Archived) -> Result {
    let dir = archived.server.make_dir("wal")?;
    let cluster = archived.cluster().await?;
    let repository = cluster.repository();
    let store = repository.store();
    for object in store.list_page(Some(&cluster.name().wal_prefix()), None, 100_000).await? {
        let name = object.path.name();
        let bytes = if name.len() == 24 {
            read_segment(store.clone(), repository.keys(), &object.path).await?
        } else {
            read_wal_file(&**store, repository.keys(), &object.path).await?.to_vec()
        };
        std::fs::write(dir.join(name), bytes)?;
    }
    archived.server.user().own(&dir)
}

/// Starts a restored directory.
pub(crate) fn start(dir: &Path) -> Result<Cluster> {
    let mut server = Cluster::adopt(dir, 15)?;
    server.start_again()?;
    Ok(server)
}

/// Waits until recovery has ended.
pub(crate) fn wait_promoted(server: &Cluster) -> Result {
    server.wait_for("SELECT pg_is_in_recovery()", "f", Duration::from_secs(60))
}

pub(crate) fn mode_of(path: PathBuf) -> Result<u32> {
    use std::os::unix::fs::MetadataExt;
    Ok(std::fs::symlink_metadata(&path).with_context(|| path.display().to_string())?.mode() & 0o7777)
}
