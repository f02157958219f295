//! The lines that are exchanged with `pgkeep wal serve` (docs/archive-library.md), in buffers of fixed size.

use std::fmt;

/// The version of the protocol.
pub(crate) const VERSION: u32 = 1;

/// Longer names than this are not given by PostgreSQL (`MAX_XFN_CHARS` in `src/include/access/xlogarchive.h`).
pub(crate) const NAME_BYTES_MAX: usize = 64;

/// A data directory's path (`MAXPGPATH`, 1024), a name, and the words around them.
pub(crate) const REQUEST_BYTES_MAX: usize = 1200;

/// A line longer than this is not an answer.
pub(crate) const ANSWER_BYTES_MAX: usize = 1024;

/// A text in a buffer of fixed size, followed by a zero byte. What does not fit is left out.
pub(crate) struct Text<const N: usize> {
    bytes: [u8; N],
    len: usize,
}

impl<const N: usize> Text<N> {
    pub(crate) const fn new() -> Self {
        Self { bytes: [0; N], len: 0 }
    }

    pub(crate) fn as_bytes(&self) -> &[u8] {
        self.bytes.get(..self.len).unwrap_or_default()
    }

    /// For C: the text ends with a zero byte.
    pub(crate) fn as_ptr(&self) -> *const std::ffi::c_char {
        self.bytes.as_ptr().cast()
    }

    /// Adds bytes; false when they do not fit, or hold a zero byte. Then as many are added as fit before it.
    pub(crate) fn push(&mut self, more: &[u8]) -> bool {
        for byte in more {
            // The last byte of the buffer stays zero.
            match self.bytes.get_mut(self.len) {
                Some(place) if self.len + 1 < N && *byte != 0 => *place = *byte,
                _ => return false,
            }
            self.len += 1;
        }
        true
    }
}

impl<const N: usize> fmt::Write for Text<N> {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        self.push(text.as_bytes());
        Ok(())
    }
}

/// `PUSH VERSION NAME DIRECTORY`; nothing when it cannot be said in one line.
pub(crate) fn request(name: &[u8], data_dir: &[u8]) -> Option<Text<REQUEST_BYTES_MAX>> {
    use fmt::Write;
    let mut line = Text::new();
    let _ = write!(line, "PUSH {VERSION} ");
    let plain = |word: &[u8]| !word.is_empty() && !word.iter().any(|byte| matches!(byte, b'\n' | b'\r' | 0));
    let whole = plain(name)
        && !name.contains(&b' ')
        && plain(data_dir)
        && [name, b" ", data_dir, b"\n"].iter().all(|part| line.push(part));
    whole.then_some(line)
}

/// What the other side says.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Answer<'a> {
    /// It is at it.
    Wait,
    /// The file is durable in the repository.
    Durable,
    /// It could not be archived, and why.
    Failed(&'a [u8]),
    /// Nothing of this protocol, or about another file.
    Unknown,
}

/// Reads an answer to the request for this file. Only the very line that says so means durable.
pub(crate) fn answer<'a>(line: &'a [u8], name: &[u8]) -> Answer<'a> {
    if line == b"WAIT" {
        return Answer::Wait;
    }
    if line.strip_prefix(b"DURABLE ") == Some(name) && !name.is_empty() {
        return Answer::Durable;
    }
    line.strip_prefix(b"FAILED ").map_or(Answer::Unknown, Answer::Failed)
}

/// Cuts what arrives into lines.
pub(crate) struct Lines {
    bytes: [u8; ANSWER_BYTES_MAX],
    /// So many bytes of the buffer have arrived,
    len: usize,
    /// and so many of them were given out.
    taken: usize,
}

impl Lines {
    pub(crate) const fn new() -> Self {
        Self { bytes: [0; ANSWER_BYTES_MAX], len: 0, taken: 0 }
    }

    /// Forgets what has arrived.
    pub(crate) fn clear(&mut self) {
        (self.len, self.taken) = (0, 0);
    }

    /// Where the next bytes go; empty when the line is too long.
    pub(crate) fn room(&mut self) -> &mut [u8] {
        self.bytes.copy_within(self.taken..self.len, 0);
        self.len -= self.taken;
        self.taken = 0;
        self.bytes.get_mut(self.len..).unwrap_or_default()
    }

    /// So many bytes were written to [`Lines::room`].
    pub(crate) fn arrived(&mut self, count: usize) {
        self.len = self.len.saturating_add(count).min(ANSWER_BYTES_MAX);
    }

    /// The next whole line, without its end.
    pub(crate) fn next_line(&mut self) -> Option<&[u8]> {
        let rest = self.bytes.get(self.taken..self.len)?;
        let end = rest.iter().position(|byte| *byte == b'\n')?;
        self.taken += end + 1;
        rest.get(..end)
    }
}
