//! Where the stream begins: the server, the slot, the timeline, and what of the WAL the server still has.
//!
//! Facts from PostgreSQL's `src/backend/replication/walsender.c` (`StartReplication`, `ReadReplicationSlot`,
//! `WalSndSegmentOpen`) and `slot.c`. The stream begins at the start of a segment always, as `pg_receivewal`'s does
//! (`src/bin/pg_basebackup/receivelog.c`): so each segment comes from one stream, and what was received before is compared.

use super::checks::look_at_settings;
use super::maps;
use super::spool::Spool;
use super::track::Track;
use super::upload::Uploads;
use super::{LostWal, OnReceive, ReceiveEvent, ReceiveOptions};
use crate::backup::stream::connect::session;
use crate::wal::WalArchive;
use crate::wal::index::Moved;
use crate::{Context, EngineError, server};
use futures::StreamExt;
use pg_format::{ByteSize, Lsn, SegmentName, SystemId, Timeline, TimelineHistory, WalSegmentSize, XLogSegNo};
use pg_wire::conninfo::TargetSessionAttrs;
use pg_wire::{Client, Conninfo, ReplicationMessage, WireError};
use std::collections::BTreeSet;
use std::path::PathBuf;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};
use tokio::runtime::Handle;

/// SQLSTATE of what is not there: a slot (`ERRCODE_UNDEFINED_OBJECT`).
const NO_SUCH_SLOT: &str = "42704";
/// A slot of this name is there already.
const SLOT_EXISTS: &str = "42710";
/// A slot that another session uses.
const SLOT_IN_USE: &str = "55006";
/// A slot that was invalidated (17 and later say so at once), or settings that allow none.
const NOT_IN_STATE: &str = "55000";
/// `max_replication_slots` are there.
const NO_SLOT_LEFT: &str = "53400";
/// A WAL segment that was removed: the file is not there.
const NO_SUCH_FILE: &str = "58P01";

/// How long the server may take to send what it has.
const TRIED_WITHIN: Duration = Duration::from_secs(10);
/// How long a server may take to let go of the slot of a receiver that ended.
const LETTING_GO: Duration = Duration::from_secs(5);

/// A session that is ready to stream.
pub(super) struct Attachment {
    pub(super) client: Client,
    /// The server, for messages.
    pub(super) server: String,
    pub(super) system_id: SystemId,
    pub(super) segment_size: WalSegmentSize,
    /// The timeline that is streamed, and from where on.
    pub(super) timeline: Timeline,
    pub(super) start: Lsn,
    /// The slot was made now.
    pub(super) slot_made: bool,
    /// The server's own timeline, and how far its WAL is.
    server_timeline: Timeline,
    server_lsn: Lsn,
}

/// What is kept in mind from one attempt to the next.
#[derive(Default)]
struct Memory {
    /// The server did not have the WAL from here on any more.
    removed: Option<(Timeline, Lsn)>,
    /// The slot is of no use any more.
    slot_lost: bool,
    /// What was warned of already.
    said: BTreeSet<String>,
    /// Attached at least once.
    attached: bool,
    /// The timelines whose history is kept.
    histories: BTreeSet<Timeline>,
}

/// Attaches to the server, again and again.
pub(super) struct Attacher {
    options: ReceiveOptions,
    on_event: OnReceive,
    /// Where repositories are asked: their connections live there.
    others: Handle,
    memory: Mutex<Memory>,
}

/// A physical slot, as far as can be known.
enum Slot {
    Absent,
    /// It holds WAL from here on; none when it holds nothing, or that is not known.
    There(Option<Lsn>),
}

impl Attacher {
    pub(super) fn new(options: ReceiveOptions, on_event: OnReceive, others: Handle) -> Self {
        Self { options, on_event, others, memory: Mutex::default() }
    }

    fn memory(&self) -> std::sync::MutexGuard<'_, Memory> {
        self.memory.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn warn(&self, text: String) {
        if self.memory().said.insert(text.clone()) {
            (self.on_event)(ReceiveEvent::Warning(text));
        }
    }

