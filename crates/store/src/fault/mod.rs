//! A store that goes wrong on purpose, by a plan: for tests of everything above a store.
//!
//! Deterministic: the same calls in the same order meet the same faults. Calls are counted in the
//! order they begin. A test runs once with an empty plan, then once for each call it counted.

mod plan;

pub use plan::{Call, CallKind, Fault, What, When};

use crate::error::{action, failed};
use crate::{Created, Listing, ObjectMeta, ObjectPath, ObjectWriter, Store, StoreError};
use async_trait::async_trait;
use bytes::{Bytes, BytesMut};
use plan::Plan;
use std::ops::Range;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// Wraps a store and lets calls go wrong. Clones share the plan and the log.
#[derive(Debug, Clone)]
pub struct FaultStore<S> {
    inner: S,
    shared: Arc<Shared>,
}

#[derive(Debug)]
struct Shared {
    url: String,
    plan: Mutex<Plan>,
}

impl<S: Store> FaultStore<S> {
    /// Wraps `inner`; without faults it only counts and logs.
    pub fn new(inner: S, faults: Vec<Fault>) -> Self {
        let shared = Shared { url: inner.url().to_owned(), plan: Mutex::new(Plan::new(faults)) };
        Self { inner, shared: Arc::new(shared) }
    }

    /// The store inside, which does not go wrong.
    pub fn inner(&self) -> &S {
        &self.inner
    }

    /// The calls so far.
    pub fn calls(&self) -> Vec<Call> {
        self.shared.plan().calls().to_vec()
    }

    /// How many calls there were.
    pub fn call_count(&self) -> usize {
        self.shared.plan().calls().len()
    }

    /// Whether any fault has happened: a test whose fault never did has tested nothing.
    pub fn any_fault_happened(&self) -> bool {
        self.shared.plan().calls().iter().any(|call| call.fault.is_some())
    }

    /// Adds a fault; its calls are counted from now.
    pub fn add_fault(&self, fault: Fault) {
        self.shared.plan().add(fault);
    }

    /// Lets everything go right from now on.
    pub fn heal(&self) {
        self.shared.plan().clear();
    }
}

impl Shared {
    fn plan(&self) -> MutexGuard<'_, Plan> {
        self.plan.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Notes a call. What all calls have in common happens here; the rest is left to the call.
    async fn begin(&self, kind: CallKind, path: &str) -> Result<Option<What>, StoreError> {
        // The lock is gone before anything waits.
        let what = self.plan().note(kind, path);
        let action = action_of(kind);
        match what {
            Some(What::Stall) => std::future::pending().await,
            Some(What::FailBefore) => Err(self.failed(kind, path)),
            Some(What::Deny) => Err(StoreError::Denied {
                store: self.url.clone(),
                path: path.to_owned(),
                action,
                source: "the plan of faults refuses it".into(),
            }),
            Some(What::Full) if action == action::WRITE => {
                Err(StoreError::Full { store: self.url.clone(), path: path.to_owned() })
            }
            Some(What::Full) => Err(self.failed(kind, path)),
            what => Ok(what),
        }
    }

    fn failed(&self, kind: CallKind, path: &str) -> StoreError {
        failed(&self.url, path, action_of(kind), format!("the plan of faults broke this {kind:?}"))
    }

    /// The answer of a read: altered, or lost.
    fn read<T>(
        &self,
        call: (CallKind, &ObjectPath),
        what: Option<What>,
        answer: T,
        alter: impl FnOnce(What, T) -> T,
    ) -> Result<T, StoreError> {
        match what {
            Some(What::FailAfter | What::Tear) => Err(self.failed(call.0, call.1.as_str())),
            Some(What::Pretend) => Err(StoreError::NotFound { store: self.url.clone(), path: call.1.clone() }),
            Some(what) => Ok(alter(what, answer)),
            None => Ok(answer),
        }
    }

    /// The answer of a listing: altered, or lost.
    fn list<T: Default>(
        &self,
        kind: CallKind,
        prefix: &str,
        what: Option<What>,
        answer: T,
        alter: impl FnOnce(What, T) -> T,
    ) -> Result<T, StoreError> {
        match what {
            Some(What::FailAfter | What::Tear) => Err(self.failed(kind, prefix)),
            Some(What::Pretend) => Ok(T::default()),
            Some(what) => Ok(alter(what, answer)),
            None => Ok(answer),
        }
    }
}

