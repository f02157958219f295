//! Connection strings: everything libpq accepts, completed from service file, environment, passfile and defaults.
//!
//! [`Params`] is what a string says; [`Params::resolve`] completes and checks it and gives a [`Conninfo`], in
//! libpq's order of precedence: connection string, service file, environment, built-in default. Facts are taken
//! from PostgreSQL's `src/interfaces/libpq/fe-connect.c`. The only I/O is reading service file and passfile,
//! whose places the caller tells through [`Surroundings`].

mod error;
mod keyvalue;
mod keywords;
mod options;
mod params;
mod passfile;
mod resolve;
mod service;
mod surroundings;
#[cfg(test)]
mod tests;
mod uri;

pub use error::ConninfoError;
pub use keywords::{KEYWORDS, Keyword};
pub use options::{
    AuthMethod, ChannelBinding, Keepalives, LoadBalanceHosts, ReplicationMode, RequireAuth, SslCertMode, SslMode,
    SslNegotiation, TargetSessionAttrs, TlsVersion,
};
pub use params::Params;
pub use passfile::{PassfileKey, find_password};
pub use surroundings::Surroundings;

use crate::Secret;
use std::fmt;
use std::net::IpAddr;
use std::path::PathBuf;
use std::time::Duration;

/// The directories tried, in this order, when no host is given: Debian's and the one PostgreSQL's source has.
pub const DEFAULT_SOCKET_DIRS: [&str; 2] = ["/var/run/postgresql", "/tmp"];

/// PostgreSQL's port when none is given.
pub const DEFAULT_PORT: u16 = 5432;

/// Where a server is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Address {
    /// A name to be looked up, or an address written as a host.
    Name(String),
    /// An address given as `hostaddr`; nothing is looked up.
    Ip(IpAddr),
    /// The directory of a Unix socket; with a leading `@` in the abstract namespace.
    SocketDir(String),
    /// No host was given: [`DEFAULT_SOCKET_DIRS`].
    DefaultSocketDirs,
}

/// One server to try.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Host {
    /// Where it is.
    pub address: Address,
    /// The name to verify a certificate against: `host`, also when `hostaddr` says where to connect.
    pub name: Option<String>,
    /// The port, also part of a socket's name.
    pub port: u16,
    /// The password for this server: from the string, or the passfile.
    pub password: Option<Secret>,
}

impl fmt::Display for Host {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let port = self.port;
        match (&self.address, &self.name) {
            (Address::Name(name), _) if name.contains(':') => write!(f, "[{name}]:{port}"),
            (Address::Name(name), _) => write!(f, "{name}:{port}"),
            (Address::Ip(ip), Some(name)) => write!(f, "{name}:{port} (at {ip})"),
            (Address::Ip(ip), None) => write!(f, "{}", std::net::SocketAddr::new(*ip, port)),
            (Address::SocketDir(dir), _) => write!(f, "{dir}/.s.PGSQL.{port}"),
            (Address::DefaultSocketDirs, _) => write!(f, "{}/.s.PGSQL.{port}", DEFAULT_SOCKET_DIRS[0]),
        }
    }
}

/// A complete, checked description of how to connect. `Debug` and `Display` never show a secret.
#[derive(Debug, Clone)]
pub struct Conninfo {
    /// The settings this was made from, after service file, environment and defaults.
    pub params: Params,
    /// The servers, in the order given (`load_balance_hosts` is applied when connecting).
    pub hosts: Vec<Host>,
    /// The role to log in as.
    pub user: String,
    /// The database.
    pub dbname: String,
    /// The passfile that passwords came from, for error messages.
    pub passfile: Option<PathBuf>,
    /// TLS or not.
    pub sslmode: SslMode,
    /// How TLS begins.
    pub sslnegotiation: SslNegotiation,
    /// Trusted certificates.
    pub sslrootcert: RootCert,
    /// The client's certificate.
    pub sslcert: Option<PathBuf>,
    /// The key of the client's certificate.
    pub sslkey: Option<PathBuf>,
    /// Whether a client certificate is sent.
    pub sslcertmode: SslCertMode,
    /// A revocation list.
    pub sslcrl: Option<PathBuf>,
    /// A directory of revocation lists.
    pub sslcrldir: Option<PathBuf>,
    /// Whether the host name is sent in clear in the handshake.
    pub sslsni: bool,
    /// The oldest TLS version accepted.
    pub tls_min: TlsVersion,
    /// The newest TLS version accepted.
    pub tls_max: TlsVersion,
    /// Channel binding of SCRAM.
    pub channel_binding: ChannelBinding,
    /// The authentication methods accepted.
    pub require_auth: RequireAuth,
    /// The time for one address, none for no limit.
    pub connect_timeout: Option<Duration>,
    /// Which servers will do.
    pub target_session_attrs: TargetSessionAttrs,
    /// Whether hosts are tried in random order.
    pub load_balance_hosts: LoadBalanceHosts,
    /// TCP keepalives and user timeout.
    pub keepalives: Keepalives,
    /// The user that must own the server's Unix socket.
    pub requirepeer: Option<String>,
    /// A replication connection.
    pub replication: ReplicationMode,
    /// What a human should be told: an ignored passfile and its reason.
    pub warnings: Vec<String>,
}

/// Which certificates are trusted.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum RootCert {
    /// The operating system's.
    System,
    /// Those in a file named by the caller; it must be there.
    File(PathBuf),
    /// Those in the default file, when it is there.
    DefaultFile(PathBuf),
    /// None: there is no home directory and no setting.
    None,
}

impl Conninfo {
    /// Parses and completes a connection string in one step.
    pub fn parse(text: &str, surroundings: &Surroundings) -> Result<Self, ConninfoError> {
        Params::parse(text)?.resolve(surroundings)
    }

    /// The same settings with some replaced, checked again; passwords and hosts are found anew.
    ///
    /// `surroundings` supplies the passfile's place as in [`Params::resolve`].
    pub fn with(&self, settings: &[(&str, &str)], surroundings: &Surroundings) -> Result<Self, ConninfoError> {
        let mut params = self.params.clone();
        for (keyword, value) in settings {
            params.set(keyword, *value)?;
        }
        // The service was applied already; its values are explicit now.
        params.unset("service");
        params.unset("servicefile");
        params.resolve(&surroundings.without_vars())
    }

    /// The application name to report.
    pub fn application_name(&self) -> Option<&str> {
        ["application_name", "fallback_application_name"]
            .iter()
            .find_map(|keyword| self.params.get(keyword).filter(|value| !value.is_empty()))
    }
}

impl fmt::Display for Conninfo {
    /// The settings that differ from the built-in defaults, as a keyword/value string without secrets.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut shown = Params::default();
        for (keyword, value) in self.params.iter_shown() {
            if keywords::find(keyword).is_none_or(|known| known.default != Some(value)) {
                shown.set(keyword, value).map_err(|_| fmt::Error)?;
            }
        }
        shown.fmt(f)
    }
}
