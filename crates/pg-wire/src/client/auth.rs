//! The login: startup packet, authentication, and what the server says until it is ready.
//!
//! Mirrors `pg_fe_sendauth`, `pg_SASL_init` and `check_expected_areq` in PostgreSQL's
//! `src/interfaces/libpq/fe-auth.c`. Stricter in one point: a SCRAM exchange that the server does not complete
//! with its own proof is never accepted.

use super::codec::{self, Backend};
use super::connection::Connection;
use crate::conninfo::{AuthMethod, ChannelBinding, Conninfo, Host, ReplicationMode, SslCertMode};
use crate::tls::TlsFacts;
use crate::{Secret, WireError};
use fallible_iterator::FallibleIterator;
use postgres_protocol::authentication::md5_hash;
use postgres_protocol::authentication::sasl::{self, SCRAM_SHA_256, SCRAM_SHA_256_PLUS, ScramSha256};
use postgres_protocol::message::backend::{AuthenticationSaslBody, Message};
use postgres_protocol::message::frontend;

/// A server that asks for more rounds of hashing than this wants to keep us busy.
const SCRAM_ITERATIONS_MAX: u64 = 10_000_000;

enum Scram {
    NotBegun,
    Begun(Box<ScramSha256>, Binding),
    Proven(Binding),
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Binding {
    Bound,
    Unbound,
}

struct Login<'a> {
    conninfo: &'a Conninfo,
    host: &'a Host,
    tls: Option<&'a TlsFacts>,
    scram: Scram,
    method: AuthMethod,
}

/// Logs in; on success the session is ready for statements.
pub(super) async fn login(
    connection: &mut Connection,
    conninfo: &Conninfo,
    host: &Host,
    tls: Option<&TlsFacts>,
) -> Result<(), WireError> {
    startup(connection, conninfo)?;
    connection.owed = 1;
    let mut login = Login { conninfo, host, tls, scram: Scram::NotBegun, method: AuthMethod::None };
    let mut authenticated = false;
    loop {
        let message = match connection.message().await? {
            Backend::Message(message) => message,
            Backend::NegotiateProtocol { newest_minor, unknown } => {
                tracing::debug!(newest_minor, ?unknown, "the server negotiated the protocol down");
                continue;
            }
            Backend::CopyBoth => return Err(connection.protocol("CopyBothResponse during login")),
        };
        match message {
            Message::ErrorResponse(body) => {
                return Err(WireError::Rejected {
                    target: connection.target.clone(),
                    user: conninfo.user.clone(),
                    dbname: conninfo.dbname.clone(),
                    passfile: conninfo.passfile.clone().filter(|_| login.method != AuthMethod::None),
                    encrypted: tls.is_some(),
                    error: Box::new(codec::server_error(body.fields())),
                });
            }
            Message::AuthenticationOk if !authenticated => {
                login.check_finished(connection)?;
                authenticated = true;
                connection.limit = codec::LIMIT_SESSION;
            }
            Message::BackendKeyData(body) if authenticated => {
                connection.backend_key = Some((body.process_id(), body.secret_key()));
            }
            Message::ReadyForQuery(_) if authenticated => return Ok(()),
            message if !authenticated => login.answer(connection, message)?,
            _ => return Err(connection.protocol("an unexpected message after authentication")),
        }
    }
}

/// Mirrors `build_startup_packet` in src/interfaces/libpq/fe-protocol3.c.
fn startup(connection: &mut Connection, conninfo: &Conninfo) -> Result<(), WireError> {
    let mut parameters = vec![("user", conninfo.user.as_str()), ("database", conninfo.dbname.as_str())];
    match conninfo.replication {
        ReplicationMode::Off => {}
        ReplicationMode::Physical => parameters.push(("replication", "true")),
        ReplicationMode::Database => parameters.push(("replication", "database")),
    }
    if let Some(options) = conninfo.params.get("options").filter(|options| !options.is_empty()) {
        parameters.push(("options", options));
    }
    if let Some(name) = conninfo.application_name() {
        parameters.push(("application_name", name));
    }
    // Whatever client_encoding says: this crate gives out Rust strings.
    parameters.push(("client_encoding", "UTF8"));
    frontend::startup_message(parameters, &mut connection.write)
        .map_err(|error| WireError::Misuse { what: error.to_string() })
}

