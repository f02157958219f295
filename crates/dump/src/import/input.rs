//! One file or pipe, from its beginning to its end: a custom-format archive, a tar file, or SQL text, compressed or not.

use super::blocks::Codec;
use super::{ImportFrom, Taken, Taking, archives, refused, script};
use crate::DumpError;
use crate::pieces::Whole;
use std::io::{self, Cursor, Read};

/// What is looked at to know what it is.
const START: usize = 512;

/// Reads all of it.
pub(super) fn take(taking: &Taking, from: &ImportFrom) -> Result<Taken, DumpError> {
    let source: Box<dyn Read> = match from {
        ImportFrom::StandardInput => Box::new(io::stdin().lock()),
        ImportFrom::Path(path) => Box::new(Whole::find(path)?.open()),
    };
    let counted = Counting { taking: taking.clone(), input: source, said: 0 };
    let buffered = io::BufReader::with_capacity(1 << 20, counted);
    let (start, input) = begin(buffered)?;
    let codec = Codec::of_file(&start);
    if codec == Codec::None {
        return look(taking, &start, input);
    }
    let (start, input) = begin(codec.of_stream(input)?)?;
    look(taking, &start, input)
}

fn look(taking: &Taking, start: &[u8], mut input: impl Read) -> Result<Taken, DumpError> {
    if start.starts_with(b"PGDMP") {
        return archives::custom(taking, &mut input).map(Taken::Archive);
    }
    if start.len() == START && start.starts_with(b"toc.dat\0") {
        return archives::tar(taking, &mut input).map(Taken::Archive);
    }
    // A file of another kind is not kept as SQL; text has no such bytes.
    if start.is_empty() || start.contains(&0) {
        let what = if start.is_empty() { "it is empty" } else { "it is neither an archive of pg_dump nor SQL text" };
        return Err(refused(what));
    }
    script::take(taking, &mut input).map(Taken::Script)
}

/// The first bytes, and all.
fn begin<'a>(mut input: impl Read + 'a) -> Result<(Vec<u8>, impl Read + 'a), DumpError> {
    let mut start = Vec::new();
    input.by_ref().take(START as u64).read_to_end(&mut start).map_err(refused)?;
    Ok((start.clone(), Cursor::new(start).chain(input)))
}

/// Says how far it is.
struct Counting {
    taking: Taking,
    input: Box<dyn Read>,
    said: u64,
}

impl Read for Counting {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let got = self.input.read(buffer)?;
        self.said += got as u64;
        if self.said >= 1 << 20 || got == 0 {
            self.taking.ctx.progress.advance(std::mem::take(&mut self.said));
        }
        Ok(got)
    }
}
