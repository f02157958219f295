//! From what a transaction did to what people call it.
//!
//! A relation that gets another file was truncated (`RelationSetNewRelfilenumber`, `utils/cache/relcache.c`), written
//! anew (then there was a passing `pg_temp_OID`, `commands/cluster.c`), or moved to another tablespace. `DROP DATABASE`
//! and `DROP TABLESPACE` remove files before they commit: their target lies before the transaction's first record.

use super::fold::{Folded, passing};
use super::names::{FIRST_NORMAL, Names};
use super::types::{EventKind, Hit, HitTarget, Object, ObjectKind};
use super::walk::{Done, Undone};
use pg_format::{Lsn, Timeline};
use pg_wal::index::{Mark, MarkKind, RelationWork};
use pg_wal::{Oid, RelFileLocator};
use repo::wal::timestamp;
use std::collections::{BTreeMap, HashSet};

/// `pg_toast` (`catalog/pg_namespace.dat`).
const TOAST_NAMESPACE: Oid = Oid(99);
/// Objects that a hit lists.
pub(super) const OBJECTS_MAX: usize = 100;

/// What is worth telling.
#[derive(Debug, Clone, Copy)]
pub(super) struct Thresholds {
    /// Rows deleted or updated, at least.
    pub(super) rows: u64,
    /// Rows that came in, at least.
    pub(super) load_rows: u64,
    /// Also what is none of this.
    pub(super) all: bool,
}

/// Changes of rows.
#[derive(Default)]
struct Sums {
    inserted: u64,
    updated: u64,
    deleted: u64,
}

impl Sums {
    fn add(&mut self, work: &RelationWork) {
        self.inserted = self.inserted.saturating_add(work.rows.inserted).saturating_add(work.rows.multi_inserted);
        self.updated = self.updated.saturating_add(work.rows.updated).saturating_add(work.rows.hot_updated);
        self.deleted = self.deleted.saturating_add(work.rows.deleted);
    }

    fn reach(&self, thresholds: &Thresholds) -> bool {
        self.deleted >= thresholds.rows || self.updated >= thresholds.rows || self.inserted >= thresholds.load_rows
    }
}

/// What a committed transaction did, a hit for each kind. Objects are all there, tables first.
pub(super) fn hits(done: &Done<'_>, names: &Names, timeline: Timeline, thresholds: &Thresholds) -> Vec<Hit> {
    let mut hits = Vec::new();
    let plain = done.folded.is_none() && done.marks.is_empty() && done.end.dropped.is_empty();
    if plain && !thresholds.all {
        // Nearly all transactions end here.
        let mut sums = Sums::default();
        done.work.iter().for_each(|work| sums.add(work));
        if !sums.reach(thresholds) {
            return hits;
        }
    }
    let mut found = Found::default();
    if let Some(folded) = done.folded {
        found.catalogs(folded, names);
        found.databases(folded, done.marks, names);
    }
    found.marks(done, names);
    if done.folded.is_none_or(|folded| folded.unknown > 0) {
        found.files(done, names);
    }
    found.work(done, names, thresholds);
    // What is removed at once is removed by a transaction that does nothing else.
    let early = found.early.map(|lsn| done.first.map_or(lsn, |first| first.min(lsn)));
    for (kind, objects) in found.objects {
        let early = early.filter(|_| kind == EventKind::Drop);
        let reindexed = kind == EventKind::Drop && objects.iter().all(is_left_by_reindex);
        hits.push(hit(done, kind, objects, timeline, early));
        if let Some(hit) = hits.last_mut().filter(|_| reindexed) {
            hit.notes.push("REINDEX CONCURRENTLY takes such a name and drops what it replaced".into());
        }
    }
    if let Some(hit) = hits.iter_mut().find(|hit| hit.kind == EventKind::Drop) {
        hit.marked_row = done.folded.and_then(|folded| folded.databases.first()).map(|(_, at, lsn)| (*at, *lsn));
    }
    if hits.is_empty() && thresholds.all {
        hits.push(hit(done, EventKind::Transaction, all_objects(done, names), timeline, None));
    }
    hits
}

