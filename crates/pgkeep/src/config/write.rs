//! Adding to the configuration file, as `init` does: what the operator wrote stays as it is, comments too.

use super::{ClusterConfig, KeyConfig, RepositoryConfig};
use crate::error::CommandError;
use std::fmt::Write as _;
use std::io::Write as _;
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt, PermissionsExt};
use std::path::Path;

/// What `init` wants to be in the file.
#[derive(Debug)]
pub(crate) struct Addition<'a> {
    pub(crate) repository_name: &'a str,
    pub(crate) repository: &'a RepositoryConfig,
    pub(crate) cluster_name: &'a str,
    pub(crate) cluster: &'a ClusterConfig,
    /// The repository takes copies only: the cluster must be there, and goes on using those that it uses.
    pub(crate) for_copies: bool,
}

/// Makes the file hold the addition. Sections that are there already must say the same. Returns whether it changed.
pub(crate) fn add_to_file(path: &Path, addition: &Addition<'_>) -> Result<bool, CommandError> {
    let failed = |action: &str, error: std::io::Error| {
        CommandError::failed(format!("{}: cannot {action} the configuration: {error}", path.display()))
            .hint("give a file that this user can write, with --config FILE")
    };
    let exists = path.exists();
    let old = if exists { std::fs::read_to_string(path).map_err(|e| failed("read", e))? } else { String::new() };
    let text = with_addition(&old, path, addition)?;
    if text == old {
        return Ok(false);
    }
    let dir = path.parent().unwrap_or(Path::new("/"));
    std::fs::DirBuilder::new()
        .recursive(true)
        .mode(0o750)
        .create(dir)
        .map_err(|e| failed("make the directory of", e))?;
    let temporary = path.with_extension(format!("toml.{}", std::process::id()));
    let write = || {
        let mode = if exists { std::fs::metadata(path)?.permissions().mode() & 0o777 } else { 0o640 };
        let mut file = std::fs::OpenOptions::new().write(true).create_new(true).mode(mode).open(&temporary)?;
        file.set_permissions(std::fs::Permissions::from_mode(mode))?;
        file.write_all(text.as_bytes())?;
        file.sync_all()?;
        std::fs::rename(&temporary, path)?;
        std::fs::File::open(dir)?.sync_all()
    };
    write().map_err(|error| {
        let _ = std::fs::remove_file(&temporary);
        failed("write", error)
    })?;
    Ok(true)
}

/// Whether the addition fits what is in the file.
pub(crate) fn check_addition(path: &Path, addition: &Addition<'_>) -> Result<(), CommandError> {
    match std::fs::read_to_string(path) {
        Ok(old) => with_addition(&old, path, addition).map(drop),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => with_addition("", path, addition).map(drop),
        Err(error) => Err(CommandError::failed(format!("{}: cannot read the configuration: {error}", path.display()))
            .hint("give a file that this user can read and write, with --config FILE")),
    }
}

/// The text with the addition; read again, so that what is written is what was meant.
fn with_addition(old: &str, path: &Path, addition: &Addition<'_>) -> Result<String, CommandError> {
    let Addition { repository_name, repository, cluster_name, cluster, for_copies } = addition;
    let config = super::parse(old, path)?;
    let differs = |section: &str, what: &str| {
        CommandError::usage(format!("{}: [{section}] is there already, with another {what}", path.display()))
    };
    let mut text = old.to_owned();
    if text.is_empty() {
        text += "# Configuration of pgkeep; see docs/config.md.\n";
    }
    match config.repositories.get(*repository_name) {
        None => push_repository(&mut text, repository_name, repository),
        Some(there) => {
            let section = format!("repository.{repository_name}");
            if there.url != repository.url {
                return Err(differs(&section, &format!("url, {}", there.url))
                    .hint("give the new repository its own name with --repo-name NAME, or edit the file"));
            }
            if there.key != repository.key {
                return Err(differs(&section, "key").hint("give the same key, or edit the file"));
            }
            if !repository.options.is_empty() && there.options != repository.options {
                return Err(differs(&section, "set of options").hint("edit the file, and leave out --store-option"));
            }
            if repository.compression.is_some() && there.compression != repository.compression {
                return Err(differs(&section, "compression").hint("edit the file, and leave out --compression"));
            }
        }
    }
    match config.clusters.get(*cluster_name) {
        None if *for_copies => {
            return Err(CommandError::usage(format!("[cluster.{cluster_name}] is not in {}", path.display())).hint(
                "copies are of what is in another repository: first run init for that one, without --for-copies",
            ));
        }
        None => push_cluster(&mut text, cluster_name, cluster),
        Some(there) => {
            let section = format!("cluster.{cluster_name}");
            if there.pg != cluster.pg {
                return Err(differs(&section, &format!("pg, \"{}\"", there.pg))
                    .hint("edit the file, or give this cluster another name"));
            }
            let first = there.repository.as_deref().unwrap_or(repository_name);
            let uses = first == *repository_name || there.more_repositories.iter().any(|name| name == repository_name);
            if !uses && !for_copies {
                return Err(differs(&section, "repository")
                    .hint(format!(
                        "edit the file; for WAL in both, add [repository.{repository_name}] and write \
                         repository = [\"{first}\", \"{repository_name}\"]"
                    ))
                    .hint("for copies of dumps only, say --for-copies"));
            }
            if uses && *for_copies {
                return Err(CommandError::usage(format!(
                    "{}: [{section}] archives to {repository_name} already",
                    path.display()
                ))
                .hint("leave out --for-copies, or give the repository for copies its own --repo-name"));
            }
        }
    }
    super::parse(&text, path)?;
    Ok(text)
}

fn quoted(text: &str) -> String {
    toml::Value::String(text.to_owned()).to_string()
}

fn key_name(name: &str) -> String {
    let bare = !name.is_empty() && name.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-' || b == b'_');
    if bare { name.to_owned() } else { quoted(name) }
}

fn push_repository(text: &mut String, name: &str, repository: &RepositoryConfig) {
    let name = key_name(name);
    let mut line = |line: String| writeln!(text, "{line}").expect("writing to a String cannot fail");
    line(format!("\n[repository.{name}]"));
    line(format!("url = {}", quoted(&repository.url)));
    line(match &repository.key {
        KeyConfig::File(path) => format!("key-file = {}", quoted(&path.to_string_lossy())),
        KeyConfig::Passphrase(path) => format!("passphrase-file = {}", quoted(&path.to_string_lossy())),
        KeyConfig::Command(command) => format!("key-command = {}", quoted(command)),
        KeyConfig::None => "encryption = \"none\"".to_owned(),
    });
    if let Some(compression) = repository.compression {
        line(format!("compression = \"{compression}\""));
    }
    if !repository.options.is_empty() {
        line(format!("\n[repository.{name}.options]"));
        for (key, value) in &repository.options {
            line(format!("{key} = {}", quoted(value)));
        }
    }
}

fn push_cluster(text: &mut String, name: &str, cluster: &ClusterConfig) {
    let mut line = |line: String| writeln!(text, "{line}").expect("writing to a String cannot fail");
    line(format!("\n[cluster.{}]", key_name(name)));
    line(format!("pg = {}", quoted(&cluster.pg)));
    if let Some(repository) = &cluster.repository {
        line(format!("repository = {}", quoted(repository)));
    }
}
