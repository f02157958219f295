//! Exports of real backups, judged by PostgreSQL's own tools: `pg_verifybackup` accepts them, servers start on them and
//! hold what the origin held. And the way back: base backups that become backups.

#[allow(dead_code, reason = "the backup tests use the rest of it")]
#[path = "../backup/support.rs"]
mod archived;
mod import;
#[allow(dead_code, reason = "the restore tests use the rest of it")]
#[path = "../restore/support.rs"]
mod restoring;
mod support;

use archived::{Archived, Result, context};
use engine::EngineError;
use engine::export::{
    self, ExportFormat, ExportOptions, ExportTo, ExportedArchiving, ExportedWal, ManifestChecksums, TarCompression,
};
use engine::restore::TablespaceMapping;
use std::io::{self, Write};
use std::sync::{Arc, Mutex};
use store::Store;
use support::{Origin, options, run, start, unpack, verify_with};
use testkit::compare::amcheck;

#[tokio::test(flavor = "multi_thread")]
async fn a_plain_directory_is_verified_and_starts_by_itself() -> Result {
    let origin = Origin::start().await?;
    let server = &origin.archived.server;
    let cluster = origin.archived.cluster().await?;
    let backup = origin.incremental.backup;
    let to = server.make_dir("exported")?.join("plain");
    let space = server.make_dir("exported-space")?;
    let mapping = TablespaceMapping { from: "fast".into(), to: space.clone() };

    // Where the origin's tablespace is, nothing is written.
    let refused = export::export(&context(), &cluster, ExportTo::Directory(to.clone()), &options(backup)).await;
    assert!(matches!(&refused, Err(EngineError::Refused { reason, .. }) if reason.contains("tablespace fast")));
    assert!(!to.exists());

    let wanted = ExportOptions { tablespaces: vec![mapping.clone()], ..options(backup) };
    let report = export::export(&context(), &cluster, ExportTo::Directory(to.clone()), &wanted).await?;
    assert!(report.files > 500 && report.bytes > 10 << 20 && report.wal_files >= 1, "{report:?}");
    assert_eq!(report.bytes, {
        let manifest: serde_json::Value = serde_json::from_slice(&std::fs::read(to.join("backup_manifest"))?)?;
        let sizes = manifest["Files"].as_array().expect("files").iter().map(|file| file["Size"].as_u64());
        sizes.sum::<Option<u64>>().expect("sizes")
    });
    assert!(!to.join("tablespace_map").exists(), "the links are there");
    assert_eq!(std::fs::read_link(to.join(format!("pg_tblspc/{}", origin.space_oid)))?, space);
    verify_with(server, 15, &[], &to)?;
    // A byte more, and it is not accepted: the oracle looks.
    std::fs::write(to.join("global/extra"), b"x")?;
    assert!(verify_with(server, 15, &[], &to).is_err());
    std::fs::remove_file(to.join("global/extra"))?;
    let copy = start(&to)?;
    assert_eq!(origin.sums(&copy)?, origin.expected, "{}", copy.log_tail());
    assert_eq!(copy.sql("SHOW archive_mode")?, "off");
    amcheck(&copy)?;
    drop(copy);

    // Without WAL, with the other checksums, and archiving as it was.
    let (to, space) = (server.make_dir("exported")?.join("again"), server.make_dir("again-space")?);
    let wanted = ExportOptions {
        wal: ExportedWal::Leave,
        checksums: ManifestChecksums::Sha256,
        archiving: ExportedArchiving::AsOrigin,
        tablespaces: vec![TablespaceMapping { to: space, ..mapping }],
        ..wanted
    };
    let report = export::export(&context(), &cluster, ExportTo::Directory(to.clone()), &wanted).await?;
    assert_eq!(report.wal_files, 0);
    assert!(report.warnings.iter().any(|text| text.contains("archives as its origin")), "{report:?}");
    assert!(std::fs::read_to_string(to.join("backup_manifest"))?.contains("SHA256"));
    verify_with(server, 15, &["-n"], &to)?;
    assert!(verify_with(server, 15, &[], &to).is_err(), "no WAL is in it");
    assert!(!std::fs::read_to_string(to.join("postgresql.auto.conf"))?.contains("archive_mode"));

    // A directory with something in it is not written to.
    let again = export::export(&context(), &cluster, ExportTo::Directory(to.clone()), &wanted).await;
    assert!(matches!(again, Err(EngineError::Refused { .. })));
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn tar_files_are_as_pg_basebackup_makes_them() -> Result {
    let origin = Origin::start().await?;
    let server = &origin.archived.server;
    let cluster = origin.archived.cluster().await?;
    let backup = origin.incremental.backup;
    let theirs = server.make_dir("theirs")?.join("tar");
    let tar = |compression, wal| ExportOptions { format: ExportFormat::Tar, compression, wal, ..options(backup) };
    server.tool("pg_basebackup", &["-d", &server.conninfo(), "-Ft", "-c", "fast", "-D", &theirs.to_string_lossy()])?;
    for (compression, suffix) in [
        (TarCompression::None, ""),
        (TarCompression::Gzip(1), ".gz"),
        (TarCompression::Lz4, ".lz4"),
        (TarCompression::Zstd(1), ".zst"),
    ] {
        let to = server.make_dir("tars")?.join(format!("to{suffix}"));
        let wanted = tar(compression, ExportedWal::Include);
        export::export(&context(), &cluster, ExportTo::Directory(to.clone()), &wanted).await?;
        server.user().own(&to)?;
        let mut names: Vec<String> = std::fs::read_dir(&to)?
            .map(|entry| Ok(entry?.file_name().to_string_lossy().into_owned()))
            .collect::<io::Result<_>>()?;
        names.sort();
        let oid = origin.space_oid.clone();
        let wal = if suffix == ".gz" { "pg_wal.tar.gz" } else { "pg_wal.tar" };
        let mut expect =
            vec![format!("{oid}.tar{suffix}"), "backup_manifest".into(), format!("base.tar{suffix}"), wal.to_owned()];
        expect.sort();
        assert_eq!(names, expect);
        // From 18 on, tar files are verified as they are.
        if testkit::pg::PgInstall::find(18).is_ok() {
            verify_with(server, 18, &["-n"], &to)?;
        }
        let unpacked = unpack(server, &to, suffix)?;
        verify_with(server, 15, &[], &unpacked)?;
        let copy = start(&unpacked)?;
        assert_eq!(origin.sums(&copy)?, origin.expected, "{}", copy.log_tail());
        drop(copy);
        std::fs::remove_dir_all(&unpacked)?;
        if suffix.is_empty() {
            // Each member that both have is described by the same header.
            for name in ["base.tar".to_owned(), format!("{oid}.tar")] {
                let (ours, theirs) = (support::headers(&to.join(&name))?, support::headers(&theirs.join(&name))?);
                let mut same = 0;
                for (member, header) in &ours {
                    if let Some(other) = theirs.get(member) {
                        assert_eq!(header, other, "{name}: {member}");
                        same += 1;
                    }
                }
                assert!(same > 1 && same + 10 > ours.len(), "{name}: {same} of {}", ours.len());
                assert!(same + 10 > theirs.len(), "{name}: {same} of theirs, {}", theirs.len());
            }
        }
    }
    Ok(())
}

/// A pipe whose reader keeps everything, or fails after so many bytes.
#[derive(Clone, Default)]
struct Reader {
    got: Arc<Mutex<Vec<u8>>>,
    fails: Option<(usize, io::ErrorKind)>,
}

impl Write for Reader {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let mut got = self.got.lock().expect("not poisoned");
        got.extend_from_slice(bytes);
        match self.fails {
            Some((at, kind)) if got.len() >= at => Err(kind.into()),
            _ => Ok(bytes.len()),
        }
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn one_tar_goes_through_a_pipe_and_damage_is_refused() -> Result {
    let archived = Archived::start().await?;
    let server = &archived.server;
    server.sql("CREATE TABLE t AS SELECT g AS id, repeat(md5(g::text), 3) AS x FROM generate_series(1, 30000) g")?;
    let backup = archived.backup().await?;
    let cluster = archived.cluster().await?;
    let wanted = ExportOptions { format: ExportFormat::Tar, ..options(backup.backup) };

    let reader = Reader::default();
    let report = export::export(&context(), &cluster, ExportTo::Pipe(Box::new(reader.clone())), &wanted).await?;
    assert_eq!(report.to, None);
    let to = server.make_dir("pipe")?.join("data");
    std::fs::create_dir(&to)?;
    server.user().own(&to)?;
    let tar = to.with_extension("tar");
    let bytes = std::mem::take(&mut *reader.got.lock().expect("not poisoned"));
    std::fs::write(&tar, &bytes)?;
    let (tar_text, to_text) = (tar.to_string_lossy().into_owned(), to.to_string_lossy().into_owned());
    server.user().own(&tar)?;
    run(server, &["tar", "--same-permissions", "-xf", &tar_text, "-C", &to_text])?;
    run(server, &["chmod", "700", &to_text])?;
    verify_with(server, 15, &[], &to)?;
    let copy = start(&to)?;
    assert_eq!(
        copy.sql("SELECT count(*), sum(hashtext(x)) FROM t")?,
        server.sql("SELECT count(*), sum(hashtext(x)) FROM t")?
    );
    drop(copy);

    // The reader goes away, or has no room: that is said.
    for (at, kind, words) in
        [(5 << 20, io::ErrorKind::BrokenPipe, "reader of the pipe"), (bytes.len(), io::ErrorKind::StorageFull, "full")]
    {
        let reader = Reader { fails: Some((at, kind)), ..Reader::default() };
        let failed = export::export(&context(), &cluster, ExportTo::Pipe(Box::new(reader)), &wanted).await;
        let error = failed.expect_err("it was cut off").to_string();
        assert!(error.contains(words), "{error}");
    }
    let plain = ExportOptions { format: ExportFormat::Plain, ..wanted.clone() };
    let failed = export::export(&context(), &cluster, ExportTo::Pipe(Box::new(Reader::default())), &plain).await;
    assert!(matches!(failed, Err(EngineError::Refused { .. })));

    // Damage in a pack: it is named, and nothing is left.
    let packs = archived.memory.list_page(Some(&cluster.name().packs_prefix()), None, 10).await?;
    let pack = packs.iter().max_by_key(|object| object.size).expect("packs").path.clone();
    let mut damaged = archived.memory.get(&pack, 1 << 30).await?.to_vec();
    let middle = damaged.len() / 2;
    damaged[middle] ^= 1;
    archived.memory.delete(&pack).await?;
    archived.memory.put(&pack, damaged.into()).await?;
    for format in [ExportFormat::Plain, ExportFormat::Tar] {
        let to = server.make_dir("harmed")?.join("to");
        let wanted = ExportOptions { format, ..wanted.clone() };
        let failed = export::export(&context(), &cluster, ExportTo::Directory(to.clone()), &wanted).await;
        let error = failed.expect_err("a pack is damaged").to_string();
        assert!(error.contains(pack.as_str()), "{error}");
        assert!(!to.exists(), "{format:?}: nothing is left");
    }
    // WAL that is missing: refused beforehand.
    let wal = archived.memory.list_page(Some(&cluster.name().wal_prefix()), None, 1000).await?;
    for object in wal {
        archived.memory.delete(&object.path).await?;
    }
    let to = server.make_dir("harmed")?.join("to");
    let failed = export::export(&context(), &cluster, ExportTo::Directory(to.clone()), &wanted).await;
    assert!(matches!(&failed, Err(EngineError::Refused { reason, .. }) if reason.contains("WAL segment")));
    Ok(())
}
