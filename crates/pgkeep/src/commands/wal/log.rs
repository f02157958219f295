//! `wal log`: the history of a cluster as its archived WAL tells it.

use super::super::find::{headline, period, rows};
use super::super::{end, field, fields};
use crate::cli::LogArgs;
use crate::error::CommandResult;
use crate::output::size;
use crate::output::table::{Align, Table};
use crate::session::Session;
use crate::when;
use engine::find::{self, ActivityReport, ActivityRequest, Bucket, Filter, FindReport, FindRequest, Object, Pattern};
use jiff::Timestamp;
use jiff::tz::TimeZone;
use pg_format::Timeline;
use serde_json::json;

/// Characters of a sparkline, at most.
const COLUMNS: i64 = 60;
/// Lengths of a column in minutes that people can read.
const STEPS: [i64; 11] = [1, 5, 10, 30, 60, 120, 360, 720, 1440, 10_080, 43_200];
/// Events that are shown.
const EVENTS: usize = 30;

pub(super) async fn run(session: &Session, args: &LogArgs) -> CommandResult {
    let zone = when::zone(args.when.time_zone.as_deref())?;
    let (from, to) = period(session, &args.when, &zone)?;
    let timeline = args.when.timeline.map(Timeline);
    let tables: Vec<Pattern> = args.tables.iter().map(|name| Pattern::new(name)).collect();
    let opened = session.open(None).await?;
    let context = session.context();
    let filter = Filter { tables: tables.clone(), ..Filter::default() };
    let request = FindRequest { from, to, timeline, ..FindRequest::of(filter, EVENTS) };
    let request = FindRequest { system_id: args.when.system_id(), ..request };
    let sums = ActivityRequest { tables, top: usize::from(args.top) };
    let (events, activity) = find::log(&context, &opened.cluster, &request, &sums).await?;
    activity.warnings.iter().for_each(|warning| session.output.warn(warning));
    session.output.result(text(&events, &activity, &zone));
    let mut object = field("cluster", &opened.name)?;
    object.extend(fields(&activity)?);
    let minutes = activity.minutes.iter().map(|minute| {
        let time = Timestamp::from_second(minute.minute).unwrap_or_default();
        fields(minute).map(|mut fields| {
            fields.insert("minute".into(), json!(time));
            fields
        })
    });
    object.insert("minutes".into(), json!(minutes.collect::<Result<Vec<_>, _>>()?));
    if let Some(total) = object.get_mut("total").and_then(|total| total.as_object_mut()) {
        total.remove("minute");
    }
    object.extend(field("events", &events.hits)?);
    object.extend(field("events_left_out", events.left_out)?);
    end(session, "wal log", object)
}

fn text(events: &FindReport, activity: &ActivityReport, zone: &TimeZone) -> String {
    let total = &activity.total;
    let span = activity.minutes.first().zip(activity.minutes.last());
    let Some((first, last)) = span else {
        return format!("No transaction ended in that time on timeline {}.", activity.timeline);
    };
    let moment = |minute: i64| when::short(Timestamp::from_second(minute).unwrap_or_default(), zone);
    let mut parts = vec![format!(
        "Timeline {}, {} to {}: {}, {}, {} of WAL, {} ({})",
        activity.timeline,
        moment(first.minute),
        moment(last.minute + 59),
        size::count(total.commits, "commit", "commits"),
        size::count(total.rows(), "row", "rows"),
        size::bytes(total.wal_bytes),
        size::count(activity.images, "full-page image", "full-page images"),
        size::bytes(activity.image_bytes),
    )];
    parts.push(lines(&activity.minutes, first.minute, last.minute, zone));
    if !events.hits.is_empty() {
        let mut shown: Vec<String> = events.hits.iter().map(|hit| headline(hit, zone)).collect();
        if events.left_out > 0 {
            shown.insert(0, format!("({} earlier; `pgkeep find` shows them)", events.left_out));
        }
        parts.push(format!("What happened\n{}", shown.join("\n")));
    }
    if !activity.relations.is_empty() {
        parts.push(format!("Relations by WAL\n{}", relations(activity)));
    }
    if !activity.transactions.is_empty() {
        parts.push(format!("Transactions by WAL\n{}", transactions(activity, zone)));
    }
    parts.join("\n\n")
}

