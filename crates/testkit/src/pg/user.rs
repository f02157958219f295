//! The operating system's user that servers run as: PostgreSQL refuses to run as root.

use anyhow::{Context, Result, bail};
use std::path::{Path, PathBuf};

/// Who servers and their tools run as.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ServerUser {
    /// Login name.
    pub name: String,
    /// Numeric user id.
    pub uid: u32,
    /// Numeric group id.
    pub gid: u32,
    /// True when this process is another user (root) and must change to it.
    pub must_switch: bool,
}

/// The user that servers run as: this process's own user, or when that is root `postgres`, else `nobody`.
///
/// # Errors
/// When this process is root and neither user exists.
pub fn server_user() -> Result<ServerUser> {
    let uid = rustix::process::geteuid().as_raw();
    let gid = rustix::process::getegid().as_raw();
    let passwd = std::fs::read_to_string("/etc/passwd").context("cannot read /etc/passwd")?;
    let users: Vec<(&str, u32, u32)> = passwd.lines().filter_map(parse_passwd_line).collect();
    if uid != 0 {
        let known = users.iter().find(|(_, user_id, _)| *user_id == uid);
        let name = known.map_or_else(|| uid.to_string(), |(name, _, _)| (*name).to_owned());
        return Ok(ServerUser { name, uid, gid, must_switch: false });
    }
    for wanted in ["postgres", "nobody"] {
        if let Some((name, uid, gid)) = users.iter().find(|(name, _, _)| *name == wanted) {
            return Ok(ServerUser { name: (*name).to_owned(), uid: *uid, gid: *gid, must_switch: true });
        }
    }
    bail!(
        "this is root, and there is neither a user 'postgres' nor 'nobody' to run servers as: run `cargo xtask setup`"
    )
}

fn parse_passwd_line(line: &str) -> Option<(&str, u32, u32)> {
    let mut fields = line.split(':');
    let name = fields.next()?;
    let uid = fields.nth(1)?.parse().ok()?;
    let gid = fields.next()?.parse().ok()?;
    Some((name, uid, gid))
}

impl ServerUser {
    /// Gives `path` to this user, with everything below it. Does nothing when no change of user is needed.
    ///
    /// # Errors
    /// When an entry cannot be read or given away.
    pub fn own(&self, path: &Path) -> Result<()> {
        if !self.must_switch {
            return Ok(());
        }
        let mut todo: Vec<PathBuf> = vec![path.to_owned()];
        while let Some(path) = todo.pop() {
            std::os::unix::fs::lchown(&path, Some(self.uid), Some(self.gid))
                .with_context(|| format!("cannot give {} to {}", path.display(), self.name))?;
            if std::fs::symlink_metadata(&path)?.is_dir() {
                for entry in std::fs::read_dir(&path)? {
                    todo.push(entry?.path());
                }
            }
        }
        Ok(())
    }

    /// A command that runs as this user, with an environment free of `PG*` variables and the C locale for messages.
    #[must_use]
    pub fn command(&self, program: impl AsRef<std::ffi::OsStr>) -> std::process::Command {
        use std::os::unix::process::CommandExt;
        let mut command = std::process::Command::new(program);
        for (name, _) in std::env::vars_os() {
            if name.to_string_lossy().starts_with("PG") && !name.to_string_lossy().starts_with("PGKEEP") {
                command.env_remove(name);
            }
        }
        command.env("LC_ALL", "C.UTF-8").env("TZ", "UTC").current_dir("/");
        if self.must_switch {
            // std clears the supplementary groups when root changes its user id.
            command.uid(self.uid).gid(self.gid).env("USER", &self.name).env("LOGNAME", &self.name).env("HOME", "/tmp");
        }
        command
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_lines_of_passwd() {
        assert_eq!(
            parse_passwd_line("postgres:x:101:104:adm,,,:/var/lib/postgresql:/bin/bash"),
            Some(("postgres", 101, 104))
        );
        assert_eq!(parse_passwd_line("# comment"), None);
        assert_eq!(parse_passwd_line("bad:x:no:1:"), None);
    }

    #[test]
    fn commands_run_as_an_ordinary_user() {
        let user = server_user().unwrap();
        let output = user.command("id").arg("-u").output().unwrap();
        assert_eq!(String::from_utf8_lossy(&output.stdout).trim(), user.uid.to_string());
        assert_ne!(user.uid, 0);
    }
}
