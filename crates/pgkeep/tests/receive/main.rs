//! `wal receive` with real servers and the real program: servers that vanish, receivers that are killed, standbys that
//! take over, networks and stores that fail. `PGKEEP_RECEIVE_ROUNDS=50` repeats what the speed of the machine decides.
#![allow(clippy::unwrap_used, reason = "tests fail by panicking")]

#[path = "../support/mod.rs"]
mod support;
#[allow(dead_code, reason = "other tests use the rest of it")]
#[path = "../doctrine/world.rs"]
mod world;

mod failover;
mod loss;
mod maps;
mod receiver;
mod troubles;
mod versions;
