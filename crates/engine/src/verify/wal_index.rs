//! Index objects of WAL: rolled up over many segments, or made later for one.
//!
//! Nothing is lost with one of them: readers take the segments' own indexes, and `wal index` writes it anew. But what says
//! something else than its segments would make a backup leave out changed pages, so it is damage.

use super::objects::Inventory;
use super::{FindingKind, Findings, Severity, VerifyOptions};
use crate::wal::WalArchive;
use crate::wal::archive::segno_of;
use crate::{Context, EngineError, Unit};
use futures::{StreamExt, stream};
use pg_format::{SegmentName, XLogSegNo};
use repo::RepoError;
use repo::wal::WalFacts;
use repo::wal_index::{IndexObject, IndexPart};
use store::ObjectPath;

/// What becomes of a damaged one.
const ANEW: &str = "nothing is lost: the segments' own indexes are read instead; remove it, and `pgkeep wal index \
                    --rebuild` writes it anew";

/// Looks at each index object: can it be read, is it of the segments that its name says, and are they there?
pub(super) async fn look_at_indexes(
    ctx: &Context,
    archive: &WalArchive,
    inventory: &Inventory,
    options: &VerifyOptions,
    findings: &mut Findings,
) -> Result<(), EngineError> {
    let objects = inventory.wal_index.get(&archive.system_id()).cloned().unwrap_or_default();
    ctx.progress.phase("looking at WAL indexes", Some(objects.len() as u64), Unit::Items);
    let deep = options.deep;
    let look = |(path, first, count): (ObjectPath, SegmentName, u64)| async move {
        let looked = look_at_one(archive, &path, first, count, deep).await;
        (path, first, count, looked)
    };
    let mut looks = stream::iter(objects).map(look).buffered(options.workers.clamp(1, 64));
    while let Some((path, first, count, looked)) = ctx.or_cancel(looks.next()).await? {
        ctx.progress.advance(1);
        findings.objects += 1;
        match looked {
            Ok(bytes) => findings.bytes += bytes,
            Err(error) => {
                findings.object(Severity::Damage, &path, error)?.effect = Some(ANEW.into());
                continue;
            }
        }
        let Ok(segno) = segno_of(first, archive.segment_size()) else { continue };
        let left = (segno.0..segno.0.saturating_add(count)).filter(|n| archive.has(first.timeline, XLogSegNo(*n)));
        if left.count() == 0 {
            let what = format!("{path}: the index of WAL that is not there");
            let finding = findings.add(Severity::Note, FindingKind::Stray, &path, what);
            finding.effect = Some("only room is lost; `pgkeep expire` removes it".into());
        }
    }
    Ok(())
}

/// Reads one; how many bytes it has.
async fn look_at_one(
    archive: &WalArchive,
    path: &ObjectPath,
    first: SegmentName,
    count: u64,
    deep: bool,
) -> Result<u64, RepoError> {
    let damaged = |reason: &str| RepoError::Damaged { path: path.clone(), reason: reason.to_owned() };
    let repository = archive.cluster().repository();
    let object = IndexObject::open(repository.store().clone(), repository.keys(), path.clone()).await?;
    let facts = object.facts().await?;
    object.fragments().await?;
    let start = first.start(archive.segment_size()).map_err(|_| damaged("no segment has the name in its name"))?;
    let size = archive.segment_size().bytes();
    let right = |(number, facts): (usize, &WalFacts)| {
        facts.system_id == archive.system_id()
            && facts.timeline == first.timeline
            && facts.first_lsn.0 == start.0 + number as u64 * size
    };
    if facts.len() as u64 != count || !facts.iter().enumerate().all(right) {
        return Err(damaged("is not of the segments that its name says"));
    }
    // Its seals are checked when it is read; that it says what its segments say, when each of them is read, too.
    object.index(IndexPart::All).await?;
    if deep {
        for facts in &facts {
            match archive.facts(first.timeline, facts.first_lsn.segment_no(archive.segment_size())).await {
                Ok(own) if own != *facts => return Err(damaged("says something else than its segments")),
                // A segment that is gone or damaged is told as such.
                _ => {}
            }
        }
    }
    Ok(object.size())
}
