//! From explicit settings to a complete, checked [`Conninfo`].
//!
//! Mirrors `conninfo_add_defaults` and `pqConnectOptions2` in PostgreSQL's `src/interfaces/libpq/fe-connect.c`.

use super::error::ConninfoError;
use super::keywords::KEYWORDS;
use super::options::*;
use super::params::Params;
use super::passfile::{self, PassfileKey};
use super::{Address, Conninfo, DEFAULT_PORT, DEFAULT_SOCKET_DIRS, Host, RootCert, Surroundings, service};
use crate::Secret;
use std::net::IpAddr;
use std::path::PathBuf;
use std::time::Duration;

pub(super) fn resolve(mut params: Params, surroundings: &Surroundings) -> Result<Conninfo, ConninfoError> {
    add_defaults(&mut params, surroundings)?;
    let text = |keyword: &str| params.get(keyword).filter(|value| !value.is_empty());
    let path = |keyword: &str| text(keyword).map(PathBuf::from);

    let user = text("user").ok_or(ConninfoError::NoUser)?.to_owned();
    let dbname = text("dbname").unwrap_or(&user).to_owned();
    let mut hosts = hosts(&params)?;
    let mut warnings = Vec::new();
    let passfile = path("passfile").or_else(|| surroundings.in_home(".pgpass"));
    let from_passfile = match text("password") {
        Some(password) => {
            for host in &mut hosts {
                host.password = Some(Secret::new(password));
            }
            false
        }
        None => add_passwords(&mut hosts, &user, &dbname, passfile.as_ref(), &mut warnings),
    };

    let sslmode = SslMode::parse(text("sslmode").unwrap_or("prefer"))?;
    let sslnegotiation = SslNegotiation::parse(text("sslnegotiation").unwrap_or("postgres"))?;
    let sslrootcert = match text("sslrootcert") {
        Some("system") => RootCert::System,
        Some(file) => RootCert::File(PathBuf::from(file)),
        None => surroundings.in_home(".postgresql/root.crt").map_or(RootCert::None, RootCert::DefaultFile),
    };
    check_tls_modes(sslmode, sslnegotiation, &sslrootcert)?;
    let sslcert = path("sslcert");
    let default_key = sslcert.is_none().then(|| surroundings.in_home(".postgresql/postgresql.key")).flatten();
    let (tls_min, tls_max) = tls_versions(text("ssl_min_protocol_version"), text("ssl_max_protocol_version"))?;
    check_gss(text("gssencmode"))?;

    Ok(Conninfo {
        hosts,
        passfile: passfile.filter(|_| from_passfile),
        sslmode,
        sslnegotiation,
        sslrootcert,
        sslcert: sslcert.or_else(|| surroundings.in_home(".postgresql/postgresql.crt").filter(|path| path.exists())),
        sslkey: path("sslkey").or(default_key).or_else(|| surroundings.in_home(".postgresql/postgresql.key")),
        sslcertmode: SslCertMode::parse(text("sslcertmode").unwrap_or("allow"))?,
        sslcrl: path("sslcrl").or_else(|| {
            surroundings.in_home(".postgresql/root.crl").filter(|path| text("sslcrldir").is_none() && path.exists())
        }),
        sslcrldir: path("sslcrldir"),
        sslsni: text("sslsni") != Some("0"),
        tls_min,
        tls_max,
        channel_binding: ChannelBinding::parse(text("channel_binding").unwrap_or("prefer"))?,
        require_auth: RequireAuth::parse(text("require_auth").unwrap_or(""))?,
        connect_timeout: connect_timeout(&params)?,
        target_session_attrs: TargetSessionAttrs::parse(text("target_session_attrs").unwrap_or("any"))?,
        load_balance_hosts: LoadBalanceHosts::parse(text("load_balance_hosts").unwrap_or("disable"))?,
        keepalives: keepalives(&params)?,
        requirepeer: text("requirepeer").map(str::to_owned),
        replication: replication(text("replication"))?,
        warnings,
        user,
        dbname,
        params,
    })
}

