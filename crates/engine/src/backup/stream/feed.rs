//! From the session, which waits, to the thread that unpacks, which blocks: a queue of archives and their bytes, bounded,
//! and the reader of one archive.

use bytes::Bytes;
use std::io::{self, BufReader, Read};
use tokio::sync::mpsc;

/// Messages on their way: each has 32 KiB at most (`SINK_BUFFER_LENGTH`).
const MESSAGES: usize = 256;
const BUFFER: usize = 256 << 10;

/// What is fed.
#[derive(Debug)]
pub(super) enum Fed {
    /// An archive begins, by its number.
    Archive(usize),
    /// Its bytes.
    Data(Bytes),
    /// All archives have ended.
    End,
}

pub(super) type Feeder = mpsc::Sender<Fed>;

/// How the server compressed the archives.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Packed {
    Plain,
    Gzip,
    Lz4,
    Zstd,
}

/// The other end of the queue.
pub(super) struct Feed {
    receiver: mpsc::Receiver<Fed>,
    rest: Bytes,
    /// What was met at the end of an archive.
    met: Option<Fed>,
}

/// A queue.
pub(super) fn channel() -> (Feeder, Feed) {
    let (feeder, receiver) = mpsc::channel(MESSAGES);
    (feeder, Feed { receiver, rest: Bytes::new(), met: None })
}

fn cut() -> io::Error {
    io::Error::new(io::ErrorKind::UnexpectedEof, "the stream was cut off")
}

impl Feed {
    /// The number of the next archive; none when all have ended.
    pub(super) fn next_archive(&mut self) -> io::Result<Option<usize>> {
        loop {
            match self.met.take().or_else(|| self.receiver.blocking_recv()) {
                Some(Fed::Archive(number)) => return Ok(Some(number)),
                Some(Fed::End) => return Ok(None),
                // What nobody wanted to read.
                Some(Fed::Data(_)) => {}
                None => return Err(cut()),
            }
        }
    }

    /// The plain bytes of the present archive. `is_unterminated` says that the server leaves out the end of tar files.
    pub(super) fn archive<'a>(&'a mut self, packed: Packed, is_unterminated: bool) -> io::Result<Box<dyn Read + 'a>> {
        const END: [u8; 1024] = [0; 1024];
        let input = BufReader::with_capacity(BUFFER, self);
        Ok(match packed {
            Packed::Plain if is_unterminated => Box::new(input.chain(END.as_slice())),
            Packed::Plain => Box::new(input),
            Packed::Gzip => Box::new(flate2::bufread::MultiGzDecoder::new(input)),
            Packed::Lz4 => Box::new(lz4_flex::frame::FrameDecoder::new(input)),
            Packed::Zstd => Box::new(zstd::Decoder::with_buffer(input)?),
        })
    }
}

impl Read for Feed {
    /// Ends where the archive ends. A queue that is cut off is an error, never an end.
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        while self.rest.is_empty() {
            if self.met.is_some() {
                return Ok(0);
            }
            match self.receiver.blocking_recv() {
                Some(Fed::Data(bytes)) => self.rest = bytes,
                Some(met) => self.met = Some(met),
                None => return Err(cut()),
            }
        }
        let take = self.rest.len().min(buffer.len());
        buffer[..take].copy_from_slice(&self.rest.split_to(take));
        Ok(take)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn feed(messages: Vec<Fed>) -> Feed {
        let (feeder, feed) = channel();
        for message in messages {
            feeder.try_send(message).unwrap();
        }
        feed
    }

    fn data(bytes: &[u8]) -> Fed {
        Fed::Data(Bytes::copy_from_slice(bytes))
    }

    fn read(feed: &mut Feed, packed: Packed, unterminated: bool) -> io::Result<Vec<u8>> {
        let mut all = Vec::new();
        feed.archive(packed, unterminated)?.read_to_end(&mut all).map(|_| all)
    }

    #[test]
    fn archives_come_one_after_the_other() {
        let zstd = zstd::encode_all(&b"packed"[..], 1).unwrap();
        let mut fed = feed(vec![
            Fed::Archive(0),
            data(b"one"),
            data(b""),
            data(b" and more"),
            Fed::Archive(1),
            data(&zstd[..5]),
            data(&zstd[5..]),
            Fed::Archive(2),
            data(b"nobody reads this"),
            Fed::End,
        ]);
        assert_eq!(fed.next_archive().unwrap(), Some(0));
        assert_eq!(read(&mut fed, Packed::Plain, false).unwrap(), b"one and more");
        assert_eq!(fed.next_archive().unwrap(), Some(1));
        assert_eq!(read(&mut fed, Packed::Zstd, false).unwrap(), b"packed");
        assert_eq!(fed.next_archive().unwrap(), Some(2));
        assert_eq!(fed.next_archive().unwrap(), None);
    }

    #[test]
    fn a_stream_that_was_cut_off_has_no_end() {
        let mut fed = feed(vec![Fed::Archive(0), data(b"one")]);
        assert_eq!(fed.next_archive().unwrap(), Some(0));
        assert_eq!(read(&mut fed, Packed::Plain, true).unwrap_err().kind(), io::ErrorKind::UnexpectedEof);
        assert!(fed.next_archive().is_err());
        let mut whole = feed(vec![Fed::Archive(0), data(b"one"), Fed::End]);
        whole.next_archive().unwrap();
        assert_eq!(read(&mut whole, Packed::Plain, true).unwrap().len(), 3 + 1024, "two blocks of zeros are added");
    }
}
