//! Which relation a number is: from a backup's name map, brought forward by what transactions did to the catalogs.
//!
//! What is not certain has no name. Entries of what was dropped stay: their numbers are not given out again for a long
//! time, and a file that is made anew loses the name it had.

use super::doubt::Doubt;
use super::fold::{RowEvent, Touched, Verb, What, passing};
use super::types::{Object, ObjectKind};
use pg_format::{Fork, Lsn, PgMajor};
use pg_wal::index::{Catalog, CatalogRow, ClassRow, RowChange};
use pg_wal::{Oid, RelFileLocator};
use repo::manifest::NameEntry;
use std::collections::{HashMap, HashSet};
use std::sync::Arc;

/// `FirstNormalObjectId` (`src/include/access/transam.h`): what has a lower OID was there from the beginning.
pub(super) const FIRST_NORMAL: u32 = 16384;

/// The kind of entries of a name map that stand for a schema.
const SCHEMA_ENTRY: u8 = b'n';
/// The schema `public`, as `initdb` makes it (`catalog/pg_namespace.dat`).
const PUBLIC: Oid = Oid(2200);
/// `pg_largeobject` and `pg_largeobject_metadata` (`catalog/pg_largeobject*.h`): catalogs that hold users' data.
const LARGE_OBJECTS: [(u32, &str); 2] = [(2613, "pg_largeobject"), (2995, "pg_largeobject_metadata")];

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
    /// Databases of which it is not known how their schemas are called.
    schemas_unsure: HashSet<Oid>,
    /// Somewhere the schema `public` got another name; a database may have been made after that model.
    public_renamed: bool,
    /// Where names were lost, so that those of an earlier backup do not hold either.
    pub(super) doubts: Vec<Doubt>,
    /// What committed before this is in the name map.
    pub(super) from: Lsn,
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
                self.name_schema(database, oid, entry.name.into());
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

    /// Forgets everything: WAL is missing from here on, and what happened in it is not known.
    pub(super) fn clear(&mut self, lsn: Lsn) {
        let mut doubts = std::mem::take(&mut self.doubts);
        doubts.push(Doubt::at(None, lsn));
        // Any schema, also `public`, may have got another name.
        *self = Self { doubts, public_renamed: true, ..Self::default() };
    }

    fn name_schema(&mut self, database: Oid, oid: Oid, name: Arc<str>) {
        self.public_renamed |= oid == PUBLIC && &*name != "public";
        self.schemas.insert((database, oid), name);
    }

    /// Catalogs that do not lie in the file they had first.
    pub(super) fn moved_catalogs(&self) -> Vec<(Oid, Catalog, u32)> {
        let databases = self.databases.keys().copied().chain([Oid(0)]);
        let found = databases.flat_map(|database| Catalog::ALL.map(|catalog| (database, catalog)));
        let found = found.filter_map(|(database, catalog)| {
            let file = self.relations.get(&(database, catalog.oid()))?.file?.relfilenode;
            (file != catalog.oid().0).then_some((database, catalog, file))
        });
        found.collect()
    }

    /// A catalog has another file, as a relation map says.
    pub(super) fn catalog_moved(&mut self, database: Oid, catalog: Oid, relfilenode: u32) {
        let shared = !database.is_valid();
        let Some(tablespace) = (if shared { Some(Oid::GLOBAL_TABLESPACE) } else { self.home(database) }) else {
            return;
        };
        self.files.insert(RelFileLocator { tablespace, database, relfilenode }, (database, catalog));
    }

    /// Rows of a catalog changed, and it is not known which or how: none of its names is certain any more.
    pub(super) fn lose(&mut self, database: Oid, catalog: Catalog, lsn: Lsn) {
        if lsn < self.from {
            return;
        }
        match catalog {
            Catalog::Class => self.relations.retain(|(of, _), _| *of != database),
            Catalog::Namespace => {
                self.schemas.retain(|(of, _), _| *of != database);
                self.schemas_unsure.insert(database);
                let relations = self.relations.iter_mut().filter(|((of, _), _)| *of == database);
                relations.for_each(|(_, relation)| relation.schema = None);
            }
            Catalog::Database => self.databases.clear(),
            Catalog::Tablespace => self.tablespaces.clear(),
        }
        let database = Some(database).filter(|database| database.is_valid());
        self.doubts.push(Doubt::at(database, lsn));
    }

    /// `pg_namespace` lies somewhere else from here on, and it is not known where: what happens to schemas is not seen.
    pub(super) fn lose_sight_of_schemas(&mut self, database: Oid, lsn: Lsn) {
        self.lose(database, Catalog::Namespace, lsn);
        self.doubts.push(Doubt { database: Some(database), lsn, schemas_until: Lsn::MAX });
    }

    /// It is known again where `pg_namespace` lies.
    pub(super) fn see_schemas(&mut self, database: Oid, lsn: Lsn) {
        for doubt in &mut self.doubts {
            if doubt.database == Some(database) && doubt.schemas_until == Lsn::MAX {
                doubt.schemas_until = lsn;
            }
        }
    }

    /// A file is made: whatever had its number is gone.
    pub(super) fn file_made(&mut self, file: &RelFileLocator, fork: Fork) {
        if fork == Fork::Main {
            self.files.remove(file);
            if file.relfilenode == Catalog::Namespace.oid().0 {
                // Numbers below `FIRST_NORMAL` are not given out again: a new database's schemas lie where they should.
                self.schemas_unsure.remove(&file.database);
            }
        }
    }

    pub(super) fn database_made(&mut self, database: Oid, tablespace: Oid) {
        self.homes.insert(database, tablespace);
    }

    /// A database is copied page by page, from which one is not told: its schemas may lie anywhere.
    pub(super) fn database_written(&mut self, database: Oid) {
        self.schemas_unsure.insert(database);
    }

    /// A database's files are copied to another one as they are: numbers and names stay.
    pub(super) fn database_copied(&mut self, from: (Oid, Oid), to: (Oid, Oid)) {
        let ((source, old), (database, new)) = (from, to);
        let place = |file: RelFileLocator| RelFileLocator { tablespace: new, database, ..file };
        let lies_there = |file: &Option<RelFileLocator>| file.is_some_and(|file| file.tablespace == old);
        let copied: Vec<(Oid, Relation)> = self
            .relations
            .iter()
            .filter(|((of, _), relation)| *of == source && lies_there(&relation.file))
            .map(|((_, oid), relation)| (*oid, Relation { file: relation.file.map(place), ..relation.clone() }))
            .collect();
        for (oid, relation) in copied {
            self.files.extend(relation.file.map(|file| (file, (database, oid))));
            self.relations.insert((database, oid), relation);
        }
        if source == database {
            return;
        }
        let schemas: Vec<_> = self.schemas.iter().filter(|((of, _), _)| *of == source).collect();
        let schemas: Vec<_> = schemas.into_iter().map(|((_, oid), name)| ((database, *oid), name.clone())).collect();
        self.schemas.extend(schemas);
        if self.schemas_unsure.contains(&source) {
            self.schemas_unsure.insert(database);
        }
    }

    /// The database went from one tablespace to another (`ALTER DATABASE ... SET TABLESPACE`).
    pub(super) fn database_moved(&mut self, database: Oid, from: Oid, to: Oid) {
        self.database_copied((database, from), (database, to));
        self.homes.insert(database, to);
    }

    /// Where the relations of a database lie that have no tablespace of their own.
    pub(super) fn home(&self, database: Oid) -> Option<Oid> {
        self.homes.get(&database).copied()
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
        let database = event.database;
        match &event.what {
            What::Class { old, new, touched } => {
                if let Some(old) = old.as_ref().filter(|_| event.lsn >= self.sure_from) {
                    self.learn_schema(database, old);
                }
                match (new, old) {
                    (Some(new), _) => self.put(database, new),
                    (None, _) if event.verb != Verb::Update || *touched == Touched::Nothing => {}
                    // It may have another name or schema now.
                    (None, Some(old)) => drop(self.relations.remove(&(database, old.oid))),
                    // Its name and schema are what they were, whichever it is.
                    (None, None) if *touched == Touched::File => {}
                    (None, None) => self.lose(database, Catalog::Class, event.lsn),
                }
            }
            What::Named { catalog, old, new: Some((oid, name)) } => {
                let name = name.clone();
                match catalog {
                    Catalog::Namespace => {
                        let before = old.as_ref().map(|(_, name)| name.clone());
                        let before = before.or_else(|| self.schemas.get(&(database, *oid)).cloned());
                        if event.verb == Verb::Update && before.as_ref() != Some(&name) {
                            self.schema_renamed(database, *oid, before.as_deref());
                        }
                        self.name_schema(database, *oid, name);
                    }
                    Catalog::Database => drop(self.databases.insert(*oid, name)),
                    Catalog::Tablespace => drop(self.tablespaces.insert(*oid, name)),
                    Catalog::Class => {}
                }
            }
            What::Named { catalog, new: None, .. } if event.verb == Verb::Update => {
                self.lose(database, *catalog, event.lsn);
            }
            What::Named { .. } => {}
        }
    }

    /// Relations of which a backup said their schema by its name follow it to its new one.
    fn schema_renamed(&mut self, database: Oid, oid: Oid, before: Option<&str>) {
        let relations =
            self.relations.iter_mut().filter(|((of, _), relation)| *of == database && relation.namespace.is_none());
        for (_, relation) in relations {
            match before {
                Some(before) if relation.schema.as_deref() == Some(before) => relation.namespace = Some(oid),
                // Any of them may be in it.
                None => relation.schema = None,
                Some(_) => {}
            }
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
        // Its file becomes that of the table it is made for.
        if passing(row).is_some() {
            return;
        }
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
        let fixed = || match oid {
            Oid(11) => Some("pg_catalog"),
            Oid(99) => Some("pg_toast"),
            PUBLIC if !self.public_renamed && !self.schemas_unsure.contains(&database) => Some("public"),
            _ => None,
        };
        self.schemas.get(&(database, oid)).cloned().or_else(|| fixed().map(Arc::from))
    }

    /// The name of a database.
    pub(super) fn database(&self, oid: Oid) -> Option<Arc<str>> {
        self.databases.get(&oid).cloned()
    }

    /// The names of all databases.
    pub(super) fn databases(&self) -> impl Iterator<Item = &str> {
        self.databases.values().map(|name| &**name)
    }

    /// The relations of users that are tables or views, with their names.
    pub(super) fn users(&self) -> impl Iterator<Item = ((Oid, Oid), &str)> {
        let tables = self.relations.iter().filter(|((_, oid), relation)| {
            oid.0 >= FIRST_NORMAL && matches!(relation.kind, b'r' | b'p' | b'm' | b'v' | b'f')
        });
        tables.map(|(key, relation)| (*key, &*relation.name))
    }

    /// The name of a tablespace.
    pub(super) fn tablespace(&self, oid: Oid) -> Option<Arc<str>> {
        self.tablespaces.get(&oid).cloned()
    }

    /// Whether a file is of PostgreSQL's own: what it holds is no user's data. Large objects are.
    pub(super) fn is_systems(&self, file: &RelFileLocator) -> bool {
        let known = self.files.get(file).map(|(_, oid)| oid.0);
        known.unwrap_or(file.relfilenode) < FIRST_NORMAL && large_objects(known.unwrap_or(file.relfilenode)).is_none()
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
        } else if let Some(name) = large_objects(file.relfilenode) {
            object.kind = ObjectKind::Table;
            (object.schema, object.name) = (Some("pg_catalog".into()), Some(name.to_owned()));
        }
        object
    }

    /// Calls an object as this relation is called.
    pub(super) fn fill(&self, object: &mut Object, database: Oid, relation: &Relation) {
        object.kind = ObjectKind::of_relkind(relation.kind);
        object.name = Some(relation.name.to_string());
        object.schema_oid = relation.namespace;
        object.file = object.file.or(relation.file);
        let schema = relation.namespace.and_then(|oid| self.schema(database, oid)).or_else(|| relation.schema.clone());
        object.schema = schema.map(|name| name.to_string());
    }
}

/// The name of a catalog that holds large objects.
pub(super) fn large_objects(number: u32) -> Option<&'static str> {
    LARGE_OBJECTS.into_iter().find(|(oid, _)| *oid == number).map(|(_, name)| name)
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
            let touched = match &change.kind {
                Kind::Update { row: CatalogRow::Patch(patch), .. } => Touched::by_patch(patch),
                _ => Touched::All,
            };
            let read = |row: Option<pg_wal::index::RowImage>| row.and_then(|row| row.class(major));
            What::Class { old: read(rows.old), new: read(rows.new), touched }
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
