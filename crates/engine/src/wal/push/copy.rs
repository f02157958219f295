//! A WAL file from one repository into another.

use super::pusher::other_content;
use crate::EngineError;
use pg_format::{SystemId, WalFileName};
use repo::wal::{WalEncoder, WalObject, decode_segment, put_wal_file, read_wal_file};
use repo::wal_index::IndexPart;
use repo::{Compression, RepoError};
use store::{Created, ObjectPath};

/// The largest segment object that is read.
const SEGMENT_OBJECT_MAX: u64 = (1 << 30) + (64 << 20);

/// Where a WAL file lies in a repository.
pub(super) fn path_of(cluster: &repo::Cluster, system: SystemId, name: WalFileName) -> Result<ObjectPath, EngineError> {
    Ok(match name {
        WalFileName::History(timeline) => cluster.name().history(system, timeline),
        other => cluster.name().wal_file(system, other.timeline(), &other.to_string())?,
    })
}

/// Copies a file: read and checked, sealed with the other repository's key. It is an error when that has other content.
pub(super) async fn copy_file(
    from: &repo::Cluster,
    to: &repo::Cluster,
    compression: Compression,
    system: SystemId,
    name: WalFileName,
) -> Result<Created, EngineError> {
    let (source, target) = (from.repository(), to.repository());
    let (path, there) = (path_of(from, system, name)?, path_of(to, system, name)?);
    if matches!(name, WalFileName::History(_) | WalFileName::BackupHistory(..)) {
        let content = read_wal_file(&**source.store(), source.keys(), &path).await?;
        return put_wal_file(&**target.store(), target.keys(), &there, &content).await.map_err(other_content);
    }
    let object = WalObject::open_for_index(source.store().clone(), source.keys(), path.clone()).await?;
    let (facts, fragments) = (object.facts().await?, object.fragments().await?);
    // Without an index it is WAL all the same.
    let index = object.index(IndexPart::All).await.ok().flatten();
    let index = index.and_then(|index| repo::wal_index::encode(&index).ok());
    let sealed = source.store().get(&path, SEGMENT_OBJECT_MAX).await.map_err(RepoError::from)?;
    let (keys, other_keys) = (source.keys().clone(), target.keys().clone());
    let (hash, at) = (facts.plain_hash.clone(), there.clone());
    let encode = tokio::task::spawn_blocking(move || {
        let plain = decode_segment(&keys, &path, &sealed)?;
        let mut encoder = WalEncoder::new(compression);
        encoder.encode_indexed(&other_keys, &at, &plain, &facts, &fragments, index.as_deref())
    });
    let encoded = encode
        .await
        .map_err(|error| EngineError::Failed { reason: format!("a worker ended: {error}"), hint: None })??;
    let created = target.store().put(&there, encoded).await.map_err(RepoError::from)?;
    if created == Created::Exists {
        let object = WalObject::open(target.store().clone(), target.keys(), there.clone()).await?;
        if object.facts().await?.plain_hash != hash {
            return Err(other_content(RepoError::OtherContent { path: there }));
        }
    }
    Ok(created)
}
