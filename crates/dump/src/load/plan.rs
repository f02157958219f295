//! What the workers of a load do: rows, large objects, indexes and constraints, and what waits for what.

use super::graph::{Hold, Node};
use super::record::Record;
use super::source::{EntryData, PartData, target};
use crate::DumpError;
use crate::archive::{Archive, Entry};
use crate::copy::RowForm;
use repo::dump::DataKind;
use std::collections::{HashMap, HashSet};

/// A table with fewer bytes is not truncated first: that costs more than it saves.
const TRUNCATE_MIN: u64 = 256 << 10;
/// A table with more bytes is loaded in parts: if the load is broken off, a transaction of this size is lost.
const WHOLE_MAX: u64 = 8 << 30;

/// A piece of work.
#[derive(Debug, Clone)]
pub(super) struct Job {
    /// For people.
    pub(super) what: String,
    /// What the record calls it.
    pub(super) pieces: Vec<String>,
    pub(super) work: Work,
}

#[derive(Debug, Clone)]
pub(super) enum Work {
    /// Rows into a table.
    Rows {
        /// The COPY statement.
        sql: String,
        /// What comes before it, and how it is said then, where the table is truncated in the same transaction: rows are
        /// frozen as they come (they need not be written again), and with `wal_level` minimal there is no WAL of them.
        frozen: Option<(String, String)>,
        /// Rows in which form.
        kind: DataKind,
        parts: Vec<PartData>,
    },
    /// Large objects.
    LargeObjects(PartData),
    /// What an entry's definition says.
    Statement {
        sql: String,
        /// `default_tablespace` for it.
        tablespace: Option<String>,
        /// Of what sorts the rows of a table: about how many bytes the table has.
        sorts: Option<u64>,
    },
}

/// The jobs, and for each its node.
#[derive(Debug, Default)]
pub(super) struct Plan {
    pub(super) jobs: Vec<Job>,
    pub(super) nodes: Vec<Node>,
    /// Tables whose data are wanted.
    pub(super) tables: u64,
    /// Bytes that are to be loaded.
    pub(super) bytes: u64,
}

/// How it is planned.
pub(super) struct Planning<'a> {
    pub(super) archive: &'a Archive,
    pub(super) record: &'a Record,
    pub(super) encoding: &'a str,
    /// Tables that this load made (their entries): they hold nothing else. Not one that was there, nor one of an extension's,
    /// which comes with rows.
    pub(super) made: HashSet<i32>,
    pub(super) workers: usize,
    /// Whether entries stay in their tablespaces.
    pub(super) in_tablespaces: bool,
}

