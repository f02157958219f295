//! One suite for every store: what [`store::Store`] promises.

#![allow(clippy::unwrap_used, reason = "helpers of tests too")]

use bytes::Bytes;
use futures::future::join_all;
use std::collections::BTreeSet;
use std::sync::Arc;
use store::{
    Created, FaultStore, LocalStore, MemoryStore, ObjectPath, S3Store, Secret, Store, StoreError, StoreOptions,
};
use testkit::s3::S3Server;

const MIB: usize = 1024 * 1024;

fn path(text: &str) -> ObjectPath {
    ObjectPath::new(text).unwrap()
}

/// Bytes that differ at every place and from seed to seed.
fn sample(len: usize, seed: u64) -> Bytes {
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    let mut bytes = Vec::with_capacity(len + 8);
    while bytes.len() < len {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        bytes.extend_from_slice(&state.to_le_bytes());
    }
    bytes.truncate(len);
    bytes.into()
}

async fn names(store: &dyn Store) -> Vec<String> {
    let page = store.list_page(None, None, 10_000).await.unwrap();
    page.into_iter().map(|meta| meta.path.to_string()).collect()
}

async fn write_in_parts(store: &dyn Store, path: &ObjectPath, bytes: &Bytes, step: usize) -> Created {
    let mut writer = store.create(path).await.unwrap();
    for start in (0..bytes.len()).step_by(step) {
        writer.write(bytes.slice(start..bytes.len().min(start + step))).await.unwrap();
    }
    writer.finish().await.unwrap()
}

async fn create_never_overwrites(store: &dyn Store) {
    let name = path("a/object");
    assert_eq!(store.put(&name, "first".into()).await.unwrap(), Created::New);
    assert_eq!(store.put(&name, "second".into()).await.unwrap(), Created::Exists);
    assert_eq!(store.get(&name, 100).await.unwrap(), "first");
    assert_eq!(write_in_parts(store, &name, &sample(100, 1), 10).await, Created::Exists);
    assert_eq!(write_in_parts(store, &name, &sample(20 * MIB, 1), MIB).await, Created::Exists);
    assert_eq!(store.get(&name, 100).await.unwrap(), "first");
    assert_eq!(names(store).await, ["a/object"]);
    // A name that is free again can be taken again.
    store.delete(&name).await.unwrap();
    assert_eq!(store.put(&name, "third".into()).await.unwrap(), Created::New);
    assert_eq!(store.get(&name, 100).await.unwrap(), "third");
}

async fn one_of_many_creators_wins(store: &dyn Store) {
    for round in 0..4 {
        let name = path(&format!("race/{round}/deep/object"));
        let creators = (0..16u64).map(|number| {
            let name = &name;
            async move {
                let bytes = sample(1000, number);
                let created = if number % 2 == 0 {
                    store.put(name, bytes).await.unwrap()
                } else {
                    write_in_parts(store, name, &bytes, 300).await
                };
                (number, created)
            }
        });
        let outcomes = join_all(creators).await;
        let winners: Vec<_> = outcomes.iter().filter(|(_, created)| *created == Created::New).collect();
        assert_eq!(winners.len(), 1, "round {round}: {outcomes:?}");
        assert_eq!(store.get(&name, 1000).await.unwrap(), sample(1000, winners[0].0));
    }
}

async fn big_creators_race_too(store: &dyn Store) {
    let name = path("big/race");
    let creators = (0..4u64).map(|number| {
        let name = &name;
        async move { write_in_parts(store, name, &sample(9 * MIB, number), 3 * MIB).await }
    });
    let outcomes = join_all(creators).await;
    let winners: Vec<_> = (0..4).filter(|number| outcomes[*number] == Created::New).collect();
    assert_eq!(winners.len(), 1, "{outcomes:?}");
    assert!(store.get(&name, 9 * MIB as u64).await.unwrap() == sample(9 * MIB, winners[0] as u64));
}

