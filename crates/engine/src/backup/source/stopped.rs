//! A server that does not run: its files are copied as they are, and what of `pg_wal` recovery needs goes with them.
//!
//! Cleanly stopped, nothing but the checkpoint's own record is replayed. Crashed, or a standby, the restored cluster
//! recovers from the last checkpoint to the end of the WAL that was there, as the origin would have.

use super::super::carry::WalFile;
use super::super::reading::{CONTROL_READ_AGAIN_AFTER, CONTROL_READS};
use super::running::{pid_file, refuse_running};
use super::stopper::Stopper;
use super::wal_dir::{self, FoundWal};
use super::{Begun, Ended, Places};
use crate::server::{ServerFacts, Tablespace};
use crate::{Context, EngineError};
use jiff::Timestamp;
use pg_format::PgMajor;
use pg_format::conf::ConfFile;
use pg_format::control::{CONTROL_FILE_PATH, ControlFile, DbState};
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

/// A data directory on which no server runs.
pub(in crate::backup) struct Stopped {
    data: PathBuf,
    control: ControlFile,
    /// The files that a server would change first, as they were when it began.
    control_bytes: Vec<u8>,
    pid_file: Option<Vec<u8>>,
    wal: FoundWal,
    stop_time: Timestamp,
    /// Set when these are the files of a frozen copy.
    copy: Option<Places>,
    /// Who starts the server again.
    stopper: Option<Arc<Stopper>>,
}

impl Stopped {
    /// Looks at a data directory; refuses one on which a server runs or may run, and one that could not be started from.
    pub(in crate::backup) fn open(
        ctx: &Context,
        data: &Path,
        config_file: Option<&Path>,
        stopper: Arc<Stopper>,
    ) -> Result<(Self, ServerFacts), EngineError> {
        let pid_file = refuse_running(data)?;
        let control_bytes = read_control(data)?;
        let control = parse_control(data, &control_bytes)?;
        let server = facts(data, &control, config_file)?;
        refuse_unfinished(data, &control)?;
        let wal = wal_dir::find(&data.join("pg_wal"), &control, server.major)?;
        // A crash leaves no time of its own: nothing in the files is from later than now.
        let stop_time = match control.state {
            DbState::ShutDown => Timestamp::from_second(control.time_unix_seconds.saturating_add(1)).ok(),
            _ => None,
        };
        let stop_time = stop_time.unwrap_or_else(|| ctx.now());
        let stopper = Some(stopper);
        let data = data.to_owned();
        Ok((Self { data, control, control_bytes, pid_file, wal, stop_time, copy: None, stopper }, server))
    }

    /// Looks at the data directory of a server that runs, for a warm pass. `pg_control` is read here, before any file.
    pub(in crate::backup) fn open_warm(
        ctx: &Context,
        data: &Path,
        config_file: Option<&Path>,
    ) -> Result<(Self, ServerFacts), EngineError> {
        let (control, control_bytes) = whole_control(data)?;
        let server = facts(data, &control, config_file)?;
        let refuse = |what: &str| {
            Err(EngineError::refused(
                format!("{}: {what}: a warm pass could not tell what changes after it", data.display()),
                "leave out `--warm`: when the server is stopped, all of it is read",
            ))
        };
        if server.wal_level == "minimal" {
            return refuse("wal_level is minimal");
        }
        if !server.full_page_writes {
            return refuse("full_page_writes is off");
        }
        let wal = FoundWal { files: Vec::new(), end: control.checkpoint.redo };
        let (data, stop_time) = (data.to_owned(), ctx.now());
        let pid_file = fs::read(pid_file(&data)).ok();
        Ok((Self { data, control, control_bytes, pid_file, wal, stop_time, copy: None, stopper: None }, server))
    }

    /// How long the server was stopped for this.
    pub(super) fn downtime(&self) -> Option<Duration> {
        self.stopper.as_ref()?.downtime()
    }

    /// Nothing of the files is needed any more.
    pub(super) async fn release(&self) {
        if let Some(stopper) = &self.stopper {
            stopper.start().await;
        }
    }

    /// Looks at a frozen copy of a running server's volumes, made all at once: it is what a crash would have left.
    pub(in crate::backup) fn open_copy(
        ctx: &Context,
        places: Places,
        server: &ServerFacts,
    ) -> Result<Self, EngineError> {
        let data = places.root().to_owned();
        let control_bytes = read_control(&data)?;
        let control = parse_control(&data, &control_bytes)?;
        refuse_unfinished(&data, &control)?;
        let wal_dir = places.clone().link(b"pg_wal")?;
        let wal = wal_dir::find(&wal_dir, &control, server.major)?;
        let pid_file = fs::read(pid_file(&data)).ok();
        let (stop_time, copy) = (ctx.now(), Some(places));
        Ok(Self { data, control, control_bytes, pid_file, wal, stop_time, copy, stopper: None })
    }

