//! The store that goes wrong does so exactly as planned.

#![allow(clippy::unwrap_used, reason = "helpers of tests too")]

use bytes::Bytes;
use store::{CallKind, Created, Fault, FaultStore, MemoryStore, ObjectPath, Store, StoreError, What, When};

fn path(text: &str) -> ObjectPath {
    ObjectPath::new(text).unwrap()
}

fn faulty(when: When, what: What) -> FaultStore<MemoryStore> {
    FaultStore::new(MemoryStore::new(), vec![Fault { when, what }])
}

/// A small piece of work that uses every call, and what became of each.
async fn work(store: &dyn Store) -> Vec<Result<(), StoreError>> {
    let (small, big) = (path("small/a"), path("big/b"));
    let mut outcomes = vec![store.put(&small, "0123456789".into()).await.map(drop)];
    match store.create(&big).await {
        Err(error) => outcomes.push(Err(error)),
        Ok(mut writer) => {
            outcomes.push(Ok(()));
            outcomes.push(writer.write("first ".into()).await);
            outcomes.push(writer.write("second".into()).await);
            outcomes.push(writer.finish().await.map(drop));
        }
    }
    if let Ok(writer) = store.create(&path("big/c")).await {
        outcomes.push(writer.abort().await);
    }
    outcomes.push(store.get(&small, 100).await.map(drop));
    outcomes.push(store.get_range(&small, 2..4).await.map(drop));
    outcomes.push(store.get_tail(&small, 2).await.map(drop));
    outcomes.push(store.head(&small).await.map(drop));
    outcomes.push(store.list_level(None).await.map(drop));
    outcomes.push(store.list_page(None, None, 10).await.map(drop));
    outcomes.push(store.delete(&small).await);
    outcomes
}

async fn objects(store: &MemoryStore) -> Vec<(String, Bytes)> {
    let mut found = Vec::new();
    for meta in store.list_page(None, None, 100).await.unwrap() {
        found.push((meta.path.to_string(), store.get(&meta.path, 100).await.unwrap()));
    }
    found
}

#[tokio::test]
async fn without_faults_it_only_counts() {
    let store = FaultStore::new(MemoryStore::new(), Vec::new());
    assert!(work(&store).await.iter().all(Result::is_ok));
    assert_eq!(objects(store.inner()).await, [("big/b".to_owned(), Bytes::from("first second"))]);
    let kinds: Vec<_> = store.calls().iter().map(|call| call.kind).collect();
    use CallKind::*;
    let expect =
        [Put, Create, Write, Write, Finish, Create, Abort, Get, GetRange, GetTail, Head, ListLevel, ListPage, Delete];
    assert_eq!(kinds, expect);
    assert!(!store.any_fault_happened());
}

#[tokio::test]
async fn each_call_fails_once_and_only_it() {
    let calls = 14;
    for what in [What::FailBefore, What::FailAfter, What::Tear, What::Deny, What::Full] {
        for nth in 0..calls {
            let store = faulty(When::call(nth), what);
            let _ = work(&store).await;
            let log = store.calls();
            let hit: Vec<_> = log.iter().filter(|call| call.fault.is_some()).collect();
            assert_eq!(hit.len(), 1, "{what:?} {nth}");
            assert_eq!(log[nth].fault, Some(what));
            // The same plan does the same again.
            let again = faulty(When::call(nth), what);
            let _ = work(&again).await;
            assert_eq!(again.calls(), log);
            // Whatever fails, what is visible is whole.
            for (name, bytes) in objects(store.inner()).await {
                let whole = if name == "small/a" { "0123456789" } else { "first second" };
                assert_eq!(bytes, whole, "{what:?} {nth}");
            }
        }
    }
}

#[tokio::test]
async fn a_lost_reply_did_its_work() {
    let name = path("a");
    let store = faulty(When::kind(CallKind::Put, 0), What::FailAfter);
    assert!(store.put(&name, "x".into()).await.is_err());
    assert_eq!(store.put(&name, "x".into()).await.unwrap(), Created::Exists);
    store.add_fault(Fault { when: When::kind(CallKind::Delete, 0), what: What::FailAfter });
    assert!(store.delete(&name).await.is_err());
    assert!(store.head(&name).await.unwrap_err().is_not_found());
    store.add_fault(Fault { when: When::kind(CallKind::Finish, 0), what: What::FailAfter });
    let mut writer = store.create(&name).await.unwrap();
    writer.write("x".into()).await.unwrap();
    assert!(writer.finish().await.is_err());
    assert_eq!(store.get(&name, 1).await.unwrap(), "x");
}

