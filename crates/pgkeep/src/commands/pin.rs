//! `pin` and `unpin`.

use super::{dump, end, field, list};
use crate::cli::{PinArgs, UnpinArgs};
use crate::error::{CommandError, CommandResult};
use crate::session::Session;
use crate::when;
use jiff::Timestamp;
use repo::{Pin, RepoError};

pub(crate) async fn pin(session: &Session, args: &PinArgs) -> CommandResult {
    let now = Timestamp::now();
    let until = args.until.as_deref().map(|text| until(text, now)).transpose()?;
    let opened = session.open(None).await?;
    session.refuse_foreign_user(&opened)?;
    let dump = dump::named(&opened.cluster, &args.id).await?;
    let what = if dump.is_some() { Pinned::Dump } else { Pinned::Backup };
    let backup = match dump {
        Some(dump) => dump,
        None => list::find(&opened.cluster, &args.id).await?,
    };
    let pin = Pin { backup, until, reason: args.reason.clone() };
    put(&opened.cluster, &pin, now).await?;
    session.output.result(said(what, &pin));
    end(session, "pin", field("pin", &pin)?)
}

pub(crate) async fn unpin(session: &Session, args: &UnpinArgs) -> CommandResult {
    let opened = session.open(None).await?;
    session.refuse_foreign_user(&opened)?;
    // A pin may have outlived its backup.
    let backup = match args.id.parse() {
        Ok(backup) => backup,
        Err(_) => list::find(&opened.cluster, &args.id).await?,
    };
    let Some(pin) = opened.cluster.unpin(backup, Timestamp::now()).await? else {
        return Err(CommandError::not_found(format!("{backup} is not pinned"))
            .hint("`pgkeep list` shows which backups and dumps are"));
    };
    session.output.result(format!("{backup} is not pinned any more; `pgkeep expire` may delete it."));
    end(session, "unpin", field("pin", &pin)?)
}

/// Until when a pin holds, as it was written; `forever` is no end.
pub(crate) fn until_or_forever(text: &str, now: Timestamp) -> Result<Option<Timestamp>, CommandError> {
    if text == "forever" { Ok(None) } else { until(text, now).map(Some) }
}

fn until(text: &str, now: Timestamp) -> Result<Timestamp, CommandError> {
    let time = when::ahead(text, now, &when::local_zone())?;
    if time <= now {
        return Err(CommandError::usage(format!("'{text}' is over already"))
            .hint("name a time to come, such as 30d or 2027-01-31"));
    }
    Ok(time)
}

pub(crate) async fn put(cluster: &repo::Cluster, pin: &Pin, now: Timestamp) -> Result<(), CommandError> {
    match cluster.pin(pin, now).await {
        Ok(()) => Ok(()),
        Err(error @ RepoError::BeingDeleted { .. }) => Err(CommandError::failed(error.to_string())
            .hint("it could not be kept; when it is still there after the deletion has ended, pin it again")),
        Err(error) if error.is_not_found() => {
            Err(CommandError::not_found(format!("{} was deleted in this moment", pin.backup))
                .hint("`pgkeep list` shows the backups and dumps"))
        }
        Err(error) => Err(error.into()),
    }
}

/// What is pinned.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Pinned {
    Backup,
    Dump,
}

/// What a pin says, for people.
pub(crate) fn said(what: Pinned, pin: &Pin) -> String {
    let until = match pin.until {
        Some(until) => format!("until {}", when::seconds(until, &when::local_zone())),
        None => "for ever".to_owned(),
    };
    let what = match what {
        Pinned::Backup => "Backup",
        Pinned::Dump => "Dump",
    };
    format!("{what} {} is pinned {until}.", pin.backup)
}
