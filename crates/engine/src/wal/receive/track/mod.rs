//! What was received, what of it is durable, and where: shared by those that receive, write and upload.
//!
//! Segments stand in the order in which they were received. A timeline that was left in the middle of a segment leaves
//! that one abandoned: what there is of it goes into the repository as pieces, and no more comes.

mod segment;

pub(super) use segment::Closed;

use super::spool::SpooledFile;
use pg_format::{Lsn, SegmentName, Timeline, WalSegmentSize};
use repo::tail::PIECE_LEN_MAX;
use segment::{InRepo, Segment};
use std::collections::VecDeque;
use std::fs::File;
use std::ops::Range;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};
use tokio::sync::watch;

/// Moments kept of how far the server was.
const MOMENTS_MAX: usize = 4096;
/// More than this is not written to a log when the whole segment is there in a moment.
const LOGGED_MAX: u64 = 1 << 20;
/// With more of them it is looked for those that are over.
const MOMENTS_KEPT: usize = 64;
/// Moments closer than this are one.
const MOMENT: Duration = Duration::from_millis(20);

/// A repository, as far as positions go.
#[derive(Debug, Clone)]
struct Place {
    required: bool,
    /// Everything up to here is there.
    base: (Timeline, Lsn),
    /// It missed segments that are gone from the spool.
    behind: bool,
}

#[derive(Debug)]
struct Inner {
    segments: VecDeque<Segment>,
    places: Vec<Place>,
    timeline: Timeline,
    /// Where the stream on this timeline began.
    begun: Lsn,
    received: Lsn,
    /// Written to the spool up to here,
    written: Lsn,
    /// and durable there.
    spooled: Lsn,
    server_end: Lsn,
    heard: Option<Instant>,
    moments: VecDeque<(Lsn, Instant)>,
    attached: Option<String>,
    stopping: bool,
    has_begun: bool,
    /// Files of segments that nothing waits for any more.
    over: Vec<PathBuf>,
}

/// See the module.
#[derive(Debug)]
pub(super) struct Track {
    size: WalSegmentSize,
    rules: PieceRules,
    inner: Mutex<Inner>,
    changed: watch::Sender<u64>,
}

/// When pieces are sent.
#[derive(Debug, Clone, Copy)]
pub(super) struct PieceRules {
    /// With so many bytes waiting, at once.
    pub(super) bytes: u64,
    /// Else after this time.
    pub(super) interval: Duration,
    /// Whatever waits, at once: commits wait for it.
    pub(super) at_once: bool,
}

/// What an uploader does next.
#[derive(Debug)]
pub(super) enum Next {
    /// List the pieces that there are of a segment.
    Look(SegmentName),
    /// Send a piece.
    Piece(PieceToSend),
    /// Wait for a change, or until then.
    Wait(Option<Instant>),
}

/// A piece that is due.
#[derive(Debug, Clone)]
pub(super) struct PieceToSend {
    pub(super) segment: SegmentName,
    pub(super) file: Arc<File>,
    pub(super) range: Range<u64>,
    level: u8,
}

/// Where things are.
#[derive(Debug, Clone)]
pub(super) struct Positions {
    pub(super) timeline: Timeline,
    pub(super) received: Lsn,
    pub(super) spooled: Lsn,
    pub(super) server_end: Lsn,
    pub(super) attached: Option<String>,
    /// Of each repository.
    pub(super) durable: Vec<(Timeline, Lsn)>,
    /// How long ago the oldest WAL was made that is not in a required repository; and, of each repository, for itself.
    pub(super) rpo: Duration,
    pub(super) behind: Vec<Duration>,
    /// Segments in the spool.
    pub(super) segments: usize,
}

impl Track {
    /// `required` says of each repository whether it is.
    pub(super) fn new(size: WalSegmentSize, required: &[bool], rules: PieceRules) -> Self {
        let place =
            |required: &bool| Place { required: *required, base: (Timeline::FIRST, Lsn::INVALID), behind: false };
        let inner = Inner {
            segments: VecDeque::new(),
            places: required.iter().map(place).collect(),
            timeline: Timeline::FIRST,
            begun: Lsn::INVALID,
            received: Lsn::INVALID,
            written: Lsn::INVALID,
            spooled: Lsn::INVALID,
            server_end: Lsn::INVALID,
            heard: None,
            moments: VecDeque::new(),
            attached: None,
            stopping: false,
            has_begun: false,
            over: Vec::new(),
        };
        Self { size, rules, inner: Mutex::new(inner), changed: watch::Sender::new(0) }
    }

