//! `backup`.

use super::not_yet;
use crate::cli::{BackupArgs, Source};
use crate::error::CommandResult;
use crate::session::Session;

pub(crate) async fn run(session: &Session, args: &BackupArgs) -> CommandResult {
    if args.source != Source::Direct {
        return Err(not_yet("a --source other than direct"));
    }
    if args.standalone {
        return Err(not_yet("--standalone"));
    }
    if args.pin.is_some() {
        return Err(not_yet("--pin"));
    }
    let _opened = session.open(args.which.cluster.as_deref()).await?;
    Err(not_yet("backup"))
}
