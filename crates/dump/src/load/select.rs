//! Which entries of a dump are loaded: all, those of some schemas, or some tables with everything that belongs to them.

use crate::DumpError;
use crate::archive::{Archive, Entry};
use std::collections::HashSet;

/// Which sections are loaded.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Parts {
    /// Tables, functions and all else that comes before the data.
    pub definitions: bool,
    /// Data.
    pub data: bool,
    /// Indexes, constraints, triggers: what comes after the data.
    pub indexes: bool,
}

/// What of a dump is loaded.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LoadSelection {
    /// Schemas, by name; none for all.
    pub schemas: Vec<String>,
    /// Tables, by `schema.name` or name; none for all.
    pub tables: Vec<String>,
    /// Which sections.
    pub parts: Parts,
    /// A list of entries, in the order in which they are done, as [`super::list`] gives it; none for the dump's own.
    pub list: Option<String>,
}

/// The dump IDs of the entries that are loaded.
pub(crate) type Wanted = HashSet<i32>;

/// What makes a session fit for the rest; always loaded.
const SETTINGS: [&[u8]; 3] = [b"ENCODING", b"STDSTRINGS", b"SEARCHPATH"];
/// What belongs to what it depends on.
const BELONGING: [&[u8]; 20] = [
    b"TABLE DATA",
    b"DEFAULT",
    b"SEQUENCE OWNED BY",
    b"SEQUENCE SET",
    b"INDEX",
    b"INDEX ATTACH",
    b"CONSTRAINT",
    b"CHECK CONSTRAINT",
    b"TRIGGER",
    b"RULE",
    b"POLICY",
    b"ROW SECURITY",
    b"STATISTICS",
    b"STATISTICS DATA",
    b"COMMENT",
    b"ACL",
    b"SECURITY LABEL",
    b"MATERIALIZED VIEW DATA",
    b"TABLE ATTACH",
    b"FK CONSTRAINT",
];
/// What can be named as a table.
const TABLES: [&[u8]; 5] = [b"TABLE", b"VIEW", b"MATERIALIZED VIEW", b"FOREIGN TABLE", b"SEQUENCE"];

impl LoadSelection {
    pub(crate) fn is_data_only(&self) -> bool {
        self.parts.data && !self.parts.definitions
    }

    pub(crate) fn wanted(&self, archive: &Archive) -> Result<Wanted, DumpError> {
        if self.schemas.is_empty() && self.tables.is_empty() {
            return Ok(archive.entries.iter().map(|entry| entry.dump_id).collect());
        }
        let mut wanted = Wanted::new();
        for name in &self.schemas {
            let found: Vec<i32> =
                archive.entries.iter().filter(|entry| in_schema(entry, name)).map(|entry| entry.dump_id).collect();
            if found.is_empty() {
                return Err(DumpError::not_found(
                    format!("the dump has no schema {name:?}"),
                    listed(archive, b"SCHEMA"),
                ));
            }
            wanted.extend(found);
        }
        for name in &self.tables {
            let found: Vec<i32> =
                archive.entries.iter().filter(|entry| is_table(entry, name)).map(|entry| entry.dump_id).collect();
            if found.is_empty() {
                return Err(DumpError::not_found(format!("the dump has no table {name:?}"), listed(archive, b"TABLE")));
            }
            wanted.extend(found);
        }
        belonging(archive, &mut wanted);
        let settings = archive.entries.iter().filter(|entry| SETTINGS.contains(&entry.kind()));
        wanted.extend(settings.map(|entry| entry.dump_id));
        Ok(wanted)
    }
}

fn in_schema(entry: &Entry, name: &str) -> bool {
    let own = entry.kind() == b"SCHEMA" && entry.tag.as_deref() == Some(name.as_bytes());
    own || entry.namespace.as_deref() == Some(name.as_bytes())
}

fn is_table(entry: &Entry, name: &str) -> bool {
    TABLES.contains(&entry.kind()) && (entry.label() == name || entry.tag.as_deref() == Some(name.as_bytes()))
}

fn listed(archive: &Archive, kind: &[u8]) -> String {
    let names: Vec<String> =
        archive.entries.iter().filter(|entry| entry.kind() == kind).take(20).map(Entry::label).collect();
    format!("it has {}", if names.is_empty() { "none".to_owned() } else { names.join(", ") })
}

/// Adds what belongs to the entries that are wanted, and what belongs to that.
fn belonging(archive: &Archive, wanted: &mut Wanted) {
    loop {
        let before = wanted.len();
        for entry in &archive.entries {
            let (kind, depends) = (entry.kind(), &entry.dependencies);
            if kind == b"SEQUENCE OWNED BY" && depends.iter().any(|id| wanted.contains(id)) {
                // The sequence of a serial column comes with its table.
                wanted.extend(
                    depends.iter().filter(|id| archive.entry(**id).is_some_and(|one| one.kind() == b"SEQUENCE")),
                );
            }
            // An identity column's sequence is part of its table.
            let identity =
                kind == b"SEQUENCE" && depends.iter().any(|id| wanted.contains(id) && is_plain_table(archive, *id));
            let belongs = match kind {
                // Both tables must be there.
                b"FK CONSTRAINT" => depends.iter().all(|id| wanted.contains(id)),
                _ => BELONGING.contains(&kind) && depends.iter().any(|id| wanted.contains(id)),
            };
            if !depends.is_empty() && (belongs || identity) {
                wanted.insert(entry.dump_id);
            }
        }
        if wanted.len() == before {
            return;
        }
    }
}

