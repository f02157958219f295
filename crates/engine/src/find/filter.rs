//! What is looked for: kinds, names, numbers.

use super::types::{EventKind, Hit, Object, ObjectKind};

/// The schema in which `pgkeep load` notes what is done, in the database that it loads; it goes at the end.
pub const LOAD_SCHEMA: &str = "pgkeep_load";

/// A name as people write it: `orders`, `sales.orders`, `shop.sales.orders`, with `*` for anything.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Pattern(String);

impl Pattern {
    /// From what was written. Quotes around it are taken off; letters count the same in both cases.
    pub fn new(text: &str) -> Self {
        Self(text.trim().trim_matches('"').to_lowercase())
    }

    /// Whether a name is meant.
    pub fn matches(&self, name: &str) -> bool {
        glob(self.0.as_bytes(), name.to_lowercase().as_bytes())
    }

    /// The relation's own name in it, without database and schema.
    pub(super) fn relation(&self) -> &str {
        self.0.rsplit('.').next().unwrap_or_default()
    }

    pub(super) fn matches_object(&self, object: &Object) -> bool {
        let names = [object.name.clone(), Some(object.label()), Some(object.to_string())];
        let number = |number: Option<pg_wal::Oid>| number.is_some_and(|number| self.0 == number.to_string());
        names.iter().flatten().any(|name| self.matches(name))
            || number(object.oid)
            || object.file.is_some_and(|file| self.0 == file.to_string())
    }
}

/// `*` stands for any bytes.
fn glob(pattern: &[u8], text: &[u8]) -> bool {
    match pattern.split_first() {
        None => text.is_empty(),
        Some((b'*', rest)) => (0..=text.len()).any(|skipped| glob(rest, &text[skipped..])),
        Some((byte, rest)) => text.split_first().is_some_and(|(first, text)| first == byte && glob(rest, text)),
    }
}

/// What is looked for. What is empty asks for nothing.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Filter {
    /// One of these kinds.
    pub kinds: Vec<EventKind>,
    /// That happened to one of these.
    pub objects: Vec<ObjectKind>,
    /// Names, all of which must be met: of a relation, schema, database or restore point.
    pub words: Vec<Pattern>,
    /// One of these relations.
    pub tables: Vec<Pattern>,
    /// In this schema.
    pub schema: Option<Pattern>,
    /// In this database.
    pub database: Option<Pattern>,
    /// By this transaction.
    pub xid: Option<u32>,
}

/// Words that mean a kind of event.
const KINDS: [(EventKind, &[&str]); 7] = [
    (EventKind::Drop, &["drop", "drops", "dropped"]),
    (EventKind::Truncate, &["truncate", "truncates", "truncated"]),
    (EventKind::Delete, &["delete", "deletes", "deleted"]),
    (EventKind::Update, &["update", "updates", "updated"]),
    (EventKind::Load, &["load", "loads", "loaded", "copy", "insert", "inserted"]),
    (EventKind::Rewrite, &["rewrite", "rewrites", "rewritten"]),
    (EventKind::RestorePoint, &["restore-point", "restore-points"]),
];

/// Words that mean a kind of object.
const OBJECTS: [(&[ObjectKind], &[&str]); 7] = [
    (&[ObjectKind::Table, ObjectKind::PartitionedTable], &["table", "tables"]),
    (&[ObjectKind::Index], &["index", "indexes"]),
    (&[ObjectKind::Schema], &["schema", "schemas"]),
    (&[ObjectKind::Database], &["database", "databases"]),
    (&[ObjectKind::View, ObjectKind::MaterializedView], &["view", "views"]),
    (&[ObjectKind::Sequence], &["sequence", "sequences"]),
    (&[ObjectKind::Tablespace], &["tablespace", "tablespaces"]),
];