    /// Where the files are.
    pub(super) fn places(&self) -> Places {
        self.copy.clone().unwrap_or_else(|| Places::of(self.data.clone()))
    }

    /// As manifests and the command line call it.
    pub(super) fn name(&self) -> &'static str {
        if self.copy.is_some() { "snapshot" } else { "offline" }
    }

    pub(super) fn begin(&self) -> Begun {
        Begun { start_lsn: self.control.checkpoint.redo, timeline: self.control.checkpoint.timeline }
    }

    /// A page that is newer than all WAL: WAL is missing, or the copy is not of one moment. After a clean stop no WAL can
    /// be missing, and such a page is damage of its own.
    pub(super) fn check_newest(&self, newest: pg_format::Lsn) -> Result<(), EngineError> {
        if newest <= self.wal.end || self.control.state == DbState::ShutDown {
            return Ok(());
        }
        let what = format!("a page was changed at {newest}, but the WAL ends at {}", self.wal.end);
        Err(if self.copy.is_some() {
            EngineError::failed(
                format!("{what}: the frozen copy is not of one moment, and no server could recover from it"),
                "freeze all volumes in one step, or leave out `--crash-consistent`: then they need not be of one moment",
            )
        } else {
            EngineError::failed(
                format!("{what}: WAL is missing that the server had written"),
                "look for it on the volume where pg_wal was, put it back, and run the backup again",
            )
        })
    }

    pub(super) fn end_of_wal(&self) -> pg_format::Lsn {
        self.wal.end
    }

    pub(super) fn wal(&self) -> Vec<WalFile> {
        self.wal.files.clone()
    }

    /// Checks that nobody started the server meanwhile.
    pub(super) fn end(&self) -> Result<Ended, EngineError> {
        let there = match fs::read(pid_file(&self.data)) {
            Ok(content) => Some(content),
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => None,
            Err(error) => return Err(EngineError::file(pid_file(&self.data), "reading", error)),
        };
        if there != self.pid_file || read_control(&self.data)? != self.control_bytes {
            return Err(EngineError::failed(
                format!("{}: a server was started on it while it was copied; the copy is void", self.data.display()),
                "keep it stopped until the backup has ended, and run the backup again: it goes on from what was stored",
            ));
        }
        Ok(Ended {
            timeline: self.control.checkpoint.timeline,
            stop_lsn: self.wal.end,
            stop_time: self.stop_time,
            label: None,
            tablespace_map: None,
        })
    }
}

fn read_control(data: &Path) -> Result<Vec<u8>, EngineError> {
    let path = data.join(CONTROL_FILE_PATH);
    fs::read(&path).map_err(|error| match error.kind() {
        std::io::ErrorKind::NotFound => EngineError::refused(
            format!("{}: it is not there, so {} is no data directory", path.display(), data.display()),
            "name the data directory with `--pgdata DIR`",
        ),
        _ => EngineError::file(&path, "reading", error),
    })
}

/// Reads pg_control while a server may be writing it.
fn whole_control(data: &Path) -> Result<(ControlFile, Vec<u8>), EngineError> {
    for _ in 1..CONTROL_READS {
        let bytes = read_control(data)?;
        if let Ok(control) = parse_control(data, &bytes) {
            return Ok((control, bytes));
        }
        std::thread::sleep(CONTROL_READ_AGAIN_AFTER);
    }
    let bytes = read_control(data)?;
    Ok((parse_control(data, &bytes)?, bytes))
}

fn parse_control(data: &Path, bytes: &[u8]) -> Result<ControlFile, EngineError> {
    ControlFile::parse(bytes)
        .map_err(|error| EngineError::BadFile { path: data.join(CONTROL_FILE_PATH), reason: error.to_string() })
}

/// Refuses what is in the middle of something that only its own server can finish.
fn refuse_unfinished(data: &Path, control: &ControlFile) -> Result<(), EngineError> {
    let refuse = |what: String, hint: &str| Err(EngineError::refused(format!("{}: {what}", data.display()), hint));
    let start_it = "start the server once, let it finish recovery, stop it, and run the backup again";
    if data.join("backup_label").exists() {
        return refuse(
            "it holds a backup_label: it was restored and never started, or crashed as a copy".into(),
            start_it,
        );
    }
    if control.backup_start_point.is_valid() {
        return refuse(
            format!("recovery from a backup, begun at {}, was not finished", control.backup_start_point),
            start_it,
        );
    }
    if control.min_recovery_point_timeline > control.checkpoint.timeline {
        return refuse(
            format!(
                "it changed from timeline {} to {} and made no checkpoint since",
                control.checkpoint.timeline, control.min_recovery_point_timeline
            ),
            start_it,
        );
    }
    Ok(())
}

