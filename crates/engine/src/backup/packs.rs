//! Packs that are in the repository already, opened once and read from by many.

use crate::EngineError;
use crate::unfinished::packs_of;
use repo::chunk::{ChunkDecoder, ChunkRef};
use repo::map::FileMap;
use repo::pack::PackReader;
use repo::{Cluster, PackId, RepoError};
use std::collections::hash_map::Entry;
use std::collections::{HashMap, HashSet};
use std::sync::{Arc, Mutex, PoisonError};
use store::{ObjectPath, StoreError};
use tokio::sync::OnceCell;

type Opened = Arc<OnceCell<Arc<PackReader>>>;

/// The packs of a backup that is built on.
pub(super) struct OldPacks {
    cluster: Cluster,
    sizes: HashMap<PackId, u64>,
    opened: Mutex<HashMap<PackId, Opened>>,
}

impl OldPacks {
    pub(super) fn new(cluster: Cluster, sizes: HashMap<PackId, u64>) -> Self {
        Self { cluster, sizes, opened: Mutex::default() }
    }

    async fn reader(&self, pack: PackId) -> Result<Arc<PackReader>, RepoError> {
        let size = *self.sizes.get(&pack).ok_or_else(|| RepoError::Damaged {
            path: self.name(pack),
            reason: "a file map names it, the manifest does not".into(),
        })?;
        let opened = self.opened.lock().unwrap_or_else(PoisonError::into_inner).entry(pack).or_default().clone();
        let open = || async { Ok(Arc::new(self.cluster.open_pack(pack, size).await?)) };
        opened.get_or_try_init(open).await.cloned()
    }

    fn name(&self, pack: PackId) -> ObjectPath {
        self.cluster.name().pack(pack)
    }

    /// Reads the map of a file of `len` bytes.
    pub(super) async fn map(&self, pack: PackId, chunk: ChunkRef, len: u64) -> Result<FileMap, EngineError> {
        let stored = self.reader(pack).await?.read(chunk.offset, chunk.stored_len.into()).await?;
        let damaged = |reason: String| RepoError::Damaged { path: self.name(pack), reason };
        let mut plain = Vec::new();
        ChunkDecoder::default().decode(&stored, &chunk, &mut plain).map_err(|error| damaged(error.0))?;
        let map = FileMap::decode(&plain).map_err(|error| damaged(format!("file map: {}", error.0)))?;
        if map.len != len {
            return Err(damaged(format!("file map is of a file of {} bytes, not {len}", map.len)).into());
        }
        Ok(map)
    }
}

/// Checks that packs are there: those that are built on still, those just written already.
pub(super) async fn check_present(
    cluster: &Cluster,
    used: impl IntoIterator<Item = PackId>,
) -> Result<(), EngineError> {
    let store = cluster.repository().store();
    let mut listed: HashMap<repo::BackupId, HashSet<PackId>> = HashMap::new();
    for pack in used {
        let there = match listed.entry(pack.backup) {
            Entry::Occupied(there) => there.into_mut(),
            Entry::Vacant(unknown) => {
                let there = packs_of(cluster, pack.backup).await?;
                unknown.insert(there.into_iter().map(|(pack, _)| pack).collect())
            }
        };
        if !there.contains(&pack) {
            // A listing may be behind; the object itself is not.
            match store.head(&cluster.name().pack(pack)).await {
                Ok(_) => {}
                Err(error @ StoreError::NotFound { .. }) => {
                    return Err(EngineError::failed(
                        format!("a pack that this backup builds on is gone: {error}"),
                        "run `pgkeep verify` to see which backups it was needed for, and the backup again",
                    ));
                }
                Err(error) => return Err(RepoError::from(error).into()),
            }
        }
    }
    Ok(())
}
