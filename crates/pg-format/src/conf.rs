//! `postgresql.conf` and its like (`src/backend/utils/misc/guc-file.l`): reading, quoting, and small edits.
//!
//! Files are not opened here: `include` directives are returned. Values are not checked against what settings exist.

use std::borrow::Cow;

use crate::error::FormatError;

mod lexer;
mod value;

pub use value::{parse_bool, parse_memory_bytes, parse_time_micros, quote_value};

use lexer::{Token, tokens};

const WHAT: &str = "configuration file";
/// Like the server, give up after this many errors in one file.
const ERRORS_MAX: usize = 100;

/// What could be read of a file, with what was wrong.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct ConfFile {
    /// All directives in order. The last one of a setting counts.
    pub directives: Vec<Directive>,
    /// Lines that could not be read. The server refuses a file with such lines.
    pub errors: Vec<FormatError>,
}

/// One line that says something.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Directive {
    /// The line, from 1.
    pub line: usize,
    /// What it says.
    pub kind: DirectiveKind,
}

/// What a line of a configuration file says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum DirectiveKind {
    /// `name = value`, quotes and escapes taken off.
    Set {
        /// The setting's name as written; compare it with [`same_name`].
        name: String,
        /// Its value.
        value: String,
    },
    /// `include 'path'`.
    Include(String),
    /// `include_if_exists 'path'`.
    IncludeIfExists(String),
    /// `include_dir 'path'`: all files in it that end in `.conf` and do not start with a dot, in the order of their names.
    IncludeDir(String),
}

impl ConfFile {
    /// Reads a file's text.
    #[must_use]
    pub fn parse(text: &str) -> Self {
        let mut file = Self::default();
        for (index, line) in text.split('\n').enumerate() {
            match directive(line) {
                Ok(None) => {}
                Ok(Some(kind)) => file.directives.push(Directive { line: index + 1, kind }),
                Err(reason) => {
                    file.errors.push(FormatError::line(WHAT, index, reason));
                    if file.errors.len() >= ERRORS_MAX {
                        break;
                    }
                }
            }
        }
        file
    }

    /// The value of a setting in this file alone: the last one counts.
    #[must_use]
    pub fn get(&self, name: &str) -> Option<&str> {
        self.directives.iter().rev().find_map(|directive| match &directive.kind {
            DirectiveKind::Set { name: this, value } if same_name(this, name) => Some(value.as_str()),
            _ => None,
        })
    }
}

/// Whether two names are of one setting: ASCII letters count the same in both cases (`guc_name_compare`).
#[must_use]
pub fn same_name(a: &str, b: &str) -> bool {
    a.eq_ignore_ascii_case(b)
}

/// Sets a value as `ALTER SYSTEM` does in `postgresql.auto.conf`: all lines that set it go, and one is put at the end
/// (`replace_auto_config_value` in `src/backend/utils/misc/guc.c`). All other lines stay as they are.
pub fn set(text: &str, name: &str, value: &str) -> Result<String, FormatError> {
    check_name(name)?;
    let mut out = remove(text, name);
    if !out.is_empty() && !out.ends_with('\n') {
        out.push('\n');
    }
    out.push_str(&format!("{name} = {}\n", quote_value(value)?));
    Ok(out)
}

/// Takes out all lines that set `name`.
#[must_use]
pub fn remove(text: &str, name: &str) -> String {
    edit(text, name, |_| None)
}

/// Puts `#` before all lines that set `name`, with `note` behind them when it is not empty.
#[must_use]
pub fn comment_out(text: &str, name: &str, note: &str) -> String {
    // A line break in the note would make a directive of its rest.
    let note: String = note.chars().map(|c| if c.is_control() { ' ' } else { c }).collect();
    edit(text, name, |line| {
        let (body, end) = line.strip_suffix('\n').map_or((line, ""), |body| (body, "\n"));
        let (body, end) = body.strip_suffix('\r').map_or((body, end), |body| (body, "\r\n"));
        let gap = if note.is_empty() { "" } else { "  # " };
        Some(Cow::Owned(format!("#{body}{gap}{note}{end}")))
    })
}

/// Replaces the lines that set `name`.
fn edit<'a>(text: &'a str, name: &str, change: impl Fn(&'a str) -> Option<Cow<'a, str>>) -> String {
    text.split_inclusive('\n')
        .filter_map(|line| match directive(line.trim_end_matches('\n')) {
            Ok(Some(DirectiveKind::Set { name: this, .. })) if same_name(&this, name) => change(line),
            _ => Some(Cow::Borrowed(line)),
        })
        .collect()
}

fn check_name(name: &str) -> Result<(), FormatError> {
    match tokens(name).collect::<Vec<_>>().as_slice() {
        [Token::Id(id) | Token::QualifiedId(id)] if *id == name => Ok(()),
        _ => {
            Err(FormatError::text("setting name", name, "it has letters, digits and underscores, and at most one dot"))
        }
    }
}

/// Reads one line without its end.
fn directive(line: &str) -> Result<Option<DirectiveKind>, String> {
    let mut tokens = tokens(line);
    let near = |token: Option<Token<'_>>| match token {
        Some(token) => format!("syntax error near \"{}\"", token.text()),
        None => "syntax error near the end of the line".to_owned(),
    };
    let name = match tokens.next() {
        None => return Ok(None),
        Some(Token::Id(name) | Token::QualifiedId(name)) => name,
        other => return Err(near(other)),
    };
    let mut token = tokens.next();
    if token == Some(Token::Equals) {
        token = tokens.next();
    }
    let value = match token {
        Some(Token::Id(word) | Token::Unquoted(word) | Token::Number(word)) => word.to_owned(),
        Some(Token::Quoted(quoted)) => value::unquote(quoted),
        other => return Err(near(other)),
    };
    if let Some(extra) = tokens.next() {
        return Err(near(Some(extra)));
    }
    Ok(Some(if same_name(name, "include_dir") {
        DirectiveKind::IncludeDir(value)
    } else if same_name(name, "include_if_exists") {
        DirectiveKind::IncludeIfExists(value)
    } else if same_name(name, "include") {
        DirectiveKind::Include(value)
    } else {
        DirectiveKind::Set { name: name.to_owned(), value }
    }))
}

#[cfg(test)]
mod tests;
