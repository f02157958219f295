//! One cluster with its server.

use super::install::PgInstall;
use super::process::{self, Output};
use super::user::ServerUser;
use anyhow::{Context, Result, bail};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

/// A cluster that belongs to a test. Dropping it stops the server and removes everything, also on panic.
#[derive(Debug)]
pub struct Cluster {
    install: PgInstall,
    user: ServerUser,
    home: tempfile::TempDir,
    data: PathBuf,
    port: u16,
    /// Where the server's socket is, when not in `home`.
    foreign_socket_dir: Option<PathBuf>,
    /// Settings for the server's command line; used where the configuration files are not ours.
    options: Vec<(String, String)>,
    keep: bool,
}

/// How a server is stopped: the modes of `pg_ctl stop`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum StopMode {
    /// Waits for the clients to leave.
    Smart,
    /// Ends the clients' sessions, writes a shutdown checkpoint.
    Fast,
    /// Ends at once, without checkpoint: recovery at the next start.
    Immediate,
}

impl StopMode {
    fn name(self) -> &'static str {
        match self {
            Self::Smart => "smart",
            Self::Fast => "fast",
            Self::Immediate => "immediate",
        }
    }
}

impl Cluster {
    pub(crate) fn new(
        install: PgInstall,
        user: ServerUser,
        home: tempfile::TempDir,
        data: PathBuf,
        port: u16,
        options: Vec<(String, String)>,
    ) -> Result<Self> {
        Ok(Self { install, user, home, data, port, foreign_socket_dir: None, options, keep: false })
    }

    /// The programs this cluster runs with.
    #[must_use]
    pub fn install(&self) -> &PgInstall {
        &self.install
    }

    /// The major version.
    #[must_use]
    pub fn major(&self) -> u32 {
        self.install.major()
    }

    /// The path of a program of this version, such as `pg_dump`.
    ///
    /// # Errors
    /// When the installation lacks it.
    pub fn bin(&self, tool: &str) -> Result<PathBuf> {
        self.install.bin(tool)
    }

    /// The data directory.
    #[must_use]
    pub fn data_dir(&self) -> &Path {
        &self.data
    }

    /// The cluster's temporary folder. Everything in it is removed at the end; files and folders for a test, such as
    /// repositories, may be put here. The server's user may write to it.
    #[must_use]
    pub fn home(&self) -> &Path {
        self.home.path()
    }

    /// The folder with the server's Unix socket.
    #[must_use]
    pub fn socket_dir(&self) -> PathBuf {
        self.foreign_socket_dir.clone().unwrap_or_else(|| self.home.path().join("s"))
    }

    pub(crate) fn take_over(&mut self, port: u16, socket_dir: PathBuf) {
        self.port = port;
        self.foreign_socket_dir = Some(socket_dir);
        // A later start is by its own configuration again, on the port and socket that it had.
        self.options.clear();
    }

    /// The server's port; also part of the socket's name.
    #[must_use]
    pub fn port(&self) -> u16 {
        self.port
    }

    pub(crate) fn set_port(&mut self, port: u16) -> Result<()> {
        self.port = port;
        let mut conf = String::new();
        super::builder::push_setting(&mut conf, "port", &port.to_string());
        super::builder::append(&self.data.join("postgresql.conf"), &conf)
    }

    /// The user that the server runs as.
    #[must_use]
    pub fn user(&self) -> &ServerUser {
        &self.user
    }

    /// Connection string, over the Unix socket, as superuser, to database `postgres`.
    #[must_use]
    pub fn conninfo(&self) -> String {
        self.conninfo_db("postgres")
    }

    /// The same for another database.
    #[must_use]
    pub fn conninfo_db(&self, database: &str) -> String {
        format!("host={} port={} user=postgres dbname={database}", self.socket_dir().display(), self.port)
    }

    /// A folder in [`Cluster::home`] that belongs to the server's user, made if need be: for tablespaces,
    /// repositories, restored clusters. Mode 0700.
    ///
    /// # Errors
    /// When it cannot be made.
    pub fn make_dir(&self, name: &str) -> Result<PathBuf> {
        use std::os::unix::fs::PermissionsExt;
        let dir = self.home.path().join(name);
        std::fs::create_dir_all(&dir).with_context(|| format!("cannot make {}", dir.display()))?;
        std::fs::set_permissions(&dir, std::fs::Permissions::from_mode(0o700))?;
        self.user.own(&dir)?;
        Ok(dir)
    }

