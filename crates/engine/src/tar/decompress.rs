//! A tar file as it lies on disk, compressed or not; what its first bytes say counts, not its name.

use std::fs::File;
use std::io::{self, BufReader, Read, Seek, SeekFrom};
use std::path::Path;

const BUFFER: usize = 256 << 10;

/// Opens a tar file for reading its plain bytes.
pub(crate) fn open(path: &Path) -> io::Result<Box<dyn Read + Send>> {
    let mut file = File::open(path)?;
    let mut magic = [0; 4];
    let mut got = 0;
    while got < magic.len() {
        match file.read(&mut magic[got..])? {
            0 => break,
            read => got += read,
        }
    }
    file.seek(SeekFrom::Start(0))?;
    let input = BufReader::with_capacity(BUFFER, file);
    Ok(match magic {
        [0x1F, 0x8B, ..] => Box::new(flate2::bufread::MultiGzDecoder::new(input)),
        [0x04, 0x22, 0x4D, 0x18] => Box::new(lz4_flex::frame::FrameDecoder::new(input)),
        [0x28, 0xB5, 0x2F, 0xFD] => Box::new(zstd::Decoder::with_buffer(input)?),
        _ => Box::new(input),
    })
}
