//! Reading little-endian numbers with a check of every length.

use crate::types::{Oid, RelFileLocator};

/// The number at `at`, or `None` when the bytes end before it does.
pub(crate) fn u16_at(bytes: &[u8], at: usize) -> Option<u16> {
    Some(u16::from_le_bytes(*bytes.get(at..)?.first_chunk()?))
}

/// As [`u16_at`].
pub(crate) fn u32_at(bytes: &[u8], at: usize) -> Option<u32> {
    Some(u32::from_le_bytes(*bytes.get(at..)?.first_chunk()?))
}

/// As [`u16_at`].
pub(crate) fn u64_at(bytes: &[u8], at: usize) -> Option<u64> {
    Some(u64::from_le_bytes(*bytes.get(at..)?.first_chunk()?))
}

/// Rounds up to the alignment of records, 8 (`MAXALIGN` on every platform pgkeep runs on).
pub(crate) const fn align8(n: usize) -> usize {
    (n + 7) & !7
}

/// A place in some bytes that moves on with each read and never past the end.
pub(crate) struct Cursor<'a> {
    bytes: &'a [u8],
    at: usize,
}

impl<'a> Cursor<'a> {
    pub(crate) fn new(bytes: &'a [u8]) -> Self {
        Self { bytes, at: 0 }
    }

    #[inline]
    pub(crate) fn at(&self) -> usize {
        self.at
    }

    #[inline]
    pub(crate) fn remaining(&self) -> usize {
        self.bytes.len() - self.at
    }

    #[inline]
    pub(crate) fn take(&mut self, len: usize) -> Option<&'a [u8]> {
        let taken = self.bytes.get(self.at..)?.get(..len)?;
        self.at += len;
        Some(taken)
    }

    #[inline]
    fn array<const N: usize>(&mut self) -> Option<[u8; N]> {
        let taken = *self.bytes.get(self.at..)?.first_chunk::<N>()?;
        self.at += N;
        Some(taken)
    }

    #[inline]
    pub(crate) fn u8(&mut self) -> Option<u8> {
        self.array::<1>().map(|[byte]| byte)
    }

    #[inline]
    pub(crate) fn u16(&mut self) -> Option<u16> {
        self.array().map(u16::from_le_bytes)
    }

    #[inline]
    pub(crate) fn u32(&mut self) -> Option<u32> {
        self.array().map(u32::from_le_bytes)
    }

    #[inline]
    pub(crate) fn u64(&mut self) -> Option<u64> {
        self.array().map(u64::from_le_bytes)
    }

    #[inline]
    pub(crate) fn i64(&mut self) -> Option<i64> {
        self.array().map(i64::from_le_bytes)
    }

    #[inline]
    pub(crate) fn oid(&mut self) -> Option<Oid> {
        self.u32().map(Oid)
    }

    #[inline]
    pub(crate) fn rel_file(&mut self) -> Option<RelFileLocator> {
        Some(RelFileLocator { tablespace: self.oid()?, database: self.oid()?, relfilenode: self.u32()? })
    }

    /// `count` numbers; refuses a count that cannot fit before anything is allocated.
    pub(crate) fn u32s(&mut self, count: u32) -> Option<Vec<u32>> {
        let bytes = self.take((count as usize).checked_mul(4)?)?;
        Some(bytes.as_chunks::<4>().0.iter().map(|b| u32::from_le_bytes(*b)).collect())
    }

    /// As [`Self::u32s`].
    pub(crate) fn rel_files(&mut self, count: u32) -> Option<Vec<RelFileLocator>> {
        let mut inner = Cursor::new(self.take((count as usize).checked_mul(12)?)?);
        (0..count).map(|_| inner.rel_file()).collect()
    }

    /// The bytes up to a NUL, which is passed over.
    pub(crate) fn c_string(&mut self) -> Option<&'a [u8]> {
        let rest = self.bytes.get(self.at..)?;
        let len = rest.iter().position(|b| *b == 0)?;
        self.at += len + 1;
        Some(&rest[..len])
    }

    /// Moves to the next multiple of 8 from the start of these bytes, or to their end.
    pub(crate) fn align8(&mut self) {
        self.at = align8(self.at).min(self.bytes.len());
    }
}
