//! The table of connection keywords: name, environment variable, built-in default.
//!
//! Mirrors `PQconninfoOptions[]` in PostgreSQL's `src/interfaces/libpq/fe-connect.c` (17).

/// One connection keyword that libpq knows.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Keyword {
    /// The name in a connection string.
    pub name: &'static str,
    /// The environment variable that supplies a value when the string and the service do not.
    pub env: Option<&'static str>,
    /// The built-in default.
    pub default: Option<&'static str>,
    /// The value must never be shown.
    pub secret: bool,
}

const fn k(name: &'static str, env: &'static str, default: Option<&'static str>) -> Keyword {
    Keyword { name, env: Some(env), default, secret: false }
}

const fn noenv(name: &'static str, secret: bool) -> Keyword {
    Keyword { name, env: None, default: None, secret }
}

/// Every keyword, in libpq's order.
pub const KEYWORDS: &[Keyword] = &[
    k("service", "PGSERVICE", None),
    noenv("servicefile", false), // since 18
    k("user", "PGUSER", None),
    Keyword { name: "password", env: Some("PGPASSWORD"), default: None, secret: true },
    k("passfile", "PGPASSFILE", None),
    k("channel_binding", "PGCHANNELBINDING", Some("prefer")),
    k("connect_timeout", "PGCONNECT_TIMEOUT", None),
    k("dbname", "PGDATABASE", None),
    k("host", "PGHOST", None),
    k("hostaddr", "PGHOSTADDR", None),
    k("port", "PGPORT", Some("5432")),
    k("client_encoding", "PGCLIENTENCODING", None),
    k("options", "PGOPTIONS", None),
    k("application_name", "PGAPPNAME", None),
    noenv("fallback_application_name", false),
    noenv("keepalives", false),
    noenv("keepalives_idle", false),
    noenv("keepalives_interval", false),
    noenv("keepalives_count", false),
    noenv("tcp_user_timeout", false),
    k("sslmode", "PGSSLMODE", Some("prefer")),
    k("sslnegotiation", "PGSSLNEGOTIATION", Some("postgres")),
    k("sslcompression", "PGSSLCOMPRESSION", Some("0")),
    k("sslcert", "PGSSLCERT", None),
    k("sslkey", "PGSSLKEY", None),
    k("sslcertmode", "PGSSLCERTMODE", Some("allow")),
    noenv("sslpassword", true),
    k("sslrootcert", "PGSSLROOTCERT", None),
    k("sslcrl", "PGSSLCRL", None),
    k("sslcrldir", "PGSSLCRLDIR", None),
    k("sslsni", "PGSSLSNI", Some("1")),
    k("requirepeer", "PGREQUIREPEER", None),
    k("require_auth", "PGREQUIREAUTH", None),
    k("ssl_min_protocol_version", "PGSSLMINPROTOCOLVERSION", Some("TLSv1.2")),
    k("ssl_max_protocol_version", "PGSSLMAXPROTOCOLVERSION", None),
    k("gssencmode", "PGGSSENCMODE", Some("disable")),
    k("krbsrvname", "PGKRBSRVNAME", Some("postgres")),
    k("gsslib", "PGGSSLIB", None),
    k("gssdelegation", "PGGSSDELEGATION", Some("0")),
    noenv("replication", false),
    k("target_session_attrs", "PGTARGETSESSIONATTRS", Some("any")),
    k("load_balance_hosts", "PGLOADBALANCEHOSTS", Some("disable")),
];

/// The keyword of that name.
pub(super) fn find(name: &str) -> Option<&'static Keyword> {
    KEYWORDS.iter().find(|keyword| keyword.name == name)
}

/// The known keyword nearest to a misspelt one, if any is near enough to be meant.
pub(super) fn nearest(name: &str) -> Option<&'static str> {
    let name = name.to_ascii_lowercase();
    KEYWORDS
        .iter()
        .map(|keyword| (strsim::jaro_winkler(&name, keyword.name), keyword.name))
        .filter(|(score, _)| *score >= 0.75)
        .max_by(|a, b| a.0.total_cmp(&b.0))
        .map(|(_, name)| name)
}
