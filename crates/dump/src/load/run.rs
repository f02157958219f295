//! A load from its beginning to its end: definitions, data and what is built of them, the rest, each stage once, also over
//! several runs.

use super::plan::Planning;
use super::record::{self, Earlier, Record};
use super::restore::Restorer;
use super::select::{self, Wanted};
use super::sessions::Settings;
use super::source::{EntryData, Source};
use super::stages::{Stages, stages};
use super::{LoadOptions, Loaded, OnError, Phase, Target, analyze, create, single, work};
use crate::DumpError;
use crate::archive::{Archive, Entry};
use crate::connection::{Server, for_writing};
use crate::tools::Tools;
use engine::{Context, Unit};
use pg_wire::Client;
use repo::dump::DumpedDatabase;
use std::collections::HashSet;
use std::time::Instant;

/// What is loaded, and how.
pub(crate) struct Load<'a> {
    pub(crate) ctx: &'a Context,
    pub(crate) options: &'a LoadOptions,
    pub(crate) tools: &'a Tools,
    pub(crate) archive: &'a Archive,
    pub(crate) wanted: &'a Wanted,
    pub(crate) encoding: &'a str,
    pub(crate) source: Source,
    pub(crate) data: Vec<EntryData>,
    /// The database of the dump, for a load in a single transaction.
    pub(crate) database: Option<&'a DumpedDatabase>,
    /// What is loaded and how, in words: who loads the same again goes on with it. None for what cannot be had again.
    pub(crate) what: Option<String>,
}

/// What came of it.
pub(crate) struct Done {
    pub(crate) into: String,
    pub(crate) created: bool,
    /// Pieces that an earlier run had done.
    pub(crate) went_on: Option<usize>,
    pub(crate) loaded: Loaded,
    pub(crate) phases: Vec<Phase>,
    pub(crate) errors: Vec<String>,
}

/// A database that is taken for a load.
struct Taken {
    server: Server,
    /// Open until the end: it keeps others away.
    client: Client,
    created: bool,
    went_on: Option<usize>,
    record: Record,
    settings: Settings,
}

