//! Connections that dump and load as pg_dump and pg_restore do, and handing their target to PostgreSQL's programs.

use crate::DumpError;
use pg_wire::conninfo::KEYWORDS;
use pg_wire::{Client, Conninfo, Surroundings, WireError};
use tokio::process::Command;

/// A server, and what its connection string is completed from when another database is meant (the passfile).
#[derive(Clone)]
pub struct Server {
    /// How to connect.
    pub conninfo: Conninfo,
    /// Home directory and user.
    pub surroundings: Surroundings,
}

impl Server {
    /// The same server and settings, another database.
    pub(crate) fn database(&self, database: &str) -> Result<Self, DumpError> {
        self.with(&[("dbname", database)])
    }

    fn with(&self, settings: &[(&str, &str)]) -> Result<Self, DumpError> {
        let conninfo = self.conninfo.with(settings, &self.surroundings).map_err(WireError::from)?;
        Ok(Self { conninfo, surroundings: self.surroundings.clone() })
    }

    /// Of several servers the one that `client` found: what is exported there (a snapshot) is known nowhere else.
    pub(crate) fn pinned(&self, client: &Client) -> Result<Self, DumpError> {
        let target = client.target();
        if let Some((dir, port)) = target.rsplit_once("/.s.PGSQL.") {
            return self.with(&[("host", dir), ("port", port), ("hostaddr", "")]);
        }
        if self.conninfo.hosts.len() < 2 {
            return Ok(self.clone());
        }
        // `name:port`, with the address behind when the name has several.
        let (name, address) = match target.split_once(" (") {
            Some((name, address)) => (name, address.trim_end_matches(')').trim_start_matches("at ")),
            None => (target, ""),
        };
        let (host, port) = name.rsplit_once(':').unwrap_or((name, "5432"));
        let host = host.trim_start_matches('[').trim_end_matches(']');
        self.with(&[("host", host), ("port", port), ("hostaddr", address)])
    }
}

/// Connects for reading: what pg_dump sets (`setup_connection` in `src/bin/pg_dump/pg_dump.c`), and what else changes how values
/// are written, so that the same row is the same text on any server.
pub(crate) async fn for_reading(conninfo: &Conninfo) -> Result<Client, DumpError> {
    let mut client = engine::server::connect(conninfo).await?;
    client
        .simple_query(
            "SELECT pg_catalog.set_config('search_path', '', false); SET standard_conforming_strings = on; \
             SET DATESTYLE = ISO; SET INTERVALSTYLE = POSTGRES; SET extra_float_digits = 3; \
             SET synchronize_seqscans = off; SET row_security = off; SET TimeZone = 'UTC'; SET bytea_output = hex",
        )
        .await?;
    if client.server_version_num().is_some_and(|version| version >= 170_000) {
        client.simple_query("SET transaction_timeout = 0").await?;
    }
    Ok(client)
}

/// The same, and then what the dump was asked for.
pub(crate) async fn for_reading_as(conninfo: &Conninfo, setup: &str) -> Result<Client, DumpError> {
    let mut client = for_reading(conninfo).await?;
    if !setup.is_empty() {
        client.simple_query(setup).await?;
    }
    Ok(client)
}

/// Connects for writing: what pg_restore sets (`_doSetFixedOutputState` in `src/bin/pg_dump/pg_backup_archiver.c`).
pub(crate) async fn for_writing(conninfo: &Conninfo) -> Result<Client, DumpError> {
    let mut client = engine::server::connect(conninfo).await?;
    client
        .simple_query(
            "SELECT pg_catalog.set_config('search_path', '', false); SET standard_conforming_strings = on; \
             SET check_function_bodies = false; SET xmloption = content; SET row_security = off; \
             SET client_min_messages = warning; SET statement_timeout = 0; SET lock_timeout = 0; \
             SET idle_in_transaction_session_timeout = 0",
        )
        .await?;
    if client.server_version_num().is_some_and(|version| version >= 170_000) {
        client.simple_query("SET transaction_timeout = 0").await?;
    }
    Ok(client)
}

/// Tells one of PostgreSQL's programs where to connect. The password goes through its environment, where only the same
/// user can read it.
pub(crate) fn hand_over(command: &mut Command, conninfo: &Conninfo) {
    let mut text = String::new();
    for keyword in KEYWORDS {
        let Some(value) = conninfo.params.get(keyword.name).filter(|value| !value.is_empty()) else { continue };
        if keyword.secret
            || keyword.default == Some(value)
            || ["service", "servicefile", "replication"].contains(&keyword.name)
        {
            continue;
        }
        let value = value.replace('\\', "\\\\").replace('\'', "\\'");
        text += &format!("{}='{value}' ", keyword.name);
    }
    if conninfo.params.get("dbname").is_none_or(str::is_empty) {
        text += &format!("dbname='{}' ", conninfo.dbname.replace('\\', "\\\\").replace('\'', "\\'"));
    }
    command.arg(format!("--dbname={}", text.trim_end()));
    command.arg("--no-password");
    let password = conninfo.hosts.iter().find_map(|host| host.password.as_ref());
    if let Some(password) = password {
        command.env("PGPASSWORD", password.expose());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn programs_are_told_where_to_connect_and_no_secret_is_an_argument() {
        let text = r"host=/tmp port=5433 user=me dbname='it\'s' password=secret application_name=x";
        let conninfo = Conninfo::parse(text, &Surroundings::default()).unwrap();
        let mut command = Command::new("true");
        hand_over(&mut command, &conninfo);
        let command = command.as_std();
        let args: Vec<_> = command.get_args().map(|arg| arg.to_string_lossy().into_owned()).collect();
        assert!(args[0].contains("host='/tmp'") && args[0].contains("port='5433'"), "{args:?}");
        assert!(args[0].contains("dbname='it\\'s'"), "{args:?}");
        assert!(!args.concat().contains("secret"), "{args:?}");
        assert!(command.get_envs().any(|(name, value)| name == "PGPASSWORD" && value == Some("secret".as_ref())));
    }
}
