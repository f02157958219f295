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

/// What a name such as `public."Odd name"` consists of, as `fmtQualifiedId` in `src/fe_utils/string_utils.c` writes it. None
/// for what is no qualified name.
pub(crate) fn parts_of(text: &str) -> Option<(String, String)> {
    let (schema, rest) = first_part(text)?;
    let (name, rest) = first_part(rest.strip_prefix('.')?)?;
    rest.is_empty().then_some((schema, name))
}

fn first_part(text: &str) -> Option<(String, &str)> {
    let Some(inside) = text.strip_prefix('"') else {
        let end = text.find(['.', '"', ' ']).unwrap_or(text.len());
        return (end > 0).then(|| (text[..end].to_owned(), &text[end..]));
    };
    let mut name = String::new();
    let mut rest = inside;
    loop {
        let (before, after) = rest.split_once('"')?;
        name += before;
        match after.strip_prefix('"') {
            Some(more) => {
                name.push('"');
                rest = more;
            }
            None => return Some((name, after)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_quoted() {
        assert_eq!(quoted("a\"b"), "\"a\"\"b\"");
        assert_eq!(literal("it's"), "'it''s'");
        assert_eq!(pattern("public", "Odd.Name*"), "\"public\".\"Odd.Name*\"");
        let parts = |text: &str| parts_of(text).map(|(schema, name)| format!("{schema}|{name}"));
        assert_eq!(parts("public.orders").unwrap(), "public|orders");
        assert_eq!(parts("\"a\"\"b.c\".\"D e\"").unwrap(), "a\"b.c|D e");
        for bad in ["", "orders", "a.b.c", "a.", ".b", "\"a.b", "a.b c"] {
            assert_eq!(parts(bad), None, "{bad}");
        }
    }
}