/// What a transaction did that no rollback takes back, although it did not commit: `DROP DATABASE` and `DROP TABLESPACE`
/// remove files before their commit, and the former marks the database as invalid even before.
pub(super) fn broken_off(done: &Done<'_>, why: Undone, names: &Names, timeline: Timeline) -> Option<Hit> {
    let mut found = Found::default();
    if let Some(folded) = done.folded {
        found.databases(folded, done.marks, names);
    }
    found.removals(done.marks, names);
    let objects = found.objects.remove(&EventKind::Drop)?;
    let files_gone = found.early.is_some();
    let early = found.early.unwrap_or(done.end.lsn);
    let mut hit =
        hit(done, EventKind::Drop, objects, timeline, Some(done.first.map_or(early, |first| first.min(early))));
    hit.time = hit.time.filter(|_| why == Undone::RolledBack);
    hit.marked_row = done.folded.and_then(|folded| folded.databases.first()).map(|(_, at, lsn)| (*at, *lsn));
    (hit.broken_off, hit.must_be_marked) = (true, !files_gone);
    let what = if files_gone { "its files were removed" } else { "it was marked as invalid and can only be dropped" };
    hit.notes = vec![match why {
        Undone::RolledBack => format!("this was broken off and rolled back, but {what}"),
        Undone::Crashed => format!("the server stopped before this was committed, but {what}"),
        Undone::Unended => format!("it is not known whether this was committed, but {what}"),
    }];
    Some(hit)
}

fn all_objects(done: &Done<'_>, names: &Names) -> Vec<Object> {
    let users = done.work.iter().filter(|work| !names.is_systems(&work.rel));
    let mut objects: Vec<Object> = users.map(|work| names.object_of_file(&work.rel).with_rows(&work.rows)).collect();
    objects.sort_by_key(|object| object.kind);
    objects
}

fn hit(done: &Done<'_>, kind: EventKind, mut objects: Vec<Object>, timeline: Timeline, early: Option<Lsn>) -> Hit {
    objects.sort_by_key(|object| object.kind);
    let rows = objects.iter().fold(0_u64, |sum, object| {
        sum.saturating_add(match kind {
            EventKind::Delete => object.rows_deleted,
            EventKind::Update => object.rows_updated,
            EventKind::Load => object.rows_inserted,
            EventKind::Transaction => object.rows_deleted + object.rows_updated + object.rows_inserted,
            _ => 0,
        })
    });
    let mut notes = Vec::new();
    let prepared = done.prepared.map(|prepared| String::from_utf8_lossy(&prepared.gid).into_owned());
    if let Some(gid) = &prepared {
        notes.push(format!(
            "it was prepared as '{gid}' and committed later: at the target it is still prepared, so end it there with \
             ROLLBACK PREPARED"
        ));
    }
    if early.is_some() {
        notes.push("files were removed before it was committed, so the target lies before it began".into());
    }
    Hit {
        kind,
        time: Some(timestamp(done.end.time)),
        xid: (done.xid != 0).then_some(done.xid),
        lsn: done.end.lsn,
        timeline,
        objects,
        objects_left_out: 0,
        rows,
        wal_bytes: (done.bytes > 0).then_some(done.bytes),
        prepared,
        name: None,
        target: HitTarget { lsn: early.unwrap_or(done.end.lsn), exclusive: true, restore_point: None, backup: None },
        reachable: true,
        notes,
        marked_row: None,
        broken_off: false,
        must_be_marked: false,
    }
}

/// `ReindexRelationConcurrently` (`commands/indexcmds.c`) builds `_ccnew` and drops `_ccold`.
fn is_left_by_reindex(object: &Object) -> bool {
    let name = object.name.as_deref().unwrap_or_default().trim_end_matches(|c: char| c.is_ascii_digit());
    object.kind == ObjectKind::Index && (name.ends_with("_ccold") || name.ends_with("_ccnew"))
}

#[derive(Default)]
struct Found {
    objects: BTreeMap<EventKind, Vec<Object>>,
    /// Relations of which the new file was filled by a rewrite.
    rewritten: HashSet<RelFileLocator>,
    /// Damage was done from here on, before the commit.
    early: Option<Lsn>,
}

impl Found {
    fn put(&mut self, kind: EventKind, object: Object) {
        self.objects.entry(kind).or_default().push(object);
    }

