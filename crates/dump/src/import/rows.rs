//! The rows of a table, and large objects, on their way into parts.

use super::{TakenPart, Taking, refused};
use crate::DumpError;
use crate::large_objects::Taker;
use crate::sink::Sink;
use std::io::Read;

/// What pg_dump puts behind the rows of a table, and what older versions did (`dumpTableData_copy` in `pg_dump.c`).
const ENDS: [&[u8]; 3] = [b"\\.\n\n\n", b"\\.\n\n", b"\\.\n"];
/// As many bytes are held back as an end needs, and the line end before it.
const HELD: usize = 6;
/// Bytes that are read at a time.
const PIECE: usize = 256 << 10;

/// Reads the rows of a table up to the end of `input`. `what` is for messages.
pub(super) fn table(
    taking: &Taking,
    sink: &mut Sink,
    input: &mut dyn Read,
    what: &str,
) -> Result<Vec<TakenPart>, DumpError> {
    let mut rows = Rows { taking, sink, held: Vec::new(), any: false, rows: 0, bytes: 0, parts: Vec::new() };
    let mut buffer = vec![0; PIECE];
    loop {
        taking.ctx.check()?;
        match input.read(&mut buffer) {
            Ok(0) => return rows.finish(what),
            Ok(got) => rows.take(&buffer[..got])?,
            Err(error) if error.kind() == std::io::ErrorKind::Interrupted => {}
            Err(error) => return Err(refused(format!("{what}: {error}"))),
        }
    }
}

/// Cuts rows into parts, and the end mark off.
struct Rows<'a> {
    taking: &'a Taking,
    sink: &'a mut Sink,
    held: Vec<u8>,
    /// Whether anything was passed on.
    any: bool,
    rows: u64,
    bytes: u64,
    parts: Vec<TakenPart>,
}

impl Rows<'_> {
    fn take(&mut self, bytes: &[u8]) -> Result<(), DumpError> {
        self.held.extend_from_slice(bytes);
        let ready = self.held.len().saturating_sub(HELD);
        let rest = self.held.split_off(ready);
        let ready = std::mem::replace(&mut self.held, rest);
        self.pass(&ready)
    }

    fn pass(&mut self, mut bytes: &[u8]) -> Result<(), DumpError> {
        self.any |= !bytes.is_empty();
        // A part that is large enough ends with a row.
        while self.bytes >= self.taking.part_bytes
            && let Some(end) = bytes.iter().position(|byte| *byte == b'\n')
        {
            let (now, later) = bytes.split_at(end + 1);
            self.write(now)?;
            self.end()?;
            bytes = later;
        }
        self.write(bytes)
    }

    fn write(&mut self, bytes: &[u8]) -> Result<(), DumpError> {
        self.rows += bytes.iter().filter(|byte| **byte == b'\n').count() as u64;
        self.bytes += bytes.len() as u64;
        self.taking.handle.block_on(self.sink.write(bytes))
    }

    fn end(&mut self) -> Result<(), DumpError> {
        let written = self.taking.handle.block_on(self.sink.end())?;
        self.bytes = 0;
        self.parts.push(TakenPart { rows: std::mem::take(&mut self.rows), written });
        Ok(())
    }

    fn finish(mut self, what: &str) -> Result<Vec<TakenPart>, DumpError> {
        let held = std::mem::take(&mut self.held);
        let rows = ENDS.iter().find_map(|end| held.strip_suffix(*end));
        // The mark stands on a line of its own.
        let rows = rows.filter(|rows| rows.last().map_or(!self.any, |last| *last == b'\n'));
        let Some(rows) = rows else {
            return Err(refused(format!("{what}: the rows have no end: they are cut off")));
        };
        self.pass(rows)?;
        if self.bytes > 0 || self.parts.is_empty() {
            self.end()?;
        }
        Ok(self.parts)
    }
}

/// Large objects on their way into parts.
pub(super) struct LargeObjects<'a> {
    taking: &'a Taking,
    pub(super) sink: &'a mut Sink,
    count: u64,
    bytes: u64,
    parts: Vec<TakenPart>,
}

impl<'a> LargeObjects<'a> {
    pub(super) fn new(taking: &'a Taking, sink: &'a mut Sink) -> Self {
        Self { taking, sink, count: 0, bytes: 0, parts: Vec::new() }
    }

    /// One large object, up to the end of `input`.
    pub(super) fn take(&mut self, oid: u32, input: &mut dyn Read) -> Result<(), DumpError> {
        let handle = self.taking.handle.clone();
        if oid == 0 {
            return Err(refused("a large object without an OID"));
        }
        handle.block_on(self.sink.begin(oid))?;
        let mut buffer = vec![0; PIECE];
        loop {
            self.taking.ctx.check()?;
            match input.read(&mut buffer) {
                Ok(0) => break,
                Ok(got) => {
                    handle.block_on(self.sink.bytes(&buffer[..got]))?;
                    self.bytes += got as u64;
                }
                Err(error) if error.kind() == std::io::ErrorKind::Interrupted => {}
                Err(error) => return Err(refused(format!("large object {oid}: {error}"))),
            }
        }
        handle.block_on(Taker::end(&mut *self.sink))?;
        self.count += 1;
        if self.bytes >= self.taking.part_bytes { self.end() } else { Ok(()) }
    }

    fn end(&mut self) -> Result<(), DumpError> {
        let written = self.taking.handle.block_on(self.sink.end())?;
        self.bytes = 0;
        self.parts.push(TakenPart { rows: std::mem::take(&mut self.count), written });
        Ok(())
    }

    /// Ends the last part; gives all since the last time.
    pub(super) fn finish(&mut self) -> Result<Vec<TakenPart>, DumpError> {
        if self.count > 0 {
            self.end()?;
        }
        Ok(std::mem::take(&mut self.parts))
    }
}
