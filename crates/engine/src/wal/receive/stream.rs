//! The stream itself: what arrives together is written together and made durable once, and then the server is told.
//!
//! Little is written, made durable and reported by the thread that receives: handing it to another one and back takes
//! longer than a disk does, and commits wait. Much is handed over, so that the network and the disk work at the same time.

use super::attach::Attachment;
use super::spool::{Writer, Written};
use super::track::Track;
use super::upload::Uploads;
use super::{ALIVE, FlushAt, OnReceive, ReceiveEvent, ReceiveOptions};
use crate::{Context, EngineError};
use bytes::Bytes;
use futures::{FutureExt, StreamExt};
use pg_format::{Lsn, Timeline};
use pg_wire::{CopyBoth, ReplicationMessage, StandbyStatus};
use std::sync::Arc;
use std::time::{Duration, Instant};
use tokio::sync::Notify;
use tokio::task::JoinHandle;
use tokio::time::MissedTickBehavior;

/// So many bytes are taken while others are being written.
const BATCH_BYTES_MAX: usize = 8 << 20;
/// More than this is written by another thread.
const WRITTEN_HERE_MAX: usize = 256 << 10;
/// Where commits wait for repositories nobody waits for the spool: it is made durable with so much, else with the next tick.
const SPOOLED_LATE_MAX: usize = 1 << 20;
/// When making it durable takes longer, the server is told before that it is written: those who wait for no more
/// (`remote_write`) go on then. Else the two are told together, since each message costs all commits.
const SLOW: Duration = Duration::from_micros(500);
/// After so long without a word the server is asked for one,
const ASK_AFTER: Duration = Duration::from_secs(5);
/// and after so long it is taken to be gone: a connection may end without either side being told.
const GONE_AFTER: Duration = Duration::from_secs(30);
/// The server hears of this one at least so often (`wal_receiver_status_interval`).
const STATUS_EVERY: Duration = Duration::from_secs(5);
/// A server that shuts down asks again as soon as it is answered; with nothing new it is answered with the next tick.
const ANSWER_AGAIN: Duration = Duration::from_millis(100);
/// So many such answers, and it is let go: the repository does not take what it waits for.
const ANSWERS_MAX: u32 = 20;
/// How long the last write and the farewell may take.
const FAREWELL_MAX: Duration = Duration::from_secs(5);

/// How a stream ended that did not fail.
pub(super) enum StreamEnd {
    /// The server goes on on another timeline.
    Switched {
        /// Which.
        to: Timeline,
        /// Where it begins.
        at: Lsn,
    },
    /// Told to stop.
    Stopped,
}

type Writing = JoinHandle<(Writer, Result<(), EngineError>)>;

/// Streams one timeline, from the start of a segment on. Gives the writer back, unless it was lost.
pub(super) async fn stream(
    ctx: &Context,
    options: &ReceiveOptions,
    on_event: &OnReceive,
    attached: &mut Attachment,
    mut writer: Writer,
    track: &Arc<Track>,
    uploads: &Arc<Uploads>,
) -> (Option<Writer>, Result<StreamEnd, EngineError>) {
    let (timeline, start) = (attached.timeline, attached.start);
    writer.begin(timeline, start);
    let started = ctx.or_cancel(attached.client.start_replication(Some(&options.slot), start, timeline)).await;
    let copy = match started {
        Ok(Ok(copy)) => copy,
        Ok(Err(error)) => return (Some(writer), Err(error.into())),
        Err(stopped) => return (Some(writer), Err(stopped)),
    };
    track.set_attached(Some(attached.server.clone()));
    uploads.count(|counts| counts.attached += 1);
    on_event(ReceiveEvent::Attached {
        server: attached.server.clone(),
        timeline,
        start,
        slot_made: std::mem::take(&mut attached.slot_made),
    });
    let written = writer.written();
    let mut reception = Reception {
        ctx,
        options,
        on_event,
        track,
        uploads,
        copy,
        writer: Some(writer),
        writing: None,
        written,
        wrote: Arc::default(),
        slow: true,
        unspooled: 0,
        batch: Vec::new(),
        batch_bytes: 0,
        next: start,
        writing_to: start,
        done: start,
        heard: Instant::now(),
        asked: false,
        said: Instant::now(),
        reported: (Lsn::INVALID, Lsn::INVALID),
        full: false,
        owed: false,
        answers: 0,
    };
    let ended = reception.run().await;
    // Whatever ended it: what is being written is written.
    reception.settle().await;
    let Reception { mut writer, copy, next, .. } = reception;
    writer.iter_mut().for_each(Writer::end_logs);
    let end = match ended {
        Ok(Ended::Stopped) => Ok(StreamEnd::Stopped),
        Ok(Ended::ByServer) => next_timeline(copy, timeline, next).await,
        Err(error) => Err(error),
    };
    (writer, end)
}

