//! pgBackRest, which the benchmarks measure pgkeep against: the newest that runs here.
//!
//! No test needs it, so the set-up does not fetch it; `cargo xtask bench` does when it is run first.

use super::{apt, tools_dir};
use crate::sh;
use anyhow::{Result, bail};
use std::path::{Path, PathBuf};
use std::process::Command;

/// A pgBackRest that runs on this machine.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Program {
    pub(crate) path: PathBuf,
    /// Major and minor number.
    pub(crate) version: (u32, u32),
}

impl Program {
    /// Its version as people write it.
    pub(crate) fn version_text(&self) -> String {
        format!("{}.{}", self.version.0, self.version.1)
    }

    /// Block incremental backups came with 2.46.
    pub(crate) fn has_block_incremental(&self) -> bool {
        self.version >= (2, 46)
    }

    fn at(path: &Path) -> Option<Self> {
        let text = sh::quiet(Command::new(path).arg("version")).ok()?;
        Some(Self { path: path.to_owned(), version: parse_version(&text)? })
    }
}

/// The newest pgBackRest that can be had: of Debian's sid with its own libraries, of trixie with this machine's, of
/// this machine's release. Fetched if it is not there.
pub(crate) fn pgbackrest() -> Result<Program> {
    let tools = tools_dir()?;
    for name in ["pgbackrest-sid", "pgbackrest-trixie-plain"] {
        if let Some(program) = Program::at(&tools.join(name).join("usr/bin/pgbackrest")) {
            return Ok(program);
        }
    }
    println!("fetching pgBackRest ...");
    type Fetch = fn() -> Result<PathBuf>;
    let ways: [(&str, Fetch); 3] = [
        ("sid", || apt::program_from_suite("pgbackrest", "sid")),
        ("trixie", || apt::plain_program_from_suite("pgbackrest", "trixie")),
        ("this release", || apt::program("pgbackrest", "pgbackrest")),
    ];
    let mut failures = Vec::new();
    for (from, fetch) in ways {
        match fetch().map(|path| Program::at(&path)) {
            Ok(Some(program)) => return Ok(program),
            Ok(None) => failures.push(format!("{from}: it does not run here")),
            Err(error) => failures.push(format!("{from}: {error:#}")),
        }
    }
    bail!("pgBackRest cannot be had:\n- {}", failures.join("\n- "))
}

/// From `pgBackRest 2.60` or `pgBackRest 2.55.1`.
fn parse_version(text: &str) -> Option<(u32, u32)> {
    let mut numbers = text.trim().strip_prefix("pgBackRest ")?.split('.');
    let mut number = || {
        let digits: String = numbers.next()?.chars().take_while(char::is_ascii_digit).collect();
        digits.parse().ok()
    };
    Some((number()?, number()?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions() {
        assert_eq!(parse_version("pgBackRest 2.60.0\n"), Some((2, 60)));
        assert_eq!(parse_version("pgBackRest 2.45\n"), Some((2, 45)));
        assert_eq!(parse_version("pgBackRest 3.0dev"), Some((3, 0)));
        assert_eq!(parse_version("something else"), None);
    }
}