#[tokio::test]
async fn lies() {
    let (name, bytes) = (path("a"), Bytes::from("0123456789"));
    let store = faulty(When::kind(CallKind::Put, 0), What::Pretend);
    assert_eq!(store.put(&name, bytes.clone()).await.unwrap(), Created::New);
    assert!(store.head(&name).await.unwrap_err().is_not_found());

    let store = faulty(When::kind(CallKind::Put, 0), What::Truncate);
    assert_eq!(store.put(&name, bytes.clone()).await.unwrap(), Created::New);
    assert_eq!(store.get(&name, 10).await.unwrap(), "01234");

    let store = faulty(When::kind(CallKind::Put, 0), What::Corrupt);
    assert_eq!(store.put(&name, bytes.clone()).await.unwrap(), Created::New);
    assert_eq!(store.get(&name, 10).await.unwrap(), "01234%6789");

    for (what, expect) in [(What::Truncate, "01234567"), (What::Corrupt, "0123456789ab\u{73}def"), (What::Pretend, "")]
    {
        let store = faulty(When::kind(CallKind::Finish, 0), what);
        let mut writer = store.create(&name).await.unwrap();
        writer.write("01234567".into()).await.unwrap();
        writer.write("89abcdef".into()).await.unwrap();
        assert_eq!(writer.finish().await.unwrap(), Created::New);
        match what {
            What::Pretend => assert!(store.head(&name).await.unwrap_err().is_not_found()),
            What::Truncate => assert_eq!(store.get(&name, 100).await.unwrap(), format!("{expect}89ab")),
            _ => assert_eq!(store.get(&name, 100).await.unwrap(), expect),
        }
    }

    let store = faulty(When::kind(CallKind::Write, 1), What::Pretend);
    let mut writer = store.create(&name).await.unwrap();
    for part in ["one", "two", "three"] {
        writer.write(part.into()).await.unwrap();
    }
    assert_eq!(writer.finish().await.unwrap(), Created::New);
    assert_eq!(store.get(&name, 100).await.unwrap(), "onethree");

    let lying = |kind, what| {
        store.heal();
        store.add_fault(Fault { when: When::kind(kind, 0), what });
    };
    lying(CallKind::Get, What::Truncate);
    assert_eq!(store.get(&name, 100).await.unwrap(), "onet");
    lying(CallKind::GetRange, What::Corrupt);
    assert_eq!(store.get_range(&name, 0..3).await.unwrap(), "o~e");
    lying(CallKind::Head, What::Corrupt);
    assert_eq!(store.head(&name).await.unwrap().size, 9);
    lying(CallKind::Head, What::Pretend);
    assert!(store.head(&name).await.unwrap_err().is_not_found());
    lying(CallKind::ListPage, What::Pretend);
    assert!(store.list_page(None, None, 10).await.unwrap().is_empty());
    assert_eq!(store.list_page(None, None, 10).await.unwrap().len(), 1);
}

#[tokio::test]
async fn outages_last_until_they_are_healed() {
    let store = faulty(When::path("packs/", 1).onwards(), What::FailBefore);
    assert!(store.put(&path("packs/1"), "x".into()).await.is_ok());
    for _ in 0..3 {
        assert!(store.put(&path("packs/2"), "x".into()).await.is_err());
        assert!(store.put(&path("manifest"), "x".into()).await.is_ok());
    }
    store.heal();
    assert!(store.put(&path("packs/2"), "x".into()).await.is_ok());
}

#[tokio::test(start_paused = true)]
async fn a_stall_lasts_until_cancelled() {
    let (store, name) = (faulty(When::call(0), What::Stall), path("a"));
    let stalled = tokio::time::timeout(std::time::Duration::from_secs(3600), store.head(&name));
    assert!(stalled.await.is_err());
    assert!(store.head(&path("a")).await.unwrap_err().is_not_found());
}

#[tokio::test]
async fn a_writer_that_failed_cannot_finish() {
    for what in [What::FailBefore, What::FailAfter, What::Tear, What::Full] {
        let store = faulty(When::kind(CallKind::Write, 0), what);
        let mut writer = store.create(&path("a")).await.unwrap();
        assert!(writer.write("x".into()).await.is_err());
        assert!(writer.finish().await.is_err());
        assert!(store.head(&path("a")).await.unwrap_err().is_not_found());
    }
}
