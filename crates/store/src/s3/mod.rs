//! A store in a bucket of S3 or of a service that speaks its protocol, through `object_store`.
//!
//! - Create-if-absent is `If-None-Match: *`, for whole objects and for the completion of
//!   uploads in parts. A service that does not know the header would overwrite; before an upload
//!   is completed the object is asked for as well, so that there only a race remains.
//! - A request that was repeated because its reply was lost may find the object it made itself:
//!   [`Created::Exists`], as the contract of [`Store`] allows.
//! - Whoever is killed while uploading leaves an unfinished upload that no listing shows and
//!   that costs money: a bucket should have a lifecycle rule that aborts them after some days.

mod client;
mod credentials;
mod errors;
mod list;
mod options;
mod writer;

pub use options::{S3Options, Secret};

use crate::error::{action, check_range, failed, too_large};
use crate::{Created, Listing, ObjectMeta, ObjectPath, ObjectWriter, Store, StoreError};
use async_trait::async_trait;
use bytes::{Bytes, BytesMut};
use client::Client;
use futures::TryStreamExt;
use object_store::path::Path as Key;
use object_store::{GetOptions, GetRange, GetResult, ObjectStore, ObjectStoreExt, PutMode, PutOptions};
use std::ops::Range;
use std::sync::Arc;
use std::time::Duration;
use writer::{PART_BYTES, S3Writer};

/// How often a conditional put is repeated when the service saw another one at the same moment
/// (409) or the connection broke.
const PUT_ATTEMPTS_MAX: u32 = 5;

/// Objects below a prefix of a bucket.
#[derive(Debug)]
pub struct S3Store {
    client: Arc<Client>,
}

impl S3Store {
    /// Makes the store for `s3://bucket/prefix`; asks the service nothing yet. The prefix may be empty.
    pub fn new(bucket: &str, prefix: &str, options: &S3Options) -> Result<Self, StoreError> {
        Ok(Self { client: Arc::new(Client::new(bucket, prefix, options)?) })
    }

    async fn get_ranged(&self, path: &ObjectPath, range: Option<GetRange>) -> Result<GetResult, object_store::Error> {
        let options = GetOptions { range, ..GetOptions::default() };
        self.client.bucket.get_opts(&self.client.key(path), options).await
    }

    /// The body of an answer, which must have exactly the length that was announced.
    async fn body(&self, path: &ObjectPath, result: GetResult) -> Result<Bytes, StoreError> {
        let len = result.range.end - result.range.start;
        let mut bytes = BytesMut::with_capacity(len as usize);
        let mut stream = result.into_stream();
        loop {
            match stream.try_next().await {
                Ok(Some(chunk)) => bytes.extend_from_slice(&chunk),
                Ok(None) => break,
                Err(error) => return Err(self.client.read_error(path, error).await),
            }
        }
        if bytes.len() as u64 != len {
            let reason = format!("{} bytes arrived of {len} announced", bytes.len());
            return Err(failed(&self.client.url, path, action::READ, reason));
        }
        Ok(bytes.freeze())
    }
}

#[async_trait]
impl Store for S3Store {
    fn url(&self) -> &str {
        &self.client.url
    }

    async fn put(&self, path: &ObjectPath, bytes: Bytes) -> Result<Created, StoreError> {
        if bytes.len() > 2 * PART_BYTES {
            let mut writer = self.create(path).await?;
            writer.write(bytes).await?;
            return writer.finish().await;
        }
        self.client.put(path, bytes).await
    }

    async fn create(&self, path: &ObjectPath) -> Result<Box<dyn ObjectWriter>, StoreError> {
        Ok(Box::new(S3Writer::new(self.client.clone(), path.clone())))
    }

    async fn get(&self, path: &ObjectPath, size_max: u64) -> Result<Bytes, StoreError> {
        let result = match self.get_ranged(path, None).await {
            Ok(result) => result,
            Err(error) => return Err(self.client.read_error(path, error).await),
        };
        if result.meta.size > size_max {
            return Err(too_large(&self.client.url, path, result.meta.size, size_max));
        }
        self.body(path, result).await
    }

