//! SQL text: pg_restore makes it of a custom-format archive that comes through a pipe, as pg_dump would have written it.

use super::ExportOptions;
use super::custom::{self, Chosen};
use crate::archive::Archive;
use crate::tools::last_words;
use crate::{DumpError, StreamReader};
use engine::Context;
use repo::dump::DumpedDatabase;
use std::collections::HashSet;
use std::process::Stdio;

pub(super) async fn write_to(
    ctx: &Context,
    out: std::fs::File,
    reader: &StreamReader,
    archive: &Archive,
    database: &DumpedDatabase,
    options: &ExportOptions,
) -> Result<(), DumpError> {
    let major = archive.tool_version().split(|c: char| !c.is_ascii_digit()).next().and_then(|text| text.parse().ok());
    let tools = options.tools.for_major(major.unwrap_or(0), "the dump")?;
    let program = tools.dir.join("pg_restore");
    let failed = |error| DumpError::file(&program, "running it", error);
    let mut command = tools.command("pg_restore");
    command.args(["--file=-"]).args(&options.restore_switches).stdin(Stdio::piped()).stdout(Stdio::from(out));
    let mut child = command.spawn().map_err(failed)?;
    let stdin = child.stdin.take();
    let all: HashSet<i32> = archive.entries.iter().map(|entry| entry.dump_id).collect();
    let chosen = Chosen { data: true, wanted: &all };
    let feed = async {
        match stdin {
            Some(mut stdin) => custom::write_to(ctx, &mut stdin, reader, archive, database, &chosen).await,
            None => Ok(()),
        }
    };
    let (fed, output) = ctx.or_cancel(futures::future::join(feed, child.wait_with_output())).await?;
    let output = output.map_err(failed)?;
    if !output.status.success() {
        let said = last_words(&output.stderr);
        return Err(DumpError::failed(
            format!("{} failed:\n  {said}", tools.named("pg_restore")),
            "see what it says; a full disk, or a pipe that nobody reads any more, is the usual cause",
        ));
    }
    fed
}
