//! The data of one database: what is to be copied, in parts, by many workers on one snapshot.

use crate::connection::{Server, for_reading_as};
use crate::copy::{CopyTarget, RowForm};
use crate::load::{EntryData, PartData, Place};
use crate::sink::{Sink, Sinks, Written};
use crate::tables::{Holder, Relation, join_snapshot};
use crate::{DumpError, DumpOptions, archive::Archive, binary, large_objects};
use engine::{Context, Unit};
use pg_wire::Client;
use repo::dump::{DataKind, DumpObject, DumpedData, DumpedPart, RowSum, Unread};
use std::collections::{HashSet, VecDeque};
use std::sync::{Arc, Mutex, PoisonError};
use tokio::task::JoinSet;

/// Large objects in one part.
const LARGE_OBJECTS_IN_PART: usize = 1000;

/// Something that one worker copies in one go.
#[derive(Debug, Clone)]
struct Job {
    /// Which of the entries, and which part of it.
    entry: usize,
    part: usize,
    kind: DataKind,
    what: What,
    /// Expected bytes.
    bytes: u64,
}

#[derive(Debug, Clone)]
enum What {
    /// A COPY statement, and the table that it reads; a foreign table cannot be locked. What comes is cut into parts of so many
    /// bytes.
    Copy { sql: String, table: String, lockable: bool, cut: u64 },
    /// Large objects.
    LargeObjects(Vec<u32>),
}

/// What is to be copied.
pub(crate) struct Plan {
    entries: Vec<DumpedData>,
    jobs: VecDeque<Job>,
    pub(crate) bytes: u64,
    pub(crate) unread: Vec<Unread>,
}

impl Plan {
    /// As it is loaded into another server, with nothing kept between.
    pub(crate) fn for_loading(self) -> Vec<EntryData> {
        let data = |data: &DumpedData| EntryData { entry: data.entry, kind: data.kind, parts: Vec::new() };
        let mut entries: Vec<EntryData> = self.entries.iter().map(data).collect();
        let mut jobs: Vec<Job> = self.jobs.into();
        jobs.sort_by_key(|job| (job.entry, job.part));
        for job in jobs {
            let place = match job.what {
                What::Copy { sql, table, .. } => Place::Copy { sql, table },
                What::LargeObjects(oids) => Place::LargeObjects(oids),
            };
            entries[job.entry].parts.push(PartData { place, rows: None, bytes: job.bytes });
        }
        entries
    }
}

/// The streams of the data, by entry and part.
pub(crate) struct Copied {
    pub(crate) entries: Vec<DumpedData>,
    /// For each part in the order of `entries`; `stream` of a part counts from 0 here.
    pub(crate) streams: Vec<Written>,
    pub(crate) objects: Vec<DumpObject>,
}

/// How data are read.
pub(crate) struct Cut {
    /// Tables whose rows are read in binary form.
    pub(crate) binary: HashSet<u32>,
    /// Tables with more bytes than this come in parts of about so many.
    pub(crate) part_bytes: u64,
    /// Who reads: tables that are a small share of all are read by one of them, in one go.
    pub(crate) readers: Readers,
}

/// Sessions that read.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Readers {
    /// So many, and what they read is compressed by processors that the server does not have, or has enough of.
    Apart(usize),
    /// So many, for whom and for the server there are no more processors than sessions.
    Crowded(usize),
    /// Each part is a statement of its own, for somebody else.
    Any,
}

impl Readers {
    /// Of a server.
    pub(crate) fn of(client: &Client, workers: usize) -> Self {
        let processors = std::thread::available_parallelism().map_or(1, std::num::NonZero::get);
        let crowded = client.target().contains("/.s.PGSQL.") && processors <= workers;
        if crowded { Self::Crowded(workers) } else { Self::Apart(workers) }
    }

    /// The largest table that one of them reads alone. To read ranges of blocks costs the server a tenth more: it reads single
    /// blocks, and into all of its memory (up to 17 only scans of whole tables read ahead; `heap_beginscan` in
    /// `src/backend/access/heap/heapam.c`). Where processors are short a reader that is left alone still has two of them busy,
    /// the server's and its own.
    fn alone(self, all: u64) -> u64 {
        match self {
            Self::Any => 0,
            Self::Apart(1) | Self::Crowded(1) => u64::MAX,
            Self::Crowded(2) => all / 10 * 9,
            Self::Crowded(workers) => all / 5 * 6 / workers.max(1) as u64,
            Self::Apart(workers) => all / 2 / workers.max(1) as u64,
        }
    }
}