    async fn get_range(&self, path: &ObjectPath, range: Range<u64>) -> Result<Bytes, StoreError> {
        // HTTP has no empty range.
        if range.is_empty() {
            let meta = self.head(path).await?;
            check_range(&self.client.url, path, &range, meta.size)?;
            return Ok(Bytes::new());
        }
        match self.get_ranged(path, Some(GetRange::Bounded(range.clone()))).await {
            Ok(result) => {
                check_range(&self.client.url, path, &range, result.meta.size)?;
                self.body(path, result).await
            }
            Err(error) => {
                // A start past the end is refused with 416, which tells nothing of the size.
                if errors::is_unsatisfiable_range(&error) {
                    let meta = self.head(path).await?;
                    check_range(&self.client.url, path, &range, meta.size)?;
                }
                Err(self.client.read_error(path, error).await)
            }
        }
    }

    async fn get_tail(&self, path: &ObjectPath, len: u64) -> Result<(Bytes, ObjectMeta), StoreError> {
        if len == 0 {
            return Ok((Bytes::new(), self.head(path).await?));
        }
        match self.get_ranged(path, Some(GetRange::Suffix(len))).await {
            Ok(result) => {
                let meta = self.client.meta(path.clone(), &result.meta);
                Ok((self.body(path, result).await?, meta))
            }
            Err(error) => {
                // An empty object has no last bytes: 416.
                if errors::is_unsatisfiable_range(&error) {
                    let meta = self.head(path).await?;
                    if meta.size == 0 {
                        return Ok((Bytes::new(), meta));
                    }
                }
                Err(self.client.read_error(path, error).await)
            }
        }
    }

    async fn head(&self, path: &ObjectPath) -> Result<ObjectMeta, StoreError> {
        match self.client.bucket.head(&self.client.key(path)).await {
            Ok(meta) => {
                self.client.saw_bucket();
                Ok(self.client.meta(path.clone(), &meta))
            }
            Err(error) => Err(self.client.read_error(path, error).await),
        }
    }

    async fn list_level(&self, prefix: Option<&ObjectPath>) -> Result<Listing, StoreError> {
        list::level(&self.client, prefix).await
    }

    async fn list_page(
        &self,
        prefix: Option<&ObjectPath>,
        after: Option<&ObjectPath>,
        limit: usize,
    ) -> Result<Vec<ObjectMeta>, StoreError> {
        list::page(&self.client, prefix, after, limit).await
    }

    async fn delete(&self, path: &ObjectPath) -> Result<(), StoreError> {
        match self.client.bucket.delete(&self.client.key(path)).await {
            Ok(()) => Ok(()),
            Err(error) => match self.client.answer(path, action::DELETE, error).await {
                StoreError::NotFound { .. } => Ok(()),
                error => Err(error),
            },
        }
    }
}

impl Client {
    /// Creates an object in one request.
    async fn put(&self, path: &ObjectPath, bytes: Bytes) -> Result<Created, StoreError> {
        let key: Key = self.key(path);
        let mut wait = Duration::from_millis(100);
        let mut attempt = 1;
        loop {
            let options =
                PutOptions { mode: PutMode::Create, attributes: self.attributes.clone(), ..PutOptions::default() };
            let error = match self.bucket.put_opts(&key, bytes.clone().into(), options).await {
                Ok(_) => {
                    self.saw_bucket();
                    return Ok(Created::New);
                }
                Err(error) => error,
            };
            if errors::is_exists(&error) {
                return Ok(Created::Exists);
            }
            // To repeat is safe: what the first request made answers "exists", never twice "new".
            if attempt == PUT_ATTEMPTS_MAX || !(errors::is_conflict(&error) || errors::is_transport(&error)) {
                return Err(self.write_error(path, error));
            }
            attempt += 1;
            tokio::time::sleep(wait).await;
            wait *= 2;
        }
    }
}
