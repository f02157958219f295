//! The traps of incremental backups, with real servers and the real program: whatever PostgreSQL does between two
//! backups, each of them restores to exactly the cluster that it was taken of.
//!
//! An act changes a cluster in some way that is easy to miss; [`scene`] takes the backups between its steps, restores
//! each and compares it with its origin.
#![allow(clippy::unwrap_used, reason = "tests fail by panicking")]
#![allow(clippy::print_stdout, reason = "a failed test shows how far it came")]

#[path = "../support/mod.rs"]
mod support;
#[path = "../doctrine/world.rs"]
#[allow(dead_code, reason = "shared with the tests of the doctrine")]
mod world;

mod acts;
mod border;
mod broken;
mod databases;
mod files;
mod kinds;
mod maps;
mod quiet;
mod random;
mod rewrites;
mod scene;
mod standbys;
mod timelines;
mod together;