fn add_defaults(params: &mut Params, surroundings: &Surroundings) -> Result<(), ConninfoError> {
    service::add_service(params, surroundings)?;
    for keyword in KEYWORDS {
        if params.get(keyword.name).is_some() {
            continue;
        }
        if let Some(value) = keyword.env.and_then(|env| surroundings.var(env)) {
            params.set(keyword.name, value)?;
        } else if keyword.name == "sslmode" {
            // The deprecated PGREQUIRESSL; and a system-wide trust store makes verify-full the default.
            let required = surroundings.var("PGREQUIRESSL").is_some_and(|value| value.starts_with('1'));
            let rootcert = params.get("sslrootcert").or_else(|| surroundings.var("PGSSLROOTCERT"));
            let mode = match (required, rootcert) {
                (true, _) => "require",
                (false, Some("system")) => "verify-full",
                (false, _) => "prefer",
            };
            params.set("sslmode", mode)?;
        } else if let Some(default) = keyword.default {
            params.set(keyword.name, default)?;
        }
    }
    // An empty user counts as none, as in pqConnectOptions2.
    if params.get("user").is_none_or(str::is_empty)
        && let Some(user) = &surroundings.user
    {
        params.set("user", user.as_str())?;
    }
    Ok(())
}

fn list<'a>(params: &'a Params, keyword: &str) -> Option<Vec<&'a str>> {
    params.get(keyword).filter(|value| !value.is_empty()).map(|value| value.split(',').collect())
}

fn hosts(params: &Params) -> Result<Vec<Host>, ConninfoError> {
    let addrs = list(params, "hostaddr");
    let names = list(params, "host");
    let count = addrs.as_ref().or(names.as_ref()).map_or(1, Vec::len);
    let addrs = addrs.unwrap_or_else(|| vec![""; count]);
    let names = names.unwrap_or_else(|| vec![""; count]);
    if names.len() != count {
        return Err(ConninfoError::ListLength {
            what: "host names",
            given: names.len(),
            hosts: count,
            hosts_are: "hostaddr values",
        });
    }
    let mut ports = list(params, "port").unwrap_or_else(|| vec![""]);
    if ports.len() == 1 {
        ports = vec![ports[0]; count];
    }
    if ports.len() != count {
        return Err(ConninfoError::ListLength {
            what: "port numbers",
            given: ports.len(),
            hosts: count,
            hosts_are: "hosts",
        });
    }
    let entries = names.into_iter().zip(addrs).zip(ports);
    entries.map(|((name, addr), port)| host(name, addr, port)).collect()
}

fn host(name: &str, addr: &str, port: &str) -> Result<Host, ConninfoError> {
    let port = match port {
        "" => DEFAULT_PORT,
        port => match port.trim().parse::<u16>() {
            Ok(port) if port != 0 => port,
            _ => return Err(invalid("port", port, "a number from 1 to 65535")),
        },
    };
    let is_socket = name.starts_with(['/', '@']);
    let address = if !addr.is_empty() {
        // A scope ("fe80::1%eth0") is left to the system's resolver, as a name.
        match addr.parse::<IpAddr>() {
            Ok(ip) => Address::Ip(ip),
            Err(_) if addr.contains(':') && addr.contains('%') => Address::Name(addr.to_owned()),
            Err(_) => return Err(invalid("hostaddr", addr, "an IPv4 or IPv6 address; write a name as host")),
        }
    } else if name.is_empty() {
        Address::DefaultSocketDirs
    } else if is_socket {
        Address::SocketDir(name.to_owned())
    } else {
        Address::Name(name.to_owned())
    };
    let verifiable = !name.is_empty() && !is_socket;
    Ok(Host { address, name: verifiable.then(|| name.to_owned()), port, password: None })
}

/// Looks each host's password up; says whether the file gave any.
fn add_passwords(
    hosts: &mut [Host],
    user: &str,
    dbname: &str,
    passfile: Option<&PathBuf>,
    warnings: &mut Vec<String>,
) -> bool {
    let Some(path) = passfile else { return false };
    let text = match passfile::read(path) {
        Ok(Some(text)) => text,
        Ok(None) => return false,
        Err(warning) => {
            warnings.push(warning);
            return false;
        }
    };
    let mut any = false;
    for host in hosts {
        let name = match (&host.address, &host.name) {
            (_, Some(name)) => name.clone(),
            (Address::SocketDir(dir), _) if DEFAULT_SOCKET_DIRS.contains(&dir.as_str()) => "localhost".to_owned(),
            (Address::SocketDir(dir), _) => dir.clone(),
            (Address::Name(name), _) => name.clone(),
            (Address::Ip(ip), _) => ip.to_string(),
            (Address::DefaultSocketDirs, _) => "localhost".to_owned(),
        };
        let port = host.port.to_string();
        host.password = passfile::find_password(&text, PassfileKey { host: &name, port: &port, dbname, user });
        any |= host.password.is_some();
    }
    any
}

