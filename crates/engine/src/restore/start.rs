//! A server on a restored directory, apart from all others on this host.
//!
//! It is told on its command line whatever its configuration may say otherwise: port, sockets, addresses, places of
//! files, where to log. How far recovery came is read from `postmaster.pid`, `pg_control` and the server's log, so that
//! no login is needed (`src/include/utils/pidfile.h`; messages of `src/backend/access/transam/xlogrecovery.c`).

use super::place::check_not_running;
use super::programs::find_server;
use super::{StartOptions, StartedServer, StartedState, files};
use crate::restore::PlannedOwner;
use crate::{Context, EngineError, Unit};
use pg_format::{ControlFile, DbState, conf};
use std::fs;
use std::net::TcpListener;
use std::os::unix::fs::MetadataExt;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

/// The folder of the socket, inside the data directory unless its path is too long.
const RUN_DIR: &str = "pgkeep-run";
/// The server's log, inside the data directory.
const LOG_FILE: &str = "pgkeep-start.log";
/// A Unix socket's path has at most 107 bytes; its name here takes up to 14 and a slash.
const SOCKET_DIR_LEN_MAX: usize = 92;
/// How often the server is looked at.
const LOOK_EVERY: Duration = Duration::from_millis(50);
/// Lines of the log that an error shows.
const LOG_LINES: usize = 12;

/// See [`super::start`].
pub(super) async fn start(ctx: &Context, data: &Path, options: &StartOptions) -> Result<StartedServer, EngineError> {
    let server = Server::prepare(data, options)?;
    let mut warnings = server.warnings();
    ctx.progress.phase("starting the server", None, Unit::Items);
    server.launch(options, &mut warnings)?;
    ctx.progress.phase("recovering", None, Unit::Items);
    let begun = Instant::now();
    let state = loop {
        if let Some(state) = server.state()? {
            break state;
        }
        if begun.elapsed() > options.timeout {
            return Err(EngineError::failed(
                format!(
                    "the server has not reached its target within {} seconds; it goes on. Its log, {}, ends with:\n{}",
                    options.timeout.as_secs(),
                    server.log.display(),
                    server.log_tail()
                ),
                format!("wait and look at the log, or stop it: {}", server.stop_command()),
            ));
        }
        if ctx.or_cancel(tokio::time::sleep(LOOK_EVERY)).await.is_err() {
            let _ = server.command("pg_ctl").args(["stop", "-s", "-m", "immediate", "-D"]).arg(data).output();
            return Err(EngineError::Cancelled);
        }
    };
    let log = server.log_text();
    let last = |marker: &str| log.lines().rev().find_map(|line| Some(line.split_once(marker)?.1.trim().to_owned()));
    Ok(StartedServer {
        state,
        conninfo: format!("host={} port={} dbname=postgres", conninfo_quoted(&server.socket_dir), server.port),
        stop_command: server.stop_command(),
        replayed_lsn: last("redo done at ").and_then(|text| text.split_whitespace().next()?.parse().ok()),
        replayed_time: last("last completed transaction was at log time "),
        stopped_at: last("recovery stopping ").map(|text| format!("stopped {text}")),
        socket_dir: server.socket_dir,
        port: server.port,
        log: server.log,
        warnings,
    })
}

struct Server {
    data: PathBuf,
    bin_dir: PathBuf,
    socket_dir: PathBuf,
    log: PathBuf,
    port: u16,
    /// Whom the data directory belongs to, when this is root.
    owner: Option<(u32, u32)>,
    /// Where this start's lines begin in the log.
    log_start: usize,
}

impl Server {
    fn prepare(data: &Path, options: &StartOptions) -> Result<Self, EngineError> {
        let version = data.join("PG_VERSION");
        let text = fs::read_to_string(&version).map_err(|error| EngineError::file(&version, "reading", error))?;
        let major: u32 = text
            .trim()
            .parse()
            .map_err(|_| EngineError::BadFile { path: version, reason: "no major version is in it".into() })?;
        check_not_running(data)?;
        if !data.join("global/pg_control").exists() {
            return Err(EngineError::refused(
                format!("{} has no pg_control: its restore was not finished", data.display()),
                "run the restore again",
            ));
        }
        if !data.join("postgresql.conf").exists() {
            return Err(EngineError::refused(
                format!("{} has no postgresql.conf", data.display()),
                "put one there, or start the server yourself with `-c config_file=...`",
            ));
        }
        let bin_dir = find_server(&options.bin_dirs, major).map_err(|others| {
            let found: Vec<String> = others.iter().map(u32::to_string).collect();
            let found = if found.is_empty() { "none".to_owned() } else { found.join(", ") };
            EngineError::not_found(
                format!("PostgreSQL {major} is not on this host (found: {found})"),
                "install it, or say where its programs are",
            )
        })?;
        let meta = fs::metadata(data).map_err(|error| EngineError::file(data, "looking at", error))?;
        let owner = rustix::process::geteuid().is_root().then(|| (meta.uid(), meta.gid()));
        if owner.is_some_and(|(uid, _)| uid == 0) {
            return Err(EngineError::refused(
                format!("{} belongs to root, and PostgreSQL does not run as root", data.display()),
                "give it to another user: `--owner` at the restore",
            ));
        }
        let port = match options.port {
            Some(port) => port,
            None => free_port()?,
        };
        let log = data.join(LOG_FILE);
        let log_start = fs::metadata(&log).map_or(0, |meta| meta.len() as usize);
        let socket_dir = socket_dir(data, port, owner)?;
        Ok(Self { data: data.to_owned(), bin_dir, socket_dir, log, port, owner, log_start })
    }

