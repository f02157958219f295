//! TLS: what is trusted, what is shown, and the handshake.
//!
//! Mirrors `initialize_SSL` in PostgreSQL's `src/interfaces/libpq/fe-secure-openssl.c`: a root certificate file that
//! is there is used whatever `sslmode` says; only verify-ca and verify-full demand one.

mod der;
mod files;
mod names;
mod verify;

use crate::WireError;
use crate::conninfo::{Conninfo, Host, RootCert, SslCertMode, SslMode, SslNegotiation, TlsVersion};
use std::net::IpAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;
use tokio_rustls::rustls::client::ResolvesClientCert;
use tokio_rustls::rustls::crypto::aws_lc_rs;
use tokio_rustls::rustls::pki_types::ServerName;
use tokio_rustls::rustls::sign::CertifiedKey;
use tokio_rustls::rustls::{ClientConfig, SignatureScheme, SupportedProtocolVersion, version};
use verify::{Check, Failure, Verifier};

/// The protocol's name for ALPN, as registered.
const ALPN: &[u8] = b"postgresql";

/// What is known of an encrypted connection.
#[derive(Debug, Clone)]
pub(crate) struct TlsFacts {
    /// Such as `TLSv1.3`.
    pub(crate) version: String,
    /// The `tls-server-end-point` hash; none when the certificate's signature has no hash.
    pub(crate) end_point: Option<Vec<u8>>,
    /// Whether the server asked for a client certificate and got one.
    pub(crate) client_cert_sent: bool,
}

/// Everything that one handshake needs, loaded.
pub(crate) struct Connector {
    config: Arc<ClientConfig>,
    verifier: Arc<Verifier>,
    client_cert: Arc<ClientCert>,
    name: ServerName<'static>,
    target: String,
    direct: bool,
}

impl Connector {
    /// Loads certificates and keys; nothing is sent yet.
    pub(crate) fn new(conninfo: &Conninfo, host: &Host, target: &str) -> Result<Self, WireError> {
        let provider = Arc::new(aws_lc_rs::default_provider());
        let verify_name = conninfo.sslmode == SslMode::VerifyFull;
        let expected = match (&host.name, verify_name) {
            (Some(name), true) => Some(name.clone()),
            (None, true) => {
                let reason = "sslmode=verify-full needs a host name to verify: give host beside hostaddr".to_owned();
                return Err(WireError::TlsConfig { reason });
            }
            (_, false) => None,
        };
        let roots = match (&conninfo.sslrootcert, conninfo.sslmode) {
            (RootCert::System, _) => Some(files::system_roots()),
            (RootCert::File(path) | RootCert::DefaultFile(path), _) if path.exists() => Some(files::roots(path)?),
            (RootCert::File(path) | RootCert::DefaultFile(path), SslMode::VerifyCa | SslMode::VerifyFull) => {
                return Err(WireError::TlsFile {
                    what: "root certificate file",
                    path: path.clone(),
                    reason: "it does not exist; give one as sslrootcert, use sslrootcert=system, or change sslmode"
                        .to_owned(),
                });
            }
            (RootCert::None, SslMode::VerifyCa | SslMode::VerifyFull) => {
                let reason =
                    "sslmode demands a trusted certificate, and no root certificate is known: give sslrootcert";
                return Err(WireError::TlsConfig { reason: reason.to_owned() });
            }
            _ => None,
        };
        let check = match roots {
            Some(roots) => {
                let crls = files::crls(conninfo.sslcrl.as_deref(), conninfo.sslcrldir.as_deref())?;
                Check::chain(roots, crls, expected, &provider)?
            }
            None => Check::Nothing,
        };
        let verifier = Arc::new(Verifier::new(check, provider.signature_verification_algorithms));
        let client_cert = Arc::new(ClientCert::load(conninfo, &provider)?);
        let versions = versions(conninfo.tls_min, conninfo.tls_max);
        let mut config = ClientConfig::builder_with_provider(provider)
            .with_protocol_versions(&versions)
            .map_err(|error| WireError::TlsConfig { reason: error.to_string() })?
            .dangerous()
            .with_custom_certificate_verifier(verifier.clone())
            .with_client_cert_resolver(client_cert.clone());
        config.alpn_protocols = vec![ALPN.to_vec()];
        config.enable_sni = conninfo.sslsni;
        let name = server_name(host, &mut config);
        let direct = conninfo.sslnegotiation == SslNegotiation::Direct;
        Ok(Self { config: Arc::new(config), verifier, client_cert, name, target: target.to_owned(), direct })
    }

