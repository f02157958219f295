//! The walsender's commands: identification, settings, timeline histories, and the stream of WAL.
//!
//! Facts from PostgreSQL's `src/backend/replication/walsender.c` and the manual's "Streaming Replication Protocol".

use super::codec::{self, Backend};
use super::connection::{Connection, CopyState};
use super::copy::not_a_copy;
use super::query::{misuse, send_simple};
use super::{Client, Row, Rows};
use crate::WireError;
use bytes::{Buf, BufMut, Bytes, BytesMut};
use futures::Stream;
use pg_format::{Lsn, SystemId, Timeline};
use postgres_protocol::message::backend::Message;
use postgres_protocol::message::frontend::{self, CopyData};
use std::pin::Pin;
use std::task::{Context, Poll, ready};

/// The answer to `IDENTIFY_SYSTEM`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct IdentifySystem {
    /// The cluster's identifier.
    pub system_id: SystemId,
    /// The current timeline.
    pub timeline: Timeline,
    /// How far WAL is flushed (on a standby: replayed or received).
    pub xlogpos: Lsn,
    /// The database connected to, none for physical replication.
    pub dbname: Option<String>,
}

/// The answer to `TIMELINE_HISTORY`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TimelineHistory {
    /// The file's name, such as `00000002.history`.
    pub filename: String,
    /// Its bytes.
    pub content: Bytes,
}

/// What a walsender sends while it streams.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ReplicationMessage {
    /// WAL from `start` on.
    XLogData {
        /// Where `data` begins.
        start: Lsn,
        /// The end of WAL on the server.
        server_end: Lsn,
        /// The server's clock, in microseconds since 2000-01-01 UTC.
        sent_micros: i64,
        /// The WAL.
        data: Bytes,
    },
    /// A sign of life.
    Keepalive {
        /// The end of WAL on the server.
        server_end: Lsn,
        /// The server's clock, in microseconds since 2000-01-01 UTC.
        sent_micros: i64,
        /// The server wants a status update at once, or it will give up.
        reply_requested: bool,
    },
}

/// What the client reports back.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct StandbyStatus {
    /// Received up to here.
    pub written: Lsn,
    /// Durable up to here.
    pub flushed: Lsn,
    /// Replayed up to here.
    pub applied: Lsn,
    /// The client's clock, in microseconds since 2000-01-01 UTC.
    pub sent_micros: i64,
    /// Asks the server to answer at once.
    pub reply_requested: bool,
}

/// A stream of WAL in both directions. A `futures::Stream` of [`ReplicationMessage`]s that ends when the server has
/// nothing more on this timeline; then [`CopyBoth::finish`] tells which comes next. May be polled in `select!`.
#[derive(Debug)]
pub struct CopyBoth<'a> {
    client: &'a mut Client,
    ended: bool,
}

impl Client {
    /// `IDENTIFY_SYSTEM`.
    pub async fn identify_system(&mut self) -> Result<IdentifySystem, WireError> {
        let row = self.one_row("IDENTIFY_SYSTEM").await?;
        Ok(IdentifySystem {
            system_id: SystemId(row.get("systemid")?),
            timeline: row.timeline("timeline")?,
            xlogpos: row.lsn("xlogpos")?,
            dbname: row.opt_str("dbname")?.map(str::to_owned),
        })
    }

    /// `SHOW name`, on any connection.
    pub async fn show(&mut self, name: &str) -> Result<String, WireError> {
        if name.is_empty() || !name.bytes().all(|byte| byte.is_ascii_alphanumeric() || matches!(byte, b'_' | b'.')) {
            return Err(WireError::Misuse { what: format!("{name:?} is no name of a setting") });
        }
        self.one_value(&format!("SHOW {name}")).await
    }

    /// `TIMELINE_HISTORY`: the history file of a timeline; timeline 1 has none.
    pub async fn timeline_history(&mut self, timeline: Timeline) -> Result<TimelineHistory, WireError> {
        let row = self.one_row(&format!("TIMELINE_HISTORY {}", timeline.0)).await?;
        let content = row.bytes("content")?.ok_or_else(|| WireError::Null { column: "content".to_owned() })?;
        Ok(TimelineHistory { filename: row.str("filename")?.to_owned(), content: Bytes::copy_from_slice(content) })
    }

