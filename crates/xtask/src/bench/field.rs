//! The server that is backed up and those who do it, one at a time.

use super::Options;
use super::measure::{Run, dir_bytes, measure, measure_and_hear};
use super::peers::{Archiving, Contender, PgBackRest, Pgkeep, run};
use crate::product::{Build, Product, build};
use anyhow::{Context, Result, bail};
use std::cell::RefCell;
use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;
use testkit::load::fill;
use testkit::pg::{Cluster, ClusterBuilder};

/// What a contender is asked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Kind {
    Full,
    Incremental,
}

/// A running cluster and its contenders, each with a repository of its own.
pub(super) struct Field {
    pub(super) cluster: Cluster,
    pub(super) contenders: Vec<Box<dyn Contender>>,
    /// Who archives while nobody is measured; nobody without.
    archiver: Option<usize>,
    talks: bool,
    without_index: bool,
    /// How pgkeep found the changed pages, as far as it said.
    ways: RefCell<BTreeSet<String>>,
}

/// How servers of benchmarks are set. Nothing but the workload changes pages, so that the share that changed is known.
pub(super) fn builder(options: &Options) -> ClusterBuilder {
    let builder = Cluster::builder(options.pg)
        .archive_command("/bin/true")
        .conf("autovacuum", "off")
        .conf("max_wal_size", "4GB")
        .conf("shared_buffers", "512MB")
        .conf("maintenance_work_mem", "256MB")
        .conf("max_wal_senders", "4")
        // What one contender archived while it was measured is given to the other afterwards. For gaps the segments
        // must go: pgkeep indexes those that it finds in the server's own folder.
        .conf("wal_keep_size", if options.no_wal_index { "0" } else { "512MB" })
        .conf("wal_recycle", if options.no_wal_index { "off" } else { "on" });
    if options.pg >= 17 { builder.conf("summarize_wal", "on") } else { builder }
}

/// The pgkeep that is measured where there is one only: the first that was named, else a build of this tree.
pub(super) fn one_program(options: &Options) -> Result<PathBuf> {
    match options.programs.first() {
        Some(program) => Ok(program.clone()),
        None => build(Build::Release),
    }
}

/// pgkeep with a repository for the cluster, whose settings stay as they are.
pub(super) fn pgkeep_beside(options: &Options, cluster: &Cluster) -> Result<Product> {
    let product = Product::install(cluster, &one_program(options)?)?;
    let arguments = product.init_arguments(cluster);
    let arguments: Vec<&str> = arguments.iter().map(String::as_str).filter(|word| *word != "--apply").collect();
    run(product.command(cluster, &arguments), &[0, 4])?;
    Ok(product)
}

/// pgkeep first, unless it is left out, and pgBackRest. Nothing is prepared yet.
pub(super) fn contenders(options: &Options, cluster: &Cluster) -> Result<Vec<Box<dyn Contender>>> {
    let mut all: Vec<Box<dyn Contender>> = Vec::new();
    if !options.peers_only && options.programs.is_empty() {
        let product = Product::install(cluster, &build(Build::Release)?)?;
        all.push(Box::new(Pgkeep { product, build: None, arguments: Vec::new() }));
    }
    for (number, program) in options.programs.iter().enumerate() {
        let product = Product::install_in(cluster, program, &format!("pgkeep-{number}"))?;
        let build = program.file_name().map(|name| name.to_string_lossy().into_owned());
        all.push(Box::new(Pgkeep { product, build, arguments: Vec::new() }));
    }
    if !options.no_peers {
        all.push(Box::new(PgBackRest::install(cluster, Archiving::Asynchronous)?));
    }
    if all.is_empty() {
        bail!("nobody is left to be measured");
    }
    Ok(all)
}

impl Field {
    /// A cluster of about this size, and contenders with empty repositories.
    pub(super) fn filled(options: &Options, megabytes: u64) -> Result<Self> {
        let cluster = builder(options).start()?;
        let contenders = contenders(options, &cluster)?;
        let field = Self::new(cluster, contenders, options)?;
        field.fill(megabytes)?;
        Ok(field)
    }

    /// Makes an empty repository for each.
    pub(super) fn new(mut cluster: Cluster, contenders: Vec<Box<dyn Contender>>, options: &Options) -> Result<Self> {
        for contender in &contenders {
            contender.prepare(&mut cluster)?;
            copy(contender.repo(), &empty_copy(contender.as_ref()))?;
        }
        Ok(Self {
            cluster,
            contenders,
            archiver: None,
            talks: options.verbose,
            without_index: options.no_wal_index,
            ways: RefCell::default(),
        })
    }