fn is_plain_table(archive: &Archive, id: i32) -> bool {
    archive.entry(id).is_some_and(|entry| entry.kind() == b"TABLE")
}

/// The list for pg_restore: wanted entries without data, in the archive's order (`SortTocFromFile` reads the numbers).
pub(crate) fn list(archive: &Archive, wanted: &Wanted, with_data: bool) -> String {
    let entries = archive.entries.iter().filter(|entry| wanted.contains(&entry.dump_id));
    entries
        .filter(|entry| with_data || !entry.has_data)
        // A database that is made for it is made before.
        .filter(|entry| !matches!(entry.kind(), b"DATABASE" | b"DATABASE PROPERTIES"))
        .map(|entry| format!("{};\n", entry.dump_id))
        .collect()
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;
    use crate::archive::Header;

    pub(in super::super) fn entry(dump_id: i32, kind: &str, schema: &str, tag: &str, dependencies: &[i32]) -> Entry {
        let text = |text: &str| Some(text.as_bytes().to_vec());
        Entry {
            dump_id,
            has_data: kind == "TABLE DATA",
            catalog_oid: 0,
            oid: 0,
            tag: text(tag),
            desc: text(kind),
            section: 2,
            definition: None,
            drop_statement: None,
            copy_statement: None,
            namespace: text(schema),
            tablespace: None,
            access_method: None,
            relkind: 0,
            owner: None,
            with_oids: text("false"),
            dependencies: dependencies.to_vec(),
        }
    }

    pub(in super::super) fn archive_of(entries: Vec<Entry>) -> Archive {
        let header = Header {
            minor: 14,
            revision: 0,
            int_size: 4,
            offset_size: 8,
            form: 1,
            compression: 0,
            created: [0; 7],
            database: None,
            server_version: None,
            tool_version: None,
        };
        Archive { header, entries }
    }

    fn archive() -> Archive {
        archive_of(vec![
            entry(1, "ENCODING", "", "ENCODING", &[]),
            entry(2, "SCHEMA", "", "s", &[]),
            entry(3, "TABLE", "s", "a", &[2]),
            entry(4, "SEQUENCE", "s", "a_id_seq", &[2]),
            entry(5, "SEQUENCE OWNED BY", "s", "a_id_seq", &[3, 4]),
            entry(6, "DEFAULT", "s", "a id", &[3, 4]),
            entry(7, "TABLE", "public", "b", &[]),
            entry(8, "TABLE DATA", "s", "a", &[3]),
            entry(9, "TABLE DATA", "public", "b", &[7]),
            entry(10, "CONSTRAINT", "s", "a a_pkey", &[3]),
            entry(11, "FK CONSTRAINT", "public", "b b_fk", &[7, 10]),
            entry(12, "SEQUENCE SET", "s", "a_id_seq", &[4]),
            entry(13, "COMMENT", "s", "CONSTRAINT a_pkey", &[10]),
        ])
    }

    fn wanted(schemas: &[&str], tables: &[&str]) -> Vec<i32> {
        let owned = |names: &[&str]| names.iter().map(|name| (*name).to_owned()).collect();
        let parts = Parts { definitions: true, data: true, indexes: true };
        let selection = LoadSelection { schemas: owned(schemas), tables: owned(tables), parts, list: None };
        let mut wanted: Vec<i32> = selection.wanted(&archive()).unwrap().into_iter().collect();
        wanted.sort_unstable();
        wanted
    }

    #[test]
    fn a_table_comes_with_what_belongs_to_it() {
        assert_eq!(wanted(&[], &[]).len(), 13);
        assert_eq!(wanted(&[], &["s.a"]), [1, 3, 4, 5, 6, 8, 10, 12, 13]);
        assert_eq!(wanted(&[], &["b"]), [1, 7, 9], "a foreign key needs both of its tables");
        assert_eq!(wanted(&[], &["a", "public.b"]).len(), 12);
        assert_eq!(wanted(&["s"], &[]), [1, 2, 3, 4, 5, 6, 8, 10, 12, 13]);
        let parts = Parts { definitions: true, data: true, indexes: true };
        let none = LoadSelection { schemas: Vec::new(), tables: vec!["x".into()], parts, list: None };
        assert!(none.wanted(&archive()).unwrap_err().to_string().contains("no table \"x\""));
        let all = archive().entries.iter().map(|entry| entry.dump_id).collect();
        assert!(!list(&archive(), &all, false).contains("8;") && list(&archive(), &all, true).starts_with("1;\n2;\n"));
    }
}
