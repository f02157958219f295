//! What had no name when it was met may have one in another backup: its file's number is not given out twice.

use super::names::Names;
use super::route::Route;
use super::types::{Hit, Object, ObjectKind};
use crate::{Context, EngineError};
use pg_wal::{Oid, RelFileLocator};
use repo::manifest::NameEntry;
use std::collections::{HashMap, HashSet};

/// Gives names to what has none, from the backups that were not read yet.
pub(super) async fn name(ctx: &Context, route: &Route, hits: &mut [Hit]) -> Result<(), EngineError> {
    name_objects(ctx, route, hits.iter_mut().flat_map(|hit| &mut hit.objects)).await
}

/// The same for objects.
pub(super) async fn name_objects<'a>(
    ctx: &Context,
    route: &Route,
    objects: impl Iterator<Item = &'a mut Object>,
) -> Result<(), EngineError> {
    let mut nameless: Vec<&mut Object> = objects.filter(|object| object.is_nameless()).collect();
    let others = route.backups.iter().filter(|backup| route.base != Some(backup.backup));
    for backup in others {
        if nameless.is_empty() {
            break;
        }
        let wanted = Wanted::of(&nameless);
        // Only what is looked for is kept of a map.
        let mut found = Names::default();
        route
            .load_names(ctx, backup.backup, |entries| {
                found.load(entries.into_iter().filter(|entry| wanted.has(entry)).collect());
            })
            .await?;
        nameless.iter_mut().for_each(|object| fill(object, &found));
        nameless.retain(|object| object.is_nameless());
    }
    Ok(())
}

struct Wanted {
    files: HashSet<RelFileLocator>,
    oids: HashSet<(Oid, Oid)>,
    schemas: HashMap<(Oid, Oid), ()>,
}

impl Wanted {
    fn of(nameless: &[&mut Object]) -> Self {
        let schemas = nameless.iter().filter_map(|object| Some(((object.database_oid, object.schema_oid?), ())));
        Self {
            files: nameless.iter().filter_map(|object| object.file).collect(),
            oids: nameless.iter().filter_map(|object| Some((object.database_oid, object.oid?))).collect(),
            schemas: schemas.collect(),
        }
    }

    fn has(&self, entry: &NameEntry) -> bool {
        let (database, oid) = (Oid(entry.database), Oid(entry.oid));
        let is_database = entry.relfilenode == 0 && entry.oid == 0;
        let file = RelFileLocator { tablespace: Oid(entry.tablespace), database, relfilenode: entry.relfilenode };
        is_database
            || self.oids.contains(&(database, oid))
            || self.files.contains(&file)
            || self.schemas.contains_key(&(database, oid))
    }
}

fn fill(object: &mut Object, found: &Names) {
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
        // A relation that was renamed meanwhile may have been moved as well.
        if same_name && object.schema.is_none() {
            object.schema = known.schema;
        }
    }
    if object.schema.is_none() {
        let schema = object.schema_oid.and_then(|oid| found.schema(object.database_oid, oid));
        object.schema = schema.map(|name| name.to_string());
    }
}