/// What the server says at the end of a timeline.
async fn next_timeline(copy: CopyBoth<'_>, timeline: Timeline, next: Lsn) -> Result<StreamEnd, EngineError> {
    let failed = |reason: String| EngineError::Failed { reason, hint: None };
    let told = tokio::time::timeout(FAREWELL_MAX, copy.finish());
    match told.await.map_err(|_| gone())?? {
        Some((to, at)) if to > timeline && at <= next => Ok(StreamEnd::Switched { to, at }),
        Some((to, at)) => {
            Err(failed(format!("the server ended timeline {timeline} at {next} and lets timeline {to} begin at {at}")))
        }
        None => Err(failed("the server ended the stream".into())),
    }
}

/// Why no more is read.
enum Ended {
    ByServer,
    Stopped,
}

struct Reception<'a> {
    ctx: &'a Context,
    options: &'a ReceiveOptions,
    on_event: &'a OnReceive,
    track: &'a Arc<Track>,
    uploads: &'a Arc<Uploads>,
    copy: CopyBoth<'a>,
    /// At rest, or in the hands of `writing`.
    writer: Option<Writer>,
    writing: Option<Writing>,
    written: Written,
    /// The writer has written, and makes it durable now.
    wrote: Arc<Notify>,
    /// Making it durable took long the last time.
    slow: bool,
    /// Bytes that were written to the spool and not made durable there.
    unspooled: usize,
    batch: Vec<(Lsn, Bytes)>,
    batch_bytes: usize,
    /// The next byte that is to arrive.
    next: Lsn,
    /// Where what is being written ends,
    writing_to: Lsn,
    /// and where what is durable in the spool ends.
    done: Lsn,
    heard: Instant,
    asked: bool,
    said: Instant,
    /// Written and flushed, as the server was told last.
    reported: (Lsn, Lsn),
    full: bool,
    /// The server asked, and is answered with the next tick.
    owed: bool,
    /// So often it was answered that there is nothing new, while it waits.
    answers: u32,
}

