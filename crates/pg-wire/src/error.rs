//! What can go wrong with a connection, and what to do about it.

use crate::conninfo::ConninfoError;
use std::fmt;
use std::io;
use std::path::PathBuf;
use std::time::Duration;

/// An error that the server reported, with the fields of PostgreSQL's protocol (chapter "Error and Notice Message Fields").
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct ServerError {
    /// ERROR, FATAL, PANIC; in English whatever the server's language.
    pub severity: String,
    /// The five-character SQLSTATE.
    pub sqlstate: String,
    /// The message, in the server's language.
    pub message: String,
    /// More about it.
    pub detail: Option<String>,
    /// What the server suggests.
    pub hint: Option<String>,
    /// The call stack of the failing statement.
    pub r#where: Option<String>,
    /// The place in the statement, in characters from 1.
    pub position: Option<u32>,
    /// The schema concerned.
    pub schema: Option<String>,
    /// The table concerned.
    pub table: Option<String>,
    /// The column concerned.
    pub column: Option<String>,
    /// The constraint concerned.
    pub constraint: Option<String>,
    /// The server's source function.
    pub routine: Option<String>,
}

impl fmt::Display for ServerError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {} (SQLSTATE {})", self.severity, self.message, self.sqlstate)?;
        if let Some(detail) = &self.detail {
            write!(f, "; {detail}")?;
        }
        Ok(())
    }
}

impl std::error::Error for ServerError {}

/// Everything that can go wrong here. Never contains a password.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum WireError {
    /// The connection string cannot be used.
    #[error(transparent)]
    Conninfo(#[from] ConninfoError),
    /// Nobody listens there.
    #[error("connection to {target} refused: no server is listening there")]
    Refused {
        /// The server as the user wrote it.
        target: String,
    },
    /// The Unix socket does not exist.
    #[error("no PostgreSQL socket at {}", join(paths))]
    NoSocket {
        /// The sockets looked for.
        paths: Vec<PathBuf>,
    },
    /// A name that cannot be looked up.
    #[error("could not look up the address of \"{host}\": {source}")]
    Dns {
        /// The name.
        host: String,
        /// What the resolver said.
        source: io::Error,
    },
    /// Any other failure of the network before the server answered.
    #[error("could not connect to {target}: {source}")]
    Connect {
        /// The server.
        target: String,
        /// The operating system's error.
        source: io::Error,
    },
    /// `connect_timeout` ran out.
    #[error("connection to {target} timed out after {} s", after.as_secs())]
    ConnectTimeout {
        /// The server.
        target: String,
        /// The limit.
        after: Duration,
    },
    /// Several servers, addresses, or ways of encryption were tried, and none would do.
    #[error("none of {} attempts to connect succeeded: {}", errors.len(), each(errors))]
    NoHost {
        /// One error for each attempt, in order.
        errors: Vec<WireError>,
    },
    /// The server is not of the kind asked for.
    #[error("{target} does not match target_session_attrs={wanted}: {found}")]
    TargetSession {
        /// The server.
        target: String,
        /// The kind asked for.
        wanted: &'static str,
        /// What the server is.
        found: &'static str,
    },
    /// The socket belongs to another user than `requirepeer` says.
    #[error("{target} is run by user id {found}, not by \"{wanted}\" as requirepeer demands")]
    Peer {
        /// The socket.
        target: String,
        /// The user demanded.
        wanted: String,
        /// The user id found, or why it could not be known.
        found: String,
    },
    /// The server has no TLS and TLS is demanded.
    #[error("{target} does not support TLS, but sslmode={sslmode} demands it")]
    TlsRefused {
        /// The server.
        target: String,
        /// The mode.
        sslmode: &'static str,
    },
    /// The certificate is not trusted.
    #[error("the certificate of {target} is not trusted: {reason}")]
    TlsUntrusted {
        /// The server.
        target: String,
        /// Why.
        reason: String,
    },
    /// The certificate is trusted but was made for another host.
    #[error("the certificate of {target} is for {}, not for \"{expected}\"", names_or_none(names))]
    TlsHostName {
        /// The server.
        target: String,
        /// The name asked for.
        expected: String,
        /// The names in the certificate.
        names: Vec<String>,
    },
    /// The handshake failed in another way.
    #[error("TLS with {target} failed: {reason}")]
    Tls {
        /// The server.
        target: String,
        /// Why.
        reason: String,
    },
    /// A certificate, key or revocation list that cannot be used.
    #[error("{what} \"{}\" cannot be used: {reason}", path.display())]
    TlsFile {
        /// "client key", "root certificate file" and so on.
        what: &'static str,
        /// The file.
        path: PathBuf,
        /// Why.
        reason: String,
    },
    /// TLS settings that cannot be met.
    #[error("{reason}")]
    TlsConfig {
        /// Which and why.
        reason: String,
    },
    /// The server refused the login.
    #[error("{target} refused the login of \"{user}\" to database \"{dbname}\": {error}{}", from_file(passfile))]
    Rejected {
        /// The server.
        target: String,
        /// The role.
        user: String,
        /// The database.
        dbname: String,
        /// The passfile the password came from.
        passfile: Option<PathBuf>,
        /// Whether the connection was encrypted.
        encrypted: bool,
        /// What the server said.
        error: Box<ServerError>,
    },
    /// The server asks for a password and none is known.
    #[error("{target} asks for the password of \"{user}\", and none was given{}", warned(warnings))]
    NoPassword {
        /// The server.
        target: String,
        /// The role.
        user: String,
        /// Why a passfile was ignored.
        warnings: Vec<String>,
    },
    /// The server asks for a method that this client does not have.
    #[error("{target} asks for {method} authentication, which is not supported")]
    AuthUnsupported {
        /// The server.
        target: String,
        /// The method.
        method: String,
    },
    /// The server asks for a method that `require_auth` or `channel_binding` forbids.
    #[error("{target} does not meet {setting}: {found}")]
    AuthForbidden {
        /// The server.
        target: String,
        /// The setting, as in a connection string.
        setting: String,
        /// What the server asked for.
        found: String,
    },
    /// SCRAM failed on our side: the server could not prove that it knows the password, or broke the exchange.
    #[error("SCRAM authentication with {target} failed: {reason}")]
    Scram {
        /// The server.
        target: String,
        /// What was wrong.
        reason: String,
    },
    /// The server reported an error for a statement.
    #[error(transparent)]
    Server(Box<ServerError>),
    /// The connection is gone.
    #[error("the connection to {target} is closed: {reason}")]
    Closed {
        /// The server.
        target: String,
        /// Why, as far as is known.
        reason: String,
    },
    /// Something that PostgreSQL does not send.
    #[error("{target} broke the protocol: {what}")]
    Protocol {
        /// The server.
        target: String,
        /// What was wrong.
        what: String,
    },
    /// The query timeout ran out; the statement was cancelled.
    #[error("the statement was cancelled after {} ms: the query timeout ran out", after.as_millis())]
    QueryTimeout {
        /// The limit.
        after: Duration,
    },
    /// A statement gave another number of rows than expected.
    #[error("the statement gave {found} rows where {expected} was expected")]
    RowCount {
        /// "one" or "at most one".
        expected: &'static str,
        /// How many there were.
        found: usize,
    },
    /// No column of that name or number.
    #[error("the result has no column {column} (it has: {})", available.join(", "))]
    NoColumn {
        /// The name or number.
        column: String,
        /// The columns there are.
        available: Vec<String>,
    },
    /// NULL where a value was expected.
    #[error("column \"{column}\" is NULL")]
    Null {
        /// The column.
        column: String,
    },
    /// A value of another form than expected.
    #[error("column \"{column}\" holds {value:?}, which is no {expected}")]
    BadValue {
        /// The column.
        column: String,
        /// The value, shortened.
        value: String,
        /// What was expected.
        expected: &'static str,
    },
    /// A call that does not fit what the connection is doing.
    #[error("{what}")]
    Misuse {
        /// What is wrong with it.
        what: String,
    },
}

