//! Making a dump: intent, snapshots, definitions, data, manifest, in this order.

use crate::connection::{Server, for_reading, hand_over};
use crate::reading::{Read, Reading};
use crate::sink::{Sinks, Written};
use crate::tables::{self, Holder};
use crate::tools::{Tools, last_words};
use crate::{CopyFormat, Databases, DumpError, DumpOptions, DumpReport, Globals, binary, data};
use engine::{Context, Unit};
use jiff::Timestamp;
use pg_wire::Client;
use repo::dump::{DumpFacts, DumpIntent, DumpManifest, DumpObject, DumpedDatabase};
use repo::{BackupId, Cluster};
use std::collections::HashSet;
use std::sync::Arc;

/// What a server says of itself.
struct About {
    version: String,
    version_num: u32,
    system_id: Option<String>,
}

/// Dumps databases of a server into the repository.
pub async fn run(
    ctx: &Context,
    cluster: &Cluster,
    server: &Server,
    options: &DumpOptions,
) -> Result<DumpReport, DumpError> {
    let started = ctx.now();
    ctx.progress.phase("connecting", None, Unit::Items);
    let mut client = for_reading(&server.conninfo).await?;
    let server = server.pinned(&client)?;
    let about = about(&mut client).await?;
    let tools = options.tools.for_major(about.version_num / 10_000, "the server")?;
    let names = names(&mut client, &server, &options.databases).await?;
    client.close().await;
    let dump = begin(ctx, cluster, started).await?;
    let making = Making { ctx, cluster, server: &server, options, tools, dump };
    let made = ctx.or_cancel(making.make(started, about, names)).await;
    match made.and_then(|made| made) {
        Ok(facts) => Ok(DumpReport::of(&facts)),
        Err(error) => {
            // What was stored is of no use to anybody. That it stays when this fails too is seen by `list`.
            if let Err(left) = cluster.delete_dump(dump, ctx.now()).await {
                tracing::warn!(error = %left, "what a failed dump stored could not be deleted");
            }
            Err(error)
        }
    }
}

/// Takes an ID and says that a dump begins.
pub(crate) async fn begin(ctx: &Context, cluster: &Cluster, started: Timestamp) -> Result<BackupId, DumpError> {
    let holder = engine::lease_holder();
    for attempt in 1.. {
        let dump = cluster.new_backup_id(ctx.now()).await?;
        let intent = DumpIntent {
            dump,
            host: holder.host.clone(),
            pid: holder.pid,
            boot: holder.boot.clone(),
            process_start: holder.process_start,
            started,
        };
        match cluster.put_dump_intent(&intent).await {
            Ok(()) => return Ok(dump),
            Err(repo::RepoError::Conflict { .. }) if attempt < 10 => {}
            Err(error) => return Err(error.into()),
        }
    }
    unreachable!("the last attempt returns")
}

async fn about(client: &mut Client) -> Result<About, DumpError> {
    let version_num = client.server_version_num().unwrap_or(0);
    let version = client.parameter("server_version").unwrap_or_default().to_owned();
    if version_num < 140_000 {
        return Err(DumpError::refused(
            format!("PostgreSQL {version}: dumps are made of PostgreSQL 14 and later"),
            "parts of tables are read by ranges of ctid, which older servers cannot do",
        ));
    }
    // Roles without the right to ask dump all the same.
    let sql = "SELECT system_identifier::text AS id FROM pg_catalog.pg_control_system()";
    let system_id = client.query_one(sql, &[]).await.and_then(|row| row.get("id")).ok();
    Ok(About { version, version_num, system_id })
}

async fn names(client: &mut Client, server: &Server, databases: &Databases) -> Result<Vec<String>, DumpError> {
    if let Databases::Named(names) = databases {
        let mut seen = HashSet::new();
        let names: Vec<String> = names.iter().filter(|name| seen.insert(name.as_str())).cloned().collect();
        return Ok(if names.is_empty() { vec![server.conninfo.dbname.clone()] } else { names });
    }
    let sql = "SELECT datname AS name FROM pg_catalog.pg_database \
         WHERE datallowconn AND NOT datistemplate ORDER BY datname";
    Ok(client.query(sql, &[]).await?.into_iter().map(|row| row.get("name")).collect::<Result<_, _>>()?)
}

