//! What is written down of an imported base backup.

use super::store::{Entry, Outcome, Stored, What};
use super::survey::Known;
use super::{Base, ImportOptions};
use crate::{Context, EngineError, host_facts};
use base64::Engine as _;
use jiff::Timestamp;
use jiff::civil::DateTime;
use jiff::tz::{Offset, TimeZone};
use repo::chunk::ChunkRef;
use repo::manifest::{
    ChangeDetection, FileEntry, FileType, HostFacts, ManifestFacts, ManifestWriter, Numbers, Place, TablespaceFacts,
};
use repo::{BackupId, Cluster, PackId};
use std::collections::BTreeMap;

/// How writing failed.
pub(super) enum WriteError {
    /// No manifest was begun to be put in its place.
    Nothing(EngineError),
    /// It may be there, or arrive yet.
    Unclear(EngineError),
}

impl<E: Into<EngineError>> From<E> for WriteError {
    fn from(error: E) -> Self {
        Self::Nothing(error.into())
    }
}

/// When the base backup began. The label says it in the zone of the server's log, whose short name need not be one that
/// is known here; `backup_manifest` has the same moment in GMT, and tar files too.
pub(super) fn start_time(known: &Known, label_mtime: u64) -> (Timestamp, Option<String>) {
    let text = known.label.start_time_text.as_deref().unwrap_or_default();
    if let Some(time) = read_time(text) {
        return (time, None);
    }
    let listed = known.manifest.iter().flat_map(|manifest| &manifest.files).find(|file| file.path == b"backup_label");
    if let Some(time) = listed.and_then(|file| read_time(&file.last_modified_text)) {
        return (time, None);
    }
    let time = i64::try_from(label_mtime).ok().and_then(|seconds| Timestamp::from_second(seconds).ok());
    let time = time.unwrap_or(Timestamp::UNIX_EPOCH);
    let warning = format!("its start time {text:?} is in a zone that is not known here: {time} was taken instead");
    (time, Some(warning))
}

/// `2026-11-20 20:09:10 UTC`, with `GMT`, `UTC` or an offset such as `+01` or `-0330`.
fn read_time(text: &str) -> Option<Timestamp> {
    let (time, zone) = text.rsplit_once(' ')?;
    let time = DateTime::strptime("%Y-%m-%d %H:%M:%S", time).ok()?;
    let offset = match zone {
        "UTC" | "GMT" | "Z" => Offset::UTC,
        _ => {
            let (sign, digits) = (zone.get(..1)?, zone.get(1..)?.replace(':', ""));
            let number: i32 = digits.parse().ok()?;
            let seconds = match digits.len() {
                2 => number * 3600,
                4 => number / 100 * 3600 + number % 100 * 60,
                _ => return None,
            };
            Offset::from_seconds(match sign {
                "+" => seconds,
                "-" => -seconds,
                _ => return None,
            })
            .ok()?
        }
    };
    Some(time.to_zoned(TimeZone::fixed(offset)).ok()?.timestamp())
}

fn base64(bytes: &[u8]) -> String {
    base64::engine::general_purpose::STANDARD.encode(bytes)
}

fn tablespaces(base: &Base) -> Vec<TablespaceFacts> {
    let mut oids: Vec<u32> = base.spaces.iter().chain(base.links.keys()).copied().collect();
    oids.sort_unstable();
    oids.dedup();
    let fact = |oid: u32| {
        let mapped = base.known.map.path_of(pg_format::Oid(oid)).map(<[u8]>::to_vec);
        let location = mapped.or_else(|| base.links.get(&oid).cloned());
        TablespaceFacts {
            oid,
            // Names are in the catalog, which no file of a base backup spells out.
            name: oid.to_string(),
            in_place: location.is_none(),
            location: location
                .map_or_else(|| format!("pg_tblspc/{oid}"), |location| String::from_utf8_lossy(&location).into_owned()),
        }
    };
    oids.into_iter().map(fact).collect()
}

fn facts(
    ctx: &Context,
    cluster: &Cluster,
    base: &Base,
    options: &ImportOptions,
    backup: BackupId,
    outcome: &Outcome,
) -> ManifestFacts {
    let (known, control) = (&base.known, &base.known.control);
    let mut warnings = base.warnings.clone();
    warnings.extend(outcome.warnings.iter().cloned());
    let imported = format!("imported from {} on {}", options.path.display(), ctx.now());
    ManifestFacts {
        backup,
        cluster: cluster.name().clone(),
        label: options.label.clone().or_else(|| known.label.label.clone()),
        made_by: options.made_by.clone(),
        started: base.started,
        finished: base.stop_time,
        source: "basebackup".into(),
        from_standby: known.label.from == Some(pg_format::backup_label::BackupFrom::Standby),
        standalone: !base.carried.is_empty(),
        system_id: control.system_id,
        pg_version_num: known.major * 10_000,
        pg_version: known.major.to_string(),
        catalog_version: control.catalog_version,
        timeline: known.label.start_segment.timeline,
        start_lsn: known.label.start_lsn,
        stop_lsn: base.stop.lsn,
        stop_time: base.stop_time,
        block_size: control.block_bytes,
        relseg_blocks: control.relation_segment_blocks,
        wal_segment_size: control.wal_segment_size.bytes(),
        checksums: control.has_data_checksums(),
        data_directory: options.path.display().to_string(),
        tablespaces: tablespaces(base),
        backup_label: Some(base64(&known.label_bytes)),
        tablespace_map: known.tablespace_map.as_deref().map(base64),
        config_files: Vec::new(),
        owners: outcome.owners.clone(),
        prior: None,
        resumed: Vec::new(),
        look_again: None,
        change_detection: ChangeDetection { used: "all".into(), reasons: vec![imported] },
        numbers: Numbers {
            files: outcome.files,
            bytes: outcome.bytes,
            pages_read: outcome.pages,
            pages_stored: outcome.pages,
            bytes_added: outcome.packs.values().sum(),
            bytes_shared: 0,
        },
        damaged: outcome.damaged.clone(),
        warnings,
        // What is known of this host says nothing of the one that the cluster ran on.
        host: HostFacts { glibc: None, os: None, collations: Vec::new(), ..host_facts() },
        compression: options.compression.to_string(),
        notes: BTreeMap::new(),
    }
}

