//! `wal receive`: WAL streamed from the server as it is written, made durable here at once and in the repository every
//! moment (docs/streaming.md).
//!
//! - [`attach`](self): the slot, and where the stream begins; it follows the server's timelines, and another server;
//! - `stream`: what arrives goes into the `spool`, durable, and only then the server is told so;
//! - `logs`: where commits wait for a repository on a file system, the tail goes there by the same way;
//! - `maps`: where the server's catalogs lie, so that the index of a segment has names;
//! - `upload`: pieces of the segment that is not whole yet, and each whole segment by the same way as `wal push`;
//! - `track`: what all of them know of each other; `state`: what `wal status` reads of it.
//!
//! It may be killed at any point: what was reported lies in the spool, what is in the repository is known from there.

mod attach;
mod checks;
mod logs;
mod maps;
mod spool;
mod state;
mod stream;
mod track;
mod upload;

pub use attach::drop_slot;
pub use checks::SyncStandby;
pub use state::{ReceiverState, RepositoryState, read_state};

use super::WorkerLock;
use super::serve::OpenArchives;
use crate::{Context, EngineError, blocking};
use attach::Attacher;
use logs::Logs;
use pg_format::{Lsn, SegmentName, SystemId, Timeline, WalSegmentSize};
use pg_wire::Conninfo;
use serde::{Deserialize, Serialize};
use spool::{Spool, Writer};
use state::Recorder;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};
use stream::StreamEnd;
use tokio::runtime::Handle;
use tokio_util::sync::CancellationToken;
use track::{PieceRules, Track};
use upload::Uploads;

/// The slot's name, unless told otherwise.
pub const SLOT: &str = "pgkeep";
/// The first pause before connecting again; doubled up to the longest.
const PAUSE_MIN: Duration = Duration::from_millis(100);
const PAUSE_MAX: Duration = Duration::from_secs(5);
/// How long the repositories have to take the rest, when told to stop.
const DRAIN_MAX: Duration = Duration::from_secs(10);
/// The same failure is told again after this time.
const TOLD_AGAIN: Duration = Duration::from_secs(60);
/// How long it may take to attach: looking names up, connecting, listing what the repository has.
const ATTACH_MAX: Duration = Duration::from_secs(300);
/// How often it is said that all goes on.
const ALIVE: Duration = Duration::from_secs(1);

/// When the server is told that WAL is durable.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum FlushAt {
    /// Once it is in the spool of this host.
    Spool,
    /// Once it is in each repository that must have it.
    Repository,
}

/// A repository, before it is opened.
#[derive(Debug, Clone)]
pub struct ReceiveTo {
    /// Its name, for messages.
    pub name: String,
    /// Its URL.
    pub key: String,
    /// Whether it must have the WAL.
    pub required: bool,
}

/// How WAL is received.
#[derive(Clone)]
pub struct ReceiveOptions {
    /// The server, or several of which the primary is meant.
    pub conninfo: Conninfo,
    /// The physical replication slot.
    pub slot: String,
    /// When the server is told that WAL is durable.
    pub flush_at: FlushAt,
    /// A piece is sent with so many bytes waiting,
    pub tail_bytes: u64,
    /// or after this time.
    pub tail_interval: Duration,
    /// With so many bytes in the spool nothing more is received.
    pub spool_bytes_max: u64,
    /// Opens the repositories.
    pub open: OpenArchives,
    /// What they are, the first required one first.
    pub repositories: Vec<ReceiveTo>,
    /// How many segments are checked and compressed at the same time.
    pub workers: usize,
    /// Where the spool lies.
    pub state_dir: PathBuf,
    /// What it belongs to: the repositories' URLs and the cluster's name.
    pub state_key: String,
}

