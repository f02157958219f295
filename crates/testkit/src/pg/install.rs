//! Where PostgreSQL's programs are on this machine.

use anyhow::{Context, Result, bail};
use std::path::{Path, PathBuf};

/// The programs of one PostgreSQL major version.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PgInstall {
    major: u32,
    /// Folders with programs, best first. A later one fills in tools that an earlier one lacks.
    bin_dirs: Vec<PathBuf>,
}

/// The folders in which `cargo xtask setup` puts what the distribution does not have, the one to write to first.
///
/// `$PGKEEP_TOOLS` if set; for root `/var/lib/pgkeep-tools`, because servers run as another user who must be able to
/// read it; else `$XDG_CACHE_HOME/pgkeep-tools` or `~/.cache/pgkeep-tools`.
#[must_use]
pub fn tools_dirs() -> Vec<PathBuf> {
    let system = PathBuf::from("/var/lib/pgkeep-tools");
    if let Some(dir) = std::env::var_os("PGKEEP_TOOLS").filter(|dir| !dir.is_empty()) {
        return vec![PathBuf::from(dir)];
    }
    if rustix::process::geteuid().is_root() {
        return vec![system];
    }
    let cache = std::env::var_os("XDG_CACHE_HOME")
        .filter(|dir| !dir.is_empty())
        .map(PathBuf::from)
        .or_else(|| std::env::var_os("HOME").map(|home| PathBuf::from(home).join(".cache")));
    cache.map(|dir| dir.join("pgkeep-tools")).into_iter().chain([system]).collect()
}

impl PgInstall {
    /// Finds major version `major`: the distribution's packages, then `PATH`, then the folder made by
    /// `cargo xtask setup`.
    ///
    /// # Errors
    /// When the server is not there; the message says how to get it.
    pub fn find(major: u32) -> Result<Self> {
        let mut bin_dirs: Vec<PathBuf> = Vec::new();
        for dir in server_candidates(major) {
            if dir.join("postgres").exists() && dir.join("initdb").exists() && !bin_dirs.contains(&dir) {
                bin_dirs.push(dir);
            }
        }
        if bin_dirs.is_empty() {
            bail!("PostgreSQL {major} is not on this machine: run `cargo xtask setup`");
        }
        for tools in tools_dirs() {
            // Client programs that come apart from the server (16).
            let dir = tools.join(format!("pg-{major}-tools/bin"));
            if dir.is_dir() {
                bin_dirs.push(dir);
            }
        }
        if major < 15 {
            // Nobody packages version 14's client programs any more; those of 15 work with a server of 14.
            if let Ok(newer) = Self::find(15) {
                bin_dirs.extend(newer.bin_dirs);
            }
        }
        Ok(Self { major, bin_dirs })
    }

    /// Those of `majors` that are installed.
    #[must_use]
    pub fn installed(majors: &[u32]) -> Vec<Self> {
        majors.iter().filter_map(|major| Self::find(*major).ok()).collect()
    }

    /// The major version.
    #[must_use]
    pub fn major(&self) -> u32 {
        self.major
    }

    /// The folder that holds the server program.
    #[must_use]
    pub fn bin_dir(&self) -> &Path {
        &self.bin_dirs[0]
    }

    /// The path of a program such as `pg_dump`.
    ///
    /// # Errors
    /// When this installation lacks it (version 14 has no `pg_waldump`, for example).
    pub fn bin(&self, tool: &str) -> Result<PathBuf> {
        self.bin_dirs.iter().map(|dir| dir.join(tool)).find(|path| path.exists()).with_context(|| {
            format!("PostgreSQL {} here has no program '{tool}' (looked in {:?})", self.major, self.bin_dirs)
        })
    }

    /// What `postgres --version` says, for example `postgres (PostgreSQL) 15.20`.
    ///
    /// # Errors
    /// When the program does not run.
    pub fn version_text(&self) -> Result<String> {
        let program = self.bin("postgres")?;
        let output = std::process::Command::new(&program)
            .arg("--version")
            .output()
            .with_context(|| format!("cannot run {}", program.display()))?;
        if !output.status.success() {
            bail!("{} --version failed: {}", program.display(), String::from_utf8_lossy(&output.stderr).trim());
        }
        Ok(String::from_utf8_lossy(&output.stdout).trim().to_owned())
    }
}

/// Folders that may hold the server of `major`, best first.
fn server_candidates(major: u32) -> Vec<PathBuf> {
    let mut dirs = vec![PathBuf::from(format!("/usr/lib/postgresql/{major}/bin"))];
    if let Some(path) = std::env::var_os("PATH") {
        for dir in std::env::split_paths(&path) {
            // A link such as /usr/local/bin/postgres leads to the folder that has the other programs too.
            let Ok(program) = dir.join("postgres").canonicalize() else {
                continue;
            };
            let Some(real) = program.parent() else {
                continue;
            };
            if program_major(&program) == Some(major) {
                dirs.push(real.to_owned());
            }
        }
    }
    for tools in tools_dirs() {
        let root = tools.join(format!("pg-{major}"));
        dirs.push(root.join(format!("usr/lib/postgresql/{major}/bin")));
        dirs.push(root.join("native/bin"));
        dirs.push(root.join("bin"));
    }
    dirs
}

fn program_major(program: &Path) -> Option<u32> {
    let output = std::process::Command::new(program).arg("--version").output().ok()?;
    major_of_version_text(&String::from_utf8_lossy(&output.stdout))
}

fn major_of_version_text(text: &str) -> Option<u32> {
    let version = text.split_whitespace().find(|word| word.starts_with(|first: char| first.is_ascii_digit()))?;
    let digits: String = version.chars().take_while(char::is_ascii_digit).collect();
    digits.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_the_major_version() {
        assert_eq!(major_of_version_text("postgres (PostgreSQL) 15.20 (Debian 15.20-0+deb12u1)"), Some(15));
        assert_eq!(major_of_version_text("postgres (PostgreSQL) 18beta1"), Some(18));
        assert_eq!(major_of_version_text("nothing"), None);
    }

    #[test]
    fn a_missing_version_says_what_to_do() {
        let error = PgInstall::find(9).unwrap_err().to_string();
        assert_eq!(error, "PostgreSQL 9 is not on this machine: run `cargo xtask setup`");
    }
}
