//! `show`: all that is known of a backup.

use super::{dump, dumps, end, field, list};
use crate::cli::ShowArgs;
use crate::error::CommandResult;
use crate::output::{size, table};
use crate::session::Session;
use crate::when;
use jiff::Timestamp;
use jiff::tz::TimeZone;
use repo::Pin;
use repo::manifest::{FileType, LookAgain, ManifestFacts};
use serde_json::json;

pub(crate) async fn run(session: &Session, args: &ShowArgs) -> CommandResult {
    let opened = session.open(None).await?;
    if let Some(id) = dump::named(&opened.cluster, &args.id).await? {
        return dumps::show(session, &opened, id, args.files).await;
    }
    let id = list::find(&opened.cluster, &args.id).await?;
    let manifest = opened.cluster.open_manifest(id).await?;
    let facts = manifest.facts();
    let known = opened.cluster.known_facts().await?;
    let pin = known.pin_of(id, Timestamp::now());
    session.output.result(text(facts, pin, &when::local_zone()));
    for page in &facts.damaged {
        let relation = page.relation.as_deref().map(|name| format!(" ({name})")).unwrap_or_default();
        session.output.warn(format!("damaged page: {}{relation}, block {}: {}", page.path, page.block, page.reason));
    }
    for page in facts.look_again.iter().flat_map(|again| &again.differing) {
        let relation = page.relation.as_deref().map(|name| format!(" ({name})")).unwrap_or_default();
        session.output.warn(format!("{}{relation}, block {}: {}", page.path, page.block, page.reason));
    }
    for warning in &facts.warnings {
        session.output.note(format!("said when it was made: {warning}"));
    }
    let mut fields = field("backup", facts)?;
    fields.extend(field("pin", pin)?);
    if args.files {
        let mut files = Vec::new();
        let mut blocks = manifest.files();
        while let Some(entries) = blocks.next().await? {
            for entry in entries {
                let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
                let (kind, bytes, target) = match &entry.file_type {
                    FileType::Directory => ("directory", None, None),
                    FileType::File { len, .. } => ("file", Some(*len), None),
                    FileType::Link { target } => ("link", None, Some(text(target))),
                };
                let (path, mode) = (text(&entry.path), format!("{:04o}", entry.mode));
                if session.output.json {
                    files.push(json!({ "path": path, "type": kind, "bytes": bytes, "target": target, "mode": mode }));
                } else {
                    let last = target.map(|target| format!(" -> {target}")).unwrap_or_default();
                    let bytes = bytes.map_or_else(|| "-".to_owned(), |bytes| bytes.to_string());
                    session.output.result(table::printable(&format!("{mode} {bytes:>12} {path}{last}")));
                }
            }
        }
        fields.extend(field("files", files)?);
    }
    end(session, "show", fields)
}

fn pinned(pin: &Pin, zone: &TimeZone) -> String {
    let until =
        pin.until.map_or_else(|| "for ever".to_owned(), |until| format!("until {}", when::seconds(until, zone)));
    if pin.reason.is_empty() { until } else { format!("{until}: {}", pin.reason) }
}

fn looked_again(again: &LookAgain) -> String {
    let differing = match again.differing.len() {
        0 => "all as stored".to_owned(),
        count => format!("{count} differed"),
    };
    let pages = size::count(again.pages, "unchanged page", "unchanged pages");
    format!("{pages} (turn {} of {}), {differing}", again.round + 1, again.rounds)
}

fn text(facts: &ManifestFacts, pin: Option<&Pin>, zone: &TimeZone) -> String {
    let took = (facts.finished.as_second() - facts.started.as_second()).max(0).unsigned_abs();
    let tablespaces: Vec<String> =
        facts.tablespaces.iter().map(|space| format!("{} at {}", space.name, space.location)).collect();
    let configuration: Vec<&str> = facts.config_files.iter().map(|file| file.origin.as_str()).collect();
    let some = |list: String| (!list.is_empty()).then_some(list);
    let host =
        [Some(facts.host.name.clone()), facts.host.os.clone(), facts.host.glibc.as_ref().map(|v| format!("glibc {v}"))];
    let numbers = &facts.numbers;
    let change = &facts.change_detection;
    let reasons = change.reasons.join("; ");
    let found = if reasons.is_empty() { change.used.clone() } else { format!("{}: {reasons}", change.used) };
    table::facts(&[
        ("backup", Some(facts.backup.to_string())),
        ("cluster", Some(facts.cluster.to_string())),
        ("label", facts.label.clone()),
        ("pinned", pin.map(|pin| pinned(pin, zone))),
        ("started", Some(when::seconds(facts.started, zone))),
        ("finished", Some(format!("{}, after {}", when::seconds(facts.finished, zone), when::length(took)))),
        ("recoverable from", Some(when::both(facts.stop_time, zone))),
        ("WAL", Some(format!("{} to {} on timeline {}", facts.start_lsn, facts.stop_lsn, facts.timeline))),
        ("PostgreSQL", Some(facts.pg_version.clone())),
        ("system identifier", Some(facts.system_id.to_string())),
        ("data directory", Some(facts.data_directory.clone())),
        ("tablespaces", some(tablespaces.join(", "))),
        ("configuration", some(configuration.join(", "))),
        ("data checksums", Some(if facts.checksums { "on" } else { "off" }.into())),
        (
            "source",
            Some(if facts.from_standby { format!("{}, from a standby", facts.source) } else { facts.source.clone() }),
        ),
        ("pages found by", Some(found)),
        ("builds on", facts.prior.map(|id| id.to_string())),
        ("went on from", some(facts.resumed.iter().map(ToString::to_string).collect::<Vec<_>>().join(", "))),
        ("looked at again", facts.look_again.as_ref().map(looked_again)),
        ("files", Some(format!("{}, {}", size::count(numbers.files, "file", "files"), size::bytes(numbers.bytes)))),
        ("pages read", Some(numbers.pages_read.to_string())),
        ("pages stored", Some(numbers.pages_stored.to_string())),
        ("added", Some(format!("{} ({})", size::bytes(numbers.bytes_added), facts.compression))),
        ("shared", (numbers.bytes_shared > 0).then(|| size::bytes(numbers.bytes_shared))),
        ("host", Some(host.into_iter().flatten().collect::<Vec<_>>().join(", "))),
        ("made by", Some(facts.made_by.clone())),
    ])
}
