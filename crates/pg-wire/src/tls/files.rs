//! Certificates, keys and revocation lists, read from PEM files.

use crate::WireError;
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::sync::Arc;
use tokio_rustls::rustls::RootCertStore;
use tokio_rustls::rustls::crypto::CryptoProvider;
use tokio_rustls::rustls::pki_types::pem::PemObject;
use tokio_rustls::rustls::pki_types::{CertificateDer, CertificateRevocationListDer, PrivateKeyDer};
use tokio_rustls::rustls::sign::CertifiedKey;

/// Trusted certificates: the store for chains, and the certificates themselves for a server that shows one of them.
pub(super) struct Roots {
    pub(super) store: RootCertStore,
    pub(super) exact: Vec<CertificateDer<'static>>,
}

/// Where distributions keep the bundle of trusted certificates: Debian, Fedora, openSUSE, Alpine.
const SYSTEM_BUNDLES: [&str; 4] = [
    "/etc/ssl/certs/ca-certificates.crt",
    "/etc/pki/tls/certs/ca-bundle.crt",
    "/etc/ssl/ca-bundle.pem",
    "/etc/ssl/cert.pem",
];

/// The operating system's trusted certificates; Mozilla's list when the system has none.
pub(super) fn system_roots() -> Roots {
    for path in SYSTEM_BUNDLES {
        if let Ok(certificates) = certificates(Path::new(path)) {
            let mut store = RootCertStore::empty();
            let (added, _) = store.add_parsable_certificates(certificates);
            if added > 0 {
                return Roots { store, exact: Vec::new() };
            }
        }
    }
    tracing::warn!("no system bundle of trusted certificates was found; the built-in list is used");
    let store = RootCertStore { roots: webpki_roots::TLS_SERVER_ROOTS.to_vec() };
    Roots { store, exact: Vec::new() }
}

/// The certificates of a root file.
pub(super) fn roots(path: &Path) -> Result<Roots, WireError> {
    let what = "root certificate file";
    let exact = certificates(path).map_err(|reason| file_error(what, path, reason))?;
    let mut store = RootCertStore::empty();
    let (_, ignored) = store.add_parsable_certificates(exact.clone());
    if ignored > 0 {
        tracing::debug!(path = %path.display(), ignored, "certificates that cannot serve as a CA");
    }
    if exact.is_empty() {
        return Err(file_error(what, path, "it holds no certificate in PEM form".to_owned()));
    }
    Ok(Roots { store, exact })
}

/// The revocation lists, none when nothing is named. A file that is not there is ignored, as in libpq.
pub(super) fn crls(
    file: Option<&Path>,
    dir: Option<&Path>,
) -> Result<Vec<CertificateRevocationListDer<'static>>, WireError> {
    let mut paths: Vec<_> = file.map(Path::to_owned).filter(|path| path.exists()).into_iter().collect();
    if let Some(dir) = dir {
        let entries = std::fs::read_dir(dir).map_err(|error| file_error("sslcrldir", dir, error.to_string()))?;
        paths.extend(entries.filter_map(Result::ok).map(|entry| entry.path()).filter(|path| path.is_file()));
    }
    let mut lists = Vec::new();
    for path in paths {
        let read = CertificateRevocationListDer::pem_file_iter(&path).and_then(Iterator::collect::<Result<Vec<_>, _>>);
        lists.extend(read.map_err(|error| file_error("certificate revocation list", &path, error.to_string()))?);
    }
    Ok(lists)
}

/// The client's certificate with its key.
pub(super) fn client_certificate(
    cert: &Path,
    key: Option<&Path>,
    provider: &CryptoProvider,
) -> Result<CertifiedKey, WireError> {
    let chain = certificates(cert).map_err(|reason| file_error("client certificate", cert, reason))?;
    if chain.is_empty() {
        return Err(file_error("client certificate", cert, "it holds no certificate in PEM form".to_owned()));
    }
    let Some(path) = key else {
        return Err(WireError::TlsConfig { reason: "a client certificate is given, but no key (sslkey)".to_owned() });
    };
    check_key_mode(path)?;
    let pem = zeroize::Zeroizing::new(
        std::fs::read(path).map_err(|error| file_error("client key", path, error.to_string()))?,
    );
    let encrypted = |pem: &[u8]| {
        let has = |needle: &[u8]| pem.windows(needle.len()).any(|window| window == needle);
        has(b"ENCRYPTED PRIVATE KEY") || has(b"Proc-Type: 4,ENCRYPTED")
    };
    if encrypted(&pem) {
        let reason = "it is encrypted, which is not supported; decrypt it (openssl pkey) and protect it by its mode";
        return Err(file_error("client key", path, reason.to_owned()));
    }
    let der = PrivateKeyDer::from_pem_slice(&pem).map_err(|error| file_error("client key", path, error.to_string()))?;
    let signing = provider
        .key_provider
        .load_private_key(der)
        .map_err(|error| file_error("client key", path, error.to_string()))?;
    let certified = CertifiedKey::new(chain, Arc::clone(&signing));
    match certified.keys_match() {
        Err(tokio_rustls::rustls::Error::InconsistentKeys(tokio_rustls::rustls::InconsistentKeys::KeyMismatch)) => {
            let reason = format!("it does not belong to the certificate \"{}\"", cert.display());
            Err(file_error("client key", path, reason))
        }
        _ => Ok(certified),
    }
}

/// As in `initialize_SSL`: a key owned by root may be read by a group, any other by its owner only.
fn check_key_mode(path: &Path) -> Result<(), WireError> {
    let metadata = std::fs::metadata(path).map_err(|error| file_error("client key", path, error.to_string()))?;
    if !metadata.is_file() {
        return Err(file_error("client key", path, "it is not a regular file".to_owned()));
    }
    let forbidden = if metadata.uid() == 0 { 0o037 } else { 0o077 };
    if metadata.mode() & forbidden != 0 {
        let reason = format!(
            "group or others have access to it (mode {:04o}); run chmod 600 on it (640 if root owns it)",
            metadata.mode() & 0o7777
        );
        return Err(file_error("client key", path, reason));
    }
    Ok(())
}

fn certificates(path: &Path) -> Result<Vec<CertificateDer<'static>>, String> {
    let read = CertificateDer::pem_file_iter(path).and_then(Iterator::collect::<Result<Vec<_>, _>>);
    read.map_err(|error| error.to_string())
}

fn file_error(what: &'static str, path: &Path, reason: String) -> WireError {
    WireError::TlsFile { what, path: path.to_owned(), reason }
}