    /// A copy of a program that the server's user can run, for `archive_command`: a build folder below a home
    /// directory is closed to other users.
    ///
    /// # Errors
    /// When it cannot be copied.
    pub fn install_program(&self, program: &Path) -> Result<PathBuf> {
        let name = program.file_name().with_context(|| format!("{} has no name", program.display()))?;
        let dir = self.make_dir("bin")?;
        let target = dir.join(name);
        std::fs::copy(program, &target).with_context(|| format!("cannot copy {}", program.display()))?;
        self.user.own(&target)?;
        Ok(target)
    }

    /// A command that runs as the server's user (root cannot run most of PostgreSQL's programs).
    #[must_use]
    pub fn command_as_pg(&self, program: impl AsRef<std::ffi::OsStr>) -> Command {
        self.user.command(program)
    }

    /// Runs a program to its end as the server's user and returns what it said, whatever its exit code.
    ///
    /// # Errors
    /// When the program cannot be started.
    pub fn run_as_pg<S: AsRef<std::ffi::OsStr>>(
        &self,
        program: impl AsRef<std::ffi::OsStr>,
        args: &[S],
    ) -> Result<Output> {
        let mut command = self.command_as_pg(program);
        command.args(args);
        process::run(command, None)
    }

    /// Runs one of PostgreSQL's programs to its end; an exit code other than 0 is an error. Returns its output.
    /// `PGHOST`, `PGPORT` and `PGUSER` lead to this cluster, so no connection arguments are needed.
    ///
    /// # Errors
    /// When the program is missing or fails; both its streams are in the message.
    pub fn tool<S: AsRef<std::ffi::OsStr>>(&self, tool: &str, args: &[S]) -> Result<String> {
        let mut command = self.command_as_pg(self.bin(tool)?);
        command.env("PGHOST", self.socket_dir()).env("PGPORT", self.port.to_string()).env("PGUSER", "postgres");
        command.args(args);
        process::run_ok(command, None)
    }

    /// Runs SQL in database `postgres` through psql, statement by statement, stopping at the first error. Returns
    /// the rows, fields separated by `|`, without the last line break.
    ///
    /// # Errors
    /// When a statement fails; the server's message is in the error.
    pub fn sql(&self, sql: &str) -> Result<String> {
        self.psql_db("postgres", sql)
    }

    /// [`Cluster::sql`] in another database.
    ///
    /// # Errors
    /// As [`Cluster::sql`].
    pub fn psql_db(&self, database: &str, sql: &str) -> Result<String> {
        let mut command = self.command_as_pg(self.bin("psql")?);
        command.args(["-AtXq", "-v", "ON_ERROR_STOP=1", "-d", &self.conninfo_db(database), "-f", "-"]);
        let output = process::run(command, Some(sql))?;
        if !output.success() {
            bail!("SQL failed on the server of {}: {}\n{}", self.data.display(), sql.trim(), output.stderr.trim());
        }
        Ok(output.stdout.trim_end_matches('\n').to_owned())
    }

    /// A connection for asynchronous tests, to database `postgres`.
    ///
    /// # Errors
    /// When the server refuses.
    pub async fn connect(&self) -> Result<tokio_postgres::Client> {
        connect_to(&self.conninfo()).await
    }

    /// Starts the server and waits until it takes connections (a standby: read-only ones).
    ///
    /// # Errors
    /// When it does not start within three minutes; the end of its log is in the message.
    pub fn start_again(&mut self) -> Result<()> {
        process::adopt_orphans()?;
        let mut command = self.command_as_pg(self.bin("pg_ctl")?);
        command.args(["start", "-s", "-w", "-t", "180", "-D"]).arg(&self.data).arg("-l").arg(self.log_path());
        if !self.options.is_empty() {
            let options: Vec<String> =
                self.options.iter().map(|(name, value)| format!("-c {name}='{value}'")).collect();
            command.args(["-o", &options.join(" ")]);
        }
        // The server keeps standard output open for its whole life: a pipe would never end.
        command.stdin(std::process::Stdio::null());
        command.stdout(std::process::Stdio::null()).stderr(std::process::Stdio::null());
        let status = command.status().context("cannot run pg_ctl")?;
        if !status.success() {
            bail!("the server of {} did not start; its log ends with\n{}", self.data.display(), self.log_tail());
        }
        Ok(())
    }

    /// A setting for the server's command line, from the next start on. It wins over configuration files.
    pub fn set_option(&mut self, name: &str, value: &str) {
        self.options.push((name.to_owned(), value.to_owned()));
    }