    /// What a repository says.
    async fn ask<T: Send + 'static>(
        &self,
        ctx: &Context,
        question: impl Future<Output = Result<T, EngineError>> + Send + 'static,
    ) -> Result<T, EngineError> {
        let asked = ctx.or_cancel(self.others.spawn(question)).await?;
        asked.map_err(|error| EngineError::Failed { reason: error.to_string(), hint: None })?
    }

    /// What a repository has of this cluster's WAL.
    async fn archive(
        &self,
        ctx: &Context,
        attached: &Attachment,
        cluster: &repo::Cluster,
    ) -> Result<WalArchive, EngineError> {
        let (cluster, system, size) = (cluster.clone(), attached.system_id, attached.segment_size);
        self.ask(ctx, async move { WalArchive::load_sized(&cluster, system, size).await }).await
    }

    /// Connects to the server; of several, to the primary. Names are looked up anew each time.
    pub(super) async fn connect(&self, ctx: &Context) -> Result<Attachment, EngineError> {
        check_slot_name(&self.options.slot)?;
        let conninfo = primary_of(&self.options.conninfo);
        let mut client = ctx.or_cancel(session(&conninfo)).await??;
        server::supported(client.server_version_num().unwrap_or_default())?;
        let system = client.identify_system().await?;
        let size: ByteSize = client.show("wal_segment_size").await?.parse().map_err(|_| EngineError::Failed {
            reason: "the server's wal_segment_size is no size".into(),
            hint: None,
        })?;
        let segment_size = WalSegmentSize::new(u32::try_from(size.bytes()).unwrap_or_default())
            .map_err(|error| EngineError::Refused { reason: error.to_string(), hint: None })?;
        Ok(Attachment {
            server: client.target().to_owned(),
            client,
            system_id: system.system_id,
            segment_size,
            timeline: system.timeline,
            start: system.xlogpos.segment_start(segment_size),
            slot_made: false,
            server_timeline: system.timeline,
            server_lsn: system.xlogpos,
        })
    }

    /// Checks the settings, makes the slot if need be, and finds out where to begin.
    pub(super) async fn prepare(
        &self,
        ctx: &Context,
        attached: &mut Attachment,
        track: &Track,
        repository: Option<&repo::Cluster>,
    ) -> Result<(), EngineError> {
        if let Some(cluster) = repository {
            let known = cluster.clone();
            let facts = self.ask(ctx, async move { Ok(known.known_facts().await?) }).await?;
            check_system(&facts, cluster, attached)?;
        }
        let application = self.options.conninfo.application_name().unwrap_or("pgkeep").to_owned();
        let first = !self.memory().attached;
        for warning in look_at_settings(&mut attached.client, &application, first).await? {
            self.warn(warning);
        }
        let held = self.slot(attached).await?;
        let history = history_of(&mut attached.client, attached.server_timeline).await?;
        let wanted = self.wanted(ctx, attached, track, repository, &history).await?;
        let (timeline, start) = wanted.unwrap_or_else(|| {
            // Nothing was received or archived before: what the slot holds, else from now on.
            let start = held.unwrap_or(attached.server_lsn).min(attached.server_lsn);
            let timeline = history.timeline_of(start);
            (timeline, start.segment_start(attached.segment_size))
        });
        (attached.timeline, attached.start) = (timeline, start);
        let removed = self.memory().removed.take();
        if removed == Some((timeline, start)) {
            let size = attached.segment_size;
            let end = attached.server_lsn.segment_start(size);
            let next = Lsn(start.0 + size.bytes());
            let to = self.first_there(ctx, attached, &history, next, end).await.unwrap_or(end);
            let archive = match repository {
                Some(cluster) => self.archive(ctx, attached, cluster).await.ok(),
                None => None,
            };
            let lost = lost(attached, archive.as_ref(), (timeline, start), to);
            (self.on_event)(ReceiveEvent::Lost(lost));
            (attached.timeline, attached.start) = (history.timeline_of(to), to);
        }
        if attached.timeline == attached.server_timeline && attached.start > attached.server_lsn {
            return Err(EngineError::Failed {
                reason: format!(
                    "{} is at {} of timeline {}, behind {} that was received before; it is waited for",
                    attached.server, attached.server_lsn, attached.server_timeline, attached.start
                ),
                hint: None,
            });
        }
        self.memory().attached = true;
        Ok(())
    }

    /// Where what was received before, or archived, ends on the server's own history.
    async fn wanted(
        &self,
        ctx: &Context,
        attached: &Attachment,
        track: &Track,
        repository: Option<&repo::Cluster>,
        history: &TimelineHistory,
    ) -> Result<Option<(Timeline, Lsn)>, EngineError> {
        let spooled = track.next_start();
        let mut found = None;
        if let Some((timeline, lsn)) = spooled {
            found = follow(history, timeline, lsn, attached.segment_size);
            if found.is_none() && timeline > history.timeline {
                return Err(EngineError::Failed {
                    reason: format!(
                        "{} is on timeline {}, but timeline {timeline} was received before: it is not production any more, \
                         or not yet",
                        attached.server, history.timeline
                    ),
                    hint: None,
                });
            }
            if found.is_none() {
                self.warn(format!(
                    "timeline {} of {} did not grow out of timeline {timeline}, which was received before; it is \
                     received from its own beginning",
                    history.timeline, attached.server
                ));
                let begin = history.switches.last().map_or(Lsn::INVALID, |switch| switch.lsn);
                found = Some((history.timeline, begin.segment_start(attached.segment_size)));
            }
        }
        let Some(cluster) = repository.filter(|_| !track.has_begun()) else { return Ok(found) };
        let archive = self.archive(ctx, attached, cluster).await?;
        for span in history.ancestry() {
            let Some(last) = archive.last_segment(span.timeline) else { continue };
            let end = Lsn((last.0 + 1).saturating_mul(attached.segment_size.bytes()));
            let place = follow(history, span.timeline, end, attached.segment_size);
            // Where both have something, the later one; what the spool has besides is brought to the repository anyway.
            if place.is_some_and(|place| found.is_none_or(|found| place.1 > found.1)) {
                found = place;
            }
        }
        // What is missing in between is filled as far as the server still has it.
        for gap in archive.gaps(attached.server_timeline).into_iter().filter(|_| spooled.is_none()) {
            let start = |segno: u64| Lsn(segno.saturating_mul(attached.segment_size.bytes()));
            let (from, to) = (start(gap.first.0), start(gap.last.0 + 1));
            if let Some(at) = self.first_there(ctx, attached, history, from, to).await {
                return Ok(Some((history.timeline_of(at), at)));
            }
        }
        Ok(found)
    }

    /// The start of the first segment from `from` on, and before `to`, that the server has. It removes the oldest first.
    async fn first_there(
        &self,
        ctx: &Context,
        attached: &Attachment,
        history: &TimelineHistory,
        from: Lsn,
        to: Lsn,
    ) -> Option<Lsn> {
        let bytes = attached.segment_size.bytes();
        if let Some(oldest) = self.oldest(ctx, attached).await {
            return Some(oldest.max(from)).filter(|at| *at < to);
        }
        // This login may not look into pg_wal: it is tried what can be streamed.
        let (mut absent, mut there) = (from.0 / bytes, to.0 / bytes);
        if absent >= there || self.streams(ctx, history, from).await {
            return Some(from).filter(|_| absent < there);
        }
        while there - absent > 1 {
            let middle = absent + (there - absent) / 2;
            match self.streams(ctx, history, Lsn(middle * bytes)).await {
                true => there = middle,
                false => absent = middle,
            }
        }
        Some(Lsn(there * bytes)).filter(|at| *at < to)
    }

    /// Whether the server still has the WAL at a place.
    async fn streams(&self, ctx: &Context, history: &TimelineHistory, at: Lsn) -> bool {
        let conninfo = primary_of(&self.options.conninfo);
        let try_it = async {
            let mut client = session(&conninfo).await.ok()?;
            let mut copy = client.start_replication(None, at, history.timeline_of(at)).await.ok()?;
            loop {
                if let ReplicationMessage::XLogData { .. } = copy.next().await?.ok()? {
                    return Some(());
                }
            }
        };
        let tried = tokio::time::timeout(TRIED_WITHIN, try_it);
        matches!(ctx.or_cancel(tried).await, Ok(Ok(Some(()))))
    }

    /// Looks for the slot, and makes it. Gives what it holds, as far as that can be known.
    async fn slot(&self, attached: &mut Attachment) -> Result<Option<Lsn>, EngineError> {
        let name = &self.options.slot;
        let lost = std::mem::take(&mut self.memory().slot_lost);
        let mut slot = read_slot(&mut attached.client, name).await?;
        let known = attached.client.server_version_num().unwrap_or_default() >= 150_000;
        if let Slot::There(None) = slot
            && known
        {
            self.warn(format!(
                "slot {name} held no WAL: the server gave it up (max_slot_wal_keep_size), or it was made without; it is \
                 made anew"
            ));
            command(&mut attached.client, &format!("DROP_REPLICATION_SLOT {name}"))
                .await
                .map_err(|e| slot_error(e, name))?;
            slot = Slot::Absent;
        } else if lost {
            // Before 15 nothing more is known; one that is in use is not dropped.
            let _ = command(&mut attached.client, &format!("DROP_REPLICATION_SLOT {name}")).await;
        }
        if let Slot::There(held) = slot {
            return Ok(held);
        }
        match command(&mut attached.client, &format!("CREATE_REPLICATION_SLOT {name} PHYSICAL RESERVE_WAL")).await {
            Ok(()) => attached.slot_made = true,
            // Before 15 it cannot be asked for.
            Err(error) if error.sqlstate() == Some(SLOT_EXISTS) => return Ok(None),
            Err(error) => return Err(slot_error(error, name)),
        }
        match read_slot(&mut attached.client, name).await? {
            Slot::There(held) => Ok(held),
            Slot::Absent => Ok(None),
        }
    }

    /// The start of the oldest segment that the server has of its timeline, when this login may know it.
    async fn oldest(&self, ctx: &Context, attached: &Attachment) -> Option<Lsn> {
        let conninfo = primary_of(&self.options.conninfo);
        let mut client = ctx.or_cancel(server::connect(&conninfo)).await.ok()?.ok()?;
        let timeline = format!("{:08X}", attached.server_timeline.0);
        let sql = "SELECT min(name) AS name FROM pg_ls_waldir() WHERE name ~ '^[0-9A-F]{24}$' AND left(name, 8) = $1";
        let row = client.query_one(sql, &[Some(&timeline)]).await.ok()?;
        let name: SegmentName = row.opt_str("name").ok()??.parse().ok()?;
        name.start(attached.segment_size).ok()
    }

    /// Where the server says that its catalogs lie.
    pub(super) async fn moved_catalogs(&self, ctx: &Context) -> Moved {
        maps::ask_server(ctx, &primary_of(&self.options.conninfo)).await
    }

    /// Keeps the history of the timeline that is streamed, to be pushed before its segments.
    pub(super) async fn bring_history(
        &self,
        attached: &mut Attachment,
        spool: &Spool,
        uploads: &Uploads,
    ) -> Result<(), EngineError> {
        let timeline = attached.timeline;
        if timeline == Timeline::FIRST || self.memory().histories.contains(&timeline) {
            return Ok(());
        }
        let file = attached.client.timeline_history(timeline).await?;
        let expected = pg_format::WalFileName::History(timeline).to_string();
        if file.filename != expected {
            let reason = format!("the server calls the history of timeline {timeline} {}", file.filename);
            return Err(EngineError::Failed { reason, hint: None });
        }
        spool.put_history(&expected, &file.content)?;
        self.memory().histories.insert(timeline);
        uploads.histories_came();
        Ok(())
    }

    /// Keeps in mind what the next attempt must do otherwise.
    pub(super) fn note_error(&self, attached: &Attachment, error: &EngineError) {
        let EngineError::Wire(error) = error else { return };
        match error.sqlstate() {
            Some(NO_SUCH_FILE) => self.memory().removed = Some((attached.timeline, attached.start)),
            Some(NOT_IN_STATE) => self.memory().slot_lost = true,
            _ => {}
        }
    }
}

