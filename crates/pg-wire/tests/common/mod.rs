//! Real PostgreSQL servers for the tests: made in a temporary directory, run as an ordinary user, stopped on drop.

#![allow(dead_code, unreachable_pub, clippy::unwrap_used, reason = "each test file uses a part")]

use pg_wire::{Client, Conninfo, ConninfoError, Surroundings, WireError};
use std::net::TcpListener;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use tempfile::TempDir;

/// The ordinary user that servers run as when the tests run as root.
const SERVER_USER: &str = "postgres";

/// The directory of PostgreSQL's programs; the newest installed version.
pub fn bin_dir() -> PathBuf {
    let mut found: Vec<(u32, PathBuf)> = std::fs::read_dir("/usr/lib/postgresql")
        .into_iter()
        .flatten()
        .filter_map(|entry| {
            let path = entry.ok()?.path();
            let major = path.file_name()?.to_str()?.parse().ok()?;
            let bin = path.join("bin");
            bin.join("initdb").exists().then_some((major, bin))
        })
        .collect();
    found.sort();
    // 15 is the default version of this project's tests.
    let wanted = found.iter().find(|(major, _)| *major == 15).or(found.last());
    wanted.map(|(_, bin)| bin.clone()).expect("no PostgreSQL under /usr/lib/postgresql: run `cargo xtask setup`")
}

fn is_root() -> bool {
    rustix::process::geteuid().is_root()
}

/// A command that runs as the server's user.
fn as_server_user(program: &Path) -> Command {
    let mut command = if is_root() {
        let mut command = Command::new("setpriv");
        command.args(["--reuid", SERVER_USER, "--regid", SERVER_USER, "--init-groups"]).arg(program);
        command
    } else {
        Command::new(program)
    };
    command.env("LC_ALL", "C").env_remove("PGHOST").env_remove("PGPORT").env_remove("PGDATA").current_dir("/");
    command
}

fn give_to_server_user(path: &Path) {
    if is_root() {
        let owner = format!("{SERVER_USER}:{SERVER_USER}");
        assert!(Command::new("chown").arg("-R").arg(owner).arg(path).status().unwrap().success());
    }
}

fn run(command: &mut Command) {
    let output = command.stdin(Stdio::null()).output().unwrap_or_else(|error| panic!("{command:?}: {error}"));
    assert!(
        output.status.success(),
        "{command:?} failed:\n{}{}",
        String::from_utf8_lossy(&output.stdout),
        String::from_utf8_lossy(&output.stderr)
    );
}

/// A port that was free a moment ago.
pub fn free_port() -> u16 {
    TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port()
}

/// Certificates: a CA, a server's for `localhost` and 127.0.0.1, a server's for another host, clients'.
pub struct Certificates {
    pub dir: PathBuf,
}

impl Certificates {
    fn openssl(&self, args: &[&str]) {
        run(Command::new("openssl").args(args).current_dir(&self.dir));
    }

    fn leaf(&self, name: &str, subject: &str, extensions: Option<&str>) {
        let (key, csr, crt) = (format!("{name}.key"), format!("{name}.csr"), format!("{name}.crt"));
        self.openssl(&[
            "req", "-new", "-newkey", "rsa:2048", "-nodes", "-keyout", &key, "-out", &csr, "-subj", subject,
        ]);
        let mut args = vec!["x509", "-req", "-in", &csr, "-CA", "ca.crt", "-CAkey", "ca.key", "-CAcreateserial"];
        args.extend(["-days", "30", "-out", &crt]);
        let ext = format!("{name}.ext");
        if let Some(extensions) = extensions {
            std::fs::write(self.dir.join(&ext), extensions).unwrap();
            args.extend(["-extfile", &ext]);
        }
        self.openssl(&args);
    }

