//! What backups that never came to be left in the repository, and its removal.

use crate::{Context, EngineError};
use repo::{BackupId, Cluster, PackId, RepoError};
use std::collections::HashSet;

/// The packs of a backup with their sizes.
pub(crate) async fn packs_of(cluster: &Cluster, backup: BackupId) -> Result<Vec<(PackId, u64)>, EngineError> {
    const PAGE: usize = 1000;
    let prefix = cluster.name().packs_prefix();
    let prefix = prefix.join(&backup.to_string()).map_err(|reason| EngineError::Failed { reason, hint: None })?;
    let store = cluster.repository().store();
    let (mut packs, mut after) = (Vec::new(), None);
    loop {
        let page = store.list_page(Some(&prefix), after.as_ref(), PAGE).await.map_err(RepoError::from)?;
        let number = |name: &str| name.parse().ok();
        packs.extend(
            page.iter()
                .filter_map(|object| Some((PackId { backup, number: number(object.path.name())? }, object.size))),
        );
        if page.len() < PAGE {
            return Ok(packs);
        }
        after = page.last().map(|object| object.path.clone());
    }
}

/// Removes the packs of a backup that has no manifest, all but the `used` ones, and then its intent.
pub(crate) async fn remove(cluster: &Cluster, backup: BackupId, used: &HashSet<PackId>) -> Result<(), EngineError> {
    for (pack, _) in packs_of(cluster, backup).await? {
        if !used.contains(&pack) {
            let object = cluster.name().pack(pack);
            cluster.repository().store().delete(&object).await.map_err(RepoError::from)?;
        }
    }
    Ok(cluster.delete_intent(backup).await?)
}

/// Removes what broken-off backups left and no finished backup uses, and intents that outlived their backup. For the end
/// of the backup `current`, which has taken from them what it could.
pub(crate) async fn remove_all(ctx: &Context, cluster: &Cluster, current: BackupId) -> Result<(), EngineError> {
    let unfinished: Vec<BackupId> =
        cluster.unfinished().await?.into_iter().filter(|backup| *backup != current).collect();
    let finished = cluster.backups().await?;
    if let Some(&oldest) = unfinished.iter().min() {
        let mut used = HashSet::new();
        for &id in finished.iter().filter(|id| **id > oldest) {
            match cluster.open_manifest(id).await {
                Ok(manifest) => used.extend(manifest.packs().iter().map(|pack| pack.id)),
                Err(error) if error.is_not_found() => {}
                Err(error) => return Err(error.into()),
            }
        }
        for backup in unfinished {
            ctx.check()?;
            remove(cluster, backup, &used).await?;
        }
    }
    for backup in cluster.intents().await?.into_iter().filter(|backup| *backup != current) {
        // What has a manifest needs none.
        if finished.contains(&backup) {
            cluster.delete_intent(backup).await?;
        }
    }
    Ok(())
}
