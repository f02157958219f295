//! What a transaction did to the catalogs, taken together: which relations it made, dropped, or gave new files.

use super::names::{FIRST_NORMAL, Names, Relation};
use super::types::Object;
use pg_format::Lsn;
use pg_wal::index::{Catalog, ClassRow, RowPatch, TupleId};
use pg_wal::{Oid, RelFileLocator};
use std::collections::{BTreeMap, HashMap, HashSet};
use std::sync::Arc;

/// An OID and a name.
pub(super) type Named = (Oid, Arc<str>);

/// What was done to a row.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Verb {
    Insert,
    Update,
    Delete,
}

/// A change of a catalog's row.
#[derive(Debug, Clone)]
pub(super) struct RowEvent {
    pub(super) lsn: Lsn,
    /// The database, 0 for shared catalogs.
    pub(super) database: Oid,
    /// Where the row lies; of an update, the old version.
    pub(super) at: TupleId,
    pub(super) verb: Verb,
    pub(super) what: What,
}

/// The row before and after, as far as it is known.
#[derive(Debug, Clone)]
pub(super) enum What {
    /// `touched`: what an update may have changed, for when the new version is not known.
    Class {
        old: Option<ClassRow>,
        new: Option<ClassRow>,
        touched: Touched,
    },
    Named {
        catalog: Catalog,
        old: Option<Named>,
        new: Option<Named>,
    },
}

impl RowEvent {
    /// The catalog that the row is of.
    pub(super) fn catalog(&self) -> Catalog {
        match &self.what {
            What::Class { .. } => Catalog::Class,
            What::Named { catalog, .. } => *catalog,
        }
    }
}

/// Which columns of a row of `pg_class` an update may have changed, by the bytes that it did not leave out.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Touched {
    /// None that names or files come from.
    Nothing,
    /// The file or the tablespace, not the name nor the schema.
    File,
    /// Any.
    All,
}

impl Touched {
    /// `catalog/pg_class.h`: OID, name and schema take the first 72 bytes; file and tablespace end at 96.
    pub(super) fn by_patch(patch: &RowPatch) -> Self {
        match patch.prefix {
            96.. => Self::Nothing,
            72.. => Self::File,
            _ => Self::All,
        }
    }
}

/// What came of one relation.
#[derive(Debug, Clone, Default)]
pub(super) struct RelationChange {
    /// As it was before; `None` when the transaction made it, or when it is not known.
    pub(super) before: Option<ClassRow>,
    /// What was known of it before, when its row was not.
    known: Option<Relation>,
    /// As it was last.
    pub(super) last: Option<ClassRow>,
    /// As it is after; `None` when it was dropped, or when that is not known.
    pub(super) after: Option<ClassRow>,
    pub(super) made: bool,
    pub(super) dropped: bool,
    /// Its file before.
    pub(super) file_before: Option<RelFileLocator>,
    /// Its file after was another relation's, with what is in it.
    pub(super) swapped: bool,
}

/// All that a transaction did to the catalogs.
#[derive(Debug, Clone, Default)]
pub(super) struct Folded {
    /// By database and OID; those that came and went in the transaction are left out.
    pub(super) relations: BTreeMap<(Oid, Oid), RelationChange>,
    /// Tables that were written anew: a passing `pg_temp_OID` bears their OID (`make_new_heap`, `commands/cluster.c`).
    pub(super) rewritten: HashSet<(Oid, Oid)>,
    /// The files of those passing tables.
    pub(super) passing: HashSet<RelFileLocator>,
    /// Files of relations that are named here or came and went: their removal needs no other explanation.
    pub(super) files: HashSet<RelFileLocator>,
    /// Schemas dropped: database, OID and name when they are known.
    pub(super) schemas: Vec<(Oid, Option<Named>)>,
    /// How schemas were called that it renamed.
    pub(super) schemas_before: HashMap<(Oid, Oid), Arc<str>>,
    /// Databases dropped, with the place of their row and of the record that deletes it.
    pub(super) databases: Vec<(Option<Named>, TupleId, Lsn)>,
    /// Rows of `pg_class` that changed in a way that is not known.
    pub(super) unknown: u64,
    /// The relations that files are given to.
    owners: HashMap<RelFileLocator, (Oid, Oid)>,
}

