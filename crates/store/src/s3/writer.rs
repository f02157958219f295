//! Writing a large object to S3: parts are uploaded beside the caller, a bounded number at once.

use super::client::Client;
use super::errors;
use crate::error::{action, failed};
use crate::{Created, ObjectPath, ObjectWriter, StoreError};
use async_trait::async_trait;
use bytes::{Bytes, BytesMut};
use object_store::multipart::{MultipartStore, PartId};
use object_store::path::Path as Key;
use object_store::{ObjectStoreExt, PutMultipartOptions, PutPayload};
use std::collections::BTreeMap;
use std::sync::Arc;
use tokio::task::JoinSet;

/// Bytes of a part.
pub(super) const PART_BYTES: usize = 8 * 1024 * 1024;

/// Parts under way at once; with the one being filled, 32 MiB.
const PARTS_UNDER_WAY_MAX: usize = 3;

/// Parts an upload may have on S3; so an object may have 78 GiB.
const PARTS_MAX: usize = 10_000;

pub(super) struct S3Writer {
    upload: Upload,
    path: ObjectPath,
    key: Key,
    buffer: BytesMut,
    parts_begun: usize,
    done: BTreeMap<usize, PartId>,
}

impl S3Writer {
    pub(super) fn new(client: Arc<Client>, path: ObjectPath) -> Self {
        let key = client.key(&path);
        let upload = Upload { client, key: key.clone(), id: None, under_way: JoinSet::new() };
        Self { upload, path, key, buffer: BytesMut::new(), parts_begun: 0, done: BTreeMap::new() }
    }

    fn client(&self) -> &Client {
        &self.upload.client
    }

    /// Begins to upload a part once there is room.
    async fn begin_part(&mut self, bytes: Bytes) -> Result<(), StoreError> {
        while self.upload.under_way.len() >= PARTS_UNDER_WAY_MAX {
            self.wait_for_part().await?;
        }
        if self.parts_begun == PARTS_MAX {
            let reason = format!("an object on S3 has at most {PARTS_MAX} parts of {PART_BYTES} bytes");
            return Err(failed(&self.client().url, &self.path, action::WRITE, reason));
        }
        let id = match &self.upload.id {
            Some(id) => id.clone(),
            None => {
                let options =
                    PutMultipartOptions { attributes: self.client().attributes.clone(), ..Default::default() };
                let begun = self.client().bucket.create_multipart_opts(&self.key, options).await;
                let id = begun.map_err(|error| self.client().write_error(&self.path, error))?;
                self.upload.id.insert(id).clone()
            }
        };
        let (client, key, index) = (self.upload.client.clone(), self.key.clone(), self.parts_begun);
        self.parts_begun += 1;
        self.upload.under_way.spawn(async move {
            let part = client.bucket.put_part(&key, &id, index, PutPayload::from(bytes)).await?;
            Ok((index, part))
        });
        Ok(())
    }

    /// Waits for one of the parts under way, if there is any.
    async fn wait_for_part(&mut self) -> Result<(), StoreError> {
        match self.upload.under_way.join_next().await {
            None => Ok(()),
            Some(Ok(Ok((index, part)))) => {
                self.done.insert(index, part);
                Ok(())
            }
            Some(Ok(Err(error))) => Err(self.client().write_error(&self.path, error)),
            Some(Err(join)) => Err(failed(&self.client().url, &self.path, action::WRITE, join.to_string())),
        }
    }

    /// Makes the parts an object, unless there is one of that name.
    async fn complete(&mut self, id: &str) -> Result<Created, StoreError> {
        // For services that ignore the condition on the completion.
        if self.exists().await? {
            return Ok(Created::Exists);
        }
        let parts: Vec<_> = std::mem::take(&mut self.done).into_values().collect();
        if parts.len() != self.parts_begun {
            let reason = "a part of it failed before";
            return Err(failed(&self.client().url, &self.path, action::WRITE, reason));
        }
        match self.client().create_only.complete_multipart(&self.key, &id.to_owned(), parts).await {
            Ok(_) => {
                self.upload.id = None;
                Ok(Created::New)
            }
            Err(error) if errors::is_precondition(&error) => Ok(Created::Exists),
            Err(error) => {
                // The completion was done, its reply lost, and the repetition found no upload.
                if errors::is_missing_upload(&error) && self.exists().await? {
                    return Ok(Created::Exists);
                }
                Err(self.client().write_error(&self.path, error))
            }
        }
    }