fn check_tls_modes(mode: SslMode, negotiation: SslNegotiation, root: &RootCert) -> Result<(), ConninfoError> {
    let weak = |with: &str, instead: &str| ConninfoError::Conflict {
        message: format!("weak sslmode \"{}\" may not be used with {with} (use {instead})", mode.as_str()),
    };
    if negotiation == SslNegotiation::Direct && matches!(mode, SslMode::Disable | SslMode::Allow | SslMode::Prefer) {
        return Err(weak("sslnegotiation=direct", "\"require\", \"verify-ca\" or \"verify-full\""));
    }
    if *root == RootCert::System && mode != SslMode::VerifyFull {
        return Err(weak("sslrootcert=system", "\"verify-full\""));
    }
    Ok(())
}

fn tls_versions(min: Option<&str>, max: Option<&str>) -> Result<(TlsVersion, TlsVersion), ConninfoError> {
    let expected = "TLSv1, TLSv1.1, TLSv1.2, TLSv1.3";
    let rank = |keyword: &'static str, value: &str| match value.to_ascii_lowercase().as_str() {
        "tlsv1" => Ok(0),
        "tlsv1.1" => Ok(1),
        "tlsv1.2" => Ok(2),
        "tlsv1.3" => Ok(3),
        _ => Err(invalid(keyword, value, expected)),
    };
    let low = min.map_or(Ok(2), |value| rank("ssl_min_protocol_version", value))?;
    let high = max.map_or(Ok(3), |value| rank("ssl_max_protocol_version", value))?;
    if low > high {
        return Err(ConninfoError::Conflict {
            message: "ssl_min_protocol_version is above ssl_max_protocol_version".to_owned(),
        });
    }
    if high < 2 {
        return Err(ConninfoError::Conflict {
            message: "ssl_max_protocol_version is below TLSv1.2, the oldest version supported".to_owned(),
        });
    }
    let version = |rank| if rank >= 3 { TlsVersion::Tls13 } else { TlsVersion::Tls12 };
    Ok((version(low), version(high)))
}

fn check_gss(mode: Option<&str>) -> Result<(), ConninfoError> {
    match mode {
        None | Some("disable" | "prefer") => Ok(()),
        Some("require") => Err(ConninfoError::Conflict {
            message: "gssencmode=require cannot be met: GSSAPI is not supported; use TLS (sslmode) instead".to_owned(),
        }),
        Some(other) => Err(invalid("gssencmode", other, "disable, prefer, require")),
    }
}

/// Mirrors the meaning of `replication` in the server: src/backend/postmaster/postmaster.c, ProcessStartupPacket.
fn replication(value: Option<&str>) -> Result<ReplicationMode, ConninfoError> {
    match value.unwrap_or("").to_ascii_lowercase().as_str() {
        "" | "false" | "off" | "no" | "0" => Ok(ReplicationMode::Off),
        "true" | "on" | "yes" | "1" => Ok(ReplicationMode::Physical),
        "database" => Ok(ReplicationMode::Database),
        other => Err(invalid("replication", other, "true, false or database")),
    }
}

fn integer(params: &Params, keyword: &'static str) -> Result<Option<i32>, ConninfoError> {
    let Some(value) = params.get(keyword).filter(|value| !value.is_empty()) else { return Ok(None) };
    value.trim().parse().map(Some).map_err(|_| invalid(keyword, value, "an integer"))
}

fn connect_timeout(params: &Params) -> Result<Option<Duration>, ConninfoError> {
    // Zero and negative mean no limit; one second is rounded up to two, as in connectDBComplete.
    let seconds = integer(params, "connect_timeout")?.and_then(|seconds| u64::try_from(seconds).ok());
    Ok(seconds.filter(|seconds| *seconds > 0).map(|seconds| Duration::from_secs(seconds.max(2))))
}

fn keepalives(params: &Params) -> Result<Keepalives, ConninfoError> {
    let positive = |keyword| Ok(integer(params, keyword)?.and_then(|n| u32::try_from(n).ok()).filter(|n| *n > 0));
    let seconds = |keyword| Ok(positive(keyword)?.map(|n| Duration::from_secs(u64::from(n))));
    Ok(Keepalives {
        enabled: integer(params, "keepalives")? != Some(0),
        idle: seconds("keepalives_idle")?,
        interval: seconds("keepalives_interval")?,
        count: positive("keepalives_count")?,
        user_timeout: positive("tcp_user_timeout")?.map(|n| Duration::from_millis(u64::from(n))),
    })
}

fn invalid(keyword: &'static str, value: &str, expected: &str) -> ConninfoError {
    ConninfoError::InvalidValue { keyword, value: value.to_owned(), expected: expected.to_owned() }
}