    /// One more contender, after the others.
    pub(super) fn add(&mut self, contender: Box<dyn Contender>) -> Result<()> {
        contender.prepare(&mut self.cluster)?;
        copy(contender.repo(), &empty_copy(contender.as_ref()))?;
        self.contenders.push(contender);
        Ok(())
    }

    /// Fills the database with so much more.
    pub(super) fn fill(&self, megabytes: u64) -> Result<()> {
        println!("filling a cluster of PostgreSQL {} with {megabytes} MB ...", self.cluster.major());
        fill(&self.cluster, megabytes)?;
        self.cluster.sql("CHECKPOINT")?;
        println!("{} MB", self.data_bytes() / 1_000_000);
        Ok(())
    }

    /// Bytes of the data directory without WAL.
    pub(super) fn data_bytes(&self) -> u64 {
        dir_bytes(self.cluster.data_dir()) - dir_bytes(&self.cluster.data_dir().join("pg_wal"))
    }

    /// From now on the first contender gets all WAL, as it does where it is used; unless it is to have gaps.
    pub(super) fn archive_all(&mut self) -> Result<()> {
        self.archiver = (!self.without_index).then_some(0);
        self.archive_by(self.archiver)
    }

    /// Empties the repositories.
    pub(super) fn reset_all(&mut self) -> Result<()> {
        self.archiver = None;
        self.archive_by(None)?;
        self.contenders.iter().try_for_each(|contender| reset(contender.as_ref()))
    }

    /// Empties one repository.
    pub(super) fn reset(&self, position: usize) -> Result<()> {
        reset(self.contenders[position].as_ref())
    }

    /// The order of the contenders in a round: who begins changes.
    pub(super) fn order(&self, round: usize) -> Vec<usize> {
        let mut order: Vec<usize> = (0..self.contenders.len()).collect();
        if round % 2 == 1 {
            order.reverse();
        }
        order
    }

    /// A backup, measured; none if the contender cannot make one of this kind.
    pub(super) fn backup(&self, position: usize, kind: Kind) -> Result<Option<Run>> {
        let contender = self.contenders[position].as_ref();
        let command = match kind {
            Kind::Full => Some(contender.full(&self.cluster)),
            Kind::Incremental => contender.incremental(&self.cluster),
        };
        let Some(command) = command else { return Ok(None) };
        let first = self.cluster.sql("SELECT pg_walfile_name(pg_current_wal_insert_lsn())")?;
        self.archive_by(Some(position))?;
        let before = contender.backup_bytes();
        settle()?;
        let (mut measured, said) = measure_and_hear(command, contender.accepted())?;
        measured.stored_bytes = contender.backup_bytes().saturating_sub(before);
        if self.talks {
            println!("{said}");
        }
        if let Some((_, way)) = said.split_once("changes found by ") {
            self.ways.borrow_mut().extend(way.split([')', ',']).next().map(str::to_owned));
        }
        report(&format!("{kind:?}").to_lowercase(), contender, measured);
        if self.archiver != Some(position) {
            self.archive_by(self.archiver)?;
            self.catch_up(&first)?;
        }
        Ok(Some(measured))
    }

    /// A restore into a new directory, measured; none if the contender cannot.
    pub(super) fn restore(&self, position: usize, backup: Option<&str>) -> Result<Option<Run>> {
        let contender = self.contenders[position].as_ref();
        let target = self.cluster.make_dir("target")?;
        let Some(command) = contender.restore(&self.cluster, &target, backup) else { return Ok(None) };
        settle()?;
        let mut measured = measure(command, contender.accepted())?;
        measured.stored_bytes = dir_bytes(&target);
        let size = self.data_bytes();
        if measured.stored_bytes < size / 2 {
            bail!("{} restored only {} bytes of {size}", contender.name(), measured.stored_bytes);
        }
        report(&format!("restore of {}", backup.unwrap_or("the last backup")), contender, measured);
        std::fs::remove_dir_all(&target)?;
        Ok(Some(measured))
    }

    /// The server's version and how pgkeep found the changed pages, for a table's title.
    pub(super) fn setting(&self) -> String {
        let ways: Vec<String> = self.ways.borrow().iter().cloned().collect();
        let found = if ways.is_empty() { String::new() } else { format!(", changes found by {}", ways.join(", ")) };
        format!("PostgreSQL {}{found}", self.cluster.major())
    }

