//! Loading a dump: definitions by pg_restore, data by many sessions at the same time, also within one table, then indexes
//! and constraints by pg_restore with as many sessions.

mod create;
mod data;
mod foreign;
mod globals;
mod restore;
mod select;
mod single;

pub use foreign::{ForeignReport, foreign};
pub use select::{LoadSelection, Parts};

use crate::archive::Archive;
use crate::connection::{Server, for_writing};
use crate::{DumpError, StreamReader, ToolSet};
use engine::{Context, Unit};
use pg_wire::Client;
use repo::dump::{DumpManifest, DumpedDatabase};
use repo::{BackupId, Cluster};
use restore::Restorer;
use serde::Serialize;
use std::path::PathBuf;
use std::time::Instant;

/// What happens when a statement fails.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum OnError {
    /// The load ends; what is loaded stays.
    Stop,
    /// The rest is loaded, and the report lists what failed.
    Continue,
}

/// Where it is loaded into.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Target {
    /// Into the database of the connection, which must have nothing in it.
    Empty,
    /// Into it, whatever is there.
    Any,
    /// Into a database that is made for it from template0, of this name; the connection is to another one.
    Create(String),
}

/// What is asked of a load.
#[derive(Debug, Clone)]
pub struct LoadOptions {
    /// Which database of the dump; the only one otherwise.
    pub database: Option<String>,
    /// Where to.
    pub target: Target,
    /// What of it.
    pub selection: LoadSelection,
    /// Load roles, tablespaces and settings first.
    pub globals: bool,
    /// Objects belong to the login.
    pub no_owner: bool,
    /// No GRANT and REVOKE.
    pub no_privileges: bool,
    /// Everything in the default tablespace.
    pub no_tablespaces: bool,
    /// `SET ROLE` first.
    pub role: Option<String>,
    /// All or nothing, by one session.
    pub single_transaction: bool,
    /// What happens when a statement fails.
    pub on_error: OnError,
    /// Sessions at the same time.
    pub workers: usize,
    /// `maintenance_work_mem` for making indexes; the server's own otherwise.
    pub maintenance_memory: Option<String>,
    /// Whether tables are analyzed at the end.
    pub analyze: bool,
    /// PostgreSQL's programs.
    pub tools: ToolSet,
    /// For a small file with the definitions.
    pub scratch_dir: PathBuf,
}

/// A load that came to its end.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct LoadReport {
    /// The dump.
    pub dump: BackupId,
    /// The database of the dump.
    pub database: String,
    /// The database that it is in now.
    pub into: String,
    /// Whether that was made for it.
    pub created: bool,
    /// Tables whose data were loaded.
    pub tables: u64,
    /// Rows.
    pub rows: u64,
    /// Large objects.
    pub large_objects: u64,
    /// Plain bytes of data.
    pub bytes: u64,
    /// How long it took.
    pub elapsed_ms: u64,
    /// How long each phase took.
    pub phases: Vec<Phase>,
    /// What failed, with `OnError::Continue`.
    pub errors: Vec<String>,
}

/// A phase of a load.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Phase {
    /// Its name.
    pub name: String,
    /// How long it took.
    pub elapsed_ms: u64,
}

/// The database of a dump that is meant.
pub fn choose<'a>(manifest: &'a DumpManifest, name: Option<&str>) -> Result<&'a DumpedDatabase, DumpError> {
    let all = &manifest.facts.databases;
    let names = || all.iter().map(|database| database.name.as_str()).collect::<Vec<_>>().join(", ");
    match (name, all.as_slice()) {
        (None, [only]) => Ok(only),
        (None, _) => Err(DumpError::refused(
            format!("dump {} holds {} databases: {}", manifest.facts.dump, all.len(), names()),
            "say which one with --database",
        )),
        (Some(name), _) => all.iter().find(|database| database.name == name).ok_or_else(|| {
            let what = format!("dump {} has no database {name:?}", manifest.facts.dump);
            DumpError::not_found(what, format!("it has {}", names()))
        }),
    }
}

/// Loads one database of a dump.
pub async fn load(
    ctx: &Context,
    cluster: &Cluster,
    dump: BackupId,
    server: &Server,
    options: &LoadOptions,
) -> Result<LoadReport, DumpError> {
    let begun = Instant::now();
    let manifest = cluster.open_dump(dump).await?;
    let database = choose(&manifest, options.database.as_deref())?.clone();
    let reader = StreamReader::new(cluster.clone(), manifest);
    let definitions = reader.whole(database.definitions).await?;
    let archive =
        Archive::parse(&definitions).map_err(|error| DumpError::Failed { reason: error.to_string(), hint: None })?;
    let major = archive.tool_version().split(|c: char| !c.is_ascii_digit()).next().and_then(|text| text.parse().ok());
    let tools = options.tools.for_major(major.unwrap_or(0), "the dump")?.clone();
    let wanted = options.selection.wanted(&archive)?;
    let mut errors = Vec::new();
    if options.globals {
        errors.extend(globals::load(ctx, &reader, &tools, server).await?);
    }
    let (server, created) = match &options.target {
        Target::Create(name) => (create::create(ctx, server, Some(&archive), name, options).await?, true),
        Target::Any | Target::Empty => (server.clone(), false),
    };
    let mut client = for_writing(&server.conninfo).await?;
    if options.target == Target::Empty && !options.selection.is_data_only() {
        refuse_occupied(&mut client, &server.conninfo.dbname).await?;
    }
    let restorer = Restorer::new(ctx, options, &tools, &server, &archive, &wanted, dump)?;
    let mut load = Load { ctx, options, server: &server, reader: &reader, restorer, phases: Vec::new(), errors };
    let loaded = if options.single_transaction {
        load.single(&archive, &database, &wanted).await?
    } else {
        load.parallel(&archive, &database, &wanted).await?
    };
    if options.analyze {
        load.analyze(&mut client).await?;
    }
    client.close().await;
    Ok(LoadReport {
        dump,
        database: database.name.clone(),
        into: server.conninfo.dbname.clone(),
        created,
        tables: loaded.tables,
        rows: loaded.rows,
        large_objects: loaded.large_objects,
        bytes: loaded.bytes,
        elapsed_ms: begun.elapsed().as_millis() as u64,
        phases: load.phases,
        errors: load.errors,
    })
}

