//! The connection to one bucket: its settings, names and errors in one place.

use super::credentials;
use super::errors;
use super::options::S3Options;
use crate::error::action;
use crate::{ObjectMeta, ObjectPath, StoreError};
use object_store::aws::{AmazonS3, AmazonS3Builder, S3ConditionalPut};
use object_store::list::{PaginatedListOptions, PaginatedListStore};
use object_store::path::Path as Key;
use object_store::{
    Attribute, Attributes, BackoffConfig, Certificate, ClientOptions, HeaderMap, HeaderValue, RetryConfig,
};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

/// Time to open a connection.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);

/// Bytes a key may have on S3.
const KEY_BYTES_MAX: usize = 1024;

/// Bytes of the longest path below the prefix (see `path.rs`), with the slash.
const PATH_BYTES_MAX: usize = 801;

#[derive(Debug)]
pub(super) struct Client {
    pub(super) url: String,
    pub(super) bucket: AmazonS3,
    /// The same bucket with `If-None-Match: *` on every request: `object_store` completes an
    /// upload in parts unconditionally, unless each of its requests carries the header.
    pub(super) create_only: AmazonS3,
    pub(super) attributes: Attributes,
    /// Empty, or ends with a slash.
    prefix: String,
    /// The bucket answered once, so that a 404 without an explanation is about the object.
    bucket_seen: AtomicBool,
}

impl Client {
    pub(super) fn new(bucket: &str, prefix: &str, options: &S3Options) -> Result<Self, StoreError> {
        let url = if prefix.is_empty() { format!("s3://{bucket}") } else { format!("s3://{bucket}/{prefix}") };
        let bad = |reason: String| StoreError::BadUrl { url: url.clone(), reason };
        let prefix = match prefix {
            "" => String::new(),
            prefix => format!("{}/", ObjectPath::new(prefix).map_err(&bad)?),
        };
        if prefix.len() + PATH_BYTES_MAX > KEY_BYTES_MAX {
            return Err(bad(format!("the prefix is longer than {} bytes", KEY_BYTES_MAX - PATH_BYTES_MAX)));
        }
        let builder = builder(bucket, options).map_err(&bad)?;
        let http = http_options(options).map_err(&bad)?;
        let build = |builder: AmazonS3Builder| builder.build().map_err(|error| bad(errors::explain(&error)));
        let plain = build(builder.clone().with_client_options(http.clone()))?;
        let mut headers = HeaderMap::new();
        headers.insert("if-none-match", HeaderValue::from_static("*"));
        let create_only = build(
            builder
                .with_client_options(http.with_default_headers(headers))
                .with_credentials(plain.credentials().clone()),
        )?;
        let mut attributes = Attributes::new();
        if let Some(class) = &options.storage_class {
            attributes.insert(Attribute::StorageClass, class.clone().into());
        }
        Ok(Self { url, bucket: plain, create_only, attributes, prefix, bucket_seen: AtomicBool::new(false) })
    }

    /// The full key of an object.
    pub(super) fn key(&self, path: &ObjectPath) -> Key {
        Key::from(format!("{}{path}", self.prefix))
    }

    /// The full key as text; what lies below a prefix begins with its key and a slash.
    pub(super) fn key_text(&self, path: &ObjectPath) -> String {
        format!("{}{path}", self.prefix)
    }

    /// The text all keys below `prefix` begin with.
    pub(super) fn prefix_text(&self, prefix: Option<&ObjectPath>) -> String {
        match prefix {
            Some(prefix) => format!("{}{prefix}/", self.prefix),
            None => self.prefix.clone(),
        }
    }

    /// The object a key names, unless it is none of ours.
    pub(super) fn path(&self, key: &Key) -> Option<ObjectPath> {
        ObjectPath::new(key.as_ref().strip_prefix(&self.prefix)?).ok()
    }

    pub(super) fn meta(&self, path: ObjectPath, meta: &object_store::ObjectMeta) -> ObjectMeta {
        ObjectMeta { path, size: meta.size, modified_ms: meta.last_modified.timestamp_millis() }
    }

    pub(super) fn saw_bucket(&self) {
        self.bucket_seen.store(true, Ordering::Relaxed);
    }

    pub(super) fn write_error(&self, path: &ObjectPath, error: object_store::Error) -> StoreError {
        errors::map(&self.url, path, action::WRITE, error)
    }

    pub(super) async fn read_error(&self, path: &ObjectPath, error: object_store::Error) -> StoreError {
        self.answer(path, action::READ, error).await
    }

    /// The error of a request about an object. "Not found" is said only when it is the object
    /// that is missing: a missing bucket and a server that is no S3 also answer 404.
    pub(super) async fn answer(
        &self,
        path: &ObjectPath,
        action: &'static str,
        error: object_store::Error,
    ) -> StoreError {
        let not_found = || StoreError::NotFound { store: self.url.clone(), path: path.clone() };
        match errors::missing(&error) {
            Some(errors::Missing::Object) => not_found(),
            // The answer to HEAD has no text.
            Some(errors::Missing::Unsaid) if self.bucket_seen.load(Ordering::Relaxed) => not_found(),
            Some(errors::Missing::Unsaid) => match self.check_bucket().await {
                Ok(()) => not_found(),
                Err(error) => errors::map(&self.url, path, action, error),
            },
            Some(errors::Missing::Other) | None => errors::map(&self.url, path, action, error),
        }
    }

