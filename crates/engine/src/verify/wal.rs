//! The WAL that backups need: is it there without a gap, and can it be read?

use super::backups::BackupsLook;
use super::objects::Inventory;
use super::wal_index;
use super::{Backups, FindingKind, Findings, Severity, VerifyOptions};
use crate::text;
use crate::wal::archive::{SegmentRange, WalArchive};
use crate::wal::tail;
use crate::{Context, EngineError, Unit};
use futures::{StreamExt, stream};
use jiff::Timestamp;
use pg_format::{Lsn, SegmentName, SystemId, Timeline, WalFileName, WalSegmentSize, XLogSegNo};
use repo::RepoError;
use repo::manifest::ManifestFacts;
use repo::tail::{TailOf, TailPieces, list_tail, list_tails};
use repo::wal::{WalFacts, WalObject, decode_segment, plain_hash, read_wal_file};
use std::collections::BTreeSet;
use store::ObjectPath;

/// So many segments before a gap are looked at for the last transaction.
const LOOK_BACK_MAX: u64 = 16;
/// The largest segment object that is read.
const SEGMENT_OBJECT_MAX: u64 = (1 << 30) + (64 << 20);

/// Looks at the WAL of each system identifier that the backups or the archive have.
pub(super) async fn look_at_wal(
    ctx: &Context,
    cluster: &repo::Cluster,
    inventory: &Inventory,
    look: &mut BackupsLook,
    options: &VerifyOptions,
    findings: &mut Findings,
) -> Result<(), EngineError> {
    let catalogue = match cluster.facts().await {
        Ok(facts) => facts,
        // That it is damaged is noted already; the manifests know what is needed here.
        Err(error) if error.is_damage() => None,
        Err(error) => return Err(error.into()),
    };
    let mut systems: BTreeSet<SystemId> = inventory.wal.keys().copied().collect();
    systems.extend(look.backups.iter().filter_map(|backup| backup.facts.as_ref()).map(|facts| facts.system_id));
    for system in systems {
        let from_backup = look.backups.iter().filter_map(|backup| backup.facts.as_ref());
        let sizes = from_backup.filter(|facts| facts.system_id == system).map(|facts| facts.wal_segment_size);
        let entry = catalogue.as_ref().and_then(|facts| facts.systems.iter().find(|entry| entry.system_id == system));
        let size = entry.map(|entry| entry.wal_segment_size).or_else(|| sizes.into_iter().next());
        let Some(size) = size.and_then(|size| u32::try_from(size).ok()).and_then(|size| WalSegmentSize::new(size).ok())
        else {
            let prefix = cluster.name().wal_system_prefix(system);
            let what = format!("{prefix}: WAL of system identifier {system}, which this cluster never had");
            findings.add(Severity::Warning, FindingKind::Stray, &prefix, what);
            continue;
        };
        let archive = ctx.or_cancel(WalArchive::load_sized(cluster, system, size)).await??;
        let production = entry.map(|entry| entry.production_timeline);
        histories(&archive, findings);
        chains(&archive, look, production, findings)?;
        gaps(ctx, &archive, look, options, findings).await?;
        let objects = scope(&archive, inventory, look, options)?;
        read_objects(ctx, cluster, objects, look, options, findings).await?;
        if options.backups == Backups::All {
            wal_index::look_at_indexes(ctx, &archive, inventory, options, findings).await?;
            tails(ctx, &archive, findings).await?;
        }
    }
    Ok(())
}

/// Timelines of which the history file is missing or damaged.
fn histories(archive: &WalArchive, findings: &mut Findings) {
    for (timeline, wal) in archive.timelines() {
        let path = archive.cluster().name().history(archive.system_id(), timeline);
        let what = match &wal.history {
            None if timeline.0 > 1 && wal.segments.count() > 0 => format!("{path}: is not there"),
            Some(Err(error)) => error.clone(),
            _ => continue,
        };
        let kind = if wal.history.is_none() { FindingKind::Missing } else { FindingKind::Damaged };
        let finding = findings.add(Severity::Damage, kind, &path, what);
        finding.effect = Some(format!(
            "timeline {timeline} cannot be recovered to from backups of other timelines; push the file again from a \
             server's pg_wal"
        ));
    }
}

