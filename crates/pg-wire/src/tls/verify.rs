//! Whether a server's certificate is trusted and made for the host asked for.
//!
//! Chains are verified by webpki, host names by PostgreSQL's own rules ([`super::names`]). The handshake's signature
//! is verified always, also when the certificate is not: channel binding rests on it.

use super::der::Certificate;
use super::files::Roots;
use super::names;
use crate::WireError;
use std::sync::{Arc, Mutex};
use tokio_rustls::rustls::client::WebPkiServerVerifier;
use tokio_rustls::rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use tokio_rustls::rustls::crypto::{
    CryptoProvider, WebPkiSupportedAlgorithms, verify_tls12_signature, verify_tls13_signature,
    verify_tls13_signature_with_raw_key,
};
use tokio_rustls::rustls::pki_types::{
    CertificateDer, CertificateRevocationListDer, ServerName, SubjectPublicKeyInfoDer, UnixTime,
};
use tokio_rustls::rustls::{CertificateError, DigitallySignedStruct, Error, SignatureScheme};

/// Why a certificate was not accepted.
#[derive(Debug, Clone)]
pub(super) enum Failure {
    Untrusted(String),
    HostName { expected: String, names: Vec<String> },
}

/// What is verified of the certificate.
#[derive(Debug)]
pub(super) enum Check {
    Nothing,
    Chain { chain: Option<Arc<WebPkiServerVerifier>>, exact: Vec<CertificateDer<'static>>, expected: Option<String> },
}

impl Check {
    pub(super) fn chain(
        roots: Roots,
        crls: Vec<CertificateRevocationListDer<'static>>,
        expected: Option<String>,
        provider: &Arc<CryptoProvider>,
    ) -> Result<Self, WireError> {
        let chain = if roots.store.is_empty() {
            None
        } else {
            let built = WebPkiServerVerifier::builder_with_provider(Arc::new(roots.store), provider.clone())
                .with_crls(crls)
                .build()
                .map_err(|error| WireError::TlsConfig { reason: format!("sslrootcert or sslcrl: {error}") })?;
            Some(built)
        };
        Ok(Self::Chain { chain, exact: roots.exact, expected })
    }
}

#[derive(Debug)]
pub(super) struct Verifier {
    check: Check,
    algorithms: WebPkiSupportedAlgorithms,
    failure: Mutex<Option<Failure>>,
}

impl Verifier {
    pub(super) fn new(check: Check, algorithms: WebPkiSupportedAlgorithms) -> Self {
        Self { check, algorithms, failure: Mutex::new(None) }
    }

    pub(super) fn failure(&self) -> Option<Failure> {
        self.failure.lock().ok()?.clone()
    }

    fn fail(&self, failure: Failure, error: CertificateError) -> Error {
        if let Ok(mut slot) = self.failure.lock() {
            *slot = Some(failure);
        }
        Error::InvalidCertificate(error)
    }

    fn untrusted(&self, error: CertificateError) -> Error {
        let reason = match &error {
            CertificateError::UnknownIssuer => "it was not signed by a certificate in sslrootcert".to_owned(),
            CertificateError::Expired | CertificateError::ExpiredContext { .. } => "it has expired".to_owned(),
            CertificateError::NotValidYet | CertificateError::NotValidYetContext { .. } => {
                "it is not valid yet".to_owned()
            }
            CertificateError::Revoked => "it has been revoked".to_owned(),
            CertificateError::Other(other) if other.to_string().contains("UnsupportedCertVersion") => {
                "it is an X.509 certificate of version 1; a version 3 certificate is needed".to_owned()
            }
            other => other.to_string(),
        };
        self.fail(Failure::Untrusted(reason), error)
    }
}

impl ServerCertVerifier for Verifier {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        server_name: &ServerName<'_>,
        ocsp: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        let Check::Chain { chain, exact, expected } = &self.check else {
            return Ok(ServerCertVerified::assertion());
        };
        let parsed = || Certificate::parse(end_entity).ok_or(CertificateError::BadEncoding);
        if exact.contains(end_entity) {
            // The server shows a certificate that is itself trusted, often self-signed: OpenSSL takes it, webpki
            // does not take a CA as an end entity.
            let certificate = parsed().map_err(|error| self.untrusted(error))?;
            if now.as_secs() < certificate.not_before {
                return Err(self.untrusted(CertificateError::NotValidYet));
            }
            if now.as_secs() > certificate.not_after {
                return Err(self.untrusted(CertificateError::Expired));
            }
        } else {
            let Some(chain) = chain else { return Err(self.untrusted(CertificateError::UnknownIssuer)) };
            match chain.verify_server_cert(end_entity, intermediates, server_name, ocsp, now) {
                Ok(_) => {}
                // webpki compares names after the chain was found good; PostgreSQL's rules are applied below.
                Err(Error::InvalidCertificate(
                    CertificateError::NotValidForName | CertificateError::NotValidForNameContext { .. },
                )) => {}
                Err(Error::InvalidCertificate(error)) => return Err(self.untrusted(error)),
                Err(error) => {
                    return Err(self.fail(Failure::Untrusted(error.to_string()), CertificateError::BadEncoding));
                }
            }
        }
        if let Some(expected) = expected {
            let certificate = parsed().map_err(|error| self.untrusted(error))?;
            if !names::matches(&certificate, expected) {
                let failure = Failure::HostName { expected: expected.clone(), names: names::shown(&certificate) };
                return Err(self.fail(failure, CertificateError::NotValidForName));
            }
        }
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        verify_tls12_signature(message, cert, dss, &self.algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        match (&self.check, Certificate::parse(cert)) {
            // webpki reads no version 1 certificates; their key can be read all the same.
            (Check::Nothing, Some(certificate)) => {
                let key = SubjectPublicKeyInfoDer::from(certificate.spki);
                verify_tls13_signature_with_raw_key(message, &key, dss, &self.algorithms)
            }
            _ => verify_tls13_signature(message, cert, dss, &self.algorithms),
        }
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.algorithms.supported_schemes()
    }
}
