//! The index of archived WAL: read in order, rolled up over many segments, made where it is missing.
//!
//! What an index holds is in [`pg_wal::index`], its bytes in `docs/format.md` section 15. Each segment's own index
//! speaks of the records that lie whole in it; [`border`] joins the others.

mod border;
mod catalogue;
mod maps;
mod rebuild;
mod rollup;

pub use catalogue::IndexCatalogue;
pub(crate) use maps::{MapReader, RELMAP_MAGIC, may_have_map};
pub(crate) use rebuild::{Moved, catalogs_of};
pub use rebuild::{RebuildReport, rebuild};
pub(crate) use rollup::roll_up_after;
pub use rollup::{RollUpReport, roll_up};

use crate::wal::WalArchive;
use crate::wal::archive::segno_of;
use crate::{Context, EngineError};
use border::Border;
use futures::{StreamExt, stream};
use pg_format::{SegmentName, SystemId, WalSegmentSize};
use pg_wal::{Expected, IndexOptions, PgMajor, WalIndex, index_segment};
use repo::RepoError;
use repo::wal::{Fragments, WalFacts, WalObject};
use repo::wal_index::{IndexObject, IndexPart};
use std::sync::Arc;

/// Objects read at the same time. Each takes some megabytes.
const READS_AT_ONCE: usize = 8;
/// The same with transactions, which may be a million in one object, a hundred bytes each.
const HISTORIES_AT_ONCE: usize = 3;

/// The index of some segments that follow each other on one timeline.
#[derive(Debug, Clone)]
pub struct IndexedRun {
    /// The first one.
    pub first: SegmentName,
    /// How many.
    pub count: u64,
    /// Their facts, in order.
    pub facts: Vec<WalFacts>,
    /// The fragments at the beginning of the first and at the end of the last one.
    pub fragments: Fragments,
    /// What they changed.
    pub index: WalIndex,
}

/// A segment of which nothing is known.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Hole {
    /// Which.
    pub segment: SegmentName,
    /// Why.
    pub reason: String,
}

/// What is read of an archive in order.
#[derive(Debug, Clone)]
pub enum Indexed {
    /// Segments, one or more.
    Run(Box<IndexedRun>),
    /// A record that crossed the border before what comes next.
    Joined(Box<WalIndex>),
    /// A segment that is missing, damaged, or has no index.
    Hole(Hole),
}

/// Reads the indexes of these segments in their order, rolled-up ones where they cover what is asked for whole.
///
/// `each` gets them in the order of the WAL: of a segment, first the record that ends in its head, then the records that
/// lie whole in it.
///
/// # Errors
/// When the store cannot be asked, or `each` says so. What is missing or damaged is a [`Hole`].
pub async fn read(
    ctx: &Context,
    archive: &WalArchive,
    segments: &[SegmentName],
    part: IndexPart,
    mut each: impl FnMut(Indexed) -> Result<(), EngineError>,
) -> Result<(), EngineError> {
    let major = major_of(archive).await?;
    let catalogue = ctx.or_cancel(IndexCatalogue::load(archive)).await??;
    let steps = catalogue.steps(segments, archive.segment_size())?;
    // Unpacking takes longer than fetching: each in a task of its own.
    let shared = Arc::new((archive.clone(), catalogue));
    let (archive, catalogue) = (&shared.0, &shared.1);
    let mut reads = stream::iter(steps)
        .map(|(first, count)| {
            let shared = shared.clone();
            let step = tokio::spawn(async move { read_step(&shared.0, &shared.1, first, count, part).await });
            async move { (first, count, step.await) }
        })
        .buffered(if part == IndexPart::Changes { READS_AT_ONCE } else { HISTORIES_AT_ONCE });
    let mut border = Border::new(major);
    while let Some((first, count, found)) = ctx.or_cancel(reads.next()).await? {
        let found = found.map_err(|error| EngineError::Failed {
            reason: format!("reading the index of {first} ended unexpectedly: {error}"),
            hint: None,
        })?;
        let runs = match found? {
            // What came before says where catalogs lie.
            _ if archive.is_tail(first) => vec![read_tail(ctx, archive, first, part, border.moved()).await?],
            Some(runs) => runs,
            // The rolled-up one cannot be read: the segments say the same.
            None => {
                let mut runs = Vec::new();
                for name in names(archive, first, count)? {
                    runs.push(read_one(archive, catalogue, name, part).await?);
                }
                runs
            }
        };
        for run in runs {
            match run {
                Ok(run) => {
                    if let Some(mut joined) = border.enter(&run)? {
                        keep_only(&mut joined, part);
                        each(Indexed::Joined(Box::new(joined)))?;
                    }
                    each(Indexed::Run(Box::new(run)))?;
                }
                Err(hole) => {
                    border.lose();
                    each(Indexed::Hole(hole))?;
                }
            }
        }
    }
    Ok(())
}