impl Reception<'_> {
    async fn run(&mut self) -> Result<Ended, EngineError> {
        let mut changed = self.track.subscribe();
        let mut tick = tokio::time::interval(ALIVE);
        tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let wrote = self.wrote.clone();
        loop {
            self.write().await?;
            let full = self.spool_is_full();
            let room = self.batch_bytes < BATCH_BYTES_MAX && !full;
            tokio::select! {
                biased;
                () = self.ctx.cancel.cancelled() => return self.stop().await,
                done = joined(&mut self.writing) => {
                    self.take_back(done)?;
                    self.report(false).await?;
                }
                () = wrote.notified() => self.report(false).await?,
                _ = tick.tick() => {
                    (self.on_event)(ReceiveEvent::Alive);
                    self.sync()?;
                    self.writer.iter_mut().for_each(Writer::mark_quiet);
                    self.look_around(full).await?;
                }
                _ = changed.changed(), if self.options.flush_at == FlushAt::Repository => self.report(false).await?,
                message = self.copy.next(), if room => {
                    let Some(message) = message else { return self.end().await };
                    self.take(message?).await?;
                    // What has arrived with it is written with it.
                    while self.batch_bytes < BATCH_BYTES_MAX {
                        match self.copy.next().now_or_never() {
                            Some(Some(message)) => self.take(message?).await?,
                            Some(None) => return self.end().await,
                            None => break,
                        }
                    }
                }
            }
        }
    }

    /// Writes what has gathered, when the writer is at rest.
    async fn write(&mut self) -> Result<(), EngineError> {
        if self.batch.is_empty() || self.writing.is_some() {
            return Ok(());
        }
        let Some(mut writer) = self.writer.take() else { return Ok(()) };
        let batch = std::mem::take(&mut self.batch);
        self.writing_to = self.next;
        let bytes = std::mem::take(&mut self.batch_bytes);
        self.unspooled += bytes;
        if bytes > WRITTEN_HERE_MAX {
            let wrote = self.wrote.clone();
            self.writing = Some(tokio::task::spawn_blocking(move || {
                let written = writer.write(&batch).and_then(|()| {
                    wrote.notify_one();
                    writer.log();
                    writer.sync()
                });
                (writer, written)
            }));
            return Ok(());
        }
        let writer = self.writer.insert(writer);
        writer.write(&batch)?;
        if self.slow {
            self.report(false).await?;
        }
        let begun = Instant::now();
        match self.options.flush_at {
            FlushAt::Spool => self.sync()?,
            FlushAt::Repository => self.writer.iter_mut().for_each(Writer::log),
        }
        self.slow = begun.elapsed() > SLOW;
        self.report(false).await?;
        if self.unspooled > SPOOLED_LATE_MAX {
            self.sync()?;
        }
        Ok(())
    }

    /// Makes the spool durable, when the writer is at rest.
    fn sync(&mut self) -> Result<(), EngineError> {
        if let Some(writer) = &mut self.writer
            && self.unspooled > 0
        {
            writer.sync()?;
            self.unspooled = 0;
            self.done = self.writing_to;
        }
        Ok(())
    }

    fn take_back(&mut self, done: Option<(Writer, Result<(), EngineError>)>) -> Result<(), EngineError> {
        self.writing = None;
        let (writer, written) = done.ok_or_else(|| EngineError::Failed {
            reason: "writing to the spool stopped unexpectedly".into(),
            hint: None,
        })?;
        self.writer = Some(writer);
        written?;
        self.unspooled = 0;
        self.done = self.writing_to;
        Ok(())
    }

    async fn take(&mut self, message: ReplicationMessage) -> Result<(), EngineError> {
        self.heard = Instant::now();
        self.asked = false;
        match message {
            ReplicationMessage::XLogData { start, server_end, data, .. } => {
                if start != self.next {
                    let reason = format!("the server sent WAL from {start} on, {} was next", self.next);
                    return Err(EngineError::Failed { reason, hint: None });
                }
                self.next = Lsn(start.0 + data.len() as u64);
                self.track.heard(Some(self.next), server_end);
                self.uploads.count(|counts| counts.bytes_received += data.len() as u64);
                self.batch_bytes += data.len();
                self.batch.push((start, data));
            }
            ReplicationMessage::Keepalive { server_end, reply_requested, .. } => {
                self.track.heard(None, server_end);
                if reply_requested {
                    self.answer().await?;
                }
            }
        }
        Ok(())
    }

    /// The server wants to hear: it is about to give up, or it shuts down and waits until all is durable.
    async fn answer(&mut self) -> Result<(), EngineError> {
        let (_, flushed) = self.positions();
        if self.positions() != self.reported || self.said.elapsed() >= ANSWER_AGAIN {
            self.answers = 0;
            return self.report(true).await;
        }
        self.owed = true;
        self.answers = if flushed < self.next { self.answers + 1 } else { 0 };
        // Only a synchronous receiver may hold up a server, and commits do not wait for one that shuts down.
        if self.answers > ANSWERS_MAX {
            return Err(EngineError::Failed {
                reason: format!(
                    "the server seems to shut down and waits until {} is durable, which the repository does not take; it is \
                     let go",
                    self.next
                ),
                hint: None,
            });
        }
        Ok(())
    }

    fn positions(&self) -> (Lsn, Lsn) {
        // What an earlier stream brought counts only once this one has brought the same.
        let written = self.written.lsn();
        match self.options.flush_at {
            FlushAt::Spool => (written, self.track.spooled_lsn().min(self.done)),
            FlushAt::Repository => (written, self.track.durable_everywhere().min(written)),
        }
    }

    /// Tells the server where things are, when that is new.
    async fn report(&mut self, always: bool) -> Result<(), EngineError> {
        let (written, flushed) = self.positions();
        if !always && (written, flushed) == self.reported {
            return Ok(());
        }
        self.say(written, flushed, false).await
    }

    async fn say(&mut self, written: Lsn, flushed: Lsn, ask: bool) -> Result<(), EngineError> {
        let now = self.ctx.now().as_microsecond();
        let status = StandbyStatus {
            written,
            flushed,
            // Nothing is ever applied here.
            applied: Lsn::INVALID,
            sent_micros: pg_format::TimestampTz::from_unix_micros(now).map_or(0, |time| time.0),
            reply_requested: ask,
        };
        // A server that does not read must not hold up what goes on here.
        match tokio::time::timeout(GONE_AFTER, self.copy.send_status(status)).await {
            Ok(sent) => sent?,
            Err(_) => return Err(gone()),
        }
        self.reported = (written, flushed);
        self.said = Instant::now();
        Ok(())
    }

    async fn look_around(&mut self, full: bool) -> Result<(), EngineError> {
        if full {
            // Nothing is read, so nothing is heard.
            self.heard = Instant::now();
        }
        let silence = self.heard.elapsed();
        if silence > GONE_AFTER {
            return Err(gone());
        }
        let ask = silence > ASK_AFTER && !self.asked;
        if ask || std::mem::take(&mut self.owed) || self.said.elapsed() >= STATUS_EVERY {
            let (written, flushed) = self.positions();
            self.say(written, flushed, ask).await?;
            self.asked |= ask;
        }
        Ok(())
    }

    fn spool_is_full(&mut self) -> bool {
        let full = self.track.spool_bytes() > self.options.spool_bytes_max;
        if full && !self.full {
            (self.on_event)(ReceiveEvent::SpoolFull);
        }
        self.full = full;
        full
    }

    /// The server has no more of this timeline.
    async fn end(&mut self) -> Result<Ended, EngineError> {
        self.drain().await?;
        // A server that shuts down has closed the connection; what it wrote is here all the same.
        let _ = self.report(true).await;
        Ok(Ended::ByServer)
    }

    /// Writes all that has gathered.
    async fn drain(&mut self) -> Result<(), EngineError> {
        loop {
            self.write().await?;
            if self.writing.is_none() {
                return self.sync();
            }
            let done = joined(&mut self.writing).await;
            self.take_back(done)?;
        }
    }

    async fn stop(&mut self) -> Result<Ended, EngineError> {
        let farewell = async {
            self.drain().await?;
            self.report(true).await
        };
        // The server learns the rest when it is attached to again.
        let _ = tokio::time::timeout(FAREWELL_MAX, farewell).await;
        Ok(Ended::Stopped)
    }

    /// Waits for what is being written, after a failure.
    async fn settle(&mut self) {
        if self.writing.is_some() {
            let done = joined(&mut self.writing).await;
            self.writing = None;
            self.writer = done.map(|(writer, _)| writer);
        }
    }
}

/// What was being written is written; never, when nothing is.
async fn joined(writing: &mut Option<Writing>) -> Option<(Writer, Result<(), EngineError>)> {
    match writing {
        Some(writing) => writing.await.ok(),
        None => std::future::pending().await,
    }
}

fn gone() -> EngineError {
    EngineError::Failed {
        reason: format!("nothing was heard of the server for {} s", GONE_AFTER.as_secs()),
        hint: None,
    }
}
