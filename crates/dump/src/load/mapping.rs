//! Other names for schemas, owners and tablespaces: a table of contents as it would be, had things been named so.
//!
//! Owners, tablespaces and the schemas of objects have places of their own in the table of contents. Inside of statements, names
//! are found word by word. What functions have between quotes is theirs: it stays, and who loads is told.

use super::select::Wanted;
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
const OF_ROLES: [&[u8]; 5] = [b"ACL", b"DEFAULT ACL", b"POLICY", b"USER MAPPING", b"SCHEMA"];

impl Mapping {
    /// Whether nothing is called otherwise.
    pub fn is_empty(&self) -> bool {
        self.schemas.is_empty() && self.owners.is_empty() && self.tablespaces.is_empty()
    }

    /// Gives new names to what an archive has. Schemas that are new are made when they are not there. Gives what a human should
    /// look at.
    pub(crate) fn apply(&self, archive: &mut Archive, wanted: &mut Wanted) -> Vec<String> {
        let mut warnings = Vec::new();
        for (old, new) in &self.tablespaces {
            let of_old = archive.entries.iter_mut().filter(|entry| is(&entry.tablespace, old));
            of_old.for_each(|entry| entry.tablespace = Some(new.clone().into_bytes()));
        }
        for (old, new) in &self.owners {
            for entry in &mut archive.entries {
                if is(&entry.owner, old) {
                    entry.owner = Some(new.clone().into_bytes());
                }
                if OF_ROLES.contains(&entry.kind()) {
                    in_texts(entry, |text| roles(text, old, new));
                }
            }
        }
        for (old, new) in &self.schemas {
            let known = known(archive, old);
            for entry in &mut archive.entries {
                in_texts(entry, |text| schemas(text, old, new, &known));
                if is(&entry.namespace, old) {
                    entry.namespace = Some(new.clone().into_bytes());
                }
                let body = entry.definition.as_deref().map(String::from_utf8_lossy).unwrap_or_default();
                if wanted.contains(&entry.dump_id) && bodies(&body).any(|body| body.contains(&format!("{old}."))) {
                    warnings.push(format!("{} still speaks of schema {old} in its body", entry.label()));
                }
            }
            make_schema(archive, wanted, old, new);
        }
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

fn is(text: &Text, name: &str) -> bool {
    text.as_deref() == Some(name.as_bytes())
}

/// The entry that makes a schema makes it under its new name, if it is not there.
fn make_schema(archive: &mut Archive, wanted: &mut Wanted, old: &str, new: &str) {
    let free = archive.entries.iter().map(|entry| entry.dump_id).max().unwrap_or(0) + 1;
    let at =
        archive.entries.iter().position(|entry| entry.is("SCHEMA") && (is(&entry.tag, old) || is(&entry.tag, new)));
    let owner = at.and_then(|at| archive.entries[at].owner.clone()).and_then(|owner| String::from_utf8(owner).ok());
    let owner = owner.filter(|owner| !owner.is_empty()).map(|owner| format!(" AUTHORIZATION {}", quoted(&owner)));
    // With the comment before it pg_restore takes it as it stands.
    let sql = |owner: &str| format!("-- if it is not there\nCREATE SCHEMA IF NOT EXISTS {}{owner};\n", quoted(new));
    match at {
        Some(at) if wanted.contains(&archive.entries[at].dump_id) => {
            let entry = &mut archive.entries[at];
            entry.definition = Some(sql(owner.as_deref().unwrap_or_default()).into_bytes());
            (entry.tag, entry.owner) = (Some(new.as_bytes().to_vec()), Some(Vec::new()));
        }
        _ => {
            let mut entry = super::restore::statement(free, &sql(""));
            entry.tag = Some(format!("schema {new}").into_bytes());
            archive.entries.insert(0, entry);
            wanted.insert(free);
        }
    }
}

/// The names that are there in a schema: what `schema.name` can mean.
fn known(archive: &Archive, schema: &str) -> HashSet<String> {
    let of_schema = archive.entries.iter().filter(|entry| is(&entry.namespace, schema));
    let mut known = HashSet::new();
    for entry in of_schema {
        let tag = String::from_utf8_lossy(entry.tag.as_deref().unwrap_or_default()).into_owned();
        known.insert(tag.split('(').next().unwrap_or_default().to_owned());
        // A constraint's tag is its table's name and its own.
        known.extend(tag.match_indices(' ').map(|(at, _)| tag[at + 1..].to_owned()));
        known.insert(tag);
    }
    known
}

fn in_texts(entry: &mut Entry, change: impl Fn(&str) -> String) {
    for text in [&mut entry.definition, &mut entry.drop_statement, &mut entry.copy_statement] {
        let changed = text.as_deref().and_then(|text| std::str::from_utf8(text).ok()).map(&change);
        if let Some(changed) = changed {
            *text = Some(changed.into_bytes());
        }
    }
}

/// A word of SQL.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Word<'a> {
    /// A name or keyword, as it stands there.
    Name(&'a str),
    /// `'…'`, with its quotes.
    Literal(&'a str),
    /// `$$…$$`
    Body(&'a str),
    /// Spaces and comments.
    Space(&'a str),
    /// Anything else: one character.
    Other(&'a str),
}

impl<'a> Word<'a> {
    fn text(self) -> &'a str {
        match self {
            Self::Name(text) | Self::Literal(text) | Self::Body(text) | Self::Space(text) | Self::Other(text) => text,
        }
    }

    /// Whether it is this name.
    fn names(self, name: &str) -> bool {
        matches!(self, Self::Name(text) if name_of(text) == name)
    }

    fn keyword(self, words: &[&str]) -> bool {
        matches!(self, Self::Name(text) if words.iter().any(|word| text.eq_ignore_ascii_case(word)))
    }
}

/// A name without its quotes.
fn name_of(text: &str) -> String {
    match text.strip_prefix('"') {
        Some(inside) => inside.strip_suffix('"').unwrap_or(inside).replace("\"\"", "\""),
        None => text.to_lowercase(),
    }
}

/// Takes a statement apart (the lexer of PostgreSQL, `src/backend/parser/scan.l`, for what pg_dump writes).
fn words<'a>(sql: &'a str) -> Vec<Word<'a>> {
    let mut words = Vec::new();
    let mut rest = sql;
    while let Some(first) = rest.chars().next() {
        let is_name = |c: char| c.is_alphanumeric() || c == '_' || c == '$' || !c.is_ascii();
        let until = |test: &dyn Fn(char) -> bool| rest.find(|c| !test(c)).unwrap_or(rest.len());
        let quoted = |quote: char, from: usize| {
            let mut at = from;
            loop {
                match rest[at..].find(quote) {
                    None => break rest.len(),
                    Some(found) if rest[at + found + 1..].starts_with(quote) => at += found + 2,
                    Some(found) => break at + found + 1,
                }
            }
        };
        let (len, kind): (usize, fn(&'a str) -> Word<'a>) = if rest.starts_with("--") {
            (rest.find('\n').unwrap_or(rest.len()), Word::Space)
        } else if first.is_whitespace() {
            (until(&char::is_whitespace), Word::Space)
        } else if first == '"' {
            (quoted('"', 1), Word::Name)
        } else if first == '\'' {
            (quoted('\'', 1), Word::Literal)
        } else if first == '$' {
            let tag = rest[1..].find(|c: char| !is_name(c) || c == '$').map(|end| &rest[..end + 2]);
            match tag.filter(|tag| tag.ends_with('$')) {
                Some(tag) => {
                    let end = rest[tag.len()..].find(tag).map_or(rest.len(), |end| end + 2 * tag.len());
                    (end, Word::Body)
                }
                None => (1, Word::Other),
            }
        } else if is_name(first) {
            (until(&is_name), Word::Name)
        } else {
            (first.len_utf8(), Word::Other)
        };
        let (word, after) = rest.split_at(len);
        words.push(kind(word));
        rest = after;
    }
    words
}

fn bodies(sql: &str) -> impl Iterator<Item = &str> {
    words(sql).into_iter().filter_map(|word| if let Word::Body(text) = word { Some(text) } else { None })
}

/// `old.name` and `SCHEMA old` get the new schema, also in the literals that name a relation, and in a function's `search_path`.
fn schemas(sql: &str, old: &str, new: &str, known: &HashSet<String>) -> String {
    let words = words(sql);
    let mut out = String::with_capacity(sql.len());
    // The last two that are no space.
    let mut before: [Option<Word<'_>>; 2] = [None, None];
    let mut in_path = false;
    for (at, word) in words.iter().enumerate() {
        let after = |n: usize| words.get(at + n).copied();
        let qualifies = after(1) == Some(Word::Other("."))
            && before[1] != Some(Word::Other("."))
            && match after(2) {
                Some(Word::Name(name)) => known.contains(&name_of(name)),
                // An operator.
                Some(Word::Other(_)) => true,
                _ => false,
            };
        let is_schema = before[1].is_some_and(|before| before.keyword(&["SCHEMA"]));
        if word.text().contains('\n') {
            in_path = false;
        } else if word.names("search_path") {
            in_path = true;
        }
        match *word {
            name @ Word::Name(_) if name.names(old) && (qualifies || is_schema) => out += &quoted(new),
            Word::Literal(text) => {
                let cast = [3, 5].iter().any(|n| after(*n).is_some_and(|word| word.names("regclass")));
                let cast = cast && after(1) == Some(Word::Other(":"));
                let of_sequence = before[1] == Some(Word::Other("("))
                    && before[0].is_some_and(|before| before.keyword(&["setval", "nextval"]));
                let inside = text.trim_matches('\'').replace("''", "'");
                let relation = parts_of(&inside).filter(|(schema, name)| schema == old && known.contains(name));
                match relation.filter(|_| cast || of_sequence) {
                    Some((_, name)) => out += &literal(&format!("{}.{}", quoted(new), quoted(&name))),
                    None if in_path && inside == old => out += &literal(new),
                    None => out += text,
                }
            }
            other => out += other.text(),
        }
        if !matches!(word, Word::Space(_)) {
            before = [before[1], Some(*word)];
        }
    }
    out
}

/// Roles where roles stand: behind TO, FROM and such, also in a list.
fn roles(sql: &str, old: &str, new: &str) -> String {
    let mut out = String::with_capacity(sql.len());
    let mut before: Option<Word<'_>> = None;
    let mut in_list = false;
    for word in words(sql) {
        let stands =
            before.is_some_and(|before| before.keyword(&BEFORE_ROLES) || in_list && before == Word::Other(","));
        match word {
            Word::Name(_) if stands && word.names(old) => out += &quoted(new),
            other => out += other.text(),
        }
        if !matches!(word, Word::Space(_)) {
            in_list = stands || in_list && word == Word::Other(",");
            before = Some(word);
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::super::select::tests::{archive_of, entry};
    use super::*;

    fn known_names(names: &[&str]) -> HashSet<String> {
        names.iter().map(|name| (*name).to_owned()).collect()
    }

    #[test]
    fn schemas_are_found_word_by_word() {
        let known = known_names(&["t", "Odd t", "seq", "twice", "t_pkey"]);
        for (sql, expect) in [
            ("CREATE TABLE app.t (a integer);", "CREATE TABLE \"new\".t (a integer);"),
            ("ALTER TABLE ONLY app.\"Odd t\" ADD x;", "ALTER TABLE ONLY \"new\".\"Odd t\" ADD x;"),
            (
                "SELECT app.twice(other.app.t, app.column) FROM app.t app",
                "SELECT \"new\".twice(other.app.t, app.column) FROM \"new\".t app",
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
        ] {
            assert_eq!(schemas(sql, "app", "new", &known), expect);
        }
        assert_eq!(bodies("AS $$ app.t $$ x $a$ b $a$").collect::<Vec<_>>(), ["$$ app.t $$", "$a$ b $a$"]);
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
                "GRANT UPDATE(me,b) ON TABLE t TO \"me\" WITH GRANT OPTION;",
                "GRANT UPDATE(me,b) ON TABLE t TO \"you\" WITH GRANT OPTION;",
            ),
        ] {
            assert_eq!(roles(sql, "me", "you"), expect);
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