    fn inner(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn change(&self) {
        self.changed.send_modify(|version| *version = version.wrapping_add(1));
    }

    /// Tells of each change.
    pub(super) fn subscribe(&self) -> watch::Receiver<u64> {
        self.changed.subscribe()
    }

    /// Takes over what the spool had.
    pub(super) fn load(&self, files: Vec<SpooledFile>) {
        let mut inner = self.inner();
        let places = inner.places.len();
        for SpooledFile { name, path, file, filled, whole } in files {
            let Ok(start) = name.start(self.size) else { continue };
            let closed = if whole { Closed::Whole } else { Closed::No };
            let since = (filled > 0).then(Instant::now);
            let at = vec![InRepo { since, ..InRepo::default() }; places];
            inner.segments.push_back(Segment { name, start, file, path, filled, closed, at });
        }
        if let Some(first) = inner.segments.front().map(|first| (first.name.timeline, first.start)) {
            inner.places.iter_mut().for_each(|place| place.base = first);
        }
        if let Some(last) = inner.segments.back().map(|last| (last.name.timeline, Lsn(last.start.0 + last.filled))) {
            (inner.timeline, inner.spooled) = last;
            (inner.received, inner.written) = (inner.spooled, inner.spooled);
        }
        drop(inner);
        self.change();
    }

    /// Where the stream goes on: after the last whole segment, or at the start of one that is not. None when the spool was
    /// empty and nothing was received yet.
    pub(super) fn next_start(&self) -> Option<(Timeline, Lsn)> {
        let inner = self.inner();
        let spooled = inner.segments.iter().map(|segment| match segment.closed {
            Closed::Whole => (segment.name.timeline, Lsn(segment.start.0 + self.size.bytes())),
            _ => (segment.name.timeline, segment.start),
        });
        let streamed = inner.has_begun.then(|| (inner.timeline, inner.spooled.segment_start(self.size)));
        spooled.chain(streamed).max()
    }

    /// Whether anything was streamed since the start.
    pub(super) fn has_begun(&self) -> bool {
        self.inner().has_begun
    }

    /// The stream begins at the start of a segment.
    pub(super) fn begin(&self, timeline: Timeline, start: Lsn, name: SegmentName) {
        let mut inner = self.inner();
        for segment in inner.segments.iter_mut().filter(|segment| segment.name != name) {
            if segment.closed == Closed::No {
                segment.closed = Closed::Abandoned;
            }
        }
        inner.segments.iter_mut().flat_map(|segment| &mut segment.at).for_each(|at| at.logged = false);
        if inner.segments.is_empty() {
            inner.places.iter_mut().filter(|place| !place.behind).for_each(|place| place.base = (timeline, start));
        }
        (inner.timeline, inner.begun, inner.has_begun) = (timeline, start, true);
        let known = inner.segments.iter().find(|segment| segment.name == name).map_or(0, |segment| segment.filled);
        inner.spooled = Lsn(start.0 + known);
        (inner.received, inner.written) = (inner.spooled, inner.spooled);
        inner.pop_done(self.size);
        drop(inner);
        self.change();
    }

    /// A segment's file, when there is one, and how far it is filled.
    pub(super) fn file_of(&self, name: SegmentName) -> Option<(Arc<File>, PathBuf, u64)> {
        let inner = self.inner();
        let segment = inner.segments.iter().find(|segment| segment.name == name)?;
        Some((segment.file.clone(), segment.path.clone(), segment.filled))
    }

    /// A segment begins.
    pub(super) fn opened(&self, name: SegmentName, start: Lsn, file: Arc<File>, path: PathBuf) {
        let mut inner = self.inner();
        let at = vec![InRepo::default(); inner.places.len()];
        inner.segments.push_back(Segment { name, start, file, path, filled: 0, closed: Closed::No, at });
    }

    /// So many bytes of a segment are written to the spool, and may be brought to the repositories.
    pub(super) fn written(&self, name: SegmentName, filled: u64) {
        let mut inner = self.inner();
        let mut news = false;
        if let Some(segment) = inner.segments.iter_mut().find(|segment| segment.name == name) {
            news = segment.fill(filled, &self.rules);
            let end = Lsn(segment.start.0 + segment.filled);
            inner.written = inner.written.max(end);
        }
        drop(inner);
        // Each call wakes several threads, and commits may wait meanwhile.
        if news {
            self.change();
        }
    }

    /// So many bytes of a segment are durable in the spool.
    pub(super) fn spooled(&self, name: SegmentName, filled: u64) {
        self.written(name, filled);
        let mut inner = self.inner();
        let start = inner.segments.iter().find(|segment| segment.name == name).map(|segment| segment.start);
        if let Some(start) = start {
            inner.spooled = inner.spooled.max(Lsn(start.0 + filled));
        }
    }

    /// What of a segment a repository does not have, for its log; none while it is not known, or when there is nothing, or
    /// when so much comes that the whole segment is there as soon.
    pub(super) fn to_log(&self, place: usize, name: SegmentName) -> Option<Range<u64>> {
        let inner = self.inner();
        let segment = inner.segments.iter().find(|segment| segment.name == name)?;
        let at = &segment.at[place];
        let range = at.sent..segment.filled;
        let coming = inner.server_end.0 >= segment.start.0 + self.size.bytes();
        let left_out = coming && segment.filled.saturating_sub(at.sent) > LOGGED_MAX;
        (at.looked && !at.whole && !range.is_empty() && !left_out).then_some(range)
    }

    /// A repository's log has a segment up to here, and takes what comes.
    pub(super) fn logged(&self, place: usize, name: SegmentName, end: u64) {
        let mut inner = self.inner();
        if let Some(segment) = inner.segments.iter_mut().find(|segment| segment.name == name) {
            let (filled, at) = (segment.filled, &mut segment.at[place]);
            at.logged = true;
            at.sent = at.sent.max(end);
            at.since = at.since.filter(|_| at.sent < filled);
        }
        if inner.moments.len() > MOMENTS_KEPT {
            inner.forget_moments(self.size);
        }
    }

    /// Nothing more is written to the log of a repository: what comes is sent as pieces.
    pub(super) fn log_ended(&self, place: usize) {
        let mut inner = self.inner();
        inner.segments.iter_mut().for_each(|segment| segment.at[place].logged = false);
        drop(inner);
        self.change();
    }

    /// A log could not be written to. What of it is there, if it is there still, is looked at before anything is sent.
    pub(super) fn log_failed(&self, place: usize, name: SegmentName) {
        let mut inner = self.inner();
        if let Some(segment) = inner.segments.iter_mut().find(|segment| segment.name == name) {
            let whole = segment.at[place].whole;
            segment.at[place] = InRepo { whole, since: Some(Instant::now()), ..InRepo::default() };
        }
        drop(inner);
        self.change();
    }

    /// A segment is whole, under its final name.
    pub(super) fn closed(&self, name: SegmentName, path: PathBuf, filled: u64, closed: Closed) {
        {
            let mut inner = self.inner();
            if let Some(segment) = inner.segments.iter_mut().find(|segment| segment.name == name) {
                segment.fill(filled, &self.rules);
                (segment.path, segment.closed) = (path, closed);
                segment.at.iter_mut().for_each(|at| at.logged = false);
                let end = Lsn(segment.start.0 + segment.filled);
                inner.written = inner.written.max(end);
            }
        }
        self.spooled(name, filled);
        self.change();
    }

    /// WAL arrived, and the server said how far it is.
    pub(super) fn heard(&self, received: Option<Lsn>, server_end: Lsn) {
        let now = Instant::now();
        let mut inner = self.inner();
        inner.heard = Some(now);
        if let Some(received) = received {
            inner.received = inner.received.max(received);
        }
        if server_end > inner.server_end {
            inner.server_end = server_end;
            let crowded = inner.moments.len() >= MOMENTS_MAX;
            match inner.moments.back_mut() {
                // The earlier moment stands for both: nothing seems younger than it is.
                Some(last) if crowded || now.duration_since(last.1) < MOMENT => last.0 = server_end,
                _ => inner.moments.push_back((server_end, now)),
            }
        }
    }

    /// Which server the stream comes from; none while there is none.
    pub(super) fn set_attached(&self, server: Option<String>) {
        let mut inner = self.inner();
        if server.is_some() {
            // Another server's end may be lower.
            inner.server_end = inner.spooled;
            inner.heard = Some(Instant::now());
        }
        inner.attached = server;
    }

    /// Everything is due at once from now on.
    pub(super) fn stop(&self) {
        self.inner().stopping = true;
        self.change();
    }

    /// Whether each required repository has all there is.
    pub(super) fn is_drained(&self) -> bool {
        let inner = self.inner();
        inner.segments.iter().all(|segment| {
            let mut required = segment.at.iter().zip(&inner.places).filter(|(_, place)| place.required);
            required.all(|(at, _)| at.whole || (segment.closed != Closed::Whole && at.sent >= segment.filled))
        })
    }

    /// Bytes of files in the spool.
    pub(super) fn spool_bytes(&self) -> u64 {
        self.inner().segments.len() as u64 * self.size.bytes()
    }

    /// What the uploader to a repository does next.
    pub(super) fn next(&self, place: usize) -> Next {
        let (inner, rules) = (self.inner(), &self.rules);
        let now = Instant::now();
        for segment in &inner.segments {
            let at = &segment.at[place];
            let unsent = segment.filled.saturating_sub(at.sent);
            if at.whole || unsent == 0 {
                continue;
            }
            if at.logged {
                continue;
            }
            let begun = rules.at_once || at.sent > 0;
            if segment.closed == Closed::Whole && at.looked && !(begun && unsent <= PIECE_LEN_MAX) {
                // Its object is on its way.
                continue;
            }
            if segment.closed == Closed::Whole && !at.looked && !rules.at_once {
                continue;
            }
            // A segment that is whole in a moment need not be sent twice.
            let coming = inner.server_end.0 >= segment.start.0 + self.size.bytes() && segment.closed == Closed::No;
            let waited = at.since.is_none_or(|since| now.duration_since(since) >= rules.interval);
            let full = (rules.at_once || unsent >= rules.bytes) && !coming;
            if !(waited || full || segment.closed != Closed::No || inner.stopping) {
                return Next::Wait(at.since.map(|since| since + rules.interval));
            }
            if !at.looked {
                return Next::Look(segment.name);
            }
            let (from, level) = at.next_from();
            let from = if segment.filled - from > PIECE_LEN_MAX { at.sent } else { from };
            let level = if from == at.sent { 0 } else { level };
            let range = from..segment.filled.min(from + PIECE_LEN_MAX);
            return Next::Piece(PieceToSend { segment: segment.name, file: segment.file.clone(), range, level });
        }
        Next::Wait(None)
    }

    /// The pieces that there are of a segment, as far as they lead from its start.
    pub(super) fn looked(&self, place: usize, name: SegmentName, chain: Vec<Range<u64>>) {
        let mut inner = self.inner();
        if let Some(segment) = inner.segments.iter_mut().find(|segment| segment.name == name) {
            let at = &mut segment.at[place];
            at.looked = true;
            at.sent = at.sent.max(chain.last().map_or(0, |range| range.end));
            at.pieces = chain.into_iter().map(|range| (range, 0)).collect();
        }
        drop(inner);
        self.change();
    }

    /// A piece is durable. Gives the ranges of those that it made superfluous.
    pub(super) fn sent(&self, place: usize, piece: &PieceToSend) -> Vec<Range<u64>> {
        let mut inner = self.inner();
        let mut covered = Vec::new();
        if let Some(segment) = inner.segments.iter_mut().find(|segment| segment.name == piece.segment) {
            let filled = segment.filled;
            let at = &mut segment.at[place];
            let range = &piece.range;
            at.pieces.retain(|(other, _)| {
                let inside = range.start <= other.start && other.end <= range.end && other != range;
                if inside {
                    covered.push(other.clone());
                }
                !inside
            });
            at.pieces.push((range.clone(), piece.level));
            at.sent = at.sent.max(range.end);
            at.since = (at.sent < filled).then(Instant::now);
        }
        inner.pop_done(self.size);
        drop(inner);
        self.change();
        covered
    }

    /// Whether a repository needs no more pieces of a segment.
    pub(super) fn is_over(&self, place: usize, name: SegmentName) -> bool {
        let inner = self.inner();
        inner.segments.iter().find(|segment| segment.name == name).is_none_or(|segment| segment.at[place].whole)
    }

    /// The whole segments whose objects are to be made, and their files.
    pub(super) fn whole_segments(&self) -> Vec<(SegmentName, PathBuf)> {
        let inner = self.inner();
        let missing = |segment: &&Segment| {
            let mut required = segment.at.iter().zip(&inner.places).filter(|(_, place)| place.required);
            segment.closed == Closed::Whole && required.any(|(at, _)| !at.whole)
        };
        inner.segments.iter().filter(missing).map(|segment| (segment.name, segment.path.clone())).collect()
    }

    /// A segment's object is in these repositories.
    pub(super) fn stored(&self, name: SegmentName, places: &[usize]) {
        let mut inner = self.inner();
        if let Some(segment) = inner.segments.iter_mut().find(|segment| segment.name == name) {
            for place in places {
                (segment.at[*place].whole, segment.at[*place].since) = (true, None);
            }
        }
        inner.pop_done(self.size);
        drop(inner);
        self.change();
    }

    /// A repository has what it had missed.
    pub(super) fn caught_up(&self, place: usize) {
        let mut inner = self.inner();
        if inner.places[place].behind {
            let base = inner.segments.front().map(|first| (first.name.timeline, first.start));
            let base = base.unwrap_or((inner.timeline, inner.spooled.segment_start(self.size)));
            (inner.places[place].behind, inner.places[place].base) = (false, base);
        }
    }

    /// The files of segments that nothing waits for any more.
    pub(super) fn take_over(&self) -> Vec<PathBuf> {
        std::mem::take(&mut self.inner().over)
    }

    /// Durable in the spool up to here.
    pub(super) fn spooled_lsn(&self) -> Lsn {
        self.inner().spooled
    }

    /// The position that may be reported as durable in all required repositories.
    pub(super) fn durable_everywhere(&self) -> Lsn {
        let inner = self.inner();
        let places = inner.places.iter().enumerate().filter(|(_, place)| place.required);
        let of = |(index, _): (usize, &Place)| match inner.durable(index, self.size) {
            (timeline, lsn) if timeline == inner.timeline => lsn.min(inner.written),
            // Of the timeline before: what the present one has of it.
            (_, lsn) => lsn.min(inner.begun),
        };
        places.map(of).min().unwrap_or(Lsn::INVALID)
    }

    /// Where things are.
    pub(super) fn positions(&self) -> Positions {
        let inner = self.inner();
        let now = Instant::now();
        let durable: Vec<_> = (0..inner.places.len()).map(|place| inner.durable(place, self.size)).collect();
        let behind: Vec<Duration> = durable.iter().map(|durable| inner.age(*durable, now)).collect();
        let required = behind.iter().zip(&inner.places).filter(|(_, place)| place.required).map(|(behind, _)| *behind);
        Positions {
            timeline: inner.timeline,
            received: inner.received,
            spooled: inner.spooled,
            server_end: inner.server_end,
            attached: inner.attached.clone(),
            rpo: required.max().unwrap_or_default(),
            durable,
            behind,
            segments: inner.segments.len(),
        }
    }
}

impl Inner {
    /// Up to where a repository has everything.
    fn durable(&self, place: usize, size: WalSegmentSize) -> (Timeline, Lsn) {
        let mut position = self.places[place].base;
        if self.places[place].behind {
            return position;
        }
        for segment in &self.segments {
            let at = &segment.at[place];
            let sent = if at.whole { size.bytes() } else { at.sent.min(segment.filled) };
            position = (segment.name.timeline, Lsn(segment.start.0 + sent));
            if !(segment.is_in(place) || (segment.closed == Closed::Whole && sent == size.bytes())) {
                break;
            }
        }
        position
    }

