//! The checksums that `backup_manifest` has (`src/common/checksum_helper.c`).

use aws_lc_rs::digest;
use pg_format::backup_manifest::ChecksumAlgorithm;

/// The sum of bytes that come one after the other.
pub(crate) enum Checksum {
    Crc32c(Box<crc_fast::Digest>),
    Sha(Box<digest::Context>),
}

impl Checksum {
    pub(crate) fn new(algorithm: ChecksumAlgorithm) -> Self {
        let sha = |algorithm| Self::Sha(Box::new(digest::Context::new(algorithm)));
        match algorithm {
            ChecksumAlgorithm::Crc32c => {
                Self::Crc32c(Box::new(crc_fast::Digest::new(crc_fast::CrcAlgorithm::Crc32Iscsi)))
            }
            ChecksumAlgorithm::Sha224 => sha(&digest::SHA224),
            ChecksumAlgorithm::Sha256 => sha(&digest::SHA256),
            ChecksumAlgorithm::Sha384 => sha(&digest::SHA384),
            ChecksumAlgorithm::Sha512 => sha(&digest::SHA512),
        }
    }

    pub(crate) fn update(&mut self, bytes: &[u8]) {
        match self {
            Self::Crc32c(digest) => digest.update(bytes),
            Self::Sha(context) => context.update(bytes),
        }
    }

    /// The sum as the manifest has it; a CRC-32C in little-endian order.
    pub(crate) fn finish(self) -> Vec<u8> {
        match self {
            Self::Crc32c(digest) => (digest.finalize() as u32).to_le_bytes().to_vec(),
            Self::Sha(context) => context.finish().as_ref().to_vec(),
        }
    }
}

/// SHA-256 of bytes that are there whole.
pub(crate) fn sha256(bytes: &[u8]) -> [u8; 32] {
    let digest = digest::digest(&digest::SHA256, bytes);
    std::array::from_fn(|at| digest.as_ref()[at])
}
