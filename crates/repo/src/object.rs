//! Sealed objects in a store: written whole or in parts, read whole or by ranges.

use crate::seal::{HEADER_LEN, Kind, Opener, Sealer, open_whole, seal_whole, sealed_range};
use crate::{Keyring, RepoError};
use bytes::Bytes;
use std::ops::Range;
use std::sync::Arc;
use store::{Created, ObjectPath, ObjectWriter, Store, StoreError};

/// The largest JSON object that is read (docs/format.md section 14), with its envelope.
pub(crate) const SMALL_OBJECT_MAX: u64 = 65 << 20;
/// Sealed bytes gathered before they are handed to the store.
const HAND_OVER_LEN: usize = 1 << 20;

/// Writes a payload that is in memory, if no object of that name exists.
pub(crate) async fn put_whole(
    store: &dyn Store,
    keys: &Keyring,
    kind: Kind,
    name: &ObjectPath,
    payload: &[u8],
) -> Result<Created, RepoError> {
    put_sealed(store, name, seal_whole(keys, kind, name, payload)?).await
}

/// Writes an object that is sealed already, if no object of that name exists.
pub(crate) async fn put_sealed(store: &dyn Store, name: &ObjectPath, object: Bytes) -> Result<Created, RepoError> {
    let header = object.slice(..HEADER_LEN);
    let result = store.put(name, object).await;
    whose(store, name, &header, result).await
}

/// Answers whether an object is the one that was just written. A reply may be lost and the write tried again, by us or
/// inside the store: then "exists" or an error is said of our own object. Its header, with a salt that no other write
/// has, tells.
async fn whose(
    store: &dyn Store,
    name: &ObjectPath,
    header: &[u8],
    result: Result<Created, StoreError>,
) -> Result<Created, RepoError> {
    if matches!(result, Ok(Created::New)) {
        return Ok(Created::New);
    }
    match store.get_range(name, 0..HEADER_LEN as u64).await {
        Ok(there) if there == header => Ok(Created::New),
        _ => Ok(result?),
    }
}

/// Reads a whole object of at most `size_max` bytes and gives its payload.
pub(crate) async fn get_whole(
    store: &dyn Store,
    keys: &Keyring,
    kind: Kind,
    name: &ObjectPath,
    size_max: u64,
) -> Result<Bytes, RepoError> {
    open_whole(keys, kind, name, &store.get(name, size_max).await?)
}

/// An object being written in parts.
pub struct ObjectSink {
    store: Arc<dyn Store>,
    name: ObjectPath,
    header: Bytes,
    sealer: Sealer,
    writer: Box<dyn ObjectWriter>,
    size: u64,
}

impl ObjectSink {
    /// Begins an object. Nothing is visible before [`finish`](Self::finish).
    pub(crate) async fn create(
        store: Arc<dyn Store>,
        keys: &Keyring,
        kind: Kind,
        name: ObjectPath,
    ) -> Result<Self, RepoError> {
        let sealer = Sealer::new(keys, kind, &name)?;
        let header = Bytes::copy_from_slice(sealer.header());
        let writer = store.create(&name).await?;
        Ok(Self { store, name, header, sealer, writer, size: 0 })
    }

    /// The object's name.
    pub fn name(&self) -> &ObjectPath {
        &self.name
    }

    /// Payload bytes written so far.
    pub fn payload_len(&self) -> u64 {
        self.sealer.payload_len()
    }

    /// Appends payload.
    pub async fn write(&mut self, payload: &[u8]) -> Result<(), RepoError> {
        self.sealer.push(payload)?;
        if self.sealer.ready_len() >= HAND_OVER_LEN {
            let ready = self.sealer.take();
            self.size += ready.len() as u64;
            self.writer.write(ready).await?;
        }
        Ok(())
    }

    /// Makes the object durable. Returns its size in bytes; an object that was there already is an
    /// error, since names written this way are never used twice.
    pub async fn finish(mut self) -> Result<u64, RepoError> {
        let rest = self.sealer.finish()?;
        self.size += rest.len() as u64;
        self.writer.write(rest).await?;
        let result = self.writer.finish().await;
        match whose(&*self.store, &self.name, &self.header, result).await? {
            Created::New => Ok(self.size),
            Created::Exists => Err(RepoError::Conflict { path: self.name }),
        }
    }

    /// Gives up; nothing becomes visible.
    pub async fn abort(self) -> Result<(), RepoError> {
        Ok(self.writer.abort().await?)
    }
}

/// Reads ranges of one object's payload.
pub struct ObjectReader {
    store: Arc<dyn Store>,
    name: ObjectPath,
    opener: Opener,
    /// The object's last bytes, kept from opening it: footers lie there.
    tail: Bytes,
}

impl ObjectReader {
    /// Opens an object by its last `tail_len` bytes, and its header where that is not among them.
    pub(crate) async fn open(
        store: Arc<dyn Store>,
        keys: &Keyring,
        kind: Kind,
        name: ObjectPath,
        tail_len: u64,
    ) -> Result<Self, RepoError> {
        let (tail, meta) = store.get_tail(&name, tail_len.max(HEADER_LEN as u64)).await?;
        let opener = if tail.len() as u64 == meta.size {
            Opener::new(keys, kind, &name, meta.size, &tail)?
        } else {
            let header = store.get_range(&name, 0..HEADER_LEN as u64).await?;
            Opener::new(keys, kind, &name, meta.size, &header)?
        };
        Ok(Self { store, name, opener, tail })
    }

    /// Opens an object of known size by its header alone.
    pub(crate) async fn open_sized(
        store: Arc<dyn Store>,
        keys: &Keyring,
        kind: Kind,
        name: ObjectPath,
        size: u64,
    ) -> Result<Self, RepoError> {
        let header = match store.get_range(&name, 0..HEADER_LEN as u64).await {
            Err(StoreError::OutOfRange { size, .. }) => {
                return Err(RepoError::damaged(&name, format!("only {size} bytes, shorter than a header")));
            }
            other => other?,
        };
        let opener = Opener::new(keys, kind, &name, size, &header)?;
        Ok(Self { store, name, opener, tail: Bytes::new() })
    }

    /// The object's name.
    pub fn name(&self) -> &ObjectPath {
        &self.name
    }

    /// Length of the payload in bytes.
    pub fn payload_len(&self) -> u64 {
        self.opener.payload_len()
    }

    /// Size of the whole object in bytes.
    pub fn size(&self) -> u64 {
        self.opener.size()
    }

    /// Reads payload bytes.
    pub async fn read(&self, range: Range<u64>) -> Result<Bytes, RepoError> {
        if range.start > range.end || range.end > self.payload_len() {
            let reason =
                format!("payload bytes {}..{} are referred to, it has {}", range.start, range.end, self.payload_len());
            return Err(RepoError::damaged(&self.name, reason));
        }
        if range.is_empty() {
            return Ok(Bytes::new());
        }
        let sealed = sealed_range(&range, self.payload_len());
        let tail_start = self.size() - self.tail.len() as u64;
        let bytes = if sealed.start >= tail_start {
            self.tail.slice((sealed.start - tail_start) as usize..(sealed.end - tail_start) as usize)
        } else {
            match self.store.get_range(&self.name, sealed).await {
                Err(StoreError::OutOfRange { size, .. }) => {
                    let reason = format!("has {size} bytes, {} are expected: it is cut off", self.size());
                    return Err(RepoError::damaged(&self.name, reason));
                }
                other => other?,
            }
        };
        self.opener.open(&range, &bytes)
    }
}