/// One sparkline for each number, and what a column stands for.
fn lines(minutes: &[Bucket], first: i64, last: i64, zone: &TimeZone) -> String {
    let all = (last - first) / 60 + 1;
    let step = STEPS.into_iter().find(|step| all.div_euclid(*step) < COLUMNS).unwrap_or(STEPS[STEPS.len() - 1]);
    let columns = columns(minutes, first, last, step);
    let length = when::length(step.unsigned_abs() * 60);
    let line = |name: &str, value: &dyn Fn(&Bucket) -> u64, show: &dyn Fn(u64) -> String| {
        let values: Vec<u64> = columns.iter().map(value).collect();
        let peak = values.iter().copied().max().unwrap_or(0);
        format!("{name:8} {}  at most {} in {length}", spark(&values), show(peak))
    };
    let count = |number: u64| number.to_string();
    let at = |column: &Bucket| when::short(Timestamp::from_second(column.minute).unwrap_or_default(), zone);
    let mut lines = vec![
        line("commits", &|column| column.commits, &count),
        line("rows", &Bucket::rows, &count),
        line("WAL", &|column| column.wal_bytes, &size::bytes),
    ];
    if minutes.iter().any(|minute| minute.images.is_some()) {
        lines.push(line("images", &|column| column.images.unwrap_or(0), &count));
    }
    let busiest = columns.iter().max_by_key(|column| column.wal_bytes).filter(|column| column.wal_bytes > 0);
    lines.extend(busiest.map(|column| format!("most WAL from {} on", at(column))));
    lines.join("\n")
}

/// Minutes added up to columns of so many minutes; those in which nothing ended are empty.
fn columns(minutes: &[Bucket], first: i64, last: i64, step: i64) -> Vec<Bucket> {
    let seconds = step * 60;
    let count = usize::try_from((last - first) / seconds + 1).unwrap_or(1);
    let mut columns: Vec<Bucket> =
        (0_i64..).take(count).map(|at| Bucket { minute: first + at * seconds, ..Bucket::default() }).collect();
    for minute in minutes {
        let at = usize::try_from((minute.minute - first) / seconds).unwrap_or(0);
        if let Some(column) = columns.get_mut(at) {
            column.add(minute);
        }
    }
    columns
}

/// Bars of eight heights; nothing is a space, and little is more than nothing.
fn spark(values: &[u64]) -> String {
    const BARS: [char; 8] = ['▁', '▂', '▃', '▄', '▅', '▆', '▇', '█'];
    let peak = values.iter().copied().max().unwrap_or(0).max(1);
    let bar = |value: &u64| match *value {
        0 => ' ',
        value => BARS[(u128::from(value) * 8).div_ceil(u128::from(peak)) as usize - 1],
    };
    values.iter().map(bar).collect()
}

fn relations(activity: &ActivityReport) -> String {
    let mut table = Table::new(&[
        ("RELATION", Align::Left),
        ("KIND", Align::Left),
        ("WAL", Align::Right),
        ("RECORDS", Align::Right),
        ("IMAGES", Align::Right),
        ("ROWS", Align::Left),
    ]);
    for relation in &activity.relations {
        table.row([
            relation.object.to_string(),
            relation.object.kind.words().to_owned(),
            size::bytes(relation.wal_bytes),
            relation.records.to_string(),
            format!("{} ({})", relation.images, size::bytes(relation.image_bytes)),
            rows(&relation.object),
        ]);
    }
    table.render()
}

fn transactions(activity: &ActivityReport, zone: &TimeZone) -> String {
    let mut table = Table::new(&[
        ("COMMITTED", Align::Left),
        ("TRANSACTION", Align::Right),
        ("LSN", Align::Left),
        ("WAL", Align::Right),
        ("WHAT", Align::Left),
    ]);
    for transaction in &activity.transactions {
        let what = transaction.objects.iter().map(|object: &Object| {
            let rows = rows(object);
            if rows.is_empty() { object.to_string() } else { format!("{object} ({rows})") }
        });
        table.row([
            when::local(transaction.time, zone),
            transaction.xid.to_string(),
            transaction.lsn.to_string(),
            size::bytes(transaction.wal_bytes),
            what.collect::<Vec<_>>().join(", "),
        ]);
    }
    table.render()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sparklines_show_little_and_nothing() {
        assert_eq!(spark(&[0, 1, 4, 8]), " ▁▄█");
        assert_eq!(spark(&[0, 1, 1_000_000]), " ▁█");
        assert_eq!(spark(&[u64::MAX, 1]), "█▁");
        assert_eq!(spark(&[]), "");
    }

    #[test]
    fn minutes_are_added_up() {
        let minute = |minute, commits| Bucket { minute, commits, ..Bucket::default() };
        let found = columns(&[minute(600, 1), minute(660, 2), minute(1200, 5)], 600, 1200, 5);
        assert_eq!(found.iter().map(|column| column.commits).collect::<Vec<_>>(), [3, 0, 5]);
        let shown = lines(&[minute(600, 1), minute(660, 2)], 600, 660, &TimeZone::UTC);
        assert!(shown.starts_with("commits  ▄█  at most 2 in 1 min"), "{shown}");
    }
}
