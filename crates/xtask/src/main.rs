//! The project's own tasks: `cargo xtask setup | test | tidy | demo | bench`.
//!
//! Nothing here is part of the program that users run.
#![allow(clippy::print_stdout, clippy::print_stderr, reason = "a command line tool for people who work on pgkeep")]

mod setup;
mod sh;

use clap::{Parser, Subcommand};

#[derive(Debug, Parser)]
#[command(name = "cargo xtask", about = "Set-up, demo, tests, benchmarks and house rules of pgkeep")]
struct Arguments {
    #[command(subcommand)]
    task: Task,
}

#[derive(Debug, Subcommand)]
enum Task {
    /// Install what tests and benchmarks need and this machine lacks: PostgreSQL 14 to 18, patchelf, pgBackRest
    Setup(setup::Options),
}

fn main() -> anyhow::Result<()> {
    match Arguments::parse().task {
        Task::Setup(options) => setup::run(&options),
    }
}
