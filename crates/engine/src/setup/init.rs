//! The server's settings for archiving: what must change, and changing it.

use crate::server::ServerFacts;
use crate::{Context, EngineError};
use pg_wire::Client;
use serde::Serialize;
use std::collections::BTreeMap;
use std::time::Duration;

/// What the server is to be set up for.
#[derive(Debug, Clone)]
pub struct InitOptions {
    /// The `archive_command` wanted, with `%p`; with a library, the one that would lead to the same place.
    pub archive_command: String,
    /// Archive through pgkeep's library instead of the command.
    pub library: Option<ArchiveLibrary>,
    /// Whether an `archive_command` or `archive_library` may be replaced that is another tool's, or pgkeep's own and
    /// leads elsewhere.
    pub replace_archive_command: bool,
}

/// pgkeep's `archive_library`, and the socket where it finds `pgkeep wal serve`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ArchiveLibrary {
    /// The library's file, as the server finds it.
    pub file: String,
    /// `pgkeep.socket`.
    pub socket: String,
}

/// One setting that must change.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct SettingChange {
    /// Its name.
    pub name: &'static str,
    /// What it is configured to be.
    pub from: String,
    /// What it must be.
    pub to: String,
    /// Whether it works only after a restart.
    pub needs_restart: bool,
}

/// What `init` would change in the server.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct InitPlan {
    /// The settings that must change; none when all is well.
    pub changes: Vec<SettingChange>,
    /// Why the changes cannot be made, each with what to do.
    pub conflicts: Vec<String>,
    /// Settings that were changed before and still wait for a restart.
    pub pending_restart: Vec<String>,
    /// What a human may want to know.
    pub notes: Vec<String>,
}

impl InitPlan {
    /// Whether the server must be restarted before archiving works.
    pub fn needs_restart(&self) -> bool {
        self.changes.iter().any(|change| change.needs_restart) || !self.pending_restart.is_empty()
    }
}

/// What was changed.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct InitApplied {
    /// The changes made.
    pub changed: Vec<SettingChange>,
    /// Settings that wait for a restart, by the server's own word.
    pub pending_restart: Vec<String>,
}

const SETTINGS: &str = "('wal_level', 'archive_mode', 'archive_command', 'archive_library', 'archive_timeout', \
                        'summarize_wal', 'full_page_writes', 'pgkeep.socket')";

/// Commands that people set to have archiving on and do nothing.
const PLACEHOLDERS: [&str; 6] = ["", "true", "/bin/true", "/usr/bin/true", ":", "exit 0"];

struct Setting {
    /// What the running server uses.
    now: String,
    /// What is configured: `reset_val`, since `archive_command` shows as `(disabled)` while archiving is off.
    configured: String,
    source: String,
    pending_restart: bool,
}

async fn settings(client: &mut Client) -> Result<BTreeMap<String, Setting>, EngineError> {
    let sql = format!(
        "SELECT name, setting, coalesce(reset_val, '') AS configured, source, pending_restart FROM pg_settings WHERE \
         name IN {SETTINGS}"
    );
    let rows = client.query(&sql, &[]).await?;
    let setting = |row: pg_wire::Row| {
        let setting = Setting {
            now: row.get("setting")?,
            configured: row.get("configured")?,
            source: row.get("source")?,
            pending_restart: row.bool("pending_restart")?,
        };
        Ok((row.get("name")?, setting))
    };
    rows.into_iter().map(setting).collect()
}

/// Whether an archive command is one of pgkeep's.
pub(super) fn is_ours(command: &str) -> bool {
    command.contains("pgkeep") && command.contains("wal push")
}

/// Whether an archive library is pgkeep's.
pub(super) fn is_our_library(library: &str) -> bool {
    library.contains("pgkeep_archive")
}