/// What happens while WAL is received.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum ReceiveEvent {
    /// The stream has begun.
    Attached {
        /// The server.
        server: String,
        /// The timeline.
        timeline: Timeline,
        /// From where on.
        start: Lsn,
        /// The slot was made now.
        slot_made: bool,
    },
    /// The stream has ended, and is begun again.
    Detached {
        /// Why.
        reason: String,
    },
    /// The server went over to another timeline, and the stream with it.
    Switched {
        /// The timeline that was left.
        from: Timeline,
        /// The one that goes on.
        to: Timeline,
        /// Where.
        at: Lsn,
    },
    /// The server does not have WAL any more that was to be received next.
    Lost(LostWal),
    /// Something that a human should read.
    Warning(String),
    /// A repository cannot be written to; it is tried again.
    StoreFails {
        /// The repository.
        repository: String,
        /// Why.
        reason: String,
    },
    /// It can be written to again.
    StoreWorks {
        /// The repository.
        repository: String,
    },
    /// The spool is full: nothing is received until the repository takes what lies there.
    SpoolFull,
    /// It goes on; told every second.
    Alive,
    /// What was done since the start, when that is new.
    Worked(ReceiveCounts),
}

/// WAL that the server does not have any more.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct LostWal {
    /// The timeline.
    pub timeline: Timeline,
    /// The first byte.
    pub from: Lsn,
    /// The first byte after it that is to be had.
    pub to: Lsn,
    /// The segments of it that are not in the repository either; none when it has all of them, or cannot be asked.
    pub missing: Vec<SegmentName>,
    /// Whether the repository could be asked.
    pub asked: bool,
}

/// What was done. Requests are those for tails; whole segments are counted by themselves.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ReceiveCounts {
    /// Bytes of WAL received.
    pub bytes_received: u64,
    /// Whole segments that are in the repositories.
    pub segments: u64,
    /// Of them, those that were there already.
    pub segments_there: u64,
    /// Bytes stored for whole segments.
    pub bytes_stored: u64,
    /// Pieces of tails written.
    pub pieces: u64,
    /// Bytes of WAL in them.
    pub piece_bytes: u64,
    /// Frames written to logs of tails.
    #[serde(default)]
    pub frames: u64,
    /// Bytes of WAL in them.
    #[serde(default)]
    pub frame_bytes: u64,
    /// Pieces deleted.
    pub pieces_deleted: u64,
    /// Listings of pieces.
    pub listings: u64,
    /// Times the stream was begun.
    pub attached: u64,
}

/// Where events go. Calls come from any thread and must return at once.
pub type OnReceive = Arc<dyn Fn(ReceiveEvent) + Send + Sync>;

/// What was done until it was told to stop.
#[derive(Debug, Clone, Serialize)]
pub struct ReceiveReport {
    /// What was done.
    pub counts: ReceiveCounts,
    /// The timeline at the end.
    pub timeline: Timeline,
    /// Received up to here.
    pub received_lsn: Lsn,
    /// Durable in the spool up to here.
    pub spooled_lsn: Lsn,
    /// Whether each required repository has all of it.
    pub drained: bool,
}

/// Receives until told to stop.
///
/// # Errors
/// When it cannot begin, or must not go on: another receiver runs here, the server is of another cluster, or has other
/// WAL than was received before.
pub async fn receive(
    ctx: &Context,
    options: ReceiveOptions,
    on_event: OnReceive,
) -> Result<ReceiveReport, EngineError> {
    let ctx = Context { cancel: ctx.cancel.child_token(), ..ctx.clone() };
    // It ends with the future.
    let _ends = ctx.cancel.clone().drop_guard();
    let others = Handle::current();
    // A thread of its own: what arrives is written and reported without waking another one.
    blocking(move || {
        let here = tokio::runtime::Builder::new_current_thread().enable_all().build();
        let here = here.map_err(|error| EngineError::Failed { reason: error.to_string(), hint: None })?;
        here.block_on(receive_here(&ctx, &others, options, on_event))
    })
    .await
}