async fn ranges_and_tails(store: &dyn Store) {
    let name = path("ranges");
    let bytes = sample(1000, 7);
    store.put(&name, bytes.clone()).await.unwrap();
    for range in [0..1000, 0..1, 999..1000, 500..700, 0..0, 1000..1000, 17..17] {
        let expect = bytes.slice(range.start as usize..range.end as usize);
        assert_eq!(store.get_range(&name, range.clone()).await.unwrap(), expect, "{range:?}");
    }
    #[expect(clippy::reversed_empty_ranges, reason = "a wrong range is what is tested")]
    for range in [0..1001, 999..1001, 1000..1001, 1001..1001, 5000..6000, 7..3] {
        match store.get_range(&name, range.clone()).await {
            Err(StoreError::OutOfRange { start, end, size, .. }) => {
                assert_eq!((start, end, size), (range.start, range.end, 1000));
            }
            other => panic!("{range:?}: {other:?}"),
        }
    }
    for (len, expect) in [(0, 1000..1000), (1, 999..1000), (999, 1..1000), (1000, 0..1000), (5000, 0..1000)] {
        let (tail, meta) = store.get_tail(&name, len).await.unwrap();
        assert_eq!((tail, meta.size), (bytes.slice(expect), 1000), "{len}");
        assert_eq!(meta.path, name);
    }
}

async fn empty_objects(store: &dyn Store) {
    let (put, written) = (path("empty/put"), path("empty/written"));
    assert_eq!(store.put(&put, Bytes::new()).await.unwrap(), Created::New);
    assert_eq!(store.create(&written).await.unwrap().finish().await.unwrap(), Created::New);
    for name in [&put, &written] {
        assert_eq!(store.head(name).await.unwrap().size, 0);
        assert_eq!(store.get(name, 0).await.unwrap(), "");
        assert_eq!(store.get_range(name, 0..0).await.unwrap(), "");
        assert!(matches!(store.get_range(name, 0..1).await, Err(StoreError::OutOfRange { size: 0, .. })));
        let (tail, meta) = store.get_tail(name, 10).await.unwrap();
        assert_eq!((tail.len(), meta.size), (0, 0));
    }
    assert_eq!(names(store).await, ["empty/put", "empty/written"]);
}

async fn size_max_is_kept(store: &dyn Store) {
    let name = path("size");
    store.put(&name, sample(1000, 1)).await.unwrap();
    assert_eq!(store.get(&name, 1000).await.unwrap().len(), 1000);
    assert!(matches!(store.get(&name, 999).await, Err(StoreError::Failed { .. })));
}

async fn absent_objects(store: &dyn Store) {
    store.put(&path("dir/object"), "x".into()).await.unwrap();
    for name in ["absent", "dir", "dir/absent", "dir/object2", "absent/deeper/still"] {
        let name = path(name);
        let errors = [
            store.get(&name, 100).await.map(drop),
            store.get_range(&name, 0..1).await.map(drop),
            store.get_range(&name, 0..0).await.map(drop),
            store.get_tail(&name, 10).await.map(drop),
            store.get_tail(&name, 0).await.map(drop),
            store.head(&name).await.map(drop),
        ];
        for error in errors {
            assert!(error.as_ref().is_err_and(StoreError::is_not_found), "{name}: {error:?}");
        }
        // Deleting what is not there is success, and harms nothing.
        store.delete(&name).await.unwrap();
        let listing = store.list_level(Some(&path("absent"))).await.unwrap();
        assert_eq!((listing.objects.len(), listing.prefixes.len()), (0, 0));
    }
    assert_eq!(names(store).await, ["dir/object"]);
}