impl WireError {
    /// Whether the server could not be reached or is not ready, so that trying again later may help.
    pub fn is_transient(&self) -> bool {
        match self {
            Self::Refused { .. }
            | Self::NoSocket { .. }
            | Self::Dns { .. }
            | Self::Connect { .. }
            | Self::ConnectTimeout { .. }
            | Self::Closed { .. } => true,
            Self::NoHost { errors } => errors.iter().any(Self::is_transient),
            // Starting up or shutting down, too many connections, ended by the administrator or a crash.
            other => other.sqlstate().is_some_and(|state| state.starts_with("57P") || state == "53300"),
        }
    }

    /// The SQLSTATE, when the error came from the server.
    pub fn sqlstate(&self) -> Option<&str> {
        self.server_error().map(|error| error.sqlstate.as_str())
    }

    /// The server's own error, when the error came from the server.
    pub fn server_error(&self) -> Option<&ServerError> {
        match self {
            Self::Server(error) | Self::Rejected { error, .. } => Some(error),
            _ => None,
        }
    }

    /// What to do next, in a sentence for the operator.
    pub fn hint(&self) -> Option<String> {
        let text = match self {
            Self::Conninfo(_) | Self::Misuse { .. } | Self::NoColumn { .. } | Self::RowCount { .. } => return None,
            Self::Refused { .. } => {
                "Is PostgreSQL running there, on this port, with listen_addresses including this address? Is a firewall between?"
            }
            Self::NoSocket { .. } => {
                "Is PostgreSQL running? Give the directory of its socket as host (SHOW unix_socket_directories), and its port."
            }
            Self::Dns { .. } => "Check the spelling of host, or give the address as hostaddr.",
            Self::Connect { source, .. } if source.kind() == io::ErrorKind::PermissionDenied => {
                "This user may not use the socket: see unix_socket_permissions and the directory's mode."
            }
            Self::Connect { .. } => "Check host, port and the network between.",
            Self::ConnectTimeout { .. } => {
                "The host does not answer: check host, port and firewall, or raise connect_timeout."
            }
            Self::NoHost { errors } => return errors.iter().find_map(WireError::hint),
            Self::TargetSession { .. } => {
                "Add the server wanted to the host list, or change target_session_attrs (any, read-write, read-only, primary, standby, prefer-standby)."
            }
            Self::Peer { .. } => "Check requirepeer, and who runs the server on this socket.",
            Self::TlsRefused { .. } => {
                "Turn TLS on in the server (ssl = on, with a certificate), or use sslmode=prefer or disable on a trusted network."
            }
            Self::TlsUntrusted { .. } => {
                "Give the CA's certificate as sslrootcert, or have the server use a certificate that this CA has signed."
            }
            Self::TlsHostName { .. } => {
                "Connect by a name in the certificate (with hostaddr for the address), have a certificate made for this name, or use sslmode=verify-ca."
            }
            Self::Tls { .. } => {
                "Check that this is a PostgreSQL server, that it and the client share a TLS version, and whether it demands a client certificate (sslcert, sslkey)."
            }
            Self::TlsFile { .. } => "Check the file's path, mode and format (PEM, keys not encrypted).",
            Self::TlsConfig { .. } => "Check sslmode, sslrootcert and sslcertmode.",
            Self::Rejected { error, encrypted, user, .. } => return Some(login_hint(error, *encrypted, user)),
            Self::NoPassword { .. } => {
                "Put the password into the passfile (~/.pgpass, mode 0600) or PGPASSWORD, or use a client certificate."
            }
            Self::AuthUnsupported { .. } => {
                "Add a pg_hba.conf line for this user with scram-sha-256, cert, peer or (for LDAP, RADIUS, PAM: password over TLS) a method this client has."
            }
            Self::AuthForbidden { .. } => {
                "The server, or something in between, offers weaker authentication than the connection string demands: check pg_hba.conf, or relax require_auth or channel_binding."
            }
            Self::Scram { .. } => {
                "The server could not prove that it knows this password: make sure that it is the right server."
            }
            Self::Server(error) => return error.hint.clone(),
            Self::Closed { .. } => "Look into the server's log for the reason, and try again.",
            Self::Protocol { .. } => "Check that this is a PostgreSQL server and not another service or a proxy.",
            Self::QueryTimeout { .. } => {
                "Raise the query timeout, or see what the statement waited for (pg_stat_activity)."
            }
            Self::Null { .. } | Self::BadValue { .. } => return None,
        };
        Some(text.to_owned())
    }
}

