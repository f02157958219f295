//! Data keys and the wraps that hold them (docs/format.md section 4).

use crate::RepoError;
use crate::coding::{from_hex, to_hex};
use crate::seal::{aes_key, hkdf_32, random};
use aws_lc_rs::aead::{Aad, Nonce};
use aws_lc_rs::hkdf;
use serde::{Deserialize, Serialize};
use zeroize::{Zeroize, Zeroizing};

/// Memory for Argon2id in KiB: 64 MiB, the second recommendation of RFC 9106.
const ARGON2_MEMORY_KIB: u32 = 65_536;
const ARGON2_PASSES: u32 = 3;
const ARGON2_LANES: u32 = 1;
/// A repository's own parameters are believed up to these, so that opening it stays possible and bounded.
const ARGON2_MEMORY_KIB_MAX: u32 = 4 * 1024 * 1024;
const ARGON2_PASSES_MAX: u32 = 100;

/// A secret that opens a repository, as the operator gave it. Never shown.
pub enum KeySource {
    /// A passphrase, without a trailing line end.
    Passphrase(Zeroizing<String>),
    /// The 32 bytes of a key file.
    KeyFile(Zeroizing<[u8; 32]>),
    /// The 32 bytes that a key command printed.
    KeyCommand(Zeroizing<[u8; 32]>),
}

impl std::fmt::Debug for KeySource {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "KeySource({})", self.method())
    }
}

impl KeySource {
    /// From the content of a passphrase file.
    pub fn passphrase(text: &str) -> Result<Self, RepoError> {
        let text = text.trim_end_matches(['\n', '\r']);
        if text.is_empty() {
            return Err(RepoError::BadKey { what: "passphrase".into(), reason: "it is empty".into() });
        }
        Ok(Self::Passphrase(Zeroizing::new(text.into())))
    }

    /// From the content of a key file: 64 hexadecimal digits.
    pub fn key_file(text: &str) -> Result<Self, RepoError> {
        Ok(Self::KeyFile(parse_key("key file", text)?))
    }

    /// From the output of a key command: 64 hexadecimal digits.
    pub fn key_command(text: &str) -> Result<Self, RepoError> {
        Ok(Self::KeyCommand(parse_key("output of the key command", text)?))
    }

    /// A new random key, as the text to be put in a key file.
    pub fn new_key_text() -> Result<Zeroizing<String>, RepoError> {
        let key = Zeroizing::new(random::<32>()?);
        Ok(Zeroizing::new(to_hex(&*key) + "\n"))
    }

    /// `passphrase`, `key-file` or `key-command`, as in a wrap.
    pub fn method(&self) -> &'static str {
        match self {
            Self::Passphrase(_) => "passphrase",
            Self::KeyFile(_) => "key-file",
            Self::KeyCommand(_) => "key-command",
        }
    }
}

fn parse_key(what: &str, text: &str) -> Result<Zeroizing<[u8; 32]>, RepoError> {
    from_hex(text.trim_end_matches(['\n', '\r'])).map(Zeroizing::new).map_err(|_| RepoError::BadKey {
        what: what.into(),
        reason: "64 hexadecimal digits are wanted, such as `openssl rand -hex 32` prints".into(),
    })
}

/// A data key, encrypted under a key-encryption key.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Wrap {
    /// Random, to name the wrap.
    pub id: String,
    /// How the key-encryption key is made.
    pub method: String,
    salt: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    argon2_memory_kib: Option<u32>,
    #[serde(skip_serializing_if = "Option::is_none")]
    argon2_passes: Option<u32>,
    #[serde(skip_serializing_if = "Option::is_none")]
    argon2_lanes: Option<u32>,
    nonce: String,
    wrapped: String,
}

/// A data key with all its wraps.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct WrappedKey {
    /// The number that headers of objects refer to.
    pub number: u32,
    /// When it was made.
    pub created: jiff::Timestamp,
    /// Any one of these opens it.
    pub wraps: Vec<Wrap>,
}

impl Wrap {
    /// Wraps a data key.
    pub(crate) fn seal(
        source: &KeySource,
        repository_id: &str,
        number: u32,
        data_key: &[u8; 32],
    ) -> Result<Self, RepoError> {
        let salt = random::<32>()?;
        let is_passphrase = matches!(source, KeySource::Passphrase(_));
        let mut wrap = Self {
            id: to_hex(&random::<8>()?),
            method: source.method().into(),
            salt: to_hex(&salt),
            argon2_memory_kib: is_passphrase.then_some(ARGON2_MEMORY_KIB),
            argon2_passes: is_passphrase.then_some(ARGON2_PASSES),
            argon2_lanes: is_passphrase.then_some(ARGON2_LANES),
            nonce: String::new(),
            wrapped: String::new(),
        };
        let kek = wrap.kek(source, &salt)?;
        let nonce = random::<12>()?;
        let mut sealed = data_key.to_vec();
        aes_key(&kek)?
            .seal_in_place_append_tag(
                Nonce::assume_unique_for_key(nonce),
                Aad::from(associated(repository_id, number, &wrap.method)),
                &mut sealed,
            )
            .map_err(|_| RepoError::Crypto { reason: "the data key could not be wrapped".into() })?;
        wrap.nonce = to_hex(&nonce);
        wrap.wrapped = to_hex(&sealed);
        Ok(wrap)
    }

