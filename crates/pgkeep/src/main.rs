//! pgkeep: backup and recovery for PostgreSQL.
//!
//! The program around the engine: it reads the command line, the configuration and the environment, shows progress
//! and results, and turns errors into words and exit codes. It is the only crate that prints or reads the
//! environment; what is done to clusters and repositories is done by `engine`.

mod cli;
mod commands;
mod config;
mod environment;
mod error;
mod estimate;
mod gentle;
mod hints;
mod hooks;
mod keys;
mod notify;
mod output;
mod progress;
mod quote;
mod run;
mod session;
mod stop;
mod when;

fn main() -> std::process::ExitCode {
    run::main()
}
