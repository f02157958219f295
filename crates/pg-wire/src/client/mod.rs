//! The client: connect, ask, stream, copy, replicate.

mod auth;
mod base_backup;
mod cancel;
mod codec;
mod connect;
mod connection;
mod copy;
mod query;
mod quiet;
mod replication;
mod row;
mod socket;
mod stream;

pub use base_backup::{
    BaseBackup, BaseBackupArchive, BaseBackupCompression, BaseBackupEnd, BaseBackupOptions, BaseBackupPart,
    BaseBackupRefused, BaseBackupTablespace,
};
pub use cancel::CancelToken;
pub use copy::{CopyIn, CopyOut, CopyRows};
pub use query::{QueryResult, Rows};
pub use replication::{CopyBoth, IdentifySystem, ReplicationMessage, StandbyStatus, TimelineHistory};
pub use row::{Column, Row};
pub use stream::RowStream;

use crate::WireError;
use crate::conninfo::Conninfo;
use crate::tls::TlsFacts;
use connection::Connection;
use postgres_protocol::message::frontend;
use std::fmt;
use std::future::poll_fn;
use std::task::Poll;
use std::time::Duration;

/// How long the end of a cancelled statement is waited for before the connection is given up.
const CANCEL_GRACE: Duration = Duration::from_secs(5);

/// What the session's transaction is doing.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum TransactionStatus {
    /// None is open.
    Idle,
    /// One is open.
    InTransaction,
    /// One is open and has failed.
    Failed,
}

/// One session with a server. Dropping it closes the connection.
///
/// **Cancellation.** Every future of this type may be dropped at any await. The statement goes on in the server,
/// and the next call first reads and drops the rest of its answer; use [`Client::cancel_token`] to end it sooner.
/// A dropped COPY from the client is failed, so that the server discards it.
pub struct Client {
    connection: Connection,
    cancel: Option<CancelToken>,
    tls: Option<TlsFacts>,
    query_timeout: Option<Duration>,
}

impl fmt::Debug for Client {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Client")
            .field("target", &self.connection.target)
            .field("process_id", &self.process_id())
            .field("encrypted", &self.tls.is_some())
            .finish_non_exhaustive()
    }
}

impl Client {
    /// Connects to the first of the servers that will do and logs in.
    pub async fn connect(conninfo: &Conninfo) -> Result<Self, WireError> {
        for warning in &conninfo.warnings {
            tracing::warn!("{warning}");
        }
        connect::connect(conninfo).await
    }

    fn new(connection: Connection, cancel: Option<CancelToken>, tls: Option<TlsFacts>) -> Self {
        Self { connection, cancel, tls, query_timeout: None }
    }

    /// The server, for messages: `host:port` or the socket's path.
    pub fn target(&self) -> &str {
        &self.connection.target
    }

    /// A setting that the server reports: `server_version`, `TimeZone`, `in_hot_standby` and so on.
    pub fn parameter(&self, name: &str) -> Option<&str> {
        self.connection.parameters.get(name).map(String::as_str)
    }

    /// The server's version as a number, such as 150020 for 15.20; from `server_version`.
    pub fn server_version_num(&self) -> Option<u32> {
        let text = self.parameter("server_version")?;
        let digits = text.split(|c: char| !c.is_ascii_digit() && c != '.').next()?;
        let mut parts = digits.split('.').map(|part| part.parse::<u32>().ok());
        let major = parts.next()??;
        // A beta ("18beta1") has no minor number.
        let minor = parts.next().flatten().unwrap_or(0);
        Some(major * 10_000 + minor)
    }

    /// The server process that serves this session.
    pub fn process_id(&self) -> Option<i32> {
        self.connection.backend_key.map(|(process, _)| process)
    }

    /// The version of TLS in use, such as `TLSv1.3`; none when the connection is not encrypted.
    pub fn tls_version(&self) -> Option<&str> {
        self.tls.as_ref().map(|tls| tls.version.as_str())
    }

    /// The state of the transaction after the last statement.
    pub fn transaction_status(&self) -> TransactionStatus {
        match self.connection.transaction {
            b'T' => TransactionStatus::InTransaction,
            b'E' => TransactionStatus::Failed,
            _ => TransactionStatus::Idle,
        }
    }

    /// Something that can cancel this session's statements from another task.
    pub fn cancel_token(&self) -> Option<CancelToken> {
        self.cancel.clone()
    }

    /// Limits the time of each later [`Client::simple_query`] and [`Client::query`] (and their helpers).
    ///
    /// When it runs out the statement is cancelled in the server and the session stays usable. Streams and COPY
    /// have no limit.
    pub fn set_query_timeout(&mut self, limit: Option<Duration>) {
        self.query_timeout = limit;
    }

    /// Whether the connection is gone. Reads what has arrived, without waiting.
    pub fn is_closed(&mut self) -> bool {
        !self.connection.check_alive()
    }

    /// Waits until the connection is gone and says why; for `select!` beside long work that leaves it idle.
    ///
    /// May be dropped and called again. First reads and drops the answer of an abandoned call.
    pub async fn closed(&mut self) -> WireError {
        if let Err(error) = self.connection.ready().await
            && self.connection.is_dead()
        {
            return error;
        }
        loop {
            let message = self.connection.message().await;
            self.connection.unasked(message);
            if self.connection.is_dead() {
                return self.connection.closed_error();
            }
        }
    }

    /// Ends the session politely.
    pub async fn close(mut self) {
        self.terminate().await;
    }

    async fn terminate(&mut self) {
        if self.connection.is_dead() {
            return;
        }
        frontend::terminate(&mut self.connection.write);
        // One try without waiting for a stalled network: the server notices a closed socket as well.
        poll_fn(|cx| {
            let _ = self.connection.poll_flush(cx);
            Poll::Ready(())
        })
        .await;
        self.connection.die("it was closed by the client".to_owned());
    }

    /// Runs work within the query timeout; on time-out cancels the statement and waits for its end.
    async fn limited<T>(
        &mut self,
        work: impl AsyncFnOnce(&mut Connection) -> Result<T, WireError>,
    ) -> Result<T, WireError> {
        let Some(after) = self.query_timeout else { return work(&mut self.connection).await };
        if let Ok(result) = tokio::time::timeout(after, work(&mut self.connection)).await {
            return result;
        }
        let cancel = self.cancel.clone();
        let end = async {
            if let Some(cancel) = &cancel {
                cancel.cancel().await?;
            }
            self.connection.ready().await
        };
        match tokio::time::timeout(CANCEL_GRACE, end).await {
            Ok(Ok(())) => {}
            Ok(Err(error)) => tracing::warn!(%error, "a timed-out statement could not be cancelled"),
            Err(_) => {
                self.connection.die("a timed-out statement did not end when it was cancelled".to_owned());
            }
        }
        Err(WireError::QueryTimeout { after })
    }
}