/// Drops the slot of a receiver that is not coming back. The server lets go of it a moment after the receiver ended.
///
/// # Errors
/// When there is none, or it is in use.
pub async fn drop_slot(ctx: &Context, conninfo: &Conninfo, slot: &str) -> Result<(), EngineError> {
    check_slot_name(slot)?;
    let mut client = ctx.or_cancel(session(&primary_of(conninfo))).await??;
    let drop = format!("DROP_REPLICATION_SLOT {slot}");
    let deadline = Instant::now() + LETTING_GO;
    loop {
        match command(&mut client, &drop).await {
            Err(error) if error.sqlstate() == Some(SLOT_IN_USE) && Instant::now() < deadline => {
                ctx.or_cancel(tokio::time::sleep(LETTING_GO / 100)).await?;
            }
            done => return done.map_err(|error| slot_error(error, slot)),
        }
    }
}

/// As `ReplicationSlotValidateName` in `src/backend/replication/slot.c`.
fn check_slot_name(name: &str) -> Result<(), EngineError> {
    let fits = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'_';
    if (1..=63).contains(&name.len()) && name.bytes().all(fits) {
        return Ok(());
    }
    Err(EngineError::refused(
        format!("{name:?} is no name of a replication slot"),
        "a slot's name has 1 to 63 of a-z, 0-9 and _",
    ))
}

