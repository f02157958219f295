//! Imports of base backups that `pg_basebackup` made, in every form, and of those that must be refused.

use super::archived::{Archived, Result, context, main_of};
use super::restoring::{lay_out_wal, request, restored, wait_promoted};
use super::support::{options, run, start, verify_with};
use anyhow::Context as _;
use engine::export::{ExportTo, ExportedWal, ManifestChecksums, export};
use engine::import_basebackup::{ImportOptions, ImportReport, UnknownCluster, import};
use engine::restore::{RecoveryTarget, RestoreRequest, TablespaceMapping};
use engine::{EngineError, export::ExportOptions};
use repo::{Compression, Repository};
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use store::{MemoryStore, Store};
use testkit::pg::Cluster;

fn wanted(path: &Path) -> ImportOptions {
    ImportOptions {
        path: path.to_owned(),
        label: None,
        stop_lsn: None,
        unknown_cluster: UnknownCluster::Refuse,
        workers: 2,
        compression: Compression::Zstd(1),
        made_by: "pgkeep test".into(),
    }
}

fn base_backup(server: &Cluster, name: &str, arguments: &[&str]) -> Result<PathBuf> {
    let dir = server.make_dir("bases")?.join(name);
    let (to, conninfo) = (dir.to_string_lossy().into_owned(), server.conninfo());
    let words: Vec<&str> =
        ["-d", &conninfo, "-c", "fast", "-D", &to].into_iter().chain(arguments.iter().copied()).collect();
    server.tool("pg_basebackup", &words)?;
    Ok(dir)
}