/// What is there already would be mixed with what is loaded.
async fn refuse_occupied(client: &mut Client, name: &str) -> Result<(), DumpError> {
    let sql = "SELECT pg_catalog.format('%I.%I', n.nspname, c.relname) AS name \
         FROM pg_catalog.pg_class c JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace \
         WHERE n.nspname !~ '^pg_' AND n.nspname <> 'information_schema' AND NOT EXISTS ( \
          SELECT FROM pg_catalog.pg_depend d WHERE d.classid = 'pg_catalog.pg_class'::pg_catalog.regclass \
           AND d.objid = c.oid AND d.deptype = 'e') LIMIT 1";
    match client.query_opt(sql, &[]).await? {
        None => Ok(()),
        Some(row) => Err(DumpError::refused(
            format!("database {name} is not empty: it has {}, for one", row.str("name")?),
            "load into an empty database, have one made with --create NAME, or say --force to load into this one",
        )),
    }
}

/// What was loaded.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Loaded {
    pub(crate) tables: u64,
    pub(crate) rows: u64,
    pub(crate) large_objects: u64,
    pub(crate) bytes: u64,
}

/// A load on its way.
struct Load<'a> {
    ctx: &'a Context,
    options: &'a LoadOptions,
    server: &'a Server,
    reader: &'a StreamReader,
    restorer: Restorer<'a>,
    phases: Vec<Phase>,
    errors: Vec<String>,
}

impl Load<'_> {
    fn begin(&self, name: &str) -> Instant {
        self.ctx.progress.phase(name, None, Unit::Items);
        Instant::now()
    }

    fn done(&mut self, name: &str, begun: Instant) {
        self.phases.push(Phase { name: name.to_owned(), elapsed_ms: begun.elapsed().as_millis() as u64 });
    }

    async fn parallel(
        &mut self,
        archive: &Archive,
        database: &DumpedDatabase,
        wanted: &select::Wanted,
    ) -> Result<Loaded, DumpError> {
        let parts = self.options.selection.parts;
        if parts.definitions {
            let begun = self.begin("making tables");
            let failed = self.restorer.section("pre-data", 1).await?;
            self.errors.extend(failed);
            self.done("definitions", begun);
        }
        let mut loaded = Loaded::default();
        if parts.data {
            let begun = self.begin("loading data");
            // What stands between the data: sequences' values, and the large objects themselves.
            let failed = self.restorer.section("data", 1).await?;
            self.errors.extend(failed);
            let (done, failed) =
                data::load(self.ctx, self.options, self.server, self.reader, archive, database, wanted).await?;
            loaded = done;
            self.errors.extend(failed);
            self.done("data", begun);
        }
        if parts.indexes {
            let begun = self.begin("making indexes and constraints");
            let failed = self.restorer.section("post-data", self.options.workers).await?;
            self.errors.extend(failed);
            self.done("indexes", begun);
        }
        Ok(loaded)
    }

    async fn single(
        &mut self,
        archive: &Archive,
        database: &DumpedDatabase,
        wanted: &select::Wanted,
    ) -> Result<Loaded, DumpError> {
        let begun = self.begin("loading in one transaction");
        let loaded = single::load(self.ctx, &self.restorer, self.reader, archive, database, wanted).await?;
        self.done("all", begun);
        Ok(loaded)
    }

    async fn analyze(&mut self, client: &mut Client) -> Result<(), DumpError> {
        let begun = Instant::now();
        let sql = "SELECT pg_catalog.format('%I.%I', n.nspname, c.relname) AS name \
             FROM pg_catalog.pg_class c JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace \
             WHERE n.nspname !~ '^pg_' AND n.nspname <> 'information_schema' AND c.relkind IN ('r', 'm') \
             AND c.relpersistence <> 't' ORDER BY pg_catalog.pg_relation_size(c.oid) DESC";
        let tables: Vec<String> =
            client.query(sql, &[]).await?.into_iter().map(|row| row.get("name")).collect::<Result<_, _>>()?;
        let failed = data::analyze(self.ctx, self.server, tables, self.options.workers).await?;
        self.errors.extend(failed);
        self.done("analyze", begun);
        Ok(())
    }
}