/// Plans the data of all entries that have some.
pub(crate) async fn plan(archive: &Archive, holder: &mut Holder, encoding: &str, cut: &Cut) -> Result<Plan, DumpError> {
    let bad = |error: crate::archive::BadArchive| DumpError::Failed { reason: error.to_string(), hint: None };
    let mut plan = Plan { entries: Vec::new(), jobs: VecDeque::new(), bytes: 0, unread: Vec::new() };
    let mut jobs = Vec::new();
    let no_blobs: Vec<u32> = match archive.of_kind("BLOBS") {
        Some(_) => large_objects::unreadable(&mut holder.client).await?,
        None => Vec::new(),
    };
    if !no_blobs.is_empty() {
        let list: Vec<String> = no_blobs.iter().take(20).map(u32::to_string).collect();
        let more = if no_blobs.len() > 20 { ", …" } else { "" };
        plan.unread.push(Unread {
            what: format!("large objects {}{more} ({} in all)", list.join(", "), no_blobs.len()),
            why: "the login may not read them (SELECT); they are empty in the dump".into(),
        });
    }
    let with_data = || archive.entries.iter().filter(|entry| entry.has_data);
    let bytes = with_data().filter_map(|entry| Some(holder.relations.get(&entry.oid)?.bytes)).sum();
    let alone = cut.readers.alone(bytes);
    for entry in with_data() {
        let index = plan.entries.len();
        let text =
            |text: &crate::archive::Text| String::from_utf8_lossy(text.as_deref().unwrap_or_default()).into_owned();
        let kind = match entry.kind() {
            b"TABLE DATA" if cut.binary.contains(&entry.oid) => DataKind::TableBinary,
            b"TABLE DATA" => DataKind::Table,
            b"BLOBS" => DataKind::LargeObjects,
            other => {
                let reason =
                    format!("pg_dump has data of a kind that is not known: {}", String::from_utf8_lossy(other));
                return Err(DumpError::refused(reason, "a later version of pgkeep may know it"));
            }
        };
        let parts = match kind {
            DataKind::Table | DataKind::TableBinary => {
                let statement = entry.copy_statement.as_deref().unwrap_or_default();
                let target = CopyTarget::parse(statement).map_err(bad)?;
                let source = match holder.relations.get(&entry.oid) {
                    Some(relation) => relation.sql(),
                    None => target.table.clone(),
                };
                let form = RowForm::of(kind, encoding);
                copies(&target, &source, holder.relations.get(&entry.oid), form, (cut.part_bytes, alone))
            }
            DataKind::LargeObjects => {
                let mut oids = large_objects::oids(archive, entry).map_err(bad)?;
                oids.retain(|oid| no_blobs.binary_search(oid).is_err());
                oids.chunks(LARGE_OBJECTS_IN_PART).map(|some| (What::LargeObjects(some.to_vec()), 0)).collect()
            }
        };
        plan.entries.push(DumpedData {
            entry: entry.dump_id,
            kind,
            schema: text(&entry.namespace),
            name: text(&entry.tag),
            rows: 0,
            bytes: 0,
            parts: Vec::new(),
        });
        plan.bytes += parts.iter().map(|(_, bytes)| bytes).sum::<u64>();
        jobs.extend(parts.into_iter().enumerate().map(|(part, (what, bytes))| Job {
            entry: index,
            part,
            kind,
            what,
            bytes,
        }));
    }
    // The large ones first, so that no worker is left with one at the end. Parts of one table in order.
    jobs.sort_by(|a, b| b.bytes.cmp(&a.bytes).then(a.entry.cmp(&b.entry)).then(a.part.cmp(&b.part)));
    plan.jobs = jobs.into();
    Ok(plan)
}

