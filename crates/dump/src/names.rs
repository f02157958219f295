//! Names in SQL.

/// A name, quoted; always, so that no list of keywords is needed.
pub(crate) fn quoted(name: &str) -> String {
    format!("\"{}\"", name.replace('"', "\"\""))
}

/// A text, quoted. `standard_conforming_strings` is on in every session here.
pub(crate) fn literal(text: &str) -> String {
    format!("'{}'", text.replace('\'', "''"))
}

/// A table as a pattern of pg_dump's that fits it alone: what is quoted is taken as it is
/// (`patternToSQLRegex` in `src/fe_utils/string_utils.c`).
pub(crate) fn pattern(schema: &str, name: &str) -> String {
    format!("{}.{}", quoted(schema), quoted(name))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_quoted() {
        assert_eq!(quoted("a\"b"), "\"a\"\"b\"");
        assert_eq!(literal("it's"), "'it''s'");
        assert_eq!(pattern("public", "Odd.Name*"), "\"public\".\"Odd.Name*\"");
    }
}
