//! The enumerated settings of a connection.

use super::error::ConninfoError;
use std::time::Duration;

macro_rules! choice {
    ($(#[$doc:meta])* $name:ident, $keyword:literal { $($(#[$vdoc:meta])* $variant:ident = $text:literal),+ $(,)? }) => {
        $(#[$doc])*
        #[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
        pub enum $name { $($(#[$vdoc])* $variant),+ }

        impl $name {
            /// Every value, as written in a connection string.
            pub const NAMES: &[&str] = &[$($text),+];

            /// The value as written in a connection string.
            pub fn as_str(self) -> &'static str {
                match self { $(Self::$variant => $text),+ }
            }

            pub(super) fn parse(value: &str) -> Result<Self, ConninfoError> {
                match value {
                    $($text => Ok(Self::$variant),)+
                    _ => Err(ConninfoError::InvalidValue {
                        keyword: $keyword,
                        value: value.to_owned(),
                        expected: Self::NAMES.join(", "),
                    }),
                }
            }
        }
    };
}

choice!(
    /// Whether TLS is used and what is verified.
    SslMode, "sslmode" {
        /// Never TLS.
        Disable = "disable",
        /// TLS only if the server refuses without.
        Allow = "allow",
        /// TLS unless the server has none.
        Prefer = "prefer",
        /// Always TLS; the certificate is checked only if there is a root certificate file.
        Require = "require",
        /// Always TLS, and the certificate must be signed by a trusted CA.
        VerifyCa = "verify-ca",
        /// Always TLS, and the certificate must be trusted and made for this host.
        VerifyFull = "verify-full",
    }
);
choice!(
    /// How TLS begins.
    SslNegotiation, "sslnegotiation" {
        /// PostgreSQL's request first.
        Postgres = "postgres",
        /// TLS from the first byte (servers from 17 on).
        Direct = "direct",
    }
);
choice!(
    /// Whether a client certificate is sent.
    SslCertMode, "sslcertmode" {
        /// Never.
        Disable = "disable",
        /// When the server asks and there is one.
        Allow = "allow",
        /// The server must ask and there must be one.
        Require = "require",
    }
);
choice!(
    /// SCRAM bound to the TLS channel.
    ChannelBinding, "channel_binding" {
        /// Never.
        Disable = "disable",
        /// When the server offers it.
        Prefer = "prefer",
        /// Nothing else will do.
        Require = "require",
    }
);
choice!(
    /// Which servers will do.
    TargetSessionAttrs, "target_session_attrs" {
        /// Any.
        Any = "any",
        /// Accepts writes by default.
        ReadWrite = "read-write",
        /// Refuses writes by default.
        ReadOnly = "read-only",
        /// Not in hot standby.
        Primary = "primary",
        /// In hot standby.
        Standby = "standby",
        /// A standby if there is one, else any.
        PreferStandby = "prefer-standby",
    }
);
choice!(
    /// The order in which hosts are tried.
    LoadBalanceHosts, "load_balance_hosts" {
        /// As given.
        Disable = "disable",
        /// Random.
        Random = "random",
    }
);
choice!(
    /// A method of authentication, as `require_auth` names them.
    AuthMethod, "require_auth" {
        /// The password in clear.
        Password = "password",
        /// The password hashed with MD5.
        Md5 = "md5",
        /// GSSAPI (not supported here).
        Gss = "gss",
        /// SSPI (not supported here).
        Sspi = "sspi",
        /// SCRAM.
        ScramSha256 = "scram-sha-256",
        /// The server asks for nothing: trust, peer, or a client certificate.
        None = "none",
    }
);
/// A version of TLS that this crate can speak.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum TlsVersion {
    /// 1.2.
    Tls12,
    /// 1.3.
    Tls13,
}

/// What kind of replication connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum ReplicationMode {
    /// An ordinary session.
    Off,
    /// Physical replication: walsender commands.
    Physical,
    /// Logical replication: walsender commands and SQL, in one database.
    Database,
}

/// The authentication methods accepted.
///
/// Mirrors the parsing of `require_auth` in `pqConnectOptions2`, PostgreSQL's `src/interfaces/libpq/fe-connect.c`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RequireAuth {
    allowed: Vec<AuthMethod>,
}

impl RequireAuth {
    /// Whether the server may ask for this.
    pub fn allows(&self, method: AuthMethod) -> bool {
        self.allowed.contains(&method)
    }

    pub(super) fn parse(value: &str) -> Result<Self, ConninfoError> {
        const ALL: [AuthMethod; 6] = [
            AuthMethod::Password,
            AuthMethod::Md5,
            AuthMethod::Gss,
            AuthMethod::Sspi,
            AuthMethod::ScramSha256,
            AuthMethod::None,
        ];
        if value.is_empty() {
            return Ok(Self { allowed: ALL.to_vec() });
        }
        let conflict = |message: String| ConninfoError::Conflict { message };
        let negative = value.starts_with('!');
        let mut named = Vec::new();
        for part in value.split(',') {
            let name = part.strip_prefix('!');
            if name.is_some() != negative {
                return Err(conflict(format!(
                    "require_auth method \"{part}\" cannot be mixed with methods that {} negated",
                    if negative { "are" } else { "are not" }
                )));
            }
            let method = AuthMethod::parse(name.unwrap_or(part))?;
            if named.contains(&method) {
                return Err(conflict(format!("require_auth method \"{part}\" is specified more than once")));
            }
            named.push(method);
        }
        let allowed = if negative { ALL.into_iter().filter(|method| !named.contains(method)).collect() } else { named };
        Ok(Self { allowed })
    }
}

/// TCP keepalives; zero durations and counts mean the system's default.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Keepalives {
    /// Whether they are sent.
    pub enabled: bool,
    /// Idle time before the first.
    pub idle: Option<Duration>,
    /// Time between them.
    pub interval: Option<Duration>,
    /// How many may be lost.
    pub count: Option<u32>,
    /// How long sent data may stay unacknowledged.
    pub user_timeout: Option<Duration>,
}