/// The pieces of segments that are not whole yet.
async fn tails(ctx: &Context, archive: &WalArchive, findings: &mut Findings) -> Result<(), EngineError> {
    let (cluster, system_id, size) = (archive.cluster(), archive.system_id(), archive.segment_size());
    let store = cluster.repository().store();
    let listed = ctx.or_cancel(list_tails(&**store, cluster.name(), system_id)).await?.map_err(EngineError::from)?;
    for (segment, pieces) in listed {
        match ctx.or_cancel(tail::read_listed(cluster, TailOf { system_id, segment, size }, &pieces)).await? {
            Ok(_) if hole_in(&pieces).is_none() => {}
            Ok(_) => tail_hole(ctx, archive, segment, findings).await?,
            // The segment is whole by now.
            Err(EngineError::Repo(error)) if error.is_not_found() => {}
            Err(EngineError::Repo(error)) if error.is_damage() => {
                let path = match &error {
                    RepoError::Damaged { path, .. } | RepoError::TooNew { path, .. } => path.clone(),
                    _ => cluster.name().tail_prefix(system_id, segment),
                };
                let finding = findings.add(Severity::Damage, FindingKind::Damaged, &path, error.to_string());
                finding.effect = Some(format!(
                    "recovery to the end of timeline {} fails while this is so; the piece goes when the segment is whole",
                    segment.timeline
                ));
            }
            Err(error) => return Err(error),
        }
    }
    Ok(())
}

/// Where the chain of pieces ends, and where the next piece begins that it does not lead to.
fn hole_in(pieces: &TailPieces) -> Option<(u64, u64)> {
    let end = pieces.end();
    let beyond = pieces.pieces.iter().map(|piece| piece.range.start).filter(|start| *start > end).min();
    beyond.map(|beyond| (end, beyond))
}

/// Says what is missing in the middle of a tail, unless it was only being written anew.
async fn tail_hole(
    ctx: &Context,
    archive: &WalArchive,
    segment: SegmentName,
    findings: &mut Findings,
) -> Result<(), EngineError> {
    let cluster = archive.cluster();
    let store = cluster.repository().store();
    let again = list_tail(&**store, cluster.name(), archive.system_id(), segment);
    let again = ctx.or_cancel(again).await?.map_err(EngineError::from)?;
    let Some((end, beyond)) = hole_in(&again) else { return Ok(()) };
    match ctx.or_cancel(store.head(&archive.segment_path(segment)?)).await? {
        Err(error) if error.is_not_found() => {}
        // It is whole, and these are what is left of its tail.
        Ok(_) => return Ok(()),
        Err(error) => return Err(RepoError::from(error).into()),
    }
    let path = cluster.name().tail_prefix(archive.system_id(), segment);
    let what = format!("{path}: bytes {end} to {beyond} of the segment are missing, and pieces behind them are there");
    let finding = findings.add(Severity::Damage, FindingKind::WalGap, &path, what);
    finding.effect = Some(format!(
        "recovery on timeline {} ends there; what a `wal receive` or a server still has of it is brought with the segment",
        segment.timeline
    ));
    Ok(())
}

/// The WAL that each backup cannot be restored without, and how far it can be followed.
fn chains(
    archive: &WalArchive,
    look: &mut BackupsLook,
    production: Option<Timeline>,
    findings: &mut Findings,
) -> Result<(), EngineError> {
    for backup in &mut look.backups {
        let Some(facts) = backup.facts.as_ref().filter(|facts| facts.system_id == archive.system_id()) else {
            continue;
        };
        if !facts.standalone {
            let missing = archive.missing_between(facts.start_lsn, facts.timeline, facts.stop_lsn, facts.timeline)?;
            for name in &missing {
                let path = archive.segment_path(*name)?;
                let finding =
                    findings.add(Severity::Damage, FindingKind::WalGap, &path, format!("{path}: is not there"));
                finding.effect = Some(format!("backup {} cannot be made consistent without it", backup.id));
                finding.backups.push(backup.id);
            }
            if !missing.is_empty() {
                backup.restorable = false;
            }
        }
        // Along production's timeline where this backup leads there, else along its own.
        let along =
            production.filter(|timeline| archive.history_between(facts.stop_lsn, facts.timeline, *timeline).is_ok());
        let (last, _) = archive.unbroken_from(facts.start_lsn, facts.timeline, along.unwrap_or(facts.timeline))?;
        backup.wal_until = last.map(|name| name.to_string());
    }
    Ok(())
}