    fn catalogs(&mut self, folded: &Folded, names: &Names) {
        for ((database, oid), change) in &folded.relations {
            let Some(row) = change.before.as_ref().or(change.last.as_ref()) else { continue };
            // TOAST tables and their indexes come and go with their table.
            if row.persistence == b't' || change.made || row.namespace == TOAST_NAMESPACE {
                continue;
            }
            // Of a passing table of a rewrite it may not be seen that it was made.
            let known = |owner: Oid| owner.0 < FIRST_NORMAL || names.relation(*database, owner).is_some();
            if change.dropped && passing(row).is_some_and(known) {
                continue;
            }
            let object = || {
                let mut object = names.object_of_row(*database, row);
                folded.as_before(&mut object, names);
                object.file = change.file_before.or(object.file);
                if matches!(row.kind, b'r' | b'm') && change.before.is_some() {
                    object.rows_before = row.tuples;
                    object.pages_before = Some(row.pages).filter(|pages| *pages > 0 || row.tuples.is_some());
                }
                object
            };
            if change.dropped {
                self.put(EventKind::Drop, object());
                continue;
            }
            let Some(after) = &change.after else { continue };
            let file_after = names.file_of(*database, after);
            let moved = change.before.as_ref().is_some_and(|before| before.tablespace != after.tablespace);
            let other_file = match (change.file_before, file_after) {
                (Some(before), Some(after)) => before != after,
                // The database's tablespace is not known, but numbers are.
                _ => change.before.as_ref().is_some_and(|before| before.relfilenode != after.relfilenode),
            };
            if !other_file || !matches!(row.kind, b'r' | b'm') {
                continue;
            }
            self.rewritten.extend(file_after);
            // Tools that reorganise tables give them the file of another one that they filled.
            let anew = folded.rewritten.contains(&(*database, *oid)) || moved || change.swapped || row.kind == b'm';
            self.put(if anew { EventKind::Rewrite } else { EventKind::Truncate }, object());
        }
        for (database, schema) in &folded.schemas {
            let mut object = Object::new(ObjectKind::Schema, *database);
            object.database = names.database(*database).map(|name| name.to_string());
            if let Some((oid, name)) = schema {
                // Of passing tables of sessions.
                if name.starts_with("pg_temp_") || name.starts_with("pg_toast_temp_") {
                    continue;
                }
                object.oid = Some(*oid);
                let before = folded.schemas_before.get(&(*database, *oid));
                object.name = Some(before.unwrap_or(name).to_string());
            }
            self.put(EventKind::Drop, object);
        }
    }

    fn databases(&mut self, folded: &Folded, marks: &[Mark], names: &Names) {
        for (database, ..) in &folded.databases {
            let marked = marks.iter().find_map(|mark| match &mark.kind {
                MarkKind::DatabaseDrop { database, .. } => Some(*database),
                _ => None,
            });
            let oid = database.as_ref().map(|(oid, _)| *oid).or(marked);
            let mut object = Object::new(ObjectKind::Database, oid.unwrap_or_default());
            let name = database.as_ref().map(|(_, name)| name.clone()).or_else(|| names.database(oid?));
            object.oid = oid;
            object.name = name.map(|name| name.to_string());
            object.database.clone_from(&object.name);
            self.put(EventKind::Drop, object);
        }
    }

    fn marks(&mut self, done: &Done<'_>, names: &Names) {
        self.removals(done.marks, names);
        for mark in done.marks {
            let MarkKind::Truncate { database, relations } = &mark.kind else { continue };
            // With wal_level=logical it is told; mostly the catalog has told it too.
            for oid in relations {
                let made = |folded: &Folded| folded.relations.get(&(*database, *oid)).is_some_and(|change| change.made);
                let known = |object: &Object| (object.database_oid, object.oid) == (*database, Some(*oid));
                if done.folded.is_some_and(made) || self.objects.values().flatten().any(known) {
                    continue;
                }
                let object = names.object_of_oid(*database, *oid);
                if matches!(object.kind, ObjectKind::Table | ObjectKind::Relation) {
                    self.put(EventKind::Truncate, object);
                }
            }
        }
    }

    /// What was removed at once.
    fn removals(&mut self, marks: &[Mark], names: &Names) {
        for mark in marks {
            match &mark.kind {
                // A database that is moved to another tablespace is removed from the old one; then no row is deleted.
                MarkKind::DatabaseDrop { .. } if self.drops(ObjectKind::Database) => {}
                MarkKind::TablespaceDrop { tablespace } => {
                    let mut object = Object::new(ObjectKind::Tablespace, Oid(0));
                    object.oid = Some(*tablespace);
                    object.name = names.tablespace(*tablespace).map(|name| name.to_string());
                    self.put(EventKind::Drop, object);
                }
                _ => continue,
            }
            self.early = self.early.into_iter().chain([mark.lsn]).min();
        }
    }

