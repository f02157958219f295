//! What `wal status` and `status` say of the receiver on this host: how far it is, and what would be lost now.

use super::archives::Archives;
use crate::config::Config;
use crate::output::size;
use crate::output::table::{Align, Table};
use crate::session::Session;
use engine::wal::receive::{ReceiverState, read_state};
use jiff::Timestamp;
use serde_json::{Value, json};

/// More than this in danger needs attention, in seconds.
const RPO_SECONDS_MAX: f64 = 60.0;

/// The receiver on this host.
pub(crate) struct Receiver {
    state: ReceiverState,
    /// It does not run any more.
    is_over: bool,
    /// Seconds since it was last heard of.
    silence: f64,
    rpo_seconds: f64,
    rpo_worst_seconds: f64,
}

/// The receiver of these repositories, when there is or was one on this host.
pub(crate) fn look(session: &Session, config: &Config, archives: &Archives<'_>) -> Option<Receiver> {
    let state = read_state(&config.state_dir(&session.environment), &archives.key())?;
    let now = Timestamp::now();
    let is_over = state.is_over(now);
    let silence = now.duration_since(state.updated).as_secs_f64();
    // What came since it was last heard of is not known to be anywhere.
    let rpo_seconds = if is_over { state.rpo_seconds + silence } else { state.rpo_seconds };
    let rpo_worst_seconds = state.rpo_worst_day_seconds.max(rpo_seconds);
    Some(Receiver { state, is_over, silence, rpo_seconds, rpo_worst_seconds })
}

impl Receiver {
    /// Whether a human should look.
    pub(crate) fn needs_attention(&self) -> bool {
        self.is_over || self.state.server.is_none() || self.rpo_seconds > RPO_SECONDS_MAX
    }

    /// For people, in a line.
    pub(crate) fn text(&self) -> String {
        let Self { state, silence, rpo_seconds, rpo_worst_seconds, .. } = self;
        let way = match (&state.server, self.is_over) {
            (_, true) => format!("does not run; last heard of {silence:.0} s ago"),
            (Some(server), false) => format!("streams from {server}, timeline {}", state.timeline),
            (None, false) => "the stream is interrupted".to_owned(),
        };
        format!(
            "process {} on {}, {way}; {rpo_seconds:.1} s of WAL would be lost now, {rpo_worst_seconds:.1} s at the worst of \
             the last day",
            state.pid, state.host
        )
    }

    pub(crate) fn json(&self) -> Value {
        let state = &self.state;
        json!({ "running": !self.is_over, "host": state.host, "pid": state.pid, "updated": state.updated,
            "server": state.server, "slot": state.slot, "flush_at": state.flush_at, "timeline": state.timeline,
            "server_lsn": state.server_lsn, "received_lsn": state.received_lsn,
            "received_behind_bytes": state.server_lsn.saturating_sub(state.received_lsn),
            "spooled_lsn": state.spooled_lsn,
            "spooled_behind_bytes": state.server_lsn.saturating_sub(state.spooled_lsn),
            "spool_segments": state.spool_segments, "repositories": state.repositories,
            "rpo_seconds": self.rpo_seconds, "rpo_worst_day_seconds": self.rpo_worst_seconds, "counts": state.counts })
    }
}

/// Says how the receiver is, and gives that as JSON; null when there is none on this host.
pub(super) fn say(session: &Session, config: &Config, archives: &Archives<'_>) -> Value {
    let Some(receiver) = look(session, config, archives) else { return Value::Null };
    let text = format!("receiver: {}", receiver.text());
    if receiver.needs_attention() {
        session.output.warn(text);
    } else {
        session.output.result(text);
    }
    session.output.result(table(&receiver.state).render());
    for repository in &receiver.state.repositories {
        if let Some(reason) = &repository.failing {
            session.output.warn(format!("the receiver cannot write to repository {}: {reason}", repository.name));
        }
    }
    receiver.json()
}

fn table(state: &ReceiverState) -> Table {
    let mut table = Table::new(&[
        ("WAL", Align::Left),
        ("UP TO", Align::Left),
        ("BYTES BEHIND", Align::Right),
        ("SECONDS BEHIND", Align::Right),
    ]);
    let behind = |lsn| size::bytes(state.server_lsn.saturating_sub(lsn));
    for (what, lsn) in [("received", state.received_lsn), ("durable in the spool", state.spooled_lsn)] {
        table.row([what.to_owned(), lsn.to_string(), behind(lsn), String::new()]);
    }
    for repository in &state.repositories {
        table.row([
            format!("durable in {}", repository.name),
            repository.durable_lsn.to_string(),
            size::bytes(repository.behind_bytes),
            format!("{:.1}", repository.behind_seconds),
        ]);
    }
    table
}