    async fn exists(&self) -> Result<bool, StoreError> {
        match self.client().bucket.head(&self.key).await {
            Ok(_) => Ok(true),
            Err(error) => match self.client().answer(&self.path, action::WRITE, error).await {
                StoreError::NotFound { .. } => Ok(false),
                error => Err(error),
            },
        }
    }
}

#[async_trait]
impl ObjectWriter for S3Writer {
    async fn write(&mut self, mut bytes: Bytes) -> Result<(), StoreError> {
        // A part is sent only when more follows, so that an object of one part is one request.
        while self.buffer.len() + bytes.len() > PART_BYTES {
            let part = if self.buffer.is_empty() {
                bytes.split_to(PART_BYTES)
            } else {
                self.buffer.extend_from_slice(&bytes.split_to(PART_BYTES - self.buffer.len()));
                self.buffer.split().freeze()
            };
            self.begin_part(part).await?;
        }
        if self.buffer.is_empty() {
            self.buffer.reserve(bytes.len());
        }
        self.buffer.extend_from_slice(&bytes);
        Ok(())
    }

    async fn finish(mut self: Box<Self>) -> Result<Created, StoreError> {
        let last = self.buffer.split().freeze();
        if self.parts_begun == 0 {
            return self.client().put(&self.path, last).await;
        }
        self.begin_part(last).await?;
        while !self.upload.under_way.is_empty() {
            self.wait_for_part().await?;
        }
        let Some(id) = self.upload.id.clone() else {
            return Err(failed(&self.client().url, &self.path, action::WRITE, "the upload was never begun"));
        };
        let created = self.complete(&id).await?;
        if created == Created::Exists {
            self.upload.remove_quietly().await;
        }
        Ok(created)
    }

    async fn abort(mut self: Box<Self>) -> Result<(), StoreError> {
        let removed = self.upload.remove().await;
        removed.map_err(|error| errors::map(&self.client().url, &self.path, action::DELETE, error))
    }
}

/// An upload begun on the service; dropping it unfinished removes it.
struct Upload {
    client: Arc<Client>,
    key: Key,
    id: Option<String>,
    under_way: JoinSet<Result<(usize, PartId), object_store::Error>>,
}

impl Upload {
    async fn remove(&mut self) -> Result<(), object_store::Error> {
        // A part that arrives after the upload was removed stays (and costs); so they are waited
        // for, even where their outcome no longer matters.
        while self.under_way.join_next().await.is_some() {}
        let Some(id) = self.id.take() else { return Ok(()) };
        match self.client.bucket.abort_multipart(&self.key, &id).await {
            Err(error) if !errors::is_missing_upload(&error) => Err(error),
            _ => Ok(()),
        }
    }

    /// Removes it as well as that goes: what stays is invisible, and a lifecycle rule takes it.
    async fn remove_quietly(&mut self) {
        if let Err(error) = self.remove().await {
            tracing::warn!(store = self.client.url, key = %self.key, %error, "an unfinished upload stays behind");
        }
    }
}

impl Drop for Upload {
    fn drop(&mut self) {
        let Some(id) = self.id.take() else { return };
        let Ok(runtime) = tokio::runtime::Handle::try_current() else { return };
        let (client, key) = (self.client.clone(), self.key.clone());
        let under_way = std::mem::take(&mut self.under_way);
        runtime.spawn(async move { Upload { client, key, id: Some(id), under_way }.remove_quietly().await });
    }
}
