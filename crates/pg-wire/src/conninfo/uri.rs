//! Connection URIs: `postgresql://user:password@host1:port1,host2:port2/dbname?param=value`.
//!
//! Mirrors `conninfo_uri_parse_options`, `conninfo_uri_parse_params` and `conninfo_uri_decode` in PostgreSQL's
//! `src/interfaces/libpq/fe-connect.c`. Errors name the part, never its text: it may hold a password.

use super::error::ConninfoError;
use super::keywords;
use super::params::Params;
use zeroize::Zeroizing;

/// What follows the scheme, when the text is a connection URI.
pub(super) fn without_scheme(text: &str) -> Option<&str> {
    text.strip_prefix("postgresql://").or_else(|| text.strip_prefix("postgres://"))
}

/// Adds the settings of a URI.
pub(super) fn parse(uri: &str, into: &mut Params) -> Result<(), ConninfoError> {
    let mut rest = without_scheme(uri).unwrap_or(uri);
    // A '@' before the first '/' ends the credentials, wherever '?' stands: libpq looks no further.
    let end = rest.find(['@', '/']).unwrap_or(rest.len());
    if rest[end..].starts_with('@') {
        let (user, password) = match rest[..end].split_once(':') {
            Some((user, password)) => (user, password),
            None => (&rest[..end], ""),
        };
        if !user.is_empty() {
            into.set("user", decode(user, "user name")?.as_str())?;
        }
        if !password.is_empty() {
            into.set("password", decode(password, "password")?.as_str())?;
        }
        rest = &rest[end + 1..];
    }
    let (hosts, ports, rest) = netlocs(uri, rest)?;
    if !hosts.is_empty() {
        into.set("host", decode(&hosts, "host")?.as_str())?;
    }
    if !ports.is_empty() {
        into.set("port", decode(&ports, "port")?.as_str())?;
    }
    let mut query = rest.strip_prefix('?');
    if let Some(path) = rest.strip_prefix('/') {
        let (dbname, after) = match path.split_once('?') {
            Some((dbname, after)) => (dbname, Some(after)),
            None => (path, None),
        };
        // Not set when empty: an empty name would hide PGDATABASE.
        if !dbname.is_empty() {
            into.set("dbname", decode(dbname, "database name")?.as_str())?;
        }
        query = after;
    }
    query.map_or(Ok(()), |query| parameters(query, into))
}

/// The host list and the port list, both comma-separated, and what follows them.
fn netlocs<'a>(uri: &str, mut rest: &'a str) -> Result<(String, String, &'a str), ConninfoError> {
    let mut hosts = String::new();
    let mut ports = String::new();
    loop {
        if let Some(inside) = rest.strip_prefix('[') {
            let close = inside.find(']').ok_or(ConninfoError::UnclosedBracket)?;
            if close == 0 {
                return Err(ConninfoError::EmptyBracket);
            }
            hosts.push_str(&inside[..close]);
            rest = &inside[close + 1..];
            if let Some(found) = rest.chars().next().filter(|c| !matches!(c, ':' | '/' | '?' | ',')) {
                return Err(ConninfoError::AfterBracket { found, position: uri.len() - rest.len() + 1 });
            }
        } else {
            let end = rest.find([':', '/', '?', ',']).unwrap_or(rest.len());
            hosts.push_str(&rest[..end]);
            rest = &rest[end..];
        }
        if let Some(port) = rest.strip_prefix(':') {
            let end = port.find(['/', '?', ',']).unwrap_or(port.len());
            ports.push_str(&port[..end]);
            rest = &port[end..];
        }
        let Some(next) = rest.strip_prefix(',') else { return Ok((hosts, ports, rest)) };
        rest = next;
        hosts.push(',');
        ports.push(',');
    }
}

/// Adds `key=value&key=value`.
fn parameters(query: &str, into: &mut Params) -> Result<(), ConninfoError> {
    let mut rest = query;
    while !rest.is_empty() {
        let (parameter, next) = rest.split_once('&').unwrap_or((rest, ""));
        rest = next;
        let Some((keyword, value)) = parameter.split_once('=') else {
            return Err(ConninfoError::NoEquals { keyword: parameter.to_owned() });
        };
        if value.contains('=') {
            return Err(ConninfoError::ExtraEquals { keyword: keyword.to_owned() });
        }
        let keyword = decode(keyword, "query parameter's name")?;
        let value = decode(value, &format!("value of \"{}\"", keyword.as_str()))?;
        // What JDBC writes.
        if *keyword == "ssl" && *value == "true" {
            into.set("sslmode", "require")?;
            continue;
        }
        into.set(&keyword, value.as_str()).map_err(|error| match error {
            ConninfoError::UnknownKeyword { keyword, .. } => {
                let nearest = keywords::nearest(&keyword);
                ConninfoError::UnknownParameter { keyword, nearest }
            }
            other => other,
        })?;
    }
    Ok(())
}

fn decode(text: &str, part: &str) -> Result<Zeroizing<String>, ConninfoError> {
    let mut bytes = Zeroizing::new(Vec::with_capacity(text.len()));
    let mut input = text.bytes();
    while let Some(byte) = input.next() {
        if byte != b'%' {
            bytes.push(byte);
            continue;
        }
        let mut digit = || input.next().and_then(|byte| char::from(byte).to_digit(16));
        let (Some(high), Some(low)) = (digit(), digit()) else {
            return Err(ConninfoError::BadPercent { part: part.to_owned() });
        };
        match (high << 4) | low {
            0 => return Err(ConninfoError::PercentZero { part: part.to_owned() }),
            value => bytes.push(value as u8),
        }
    }
    let text = std::str::from_utf8(&bytes).map_err(|_| ConninfoError::NotUtf8 { part: part.to_owned() })?;
    Ok(Zeroizing::new(text.to_owned()))
}