#[tokio::test(flavor = "multi_thread")]
async fn every_form_of_a_base_backup_is_restored_like_any_other() -> Result {
    let archived = Archived::start().await?;
    let server = &archived.server;
    let space = server.make_dir("fast")?;
    server.sql(&format!("CREATE TABLESPACE fast LOCATION '{}'", space.display()))?;
    server.sql("CREATE TABLE t AS SELECT g AS id, repeat(md5(g::text), 4) AS x FROM generate_series(1, 40000) g")?;
    server.sql("CREATE TABLE u TABLESPACE fast AS SELECT g AS id FROM generate_series(1, 20000) g")?;
    let oid = server.sql("SELECT oid FROM pg_tablespace WHERE spcname = 'fast'")?;
    let mapping = format!("{}={}", space.display(), server.make_dir("bases")?.join("space").display());
    let forms: [(&str, &[&str], bool); 5] = [
        ("plain", &["-Fp", "-X", "stream", "-T", &mapping], true),
        ("fetch", &["-Ft", "-X", "fetch", "--manifest-checksums", "SHA512"], true),
        ("gzip", &["-Ft", "-z", "-X", "stream"], true),
        ("lz4", &["-Ft", "--compress=server-lz4", "-X", "fetch", "--no-manifest"], false),
        ("zstd", &["-Ft", "--compress=client-zstd:1", "-X", "none"], true),
    ];
    let cluster = archived.cluster().await?;
    let mut imported: Vec<ImportReport> = Vec::new();
    for (name, arguments, has_manifest) in forms {
        let dir = base_backup(server, name, arguments)?;
        // The WAL of the base backup is in the archive when the segment of its end is.
        super::restoring::switch(&archived).await?;
        let report = import(&context(), &cluster, &wanted(&dir)).await.with_context(|| name.to_owned())?;
        assert_eq!(report.verified, has_manifest, "{name}");
        assert_eq!(report.wal_files, 0, "{name}: the archive has it");
        assert!(report.files > 500 && report.bytes > 8 << 20 && report.damaged.is_empty(), "{name}: {report:?}");
        assert_eq!(report.warnings.is_empty(), has_manifest, "{name}: {:?}", report.warnings);
        let said = if has_manifest { "backup_manifest" } else { "history file in the archive" };
        assert!(report.stop_lsn_said_by.contains(said), "{name}: {}", report.stop_lsn_said_by);
        assert!(imported.iter().all(|other| other.backup < report.backup), "IDs are start times");
        imported.push(report);
        server.sql("INSERT INTO t VALUES (-1, 'later')")?;
    }
    // A second import of the same takes the next free second.
    let again = import(&context(), &cluster, &wanted(&server.make_dir("bases")?.join("plain"))).await?;
    assert!(again.backup > imported[0].backup && again.started == imported[0].started);

    // A backup of ours builds on what was imported.
    server.sql("UPDATE t SET x = 'changed' WHERE id = 7; CHECKPOINT")?;
    let ours = archived.backup().await?;
    assert!([imported[4].backup, again.backup].map(Some).contains(&ours.prior), "{:?}", ours.change_detection);
    assert!(ours.numbers.bytes_shared > 0, "{:?}", ours.numbers);
    super::restoring::switch(&archived).await?;
    lay_out_wal(&archived).await?;
    const SUMS: &str = "SELECT count(*), sum(hashtext(t::text)) FROM t; SELECT count(*), sum(id) FROM u";
    for (index, backup) in imported.iter().map(|report| report.backup).chain([ours.backup]).enumerate() {
        let to = server.make_dir(&format!("space-{index}"))?;
        let from = if backup == ours.backup { "fast".to_owned() } else { oid.clone() };
        let request = RestoreRequest {
            backup: Some(backup),
            tablespaces: vec![TablespaceMapping { from, to }],
            ..request(&archived, &format!("r{index}"), RecoveryTarget::Latest)?
        };
        restored(&archived, &request).await.with_context(|| format!("backup {index}"))?;
        let copy = start(&request.target_dir)?;
        wait_promoted(&copy)?;
        assert_eq!(copy.sql(SUMS)?, server.sql(SUMS)?, "backup {index}: {}", copy.log_tail());
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn without_an_archive_the_backup_carries_its_wal() -> Result {
    let archived = Archived::start().await?;
    let server = &archived.server;
    server.sql("CREATE TABLE t AS SELECT g AS id FROM generate_series(1, 5000) g")?;
    let dir = base_backup(server, "tar", &["-Ft", "-X", "stream"])?;
    let store: Arc<dyn Store> = Arc::new(MemoryStore::new());
    let cluster = main_of(&Repository::create(store, None, "test", jiff::Timestamp::now()).await?);

    let refused = import(&context(), &cluster, &wanted(&dir)).await;
    assert!(
        matches!(&refused, Err(EngineError::Refused { reason, .. }) if reason.contains("is not known")),
        "{refused:?}"
    );
    let enter = ImportOptions { unknown_cluster: UnknownCluster::Enter, ..wanted(&dir) };
    let report = import(&context(), &cluster, &enter).await?;
    assert!(report.wal_files >= 1, "{report:?}");
    assert!(cluster.manifest_facts(report.backup).await?.standalone);

    // Without a manifest, the WAL says where it ends; without both, the operator must.
    let bare = copy_of(server, &dir, "bare")?;
    fs::remove_file(bare.join("backup_manifest"))?;
    let again = import(&context(), &cluster, &wanted(&bare)).await?;
    assert_eq!(again.stop_lsn, report.stop_lsn);
    assert!(again.stop_lsn_said_by.contains("record in pg_wal") && !again.verified, "{again:?}");
    fs::remove_file(bare.join("pg_wal.tar"))?;
    let refused = import(&context(), &cluster, &wanted(&bare)).await;
    assert!(matches!(&refused, Err(EngineError::Refused { hint: Some(hint), .. }) if hint.contains("--stop-lsn")));
    let told = ImportOptions { stop_lsn: Some(report.stop_lsn), ..wanted(&bare) };
    let refused = import(&context(), &cluster, &told).await;
    assert!(matches!(&refused, Err(EngineError::Refused { reason, .. }) if reason.contains("WAL segment")));

    // Out again, as a directory: its own tools find nothing wrong with it, and a server starts.
    let to = server.make_dir("exported")?.join("data");
    let out = ExportOptions { wal: ExportedWal::Leave, checksums: ManifestChecksums::Sha256, ..options(report.backup) };
    export(&context(), &cluster, ExportTo::Directory(to.clone()), &out).await?;
    verify_with(server, 15, &[], &to)?;
    let copy = start(&to)?;
    assert_eq!(copy.sql("SELECT count(*) FROM t")?, "5000", "{}", copy.log_tail());
    Ok(())
}

/// An expiry that runs at the same time has said that it removes the WAL.
#[tokio::test(flavor = "multi_thread")]
async fn wal_that_is_being_expired_is_not_relied_on() -> Result {
    let archived = Archived::start().await?;
    let server = &archived.server;
    let (with, without) = (
        base_backup(server, "with", &["-Ft", "-X", "stream"])?,
        base_backup(server, "without", &["-Ft", "-X", "none"])?,
    );
    super::restoring::switch(&archived).await?;
    let cluster = archived.cluster().await?;
    let system = super::archived::facts_of(server).await?.system_id;
    let garbage = repo::garbage::Garbage {
        wal_floors: [((system, pg_format::Timeline(1)), pg_format::Lsn(1 << 40))].into(),
        ..Default::default()
    };
    cluster.put_garbage(None, &garbage, jiff::Timestamp::now()).await?;
    for base in [&without, &with] {
        let refused = import(&context(), &cluster, &wanted(base)).await;
        assert!(
            matches!(&refused, Err(EngineError::Refused { reason, .. }) if reason.contains("was expired")),
            "{refused:?}"
        );
        assert_eq!(archived.backup_objects().await?, Vec::<String>::new(), "nothing is left");
    }
    Ok(())
}

/// Copies a directory, so that something can be done to the copy.
fn copy_of(server: &Cluster, dir: &Path, name: &str) -> Result<PathBuf> {
    let to = dir.with_file_name(name);
    run(server, &["cp", "-a", &dir.to_string_lossy(), &to.to_string_lossy()])?;
    Ok(to)
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_not_whole_or_not_its_own_is_refused_and_leaves_nothing() -> Result {
    let archived = Archived::start().await?;
    let server = &archived.server;
    server.sql("CREATE TABLE t AS SELECT g AS id, md5(g::text) AS x FROM generate_series(1, 20000) g")?;
    let file = server.sql("SELECT pg_relation_filepath('t')")?;
    let plain = base_backup(server, "plain", &["-Fp", "-X", "stream"])?;
    let tar = base_backup(server, "tar", &["-Ft", "-X", "stream"])?;
    super::restoring::switch(&archived).await?;
    let cluster = archived.cluster().await?;
    let refused = async |path: &Path, parts: &[&str]| -> Result {
        let text = match import(&context(), &cluster, &wanted(path)).await {
            Ok(report) => anyhow::bail!("{} was imported: {report:?}", path.display()),
            Err(error) => error.to_string(),
        };
        for part in parts {
            assert!(text.contains(part), "{}: {part:?} in {text}", path.display());
        }
        assert_eq!(archived.backup_objects().await?, Vec::<String>::new(), "{}: nothing is left", path.display());
        Ok(())
    };

    let harmed = copy_of(server, &plain, "changed")?;
    let mut content = fs::read(harmed.join(&file))?;
    content[9000] ^= 1;
    fs::write(harmed.join(&file), &content)?;
    refused(&harmed, &[&file, "checksum"]).await?;
    fs::write(harmed.join(&file), &content[..8192])?;
    refused(&harmed, &[&file, "8192 bytes"]).await?;
    fs::remove_file(harmed.join(&file))?;
    refused(&harmed, &[&file, "not there"]).await?;

    let harmed = copy_of(server, &plain, "more")?;
    fs::write(harmed.join("base/extra"), "x")?;
    refused(&harmed, &["base/extra", "not in backup_manifest"]).await?;
    fs::remove_file(harmed.join("base/extra"))?;
    std::os::unix::fs::symlink("/etc/passwd", harmed.join("base/link"))?;
    refused(&harmed, &["base/link", "/etc/passwd"]).await?;

    let harmed = copy_of(server, &plain, "label")?;
    let label = fs::read_to_string(harmed.join("backup_label"))?;
    fs::write(
        harmed.join("backup_label"),
        format!("{label}INCREMENTAL FROM LSN: 0/2000028\nINCREMENTAL FROM TLI: 1\n"),
    )?;
    refused(&harmed, &["incremental"]).await?;
    fs::remove_file(harmed.join("backup_label"))?;
    refused(&harmed, &["backup_label"]).await?;

    let manifest = fs::read_to_string(plain.join("backup_manifest"))?;
    let harmed = copy_of(server, &plain, "manifest")?;
    fs::write(harmed.join("backup_manifest"), manifest.replacen("\"Size\": 4", "\"Size\": 5", 1))?;
    refused(&harmed, &["backup_manifest"]).await?;

    // A tar file that is cut off, at any place, compressed or not.
    let base = fs::read(tar.join("base.tar"))?;
    let cut = copy_of(server, &tar, "cut")?;
    for len in [100, 512, base.len() / 3, base.len() / 2 + 77, base.len() - 1024] {
        fs::write(cut.join("base.tar"), &base[..len])?;
        refused(&cut, &["base.tar", "cut off"]).await?;
    }
    fs::remove_file(cut.join("base.tar"))?;
    for (suffix, program) in [("gz", "gzip"), ("zst", "zstd"), ("lz4", "lz4")] {
        let (from, to) = (tar.join("base.tar"), cut.join(format!("base.tar.{suffix}")));
        let command = format!("{program} -1 -c {} > {}", from.display(), to.display());
        run(server, &["sh", "-c", &command])?;
        let packed = fs::read(&to)?;
        fs::write(&to, &packed[..packed.len() * 2 / 3])?;
        refused(&cut, &["base.tar", "cut off"]).await?;
        fs::remove_file(&to)?;
    }

    // Names and links that lead out.
    let hostile = server.make_dir("hostile")?;
    fs::write(hostile.join("x"), "x")?;
    let file = hostile.join("base.tar").to_string_lossy().into_owned();
    let dir = hostile.to_string_lossy().into_owned();
    for (transform, words) in [("s,^x,../x,", "leads out"), ("s,^x,/etc/x,", "absolute path")] {
        run(server, &["tar", "-P", "--format=ustar", "--transform", transform, "-C", &dir, "-cf", &file, "x"])?;
        refused(&hostile, &[words]).await?;
    }
    std::os::unix::fs::symlink("/etc", hostile.join("base"))?;
    run(server, &["tar", "--format=ustar", "-C", &dir, "-cf", &file, "base"])?;
    refused(&hostile, &["a link to /etc"]).await?;

    // Another cluster's.
    let other = Archived::start().await?;
    let theirs = base_backup(&other.server, "theirs", &["-Ft", "-X", "stream"])?;
    refused(&theirs, &["system identifier"]).await?;
    Ok(())
}
