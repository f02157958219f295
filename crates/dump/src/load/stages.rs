//! In which order a load does the entries of a dump: pg_restore's sections and passes (`_tocEntryRestorePass` in
//! PostgreSQL's `src/bin/pg_dump/pg_backup_archiver.c`), with indexes and constraints taken out, which are built beside the data.

use super::select::{Parts, Wanted};
use crate::archive::{Archive, Entry, Section};
use std::collections::{HashMap, HashSet};

/// Entries of a load, by their dump IDs, in the order in which the stages are done.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Stages {
    /// Before the data, by pg_restore.
    pub(super) before: Vec<i32>,
    /// What stands between the data: sequences' values, and the large objects themselves. By pg_restore.
    pub(super) values: Vec<i32>,
    /// Indexes and constraints, each as soon as the data that it needs are whole.
    pub(super) built: Vec<i32>,
    /// What else comes after the data, by pg_restore.
    pub(super) after: Vec<i32>,
    /// GRANT and REVOKE: only now, so that nobody has lost the right to fill a table. By pg_restore.
    pub(super) privileges: Vec<i32>,
    /// Contents of materialized views, which are read with the rights of their owners.
    pub(super) views: Vec<i32>,
    /// The same, by pg_restore.
    pub(super) refreshed: Vec<i32>,
    /// Statistics, which loading and building would write over. By pg_restore.
    pub(super) statistics: Vec<i32>,
    /// Event triggers, which nothing of the load shall set off. By pg_restore.
    pub(super) last: Vec<i32>,
}

/// What is built here and not by pg_restore: what its definition alone makes, in the session's own name.
const BUILT: [&[u8]; 5] = [b"INDEX", b"INDEX ATTACH", b"CONSTRAINT", b"CHECK CONSTRAINT", b"FK CONSTRAINT"];

/// The stages of what is wanted. With `build` off everything but data is pg_restore's.
pub(super) fn stages(archive: &Archive, wanted: &Wanted, parts: Parts, build: bool) -> Stages {
    let sections = sections(archive);
    let section = |entry: &Entry| sections.get(&entry.dump_id).copied().unwrap_or(Section::PreData);
    let asked = |entry: &Entry| match section(entry) {
        Section::Data => parts.data,
        Section::PostData => parts.indexes,
        Section::PreData | Section::None => parts.definitions,
    };
    let chosen = archive.entries.iter().filter(|entry| {
        // A database that is made for it is made before; the settings are every session's own.
        let apart = ["DATABASE", "DATABASE PROPERTIES", "ENCODING", "STDSTRINGS", "SEARCHPATH"];
        !entry.has_data && wanted.contains(&entry.dump_id) && asked(entry) && !apart.iter().any(|kind| entry.is(kind))
    });
    let chosen: Vec<&Entry> = chosen.collect();
    let built = if build { built(&chosen, &section) } else { HashSet::new() };
    let mut stages = Stages::default();
    for entry in chosen {
        let of_event_trigger = entry.tag.as_deref().is_some_and(|tag| tag.starts_with(b"EVENT TRIGGER "));
        let stage = match (entry.kind(), section(entry)) {
            (b"ACL" | b"ACL LANGUAGE" | b"DEFAULT ACL", _) => &mut stages.privileges,
            (b"MATERIALIZED VIEW DATA", _) if build => &mut stages.views,
            (b"MATERIALIZED VIEW DATA", _) => &mut stages.refreshed,
            (b"EVENT TRIGGER", _) => &mut stages.last,
            (b"COMMENT" | b"SECURITY LABEL", _) if of_event_trigger => &mut stages.last,
            (b"STATISTICS DATA", _) => &mut stages.statistics,
            _ if built.contains(&entry.dump_id) => &mut stages.built,
            (_, Section::Data) => &mut stages.values,
            (_, Section::PostData) => &mut stages.after,
            _ => &mut stages.before,
        };
        stage.push(entry.dump_id);
    }
    stages
}

/// Those without a section have that of the entry before them, as in `ProcessArchiveRestoreOptions`.
fn sections(archive: &Archive) -> HashMap<i32, Section> {
    let mut now = Section::PreData;
    let section = |entry: &Entry| {
        now = Some(entry.section()).filter(|section| *section != Section::None).unwrap_or(now);
        (entry.dump_id, now)
    };
    archive.entries.iter().map(section).collect()
}

