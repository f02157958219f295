//! The contract between pgkeep and the places where its objects lie.

use crate::{ObjectPath, StoreError};
use async_trait::async_trait;
use bytes::Bytes;
use std::ops::Range;

/// What is known of an object without reading it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ObjectMeta {
    /// The object's name.
    pub path: ObjectPath,
    /// Its size in bytes.
    pub size: u64,
    /// When it was written, in milliseconds since 1970-01-01 UTC by the store's clock.
    pub modified_ms: i64,
}

/// Outcome of a conditional create.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Created {
    /// This call made the object; it is durable.
    New,
    /// An object of that name was there already and was not touched. The caller compares.
    Exists,
}

/// One level of a hierarchical listing, each list in ascending byte order of the path.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Listing {
    /// Objects directly below the prefix.
    pub objects: Vec<ObjectMeta>,
    /// Deeper prefixes ("directories") directly below the prefix.
    pub prefixes: Vec<ObjectPath>,
}

/// A place where objects lie.
///
/// What every implementation holds:
/// - an object is visible whole or not at all; a failed or abandoned write leaves nothing visible;
/// - after [`put`](Store::put) or [`ObjectWriter::finish`] returned, the object survives a crash
///   of this host and of the store;
/// - create never overwrites: of two that race, one gets [`Created::New`], the other
///   [`Created::Exists`];
/// - reads see every object whose create returned before (read-after-write), also in listings;
/// - [`StoreError::NotFound`] is said only when the store answered so, never for an outage;
/// - every call ends: retries, waiting and time are bounded.
///
/// Dropping a future cancels the call; a cancelled create may or may not have happened.
#[async_trait]
pub trait Store: Send + Sync + std::fmt::Debug {
    /// The URL as an operator would write it, without secrets.
    fn url(&self) -> &str;

    /// Creates an object if none of that name exists.
    async fn put(&self, path: &ObjectPath, bytes: Bytes) -> Result<Created, StoreError>;

    /// Begins an object that is written in parts. Nothing is visible before `finish`.
    async fn create(&self, path: &ObjectPath) -> Result<Box<dyn ObjectWriter>, StoreError>;

    /// Reads a whole object of at most `size_max` bytes; a larger one is an error
    /// ([`StoreError::Failed`]), so that a damaged or hostile object cannot take all memory.
    async fn get(&self, path: &ObjectPath, size_max: u64) -> Result<Bytes, StoreError>;

    /// Reads bytes `range.start..range.end`; [`StoreError::OutOfRange`] unless all are there.
    async fn get_range(&self, path: &ObjectPath, range: Range<u64>) -> Result<Bytes, StoreError>;

    /// Reads the last `len` bytes, or all when the object is shorter, and says its size.
    async fn get_tail(&self, path: &ObjectPath, len: u64) -> Result<(Bytes, ObjectMeta), StoreError>;

    /// Size and time of an object.
    async fn head(&self, path: &ObjectPath) -> Result<ObjectMeta, StoreError>;

    /// One level below `prefix` (the whole store's top level for `None`). A prefix under which
    /// nothing lies gives an empty listing, not an error.
    async fn list_level(&self, prefix: Option<&ObjectPath>) -> Result<Listing, StoreError>;

    /// Up to `limit` objects at any depth below `prefix`, in ascending byte order of the full
    /// path, starting strictly after the path `after`. Fewer than `limit` means that there are no more.
    async fn list_page(
        &self,
        prefix: Option<&ObjectPath>,
        after: Option<&ObjectPath>,
        limit: usize,
    ) -> Result<Vec<ObjectMeta>, StoreError>;

    /// Removes an object durably. Removing what is not there is success.
    async fn delete(&self, path: &ObjectPath) -> Result<(), StoreError>;

    /// Makes a log of `len` zero bytes, without a name as yet. None where objects cannot be written in place: only file
    /// systems can do that.
    async fn create_log(&self, len: u64) -> Result<Option<Box<dyn LogFile>>, StoreError> {
        let _ = len;
        Ok(None)
    }
}

/// An object that is written in place, from its beginning on: what is written to it is durable at the price of the bytes
/// alone. Unlike all other objects it is seen while it grows, and ends with zeros. Calls block. Dropping one that has no
/// name removes it.
pub trait LogFile: Send + std::fmt::Debug {
    /// Writes the first bytes and gives it its name, durably, if no object of that name exists.
    fn publish(&mut self, path: &ObjectPath, bytes: &[u8]) -> Result<Created, StoreError>;

    /// Writes bytes durably at an offset. After an error nothing more may be written to it.
    fn write(&mut self, offset: u64, bytes: &[u8]) -> Result<(), StoreError>;
}

/// An object being written in parts, one after the other. Dropping it without
/// [`finish`](ObjectWriter::finish) abandons the object: nothing becomes visible.
#[async_trait]
pub trait ObjectWriter: Send {
    /// Appends bytes. May return before they are stored; an implementation bounds what it
    /// buffers (32 MiB) and makes the caller wait beyond that.
    async fn write(&mut self, bytes: Bytes) -> Result<(), StoreError>;

    /// Makes the object durable and visible, if none of that name exists.
    async fn finish(self: Box<Self>) -> Result<Created, StoreError>;

    /// Gives up and removes what was stored so far.
    async fn abort(self: Box<Self>) -> Result<(), StoreError>;
}

/// A shared store is a store, so that wrappers take both.
#[async_trait]
impl<S: Store + ?Sized> Store for std::sync::Arc<S> {
    fn url(&self) -> &str {
        (**self).url()
    }

    async fn put(&self, path: &ObjectPath, bytes: Bytes) -> Result<Created, StoreError> {
        (**self).put(path, bytes).await
    }

    async fn create(&self, path: &ObjectPath) -> Result<Box<dyn ObjectWriter>, StoreError> {
        (**self).create(path).await
    }

    async fn get(&self, path: &ObjectPath, size_max: u64) -> Result<Bytes, StoreError> {
        (**self).get(path, size_max).await
    }

    async fn get_range(&self, path: &ObjectPath, range: Range<u64>) -> Result<Bytes, StoreError> {
        (**self).get_range(path, range).await
    }

    async fn get_tail(&self, path: &ObjectPath, len: u64) -> Result<(Bytes, ObjectMeta), StoreError> {
        (**self).get_tail(path, len).await
    }

    async fn head(&self, path: &ObjectPath) -> Result<ObjectMeta, StoreError> {
        (**self).head(path).await
    }

    async fn list_level(&self, prefix: Option<&ObjectPath>) -> Result<Listing, StoreError> {
        (**self).list_level(prefix).await
    }

    async fn list_page(
        &self,
        prefix: Option<&ObjectPath>,
        after: Option<&ObjectPath>,
        limit: usize,
    ) -> Result<Vec<ObjectMeta>, StoreError> {
        (**self).list_page(prefix, after, limit).await
    }

    async fn delete(&self, path: &ObjectPath) -> Result<(), StoreError> {
        (**self).delete(path).await
    }

    async fn create_log(&self, len: u64) -> Result<Option<Box<dyn LogFile>>, StoreError> {
        (**self).create_log(len).await
    }
}