/// Tar files with a `tablespace_map` have no links: the server makes them from it (`sendtblspclinks` in basebackup.c).
fn add_links(base: &Base, outcome: &mut Outcome) {
    let mut missing = Vec::new();
    for space in tablespaces(base).into_iter().filter(|space| !space.in_place) {
        let path = format!("data/pg_tblspc/{}", space.oid).into_bytes();
        if outcome.entries.binary_search_by(|entry| entry.path.as_slice().cmp(&path)).is_err() {
            let mtime = u64::try_from(base.started.as_second()).unwrap_or(0);
            let what = What::Link(space.location.into_bytes());
            missing.push(Entry { path, mode: 0o777, owner: 0, mtime, what });
        }
    }
    outcome.entries.append(&mut missing);
    outcome.entries.sort_by(|a, b| a.path.cmp(&b.path));
}

/// Writes the manifest: from then on the backup is there.
pub(super) async fn write(
    ctx: &Context,
    cluster: &Cluster,
    base: &Base,
    options: &ImportOptions,
    backup: BackupId,
    mut outcome: Outcome,
) -> Result<(Outcome, u64), WriteError> {
    add_links(base, &mut outcome);
    ctx.progress.phase("writing the manifest", None, crate::Unit::Items);
    let mut manifest = cluster.create_manifest(backup).await?;
    let mut packs: Vec<(&PackId, &u64)> = outcome.used.iter().collect();
    packs.sort_unstable();
    for (pack, used) in packs {
        manifest.use_pack(*pack, *used);
    }
    let root = FileEntry {
        path: b"data".to_vec(),
        mode: 0o700,
        owner: 0,
        mtime: u64::try_from(base.started.as_second()).unwrap_or(0),
        file_type: FileType::Directory,
    };
    manifest.add_file(&root).await?;
    for entry in &outcome.entries {
        let file_type = match &entry.what {
            What::Directory => FileType::Directory,
            What::Link(target) => {
                // The place that the map gives is the origin's; a link may lead to where it was mapped to.
                FileType::Link { target: target.clone() }
            }
            What::File { len, pages, wal, stored } => {
                let place = place(&mut manifest, stored);
                FileType::File { len: *len, place, settled: None, pages: *pages, wal: *wal }
            }
        };
        let (path, mode, owner, mtime) = (entry.path.clone(), entry.mode, entry.owner, entry.mtime);
        manifest.add_file(&FileEntry { path, mode, owner, mtime, file_type }).await?;
    }
    let facts = facts(ctx, cluster, base, options, backup, &outcome);
    // The last moment to stop: from here on the backup is there.
    ctx.check()?;
    let added: u64 = outcome.packs.values().sum();
    let size = manifest.finish(&facts, &outcome.packs).await.map_err(|error| WriteError::Unclear(error.into()))?;
    Ok((outcome, added + size))
}

fn place(manifest: &mut ManifestWriter, stored: &Stored) -> Place {
    let mut chunk_in = |pack: PackId, chunk: ChunkRef| ChunkRef { pack: manifest.use_pack(pack, 0), ..chunk };
    match stored {
        Stored::Zero => Place::Zero,
        Stored::Chunk(pack, chunk) => Place::Chunk(chunk_in(*pack, *chunk)),
        Stored::Map(pack, chunk) => Place::Map(chunk_in(*pack, *chunk)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_of_labels() {
        let check = |text: &str, expect: Option<&str>| {
            assert_eq!(read_time(text).map(|time| time.to_string()).as_deref(), expect, "{text}");
        };
        check("2026-11-20 20:09:10 UTC", Some("2026-11-20T20:09:10Z"));
        check("2026-11-20 20:09:10 GMT", Some("2026-11-20T20:09:10Z"));
        check("2026-11-20 20:09:10 +01", Some("2026-11-20T19:09:10Z"));
        check("2026-11-20 20:09:10 -0330", Some("2026-11-20T23:39:10Z"));
        check("2026-11-20 20:09:10 CET", None);
        check("2026-11-20", None);
        check("", None);
        check("nonsense ä", None);
    }
}
