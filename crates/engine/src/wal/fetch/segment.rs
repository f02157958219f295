//! One file out of one repository, checked.

use super::{Wanted, hole};
use crate::EngineError;
use crate::wal::archive::segment_size_of;
use crate::wal::tail;
use pg_format::{SegmentName, WalFileName};
use repo::RepoError;
use repo::tail::TailOf;
use repo::wal::{decode_segment, read_wal_file};
use std::path::Path;
use store::ObjectPath;

/// A segment's object is at most so much larger than the segment.
const OVERHEAD_BYTES_MAX: u64 = 64 << 20;

/// A file that was found.
pub(super) struct Found {
    /// Its bytes.
    pub(super) content: Vec<u8>,
    /// It is the beginning of a segment that is not whole: so many bytes, and zeros after them.
    pub(super) tail: Option<u64>,
}

/// A file's content; `None` when it is known not to be in this repository, and nothing shows that it should be.
pub(super) async fn find(
    cluster: &repo::Cluster,
    target: Option<Wanted>,
    name: WalFileName,
    dest: &Path,
) -> Result<Option<Found>, EngineError> {
    let wanted = match target {
        Some(wanted) => wanted,
        None => present_system(cluster).await?,
    };
    let found = match name {
        WalFileName::Segment(segment) => fetch_segment(cluster, wanted, segment, &segment.to_string()).await?,
        WalFileName::Partial(segment) => fetch_segment(cluster, wanted, segment, &name.to_string()).await?,
        WalFileName::History(timeline) => fetch_file(cluster, cluster.name().history(wanted.system, timeline)).await?,
        WalFileName::BackupHistory(segment, _) => {
            fetch_file(cluster, cluster.name().wal_file(wanted.system, segment.timeline, &name.to_string())?).await?
        }
    };
    if let Some(content) = found {
        return Ok(Some(Found { content, tail: None }));
    }
    // "Absent" ends a recovery: it is said only by the right repository, about the right cluster.
    let facts = cluster.known_facts().await?;
    if !facts.systems.iter().any(|entry| entry.system_id == wanted.system) {
        return Err(EngineError::refused(
            format!(
                "{}: the data directory is of system identifier {}, which is not one of cluster {}",
                dest.display(),
                wanted.system,
                cluster.name()
            ),
            "correct restore_command: it names another cluster or repository",
        ));
    }
    let WalFileName::Segment(segment) = name else { return Ok(None) };
    let of = TailOf { system_id: wanted.system, segment, size: wanted.size };
    let tail = tail::read(cluster, of).await?;
    if let Some(tail) = &tail {
        check_plain(&tail.segment, tail.segment.len() as u64, segment, wanted)?;
    }
    let whole = |content| Found { content, tail: None };
    if let Some(tail) = tail.as_ref().filter(|tail| tail.filled == wanted.size.bytes()) {
        // All of it, in pieces.
        return Ok(Some(whole(tail.segment.clone())));
    }
    let proof = hole::proof_of_hole(cluster, wanted.system, segment, wanted.size).await?;
    if tail.is_none() || proof.is_some() {
        // It may have come since it was asked for, and with it what is taken for the proof; and pieces go when it comes.
        let found = fetch_segment(cluster, wanted, segment, &segment.to_string()).await?;
        if found.is_some() {
            return Ok(found.map(whole));
        }
    }
    match proof {
        Some(proof) => Err(EngineError::failed(
            format!("segment {segment} is missing in the archive of cluster {}, but {proof}", cluster.name()),
            "push it if a server still has it in pg_wal; else recover to a point before it, or from a later backup",
        )),
        None => Ok(tail.map(|tail| Found { content: tail.segment, tail: Some(tail.filled) })),
    }
}

/// The cluster's present system, for a target whose own is not known.
pub(super) async fn present_system(cluster: &repo::Cluster) -> Result<Wanted, EngineError> {
    let facts = cluster.known_facts().await?;
    let entry = facts.current().ok_or_else(|| {
        EngineError::refused(
            format!("cluster {} has no system identifier in the repository", cluster.name()),
            format!("run `pgkeep init {}`", cluster.name()),
        )
    })?;
    Ok(Wanted { system: entry.system_id, size: segment_size_of(entry)? })
}

/// A segment's plain bytes, checked; `None` when it is known to be absent.
pub(super) async fn fetch_segment(
    cluster: &repo::Cluster,
    wanted: Wanted,
    segment: SegmentName,
    file: &str,
) -> Result<Option<Vec<u8>>, EngineError> {
    let path = cluster.name().wal_file(wanted.system, segment.timeline, file)?;
    let repository = cluster.repository();
    let object = match repository.store().get(&path, wanted.size.bytes() + OVERHEAD_BYTES_MAX).await {
        Err(error) if error.is_not_found() => return Ok(None),
        other => other.map_err(RepoError::from)?,
    };
    let keys = repository.keys().clone();
    let decode = tokio::task::spawn_blocking(move || decode_segment(&keys, &path, &object));
    let plain = decode
        .await
        .map_err(|error| EngineError::Failed { reason: format!("a worker ended: {error}"), hint: None })??;
    if file == segment.to_string() {
        check_plain(&plain, plain.len() as u64, segment, wanted)?;
    }
    Ok(Some(plain))
}

/// Whether a segment of `len` bytes that begins with these is what it should be. One whose first page cannot be read was
/// archived that way.
pub(super) fn check_plain(plain: &[u8], len: u64, name: SegmentName, wanted: Wanted) -> Result<(), EngineError> {
    let bad =
        |what: String| EngineError::failed(format!("segment {name} in the repository {what}"), "run `pgkeep verify`");
    if len != wanted.size.bytes() {
        return Err(bad(format!("has {len} bytes, {} are expected", wanted.size.bytes())));
    }
    let Ok(info) = pg_wal::peek_segment(plain) else { return Ok(()) };
    if info.system_id != wanted.system {
        return Err(bad(format!("is of system identifier {}, not {}", info.system_id, wanted.system)));
    }
    if name.start(wanted.size).is_ok_and(|start| start != info.start) {
        return Err(bad(format!("begins at {}", info.start)));
    }
    Ok(())
}

async fn fetch_file(cluster: &repo::Cluster, path: ObjectPath) -> Result<Option<Vec<u8>>, EngineError> {
    let repository = cluster.repository();
    match read_wal_file(&**repository.store(), repository.keys(), &path).await {
        Ok(content) => Ok(Some(content.to_vec())),
        Err(error) if error.is_not_found() => Ok(None),
        Err(error) => Err(error.into()),
    }
}
