//! What of the server's settings bears on a receiver: whether commits wait for it, and whether the slot can fill the disk.

use crate::EngineError;
use pg_wire::Client;

/// Whether `synchronous_standby_names` names an application.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SyncStandby {
    /// It does not.
    No,
    /// By its name.
    Named,
    /// Only by `*`, as any other.
    ByStar,
}

impl SyncStandby {
    /// Looks for a name in the value of `synchronous_standby_names`, as `SyncRepGetStandbyPriority` does
    /// (`src/backend/replication/syncrep.c`; the form is in `syncrep_gram.y`).
    pub fn of(names: &str, application: &str) -> Self {
        let names = names.trim();
        // `FIRST 2 (a, b)`, `ANY 1 (a, b)`, `2 (a, b)`, `a, b`
        let list = match (names.find('('), names.ends_with(')')) {
            (Some(open), true) if !names[..open].contains('"') => &names[open + 1..names.len() - 1],
            _ => names,
        };
        let mut found = Self::No;
        for name in split(list) {
            if name == "*" {
                found = Self::ByStar;
            } else if name.eq_ignore_ascii_case(application) {
                return Self::Named;
            }
        }
        found
    }
}

/// The names of a list; those in quotes may hold commas.
fn split(list: &str) -> Vec<String> {
    let (mut names, mut name, mut quoted) = (Vec::new(), String::new(), false);
    let mut letters = list.chars().peekable();
    while let Some(letter) = letters.next() {
        match letter {
            '"' if quoted && letters.peek() == Some(&'"') => {
                letters.next();
                name.push('"');
            }
            '"' => quoted = !quoted,
            ',' if !quoted => names.push(std::mem::take(&mut name)),
            letter => name.push(letter),
        }
    }
    names.push(name);
    names.into_iter().map(|name| name.trim().to_owned()).filter(|name| !name.is_empty()).collect()
}

/// What a human should read about the settings; refuses what would let commits wait for ever.
pub(super) async fn look_at_settings(
    client: &mut Client,
    application: &str,
    first: bool,
) -> Result<Vec<String>, EngineError> {
    let mut warnings = Vec::new();
    let standby = SyncStandby::of(&client.show("synchronous_standby_names").await?, application);
    let level = client.show("synchronous_commit").await?;
    if standby != SyncStandby::No && level == "remote_apply" {
        let reason = format!(
            "{}: synchronous_commit is remote_apply and {application} is named in synchronous_standby_names: commits would \
             wait for ever, because received WAL is kept and never applied",
            client.target()
        );
        // While it runs, going on does no more harm than going away.
        if first {
            return Err(EngineError::refused(reason, "set synchronous_commit = on, or name a standby instead"));
        }
        warnings.push(reason);
    }
    if standby == SyncStandby::ByStar {
        warnings.push(format!(
            "synchronous_standby_names has `*`: commits wait for {application} or for whatever else connects first; name \
             {application} there if it is meant"
        ));
    }
    if client.show("max_slot_wal_keep_size").await? == "-1" {
        warnings.push(
            "max_slot_wal_keep_size is -1: while nothing is received the slot keeps WAL on the server until its disk is \
             full; set it to what the disk can spare"
                .to_owned(),
        );
    }
    Ok(warnings)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_found_as_the_server_finds_them() {
        let check = |names: &str, expect: SyncStandby| assert_eq!(SyncStandby::of(names, "pgkeep"), expect, "{names}");
        for names in ["pgkeep", " a , PgKeep", "FIRST 1 (a, pgkeep)", "ANY 2 (\"pgkeep\", b)", "1(pgkeep)", "*, pgkeep"]
        {
            check(names, SyncStandby::Named);
        }
        for names in ["", "a", "pgkeep2, b", "\"a, pgkeep\"", "FIRST 1 (a)", "\"pg\"\"keep\""] {
            check(names, SyncStandby::No);
        }
        for names in ["*", "ANY 1 (*)", "a, *"] {
            check(names, SyncStandby::ByStar);
        }
    }
}
