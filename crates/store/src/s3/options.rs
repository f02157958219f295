//! The settings of a store in S3.

use std::collections::BTreeMap;
use std::fmt;
use std::path::PathBuf;
use std::time::Duration;

/// A text that is never printed.
#[derive(Clone, PartialEq, Eq)]
pub struct Secret(String);

impl Secret {
    /// Takes a secret.
    pub fn new(secret: impl Into<String>) -> Self {
        Self(secret.into())
    }

    /// The secret itself.
    pub fn expose(&self) -> &str {
        &self.0
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("(secret)")
    }
}

/// How a bucket is reached.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct S3Options {
    /// The service's URL; Amazon's own when absent, or `AWS_ENDPOINT_URL_S3` of the environment.
    pub endpoint: Option<String>,
    /// The region; else `AWS_REGION` of the environment, else `us-east-1`.
    pub region: Option<String>,
    /// Whether the bucket stands in the URL's path instead of the host name; by default where an
    /// endpoint is given.
    pub path_style: Option<bool>,
    /// Certificates (PEM) that are trusted besides the system's.
    pub ca_file: Option<PathBuf>,
    /// Whether an endpoint without TLS is accepted.
    pub allow_http: bool,
    /// The access key; with the next one it goes before every other source of credentials.
    pub access_key_id: Option<String>,
    /// The secret of the access key.
    pub secret_access_key: Option<Secret>,
    /// The token of temporary credentials.
    pub session_token: Option<Secret>,
    /// The environment, as far as the caller wants it used: `AWS_*`. The second source.
    pub environment: BTreeMap<String, Secret>,
    /// What `~/.aws/credentials` holds, if the caller wants it used. The third source; after it
    /// come web identity, container and instance metadata.
    pub credentials_file: Option<Secret>,
    /// The profile in that file; else `AWS_PROFILE` of the environment, else `default`.
    pub profile: Option<String>,
    /// `AES256` or `aws:kms`; the bucket's own default when absent.
    pub server_side_encryption: Option<String>,
    /// The key for `aws:kms`.
    pub kms_key_id: Option<String>,
    /// The storage class of what is written, such as `STANDARD_IA`.
    pub storage_class: Option<String>,
    /// Time for one request with its body.
    pub request_time_max: Duration,
    /// How often a request is repeated.
    pub retries_max: usize,
    /// After this time since the first attempt no request is repeated.
    pub retry_time_max: Duration,
}
