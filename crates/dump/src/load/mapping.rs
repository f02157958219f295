//! Other names for schemas, owners and tablespaces: a table of contents as it would be, had things been named so.
//!
//! Owners, tablespaces and the schemas of objects have places of their own in the table of contents. Inside of statements, names
//! are found word by word, and in queries by what stands where (`positions`). What functions have between quotes is theirs: it
//! stays, and who loads is told. All names change at once, so that two can change places.

use super::positions;
use super::select::Wanted;
use super::words::{Word, bodies, name_of, words};
use crate::archive::{Archive, Entry, Text};
use crate::names::{literal, parts_of, quoted};
use std::collections::HashSet;

/// Old and new names.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Mapping {
    /// Of schemas.
    pub schemas: Vec<(String, String)>,
    /// Of roles that own something, or have privileges.
    pub owners: Vec<(String, String)>,
    /// Of tablespaces.
    pub tablespaces: Vec<(String, String)>,
}

/// Words after which a role stands.
const BEFORE_ROLES: [&str; 5] = ["TO", "FROM", "ROLE", "AUTHORIZATION", "FOR"];
/// What speaks of roles in its statement.
const OF_ROLES: [&[u8]; 6] = [b"ACL", b"DEFAULT ACL", b"POLICY", b"USER MAPPING", b"SCHEMA", b"DATABASE PROPERTIES"];
/// What has queries in its definition, and with them columns of what is named there.
const WITH_QUERIES: [&[u8]; 7] =
    [b"VIEW", b"MATERIALIZED VIEW", b"RULE", b"POLICY", b"TRIGGER", b"FUNCTION", b"PROCEDURE"];
/// What stands for rows in rules, triggers and ON CONFLICT.
const ROWS: [&str; 3] = ["new", "old", "excluded"];

impl Mapping {
    /// Whether nothing is called otherwise.
    pub fn is_empty(&self) -> bool {
        self.schemas.is_empty() && self.owners.is_empty() && self.tablespaces.is_empty()
    }

    /// Gives new names to what an archive has. Schemas that are new are made when they are not there. Gives what a human should
    /// look at.
    pub(crate) fn apply(&self, archive: &mut Archive, wanted: &mut Wanted) -> Vec<String> {
        let mut warnings = Vec::new();
        let renamed: Vec<Renamed<'_>> =
            self.schemas.iter().map(|(old, new)| Renamed { old, new, known: known(archive, wanted, old) }).collect();
        for entry in &mut archive.entries {
            if let Some(new) = other(&self.tablespaces, &entry.tablespace) {
                entry.tablespace = Some(new);
            }
            if matches!(entry.kind(), b"DATABASE" | b"DATABASE PROPERTIES") && !self.tablespaces.is_empty() {
                in_texts(entry, |text| tablespaces(text, &self.tablespaces));
            }
            if let Some(new) = other(&self.owners, &entry.owner) {
                entry.owner = Some(new);
            }
            if OF_ROLES.contains(&entry.kind()) && !self.owners.is_empty() {
                in_texts(entry, |text| roles(text, &self.owners));
            }
            if renamed.is_empty() {
                continue;
            }
            let body = entry.definition.as_deref().map(String::from_utf8_lossy).unwrap_or_default().into_owned();
            for old in self.schemas.iter().map(|(old, _)| old) {
                if wanted.contains(&entry.dump_id) && bodies(&body).any(|body| body.contains(&format!("{old}."))) {
                    warnings.push(format!("{} still speaks of schema {old} in its body", entry.label()));
                }
            }
            let queries = WITH_QUERIES.contains(&entry.kind());
            in_texts(entry, |text| schemas(text, &renamed, queries));
            if let Some(new) = other(&self.schemas, &entry.namespace) {
                entry.namespace = Some(new);
            }
        }
        // Each under the place that it had: one may have the old name of another.
        let places: Vec<Option<usize>> = self.schemas.iter().map(|(old, _)| made_at(archive, old)).collect();
        let mut made = Vec::new();
        for ((_, new), place) in self.schemas.iter().zip(places) {
            made.extend(make_schema(archive, wanted, place, new));
        }
        made.into_iter().for_each(|entry| archive.entries.insert(0, entry));
        warnings
    }

