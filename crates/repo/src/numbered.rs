//! Facts that change, as numbered objects that never do: the highest number wins.

use crate::names::numbered;
use crate::object::{SMALL_OBJECT_MAX, get_whole, put_whole};
use crate::seal::Kind;
use crate::{Keyring, RepoError};
use serde::{Serialize, de::DeserializeOwned};
use store::{Created, ObjectPath, Store};

/// How many superseded objects are kept.
const KEEP: usize = 3;

/// The numbers there are below `prefix`, ascending.
pub(crate) async fn numbers(store: &dyn Store, prefix: &ObjectPath) -> Result<Vec<u32>, RepoError> {
    let listing = store.list_level(Some(prefix)).await?;
    let mut numbers: Vec<u32> = listing
        .objects
        .iter()
        .filter_map(|object| {
            let name = object.path.name();
            (name.len() >= 6 && name.bytes().all(|b| b.is_ascii_digit())).then(|| name.parse().ok()).flatten()
        })
        .collect();
    numbers.sort_unstable();
    Ok(numbers)
}

/// Reads JSON from an object.
pub(crate) async fn get_json<T: DeserializeOwned>(
    store: &dyn Store,
    keys: &Keyring,
    kind: Kind,
    name: &ObjectPath,
) -> Result<T, RepoError> {
    let payload = get_whole(store, keys, kind, name, SMALL_OBJECT_MAX).await?;
    serde_json::from_slice(&payload).map_err(|e| RepoError::damaged(name, format!("content: {e}")))
}

/// Writes JSON as an object, if none of that name exists.
pub(crate) async fn put_json<T: Serialize>(
    store: &dyn Store,
    keys: &Keyring,
    kind: Kind,
    name: &ObjectPath,
    value: &T,
) -> Result<Created, RepoError> {
    let payload = serde_json::to_vec(value).map_err(|e| RepoError::damaged(name, format!("cannot be written: {e}")))?;
    put_whole(store, keys, kind, name, &payload).await
}

/// The highest object of a series, with its number.
pub(crate) async fn latest<T: DeserializeOwned>(
    store: &dyn Store,
    keys: &Keyring,
    kind: Kind,
    prefix: &ObjectPath,
) -> Result<Option<(u32, T)>, RepoError> {
    // Between the listing and the read a newer one may come and the one seen be cleared away: look again then.
    for _ in 0..5 {
        let Some(&number) = numbers(store, prefix).await?.last() else {
            return Ok(None);
        };
        match get_json(store, keys, kind, &numbered(prefix, number)).await {
            Ok(value) => return Ok(Some((number, value))),
            Err(error) if error.is_not_found() => {}
            Err(error) => return Err(error),
        }
    }
    Err(RepoError::Conflict { path: prefix.clone() })
}

/// Writes the object after `previous`; `None` when somebody else did so first. Old ones are cleared away.
pub(crate) async fn append<T: Serialize>(
    store: &dyn Store,
    keys: &Keyring,
    kind: Kind,
    prefix: &ObjectPath,
    previous: Option<u32>,
    value: &T,
) -> Result<Option<u32>, RepoError> {
    let number = previous.unwrap_or(0) + 1;
    if put_json(store, keys, kind, &numbered(prefix, number), value).await? == Created::Exists {
        return Ok(None);
    }
    let known = numbers(store, prefix).await?;
    for &old in known.iter().rev().skip(KEEP) {
        // On write-once storage this is refused; old numbers do no harm.
        let _ = store.delete(&numbered(prefix, old)).await;
    }
    Ok(Some(number))
}
