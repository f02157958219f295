//! SQL text of pg_dump or pg_dumpall: kept as it is, looked at only for what it says of itself.

use super::{TakenScript, Taking, refused};
use crate::DumpError;
use std::io::Read;

/// So much of a line is looked at.
const LINE_MAX: usize = 1000;
const PIECE: usize = 1 << 20;

/// What a script says of itself.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct About {
    /// Version of the server that was dumped.
    pub(super) version: String,
    /// The databases that it connects to.
    pub(super) connects_to: Vec<String>,
}

/// Stores the text.
pub(super) fn take(taking: &Taking, input: &mut dyn Read) -> Result<TakenScript, DumpError> {
    let mut sink = taking.sinks.sink();
    let (mut looker, mut buffer) = (Looker::default(), vec![0; PIECE]);
    loop {
        taking.ctx.check()?;
        match input.read(&mut buffer) {
            Ok(0) => break,
            Ok(got) => {
                looker.take(&buffer[..got]);
                taking.handle.block_on(sink.write(&buffer[..got]))?;
            }
            Err(error) if error.kind() == std::io::ErrorKind::Interrupted => {}
            Err(error) => return Err(refused(error)),
        }
    }
    let about = looker.finish();
    let written = taking.handle.block_on(sink.end())?;
    let objects = taking.handle.block_on(sink.finish())?;
    Ok(TakenScript { written, objects, about })
}

/// Reads lines as they come.
#[derive(Default)]
struct Looker {
    line: Vec<u8>,
    in_rows: bool,
    about: About,
}

impl Looker {
    fn take(&mut self, bytes: &[u8]) {
        let mut pieces = bytes.split(|byte| *byte == b'\n').peekable();
        while let Some(piece) = pieces.next() {
            let room = LINE_MAX.saturating_sub(self.line.len());
            self.line.extend_from_slice(&piece[..piece.len().min(room)]);
            if pieces.peek().is_some() {
                self.end_line();
            }
        }
    }

    fn end_line(&mut self) {
        let line = std::mem::take(&mut self.line);
        if self.in_rows {
            self.in_rows = line != b"\\.";
            return;
        }
        self.in_rows = line.starts_with(b"COPY ") && line.ends_with(b" FROM stdin;");
        let Ok(line) = std::str::from_utf8(&line) else { return };
        if let Some(version) = line.strip_prefix("-- Dumped from database version ")
            && self.about.version.is_empty()
        {
            self.about.version = version.trim().to_owned();
        }
        if let Some(name) = line.strip_prefix("\\connect ").and_then(connected)
            && !self.about.connects_to.contains(&name)
        {
            self.about.connects_to.push(name);
        }
    }

    fn finish(mut self) -> About {
        self.end_line();
        self.about
    }
}

/// The database of `\connect`, as `appendPsqlMetaConnect` in `src/fe_utils/string_utils.c` writes it.
fn connected(rest: &str) -> Option<String> {
    let rest = rest.trim();
    let Some(conninfo) = rest.strip_prefix("-reuse-previous=on ") else {
        return Some(rest.trim_matches('"').to_owned()).filter(|name| !name.is_empty());
    };
    let conninfo = conninfo.trim_matches('"').replace("\"\"", "\"");
    let name = conninfo.strip_prefix("dbname=")?.trim_matches('\'');
    Some(name.replace("\\'", "'").replace("\\\\", "\\"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_script_says_what_it_is_of() {
        let text = "-- PostgreSQL database cluster dump\n\\connect template1\n-- Dumped from database version 15.20\n\
            CREATE TABLE t (a text);\nCOPY public.t (a) FROM stdin;\n\\\\connect not\n\\connect nor this\n\\.\n\
            \\connect -reuse-previous=on \"dbname='Two, too'\"\n\\connect template1\nSELECT 1;\n\\connect last";
        let expect =
            About { version: "15.20".into(), connects_to: vec!["template1".into(), "Two, too".into(), "last".into()] };
        for cut in [1, 7, 10_000] {
            let mut looker = Looker::default();
            text.as_bytes().chunks(cut).for_each(|bytes| looker.take(bytes));
            assert_eq!(looker.finish(), expect, "in pieces of {cut}");
        }
    }
}
