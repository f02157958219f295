//! Full backup and restore of a filled cluster.

use super::Options;
use super::field::{Field, Kind};
use super::floors;
use super::measure::Run;
use super::peers::BaseBackup;
use super::table::Table;
use anyhow::Result;

pub(super) fn backup_and_restore(options: &Options, with_restore: bool) -> Result<Vec<Table>> {
    let mut field = Field::filled(options, options.megabytes)?;
    if options.pg >= 15 && !options.no_peers {
        let dir = field.cluster.home().join("basebackup");
        field.add(Box::new(BaseBackup { dir, compress: "server-zstd:level=1,workers=2" }))?;
    }
    let size = field.data_bytes() / 1_000_000;
    let mut backups = new_table(format!("Full backup of {size} MB (PostgreSQL {})", options.pg), &field);
    let mut restores = new_table(format!("Restore of {size} MB (PostgreSQL {})", options.pg), &field);
    let mut backup_floors = [Vec::new(), Vec::new()];
    let mut restore_floors = [Vec::new()];
    for round in 0..options.pairs {
        measure_floors(&floors::BACKUP, &mut backup_floors, &field)?;
        if with_restore {
            measure_floors(&floors::RESTORE, &mut restore_floors, &field)?;
        }
        field.reset_all()?;
        for position in field.order(round) {
            backups.rows[position].1.extend(field.backup(position, Kind::Full)?);
        }
        for position in field.order(round).into_iter().filter(|_| with_restore) {
            restores.rows[position].1.extend(field.restore(position, None)?);
        }
    }
    add_floors(&mut backups, &floors::BACKUP, &backup_floors);
    add_floors(&mut restores, &floors::RESTORE, &restore_floors);
    restores.rows.retain(|(_, runs)| !runs.is_empty());
    Ok(if with_restore { vec![backups, restores] } else { vec![backups] })
}

fn measure_floors(floors: &[floors::Floor], runs: &mut [Vec<Run>], field: &Field) -> Result<()> {
    for (floor, runs) in floors.iter().zip(runs) {
        runs.push(floor.measure(&field.cluster)?);
    }
    Ok(())
}

fn add_floors(table: &mut Table, floors: &[floors::Floor], runs: &[Vec<Run>]) {
    let rows = floors.iter().zip(runs).map(|(floor, runs)| (floor.name.to_owned(), runs.clone()));
    table.rows.extend(rows);
}

/// A table with a row for each contender.
pub(super) fn new_table(title: String, field: &Field) -> Table {
    Table { title, rows: field.contenders.iter().map(|contender| (contender.name(), Vec::new())).collect() }
}
