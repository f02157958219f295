//! One connection's bytes and what the server is owed: messages in and out, with asynchronous ones handled here.
//!
//! All state lives in [`Connection`], never in a future, so that a caller may drop a future at any await: the next
//! call first reads and drops what the abandoned one left ([`Connection::ready`]).

use super::codec::{self, Backend};
use crate::WireError;
use bytes::{Buf, Bytes, BytesMut};
use postgres_protocol::message::backend::Message;
use postgres_protocol::message::frontend;
use std::collections::BTreeMap;
use std::future::poll_fn;
use std::pin::Pin;
use std::task::{Context, Poll, ready};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio_util::io::poll_read_buf;

/// A socket, plain or with TLS.
pub(super) trait Stream: AsyncRead + AsyncWrite + Send + Sync + Unpin {}
impl<T: AsyncRead + AsyncWrite + Send + Sync + Unpin> Stream for T {}

/// Which COPY the session is in.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum CopyState {
    None,
    In,
    Both,
}

/// What a COPY to the client brings.
pub(super) enum Rows {
    /// Whole CopyData messages, one or more.
    Messages(Bytes),
    Other(Backend),
}

/// Written data above this is pushed out before more is taken.
const WRITE_HIGH: usize = 1 << 20;

pub(super) struct Connection {
    stream: Box<dyn Stream>,
    read: BytesMut,
    pub(super) write: BytesMut,
    /// How many ReadyForQuery messages the server still owes.
    pub(super) owed: usize,
    pub(super) copy: CopyState,
    pub(super) limit: usize,
    pub(super) parameters: BTreeMap<String, String>,
    pub(super) backend_key: Option<(i32, i32)>,
    pub(super) transaction: u8,
    pub(super) target: String,
    dead: Option<String>,
    /// The server's last FATAL error, the best reason for a closed connection.
    last_words: Option<String>,
}

impl Connection {
    pub(super) fn new(stream: Box<dyn Stream>, target: String) -> Self {
        Self {
            stream,
            read: BytesMut::with_capacity(16 << 10),
            write: BytesMut::new(),
            owed: 0,
            copy: CopyState::None,
            limit: codec::LIMIT_LOGIN,
            parameters: BTreeMap::new(),
            backend_key: None,
            transaction: b'I',
            target,
            dead: None,
            last_words: None,
        }
    }

    pub(super) fn closed_error(&self) -> WireError {
        let reason = self.dead.clone().unwrap_or_else(|| "unknown reason".to_owned());
        WireError::Closed { target: self.target.clone(), reason }
    }

    pub(super) fn is_dead(&self) -> bool {
        self.dead.is_some()
    }

    /// Marks the connection as unusable and gives the error for it.
    pub(super) fn die(&mut self, reason: String) -> WireError {
        let reason = self.last_words.take().unwrap_or(reason);
        self.dead.get_or_insert(reason);
        self.closed_error()
    }

    pub(super) fn protocol(&mut self, what: impl Into<String>) -> WireError {
        let what = what.into();
        self.dead.get_or_insert_with(|| format!("the server broke the protocol: {what}"));
        WireError::Protocol { target: self.target.clone(), what }
    }

    fn poll_write_out(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), WireError>> {
        if self.dead.is_some() {
            return Poll::Ready(Err(self.closed_error()));
        }
        while !self.write.is_empty() {
            match ready!(Pin::new(&mut self.stream).poll_write(cx, &self.write)) {
                Ok(0) => return Poll::Ready(Err(self.write_failed("connection closed"))),
                Ok(count) => self.write.advance(count),
                Err(error) => return Poll::Ready(Err(self.write_failed(&error.to_string()))),
            }
        }
        match ready!(Pin::new(&mut self.stream).poll_flush(cx)) {
            Ok(()) => Poll::Ready(Ok(())),
            Err(error) => Poll::Ready(Err(self.write_failed(&error.to_string()))),
        }
    }

    /// The server's own last words may lie unread in the buffer; they say more than "broken pipe".
    fn write_failed(&mut self, reason: &str) -> WireError {
        self.write.clear();
        let mut cx = Context::from_waker(std::task::Waker::noop());
        while self.dead.is_none() {
            match self.poll_next(&mut cx) {
                Poll::Ready(Ok(_)) => {}
                _ => break,
            }
        }
        self.die(reason.to_owned())
    }

    pub(super) fn poll_flush(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), WireError>> {
        self.poll_write_out(cx)
    }

    pub(super) async fn flush(&mut self) -> Result<(), WireError> {
        poll_fn(|cx| self.poll_write_out(cx)).await
    }

    /// Pushes written data out when much has gathered.
    pub(super) async fn flush_if_full(&mut self) -> Result<(), WireError> {
        if self.write.len() >= WRITE_HIGH { self.flush().await } else { Ok(()) }
    }

    /// The next message that is not asynchronous; written data is pushed out meanwhile.
    pub(super) fn poll_message(&mut self, cx: &mut Context<'_>) -> Poll<Result<Backend, WireError>> {
        if !self.write.is_empty() {
            // Pending is fine: reading goes on, so that two full pipes cannot block each other.
            if let Poll::Ready(Err(error)) = self.poll_write_out(cx) {
                return Poll::Ready(Err(error));
            }
        }
        self.poll_next(cx)
    }