/// The statements for one table: one, or one for each range of blocks.
fn copies(
    target: &CopyTarget,
    source: &str,
    relation: Option<&Relation>,
    form: RowForm<'_>,
    (part_bytes, alone): (u64, u64),
) -> Vec<(What, u64)> {
    let (table, lockable) = (source.to_owned(), relation.is_some());
    let bytes = relation.map_or(0, |relation| relation.bytes);
    // What is no table of this database is a foreign one, which COPY reads as a query only.
    let condition = relation.map_or(Some(""), |relation| relation.condition.as_deref());
    let splittable = relation.is_some_and(|one| one.heap && one.kind == "r") && condition.is_none();
    let parts = u32::try_from(bytes / part_bytes.max(1)).unwrap_or(u32::MAX);
    let blocks = relation.map_or(0, |relation| relation.blocks);
    if !splittable || target.columns.is_none() || parts < 2 || blocks < parts || bytes <= alone {
        // For another server there is nothing to cut.
        let cut = if alone == 0 { u64::MAX } else { part_bytes };
        return vec![(What::Copy { sql: target.whole(source, condition, form), table, lockable, cut }, bytes)];
    }
    let each = blocks.div_ceil(parts);
    let starts = (0..blocks).step_by(each as usize);
    starts
        .map(|start| {
            // The last part has no end: nothing of the snapshot can lie behind, and nothing is lost if it did.
            let end = start.checked_add(each).filter(|end| *end < blocks);
            let sql = target.part(source, (start, end), form);
            (What::Copy { sql, table: table.clone(), lockable, cut: u64::MAX }, bytes / u64::from(parts))
        })
        .collect()
}

/// A part that was copied.
struct CopiedPart {
    entry: usize,
    part: usize,
    /// Which one of those that this part was cut into as it came.
    cut: usize,
    counted: Counted,
    written: Written,
}

/// What was counted of rows or large objects as they came.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Counted {
    pub(crate) rows: u64,
    pub(crate) sum: RowSum,
}

/// What a worker brings back.
#[derive(Default)]
struct Done {
    streams: Vec<CopiedPart>,
    objects: Vec<DumpObject>,
    /// What another session's lock kept it from.
    refused: Vec<Job>,
}

/// Copies everything of a plan. The holder's own session does what others are kept from.
pub(crate) async fn copy(
    ctx: &Context,
    server: &Server,
    holder: &mut Holder,
    plan: Plan,
    sinks: &Arc<Sinks>,
    options: &DumpOptions,
) -> Result<Copied, DumpError> {
    let mut entries = plan.entries;
    let workers = options.workers.max(1).min(plan.jobs.len().max(1));
    let mut planned = vec![0; entries.len()];
    plan.jobs.iter().for_each(|job| planned[job.entry] = planned[job.entry].max(job.part + 1));
    let queue = Arc::new(Mutex::new(plan.jobs));
    ctx.progress.phase("copying data", Some(plan.bytes), Unit::Bytes);
    let mut running: JoinSet<Result<Done, DumpError>> = JoinSet::new();
    for _ in 0..workers {
        let (ctx, server, queue) = (ctx.clone(), server.clone(), queue.clone());
        let (sink, snapshot, setup) = (sinks.sink(), holder.snapshot.clone(), options.setup());
        running.spawn(async move {
            let mut client = for_reading_as(&server.conninfo, &setup).await?;
            join_snapshot(&mut client, &snapshot).await?;
            ctx.or_cancel(work(&ctx, &mut client, &queue, sink)).await?
        });
    }
    let mut all = Done::default();
    // The first failure drops the others: their sessions end with their connections.
    while let Some(done) = running.join_next().await {
        let done = done.map_err(|panic| DumpError::Failed {
            reason: format!("a worker stopped unexpectedly: {panic}"),
            hint: None,
        })??;
        all.streams.extend(done.streams);
        all.objects.extend(done.objects);
        all.refused.extend(done.refused);
    }
    if !all.refused.is_empty() {
        let left = Mutex::new(VecDeque::from(std::mem::take(&mut all.refused)));
        let done = ctx.or_cancel(work(ctx, &mut holder.client, &left, sinks.sink())).await??;
        if let Some(Job { what: What::Copy { table, .. }, .. }) = done.refused.first() {
            return Err(DumpError::failed(
                format!("{table} is held by somebody else, and could not be read"),
                "wait until that has ended (see pg_locks), and try again",
            ));
        }
        all.streams.extend(done.streams);
        all.objects.extend(done.objects);
    }
    let mut streams = Vec::new();
    all.streams.sort_by_key(|copied| (copied.entry, copied.part, copied.cut));
    let mut copied = all.streams.into_iter().peekable();
    for (at, entry) in entries.iter_mut().enumerate() {
        let mut seen = 0;
        while let Some(CopiedPart { part, counted, written, .. }) = copied.next_if(|one| one.entry == at) {
            seen = seen.max(part + 1);
            let Counted { rows, sum } = counted;
            entry.parts.push(DumpedPart { stream: streams.len() as u32, rows, bytes: written.bytes, sum: Some(sum) });
            streams.push(written);
        }
        if seen != planned[at] {
            return Err(DumpError::Failed {
                reason: format!("part {} of {}.{} was not copied", seen + 1, entry.schema, entry.name),
                hint: None,
            });
        }
        entry.rows = entry.parts.iter().map(|part| part.rows).sum();
        entry.bytes = entry.parts.iter().map(|part| part.bytes).sum();
    }
    Ok(Copied { entries, streams, objects: all.objects })
}

