//! Archives that pg_dump wrote, anywhere: pg_restore loads them, or psql when they are SQL.

use super::restore::{errors, pg_restore};
use super::{LoadOptions, OnError, Target, create};
use crate::DumpError;
use crate::archive::{Archive, Reader};
use crate::connection::{Server, for_writing, hand_over};
use crate::tools::{Tools, last_words};
use engine::{Context, Unit};
use serde::Serialize;
use std::fs::File;
use std::io::Read;
use std::path::{Path, PathBuf};

/// A foreign archive that was loaded.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct ForeignReport {
    /// The archive.
    pub path: PathBuf,
    /// `custom`, `directory`, `tar` or `plain`.
    pub format: String,
    /// The database that it is in now.
    pub into: String,
    /// Whether that was made for it.
    pub created: bool,
    /// How long it took.
    pub elapsed_ms: u64,
    /// What failed, with `OnError::Continue`.
    pub errors: Vec<String>,
}

/// What lies at a path.
struct Found {
    format: &'static str,
    /// Header and table of contents, where they can be read without unpacking.
    archive: Option<Archive>,
}

/// Loads what pg_dump wrote.
pub async fn foreign(
    ctx: &Context,
    path: &Path,
    server: &Server,
    options: &LoadOptions,
) -> Result<ForeignReport, DumpError> {
    let begun = std::time::Instant::now();
    if !options.mapping.is_empty() || options.selection.list.is_some() {
        return Err(DumpError::refused(
            "other names and lists are for dumps in the repository",
            "take this one in first (`pgkeep dump --import`), and load it from there",
        ));
    }
    let found = look(path)?;
    let major = found.archive.as_ref().and_then(|archive| {
        archive.tool_version().split(|c: char| !c.is_ascii_digit()).next().and_then(|text| text.parse().ok())
    });
    let tools = match major {
        Some(major) => options.tools.for_major(major, "the archive")?,
        None => options.tools.newest("the archive")?,
    };
    let (server, created) = match &options.target {
        Target::Create(name) if create::is_there(server, name).await? => return Err(create::there_already(name)),
        Target::Create(name) => (create::create(ctx, server, found.archive.as_ref(), name, options).await?, true),
        Target::Any | Target::Empty => (server.clone(), false),
    };
    if options.target == Target::Empty && !options.selection.is_data_only() {
        let mut client = for_writing(&server.conninfo).await?;
        super::refuse_occupied(&mut client, &server.conninfo.dbname).await?;
        client.close().await;
    }
    ctx.progress.phase("loading", None, Unit::Items);
    let errors = match found.format {
        "plain" => script(ctx, path, &server, options, tools).await?,
        _ => restore(ctx, path, &server, options, tools).await?,
    };
    Ok(ForeignReport {
        path: path.to_owned(),
        format: found.format.to_owned(),
        into: server.conninfo.dbname.clone(),
        created,
        elapsed_ms: begun.elapsed().as_millis() as u64,
        errors,
    })
}

/// Which form it has: by its first bytes, as `_discoverArchiveFormat` in `pg_backup_archiver.c` does.
fn look(path: &Path) -> Result<Found, DumpError> {
    let failed = |error| DumpError::file(path, "reading", error);
    if path.is_dir() {
        let toc = path.join("toc.dat");
        let archive = contents(&toc).map_err(|error| DumpError::file(&toc, "reading", error))?;
        return Ok(Found { format: "directory", archive });
    }
    let mut start = [0; 512];
    let mut file = File::open(path).map_err(failed)?;
    let mut got = 0;
    while got < start.len() {
        match file.read(&mut start[got..]).map_err(failed)? {
            0 => break,
            more => got += more,
        }
    }
    if start.starts_with(b"PGDMP") {
        return Ok(Found { format: "custom", archive: contents(path).map_err(failed)? });
    }
    let is_tar = got == start.len() && start.starts_with(b"toc.dat\0");
    Ok(Found { format: if is_tar { "tar" } else { "plain" }, archive: None })
}

fn contents(path: &Path) -> std::io::Result<Option<Archive>> {
    let (mut file, mut reader, mut buffer) = (File::open(path)?, Reader::default(), vec![0; 1 << 20]);
    loop {
        match file.read(&mut buffer)? {
            0 => return Ok(None),
            got => match reader.feed(&buffer[..got]) {
                Ok(None) => {}
                Ok(archive) => return Ok(archive),
                // pg_restore says better what is wrong with it.
                Err(_) => return Ok(None),
            },
        }
    }
}

async fn restore(
    ctx: &Context,
    path: &Path,
    server: &Server,
    options: &LoadOptions,
    tools: &Tools,
) -> Result<Vec<String>, DumpError> {
    let parts = options.selection.parts;
    let mut command = pg_restore(tools, options, server);
    if options.single_transaction {
        command.arg("--single-transaction");
    }
    if !(parts.definitions && parts.data && parts.indexes) {
        for (asked, section) in [(parts.definitions, "pre-data"), (parts.data, "data"), (parts.indexes, "post-data")] {
            if asked {
                command.arg(format!("--section={section}"));
            }
        }
    }
    command.args(options.selection.schemas.iter().map(|name| format!("--schema={name}")));
    command.args(options.selection.tables.iter().map(|name| format!("--table={name}")));
    // A tar file has one reader only, and so has a transaction.
    if options.workers > 1 && !options.single_transaction && look(path)?.format != "tar" {
        command.arg(format!("--jobs={}", options.workers));
    }
    command.arg(path);
    let output = tools.output(ctx, "pg_restore", command).await?;
    let found = errors(&output.stderr);
    if output.status.success() || options.on_error == OnError::Continue && !found.is_empty() {
        return Ok(found);
    }
    let said = last_words(&output.stderr);
    Err(DumpError::failed(
        format!("{} failed:\n  {said}", tools.named("pg_restore")),
        "--on-error continue loads what can be and lists the rest",
    ))
}

async fn script(
    ctx: &Context,
    path: &Path,
    server: &Server,
    options: &LoadOptions,
    tools: &Tools,
) -> Result<Vec<String>, DumpError> {
    let parts = options.selection.parts;
    let whole = parts.definitions && parts.data && parts.indexes;
    if !whole || !options.selection.schemas.is_empty() || !options.selection.tables.is_empty() || options.no_owner {
        return Err(DumpError::refused(
            format!("{} is SQL text: it can only be loaded whole, as it is", path.display()),
            "leave out what selects or changes parts of it",
        ));
    }
    let mut command = tools.command("psql");
    let stop = u8::from(options.on_error == OnError::Stop || options.single_transaction);
    command.args(["--no-psqlrc", "--quiet"]).arg(format!("--set=ON_ERROR_STOP={stop}"));
    if options.single_transaction {
        command.arg("--single-transaction");
    }
    hand_over(&mut command, &server.conninfo);
    command.arg("--file").arg(path).stdout(std::process::Stdio::null());
    let output = tools.output(ctx, "psql", command).await?;
    if !output.status.success() {
        let said = last_words(&output.stderr);
        return Err(DumpError::failed(
            format!("{} failed:\n  {said}", tools.named("psql")),
            "set it right, and try again",
        ));
    }
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    Ok(said.lines().filter(|line| line.contains("ERROR:")).map(str::to_owned).collect())
}