    /// Appends settings to `postgresql.conf`; [`Cluster::reload`] or a restart makes them work.
    ///
    /// # Errors
    /// When the file cannot be written.
    pub fn append_conf(&self, name: &str, value: &str) -> Result<()> {
        let mut conf = String::new();
        super::builder::push_setting(&mut conf, name, value);
        super::builder::append(&self.data.join("postgresql.conf"), &conf)
    }

    /// Makes the server read its configuration again.
    ///
    /// # Errors
    /// When it does not run.
    pub fn reload(&self) -> Result<()> {
        let data = self.data.to_string_lossy();
        self.tool("pg_ctl", &["reload", "-s", "-D", &data]).map(drop)
    }

    /// Stops the server and waits for the end of all its processes.
    ///
    /// # Errors
    /// When it does not stop within three minutes.
    pub fn stop(&mut self, mode: StopMode) -> Result<()> {
        let data = self.data.to_string_lossy().into_owned();
        let pid = self.postmaster_pid()?;
        self.tool("pg_ctl", &["stop", "-s", "-w", "-t", "180", "-m", mode.name(), "-D", &data])?;
        process::end_all_in(&self.data, Duration::from_secs(10))?;
        process::wait_gone(pid, Duration::from_secs(60))
    }

    /// True while the server's first process lives.
    #[must_use]
    pub fn is_running(&self) -> bool {
        self.postmaster_pid().is_ok_and(process::is_alive)
    }

    /// The id of the server's first process, from `postmaster.pid`.
    ///
    /// # Errors
    /// When there is no such file.
    pub fn postmaster_pid(&self) -> Result<i32> {
        let path = self.data.join("postmaster.pid");
        let text = std::fs::read_to_string(&path).with_context(|| format!("cannot read {}", path.display()))?;
        let first = text.lines().next().unwrap_or_default();
        first.trim().parse().with_context(|| format!("no process id in {}", path.display()))
    }

    /// `kill -9` for the server's first process; returns when all its children are gone. They notice by themselves;
    /// those that do not within a moment, such as a running archive command, are killed too.
    ///
    /// # Errors
    /// When the server does not run or a process cannot be killed.
    pub fn kill9(&mut self) -> Result<()> {
        let pid = self.postmaster_pid()?;
        process::signal(pid, rustix::process::Signal::KILL)?;
        process::end_all_in(&self.data, Duration::from_secs(2))?;
        process::wait_gone(pid, Duration::from_secs(60))
    }

    /// Ends recovery of a standby and waits until it takes writes.
    ///
    /// # Errors
    /// When it does not within three minutes.
    pub fn promote(&self) -> Result<()> {
        let data = self.data.to_string_lossy();
        self.tool("pg_ctl", &["promote", "-s", "-w", "-t", "180", "-D", &data]).map(drop)
    }

    /// Where the server writes its messages.
    #[must_use]
    pub fn log_path(&self) -> PathBuf {
        self.home.path().join("log")
    }

    /// The last 40 lines of the server's log.
    #[must_use]
    pub fn log_tail(&self) -> String {
        let log = self.log();
        let lines: Vec<&str> = log.lines().collect();
        lines[lines.len().saturating_sub(40)..].join("\n")
    }

    /// The whole log.
    #[must_use]
    pub fn log(&self) -> String {
        String::from_utf8_lossy(&std::fs::read(self.log_path()).unwrap_or_default()).into_owned()
    }

    /// Keeps the files, and the server running, when the value is dropped.
    pub fn keep(&mut self) {
        self.keep = true;
    }
}

/// Connects and drives the connection in a task of the current runtime.
pub(crate) async fn connect_to(conninfo: &str) -> Result<tokio_postgres::Client> {
    let (client, connection) = tokio_postgres::connect(conninfo, tokio_postgres::NoTls)
        .await
        .with_context(|| format!("cannot connect to {conninfo}"))?;
    tokio::spawn(async move { drop(connection.await) });
    Ok(client)
}

impl Drop for Cluster {
    fn drop(&mut self) {
        if self.keep {
            self.home.disable_cleanup(true);
            return;
        }
        if self.is_running()
            && let Ok(pid) = self.postmaster_pid()
        {
            // SIGQUIT is the immediate shutdown.
            process::signal(pid, rustix::process::Signal::QUIT).ok();
        }
        process::end_all_in(&self.data, Duration::from_secs(5)).ok();
    }
}