async fn deleting(store: &dyn Store) {
    for name in ["d/x/1", "d/x/2", "d/y/z/3"] {
        store.put(&path(name), name.into()).await.unwrap();
    }
    store.delete(&path("d/y/z/3")).await.unwrap();
    assert!(store.head(&path("d/y/z/3")).await.unwrap_err().is_not_found());
    let level = store.list_level(Some(&path("d"))).await.unwrap();
    assert_eq!(level.prefixes, [path("d/x")]);
    store.delete(&path("d/x/1")).await.unwrap();
    assert_eq!(names(store).await, ["d/x/2"]);
    store.delete(&path("d/x/2")).await.unwrap();
    store.delete(&path("d/x/2")).await.unwrap();
    assert!(names(store).await.is_empty());
    // What was a prefix may be an object now, and the other way round.
    store.put(&path("d"), "object".into()).await.unwrap();
    store.delete(&path("d")).await.unwrap();
    store.put(&path("d/x"), "object".into()).await.unwrap();
    assert_eq!(names(store).await, ["d/x"]);
}

async fn deleting_races_with_creating(store: &dyn Store) {
    let tasks = (0..8).map(|number| async move {
        for _ in 0..20 {
            let name = path(&format!("same/dir/object{number}"));
            assert_eq!(store.put(&name, "x".into()).await.unwrap(), Created::New);
            assert_eq!(store.get(&name, 1).await.unwrap(), "x");
            store.delete(&name).await.unwrap();
        }
    });
    join_all(tasks).await;
    assert!(names(store).await.is_empty());
}

async fn listings(store: &dyn Store) {
    // In byte order: '-' '.' '/' '0' '=' 'A' '_' 'a'.
    let mut all = [
        "a-b",
        "a-b.x/1",
        "a.b",
        "a/b",
        "a/b-c",
        "a/b.d/e",
        "a/c/d",
        "a/c/e",
        "a0",
        "a0=/x",
        "A",
        "_x/y",
        "aa/b",
        "ab",
        "z/..x",
        "z/-",
        "z/=",
        "z/.hidden",
    ]
    .map(str::to_owned);
    // An object cannot be another's directory on a disk: no name here is another's prefix.
    for name in &all {
        assert_eq!(store.put(&path(name), Bytes::from(name.clone())).await.unwrap(), Created::New);
    }
    all.sort();
    assert_eq!(names(store).await, all);

    let below = |prefix: &str| {
        let prefix = format!("{prefix}/");
        all.iter().filter(|name| name.starts_with(&prefix)).cloned().collect::<Vec<_>>()
    };
    for prefix in ["a", "a/b", "a/c", "z", "a-b.x", "aa", "nothing", "a/b-c", "A"] {
        let page = store.list_page(Some(&path(prefix)), None, 100).await.unwrap();
        let page: Vec<_> = page.iter().map(|meta| meta.path.to_string()).collect();
        assert_eq!(page, below(prefix), "below {prefix}");
    }

    // After every name, and after names that do not exist, in pages of every size.
    let afters = all.iter().map(String::as_str).chain(["-", "a/a", "a/b0", "a/c", "a/c/dd", "b", "zz", "a.", "a-"]);
    for after in afters {
        let rest: Vec<_> = all.iter().filter(|name| name.as_str() > after).cloned().collect();
        let page = store.list_page(None, Some(&path(after)), 100).await.unwrap();
        let page: Vec<_> = page.iter().map(|meta| meta.path.to_string()).collect();
        assert_eq!(page, rest, "after {after}");
        let in_a: Vec<_> = below("a").into_iter().filter(|name| name.as_str() > after).collect();
        let page = store.list_page(Some(&path("a")), Some(&path(after)), 100).await.unwrap();
        let page: Vec<_> = page.iter().map(|meta| meta.path.to_string()).collect();
        assert_eq!(page, in_a, "below a after {after}");
    }
    for limit in [1, 2, 3, 7, all.len(), all.len() + 1] {
        assert_eq!(walk(store, limit).await, all, "pages of {limit}");
    }
    assert!(store.list_page(None, None, 0).await.unwrap().is_empty());

    let level = store.list_level(None).await.unwrap();
    let objects: Vec<_> = level.objects.iter().map(|meta| meta.path.as_str()).collect();
    assert_eq!(objects, ["A", "a-b", "a.b", "a0", "ab"]);
    let prefixes: Vec<_> = level.prefixes.iter().map(ObjectPath::as_str).collect();
    assert_eq!(prefixes, ["_x", "a", "a-b.x", "a0=", "aa", "z"]);
    let level = store.list_level(Some(&path("a"))).await.unwrap();
    let objects: Vec<_> = level.objects.iter().map(|meta| (meta.path.as_str(), meta.size)).collect();
    assert_eq!(objects, [("a/b", 3), ("a/b-c", 5)]);
    assert_eq!(level.prefixes, [path("a/b.d"), path("a/c")]);
}