/// What the files say of the server.
fn facts(data: &Path, control: &ControlFile, config_file: Option<&Path>) -> Result<ServerFacts, EngineError> {
    let path = data.join("PG_VERSION");
    let text = fs::read_to_string(&path).map_err(|error| EngineError::file(&path, "reading", error))?;
    let major = PgMajor::from_pg_version_file(&text)
        .and_then(|major| control.major().map(|by_catalog| (major, by_catalog)))
        .map_err(|error| EngineError::BadFile { path: path.clone(), reason: error.to_string() })?;
    let (major, by_catalog) = major;
    if major != by_catalog {
        let reason = format!("it says {}, pg_control is of {}", major.number(), by_catalog.number());
        return Err(EngineError::BadFile { path, reason });
    }
    let options = fs::read_to_string(data.join("postmaster.opts")).unwrap_or_default();
    let config_file = config_file
        .map(Path::to_owned)
        .or_else(|| option(&options, "config_file").map(PathBuf::from))
        .unwrap_or_else(|| data.join("postgresql.conf"));
    let conf = ConfFile::parse(&fs::read_to_string(&config_file).unwrap_or_default());
    let named = |setting: &str, usual: &str| {
        let value = option(&options, setting).or_else(|| conf.get(setting).map(str::to_owned));
        data.join(value.unwrap_or_else(|| usual.to_owned()))
    };
    Ok(ServerFacts {
        version_num: major.number() * 10_000,
        version: major.number().to_string(),
        major,
        system_id: control.system_id,
        catalog_version: control.catalog_version,
        timeline: control.checkpoint.timeline,
        in_recovery: matches!(control.state, DbState::ShutDownInRecovery | DbState::InArchiveRecovery),
        data_directory: data.to_owned(),
        block_size: control.block_bytes,
        relseg_blocks: control.relation_segment_blocks,
        wal_segment_size: control.wal_segment_size,
        checksums: control.has_data_checksums(),
        wal_level: control.wal_level.as_str().to_owned(),
        archive_mode: String::new(),
        archive_command: String::new(),
        archive_library: String::new(),
        full_page_writes: control.checkpoint.full_page_writes,
        summarize_wal: None,
        hba_file: named("hba_file", "pg_hba.conf"),
        ident_file: named("ident_file", "pg_ident.conf"),
        config_file,
        user: String::new(),
        is_superuser: false,
        tablespaces: tablespaces(data)?,
    })
}

/// A setting on the command line that the server was last started with: `postmaster.opts` (`CreateOptsFile` in
/// `src/backend/postmaster/postmaster.c`), where each argument stands in double quotes.
fn option(options: &str, name: &str) -> Option<String> {
    let arguments: Vec<&str> = options.trim().split('"').skip(1).step_by(2).collect();
    arguments.iter().rev().find_map(|argument| {
        let argument = argument.strip_prefix("--").or_else(|| argument.strip_prefix("-c")).unwrap_or(argument);
        let (found, value) = argument.trim_start().split_once('=')?;
        (found.replace('-', "_").eq_ignore_ascii_case(name)).then(|| value.to_owned())
    })
}

/// The tablespaces by their links; their names are in a catalog that nobody can be asked for.
fn tablespaces(data: &Path) -> Result<Vec<Tablespace>, EngineError> {
    let dir = data.join("pg_tblspc");
    let fail = |error| EngineError::file(&dir, "listing the directory", error);
    let mut found = Vec::new();
    for entry in fs::read_dir(&dir).map_err(fail)? {
        let entry = entry.map_err(fail)?;
        let name = entry.file_name().to_string_lossy().into_owned();
        let Ok(oid) = name.parse() else { continue };
        let location = match fs::read_link(entry.path()) {
            Ok(target) => target.display().to_string(),
            Err(_) => format!("pg_tblspc/{name}"),
        };
        found.push(Tablespace { oid, name, location });
    }
    found.sort_by_key(|space| space.oid);
    Ok(found)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn options_of_the_last_start() {
        let debian = "/usr/lib/postgresql/15/bin/postgres \"-D\" \"/var/lib/postgresql/15/main\" \"-c\" \
                      \"config_file=/etc/postgresql/15/main/postgresql.conf\"\n";
        assert_eq!(option(debian, "config_file").as_deref(), Some("/etc/postgresql/15/main/postgresql.conf"));
        assert_eq!(option(debian, "hba_file"), None);
        assert_eq!(option("postgres \"--hba-file=/a b\" \"-cident_file=/c\"", "hba_file").as_deref(), Some("/a b"));
        assert_eq!(option("postgres \"--hba-file=/a b\" \"-cident_file=/c\"", "ident_file").as_deref(), Some("/c"));
        assert_eq!(option("", "config_file"), None);
    }
}
