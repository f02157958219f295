//! Command strings for PostgreSQL's settings: quoted for the shell, with PostgreSQL's own placeholders.

use std::path::Path;

/// Quotes one word for a POSIX shell.
pub(crate) fn shell(word: &str) -> String {
    format!("'{}'", word.replace('\'', "'\\''"))
}

/// Quotes one word for a command string of PostgreSQL, where `%` begins a placeholder and `%%` is a percent sign
/// (`BuildRestoreCommand` in `src/common/archive.c`, `shell_archive_file` in `src/backend/archive/shell_archive.c`).
fn placeholder_safe(word: &str) -> String {
    shell(word).replace('%', "%%")
}

/// What the command strings are made of.
#[derive(Debug, Clone, Copy)]
pub(crate) struct CommandStrings<'a> {
    /// The running program.
    pub(crate) program: &'a Path,
    /// The configuration file.
    pub(crate) config: &'a Path,
    /// The repository's name, when it is not the cluster's own.
    pub(crate) repository: Option<&'a str>,
    /// The cluster's name.
    pub(crate) cluster: &'a str,
}

impl CommandStrings<'_> {
    fn begin(&self) -> String {
        let word = |path: &Path| placeholder_safe(&path.to_string_lossy());
        let mut text = format!("{} --config {}", word(self.program), word(self.config));
        if let Some(repository) = self.repository {
            text += &format!(" --repo {}", placeholder_safe(repository));
        }
        text + " --cluster " + &placeholder_safe(self.cluster)
    }

    /// For `archive_command`.
    pub(crate) fn archive(&self) -> String {
        self.begin() + " wal push '%p'"
    }

    /// For `restore_command`.
    pub(crate) fn restore(&self) -> String {
        self.begin() + " wal fetch '%f' '%p'"
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn strings<'a>(program: &'a str, config: &'a str, repository: Option<&'a str>) -> CommandStrings<'a> {
        CommandStrings { program: Path::new(program), config: Path::new(config), repository, cluster: "main" }
    }

    #[test]
    fn command_strings() {
        let plain = strings("/usr/bin/pgkeep", "/etc/pgkeep/pgkeep.toml", None);
        assert_eq!(
            plain.archive(),
            "'/usr/bin/pgkeep' --config '/etc/pgkeep/pgkeep.toml' --cluster 'main' wal push '%p'"
        );
        let odd = strings("/opt/it's 100%/pgkeep", "/a b.toml", Some("far"));
        assert_eq!(
            odd.restore(),
            r"'/opt/it'\''s 100%%/pgkeep' --config '/a b.toml' --repo 'far' --cluster 'main' wal fetch '%f' '%p'"
        );
    }

    #[test]
    fn the_shell_reads_words_as_they_were() {
        for word in ["a", "a b", "it's", "$HOME `id` \\ \"x\"", "''", "new\nline", ""] {
            let script = format!("printf %s {}", shell(word));
            let output = std::process::Command::new("sh").args(["-c", &script]).output().unwrap();
            assert_eq!(String::from_utf8(output.stdout).unwrap(), word);
        }
    }
}
