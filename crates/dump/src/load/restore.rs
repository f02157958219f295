//! pg_restore: definitions, and what else is not built beside the data. It gets archives of some entries each, in the order in
//! which they are to be done, and does each archive in one transaction, together with the note that it is done.

use super::record::Record;
use super::{LoadOptions, OnError};
use crate::archive::{Archive, ArchiveCompression, Entry, Form, Place, write};
use crate::connection::{Server, hand_over};
use crate::tools::Tools;
use crate::{DumpError, tools};
use engine::Context;
use std::collections::{HashMap, HashSet};
use std::fs;
use std::io::Write;
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use tokio::process::Command;

/// Locks that an entry may need: a table, its TOAST, their indexes, sequences.
const LOCKS_OF_ENTRY: usize = 12;

/// Runs pg_restore on parts of an archive without data.
pub(crate) struct Restorer<'a> {
    ctx: &'a Context,
    pub(super) options: &'a LoadOptions,
    pub(super) tools: &'a Tools,
    server: &'a Server,
    archive: &'a Archive,
    places: HashMap<i32, usize>,
    /// Entries in one transaction.
    at_once: usize,
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
    fn new(parent: &Path, name: &str) -> Result<Self, DumpError> {
        for attempt in 0..100 {
            let path = parent.join(format!("pgkeep-load-{name}-{}-{attempt}", std::process::id()));
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
    /// `locks` is what the server has room for.
    pub(super) fn new(
        ctx: &'a Context,
        options: &'a LoadOptions,
        tools: &'a Tools,
        server: &'a Server,
        archive: &'a Archive,
        locks: usize,
    ) -> Result<Self, DumpError> {
        let scratch = Scratch::new(&options.scratch_dir, &server.conninfo.dbname.replace(['/', '\0'], "_"))?;
        let places = archive.entries.iter().enumerate().map(|(place, entry)| (entry.dump_id, place)).collect();
        let at_once = (locks / LOCKS_OF_ENTRY).clamp(50, 5000);
        Ok(Self { ctx, options, tools, server, archive, places, at_once, scratch })
    }

    /// The command with the options of the load, and a list of entries.
    pub(super) fn command(&self, list: &str) -> Result<Command, DumpError> {
        let list = self.scratch.write("list", list.as_bytes())?;
        let mut command = pg_restore(self.tools, self.options, self.server);
        command.arg(format!("--use-list={}", list.display()));
        Ok(command)
    }

    fn entry(&self, id: i32) -> Option<&'a Entry> {
        self.archive.entries.get(*self.places.get(&id)?)
    }

    /// Restores entries, in this order; those that the record has are passed over. Gives what failed and was passed over.
    pub(super) async fn entries(&self, stage: &str, ids: &[i32], record: &Record) -> Result<Vec<String>, DumpError> {
        let mut errors = Vec::new();
        for (number, some) in ids.chunks(self.at_once).enumerate() {
            let piece = format!("{stage} {number}");
            if !record.has(&piece) {
                errors.extend(self.batch(stage, some, &record.fence(), &record.note(&[piece])).await?);
            }
        }
        Ok(errors)
    }

    /// Restores the last entries; with the first of them the record goes.
    pub(super) async fn last(&self, stage: &str, ids: &[i32], record: &Record) -> Result<Vec<String>, DumpError> {
        let mut errors = Vec::new();
        for (number, some) in ids.chunks(self.at_once).enumerate() {
            let first = if number == 0 { record.fence() + &record.drop() } else { String::new() };
            errors.extend(self.batch(stage, some, &first, "").await?);
        }
        Ok(errors)
    }

    async fn batch(&self, stage: &str, ids: &[i32], first: &str, last: &str) -> Result<Vec<String>, DumpError> {
        let all = &self.archive.entries;
        let free = all.iter().map(|entry| entry.dump_id).max().unwrap_or(0) + 1;
        let settings =
            all.iter().filter(|entry| ["ENCODING", "STDSTRINGS", "SEARCHPATH"].iter().any(|kind| entry.is(kind)));
        let mut entries: Vec<Entry> = settings.cloned().collect();
        let mut list = String::new();
        let listed: HashSet<i32> = ids.iter().copied().collect();
        if !first.is_empty() {
            entries.push(statement(free, first));
            list += &format!("{free};\n");
        }
        for entry in ids.iter().filter_map(|id| self.entry(*id)) {
            // Privileges of large objects name those by the entry that makes them, which need not be done now.
            let named = entry.dependencies.iter().filter(|id| !listed.contains(id)).filter_map(|id| self.entry(*id));
            for named in named.filter(|named| named.is("BLOB METADATA")) {
                if !entries.iter().any(|entry| entry.dump_id == named.dump_id) {
                    entries.push(named.clone());
                }
            }
            entries.push(entry.clone());
            list += &format!("{};\n", entry.dump_id);
        }
        if !last.is_empty() {
            entries.push(statement(free + 1, last));
            list += &format!("{};\n", free + 1);
        }
        let some = Archive { header: self.archive.header.clone(), entries };
        let bytes = write(&some, Form::Custom, ArchiveCompression::None, |_| Place::NoData);
        let file = self.scratch.write("some.dump", &bytes)?;
        let mut command = self.command(&list)?;
        if self.options.on_error == OnError::Stop {
            command.arg("--single-transaction");
        }
        command.arg(file);
        let output = self.tools.output(self.ctx, "pg_restore", command).await?;
        self.judge(output.status.success(), &output.stderr, stage)
    }

    /// What pg_restore's end means.
    pub(super) fn judge(&self, success: bool, stderr: &[u8], what: &str) -> Result<Vec<String>, DumpError> {
        let errors = errors(stderr);
        if success || self.options.on_error == OnError::Continue && !errors.is_empty() {
            return Ok(errors);
        }
        Err(DumpError::failed(
            format!("{} failed in {what}:\n  {}", self.tools.named("pg_restore"), tools::last_words(stderr)),
            "set it right and say the same again: it goes on where it stopped; --on-error continue loads what can be and lists \
             the rest",
        ))
    }
}

/// An entry that is a statement of ours.
pub(super) fn statement(dump_id: i32, sql: &str) -> Entry {
    let text = |text: &str| Some(text.as_bytes().to_vec());
    Entry {
        dump_id,
        has_data: false,
        catalog_oid: 0,
        oid: 0,
        tag: text("progress of the load"),
        desc: text("PGKEEP"),
        section: 2,
        definition: text(sql),
        drop_statement: text(""),
        copy_statement: text(""),
        namespace: None,
        tablespace: None,
        access_method: None,
        relkind: 0,
        owner: text(""),
        with_oids: text("false"),
        dependencies: Vec::new(),
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