    /// Unwraps the data key; `None` when this source does not open this wrap.
    pub(crate) fn open(
        &self,
        source: &KeySource,
        repository_id: &str,
        number: u32,
    ) -> Result<Option<[u8; 32]>, RepoError> {
        // A key file's bytes may be given by a command and the other way round: both hold the same key.
        if (self.method == "passphrase") != (source.method() == "passphrase") {
            return Ok(None);
        }
        let parsed = (from_hex::<32>(&self.salt), from_hex::<12>(&self.nonce), from_hex::<48>(&self.wrapped));
        let (Ok(salt), Ok(nonce), Ok(mut sealed)) = parsed else {
            return Ok(None);
        };
        let kek = self.kek(source, &salt)?;
        let aad = Aad::from(associated(repository_id, number, &self.method));
        let opened = aes_key(&kek)?.open_in_place(Nonce::assume_unique_for_key(nonce), aad, &mut sealed);
        Ok(opened.ok().and_then(|plain| (&*plain).try_into().ok()))
    }

    fn kek(&self, source: &KeySource, salt: &[u8; 32]) -> Result<Zeroizing<[u8; 32]>, RepoError> {
        match source {
            KeySource::KeyFile(key) | KeySource::KeyCommand(key) => {
                let salt = hkdf::Salt::new(hkdf::HKDF_SHA256, salt);
                Ok(Zeroizing::new(hkdf_32(&salt, &**key, b"pgkeep wrap 1")?))
            }
            KeySource::Passphrase(passphrase) => {
                let bad = |reason: String| RepoError::Crypto { reason: format!("Argon2id: {reason}") };
                let memory = self.argon2_memory_kib.unwrap_or(ARGON2_MEMORY_KIB);
                let passes = self.argon2_passes.unwrap_or(ARGON2_PASSES);
                if memory > ARGON2_MEMORY_KIB_MAX || passes > ARGON2_PASSES_MAX {
                    return Err(bad(format!("{memory} KiB and {passes} passes are beyond what is allowed")));
                }
                let params = argon2::Params::new(memory, passes, self.argon2_lanes.unwrap_or(ARGON2_LANES), Some(32))
                    .map_err(|e| bad(e.to_string()))?;
                let argon2 = argon2::Argon2::new(argon2::Algorithm::Argon2id, argon2::Version::V0x13, params);
                let mut kek = Zeroizing::new([0; 32]);
                argon2.hash_password_into(passphrase.as_bytes(), salt, &mut *kek).map_err(|e| bad(e.to_string()))?;
                Ok(kek)
            }
        }
    }
}

fn associated(repository_id: &str, number: u32, method: &str) -> String {
    format!("{repository_id}/{number}/{method}")
}

/// The data keys of an opened repository; empty when it is not encrypted.
#[derive(Clone)]
pub struct Keyring {
    keys: Vec<(u32, [u8; 32])>,
}

impl Keyring {
    /// For a repository without encryption.
    pub fn plain() -> Self {
        Self { keys: Vec::new() }
    }

    /// From unwrapped data keys.
    pub(crate) fn from_data_keys(mut keys: Vec<(u32, [u8; 32])>) -> Self {
        keys.sort_by_key(|(number, _)| *number);
        Self { keys }
    }

    #[cfg(test)]
    pub(crate) fn for_test() -> Self {
        Self::from_data_keys(vec![(1, [7; 32])])
    }

    /// The number of the key that new objects are sealed with.
    pub(crate) fn newest(&self) -> Option<u32> {
        self.keys.last().map(|(number, _)| *number)
    }

    pub(crate) fn data_key(&self, number: u32) -> Option<&[u8; 32]> {
        self.keys.iter().find(|(n, _)| *n == number).map(|(_, key)| key)
    }
}

impl Drop for Keyring {
    fn drop(&mut self) {
        for (_, key) in &mut self.keys {
            key.zeroize();
        }
    }
}

impl std::fmt::Debug for Keyring {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Keyring({} keys)", self.keys.len())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const KEY: &str = "000102030405060708090a0b0c0d0e0f101112131415161718191a1b1c1d1e1f\n";

    #[test]
    fn wraps_open_with_their_own_secret_only() {
        let file = KeySource::key_file(KEY).unwrap();
        let phrase = KeySource::passphrase("correct horse\n").unwrap();
        for source in [&file, &phrase] {
            let wrap = Wrap::seal(source, "repo", 1, &[5; 32]).unwrap();
            assert_eq!(wrap.open(source, "repo", 1).unwrap(), Some([5; 32]));
            assert_eq!(wrap.open(source, "other", 1).unwrap(), None);
            assert_eq!(wrap.open(source, "repo", 2).unwrap(), None);
        }
        let wrap = Wrap::seal(&phrase, "repo", 1, &[5; 32]).unwrap();
        assert_eq!(wrap.open(&KeySource::passphrase("wrong").unwrap(), "repo", 1).unwrap(), None);
        assert_eq!(wrap.open(&file, "repo", 1).unwrap(), None);
    }

    #[test]
    fn a_key_command_may_print_the_key_file() {
        let wrap = Wrap::seal(&KeySource::key_file(KEY).unwrap(), "repo", 1, &[5; 32]).unwrap();
        assert_eq!(wrap.open(&KeySource::key_command(KEY).unwrap(), "repo", 1).unwrap(), Some([5; 32]));
    }

    #[test]
    fn bad_keys_say_what_is_wanted() {
        for bad in ["", "abc", &KEY[..62], &"g".repeat(64)] {
            assert!(KeySource::key_file(bad).unwrap_err().to_string().contains("64 hexadecimal digits"));
        }
        assert!(KeySource::passphrase("\n").is_err());
        assert!(!format!("{:?}", KeySource::passphrase("secret").unwrap()).contains("secret"));
    }
}