/// Of several servers the primary is meant, unless something else is said.
fn primary_of(conninfo: &Conninfo) -> Conninfo {
    let mut conninfo = conninfo.clone();
    if conninfo.hosts.len() > 1 && conninfo.target_session_attrs == TargetSessionAttrs::Any {
        conninfo.target_session_attrs = TargetSessionAttrs::Primary;
    }
    conninfo
}

async fn command(client: &mut Client, command: &str) -> Result<(), WireError> {
    client.simple_query(command).await.map(drop)
}

/// `READ_REPLICATION_SLOT` is there from 15 on; before, making it tells whether it is there.
async fn read_slot(client: &mut Client, name: &str) -> Result<Slot, EngineError> {
    if client.server_version_num().unwrap_or_default() < 150_000 {
        return Ok(Slot::Absent);
    }
    let rows = client.simple_rows(&format!("READ_REPLICATION_SLOT {name}")).await?.pop();
    let Some(row) = rows.map(|rows| rows.one()).transpose()? else { return Ok(Slot::Absent) };
    Ok(match row.opt_str("slot_type")? {
        None => Slot::Absent,
        Some(_) => Slot::There(row.opt_get("restart_lsn")?),
    })
}

fn slot_error(error: WireError, name: &str) -> EngineError {
    let (what, hint) = match error.sqlstate() {
        Some(NO_SUCH_SLOT) => {
            let what = format!("there is no replication slot {name} on this server");
            return EngineError::not_found(what, "pg_replication_slots lists those there are");
        }
        Some(SLOT_IN_USE) => ("it is in use", "stop `pgkeep wal receive`, or what else uses it, first"),
        Some(NO_SLOT_LEFT) => ("no slot is left", "raise max_replication_slots and restart the server"),
        Some(NOT_IN_STATE) => ("it cannot be made", "wal_level must be replica or logical"),
        _ => return error.into(),
    };
    EngineError::refused(format!("replication slot {name}: {what}: {error}"), hint)
}

