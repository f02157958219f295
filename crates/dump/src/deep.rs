//! The deepest look: a dump is loaded, into a server for a moment or into a database made for it, and the rows of each table that
//! came to be are counted and summed up (docs/format.md section 17) as they were when the dump was made.

use crate::archive::{Archive, Entry};
use crate::connection::{Server, for_reading, for_writing};
use crate::copy::{CopyTarget, RowForm};
use crate::data::{Counted, count_rows};
use crate::load::{LoadOptions, OnError, Target, load};
use crate::names::quoted;
use crate::scratch::{ScratchPlace, ScratchServer};
use crate::tables::{self, Relation};
use crate::{DumpError, StreamReader, ToolSet, large_objects};
use engine::{Context, Unit};
use pg_wire::Client;
use repo::dump::{DataKind, DumpedData, DumpedDatabase, RowSum};
use repo::{BackupId, Cluster};
use serde::Serialize;
use std::collections::{BTreeMap, BTreeSet, HashMap, VecDeque};
use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Instant;
use tokio::task::JoinSet;

/// Where a dump is loaded into.
#[derive(Clone)]
pub enum DeepPlace {
    /// A server for a moment.
    Scratch(ScratchPlace),
    /// This server: a database is made there for each one of the dump, and dropped again.
    Server(Box<Server>),
}

/// What is asked.
#[derive(Clone)]
pub struct DeepOptions {
    /// Where to.
    pub place: DeepPlace,
    /// Connections at the same time.
    pub workers: usize,
    /// PostgreSQL's programs.
    pub tools: ToolSet,
    /// For a small file with the definitions.
    pub scratch_dir: PathBuf,
}

/// What was found.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct DeepReport {
    /// The dump.
    pub dump: BackupId,
    /// Version of the programs that loaded it.
    pub loaded_by: String,
    /// Its databases.
    pub databases: Vec<DeepDatabase>,
    /// How long it took.
    pub elapsed_ms: u64,
}

/// One database.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
pub struct DeepDatabase {
    /// Its name.
    pub name: String,
    /// Tables that were compared by the number of their rows.
    pub tables: u64,
    /// Of these, by the sum of their rows, too.
    pub tables_summed: u64,
    /// Rows that were counted.
    pub rows: u64,
    /// Large objects that were compared.
    pub large_objects: u64,
    /// What is not as it was.
    pub differences: Vec<String>,
    /// What could not be loaded or compared here, for want of an extension, a library, a locale.
    pub not_compared: Vec<String>,
}

/// Loads a dump and compares.
pub async fn deep(
    ctx: &Context,
    cluster: &Cluster,
    dump: BackupId,
    options: &DeepOptions,
) -> Result<DeepReport, DumpError> {
    let begun = Instant::now();
    let manifest = cluster.open_dump(dump).await?;
    if manifest.facts.databases.is_empty() {
        return Err(DumpError::refused(
            format!("dump {dump} is SQL text: what it makes is not known before it is run"),
            "`pgkeep load` runs it",
        ));
    }
    let facts = manifest.facts.clone();
    let reader = StreamReader::new(cluster.clone(), manifest);
    let (scratch, server, loaded_by) = match &options.place {
        DeepPlace::Server(server) => (None, (**server).clone(), String::new()),
        DeepPlace::Scratch(place) => {
            let major = facts.pg_version_num / 10_000;
            let scratch = ScratchServer::start(ctx, &options.tools, major, place).await?;
            let (server, version) = (scratch.server.clone(), scratch.version.clone());
            (Some(scratch), server, version)
        }
    };
    let mut report = DeepReport { dump, loaded_by, databases: Vec::new(), elapsed_ms: 0 };
    for (number, database) in facts.databases.iter().enumerate() {
        let definitions = reader.whole(database.definitions).await?;
        let archive = Archive::parse(&definitions)
            .map_err(|error| DumpError::Failed { reason: error.to_string(), hint: None })?;
        if scratch.is_some() {
            let globals = match facts.globals {
                Some(stream) => reader.whole(stream).await?,
                None => Vec::new(),
            };
            make_roles(&server, &globals, &archive).await?;
        }
        let name = format!("pgkeep_verify_{}_{number}", dump.to_string().to_ascii_lowercase());
        let made = Made { ctx, cluster, dump, server: &server, options, scratch: scratch.is_some() };
        let compared = made.database(&name, &archive, database).await;
        if scratch.is_none() {
            drop_database(&server, &name).await?;
        }
        report.databases.push(compared?);
    }
    report.elapsed_ms = begun.elapsed().as_millis() as u64;
    Ok(report)
}