fn action_of(kind: CallKind) -> &'static str {
    match kind {
        CallKind::Put | CallKind::Create | CallKind::Write | CallKind::Finish | CallKind::Abort => action::WRITE,
        CallKind::Get | CallKind::GetRange | CallKind::GetTail | CallKind::Head => action::READ,
        CallKind::ListLevel | CallKind::ListPage => action::LIST,
        CallKind::Delete => action::DELETE,
    }
}

fn alter_bytes(what: What, bytes: Bytes) -> Bytes {
    match what {
        What::Truncate => bytes.slice(..bytes.len() / 2),
        What::Corrupt => {
            let mut bytes = BytesMut::from(&bytes[..]);
            let middle = bytes.len() / 2;
            if let Some(byte) = bytes.get_mut(middle) {
                *byte ^= 0x10;
            }
            bytes.freeze()
        }
        _ => bytes,
    }
}

fn alter_meta(what: What, meta: ObjectMeta) -> ObjectMeta {
    match what {
        What::Truncate => ObjectMeta { size: meta.size / 2, ..meta },
        What::Corrupt => ObjectMeta { size: meta.size + 1, ..meta },
        _ => meta,
    }
}

fn alter_metas(what: What, mut metas: Vec<ObjectMeta>) -> Vec<ObjectMeta> {
    match what {
        What::Truncate => metas.truncate(metas.len() / 2),
        What::Corrupt => metas = metas.into_iter().map(|meta| alter_meta(what, meta)).collect(),
        _ => {}
    }
    metas
}

#[async_trait]
impl<S: Store> Store for FaultStore<S> {
    fn url(&self) -> &str {
        &self.shared.url
    }

    async fn put(&self, path: &ObjectPath, bytes: Bytes) -> Result<Created, StoreError> {
        let lost = || self.shared.failed(CallKind::Put, path.as_str());
        match self.shared.begin(CallKind::Put, path.as_str()).await? {
            Some(What::Tear) => {
                let mut writer = self.inner.create(path).await?;
                writer.write(bytes.slice(..bytes.len() / 2)).await?;
                drop(writer);
                Err(lost())
            }
            Some(What::FailAfter) => {
                self.inner.put(path, bytes).await?;
                Err(lost())
            }
            Some(What::Pretend) => Ok(Created::New),
            Some(what) => self.inner.put(path, alter_bytes(what, bytes)).await,
            None => self.inner.put(path, bytes).await,
        }
    }

    async fn create(&self, path: &ObjectPath) -> Result<Box<dyn ObjectWriter>, StoreError> {
        let what = self.shared.begin(CallKind::Create, path.as_str()).await?;
        let inner = self.inner.create(path).await?;
        match what {
            Some(What::FailAfter | What::Tear | What::Pretend) => {
                drop(inner);
                Err(self.shared.failed(CallKind::Create, path.as_str()))
            }
            _ => {
                let shared = self.shared.clone();
                Ok(Box::new(FaultWriter { inner, shared, path: path.clone(), held: Bytes::new(), broken: false }))
            }
        }
    }

    async fn get(&self, path: &ObjectPath, size_max: u64) -> Result<Bytes, StoreError> {
        let what = self.shared.begin(CallKind::Get, path.as_str()).await?;
        let bytes = self.inner.get(path, size_max).await?;
        self.shared.read((CallKind::Get, path), what, bytes, alter_bytes)
    }

    async fn get_range(&self, path: &ObjectPath, range: Range<u64>) -> Result<Bytes, StoreError> {
        let what = self.shared.begin(CallKind::GetRange, path.as_str()).await?;
        let bytes = self.inner.get_range(path, range).await?;
        self.shared.read((CallKind::GetRange, path), what, bytes, alter_bytes)
    }

    async fn get_tail(&self, path: &ObjectPath, len: u64) -> Result<(Bytes, ObjectMeta), StoreError> {
        let what = self.shared.begin(CallKind::GetTail, path.as_str()).await?;
        let tail = self.inner.get_tail(path, len).await?;
        self.shared.read((CallKind::GetTail, path), what, tail, |what, (bytes, meta)| (alter_bytes(what, bytes), meta))
    }