impl Load<'_> {
    /// Loads.
    pub(crate) async fn run(&self, server: &Server, errors: Vec<String>) -> Result<Done, DumpError> {
        let taken = self.take(server).await?;
        let mut progress = Progress { ctx: self.ctx, phases: Vec::new(), errors, loaded: Loaded::default() };
        let Taken { server, mut client, record, settings, .. } = taken;
        let locks = locks(&mut client).await?;
        let restorer = Restorer::new(self.ctx, self.options, self.tools, &server, self.archive, locks)?;
        let parts = self.options.selection.parts;
        if let (true, Source::Dump(reader), Some(database)) =
            (self.options.single_transaction, &self.source, self.database)
        {
            let begun = progress.begin("loading in one transaction");
            progress.loaded = single::load(self.ctx, &restorer, reader, self.archive, database, self.wanted).await?;
            progress.done("all", begun);
        } else {
            let stages = stages(self.archive, self.wanted, parts, self.builds());
            self.stages(&mut progress, &restorer, (&server, &mut client), &settings, &record, stages).await?;
        }
        if self.options.analyze {
            self.analyze(&mut progress, (&server, &mut client), &settings).await?;
        }
        // Whatever other sessions left to be written later is durable when this is.
        client.simple_query("SELECT pg_catalog.txid_current()").await?;
        let into = server.conninfo.dbname.clone();
        client.close().await;
        Ok(Done {
            into,
            created: taken.created,
            went_on: taken.went_on,
            loaded: progress.loaded,
            phases: progress.phases,
            errors: progress.errors,
        })
    }

    /// Whether indexes and constraints are made by sessions of our own: they take a definition as it stands when its text is
    /// such as these sessions speak.
    fn builds(&self) -> bool {
        let says = |kind: &str, what: &[u8]| {
            let definition = self.archive.of_kind(kind).and_then(|entry| entry.definition.as_deref());
            definition.is_some_and(|text| text.windows(what.len()).any(|some| some == what))
        };
        self.encoding == "UTF8" && says("STDSTRINGS", b"'on'") && says("SEARCHPATH", b"search_path")
    }

    /// Makes or finds the database, and what an earlier run has done in it.
    async fn take(&self, server: &Server) -> Result<Taken, DumpError> {
        let (server, created) = match &self.options.target {
            Target::Empty | Target::Any => (server.clone(), false),
            Target::Create(name) if create::is_there(server, name).await? => {
                let there = server.database(name)?;
                let mut client = for_writing(&there.conninfo).await?;
                let earlier = record::earlier(&mut client).await?;
                client.close().await;
                if earlier == Earlier::Nothing {
                    return Err(create::there_already(name));
                }
                (there, false)
            }
            Target::Create(name) => {
                (create::create(self.ctx, server, Some(self.archive), name, self.options).await?, true)
            }
        };
        let name = &server.conninfo.dbname;
        let mut client = for_writing(&server.conninfo).await?;
        let settings = Settings::of(&mut client, self.options).await?;
        if let Some(role) = &self.options.role {
            client.simple_query(&format!("SET ROLE {}", crate::names::quoted(role))).await?;
        }
        record::only_one(&mut client, name).await?;
        let run = format!("{} {} {}", engine::host_facts().name, std::process::id(), self.ctx.now());
        let (record, went_on) = match (record::earlier(&mut client).await?, &self.what) {
            (Earlier::BrokenOff(earlier), Some(what)) if earlier == *what && !self.options.single_transaction => {
                let record = Record::go_on(self.ctx, &mut client, &run).await?;
                let done = record.len();
                (record, Some(done))
            }
            (Earlier::BrokenOff(earlier), _) => return Err(other_load(name, &earlier)),
            (Earlier::Nothing, what) => {
                if self.options.target == Target::Empty && self.options.selection.parts.definitions {
                    super::refuse_occupied(&mut client, name).await?;
                }
                let record = match what {
                    Some(what) if !self.options.single_transaction => Record::begin(&mut client, what, &run).await?,
                    _ => Record::none(),
                };
                (record, None)
            }
        };
        Ok(Taken { server, client, created, went_on, record, settings })
    }

    async fn stages(
        &self,
        progress: &mut Progress<'_>,
        restorer: &Restorer<'_>,
        (server, client): (&Server, &mut Client),
        settings: &Settings,
        record: &Record,
        stages: Stages,
    ) -> Result<(), DumpError> {
        let begun = progress.begin("making tables");
        for (name, ids) in [("definitions", &stages.before), ("values", &stages.values)] {
            progress.errors.extend(restorer.entries(name, ids, record).await?);
        }
        progress.done("definitions", begun);

        let parts = self.options.selection.parts;
        let given = self.options.target == Target::Any && self.options.on_error == OnError::Continue;
        let planning = Planning {
            archive: self.archive,
            record,
            encoding: self.encoding,
            made: if given { HashSet::new() } else { stages.before.iter().copied().collect() },
            workers: self.options.workers,
            in_tablespaces: !self.options.no_tablespaces,
        };
        let data = self.data.iter().filter(|data| parts.data && self.wanted.contains(&data.entry));
        let plan = planning.plan(&data.cloned().collect::<Vec<_>>(), &stages.built)?;
        let begun = Instant::now();
        let what = match (plan.bytes, stages.built.is_empty()) {
            (0, _) => "making indexes and constraints",
            (_, true) => "loading data",
            _ => "loading data, and making indexes and constraints",
        };
        self.ctx.progress.phase(what, Some(plan.bytes), Unit::Bytes);
        let source = &self.source;
        let (loaded, failed) = work::run(self.ctx, self.options, server, settings, source, record, plan).await?;
        progress.loaded = loaded;
        progress.errors.extend(failed);
        progress.done("data and indexes", begun);

        let begun = progress.begin("making the rest");
        for (name, ids) in [("rest", &stages.after), ("privileges", &stages.privileges)] {
            progress.errors.extend(restorer.entries(name, ids, record).await?);
        }
        let plan = planning.plan(&[], &stages.views)?;
        let (_, failed) = work::run(self.ctx, self.options, server, settings, source, record, plan).await?;
        progress.errors.extend(failed);
        for (name, ids) in [("views", &stages.refreshed), ("statistics", &stages.statistics)] {
            progress.errors.extend(restorer.entries(name, ids, record).await?);
        }
        if stages.last.is_empty() {
            client.simple_query(&record.drop()).await?;
        } else {
            progress.errors.extend(restorer.last("event triggers", &stages.last, record).await?);
            // With --on-error continue nothing of it is sure.
            if record.is_kept() && record::earlier(client).await? != Earlier::Nothing {
                client.simple_query(&record.drop()).await?;
            }
        }
        progress.done("rest", begun);
        Ok(())
    }

    /// ANALYZE, where the dump does not have the statistics.
    async fn analyze(
        &self,
        progress: &mut Progress<'_>,
        (server, client): (&Server, &mut Client),
        settings: &Settings,
    ) -> Result<(), DumpError> {
        let wanted = self.archive.entries.iter().filter(|entry| self.wanted.contains(&entry.dump_id));
        let wanted: Vec<&Entry> = wanted.collect();
        if wanted.iter().any(|entry| entry.is("STATISTICS DATA")) {
            return Ok(());
        }
        let text =
            |text: &crate::archive::Text| String::from_utf8_lossy(text.as_deref().unwrap_or_default()).into_owned();
        let kinds = ["TABLE", "TABLE DATA", "MATERIALIZED VIEW"];
        let loaded = wanted.iter().filter(|entry| kinds.iter().any(|kind| entry.is(kind)));
        let loaded = loaded.map(|entry| (text(&entry.namespace), text(&entry.tag))).collect();
        let begun = Instant::now();
        let tables = analyze::tables(client, &loaded).await?;
        let failed = analyze::analyze(self.ctx, server, settings, tables, self.options.workers).await?;
        progress.errors.extend(failed);
        progress.done("analyze", begun);
        Ok(())
    }
}

