//! A cluster becomes known to a repository, its server is set up for archiving, and both are proven to work.
//!
//! [`register`] notes the cluster in the repository; [`plan_init`] says which settings must change and [`apply_init`]
//! changes them; [`check`] proves that backup and archiving work, by doing them.

mod check;
mod init;
mod register;

pub(crate) use check::resident_archiver;
pub use check::{CheckOptions, check};
pub use init::{ArchiveLibrary, InitApplied, InitOptions, InitPlan, SettingChange, apply_init, plan_init};
pub(crate) use register::register_entry;
pub use register::{RegisterOptions, Registered, register};

use serde::Serialize;

/// How good or bad something is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Level {
    /// As it should be.
    Ok,
    /// A human should look.
    Warning,
    /// The cluster is not protected as it should be.
    Failed,
}

/// What was found about one thing.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Finding {
    /// What was looked at: `connection`, `archiving`, ...
    pub name: &'static str,
    /// How it is.
    pub level: Level,
    /// What was found.
    pub message: String,
    /// What to do next.
    pub hint: Option<String>,
}

impl Finding {
    pub(crate) fn ok(name: &'static str, message: impl Into<String>) -> Self {
        Self { name, level: Level::Ok, message: message.into(), hint: None }
    }

    pub(crate) fn warning(name: &'static str, message: impl Into<String>, hint: impl Into<String>) -> Self {
        Self { name, level: Level::Warning, message: message.into(), hint: Some(hint.into()) }
    }

    pub(crate) fn failed(name: &'static str, message: impl Into<String>, hint: impl Into<String>) -> Self {
        Self { name, level: Level::Failed, message: message.into(), hint: Some(hint.into()) }
    }
}