/// What a dump is made with.
struct Making<'a> {
    ctx: &'a Context,
    cluster: &'a Cluster,
    server: &'a Server,
    options: &'a DumpOptions,
    tools: &'a Tools,
    dump: BackupId,
}

/// What was stored so far.
#[derive(Default)]
pub(crate) struct Stored {
    pub(crate) streams: Vec<Written>,
    pub(crate) objects: Vec<DumpObject>,
}

impl Stored {
    pub(crate) fn add(&mut self, written: Written) -> u32 {
        self.streams.push(written);
        self.streams.len() as u32 - 1
    }
}

impl Making<'_> {
    async fn make(&self, started: Timestamp, about: About, names: Vec<String>) -> Result<DumpFacts, DumpError> {
        let sinks = Sinks::new(self.cluster.clone(), self.dump, self.options.compression);
        let mut stored = Stored::default();
        let globals = match self.options.globals {
            Globals::Leave => None,
            Globals::Include => Some(self.globals(&sinks, &mut stored).await?),
        };
        let mut waiting = Vec::new();
        if self.options.synchronised && names.len() > 1 {
            waiting = self.all_at_once(&names).await?;
        }
        waiting.reverse();
        let mut databases = Vec::new();
        for name in &names {
            let read = self.reading().read(name, waiting.pop()).await?;
            databases.push(self.database(name, read, &sinks, &mut stored).await?);
        }
        self.finish(started, about, globals, databases, &sinks, stored).await
    }

    fn reading(&self) -> Reading<'_> {
        Reading {
            ctx: self.ctx,
            server: self.server,
            tools: self.tools,
            selection: &self.options.selection,
            role: self.options.role.as_deref(),
            row_security: self.options.row_security,
        }
    }

    /// All databases' snapshots, one right after the other: everything that takes time comes before.
    async fn all_at_once(&self, names: &[String]) -> Result<Vec<Holder>, DumpError> {
        self.ctx.progress.phase("locking tables", Some(names.len() as u64), Unit::Items);
        let mut ready = Vec::new();
        for name in names {
            ready.push(self.reading().locked(name).await?);
            self.ctx.progress.advance(1);
        }
        let all = ready.into_iter().map(|(client, locked)| tables::snapshot(client, locked));
        futures::future::try_join_all(all).await
    }

    async fn globals(&self, sinks: &Arc<Sinks>, stored: &mut Stored) -> Result<u32, DumpError> {
        self.ctx.progress.phase("reading roles and tablespaces", None, Unit::Items);
        let mut printed = self.dumpall(&[]).await?;
        if let Err(said) = &printed
            && said.contains("pg_authid")
        {
            // Passwords are for superusers.
            printed = self.dumpall(&["--no-role-passwords"]).await?;
            self.ctx.progress.warn("roles are dumped without their passwords, which only a superuser may read");
        }
        let printed = printed.map_err(|said| {
            DumpError::failed(
                format!("{} failed:\n  {said}", self.tools.named("pg_dumpall")),
                "leave out --globals, or use a login that may read roles",
            )
        })?;
        let mut sink = sinks.sink();
        sink.write(&printed).await?;
        let written = sink.end().await?;
        stored.objects.extend(sink.finish().await?);
        Ok(stored.add(written))
    }

    async fn dumpall(&self, more: &[&str]) -> Result<Result<Vec<u8>, String>, DumpError> {
        let mut command = self.tools.command("pg_dumpall");
        command.arg("--globals-only").args(more);
        hand_over(&mut command, &self.server.conninfo);
        let output = self.tools.output(self.ctx, "pg_dumpall", command).await?;
        Ok(if output.status.success() { Ok(output.stdout) } else { Err(last_words(&output.stderr)) })
    }

    async fn database(
        &self,
        name: &str,
        read: Read,
        sinks: &Arc<Sinks>,
        stored: &mut Stored,
    ) -> Result<DumpedDatabase, DumpError> {
        let server = self.server.database(name)?;
        let Read { mut holder, definitions, encoding, mut unread } = read;
        let mut sink = sinks.sink();
        sink.write(&definitions.bytes).await?;
        let place = stored.add(sink.end().await?);
        stored.objects.extend(sink.finish().await?);

        let binary = match self.options.copy_format {
            // Text in binary rows is in the session's encoding, which is UTF-8.
            CopyFormat::Binary if encoding == "UTF8" => binary::tables(&mut holder.client).await?,
            CopyFormat::Binary | CopyFormat::Text => HashSet::new(),
        };
        let cut = data::Cut {
            binary,
            part_bytes: self.options.part_bytes,
            readers: data::Readers::of(&holder.client, self.options.workers),
        };
        let mut plan = data::plan(&definitions.archive, &mut holder, &encoding, &cut).await?;
        unread.append(&mut plan.unread);
        let copied = data::copy(self.ctx, &server, &mut holder, plan, sinks, self.options).await?;
        let mut entries = copied.entries;
        let first = stored.streams.len() as u32;
        entries.iter_mut().flat_map(|entry| &mut entry.parts).for_each(|part| part.stream += first);
        stored.streams.extend(copied.streams);
        stored.objects.extend(copied.objects);
        let Holder { client, time, lsn, .. } = holder;
        client.close().await;
        Ok(DumpedDatabase {
            name: name.to_owned(),
            encoding,
            snapshot_time: time,
            snapshot_lsn: lsn,
            tools: definitions.archive.tool_version(),
            definitions: place,
            data: entries,
            unread,
        })
    }

    async fn finish(
        &self,
        started: Timestamp,
        about: About,
        globals: Option<u32>,
        databases: Vec<DumpedDatabase>,
        sinks: &Sinks,
        stored: Stored,
    ) -> Result<DumpFacts, DumpError> {
        let times = databases.iter().map(|database| database.snapshot_time.as_microsecond());
        let spread = times.clone().max().zip(times.min()).map(|(last, first)| (last - first).unsigned_abs());
        let warnings = databases
            .iter()
            .flat_map(|database| {
                database.unread.iter().map(|unread| format!("{}: {}: {}", database.name, unread.what, unread.why))
            })
            .collect();
        let (bytes, stored_bytes) = sinks.bytes();
        let facts = DumpFacts {
            dump: self.dump,
            cluster: self.cluster.name().clone(),
            label: self.options.label.clone(),
            made_by: self.options.made_by.clone(),
            host: engine::host_facts().name,
            started,
            finished: self.ctx.now(),
            system_id: about.system_id,
            pg_version: about.version,
            pg_version_num: about.version_num,
            compression: self.options.compression.to_string(),
            bytes,
            stored_bytes,
            synchronised_within_us: spread.filter(|_| databases.len() > 1),
            globals,
            databases,
            selection: self.options.selection.switches().to_vec(),
            imported: None,
            warnings,
        };
        commit(self.ctx, self.cluster, facts, stored).await
    }
}

/// Writes the manifest, which makes the dump.
pub(crate) async fn commit(
    ctx: &Context,
    cluster: &Cluster,
    facts: DumpFacts,
    stored: Stored,
) -> Result<DumpFacts, DumpError> {
    let streams = stored.streams.into_iter().map(|written| written.chunks).collect();
    let manifest = DumpManifest::assemble(facts, stored.objects, streams).ok_or_else(|| DumpError::Failed {
        reason: "a chunk refers to a data object that was not written".into(),
        hint: None,
    })?;
    let dump = manifest.facts.dump;
    ctx.progress.phase("writing the manifest", None, Unit::Items);
    if cluster.dump_intent(dump).await?.is_none() {
        return Err(DumpError::failed(format!("dump {dump} was deleted while it was made"), "make it again"));
    }
    cluster.put_dump_manifest(&manifest).await?;
    Ok(manifest.facts)
}
