//! What `wal status` reads of a receiver on this host: where things are, and how much would be lost now.

use super::track::{Positions, Track};
use super::upload::Uploads;
use super::{FlushAt, ReceiveCounts, ReceiveEvent, ReceiveOptions, spool};
use crate::{Context, host};
use jiff::Timestamp;
use pg_format::{Lsn, SystemId, Timeline};
use serde::{Deserialize, Serialize};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;
use tokio::time::MissedTickBehavior;

const FILE: &str = "state.json";
/// A file larger than this is not one of ours.
const BYTES_MAX: u64 = 1 << 20;
/// How often it is written.
const EVERY: Duration = Duration::from_secs(1);
/// Summaries of what was done.
const SUMMARY_EVERY: u32 = 60;
/// Minutes of a day.
const MINUTES: i64 = 24 * 60;

/// The state of a receiver.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct ReceiverState {
    /// When this was written.
    pub updated: Timestamp,
    /// The host it runs on.
    pub host: String,
    /// Its process.
    pub pid: u32,
    /// The system identifier.
    pub system_id: SystemId,
    /// The slot.
    pub slot: String,
    /// When the server is told that WAL is durable.
    pub flush_at: FlushAt,
    /// The server; none while the stream is interrupted.
    pub server: Option<String>,
    /// The timeline.
    pub timeline: Timeline,
    /// How far the server's WAL was when it was last heard.
    pub server_lsn: Lsn,
    /// Received up to here.
    pub received_lsn: Lsn,
    /// Durable in the spool up to here.
    pub spooled_lsn: Lsn,
    /// Segments in the spool.
    pub spool_segments: u64,
    /// The repositories.
    pub repositories: Vec<RepositoryState>,
    /// What would be lost now with the server and this host, in seconds: of the required repositories, the worst.
    pub rpo_seconds: f64,
    /// The worst of the last day.
    pub rpo_worst_day_seconds: f64,
    /// What was done since the start.
    pub counts: ReceiveCounts,
    /// The worst of each minute: minutes since 1970, seconds.
    pub minutes: Vec<(i64, f64)>,
}

/// How far a repository is.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct RepositoryState {
    /// Its name.
    pub name: String,
    /// Whether it must have the WAL.
    pub required: bool,
    /// The timeline of `durable_lsn`.
    pub timeline: Timeline,
    /// Durable there up to here.
    pub durable_lsn: Lsn,
    /// Bytes behind the server.
    pub behind_bytes: u64,
    /// Seconds behind the server.
    pub behind_seconds: f64,
    /// Why it cannot be written to, when it cannot.
    pub failing: Option<String>,
}

impl ReceiverState {
    /// Whether its process is known to have ended, or nothing was heard of it for long.
    pub fn is_over(&self, now: Timestamp) -> bool {
        now.duration_since(self.updated).as_secs_f64() > 15.0
    }
}

/// The state of the receiver of this cluster and its repositories on this host, when there was one.
pub fn read_state(state_dir: &Path, key: &str) -> Option<ReceiverState> {
    let path = spool::place(state_dir, key).join(FILE);
    if std::fs::metadata(&path).ok()?.len() > BYTES_MAX {
        return None;
    }
    serde_json::from_slice(&std::fs::read(&path).ok()?).ok()
}

/// Writes the state every second.
pub(super) struct Recorder {
    ctx: Context,
    options: ReceiveOptions,
    path: PathBuf,
    system_id: SystemId,
    track: Arc<Track>,
    uploads: Arc<Uploads>,
    on_event: super::OnReceive,
    minutes: Vec<(i64, f64)>,
}

impl Recorder {
    pub(super) fn new(
        ctx: &Context,
        options: &ReceiveOptions,
        on_event: &super::OnReceive,
        system_id: SystemId,
        track: Arc<Track>,
        uploads: Arc<Uploads>,
    ) -> Self {
        let before = read_state(&options.state_dir, &options.state_key).filter(|state| state.system_id == system_id);
        Self {
            ctx: ctx.clone(),
            options: options.clone(),
            path: uploads.place().join(FILE),
            system_id,
            track,
            uploads,
            on_event: on_event.clone(),
            minutes: before.map(|state| state.minutes).unwrap_or_default(),
        }
    }

    pub(super) async fn run(mut self) {
        let mut tick = tokio::time::interval(EVERY);
        tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let (mut ticks, mut said) = (0u32, ReceiveCounts::default());
        while self.ctx.or_cancel(tick.tick()).await.is_ok() {
            self.write();
            ticks = ticks.wrapping_add(1);
            let counts = self.uploads.counts();
            if ticks.is_multiple_of(SUMMARY_EVERY) && counts != said {
                said = counts;
                (self.on_event)(ReceiveEvent::Worked(counts));
            }
        }
        self.write();
    }

    fn write(&mut self) {
        let state = self.state(self.track.positions());
        let temp = self.path.with_extension("tmp");
        // Only for people to read: when it cannot be written, WAL is received all the same.
        if let Ok(text) = serde_json::to_vec(&state) {
            let _ = std::fs::write(&temp, text).and_then(|()| std::fs::rename(&temp, &self.path));
        }
    }

    fn state(&mut self, positions: Positions) -> ReceiverState {
        let now = self.ctx.now();
        let rpo_seconds = positions.rpo.as_secs_f64();
        let minute = now.as_second().div_euclid(60);
        match self.minutes.last_mut() {
            Some((last, worst)) if *last == minute => *worst = worst.max(rpo_seconds),
            _ => self.minutes.push((minute, rpo_seconds)),
        }
        self.minutes.retain(|(other, _)| minute - other < MINUTES);
        let repositories = self.options.repositories.iter().enumerate().map(|(place, to)| {
            let (timeline, durable_lsn) = positions.durable[place];
            RepositoryState {
                name: to.name.clone(),
                required: to.required,
                timeline,
                durable_lsn,
                behind_bytes: positions.server_end.saturating_sub(durable_lsn),
                behind_seconds: positions.behind[place].as_secs_f64(),
                failing: self.uploads.failing(&to.name),
            }
        });
        let holder = host::lease_holder();
        ReceiverState {
            updated: now,
            host: holder.host,
            pid: holder.pid,
            system_id: self.system_id,
            slot: self.options.slot.clone(),
            flush_at: self.options.flush_at,
            server: positions.attached.clone(),
            timeline: positions.timeline,
            server_lsn: positions.server_end,
            received_lsn: positions.received,
            spooled_lsn: positions.spooled,
            spool_segments: positions.segments as u64,
            repositories: repositories.collect(),
            rpo_seconds,
            rpo_worst_day_seconds: self.minutes.iter().map(|(_, worst)| *worst).fold(0.0, f64::max),
            counts: self.uploads.counts(),
            minutes: self.minutes.clone(),
        }
    }
}