/// Receives on this thread; what asks repositories runs on the others.
async fn receive_here(
    ctx: &Context,
    others: &Handle,
    options: ReceiveOptions,
    on_event: OnReceive,
) -> Result<ReceiveReport, EngineError> {
    let place = spool::place(&options.state_dir, &options.state_key);
    let _lock = WorkerLock::try_take(&place)?.ok_or_else(|| {
        EngineError::refused(
            format!("{}: another `pgkeep wal receive` works with this spool", place.display()),
            "one is enough for a cluster and its repositories; stop that one first",
        )
    })?;
    let attacher = Attacher::new(options.clone(), on_event.clone(), others.clone());
    // What was left here goes to the repository also when the server never comes back.
    let mut receiver = match Spool::left_in(&place) {
        Some(left) => Some(Receiver::start(ctx, others, &options, &on_event, &place, left.system(), left.size())?),
        None => None,
    };
    let mut pause = PAUSE_MIN;
    let mut told: Option<(String, Instant)> = None;
    while !ctx.cancel.is_cancelled() {
        let begun = Instant::now();
        let outcome = attach_and_stream(ctx, others, &attacher, &options, &on_event, &place, &mut receiver).await;
        let error = match outcome {
            Ok(()) => continue,
            Err(EngineError::Cancelled) => break,
            // Trying again would end the same way.
            Err(error @ EngineError::Refused { .. }) => {
                finish(receiver.take()).await;
                return Err(error);
            }
            Err(error) => error,
        };
        if let Some(receiver) = &receiver {
            receiver.track.set_attached(None);
        }
        // A server that is down for a night is not worth a line every five seconds.
        let reason = error.to_string();
        if told.as_ref().is_none_or(|(before, at)| *before != reason || at.elapsed() > TOLD_AGAIN) {
            told = Some((reason.clone(), Instant::now()));
            on_event(ReceiveEvent::Detached { reason });
        }
        if begun.elapsed() > PAUSE_MAX {
            pause = PAUSE_MIN;
        }
        let until = Instant::now() + pause;
        while Instant::now() < until {
            on_event(ReceiveEvent::Alive);
            let left = until.saturating_duration_since(Instant::now()).min(ALIVE);
            if ctx.or_cancel(tokio::time::sleep(left)).await.is_err() {
                break;
            }
        }
        pause = (pause * 2).min(PAUSE_MAX);
    }
    Ok(finish(receiver).await)
}

/// What lives as long as the cluster is the same one.
struct Receiver {
    spool: Spool,
    track: Arc<Track>,
    uploads: Arc<Uploads>,
    writer: Option<Writer>,
    stop: CancellationToken,
    tasks: tokio::task::JoinSet<()>,
}

impl Receiver {
    fn start(
        ctx: &Context,
        others: &Handle,
        options: &ReceiveOptions,
        on_event: &OnReceive,
        place: &std::path::Path,
        system: SystemId,
        size: WalSegmentSize,
    ) -> Result<Self, EngineError> {
        let spool = Spool::open(place, system, size)?;
        let required: Vec<bool> = options.repositories.iter().map(|to| to.required).collect();
        let rules = PieceRules {
            bytes: options.tail_bytes.clamp(1, repo::tail::PIECE_LEN_MAX),
            interval: options.tail_interval,
            at_once: options.flush_at == FlushAt::Repository,
        };
        let track = Arc::new(Track::new(size, &required, rules));
        track.load(spool.files()?);
        let stop = CancellationToken::new();
        // Told to stop, it first brings away what there is.
        let ctx = Context { cancel: stop.clone(), ..ctx.clone() };
        let uploads = Arc::new(Uploads::new(&ctx, options, spool.clone(), track.clone(), on_event.clone()));
        let mut tasks = tokio::task::JoinSet::new();
        tasks.spawn_on(uploads.clone().run(), others);
        tasks.spawn_on(Recorder::new(&ctx, options, on_event, system, track.clone(), uploads.clone()).run(), others);
        Ok(Self { spool, track, uploads, writer: None, stop, tasks })
    }

    /// The one that there is, or a new one.
    fn take_writer(&mut self) -> Writer {
        let logs = self.uploads.spares().map(|spares| Logs::new(spares, self.spool.clone(), self.track.clone()));
        self.writer.take().unwrap_or_else(|| Writer::new(self.spool.clone(), self.track.clone(), logs))
    }
}