    pub fn make(dir: &Path) -> Self {
        std::fs::create_dir(dir).unwrap();
        std::fs::set_permissions(dir, std::fs::Permissions::from_mode(0o755)).unwrap();
        let certificates = Self { dir: dir.to_owned() };
        for (ca, subject) in [("ca", "/CN=pg-wire test CA"), ("other-ca", "/CN=another CA")] {
            let (key, crt) = (format!("{ca}.key"), format!("{ca}.crt"));
            certificates.openssl(&[
                "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "30", "-keyout", &key, "-out", &crt, "-subj",
                subject,
            ]);
        }
        certificates.leaf("server", "/CN=ignored", Some("subjectAltName=DNS:localhost,IP:127.0.0.1\n"));
        certificates.leaf("wrong-host", "/CN=elsewhere.example", Some("subjectAltName=DNS:elsewhere.example\n"));
        certificates.leaf("common-name", "/CN=localhost", Some("basicConstraints=CA:FALSE\n"));
        certificates.leaf("version-1", "/CN=localhost", None);
        certificates.leaf("sha384", "/CN=x", Some("subjectAltName=DNS:localhost\n"));
        certificates.leaf("certuser", "/CN=certuser", Some("basicConstraints=CA:FALSE\n"));
        certificates.openssl(&[
            "req",
            "-x509",
            "-newkey",
            "rsa:2048",
            "-nodes",
            "-days",
            "30",
            "-keyout",
            "self-signed.key",
            "-out",
            "self-signed.crt",
            "-subj",
            "/CN=localhost",
            "-addext",
            "subjectAltName=DNS:localhost",
        ]);
        certificates
    }

    pub fn path(&self, name: &str) -> String {
        self.dir.join(name).to_str().unwrap().to_owned()
    }
}

/// A running server.
pub struct Server {
    pub root: TempDir,
    pub port: u16,
    pub certificates: Certificates,
    stopped: bool,
}

/// Every role logs in with the method of its name; the password is the name with `-secret`.
const HBA: &str = "\
local   all all                 trust
local   replication all         trust
hostssl all tlsonly    all      trust
hostnossl all plainonly all     trust
host    all trustuser  all      trust
host    all passworduser all    password
host    all md5user    all      md5
host    all scramuser  all      scram-sha-256
hostssl all certuser   all      cert
host    replication trustuser all trust
host    all ldapuser   all      gss
";

impl Server {
    /// A server with TLS on.
    pub fn start() -> Self {
        Self::start_with(|_| String::from("ssl = on\n"))
    }

