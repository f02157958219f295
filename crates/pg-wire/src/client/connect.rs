//! Connecting: which servers are tried in which order, with and without TLS, and which one will do.
//!
//! Mirrors the state machine of `PQconnectPoll` in PostgreSQL's `src/interfaces/libpq/fe-connect.c`: a server that
//! cannot be reached, does not answer in time, is starting up (57P03) or is of the wrong kind gives way to the
//! next; a server that refuses the login or the handshake ends the attempt.

use super::auth;
use super::codec::Backend;
use super::connection::Connection;
use super::socket::{self, Place, Socket};
use super::{Client, cancel::CancelToken};
use crate::WireError;
use crate::conninfo::{Conninfo, Host, LoadBalanceHosts, SslMode, SslNegotiation, TargetSessionAttrs};
use crate::tls::{self, TlsFacts};
use bytes::BytesMut;
use postgres_protocol::message::frontend;
use std::time::Duration;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Encryption {
    Plain,
    Tls,
}

/// What to do after a failure.
enum Next {
    Address(WireError),
    Host(WireError),
    Stop(WireError),
}

pub(super) async fn connect(conninfo: &Conninfo) -> Result<Client, WireError> {
    let mut hosts: Vec<&Host> = conninfo.hosts.iter().collect();
    if conninfo.load_balance_hosts == LoadBalanceHosts::Random {
        socket::shuffle(&mut hosts);
    }
    let mut errors = Vec::new();
    let passes: &[TargetSessionAttrs] = match conninfo.target_session_attrs {
        TargetSessionAttrs::PreferStandby => &[TargetSessionAttrs::Standby, TargetSessionAttrs::Any],
        ref other => std::slice::from_ref(other),
    };
    for wanted in passes {
        // Only the last pass's errors say why nothing would do.
        errors.clear();
        for host in &hosts {
            if let Some(client) = try_host(conninfo, host, *wanted, &mut errors).await? {
                return Ok(client);
            }
        }
    }
    match errors.len() {
        1 => Err(errors.remove(0)),
        _ => Err(WireError::NoHost { errors }),
    }
}

async fn try_host(
    conninfo: &Conninfo,
    host: &Host,
    wanted: TargetSessionAttrs,
    errors: &mut Vec<WireError>,
) -> Result<Option<Client>, WireError> {
    let look_up = socket::places(host, conninfo.load_balance_hosts);
    let places = match within(conninfo.connect_timeout, &host.to_string(), look_up).await {
        Ok(places) => places,
        Err(error) => {
            errors.push(error);
            return Ok(None);
        }
    };
    for place in &places {
        let target = target(host, place, places.len());
        let attempt = async { Ok(try_place(conninfo, host, place, &target, wanted).await) };
        let result = match within(conninfo.connect_timeout, &target, attempt).await {
            Ok(result) => result,
            Err(timeout) => Err(Next::Address(timeout)),
        };
        match result {
            Ok(client) => return Ok(Some(client)),
            Err(Next::Address(error)) => errors.push(error),
            Err(Next::Host(error)) => {
                errors.push(error);
                return Ok(None);
            }
            Err(Next::Stop(error)) => {
                if errors.is_empty() {
                    return Err(error);
                }
                errors.push(error);
                return Err(WireError::NoHost { errors: std::mem::take(errors) });
            }
        }
    }
    Ok(None)
}

/// The server as the user wrote it, with the address when the name has several.
fn target(host: &Host, place: &Place, places: usize) -> String {
    match place {
        Place::Tcp(address) if places > 1 => format!("{host} ({})", address.ip()),
        _ => host.to_string(),
    }
}

async fn within<T>(
    limit: Option<Duration>,
    target: &str,
    work: impl Future<Output = Result<T, WireError>>,
) -> Result<T, WireError> {
    let Some(after) = limit else { return work.await };
    match tokio::time::timeout(after, work).await {
        Ok(result) => result,
        Err(_) => Err(WireError::ConnectTimeout { target: target.to_owned(), after }),
    }
}