async fn attach_and_stream(
    ctx: &Context,
    others: &Handle,
    attacher: &Attacher,
    options: &ReceiveOptions,
    on_event: &OnReceive,
    place: &std::path::Path,
    slot: &mut Option<Receiver>,
) -> Result<(), EngineError> {
    let mut attached = match within(on_event, attacher.connect(ctx)).await {
        // What the server lets in may change, and a session that is over may count for a while.
        Err(EngineError::Refused { reason, hint }) if slot.is_some() => {
            return Err(EngineError::Failed { reason, hint });
        }
        other => other?,
    };
    let receiver = match slot.take() {
        Some(receiver) if receiver.spool.system() != attached.system_id && receiver.track.has_begun() => {
            let (was, is) = (receiver.spool.system(), attached.system_id);
            *slot = Some(receiver);
            return Err(EngineError::refused(
                format!("{}: the server is of system identifier {is}, and was of {was} before", attached.server),
                "start `pgkeep wal receive` anew if the cluster was made anew; else correct the connection string",
            ));
        }
        Some(receiver) if receiver.spool.system() == attached.system_id => receiver,
        left => {
            // The cluster was made anew since; what was left of the old one is brought away as far as may be.
            if left.is_some() {
                finish(left).await;
            }
            Receiver::start(ctx, others, options, on_event, place, attached.system_id, attached.segment_size)?
        }
    };
    let receiver = slot.insert(receiver);
    let repository = receiver.uploads.first_cluster(ctx).await?;
    within(on_event, attacher.prepare(ctx, &mut attached, &receiver.track, repository.as_ref())).await?;
    attacher.bring_history(&mut attached, &receiver.spool, &receiver.uploads).await?;
    let moved = within(on_event, async { Ok(attacher.moved_catalogs(ctx).await) }).await?;
    receiver.uploads.maps().learn(moved);
    loop {
        let writer = receiver.take_writer();
        let streamed =
            stream::stream(ctx, options, on_event, &mut attached, writer, &receiver.track, &receiver.uploads);
        let (writer, end) = streamed.await;
        receiver.writer = writer;
        match end {
            Ok(StreamEnd::Switched { to, at }) => {
                on_event(ReceiveEvent::Switched { from: attached.timeline, to, at });
                attached.timeline = to;
                attached.start = at.segment_start(attached.segment_size);
                attacher.bring_history(&mut attached, &receiver.spool, &receiver.uploads).await?;
            }
            Ok(StreamEnd::Stopped) => return Err(EngineError::Cancelled),
            Err(error) => {
                attacher.note_error(&attached, &error);
                return Err(error);
            }
        }
    }
}

/// Says that it goes on while something takes its time, for so long.
async fn within<T>(on_event: &OnReceive, work: impl Future<Output = Result<T, EngineError>>) -> Result<T, EngineError> {
    let (mut work, begun) = (std::pin::pin!(work), Instant::now());
    while begun.elapsed() < ATTACH_MAX {
        on_event(ReceiveEvent::Alive);
        if let Ok(done) = tokio::time::timeout(ALIVE, &mut work).await {
            return done;
        }
    }
    Err(EngineError::Failed { reason: format!("no stream after {} s", ATTACH_MAX.as_secs()), hint: None })
}

/// Brings away what there is, as far as the repositories take it in time.
async fn finish(receiver: Option<Receiver>) -> ReceiveReport {
    let Some(mut receiver) = receiver else {
        return ReceiveReport {
            counts: ReceiveCounts::default(),
            timeline: Timeline::FIRST,
            received_lsn: Lsn::INVALID,
            spooled_lsn: Lsn::INVALID,
            drained: true,
        };
    };
    receiver.track.stop();
    let mut changed = receiver.track.subscribe();
    let drained = async {
        while !receiver.track.is_drained() {
            if changed.changed().await.is_err() {
                return;
            }
        }
    };
    let _ = tokio::time::timeout(DRAIN_MAX, drained).await;
    receiver.stop.cancel();
    let ended = async { while receiver.tasks.join_next().await.is_some() {} };
    let _ = tokio::time::timeout(DRAIN_MAX, ended).await;
    let positions = receiver.track.positions();
    ReceiveReport {
        counts: receiver.uploads.counts(),
        timeline: positions.timeline,
        received_lsn: positions.received,
        spooled_lsn: positions.spooled,
        drained: receiver.track.is_drained(),
    }
}
