//! A store in memory that does something of a test's before each call.

use async_trait::async_trait;
use bytes::Bytes;
use futures::future::BoxFuture;
use std::ops::Range;
use std::sync::Arc;
use store::{Created, Listing, MemoryStore, ObjectMeta, ObjectPath, ObjectWriter, Store, StoreError};

type Result<T> = std::result::Result<T, StoreError>;

/// Awaited before a call; told the object or prefix.
type Hook = Arc<dyn Fn(&str) -> BoxFuture<'static, ()> + Send + Sync>;

#[derive(Clone)]
pub(crate) struct Hooked {
    inner: MemoryStore,
    hook: Hook,
}

impl std::fmt::Debug for Hooked {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        self.inner.fmt(f)
    }
}

impl Hooked {
    pub(crate) fn new(
        inner: MemoryStore,
        hook: impl Fn(&str) -> BoxFuture<'static, ()> + Send + Sync + 'static,
    ) -> Self {
        Self { inner, hook: Arc::new(hook) }
    }

    async fn call(&self, path: Option<&ObjectPath>) {
        (self.hook)(path.map_or("", ObjectPath::as_str)).await;
    }
}

#[async_trait]
impl Store for Hooked {
    fn url(&self) -> &str {
        self.inner.url()
    }
    async fn put(&self, path: &ObjectPath, bytes: Bytes) -> Result<Created> {
        self.call(Some(path)).await;
        self.inner.put(path, bytes).await
    }
    async fn create(&self, path: &ObjectPath) -> Result<Box<dyn ObjectWriter>> {
        // Nothing is visible before it is finished.
        Ok(Box::new(HookedWriter { inner: self.inner.create(path).await?, store: self.clone(), path: path.clone() }))
    }
    async fn get(&self, path: &ObjectPath, size_max: u64) -> Result<Bytes> {
        self.call(Some(path)).await;
        self.inner.get(path, size_max).await
    }
    async fn get_range(&self, path: &ObjectPath, range: Range<u64>) -> Result<Bytes> {
        self.call(Some(path)).await;
        self.inner.get_range(path, range).await
    }
    async fn get_tail(&self, path: &ObjectPath, len: u64) -> Result<(Bytes, ObjectMeta)> {
        self.call(Some(path)).await;
        self.inner.get_tail(path, len).await
    }
    async fn head(&self, path: &ObjectPath) -> Result<ObjectMeta> {
        self.call(Some(path)).await;
        self.inner.head(path).await
    }
    async fn list_level(&self, prefix: Option<&ObjectPath>) -> Result<Listing> {
        self.call(prefix).await;
        self.inner.list_level(prefix).await
    }
    async fn list_page(
        &self,
        prefix: Option<&ObjectPath>,
        after: Option<&ObjectPath>,
        limit: usize,
    ) -> Result<Vec<ObjectMeta>> {
        self.call(prefix).await;
        self.inner.list_page(prefix, after, limit).await
    }
    async fn delete(&self, path: &ObjectPath) -> Result<()> {
        self.call(Some(path)).await;
        self.inner.delete(path).await
    }
}

struct HookedWriter {
    inner: Box<dyn ObjectWriter>,
    store: Hooked,
    path: ObjectPath,
}

#[async_trait]
impl ObjectWriter for HookedWriter {
    async fn write(&mut self, bytes: Bytes) -> Result<()> {
        self.inner.write(bytes).await
    }
    async fn finish(self: Box<Self>) -> Result<Created> {
        self.store.call(Some(&self.path)).await;
        self.inner.finish().await
    }
    async fn abort(self: Box<Self>) -> Result<()> {
        self.inner.abort().await
    }
}
