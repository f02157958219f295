//! Configuration that lay outside the data directory, as Debian has it: made to work from inside the restored one.
//!
//! All such files are restored below `pgkeep-config`, byte for byte. Where the data directory has no `postgresql.conf`,
//! `pg_hba.conf` or `pg_ident.conf` of its own, a copy is put there. In `postgresql.conf`, settings that name the
//! origin's data directory or files are commented out: a server started on the restored directory would otherwise run
//! on the origin's.

use super::plan::CONFIG_DIR;
use super::{PlannedConfig, RestorePlan};
use crate::EngineError;
use pg_format::conf::{self, ConfFile, DirectiveKind};
use std::collections::BTreeSet;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};

/// A file to be written into the data directory, and why.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct ConfigCopy {
    pub(super) path: PathBuf,
    pub(super) text: Vec<u8>,
}

/// Settings that name places of the origin.
const PLACES: [&str; 5] = ["data_directory", "config_file", "hba_file", "ident_file", "external_pid_file"];

fn read(path: &Path) -> Result<Option<Vec<u8>>, EngineError> {
    match fs::read(path) {
        Ok(bytes) => Ok(Some(bytes)),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(EngineError::file(path, "reading", error)),
    }
}

/// What has to be written so that the restored directory can be started by itself. The notes say what was changed.
pub(super) fn copies(plan: &RestorePlan, notes: &mut Vec<String>) -> Result<Vec<ConfigCopy>, EngineError> {
    let target = &plan.target_dir;
    let mut copies = Vec::new();
    for (setting, name) in
        [("config_file", "postgresql.conf"), ("hba_file", "pg_hba.conf"), ("ident_file", "pg_ident.conf")]
    {
        let inside = target.join(name);
        let is_main = setting == "config_file";
        let outside = plan.config_files.iter().find(|file| file.setting == setting);
        let (bytes, origin) = match (read(&inside)?, outside) {
            // A file of its own stays; only what leads to the origin is taken out.
            (Some(bytes), _) if is_main => (bytes, None),
            (Some(_), None) => continue,
            (Some(_), Some(_)) => continue,
            (None, Some(outside)) => match read(&outside.destination)? {
                Some(bytes) => (bytes, Some(outside)),
                None => continue,
            },
            (None, None) => continue,
        };
        let new = if is_main { adapt(plan, &bytes, origin, notes) } else { bytes.clone() };
        if let Some(origin) = origin {
            notes.push(format!("{name} is a copy of the origin's {}", origin.origin));
        }
        if origin.is_some() || new != bytes {
            copies.push(ConfigCopy { path: inside, text: new });
        }
    }
    Ok(copies)
}

/// `postgresql.conf` without what names the origin's places, and with its includes where they are now.
fn adapt(plan: &RestorePlan, bytes: &[u8], origin: Option<&PlannedConfig>, notes: &mut Vec<String>) -> Vec<u8> {
    // Comments may be in any encoding: a text that is not UTF-8 is only changed where lines are.
    let Ok(text) = std::str::from_utf8(bytes) else {
        notes.push("postgresql.conf is not UTF-8 text and was left as it is: look for data_directory in it".into());
        return bytes.to_vec();
    };
    let mut text = text.to_owned();
    for name in PLACES {
        let Some(value) = ConfFile::parse(&text).get(name).map(str::to_owned) else { continue };
        if value.is_empty() || Path::new(&value).starts_with(&plan.target_dir) || !Path::new(&value).is_absolute() {
            continue;
        }
        text = conf::comment_out(&text, name, "pgkeep restore: this is the origin's");
        notes.push(format!("{name} = '{value}' is commented out in postgresql.conf: it is the origin's"));
    }
    rewrite_includes(plan, &text, origin, notes).into_bytes()
}

/// Includes of files that were restored lead to them; others are commented out.
fn rewrite_includes(plan: &RestorePlan, text: &str, origin: Option<&PlannedConfig>, notes: &mut Vec<String>) -> String {
    let restored: BTreeSet<&Path> = plan.config_files.iter().map(|file| Path::new(&file.origin)).collect();
    // Relative names count from the directory of the file that has them.
    let base = origin.and_then(|file| Path::new(&file.origin).parent());
    let conf = ConfFile::parse(text);
    let mut lines: Vec<String> = text.split('\n').map(str::to_owned).collect();
    for directive in &conf.directives {
        let (word, named) = match &directive.kind {
            DirectiveKind::Include(path) => ("include", path),
            DirectiveKind::IncludeIfExists(path) => ("include_if_exists", path),
            DirectiveKind::IncludeDir(path) => ("include_dir", path),
            DirectiveKind::Set { .. } => continue,
        };
        let path = match base {
            Some(base) => base.join(named),
            // In the data directory: what is relative was restored with it.
            None if Path::new(named).is_relative() => continue,
            None => PathBuf::from(named),
        };
        let there = if word == "include_dir" {
            restored.iter().any(|file| file.parent() == Some(path.as_path()))
        } else {
            restored.contains(path.as_path())
        };
        let line = &mut lines[directive.line - 1];
        let now = plan.target_dir.join(CONFIG_DIR).join(path.strip_prefix("/").unwrap_or(&path));
        let quoted = conf::quote_value(&now.to_string_lossy());
        match quoted {
            Ok(quoted) if there => {
                *line = format!("{word} {quoted}  # pgkeep restore: was {}", path.display());
                notes.push(format!("{word} '{named}' in postgresql.conf leads to {}", now.display()));
            }
            _ => {
                *line = format!("#{line}  # pgkeep restore: not in the backup");
                if word == "include" {
                    notes
                        .push(format!("{word} '{named}' is commented out in postgresql.conf: it is not in the backup"));
                }
            }
        }
    }
    lines.join("\n")
}