fn check_system(facts: &repo::ClusterFacts, cluster: &repo::Cluster, attached: &Attachment) -> Result<(), EngineError> {
    if facts.systems.iter().any(|entry| entry.system_id == attached.system_id) {
        return Ok(());
    }
    let name = cluster.name();
    Err(EngineError::refused(
        format!(
            "{}: the server is of system identifier {}, which is not one of cluster {name} in the repository",
            attached.server, attached.system_id
        ),
        format!(
            "correct the connection string; or run `pgkeep init {name}` if this server is cluster {name} from now on"
        ),
    ))
}

async fn history_of(client: &mut Client, timeline: Timeline) -> Result<TimelineHistory, EngineError> {
    if timeline == Timeline::FIRST {
        return Ok(TimelineHistory::without_past(timeline));
    }
    let file = client.timeline_history(timeline).await?;
    TimelineHistory::parse(timeline, &String::from_utf8_lossy(&file.content))
        .map_err(|error| EngineError::BadFile { path: PathBuf::from(file.filename), reason: error.to_string() })
}

/// Where a stream that had come to `lsn` on `timeline` goes on along a history: there, or, when that timeline was left before,
/// at the start of the segment in which the next one begins. None when the timeline is not part of the history.
fn follow(history: &TimelineHistory, timeline: Timeline, lsn: Lsn, size: WalSegmentSize) -> Option<(Timeline, Lsn)> {
    let spans = history.ancestry();
    let mut at = spans.iter().position(|span| span.timeline == timeline)?;
    let mut lsn = lsn;
    // Timelines may have been left in the same segment, one after the other.
    while let Some(left) = spans[at].end.filter(|left| lsn >= *left) {
        at += 1;
        lsn = left.segment_start(size);
    }
    Some((spans[at].timeline, lsn))
}

