//! COPY statements, from those in an archive's table of contents: whole tables, parts of them, and back.

use crate::archive::BadArchive;
use repo::dump::DataKind;

/// How rows are written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum RowForm<'a> {
    /// As text, in this encoding, so that the session's own can be UTF-8 whatever the data are.
    Text(&'a str),
    /// As each type's own bytes; text in it is in the session's encoding.
    Binary,
}

impl<'a> RowForm<'a> {
    /// That of data of this kind.
    pub(crate) fn of(kind: DataKind, encoding: &'a str) -> Self {
        match kind {
            DataKind::TableBinary => Self::Binary,
            DataKind::Table | DataKind::LargeObjects => Self::Text(encoding),
        }
    }

    /// As an option of COPY.
    fn option(self) -> String {
        match self {
            Self::Text(encoding) => format!("ENCODING {}", crate::names::literal(encoding)),
            Self::Binary => "FORMAT binary".to_owned(),
        }
    }
}

/// What `COPY schema.table (a, b) FROM stdin;` names, in the words of pg_dump (`dumpTableData` in
/// `src/bin/pg_dump/pg_dump.c`).
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct CopyTarget {
    /// The table, quoted as it must be.
    pub(crate) table: String,
    /// The columns, separated by commas; none for a table without any.
    pub(crate) columns: Option<String>,
}

impl CopyTarget {
    /// Reads the statement.
    pub(crate) fn parse(statement: &[u8]) -> Result<Self, BadArchive> {
        let bad = |what: &str| BadArchive(format!("{what}: {}", String::from_utf8_lossy(statement).trim()));
        let text = std::str::from_utf8(statement).map_err(|_| bad("a COPY statement that is not UTF-8"))?;
        let rest = text.trim_end().strip_prefix("COPY ").ok_or_else(|| bad("no COPY statement"))?;
        let rest = rest.strip_suffix("FROM stdin;").ok_or_else(|| bad("no COPY FROM stdin"))?.trim_end();
        let end = name_end(rest);
        let (table, columns) = rest.split_at(end);
        let columns = match columns.trim() {
            "" | "()" => None,
            list => {
                let inner = list.strip_prefix('(').and_then(|list| list.strip_suffix(')'));
                Some(inner.ok_or_else(|| bad("no list of columns"))?.to_owned())
            }
        };
        if table.is_empty() {
            return Err(bad("no table"));
        }
        Ok(Self { table: table.to_owned(), columns })
    }

    fn list(&self) -> String {
        self.columns.as_ref().map_or_else(String::new, |columns| format!(" ({columns})"))
    }

    /// For all rows; `condition` as an extension gave it for its table's data (`WHERE …`). `source` is the table that is
    /// read: of a partition that is loaded through its root, it is another one than that of the statement.
    pub(crate) fn whole(&self, source: &str, condition: Option<&str>, form: RowForm<'_>) -> String {
        let what = match condition {
            None => format!("{source}{}", self.list()),
            Some(condition) => {
                format!("(SELECT {} FROM {source} {condition})", self.columns.as_deref().unwrap_or("*"))
            }
        };
        format!("COPY {what} TO STDOUT WITH ({})", form.option())
    }

    /// For the rows in some blocks; none for `end` means to the end.
    pub(crate) fn part(&self, source: &str, blocks: (u32, Option<u32>), form: RowForm<'_>) -> String {
        let (start, end) = blocks;
        let columns = self.columns.as_deref().unwrap_or("");
        let upper = end.map_or_else(String::new, |end| format!(" AND ctid < '({end},0)'"));
        let rows = format!("SELECT {columns} FROM ONLY {source} WHERE ctid >= '({start},0)'{upper}");
        format!("COPY ({rows}) TO STDOUT WITH ({})", form.option())
    }

    /// For loading.
    pub(crate) fn load(&self, form: RowForm<'_>) -> String {
        format!("COPY {}{} FROM STDIN WITH ({})", self.table, self.list(), form.option())
    }

    /// For loading into a table that the same transaction truncated: rows as VACUUM would leave them.
    pub(crate) fn load_frozen(&self, form: RowForm<'_>) -> String {
        format!("COPY {}{} FROM STDIN WITH (FREEZE, {})", self.table, self.list(), form.option())
    }
}

/// Where a qualified name ends: at the first space outside of quotes.
fn name_end(text: &str) -> usize {
    let mut quoted = false;
    for (at, character) in text.char_indices() {
        match character {
            '"' => quoted = !quoted,
            ' ' if !quoted => return at,
            _ => {}
        }
    }
    text.len()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn statements_of_pg_dump_are_read() {
        let check = |statement: &str, table: &str, columns: Option<&str>| {
            let expect = CopyTarget { table: table.into(), columns: columns.map(str::to_owned) };
            assert_eq!(CopyTarget::parse(statement.as_bytes()), Ok(expect), "{statement}");
        };
        check("COPY public.t (a, b) FROM stdin;\n", "public.t", Some("a, b"));
        check("COPY public.empty  FROM stdin;\n", "public.empty", None);
        check(
            "COPY \"Odd (name\".\"a \"\" FROM b\" (\"x)y\") FROM stdin;\n",
            "\"Odd (name\".\"a \"\" FROM b\"",
            Some("\"x)y\""),
        );
        for bad in ["", "INSERT INTO t", "COPY t FROM '/x';", "COPY  FROM stdin;", "COPY t (a FROM stdin;"] {
            assert!(CopyTarget::parse(bad.as_bytes()).is_err(), "{bad}");
        }
    }

    #[test]
    fn statements_are_made() {
        let target = CopyTarget::parse(b"COPY s.t (a, b) FROM stdin;\n").unwrap();
        let utf8 = |text: &str| format!("{text} WITH (ENCODING 'UTF8')");
        assert_eq!(target.whole("s.t", None, RowForm::Text("UTF8")), utf8("COPY s.t (a, b) TO STDOUT"));
        assert_eq!(
            target.whole("s.t", Some("WHERE a > 1"), RowForm::Text("UTF8")),
            utf8("COPY (SELECT a, b FROM s.t WHERE a > 1) TO STDOUT")
        );
        assert_eq!(
            target.part("s.t", (10, Some(20)), RowForm::Text("UTF8")),
            utf8("COPY (SELECT a, b FROM ONLY s.t WHERE ctid >= '(10,0)' AND ctid < '(20,0)') TO STDOUT")
        );
        assert_eq!(
            target.part("s.t", (20, None), RowForm::Text("UTF8")),
            utf8("COPY (SELECT a, b FROM ONLY s.t WHERE ctid >= '(20,0)') TO STDOUT")
        );
        assert_eq!(target.load(RowForm::Text("UTF8")), utf8("COPY s.t (a, b) FROM STDIN"));
        assert_eq!(
            target.load_frozen(RowForm::Text("UTF8")),
            "COPY s.t (a, b) FROM STDIN WITH (FREEZE, ENCODING 'UTF8')"
        );
        assert_eq!(target.whole("s.t", None, RowForm::Binary), "COPY s.t (a, b) TO STDOUT WITH (FORMAT binary)");
        assert_eq!(target.load_frozen(RowForm::Binary), "COPY s.t (a, b) FROM STDIN WITH (FREEZE, FORMAT binary)");
    }
}