impl Folded {
    /// Takes together what a transaction did, in the order of the WAL; `names` are those before it.
    pub(super) fn of(events: &[RowEvent], names: &Names) -> Self {
        let mut folded = Self::default();
        for event in events {
            match &event.what {
                What::Class { old, new, .. } => folded.class(event, old.as_ref(), new.as_ref(), names),
                What::Named { catalog, old, .. } if event.verb == Verb::Delete => match catalog {
                    Catalog::Namespace => folded.schemas.push((event.database, old.clone())),
                    Catalog::Database => folded.databases.push((old.clone(), event.at, event.lsn)),
                    // A mark tells of those.
                    Catalog::Tablespace | Catalog::Class => {}
                },
                What::Named { catalog: Catalog::Namespace, old, new: Some((oid, _)) } if event.verb == Verb::Update => {
                    let before = old.as_ref().map(|(_, name)| name.clone());
                    if let Some(before) = before.or_else(|| names.schema(event.database, *oid)) {
                        folded.schemas_before.entry((event.database, *oid)).or_insert(before);
                    }
                }
                What::Named { .. } => {}
            }
        }
        folded.relations.retain(|_, change| !(change.made && change.dropped));
        folded
    }

    /// Gives an object the name it had before the transaction, when that renamed or moved it: so it is called at the target.
    pub(super) fn as_before(&self, object: &mut Object, names: &Names) {
        let database = object.database_oid;
        match object.oid.and_then(|oid| self.relations.get(&(database, oid))) {
            Some(RelationChange { before: Some(row), .. }) => {
                object.name = Some(String::from_utf8_lossy(&row.name).into_owned());
                let schema = names.schema(database, row.namespace).map(|name| name.to_string());
                if schema.is_some() || object.schema_oid.is_some_and(|oid| oid != row.namespace) {
                    (object.schema_oid, object.schema) = (Some(row.namespace), schema);
                }
            }
            Some(RelationChange { known: Some(relation), .. }) => names.fill(object, database, relation),
            // It may have got the name that it has now.
            Some(RelationChange { made: false, .. }) => {
                (object.name, object.schema_oid, object.schema) = (None, None, None);
            }
            _ => {}
        }
        let schema = object.schema_oid.and_then(|oid| self.schemas_before.get(&(database, oid)));
        if let Some(schema) = schema {
            object.schema = Some(schema.to_string());
        }
    }

    fn class(&mut self, event: &RowEvent, old: Option<&ClassRow>, new: Option<&ClassRow>, names: &Names) {
        let database = event.database;
        let Some(row) = new.or(old) else {
            self.unknown += 1;
            return;
        };
        if new.is_none() && event.verb != Verb::Delete {
            self.unknown += 1;
        }
        if row.oid.0 < FIRST_NORMAL {
            return;
        }
        self.files.extend([old, new].into_iter().flatten().filter_map(|row| names.file_of(database, row)));
        if let Some(owner) = passing(row)
            && event.verb == Verb::Insert
        {
            self.rewritten.insert((database, owner));
            self.passing.extend(names.file_of(database, row));
        }
        let key = (database, row.oid);
        let file_after = new.and_then(|new| names.file_of(database, new));
        let owner = file_after.and_then(|file| self.owners.insert(file, key).or_else(|| Some(names.of_file(&file)?.0)));
        let change = self.relations.entry(key).or_insert_with(|| RelationChange {
            before: old.cloned(),
            known: names.relation(database, row.oid).filter(|_| old.is_none()).cloned(),
            made: event.verb == Verb::Insert,
            file_before: old
                .and_then(|old| names.file_of(database, old))
                // The old version is not known, but whose it is.
                .or_else(|| names.relation(database, row.oid)?.file),
            ..RelationChange::default()
        });
        change.after = new.cloned();
        change.last = Some(row.clone());
        change.dropped = event.verb == Verb::Delete;
        change.swapped |= owner.is_some_and(|owner| owner != key);
        self.files.extend(change.file_before);
    }
}

/// The table that a passing one is the new form of.
pub(super) fn passing(row: &ClassRow) -> Option<Oid> {
    let number = row.name.strip_prefix(b"pg_temp_")?;
    std::str::from_utf8(number).ok()?.parse().ok().map(Oid)
}
