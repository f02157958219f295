//! A server for a moment: made anew, with nobody else on it, and gone with this value. It keeps nothing, so it need not be
//! durable.

use crate::connection::{Server, for_writing};
use crate::tools::Tools;
use crate::{DumpError, ToolSet};
use engine::{Context, Unit};
use pg_wire::{Conninfo, Surroundings, WireError};
use std::fs;
use std::os::unix::fs::DirBuilderExt;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

/// How long it may take to start.
const START_TIME: Duration = Duration::from_secs(120);
/// How long it may take to end.
const END_TIME: Duration = Duration::from_secs(10);
const LOOK_EVERY: Duration = Duration::from_millis(50);
/// A Unix socket's path has at most 107 bytes.
const SOCKET_PATH_MAX: usize = 107;
const PORT: u16 = 5432;

/// What it is started with: no waiting for disks, no work in the background.
const SETTINGS: [&str; 15] = [
    "listen_addresses=",
    "fsync=off",
    "full_page_writes=off",
    "synchronous_commit=off",
    "wal_level=minimal",
    "max_wal_senders=0",
    "max_connections=64",
    "max_locks_per_transaction=256",
    "autovacuum=off",
    "jit=off",
    "logging_collector=off",
    "log_destination=stderr",
    "log_min_messages=error",
    "lc_messages=C",
    "allow_system_table_mods=off",
];

/// Where a server for a moment is made, and as whom it runs.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ScratchPlace {
    /// A directory with room for the databases.
    pub dir: PathBuf,
    /// User and group when this is root, as whom PostgreSQL does not run.
    pub owner: Option<(u32, u32)>,
}

/// The server.
pub(crate) struct ScratchServer {
    dir: PathBuf,
    child: Option<Child>,
    pub(crate) version: String,
    pub(crate) server: Server,
}

impl ScratchServer {
    /// Makes a server of a major version, or the lowest above it that is installed.
    pub(crate) async fn start(
        ctx: &Context,
        tools: &ToolSet,
        major: u32,
        place: &ScratchPlace,
    ) -> Result<Self, DumpError> {
        let tools = tools.server_for_major(major)?;
        ctx.progress.phase("making a server for a moment", None, Unit::Items);
        let dir = make_dir(place)?;
        let conninfo = format!("host='{}' port={PORT} user=postgres dbname=postgres", quoted(&dir));
        let surroundings = Surroundings::default();
        let conninfo = Conninfo::parse(&conninfo, &surroundings).map_err(WireError::from)?;
        let server = Server { conninfo, surroundings };
        // From here on it goes with this value.
        let mut scratch = Self { dir, child: None, version: tools.version.clone(), server };
        scratch.launch(ctx, tools, place).await?;
        Ok(scratch)
    }

    async fn launch(&mut self, ctx: &Context, tools: &Tools, place: &ScratchPlace) -> Result<(), DumpError> {
        let socket = self.dir.join(format!(".s.PGSQL.{PORT}"));
        if socket.as_os_str().len() > SOCKET_PATH_MAX {
            return Err(DumpError::refused(
                format!("{} is too long for a socket in it", self.dir.display()),
                "name a shorter --scratch-dir",
            ));
        }
        let data = self.dir.join("data");
        let program = tools.dir.join("initdb");
        let mut command = self.command(&program, place);
        command
            .args(["--username=postgres", "--auth=trust", "--encoding=UTF8", "--locale=C", "--no-sync", "-D"])
            .arg(&data);
        let mut command = tokio::process::Command::from(command);
        let output = ctx.or_cancel(command.kill_on_drop(true).output()).await?;
        let output = output.map_err(|error| DumpError::file(&program, "running it", error))?;
        if !output.status.success() {
            let said = crate::tools::last_words(&output.stderr);
            return Err(DumpError::failed(
                format!("{} failed:\n  {said}", tools.named("initdb")),
                "name a --scratch-dir with room that its user may write, or a server with --into",
            ));
        }
        let log = self.dir.join("log");
        let file = fs::File::create(&log).map_err(|error| DumpError::file(&log, "creating it", error))?;
        let program = tools.dir.join("postgres");
        let mut command = self.command(&program, place);
        command.arg("-D").arg(&data).arg("-k").arg(&self.dir).args(["-p", &PORT.to_string()]);
        command.args(SETTINGS.iter().flat_map(|setting| ["-c", setting]));
        let copy = file.try_clone().map_err(|error| DumpError::file(&log, "creating it", error))?;
        command.stdout(Stdio::from(copy)).stderr(Stdio::from(file));
        let child = command.spawn().map_err(|error| DumpError::file(&program, "starting it", error))?;
        self.child = Some(child);
        let begun = Instant::now();
        loop {
            let refused = match for_writing(&self.server.conninfo).await {
                Ok(client) => {
                    client.close().await;
                    return Ok(());
                }
                Err(error) => error,
            };
            let ended = self.child.as_mut().is_none_or(|child| !matches!(child.try_wait(), Ok(None)));
            if ended || begun.elapsed() > START_TIME {
                let said = fs::read(&log).unwrap_or_default();
                let said = crate::tools::last_words(&said);
                return Err(DumpError::failed(
                    format!("{} does not start: {refused}\n  {said}", tools.named("postgres")),
                    "see what it says; --into verifies on a server of your own",
                ));
            }
            ctx.or_cancel(tokio::time::sleep(LOOK_EVERY)).await?;
        }
    }

    fn command(&self, program: &Path, place: &ScratchPlace) -> Command {
        let mut command = Command::new(program);
        command.current_dir(&self.dir).stdin(Stdio::null()).env("LC_ALL", "C").env_remove("PGOPTIONS");
        if let Some((user, group)) = place.owner {
            command.uid(user).gid(group);
        }
        command
    }
}

impl Drop for ScratchServer {
    fn drop(&mut self) {
        if let Some(child) = &mut self.child {
            let process = i32::try_from(child.id()).ok().and_then(rustix::process::Pid::from_raw);
            if let Some(process) = process {
                // At once: nothing of it is kept.
                let _ = rustix::process::kill_process(process, rustix::process::Signal::QUIT);
            }
            let begun = Instant::now();
            while matches!(child.try_wait(), Ok(None)) && begun.elapsed() < END_TIME {
                std::thread::sleep(LOOK_EVERY);
            }
            let _ = (child.kill(), child.wait());
        }
        if let Err(error) = fs::remove_dir_all(&self.dir) {
            tracing::warn!(dir = %self.dir.display(), %error, "a server's directory could not be removed");
        }
    }
}

/// A directory that only the server's user reads: dumps hold secrets.
fn make_dir(place: &ScratchPlace) -> Result<PathBuf, DumpError> {
    for attempt in 0..100 {
        let path = place.dir.join(format!("pgkeep-verify-{}-{attempt}", std::process::id()));
        match fs::DirBuilder::new().mode(0o700).create(&path) {
            Ok(()) => {
                if let Some((user, group)) = place.owner {
                    std::os::unix::fs::chown(&path, Some(user), Some(group))
                        .map_err(|error| DumpError::file(&path, "giving it to another user", error))?;
                }
                return Ok(path);
            }
            Err(error) if error.kind() == std::io::ErrorKind::AlreadyExists => {}
            Err(error) => return Err(DumpError::file(path, "creating the directory", error)),
        }
    }
    Err(DumpError::failed(format!("{}: no free name for a directory", place.dir.display()), "clear it"))
}

fn quoted(path: &Path) -> String {
    path.to_string_lossy().replace('\\', "\\\\").replace('\'', "\\'")
}
