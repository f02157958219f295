//! Packages of the distribution, and of its other suites in a folder of their own.

use super::tools_dir;
use crate::sh;
use anyhow::{Context, Result, bail};
use std::path::{Path, PathBuf};
use std::process::Command;

/// A command with the rights of root: this process's own, or through `sudo` where that asks nothing.
fn as_root(program: &str) -> Option<Command> {
    if sh::quiet(Command::new("id").arg("-u")).is_ok_and(|uid| uid.trim() == "0") {
        return Some(Command::new(program));
    }
    if sh::on_path("sudo") && sh::quiet(Command::new("sudo").args(["-n", "true"])).is_ok() {
        let mut command = Command::new("sudo");
        command.args(["-n", program]);
        return Some(command);
    }
    None
}

/// Installs packages of the machine's own release.
pub(super) fn install(packages: &[&str]) -> Result<()> {
    let Some(mut update) = as_root("apt-get") else {
        bail!("this needs root; ask for: apt-get install {}", packages.join(" "));
    };
    // A source that cannot be reached must not stop the others; the installation fails if it was the one needed.
    sh::quiet(update.args(["update", "-q"]).env("DEBIAN_FRONTEND", "noninteractive")).ok();
    let mut command = as_root("env").context("the rights of root are gone")?;
    command.args(["DEBIAN_FRONTEND=noninteractive", "apt-get", "install", "-q", "-y", "--no-install-recommends"]);
    sh::quiet(command.args(packages)).map(drop)
}

/// True when the version's contrib modules are there.
pub(super) fn has_contrib(major: u32) -> bool {
    Path::new(&format!("/usr/share/postgresql/{major}/extension/amcheck.control")).exists()
}

/// Adds an ordinary user for servers where there is none at all.
pub(super) fn add_user() -> Result<()> {
    let Some(mut command) = as_root("useradd") else { bail!("this needs root; ask for: useradd --system postgres") };
    sh::quiet(command.args(["--system", "--user-group", "--shell", "/usr/sbin/nologin", "postgres"])).map(drop)
}

/// A program from a package, without installing it when there is no right to. Returns its path.
pub(crate) fn program(package: &str, program: &str) -> Result<PathBuf> {
    let own = tools_dir()?.join(package).join("usr/bin").join(program);
    if own.exists() {
        return Ok(own);
    }
    if let Some(path) = sh::which(program) {
        return Ok(path);
    }
    let scratch = tempfile::tempdir()?;
    if sh::quiet(Command::new("apt-get").args(["download", "-q", package]).current_dir(scratch.path())).is_err() {
        install(&[package])?;
        return sh::which(program).with_context(|| format!("package {package} brought no program {program}"));
    }
    for package_file in files_ending(scratch.path(), ".deb")? {
        unpack(&package_file, &tools_dir()?.join(package))?;
    }
    Ok(own)
}

/// Puts the server of another suite into a folder of its own and makes it run here: its programs get that folder's
/// loader and libraries, because they are made for a newer C library than the machine's. The folder cannot be moved.
pub(super) fn install_from_suite(major: u32, suite: &str) -> Result<()> {
    let patchelf = program("patchelf", "patchelf")?;
    let package = format!("postgresql-{major}");
    let root = unpack_from_suite(&format!("pg-{major}"), suite, &package, &[&package, "postgresql-client"])?;
    let programs = root.join(format!("usr/lib/postgresql/{major}/bin"));
    let mut paths: Vec<PathBuf> = std::fs::read_dir(&programs)
        .with_context(|| format!("cannot read {}", programs.display()))?
        .map(|entry| entry.map(|entry| entry.path()))
        .collect::<std::io::Result<_>>()?;
    // The server last: when it runs, everything was done, and an interrupted set-up is seen and made again.
    paths.sort_by_key(|path| path.ends_with("postgres"));
    patch_programs(&patchelf, &root, &paths)
}

/// Puts one program of another suite into a folder of its own, and makes it run here as the servers do. Returns its
/// path.
pub(super) fn program_from_suite(package: &str, suite: &str) -> Result<PathBuf> {
    let patchelf = program("patchelf", "patchelf")?;
    let root = unpack_from_suite(&format!("{package}-{suite}"), suite, package, &[package])?;
    let program = root.join("usr/bin").join(package);
    patch_programs(&patchelf, &root, std::slice::from_ref(&program))?;
    Ok(program)
}

/// Puts one program of another suite into a folder of its own as it is; it runs with this machine's libraries if they
/// are new enough.
pub(super) fn plain_program_from_suite(package: &str, suite: &str) -> Result<PathBuf> {
    let root = unpack_from_suite(&format!("{package}-{suite}-plain"), suite, package, &[package])?;
    Ok(root.join("usr/bin").join(package))
}

