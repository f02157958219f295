//! The password file: `hostname:port:database:username:password` lines.
//!
//! Mirrors `passwordFromFile` and `pwdfMatchesString` in PostgreSQL's `src/interfaces/libpq/fe-connect.c`.

use crate::Secret;
use std::path::Path;
use zeroize::Zeroizing;

/// What a password is looked up by.
#[derive(Debug, Clone, Copy)]
pub struct PassfileKey<'a> {
    /// The host as named by the caller; `localhost` for the default socket directory.
    pub host: &'a str,
    /// The port in decimal.
    pub port: &'a str,
    /// The database.
    pub dbname: &'a str,
    /// The user.
    pub user: &'a str,
}

/// The password of the first line that matches.
pub fn find_password(text: &str, key: PassfileKey<'_>) -> Option<Secret> {
    text.lines().find_map(|line| {
        let line = line.trim_end_matches('\r');
        if line.starts_with('#') {
            return None;
        }
        let rest = matches(line, key.host)?;
        let rest = matches(rest, key.port)?;
        let rest = matches(rest, key.dbname)?;
        let rest = matches(rest, key.user)?;
        Some(unescape(rest))
    })
}

/// What follows the field when it matches: `*`, or the text with `\:` and `\\` escapes.
fn matches<'a>(line: &'a str, token: &str) -> Option<&'a str> {
    if let Some(rest) = line.strip_prefix("*:") {
        return Some(rest);
    }
    let mut wanted = token.chars();
    let mut chars = line.char_indices();
    while let Some((at, c)) = chars.next() {
        let c = match c {
            ':' => return wanted.next().is_none().then(|| &line[at + 1..]),
            '\\' => chars.next()?.1,
            c => c,
        };
        if wanted.next() != Some(c) {
            return None;
        }
    }
    None
}

/// The password ends at an unescaped colon.
fn unescape(text: &str) -> Secret {
    let mut out = String::with_capacity(text.len());
    let mut chars = text.chars();
    while let Some(c) = chars.next() {
        match c {
            ':' => break,
            // A backslash at the very end stands for itself.
            '\\' => out.push(chars.next().unwrap_or('\\')),
            c => out.push(c),
        }
    }
    Secret::new(out)
}

/// The file's text, or why it is ignored. A file that is not there is ignored silently.
pub(super) fn read(path: &Path) -> Result<Option<Zeroizing<String>>, String> {
    use std::os::unix::fs::PermissionsExt;
    let Ok(metadata) = std::fs::metadata(path) else { return Ok(None) };
    if !metadata.is_file() {
        return Err(format!("password file \"{}\" is ignored: it is not a plain file", path.display()));
    }
    let mode = metadata.permissions().mode();
    if mode & 0o077 != 0 {
        return Err(format!(
            "password file \"{}\" is ignored: group or others have access to it (mode {:04o}); run chmod 600 on it",
            path.display(),
            mode & 0o7777
        ));
    }
    match std::fs::read(path) {
        Ok(bytes) => {
            let bytes = Zeroizing::new(bytes);
            Ok(Some(Zeroizing::new(String::from_utf8_lossy(&bytes).into_owned())))
        }
        Err(error) => Err(format!("password file \"{}\" is ignored: {error}", path.display())),
    }
}