/// Where a command of pgkeep's leads: configuration, repository and cluster, as it names them. A new place of the
/// program itself is no other place for WAL.
fn destination(command: &str) -> [Option<String>; 3] {
    let words = words(command);
    ["--config", "--repo", "--cluster"].map(|option| {
        let place = words.iter().position(|word| word == option).and_then(|at| words.get(at + 1)).cloned();
        place.or_else(|| words.iter().find_map(|word| word.strip_prefix(option)?.strip_prefix('=').map(str::to_owned)))
    })
}

/// The words of a command as the shell takes them, as far as quotes and backslashes go.
fn words(command: &str) -> Vec<String> {
    let (mut words, mut word, mut quote) = (Vec::new(), None::<String>, None);
    let mut chars = command.chars();
    while let Some(char) = chars.next() {
        match (quote, char) {
            (Some(open), _) if char == open => quote = None,
            (None, '\'' | '"') => {
                quote = Some(char);
                word.get_or_insert_default();
            }
            (None | Some('"'), '\\') => word.get_or_insert_default().extend(chars.next()),
            (None, _) if char.is_whitespace() => words.extend(word.take()),
            _ => word.get_or_insert_default().push(char),
        }
    }
    words.extend(word);
    words
}

/// Says what must change in the server so that its WAL is archived. Changes nothing.
pub async fn plan_init(
    ctx: &Context,
    client: &mut Client,
    server: &ServerFacts,
    options: &InitOptions,
) -> Result<InitPlan, EngineError> {
    if let Some(library) = &options.library {
        ctx.or_cancel(try_library(client, server, library)).await??;
    }
    let settings = ctx.or_cancel(settings(client)).await??;
    let mut plan =
        InitPlan { changes: Vec::new(), conflicts: Vec::new(), pending_restart: Vec::new(), notes: Vec::new() };
    plan.pending_restart = settings.iter().filter(|(_, s)| s.pending_restart).map(|(name, _)| name.clone()).collect();
    let configured = |name: &str| settings.get(name).map(|setting| setting.configured.clone()).unwrap_or_default();
    let mut change = |name: &'static str, to: &str, needs_restart: bool| {
        let from = configured(name);
        let now = settings.get(name).map(|setting| setting.now.clone()).unwrap_or_default();
        if from != to && !(needs_restart && now == to) {
            plan.changes.push(SettingChange { name, from, to: to.to_owned(), needs_restart });
        }
    };
    if configured("wal_level") == "minimal" {
        change("wal_level", "replica", true);
    }
    if configured("archive_mode") == "off" {
        change("archive_mode", "on", true);
    }
    match &options.library {
        Some(library) => {
            change("pgkeep.socket", &library.socket, false);
            change("archive_command", "", false);
            change("archive_library", &library.file, false);
        }
        None => {
            change("archive_command", &options.archive_command, false);
            if !configured("archive_library").is_empty() {
                change("archive_library", "", false);
            }
        }
    }
    if server.major.facts().has_wal_summaries && configured("summarize_wal") == "off" {
        change("summarize_wal", "on", false);
    }
    let (command, library) = (configured("archive_command"), configured("archive_library"));
    if options.archive_command.contains(['\n', '\r']) {
        plan.conflicts.push("the archive_command wanted contains a line break, which PostgreSQL does not allow".into());
    }
    let foreign = command != options.archive_command && !is_ours(&command) && !PLACEHOLDERS.contains(&command.trim());
    if foreign && !options.replace_archive_command {
        plan.conflicts.push(format!(
            "archive_command is set to {command:?}: something else archives this server's WAL. Say that it may be \
             replaced (--replace-archive-command), or stop using it first"
        ));
    }
    let elsewhere = is_ours(&command) && destination(&command) != destination(&options.archive_command);
    if elsewhere && !options.replace_archive_command {
        plan.conflicts.push(format!(
            "archive_command is set to {command:?}: pgkeep archives this server's WAL already, with another \
             configuration, repository or cluster name, where it would no longer arrive. Say that it may be replaced \
             (--replace-archive-command), or use what it names"
        ));
    }
    // Another file of the same library, or the same one: its place for WAL is its socket.
    let stays = options.library.is_some() && is_our_library(&library);
    let socket = configured("pgkeep.socket");
    let same = options.library.as_ref().is_none_or(|wanted| socket.is_empty() || socket == wanted.socket);
    if stays && !same && !options.replace_archive_command {
        plan.conflicts.push(format!(
            "pgkeep.socket is set to {socket:?}: this server's WAL is archived through that already. Say that it may be \
             replaced (--replace-archive-command), or name that socket (--socket)"
        ));
    }
    if !library.is_empty() && !stays && !options.replace_archive_command {
        let both = if server.major.facts().archive_settings_exclude_each_other {
            "from PostgreSQL 16 on it is an error to set archive_command as well"
        } else {
            "archive_command is ignored while it is set"
        };
        plan.conflicts.push(format!(
            "archive_library is set to {library:?}, and {both}. Say that it may be replaced \
             (--replace-archive-command), or reset it first"
        ));
    }
    for change in &plan.changes {
        if settings.get(change.name).is_some_and(|setting| setting.source == "command line") {
            plan.conflicts.push(format!(
                "{} is given on the server's command line, which ALTER SYSTEM cannot overrule: change it there",
                change.name
            ));
        }
    }
    if configured("archive_mode") == "always" {
        plan.notes.push("archive_mode is always: standbys archive too; it is left so".into());
    }
    if configured("archive_timeout") == "0" {
        plan.notes.push(
            "archive_timeout is 0: a server that writes little archives its last transactions only when a segment is \
             full; set it to a time you can afford to lose, such as 60s"
                .into(),
        );
    }
    if configured("full_page_writes") == "off" {
        plan.notes.push("full_page_writes is off: backups of this server cannot be trusted; turn it on".into());
    }
    if server.in_recovery {
        plan.notes.push("the server is a standby: with archive_mode=on it archives only after a promotion".into());
    }
    Ok(plan)
}

