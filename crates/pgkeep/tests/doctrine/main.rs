//! The doctrine of `ARCHITECTURE.md`, with real servers, real load and the real program: what was acknowledged is there
//! after a recovery, what came after the target is not, and every page is as it was.
#![allow(clippy::unwrap_used, reason = "tests fail by panicking")]

#[path = "../support/mod.rs"]
mod support;

mod crash;
mod killed;
mod main_path;
mod outage;
mod pages;
mod s3;
mod second_life;
mod sizes;
mod world;
