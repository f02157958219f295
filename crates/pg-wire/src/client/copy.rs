//! COPY to and from the client.

use super::Client;
use super::codec::{self, Backend};
use super::connection::{Connection, CopyState, Rows};
use super::query::{misuse, send_simple};
use crate::WireError;
use bytes::Bytes;
use futures::{Stream, StreamExt};
use postgres_protocol::message::backend::Message;
use postgres_protocol::message::frontend::{self, CopyData};
use std::fmt;
use std::future::poll_fn;

/// The data of `COPY … TO STDOUT` as it arrives, in constant memory.
#[derive(Debug)]
pub struct CopyOut<'a> {
    client: &'a mut Client,
    failed: Option<WireError>,
    done: bool,
}

/// Rows of a COPY that arrived together.
#[derive(Debug)]
pub struct CopyRows {
    /// Whole CopyData messages.
    messages: Bytes,
}

impl CopyRows {
    /// The data of each message: of a COPY in text or CSV, a row with its line end.
    pub fn iter(&self) -> impl Iterator<Item = &[u8]> {
        let mut rest: &[u8] = &self.messages;
        std::iter::from_fn(move || {
            let data = codec::copy_data(rest)?;
            rest = &rest[codec::COPY_DATA_HEADER + data.len()..];
            Some(data)
        })
    }
}

/// Takes the data of `COPY … FROM STDIN`. Dropped before [`CopyIn::finish`], the COPY fails and nothing is kept.
#[derive(Debug)]
pub struct CopyIn<'a> {
    client: &'a mut Client,
}

impl Client {
    /// Starts a `COPY … TO STDOUT`.
    pub async fn copy_out(&mut self, sql: &str) -> Result<CopyOut<'_>, WireError> {
        let connection = &mut self.connection;
        connection.ready().await?;
        send_simple(connection, sql)?;
        match connection.message().await? {
            Backend::Message(Message::CopyOutResponse(_)) => {}
            other => return Err(not_a_copy(connection, other, "COPY … TO STDOUT").await),
        }
        Ok(CopyOut { client: self, failed: None, done: false })
    }

    /// Starts a `COPY … FROM STDIN`.
    pub async fn copy_in(&mut self, sql: &str) -> Result<CopyIn<'_>, WireError> {
        let connection = &mut self.connection;
        connection.ready().await?;
        send_simple(connection, sql)?;
        match connection.message().await? {
            Backend::Message(Message::CopyInResponse(_)) => connection.copy = CopyState::In,
            other => return Err(not_a_copy(connection, other, "COPY … FROM STDIN").await),
        }
        Ok(CopyIn { client: self })
    }

    /// Runs a `COPY … FROM STDIN` with all data of a stream and gives the number of rows. An error of the stream
    /// fails the COPY and is returned.
    pub async fn copy_in_stream<E>(
        &mut self,
        sql: &str,
        mut data: impl Stream<Item = Result<Bytes, E>> + Unpin,
    ) -> Result<u64, WireError>
    where
        E: fmt::Display,
    {
        let mut copy = self.copy_in(sql).await?;
        while let Some(chunk) = data.next().await {
            match chunk {
                Ok(chunk) => copy.send(&chunk).await?,
                Err(error) => {
                    let what = format!("the data for COPY could not be read: {error}");
                    copy.abort(&what).await?;
                    return Err(WireError::Misuse { what });
                }
            }
        }
        copy.finish().await
    }
}

/// The error for a statement that turned out not to be the COPY expected; makes the session ready again.
pub(super) async fn not_a_copy(connection: &mut Connection, first: Backend, expected: &str) -> WireError {
    let error = match first {
        Backend::Message(Message::ErrorResponse(body)) => {
            WireError::Server(Box::new(codec::server_error(body.fields())))
        }
        other => {
            match other {
                Backend::CopyBoth => connection.copy = CopyState::Both,
                Backend::Message(Message::CopyInResponse(_)) => connection.copy = CopyState::In,
                _ => {}
            }
            WireError::Misuse { what: format!("the statement is no {expected}") }
        }
    };
    match connection.ready().await {
        Ok(()) => error,
        // The server's own error says more than the end of the connection that follows a FATAL one.
        Err(_) if matches!(error, WireError::Server(_)) => error,
        Err(closed) => closed,
    }
}

impl CopyOut<'_> {
    /// All rows that have arrived; waits for one. None at the end.
    pub async fn rows(&mut self) -> Result<Option<CopyRows>, WireError> {
        let connection = &mut self.client.connection;
        while !self.done {
            match poll_fn(|cx| connection.poll_rows(cx)).await {
                Ok(Rows::Messages(messages)) => return Ok(Some(CopyRows { messages })),
                Ok(Rows::Other(Backend::Message(Message::ErrorResponse(body)))) => {
                    let error = WireError::Server(Box::new(codec::server_error(body.fields())));
                    self.failed.get_or_insert(error);
                }
                Ok(Rows::Other(Backend::Message(Message::ReadyForQuery(_)))) => self.done = true,
                Ok(Rows::Other(_)) => {}
                Err(closed) => {
                    self.done = true;
                    self.failed.get_or_insert(closed);
                }
            }
        }
        self.failed.take().map_or(Ok(None), Err)
    }
}

impl CopyIn<'_> {
    /// Queues data, and waits when the server is slower.
    pub async fn send(&mut self, data: &[u8]) -> Result<(), WireError> {
        // Pieces well below the server's limit for one message.
        for piece in data.chunks(1 << 20) {
            CopyData::new(piece).map_err(misuse)?.write(&mut self.client.connection.write);
            self.client.connection.flush_if_full().await?;
        }
        Ok(())
    }

    /// Ends the data; gives the number of rows that the server stored.
    pub async fn finish(self) -> Result<u64, WireError> {
        let connection = &mut self.client.connection;
        frontend::copy_done(&mut connection.write);
        connection.copy = CopyState::None;
        let mut rows = 0;
        let mut failed = None;
        loop {
            match connection.message().await {
                Ok(Backend::Message(Message::CommandComplete(body))) => {
                    let tag = body.tag().unwrap_or_default();
                    rows = tag.rsplit(' ').next().and_then(|count| count.parse().ok()).unwrap_or(0);
                }
                Ok(Backend::Message(Message::ErrorResponse(body))) => {
                    failed.get_or_insert(WireError::Server(Box::new(codec::server_error(body.fields()))));
                }
                Ok(Backend::Message(Message::ReadyForQuery(_))) => return failed.map_or(Ok(rows), Err),
                Ok(_) => {}
                Err(closed) => return Err(failed.unwrap_or(closed)),
            }
        }
    }

    /// Fails the COPY; the server keeps nothing of it.
    pub async fn abort(self, reason: &str) -> Result<(), WireError> {
        let connection = &mut self.client.connection;
        frontend::copy_fail(&reason.replace('\0', " "), &mut connection.write).map_err(misuse)?;
        connection.copy = CopyState::None;
        connection.ready().await
    }
}