/// Mirrors `init_allowed_encryption_methods` and `select_next_encryption_method`.
fn methods(mode: SslMode, place: &Place) -> &'static [Encryption] {
    match (mode, place) {
        // TLS is never used over a Unix socket.
        (_, Place::Unix(_)) | (SslMode::Disable, _) => &[Encryption::Plain],
        (SslMode::Allow, _) => &[Encryption::Plain, Encryption::Tls],
        (SslMode::Prefer, _) => &[Encryption::Tls, Encryption::Plain],
        (SslMode::Require | SslMode::VerifyCa | SslMode::VerifyFull, _) => &[Encryption::Tls],
    }
}

async fn try_place(
    conninfo: &Conninfo,
    host: &Host,
    place: &Place,
    target: &str,
    wanted: TargetSessionAttrs,
) -> Result<Client, Next> {
    let methods = methods(conninfo.sslmode, place);
    let mut first_error: Option<WireError> = None;
    for (index, method) in methods.iter().enumerate() {
        let error = match try_method(conninfo, host, place, target, *method, &mut first_error).await {
            Ok(mut client) => {
                check_target(&mut client, wanted).await.map_err(Next::Host)?;
                return Ok(client);
            }
            Err(Next::Stop(error)) => error,
            Err(other) => return Err(other),
        };
        let cannot_connect_now = error.sqlstate() == Some("57P03");
        if cannot_connect_now {
            return Err(Next::Host(error));
        }
        let retry = matches!(
            error,
            WireError::Rejected { .. }
                | WireError::Tls { .. }
                | WireError::TlsUntrusted { .. }
                | WireError::TlsHostName { .. }
        );
        if !retry || index + 1 == methods.len() {
            return Err(Next::Stop(match first_error {
                // Refused twice for the same reason: once is enough.
                Some(first) if first.sqlstate().is_some() && first.sqlstate() == error.sqlstate() => first,
                Some(first) => WireError::NoHost { errors: vec![first, error] },
                None => error,
            }));
        }
        tracing::debug!(%target, %error, "trying again with the other kind of encryption");
        first_error = Some(error);
    }
    unreachable_method(target)
}

fn unreachable_method(target: &str) -> Result<Client, Next> {
    Err(Next::Stop(WireError::Misuse { what: format!("no way to connect to {target} is allowed") }))
}

async fn try_method(
    conninfo: &Conninfo,
    host: &Host,
    place: &Place,
    target: &str,
    method: Encryption,
    first_error: &mut Option<WireError>,
) -> Result<Client, Next> {
    let opened = socket::open(place, conninfo, target).await.map_err(|error| match error {
        WireError::Peer { .. } => Next::Stop(error),
        error => Next::Address(error),
    })?;
    let (mut connection, facts) = match (opened, method) {
        (Socket::Unix(stream), _) => (Connection::new(stream, target.to_owned()), None),
        (Socket::Tcp(stream), Encryption::Plain) => (Connection::new(Box::new(stream), target.to_owned()), None),
        (Socket::Tcp(stream), Encryption::Tls) => {
            match encrypt(stream, conninfo, host, target).await.map_err(Next::Stop)? {
                Encrypted::Tls(stream, facts) => (Connection::new(stream, target.to_owned()), Some(facts)),
                // The same connection goes on in clear when the mode allows it.
                Encrypted::Refused(stream) if conninfo.sslmode == SslMode::Prefer => {
                    (Connection::new(Box::new(stream), target.to_owned()), None)
                }
                Encrypted::Refused(_) => {
                    let sslmode = conninfo.sslmode.as_str();
                    // With allow, the refusal in clear is the error that matters.
                    return Err(Next::Stop(match first_error.take() {
                        Some(first) => first,
                        None => WireError::TlsRefused { target: target.to_owned(), sslmode },
                    }));
                }
            }
        }
    };
    auth::login(&mut connection, conninfo, host, facts.as_ref()).await.map_err(Next::Stop)?;
    let cancel = connection.backend_key.map(|(process, secret)| {
        let tls = facts.is_some().then(|| host.clone());
        CancelToken::new(place.clone(), target.to_owned(), process, secret, conninfo.clone(), tls)
    });
    Ok(Client::new(connection, cancel, facts))
}