async fn walk(store: &dyn Store, limit: usize) -> Vec<String> {
    let (mut found, mut after) = (Vec::new(), None);
    loop {
        let page = store.list_page(None, after.as_ref(), limit).await.unwrap();
        found.extend(page.iter().map(|meta| meta.path.to_string()));
        if page.len() < limit {
            return found;
        }
        after = page.last().map(|meta| meta.path.clone());
    }
}

async fn unfinished_is_invisible(store: &dyn Store) {
    for len in [10, 20 * MIB] {
        let name = path("unfinished/object");
        let bytes = sample(len, 3);
        let mut writer = store.create(&name).await.unwrap();
        for start in (0..len).step_by(MIB) {
            writer.write(bytes.slice(start..len.min(start + MIB))).await.unwrap();
        }
        assert!(store.head(&name).await.unwrap_err().is_not_found());
        assert!(names(store).await.is_empty());
        assert_eq!(store.list_level(None).await.unwrap(), store::Listing::default());
        drop(writer);
        assert!(names(store).await.is_empty());

        let mut writer = store.create(&name).await.unwrap();
        writer.write(bytes.clone()).await.unwrap();
        writer.abort().await.unwrap();
        assert!(names(store).await.is_empty());

        // The name is still free.
        assert_eq!(write_in_parts(store, &name, &bytes, MIB).await, Created::New);
        assert!(store.get(&name, len as u64).await.unwrap() == bytes);
        store.delete(&name).await.unwrap();
    }
}

async fn big_objects(store: &dyn Store) {
    // Around the borders of parts, in steps that do not fit into them.
    let sizes = [8 * MIB - 1, 8 * MIB, 8 * MIB + 1, 16 * MIB, 34 * MIB + 12_345];
    for (number, len) in sizes.into_iter().enumerate() {
        let name = path(&format!("big/{number}"));
        let bytes = sample(len, number as u64);
        assert_eq!(write_in_parts(store, &name, &bytes, 3 * MIB + 7).await, Created::New);
        assert_eq!(store.head(&name).await.unwrap().size, len as u64);
        assert!(store.get(&name, len as u64).await.unwrap() == bytes, "{len}");
        let middle = len / 2 - 100..len / 2 + 100;
        let range = store.get_range(&name, middle.start as u64..middle.end as u64).await.unwrap();
        assert_eq!(range, bytes.slice(middle));
    }
    let name = path("big/at-once");
    let bytes = sample(34 * MIB, 99);
    assert_eq!(store.put(&name, bytes.clone()).await.unwrap(), Created::New);
    assert!(store.get(&name, 34 * MIB as u64).await.unwrap() == bytes);
}