async fn work(
    ctx: &Context,
    client: &mut Client,
    queue: &Mutex<VecDeque<Job>>,
    mut sink: Sink,
) -> Result<Done, DumpError> {
    let next = || queue.lock().unwrap_or_else(PoisonError::into_inner).pop_front();
    let mut done = Done::default();
    let mut locked = HashSet::new();
    while let Some(job) = next() {
        ctx.check()?;
        let (entry, part) = (job.entry, job.part);
        match &job.what {
            What::Copy { sql, table, lockable, cut } => {
                if *lockable && !locked.contains(table) {
                    if !lock(client, table).await? {
                        done.refused.push(job);
                        continue;
                    }
                    locked.insert(table.clone());
                }
                let copied = copy_out(ctx, client, (sql, job.kind), *cut, &mut sink).await;
                let copied = copied.map_err(|error| told(error, table))?.into_iter().enumerate();
                done.streams.extend(copied.map(|(cut, (counted, written))| CopiedPart {
                    entry,
                    part,
                    cut,
                    counted,
                    written,
                }));
            }
            What::LargeObjects(oids) => {
                let sum = large_objects::dump(client, oids, &mut sink).await?;
                let counted = Counted { rows: oids.len() as u64, sum };
                done.streams.push(CopiedPart { entry, part, cut: 0, counted, written: sink.end().await? });
            }
        }
    }
    done.objects = sink.finish().await?;
    Ok(done)
}

/// Locks a table without waiting. Somebody may wait to change it since the holder locked it: he waits for the holder, and
/// a session that queued behind him would wait for ever. The holder itself gets what it has at once.
pub(crate) async fn lock(client: &mut Client, table: &str) -> Result<bool, DumpError> {
    client.simple_query("SAVEPOINT pgkeep").await?;
    match client.simple_query(&format!("LOCK TABLE ONLY {table} IN ACCESS SHARE MODE NOWAIT")).await {
        Ok(_) => {
            client.simple_query("RELEASE SAVEPOINT pgkeep").await?;
            Ok(true)
        }
        Err(error) if error.sqlstate() == Some("55P03") => {
            client.simple_query("ROLLBACK TO SAVEPOINT pgkeep").await?;
            Ok(false)
        }
        Err(error) => Err(error.into()),
    }
}

/// Copies rows into one stream, or into several of about `cut` bytes. The server sends one message for each row
/// (`CopySendEndOfRow` in `src/backend/commands/copyto.c`).
async fn copy_out(
    ctx: &Context,
    client: &mut Client,
    (sql, kind): (&str, DataKind),
    cut: u64,
    sink: &mut Sink,
) -> Result<Vec<(Counted, Written)>, DumpError> {
    let mut parts = Vec::new();
    let mut counted = Counted::default();
    let (mut said, mut bytes) = (0, 0);
    let mut stream = client.copy_out(sql).await?;
    while let Some(arrived) = stream.rows().await? {
        for row in arrived.iter().filter_map(|message| row(message, kind)) {
            counted.rows += 1;
            counted.sum.add(row);
            (said, bytes) = (said + row.len() as u64, bytes + row.len() as u64);
            if !sink.put(row) {
                sink.write(row).await?;
            }
        }
        if said >= 1 << 20 {
            ctx.progress.advance(std::mem::take(&mut said));
        }
        if bytes >= cut {
            parts.push((std::mem::take(&mut counted), sink.end().await?));
            bytes = 0;
        }
    }
    ctx.progress.advance(said);
    if counted.rows > 0 || parts.is_empty() {
        parts.push((counted, sink.end().await?));
    }
    Ok(parts)
}

