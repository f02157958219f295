//! What the export tests share: an origin with a tablespace and two backups, and PostgreSQL's tools.

use super::archived::{Archived, Result};
use anyhow::{Context as _, ensure};
use engine::backup::BackupReport;
use engine::export::{ExportFormat, ExportOptions, ExportedArchiving, ExportedWal, ManifestChecksums, TarCompression};
use repo::BackupId;
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use testkit::pg::{Cluster, PgInstall};

/// Plain, with WAL.
pub(crate) fn options(backup: BackupId) -> ExportOptions {
    ExportOptions {
        backup,
        format: ExportFormat::Plain,
        compression: TarCompression::None,
        checksums: ManifestChecksums::Crc32c,
        wal: ExportedWal::Include,
        archiving: ExportedArchiving::Off,
        tablespaces: Vec::new(),
        workers: 2,
    }
}

const SUMS: &str = "SELECT count(*), sum(hashtext(t::text)) FROM t; SELECT count(*), sum(hashtext(u::text)) FROM u";

/// A server with tables in two places, a full backup, changes here and there, and a backup that builds on it.
pub(crate) struct Origin {
    pub(crate) archived: Archived,
    pub(crate) incremental: BackupReport,
    pub(crate) space_oid: String,
    /// What the tables held when the second backup was made.
    pub(crate) expected: String,
}

impl Origin {
    pub(crate) async fn start() -> Result<Self> {
        let archived = Archived::start().await?;
        let server = &archived.server;
        let space = server.make_dir("fast")?;
        server.sql(&format!("CREATE TABLESPACE fast LOCATION '{}'", space.display()))?;
        server
            .sql("CREATE TABLE t AS SELECT g AS id, repeat(md5(g::text), 5) AS x FROM generate_series(1, 60000) g")?;
        server.sql(
            "CREATE TABLE u TABLESPACE fast AS SELECT g AS id, md5(g::text) AS x FROM generate_series(1, 40000) g",
        )?;
        server.sql("CREATE INDEX ON t (id); CREATE UNLOGGED TABLE v AS SELECT 1 AS id; CHECKPOINT")?;
        archived.backup().await?;
        server.sql("UPDATE t SET x = 'new' WHERE id % 5000 = 0; DELETE FROM u WHERE id % 7000 = 0; CHECKPOINT")?;
        let incremental = archived.backup().await?;
        ensure!(incremental.prior.is_some() && incremental.numbers.bytes_shared > 0, "{incremental:?}");
        let space_oid = server.sql("SELECT oid FROM pg_tablespace WHERE spcname = 'fast'")?;
        let expected = server.sql(SUMS)?;
        server.sql("INSERT INTO t VALUES (-1, 'too late')")?;
        Ok(Self { incremental, space_oid, expected, archived })
    }

    pub(crate) fn sums(&self, copy: &Cluster) -> Result<String> {
        copy.sql(SUMS)
    }
}

/// Runs a program as the server's user.
pub(crate) fn run(server: &Cluster, words: &[&str]) -> Result<String> {
    let output = server.command_as_pg(words[0]).args(&words[1..]).output().context("running it")?;
    let text = format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    ensure!(output.status.success(), "{words:?}: {text}");
    Ok(text)
}

/// `pg_verifybackup` of a major version.
pub(crate) fn verify_with(server: &Cluster, major: u32, options: &[&str], dir: &Path) -> Result {
    let program = PgInstall::find(major)?.bin("pg_verifybackup")?.to_string_lossy().into_owned();
    let dir = dir.to_string_lossy();
    let words: Vec<&str> = [program.as_str(), "-e"].into_iter().chain(options.iter().copied()).chain([&*dir]).collect();
    let said = run(server, &words)?;
    ensure!(said.contains("backup successfully verified"), "{said}");
    Ok(())
}

/// What a human does with tar files: base, then each tablespace where its link leads, then WAL.
pub(crate) fn unpack(server: &Cluster, from: &Path, suffix: &str) -> Result<PathBuf> {
    let to = from.with_file_name("unpacked");
    std::fs::create_dir(&to)?;
    server.user().own(&to)?;
    let extract = |name: String, to: &Path| {
        let (from, to) = (from.join(name).to_string_lossy().into_owned(), to.to_string_lossy().into_owned());
        // GNU tar does not know this suffix.
        let how = if from.ends_with(".lz4") { "--use-compress-program=lz4" } else { "--auto-compress" };
        run(server, &["tar", how, "-xpf", &from, "-C", &to])
    };
    extract(format!("base.tar{suffix}"), &to)?;
    run(server, &["chmod", "700", &to.to_string_lossy()])?;
    let map = std::fs::read_to_string(to.join("tablespace_map"))?;
    for line in map.lines() {
        let (oid, _) = line.split_once(' ').context("an OID and a path")?;
        let space = server.make_dir(&format!("unpacked-{oid}{suffix}"))?;
        extract(format!("{oid}.tar{suffix}"), &space)?;
        let link = to.join(format!("pg_tblspc/{oid}"));
        ensure!(!link.exists() && !link.is_symlink(), "as in pg_basebackup's, links are in the map only");
        std::os::unix::fs::symlink(&space, &link)?;
    }
    extract(if suffix == ".gz" { "pg_wal.tar.gz".into() } else { "pg_wal.tar".into() }, &to.join("pg_wal"))?;
    std::fs::copy(from.join("backup_manifest"), to.join("backup_manifest"))?;
    server.user().own(&to.join("backup_manifest"))?;
    Ok(to)
}

/// Starts a server on what was exported.
pub(crate) fn start(dir: &Path) -> Result<Cluster> {
    let map = dir.join("tablespace_map");
    // The server makes the links anew from this file.
    if let Ok(text) = std::fs::read_to_string(&map) {
        let moved: Result<String> = text
            .lines()
            .map(|line| {
                let oid = line.split(' ').next().unwrap_or_default();
                let to = std::fs::read_link(dir.join(format!("pg_tblspc/{oid}")))?;
                Ok(format!("{oid} {}\n", to.display()))
            })
            .collect();
        std::fs::write(&map, moved?)?;
    }
    let mut server = Cluster::adopt(dir, 15)?;
    server.start_again()?;
    Ok(server)
}

/// The headers of a tar file by member, without size, time and checksum, which differ with the content.
pub(crate) fn headers(file: &Path) -> Result<BTreeMap<String, Vec<u8>>> {
    let bytes = std::fs::read(file)?;
    let (mut at, mut headers) = (0, BTreeMap::new());
    while bytes.get(at).is_some_and(|byte| *byte != 0) {
        let mut header = bytes[at..at + 512].to_vec();
        let end = header.iter().position(|byte| *byte == 0).context("a name")?;
        let name = String::from_utf8(header[..end].to_vec())?.trim_start_matches("./").to_owned();
        let size = std::str::from_utf8(&header[124..135])?;
        let size = usize::from_str_radix(size, 8)?;
        header[..100].fill(0);
        header[124..156].fill(0);
        headers.insert(name, header);
        at += 512 + size.next_multiple_of(512);
    }
    ensure!(bytes.len() >= at + 1024 && bytes[at..].iter().all(|byte| *byte == 0), "no end");
    Ok(headers)
}
