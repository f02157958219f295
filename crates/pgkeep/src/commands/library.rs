//! Where pgkeep's archive library is, and the socket that it and `wal serve` meet at.

use crate::config::Config;
use crate::environment::Environment;
use crate::error::CommandError;
use std::path::{Path, PathBuf};

/// The library as it is installed, and as it is built.
const FILES: [&str; 3] = ["../lib/pgkeep/pgkeep_archive.so", "pgkeep_archive.so", "libpgkeep_archive.so"];

/// The library's file: the one named, or the one that came with the program.
pub(crate) fn file(named: Option<&Path>, program: &Path) -> Result<PathBuf, CommandError> {
    let hint = "the server must be able to read it; --archive-library=FILE names another";
    if let Some(path) = named {
        let path = std::path::absolute(path).unwrap_or_else(|_| path.to_owned());
        return match path.is_file() {
            true => Ok(path),
            false => Err(CommandError::usage(format!("{}: there is no such library", path.display())).hint(hint)),
        };
    }
    let dir = program.parent().unwrap_or(Path::new("/"));
    let places: Vec<PathBuf> = FILES.iter().map(|file| dir.join(file)).collect();
    match places.iter().find(|place| place.is_file()) {
        // Without `..`, as the server's configuration should have it.
        Some(place) => Ok(place.canonicalize().unwrap_or_else(|_| place.clone())),
        None => {
            let places: Vec<String> = places.iter().map(|place| place.display().to_string()).collect();
            Err(CommandError::usage(format!("the archive library is not there (looked for {})", places.join(", ")))
                .hint(hint))
        }
    }
}

/// The socket: the one named, or the usual one for a cluster.
pub(crate) fn socket(named: Option<&Path>, config: &Config, environment: &Environment, cluster: &str) -> PathBuf {
    match named {
        Some(path) => std::path::absolute(path).unwrap_or_else(|_| path.to_owned()),
        None => config.state_dir(environment).join(format!("{cluster}.sock")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_library_is_beside_the_program_or_in_lib() {
        let dir = tempfile::tempdir().unwrap();
        let root = dir.path().canonicalize().unwrap();
        let program = root.join("bin/pgkeep");
        std::fs::create_dir_all(root.join("bin")).unwrap();
        let missing = file(None, &program).unwrap_err();
        assert!(missing.message.contains("libpgkeep_archive.so"), "{missing}");
        std::fs::write(root.join("bin/libpgkeep_archive.so"), "").unwrap();
        assert_eq!(file(None, &program).unwrap(), root.join("bin/libpgkeep_archive.so"));
        std::fs::create_dir_all(root.join("lib/pgkeep")).unwrap();
        std::fs::write(root.join("lib/pgkeep/pgkeep_archive.so"), "").unwrap();
        assert_eq!(file(None, &program).unwrap(), root.join("lib/pgkeep/pgkeep_archive.so"));
        assert!(file(Some(&root.join("nowhere.so")), &program).is_err());
    }
}
