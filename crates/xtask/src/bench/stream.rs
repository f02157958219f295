//! Full backups over the replication protocol, beside `pg_basebackup` with the server's own compression: one stream each.

use super::Options;
use super::field::{Field, Kind, builder};
use super::peers::{BaseBackup, Contender, Pgkeep};
use super::table::Table;
use super::workloads::new_table;
use crate::product::{Build, Product, build};
use anyhow::{Result, bail};

/// pgkeep with what its users get over a socket, the same with the server's zstd, and `pg_basebackup` with that.
pub(super) fn stream(options: &Options) -> Result<Table> {
    if options.pg < 15 {
        bail!("before 15 the server does not compress: there is nothing to compare with");
    }
    let cluster = builder(options).start()?;
    let mut all: Vec<Box<dyn Contender>> = Vec::new();
    let programs = match options.programs.as_slice() {
        [] => vec![build(Build::Release)?],
        given => given.to_vec(),
    };
    for (number, program) in programs.iter().enumerate() {
        for (name, compression) in [("stream", "none"), ("stream, server-zstd 1", "zstd:1")] {
            let product = Product::install_in(&cluster, program, &format!("pgkeep-{number}-{}", &compression[..4]))?;
            let arguments = ["--source", "stream", "--stream-compression", compression].map(str::to_owned).to_vec();
            all.push(Box::new(Pgkeep { product, build: Some(format!("pgkeep {name}")), arguments }));
        }
    }
    if !options.no_peers {
        let compress = "server-zstd:level=1";
        all.push(Box::new(BaseBackup { dir: cluster.home().join("basebackup"), compress }));
    }
    let mut field = Field::new(cluster, all, options)?;
    field.fill(options.megabytes)?;
    let size = field.data_bytes() / 1_000_000;
    let mut table = new_table(format!("Full backup of {size} MB as one stream (PostgreSQL {})", options.pg), &field);
    for round in 0..options.pairs {
        field.reset_all()?;
        for position in field.order(round) {
            table.rows[position].1.extend(field.backup(position, Kind::Full)?);
        }
    }
    Ok(table)
}
