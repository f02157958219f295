//! Whether a segment that is absent should be there.

use crate::EngineError;
use crate::wal::archive::segno_of;
use crate::wal::tail;
use pg_format::{SegmentName, SystemId, TimelineHistory, WalFileName, WalSegmentSize};
use repo::RepoError;
use repo::wal::read_wal_file;

/// Objects looked at in one request; between two segments there are few others.
const PAGE: usize = 100;

/// What shows that the segment was written once: a later one of its timeline, or a timeline that grew out of its
/// timeline in a later segment. `None` when it may simply not have been written yet.
pub(super) async fn proof_of_hole(
    cluster: &repo::Cluster,
    system: SystemId,
    name: SegmentName,
    size: WalSegmentSize,
) -> Result<Option<String>, EngineError> {
    let store = cluster.repository().store();
    let prefix = cluster.name().wal_timeline_prefix(system, name.timeline);
    let mut after = cluster.name().wal_file(system, name.timeline, &name.to_string())?;
    loop {
        let page = store.list_page(Some(&prefix), Some(&after), PAGE).await.map_err(RepoError::from)?;
        let later = page.iter().find_map(|object| match object.path.name().parse() {
            Ok(WalFileName::Segment(later)) if later > name => Some(later),
            _ => None,
        });
        if let Some(later) = later {
            return Ok(Some(format!("segment {later} is there")));
        }
        match page.last() {
            Some(last) if page.len() == PAGE => after = last.path.clone(),
            _ => break,
        }
    }
    if let Some(later) = tail::later(cluster, system, name).await? {
        return Ok(Some(format!("there is a part of segment {later}")));
    }
    let segno = segno_of(name, size)?;
    let level = store.list_level(Some(&cluster.name().wal_system_prefix(system))).await.map_err(RepoError::from)?;
    for object in level.objects {
        let Ok(WalFileName::History(timeline)) = object.path.name().parse() else { continue };
        if timeline <= name.timeline {
            continue;
        }
        let bytes = read_wal_file(&**store, cluster.repository().keys(), &object.path).await?;
        // One that cannot be parsed shows nothing.
        let Ok(history) = TimelineHistory::parse(timeline, &String::from_utf8_lossy(&bytes)) else { continue };
        if let Some(left) = history.switch_point(name.timeline).filter(|lsn| lsn.segment_no(size) > segno) {
            return Ok(Some(format!("timeline {timeline} left timeline {} only at {left}", name.timeline)));
        }
    }
    Ok(None)
}