impl Planning<'_> {
    /// Plans data, and entries that are built here.
    pub(super) fn plan(&self, data: &[EntryData], built: &[i32]) -> Result<Plan, DumpError> {
        let entries: HashMap<i32, &Entry> = self.archive.entries.iter().map(|entry| (entry.dump_id, entry)).collect();
        let mut plan = Plan::default();
        // Which nodes fill a table, by the table's entry.
        let mut filling: HashMap<i32, Vec<usize>> = HashMap::new();
        let bytes_of = |data: &EntryData| data.parts.iter().map(|part| part.bytes).sum::<u64>();
        let mut size: HashMap<i32, u64> = HashMap::new();
        for one in data {
            let table = entries.get(&one.entry).map_or(one.entry, |entry| table_of(entry, &entries));
            *size.entry(table).or_default() += bytes_of(one);
        }
        // What is built of each table costs about so much more.
        let mut builds: HashMap<i32, u64> = HashMap::new();
        for entry in built.iter().filter_map(|id| entries.get(id)) {
            for table in uses(entry, &entries).into_iter().take(1) {
                *builds.entry(table).or_default() += cost(entry, size.get(&table).copied().unwrap_or(0));
            }
        }
        let all: u64 = size.iter().map(|(table, bytes)| bytes + builds.get(table).copied().unwrap_or(0)).sum();
        for one in data {
            let entry = entries.get(&one.entry).ok_or_else(|| DumpError::Failed {
                reason: format!("the dump's table of contents has no entry {}", one.entry),
                hint: None,
            })?;
            let table = table_of(entry, &entries);
            let first = plan.jobs.len();
            match one.kind {
                DataKind::Table | DataKind::TableBinary => {
                    plan.tables += 1;
                    let own = size.get(&table).copied().unwrap_or(0);
                    let others = all.saturating_sub(own + builds.get(&table).copied().unwrap_or(0));
                    self.table(&mut plan, entry, one, (table, others))?;
                }
                DataKind::LargeObjects => {
                    for (number, part) in one.parts.iter().enumerate() {
                        let piece = format!("{}/{number}", one.entry);
                        if !self.record.has(&piece) {
                            plan.add(
                                Job {
                                    what: entry.label(),
                                    pieces: vec![piece],
                                    work: Work::LargeObjects(part.clone()),
                                },
                                Node {
                                    cost: part.bytes,
                                    weight: part.bytes,
                                    after: Vec::new(),
                                    holds: Vec::new(),
                                    builds: false,
                                },
                            );
                            plan.bytes += part.bytes;
                        }
                    }
                }
            }
            // Some definitions name the data, not the table.
            for id in [table, one.entry] {
                filling.entry(id).or_default().extend(first..plan.jobs.len());
            }
        }
        self.build(&mut plan, built, &entries, &filling, &size);
        Ok(plan)
    }

    /// The rows of one table: by one worker in one transaction where that does not make the others wait at the end, else each
    /// part for itself.
    fn table(&self, plan: &mut Plan, entry: &Entry, data: &EntryData, at: (i32, u64)) -> Result<(), DumpError> {
        let (table, others) = at;
        let copy = target(entry.copy_statement.as_deref().unwrap_or_default())?;
        let form = RowForm::of(data.kind, self.encoding);
        let piece = |number: usize| format!("{}/{number}", entry.dump_id);
        let left: Vec<usize> = (0..data.parts.len()).filter(|number| !self.record.has(&piece(*number))).collect();
        let bytes = |numbers: &[usize]| numbers.iter().map(|number| data.parts[*number].bytes).sum::<u64>();
        let all = bytes(&left);
        // Rows that go to a partitioned table, by its root, lie in others too.
        let own = crate::names::parts_of(&copy.table).is_some_and(|(schema, name)| {
            entry.namespace.as_deref() == Some(schema.as_bytes()) && entry.tag.as_deref() == Some(name.as_bytes())
        });
        let made = self.made.contains(&table) && own && left.len() == data.parts.len();
        let alone = left.len() == 1 || self.workers == 1 || all <= others * 13 / 10 / (self.workers as u64 - 1).max(1);
        let whole = made && alone && (TRUNCATE_MIN..WHOLE_MAX).contains(&all);
        let jobs: Vec<Vec<usize>> =
            if whole { vec![left] } else { left.into_iter().map(|number| vec![number]).collect() };
        let count = data.parts.len();
        for numbers in jobs {
            let what = match numbers.as_slice() {
                [number] if count > 1 => format!("{}, part {} of {count}", entry.label(), number + 1),
                _ => entry.label(),
            };
            let cost = bytes(&numbers);
            plan.bytes += cost;
            let frozen = whole.then(|| (format!("TRUNCATE TABLE ONLY {}; ", copy.table), copy.load_frozen(form)));
            let parts = numbers.iter().map(|number| data.parts[*number].clone()).collect();
            plan.add(
                Job {
                    what,
                    pieces: numbers.iter().map(|number| piece(*number)).collect(),
                    work: Work::Rows { sql: copy.load(form), frozen, kind: data.kind, parts },
                },
                Node { cost, weight: all, after: Vec::new(), holds: vec![(table, Hold::Shared)], builds: false },
            );
        }
        Ok(())
    }

    fn build(
        &self,
        plan: &mut Plan,
        built: &[i32],
        entries: &HashMap<i32, &Entry>,
        filling: &HashMap<i32, Vec<usize>>,
        size: &HashMap<i32, u64>,
    ) {
        let loads: Vec<usize> = (0..plan.jobs.len()).collect();
        let left = built.iter().filter(|id| !self.record.has(&id.to_string()));
        let left: Vec<&Entry> = left.filter_map(|id| entries.get(id).copied()).collect();
        let nodes: HashMap<i32, usize> =
            left.iter().enumerate().map(|(number, entry)| (entry.dump_id, loads.len() + number)).collect();
        let with_data: HashSet<i32> =
            entries.values().filter(|entry| entry.is("TABLE DATA")).map(|entry| table_of(entry, entries)).collect();
        for entry in left {
            let tables = uses(entry, entries);
            let mut after: Vec<usize> = entry.dependencies.iter().filter_map(|id| nodes.get(id).copied()).collect();
            if entry.is("FK CONSTRAINT") && tables.iter().any(|table| !with_data.contains(table)) {
                // A partitioned table has no data of its own: those of its partitions are meant, whichever they are.
                after.extend(&loads);
            }
            let filled = tables.iter().chain(&entry.dependencies).filter_map(|table| filling.get(table));
            after.extend(filled.flatten());
            after.sort_unstable();
            after.dedup();
            let definition = entry.definition.as_deref().unwrap_or_default();
            let sql = String::from_utf8_lossy(definition).into_owned();
            // An index's definition can be followed by what is done with it (CLUSTER ON, REPLICA IDENTITY).
            let hold = if entry.is("INDEX") && !sql.contains("\nALTER ") { Hold::Shared } else { Hold::Alone };
            let of = tables.first().and_then(|table| size.get(table)).copied().unwrap_or(0);
            let cost = cost(entry, of);
            let sorts = is_sort(entry, &sql).then_some(of);
            let tablespace = entry.tablespace.as_deref().unwrap_or_default();
            plan.add(
                Job {
                    what: format!("{} {}", String::from_utf8_lossy(entry.kind()), entry.label()),
                    pieces: vec![entry.dump_id.to_string()],
                    work: Work::Statement {
                        sql,
                        tablespace: self.in_tablespaces.then(|| String::from_utf8_lossy(tablespace).into_owned()),
                        sorts,
                    },
                },
                Node {
                    cost,
                    weight: cost,
                    after,
                    holds: tables.into_iter().map(|table| (table, hold)).collect(),
                    builds: true,
                },
            );
        }
    }
}