pub(super) enum Encrypted {
    Tls(Box<dyn super::connection::Stream>, TlsFacts),
    Refused(TcpStream),
}

/// Asks for TLS and does the handshake.
pub(super) async fn encrypt(
    mut stream: TcpStream,
    conninfo: &Conninfo,
    host: &Host,
    target: &str,
) -> Result<Encrypted, WireError> {
    let io = |source| WireError::Connect { target: target.to_owned(), source };
    // A configuration that cannot work must not first leave a trace in the server's log.
    let connector = tls::Connector::new(conninfo, host, target)?;
    if conninfo.sslnegotiation == SslNegotiation::Postgres {
        let mut request = BytesMut::new();
        frontend::ssl_request(&mut request);
        stream.write_all(&request).await.map_err(io)?;
        // One byte and no more: what follows must come through TLS (CVE-2021-23222).
        match stream.read_u8().await.map_err(io)? {
            b'S' => {}
            b'N' => return Ok(Encrypted::Refused(stream)),
            b'E' => {
                return Err(WireError::Protocol {
                    target: target.to_owned(),
                    what: "an error in answer to the TLS request (too many connections, or out of resources)"
                        .to_owned(),
                });
            }
            other => {
                return Err(WireError::Protocol {
                    target: target.to_owned(),
                    what: format!("{:?} in answer to the TLS request", char::from(other)),
                });
            }
        }
    }
    let (stream, facts) = connector.handshake(stream).await?;
    Ok(Encrypted::Tls(Box::new(stream), facts))
}

/// Mirrors CONNECTION_CHECK_TARGET.
async fn check_target(client: &mut Client, wanted: TargetSessionAttrs) -> Result<(), WireError> {
    let found = match wanted {
        TargetSessionAttrs::Any | TargetSessionAttrs::PreferStandby => return Ok(()),
        TargetSessionAttrs::ReadWrite | TargetSessionAttrs::ReadOnly => {
            let reported = (client.parameter("default_transaction_read_only"), client.parameter("in_hot_standby"));
            let read_only = match reported {
                (Some(default), Some(standby)) => default == "on" || standby == "on",
                _ => client.one_value("SHOW transaction_read_only").await? == "on",
            };
            match (wanted, read_only) {
                (TargetSessionAttrs::ReadWrite, true) => "the session is read-only",
                (TargetSessionAttrs::ReadOnly, false) => "the session is not read-only",
                _ => return Ok(()),
            }
        }
        TargetSessionAttrs::Primary | TargetSessionAttrs::Standby => {
            let standby = match client.parameter("in_hot_standby") {
                Some(value) => value == "on",
                None => client.one_value("SELECT pg_catalog.pg_is_in_recovery()").await? == "t",
            };
            match (wanted, standby) {
                (TargetSessionAttrs::Primary, true) => "the server is in hot standby mode",
                (TargetSessionAttrs::Standby, false) => "the server is not in hot standby mode",
                _ => return Ok(()),
            }
        }
    };
    let target = client.target().to_owned();
    client.terminate().await;
    Err(WireError::TargetSession { target, wanted: wanted.as_str(), found })
}

/// Reads until the server closes the connection; for the cancel request.
pub(super) async fn until_closed(connection: &mut Connection) {
    while let Ok(Backend::Message(_) | Backend::CopyBoth | Backend::NegotiateProtocol { .. }) =
        connection.message().await
    {}
}