/// The row in a message.
#[inline]
fn row(message: &[u8], kind: DataKind) -> Option<&[u8]> {
    if kind == DataKind::TableBinary { binary::tuple(message) } else { Some(message) }
}

/// What a COPY statement gives, counted only.
pub(crate) async fn count_rows(client: &mut Client, sql: &str, kind: DataKind) -> Result<Counted, DumpError> {
    let mut counted = Counted::default();
    let mut stream = client.copy_out(sql).await?;
    while let Some(arrived) = stream.rows().await? {
        for row in arrived.iter().filter_map(|message| row(message, kind)) {
            counted.rows += 1;
            counted.sum.add(row);
        }
    }
    Ok(counted)
}

fn told(error: DumpError, table: &str) -> DumpError {
    match error {
        DumpError::Wire(error) => {
            DumpError::Failed { reason: format!("{table} could not be read: {error}"), hint: error.hint() }
        }
        other => other,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn relation(blocks: u32, bytes: u64) -> Relation {
        Relation {
            oid: 1,
            schema: "s".into(),
            name: "t".into(),
            kind: "r".into(),
            readable: true,
            rows_hidden: false,
            heap: true,
            blocks,
            bytes,
            condition: None,
        }
    }

    #[test]
    fn who_reads_alone_leaves_nobody_waiting() {
        assert_eq!(Readers::Apart(4).alone(800), 100);
        assert_eq!(Readers::Crowded(4).alone(800), 240);
        assert_eq!(Readers::Crowded(2).alone(800), 720, "the other processor compresses");
        assert_eq!((Readers::Crowded(1).alone(8), Readers::Any.alone(8)), (u64::MAX, 0));
    }

    #[test]
    fn large_tables_are_split_and_no_block_is_left_out() {
        let target = CopyTarget::parse(b"COPY s.t (a) FROM stdin;\n").unwrap();
        let split = |relation: &Relation| copies(&target, "s.t", Some(relation), RowForm::Text("UTF8"), (1 << 20, 0));
        for (blocks, bytes, parts) in
            [(0, 0, 1), (100, 819_200, 1), (256, 2 << 20, 2), (1000, 8 << 20, 8), (3, 1 << 30, 1)]
        {
            let jobs = split(&relation(blocks, bytes));
            assert_eq!(jobs.len(), parts, "{blocks} blocks, {bytes} bytes");
            let text: Vec<&str> = jobs
                .iter()
                .map(|(what, _)| if let What::Copy { sql, .. } = what { sql.as_str() } else { "" })
                .collect();
            if parts > 1 {
                assert!(text[0].contains("ctid >= '(0,0)'") && !text[parts - 1].contains("ctid <"), "{text:?}");
                for pair in text.windows(2) {
                    let end = pair[0].split("ctid < '").nth(1).unwrap().split('\'').next().unwrap();
                    assert!(pair[1].contains(&format!("ctid >= '{end}'")), "{pair:?}");
                }
            }
        }
        let condition = Relation { condition: Some("WHERE a > 1".into()), ..relation(1000, 8 << 20) };
        assert_eq!(split(&condition).len(), 1);
        let not_heap = Relation { heap: false, ..relation(1000, 8 << 20) };
        assert_eq!(split(&not_heap).len(), 1);
        let alone = copies(&target, "s.t", Some(&relation(1000, 8 << 20)), RowForm::Binary, (1 << 20, 8 << 20));
        assert!(
            matches!(alone[..], [(What::Copy { cut: 1_048_576, .. }, _)]),
            "read in one go, and cut as it comes: {alone:?}"
        );
    }
}