type Read = Result<IndexedRun, Hole>;

/// Reads a rolled-up index, or a segment's; `None` when a rolled-up one is damaged or gone.
async fn read_step(
    archive: &WalArchive,
    catalogue: &IndexCatalogue,
    first: SegmentName,
    count: u64,
    part: IndexPart,
) -> Result<Option<Vec<Read>>, EngineError> {
    if archive.is_tail(first) {
        return Ok(None);
    }
    if count == 1 {
        return Ok(Some(vec![read_one(archive, catalogue, first, part).await?]));
    }
    match read_object(archive, first, count, part).await {
        Ok(run) => Ok(Some(vec![Ok(run)])),
        Err(error) if error.is_not_found() || error.is_damage() => Ok(None),
        Err(error) => Err(error.into()),
    }
}

/// Reads an index object.
async fn read_object(
    archive: &WalArchive,
    first: SegmentName,
    count: u64,
    part: IndexPart,
) -> Result<IndexedRun, RepoError> {
    read_index_object(archive.cluster(), archive.system_id(), archive.segment_size(), first, count, part).await
}

/// Reads an index object; it is damaged when it is not of the segments that its name says.
pub(crate) async fn read_index_object(
    cluster: &repo::Cluster,
    system: SystemId,
    size: WalSegmentSize,
    first: SegmentName,
    count: u64,
    part: IndexPart,
) -> Result<IndexedRun, RepoError> {
    let repository = cluster.repository();
    let path = cluster.name().wal_index(system, first, count);
    let object = IndexObject::open(repository.store().clone(), repository.keys(), path.clone()).await?;
    let facts = object.facts().await?;
    let right = facts.len() as u64 == count
        && facts.iter().all(|facts| facts.system_id == system && facts.timeline == first.timeline)
        && facts.windows(2).all(|pair| pair[0].first_lsn.0 + pair[0].segment_size == pair[1].first_lsn.0)
        && first.start(size).is_ok_and(|start| facts[0].first_lsn == start);
    if !right {
        let reason = "it is not of the segments that its name says".into();
        return Err(RepoError::Damaged { path, reason });
    }
    Ok(IndexedRun { first, count, facts, fragments: object.fragments().await?, index: object.index(part).await? })
}

/// Reads the index of one segment, its own or the one made later.
async fn read_one(
    archive: &WalArchive,
    catalogue: &IndexCatalogue,
    name: SegmentName,
    part: IndexPart,
) -> Result<Read, EngineError> {
    let hole = |reason: String| Ok(Err(Hole { segment: name, reason }));
    let segno = segno_of(name, archive.segment_size())?;
    if !archive.has(name.timeline, segno) {
        return hole("it is not in the repository".into());
    }
    let read = if catalogue.has(name.timeline, segno, 1) {
        read_object(archive, name, 1, part).await.map(Some)
    } else {
        read_own(archive.cluster(), archive.system_id(), name, part).await
    };
    match read {
        Ok(Some(run)) => Ok(Ok(run)),
        Ok(None) => hole("it has no index; `pgkeep wal index --rebuild` makes it".into()),
        Err(error) if error.is_damage() || error.is_not_found() => hole(error.to_string()),
        Err(error) => Err(error.into()),
    }
}

