//! Which relation a number is: from a backup's name map, brought forward by what transactions did to the catalogs.
//!
//! What is not certain has no name. Entries of what was dropped stay: their numbers are not given out again for a long
//! time, and a file that is made anew loses the name it had.

use super::fold::{RowEvent, Verb, What};
use super::types::{Object, ObjectKind};
use pg_format::{Fork, Lsn, PgMajor};
use pg_wal::index::{Catalog, ClassRow, RowChange};
use pg_wal::{Oid, RelFileLocator};
use repo::manifest::NameEntry;
use std::collections::HashMap;
use std::sync::Arc;

/// `FirstNormalObjectId` (`src/include/access/transam.h`): what has a lower OID was there from the beginning.
pub(super) const FIRST_NORMAL: u32 = 16384;

/// The kind of entries of a name map that stand for a schema.
const SCHEMA_ENTRY: u8 = b'n';

/// A relation's name.
#[derive(Debug, Clone)]
pub(super) struct Relation {
    pub(super) name: Arc<str>,
    /// Its schema by number, when a row of the catalog told it.
    namespace: Option<Oid>,
    /// Its schema by name, when a backup told it.
    schema: Option<Arc<str>>,
    pub(super) kind: u8,
    /// Its file, when it has one of its own.
    pub(super) file: Option<RelFileLocator>,
}

/// Names as they are at one place of the WAL.
#[derive(Debug, Default)]
pub(super) struct Names {
    /// By database and OID.
    relations: HashMap<(Oid, Oid), Relation>,
    files: HashMap<RelFileLocator, (Oid, Oid)>,
    schemas: HashMap<(Oid, Oid), Arc<str>>,
    databases: HashMap<Oid, Arc<str>>,
    tablespaces: HashMap<Oid, Arc<str>>,
    /// Where the relations of a database lie that have no tablespace of their own.
    homes: HashMap<Oid, Oid>,
    /// Schema names, each once.
    texts: HashMap<Box<str>, Arc<str>>,
    /// Rows from here on were written after the name map was read.
    pub(super) sure_from: Lsn,
}

pub(super) fn text(bytes: &[u8]) -> Arc<str> {
    String::from_utf8_lossy(bytes).into()
}

impl Names {
    /// Takes in entries of a backup's name map.
    pub(super) fn load(&mut self, entries: Vec<NameEntry>) {
        for entry in entries {
            let (database, oid) = (Oid(entry.database), Oid(entry.oid));
            if entry.relfilenode == 0 && entry.oid == 0 {
                if entry.database == 0 {
                    self.tablespaces.insert(Oid(entry.tablespace), entry.name.into());
                } else {
                    self.homes.insert(database, Oid(entry.tablespace));
                    self.databases.insert(database, entry.name.into());
                }
            } else if entry.kind == SCHEMA_ENTRY {
                self.schemas.insert((database, oid), entry.name.into());
            } else {
                let (tablespace, relfilenode) = (Oid(entry.tablespace), entry.relfilenode);
                let file = RelFileLocator { tablespace, database, relfilenode };
                let schema = self.shared(&entry.schema);
                let relation = Relation {
                    name: entry.name.into(),
                    namespace: None,
                    schema: Some(schema),
                    kind: entry.kind,
                    file: Some(file),
                };
                self.relations.insert((database, oid), relation);
                self.files.insert(file, (database, oid));
            }
        }
    }

    fn shared(&mut self, text: &str) -> Arc<str> {
        if let Some(known) = self.texts.get(text) {
            return known.clone();
        }
        let shared: Arc<str> = text.into();
        self.texts.insert(text.into(), shared.clone());
        shared
    }

    /// Forgets everything: WAL is missing, and what happened in it is not known.
    pub(super) fn clear(&mut self) {
        *self = Self::default();
    }

    /// A file is made: whatever had its number is gone.
    pub(super) fn file_made(&mut self, file: &RelFileLocator, fork: Fork) {
        if fork == Fork::Main {
            self.files.remove(file);
        }
    }

    pub(super) fn database_made(&mut self, database: Oid, tablespace: Oid) {
        self.homes.insert(database, tablespace);
    }

    /// Where a row's relation has its file; `None` when it has none of its own, or its place is not known.
    pub(super) fn file_of(&self, database: Oid, row: &ClassRow) -> Option<RelFileLocator> {
        if row.relfilenode == 0 {
            return None;
        }
        // Only shared relations lie in pg_global, and their database is 0.
        let shared = row.tablespace == Oid::GLOBAL_TABLESPACE;
        let tablespace = if row.tablespace.is_valid() { row.tablespace } else { *self.homes.get(&database)? };
        let database = if shared { Oid(0) } else { database };
        Some(RelFileLocator { tablespace, database, relfilenode: row.relfilenode })
    }

    /// What a committed transaction did to a catalog.
    pub(super) fn apply(&mut self, event: &RowEvent) {
        match &event.what {
            What::Class { old, new } => {
                if let Some(old) = old.as_ref().filter(|_| event.lsn >= self.sure_from) {
                    self.learn_schema(event.database, old);
                }
                if let Some(new) = new {
                    self.put(event.database, new);
                }
            }
            What::Named { catalog, new: Some((oid, name)), .. } => {
                let name = name.clone();
                match catalog {
                    Catalog::Namespace => drop(self.schemas.insert((event.database, *oid), name)),
                    Catalog::Database => drop(self.databases.insert(*oid, name)),
                    Catalog::Tablespace => drop(self.tablespaces.insert(*oid, name)),
                    Catalog::Class => {}
                }
            }
            What::Named { .. } => {}
        }
    }

