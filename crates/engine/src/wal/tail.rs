//! The beginning of a segment that is not whole yet, from the pieces in the repository (docs/format.md section 16).

use crate::EngineError;
use pg_format::SegmentName;
use pg_wal::{Expected, scan_segment};
use repo::tail::{TailOf, TailPieces, list_tail, read_chain};
use repo::wal::WalFacts;

/// As often it is tried anew when pieces go while they are read: a larger one took their place, or the segment's object.
const TRIES: usize = 3;

/// What there is of a segment.
#[derive(Debug)]
pub(crate) struct Tail {
    /// As many bytes as a segment has: what follows the WAL is zeros, which is how PostgreSQL finds its end.
    pub(crate) segment: Vec<u8>,
    /// So many of them are WAL.
    pub(crate) filled: u64,
}

/// Reads what the pieces of a segment hold; none when there is nothing.
pub(crate) async fn read(cluster: &repo::Cluster, of: TailOf) -> Result<Option<Tail>, EngineError> {
    let (repository, system) = (cluster.repository(), of.system_id);
    let mut tries = 0;
    loop {
        let pieces = list_tail(&**repository.store(), cluster.name(), system, of.segment).await?;
        match read_listed(cluster, of, &pieces).await {
            Err(EngineError::Repo(error)) if error.is_not_found() && tries < TRIES => tries += 1,
            other => return other,
        }
    }
}

/// As [`read`], of pieces that were listed.
pub(crate) async fn read_listed(
    cluster: &repo::Cluster,
    of: TailOf,
    pieces: &TailPieces,
) -> Result<Option<Tail>, EngineError> {
    let repository = cluster.repository();
    let plain = read_chain(&**repository.store(), repository.keys(), of, pieces).await?;
    Ok(plain.map(|mut segment| {
        let filled = segment.len() as u64;
        segment.resize(of.size.bytes() as usize, 0);
        Tail { segment, filled }
    }))
}

/// What a tail says of itself, as a whole segment's object does.
pub(crate) fn facts(tail: &Tail, of: TailOf) -> Result<WalFacts, EngineError> {
    let bad = |reason: String| EngineError::Failed {
        reason: format!("the tail of segment {} cannot be read: {reason}", of.segment),
        hint: None,
    };
    let start = of.segment.start(of.size).map_err(|error| bad(error.to_string()))?;
    let expected = Expected {
        system_id: Some(of.system_id),
        start: Some(start),
        timeline: Some(of.segment.timeline),
        ..Expected::default()
    };
    let scan = scan_segment(&tail.segment, Some(&expected)).map_err(|error| bad(error.to_string()))?;
    let magic = scan.info.major.facts().wal_page_magic;
    Ok(WalFacts::of(&scan, of.segment.timeline, magic, &tail.segment))
}

/// The segments of a timeline of which there are tails, behind this one.
pub(crate) async fn later(
    cluster: &repo::Cluster,
    system: pg_format::SystemId,
    segment: SegmentName,
) -> Result<Option<SegmentName>, EngineError> {
    let store = cluster.repository().store();
    let tails = repo::tail::list_timeline_tails(&**store, cluster.name(), system, segment.timeline).await?;
    Ok(tails.into_keys().find(|other| *other > segment))
}