    /// The rows that have arrived, or the next message that is none.
    pub(super) fn poll_rows(&mut self, cx: &mut Context<'_>) -> Poll<Result<Rows, WireError>> {
        loop {
            match codec::copy_data_len(&self.read) {
                0 => {}
                len => return Poll::Ready(Ok(Rows::Messages(self.read.split_to(len).freeze()))),
            }
            if let Some(message) = self.take()? {
                return Poll::Ready(Ok(Rows::Other(message)));
            }
            ready!(self.poll_read(cx))?;
        }
    }

    fn poll_next(&mut self, cx: &mut Context<'_>) -> Poll<Result<Backend, WireError>> {
        loop {
            if let Some(message) = self.take()? {
                return Poll::Ready(Ok(message));
            }
            ready!(self.poll_read(cx))?;
        }
    }

    /// The next message that has arrived and is not asynchronous.
    fn take(&mut self) -> Result<Option<Backend>, WireError> {
        if self.dead.is_some() {
            return Err(self.closed_error());
        }
        loop {
            match codec::take(&mut self.read, self.limit) {
                Ok(Some(message)) => match self.handle(message) {
                    Some(message) => return Ok(Some(message)),
                    None => continue,
                },
                Ok(None) => return Ok(None),
                Err(what) => return Err(self.protocol(what)),
            }
        }
    }

    fn poll_read(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), WireError>> {
        // At least this much room, so that a large result is read in few system calls.
        if self.read.capacity() - self.read.len() < 8 << 10 {
            self.read.reserve(64 << 10);
        }
        match ready!(poll_read_buf(Pin::new(&mut self.stream), cx, &mut self.read)) {
            Ok(0) => Poll::Ready(Err(self.die("the server closed the connection unexpectedly".to_owned()))),
            Ok(_) => Poll::Ready(Ok(())),
            Err(error) => Poll::Ready(Err(self.die(error.to_string()))),
        }
    }

    /// Deals with messages that may come at any time; gives the others back.
    fn handle(&mut self, message: Backend) -> Option<Backend> {
        match message {
            Backend::Message(Message::NoticeResponse(body)) => {
                let notice = codec::server_error(body.fields());
                tracing::info!(target: "pg_wire::notice", server = %self.target, severity = %notice.severity,
                    sqlstate = %notice.sqlstate, detail = notice.detail.as_deref(), "{}", notice.message);
                None
            }
            Backend::Message(Message::ParameterStatus(body)) => {
                if let (Ok(name), Ok(value)) = (body.name(), body.value()) {
                    self.parameters.insert(name.to_owned(), value.to_owned());
                }
                None
            }
            Backend::Message(Message::NotificationResponse(_)) => None,
            Backend::Message(Message::ReadyForQuery(body)) => {
                self.transaction = body.status();
                self.owed = self.owed.saturating_sub(1);
                self.copy = CopyState::None;
                Some(Backend::Message(Message::ReadyForQuery(body)))
            }
            Backend::Message(Message::ErrorResponse(body)) => {
                let error = codec::server_error(body.fields());
                if error.severity == "FATAL" || error.severity == "PANIC" {
                    self.last_words = Some(error.to_string());
                }
                Some(Backend::Message(Message::ErrorResponse(body)))
            }
            other => Some(other),
        }
    }

    pub(super) async fn message(&mut self) -> Result<Backend, WireError> {
        poll_fn(|cx| self.poll_message(cx)).await
    }

    /// Makes the session ready for a new statement: whatever an abandoned call left is read and dropped.
    pub(super) async fn ready(&mut self) -> Result<(), WireError> {
        if self.dead.is_some() {
            return Err(self.closed_error());
        }
        match self.copy {
            CopyState::None => {}
            CopyState::In => {
                frontend::copy_fail("COPY was abandoned by the client", &mut self.write)
                    .map_err(|error| WireError::Misuse { what: error.to_string() })?;
                self.copy = CopyState::None;
            }
            CopyState::Both => {
                frontend::copy_done(&mut self.write);
                self.copy = CopyState::None;
            }
        }
        while self.owed > 0 {
            self.message().await?;
        }
        Ok(())
    }

    /// Looks, without waiting, whether the connection has died.
    pub(super) fn check_alive(&mut self) -> bool {
        let mut cx = Context::from_waker(std::task::Waker::noop());
        while self.owed == 0 && self.dead.is_none() {
            match self.poll_next(&mut cx) {
                Poll::Pending => break,
                Poll::Ready(message) => self.unasked(message),
            }
        }
        self.dead.is_none()
    }

    /// What to do with a message while nothing is asked: only a dying server sends one.
    pub(super) fn unasked(&mut self, message: Result<Backend, WireError>) {
        match message {
            Ok(Backend::Message(Message::ErrorResponse(_))) | Err(_) => {}
            Ok(_) => {
                self.protocol("a message that nothing asked for");
            }
        }
    }
}