/// Gaps, with the backups that end before them and the moments that are lost. Where only some backups are looked at,
/// the gaps after these: each can be restored to its own end, so they are warnings.
async fn gaps(
    ctx: &Context,
    archive: &WalArchive,
    look: &BackupsLook,
    options: &VerifyOptions,
    findings: &mut Findings,
) -> Result<(), EngineError> {
    let all = options.backups == Backups::All;
    let size = archive.segment_size();
    let of_system = |facts: &&ManifestFacts| facts.system_id == archive.system_id();
    let facts: Vec<&ManifestFacts> =
        look.backups.iter().filter_map(|backup| backup.facts.as_ref()).filter(of_system).collect();
    let timelines: Vec<_> = archive.timelines().map(|(timeline, _)| timeline).collect();
    for timeline in timelines {
        for gap in archive.gaps(timeline) {
            let SegmentRange { first, last } = gap;
            let (begin, end) = (Lsn(first.0 * size.bytes()), Lsn((last.0 + 1).saturating_mul(size.bytes())));
            let first = archive.segment_name(timeline, first)?;
            let path = archive.segment_path(first)?;
            let already = findings.found.iter().any(|finding| {
                finding.kind == FindingKind::WalGap && finding.object == path.to_string() && gap.count() == 1
            });
            let before: Vec<&&ManifestFacts> = facts
                .iter()
                .filter(|backup| {
                    backup.stop_lsn <= begin
                        && archive.history_between(backup.stop_lsn, backup.timeline, timeline).is_ok()
                })
                .collect();
            let needless = before.is_empty() && (!all || facts.iter().all(|backup| backup.start_lsn >= end));
            if already || needless {
                // Nothing that is kept needs it.
                continue;
            }
            let after = facts.iter().filter(|backup| backup.timeline == timeline && backup.start_lsn >= end);
            let next = after.min_by_key(|backup| backup.stop_lsn);
            let until = next.map_or("now".to_owned(), |backup| {
                format!("the end of backup {} at {}", backup.backup, text::time(backup.stop_time))
            });
            let last = archive.segment_name(timeline, last)?;
            let what = if gap.count() == 1 {
                format!("{path}: is not there")
            } else {
                format!("{path}: is not there, nor the {} segments up to {last}", gap.count() - 1)
            };
            let severity = if before.is_empty() || !all { Severity::Warning } else { Severity::Damage };
            let since = match last_end_before(ctx, archive, timeline, begin).await? {
                Some(time) => format!("LSN {begin} (the last transaction before it ended at {})", text::time(time)),
                None => format!("LSN {begin}"),
            };
            let finding = findings.add(severity, FindingKind::WalGap, &path, what);
            finding.effect = Some(if all {
                format!("nothing from {since} to {until} can be recovered to")
            } else {
                format!("recovery from the backups looked at ends at LSN {begin}; `verify --all` says what is lost")
            });
            finding.backups = before.iter().map(|backup| backup.backup).collect();
        }
    }
    Ok(())
}

/// The latest end of a transaction in the last segment before this place that has any; `None` when none near by has.
async fn last_end_before(
    ctx: &Context,
    archive: &WalArchive,
    timeline: Timeline,
    begin: Lsn,
) -> Result<Option<Timestamp>, EngineError> {
    let end = begin.segment_no(archive.segment_size()).0;
    for segno in (end.saturating_sub(LOOK_BACK_MAX)..end).rev().map(XLogSegNo) {
        if !archive.has(timeline, segno) {
            break;
        }
        // That it is damaged is found when its turn comes.
        let facts = ctx.or_cancel(archive.facts(timeline, segno)).await?.ok();
        if let Some(time) = facts.and_then(|facts| facts.latest_end()) {
            return Ok(Some(time));
        }
    }
    Ok(None)
}

/// The WAL objects to be read: all, or what the chosen backups need.
fn scope(
    archive: &WalArchive,
    inventory: &Inventory,
    look: &BackupsLook,
    options: &VerifyOptions,
) -> Result<Vec<ObjectPath>, EngineError> {
    if options.backups == Backups::All {
        return Ok(inventory.wal.get(&archive.system_id()).cloned().unwrap_or_default());
    }
    let mut paths = BTreeSet::new();
    for facts in look.backups.iter().filter_map(|backup| backup.facts.as_ref()) {
        if facts.system_id == archive.system_id() {
            for segment in archive.segments_for(facts.start_lsn, facts.timeline, facts.stop_lsn, facts.timeline)? {
                if segment.present {
                    paths.insert(archive.segment_path(segment.name)?);
                }
            }
        }
    }
    Ok(paths.into_iter().collect())
}

