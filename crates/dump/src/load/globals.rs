//! Roles, tablespaces and settings, by psql.

use crate::connection::{Server, hand_over};
use crate::tools::Tools;
use crate::{DumpError, StreamReader};
use engine::{Context, Unit};
use std::process::Stdio;
use tokio::io::AsyncWriteExt;

/// Runs what pg_dumpall printed. Roles that are there already stay; what else failed is given back.
pub(super) async fn load(
    ctx: &Context,
    reader: &StreamReader,
    tools: &Tools,
    server: &Server,
) -> Result<Vec<String>, DumpError> {
    ctx.progress.phase("making roles and tablespaces", None, Unit::Items);
    let Some(stream) = reader.manifest().facts.globals else {
        return Err(DumpError::not_found(
            "the dump has no roles and tablespaces",
            "leave out --globals; `pgkeep dump --globals` puts them into a dump",
        ));
    };
    let sql = reader.whole(stream).await?;
    let program = tools.dir.join("psql");
    let failed = |error| DumpError::file(&program, "running it", error);
    let mut command = tools.command("psql");
    command.args(["--no-psqlrc", "--quiet", "--set=ON_ERROR_STOP=0"]).stdin(Stdio::piped()).stdout(Stdio::null());
    hand_over(&mut command, &server.conninfo);
    let mut child = command.spawn().map_err(failed)?;
    let stdin = child.stdin.take();
    let feed = async move {
        match stdin {
            Some(mut stdin) => stdin.write_all(&sql).await,
            None => Ok(()),
        }
    };
    let (fed, output) = ctx.or_cancel(futures::future::join(feed, child.wait_with_output())).await?;
    let output = output.map_err(failed)?;
    if !output.status.success() {
        let said = crate::tools::last_words(&output.stderr);
        return Err(DumpError::failed(format!("{} failed:\n  {said}", tools.named("psql")), "try it by hand"));
    }
    fed.map_err(failed)?;
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    let errors = said.lines().filter(|line| line.contains("ERROR:") && !line.contains("already exists"));
    Ok(errors.map(|line| line.trim_start_matches("psql:<stdin>:").to_owned()).collect())
}