    /// A program of PostgreSQL's, as the owner of the data directory.
    fn command(&self, program: &str) -> Command {
        let mut command = Command::new(self.bin_dir.join(program));
        command.current_dir("/").stdin(Stdio::null());
        if let Some((uid, gid)) = self.owner {
            command.uid(uid).gid(gid);
        }
        command
    }

    fn stop_command(&self) -> String {
        let user = self.owner.map_or_else(String::new, |(uid, _)| format!("sudo -u '#{uid}' "));
        format!(
            "{user}{} -D {} stop",
            self.bin_dir.join("pg_ctl").display(),
            shell_quoted(&self.data.to_string_lossy())
        )
    }

    /// A setting of the restored configuration, without its includes.
    fn setting(&self, name: &str) -> Option<String> {
        ["postgresql.auto.conf", "postgresql.conf"].iter().find_map(|file| {
            let text = fs::read_to_string(self.data.join(file)).ok()?;
            conf::ConfFile::parse(&text).get(name).map(str::to_owned)
        })
    }

    fn warnings(&self) -> Vec<String> {
        let mut warnings = Vec::new();
        let libraries = self.setting("shared_preload_libraries").unwrap_or_default();
        let base = self.bin_dir.parent().unwrap_or(&self.bin_dir);
        let places: Vec<PathBuf> =
            [base.join("lib"), base.join("lib/postgresql")].into_iter().filter(|dir| dir.is_dir()).collect();
        for library in libraries.split(',').map(|name| name.trim().trim_matches('"')).filter(|name| !name.is_empty()) {
            let name = library.strip_prefix("$libdir/").unwrap_or(library);
            let there = name.starts_with('/') || places.iter().any(|dir| dir.join(format!("{name}.so")).exists());
            if !there && !places.is_empty() {
                warnings.push(format!(
                    "shared_preload_libraries names {library}, which is not in {}: the server will not start without it",
                    places[0].display()
                ));
            }
        }
        warnings
    }

    /// TLS needs files that may have been outside the data directory.
    fn ssl_files_missing(&self) -> bool {
        let on = self.setting("ssl").is_some_and(|value| conf::parse_bool(&value) == Some(true));
        let there = |setting: &str, default: &str| {
            let path = self.setting(setting).unwrap_or_else(|| default.to_owned());
            path.is_empty() || self.data.join(path).exists()
        };
        on && !(there("ssl_cert_file", "server.crt") && there("ssl_key_file", "server.key"))
    }

    fn launch(&self, options: &StartOptions, warnings: &mut Vec<String>) -> Result<(), EngineError> {
        let data = self.data.to_string_lossy().into_owned();
        let mut settings = vec![
            ("data_directory", data.clone()),
            ("port", self.port.to_string()),
            ("unix_socket_directories", format!("\"{}\"", self.socket_dir.display())),
            ("listen_addresses", options.listen_addresses.clone()),
            ("external_pid_file", String::new()),
            ("logging_collector", "off".into()),
            ("log_destination", "stderr".into()),
            ("log_min_messages", "warning".into()),
            ("lc_messages", "C".into()),
        ];
        for (setting, file) in [("hba_file", "pg_hba.conf"), ("ident_file", "pg_ident.conf")] {
            if self.data.join(file).exists() {
                settings.push((setting, self.data.join(file).to_string_lossy().into_owned()));
            }
        }
        if self.ssl_files_missing() {
            warnings.push("ssl is off: its certificate or key is not there".into());
            settings.push(("ssl", "off".into()));
        }
        let settings: Vec<String> =
            settings.iter().map(|(name, value)| format!("-c {name}={}", shell_quoted(value))).collect();
        let mut command = self.command("pg_ctl");
        command.args(["start", "-s", "-W", "-D", &data, "-o", &settings.join(" "), "-l"]).arg(&self.log);
        let output =
            command.output().map_err(|error| EngineError::file(self.bin_dir.join("pg_ctl"), "running", error))?;
        if output.status.success() {
            return Ok(());
        }
        let said = String::from_utf8_lossy(&output.stderr).trim().to_owned();
        Err(self.did_not_start(&said))
    }

