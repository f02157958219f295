//! Makes a cluster with realistic data, keeps it running, and says how to reach it: for measuring and trying by hand.
//!
//! `cargo run --release -p testkit --example cluster -- MEGABYTES [MAJOR]`; stop it with the command it prints.

#![allow(clippy::print_stdout, reason = "this is a program")]

use testkit::load::fill;
use testkit::pg::{Cluster, DEFAULT_MAJOR};

fn main() -> anyhow::Result<()> {
    let mut args = std::env::args().skip(1);
    let megabytes = args.next().map_or(Ok(1024), |text| text.parse())?;
    let major = args.next().map_or(Ok(DEFAULT_MAJOR), |text| text.parse())?;
    let mut cluster = Cluster::builder(major).checksums(true).conf("max_wal_size", "4GB").start()?;
    cluster.keep();
    fill(&cluster, megabytes)?;
    cluster.sql("CHECKPOINT")?;
    println!("data directory  {}", cluster.data_dir().display());
    println!("connect         psql '{}'", cluster.conninfo());
    println!("stop            {} -D {} -m fast stop", cluster.bin("pg_ctl")?.display(), cluster.data_dir().display());
    std::mem::forget(cluster);
    Ok(())
}
