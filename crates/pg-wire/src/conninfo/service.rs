//! The connection service file: named groups of settings.
//!
//! Mirrors `parseServiceInfo` and `parseServiceFile` in PostgreSQL's `src/interfaces/libpq/fe-connect.c`.
//! LDAP lines are refused.

use super::error::ConninfoError;
use super::params::Params;
use super::{Surroundings, keywords};
use std::io::ErrorKind;
use std::path::{Path, PathBuf};

/// Adds the settings of the service that `params` or `PGSERVICE` names; explicit settings win.
pub(super) fn add_service(params: &mut Params, surroundings: &Surroundings) -> Result<(), ConninfoError> {
    let Some(service) = params.get("service").or_else(|| surroundings.var("PGSERVICE")).map(str::to_owned) else {
        return Ok(());
    };
    let mut looked_in = Vec::new();
    // A file named by the caller must exist; the one in the home directory may.
    let named = params.get("servicefile").or_else(|| surroundings.var("PGSERVICEFILE")).map(PathBuf::from);
    let in_home = surroundings.in_home(".pg_service.conf").filter(|path| path.exists());
    if let Some(path) = named.or(in_home) {
        let text = std::fs::read(&path)
            .map_err(|error| ConninfoError::ServiceFile { path: path.clone(), reason: error.to_string() })?;
        if parse(&String::from_utf8_lossy(&text), &path, &service, params)? {
            return Ok(());
        }
        looked_in.push(path);
    }
    let sysconf = surroundings.var("PGSYSCONFDIR").map(PathBuf::from).or_else(|| surroundings.sysconf_dir.clone());
    if let Some(path) = sysconf.map(|dir| dir.join("pg_service.conf")) {
        match std::fs::read(&path) {
            Ok(text) => {
                if parse(&String::from_utf8_lossy(&text), &path, &service, params)? {
                    return Ok(());
                }
            }
            Err(error) if error.kind() == ErrorKind::NotFound => {}
            Err(error) => return Err(ConninfoError::ServiceFile { path, reason: error.to_string() }),
        }
        looked_in.push(path);
    }
    Err(ConninfoError::ServiceNotFound { service, looked_in })
}

/// Adds the service's settings from the file's text; says whether the service is in it.
pub(super) fn parse(text: &str, path: &Path, service: &str, params: &mut Params) -> Result<bool, ConninfoError> {
    let syntax = |line: usize, reason: String| ConninfoError::ServiceSyntax { path: path.to_owned(), line, reason };
    let mut found = false;
    for (index, line) in text.lines().enumerate() {
        let number = index + 1;
        let line = line.trim_matches(|c: char| c.is_ascii_whitespace() || c == '\x0b');
        if line.is_empty() || line.starts_with('#') {
            continue;
        }
        if let Some(header) = line.strip_prefix('[') {
            if found {
                return Ok(true);
            }
            // Text after the bracket is ignored, as in libpq.
            found = header.strip_prefix(service).is_some_and(|after| after.starts_with(']'));
            continue;
        }
        if !found {
            continue;
        }
        if line.starts_with("ldap") {
            return Err(syntax(number, "services looked up by LDAP are not supported".to_owned()));
        }
        let Some((keyword, value)) = line.split_once('=') else {
            return Err(syntax(number, "missing \"=\"".to_owned()));
        };
        if keyword == "service" || keyword == "servicefile" {
            return Err(syntax(number, "a service cannot name another service".to_owned()));
        }
        if keywords::find(keyword).is_none() {
            let nearest = keywords::nearest(keyword.trim());
            let unknown = ConninfoError::UnknownKeyword { keyword: keyword.to_owned(), nearest };
            return Err(syntax(number, unknown.to_string()));
        }
        params.set_default(keyword, value).map_err(|error| syntax(number, error.to_string()))?;
    }
    Ok(found)
}
