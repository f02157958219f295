//! PostgreSQL's programs on this host.

use std::path::{Path, PathBuf};
use std::process::Command;

/// The major version of the server program in a folder.
pub(super) fn server_major(bin_dir: &Path) -> Option<u32> {
    let output = Command::new(bin_dir.join("postgres")).arg("--version").output().ok()?;
    let text = String::from_utf8(output.stdout).ok()?;
    let version = text.split_whitespace().find(|word| word.starts_with(|first: char| first.is_ascii_digit()))?;
    version.split(|c: char| !c.is_ascii_digit()).next()?.parse().ok()
}

/// The first folder that has the server of this major version, and the versions that were found instead.
pub(super) fn find_server(bin_dirs: &[PathBuf], major: u32) -> Result<PathBuf, Vec<u32>> {
    let mut others = Vec::new();
    for dir in bin_dirs {
        match server_major(dir) {
            Some(found) if found == major => return Ok(dir.clone()),
            Some(found) => others.push(found),
            None => {}
        }
    }
    others.sort_unstable();
    others.dedup();
    Err(others)
}
