//! The primitive encodings of docs/format.md section 2: varints, byte strings, little-endian integers.

/// Why bytes could not be decoded. The caller adds which object they came from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Malformed(pub String);

pub(crate) type Decoded<T> = Result<T, Malformed>;

/// Appends an unsigned LEB128 number.
pub(crate) fn put_varint(out: &mut Vec<u8>, mut value: u64) {
    while value >= 0x80 {
        out.push(value as u8 | 0x80);
        value >>= 7;
    }
    out.push(value as u8);
}

/// Appends a length and the bytes.
pub(crate) fn put_bytes(out: &mut Vec<u8>, bytes: &[u8]) {
    put_varint(out, bytes.len() as u64);
    out.extend_from_slice(bytes);
}

/// Appends `path` as what it shares with `previous` and the rest.
pub(crate) fn put_path(out: &mut Vec<u8>, previous: &[u8], path: &[u8]) {
    let shared = previous.iter().zip(path).take_while(|(a, b)| a == b).count();
    put_varint(out, shared as u64);
    put_bytes(out, &path[shared..]);
}

/// Reads what the `put_*` functions wrote; never past the end, never more than was asked for.
pub(crate) struct Cursor<'a> {
    rest: &'a [u8],
}

impl<'a> Cursor<'a> {
    pub(crate) fn new(bytes: &'a [u8]) -> Self {
        Self { rest: bytes }
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.rest.is_empty()
    }

    pub(crate) fn remaining(&self) -> usize {
        self.rest.len()
    }

    pub(crate) fn take(&mut self, len: usize) -> Decoded<&'a [u8]> {
        let (head, rest) = self
            .rest
            .split_at_checked(len)
            .ok_or_else(|| Malformed(format!("{len} bytes expected, {} left", self.rest.len())))?;
        self.rest = rest;
        Ok(head)
    }

    pub(crate) fn array<const N: usize>(&mut self) -> Decoded<[u8; N]> {
        Ok(self.take(N)?.try_into().expect("take gives exactly N bytes"))
    }

    pub(crate) fn u8(&mut self) -> Decoded<u8> {
        Ok(self.array::<1>()?[0])
    }

    pub(crate) fn u32(&mut self) -> Decoded<u32> {
        Ok(u32::from_le_bytes(self.array()?))
    }

    pub(crate) fn u64(&mut self) -> Decoded<u64> {
        Ok(u64::from_le_bytes(self.array()?))
    }

    pub(crate) fn varint(&mut self) -> Decoded<u64> {
        let mut value = 0u64;
        for shift in (0..64).step_by(7) {
            let byte = self.u8()?;
            let part = u64::from(byte & 0x7f);
            if shift == 63 && part > 1 {
                return Err(Malformed("number too large".into()));
            }
            value |= part << shift;
            if byte & 0x80 == 0 {
                if byte == 0 && shift > 0 {
                    return Err(Malformed("number not in its shortest form".into()));
                }
                return Ok(value);
            }
        }
        Err(Malformed("number too long".into()))
    }

    /// A varint that must not exceed `max`.
    pub(crate) fn bounded(&mut self, what: &str, max: u64) -> Decoded<u64> {
        let value = self.varint()?;
        if value > max {
            return Err(Malformed(format!("{what} is {value}, at most {max} is allowed")));
        }
        Ok(value)
    }

    pub(crate) fn bytes(&mut self, max: u64) -> Decoded<&'a [u8]> {
        let len = self.bounded("length", max)?;
        self.take(len as usize)
    }

    /// Replaces `path` by the next path, which `put_path` wrote relative to it.
    pub(crate) fn path(&mut self, path: &mut Vec<u8>) -> Decoded<()> {
        let shared = self.bounded("shared part of a path", path.len() as u64)?;
        let rest = self.bytes(crate::manifest::PATH_LEN_MAX)?;
        path.truncate(shared as usize);
        path.extend_from_slice(rest);
        if path.len() as u64 > crate::manifest::PATH_LEN_MAX {
            return Err(Malformed("path too long".into()));
        }
        Ok(())
    }

    /// Fails unless everything was read.
    pub(crate) fn finish(self) -> Decoded<()> {
        if self.rest.is_empty() { Ok(()) } else { Err(Malformed(format!("{} bytes too many", self.rest.len()))) }
    }
}

/// Lower-case hexadecimal digits.
pub(crate) fn to_hex(bytes: &[u8]) -> String {
    use std::fmt::Write;
    bytes.iter().fold(String::with_capacity(bytes.len() * 2), |mut text, byte| {
        let _ = write!(text, "{byte:02x}");
        text
    })
}

/// Exactly `N` bytes from hexadecimal digits of either case.
pub(crate) fn from_hex<const N: usize>(text: &str) -> Decoded<[u8; N]> {
    let digits = text.as_bytes();
    if digits.len() != N * 2 || !digits.iter().all(u8::is_ascii_hexdigit) {
        return Err(Malformed(format!("{} hexadecimal digits expected", N * 2)));
    }
    let mut out = [0; N];
    for (byte, pair) in out.iter_mut().zip(digits.chunks_exact(2)) {
        let digit = |d: u8| (d as char).to_digit(16).unwrap_or(0) as u8;
        *byte = digit(pair[0]) << 4 | digit(pair[1]);
    }
    Ok(out)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn varints_round_trip(value: u64) {
            let mut out = Vec::new();
            put_varint(&mut out, value);
            let mut cursor = Cursor::new(&out);
            prop_assert_eq!(cursor.varint(), Ok(value));
            prop_assert!(cursor.is_empty());
        }

        #[test]
        fn decoding_never_panics(bytes: Vec<u8>) {
            let mut cursor = Cursor::new(&bytes);
            let mut path = b"base/1".to_vec();
            while cursor.varint().is_ok() && cursor.path(&mut path).is_ok() && !cursor.is_empty() {}
        }

        #[test]
        fn hex_round_trips(bytes: [u8; 16]) {
            prop_assert_eq!(from_hex::<16>(&to_hex(&bytes)), Ok(bytes));
        }
    }

    #[test]
    fn varints_have_one_form() {
        assert!(Cursor::new(&[0x80, 0x00]).varint().is_err());
        assert!(Cursor::new(&[0xff; 10]).varint().is_err());
        assert_eq!(Cursor::new(&[0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0x01]).varint(), Ok(u64::MAX));
    }
}