    fn did_not_start(&self, said: &str) -> EngineError {
        let hint = if self.log_text().contains("recovery ended before configured recovery target was reached") {
            "the WAL does not reach the target: see `pgkeep wal status`"
        } else if self.log_text().contains("could not bind") {
            "the port is taken: give another one"
        } else {
            "the log says why; when that is set right, start it again, or restore anew"
        };
        EngineError::failed(
            format!("the server did not start: {said}\n{}\n(log: {})", self.log_tail(), self.log.display()),
            hint,
        )
    }

    /// How far it is; `None` while it recovers.
    fn state(&self) -> Result<Option<StartedState>, EngineError> {
        let pid_file = fs::read_to_string(self.data.join("postmaster.pid")).unwrap_or_default();
        let lines: Vec<&str> = pid_file.lines().collect();
        let pid = lines.first().and_then(|line| line.trim().parse().ok()).and_then(rustix::process::Pid::from_raw);
        let status = lines.get(7).map_or("", |line| line.trim());
        let log = self.log_text();
        let alive = pid.is_some_and(|pid| rustix::process::test_kill_process(pid) != Err(rustix::io::Errno::SRCH));
        if !alive {
            // pg_ctl returns before the server has written its file.
            let ended = log.contains("database system is shut down");
            if log.contains("shutdown at recovery target") && ended {
                return Ok(Some(StartedState::ShutDown));
            }
            let failed = ended || (log.contains("FATAL") && pid_file.is_empty());
            return if failed { Err(self.did_not_start("it ended")) } else { Ok(None) };
        }
        if log.contains("pausing at the end of recovery") {
            return Ok(Some(StartedState::Paused));
        }
        if status == "standby" && self.data.join("standby.signal").exists() {
            return Ok(Some(StartedState::Standby));
        }
        if status != "ready" {
            return Ok(None);
        }
        let control = fs::read(self.data.join("global/pg_control")).ok();
        let control = control.and_then(|bytes| ControlFile::parse(&bytes).ok());
        Ok(control.filter(|control| control.state == DbState::InProduction).map(|_| StartedState::Promoted))
    }

    /// What the server logged since this start.
    fn log_text(&self) -> String {
        let bytes = fs::read(&self.log).unwrap_or_default();
        String::from_utf8_lossy(bytes.get(self.log_start..).unwrap_or_default()).into_owned()
    }

    fn log_tail(&self) -> String {
        let log = self.log_text();
        let lines: Vec<&str> = log.lines().collect();
        lines[lines.len().saturating_sub(LOG_LINES)..].join("\n")
    }
}

fn free_port() -> Result<u16, EngineError> {
    let port = TcpListener::bind("127.0.0.1:0").and_then(|listener| listener.local_addr());
    port.map(|address| address.port()).map_err(|error| EngineError::Failed {
        reason: format!("no free port was found: {error}"),
        hint: Some("give one".into()),
    })
}

fn socket_dir(data: &Path, port: u16, owner: Option<(u32, u32)>) -> Result<PathBuf, EngineError> {
    let inside = data.join(RUN_DIR);
    // Clients take a comma for the end of a host.
    let usable = inside.as_os_str().len() <= SOCKET_DIR_LEN_MAX && !inside.to_string_lossy().contains(',');
    let dir = if usable {
        inside
    } else {
        let dir = PathBuf::from(format!("/tmp/pgkeep-{}-{port}", std::process::id()));
        // Made anew, so that nobody else's folder is used.
        fs::create_dir(&dir).map_err(|error| EngineError::file(&dir, "making", error))?;
        dir
    };
    let owner = PlannedOwner { uid: owner.map(|(uid, _)| uid), gid: owner.map(|(_, gid)| gid) };
    files::make_directory(&dir, 0o700, owner)?;
    Ok(dir)
}

/// As a value in a connection string.
fn conninfo_quoted(path: &Path) -> String {
    let text = path.to_string_lossy();
    if text.chars().all(|c| c.is_ascii_alphanumeric() || "/._-+".contains(c)) {
        return text.into_owned();
    }
    format!("'{}'", text.replace('\\', "\\\\").replace('\'', "\\'"))
}

/// As one word for `/bin/sh`, which `pg_ctl` gives its options to.
fn shell_quoted(text: &str) -> String {
    format!("'{}'", text.replace('\'', "'\\''"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn connection_strings_are_quoted() {
        assert_eq!(conninfo_quoted(Path::new("/tmp/a-b")), "/tmp/a-b");
        assert_eq!(conninfo_quoted(Path::new("/it's \\")), "'/it\\'s \\\\'");
    }

    #[test]
    fn words_are_quoted_for_the_shell() {
        for text in ["", "a b", "it's", "$HOME `x` \"y\" \\"] {
            let output =
                Command::new("sh").args(["-c", &format!("printf %s {}", shell_quoted(text))]).output().unwrap();
            assert_eq!(String::from_utf8_lossy(&output.stdout), text);
        }
    }
}
