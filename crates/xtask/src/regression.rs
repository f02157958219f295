//! `cargo xtask regression`: PostgreSQL's own regression database, dumped and loaded by pgkeep, and compared with its origin text for
//! text.
//!
//! The regression tests leave a database with an object of every kind that PostgreSQL knows. Their source comes from the
//! distribution's source package, is built with the headers of the same version, and is never part of this project. The
//! oracle is pg_dump; beside it stands what pg_dump and pg_restore themselves make of the database, for there are things
//! that no dump brings back as they were (the order of columns that a child got before its parents). What was loaded is
//! dumped and loaded once more: there nothing may differ at all.

use crate::product::{Build, Product, build};
use crate::{setup, sh};
use anyhow::{Context, Result, bail, ensure};
use std::path::{Path, PathBuf};
use std::process::Command;
use testkit::pg::Cluster;

#[derive(Debug, clap::Args)]
pub(crate) struct Options {
    /// PostgreSQL's major versions
    #[arg(long, value_delimiter = ',', default_value = "15,17")]
    pg: Vec<u32>,
    /// Take this build of pgkeep instead of making one
    #[arg(long)]
    program: Option<PathBuf>,
    /// Where differences are left; else they are only counted and shown in part
    #[arg(long)]
    keep: Option<PathBuf>,
    /// More arguments for `pgkeep load`
    #[arg(long, value_delimiter = ' ')]
    load: Vec<String>,
}

pub(crate) fn run(options: &Options) -> Result<()> {
    let program = match &options.program {
        Some(program) => program.clone(),
        None => build(Build::Debug)?,
    };
    let mut differ = Vec::new();
    for major in &options.pg {
        if !one(*major, &program, options).with_context(|| format!("PostgreSQL {major}"))? {
            differ.push(major.to_string());
        }
    }
    ensure!(differ.is_empty(), "the database that was loaded differs on PostgreSQL {}", differ.join(", "));
    Ok(())
}

/// Where each version's source package is.
fn suite(major: u32) -> Result<&'static str> {
    match major {
        15 => Ok("bookworm"),
        17 => Ok("trixie"),
        18 => Ok("sid"),
        other => bail!("no suite of the distribution has the source of PostgreSQL {other}"),
    }
}

/// Builds the database, dumps, loads and compares; whether they are the same.
fn one(major: u32, program: &Path, options: &Options) -> Result<bool> {
    let tools = setup::source_and_package(
        &format!("regress-{major}"),
        suite(major)?,
        &format!("postgresql-{major}"),
        &format!("postgresql-server-dev-{major}"),
    )?;
    let mut cluster = Cluster::builder(major)
        .without_fsync()
        .conf("max_prepared_transactions", "2")
        .conf("shared_buffers", "256MB")
        .start()?;
    let product = Product::install(&cluster, program)?;
    let arguments = product.init_arguments(&cluster);
    let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
    quiet(product.command(&cluster, &arguments))?;
    crate::product::restart_if_needed(&mut cluster)?;
    run_tests(major, &cluster, &tools)?;

    let bin = cluster.bin("pg_dump")?;
    let bin = bin.parent().context("pg_dump lies in no folder")?.to_string_lossy().into_owned();
    let dumped =
        quiet(product.command(&cluster, &["dump", "-d", "regression", "--part-size", "1MB", "--pg-bin", &bin]))?;
    print!("{dumped}");
    let into = cluster.conninfo();
    let mut load = vec!["load", "latest", "--into", &into, "--create", "regression_loaded", "--pg-bin", &bin];
    load.extend(options.load.iter().map(String::as_str));
    print!("{}", quiet(product.command(&cluster, &load))?);

    // What was loaded is the origin of another round: then nothing differs for anybody.
    let again = ["dump", "-d", "regression_loaded", "--part-size", "1MB", "--pg-bin", &bin];
    quiet(product.command(&cluster, &again))?;
    let again = ["load", "latest", "--into", &into, "--create", "regression_again", "--pg-bin", &bin];
    quiet(product.command(&cluster, &again))?;
    let deep = ["verify", "latest", "--deep", "--into", &into, "--pg-bin", &bin];
    let id = quiet(product.command(&cluster, &["list", "--json"]))?;
    let id: serde_json::Value = serde_json::from_str(&id)?;
    let id = id["dumps"].as_array().and_then(|dumps| dumps.last()?["id"].as_str()).context("no dump is listed")?;
    let deep = deep.map(|word| if word == "latest" { id } else { word });
    print!("{}", quiet(product.command(&cluster, &deep))?);

    // What PostgreSQL's own programs make of it.
    cluster.sql("CREATE DATABASE regression_restored TEMPLATE template0")?;
    let archive = cluster.home().join("pgkeep/regression.dump").to_string_lossy().into_owned();
    cluster.tool("pg_dump", &["-Fc", "-f", &archive, "-d", &cluster.conninfo_db("regression")])?;
    let restored = cluster.tool("pg_restore", &["-d", &cluster.conninfo_db("regression_restored"), &archive]);
    if let Err(error) = restored {
        println!("pg_restore itself: {error:#}");
    }

    let origin = as_text(&cluster, "regression")?;
    let loaded = as_text(&cluster, "regression_loaded")?;
    let again = as_text(&cluster, "regression_again")?;
    let restored = as_text(&cluster, "regression_restored")?;
    let dir = options.keep.clone().unwrap_or_else(|| cluster.home().join("differences"));
    std::fs::create_dir_all(&dir)?;
    let with_origin = differences(&dir, major, ("origin", &origin), ("loaded", &loaded))?;
    let of_postgresql = differences(&dir, major, ("origin", &origin), ("restored", &restored))?;
    let second = differences(&dir, major, ("loaded", &loaded), ("again", &again))?;
    println!(
        "PostgreSQL {major}: {} lines of pg_dump; origin and loaded differ in {} lines, origin and pg_restore's in {}, \
         loaded and loaded again in {}",
        origin.lines().count(),
        with_origin.len(),
        of_postgresql.len(),
        second.len(),
    );
    second.iter().take(100).for_each(|line| println!("  2 {line}"));
    let own: Vec<&String> = with_origin.iter().filter(|line| !of_postgresql.contains(line)).collect();
    for line in with_origin.iter().take(100) {
        println!("  {}{line}", if own.contains(&line) { "! " } else { "= " });
    }
    Ok(own.is_empty() && second.is_empty())
}