    /// For the record of a load.
    pub(super) fn in_words(&self) -> String {
        let mut words = String::new();
        for (what, names) in
            [("--map-schema", &self.schemas), ("--map-owner", &self.owners), ("--map-tablespace", &self.tablespaces)]
        {
            names.iter().for_each(|(old, new)| words += &format!(", {what} {old}={new}"));
        }
        words
    }
}

/// A schema that has another name.
struct Renamed<'a> {
    old: &'a str,
    new: &'a str,
    /// What `old.name` can mean; none when it can mean anything.
    known: Option<HashSet<String>>,
}

impl Renamed<'_> {
    fn has(&self, name: &str) -> bool {
        self.known.as_ref().is_none_or(|known| known.contains(name))
    }
}

fn is(text: &Text, name: &str) -> bool {
    text.as_deref() == Some(name.as_bytes())
}

/// The other name, when there is one.
fn other(names: &[(String, String)], text: &Text) -> Text {
    names.iter().find(|(old, _)| is(text, old)).map(|(_, new)| new.clone().into_bytes())
}

/// Where the entry is that makes a schema.
fn made_at(archive: &Archive, name: &str) -> Option<usize> {
    archive.entries.iter().position(|entry| entry.is("SCHEMA") && is(&entry.tag, name))
}

/// The entry that makes a schema makes it under its new name, if it is not there; gives a new one where there is none.
fn make_schema(archive: &mut Archive, wanted: &mut Wanted, at: Option<usize>, new: &str) -> Option<Entry> {
    let owner = at.and_then(|at| archive.entries[at].owner.clone()).and_then(|owner| String::from_utf8(owner).ok());
    let owner = owner.filter(|owner| !owner.is_empty()).map(|owner| format!(" AUTHORIZATION {}", quoted(&owner)));
    // With the comment before it pg_restore takes it as it stands.
    let sql = |owner: &str| format!("-- if it is not there\nCREATE SCHEMA IF NOT EXISTS {}{owner};\n", quoted(new));
    match at {
        Some(at) if wanted.contains(&archive.entries[at].dump_id) => {
            let entry = &mut archive.entries[at];
            entry.definition = Some(sql(owner.as_deref().unwrap_or_default()).into_bytes());
            (entry.tag, entry.owner) = (Some(new.as_bytes().to_vec()), Some(Vec::new()));
            None
        }
        _ => {
            let known = archive.entries.iter().map(|entry| entry.dump_id).chain(wanted.iter().copied());
            let free = known.max().unwrap_or(0) + 1;
            let mut entry = super::restore::statement(free, &sql(""));
            entry.tag = Some(format!("schema {new}").into_bytes());
            wanted.insert(free);
            Some(entry)
        }
    }
}

/// The names that are there in a schema: what `schema.name` can mean. None when an extension comes with objects there that the
/// table of contents does not name.
fn known(archive: &Archive, wanted: &Wanted, schema: &str) -> Option<HashSet<String>> {
    let extends = |entry: &&Entry| entry.is("EXTENSION") && wanted.contains(&entry.dump_id);
    let places = [format!("WITH SCHEMA {schema};"), format!("WITH SCHEMA {};", quoted(schema))];
    if archive.entries.iter().filter(extends).any(|entry| {
        let text = String::from_utf8_lossy(entry.definition.as_deref().unwrap_or_default()).into_owned();
        places.iter().any(|place| text.contains(place.as_str()))
    }) {
        return None;
    }
    let of_schema = archive.entries.iter().filter(|entry| is(&entry.namespace, schema));
    let mut known = HashSet::new();
    for entry in of_schema {
        let tag = String::from_utf8_lossy(entry.tag.as_deref().unwrap_or_default()).into_owned();
        known.insert(tag.split('(').next().unwrap_or_default().to_owned());
        // A constraint's tag is its table's name and its own.
        known.extend(tag.match_indices(' ').map(|(at, _)| tag[at + 1..].to_owned()));
        known.insert(tag);
    }
    Some(known)
}

fn in_texts(entry: &mut Entry, change: impl Fn(&str) -> String) {
    for text in [&mut entry.definition, &mut entry.drop_statement, &mut entry.copy_statement] {
        let changed = text.as_deref().and_then(|text| std::str::from_utf8(text).ok()).map(&change);
        if let Some(changed) = changed {
            *text = Some(changed.into_bytes());
        }
    }
}