impl Plan {
    fn add(&mut self, job: Job, node: Node) {
        self.jobs.push(job);
        self.nodes.push(node);
    }
}

/// Whether an entry is a B-tree, for which rows are sorted and nothing else: as pg_dump writes it (`pg_get_indexdef`,
/// `dumpConstraint` in `src/bin/pg_dump/pg_dump.c`).
fn is_sort(entry: &Entry, sql: &str) -> bool {
    match entry.kind() {
        b"INDEX" => sql.contains(" USING btree ("),
        b"CONSTRAINT" => sql.contains(" PRIMARY KEY (") || sql.contains(" UNIQUE (") || sql.contains(" UNIQUE NULLS"),
        _ => false,
    }
}

/// What building takes, in bytes of rows that are loaded in that time.
fn cost(entry: &Entry, bytes: u64) -> u64 {
    match entry.kind() {
        b"INDEX" => bytes / 5 * 2 + 1,
        b"CONSTRAINT" | b"FK CONSTRAINT" | b"MATERIALIZED VIEW DATA" => bytes / 4 + 1,
        _ => 1,
    }
}

/// The table that data belong to.
fn table_of(entry: &Entry, entries: &HashMap<i32, &Entry>) -> i32 {
    let table = |id: &&i32| entries.get(*id).is_some_and(|one| one.is("TABLE"));
    entry.dependencies.iter().find(table).copied().unwrap_or(entry.dump_id)
}

/// The tables that building an entry uses, its own first: what it depends on, and, for an index that is attached to another,
/// what they belong to.
fn uses(entry: &Entry, entries: &HashMap<i32, &Entry>) -> Vec<i32> {
    let mut found = Vec::new();
    let mut add = |id: i32| {
        if !found.contains(&id) {
            found.push(id);
        }
    };
    let is_table = |entry: &Entry| entry.is("TABLE") || entry.is("MATERIALIZED VIEW");
    for id in &entry.dependencies {
        let Some(other) = entries.get(id) else { continue };
        if is_table(other) {
            add(*id);
        } else if other.is("INDEX") || other.is("CONSTRAINT") {
            let tables = other.dependencies.iter().filter(|id| entries.get(*id).is_some_and(|one| is_table(one)));
            tables.for_each(|id| add(*id));
        }
    }
    found
}

