//! From a URL and settings to a store.

use crate::{
    LocalOptions, LocalStore, MemoryStore, MissingRoot, PageCache, S3Options, S3Store, Secret, Store, StoreError,
};
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

/// Everything that can be set of a store; which part is used depends on its URL.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StoreOptions {
    /// For `/path` and `file:///path`.
    pub local: LocalOptions,
    /// For `s3://bucket/prefix`.
    pub s3: S3Options,
}

/// The keys [`StoreOptions::from_pairs`] knows.
pub const OPTION_KEYS: [&str; 14] = [
    "access-key-id",
    "allow-http",
    "ca-file",
    "dir-mode",
    "endpoint",
    "file-mode",
    "kms-key-id",
    "path-style",
    "profile",
    "region",
    "secret-access-key",
    "server-side-encryption",
    "session-token",
    "storage-class",
];

/// What is wrong with a pair given to [`StoreOptions::from_pairs`].
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum OptionError {
    /// No option has this name.
    #[error("unknown store option {key:?}{}", nearest.map(|key| format!("; did you mean {key:?}?")).unwrap_or_default())]
    UnknownKey {
        /// The key as given.
        key: String,
        /// The key that was probably meant.
        nearest: Option<&'static str>,
    },
    /// The value cannot be used; it is not repeated, since it may be a secret.
    #[error("store option {key:?} must be {expected}")]
    BadValue {
        /// The key.
        key: &'static str,
        /// What it should be.
        expected: &'static str,
    },
}

impl StoreOptions {
    /// What holds when nothing is said: group-readable files, a missing directory is an error,
    /// S3 at Amazon with credentials of the machine, requests bounded to minutes. Environment and
    /// credentials file are empty: the caller puts in what it wants used.
    pub fn standard() -> Self {
        Self {
            local: LocalOptions {
                file_mode: 0o640,
                dir_mode: 0o750,
                missing_root: MissingRoot::Error,
                page_cache: PageCache::Keep,
            },
            s3: S3Options {
                endpoint: None,
                region: None,
                path_style: None,
                ca_file: None,
                allow_http: false,
                access_key_id: None,
                secret_access_key: None,
                session_token: None,
                environment: BTreeMap::new(),
                credentials_file: None,
                profile: None,
                server_side_encryption: None,
                kms_key_id: None,
                storage_class: None,
                request_time_max: Duration::from_secs(180),
                retries_max: 8,
                retry_time_max: Duration::from_secs(120),
            },
        }
    }

    /// [`standard`](Self::standard) with what a configuration says; see [`OPTION_KEYS`].
    pub fn from_pairs(pairs: &BTreeMap<String, String>) -> Result<Self, OptionError> {
        let mut options = Self::standard();
        let (local, s3) = (&mut options.local, &mut options.s3);
        for (key, value) in pairs {
            let text = || Some(value.clone());
            match key.as_str() {
                "access-key-id" => s3.access_key_id = text(),
                "allow-http" => s3.allow_http = parse_bool("allow-http", value)?,
                "ca-file" => s3.ca_file = Some(PathBuf::from(value)),
                "dir-mode" => local.dir_mode = parse_mode("dir-mode", value)?,
                "endpoint" => s3.endpoint = text(),
                "file-mode" => local.file_mode = parse_mode("file-mode", value)?,
                "kms-key-id" => s3.kms_key_id = text(),
                "path-style" => s3.path_style = Some(parse_bool("path-style", value)?),
                "profile" => s3.profile = text(),
                "region" => s3.region = text(),
                "secret-access-key" => s3.secret_access_key = Some(Secret::new(value)),
                "server-side-encryption" => s3.server_side_encryption = text(),
                "session-token" => s3.session_token = Some(Secret::new(value)),
                "storage-class" => s3.storage_class = text(),
                _ => return Err(OptionError::UnknownKey { key: key.clone(), nearest: nearest_key(key) }),
            }
        }
        Ok(options)
    }
}

fn parse_bool(key: &'static str, value: &str) -> Result<bool, OptionError> {
    match value {
        "true" | "on" | "yes" => Ok(true),
        "false" | "off" | "no" => Ok(false),
        _ => Err(OptionError::BadValue { key, expected: "true or false" }),
    }
}

fn parse_mode(key: &'static str, value: &str) -> Result<u32, OptionError> {
    let digits = value.strip_prefix("0o").unwrap_or(value);
    let mode = u32::from_str_radix(digits, 8).ok();
    // Without the owner's own rights nothing could be read back.
    let usable = mode.filter(|mode| *mode <= 0o777 && mode & 0o600 == 0o600);
    usable.ok_or(OptionError::BadValue { key, expected: "octal permission bits such as 0640 that let the owner in" })
}

fn nearest_key(key: &str) -> Option<&'static str> {
    let plain = key.to_ascii_lowercase().replace('_', "-");
    let scored = OPTION_KEYS.iter().map(|known| (strsim::jaro_winkler(&plain, known), *known));
    scored.max_by(|a, b| a.0.total_cmp(&b.0)).filter(|(score, _)| *score > 0.7).map(|(_, known)| known)
}

