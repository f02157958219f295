//! What can be wrong with a connection string and the files it names.

use std::path::PathBuf;

/// A connection string, service file or setting that cannot be used. Never contains a password.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ConninfoError {
    /// A keyword without `=` in a keyword/value string.
    #[error("missing \"=\" after \"{keyword}\" in the connection string")]
    MissingEquals {
        /// The text that stood where a keyword was expected.
        keyword: String,
    },
    /// A quote that is never closed.
    #[error("a quoted value is not closed in the connection string")]
    UnterminatedQuote,
    /// A keyword that libpq does not know either.
    #[error("invalid connection option \"{keyword}\"{}", did_you_mean(nearest))]
    UnknownKeyword {
        /// The keyword as written.
        keyword: String,
        /// The nearest valid one.
        nearest: Option<&'static str>,
    },
    /// A URI parameter that libpq does not know either.
    #[error("invalid URI query parameter \"{keyword}\"{}", did_you_mean(nearest))]
    UnknownParameter {
        /// The parameter as written.
        keyword: String,
        /// The nearest valid one.
        nearest: Option<&'static str>,
    },
    /// `[` without `]` in a URI.
    #[error("the IPv6 address in the URI has no closing \"]\"")]
    UnclosedBracket,
    /// `[]` in a URI.
    #[error("the IPv6 address in the URI is empty")]
    EmptyBracket,
    /// Something other than `:`, `/`, `?`, `,` after `]`.
    #[error(
        "unexpected character {found:?} at byte {position} of the URI, after an IPv6 address (\":\" or \"/\" expected)"
    )]
    AfterBracket {
        /// The character found.
        found: char,
        /// Its place in the URI, from 1.
        position: usize,
    },
    /// A URI parameter with two `=`.
    #[error("extra \"=\" in URI query parameter \"{keyword}\"")]
    ExtraEquals {
        /// The parameter's name.
        keyword: String,
    },
    /// A URI parameter with no `=`.
    #[error("missing \"=\" in URI query parameter \"{keyword}\"")]
    NoEquals {
        /// The parameter as written.
        keyword: String,
    },
    /// `%` not followed by two hexadecimal digits.
    #[error("invalid percent-encoding in the {part} of the URI (write a literal % as %25)")]
    BadPercent {
        /// Which part of the URI.
        part: String,
    },
    /// `%00`.
    #[error("forbidden value %00 in the {part} of the URI")]
    PercentZero {
        /// Which part of the URI.
        part: String,
    },
    /// The decoded bytes are no text.
    #[error("the {part} of the URI is not UTF-8 after percent-decoding")]
    NotUtf8 {
        /// Which part of the URI.
        part: String,
    },
    /// A NUL byte, which the protocol cannot carry.
    #[error("the value of \"{keyword}\" contains a NUL byte")]
    NulByte {
        /// The keyword.
        keyword: String,
    },
    /// A value outside the keyword's set.
    #[error("invalid value \"{value}\" for \"{keyword}\" (expected {expected})")]
    InvalidValue {
        /// The keyword.
        keyword: &'static str,
        /// The value found.
        value: String,
        /// What is accepted.
        expected: String,
    },
    /// Two settings that exclude each other.
    #[error("{message}")]
    Conflict {
        /// Which and why.
        message: String,
    },
    /// Host and hostaddr lists of different length, or ports.
    #[error("could not match {given} {what} to {hosts} {hosts_are}")]
    ListLength {
        /// "host names" or "port numbers".
        what: &'static str,
        /// How many were given.
        given: usize,
        /// How many hosts there are.
        hosts: usize,
        /// "hosts" or "hostaddr values".
        hosts_are: &'static str,
    },
    /// No user name anywhere.
    #[error("no user name is given, and none is known for this process")]
    NoUser,
    /// The service is in none of the files.
    #[error("definition of service \"{service}\" not found (looked in {})", list(looked_in))]
    ServiceNotFound {
        /// The service asked for.
        service: String,
        /// The files that were looked at.
        looked_in: Vec<PathBuf>,
    },
    /// The service file named by the caller cannot be read.
    #[error("service file \"{}\" cannot be read: {reason}", path.display())]
    ServiceFile {
        /// The file.
        path: PathBuf,
        /// Why.
        reason: String,
    },
    /// A line of the service file that makes no sense.
    #[error("service file \"{}\", line {line}: {reason}", path.display())]
    ServiceSyntax {
        /// The file.
        path: PathBuf,
        /// The line, from 1.
        line: usize,
        /// What is wrong.
        reason: String,
    },
}

fn did_you_mean(nearest: &Option<&'static str>) -> String {
    nearest.map(|name| format!("; did you mean \"{name}\"?")).unwrap_or_default()
}

fn list(paths: &[PathBuf]) -> String {
    if paths.is_empty() {
        return "no file".to_owned();
    }
    paths.iter().map(|path| path.display().to_string()).collect::<Vec<_>>().join(", ")
}