impl Login<'_> {
    fn answer(&mut self, connection: &mut Connection, message: Message) -> Result<(), WireError> {
        let method = match &message {
            Message::AuthenticationCleartextPassword => AuthMethod::Password,
            Message::AuthenticationMd5Password(_) => AuthMethod::Md5,
            Message::AuthenticationSasl(_)
            | Message::AuthenticationSaslContinue(_)
            | Message::AuthenticationSaslFinal(_) => AuthMethod::ScramSha256,
            Message::AuthenticationGss | Message::AuthenticationGssContinue(_) => AuthMethod::Gss,
            Message::AuthenticationSspi => AuthMethod::Sspi,
            Message::AuthenticationKerberosV5 => return Err(self.unsupported(connection, "Kerberos 5")),
            Message::AuthenticationScmCredential => return Err(self.unsupported(connection, "SCM credential")),
            _ => return Err(connection.protocol("something else than an authentication request during login")),
        };
        self.check_method(connection, method)?;
        self.method = method;
        match message {
            Message::AuthenticationCleartextPassword => {
                let password = self.password(connection)?;
                frontend::password_message(password.expose().as_bytes(), &mut connection.write)
                    .map_err(|_| connection.protocol("a password that the protocol cannot carry"))
            }
            Message::AuthenticationMd5Password(body) => {
                let password = self.password(connection)?;
                let hash = md5_hash(self.conninfo.user.as_bytes(), password.expose().as_bytes(), body.salt());
                frontend::password_message(hash.as_bytes(), &mut connection.write)
                    .map_err(|_| connection.protocol("a password that the protocol cannot carry"))
            }
            Message::AuthenticationSasl(body) => self.begin_scram(connection, &body),
            Message::AuthenticationSaslContinue(body) => {
                let Scram::Begun(scram, _) = &mut self.scram else {
                    return Err(connection.protocol("SASL data before SASL was begun"));
                };
                check_iterations(body.data()).map_err(|reason| scram_error(connection, reason))?;
                scram.update(body.data()).map_err(|error| scram_error(connection, error.to_string()))?;
                frontend::sasl_response(scram.message(), &mut connection.write)
                    .map_err(|error| scram_error(connection, error.to_string()))
            }
            Message::AuthenticationSaslFinal(body) => {
                let Scram::Begun(scram, binding) = &mut self.scram else {
                    return Err(connection.protocol("a SASL result before SASL was begun"));
                };
                scram.finish(body.data()).map_err(|error| scram_error(connection, error.to_string()))?;
                self.scram = Scram::Proven(*binding);
                Ok(())
            }
            _ => Err(self.unsupported(connection, if method == AuthMethod::Sspi { "SSPI" } else { "GSSAPI" })),
        }
    }

    fn begin_scram(&mut self, connection: &mut Connection, body: &AuthenticationSaslBody) -> Result<(), WireError> {
        if !matches!(self.scram, Scram::NotBegun) {
            return Err(connection.protocol("a second SASL request"));
        }
        let (mut plain, mut plus) = (false, false);
        let mut mechanisms = body.mechanisms();
        while let Some(name) = mechanisms.next().map_err(|error| connection.protocol(error.to_string()))? {
            plain |= name == SCRAM_SHA_256;
            plus |= name == SCRAM_SHA_256_PLUS;
        }
        let wanted = self.conninfo.channel_binding;
        if plus && self.tls.is_none() {
            // Something stripped the TLS off on the way; the server would refuse in the end.
            return Err(scram_error(connection, "the server offers channel binding on a connection without TLS"));
        }
        if !plain && !plus {
            return Err(self.unsupported(connection, "a SASL mechanism other than SCRAM-SHA-256"));
        }
        let hash = self.tls.and_then(|tls| tls.end_point.clone()).filter(|_| wanted != ChannelBinding::Disable);
        let (binding, channel, mechanism) = match hash {
            Some(hash) if plus => {
                (Binding::Bound, sasl::ChannelBinding::tls_server_end_point(hash), SCRAM_SHA_256_PLUS)
            }
            Some(_) => (Binding::Unbound, sasl::ChannelBinding::unrequested(), SCRAM_SHA_256),
            None => (Binding::Unbound, sasl::ChannelBinding::unsupported(), SCRAM_SHA_256),
        };
        if binding == Binding::Unbound && (wanted == ChannelBinding::Require || !plain) {
            let found = match self.tls {
                None => "the connection has no TLS",
                Some(_) if plus => "the server's certificate has no hash to bind to",
                Some(_) => "the server does not offer it",
            };
            return Err(self.forbidden(connection, "channel_binding=require", found));
        }
        let password = self.password(connection)?;
        let scram = ScramSha256::new(password.expose().as_bytes(), channel);
        frontend::sasl_initial_response(mechanism, scram.message(), &mut connection.write)
            .map_err(|error| scram_error(connection, error.to_string()))?;
        self.scram = Scram::Begun(Box::new(scram), binding);
        Ok(())
    }

    /// Before a request is answered: is it one that the connection string allows?
    fn check_method(&self, connection: &Connection, method: AuthMethod) -> Result<(), WireError> {
        let found = format!("the server asks for {}", method.as_str());
        if !self.conninfo.require_auth.allows(method) {
            return Err(self.forbidden(connection, &self.require_auth(), &found));
        }
        if self.conninfo.channel_binding == ChannelBinding::Require && method != AuthMethod::ScramSha256 {
            return Err(self.forbidden(connection, "channel_binding=require", &found));
        }
        Ok(())
    }

    /// Before the login counts as done: has the server proven and asked for what it must?
    fn check_finished(&self, connection: &Connection) -> Result<(), WireError> {
        if self.conninfo.sslcertmode == SslCertMode::Require && !self.tls.is_some_and(|tls| tls.client_cert_sent) {
            let found = "the server did not ask for a client certificate, or there is none to send";
            return Err(self.forbidden(connection, "sslcertmode=require", found));
        }
        if matches!(self.scram, Scram::Begun(..)) {
            return Err(scram_error(connection, "the server did not prove that it knows the password"));
        }
        if self.method == AuthMethod::None && !self.conninfo.require_auth.allows(AuthMethod::None) {
            let found = "the server did not ask for any authentication";
            return Err(self.forbidden(connection, &self.require_auth(), found));
        }
        let bound = matches!(self.scram, Scram::Proven(Binding::Bound));
        if self.conninfo.channel_binding == ChannelBinding::Require && !bound {
            let found = "the server let the client in without channel binding";
            return Err(self.forbidden(connection, "channel_binding=require", found));
        }
        Ok(())
    }

    fn require_auth(&self) -> String {
        format!("require_auth={}", self.conninfo.params.get("require_auth").unwrap_or_default())
    }

    fn password(&self, connection: &Connection) -> Result<&Secret, WireError> {
        let password = self.host.password.as_ref().filter(|password| !password.expose().is_empty());
        password.ok_or_else(|| WireError::NoPassword {
            target: connection.target.clone(),
            user: self.conninfo.user.clone(),
            warnings: self.conninfo.warnings.clone(),
        })
    }

    fn forbidden(&self, connection: &Connection, setting: &str, found: &str) -> WireError {
        WireError::AuthForbidden {
            target: connection.target.clone(),
            setting: setting.to_owned(),
            found: found.to_owned(),
        }
    }

    fn unsupported(&self, connection: &Connection, method: &str) -> WireError {
        WireError::AuthUnsupported { target: connection.target.clone(), method: method.to_owned() }
    }
}

fn scram_error(connection: &Connection, reason: impl Into<String>) -> WireError {
    WireError::Scram { target: connection.target.clone(), reason: reason.into() }
}

fn check_iterations(server_first: &[u8]) -> Result<(), String> {
    let text = std::str::from_utf8(server_first).map_err(|_| "the server's message is no text".to_owned())?;
    let iterations = text.split(',').find_map(|field| field.strip_prefix("i=")).and_then(|n| n.parse::<u64>().ok());
    match iterations {
        Some(count) if count > SCRAM_ITERATIONS_MAX => Err(format!("the server demands {count} iterations")),
        _ => Ok(()),
    }
}