    /// `START_REPLICATION PHYSICAL`: WAL from a place on, with a slot if one is named.
    pub async fn start_replication(
        &mut self,
        slot: Option<&str>,
        start: Lsn,
        timeline: Timeline,
    ) -> Result<CopyBoth<'_>, WireError> {
        let slot = match slot {
            // As ReplicationSlotValidateName in src/backend/replication/slot.c: no quoting is needed.
            Some(name) if name.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'_') => {
                format!("SLOT \"{name}\" ")
            }
            Some(name) => return Err(WireError::Misuse { what: format!("{name:?} is no name of a replication slot") }),
            None => String::new(),
        };
        let connection = &mut self.connection;
        connection.ready().await?;
        send_simple(connection, &format!("START_REPLICATION {slot}PHYSICAL {start} TIMELINE {}", timeline.0))?;
        match connection.message().await? {
            Backend::CopyBoth => connection.copy = CopyState::Both,
            other => return Err(not_a_copy(connection, other, "replication stream").await),
        }
        Ok(CopyBoth { client: self, ended: false })
    }

    async fn one_row(&mut self, command: &str) -> Result<Row, WireError> {
        let rows: Option<Rows> = self.simple_rows(command).await?.pop();
        rows.ok_or(WireError::RowCount { expected: "one", found: 0 })?.one()
    }
}

impl CopyBoth<'_> {
    /// Reports progress to the server.
    pub async fn send_status(&mut self, status: StandbyStatus) -> Result<(), WireError> {
        let mut body = BytesMut::with_capacity(34);
        body.put_u8(b'r');
        body.put_u64(status.written.0);
        body.put_u64(status.flushed.0);
        body.put_u64(status.applied.0);
        body.put_i64(status.sent_micros);
        body.put_u8(u8::from(status.reply_requested));
        let connection = &mut self.client.connection;
        CopyData::new(body.freeze()).map_err(misuse)?.write(&mut connection.write);
        connection.flush().await
    }

    /// Ends the stream; gives the next timeline and where it begins, when the server has switched.
    pub async fn finish(self) -> Result<Option<(Timeline, Lsn)>, WireError> {
        let connection = &mut self.client.connection;
        frontend::copy_done(&mut connection.write);
        connection.copy = CopyState::None;
        let mut next = None;
        let mut failed = None;
        let mut columns = None;
        loop {
            match connection.message().await {
                Ok(Backend::Message(Message::RowDescription(body))) => {
                    columns = Some(super::row::columns(&body).map_err(|what| connection.protocol(what))?);
                }
                Ok(Backend::Message(Message::DataRow(body))) => {
                    let columns = columns.clone().unwrap_or_else(|| [].into());
                    let row = Row::new(columns, &body).map_err(|what| connection.protocol(what))?;
                    next = Some((row.timeline("next_tli")?, row.lsn("next_tli_startpos")?));
                }
                Ok(Backend::Message(Message::ErrorResponse(body))) => {
                    failed.get_or_insert(WireError::Server(Box::new(codec::server_error(body.fields()))));
                }
                Ok(Backend::Message(Message::ReadyForQuery(_))) => return failed.map_or(Ok(next), Err),
                Ok(_) => {}
                Err(closed) => return Err(failed.unwrap_or(closed)),
            }
        }
    }
}

impl Stream for CopyBoth<'_> {
    type Item = Result<ReplicationMessage, WireError>;

    fn poll_next(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        if self.ended {
            return Poll::Ready(None);
        }
        let connection: &mut Connection = &mut self.client.connection;
        let item = match ready!(connection.poll_message(cx)) {
            Ok(Backend::Message(Message::CopyData(body))) => match parse(body.into_bytes()) {
                Ok(message) => return Poll::Ready(Some(Ok(message))),
                Err(what) => Some(Err(connection.protocol(what))),
            },
            // A server that shuts down says `COPY 0` and no more (`WalSndDone`).
            Ok(Backend::Message(Message::CopyDone | Message::CommandComplete(_))) => None,
            Ok(Backend::Message(Message::ErrorResponse(body))) => {
                // The COPY is over; what follows is read by the next call.
                connection.copy = CopyState::None;
                Some(Err(WireError::Server(Box::new(codec::server_error(body.fields())))))
            }
            Ok(_) => Some(Err(connection.protocol("an unexpected message in a replication stream"))),
            Err(error) => Some(Err(error)),
        };
        self.ended = true;
        Poll::Ready(item)
    }
}

fn parse(mut body: Bytes) -> Result<ReplicationMessage, String> {
    let short = |_| "a replication message that is too short".to_owned();
    match body.try_get_u8().map_err(short)? {
        b'w' => {
            let start = Lsn(body.try_get_u64().map_err(short)?);
            let server_end = Lsn(body.try_get_u64().map_err(short)?);
            let sent_micros = body.try_get_i64().map_err(short)?;
            Ok(ReplicationMessage::XLogData { start, server_end, sent_micros, data: body })
        }
        b'k' => Ok(ReplicationMessage::Keepalive {
            server_end: Lsn(body.try_get_u64().map_err(short)?),
            sent_micros: body.try_get_i64().map_err(short)?,
            reply_requested: body.try_get_u8().map_err(short)? != 0,
        }),
        other => Err(format!("a replication message of unknown kind {:?}", char::from(other))),
    }
}
