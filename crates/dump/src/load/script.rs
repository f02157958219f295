//! SQL text that was taken in: psql runs it, as it comes out of the repository.

use super::{LoadOptions, LoadReport, OnError, Phase, Target};
use crate::connection::{Server, for_writing, hand_over};
use crate::tools::last_words;
use crate::{DumpError, StreamReader};
use engine::{Context, Unit};
use futures::StreamExt;
use repo::{BackupId, Cluster};
use std::process::Stdio;
use std::time::Instant;
use tokio::io::AsyncWriteExt;

/// The text, when a dump is one.
pub(super) async fn of(cluster: &Cluster, dump: BackupId) -> Result<Option<(StreamReader, u32)>, DumpError> {
    let manifest = cluster.open_dump(dump).await?;
    let stream = manifest.facts.imported.as_ref().and_then(|imported| imported.script);
    Ok(stream.map(|stream| (StreamReader::new(cluster.clone(), manifest), stream)))
}

/// Runs the text of a stream.
pub(super) async fn load(
    ctx: &Context,
    reader: &StreamReader,
    stream: u32,
    server: &Server,
    options: &LoadOptions,
) -> Result<LoadReport, DumpError> {
    let begun = Instant::now();
    let facts = reader.manifest().facts.clone();
    let parts = options.selection.parts;
    let whole = parts.definitions && parts.data && parts.indexes;
    let selected = !options.selection.schemas.is_empty() || !options.selection.tables.is_empty();
    if !whole || selected || options.no_owner || options.globals || options.database.is_some() {
        return Err(DumpError::refused(
            format!("dump {} is SQL text: it can only be loaded whole, as it is", facts.dump),
            "leave out what selects or changes parts of it",
        ));
    }
    let tools = options.tools.newest("SQL text")?;
    let (server, created) = match &options.target {
        Target::Create(name) => (super::create::create(ctx, server, None, name, options).await?, true),
        Target::Any | Target::Empty => (server.clone(), false),
    };
    // What connects elsewhere itself, as pg_dumpall's text does, need not be run where nothing is.
    if options.target == Target::Empty && facts.imported.as_ref().is_none_or(|from| from.connects_to.is_empty()) {
        let mut client = for_writing(&server.conninfo).await?;
        super::refuse_occupied(&mut client, &server.conninfo.dbname).await?;
        client.close().await;
    }
    ctx.progress.phase("running SQL text", Some(reader.manifest().stream_len(stream)), Unit::Bytes);
    let program = tools.dir.join("psql");
    let failed = |error| DumpError::file(&program, "running it", error);
    let stop = u8::from(options.on_error == OnError::Stop || options.single_transaction);
    let mut command = tools.command("psql");
    command.args(["--no-psqlrc", "--quiet"]).arg(format!("--set=ON_ERROR_STOP={stop}"));
    if options.single_transaction {
        command.arg("--single-transaction");
    }
    hand_over(&mut command, &server.conninfo);
    command.args(["--file", "-"]).stdin(Stdio::piped()).stdout(Stdio::null());
    let mut child = command.spawn().map_err(failed)?;
    let stdin = child.stdin.take();
    let feed = async {
        let Some(mut stdin) = stdin else { return Ok(()) };
        let mut pieces = reader.pieces(stream);
        while let Some(piece) = pieces.next().await {
            let piece = piece?;
            // psql that ended says why itself.
            if stdin.write_all(&piece).await.is_err() {
                break;
            }
            ctx.progress.advance(piece.len() as u64);
        }
        Ok::<(), DumpError>(())
    };
    let (fed, output) = ctx.or_cancel(futures::future::join(feed, child.wait_with_output())).await?;
    let output = output.map_err(failed)?;
    fed?;
    if !output.status.success() {
        let said = last_words(&output.stderr);
        return Err(DumpError::failed(
            format!("{} failed:\n  {said}", tools.named("psql")),
            "set it right, and load into an empty database; --on-error continue passes over errors and lists them",
        ));
    }
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    let elapsed_ms = begun.elapsed().as_millis() as u64;
    Ok(LoadReport {
        dump: facts.dump,
        database: facts.imported.map(|imported| imported.connects_to.join(", ")).unwrap_or_default(),
        into: server.conninfo.dbname.clone(),
        created,
        went_on_after: None,
        tables: 0,
        rows: 0,
        large_objects: 0,
        bytes: reader.manifest().stream_len(stream),
        elapsed_ms,
        phases: vec![Phase { name: "all".into(), elapsed_ms }],
        errors: said.lines().filter(|line| line.contains("ERROR:")).map(str::to_owned).collect(),
    })
}