    /// The newest backup of a contender.
    pub(super) fn last_backup(&self, position: usize) -> Result<String> {
        let contender = &self.contenders[position];
        contender.backups()?.pop().with_context(|| format!("{} has no backup", contender.name()))
    }

    /// Changes who archives. Nothing of the former is under way afterwards, and nothing waits.
    fn archive_by(&self, position: Option<usize>) -> Result<()> {
        let command = position.and_then(|position| self.contenders[position].archive_command(&self.cluster));
        set_archive_command(&self.cluster, command.as_deref().unwrap_or("/bin/true"))?;
        drain_archiver(&self.cluster)
    }

    /// Gives the archiver of this field the segments that another one archived, from `first` on.
    fn catch_up(&self, first: &str) -> Result<()> {
        let Some(contender) = self.archiver.map(|position| self.contenders[position].as_ref()) else { return Ok(()) };
        let Some(push) = contender.archive_command(&self.cluster) else { return Ok(()) };
        for name in segments_in_state(&self.cluster, ".done")?.iter().filter(|name| name.as_str() >= first) {
            let mut command = self.cluster.command_as_pg("bash");
            command.arg("-c").arg(push.replace("%p", &format!("pg_wal/{name}")).replace("%f", name));
            command.current_dir(self.cluster.data_dir());
            run(command, contender.accepted())?;
        }
        Ok(())
    }
}

/// What earlier runs wrote must not be flushed during the next one.
pub(super) fn settle() -> Result<()> {
    run(Command::new("sync"), &[0])
}

pub(super) fn report(what: &str, contender: &dyn Contender, run: Run) {
    let (megabytes, memory) = (run.stored_bytes as f64 / 1e6, run.memory_bytes as f64 / 1e6);
    println!(
        "{what}: {}: {:.2} s, {:.2} s of CPU, {megabytes:.2} MB, {memory:.0} MB memory",
        contender.name(),
        run.seconds,
        run.cpu_seconds
    );
}

/// Changes who archives. The archiver surely uses the new command: it looks for changes before each segment.
pub(super) fn set_archive_command(cluster: &Cluster, command: &str) -> Result<()> {
    let quoted = command.replace('\'', "''");
    cluster.sql(&format!("ALTER SYSTEM SET archive_command = '{quoted}'"))?;
    cluster.reload()?;
    let answered = format!("SELECT current_setting('archive_command') = '{quoted}'");
    cluster.wait_for(&answered, "t", Duration::from_secs(20))
}

/// Waits until the archiver has nothing to do.
fn drain_archiver(cluster: &Cluster) -> Result<()> {
    // A switch without anything to archive does nothing, so something is written first.
    let segment = cluster.sql("SELECT pg_create_restore_point('drain'); SELECT pg_walfile_name(pg_switch_wal())")?;
    let segment = segment.lines().last().unwrap_or_default();
    cluster.wait_archived(segment, Duration::from_secs(600))
}

/// Segments that the archiver is to take (`.ready`) or has taken (`.done`), in no order.
pub(super) fn segments_in_state(cluster: &Cluster, state: &str) -> Result<Vec<String>> {
    let dir = cluster.data_dir().join("pg_wal/archive_status");
    let names = std::fs::read_dir(&dir).with_context(|| format!("cannot read {}", dir.display()))?;
    let names = names.filter_map(Result::ok).map(|entry| entry.file_name().to_string_lossy().into_owned());
    Ok(names.filter_map(|name| name.strip_suffix(state).map(str::to_owned)).filter(|name| name.len() == 24).collect())
}

fn empty_copy(contender: &dyn Contender) -> PathBuf {
    contender.repo().with_extension("empty")
}

/// Makes a repository as it was before anything was stored.
pub(super) fn reset(contender: &dyn Contender) -> Result<()> {
    let repo = contender.repo();
    std::fs::remove_dir_all(repo).with_context(|| format!("cannot remove {}", repo.display()))?;
    if let Some(spool) = repo.parent().map(|dir| dir.join("spool/archive")).filter(|dir| dir.exists()) {
        std::fs::remove_dir_all(spool)?;
    }
    copy(&empty_copy(contender), repo)?;
    settle()
}

fn copy(from: &Path, to: &Path) -> Result<()> {
    let mut command = Command::new("cp");
    command.arg("-a").arg(from).arg(to);
    run(command, &[0])
}