    /// The row that was there until now says which schema it is in; a backup said how that is called.
    fn learn_schema(&mut self, database: Oid, row: &ClassRow) {
        let Some(relation) = self.relations.get_mut(&(database, row.oid)) else { return };
        if relation.namespace.is_none() && *relation.name == *String::from_utf8_lossy(&row.name) {
            relation.namespace = Some(row.namespace);
            if let Some(schema) = &relation.schema {
                self.schemas.entry((database, row.namespace)).or_insert_with(|| schema.clone());
            }
        }
    }

    fn put(&mut self, database: Oid, row: &ClassRow) {
        let file = self.file_of(database, row);
        if let Some(file) = file {
            self.files.insert(file, (database, row.oid));
        }
        let name = text(&row.name);
        let relation = Relation { name, namespace: Some(row.namespace), schema: None, kind: row.kind, file };
        self.relations.insert((database, row.oid), relation);
    }

    /// The relation that a file is of: its database and OID.
    pub(super) fn of_file(&self, file: &RelFileLocator) -> Option<((Oid, Oid), &Relation)> {
        let key = *self.files.get(file)?;
        Some((key, self.relations.get(&key)?))
    }

    /// A relation by its OID.
    pub(super) fn relation(&self, database: Oid, oid: Oid) -> Option<&Relation> {
        self.relations.get(&(database, oid))
    }

    /// The name of a schema; those that `initdb` makes have the same number everywhere (`catalog/pg_namespace.dat`).
    pub(super) fn schema(&self, database: Oid, oid: Oid) -> Option<Arc<str>> {
        let fixed = || match oid.0 {
            11 => Some("pg_catalog"),
            99 => Some("pg_toast"),
            2200 => Some("public"),
            _ => None,
        };
        self.schemas.get(&(database, oid)).cloned().or_else(|| fixed().map(Arc::from))
    }

    /// The name of a database.
    pub(super) fn database(&self, oid: Oid) -> Option<Arc<str>> {
        self.databases.get(&oid).cloned()
    }

    /// The name of a tablespace.
    pub(super) fn tablespace(&self, oid: Oid) -> Option<Arc<str>> {
        self.tablespaces.get(&oid).cloned()
    }

    /// Whether a file is of PostgreSQL's own: what it holds is no user's data.
    pub(super) fn is_systems(&self, file: &RelFileLocator) -> bool {
        file.relfilenode < FIRST_NORMAL || self.files.get(file).is_some_and(|(_, oid)| oid.0 < FIRST_NORMAL)
    }

    /// The object that a row of `pg_class` is.
    pub(super) fn object_of_row(&self, database: Oid, row: &ClassRow) -> Object {
        let mut object = Object::new(ObjectKind::of_relkind(row.kind), database);
        object.database = self.database(database).map(|name| name.to_string());
        object.schema = self.schema(database, row.namespace).map(|name| name.to_string());
        object.schema_oid = Some(row.namespace);
        object.name = Some(String::from_utf8_lossy(&row.name).into_owned());
        object.oid = Some(row.oid);
        object.file = self.file_of(database, row);
        object
    }

    /// The object that a relation is, by its OID.
    pub(super) fn object_of_oid(&self, database: Oid, oid: Oid) -> Object {
        let mut object = Object::new(ObjectKind::Relation, database);
        object.oid = Some(oid);
        object.database = self.database(database).map(|name| name.to_string());
        if let Some(relation) = self.relation(database, oid) {
            self.fill(&mut object, database, relation);
        }
        object
    }

    /// The object that a file belongs to; a TOAST table's is that of its table.
    pub(super) fn object_of_file(&self, file: &RelFileLocator) -> Object {
        let mut object = Object::new(ObjectKind::Relation, file.database);
        object.file = Some(*file);
        object.database = self.database(file.database).map(|name| name.to_string());
        if let Some(((database, oid), relation)) = self.of_file(file) {
            object.oid = Some(oid);
            self.fill(&mut object, database, relation);
        }
        object
    }

    fn fill(&self, object: &mut Object, database: Oid, relation: &Relation) {
        object.kind = ObjectKind::of_relkind(relation.kind);
        object.name = Some(relation.name.to_string());
        object.schema_oid = relation.namespace;
        object.file = object.file.or(relation.file);
        let schema = relation.namespace.and_then(|oid| self.schema(database, oid)).or_else(|| relation.schema.clone());
        object.schema = schema.map(|name| name.to_string());
    }
}

/// What a change of a catalog's row says, when it says anything of a name.
pub(super) fn read_change(change: &pg_wal::index::CatalogChange, rows: RowChange, major: PgMajor) -> Option<RowEvent> {
    use pg_wal::index::CatalogChangeKind as Kind;
    let (verb, at) = match &change.kind {
        Kind::Page { .. } => return None,
        Kind::Insert { at, .. } => (Verb::Insert, *at),
        Kind::Update { old, .. } => (Verb::Update, *old),
        Kind::Delete { at } => (Verb::Delete, *at),
    };
    let what = match change.catalog {
        Catalog::Class => {
            let read = |row: Option<pg_wal::index::RowImage>| row.and_then(|row| row.class(major));
            What::Class { old: read(rows.old), new: read(rows.new) }
        }
        catalog => {
            let read = |row: Option<pg_wal::index::RowImage>| {
                row.as_ref().and_then(|row| row.oid_and_name()).map(|(oid, name)| (oid, text(name)))
            };
            What::Named { catalog, old: read(rows.old), new: read(rows.new) }
        }
    };
    Some(RowEvent { lsn: change.lsn, database: change.database, at, verb, what })
}