/// Says which WAL is lost, and whether the repository has it from elsewhere.
fn lost(attached: &Attachment, archive: Option<&WalArchive>, (timeline, from): (Timeline, Lsn), to: Lsn) -> LostWal {
    let size = attached.segment_size;
    let numbers = from.segment_no(size).0..to.segment_no(size).0.max(from.segment_no(size).0);
    let missing = archive.iter().flat_map(|archive| {
        let has = |number: &u64| !archive.has(timeline, XLogSegNo(*number));
        numbers.clone().filter(has).filter_map(|number| SegmentName::new(timeline, XLogSegNo(number), size))
    });
    LostWal { timeline, from, to, missing: missing.collect(), asked: archive.is_some() }
}

#[cfg(test)]
mod tests {
    use super::*;
    use pg_format::history::Switch;

    #[test]
    fn a_stream_follows_the_servers_history() {
        let size = WalSegmentSize::new(1 << 20).unwrap();
        let mb = |n: u64| Lsn(n << 20);
        let switch = |timeline, lsn: Lsn| Switch { timeline: Timeline(timeline), lsn, reason: String::new() };
        let history = TimelineHistory {
            timeline: Timeline(4),
            switches: vec![switch(1, Lsn(0x0030_0100)), switch(2, Lsn(0x0030_0200)), switch(3, mb(5))],
        };
        let check = |timeline, lsn, expect: Option<(u32, Lsn)>| {
            let found = follow(&history, Timeline(timeline), lsn, size);
            assert_eq!(found, expect.map(|(timeline, lsn)| (Timeline(timeline), lsn)), "{timeline} {lsn}");
        };
        check(1, mb(2), Some((1, mb(2))));
        // The segment of the switch: its beginning is still the old timeline's.
        check(1, mb(3), Some((1, mb(3))));
        // More was received of a timeline than the server kept of it. The next one was left in the same segment.
        check(1, mb(4), Some((2, mb(3))));
        check(2, mb(3), Some((2, mb(3))));
        check(2, mb(4), Some((3, mb(3))));
        check(3, mb(5), Some((4, mb(5))));
        check(4, mb(9), Some((4, mb(9))));
        check(5, mb(9), None);
    }
}
