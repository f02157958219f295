//! PostgreSQL's own programs: which are installed, which one fits, and running them.

use crate::DumpError;
use engine::Context;
use std::path::{Path, PathBuf};
use std::process::{Output, Stdio};
use tokio::process::Command;

/// The `bin` directory of one installed PostgreSQL, with its major version.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Tools {
    /// The directory.
    pub dir: PathBuf,
    /// Major version of its pg_dump.
    pub major: u32,
    /// Version, as the programs print it.
    pub version: String,
}

/// What is installed.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct ToolSet {
    found: Vec<Tools>,
    looked_in: Vec<PathBuf>,
}

/// Where packages put PostgreSQL's programs: Debian, Red Hat, from source.
const PLACES: [(&str, &str); 3] = [("/usr/lib/postgresql", "bin"), ("/usr", "bin"), ("/usr/local", "bin")];

impl ToolSet {
    /// Looks in `first` (a directory that was named), else in the directories of `path` and where packages put them.
    pub async fn find(first: Option<&Path>, path: &[PathBuf]) -> Self {
        let mut dirs: Vec<PathBuf> = Vec::new();
        match first {
            Some(dir) => dirs.push(dir.to_owned()),
            None => {
                dirs.extend(PLACES.iter().flat_map(|(above, below)| versions(Path::new(above), below)));
                dirs.extend(path.iter().cloned());
            }
        }
        let mut set = Self::default();
        for dir in dirs {
            if set.looked_in.contains(&dir) {
                continue;
            }
            if let Some(tools) = Tools::at(&dir).await {
                set.found.push(tools);
            }
            set.looked_in.push(dir);
        }
        set
    }

    /// For a server or an archive of a major version: the same version, else the lowest above it.
    ///
    /// pg_dump refuses servers that are newer than it, pg_restore archives that are.
    pub fn for_major(&self, major: u32, what: &str) -> Result<&Tools, DumpError> {
        self.found.iter().filter(|tools| tools.major >= major).min_by_key(|tools| tools.major).ok_or_else(|| {
            let there: Vec<String> =
                self.found.iter().map(|tools| format!("{} in {}", tools.version, tools.dir.display())).collect();
            let there = if there.is_empty() { "none was found".to_owned() } else { there.join(", ") };
            DumpError::refused(
                format!("{what} needs pg_dump and pg_restore of PostgreSQL {major} or later: {there}"),
                format!("install postgresql-client-{major}, or name the directory of its programs with --pg-bin"),
            )
        })
    }

    /// With a server to start: of a major version, else of the lowest above it.
    pub(crate) fn server_for_major(&self, major: u32) -> Result<&Tools, DumpError> {
        let has_server = |tools: &&Tools| tools.major >= major && tools.dir.join("initdb").is_file();
        self.found.iter().filter(has_server).min_by_key(|tools| tools.major).ok_or_else(|| {
            DumpError::refused(
                format!("no server of PostgreSQL {major} or later is installed here"),
                format!(
                    "install postgresql-{major}, name the directory of its programs with --pg-bin, or name a server of \
                     your own with --into"
                ),
            )
        })
    }

    /// The newest, for what does not say which one it needs.
    pub fn newest(&self, what: &str) -> Result<&Tools, DumpError> {
        match self.found.iter().max_by_key(|tools| tools.major) {
            Some(tools) => Ok(tools),
            None => self.for_major(0, what),
        }
    }
}

/// Directories such as `/usr/lib/postgresql/15/bin` and `/usr/pgsql-15/bin`.
fn versions(above: &Path, below: &str) -> Vec<PathBuf> {
    let Ok(entries) = std::fs::read_dir(above) else { return Vec::new() };
    let is_version = |name: &str| {
        let digits = name.strip_prefix("pgsql-").or_else(|| name.strip_prefix("pgsql")).unwrap_or(name);
        name == "pgsql" || !digits.is_empty() && digits.bytes().all(|byte| byte.is_ascii_digit() || byte == b'.')
    };
    let names = entries.filter_map(|entry| entry.ok()?.file_name().into_string().ok());
    let mut found: Vec<PathBuf> =
        names.filter(|name| is_version(name)).map(|name| above.join(name).join(below)).collect();
    found.sort();
    found
}

impl Tools {
    async fn at(dir: &Path) -> Option<Self> {
        if !dir.join("pg_dump").is_file() || !dir.join("pg_restore").is_file() {
            return None;
        }
        let mut command = Command::new(dir.join("pg_dump"));
        let output = command.arg("--version").stdin(Stdio::null()).output().await.ok()?;
        // "pg_dump (PostgreSQL) 15.20 (Debian …)"
        let text = String::from_utf8_lossy(&output.stdout).into_owned();
        let version = text.split_whitespace().nth(2)?.to_owned();
        let major = version.chars().take_while(char::is_ascii_digit).collect::<String>().parse().ok()?;
        Some(Self { dir: dir.to_owned(), major, version })
    }

    /// One of the programs, to be given arguments. What it says is in English, and it asks nothing.
    pub(crate) fn command(&self, program: &str) -> Command {
        let mut command = Command::new(self.dir.join(program));
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped()).kill_on_drop(true);
        command.env("LC_MESSAGES", "C").env_remove("LC_ALL").env_remove("LANGUAGE");
        // Settings for sessions of the caller's own are not meant for what is dumped or loaded here.
        command.env_remove("PGOPTIONS").env_remove("PGSERVICE").env_remove("PGDATABASE");
        command
    }

    /// Runs one of the programs to its end.
    pub(crate) async fn output(&self, ctx: &Context, program: &str, mut command: Command) -> Result<Output, DumpError> {
        let output = ctx.or_cancel(command.output()).await?;
        output.map_err(|error| DumpError::file(self.dir.join(program), "running it", error))
    }

    /// For messages.
    pub(crate) fn named(&self, program: &str) -> String {
        format!("{program} {}", self.version)
    }
}

/// The end of what a program said, for an error message: its lines without the program's own name.
pub(crate) fn last_words(stderr: &[u8]) -> String {
    const LINES: usize = 12;
    let text = String::from_utf8_lossy(stderr);
    let lines: Vec<&str> = text.lines().map(str::trim_end).filter(|line| !line.is_empty()).collect();
    lines[lines.len().saturating_sub(LINES)..].join("\n  ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_version_that_fits_is_the_same_or_the_lowest_above() {
        let tools = |major: u32| Tools { dir: format!("/x/{major}").into(), major, version: format!("{major}.1") };
        let set = ToolSet { found: vec![tools(18), tools(14), tools(16)], looked_in: Vec::new() };
        let chosen = |major| set.for_major(major, "x").map(|tools| tools.major).map_err(|error| error.to_string());
        assert_eq!(chosen(14), Ok(14));
        assert_eq!(chosen(15), Ok(16));
        assert_eq!(chosen(17), Ok(18));
        let error = chosen(19).unwrap_err();
        assert!(error.contains("19 or later") && error.contains("14.1 in /x/14"), "{error}");
        assert!(ToolSet::default().for_major(15, "x").unwrap_err().to_string().contains("none was found"));
    }
}
