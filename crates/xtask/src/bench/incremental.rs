//! Backups of what changed: after random updates, of clusters that differ in size only, and thirty in a row.

use super::Options;
use super::changes::{Touched, touch_pages, touch_percent};
use super::field::{Field, Kind};
use super::table::Table;
use super::workloads::new_table;
use anyhow::Result;

/// Incremental backups after random updates that touch a share of the pages, as many as there are pairs.
pub(super) fn incremental(options: &Options) -> Result<Table> {
    let mut field = Field::filled(options, options.megabytes)?;
    first_backups(&mut field)?;
    let mut table = new_table(String::new(), &field);
    let mut percents = Vec::new();
    for round in 0..options.pairs {
        let touched = touch_percent(&field.cluster, options.percent)?;
        percents.push(touched.percent());
        measure_round(&field, round, &mut table)?;
    }
    table.title = format!(
        "Incremental backup of {} MB after random updates that touched {:.2} % of the pages ({})",
        field.data_bytes() / 1_000_000,
        super::measure::median(percents.into_iter()),
        field.setting()
    );
    Ok(table)
}

/// The same change to a cluster when it is small and when it is large.
pub(super) fn growth(options: &Options) -> Result<Vec<Table>> {
    let mut field = Field::filled(options, options.megabytes)?;
    let mut tables = Vec::new();
    let mut wanted = None;
    loop {
        first_backups(&mut field)?;
        let mut table = new_table(String::new(), &field);
        let mut last = None;
        for round in 0..options.pairs {
            let touched = match wanted {
                Some(pages) => touch_pages(&field.cluster, pages)?,
                None => touch_percent(&field.cluster, options.percent)?,
            };
            last = Some(touched);
            measure_round(&field, round, &mut table)?;
        }
        let size = field.data_bytes() / 1_000_000;
        let pages = last.map_or(0, |touched: Touched| touched.pages);
        table.title = format!("Incremental backup of {size} MB after {pages} pages were touched ({})", field.setting());
        tables.push(table);
        if wanted.replace(pages).is_some() {
            return Ok(tables);
        }
        // The repositories would not fit beside the larger ones.
        field.reset_all()?;
        field.fill(options.grow_to.saturating_sub(options.megabytes))?;
    }
}

/// Many incremental backups, each after random updates, then restores of the first backup and of the last.
pub(super) fn chain(options: &Options) -> Result<Vec<Table>> {
    let mut field = Field::filled(options, options.megabytes)?;
    first_backups(&mut field)?;
    let contenders = field.contenders.len();
    let first = (0..contenders).map(|position| field.last_backup(position)).collect::<Result<Vec<_>>>()?;
    let mut backups = new_table(String::new(), &field);
    for round in 0..options.links {
        println!("backup {} of {}", round + 1, options.links);
        touch_percent(&field.cluster, options.percent)?;
        measure_round(&field, round, &mut backups)?;
    }
    let size = field.data_bytes() / 1_000_000;
    backups.title = format!(
        "{} incremental backups of {size} MB, each after updates of {} % of the pages ({})",
        options.links,
        options.percent,
        field.setting()
    );
    let last = (0..contenders).map(|position| field.last_backup(position)).collect::<Result<Vec<_>>>()?;
    let of = |what: &str| format!("Restore of {what} ({size} MB, PostgreSQL {})", options.pg);
    let mut of_first = new_table(of("the full backup"), &field);
    let mut of_last = new_table(of(&format!("incremental backup {}", options.links)), &field);
    for round in 0..options.pairs {
        for position in field.order(round) {
            of_first.rows[position].1.extend(field.restore(position, Some(&first[position]))?);
            of_last.rows[position].1.extend(field.restore(position, Some(&last[position]))?);
        }
    }
    // The same runs once more, each contender's last backup beside its own first.
    let own = of_first.rows.iter().zip(&of_last.rows).map(|((name, first), (_, last))| Table {
        title: format!("Restore by {name}, the last backup beside the first"),
        rows: vec![("the last one".to_owned(), last.clone()), ("the full one".to_owned(), first.clone())],
    });
    let own: Vec<Table> = own.collect();
    Ok([backups, of_first, of_last].into_iter().chain(own).collect())
}

/// A full backup by each, for the next ones to build on; from here on the first contender archives all WAL.
fn first_backups(field: &mut Field) -> Result<()> {
    field.archive_all()?;
    for position in field.order(0) {
        field.backup(position, Kind::Full)?;
    }
    Ok(())
}

fn measure_round(field: &Field, round: usize, table: &mut Table) -> Result<()> {
    for position in field.order(round) {
        table.rows[position].1.extend(field.backup(position, Kind::Incremental)?);
    }
    Ok(())
}
