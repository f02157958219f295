//! `backup_manifest` (`src/backend/backup/backup_manifest.c`, `src/common/parse_manifest.c`), versions 1 and 2.
//!
//! The checksum of the manifest is SHA-256, which the caller brings.

use serde::{Deserialize, Serialize};

use crate::error::FormatError;
use crate::ids::{SystemId, Timeline};
use crate::lsn::Lsn;

const WHAT: &str = "backup_manifest";

/// The list of files in a base backup, with the WAL that it needs.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BackupManifest {
    /// `System-Identifier`; version 2 (PostgreSQL 17 and later) has it, version 1 has not.
    pub system_id: Option<SystemId>,
    /// `Files`, without `backup_manifest` itself and `pg_wal`.
    pub files: Vec<ManifestFile>,
    /// `WAL-Ranges`.
    pub wal_ranges: Vec<WalRange>,
}

/// A file of a base backup.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ManifestFile {
    /// The path relative to the data directory; tablespaces are below `pg_tblspc`.
    pub path: Vec<u8>,
    /// Its size.
    pub size_bytes: u64,
    /// When it was changed, like `2026-11-20 20:09:10 GMT`; see [`crate::timestamp::gmt_text`].
    pub last_modified_text: String,
    /// Its checksum; a CRC-32C is in little-endian order.
    pub checksum: Option<(ChecksumAlgorithm, Vec<u8>)>,
}

/// How the files of a manifest were summed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "UPPERCASE")]
pub enum ChecksumAlgorithm {
    /// `CRC32C`, the default.
    Crc32c,
    /// `SHA224`.
    Sha224,
    /// `SHA256`.
    Sha256,
    /// `SHA384`.
    Sha384,
    /// `SHA512`.
    Sha512,
}

