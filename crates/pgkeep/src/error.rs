//! Errors as the user meets them: what failed, on what, and what to do next.

use serde::Serialize;
use serde_json::{Map, Value};

/// Which kind of failure it is; decides the exit code.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum ErrorKind {
    /// It was tried and failed.
    Failed,
    /// The command line or the configuration is wrong.
    Usage,
    /// What was asked for is not there.
    NotFound,
    /// Told to stop.
    Stopped,
}

impl ErrorKind {
    /// The exit code (DESIGN section 7); `wal fetch` has its own.
    pub(crate) fn exit_code(self) -> u8 {
        match self {
            Self::Failed | Self::Stopped => 1,
            Self::Usage => 2,
            Self::NotFound => 3,
        }
    }
}

/// A failure of a command.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct CommandError {
    /// Decides the exit code.
    pub(crate) kind: ErrorKind,
    /// What failed, on what.
    pub(crate) message: String,
    /// What to do next.
    pub(crate) hints: Vec<String>,
    /// What else stands in the JSON object, beside `error`.
    pub(crate) fields: Map<String, Value>,
}

impl CommandError {
    pub(crate) fn new(kind: ErrorKind, message: impl Into<String>) -> Self {
        Self { kind, message: message.into(), hints: Vec::new(), fields: Map::new() }
    }

    pub(crate) fn failed(message: impl Into<String>) -> Self {
        Self::new(ErrorKind::Failed, message)
    }

    pub(crate) fn usage(message: impl Into<String>) -> Self {
        Self::new(ErrorKind::Usage, message)
    }

    pub(crate) fn not_found(message: impl Into<String>) -> Self {
        Self::new(ErrorKind::NotFound, message)
    }

    /// Adds something to the JSON object.
    pub(crate) fn field(mut self, name: &str, value: Value) -> Self {
        self.fields.insert(name.to_owned(), value);
        self
    }

    /// Adds what to do next.
    pub(crate) fn hint(mut self, hint: impl Into<String>) -> Self {
        self.hints.push(hint.into());
        self
    }
}

impl std::fmt::Display for CommandError {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "error: {}", self.message)?;
        self.hints.iter().try_for_each(|hint| write!(f, "\nhint: {hint}"))
    }
}

/// How a command ended that did not fail.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Outcome {
    /// All is well.
    Done,
    /// Done, and there is something that a human must read.
    Attention,
    /// A code that only this command has.
    Code(u8),
}

impl Outcome {
    pub(crate) fn exit_code(self) -> u8 {
        match self {
            Self::Done => 0,
            Self::Attention => 4,
            Self::Code(code) => code,
        }
    }
}

pub(crate) type CommandResult = Result<Outcome, CommandError>;
