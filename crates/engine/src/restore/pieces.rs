//! Pieces of chunks, decoded and written where they belong, by one thread.

use super::fetch::Destination;
use super::round::{Pieces, Round, Use};
use super::target::AlignedBuffer;
use crate::EngineError;
use repo::chunk::ChunkDecoder;
use std::ops::Range;

/// A decoder with its buffers, handed from one piece of work to the next.
#[derive(Default)]
pub(crate) struct Decoding {
    decoder: ChunkDecoder,
    plain: AlignedBuffer,
    extent: AlignedBuffer,
}

/// What of a pack was read, and where it lies in the pack's payload.
pub(crate) struct Stored<'a> {
    pub(crate) start: u64,
    pub(crate) bytes: &'a [u8],
}

/// Pieces that are damaged: which, and how.
pub(crate) type Bad = Vec<(usize, String)>;

impl Decoding {
    /// Decodes pieces one after the other. Those that are damaged are passed over, and given back.
    fn each(
        &mut self,
        all: &Pieces,
        stored: &Stored<'_>,
        pieces: Range<usize>,
        mut then: impl FnMut(usize, &[Use], &[u8], &mut AlignedBuffer) -> Result<(), EngineError>,
    ) -> Result<Bad, EngineError> {
        let mut bad = Vec::new();
        for index in pieces {
            let piece = &all.pieces[index];
            let chunk = &piece.chunk;
            let from = (chunk.offset - stored.start) as usize;
            let block = &stored.bytes[from..from + chunk.stored_len as usize];
            let plain = self.plain.get(chunk.plain_len as usize);
            match self.decoder.decode_into(block, chunk, plain) {
                Ok(()) => then(index, all.uses(piece), plain, &mut self.extent)?,
                Err(error) => bad.push((index, error.0)),
            }
        }
        Ok(bad)
    }

    /// Decodes scattered pieces, and holds what is needed of them.
    pub(crate) fn hold<T: Destination>(
        &mut self,
        round: &Round<T>,
        stored: &Stored<'_>,
        pieces: Range<usize>,
    ) -> Result<Bad, EngineError> {
        self.each(&round.scattered, stored, pieces, |index, uses, plain, _| {
            let len = uses.iter().map(|taken| taken.len as usize).sum();
            let mut bytes = Vec::with_capacity(len);
            uses.iter().for_each(|taken| bytes.extend_from_slice(taken_from(plain, taken)));
            round.hold(index, bytes);
            Ok(())
        })
    }

    /// Decodes pieces and writes them, with what is held of their extents. `wrote` is told the bytes.
    pub(crate) fn write<T: Destination>(
        &mut self,
        round: &Round<T>,
        stored: &Stored<'_>,
        pieces: Range<usize>,
        wrote: impl Fn(u64),
    ) -> Result<Bad, EngineError> {
        let mut open: Option<Open<'_, T>> = None;
        let bad = self.each(&round.whole, stored, pieces, |_, uses, plain, buffer| {
            let index = uses[0].file;
            if open.as_ref().is_none_or(|open| open.index != index) {
                open.take().map_or(Ok(()), Open::close)?;
                let target = &round.files[index as usize];
                let (file, start) = (target.open()?, uses[0].at);
                open = Some(Open { target, index, file, pieces: 0, start, end: start, wrote: &wrote });
            }
            let Some(open) = &mut open else { return Ok(()) };
            let mut is_whole = true;
            for uses in uses.chunk_by(|a, b| a.extent() == b.extent()) {
                is_whole &= open.extent(round, uses, plain, buffer)?;
            }
            // A file that is not whole is never finished.
            open.pieces += u32::from(is_whole);
            Ok(())
        })?;
        open.take().map_or(Ok(()), Open::close)?;
        Ok(bad)
    }
}

fn taken_from<'a>(plain: &'a [u8], taken: &Use) -> &'a [u8] {
    &plain[taken.from as usize..][..taken.len as usize]
}

/// The file that is open, and what was written to it.
struct Open<'a, T: Destination> {
    target: &'a T,
    index: u32,
    file: T::Open,
    pieces: u32,
    start: u64,
    end: u64,
    wrote: &'a dyn Fn(u64),
}

impl<T: Destination> Open<'_, T> {
    fn put(&mut self, bytes: &[u8], at: u64) -> Result<(), EngineError> {
        self.target.write(&mut self.file, bytes, at)?;
        self.start = self.start.min(at);
        self.end = self.end.max(at + bytes.len() as u64);
        (self.wrote)(bytes.len() as u64);
        Ok(())
    }

    /// Writes the uses of a piece in one extent, and what is held of it. Says whether all of that is there.
    fn extent(
        &mut self,
        round: &Round<T>,
        uses: &[Use],
        plain: &[u8],
        buffer: &mut AlignedBuffer,
    ) -> Result<bool, EngineError> {
        let extent = uses[0].extent();
        let parts = round.parts(self.index, &extent);
        if parts.is_empty() {
            for taken in uses {
                self.put(taken_from(plain, taken), taken.at)?;
            }
            return Ok(true);
        }
        let buffer = buffer.get((extent.end - extent.start) as usize);
        let mut ranges: Vec<Range<usize>> = Vec::with_capacity(uses.len() + parts.len());
        let mut copy = |bytes: &[u8], at: u64| {
            let from = (at - extent.start) as usize;
            buffer[from..from + bytes.len()].copy_from_slice(bytes);
            ranges.push(from..from + bytes.len());
        };
        uses.iter().for_each(|taken| copy(taken_from(plain, taken), taken.at));
        let mut is_whole = true;
        for part in parts {
            match round.held(part) {
                Some(bytes) => copy(bytes, part.at),
                None => is_whole = false,
            }
        }
        ranges.sort_unstable_by_key(|range| range.start);
        for adjacent in ranges.chunk_by(|a, b| a.end == b.start) {
            let (start, end) = (adjacent[0].start, adjacent[adjacent.len() - 1].end);
            self.put(&buffer[start..end], extent.start + start as u64)?;
        }
        Ok(is_whole)
    }

    fn close(self) -> Result<(), EngineError> {
        self.target.written(self.file, self.start..self.end, self.pieces)
    }
}
