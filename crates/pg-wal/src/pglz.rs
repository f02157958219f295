//! PostgreSQL's own compression, unpacking only (`common/pg_lzcompress.c`).

/// Unpacks `source` so that it fills `dest`; the number of bytes then is `dest.len()`.
///
/// `None` when the input is damaged: it ends early, goes on after `dest` is full, or refers to before its start.
pub fn decompress(source: &[u8], dest: &mut [u8]) -> Option<usize> {
    let mut src = source.iter().copied();
    let mut at = 0;
    while at < dest.len() && src.len() > 0 {
        let control = src.next()?;
        for bit in 0..8 {
            if at == dest.len() || src.len() == 0 {
                break;
            }
            if control >> bit & 1 == 0 {
                dest[at] = src.next()?;
                at += 1;
                continue;
            }
            // A match: 4 bits of length - 3, 12 bits of distance, and one more byte of length when those are full.
            let (first, second) = (src.next()?, src.next()?);
            let mut len = usize::from(first & 0x0F) + 3;
            let distance = usize::from(first & 0xF0) << 4 | usize::from(second);
            if len == 18 {
                len += usize::from(src.next()?);
            }
            if distance == 0 || distance > at {
                return None;
            }
            let len = len.min(dest.len() - at);
            if distance >= len {
                dest.copy_within(at - distance..at - distance + len, at);
            } else {
                // The match overlaps what it makes: a repeated pattern.
                for to in at..at + len {
                    dest[to] = dest[to - distance];
                }
            }
            at += len;
        }
    }
    (at == dest.len() && src.len() == 0).then_some(at)
}