/// SQLSTATEs are those of PostgreSQL's src/backend/utils/errcodes.txt.
fn login_hint(error: &ServerError, encrypted: bool, user: &str) -> String {
    match error.sqlstate.as_str() {
        "28P01" => format!(
            "The password of \"{user}\" is wrong: check passfile, PGPASSWORD and the role's password in the server."
        ),
        "28000"
            if error.message.contains("pg_hba.conf") || error.routine.as_deref() == Some("ClientAuthentication") =>
        {
            let encryption = if encrypted { "with TLS (hostssl)" } else { "without TLS (host, hostnossl or local)" };
            format!(
                "Add a line to pg_hba.conf for this user, database and address, {encryption}, and reload; a physical replication connection needs the word \"replication\" as its database."
            )
        }
        "28000" => format!(
            "Check that role \"{user}\" exists, may log in, and is allowed by pg_hba.conf (peer and cert compare names)."
        ),
        "3D000" => "Give an existing database as dbname; without it the user's name is taken.".to_owned(),
        "42501" => "The role lacks a privilege: grant CONNECT on the database, or REPLICATION to the role.".to_owned(),
        "53300" => {
            "All connection slots are in use: raise max_connections (or max_wal_senders), or close sessions.".to_owned()
        }
        "57P03" => "The server is starting up, shutting down or recovering: try again in a moment.".to_owned(),
        _ => error.hint.clone().unwrap_or_else(|| "See the server's log.".to_owned()),
    }
}

fn join(paths: &[PathBuf]) -> String {
    paths.iter().map(|path| path.display().to_string()).collect::<Vec<_>>().join(" or ")
}

fn each(errors: &[WireError]) -> String {
    errors.iter().map(ToString::to_string).collect::<Vec<_>>().join("; ")
}

fn names_or_none(names: &[String]) -> String {
    match names {
        [] => "no host".to_owned(),
        names => names.iter().map(|name| format!("\"{name}\"")).collect::<Vec<_>>().join(", "),
    }
}

fn from_file(passfile: &Option<PathBuf>) -> String {
    passfile.as_ref().map(|path| format!(" (password from \"{}\")", path.display())).unwrap_or_default()
}

fn warned(warnings: &[String]) -> String {
    warnings.iter().map(|warning| format!("; {warning}")).collect()
}