    async fn head(&self, path: &ObjectPath) -> Result<ObjectMeta, StoreError> {
        let what = self.shared.begin(CallKind::Head, path.as_str()).await?;
        let meta = self.inner.head(path).await?;
        self.shared.read((CallKind::Head, path), what, meta, alter_meta)
    }

    async fn list_level(&self, prefix: Option<&ObjectPath>) -> Result<Listing, StoreError> {
        let name = prefix.map_or("", ObjectPath::as_str);
        let what = self.shared.begin(CallKind::ListLevel, name).await?;
        let listing = self.inner.list_level(prefix).await?;
        self.shared.list(CallKind::ListLevel, name, what, listing, |what, mut listing| {
            listing.objects = alter_metas(what, listing.objects);
            if what == What::Truncate {
                listing.prefixes.truncate(listing.prefixes.len() / 2);
            }
            listing
        })
    }

    async fn list_page(
        &self,
        prefix: Option<&ObjectPath>,
        after: Option<&ObjectPath>,
        limit: usize,
    ) -> Result<Vec<ObjectMeta>, StoreError> {
        let name = prefix.map_or("", ObjectPath::as_str);
        let what = self.shared.begin(CallKind::ListPage, name).await?;
        let page = self.inner.list_page(prefix, after, limit).await?;
        self.shared.list(CallKind::ListPage, name, what, page, alter_metas)
    }

    async fn delete(&self, path: &ObjectPath) -> Result<(), StoreError> {
        let lost = || self.shared.failed(CallKind::Delete, path.as_str());
        match self.shared.begin(CallKind::Delete, path.as_str()).await? {
            Some(What::Tear) => Err(lost()),
            Some(What::FailAfter) => {
                self.inner.delete(path).await?;
                Err(lost())
            }
            Some(What::Pretend) => Ok(()),
            _ => self.inner.delete(path).await,
        }
    }
}

struct FaultWriter {
    inner: Box<dyn ObjectWriter>,
    shared: Arc<Shared>,
    path: ObjectPath,
    /// The newest bytes, held back so that a lying `finish` has something to lose.
    held: Bytes,
    /// A `write` failed: this writer can no longer make the object whole.
    broken: bool,
}

#[async_trait]
impl ObjectWriter for FaultWriter {
    async fn write(&mut self, bytes: Bytes) -> Result<(), StoreError> {
        let lost = self.shared.failed(CallKind::Write, self.path.as_str());
        let what = match self.shared.begin(CallKind::Write, self.path.as_str()).await {
            Ok(what) => what,
            Err(error) => {
                self.broken = true;
                return Err(error);
            }
        };
        match what {
            Some(What::FailAfter | What::Tear) => {
                self.broken = true;
                return Err(lost);
            }
            Some(What::Pretend) => return Ok(()),
            _ => {}
        }
        let bytes = what.map_or(bytes.clone(), |what| alter_bytes(what, bytes));
        self.inner.write(std::mem::replace(&mut self.held, bytes)).await
    }

    async fn finish(mut self: Box<Self>) -> Result<Created, StoreError> {
        let what = self.shared.begin(CallKind::Finish, self.path.as_str()).await?;
        let lost = self.shared.failed(CallKind::Finish, self.path.as_str());
        if self.broken {
            return Err(failed(&self.shared.url, &self.path, action::WRITE, "an earlier write of this object failed"));
        }
        match what {
            Some(What::Tear) => return Err(lost),
            Some(What::Pretend) => {
                self.inner.abort().await?;
                return Ok(Created::New);
            }
            _ => {}
        }
        let held = std::mem::take(&mut self.held);
        let held = what.map_or(held.clone(), |what| alter_bytes(what, held));
        self.inner.write(held).await?;
        let created = self.inner.finish().await?;
        if what == Some(What::FailAfter) { Err(lost) } else { Ok(created) }
    }

    async fn abort(self: Box<Self>) -> Result<(), StoreError> {
        let what = self.shared.begin(CallKind::Abort, self.path.as_str()).await?;
        self.inner.abort().await?;
        match what {
            Some(What::FailAfter | What::Tear) => Err(self.shared.failed(CallKind::Abort, self.path.as_str())),
            _ => Ok(()),
        }
    }
}
