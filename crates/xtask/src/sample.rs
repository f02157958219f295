//! `cargo xtask sample-repository`: small repositories of the format as it is now, from a real server, to be kept in
//! `testdata/repo` and read by every later version.
//!
//! Run once for each format version that is released. Samples that are in the tree are never written again.

use crate::product::{Build, Product, build, restart_if_needed};
use crate::sh;
use anyhow::{Context, Result, bail};
use std::path::{Path, PathBuf};
use std::time::Duration;
use testkit::pg::{Cluster, DEFAULT_MAJOR, StopMode};

#[derive(Debug, clap::Args)]
pub(crate) struct Options {
    /// Where to: a directory that is not there yet
    #[arg(long, default_value = "testdata/repo/v1")]
    to: PathBuf,
}

/// Few objects and small segments: the samples stay in the tree for ever.
const CONTENT: &str = "
CREATE TABLE numbers AS SELECT i AS id, i % 10 AS digit FROM generate_series(1, 20000) i;
ALTER TABLE numbers ADD PRIMARY KEY (id);
CREATE UNLOGGED TABLE fleeting AS SELECT 1 AS one;
CREATE TABLE empty (x int);
";

/// What no sample needs: template databases are most of a new cluster.
const REMOVE: &str = "
UPDATE pg_database SET datistemplate = false;
DROP DATABASE template0;
DROP DATABASE template1;
";

pub(crate) fn run(options: &Options) -> Result<()> {
    let to = sh::repo_root().join(&options.to);
    if to.exists() {
        bail!("{} is there already: samples are never written again", to.display());
    }
    let program = build(Build::Debug)?;
    let builder = Cluster::builder(DEFAULT_MAJOR).wal_segsize_mb(1).without_fsync();
    let builder = builder.conf("max_wal_size", "16MB").conf("min_wal_size", "2MB");
    let mut cluster = builder.conf("allow_in_place_tablespaces", "on").start()?;
    for sql in [CONTENT, "CREATE TABLESPACE inside LOCATION ''", REMOVE] {
        cluster.sql(sql)?;
    }
    cluster.sql("CREATE TABLE elsewhere TABLESPACE inside AS SELECT i FROM generate_series(1, 100) i")?;
    let product = Product::install(&cluster, &program)?;
    let text = |path: &Path| path.to_string_lossy().into_owned();
    let conninfo = cluster.conninfo();
    for (name, key) in [("plain", None), ("encrypted", Some(text(&product.key)))] {
        let repo = text(&product.repo.join(name));
        let repo_name = format!("--repo-name={name}");
        let mut init = vec!["init", name, "--pg", &conninfo, "--repo", &repo, &repo_name, "--compression", "zstd:19"];
        init.extend(["--apply", "--replace-archive-command"]);
        match &key {
            Some(file) => init.extend(["--key-file", file]),
            None => init.push("--no-encryption"),
        }
        pgkeep(&product, &cluster, &init)?;
        restart_if_needed(&mut cluster)?;
        pgkeep(&product, &cluster, &["backup", name, "--label", "a sample"])?;
        cluster.sql("UPDATE numbers SET digit = digit + 1 WHERE id <= 1000")?;
        cluster.sql("SELECT pg_create_restore_point('after the update')")?;
        archive(&cluster)?;
    }
    another_codec(&product, &cluster)?;
    next_timeline(&mut cluster)?;
    for name in ["plain", "encrypted"] {
        pgkeep(&product, &cluster, &["--cluster", name, "verify", "--all", "--deep"])?;
    }
    cluster.stop(StopMode::Fast)?;
    std::fs::create_dir_all(&to)?;
    for name in ["plain", "encrypted"] {
        copy_tree(&product.repo.join(name), &to.join(name))?;
    }
    std::fs::write(to.join("encrypted.key"), std::fs::read(&product.key)?)?;
    println!("{} is written. `cargo test -p repo --test old_repositories` says its digests.", to.display());
    Ok(())
}

fn pgkeep(product: &Product, cluster: &Cluster, arguments: &[&str]) -> Result<()> {
    sh::quiet(&mut product.command(cluster, arguments)).map(drop)
}

fn archive(cluster: &Cluster) -> Result<()> {
    let segment = cluster.switch_wal()?;
    cluster.wait_archived(&segment, Duration::from_secs(60))
}

/// One segment with the other compressor.
fn another_codec(product: &Product, cluster: &Cluster) -> Result<()> {
    let config = std::fs::read_to_string(&product.config)?;
    if !config.contains("\"zstd:19\"") {
        bail!("{}: names no compression", product.config.display());
    }
    std::fs::write(&product.config, config.replace("\"zstd:19\"", "\"lz4\""))?;
    cluster.sql("UPDATE numbers SET digit = digit + 1 WHERE id > 19000")?;
    archive(cluster)
}

/// Recovery to the end of the WAL that is there begins timeline 2: its history and the unfinished last segment of
/// timeline 1 go to the archive.
fn next_timeline(cluster: &mut Cluster) -> Result<()> {
    cluster.sql("INSERT INTO empty VALUES (0)")?;
    cluster.append_conf("restore_command", "false")?;
    cluster.stop(StopMode::Immediate)?;
    let signal = cluster.data_dir().join("recovery.signal");
    let mut touch = cluster.command_as_pg("touch");
    sh::quiet(touch.arg(&signal))?;
    cluster.start_again()?;
    cluster.wait_for("SELECT pg_is_in_recovery()", "f", Duration::from_secs(60))?;
    cluster.sql("INSERT INTO empty VALUES (1)")?;
    archive(cluster)
}

/// Directories and plain files, nothing else.
fn copy_tree(from: &Path, to: &Path) -> Result<()> {
    std::fs::create_dir(to).with_context(|| format!("cannot make {}", to.display()))?;
    for entry in std::fs::read_dir(from).with_context(|| format!("cannot read {}", from.display()))? {
        let entry = entry?;
        let target = to.join(entry.file_name());
        if entry.file_type()?.is_dir() {
            copy_tree(&entry.path(), &target)?;
        } else {
            std::fs::write(&target, std::fs::read(entry.path())?)?;
        }
    }
    Ok(())
}