    /// How long ago the oldest WAL was made that lies beyond this position.
    fn age(&self, (timeline, lsn): (Timeline, Lsn), now: Instant) -> Duration {
        let since = |moment: Instant| now.duration_since(moment);
        let silence = self.heard.map_or(Duration::ZERO, since);
        let has_all = timeline == self.timeline && lsn >= self.server_end;
        match self.moments.iter().find(|(end, _)| *end > lsn) {
            Some((_, made)) if !has_all => since(*made).max(silence),
            // All that is known of is there; what came since the server was heard last is not known.
            _ if self.attached.is_none() => silence,
            _ => Duration::ZERO,
        }
    }

    /// Lets go of the first segments that are where they must be.
    fn pop_done(&mut self, size: WalSegmentSize) {
        while let Some(first) = self.segments.front() {
            let required: Vec<usize> = (0..self.places.len()).filter(|place| self.places[*place].required).collect();
            let done = first.closed != Closed::No && required.iter().all(|place| first.is_in(*place));
            if !done {
                break;
            }
            for place in 0..self.places.len() {
                let first = &self.segments[0];
                let missing = !first.is_in(place);
                let end = if first.closed == Closed::Whole { size.bytes() } else { first.filled };
                let end = (first.name.timeline, Lsn(first.start.0 + end));
                match missing {
                    true => self.places[place].behind = true,
                    false if !self.places[place].behind => self.places[place].base = end,
                    false => {}
                }
            }
            let first = self.segments.pop_front();
            self.over.extend(first.map(|first| first.path));
        }
        self.forget_moments(size);
    }

    /// Lets go of moments that are over for everyone.
    fn forget_moments(&mut self, size: WalSegmentSize) {
        let lowest = (0..self.places.len()).map(|place| self.durable(place, size).1).min();
        while self.moments.len() > 1 && lowest.is_some_and(|lowest| self.moments[0].0 <= lowest) {
            self.moments.pop_front();
        }
    }
}

#[cfg(test)]
mod tests;
