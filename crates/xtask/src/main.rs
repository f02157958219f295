//! The project's own tasks: `cargo xtask setup | test | tidy | demo | bench | regression | sample-repository`.
//!
//! Nothing here is part of the program that users run.
#![allow(clippy::print_stdout, clippy::print_stderr, reason = "a command line tool for people who work on pgkeep")]

mod bench;
mod demo;
mod product;
mod regression;
mod sample;
mod setup;
mod sh;
mod test;
mod tidy;

use clap::{Parser, Subcommand};
use std::process::ExitCode;

#[derive(Debug, Parser)]
#[command(name = "cargo xtask", about = "Set-up, demo, tests, benchmarks and house rules of pgkeep")]
struct Arguments {
    #[command(subcommand)]
    task: Task,
}

#[derive(Debug, Subcommand)]
enum Task {
    /// Install what tests need and this machine lacks: PostgreSQL 14 to 18, patchelf, openssl
    Setup(setup::Options),
    /// Set-up, house rules, formatting, lints and all tests
    Test(test::Options),
    /// Check the house rules
    Tidy,
    /// Watch a dropped table come back: a cluster under load, a backup, a mistake, a restore to the moment before
    Demo(demo::Options),
    /// Measure pgkeep against its peers, in pairs within one run
    Bench(bench::Options),
    /// Dump and load PostgreSQL's own regression database, and compare it with its origin text for text
    Regression(regression::Options),
    /// Make small repositories of the format as it is now, to be kept in testdata/repo and read by later versions
    SampleRepository(sample::Options),
}

fn main() -> ExitCode {
    let result = match Arguments::parse().task {
        Task::Setup(options) => setup::run(&options),
        Task::Test(options) => return test::run(&options),
        Task::Tidy => tidy::run(),
        Task::Demo(options) => demo::run(&options),
        Task::Bench(options) => bench::run(&options),
        Task::Regression(options) => regression::run(&options),
        Task::SampleRepository(options) => sample::run(&options),
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}