/// Runs PostgreSQL's regression tests. That some fail (other messages, other plans) does not matter: the database counts.
fn run_tests(major: u32, cluster: &Cluster, tools: &Path) -> Result<()> {
    let source = tools.join("source/src/test/regress");
    let out = cluster.make_dir("regress")?;
    // Servers read the tests' files, and write beside them.
    let libraries = cluster.make_dir("regress/lib")?;
    let include = tools.join(format!("package/usr/include/postgresql/{major}/server"));
    let mut compile = Command::new("gcc");
    compile.args(["-shared", "-fPIC", "-O1", "-w", "-I"]).arg(&include);
    compile.arg("-I").arg(tools.join("package/usr/include/postgresql")).arg("-I").arg(&source);
    compile.arg(source.join("regress.c")).arg("-o").arg(libraries.join("regress.so"));
    sh::quiet(&mut compile)?;
    let bin = cluster.bin("postgres")?;
    let lib = bin.parent().and_then(Path::parent).context("the server lies in no folder")?.join("lib");
    for library in ["autoinc.so", "refint.so"] {
        std::fs::copy(lib.join(library), libraries.join(library)).with_context(|| format!("{library} is missing"))?;
    }
    // The program of 15 runs on this release of the distribution, and knows how to run the tests of later ones.
    let regress = [major, 15]
        .map(|major| format!("/usr/lib/postgresql/{major}/lib/pgxs/src/test/regress/pg_regress"))
        .into_iter()
        .map(PathBuf::from)
        .find(|path| path.exists());
    let regress = match regress {
        Some(regress) => regress,
        None => setup::source_and_package("regress-15", suite(15)?, "postgresql-15", "postgresql-server-dev-15")?
            .join("package/usr/lib/postgresql/15/lib/pgxs/src/test/regress/pg_regress"),
    };
    let path = |path: &Path| path.to_string_lossy().into_owned();
    let mut command = cluster.command_as_pg(&regress);
    command.current_dir(&out).env("PGUSER", "postgres");
    command.arg(format!("--inputdir={}", path(&source))).arg(format!("--outputdir={}", path(&out)));
    command.arg(format!("--dlpath={}", path(&libraries)));
    let psql = cluster.bin("psql")?;
    command.arg(format!("--bindir={}", path(psql.parent().context("psql lies in no folder")?)));
    command.arg(format!("--host={}", path(&cluster.socket_dir()))).arg(format!("--port={}", cluster.port()));
    command.arg("--max-connections=4");
    command.arg(format!("--schedule={}", path(&source.join("parallel_schedule"))));
    println!("PostgreSQL {major}: the regression tests run ...");
    let output = command.output().with_context(|| format!("cannot run {}", regress.display()))?;
    let said = String::from_utf8_lossy(&output.stdout).into_owned();
    let summary = said.lines().rev().find(|line| line.contains("tests") && line.contains(|c: char| c.is_ascii_digit()));
    println!("  {}", summary.unwrap_or("they said nothing").trim());
    let found = cluster.psql_db("regression", "SELECT count(*) FROM pg_class WHERE oid > 16384");
    let relations: u64 = found.ok().and_then(|count| count.parse().ok()).unwrap_or(0);
    println!("  {relations} relations are there");
    ensure!(relations > 1000, "the tests did not run:\n{said}\n{}", String::from_utf8_lossy(&output.stderr));
    Ok(())
}

fn quiet(mut command: Command) -> Result<String> {
    sh::quiet(&mut command)
}

/// A database as pg_dump writes it; the rows of each table in a fixed order, since where a row lies is the server's to choose.
fn as_text(cluster: &Cluster, database: &str) -> Result<String> {
    let conninfo = cluster.conninfo_db(database);
    let text = cluster.tool("pg_dump", &["--restrict-key=key", "--no-sync", "-d", &conninfo])?;
    let (mut lines, mut rows): (Vec<&str>, Option<Vec<&str>>) = (Vec::new(), None);
    for line in text.lines() {
        match &mut rows {
            Some(found) if line != "\\." => found.push(line),
            Some(found) => {
                found.sort_unstable();
                lines.append(found);
                lines.push(line);
                rows = None;
            }
            None => {
                lines.push(line);
                rows = (line.starts_with("COPY ") && line.ends_with(" FROM stdin;")).then(Vec::new);
            }
        }
    }
    Ok(lines.join("\n") + "\n")
}

/// The lines of `diff` between two texts.
fn differences(dir: &Path, major: u32, a: (&str, &str), b: (&str, &str)) -> Result<Vec<String>> {
    let write = |(name, text): (&str, &str)| {
        let path = dir.join(format!("{major}-{name}.sql"));
        std::fs::write(&path, text).with_context(|| format!("cannot write {}", path.display())).map(|()| path)
    };
    let output = Command::new("diff").arg("-U0").arg(write(a)?).arg(write(b)?).output().context("cannot run diff")?;
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    let lines = text.lines().filter(|line| !line.starts_with("---") && !line.starts_with("+++"));
    Ok(lines.filter(|line| !line.starts_with("@@")).map(str::to_owned).collect())
}
