//! What had no name when it was met may have one in another backup: its file's number is not given out twice.
//!
//! A backup from before names it when nothing between is in doubt; a later one says how it was called then, which is told.

use super::doubt::Doubt;
use super::names::Names;
use super::route::Route;
use super::types::{Hit, Object, ObjectKind};
use crate::{Context, EngineError};
use pg_format::Lsn;
use pg_wal::{Oid, RelFileLocator};
use repo::manifest::{ManifestFacts, NameEntry};
use std::collections::HashSet;

/// Gives names to what has none, from the backups that were not read yet.
pub(super) async fn name(ctx: &Context, route: &Route, hits: &mut [Hit], doubts: &[Doubt]) -> Result<(), EngineError> {
    let placed = hits.iter_mut().flat_map(|hit| {
        let lsn = hit.lsn;
        hit.objects.iter_mut().map(move |object| (lsn, object))
    });
    name_placed(ctx, route, placed.collect(), doubts).await?;
    for hit in hits {
        if hit.objects.iter().any(|object| object.named_later) {
            hit.notes.push("some names are those of a later backup, and may have been others then".into());
        }
    }
    Ok(())
}

/// The same for objects as they are at one place.
pub(super) async fn name_objects<'a>(
    ctx: &Context,
    route: &Route,
    objects: impl Iterator<Item = &'a mut Object>,
    lsn: Lsn,
    doubts: &[Doubt],
) -> Result<(), EngineError> {
    name_placed(ctx, route, objects.map(|object| (lsn, object)).collect(), doubts).await
}

/// What of a backup's names may be told.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Holds {
    All,
    /// Schemas may have got other names.
    NotSchemas,
}

async fn name_placed(
    ctx: &Context,
    route: &Route,
    mut objects: Vec<(Lsn, &mut Object)>,
    doubts: &[Doubt],
) -> Result<(), EngineError> {
    objects.retain(|(_, object)| object.is_nameless());
    let others = || route.backups.iter().filter(|backup| route.base != Some(backup.backup));
    let holds = |backup: &ManifestFacts, lsn: Lsn, object: &Object| {
        let (from, database) = (backup.start_lsn, object.database_oid);
        if backup.stop_lsn > lsn || doubts.iter().any(|doubt| doubt.lies_between(from, lsn, database)) {
            return None;
        }
        let unsure = doubts.iter().any(|doubt| doubt.schemas_lie_between(from, lsn, database));
        Some(if unsure { Holds::NotSchemas } else { Holds::All })
    };
    for backup in others().rev() {
        fill_from(ctx, route, backup, &mut objects, false, |lsn, object| holds(backup, lsn, object)).await?;
    }
    for backup in others() {
        let is_later = |lsn, _: &Object| (backup.stop_lsn > lsn).then_some(Holds::All);
        fill_from(ctx, route, backup, &mut objects, true, is_later).await?;
    }
    Ok(())
}

/// Names what this backup may name.
async fn fill_from(
    ctx: &Context,
    route: &Route,
    backup: &ManifestFacts,
    objects: &mut Vec<(Lsn, &mut Object)>,
    later: bool,
    may: impl Fn(Lsn, &Object) -> Option<Holds>,
) -> Result<(), EngineError> {
    let eligible = objects.iter_mut().filter_map(|(lsn, object)| Some((may(*lsn, object)?, &mut **object)));
    let mut eligible: Vec<(Holds, &mut Object)> = eligible.collect();
    if eligible.is_empty() {
        return Ok(());
    }
    let wanted = Wanted::of(&eligible);
    // Only what is looked for is kept of a map.
    let mut found = Names::default();
    route
        .load_names(ctx, backup.backup, |entries| {
            found.load(entries.into_iter().filter(|entry| wanted.has(entry)).collect());
        })
        .await?;
    for (holds, object) in &mut eligible {
        let before = object.to_string();
        fill(object, &found, *holds);
        object.named_later |= later && object.to_string() != before;
    }
    objects.retain(|(_, object)| object.is_nameless());
    Ok(())
}

struct Wanted {
    files: HashSet<RelFileLocator>,
    oids: HashSet<(Oid, Oid)>,
    schemas: HashSet<(Oid, Oid)>,
}

impl Wanted {
    fn of(nameless: &[(Holds, &mut Object)]) -> Self {
        let objects = || nameless.iter().map(|(_, object)| object);
        Self {
            files: objects().filter_map(|object| object.file).collect(),
            oids: objects().filter_map(|object| Some((object.database_oid, object.oid?))).collect(),
            schemas: objects().filter_map(|object| Some((object.database_oid, object.schema_oid?))).collect(),
        }
    }

    fn has(&self, entry: &NameEntry) -> bool {
        let (database, oid) = (Oid(entry.database), Oid(entry.oid));
        let is_database = entry.relfilenode == 0 && entry.oid == 0;
        let file = RelFileLocator { tablespace: Oid(entry.tablespace), database, relfilenode: entry.relfilenode };
        is_database
            || self.oids.contains(&(database, oid))
            || self.files.contains(&file)
            || self.schemas.contains(&(database, oid))
    }
}

fn fill(object: &mut Object, found: &Names, holds: Holds) {
    let known = match (object.file, object.oid) {
        (Some(file), _) if found.of_file(&file).is_some() => Some(found.object_of_file(&file)),
        // A name that WAL told is kept; its schema may be told by number only.
        (_, Some(oid)) if found.relation(object.database_oid, oid).is_some() => {
            Some(found.object_of_oid(object.database_oid, oid))
        }
        _ => None,
    };
    let database = if object.kind == ObjectKind::Database { object.oid } else { Some(object.database_oid) };
    let database = database.and_then(|oid| found.database(oid)).map(|name| name.to_string());
    if object.kind == ObjectKind::Database {
        object.name = object.name.take().or_else(|| database.clone());
    }
    object.database = object.database.take().or(database);
    if let Some(known) = known {
        let same_name = object.name.is_none() || object.name == known.name;
        if object.name.is_none() {
            object.name = known.name;
            object.kind = known.kind;
            object.oid = object.oid.or(known.oid);
        }
        // A relation that was renamed meanwhile may have been moved as well; one that is known by its schema's number was
        // in that one.
        if same_name && object.schema.is_none() && object.schema_oid.is_none() && holds == Holds::All {
            object.schema = known.schema;
        }
    }
    if object.schema.is_none() && holds == Holds::All {
        let schema = object.schema_oid.and_then(|oid| found.schema(object.database_oid, oid));
        object.schema = schema.map(|name| name.to_string());
    }
}
