//! What pgkeep does: backup, WAL push and fetch, restore, verify.
//!
//! Each module is one thing a user asks for. The engine decides and acts; it never prints, and it reads neither the
//! environment nor the user's home: what it needs comes in through options, what it has to say goes out through
//! [`Progress`] and its results.

pub mod backup;
mod checksums;
mod context;
mod error;
pub mod expire;
pub mod export;
pub mod find;
mod host;
pub mod hosts;
pub mod import_basebackup;
mod pace;
mod packing;
pub mod restore;
pub mod restore_point;
pub mod server;
pub mod setup;
pub mod shell;
pub mod status;
mod tar;
mod text;
mod unfinished;
pub mod verify;
pub mod wal;

use context::blocking;
pub use context::{Clock, Context, NoProgress, Progress, Unit};
pub use error::EngineError;
pub use host::{host_facts, lease_holder, process_is_gone};
