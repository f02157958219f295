//! All or nothing: the dump as one custom-format archive, through a pipe, into one pg_restore with one transaction.

use super::Loaded;
use super::restore::Restorer;
use super::select::{self, Wanted};
use crate::archive::Archive;
use crate::export::{self, custom};
use crate::{DumpError, StreamReader};
use engine::Context;
use repo::dump::{DataKind, DumpedDatabase};
use std::process::Stdio;

pub(super) async fn load(
    ctx: &Context,
    restorer: &Restorer<'_>,
    reader: &StreamReader,
    archive: &Archive,
    database: &DumpedDatabase,
    wanted: &Wanted,
) -> Result<Loaded, DumpError> {
    export::refuse_binary(database, "load without --single-transaction")?;
    let parts = restorer.options.selection.parts;
    let mut command = restorer.command(&select::list(archive, wanted, true))?;
    command.arg("--single-transaction").stdin(Stdio::piped());
    for (asked, section) in [(parts.definitions, "pre-data"), (parts.data, "data"), (parts.indexes, "post-data")] {
        if asked {
            command.arg(format!("--section={section}"));
        }
    }
    let program = restorer.tools.dir.join("pg_restore");
    let mut child = command.spawn().map_err(|error| DumpError::file(&program, "starting it", error))?;
    let stdin = child.stdin.take();
    let chosen = custom::Chosen { data: parts.data, wanted };
    let feed = async {
        match stdin {
            Some(mut stdin) => custom::write_to(ctx, &mut stdin, reader, archive, database, &chosen).await,
            None => Ok(()),
        }
    };
    let (fed, output) = ctx.or_cancel(futures::future::join(feed, child.wait_with_output())).await?;
    let output = output.map_err(|error| DumpError::file(&program, "running it", error))?;
    restorer.judge(output.status.success(), &output.stderr, "one transaction")?;
    fed?;
    let data = || database.data.iter().filter(|data| parts.data && wanted.contains(&data.entry));
    let of = |kind: DataKind| data().filter(move |data| data.kind == kind);
    Ok(Loaded {
        tables: of(DataKind::Table).count() as u64,
        rows: of(DataKind::Table).map(|data| data.rows).sum(),
        large_objects: of(DataKind::LargeObjects).map(|data| data.rows).sum(),
        bytes: data().map(|data| data.bytes).sum(),
    })
}
