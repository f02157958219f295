//! pg_restore: what is not data.

use super::select::{self, Wanted};
use super::{LoadOptions, OnError};
use crate::archive::{Archive, ArchiveCompression, Form, Place, Section, write};
use crate::connection::{Server, hand_over};
use crate::tools::Tools;
use crate::{DumpError, tools};
use engine::Context;
use repo::BackupId;
use std::fs;
use std::io::Write;
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use tokio::process::Command;

/// Runs pg_restore on an archive without data, and a list of what it shall do.
pub(crate) struct Restorer<'a> {
    ctx: &'a Context,
    pub(super) options: &'a LoadOptions,
    pub(super) tools: &'a Tools,
    server: &'a Server,
    archive: &'a Archive,
    wanted: &'a Wanted,
    scratch: Scratch,
}

/// A directory that only this user reads (definitions can hold passwords), and that goes with this value.
struct Scratch(PathBuf);

impl Drop for Scratch {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

impl Scratch {
    fn new(parent: &Path, dump: BackupId) -> Result<Self, DumpError> {
        for attempt in 0..100 {
            let path = parent.join(format!("pgkeep-load-{dump}-{}-{attempt}", std::process::id()));
            match fs::DirBuilder::new().mode(0o700).create(&path) {
                Ok(()) => return Ok(Self(path)),
                Err(error) if error.kind() == std::io::ErrorKind::AlreadyExists => {}
                Err(error) => return Err(DumpError::file(path, "creating the directory", error)),
            }
        }
        Err(DumpError::failed(format!("{}: no free name for a directory", parent.display()), "clear it"))
    }

    fn write(&self, name: &str, bytes: &[u8]) -> Result<PathBuf, DumpError> {
        let path = self.0.join(name);
        let file = fs::OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(&path);
        file.and_then(|mut file| file.write_all(bytes)).map_err(|error| DumpError::file(&path, "writing", error))?;
        Ok(path)
    }
}

impl<'a> Restorer<'a> {
    pub(super) fn new(
        ctx: &'a Context,
        options: &'a LoadOptions,
        tools: &'a Tools,
        server: &'a Server,
        archive: &'a Archive,
        wanted: &'a Wanted,
        dump: BackupId,
    ) -> Result<Self, DumpError> {
        let scratch = Scratch::new(&options.scratch_dir, dump)?;
        scratch.write("toc.dump", &write(archive, Form::Custom, ArchiveCompression::None, |_| Place::NoData))?;
        Ok(Self { ctx, options, tools, server, archive, wanted, scratch })
    }

    /// The command with the options of the load, and a list of entries.
    pub(super) fn command(&self, list: &str) -> Result<Command, DumpError> {
        let list = self.scratch.write("list", list.as_bytes())?;
        let mut command = pg_restore(self.tools, self.options, self.server);
        command.arg(format!("--use-list={}", list.display()));
        Ok(command)
    }

    /// Restores what a section has besides data. Gives what failed and was passed over.
    pub(super) async fn section(&self, section: &str, workers: usize) -> Result<Vec<String>, DumpError> {
        let which = match section {
            "pre-data" => Section::PreData,
            "data" => Section::Data,
            _ => Section::PostData,
        };
        if !select::has_section(self.archive, self.wanted, which) {
            return Ok(Vec::new());
        }
        let mut command = self.command(&select::list(self.archive, self.wanted, false))?;
        command.arg(format!("--section={section}"));
        if workers > 1 {
            command.arg(format!("--jobs={workers}"));
        }
        command.arg(self.scratch.0.join("toc.dump"));
        let output = self.tools.output(self.ctx, "pg_restore", command).await?;
        self.judge(output.status.success(), &output.stderr, section)
    }

    /// What pg_restore's end means.
    pub(super) fn judge(&self, success: bool, stderr: &[u8], what: &str) -> Result<Vec<String>, DumpError> {
        let errors = errors(stderr);
        if success || self.options.on_error == OnError::Continue && !errors.is_empty() {
            return Ok(errors);
        }
        Err(DumpError::failed(
            format!("{} failed in {what}:\n  {}", self.tools.named("pg_restore"), tools::last_words(stderr)),
            "set it right and load into an empty database; --on-error continue loads what can be and lists the rest",
        ))
    }
}

/// pg_restore into this server, with what a load was asked for that it knows by the same name.
pub(super) fn pg_restore(tools: &Tools, options: &LoadOptions, server: &Server) -> Command {
    let mut command = tools.command("pg_restore");
    for (asked, switch) in [
        (options.no_owner, "--no-owner"),
        (options.no_privileges, "--no-privileges"),
        (options.no_tablespaces, "--no-tablespaces"),
        (options.on_error == OnError::Stop, "--exit-on-error"),
    ] {
        if asked {
            command.arg(switch);
        }
    }
    command.args(options.role.iter().map(|role| format!("--role={role}")));
    if let Some(memory) = &options.maintenance_memory {
        command.env("PGOPTIONS", format!("-c maintenance_work_mem={memory}"));
    }
    hand_over(&mut command, &server.conninfo);
    command
}

/// The errors that pg_restore printed, each with its details in one line.
pub(super) fn errors(stderr: &[u8]) -> Vec<String> {
    let text = String::from_utf8_lossy(stderr);
    let mut errors: Vec<String> = Vec::new();
    let mut inside = false;
    for line in text.lines() {
        if let Some(rest) = line.strip_prefix("pg_restore: error: ") {
            errors.push(rest.to_owned());
            inside = true;
        } else if line.starts_with("pg_restore: ") {
            inside = false;
        } else if inside && let Some(last) = errors.last_mut() {
            // The statement itself may be long; its first line tells which one it is.
            if last.len() < 600 && !line.trim().is_empty() {
                last.push_str(" | ");
                last.push_str(line.trim());
            }
        }
    }
    errors
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn errors_of_pg_restore_are_told_apart() {
        let said = b"pg_restore: while PROCESSING TOC:\npg_restore: from TOC entry 5; 1 2 TABLE t me\n\
            pg_restore: error: could not execute query: ERROR:  type \"x\" does not exist\nLINE 1: a x\n\
            Command was: CREATE TABLE t (\n\n\npg_restore: error: second\npg_restore: warning: errors ignored on restore: 2\n";
        let errors = errors(said);
        assert_eq!(errors.len(), 2, "{errors:?}");
        assert!(errors[0].contains("type \"x\" does not exist | LINE 1: a x | Command was"), "{errors:?}");
        assert_eq!(errors[1], "second");
    }
}
