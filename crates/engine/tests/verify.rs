//! Verify: gaps with what they cost, strays, unfinished backups, and how much it reads.

#[allow(dead_code, reason = "the backup tests use the rest of it")]
#[path = "backup/support.rs"]
mod archived;

use archived::{Archived, Result, context};
use engine::verify::{Backups, Finding, FindingKind, Severity, VerifyOptions, VerifyReport, verify};
use repo::PackId;
use store::{ObjectPath, Store};

fn options(deep: bool) -> VerifyOptions {
    VerifyOptions { backups: Backups::All, deep, wal: true, workers: 2 }
}

async fn look(archived: &Archived, options: &VerifyOptions) -> Result<VerifyReport> {
    Ok(verify(&context(), &archived.cluster().await?, options).await?)
}

fn about<'a>(report: &'a VerifyReport, object: &ObjectPath) -> &'a Finding {
    let found = report.findings.iter().find(|finding| finding.object == object.as_str());
    found.unwrap_or_else(|| panic!("{object} in {:?}", report.findings))
}

async fn segments(archived: &Archived) -> Result<Vec<ObjectPath>> {
    let cluster = archived.cluster().await?;
    let objects = archived.memory.list_page(Some(&cluster.name().wal_prefix()), None, 1000).await?;
    let mut paths: Vec<ObjectPath> = objects.into_iter().map(|object| object.path).collect();
    paths.retain(|path| path.name().len() == 24);
    paths.sort();
    Ok(paths)
}

async fn switch(archived: &Archived) -> Result<()> {
    archived.server.sql("CREATE TABLE IF NOT EXISTS t (id int); INSERT INTO t VALUES (1)")?;
    let name = archived.server.switch_wal()?;
    for _ in 0..1500 {
        if segments(archived).await?.iter().any(|path| path.name() == name) {
            return Ok(());
        }
        tokio::time::sleep(std::time::Duration::from_millis(20)).await;
    }
    anyhow::bail!("{name} did not arrive")
}

#[tokio::test(flavor = "multi_thread")]
async fn gaps_say_what_they_cost_and_whom() -> Result {
    let archived = Archived::start().await?;
    let first = archived.backup().await?;
    switch(&archived).await?;
    switch(&archived).await?;
    switch(&archived).await?;
    let second = archived.backup().await?;
    switch(&archived).await?;
    let whole = look(&archived, &options(true)).await?;
    assert_eq!((whole.verdict, whole.findings.len()), (None, 0), "{:?}", whole.findings);
    assert!(whole.segments >= 5 && whole.bytes > 1 << 20 && whole.backups.len() == 2);
    assert!(whole.backups.iter().all(|backup| backup.restorable && backup.files > 900 && backup.packs > 0));
    let shallow = look(&archived, &options(false)).await?;
    assert_eq!(shallow.verdict, None);
    assert!(shallow.bytes < whole.bytes / 4, "{} of {} bytes", shallow.bytes, whole.bytes);

    // Two segments between the backups go.
    let all = segments(&archived).await?;
    let size = pg_format::WalSegmentSize::DEFAULT;
    let name = |lsn: pg_format::Lsn| pg_format::SegmentName::of_lsn(first.timeline, lsn, size).to_string();
    let after = all.iter().position(|path| path.name() == name(first.stop_lsn)).expect("it is there") + 1;
    for path in &all[after..after + 2] {
        archived.memory.delete(path).await?;
    }
    let report = look(&archived, &options(false)).await?;
    let gap = about(&report, &all[after]);
    assert_eq!((gap.severity, gap.kind), (Severity::Damage, FindingKind::WalGap));
    assert!(gap.what.contains(&format!("up to {}", all[after + 1].name())), "{}", gap.what);
    let effect = gap.effect.as_deref().expect("what it costs");
    assert!(effect.contains(&format!("the end of backup {}", second.backup)), "{effect}");
    assert!(effect.contains("the last transaction before it ended at 20"), "{effect}");
    assert_eq!(gap.backups, [first.backup]);
    assert!(report.backups.iter().all(|backup| backup.restorable), "each to its own end");
    assert_eq!(report.backups[0].wal_until.as_deref(), Some(all[after - 1].name()));
    assert!(!gap.what.contains(&gap.object), "the object is named once: {gap:?}");
    // One backup alone is whole, and the gap after it is not kept quiet; the other one is not touched by it.
    let only = |backup| VerifyOptions { backups: Backups::Only(vec![backup]), ..options(false) };
    let report = look(&archived, &only(first.backup)).await?;
    assert_eq!((report.verdict, report.backups[0].restorable), (Some(Severity::Warning), true));
    assert_eq!((about(&report, &all[after]).kind, report.findings.len()), (FindingKind::WalGap, 1));
    assert_eq!(look(&archived, &only(second.backup)).await?.verdict, None);

    // A segment that the second backup itself needs.
    let needed = all.iter().find(|path| path.name() == name(second.start_lsn)).expect("it is there");
    archived.memory.delete(needed).await?;
    let only = only(second.backup);
    let report = look(&archived, &only).await?;
    let gap = about(&report, needed);
    assert_eq!((gap.severity, gap.backups.as_slice()), (Severity::Damage, &[second.backup][..]));
    assert_eq!(report.backups.len(), 1);
    assert!(!report.backups[0].restorable);
    let without = VerifyOptions { wal: false, ..only };
    assert_eq!(look(&archived, &without).await?.verdict, None);
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn what_belongs_to_nothing_is_told_apart_from_what_is_lost() -> Result {
    let archived = Archived::start().await?;
    let backup = archived.backup().await?;
    let cluster = archived.cluster().await?;
    let orphan = PackId { backup: backup.backup.next(), number: 1 };
    cluster.create_pack(orphan).await?.finish().await?;
    let stray = PackId { backup: backup.backup, number: 999 };
    cluster.create_pack(stray).await?.finish().await?;
    let odd = ObjectPath::new("clusters/main/backups/notes.txt").expect("a path");
    archived.memory.put(&odd, "x".into()).await?;
    let report = look(&archived, &options(true)).await?;
    assert_eq!(report.verdict, Some(Severity::Warning), "{:?}", report.findings);
    assert_eq!(about(&report, &cluster.name().pack(stray)).kind, FindingKind::Stray);
    assert_eq!(about(&report, &cluster.name().manifest(orphan.backup)).kind, FindingKind::Missing);
    assert_eq!(about(&report, &odd).kind, FindingKind::Unknown);
    assert!(report.backups[0].restorable);

    // Two packs of one backup that changed places.
    let pack = cluster.name().pack(PackId { backup: backup.backup, number: 1 });
    let bytes = archived.memory.get(&cluster.name().pack(stray), 1 << 30).await?;
    archived.memory.damage(&pack, bytes);
    let report = look(&archived, &options(false)).await?;
    assert_eq!(about(&report, &pack).severity, Severity::Damage);
    assert!(about(&report, &pack).backups.contains(&backup.backup), "{:?}", about(&report, &pack));
    assert!(!report.backups[0].restorable);
    let unknown = VerifyOptions { backups: Backups::Only(vec![orphan.backup]), ..options(false) };
    assert!(look(&archived, &unknown).await.unwrap_err().to_string().contains("has no backup"));
    serde_json::to_string(&report)?;
    Ok(())
}
