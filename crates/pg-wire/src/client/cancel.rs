//! Cancelling a running statement from elsewhere.

use super::connect::{Encrypted, encrypt, until_closed};
use super::connection::Connection;
use super::socket::{self, Place, Socket};
use crate::WireError;
use crate::conninfo::{Conninfo, Host};
use postgres_protocol::message::frontend;
use std::fmt;
use std::sync::Arc;

/// Asks the server to cancel what a session is doing; may be kept and used from any task.
///
/// The request goes over a connection of its own, encrypted when the session is. It is only a request: the
/// statement may have ended before it arrives.
#[derive(Clone)]
pub struct CancelToken {
    inner: Arc<Inner>,
}

struct Inner {
    place: Place,
    target: String,
    process: i32,
    secret: i32,
    conninfo: Conninfo,
    /// The host to verify, when the session is encrypted.
    tls: Option<Host>,
}

impl fmt::Debug for CancelToken {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("CancelToken")
            .field("target", &self.inner.target)
            .field("process", &self.inner.process)
            .finish_non_exhaustive()
    }
}

impl CancelToken {
    pub(super) fn new(
        place: Place,
        target: String,
        process: i32,
        secret: i32,
        conninfo: Conninfo,
        tls: Option<Host>,
    ) -> Self {
        Self { inner: Arc::new(Inner { place, target, process, secret, conninfo, tls }) }
    }

    /// Sends the request and waits until the server has taken it.
    pub async fn cancel(&self) -> Result<(), WireError> {
        let Inner { place, target, process, secret, conninfo, tls } = &*self.inner;
        let mut connection = match (socket::open(place, conninfo, target).await?, tls) {
            (Socket::Unix(stream), _) => Connection::new(stream, target.clone()),
            (Socket::Tcp(stream), None) => Connection::new(Box::new(stream), target.clone()),
            (Socket::Tcp(stream), Some(host)) => match encrypt(stream, conninfo, host, target).await? {
                Encrypted::Tls(stream, _) => Connection::new(stream, target.clone()),
                Encrypted::Refused(_) => {
                    let sslmode = conninfo.sslmode.as_str();
                    return Err(WireError::TlsRefused { target: target.clone(), sslmode });
                }
            },
        };
        frontend::cancel_request(*process, *secret, &mut connection.write);
        connection.flush().await?;
        // The server closes when it has sent the signal: later statements cannot be hit by it.
        until_closed(&mut connection).await;
        Ok(())
    }
}