async fn reading_beside_writing(store: &dyn Store) {
    // An object that is seen is whole, whoever writes meanwhile.
    let name = path("busy/object");
    let bytes = sample(9 * MIB, 5);
    let readers = (0..4).map(|_| {
        let (name, bytes) = (&name, &bytes);
        async move {
            loop {
                match store.get(name, 9 * MIB as u64).await {
                    Ok(read) => return assert!(read == *bytes),
                    Err(error) => assert!(error.is_not_found(), "{error}"),
                }
                tokio::task::yield_now().await;
            }
        }
    });
    let writing = async { assert_eq!(write_in_parts(store, &name, &bytes, MIB).await, Created::New) };
    futures::join!(join_all(readers), writing);
    let readers = (0..8).map(|number| {
        let (name, bytes) = (&name, &bytes);
        async move {
            let range = number * MIB..(number + 1) * MIB;
            let read = store.get_range(name, range.start as u64..range.end as u64).await.unwrap();
            assert!(read == bytes.slice(range));
        }
    });
    join_all(readers).await;
}

async fn many_objects(store: &dyn Store) {
    let all: BTreeSet<String> = (0..1203).map(|number| format!("many/{:02}/{number}", number % 17)).collect();
    for chunk in all.iter().collect::<Vec<_>>().chunks(64) {
        join_all(chunk.iter().map(|name| async { store.put(&path(name), "x".into()).await.unwrap() })).await;
    }
    let all: Vec<_> = all.into_iter().collect();
    for limit in [100, 1000, 1001, 1203, 2000] {
        assert_eq!(walk(store, limit).await, all, "pages of {limit}");
    }
    let level = store.list_level(Some(&path("many/03"))).await.unwrap();
    assert_eq!(level.objects.len(), all.iter().filter(|name| name.starts_with("many/03/")).count());
}

async fn times_are_plausible(store: &dyn Store) {
    let name = path("time");
    store.put(&name, "x".into()).await.unwrap();
    let modified = store.head(&name).await.unwrap().modified_ms;
    // 2020 to 2100; the store's clock need not be ours.
    assert!((1_577_836_800_000..4_102_444_800_000).contains(&modified), "{modified}");
    let listed = store.list_page(None, None, 1).await.unwrap()[0].clone();
    assert_eq!(listed.modified_ms / 1000, modified / 1000);
}

/// A store with what must live as long as it does.
struct Made {
    store: Arc<dyn Store>,
    _keep: Box<dyn std::any::Any>,
}

fn memory() -> Made {
    Made { store: Arc::new(MemoryStore::new()), _keep: Box::new(()) }
}

fn local() -> Made {
    let dir = tempfile::tempdir().unwrap();
    let store = LocalStore::open(dir.path(), StoreOptions::standard().local).unwrap();
    Made { store: Arc::new(store), _keep: Box::new(dir) }
}

fn faulty() -> Made {
    Made { store: Arc::new(FaultStore::new(MemoryStore::new(), Vec::new())), _keep: Box::new(()) }
}

fn s3() -> Made {
    let server = S3Server::start().unwrap();
    let mut options = StoreOptions::standard().s3;
    options.endpoint = Some(server.endpoint.clone());
    options.allow_http = true;
    options.access_key_id = Some(server.access_key.clone());
    options.secret_access_key = Some(Secret::new(&server.secret_key));
    let store = S3Store::new(&server.bucket, "some/prefix", &options).unwrap();
    Made { store: Arc::new(store), _keep: Box::new(server) }
}

macro_rules! suite {
    ($($test:ident),* $(,)?) => {
        suite!(@ memory $($test)*);
        suite!(@ local $($test)*);
        suite!(@ faulty $($test)*);
        suite!(@ s3 $($test)*);
    };
    (@ $kind:ident $($test:ident)*) => {
        mod $kind {
            $(
                #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
                async fn $test() {
                    let made = super::$kind();
                    super::$test(&*made.store).await;
                }
            )*
        }
    };
}

suite!(
    create_never_overwrites,
    one_of_many_creators_wins,
    big_creators_race_too,
    ranges_and_tails,
    empty_objects,
    size_max_is_kept,
    absent_objects,
    deleting,
    deleting_races_with_creating,
    listings,
    unfinished_is_invisible,
    big_objects,
    reading_beside_writing,
    many_objects,
    times_are_plausible,
);
