//! The name of an object inside a store.

use std::fmt;

/// The longest path a store accepts, in bytes (S3 allows 1,024 for a key with its prefix).
const PATH_BYTES_MAX: usize = 800;

/// Name of an object or of a prefix: parts of `[A-Za-z0-9._=-]` joined by `/`, none of them
/// empty, `.` or `..`, so that it is safe as a file name, an S3 key and a URL.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ObjectPath(String);

impl ObjectPath {
    /// Checks and takes a path. The error says what is wrong with it.
    pub fn new(path: impl Into<String>) -> Result<Self, String> {
        let path = path.into();
        if path.is_empty() || path.len() > PATH_BYTES_MAX {
            return Err(format!("object path must have 1 to {PATH_BYTES_MAX} bytes, has {}", path.len()));
        }
        for part in path.split('/') {
            let allowed = |b: u8| b.is_ascii_alphanumeric() || b"._=-".contains(&b);
            if part.is_empty() || part == "." || part == ".." || !part.bytes().all(allowed) {
                return Err(format!("object path {path:?} has the part {part:?}: allowed are A-Z a-z 0-9 . _ = -"));
            }
        }
        Ok(Self(path))
    }

    /// The path below this one.
    pub fn join(&self, part: &str) -> Result<Self, String> {
        Self::new(format!("{}/{part}", self.0))
    }

    /// The path as text, without a leading or trailing slash.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// The last part.
    pub fn name(&self) -> &str {
        self.0.rsplit('/').next().unwrap_or(&self.0)
    }

    /// What remains of the path below `prefix`, if it lies there.
    pub fn below(&self, prefix: &ObjectPath) -> Option<&str> {
        self.0.strip_prefix(prefix.as_str())?.strip_prefix('/')
    }
}

impl fmt::Display for ObjectPath {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl fmt::Debug for ObjectPath {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}
