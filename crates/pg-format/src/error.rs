//! The one error type of this crate.

use thiserror::Error;

/// Why bytes or text are not what PostgreSQL writes.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
#[non_exhaustive]
pub enum FormatError {
    /// A short text (a name, an LSN, a size) does not have its form.
    #[error("\"{input}\" is not a valid {what}: {reason}")]
    Text {
        /// What was to be read.
        what: &'static str,
        /// The text, shortened when long.
        input: String,
        /// What is wrong with it.
        reason: String,
    },
    /// There are fewer bytes than the structure needs.
    #[error("{what} is too short: {actual} bytes, {needed} needed")]
    Truncated {
        /// What was to be read.
        what: &'static str,
        /// Bytes needed.
        needed: u64,
        /// Bytes present.
        actual: u64,
    },
    /// A checksum does not fit its bytes.
    #[error("{what} is damaged: its CRC is {expected:#010x}, its bytes give {actual:#010x}")]
    Crc {
        /// What was to be read.
        what: &'static str,
        /// The CRC that is stored.
        expected: u32,
        /// The CRC that was computed.
        actual: u32,
    },
    /// A version this code was not reviewed for.
    #[error("{what} {found} is not supported (supported: {supported})")]
    UnsupportedVersion {
        /// Whose version it is.
        what: &'static str,
        /// The version found.
        found: u64,
        /// The versions that are supported, for people.
        supported: &'static str,
    },
    /// A field of a structure has a value that cannot be.
    #[error("{what}: {field} is {value}: {reason}")]
    Field {
        /// What was to be read.
        what: &'static str,
        /// The field, by PostgreSQL's name.
        field: &'static str,
        /// Its value.
        value: String,
        /// Why it cannot be.
        reason: String,
    },
    /// A line of a text file is wrong.
    #[error("{what}, line {line}: {reason}")]
    Line {
        /// What was to be read.
        what: &'static str,
        /// The line, from 1.
        line: u64,
        /// What is wrong with it.
        reason: String,
    },
    /// A file lacks something that must be in it.
    #[error("{what} has no {field}")]
    Missing {
        /// What was to be read.
        what: &'static str,
        /// What it lacks.
        field: &'static str,
    },
}

/// The longest piece of input that an error repeats.
const SHOWN_CHARS_MAX: usize = 80;

impl FormatError {
    /// A [`FormatError::Text`], with the input shortened.
    pub(crate) fn text(what: &'static str, input: &str, reason: impl Into<String>) -> Self {
        let mut shown: String = input.chars().take(SHOWN_CHARS_MAX).collect();
        if shown.len() < input.len() {
            shown.push('…');
        }
        Self::Text { what, input: shown, reason: reason.into() }
    }

    /// A [`FormatError::Field`].
    pub(crate) fn field(
        what: &'static str,
        field: &'static str,
        value: impl ToString,
        reason: impl Into<String>,
    ) -> Self {
        Self::Field { what, field, value: value.to_string(), reason: reason.into() }
    }

    /// A [`FormatError::Line`]; `index` counts from 0.
    pub(crate) fn line(what: &'static str, index: usize, reason: impl Into<String>) -> Self {
        Self::Line { what, line: index as u64 + 1, reason: reason.into() }
    }
}