/// A package of another suite with all libraries it needs, in the folder `name` among the tools. Other packages are
/// unpacked only when their name begins with one of `wanted`: servers do not need an init system or Perl.
fn unpack_from_suite(name: &str, suite: &str, package: &str, wanted: &[&str]) -> Result<PathBuf> {
    let root = tools_dir()?.join(name);
    if root.exists() {
        std::fs::remove_dir_all(&root).with_context(|| format!("cannot remove {}", root.display()))?;
    }
    let scratch = tempfile::tempdir()?;
    download_suite(scratch.path(), suite, &[package])?;
    std::fs::create_dir_all(&root)?;
    for package_file in files_ending(&scratch.path().join("cache/archives"), ".deb")? {
        let file = package_file.file_name().unwrap_or_default().to_string_lossy();
        let is_library = file.starts_with("lib") || file.starts_with("zlib1g");
        if is_library || wanted.iter().any(|prefix| file.starts_with(prefix)) {
            unpack(&package_file, &root)?;
        }
    }
    Ok(root)
}

fn download_suite(scratch: &Path, suite: &str, packages: &[&str]) -> Result<()> {
    let apt = private_apt(scratch, suite, "deb")?;
    apt(&[&["install", "-y", "--no-install-recommends", "--download-only"][..], packages].concat())?;
    Ok(())
}

/// The source of a package of some suite, and another package of the same version, in folders of their own among the tools:
/// `NAME/source` and `NAME/package`. Nothing is installed.
pub(crate) fn source_and_package(name: &str, suite: &str, source: &str, package: &str) -> Result<PathBuf> {
    let root = tools_dir()?.join(name);
    let done = root.join("done");
    if done.exists() {
        return Ok(root);
    }
    if root.exists() {
        std::fs::remove_dir_all(&root).with_context(|| format!("cannot remove {}", root.display()))?;
    }
    let scratch = tempfile::tempdir()?;
    let apt = private_apt(scratch.path(), suite, "deb deb-src")?;
    let files = scratch.path().join("files");
    std::fs::create_dir_all(&files)?;
    // apt puts both where it is called.
    let here = std::env::current_dir()?;
    std::env::set_current_dir(&files)?;
    let fetched = apt(&["source", "--download-only", source]).and_then(|_| apt(&["download", package]));
    std::env::set_current_dir(here)?;
    fetched?;
    let entries = std::fs::read_dir(&files)?.filter_map(|entry| Some(entry.ok()?.path()));
    let is_source = |path: &PathBuf| path.file_name().is_some_and(|name| name.to_string_lossy().contains(".orig.tar."));
    let tar = entries.into_iter().find(is_source).with_context(|| format!("{source} came without its source"))?;
    std::fs::create_dir_all(root.join("source"))?;
    let mut command = Command::new("tar");
    command.arg("xf").arg(tar).args(["--strip-components=1", "--no-same-owner", "-C"]).arg(root.join("source"));
    sh::quiet(&mut command)?;
    for package_file in files_ending(&files, ".deb")? {
        unpack(&package_file, &root.join("package"))?;
    }
    sh::quiet(Command::new("chmod").args(["-R", "a+rX"]).arg(&root))?;
    std::fs::write(done, "")?;
    Ok(root)
}

/// `apt-get` with a root of its own, that knows one suite only; its lists are fetched.
fn private_apt(scratch: &Path, suite: &str, types: &str) -> Result<impl Fn(&[&str]) -> Result<String>> {
    for dir in ["state/lists/partial", "cache/archives/partial", "parts"] {
        std::fs::create_dir_all(scratch.join(dir))?;
    }
    std::fs::write(scratch.join("state/status"), "")?;
    let (uri, signed_by) = own_mirror()?;
    let source = format!("Types: {types}\nURIs: {uri}\nSuites: {suite}\nComponents: main\nSigned-By: {signed_by}\n");
    std::fs::write(scratch.join("parts/suite.sources"), source)?;
    let scratch = scratch.to_owned();
    let apt = move |arguments: &[&str]| {
        let mut command = Command::new("apt-get");
        for (option, value) in [
            ("Dir::State", "state"),
            ("Dir::State::status", "state/status"),
            ("Dir::Cache", "cache"),
            ("Dir::Etc::sourceparts", "parts"),
        ] {
            command.arg("-o").arg(format!("{option}={}", scratch.join(value).display()));
        }
        command.args(["-o", "Dir::Etc::sourcelist=/dev/null", "-o", "Debug::NoLocking=1", "-q"]);
        command.args(["-o", "APT::Keep-Downloaded-Packages=true", "-o", "APT::Sandbox::User=root"]);
        command.args(["-o", "Acquire::Languages=none", "-o", "Acquire::Retries=3"]);
        sh::quiet(command.args(arguments))
    };
    apt(&["update"])?;
    Ok(apt)
}