/// WAL that is needed to make a base backup consistent.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct WalRange {
    /// The timeline.
    #[serde(rename = "Timeline")]
    pub timeline: Timeline,
    /// Where it starts.
    #[serde(rename = "Start-LSN")]
    pub start_lsn: Lsn,
    /// Where it ends, exclusive.
    #[serde(rename = "End-LSN")]
    pub end_lsn: Lsn,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct JsonManifest {
    #[serde(rename = "PostgreSQL-Backup-Manifest-Version")]
    version: u64,
    #[serde(rename = "System-Identifier")]
    system_id: Option<u64>,
    #[serde(rename = "Files")]
    files: Vec<JsonFile>,
    #[serde(rename = "WAL-Ranges")]
    wal_ranges: Vec<WalRange>,
    #[serde(rename = "Manifest-Checksum")]
    checksum: String,
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct JsonFile {
    #[serde(rename = "Path", default, skip_serializing_if = "Option::is_none")]
    path: Option<String>,
    #[serde(rename = "Encoded-Path", default, skip_serializing_if = "Option::is_none")]
    encoded_path: Option<String>,
    #[serde(rename = "Size")]
    size: u64,
    #[serde(rename = "Last-Modified", default)]
    last_modified: String,
    #[serde(rename = "Checksum-Algorithm", default, skip_serializing_if = "Option::is_none")]
    algorithm: Option<ChecksumAlgorithm>,
    #[serde(rename = "Checksum", default, skip_serializing_if = "Option::is_none")]
    checksum: Option<String>,
}

impl BackupManifest {
    /// Reads a manifest and checks it against its own checksum.
    pub fn parse(bytes: &[u8], sha256: impl FnOnce(&[u8]) -> [u8; 32]) -> Result<Self, FormatError> {
        let json: JsonManifest = serde_json::from_slice(bytes).map_err(|error| FormatError::Line {
            what: WHAT,
            line: error.line() as u64,
            reason: error.to_string(),
        })?;
        // As `verify_manifest_checksum`: the last line is not covered.
        let body = bytes.strip_suffix(b"\n").and_then(|body| {
            let end = body.iter().rposition(|&byte| byte == b'\n')?;
            bytes.get(..=end)
        });
        let actual = hex(&sha256(body.ok_or(FormatError::Missing { what: WHAT, field: "last line of its own" })?));
        if actual != json.checksum {
            return Err(FormatError::field(
                WHAT,
                "Manifest-Checksum",
                json.checksum,
                format!("the manifest is damaged: its bytes give {actual}"),
            ));
        }
        match (json.version, json.system_id) {
            (1, None) | (2, Some(_)) => {}
            (1 | 2, _) => {
                return Err(FormatError::field(
                    WHAT,
                    "System-Identifier",
                    format!("{:?}", json.system_id),
                    "version 2 has one, version 1 has none",
                ));
            }
            (found, _) => {
                return Err(FormatError::UnsupportedVersion { what: WHAT, found, supported: "1 and 2" });
            }
        }
        Ok(Self {
            system_id: json.system_id.map(SystemId),
            files: json.files.into_iter().map(ManifestFile::from_json).collect::<Result<_, _>>()?,
            wal_ranges: json.wal_ranges,
        })
    }

    /// Writes the manifest; its version is 2 when there is a system identifier, else 1.
    #[must_use]
    pub fn render(&self, sha256: impl FnOnce(&[u8]) -> [u8; 32]) -> Vec<u8> {
        let mut out = render_head(self.system_id);
        for (index, file) in self.files.iter().enumerate() {
            out.push_str(&file.render(index == 0));
        }
        out.push_str(&render_ranges(&self.wal_ranges));
        let checksum = sha256(out.as_bytes());
        out.push_str(&render_checksum(&checksum));
        out.into_bytes()
    }
}

/// The beginning of a manifest, for who writes it piece by piece: head, each file, ranges, checksum.
#[must_use]
pub fn render_head(system_id: Option<SystemId>) -> String {
    match system_id {
        Some(id) => {
            format!("{{ \"PostgreSQL-Backup-Manifest-Version\": 2,\n\"System-Identifier\": {id},\n\"Files\": [")
        }
        None => "{ \"PostgreSQL-Backup-Manifest-Version\": 1,\n\"Files\": [".to_owned(),
    }
}

/// What follows the files.
#[must_use]
pub fn render_ranges(ranges: &[WalRange]) -> String {
    let ranges: Vec<String> = ranges.iter().map(json_text).collect();
    format!("\n],\n\"WAL-Ranges\": [\n{}\n],\n", ranges.join(",\n"))
}

/// The last line: the SHA-256 of all before it.
#[must_use]
pub fn render_checksum(sha256: &[u8; 32]) -> String {
    format!("\"Manifest-Checksum\": \"{}\"}}\n", hex(sha256))
}

impl ManifestFile {
    fn from_json(json: JsonFile) -> Result<Self, FormatError> {
        let path = match (json.path, json.encoded_path) {
            (Some(path), None) => path.into_bytes(),
            (None, Some(encoded)) => unhex(&encoded)
                .ok_or_else(|| FormatError::field(WHAT, "Encoded-Path", encoded, "it is not hexadecimal"))?,
            _ => return Err(FormatError::Missing { what: WHAT, field: "one of Path and Encoded-Path for a file" }),
        };
        let checksum = match (json.algorithm, json.checksum) {
            (Some(algorithm), Some(sum)) => {
                let bytes =
                    unhex(&sum).ok_or_else(|| FormatError::field(WHAT, "Checksum", sum, "it is not hexadecimal"))?;
                Some((algorithm, bytes))
            }
            (None, None) => None,
            _ => {
                return Err(FormatError::Missing {
                    what: WHAT,
                    field: "both Checksum-Algorithm and Checksum for a file",
                });
            }
        };
        Ok(Self { path, size_bytes: json.size, last_modified_text: json.last_modified, checksum })
    }

    /// The file's line, with what comes before it.
    #[must_use]
    pub fn render(&self, is_first: bool) -> String {
        format!("{}{}", if is_first { "\n" } else { ",\n" }, json_text(&self.to_json()))
    }

    fn to_json(&self) -> JsonFile {
        let path = String::from_utf8(self.path.clone());
        let (algorithm, checksum) = self.checksum.as_ref().map(|(algorithm, sum)| (*algorithm, hex(sum))).unzip();
        JsonFile {
            encoded_path: path.is_err().then(|| hex(&self.path)),
            path: path.ok(),
            size: self.size_bytes,
            last_modified: self.last_modified_text.clone(),
            algorithm,
            checksum,
        }
    }
}

fn json_text(value: &impl Serialize) -> String {
    // These structs have only strings and numbers, which always can be written.
    serde_json::to_string(value).unwrap_or_default()
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

fn unhex(text: &str) -> Option<Vec<u8>> {
    let (pairs, rest) = text.as_bytes().as_chunks::<2>();
    let digit = |byte: u8| char::from(byte).to_digit(16);
    let bytes = pairs.iter().map(|[high, low]| Some((digit(*high)? << 4 | digit(*low)?) as u8)).collect();
    if rest.is_empty() { bytes } else { None }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// Not SHA-256, but enough to see whether the right bytes are summed.
    fn fake_sum(bytes: &[u8]) -> [u8; 32] {
        let mut sum = [0; 32];
        sum[..4].copy_from_slice(&crate::bytes::crc32c(bytes).to_le_bytes());
        sum
    }

    fn sample() -> BackupManifest {
        BackupManifest {
            system_id: Some(SystemId(7_300_000_000_000_000_001)),
            files: vec![
                ManifestFile {
                    path: b"base/5/\"16384".to_vec(),
                    size_bytes: 8192,
                    last_modified_text: "2026-11-20 20:09:10 GMT".to_owned(),
                    checksum: Some((ChecksumAlgorithm::Crc32c, vec![1, 2, 3, 0xFF])),
                },
                ManifestFile {
                    path: vec![b'x', 0xFF],
                    size_bytes: 0,
                    last_modified_text: String::new(),
                    checksum: None,
                },
            ],
            wal_ranges: vec![WalRange { timeline: Timeline(1), start_lsn: Lsn(0x200_0028), end_lsn: Lsn(0x200_0100) }],
        }
    }

    #[test]
    fn round_trip_of_both_versions() {
        for system_id in [None, Some(SystemId(u64::MAX))] {
            let manifest = BackupManifest { system_id, ..sample() };
            let bytes = manifest.render(fake_sum);
            assert_eq!(BackupManifest::parse(&bytes, fake_sum), Ok(manifest));
        }
    }

    #[test]
    fn damage_is_found() {
        let good = String::from_utf8(sample().render(fake_sum)).unwrap();
        let check = |bad: String| assert!(BackupManifest::parse(bad.as_bytes(), fake_sum).is_err(), "{bad}");
        check(good.replace("8192", "8193"));
        check(good.replace("Version\": 2", "Version\": 3"));
        check(good.replace("Size", "Sise"));
        check(good.trim_end().to_owned());
        check(String::new());
        check(good.replace('\n', " "));
    }

    proptest! {
        #[test]
        fn any_path_comes_back(path: Vec<u8>, sum: Vec<u8>) {
            let mut manifest = sample();
            manifest.files[0].path = path;
            manifest.files[0].checksum = Some((ChecksumAlgorithm::Sha512, sum));
            prop_assert_eq!(BackupManifest::parse(&manifest.render(fake_sum), fake_sum), Ok(manifest));
        }

        #[test]
        fn never_panics(bytes: Vec<u8>, text in "[a-z0-9é]{0,9}") {
            let _ = BackupManifest::parse(&bytes, fake_sum);
            let _ = unhex(&text);
        }
    }
}
