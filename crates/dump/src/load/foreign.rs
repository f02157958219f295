//! Archives that pg_dump wrote, anywhere: pg_restore loads them, or psql when they are SQL.

use super::restore::{errors, pg_restore};
use super::{LoadOptions, OnError, Target, create};
use crate::DumpError;
use crate::archive::{Archive, Reader};
use crate::connection::{Server, for_writing, hand_over};
use crate::import::blocks::Codec;
use crate::pieces::Whole;
use crate::tools::{Tools, last_words};
use engine::{Context, Unit};
use serde::Serialize;
use std::fs::File;
use std::io::Read;
use std::path::{Path, PathBuf};
use std::process::{Output, Stdio};
use tokio::io::AsyncWriteExt;
use tokio::process::Command;
use tokio::sync::mpsc;

/// What is looked at to know what it is.
const START: usize = 512;

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
    /// It is compressed as a whole, or in pieces: pg_restore and psql get it through a pipe.
    fed: Option<(Whole, Codec)>,
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
    let format = found.format.to_owned();
    let errors = match found.format {
        "plain" => script(ctx, path, found, &server, options, tools).await?,
        _ => restore(ctx, path, found, &server, options, tools).await?,
    };
    Ok(ForeignReport {
        path: path.to_owned(),
        format,
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
        let file = File::open(&toc).map_err(|error| DumpError::file(&toc, "reading", error))?;
        let archive = contents(file).map_err(|error| DumpError::file(&toc, "reading", error))?;
        return Ok(Found { format: "directory", archive, fed: None });
    }
    let whole = Whole::find(path)?;
    let codec = Codec::of_file(&start(whole.open()).map_err(failed)?);
    let plain = || codec.of_stream(whole.open());
    let start = start(plain()?).map_err(failed)?;
    let (format, archive) = if start.starts_with(b"PGDMP") {
        ("custom", contents(plain()?).map_err(failed)?)
    } else if start.len() == START && start.starts_with(b"toc.dat\0") {
        ("tar", None)
    } else {
        ("plain", None)
    };
    let fed = (whole.is_split() || codec != Codec::None).then_some((whole, codec));
    Ok(Found { format, archive, fed })
}

/// The first bytes.
fn start(input: impl Read) -> std::io::Result<Vec<u8>> {
    let mut start = Vec::new();
    input.take(START as u64).read_to_end(&mut start)?;
    Ok(start)
}

fn contents(mut input: impl Read) -> std::io::Result<Option<Archive>> {
    let (mut reader, mut buffer) = (Reader::default(), vec![0; 1 << 20]);
    loop {
        match input.read(&mut buffer)? {
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

/// Runs a program to its end; gives it what is fed to it.
async fn run(
    ctx: &Context,
    tools: &Tools,
    program: &'static str,
    mut command: Command,
    fed: Option<(Whole, Codec)>,
) -> Result<Output, DumpError> {
    let Some((whole, codec)) = fed else { return tools.output(ctx, program, command).await };
    let path = tools.dir.join(program);
    let mut child =
        command.stdin(Stdio::piped()).spawn().map_err(|error| DumpError::file(&path, "running it", error))?;
    let stdin = child.stdin.take();
    let (sender, mut receiver) = mpsc::channel::<Vec<u8>>(4);
    let reading = tokio::task::spawn_blocking(move || {
        let mut input = codec.of_stream(whole.open()).map_err(std::io::Error::other)?;
        loop {
            let mut piece = vec![0; 256 << 10];
            match input.read(&mut piece) {
                Ok(0) => return Ok(()),
                Ok(got) => piece.truncate(got),
                Err(error) if error.kind() == std::io::ErrorKind::Interrupted => continue,
                Err(error) => return Err(error),
            }
            // Nobody takes it any more when the program has ended.
            if sender.blocking_send(piece).is_err() {
                return Ok(());
            }
        }
    });
    let feed = async {
        let Some(mut stdin) = stdin else { return Ok(()) };
        while let Some(piece) = receiver.recv().await {
            // What the program says of its end comes later.
            if stdin.write_all(&piece).await.is_err() {
                return Ok(());
            }
        }
        match reading.await.unwrap_or_else(|panic| Err(std::io::Error::other(format!("reading stopped: {panic}")))) {
            Ok(()) => Ok(()),
            // What is cut off must not look to the program like an end: then it would commit.
            Err(error) => Err((error, stdin)),
        }
    };
    let both = async {
        match feed.await {
            Ok(()) => child.wait_with_output().await.map_err(|error| DumpError::file(&path, "running it", error)),
            Err((error, stdin)) => {
                let _ = child.kill().await;
                drop(stdin);
                Err(DumpError::failed(
                    format!("the dump could not be read to its end: {error}"),
                    "what was loaded until then is in the database, unless it was a single transaction",
                ))
            }
        }
    };
    ctx.or_cancel(both).await?
}

async fn restore(
    ctx: &Context,
    path: &Path,
    found: Found,
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
    // A tar file has one reader only, and so have a transaction and a pipe.
    if options.workers > 1 && !options.single_transaction && found.format != "tar" && found.fed.is_none() {
        command.arg(format!("--jobs={}", options.workers));
    }
    if found.fed.is_none() {
        command.arg(path);
    }
    let output = run(ctx, tools, "pg_restore", command, found.fed).await?;
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
    found: Found,
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
    command.arg("--file").arg(if found.fed.is_some() { Path::new("-") } else { path }).stdout(Stdio::null());
    let output = run(ctx, tools, "psql", command, found.fed).await?;
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