/// The address from which this machine gets its Debian packages, and the keys it trusts for that.
fn own_mirror() -> Result<(String, String)> {
    let format = "$(REPO_URI) $(ORIGIN) $(CODENAME)";
    let query =
        || sh::quiet(Command::new("apt-get").args(["indextargets", "--format", format, "Created-By: Packages"]));
    let mut lines = query()?;
    if lines.trim().is_empty() {
        if let Some(mut update) = as_root("apt-get") {
            sh::quiet(update.args(["update", "-q"])).ok();
        }
        lines = query()?;
    }
    let uri = lines.lines().find_map(|line| {
        let mut words = line.split_whitespace();
        let (uri, origin, codename) = (words.next()?, words.next()?, words.next()?);
        // The plain release, not its security or update suites, which may lie elsewhere.
        (origin == "Debian" && !codename.contains('-')).then(|| uri.to_owned())
    });
    let uri = uri.context("this machine has no Debian package source; PostgreSQL 17 and 18 come from Debian")?;
    let keys = "/usr/share/keyrings/debian-archive-keyring.gpg";
    if !Path::new(keys).exists() {
        bail!("{keys} is missing: install package debian-archive-keyring");
    }
    Ok((uri, keys.to_owned()))
}

fn unpack(package_file: &Path, root: &Path) -> Result<()> {
    std::fs::create_dir_all(root)?;
    sh::quiet(Command::new("dpkg").arg("-x").arg(package_file).arg(root)).map(drop)
}

/// Gives programs the loader and the libraries below `root`.
fn patch_programs(patchelf: &Path, root: &Path, programs: &[PathBuf]) -> Result<()> {
    let libraries = library_folders(root)?;
    let loader = libraries
        .iter()
        .flat_map(|dir| std::fs::read_dir(dir).into_iter().flatten().filter_map(Result::ok))
        .map(|entry| entry.path())
        .find(|path| path.file_name().is_some_and(|name| name.to_string_lossy().starts_with("ld-linux")))
        .with_context(|| format!("no loader below {}", root.display()))?;
    let search: Vec<String> = libraries.iter().map(|dir| dir.to_string_lossy().into_owned()).collect();
    for path in programs.iter().filter(|path| is_elf(path)) {
        let mut command = Command::new(patchelf);
        command.arg("--set-interpreter").arg(&loader);
        command.args(["--force-rpath", "--set-rpath", &search.join(":")]).arg(path);
        sh::quiet(&mut command)?;
    }
    Ok(())
}

/// Every folder below `usr/lib` and `lib` that holds shared libraries directly, extension modules not counted.
fn library_folders(root: &Path) -> Result<Vec<PathBuf>> {
    let mut found = Vec::new();
    let mut todo = vec![root.join("lib"), root.join("usr/lib")];
    while let Some(dir) = todo.pop() {
        // Only real folders: in newer suites /lib is a link to /usr/lib.
        if !std::fs::symlink_metadata(&dir).is_ok_and(|facts| facts.is_dir()) {
            continue;
        }
        let mut has_libraries = false;
        for entry in std::fs::read_dir(&dir)? {
            let path = entry?.path();
            let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
            has_libraries |= name.contains(".so.") && !path.is_dir();
            let is_plugin_folder = ["postgresql", "gconv", "engines-3", "ossl-modules", "perl", "python3"];
            if path.is_dir() && !is_plugin_folder.contains(&name.as_str()) {
                todo.push(path);
            }
        }
        if has_libraries {
            found.push(dir);
        }
    }
    found.sort();
    Ok(found)
}

fn is_elf(path: &Path) -> bool {
    use std::io::Read;
    let mut magic = [0_u8; 4];
    let is_link = std::fs::symlink_metadata(path).is_ok_and(|facts| facts.is_symlink());
    !is_link
        && std::fs::File::open(path).and_then(|mut file| file.read_exact(&mut magic)).is_ok()
        && magic == *b"\x7fELF"
}

fn files_ending(dir: &Path, suffix: &str) -> Result<Vec<PathBuf>> {
    let mut found = Vec::new();
    for entry in std::fs::read_dir(dir).with_context(|| format!("cannot read {}", dir.display()))? {
        let path = entry?.path();
        if path.to_string_lossy().ends_with(suffix) {
            found.push(path);
        }
    }
    if found.is_empty() {
        bail!("nothing was downloaded into {}", dir.display());
    }
    Ok(found)
}