    /// Does the handshake.
    pub(crate) async fn handshake(self, stream: TcpStream) -> Result<(TlsStream<TcpStream>, TlsFacts), WireError> {
        let target = self.target.clone();
        let stream = match TlsConnector::from(self.config).connect(self.name, stream).await {
            Ok(stream) => stream,
            Err(error) => {
                return Err(match self.verifier.failure() {
                    Some(Failure::Untrusted(reason)) => WireError::TlsUntrusted { target, reason },
                    Some(Failure::HostName { expected, names }) => WireError::TlsHostName { target, expected, names },
                    None => WireError::Tls { target, reason: error.to_string() },
                });
            }
        };
        let session = stream.get_ref().1;
        // Without ALPN a direct handshake may be with another service: ALPACA (fe-secure-openssl.c).
        if self.direct && session.alpn_protocol() != Some(ALPN) {
            let reason = "direct TLS was established without the ALPN protocol \"postgresql\"".to_owned();
            return Err(WireError::Tls { target, reason });
        }
        let certificate = session.peer_certificates().and_then(<[_]>::first);
        let facts = TlsFacts {
            version: session
                .protocol_version()
                .map_or_else(String::new, |version| version.as_str().unwrap_or("TLS").replace('_', ".")),
            end_point: certificate.and_then(|certificate| der::end_point_hash(certificate)),
            client_cert_sent: self.client_cert.sent.load(Ordering::Acquire),
        };
        Ok((stream, facts))
    }
}

/// The name for SNI; what rustls cannot take as a name is not sent, and the verifier does not use it.
fn server_name(host: &Host, config: &mut ClientConfig) -> ServerName<'static> {
    let name = host.name.as_deref().and_then(|name| ServerName::try_from(name.to_owned()).ok());
    name.unwrap_or_else(|| {
        config.enable_sni = false;
        ServerName::IpAddress(IpAddr::from([0, 0, 0, 0]).into())
    })
}

fn versions(min: TlsVersion, max: TlsVersion) -> Vec<&'static SupportedProtocolVersion> {
    let mut versions = Vec::new();
    if max == TlsVersion::Tls13 {
        versions.push(&version::TLS13);
    }
    if min == TlsVersion::Tls12 {
        versions.push(&version::TLS12);
    }
    versions
}

/// The client's certificate, and whether the server asked for it.
#[derive(Debug)]
struct ClientCert {
    key: Option<Arc<CertifiedKey>>,
    sent: AtomicBool,
}

impl ClientCert {
    fn load(conninfo: &Conninfo, provider: &tokio_rustls::rustls::crypto::CryptoProvider) -> Result<Self, WireError> {
        let key = match &conninfo.sslcert {
            Some(path) if conninfo.sslcertmode != SslCertMode::Disable && path.exists() => {
                let key = conninfo.sslkey.as_deref();
                Some(Arc::new(files::client_certificate(path, key, provider)?))
            }
            _ => None,
        };
        Ok(Self { key, sent: AtomicBool::new(false) })
    }
}

impl ResolvesClientCert for ClientCert {
    fn resolve(&self, _issuers: &[&[u8]], schemes: &[SignatureScheme]) -> Option<Arc<CertifiedKey>> {
        let key = self.key.clone().filter(|key| key.key.choose_scheme(schemes).is_some())?;
        self.sent.store(true, Ordering::Release);
        Some(key)
    }

    fn has_certs(&self) -> bool {
        self.key.is_some()
    }
}
