//! From the configuration's words about a key to the key itself.

use crate::config::KeyConfig;
use crate::error::CommandError;
use repo::KeySource;
use std::io::Write;
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::Path;
use std::process::Stdio;
use std::time::Duration;
use zeroize::Zeroizing;

/// How long a key command may take.
const COMMAND_TIME_MAX: Duration = Duration::from_secs(60);

/// A key that was loaded; `None` for a repository without encryption. With it, what a human should be warned of.
#[derive(Debug)]
pub(crate) struct Loaded {
    pub(crate) key: Option<KeySource>,
    pub(crate) warnings: Vec<String>,
}

/// Loads the key that the configuration names.
pub(crate) async fn load(config: &KeyConfig) -> Result<Loaded, CommandError> {
    let (key, warnings) = match config {
        KeyConfig::None => (None, Vec::new()),
        KeyConfig::File(path) => {
            let (text, warnings) = read_secret(path, "key file")?;
            (Some(KeySource::key_file(&text).map_err(|error| bad(path, &error))?), warnings)
        }
        KeyConfig::Passphrase(path) => {
            let (text, warnings) = read_secret(path, "passphrase file")?;
            (Some(KeySource::passphrase(&text).map_err(|error| bad(path, &error))?), warnings)
        }
        KeyConfig::Command(command) => (Some(from_command(command).await?), Vec::new()),
    };
    Ok(Loaded { key, warnings })
}

fn bad(path: &Path, error: &repo::RepoError) -> CommandError {
    CommandError::usage(format!("{}: {error}", path.display()))
        .hint("check that this is the right file; `pgkeep key new FILE` makes a new key for a new repository")
}

fn read_secret(path: &Path, what: &str) -> Result<(Zeroizing<String>, Vec<String>), CommandError> {
    let text = std::fs::read_to_string(path).map_err(|error| {
        let message = CommandError::usage(format!("{}: cannot read the {what}: {error}", path.display()));
        match error.kind() {
            std::io::ErrorKind::NotFound => message
                .hint(format!("without its {what} the repository cannot be opened: bring it back from your copy")),
            std::io::ErrorKind::PermissionDenied => {
                message.hint("run pgkeep as the user that owns it, which is the one that PostgreSQL runs as")
            }
            _ => message,
        }
    })?;
    let mode = std::fs::metadata(path).map_or(0, |metadata| metadata.mode());
    let mut warnings = Vec::new();
    if mode & 0o077 != 0 {
        warnings.push(format!(
            "the {what} {} can be read or changed by others (mode {:04o}): chmod 600 it",
            path.display(),
            mode & 0o7777
        ));
    }
    Ok((Zeroizing::new(text), warnings))
}

/// Runs a key command. Its own errors go to standard error, where the operator sees them.
async fn from_command(command: &str) -> Result<KeySource, CommandError> {
    let failed = |reason: String| {
        CommandError::failed(format!("the key command `{command}` {reason}"))
            .hint("run it by hand as this user; it must print the key as 64 hexadecimal digits and exit with 0")
    };
    let child = tokio::process::Command::new("sh")
        .args(["-c", command])
        .stdin(Stdio::null())
        .stderr(Stdio::inherit())
        .stdout(Stdio::piped())
        .kill_on_drop(true)
        .spawn()
        .map_err(|error| failed(format!("cannot be run: {error}")))?;
    let output = tokio::time::timeout(COMMAND_TIME_MAX, child.wait_with_output())
        .await
        .map_err(|_| failed(format!("gave no key within {} s", COMMAND_TIME_MAX.as_secs())))?
        .map_err(|error| failed(format!("failed: {error}")))?;
    let text = Zeroizing::new(output.stdout);
    if !output.status.success() {
        return Err(failed(format!("ended with {}", output.status)));
    }
    let text = std::str::from_utf8(&text).map_err(|_| failed("printed something that is no text".into()))?;
    KeySource::key_command(text).map_err(|error| failed(format!("gave no key: {error}")))
}

/// Writes a new key to a new file, mode 0600, durably.
pub(crate) fn create_file(path: &Path) -> Result<(), CommandError> {
    let failed = |error: std::io::Error| {
        let message = CommandError::failed(format!("{}: cannot make the key file: {error}", path.display()));
        match error.kind() {
            std::io::ErrorKind::AlreadyExists => message.hint("a key is never overwritten: name another file"),
            std::io::ErrorKind::NotFound => message.hint("make its directory first"),
            _ => message,
        }
    };
    let text = KeySource::new_key_text().map_err(|error| CommandError::failed(error.to_string()))?;
    let write = || {
        let mut file = std::fs::OpenOptions::new().write(true).create_new(true).mode(0o600).open(path)?;
        file.write_all(text.as_bytes())?;
        file.sync_all()?;
        let dir = path.parent().filter(|dir| *dir != Path::new("")).unwrap_or(Path::new("."));
        std::fs::File::open(dir)?.sync_all()
    };
    write().map_err(failed)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::PermissionsExt;

    #[tokio::test]
    async fn keys_are_made_and_loaded() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("key");
        create_file(&path).unwrap();
        assert_eq!(std::fs::metadata(&path).unwrap().mode() & 0o777, 0o600);
        let loaded = load(&KeyConfig::File(path.clone())).await.unwrap();
        assert_eq!(loaded.key.unwrap().method(), "key-file");
        assert!(loaded.warnings.is_empty());
        let again = create_file(&path).unwrap_err();
        assert!(again.hints[0].contains("never overwritten"), "{again}");
        let command = KeyConfig::Command(format!("cat {}", crate::quote::shell(&path.to_string_lossy())));
        assert_eq!(load(&command).await.unwrap().key.unwrap().method(), "key-command");
    }

    #[tokio::test]
    async fn open_files_are_warned_about() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("passphrase");
        std::fs::write(&path, "correct horse\n").unwrap();
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o640)).unwrap();
        let loaded = load(&KeyConfig::Passphrase(path.clone())).await.unwrap();
        assert!(loaded.warnings[0].contains("mode 0640"), "{:?}", loaded.warnings);
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o600)).unwrap();
        assert!(load(&KeyConfig::Passphrase(path)).await.unwrap().warnings.is_empty());
    }

    #[tokio::test]
    async fn what_is_no_key_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("key");
        let missing = load(&KeyConfig::File(path.clone())).await.unwrap_err();
        assert!(missing.hints[0].contains("from your copy"), "{missing}");
        std::fs::write(&path, "abc").unwrap();
        assert!(load(&KeyConfig::File(path)).await.unwrap_err().message.contains("64 hexadecimal digits"));
        for (command, expect) in
            [("exit 3", "exit status: 3"), ("echo abc", "64 hexadecimal"), ("printf '\\377'", "no text")]
        {
            let error = load(&KeyConfig::Command(command.into())).await.unwrap_err();
            assert!(error.message.contains(expect), "{error}");
        }
    }
}