/// Whether something else than a schema has this name in a statement: an alias, a table, a column.
fn is_ambiguous(words: &[Word<'_>], name: &str) -> bool {
    let mut last = None;
    let mut found = ROWS.contains(&name);
    for (at, word) in words.iter().enumerate() {
        let dots = words.get(at + 1) == Some(&Word::Other(".")) || last == Some(Word::Other("."));
        found |= word.names(name) && !dots && !last.is_some_and(|last| last.keyword(&["SCHEMA"]));
        // A table of the same name: its columns are called by it.
        found |= word.names(name) && last == Some(Word::Other("."));
        if !matches!(word, Word::Space(_)) {
            last = Some(*word);
        }
    }
    found
}

/// `old.name` and `SCHEMA old` get the new schema, also in the literals that name a relation, in a function's `search_path`, and in
/// statistics.
fn schemas(sql: &str, renamed: &[Renamed<'_>], queries: bool) -> String {
    let words = words(sql);
    let ambiguous: Vec<bool> = renamed.iter().map(|one| queries && is_ambiguous(&words, one.old)).collect();
    let positions = if ambiguous.contains(&true) { positions::qualify(&words) } else { Vec::new() };
    let mut out = String::with_capacity(sql.len());
    // The last two that are no space.
    let mut before: [Option<Word<'_>>; 2] = [None, None];
    // The literal before the last comma: statistics are named arguments, each behind its name.
    let mut argument: Option<&str> = None;
    let mut in_path = false;
    for (at, word) in words.iter().enumerate() {
        let after = |n: usize| words.get(at + n).copied();
        let followed = after(1) == Some(Word::Other(".")) && before[1] != Some(Word::Other("."));
        let is_schema = before[1].is_some_and(|before| before.keyword(&["SCHEMA"]));
        if word.text().contains('\n') {
            in_path = false;
        } else if word.names("search_path") {
            in_path = true;
        }
        match *word {
            name @ Word::Name(text) => {
                let found = renamed.iter().zip(&ambiguous).find(|(one, _)| name.names(one.old));
                let new = found.filter(|(one, ambiguous)| {
                    let qualifies = match after(2) {
                        Some(Word::Name(name)) => one.has(&name_of(name)),
                        // An operator.
                        Some(Word::Other(_)) => true,
                        _ => false,
                    };
                    is_schema || followed && qualifies && (!**ambiguous || positions.get(at) == Some(&true))
                });
                out += &new.map_or_else(|| text.to_owned(), |(one, _)| quoted(one.new));
            }
            Word::Literal(text) => {
                let cast = [3, 5].iter().any(|n| after(*n).is_some_and(|word| word.names("regclass")));
                let cast = cast && after(1) == Some(Word::Other(":"));
                let of_sequence = before[1] == Some(Word::Other("("))
                    && before[0].is_some_and(|before| before.keyword(&["setval", "nextval"]));
                let inside = text.trim_matches('\'').replace("''", "'");
                let relation = parts_of(&inside).filter(|_| cast || of_sequence).and_then(|(schema, name)| {
                    Some((renamed.iter().find(|one| one.old == schema && one.has(&name))?, name))
                });
                let named = argument == Some("'schemaname'") && before[1] == Some(Word::Other(","));
                let whole = renamed.iter().find(|one| one.old == inside && (in_path || named));
                match (relation, whole) {
                    (Some((one, name)), _) => out += &literal(&format!("{}.{}", quoted(one.new), quoted(&name))),
                    (None, Some(one)) => out += &literal(one.new),
                    (None, None) => out += text,
                }
            }
            other => out += other.text(),
        }
        if !matches!(word, Word::Space(_)) {
            if *word == Word::Other(",") {
                argument = before[1].and_then(|last| if let Word::Literal(text) = last { Some(text) } else { None });
            }
            before = [before[1], Some(*word)];
        }
    }
    out
}

/// Roles where roles stand: behind TO, FROM and such, also in a list. What a policy says of rows comes behind them.
fn roles(sql: &str, names: &[(String, String)]) -> String {
    let mut out = String::with_capacity(sql.len());
    let mut before: Option<Word<'_>> = None;
    let (mut in_list, mut over) = (false, false);
    let words = words(sql);
    for (at, word) in words.iter().enumerate() {
        let stands =
            before.is_some_and(|before| before.keyword(&BEFORE_ROLES) || in_list && before == Word::Other(","));
        over |= word.keyword(&["USING", "CHECK"]);
        let new = names.iter().find(|(old, _)| stands && !over && word.names(old));
        match new.filter(|_| words.get(at + 1) != Some(&Word::Other("."))) {
            Some((_, new)) => out += &quoted(new),
            None => out += word.text(),
        }
        if !matches!(word, Word::Space(_)) {
            in_list = stands || in_list && *word == Word::Other(",");
            before = Some(*word);
        }
    }
    out
}

/// The tablespace of a database, and the one that its settings name.
fn tablespaces(sql: &str, names: &[(String, String)]) -> String {
    let mut out = String::with_capacity(sql.len());
    let mut before: [Option<Word<'_>>; 2] = [None, None];
    for word in words(sql) {
        let follows = |words: &[&str]| before[0].is_some_and(|before| before.keyword(words));
        let new = match word {
            Word::Name(text) if follows(&["TABLESPACE"]) && before[1] == Some(Word::Other("=")) => {
                names.iter().find(|(old, _)| name_of(text) == *old).map(|(_, new)| quoted(new))
            }
            Word::Literal(text) if follows(&["default_tablespace"]) => {
                names.iter().find(|(old, _)| literal(old) == text).map(|(_, new)| literal(new))
            }
            _ => None,
        };
        out += new.as_deref().unwrap_or(word.text());
        if !matches!(word, Word::Space(_)) {
            before = [before[1], Some(word)];
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::super::select::tests::{archive_of, entry};
    use super::*;

    fn renamed<'a>(names: &[(&'a str, &'a str)], known: Option<&[&str]>) -> Vec<Renamed<'a>> {
        let known = known.map(|names| names.iter().map(|name| (*name).to_owned()).collect::<HashSet<_>>());
        names.iter().map(|(old, new)| Renamed { old, new, known: known.clone() }).collect()
    }

    #[test]
    fn schemas_are_found_word_by_word() {
        let renamed = renamed(&[("app", "new")], Some(&["t", "Odd t", "seq", "twice", "t_pkey"]));
        for (sql, expect) in [
            ("CREATE TABLE app.t (a integer);", "CREATE TABLE \"new\".t (a integer);"),
            ("ALTER TABLE ONLY app.\"Odd t\" ADD x;", "ALTER TABLE ONLY \"new\".\"Odd t\" ADD x;"),
            (
                "CREATE TABLE app.t (app app.t DEFAULT other.app.t)",
                "CREATE TABLE \"new\".t (app \"new\".t DEFAULT other.app.t)",
            ),
            ("CREATE SCHEMA app;", "CREATE SCHEMA \"new\";"),
            ("DEFAULT nextval('app.seq'::regclass)", "DEFAULT nextval('\"new\".\"seq\"'::regclass)"),
            ("SELECT pg_catalog.setval('app.seq', 7, true);", "SELECT pg_catalog.setval('\"new\".\"seq\"', 7, true);"),
            ("COMMENT ON TABLE app.t IS 'app.t, it''s app.t';", "COMMENT ON TABLE \"new\".t IS 'app.t, it''s app.t';"),
            ("SELECT 'app.t' -- app.t\n", "SELECT 'app.t' -- app.t\n"),
            (
                " SET search_path TO 'app', 'public'\n AS $_$ app.t $_$ 'app'",
                " SET search_path TO 'new', 'public'\n AS $_$ app.t $_$ 'app'",
            ),
            ("OPERATOR(app.|+|)", "OPERATOR(\"new\".|+|)"),
            ("FROM \"app\".t, myapp.t, app.unknown", "FROM \"new\".t, myapp.t, app.unknown"),
            ("'app.t'::text, $1", "'app.t'::text, $1"),
            ("f('schemaname', 'app', 'relname', 'app', 'x'", "f('schemaname', 'new', 'relname', 'app', 'x'"),
        ] {
            assert_eq!(schemas(sql, &renamed, false), expect);
        }
        assert_eq!(bodies("AS $$ app.t $$ x $a$ b $a$").collect::<Vec<_>>(), ["$$ app.t $$", "$a$ b $a$"]);
    }

    #[test]
    fn columns_of_what_is_called_like_the_schema_stay() {
        let names = renamed(&[("app", "new"), ("new", "app")], None);
        for (sql, expect) in [
            (
                "CREATE VIEW app.v AS SELECT app.t FROM app.t app",
                "CREATE VIEW \"new\".v AS SELECT app.t FROM \"new\".t app",
            ),
            (
                "CREATE VIEW app.v AS SELECT app.t FROM app.app",
                "CREATE VIEW \"new\".v AS SELECT app.t FROM \"new\".app",
            ),
            (
                "CREATE RULE r AS ON UPDATE TO app.v DO INSTEAD UPDATE new.t SET x = new.x",
                "CREATE RULE r AS ON UPDATE TO \"new\".v DO INSTEAD UPDATE \"app\".t SET x = new.x",
            ),
            ("CREATE VIEW new.v AS SELECT t.x FROM app.t", "CREATE VIEW \"app\".v AS SELECT t.x FROM \"new\".t"),
        ] {
            assert_eq!(schemas(sql, &names, true), expect);
        }
    }

    #[test]
    fn tablespaces_of_databases_are_found() {
        let names = [("fast".to_owned(), "slow".to_owned())];
        let sql = "CREATE DATABASE d WITH TEMPLATE = template0 TABLESPACE = fast; ALTER DATABASE fast SET default_tablespace TO 'fast';";
        let expect = "CREATE DATABASE d WITH TEMPLATE = template0 TABLESPACE = \"slow\"; \
            ALTER DATABASE fast SET default_tablespace TO 'slow';";
        assert_eq!(tablespaces(sql, &names), expect);
    }

    #[test]
    fn roles_are_found_where_they_stand() {
        for (sql, expect) in [
            ("GRANT SELECT ON TABLE a.me TO me;", "GRANT SELECT ON TABLE a.me TO \"you\";"),
            ("REVOKE ALL ON TABLE me FROM PUBLIC, me;", "REVOKE ALL ON TABLE me FROM PUBLIC, \"you\";"),
            (
                "ALTER DEFAULT PRIVILEGES FOR ROLE me IN SCHEMA me GRANT SELECT ON TABLES  TO me;",
                "ALTER DEFAULT PRIVILEGES FOR ROLE \"you\" IN SCHEMA me GRANT SELECT ON TABLES  TO \"you\";",
            ),
            (
                "CREATE POLICY p ON t TO me, other USING ((a = me));",
                "CREATE POLICY p ON t TO \"you\", other USING ((a = me));",
            ),
            (
                "CREATE POLICY p ON t USING ((EXTRACT(year FROM me) = 1))",
                "CREATE POLICY p ON t USING ((EXTRACT(year FROM me) = 1))",
            ),
            ("REVOKE ALL ON SCHEMA x FROM me.t", "REVOKE ALL ON SCHEMA x FROM me.t"),
            (
                "GRANT UPDATE(me,b) ON TABLE t TO \"me\" WITH GRANT OPTION;",
                "GRANT UPDATE(me,b) ON TABLE t TO \"you\" WITH GRANT OPTION;",
            ),
        ] {
            assert_eq!(roles(sql, &[("me".to_owned(), "you".to_owned())]), expect);
        }
    }

    #[test]
    fn a_schema_under_another_name_is_made() {
        let mut entries = vec![entry(1, "SCHEMA", "", "app", &[]), entry(2, "TABLE", "app", "t", &[1])];
        entries[0].owner = Some(b"me".to_vec());
        entries[1].definition = Some(b"CREATE TABLE app.t ();".to_vec());
        let mapping = Mapping {
            schemas: vec![("app".into(), "new".into())],
            owners: vec![("me".into(), "you".into())],
            tablespaces: Vec::new(),
        };
        let text = |entry: &Entry| String::from_utf8(entry.definition.clone().unwrap()).unwrap();
        let (mut archive, mut wanted) = (archive_of(entries.clone()), Wanted::from([1, 2]));
        assert!(mapping.apply(&mut archive, &mut wanted).is_empty());
        assert!(text(&archive.entries[0]).contains("IF NOT EXISTS \"new\" AUTHORIZATION \"you\""), "{archive:?}");
        assert_eq!(text(&archive.entries[1]), "CREATE TABLE \"new\".t ();");
        assert_eq!(archive.entries[1].label(), "new.t");
        // One table alone: the schema comes all the same.
        let (mut archive, mut wanted) = (archive_of(entries), Wanted::from([2]));
        mapping.apply(&mut archive, &mut wanted);
        assert!(text(&archive.entries[0]).contains("IF NOT EXISTS") && wanted.contains(&archive.entries[0].dump_id));
    }
}
