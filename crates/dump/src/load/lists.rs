//! The list of a dump's entries, as `pg_restore --list` prints it (`PrintTOCSummary` in PostgreSQL's
//! `src/bin/pg_dump/pg_backup_archiver.c`), and one that was edited taken back (`SortTocFromFile`).

use super::select::Wanted;
use super::stages::settle_sections;
use crate::DumpError;
use crate::archive::{Archive, Entry, Text};
use std::collections::HashMap;

/// The list of entries that are wanted: one a line, in the order in which they are done within their section.
pub(crate) fn print(archive: &Archive, wanted: &Wanted, what: &str) -> String {
    let mut out = format!(
        ";\n; {what}\n;     TOC Entries: {}\n;     Dumped by pg_dump version: {}\n;\n\
         ; A line that is taken out, or begins with a semicolon, is not loaded; lines may be put in another order.\n;\n",
        archive.entries.len(),
        archive.tool_version()
    );
    for entry in archive.entries.iter().filter(|entry| wanted.contains(&entry.dump_id)) {
        let word = |text: &Text, none: &str| match text.as_deref() {
            None | Some(b"") => none.to_owned(),
            Some(text) => String::from_utf8_lossy(text).replace(['\n', '\r'], " "),
        };
        let Entry { dump_id, catalog_oid, oid, .. } = entry;
        let (desc, schema) = (word(&entry.desc, ""), word(&entry.namespace, "-"));
        out += &format!(
            "{dump_id}; {catalog_oid} {oid} {desc} {schema} {} {}\n",
            word(&entry.tag, ""),
            word(&entry.owner, "")
        );
    }
    out
}

/// Puts the archive in the order of a list, and gives the entries that it has.
pub(crate) fn apply(archive: &mut Archive, list: &str) -> Result<Wanted, DumpError> {
    let mut places = HashMap::new();
    for (number, line) in list.lines().enumerate() {
        let text = line.split(';').next().unwrap_or_default().trim();
        if text.is_empty() {
            continue;
        }
        let id = text.split_whitespace().next().and_then(|id| id.parse::<i32>().ok());
        let Some(id) = id.filter(|id| archive.entry(*id).is_some()) else {
            return Err(DumpError::refused(
                format!("line {} of the list names no entry of the dump: {line}", number + 1),
                "each line begins with the number of an entry, as `pgkeep load ID --list` prints it",
            ));
        };
        let place = places.len();
        places.entry(id).or_insert(place);
    }
    // What an entry without a section belongs to is seen from its place in the archive.
    settle_sections(archive);
    archive.entries.sort_by_key(|entry| places.get(&entry.dump_id).copied().unwrap_or(usize::MAX));
    Ok(places.into_keys().collect())
}

#[cfg(test)]
mod tests {
    use super::super::select::tests::{archive_of, entry};
    use super::*;

    #[test]
    fn a_list_comes_back() {
        let archive = || {
            let mut entries = vec![
                entry(7, "TABLE", "s", "a\nb", &[]),
                entry(8, "INDEX", "s", "i", &[7]),
                entry(9, "COMMENT", "s", "INDEX i", &[8]),
            ];
            (entries[1].section, entries[2].section) = (4, 1);
            archive_of(entries)
        };
        let all = archive().entries.iter().map(|entry| entry.dump_id).collect();
        let printed = print(&archive(), &all, "of a test");
        assert!(printed.contains("7; 0 0 TABLE s a b \n8; 0 0 INDEX s i "), "{printed}");
        let mut again = archive();
        assert_eq!(apply(&mut again, &printed).unwrap(), all);
        assert_eq!(again.entries[2].section, 4, "a comment stays with what it is about");
        let edited = "9; x\n; 8; commented out\n\n 7 anything\n9;\n";
        assert_eq!(apply(&mut again, edited).unwrap(), Wanted::from([7, 9]));
        assert_eq!(again.entries.iter().map(|entry| entry.dump_id).collect::<Vec<_>>(), [9, 7, 8]);
        let said = apply(&mut again, "9;\n77; gone").unwrap_err().to_string();
        assert!(said.contains("line 2") && said.contains("77; gone"), "{said}");
    }
}
