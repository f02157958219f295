//! What the user sees: results on standard output, everything else on standard error.
//!
//! Results are what was asked for (a list, a status, a plan). Notes, warnings and progress go to standard error, so
//! that results can be piped. With `--json` the result is one object, and nothing else is on standard output.

pub(crate) mod size;
pub(crate) mod table;

use crate::error::CommandError;
use serde_json::{Map, Value, json};
use std::io::{IsTerminal, Write};
use std::sync::{Arc, Mutex, PoisonError};

/// A command's name and the fields of its JSON object.
type Object = (String, Map<String, Value>);

/// Where a command says what it has to say.
#[derive(Debug, Clone)]
pub(crate) struct Output {
    /// One JSON object instead of people's text.
    pub(crate) json: bool,
    /// No notes and no progress.
    pub(crate) quiet: bool,
    /// Whether standard error is a terminal.
    pub(crate) terminal: bool,
    warnings: Arc<Mutex<Vec<String>>>,
    /// The command's object, until it is printed.
    object: Arc<Mutex<Option<Object>>>,
    /// Through which lines are printed while a progress bar is there.
    bars: indicatif::MultiProgress,
}

impl Output {
    pub(crate) fn new(json: bool, quiet: bool) -> Self {
        Self {
            json,
            quiet,
            terminal: std::io::stderr().is_terminal(),
            warnings: Arc::default(),
            object: Arc::default(),
            bars: indicatif::MultiProgress::new(),
        }
    }

    /// The progress bars of this process.
    pub(crate) fn bars(&self) -> &indicatif::MultiProgress {
        &self.bars
    }

    /// Says what was or will be done.
    pub(crate) fn note(&self, text: impl AsRef<str>) {
        if !self.quiet {
            self.error_line(text.as_ref());
        }
    }

    /// Says what must not be missed, also with `--quiet`.
    pub(crate) fn always(&self, text: impl AsRef<str>) {
        self.error_line(text.as_ref());
    }

    /// Says what a human must read; it makes the exit code 4, and stands in the JSON object.
    pub(crate) fn warn(&self, text: impl Into<String>) {
        let text = text.into();
        self.error_line(&format!("warning: {text}"));
        self.warnings.lock().unwrap_or_else(PoisonError::into_inner).push(text);
    }

    /// What was warned of until now.
    pub(crate) fn warnings(&self) -> Vec<String> {
        self.warnings.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// A result for people; nothing with `--json`.
    pub(crate) fn result(&self, text: impl AsRef<str>) {
        if !self.json {
            self.bars.suspend(|| print_line(&mut std::io::stdout().lock(), text.as_ref()));
        }
    }

    /// A text that was asked for as such: completions, a manual page.
    pub(crate) fn raw(&self, bytes: &[u8]) {
        let mut stdout = std::io::stdout().lock();
        let _ = stdout.write_all(bytes).and_then(|()| stdout.flush());
    }

    /// The JSON object of a command. It is printed at the end, when all warnings and the exit code are known.
    pub(crate) fn object(&self, command: &str, fields: Map<String, Value>) {
        *self.object.lock().unwrap_or_else(PoisonError::into_inner) = Some((command.to_owned(), fields));
    }

    /// What is in the object so far.
    pub(crate) fn object_fields(&self) -> Option<Map<String, Value>> {
        self.object.lock().unwrap_or_else(PoisonError::into_inner).as_ref().map(|(_, fields)| fields.clone())
    }

    /// Prints the object, with `--json`.
    pub(crate) fn print_object(&self, exit_code: u8) {
        let object = self.object.lock().unwrap_or_else(PoisonError::into_inner).take();
        if let Some((command, fields)) = object.filter(|_| self.json) {
            let mut object = json!({ "command": command, "exit_code": exit_code, "warnings": self.warnings() });
            if let Value::Object(map) = &mut object {
                map.extend(fields);
            }
            print_line(&mut std::io::stdout().lock(), &object.to_string());
        }
    }

    /// An error, at the end.
    pub(crate) fn error(&self, command: &str, error: &CommandError, exit_code: u8) {
        self.error_line(&error.to_string());
        let fields = json!({ "error": { "kind": error.kind, "message": error.message, "hints": error.hints } });
        if let Value::Object(mut fields) = fields {
            fields.extend(error.fields.clone());
            self.object(command, fields);
            self.print_object(exit_code);
        }
    }

    fn error_line(&self, text: &str) {
        self.bars.suspend(|| print_line(&mut std::io::stderr().lock(), text));
    }
}

/// A reader that went away, such as `head`, is no failure.
fn print_line(to: &mut impl Write, text: &str) {
    let _ = writeln!(to, "{text}").and_then(|()| to.flush());
}