/// The roles that the dump knows by name, so that owners and policies can be set. Only their names count here.
async fn make_roles(server: &Server, globals: &[u8], archive: &Archive) -> Result<(), DumpError> {
    let text = String::from_utf8_lossy(globals);
    let statements = text.lines().filter(|line| line.starts_with("CREATE ROLE ") && line.ends_with(';'));
    let mut statements: BTreeSet<String> = statements.map(str::to_owned).collect();
    let owners = archive.entries.iter().filter_map(|entry| std::str::from_utf8(entry.owner.as_deref()?).ok());
    statements.extend(owners.filter(|owner| !owner.is_empty()).map(|owner| format!("CREATE ROLE {};", quoted(owner))));
    let mut client = for_writing(&server.conninfo).await?;
    for statement in statements {
        match client.simple_query(&statement).await {
            Ok(_) => {}
            // It is there already, or its name is not for everybody.
            Err(error) if error.sqlstate().is_some() => {}
            Err(error) => return Err(error.into()),
        }
    }
    client.close().await;
    Ok(())
}

async fn drop_database(server: &Server, name: &str) -> Result<(), DumpError> {
    let mut client = for_writing(&server.conninfo).await?;
    client.simple_query(&format!("DROP DATABASE IF EXISTS {} WITH (FORCE)", quoted(name))).await?;
    client.close().await;
    Ok(())
}

/// What a database is made with.
struct Made<'a> {
    ctx: &'a Context,
    cluster: &'a Cluster,
    dump: BackupId,
    server: &'a Server,
    options: &'a DeepOptions,
    /// Whether nobody else is on the server.
    scratch: bool,
}

impl Made<'_> {
    async fn database(
        &self,
        name: &str,
        archive: &Archive,
        database: &DumpedDatabase,
    ) -> Result<DeepDatabase, DumpError> {
        let mut found = DeepDatabase { name: database.name.clone(), ..DeepDatabase::default() };
        let create = self.load_options(database, Target::Create(name.to_owned()));
        let loaded = match load(self.ctx, self.cluster, self.dump, self.server, &create).await {
            // With a locale or a tablespace that there is not here: as this server makes databases.
            Err(DumpError::Wire(error)) if error.sqlstate().is_some() => {
                found.not_compared.push(format!("the database itself could not be made as it was: {error}"));
                let mut client = for_writing(&self.server.conninfo).await?;
                let sql = format!("CREATE DATABASE {} TEMPLATE template0 ENCODING 'UTF8'", quoted(name));
                client.simple_query(&sql).await?;
                client.close().await;
                let into = self.server.database(name)?;
                load(self.ctx, self.cluster, self.dump, &into, &self.load_options(database, Target::Any)).await?
            }
            other => other?,
        };
        found.not_compared.extend(loaded.errors);
        let server = self.server.database(name)?;
        self.compare(&server, archive, database, &mut found).await?;
        Ok(found)
    }

    fn load_options(&self, database: &DumpedDatabase, target: Target) -> LoadOptions {
        LoadOptions {
            database: Some(database.name.clone()),
            target,
            no_owner: !self.scratch,
            no_privileges: true,
            no_tablespaces: true,
            on_error: OnError::Continue,
            workers: self.options.workers,
            ..LoadOptions::quiet(self.options.tools.clone(), self.options.scratch_dir.clone())
        }
    }

    async fn compare(
        &self,
        server: &Server,
        archive: &Archive,
        database: &DumpedDatabase,
        found: &mut DeepDatabase,
    ) -> Result<(), DumpError> {
        let mut client = for_reading(&server.conninfo).await?;
        let relations = tables::list(&mut client, false).await?;
        let there: HashMap<(String, String), Relation> =
            relations.into_iter().map(|one| ((one.schema.clone(), one.name.clone()), one)).collect();
        let mut jobs = Vec::new();
        for group in groups(archive, database) {
            match group.job(&there, &database.encoding) {
                Ok(job) => jobs.push(job),
                Err(what) => found.differences.push(what),
            }
        }
        let rows = database.data.iter().filter(|data| data.kind.is_table()).map(|data| data.rows).sum();
        self.ctx.progress.phase("counting and comparing rows", Some(rows), Unit::Items);
        for data in database.data.iter().filter(|data| data.kind == DataKind::LargeObjects) {
            compare_large_objects(&mut client, archive, data, found).await?;
        }
        client.close().await;
        let workers = self.options.workers.max(1).min(jobs.len().max(1));
        let queue = Arc::new(Mutex::new(VecDeque::from(jobs)));
        let mut running: JoinSet<Result<Vec<Outcome>, DumpError>> = JoinSet::new();
        for _ in 0..workers {
            let (ctx, server, queue) = (self.ctx.clone(), server.clone(), queue.clone());
            running.spawn(async move {
                let mut client = for_reading(&server.conninfo).await?;
                ctx.or_cancel(work(&ctx, &mut client, &queue)).await?
            });
        }
        while let Some(done) = running.join_next().await {
            let done = done.map_err(|panic| DumpError::Failed {
                reason: format!("a worker stopped unexpectedly: {panic}"),
                hint: None,
            })??;
            done.into_iter().for_each(|outcome| outcome.put(found));
        }
        found.differences.sort();
        Ok(())
    }
}