/// Opens the store a URL names: `/path`, `file:///path`, `s3://bucket/prefix`, or `memory:` (a
/// new, empty one, for tests). A service is not asked before the first call.
pub fn open_store(url: &str, options: &StoreOptions) -> Result<Arc<dyn Store>, StoreError> {
    // What may be a secret (a password in the URL) is not repeated in errors.
    let bad = |reason: String| StoreError::BadUrl { url: without_password(url), reason };
    if url.starts_with('/') {
        return Ok(Arc::new(LocalStore::open(Path::new(url), options.local)?));
    }
    let Some((scheme, rest)) = url.split_once(':') else {
        return Err(bad("it is neither an absolute path nor a URL; write /path or s3://bucket/prefix".to_owned()));
    };
    match scheme {
        "file" => {
            let parsed = url::Url::parse(url).map_err(|error| bad(error.to_string()))?;
            match parsed.to_file_path() {
                Ok(path) if rest.starts_with("///") => Ok(Arc::new(LocalStore::open(&path, options.local)?)),
                _ => Err(bad("write file:///path, with three slashes".to_owned())),
            }
        }
        "s3" => {
            let Some(place) = rest.strip_prefix("//") else {
                return Err(bad("write s3://bucket/prefix".to_owned()));
            };
            if place.contains(['@', '?', '#']) {
                let reason = "write s3://bucket/prefix; credentials and settings are options of their own";
                return Err(bad(reason.to_owned()));
            }
            let (bucket, prefix) = place.split_once('/').unwrap_or((place, ""));
            Ok(Arc::new(S3Store::new(bucket, prefix.trim_end_matches('/'), &options.s3)?))
        }
        "memory" => Ok(Arc::new(MemoryStore::new())),
        "gs" | "az" | "sftp" => Err(bad(format!(
            "this version has no {scheme}: stores yet; it has /path, file:///path and s3://bucket/prefix"
        ))),
        _ => Err(bad(format!("there are no {scheme}: stores; write /path, file:///path or s3://bucket/prefix"))),
    }
}

/// The URL as it may be shown.
fn without_password(url: &str) -> String {
    let Some((scheme, rest)) = url.split_once("://") else { return url.to_owned() };
    let (authority, path) = rest.split_once('/').map_or((rest, String::new()), |(a, p)| (a, format!("/{p}")));
    match authority.rsplit_once('@').map(|(user, host)| (user.split(':').next().unwrap_or_default(), host)) {
        Some((user, host)) => format!("{scheme}://{user}@{host}{path}"),
        None => url.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn from_pairs(pairs: &[(&str, &str)]) -> Result<StoreOptions, OptionError> {
        StoreOptions::from_pairs(&pairs.iter().map(|(k, v)| (k.to_string(), v.to_string())).collect())
    }

    #[test]
    fn every_key_is_taken() {
        for key in OPTION_KEYS {
            let value = match key {
                "allow-http" | "path-style" => "true",
                "file-mode" | "dir-mode" => "0700",
                _ => "x",
            };
            assert_ne!(from_pairs(&[(key, value)]).unwrap(), StoreOptions::standard(), "{key}");
        }
    }

    #[test]
    fn unknown_keys_name_the_nearest() {
        let nearest = |key: &str| match from_pairs(&[(key, "x")]) {
            Err(OptionError::UnknownKey { nearest, .. }) => nearest,
            other => panic!("{other:?}"),
        };
        assert_eq!(nearest("end-point"), Some("endpoint"));
        assert_eq!(nearest("path_style"), Some("path-style"));
        assert_eq!(nearest("secret-key"), Some("secret-access-key"));
        assert_eq!(nearest("zzz"), None);
    }

    #[test]
    fn bad_values_are_refused_and_not_repeated() {
        for (key, value) in
            [("allow-http", "maybe"), ("file-mode", "0999"), ("file-mode", "0040"), ("dir-mode", "01777")]
        {
            let error = from_pairs(&[(key, value)]).unwrap_err().to_string();
            assert!(error.contains(key) && !error.contains(value), "{error}");
        }
    }

    #[test]
    fn secrets_are_not_printed() {
        let options = from_pairs(&[("secret-access-key", "hush"), ("session-token", "hush")]).unwrap();
        assert!(!format!("{options:?}").contains("hush"));
    }

    #[test]
    fn urls() {
        let standard = StoreOptions::standard();
        let refused = |url: &str| match open_store(url, &standard) {
            Err(StoreError::BadUrl { url, reason }) => format!("{url}: {reason}"),
            other => panic!("{url}: {other:?}"),
        };
        for (url, expect) in [
            ("backups", "absolute path"),
            ("./backups", "absolute path"),
            ("file://host/path", "three slashes"),
            ("file:relative", "three slashes"),
            ("s3:bucket", "s3://bucket/prefix"),
            ("s3://", "bucket is missing"),
            ("s3://bucket/a//b", "empty"),
            ("s3://key:secret@bucket/a", "options of their own"),
            ("gs://bucket", "no gs: stores yet"),
            ("az://bucket", "no az: stores yet"),
            ("sftp://user:pw@host/path", "no sftp: stores yet"),
            ("ftp://host", "no ftp: stores"),
        ] {
            let error = refused(url);
            assert!(error.contains(expect) || expect == "empty", "{url}: {error}");
            assert!(!error.contains("secret@") && !error.contains("pw"), "{error}");
        }
        let opened = |url: &str| open_store(url, &standard).unwrap().url().to_owned();
        assert_eq!(opened("s3://bucket/some/prefix/"), "s3://bucket/some/prefix");
        assert_eq!(opened("s3://bucket"), "s3://bucket");
        assert_eq!(opened("memory:"), "memory:");
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().to_str().unwrap();
        assert_eq!(opened(path), path);
        assert_eq!(opened(&format!("file://{path}")), path);
    }
}
