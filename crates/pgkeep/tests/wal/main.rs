//! WAL archiving and recovery with real servers and the real program: backlogs, several repositories, timelines.
#![allow(clippy::unwrap_used, reason = "tests fail by panicking")]

#[path = "../support/mod.rs"]
mod support;
#[allow(dead_code, reason = "other tests use the rest of it")]
#[path = "../doctrine/world.rs"]
mod world;

mod background;
mod odd;
mod several;
mod thicket;
