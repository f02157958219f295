//! A store in memory, for tests: the contract of [`Store`] without a disk.

use crate::error::{action, check_range, failed, too_large};
use crate::{Created, Listing, ObjectMeta, ObjectPath, ObjectWriter, Store, StoreError};
use async_trait::async_trait;
use bytes::{Bytes, BytesMut};
use std::collections::BTreeMap;
use std::fmt;
use std::ops::Bound;
use std::ops::Range;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{SystemTime, UNIX_EPOCH};

/// Milliseconds since 1970-01-01 UTC, as a store's clock gives them.
type Clock = Arc<dyn Fn() -> i64 + Send + Sync>;

/// Objects by path, with their times. Clones share the objects.
#[derive(Clone)]
pub struct MemoryStore {
    inner: Arc<Inner>,
}

struct Inner {
    objects: Mutex<BTreeMap<ObjectPath, (Bytes, i64)>>,
    clock: Clock,
}

/// How the store is named in errors.
const URL: &str = "memory:";

impl MemoryStore {
    /// An empty store on the system's clock.
    #[expect(clippy::new_without_default, reason = "a hidden default store helps nobody")]
    pub fn new() -> Self {
        Self::with_clock(|| {
            let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
            i64::try_from(since.as_millis()).unwrap_or(i64::MAX)
        })
    }

    /// An empty store whose times come from `clock`, in milliseconds since 1970-01-01 UTC.
    pub fn with_clock(clock: impl Fn() -> i64 + Send + Sync + 'static) -> Self {
        Self { inner: Arc::new(Inner { objects: Mutex::default(), clock: Arc::new(clock) }) }
    }

    /// Replaces an object's bytes whatever was there: damage, for tests.
    pub fn damage(&self, path: &ObjectPath, bytes: Bytes) {
        let now = (self.inner.clock)();
        let mut objects = self.objects();
        let modified = objects.get(path).map_or(now, |(_, modified)| *modified);
        objects.insert(path.clone(), (bytes, modified));
    }

    /// A copy of the store as it is now, on the same clock.
    pub fn snapshot(&self) -> Self {
        let objects = self.objects().clone();
        Self { inner: Arc::new(Inner { objects: Mutex::new(objects), clock: self.inner.clock.clone() }) }
    }

    fn objects(&self) -> MutexGuard<'_, BTreeMap<ObjectPath, (Bytes, i64)>> {
        // The map is whole between any two of its calls, so a panicking test leaves it usable.
        self.inner.objects.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn insert(&self, path: &ObjectPath, bytes: Bytes) -> Created {
        let now = (self.inner.clock)();
        let mut objects = self.objects();
        if objects.contains_key(path) {
            return Created::Exists;
        }
        objects.insert(path.clone(), (bytes, now));
        Created::New
    }

    fn find(&self, path: &ObjectPath) -> Result<(Bytes, ObjectMeta), StoreError> {
        let objects = self.objects();
        let Some((bytes, modified_ms)) = objects.get(path) else {
            return Err(StoreError::NotFound { store: URL.to_owned(), path: path.clone() });
        };
        Ok((bytes.clone(), meta(path, bytes, *modified_ms)))
    }
}

fn meta(path: &ObjectPath, bytes: &Bytes, modified_ms: i64) -> ObjectMeta {
    ObjectMeta { path: path.clone(), size: bytes.len() as u64, modified_ms }
}

impl fmt::Debug for MemoryStore {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("MemoryStore").field("objects", &self.objects().len()).finish()
    }
}

#[async_trait]
impl Store for MemoryStore {
    fn url(&self) -> &str {
        URL
    }

    async fn put(&self, path: &ObjectPath, bytes: Bytes) -> Result<Created, StoreError> {
        Ok(self.insert(path, bytes))
    }

    async fn create(&self, path: &ObjectPath) -> Result<Box<dyn ObjectWriter>, StoreError> {
        Ok(Box::new(MemoryWriter { store: self.clone(), path: path.clone(), bytes: BytesMut::new() }))
    }

    async fn get(&self, path: &ObjectPath, size_max: u64) -> Result<Bytes, StoreError> {
        let (bytes, meta) = self.find(path)?;
        if meta.size > size_max {
            return Err(too_large(URL, path, meta.size, size_max));
        }
        Ok(bytes)
    }

    async fn get_range(&self, path: &ObjectPath, range: Range<u64>) -> Result<Bytes, StoreError> {
        let (bytes, meta) = self.find(path)?;
        check_range(URL, path, &range, meta.size)?;
        Ok(bytes.slice(range.start as usize..range.end as usize))
    }

    async fn get_tail(&self, path: &ObjectPath, len: u64) -> Result<(Bytes, ObjectMeta), StoreError> {
        let (bytes, meta) = self.find(path)?;
        let start = meta.size.saturating_sub(len);
        Ok((bytes.slice(start as usize..), meta))
    }

    async fn head(&self, path: &ObjectPath) -> Result<ObjectMeta, StoreError> {
        Ok(self.find(path)?.1)
    }

    async fn list_level(&self, prefix: Option<&ObjectPath>) -> Result<Listing, StoreError> {
        let mut listing = Listing::default();
        for (path, (bytes, modified_ms)) in self.objects().iter() {
            let Some(below) = below(path, prefix) else {
                continue;
            };
            let Some((part, _)) = below.split_once('/') else {
                listing.objects.push(meta(path, bytes, *modified_ms));
                continue;
            };
            let deeper = match prefix {
                Some(prefix) => prefix.join(part),
                None => ObjectPath::new(part),
            };
            let deeper = deeper.map_err(|reason| failed(URL, path, action::LIST, reason))?;
            if listing.prefixes.last() != Some(&deeper) {
                listing.prefixes.push(deeper);
            }
        }
        // The map is ordered by whole paths, where `a-b/x` stands before `a/x`.
        listing.prefixes.sort();
        listing.prefixes.dedup();
        Ok(listing)
    }

    async fn list_page(
        &self,
        prefix: Option<&ObjectPath>,
        after: Option<&ObjectPath>,
        limit: usize,
    ) -> Result<Vec<ObjectMeta>, StoreError> {
        let start = after.map_or(Bound::Unbounded, Bound::Excluded);
        let objects = self.objects();
        let page = objects
            .range::<ObjectPath, _>((start, Bound::Unbounded))
            .filter(|(path, _)| below(path, prefix).is_some())
            .take(limit)
            .map(|(path, (bytes, modified_ms))| meta(path, bytes, *modified_ms))
            .collect();
        Ok(page)
    }

    async fn delete(&self, path: &ObjectPath) -> Result<(), StoreError> {
        self.objects().remove(path);
        Ok(())
    }
}

/// What remains of `path` below `prefix`, or all of it without one.
fn below<'a>(path: &'a ObjectPath, prefix: Option<&ObjectPath>) -> Option<&'a str> {
    match prefix {
        Some(prefix) => path.below(prefix),
        None => Some(path.as_str()),
    }
}

struct MemoryWriter {
    store: MemoryStore,
    path: ObjectPath,
    bytes: BytesMut,
}

#[async_trait]
impl ObjectWriter for MemoryWriter {
    async fn write(&mut self, bytes: Bytes) -> Result<(), StoreError> {
        self.bytes.extend_from_slice(&bytes);
        Ok(())
    }

    async fn finish(self: Box<Self>) -> Result<Created, StoreError> {
        Ok(self.store.insert(&self.path, self.bytes.freeze()))
    }

    async fn abort(self: Box<Self>) -> Result<(), StoreError> {
        Ok(())
    }
}