#[cfg(test)]
mod tests {
    use super::super::select::tests::{archive_of, entry};
    use super::super::source::Place;
    use super::*;

    fn plan(workers: usize, made: &[i32], sizes: [&[u64]; 2]) -> Plan {
        let mut entries = vec![
            entry(1, "TABLE", "s", "a", &[]),
            entry(2, "TABLE", "s", "b", &[]),
            entry(3, "TABLE DATA", "s", "a", &[1]),
            entry(4, "TABLE DATA", "s", "b", &[2]),
            entry(5, "CONSTRAINT", "s", "a a_pkey", &[1]),
            entry(6, "INDEX", "s", "b_i", &[2]),
            entry(7, "FK CONSTRAINT", "s", "b b_fk", &[2, 5, 1]),
            entry(8, "TABLE", "s", "parts", &[]),
            entry(9, "FK CONSTRAINT", "s", "parts p_fk", &[8, 5]),
        ];
        for (number, table) in [(2, "a"), (3, "b")] {
            entries[number].copy_statement = Some(format!("COPY s.{table} (x) FROM stdin;\n").into_bytes());
        }
        let archive = archive_of(entries);
        let data = |entry: i32, sizes: &[u64]| EntryData {
            entry,
            kind: DataKind::Table,
            parts: sizes.iter().map(|bytes| PartData { place: Place::Stream(0), rows: None, bytes: *bytes }).collect(),
        };
        let record = Record::none();
        let made = made.iter().copied().collect();
        let planning =
            Planning { archive: &archive, record: &record, encoding: "UTF8", made, workers, in_tablespaces: true };
        planning.plan(&[data(3, sizes[0]), data(4, sizes[1])], &[5, 6, 7, 9]).unwrap()
    }

    fn frozen(plan: &Plan) -> Vec<bool> {
        let rows = plan.jobs.iter().filter_map(|job| match &job.work {
            Work::Rows { frozen, .. } => Some(frozen.is_some()),
            _ => None,
        });
        rows.collect()
    }

    #[test]
    fn what_is_built_waits_for_its_rows_and_no_longer() {
        const MB: u64 = 1 << 20;
        let made = plan(2, &[1, 2], [&[MB, MB], &[2 * MB]]);
        assert_eq!(frozen(&made), [true, true], "two tables, two workers");
        assert_eq!(made.jobs[0].pieces, ["3/0", "3/1"]);
        assert_eq!(made.nodes[2].after, [0], "a's key");
        assert_eq!(made.nodes[3].after, [1], "b's index");
        assert_eq!(made.nodes[4].after, [0, 1, 2], "the foreign key: the key, and both tables");
        assert_eq!(made.nodes[4].holds, [(2, Hold::Alone), (1, Hold::Alone)]);
        assert_eq!(made.nodes[5].after, [0, 1, 2], "of a table without data of its own: all data");
        assert_eq!((made.nodes[3].holds[0].1, made.tables, made.bytes), (Hold::Shared, 2, 4 * MB));
        let given = plan(2, &[8], [&[MB, MB], &[2 * MB]]);
        assert_eq!(frozen(&given), [false, false, false], "what was in a table stays there");
        let large = plan(2, &[1, 2], [&[50 * MB, 50 * MB], &[2 * MB]]);
        assert_eq!(frozen(&large), [false, false, true], "nobody waits for one worker with the large one");
        assert_eq!(frozen(&plan(1, &[1, 2], [&[50 * MB, 50 * MB], &[1]])), [true, false], "nor truncates for a row");
        assert_eq!(frozen(&plan(1, &[1, 2], [&[], &[1]])), [false]);
        assert_eq!(frozen(&plan(2, &[2], [&[MB], &[MB]])), [false, true], "one that was there");
    }
}