fn other_load(name: &str, earlier: &str) -> DumpError {
    let then = match earlier.starts_with(COPY) {
        true => "its snapshot of the origin is gone, so it cannot go on: drop the database, and copy it again",
        false => "say the same as then, and it goes on; else drop the database",
    };
    DumpError::refused(
        format!("database {name} holds what another load left when it was broken off ({earlier})"),
        format!("{then}, or have it forgotten (DROP SCHEMA {} CASCADE)", record::SCHEMA),
    )
}

/// What the record of a copy from another server begins with.
const COPY: &str = "copy of";

/// A copy from another server in words, which are those of one snapshot only: a later run has another.
pub(crate) fn copy_in_words(database: &str, snapshot: &str, time: jiff::Timestamp) -> String {
    format!("{COPY} database {database} as it was at {time}, snapshot {snapshot}")
}

/// Whether an error says that the connection to the server is lost, or that the server restarts: what it has may be gone on with.
pub(crate) fn is_lost(error: &DumpError) -> bool {
    const SAID: [&str; 5] = [
        "server closed the connection",
        "terminating connection",
        "the database system is",
        "connection to server",
        "is being loaded by somebody else",
    ];
    match error {
        DumpError::Wire(error) => error.is_transient(),
        // What pg_restore says; its messages are in English here.
        DumpError::Failed { reason, .. } | DumpError::Refused { reason, .. } => {
            SAID.iter().any(|said| reason.contains(said))
        }
        _ => false,
    }
}

/// Locks that the server has room for.
async fn locks(client: &mut Client) -> Result<usize, DumpError> {
    let sql = "SELECT (pg_catalog.current_setting('max_locks_per_transaction')::int8 * \
         (pg_catalog.current_setting('max_connections')::int8 + \
         pg_catalog.current_setting('max_prepared_transactions')::int8))::text AS locks";
    Ok(client.query_one(sql, &[]).await?.get("locks")?)
}

/// How far a load is.
struct Progress<'a> {
    ctx: &'a Context,
    phases: Vec<Phase>,
    errors: Vec<String>,
    loaded: Loaded,
}

impl Progress<'_> {
    fn begin(&self, name: &str) -> Instant {
        self.ctx.progress.phase(name, None, Unit::Items);
        Instant::now()
    }

    fn done(&mut self, name: &str, begun: Instant) {
        self.phases.push(Phase { name: name.to_owned(), elapsed_ms: begun.elapsed().as_millis() as u64 });
    }
}

/// What is asked for, in words that are the same for the same.
pub(super) fn in_words(dump: repo::BackupId, database: &str, options: &LoadOptions) -> String {
    let LoadOptions { selection, no_owner, no_privileges, no_tablespaces, role, on_error, .. } = options;
    let select::LoadSelection { schemas, tables, parts, list } = selection;
    let mut words = format!("dump {dump}, database {database}{}", options.mapping.in_words());
    let mut add = |what: &str, list: &[String]| {
        if !list.is_empty() {
            words += &format!(", {what} {}", list.join(" "));
        }
    };
    add("schemas", schemas);
    add("tables", tables);
    for (asked, what) in [
        (!parts.definitions, "without definitions"),
        (!parts.data, "without data"),
        (!parts.indexes, "without indexes"),
        (*no_owner, "--no-owner"),
        (*no_privileges, "--no-privileges"),
        (*no_tablespaces, "--no-tablespaces"),
        (*on_error == OnError::Continue, "--on-error continue"),
    ] {
        if asked {
            words += &format!(", {what}");
        }
    }
    if let Some(list) = list {
        let lines = list.lines().filter_map(|line| line.split(';').next()?.split_whitespace().next());
        words += &format!(", entries {}", lines.collect::<Vec<_>>().join(" "));
    }
    words + &role.as_ref().map_or_else(String::new, |role| format!(", --role {role}"))
}