    async fn check_bucket(&self) -> Result<(), object_store::Error> {
        let options = PaginatedListOptions { max_keys: Some(1), ..PaginatedListOptions::default() };
        self.bucket.list_paginated(Some(&self.prefix), options).await?;
        self.saw_bucket();
        Ok(())
    }
}

fn builder(bucket: &str, options: &S3Options) -> Result<AmazonS3Builder, String> {
    if bucket.is_empty() {
        return Err("the bucket is missing; write s3://bucket/prefix".to_owned());
    }
    let env = |name: &str| {
        options.environment.get(name).map(|value| value.expose().to_owned()).filter(|value| !value.is_empty())
    };
    let region = options.region.clone().or_else(|| env("AWS_REGION")).or_else(|| env("AWS_DEFAULT_REGION"));
    let endpoint = options.endpoint.clone().or_else(|| env("AWS_ENDPOINT_URL_S3")).or_else(|| env("AWS_ENDPOINT_URL"));
    // A bucket with a dot in its name matches no certificate as a host name.
    let path_style = options.path_style.unwrap_or(endpoint.is_some()) || bucket.contains('.');
    let mut builder = AmazonS3Builder::new()
        .with_bucket_name(bucket)
        .with_region(region.unwrap_or_else(|| "us-east-1".to_owned()))
        .with_virtual_hosted_style_request(!path_style)
        .with_conditional_put(S3ConditionalPut::ETagMatch)
        .with_disable_bulk_delete(true)
        .with_retry(RetryConfig {
            backoff: BackoffConfig {
                init_backoff: Duration::from_millis(100),
                max_backoff: Duration::from_secs(15),
                base: 2.0,
            },
            max_retries: options.retries_max,
            retry_timeout: options.retry_time_max,
        });
    if let Some(endpoint) = endpoint {
        builder = builder.with_endpoint(endpoint_of(&endpoint, bucket, path_style, options)?);
    }
    if let Some(mode) = &options.server_side_encryption {
        builder = builder.with_config(config_key("aws_server_side_encryption")?, mode);
    }
    if let Some(key) = &options.kms_key_id {
        builder = builder.with_config(config_key("aws_sse_kms_key_id")?, key);
    }
    credentials::apply(builder, options)
}

/// The endpoint as `object_store` wants it: with the bucket in its host name unless path style.
fn endpoint_of(endpoint: &str, bucket: &str, path_style: bool, options: &S3Options) -> Result<String, String> {
    let hint = "write it like https://s3.example.com";
    let parsed = url::Url::parse(endpoint).map_err(|error| format!("endpoint {endpoint:?}: {error}; {hint}"))?;
    match parsed.scheme() {
        "https" => {}
        "http" if options.allow_http => {}
        "http" => return Err(format!("endpoint {endpoint:?} is not encrypted; set allow-http to use it anyway")),
        other => return Err(format!("endpoint {endpoint:?} has the scheme {other:?}; {hint}")),
    }
    let host = parsed.host_str().ok_or_else(|| format!("endpoint {endpoint:?} has no host; {hint}"))?;
    if path_style || host.starts_with(&format!("{bucket}.")) {
        return Ok(endpoint.trim_end_matches('/').to_owned());
    }
    let port = parsed.port().map_or(String::new(), |port| format!(":{port}"));
    Ok(format!("{}://{bucket}.{host}{port}", parsed.scheme()))
}

pub(super) fn config_key(name: &str) -> Result<object_store::aws::AmazonS3ConfigKey, String> {
    name.parse().map_err(|error: object_store::Error| error.to_string())
}

fn http_options(options: &S3Options) -> Result<ClientOptions, String> {
    // The time for a request includes its body: a part must get through on a slow line.
    let mut http = ClientOptions::new()
        .with_allow_http(options.allow_http)
        .with_timeout(options.request_time_max)
        .with_connect_timeout(CONNECT_TIMEOUT.min(options.request_time_max))
        .with_user_agent(HeaderValue::from_static(concat!("pgkeep/", env!("CARGO_PKG_VERSION"))));
    if let Some(file) = &options.ca_file {
        let name = file.display();
        let pem = std::fs::read(file).map_err(|error| format!("ca-file {name}: {error}"))?;
        let certificates = Certificate::from_pem_bundle(&pem)
            .map_err(|error| format!("ca-file {name}: {}", errors::explain(&error)))?;
        if certificates.is_empty() {
            return Err(format!("ca-file {name} holds no certificate; it must be PEM"));
        }
        for certificate in certificates {
            http = http.with_root_certificate(certificate);
        }
    }
    Ok(http)
}