/// Reads the index in a segment's own object; `None` when it has none.
async fn read_own(
    cluster: &repo::Cluster,
    system: SystemId,
    name: SegmentName,
    part: IndexPart,
) -> Result<Option<IndexedRun>, RepoError> {
    let repository = cluster.repository();
    let path = cluster.name().wal_file(system, name.timeline, &name.to_string())?;
    let object = WalObject::open_for_index(repository.store().clone(), repository.keys(), path).await?;
    let Some(index) = object.index(part).await? else { return Ok(None) };
    let (facts, fragments) = (vec![object.facts().await?], object.fragments().await?);
    Ok(Some(IndexedRun { first: name, count: 1, facts, fragments, index }))
}

/// Makes the index of a segment that is not whole yet, as far as it goes. `moved` are the catalogs that were rewritten in
/// what was read before it.
async fn read_tail(
    ctx: &Context,
    archive: &WalArchive,
    name: SegmentName,
    part: IndexPart,
    moved: &Moved,
) -> Result<Read, EngineError> {
    let hole = |reason: String| Ok(Err(Hole { segment: name, reason }));
    let plain = match archive.read_plain(name).await {
        Ok(plain) => plain,
        Err(EngineError::Repo(error)) if error.is_damage() || error.is_not_found() => return hole(error.to_string()),
        Err(error) => return Err(error),
    };
    let expected = Expected {
        system_id: Some(archive.system_id()),
        timeline: Some(name.timeline),
        start: name.start(archive.segment_size()).ok(),
        ..Expected::default()
    };
    let mut moved_catalogs = match ctx.or_cancel(archive.cluster().backups()).await??.into_iter().max() {
        Some(newest) => catalogs_of(ctx, archive.cluster(), newest).await?,
        None => Moved::new(),
    };
    moved_catalogs.extend(moved);
    let options = IndexOptions { moved_catalogs, ..IndexOptions::usual() };
    let (mut scan, index) = match index_segment(&plain, Some(&expected), &options) {
        Ok(indexed) => indexed,
        Err(error) => return hole(error.to_string()),
    };
    let magic = scan.info.major.facts().wal_page_magic;
    let facts = vec![WalFacts::of(&scan, name.timeline, magic, &plain)];
    let fragments = Fragments::take(&mut scan);
    match index {
        Ok(mut index) => {
            keep_only(&mut index, part);
            Ok(Ok(IndexedRun { first: name, count: 1, facts, fragments, index }))
        }
        Err(error) => hole(error.to_string()),
    }
}

/// Leaves out what is not asked for.
fn keep_only(index: &mut WalIndex, part: IndexPart) {
    match part {
        IndexPart::Changes => (index.transactions, index.catalog, index.images) = Default::default(),
        IndexPart::History => index.changes = Default::default(),
        IndexPart::All => {}
    }
}

/// The names of segments that follow each other.
fn names(archive: &WalArchive, first: SegmentName, count: u64) -> Result<Vec<SegmentName>, EngineError> {
    let segno = segno_of(first, archive.segment_size())?.0;
    (segno..segno.saturating_add(count))
        .map(|segno| archive.segment_name(first.timeline, pg_format::XLogSegNo(segno)))
        .collect()
}

/// The version that wrote an archive.
pub(crate) async fn major_of(archive: &WalArchive) -> Result<PgMajor, EngineError> {
    let facts = archive.cluster().known_facts().await?;
    let entry = facts.systems.iter().find(|entry| entry.system_id == archive.system_id());
    let number = entry.map_or(0, |entry| entry.pg_major);
    PgMajor::from_number(number).map_err(|error| EngineError::Failed { reason: error.to_string(), hint: None })
}
