//! What was restored, judged by `pg_verifybackup`; and restores while the store fails at each of its calls.

#[path = "../backup/support.rs"]
#[expect(dead_code, reason = "shared with the backup tests, which use all of it")]
mod archived;
#[path = "../restore/support.rs"]
#[expect(dead_code, reason = "shared with the restore tests, which use all of it")]
mod restoring;

use archived::{Archived, Result, context, main_of};
use engine::restore::{self, ExistingFiles, RecoveryTarget, RestoreRequest};
use repo::Repository;
use restoring::{request, restored};
use std::path::Path;
use std::sync::Arc;
use store::{Fault, FaultStore, MemoryStore, What, When};
use testkit::pg::StopMode;

/// `pg_basebackup` and pgkeep back up the same quiet cluster; the manifest of the one must describe what the other
/// restored, file by file with SHA-256, but for what each backup and each restore writes of its own.
#[tokio::test(flavor = "multi_thread")]
async fn pg_verifybackup_accepts_what_was_restored() -> Result {
    let archived = Archived::start().await?;
    let server = &archived.server;
    server.sql("CREATE TABLE t AS SELECT g, md5(g::text) AS m, repeat(md5(g::text), 100) AS w FROM generate_series(1, 20000) g")?;
    server.sql("CREATE INDEX ON t (m); CREATE UNLOGGED TABLE u AS SELECT 1 AS x")?;
    server.sql("ALTER SYSTEM SET autovacuum = off")?;
    server.sql("SELECT pg_reload_conf()")?;
    // Hint bits of what ANALYZE wrote would be set by the first query that plans with it: they are set before.
    server.sql("ANALYZE")?;
    server.sql("VACUUM (FREEZE)")?;
    server.sql("CHECKPOINT")?;
    archived.backup().await?;
    let peer = server.home().join("peer");
    let at = peer.to_string_lossy().into_owned();
    server.tool("pg_basebackup", &["-D", &at, "-c", "fast", "-X", "none", "--manifest-checksums=SHA256"])?;
    let request = request(&archived, "new", RecoveryTarget::Immediate)?;
    restored(&archived, &request).await?;
    let manifest = peer.join("backup_manifest");
    let target = request.target_dir.to_string_lossy().into_owned();
    let verify = |extra: &[&str]| {
        let own = [
            // Each backup's own: where it began, and the checkpoint it began with.
            "backup_label",
            "global/pg_control",
            // What a restore writes so that recovery goes where it was told.
            "postgresql.auto.conf",
            "recovery.signal",
        ];
        let mut args = vec!["-n", "-m"];
        let manifest = manifest.to_string_lossy().into_owned();
        args.push(&manifest);
        args.extend(own.iter().flat_map(|name| ["-i", name]));
        args.extend(extra);
        args.push(&target);
        server.tool("pg_verifybackup", &args).map(drop)
    };
    verify(&[])?;
    // The oracle sees what is wrong: a byte in a table, a file too few.
    let table = request.target_dir.join(server.sql("SELECT pg_relation_filepath('t')")?);
    let good = std::fs::read(&table)?;
    let mut bad = good.clone();
    bad[12_345] ^= 1;
    std::fs::write(&table, &bad)?;
    assert!(verify(&[]).is_err(), "a changed byte");
    std::fs::write(&table, good)?;
    std::fs::remove_file(request.target_dir.join("PG_VERSION"))?;
    assert!(verify(&[]).is_err(), "a missing file");
    Ok(())
}

/// Whatever call of the store fails during a restore: either it ends well, or nothing is there that a server would start
/// on, and the next try succeeds.
#[tokio::test(flavor = "multi_thread")]
async fn a_store_that_fails_at_any_call_never_gives_half_a_cluster() -> Result {
    let mut archived = Archived::start().await?;
    archived.server.sql("CREATE TABLE t AS SELECT g FROM generate_series(1, 100000) g")?;
    archived.backup().await?;
    archived.server.stop(StopMode::Fast)?;
    // In memory where there is such a place: making a restore durable waits for all that others write to the disk.
    let memory = Path::new("/dev/shm");
    let temp = if memory.is_dir() { tempfile::tempdir_in(memory)? } else { tempfile::tempdir()? };
    let into = |name: &str| -> Result<RestoreRequest> {
        Ok(RestoreRequest {
            target_dir: temp.path().join(name),
            ..request(&archived, name, RecoveryTarget::Immediate)?
        })
    };
    let whole = into("whole")?;
    restored(&archived, &whole).await?;
    let base = into("tried")?;
    let calls = attempt(&archived, &base, None).await?.1.call_count();
    assert!(calls > 5, "{calls} calls");
    testkit::compare::compare_dirs(&whole.target_dir, &base.target_dir)?.require_equal()?;
    for call in 0..calls {
        for what in [What::FailBefore, What::Corrupt] {
            std::fs::remove_dir_all(&base.target_dir).ok();
            let (result, store) = attempt(&archived, &base, Some((call, what))).await?;
            if !store.any_fault_happened() {
                continue; // this time it asked fewer: calls run beside each other
            }
            if result.is_ok() {
                // The call was tried again, or was about something that does not matter here.
                testkit::compare::compare_dirs(&whole.target_dir, &base.target_dir)?.require_equal()?;
                continue;
            }
            assert!(!control(&base.target_dir).exists(), "call {call} {what:?}: a server would start on it");
            store.heal();
            let again = RestoreRequest { existing: ExistingFiles::Remove, ..base.clone() };
            attempt(&archived, &again, None).await?.0?;
            assert!(control(&base.target_dir).exists());
        }
    }
    Ok(())
}

fn control(dir: &Path) -> std::path::PathBuf {
    dir.join("global/pg_control")
}

/// One restore through a store in which one call goes wrong, counted from when the repository is open.
async fn attempt(
    archived: &Archived,
    request: &RestoreRequest,
    fault: Option<(usize, What)>,
) -> Result<(std::result::Result<(), engine::EngineError>, FaultStore<MemoryStore>)> {
    let opened = FaultStore::new(archived.memory.clone(), Vec::new());
    let cluster = main_of(&Repository::open(Arc::new(opened.clone()), None).await?);
    if let Some((call, what)) = fault {
        opened.add_fault(Fault { when: When::call(call), what });
    }
    let result = async {
        let plan = restore::plan(&context(), &cluster, request).await?;
        restore::apply(&context(), &cluster, &plan).await.map(drop)
    }
    .await;
    Ok((result, opened))
}