impl Filter {
    /// From free words, such as `drop table orders`. What is no word for a kind is a name.
    pub fn of_words<'a>(words: impl IntoIterator<Item = &'a str>) -> Self {
        let mut filter = Self::default();
        for word in words.into_iter().flat_map(str::split_whitespace) {
            filter.add_word(word);
        }
        filter
    }

    fn add_word(&mut self, word: &str) {
        let lower = word.to_lowercase();
        if let Some((kind, _)) = KINDS.iter().find(|(_, words)| words.contains(&&*lower)) {
            self.kinds.push(*kind);
        } else if let Some((kinds, _)) = OBJECTS.iter().find(|(_, words)| words.contains(&&*lower)) {
            self.objects.extend(*kinds);
        } else {
            self.words.push(Pattern::new(word));
        }
    }

    /// Whether a name was asked for.
    pub fn has_names(&self) -> bool {
        !self.words.is_empty() || !self.tables.is_empty()
    }

    /// Whether a kind was asked for that counts rows.
    pub fn asks_for_rows(&self) -> bool {
        self.kinds.iter().any(|kind| matches!(kind, EventKind::Delete | EventKind::Update | EventKind::Load))
    }

    /// Whether this is what is looked for.
    pub fn matches(&self, hit: &Hit) -> bool {
        self.matches_kind(hit) && self.matches_names(hit) && (!is_of_load(hit) || self.asks_for_load())
    }

    /// Whether the notes of a load are asked for, by their schema or transaction.
    fn asks_for_load(&self) -> bool {
        let asked = self.words.iter().chain(&self.tables).chain(&self.schema);
        self.xid.is_some() || asked.into_iter().any(|pattern| pattern.0.contains(LOAD_SCHEMA))
    }

    /// The same without looking at names.
    pub(super) fn matches_kind(&self, hit: &Hit) -> bool {
        let kind = self.kinds.is_empty()
            || self.kinds.contains(&hit.kind)
            // It may have been that.
            || hit.kind == EventKind::FilesRemoved
                && self.kinds.iter().any(|kind| {
                    matches!(kind, EventKind::Drop | EventKind::Truncate | EventKind::Rewrite)
                });
        // A dropped table takes its indexes along; who asks for a dropped index means the index.
        let main = hit.objects.first().map(|object| object.kind);
        let object = self.objects.is_empty()
            || main.is_some_and(|main| self.objects.contains(&main) || main == ObjectKind::Relation);
        kind && object && self.xid.is_none_or(|xid| hit.xid == Some(xid))
    }

    fn matches_names(&self, hit: &Hit) -> bool {
        let any = |test: &dyn Fn(&Object) -> bool| hit.objects.iter().any(test);
        let named = |word: &Pattern| {
            hit.name.as_deref().is_some_and(|name| word.matches(name))
                || any(&|object| {
                    let near = [&object.schema, &object.database];
                    word.matches_object(object) || near.into_iter().flatten().any(|name| word.matches(name))
                })
        };
        self.words.iter().all(named)
            && (self.tables.is_empty() || any(&|object| self.tables.iter().any(|t| t.matches_object(object))))
            && self.schema.as_ref().is_none_or(|schema| any(&|object| in_schema(object, schema)))
            && self.database.as_ref().is_none_or(|database| {
                any(&|object| object.database.as_deref().is_some_and(|name| database.matches(name)))
            })
    }

    /// Names of this hit that are near to those that were asked for.
    pub(super) fn near(&self, hit: &Hit) -> Vec<String> {
        let asked = || self.words.iter().chain(&self.tables);
        let objects = hit.objects.iter().filter(|object| object.kind != ObjectKind::Toast);
        let near = objects
            .filter(|object| object.name.as_deref().is_some_and(|name| asked().any(|pattern| pattern.is_near(name))));
        near.map(Object::to_string).chain(hit.name.clone().filter(|name| asked().any(|p| p.is_near(name)))).collect()
    }
}