async fn read_objects(
    ctx: &Context,
    cluster: &repo::Cluster,
    paths: Vec<ObjectPath>,
    look: &mut BackupsLook,
    options: &VerifyOptions,
    findings: &mut Findings,
) -> Result<(), EngineError> {
    ctx.progress.phase("looking at WAL", Some(paths.len() as u64), Unit::Items);
    let deep = options.deep;
    let read = |path: ObjectPath| {
        let repository = cluster.repository().clone();
        async move {
            let there = path.clone();
            let task = tokio::spawn(async move { look_at_object(&repository, &there, deep).await });
            (path, task.await)
        }
    };
    let mut reads = stream::iter(paths).map(read).buffered(options.workers.clamp(1, 64));
    while let Some((path, looked)) = ctx.or_cancel(reads.next()).await? {
        ctx.progress.advance(1);
        findings.objects += 1;
        let looked = looked.map_err(|error| EngineError::Failed {
            reason: format!("looking at {path} ended unexpectedly: {error}"),
            hint: None,
        })?;
        match looked {
            Ok((bytes, facts)) => {
                findings.bytes += bytes;
                let Some(facts) = facts else { continue };
                findings.segments += 1;
                let is_whole = !path.name().ends_with(".partial");
                if let Some(cut) = facts.unreadable.filter(|_| is_whole) {
                    let what = format!(
                        "{path}: is as the server archived it, but from {} on it cannot be read: {}",
                        cut.lsn, cut.reason
                    );
                    findings.add(Severity::Warning, FindingKind::Noted, &path, what);
                }
            }
            Err(error) => {
                let finding = findings.object(Severity::Damage, &path, error)?;
                let Ok(WalFileName::Segment(name)) = path.name().parse() else { continue };
                finding.effect = Some(format!("recovery from earlier backups ends at segment {name}"));
                for backup in &mut look.backups {
                    let Some(facts) = &backup.facts else { continue };
                    let size =
                        u32::try_from(facts.wal_segment_size).ok().and_then(|size| WalSegmentSize::new(size).ok());
                    let Some(start) = size.and_then(|size| name.start(size).ok()) else { continue };
                    let end = start.saturating_add(facts.wal_segment_size);
                    if facts.timeline == name.timeline && end > facts.start_lsn {
                        finding.backups.push(backup.id);
                        if start < facts.stop_lsn && !facts.standalone {
                            backup.restorable = false;
                        }
                    }
                }
            }
        }
    }
    Ok(())
}

/// Reads one WAL object: its facts, or all of it.
async fn look_at_object(
    repository: &repo::Repository,
    path: &ObjectPath,
    deep: bool,
) -> Result<(u64, Option<WalFacts>), RepoError> {
    let (store, keys) = (repository.store(), repository.keys());
    let damaged = |reason: String| RepoError::Damaged { path: path.clone(), reason };
    let name: WalFileName = path.name().parse().map_err(|error| damaged(format!("its name: {error}")))?;
    let timeline = match name {
        WalFileName::History(_) | WalFileName::BackupHistory(..) => {
            let content = read_wal_file(&**store, keys, path).await?;
            if let WalFileName::History(timeline) = name {
                pg_format::TimelineHistory::parse(timeline, &String::from_utf8_lossy(&content))
                    .map_err(|error| damaged(error.to_string()))?;
            }
            return Ok((content.len() as u64, None));
        }
        WalFileName::Segment(segment) | WalFileName::Partial(segment) => segment.timeline,
    };
    let object = WalObject::open(store.clone(), keys, path.clone()).await?;
    let facts = object.facts().await?;
    if facts.timeline != timeline {
        return Err(damaged(format!("is of timeline {}", facts.timeline)));
    }
    let mut bytes = 0;
    if deep {
        object.fragments().await?;
        let sealed = store.get(path, SEGMENT_OBJECT_MAX).await?;
        bytes = sealed.len() as u64;
        let plain = decode_segment(keys, path, &sealed)?;
        if plain_hash(&plain) != facts.plain_hash {
            return Err(damaged("its facts are of other content".into()));
        }
    }
    Ok((bytes, Some(facts)))
}
