//! How a new cluster is described and made.

use super::cluster::{Cluster, StopMode};
use super::install::PgInstall;
use super::process;
use super::user::{ServerUser, server_user};
use anyhow::{Context, Result, bail};
use std::fmt::Write as _;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

/// How the names of temporary cluster folders begin. Short, because a Unix socket's path is limited to 107 bytes.
pub(crate) const TEMP_PREFIX: &str = "pgk";

/// Describes a cluster to be made; see [`Cluster::builder`].
#[derive(Debug, Clone)]
pub struct ClusterBuilder {
    major: u32,
    checksums: bool,
    tcp: bool,
    in_memory: bool,
    wal_segsize_mb: Option<u32>,
    conf: Vec<(String, String)>,
    initdb_args: Vec<String>,
}

impl ClusterBuilder {
    pub(crate) fn new(major: u32) -> Self {
        Self {
            major,
            checksums: true,
            tcp: false,
            in_memory: false,
            wal_segsize_mb: None,
            conf: Vec::new(),
            initdb_args: Vec::new(),
        }
    }

    /// Page checksums on (as without this call) or off.
    #[must_use]
    pub fn checksums(mut self, on: bool) -> Self {
        self.checksums = on;
        self
    }

    /// Size of a WAL segment in MiB; 16 without this call.
    #[must_use]
    pub fn wal_segsize_mb(mut self, megabytes: u32) -> Self {
        self.wal_segsize_mb = Some(megabytes);
        self
    }

    /// One setting of `postgresql.conf`. The value is quoted here.
    #[must_use]
    pub fn conf(mut self, name: &str, value: &str) -> Self {
        self.conf.push((name.to_owned(), value.to_owned()));
        self
    }

    /// Archiving on, with this command.
    #[must_use]
    pub fn archive_command(self, command: &str) -> Self {
        self.conf("archive_mode", "on").conf("archive_command", command)
    }

    /// Listens on 127.0.0.1 as well; without this call only on a Unix socket.
    #[must_use]
    pub fn tcp(mut self) -> Self {
        self.tcp = true;
        self
    }

    /// `fsync=off`: for tests in which speed counts and nothing is said about durability.
    #[must_use]
    pub fn without_fsync(self) -> Self {
        self.conf("fsync", "off")
    }

    /// The cluster's folder, with all that a test puts beside it, lies in memory where there is plenty: what is said
    /// to be durable costs nothing there. For tests that restore often and say nothing about durability.
    #[must_use]
    pub fn in_memory(mut self) -> Self {
        self.in_memory = true;
        self
    }

    /// A further argument for `initdb`, such as `--auth-host=scram-sha-256`.
    #[must_use]
    pub fn initdb_arg(mut self, argument: &str) -> Self {
        self.initdb_args.push(argument.to_owned());
        self
    }

    /// Makes the cluster and starts its server.
    ///
    /// # Errors
    /// When the version is missing, or `initdb` or the server fails; the server's log is in the message.
    pub fn start(self) -> Result<Cluster> {
        let mut cluster = self.create()?;
        let mut attempts_left = 3;
        loop {
            match cluster.start_again() {
                Ok(()) => return Ok(cluster),
                // Between looking for a free port and binding it somebody else may have taken it.
                Err(error) if attempts_left > 0 && cluster.log_tail().contains("could not bind") => {
                    attempts_left -= 1;
                    cluster.set_port(free_port()?)?;
                    drop(error);
                }
                Err(error) => return Err(error),
            }
        }
    }

    /// Makes the cluster without starting its server.
    ///
    /// # Errors
    /// As [`ClusterBuilder::start`].
    pub fn create(self) -> Result<Cluster> {
        let install = PgInstall::find(self.major)?;
        let user = server_user()?;
        let base = if self.in_memory { memory_base().unwrap_or_else(temp_base) } else { temp_base() };
        let home = new_home_in(&base, &user)?;
        let data = home.path().join("data");
        let mut command = user.command(install.bin("initdb")?);
        command
            .args(["--locale=C.UTF-8", "--encoding=UTF8", "-A", "trust", "-U", "postgres", "--no-sync", "-D"])
            .arg(&data);
        match (self.checksums, self.major) {
            (true, _) => drop(command.arg("--data-checksums")),
            // Checksums are the default since 18.
            (false, 18..) => drop(command.arg("--no-data-checksums")),
            (false, _) => {}
        }
        if let Some(megabytes) = self.wal_segsize_mb {
            command.arg(format!("--wal-segsize={megabytes}"));
        }
        command.args(&self.initdb_args);
        process::run_ok(command, None)?;
        let port = free_port()?;
        let mut conf = String::from("\n# Settings of the test kit\n");
        let listen = if self.tcp { "127.0.0.1" } else { "" };
        let socket_dir = home.path().join("s");
        for (name, value) in [
            ("listen_addresses", listen),
            ("unix_socket_directories", &socket_dir.to_string_lossy()),
            ("port", &port.to_string()),
            ("logging_collector", "off"),
        ] {
            push_setting(&mut conf, name, value);
        }
        for (name, value) in &self.conf {
            push_setting(&mut conf, name, value);
        }
        append(&data.join("postgresql.conf"), &conf)?;
        Cluster::new(install, user, home, data, port, Vec::new())
    }
}

