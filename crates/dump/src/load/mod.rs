//! Loading a dump: definitions by pg_restore, then data by many sessions at the same time, also within one table, and indexes
//! and constraints as soon as their tables are whole, then the rest by pg_restore. What is done is noted in the target.

mod analyze;
mod create;
mod foreign;
mod globals;
mod graph;
mod lists;
mod mapping;
mod plan;
mod positions;
mod record;
mod restore;
mod run;
mod script;
mod select;
mod sessions;
mod single;
mod source;
mod stages;
mod words;
mod work;

pub(crate) use run::{Done, Load, copy_in_words, is_lost};
pub(crate) use source::{EntryData, Origin, PartData, Place, Source};

pub use foreign::{ForeignReport, foreign};
pub use mapping::Mapping;
pub use select::{LoadSelection, Parts};

use crate::archive::Archive;
use crate::connection::{Server, for_writing};
use crate::{DumpError, StreamReader, ToolSet};
use engine::Context;
use pg_wire::Client;
use repo::dump::{DataKind, DumpManifest, DumpedDatabase};
use repo::{BackupId, Cluster};
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
    /// What has another name here than in the dump.
    pub mapping: Mapping,
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

impl LoadOptions {
    /// Everything, as it was, into what is there; nothing is analyzed.
    pub fn quiet(tools: ToolSet, scratch_dir: PathBuf) -> Self {
        let parts = Parts { definitions: true, data: true, indexes: true };
        Self {
            database: None,
            target: Target::Any,
            selection: LoadSelection { schemas: Vec::new(), tables: Vec::new(), parts, list: None },
            mapping: Mapping::default(),
            globals: false,
            no_owner: false,
            no_privileges: false,
            no_tablespaces: false,
            role: None,
            single_transaction: false,
            on_error: OnError::Stop,
            workers: 1,
            maintenance_memory: None,
            analyze: false,
            tools,
            scratch_dir,
        }
    }
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
    /// Pieces that were there already, of a load that was broken off and went on.
    pub went_on_after: Option<usize>,
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

/// A database of a dump that is to be loaded.
struct Opened {
    reader: StreamReader,
    database: DumpedDatabase,
    archive: Archive,
}

async fn open(cluster: &Cluster, dump: BackupId, name: Option<&str>) -> Result<Opened, DumpError> {
    let manifest = cluster.open_dump(dump).await?;
    let database = choose(&manifest, name)?.clone();
    let reader = StreamReader::new(cluster.clone(), manifest);
    let definitions = reader.whole(database.definitions).await?;
    let archive =
        Archive::parse(&definitions).map_err(|error| DumpError::Failed { reason: error.to_string(), hint: None })?;
    Ok(Opened { reader, database, archive })
}

/// The list of what a load of this selection would load; edited, it is a selection.
pub async fn list(
    cluster: &Cluster,
    dump: BackupId,
    database: Option<&str>,
    selection: &LoadSelection,
) -> Result<String, DumpError> {
    let Opened { database, archive, .. } = open(cluster, dump, database).await?;
    let wanted = selection.wanted(&archive)?;
    Ok(lists::print(&archive, &wanted, &format!("Database {} of dump {dump}", database.name)))
}

/// Loads one database of a dump. A load of the same that was broken off goes on.
pub async fn load(
    ctx: &Context,
    cluster: &Cluster,
    dump: BackupId,
    server: &Server,
    options: &LoadOptions,
) -> Result<LoadReport, DumpError> {
    let begun = Instant::now();
    if let Some((reader, stream)) = script::of(cluster, dump).await? {
        return script::load(ctx, &reader, stream, server, options).await;
    }
    let Opened { reader, database, mut archive } = open(cluster, dump, options.database.as_deref()).await?;
    let major = archive.tool_version().split(|c: char| !c.is_ascii_digit()).next().and_then(|text| text.parse().ok());
    let tools = options.tools.for_major(major.unwrap_or(0), "the dump")?.clone();
    // What is chosen is chosen by the dump's own names.
    let mut wanted = options.selection.wanted(&archive)?;
    if let Some(list) = &options.selection.list {
        let listed = lists::apply(&mut archive, list)?;
        wanted.retain(|id| listed.contains(id));
    }
    let mapped = options.mapping.apply(&mut archive, &mut wanted);
    mapped.iter().for_each(|warning| ctx.progress.warn(warning));
    if database.data.iter().any(|data| data.kind == DataKind::TableBinary && wanted.contains(&data.entry)) {
        refuse_older(server, reader.manifest().facts.pg_version_num / 10_000).await?;
    }
    let mut errors = Vec::new();
    if options.globals {
        errors.extend(globals::load(ctx, &reader, &tools, server).await?);
    }
    let load = Load {
        ctx,
        options,
        tools: &tools,
        archive: &archive,
        wanted: &wanted,
        encoding: &database.encoding,
        source: Source::Dump(reader),
        data: source::of_dump(&database),
        database: Some(&database),
        what: Some(run::in_words(dump, &database.name, options)),
    };
    let done = load.run(server, errors).await?;
    Ok(LoadReport {
        dump,
        database: database.name.clone(),
        into: done.into,
        created: done.created,
        went_on_after: done.went_on,
        tables: done.loaded.tables,
        rows: done.loaded.rows,
        large_objects: done.loaded.large_objects,
        bytes: done.loaded.bytes,
        elapsed_ms: begun.elapsed().as_millis() as u64,
        phases: done.phases,
        errors: done.errors,
    })
}

/// What a type's binary form says is what its own version says and later ones read (`infinity` of an interval, since 17).
async fn refuse_older(server: &Server, major: u32) -> Result<(), DumpError> {
    let client = for_writing(&server.conninfo).await?;
    let there = client.server_version_num().unwrap_or(0) / 10_000;
    client.close().await;
    if there >= major {
        return Ok(());
    }
    Err(DumpError::refused(
        format!("rows of the dump are in the binary form of PostgreSQL {major}, and the server is of version {there}"),
        "load it into its own version or a later one, or make the dump with --copy-format text",
    ))
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