    fn drops(&self, kind: ObjectKind) -> bool {
        self.objects.get(&EventKind::Drop).is_some_and(|objects| objects.iter().any(|object| object.kind == kind))
    }

    /// Files that were removed and that the catalogs do not explain.
    fn files(&mut self, done: &Done<'_>, names: &Names) {
        for file in done.end.dropped.iter() {
            let explained = done.folded.is_some_and(|folded| folded.files.contains(file));
            if explained || names.is_systems(file) {
                continue;
            }
            let object = names.object_of_file(file);
            if !matches!(object.kind, ObjectKind::Index | ObjectKind::Toast | ObjectKind::Sequence) {
                self.put(EventKind::FilesRemoved, object);
            }
        }
    }

    fn work(&mut self, done: &Done<'_>, names: &Names, thresholds: &Thresholds) {
        let mut objects = Vec::new();
        let mut sums = Sums::default();
        for work in done.work {
            if names.is_systems(&work.rel) || self.rewritten.contains(&work.rel) {
                continue;
            }
            let mut object = names.object_of_file(&work.rel);
            let passing = done.folded.is_some_and(|folded| folded.passing.contains(&work.rel));
            // Rows of a TOAST table are pieces of values, those of a sequence are its state.
            if matches!(object.kind, ObjectKind::Toast | ObjectKind::Sequence) || passing {
                continue;
            }
            if let Some(folded) = done.folded {
                folded.as_before(&mut object, names);
            }
            sums.add(work);
            objects.push(object.with_rows(&work.rows));
        }
        let kinds = [
            (EventKind::Delete, sums.deleted >= thresholds.rows, Object::deletes as fn(&Object) -> bool),
            (EventKind::Update, sums.updated >= thresholds.rows, Object::updates),
            (EventKind::Load, sums.inserted >= thresholds.load_rows, Object::inserts),
        ];
        for (kind, _, does) in kinds.into_iter().filter(|(_, much, _)| *much) {
            let touched: Vec<Object> = objects.iter().filter(|object| does(object)).cloned().collect();
            if !touched.is_empty() {
                self.objects.entry(kind).or_default().extend(touched);
            }
        }
    }
}

impl Object {
    fn deletes(&self) -> bool {
        self.rows_deleted > 0
    }

    fn updates(&self) -> bool {
        self.rows_updated > 0
    }

    fn inserts(&self) -> bool {
        self.rows_inserted > 0
    }
}

/// What a mark is by itself, when it is something to tell.
pub(super) fn hit_of_mark(mark: &Mark, timeline: Timeline) -> Option<Hit> {
    let (kind, time, name, target, notes) = match &mark.kind {
        MarkKind::RestorePoint { name, time, .. } => {
            let name = String::from_utf8_lossy(name).into_owned();
            let target = HitTarget { lsn: mark.lsn, exclusive: false, restore_point: Some(name.clone()), backup: None };
            (EventKind::RestorePoint, Some(timestamp(*time)), Some(name), target, Vec::new())
        }
        MarkKind::EndOfRecovery { timeline, timeline_prev, .. }
        | MarkKind::Checkpoint { timeline, timeline_prev, .. }
            if timeline != timeline_prev =>
        {
            let time = match &mark.kind {
                MarkKind::EndOfRecovery { time, .. } => Some(timestamp(*time)),
                _ => None,
            };
            let target = HitTarget { lsn: mark.lsn, exclusive: true, restore_point: None, backup: None };
            let notes = vec![format!("timeline {timeline} went on from timeline {timeline_prev}")];
            (EventKind::TimelineSwitch, time, None, target, notes)
        }
        _ => return None,
    };
    Some(Hit {
        kind,
        time,
        xid: None,
        lsn: mark.lsn,
        timeline,
        objects: Vec::new(),
        objects_left_out: 0,
        rows: 0,
        wal_bytes: None,
        prepared: None,
        name,
        target,
        reachable: true,
        notes,
        marked_row: None,
        broken_off: false,
        must_be_marked: false,
    })
}