/// Gives every entry its section, so that the order may change.
pub(super) fn settle_sections(archive: &mut Archive) {
    let sections = sections(archive);
    for entry in &mut archive.entries {
        entry.section = match sections.get(&entry.dump_id) {
            Some(Section::Data) => 3,
            Some(Section::PostData) => 4,
            _ => 2,
        };
    }
}

/// What needs nothing of the same section but what is built here too.
fn built(chosen: &[&Entry], section: &impl Fn(&Entry) -> Section) -> HashSet<i32> {
    let is_late = |entry: &&&Entry| section(entry) == Section::PostData;
    let late: HashSet<i32> = chosen.iter().filter(is_late).map(|entry| entry.dump_id).collect();
    let can = |entry: &&&Entry| {
        let text = entry.definition.as_deref().is_some_and(|text| std::str::from_utf8(text).is_ok());
        BUILT.contains(&entry.kind()) && late.contains(&entry.dump_id) && text
    };
    let mut built: HashSet<i32> = chosen.iter().filter(can).map(|entry| entry.dump_id).collect();
    loop {
        let fits = |entry: &&&Entry| {
            entry.dependencies.iter().all(|id| !late.contains(id) || built.contains(id) || *id == entry.dump_id)
        };
        let fit: HashSet<i32> =
            chosen.iter().filter(|entry| built.contains(&entry.dump_id)).filter(fits).map(|one| one.dump_id).collect();
        if fit.len() == built.len() {
            return built;
        }
        built = fit;
    }
}

#[cfg(test)]
mod tests {
    use super::super::select::tests::{archive_of, entry};
    use super::*;

    #[test]
    fn every_entry_has_its_stage() {
        let mut entries = vec![
            entry(1, "ENCODING", "", "ENCODING", &[]),
            entry(2, "DATABASE", "", "d", &[]),
            entry(3, "TABLE", "s", "a", &[]),
            entry(4, "ACL", "s", "TABLE a", &[3]),
            entry(5, "COMMENT", "s", "TABLE a", &[3]),
            entry(6, "TABLE DATA", "s", "a", &[3]),
            entry(7, "SEQUENCE SET", "s", "q", &[]),
            entry(8, "CONSTRAINT", "s", "a a_pkey", &[3]),
            entry(9, "COMMENT", "s", "CONSTRAINT a_pkey", &[8]),
            entry(10, "FUNCTION", "s", "late()", &[8]),
            entry(11, "INDEX", "s", "a_late", &[3, 10]),
            entry(12, "INDEX", "s", "a_late_child", &[3, 11]),
            entry(13, "FK CONSTRAINT", "s", "a a_fk", &[3, 8]),
            entry(14, "MATERIALIZED VIEW DATA", "s", "v", &[3]),
            entry(15, "EVENT TRIGGER", "", "watch", &[]),
            entry(16, "COMMENT", "", "EVENT TRIGGER watch", &[15]),
            entry(17, "TRIGGER", "s", "a t", &[3]),
        ];
        for (id, section) in [(6, 3), (7, 3), (8, 4), (10, 4), (11, 4), (12, 4), (13, 4), (14, 4), (15, 4), (17, 4)] {
            entries[id - 1].section = section;
        }
        for id in [4, 5, 9, 16] {
            entries[id - 1].section = 1;
        }
        for id in [8, 11, 12, 13] {
            entries[id - 1].definition = Some(b"CREATE".to_vec());
        }
        let archive = archive_of(entries);
        let wanted: Wanted = archive.entries.iter().map(|entry| entry.dump_id).collect();
        let all = Parts { definitions: true, data: true, indexes: true };
        let expect = Stages {
            before: vec![3, 5],
            values: vec![7],
            built: vec![8, 13],
            // What needs something of pg_restore's is pg_restore's too, however long the way.
            after: vec![9, 10, 11, 12, 17],
            privileges: vec![4],
            views: vec![14],
            last: vec![15, 16],
            ..Stages::default()
        };
        assert_eq!(stages(&archive, &wanted, all, true), expect);
        let other = stages(&archive, &wanted, all, false);
        assert_eq!((other.built, other.views, other.refreshed), (vec![], vec![], vec![14]));
        assert_eq!(other.after, [8, 9, 10, 11, 12, 13, 17]);
        let early = stages(&archive, &wanted, Parts { indexes: false, data: false, ..all }, true);
        assert_eq!(early, Stages { before: vec![3, 5], privileges: vec![4], ..Stages::default() });
    }
}