/// Has the server load the library in this session: then the archiver can load it, too, and its setting is known.
async fn try_library(client: &mut Client, server: &ServerFacts, library: &ArchiveLibrary) -> Result<(), EngineError> {
    if !server.major.facts().has_archive_library {
        return Err(EngineError::refused(
            format!("PostgreSQL {} has no archive_library", server.version),
            "leave --archive-library out: archive_command does the same",
        ));
    }
    if !server.is_superuser {
        return Err(EngineError::refused(
            format!("role {} is no superuser, and only superusers load libraries", server.user),
            "run `pgkeep init --archive-library` with a connection string of a superuser, once",
        ));
    }
    client.simple_query("SET standard_conforming_strings = on").await?;
    let load = format!("LOAD '{}'", library.file.replace('\'', "''"));
    match client.simple_query(&load).await {
        Ok(_) => Ok(()),
        Err(error) => Err(EngineError::refused(
            format!("the server cannot load {}: {error}", library.file),
            "the file must be on the server's host, readable for its user, and of this pgkeep; name it with \
             --archive-library=FILE",
        )),
    }
}

/// Makes the changes of a plan with `ALTER SYSTEM`, and has the server read its configuration again.
///
/// # Errors
/// [`EngineError::Refused`] when the plan has conflicts or the login lacks a privilege; then nothing is changed.
pub async fn apply_init(
    ctx: &Context,
    client: &mut Client,
    server: &ServerFacts,
    plan: &InitPlan,
) -> Result<InitApplied, EngineError> {
    if !plan.conflicts.is_empty() {
        return Err(EngineError::Refused { reason: plan.conflicts.join("; "), hint: None });
    }
    if !plan.changes.is_empty() {
        check_privileges(client, server, plan).await?;
    }
    for change in &plan.changes {
        ctx.check()?;
        // The names are our own; the values are quoted as literals (standard_conforming_strings is on by default, and
        // set here since a role may have changed it).
        let value = change.to.replace('\'', "''");
        client.simple_query("SET standard_conforming_strings = on").await?;
        client.simple_query(&format!("ALTER SYSTEM SET {} = '{value}'", change.name)).await?;
    }
    if !plan.changes.is_empty() {
        client.simple_query("SELECT pg_reload_conf()").await?;
    }
    // The postmaster passes the signal on; this session notices with one of its next statements.
    let mut left = 50;
    loop {
        let settings = settings(client).await?;
        let works = |change: &SettingChange| {
            settings.get(change.name).is_none_or(|setting| setting.pending_restart || setting.configured == change.to)
        };
        if plan.changes.iter().all(works) {
            let waiting = settings.iter().filter(|(_, setting)| setting.pending_restart);
            return Ok(InitApplied {
                changed: plan.changes.clone(),
                pending_restart: waiting.map(|(name, _)| name.clone()).collect(),
            });
        }
        if left == 0 {
            let stuck: Vec<&str> = plan.changes.iter().filter(|c| !works(c)).map(|change| change.name).collect();
            return Err(EngineError::failed(
                format!("{} was set, but the server does not use the new value", stuck.join(", ")),
                "see the server's log for errors in its configuration files, and pg_file_settings",
            ));
        }
        left -= 1;
        ctx.or_cancel(tokio::time::sleep(Duration::from_millis(100))).await?;
    }
}

