//! A real backup of a real server, and the deletion of what it builds on in the middle of it.

use super::hooked::Hooked;
use super::support::{Archived, Result, conninfo, context, main_of, options};
use engine::expire::{self, LastBackup, Request, WalExpiry, Which};
use futures::FutureExt;
use repo::{BackupId, Repository};
use std::collections::BTreeSet;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;
use store::MemoryStore;

/// Deletes a backup, or only what nothing uses, at once. On a thread of its own: the caller is in the middle of a call.
async fn delete(memory: MemoryStore, doomed: Option<BackupId>) -> Result {
    let which = match doomed {
        Some(id) => Which::Backups { ids: vec![id], last: LastBackup::MayGo },
        None => Which::Nothing,
    };
    let request = Request { which, grace: Duration::ZERO, wal: WalExpiry::Keep };
    tokio::task::spawn_blocking(move || {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        runtime.block_on(async {
            let cluster = main_of(&Repository::open(Arc::new(memory), None).await?);
            let plan = expire::plan(&context(), &cluster, &request).await?;
            expire::apply(&context(), &cluster, &request, &plan).await?;
            Ok(())
        })
    })
    .await?
}

/// What came of a backup during which another one went.
struct Raced {
    /// The objects of its calls of the store, in their order.
    calls: Vec<String>,
    made: std::result::Result<BackupId, engine::EngineError>,
}

/// Backs up, and deletes `doomed` before call number `at`.
async fn back_up_and_delete(archived: &Archived, doomed: BackupId, at: usize) -> Result<Raced> {
    let calls = Arc::new(Mutex::new(Vec::new()));
    let count = Arc::new(AtomicUsize::new(0));
    let (memory, noted) = (archived.memory.clone(), calls.clone());
    let hook = move |path: &str| {
        noted.lock().expect("not poisoned").push(path.to_owned());
        let (now, memory) = (count.fetch_add(1, Ordering::SeqCst) == at, memory.clone());
        async move {
            if now {
                delete(memory, Some(doomed)).await.expect("the deletion succeeds");
            }
        }
        .boxed()
    };
    let store = Hooked::new(archived.memory.clone(), hook);
    let cluster = main_of(&Repository::open(Arc::new(store), None).await?);
    let made = engine::backup::run(&context(), &cluster, &conninfo(&archived.server)?, &options()).await;
    let calls = calls.lock().expect("not poisoned").clone();
    Ok(Raced { calls, made: made.map(|report| report.backup) })
}

#[tokio::test(flavor = "multi_thread")]
async fn what_a_backup_builds_on_goes_at_any_of_its_calls() -> Result {
    let archived = Archived::start().await?;
    archived.server.sql("CREATE TABLE t AS SELECT g AS id, repeat('x', 200) AS v FROM generate_series(1, 20000) g")?;
    archived.backup().await?;
    let mut prior = archived.backup().await?.backup;
    let quiet = back_up_and_delete(&archived, prior, usize::MAX).await?;
    prior = quiet.made?;
    // All around the intent and the manifest, and some of the others.
    let is_at_border = |path: &str| path.contains("/backups") || path.contains("/garbage");
    let at_border = quiet.calls.iter().enumerate().filter(|(_, path)| is_at_border(path)).map(|(at, _)| at);
    let positions: BTreeSet<usize> =
        at_border.chain((0..quiet.calls.len()).step_by(1 + quiet.calls.len() / 10)).collect();
    let (mut built_on_it, mut chose_again) = (0, 0);
    for at in positions {
        archived.server.sql(&format!("UPDATE t SET v = '{at}' WHERE id % 100 = {}", at % 100))?;
        let Raced { calls, made } = back_up_and_delete(&archived, prior, at).await?;
        let what = format!("deleted before call {at} ({:?})", calls.get(at));
        let backup = made.map_err(|error| anyhow::anyhow!("{what}: {error}"))?;
        let cluster = archived.cluster().await?;
        let is_on_it = cluster.open_manifest(backup).await?.facts().prior == Some(prior);
        *(if is_on_it { &mut built_on_it } else { &mut chose_again }) += 1;
        let compared = archived.holds_what_the_server_has(backup).await.map_err(|error| error.context(what.clone()))?;
        anyhow::ensure!(compared > 0, "{what}: nothing was compared");
        // What nothing uses goes, and this one stays whole.
        delete(archived.memory.clone(), None).await?;
        archived.holds_what_the_server_has(backup).await.map_err(|error| error.context(what))?;
        if cluster.backups().await?.contains(&prior) {
            delete(archived.memory.clone(), Some(prior)).await?;
        }
        // This one is older than the next, so that there is something else to choose.
        prior = archived.backup().await?.backup;
    }
    assert!(built_on_it > 2 && chose_again > 2, "{built_on_it} built on it, {chose_again} chose again");
    Ok(())
}