/// Tables that are compared together: one, or the partitions whose rows are loaded through their root, which may lie in other
/// ones now.
struct Group<'a> {
    target: CopyTarget,
    /// What is read: the table itself, or the root.
    schema: String,
    name: String,
    data: Vec<&'a DumpedData>,
    /// Whether all have the same columns in the same order and form.
    same_columns: bool,
    bad: Option<String>,
}

fn groups<'a>(archive: &Archive, database: &'a DumpedDatabase) -> Vec<Group<'a>> {
    let mut groups: BTreeMap<(String, String), Group<'a>> = BTreeMap::new();
    for data in database.data.iter().filter(|data| data.kind.is_table()) {
        let own = (data.schema.clone(), data.name.clone());
        let statement =
            archive.entry(data.entry).and_then(|entry: &Entry| entry.copy_statement.clone()).unwrap_or_default();
        let parsed = CopyTarget::parse(&statement).map_err(|error| error.to_string());
        let (target, bad) = match parsed {
            Ok(target) => (target, None),
            Err(error) => (CopyTarget { table: String::new(), columns: None }, Some(error)),
        };
        let read = qualified(&target.table).unwrap_or(own);
        let group = groups.entry(read.clone()).or_insert_with(|| Group {
            target: target.clone(),
            schema: read.0,
            name: read.1,
            data: Vec::new(),
            same_columns: true,
            bad,
        });
        // Rows in other forms have other sums.
        let kind = group.data.first().map_or(data.kind, |first| first.kind);
        group.same_columns &= group.target.columns == target.columns && kind == data.kind;
        group.data.push(data);
    }
    groups.into_values().collect()
}

/// `schema.name` taken apart, as PostgreSQL quotes it.
fn qualified(text: &str) -> Option<(String, String)> {
    let mut parts = vec![String::new()];
    let (mut quoted, mut before) = (false, ' ');
    for character in text.chars() {
        match character {
            '"' => {
                quoted = !quoted;
                // A quote twice within quotes is one.
                if quoted && before == '"' {
                    parts.last_mut()?.push('"');
                }
            }
            '.' if !quoted => parts.push(String::new()),
            other => parts.last_mut()?.push(other),
        }
        before = character;
    }
    let name = parts.pop()?;
    parts.pop().filter(|_| parts.is_empty()).map(|schema| (schema, name))
}

/// A question to the server, and the answer that is expected.
struct Job {
    what: String,
    sql: String,
    kind: DataKind,
    rows: u64,
    sum: Option<RowSum>,
}

/// What came of it.
struct Outcome {
    job: Job,
    counted: Result<Counted, String>,
}

impl Group<'_> {
    fn job(&self, there: &HashMap<(String, String), Relation>, encoding: &str) -> Result<Job, String> {
        let what = format!("{}.{}", self.schema, self.name);
        if let Some(bad) = &self.bad {
            return Err(format!("{what}: {bad}"));
        }
        let Some(relation) = there.get(&(self.schema.clone(), self.name.clone())) else {
            return Err(format!("{what} is not there"));
        };
        let sums = self.data.iter().try_fold(RowSum::default(), |sum, data| Some(sum.and(data.sum()?)));
        // Of a root, COPY itself reads nothing: it has no rows of its own.
        let is_root = relation.kind == "p";
        let condition = relation.condition.clone().or_else(|| is_root.then(String::new));
        let kind = self.data.first().map_or(DataKind::Table, |first| first.kind);
        Ok(Job {
            sql: self.target.whole(&relation.sql(), condition.as_deref(), RowForm::of(kind, encoding)),
            kind,
            what,
            rows: self.data.iter().map(|data| data.rows).sum(),
            sum: sums.filter(|_| self.same_columns),
        })
    }
}

