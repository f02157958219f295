//! Definitions: pg_dump's own. It writes header and table of contents of a custom-format archive into a pipe, and is
//! stopped when it begins with the data (`_CloseArchive` in PostgreSQL's `src/bin/pg_dump/pg_backup_custom.c` writes them in
//! this order).

use crate::archive::{Archive, Reader};
use crate::connection::{Server, hand_over};
use crate::tools::{Tools, last_words};
use crate::{DumpError, Selection};
use engine::Context;
use std::time::Duration;
use tokio::io::AsyncReadExt;
use tokio::process::{Child, ChildStdout};

/// How long pg_dump may take to end when it is told to.
const END_TIME: Duration = Duration::from_secs(5);

/// What pg_dump said of a database.
pub(crate) struct Definitions {
    pub(crate) archive: Archive,
    /// Header and table of contents, byte for byte.
    pub(crate) bytes: Vec<u8>,
}

/// Reads the definitions of a database at a snapshot.
pub(crate) async fn read(
    ctx: &Context,
    tools: &Tools,
    server: &Server,
    snapshot: &str,
    encoding: &str,
    selection: &Selection,
    exclusions: &[String],
) -> Result<Definitions, DumpError> {
    let mut command = tools.command("pg_dump");
    command.args(["--format=custom", "--compress=0", "--lock-wait-timeout=10s"]);
    command.arg(format!("--snapshot={snapshot}")).arg(format!("--encoding={encoding}"));
    command.args(selection.switches()).args(exclusions);
    hand_over(&mut command, &server.conninfo);
    let program = tools.dir.join("pg_dump");
    let mut child = command.spawn().map_err(|error| DumpError::file(&program, "starting it", error))?;
    let (stdout, stderr) = (child.stdout.take(), child.stderr.take());
    let said = tokio::spawn(async move {
        let mut said = Vec::new();
        if let Some(mut stderr) = stderr {
            let _ = stderr.read_to_end(&mut said).await;
        }
        said
    });
    let read = async {
        match stdout {
            Some(stdout) => contents(stdout).await,
            None => Ok(None),
        }
    };
    let found = ctx.or_cancel(read).await;
    let status = end(&mut child).await;
    let found = found?.map_err(|error| DumpError::file(&program, "reading what it writes", error))?;
    match found {
        Some(result) => result,
        None => {
            let said = said.await.unwrap_or_default();
            let status = status.map_or_else(String::new, |status| format!(" ({status})"));
            Err(DumpError::failed(
                format!("{} failed{status}:\n  {}", tools.named("pg_dump"), last_words(&said)),
                format!("try it by hand: {} --schema-only -d …", program.display()),
            ))
        }
    }
}

/// Reads up to the end of the table of contents; none when the pipe ends before.
async fn contents(mut stdout: ChildStdout) -> std::io::Result<Option<Result<Definitions, DumpError>>> {
    let mut reader = Reader::default();
    let mut buffer = vec![0; 64 << 10];
    loop {
        let got = stdout.read(&mut buffer).await?;
        if got == 0 {
            return Ok(None);
        }
        match reader.feed(&buffer[..got]) {
            Ok(None) => {}
            Ok(Some(archive)) => return Ok(Some(Ok(Definitions { archive, bytes: reader.into_bytes() }))),
            Err(error) => {
                let error =
                    DumpError::failed(error.to_string(), "a later version of pgkeep may know this version's archives");
                return Ok(Some(Err(error)));
            }
        }
    }
}

/// Ends the program, which writes into a pipe that nobody reads any more, and cancels its statement in the server.
async fn end(child: &mut Child) -> Option<std::process::ExitStatus> {
    if let Ok(Some(status)) = child.try_wait() {
        return Some(status);
    }
    let process = child.id().and_then(|id| rustix::process::Pid::from_raw(i32::try_from(id).ok()?));
    if let Some(process) = process {
        let _ = rustix::process::kill_process(process, rustix::process::Signal::TERM);
    }
    match tokio::time::timeout(END_TIME, child.wait()).await {
        Ok(status) => status.ok(),
        Err(_) => {
            let _ = child.kill().await;
            None
        }
    }
}
