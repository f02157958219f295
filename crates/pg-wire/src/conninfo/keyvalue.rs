//! Keyword/value strings: `host=db1 password='it''s'`.
//!
//! Mirrors `conninfo_parse` in PostgreSQL's `src/interfaces/libpq/fe-connect.c`.

use super::error::ConninfoError;
use super::params::Params;
use std::borrow::Cow;
use zeroize::Zeroizing;

/// C's `isspace` in the C locale.
fn is_space(c: char) -> bool {
    matches!(c, ' ' | '\t' | '\n' | '\r' | '\x0b' | '\x0c')
}

/// Adds the settings of a keyword/value string.
pub(super) fn parse(text: &str, into: &mut Params) -> Result<(), ConninfoError> {
    let mut rest = text.trim_start_matches(is_space);
    while !rest.is_empty() {
        let name_end = rest.find(|c| c == '=' || is_space(c)).unwrap_or(rest.len());
        let (name, after) = rest.split_at(name_end);
        let after = after.trim_start_matches(is_space);
        let Some(after) = after.strip_prefix('=') else {
            return Err(ConninfoError::MissingEquals { keyword: shown_name(name, into) });
        };
        let (value, after) = value(after.trim_start_matches(is_space))?;
        into.set(name, value.as_str())?;
        rest = after.trim_start_matches(is_space);
    }
    Ok(())
}

/// What may be shown of a word that stood where a keyword was expected: it may be the tail of an unquoted
/// password with a blank in it, so nothing is shown of it once a password was given.
fn shown_name(name: &str, so_far: &Params) -> String {
    if so_far.get("password").is_some() || so_far.get("sslpassword").is_some() {
        "(a word after the password; quote values that contain blanks)".to_owned()
    } else if name.contains("://") && name.contains('@') {
        let scheme = name.split("://").next().unwrap_or_default();
        format!("{scheme}://...")
    } else {
        name.to_owned()
    }
}

/// Takes one value off the front, quoted or bare, and returns it with what follows.
fn value(text: &str) -> Result<(Zeroizing<String>, &str), ConninfoError> {
    let mut out = Zeroizing::new(String::with_capacity(text.len()));
    let quoted = text.starts_with('\'');
    let mut chars = text.char_indices();
    if quoted {
        chars.next();
    }
    while let Some((at, c)) = chars.next() {
        match c {
            '\\' => {
                if let Some((_, escaped)) = chars.next() {
                    out.push(escaped);
                }
            }
            '\'' if quoted => return Ok((out, &text[at + 1..])),
            c if !quoted && is_space(c) => return Ok((out, &text[at..])),
            c => out.push(c),
        }
    }
    if quoted { Err(ConninfoError::UnterminatedQuote) } else { Ok((out, "")) }
}

/// Quotes a value when it needs it, so that parsing gives it back.
pub(super) fn quote(value: &str) -> Cow<'_, str> {
    if !value.is_empty() && !value.chars().any(|c| is_space(c) || c == '\'' || c == '\\') {
        return Cow::Borrowed(value);
    }
    let mut out = String::with_capacity(value.len() + 2);
    out.push('\'');
    for c in value.chars() {
        if c == '\'' || c == '\\' {
            out.push('\\');
        }
        out.push(c);
    }
    out.push('\'');
    Cow::Owned(out)
}
