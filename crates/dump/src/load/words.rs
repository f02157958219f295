//! SQL as pg_dump writes it, word by word.

/// A word of SQL.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Word<'a> {
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
    pub(super) fn text(self) -> &'a str {
        match self {
            Self::Name(text) | Self::Literal(text) | Self::Body(text) | Self::Space(text) | Self::Other(text) => text,
        }
    }

    /// Whether it is this name.
    pub(super) fn names(self, name: &str) -> bool {
        matches!(self, Self::Name(text) if name_of(text) == name)
    }

    pub(super) fn keyword(self, words: &[&str]) -> bool {
        matches!(self, Self::Name(text) if words.iter().any(|word| text.eq_ignore_ascii_case(word)))
    }
}

/// A name without its quotes. pg_dump writes without quotes only what is in small letters, and no keyword (`fmtId` in
/// `src/fe_utils/string_utils.c`, `quote_identifier` in the server's `ruleutils.c`), so what is in capitals is no name.
pub(super) fn name_of(text: &str) -> String {
    match text.strip_prefix('"') {
        Some(inside) => inside.strip_suffix('"').unwrap_or(inside).replace("\"\"", "\""),
        None => text.to_owned(),
    }
}

/// Takes a statement apart (the lexer of PostgreSQL, `src/backend/parser/scan.l`, for what pg_dump writes).
pub(super) fn words<'a>(sql: &'a str) -> Vec<Word<'a>> {
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

pub(super) fn bodies(sql: &str) -> impl Iterator<Item = &str> {
    words(sql).into_iter().filter_map(|word| if let Word::Body(text) = word { Some(text) } else { None })
}