/// Quotes a setting as `guc-file.l` reads it.
pub(crate) fn push_setting(conf: &mut String, name: &str, value: &str) {
    let quoted = value.replace('\\', "\\\\").replace('\'', "''");
    writeln!(conf, "{name} = '{quoted}'").expect("writing to a String cannot fail");
}

pub(crate) fn append(path: &Path, text: &str) -> Result<()> {
    use std::io::Write as _;
    let mut file = std::fs::OpenOptions::new()
        .append(true)
        .create(true)
        .open(path)
        .with_context(|| format!("cannot open {}", path.display()))?;
    file.write_all(text.as_bytes()).with_context(|| format!("cannot write to {}", path.display()))
}

/// The folder for temporary files, unless its name is too long for the sockets below it.
pub(crate) fn temp_base() -> PathBuf {
    let base = std::env::temp_dir();
    if base.as_os_str().len() > 60 { PathBuf::from("/tmp") } else { base }
}

/// A folder in memory, if there is one with room for a few clusters and their repositories.
pub(crate) fn memory_base() -> Option<PathBuf> {
    const BYTES_MIN: u64 = 6 << 30;
    let base = PathBuf::from("/dev/shm");
    let facts = rustix::fs::statvfs(&base).ok()?;
    let is_tmpfs = rustix::fs::statfs(&base).is_ok_and(|facts| facts.f_type == TMPFS_MAGIC);
    (is_tmpfs && facts.f_bavail.saturating_mul(facts.f_frsize) >= BYTES_MIN).then_some(base)
}

/// `TMPFS_MAGIC` of Linux' `magic.h`.
const TMPFS_MAGIC: i64 = 0x0102_1994;

/// A new temporary folder that the server's user can write to, with `s` for sockets in it.
pub(crate) fn new_home(user: &ServerUser) -> Result<tempfile::TempDir> {
    new_home_in(&temp_base(), user)
}

fn new_home_in(base: &Path, user: &ServerUser) -> Result<tempfile::TempDir> {
    let home = tempfile::Builder::new()
        .prefix(TEMP_PREFIX)
        .tempdir_in(base)
        .with_context(|| format!("cannot make a folder in {}", base.display()))?;
    std::fs::create_dir(home.path().join("s"))?;
    std::fs::write(home.path().join("owner"), format!("{}\n", std::process::id()))?;
    std::fs::set_permissions(home.path(), std::fs::Permissions::from_mode(0o755))?;
    user.own(home.path())?;
    Ok(home)
}

/// A TCP port that nobody uses at this moment. It also names the socket, so two servers never share one.
pub(crate) fn free_port() -> Result<u16> {
    let listener = std::net::TcpListener::bind("127.0.0.1:0").context("no free TCP port")?;
    match listener.local_addr()?.port() {
        0 => bail!("no free TCP port"),
        port => Ok(port),
    }
}

impl Cluster {
    /// Begins the description of a new cluster of this major version.
    #[must_use]
    pub fn builder(major: u32) -> ClusterBuilder {
        ClusterBuilder::new(major)
    }

    /// Stands a stopped cluster on an existing data directory, for example a restored one. Port, socket and log are
    /// the test kit's own and given on the server's command line, so nothing in the directory is changed. The
    /// directory stays when the value is dropped. Start it with [`Cluster::start_again`].
    ///
    /// # Errors
    /// When the directory is no data directory of this version.
    pub fn adopt(data: &Path, major: u32) -> Result<Self> {
        let install = PgInstall::find(major)?;
        let version = std::fs::read_to_string(data.join("PG_VERSION"))
            .with_context(|| format!("{} is no data directory", data.display()))?;
        if version.trim() != major.to_string() {
            bail!("{} is of version {}, not {major}", data.display(), version.trim());
        }
        let user = server_user()?;
        let home = new_home(&user)?;
        let port = free_port()?;
        let socket_dir = home.path().join("s").to_string_lossy().into_owned();
        let options = vec![
            ("port".to_owned(), port.to_string()),
            ("unix_socket_directories".to_owned(), socket_dir),
            ("listen_addresses".to_owned(), String::new()),
            ("logging_collector".to_owned(), "off".to_owned()),
        ];
        Self::new(install, user, home, data.to_owned(), port, options)
    }

    /// Takes over a server that something else started on a data directory (`pgkeep restore --start`), with the port
    /// and the socket that it uses. Dropping the value stops the server; the directory stays.
    ///
    /// # Errors
    /// When no server runs there, or it has no socket.
    pub fn attach(data: &Path, major: u32) -> Result<Self> {
        let mut cluster = Self::adopt(data, major)?;
        let path = data.join("postmaster.pid");
        let text = std::fs::read_to_string(&path).with_context(|| format!("no server runs in {}", data.display()))?;
        // Lines of the file: src/include/utils/pidfile.h.
        let lines: Vec<&str> = text.lines().collect();
        let line = |number: usize| lines.get(number - 1).map(|line| line.trim()).filter(|line| !line.is_empty());
        let port =
            line(4).and_then(|port| port.parse().ok()).with_context(|| format!("no port in {}", path.display()))?;
        let socket_dir = line(5).with_context(|| format!("no socket in {}", path.display()))?;
        cluster.take_over(port, PathBuf::from(socket_dir));
        Ok(cluster)
    }

    /// Stops the server in the given way and starts it again.
    ///
    /// # Errors
    /// When either fails.
    pub fn restart(&mut self) -> Result<()> {
        self.stop(StopMode::Fast)?;
        self.start_again()
    }
}