impl Outcome {
    fn put(self, found: &mut DeepDatabase) {
        let Job { what, rows, sum, .. } = self.job;
        match self.counted {
            Err(error) => found.not_compared.push(format!("{what}: {error}")),
            Ok(counted) => {
                found.tables += 1;
                found.rows += counted.rows;
                found.tables_summed += u64::from(sum.is_some());
                if counted.rows != rows {
                    found.differences.push(format!("{what}: {} rows, {rows} were dumped", counted.rows));
                } else if sum.is_some_and(|sum| sum != counted.sum) {
                    found.differences.push(format!("{what}: rows differ from those that were dumped ({rows} of each)"));
                }
            }
        }
    }
}

async fn work(ctx: &Context, client: &mut Client, queue: &Mutex<VecDeque<Job>>) -> Result<Vec<Outcome>, DumpError> {
    let next = || queue.lock().unwrap_or_else(PoisonError::into_inner).pop_front();
    let mut done = Vec::new();
    while let Some(job) = next() {
        ctx.check()?;
        let counted = match count_rows(client, &job.sql, job.kind).await {
            Ok(counted) => Ok(counted),
            Err(DumpError::Wire(error)) if error.sqlstate().is_some() => Err(error.to_string()),
            Err(error) => return Err(error),
        };
        ctx.progress.advance(job.rows);
        done.push(Outcome { job, counted });
    }
    Ok(done)
}

async fn compare_large_objects(
    client: &mut Client,
    archive: &Archive,
    data: &DumpedData,
    found: &mut DeepDatabase,
) -> Result<(), DumpError> {
    let bad = |reason: String| DumpError::Failed { reason, hint: None };
    let entry = archive.entry(data.entry).ok_or_else(|| bad(format!("no entry {}", data.entry)))?;
    let oids = large_objects::oids(archive, entry).map_err(|error| bad(error.to_string()))?;
    if oids.len() as u64 != data.rows {
        // Some could not be read when the dump was made, and are empty.
        found.not_compared.push(format!("large objects: {} of {} were read", data.rows, oids.len()));
        return Ok(());
    }
    match large_objects::dump(client, &oids, &mut large_objects::Nowhere).await {
        Ok(sum) => {
            found.large_objects += data.rows;
            if data.sum().is_some_and(|dumped| dumped != sum) {
                found.differences.push(format!("large objects {} differ from those that were dumped", data.name));
            }
        }
        Err(DumpError::Wire(error)) if error.sqlstate().is_some() => {
            found.differences.push(format!("large objects {}: {error}", data.name));
        }
        Err(error) => return Err(error),
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_not_as_it_was_is_said() {
        let sum = |rows: &[&str]| {
            let mut sum = RowSum::default();
            rows.iter().for_each(|row| sum.add(row.as_bytes()));
            sum
        };
        let check = |dumped: (u64, Option<RowSum>), now: (u64, RowSum), expect: &str| {
            let job =
                Job { what: "s.t".into(), sql: String::new(), kind: DataKind::Table, rows: dumped.0, sum: dumped.1 };
            let mut found = DeepDatabase::default();
            Outcome { job, counted: Ok(Counted { rows: now.0, sum: now.1 }) }.put(&mut found);
            assert!(found.differences.join(" ").contains(expect), "{found:?}");
            assert_eq!(found.differences.is_empty(), expect.is_empty(), "{found:?}");
        };
        let (ab, ac) = (sum(&["a\n", "b\n"]), sum(&["a\n", "c\n"]));
        check((2, Some(ab)), (2, ab), "");
        check((2, Some(ab)), (2, ac), "rows differ");
        check((2, Some(ab)), (1, sum(&["a\n"])), "1 rows, 2 were dumped");
        check((2, None), (2, ac), "");
        check((2, None), (3, ac), "3 rows");
    }

    #[test]
    fn names_are_taken_apart() {
        let check = |text: &str, schema: &str, name: &str| {
            assert_eq!(qualified(text), Some((schema.to_owned(), name.to_owned())), "{text}");
        };
        check("public.t", "public", "t");
        check("\"Odd \"\"Schema (x)\".\"Odd. Table\"", "Odd \"Schema (x)", "Odd. Table");
        check("s.\"\"\"x\"\"\"", "s", "\"x\"");
        for bad in ["t", "a.b.c", ""] {
            assert_eq!(qualified(bad), None, "{bad}");
        }
    }
}