    /// A server with more configuration, which may come to know the certificates.
    pub fn start_with(more: impl FnOnce(&Certificates) -> String) -> Self {
        let bin = bin_dir();
        let root = tempfile::Builder::new().prefix("pgw").tempdir_in("/tmp").unwrap();
        std::fs::set_permissions(root.path(), std::fs::Permissions::from_mode(0o755)).unwrap();
        give_to_server_user(root.path());
        let data = root.path().join("data");
        run(as_server_user(&bin.join("initdb"))
            .args(["-U", "super", "-A", "trust", "--no-sync", "-E", "UTF8", "--no-locale", "-D"])
            .arg(&data));
        let certificates = Certificates::make(&root.path().join("certs"));
        for name in ["server", "wrong-host", "common-name", "version-1", "self-signed"] {
            let copy = data.join(format!("{name}.key"));
            std::fs::copy(certificates.dir.join(format!("{name}.key")), &copy).unwrap();
            std::fs::set_permissions(&copy, std::fs::Permissions::from_mode(0o600)).unwrap();
            std::fs::copy(certificates.dir.join(format!("{name}.crt")), data.join(format!("{name}.crt"))).unwrap();
        }
        let more = more(&certificates);
        std::fs::write(data.join("pg_hba.conf"), HBA).unwrap();
        let mut server = Self { root, port: 0, certificates, stopped: true };
        let conf = format!(
            "listen_addresses = '127.0.0.1'\nunix_socket_directories = '{}'\nfsync = off\nmax_connections = 30\n\
             ssl_cert_file = 'server.crt'\nssl_key_file = 'server.key'\nssl_ca_file = '{}'\nlogging_collector = off\n{more}",
            server.root.path().display(),
            server.certificates.path("ca.crt"),
        );
        std::fs::write(data.join("postgresql.auto.conf"), conf).unwrap();
        give_to_server_user(&data);
        // Another process may take the port in between: try again with another one.
        for attempt in 0.. {
            server.port = free_port();
            let mut start = as_server_user(&bin.join("pg_ctl"));
            start.args(["start", "-w", "-s", "-D"]).arg(&data).arg("-l").arg(server.root.path().join("data/log"));
            start.args(["-o", &format!("-p {}", server.port)]);
            let started = start.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null()).status().unwrap();
            if started.success() {
                break;
            }
            let log = std::fs::read_to_string(server.root.path().join("data/log")).unwrap_or_default();
            assert!(attempt < 5, "the server does not start:\n{log}");
        }
        server.stopped = false;
        server.sql(
            "CREATE ROLE trustuser LOGIN REPLICATION; CREATE ROLE tlsonly LOGIN; CREATE ROLE plainonly LOGIN;
             CREATE ROLE certuser LOGIN; CREATE ROLE ldapuser LOGIN; CREATE ROLE nohba LOGIN;
             CREATE ROLE passworduser LOGIN PASSWORD 'passworduser-secret';
             CREATE ROLE scramuser LOGIN PASSWORD 'scramuser-secret';
             SET password_encryption = 'md5'; CREATE ROLE md5user LOGIN PASSWORD 'md5user-secret';",
        );
        server
    }

    /// Runs SQL as the superuser by psql.
    pub fn sql(&self, sql: &str) -> String {
        let mut psql = as_server_user(&bin_dir().join("psql"));
        psql.env("PGOPTIONS", "-c default_transaction_read_only=off");
        psql.args(["-X", "-q", "-A", "-t", "-v", "ON_ERROR_STOP=1", "-U", "super", "-d", "postgres", "-h"]);
        psql.arg(self.root.path()).args(["-p", &self.port.to_string(), "-c", sql]);
        let output = psql.stdin(Stdio::null()).output().unwrap();
        assert!(output.status.success(), "psql: {}", String::from_utf8_lossy(&output.stderr));
        String::from_utf8(output.stdout).unwrap().trim().to_owned()
    }

    /// Runs `pg_ctl`.
    pub fn pg_ctl(&self, args: &[&str]) {
        let mut command = as_server_user(&bin_dir().join("pg_ctl"));
        command.args(args).args(["-s", "-D"]).arg(self.root.path().join("data"));
        run(command.stdout(Stdio::null()));
    }

    /// Makes the server a hot standby of nobody.
    pub fn make_standby(&self) {
        let signal = self.root.path().join("data/standby.signal");
        std::fs::write(&signal, "").unwrap();
        give_to_server_user(&signal);
        self.pg_ctl(&["restart", "-m", "fast", "-w"]);
    }

    /// The directory of the socket.
    pub fn socket_dir(&self) -> &str {
        self.root.path().to_str().unwrap()
    }

    /// Settings for TCP to `localhost`, by address.
    pub fn tcp(&self, more: &str) -> String {
        format!("host=localhost hostaddr=127.0.0.1 port={} dbname=postgres {more}", self.port)
    }

    /// Settings for the socket, as the superuser.
    pub fn local(&self, more: &str) -> String {
        format!("host={} port={} dbname=postgres user=super {more}", self.socket_dir(), self.port)
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        if !self.stopped {
            let mut stop = as_server_user(&bin_dir().join("pg_ctl"));
            stop.args(["stop", "-m", "immediate", "-s", "-D"]).arg(self.root.path().join("data"));
            let _ = stop.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null()).status();
        }
    }
}

/// Resolves a connection string with nothing from around.
pub fn conninfo(text: &str) -> Result<Conninfo, ConninfoError> {
    Conninfo::parse(text, &Surroundings::none())
}

/// Connects by a connection string.
pub async fn connect(text: &str) -> Result<Client, WireError> {
    Client::connect(&conninfo(text)?).await
}

/// Connects, and fails the test when that is not possible.
pub async fn must_connect(text: &str) -> Client {
    connect(text).await.unwrap_or_else(|error| panic!("{text}: {error}"))
}

/// The error of a connection that must not come about.
pub async fn must_fail(text: &str) -> WireError {
    match connect(text).await {
        Ok(_) => panic!("{text}: connected"),
        Err(error) => error,
    }
}