/// Whether all of it is notes that `pgkeep load` kept while it loaded: that they go is no mistake.
fn is_of_load(hit: &Hit) -> bool {
    let own = |object: &&Object| {
        let name = if object.kind == ObjectKind::Schema { &object.name } else { &object.schema };
        name.as_deref() == Some(LOAD_SCHEMA)
    };
    let mut main = hit.objects.iter().filter(|object| object.kind != ObjectKind::Toast);
    hit.objects.first().is_some_and(|first| own(&first)) && main.all(|object| own(&object) || in_toast(object))
}

fn in_toast(object: &Object) -> bool {
    object.schema.as_deref() == Some("pg_toast")
}

fn in_schema(object: &Object, schema: &Pattern) -> bool {
    let name = if object.kind == ObjectKind::Schema { &object.name } else { &object.schema };
    name.as_deref().is_some_and(|name| schema.matches(name))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_are_kinds_objects_or_names() {
        let filter = Filter::of_words(["Drop", "table sales.orders", "y"]);
        assert_eq!(filter.kinds, [EventKind::Drop]);
        assert_eq!(filter.objects, [ObjectKind::Table, ObjectKind::PartitionedTable]);
        assert_eq!(filter.words, [Pattern::new("sales.orders"), Pattern::new("Y")]);
        assert!(filter.has_names() && !filter.asks_for_rows());
        assert_eq!(Filter::of_words([""]), Filter::default());
    }

    #[test]
    fn notes_of_a_load_are_shown_to_who_asks_for_them() {
        let object = |kind, schema: &str, name: &str| {
            let mut object = Object::new(kind, pg_wal::Oid(5));
            object.schema = Some(schema.into());
            object.name = Some(name.into());
            object
        };
        let ours = vec![
            object(ObjectKind::Table, LOAD_SCHEMA, "done"),
            object(ObjectKind::Toast, "pg_toast", "pg_toast_16400"),
            object(ObjectKind::Index, "pg_toast", "pg_toast_16400_index"),
            object(ObjectKind::Schema, "", LOAD_SCHEMA),
        ];
        let mut both = ours.clone();
        both.push(object(ObjectKind::Table, "public", "orders"));
        let hit = |objects: Vec<Object>| Hit {
            kind: EventKind::Drop,
            time: None,
            xid: Some(7),
            lsn: pg_format::Lsn(1),
            timeline: pg_format::Timeline::FIRST,
            objects,
            objects_left_out: 0,
            rows: 0,
            wal_bytes: None,
            prepared: None,
            name: None,
            target: super::super::types::HitTarget {
                lsn: pg_format::Lsn(1),
                exclusive: true,
                restore_point: None,
                backup: None,
            },
            reachable: true,
            broken_off: false,
            notes: Vec::new(),
            marked_row: None,
            must_be_marked: false,
        };
        let asked = |words: &[&str], objects: &[Object]| {
            Filter::of_words(words.iter().copied()).matches(&hit(objects.to_vec()))
        };
        assert!(!asked(&[], &ours) && !asked(&["drop"], &ours) && !asked(&["done"], &ours));
        assert!(asked(&["pgkeep_load.*"], &ours) && asked(&["drop", "pgkeep_load.done"], &ours));
        assert!(Filter { xid: Some(7), ..Filter::default() }.matches(&hit(ours.clone())));
        assert!(asked(&[], &both) && asked(&["drop"], &both[3..]), "with something else it is shown");
    }

    #[test]
    fn names_are_met_as_people_write_them() {
        let mut object = Object::new(ObjectKind::Table, pg_wal::Oid(5));
        (object.database, object.schema, object.name) =
            (Some("shop".into()), Some("sales".into()), Some("Orders_2024".into()));
        object.oid = Some(pg_wal::Oid(16400));
        for (pattern, expect) in [
            ("orders_2024", true),
            ("\"Orders_2024\"", true),
            ("sales.orders_2024", true),
            ("shop.sales.orders_2024", true),
            ("orders*", true),
            ("*.orders*", true),
            ("16400", true),
            ("orders", false),
            ("public.orders_2024", false),
            ("", false),
        ] {
            assert_eq!(Pattern::new(pattern).matches_object(&object), expect, "{pattern}");
        }
    }
}