async fn check_privileges(client: &mut Client, server: &ServerFacts, plan: &InitPlan) -> Result<(), EngineError> {
    let allowed =
        client.query_one("SELECT coalesce(current_setting('allow_alter_system', true), 'on') AS v", &[]).await?;
    if allowed.str("v")? == "off" {
        return Err(EngineError::refused(
            "the server does not allow ALTER SYSTEM (allow_alter_system is off)",
            format!("set in its configuration: {}", as_conf(plan)),
        ));
    }
    if server.is_superuser {
        return Ok(());
    }
    let mut missing = Vec::new();
    for change in &plan.changes {
        // Privileges on parameters exist since 15.
        let granted = server.version_num >= 150_000
            && client
                .query_one("SELECT has_parameter_privilege($1, 'ALTER SYSTEM') AS ok", &[Some(change.name)])
                .await?
                .bool("ok")?;
        if !granted {
            missing.push(format!("ALTER SYSTEM ON PARAMETER {}", change.name));
        }
    }
    let reload = "SELECT has_function_privilege('pg_reload_conf()', 'EXECUTE') AS ok";
    if !client.query_one(reload, &[]).await?.bool("ok")? {
        missing.push("EXECUTE ON FUNCTION pg_reload_conf()".into());
    }
    if missing.is_empty() {
        return Ok(());
    }
    Err(EngineError::refused(
        format!("role {} is no superuser and lacks: {}", server.user, missing.join(", ")),
        format!("connect as a superuser, GRANT what is missing, or set in postgresql.conf: {}", as_conf(plan)),
    ))
}

fn as_conf(plan: &InitPlan) -> String {
    let line = |change: &SettingChange| format!("{} = '{}'", change.name, change.to.replace('\'', "''"));
    plan.changes.iter().map(line).collect::<Vec<_>>().join("; ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_are_those_of_the_shell() {
        let check = |command: &str, expect: &[&str]| assert_eq!(words(command), expect, "{command}");
        check(r"a  'b c' d\ e", &["a", "b c", "d e"]);
        check(r#"'it'\''s' "x \" y" '' "#, &["it's", "x \" y", ""]);
        check("--a='b c'", &["--a=b c"]);
    }

    #[test]
    fn where_a_command_leads() {
        let same = |a: &str, b: &str| destination(a) == destination(b);
        let here = "'/usr/bin/pgkeep' --config '/etc/p.toml' --cluster 'main' wal push '%p'";
        assert!(same(here, "/opt/pgkeep --cluster=main --config=/etc/p.toml wal push %p"));
        assert!(!same(here, "'/usr/bin/pgkeep' --config '/etc/p.toml' --cluster 'other' wal push '%p'"));
        assert!(!same(here, "'/usr/bin/pgkeep' --config '/srv/p.toml' --cluster 'main' wal push '%p'"));
        assert!(!same(here, "pgkeep --config /etc/p.toml --repo far --cluster main wal push %p"));
    }
}
