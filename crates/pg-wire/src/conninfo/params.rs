//! The settings that a connection string gives explicitly, before anything is added from the surroundings.

use super::error::ConninfoError;
use super::{Conninfo, Surroundings};
use super::{keyvalue, keywords, resolve, uri};
use crate::Secret;
use std::collections::BTreeMap;
use std::fmt;
use std::str::FromStr;

/// Explicit connection settings: keyword to value. `Debug` and `Display` never show a secret.
#[derive(Clone, Default, PartialEq, Eq)]
pub struct Params {
    values: BTreeMap<&'static str, Secret>,
}

impl Params {
    /// Parses a `postgresql://` or `postgres://` URI, or a keyword/value string.
    pub fn parse(text: &str) -> Result<Self, ConninfoError> {
        let mut params = Self::default();
        match uri::without_scheme(text) {
            Some(_) => uri::parse(text, &mut params)?,
            None => keyvalue::parse(text, &mut params)?,
        }
        Ok(params)
    }

    /// The value of a keyword, as given.
    pub fn get(&self, keyword: &str) -> Option<&str> {
        self.values.get(keyword).map(Secret::expose)
    }

    /// Sets a keyword, replacing an earlier value.
    ///
    /// Knows libpq's old `requiressl` as `conninfo_storeval` in `fe-connect.c` does.
    pub fn set(&mut self, keyword: &str, value: impl Into<String>) -> Result<(), ConninfoError> {
        let mut value = value.into();
        let mut keyword = keyword;
        if keyword == "requiressl" {
            keyword = "sslmode";
            value = if value.starts_with('1') { "require" } else { "prefer" }.to_owned();
        }
        let Some(known) = keywords::find(keyword) else {
            return Err(ConninfoError::UnknownKeyword {
                keyword: keyword.to_owned(),
                nearest: keywords::nearest(keyword),
            });
        };
        if value.contains('\0') {
            return Err(ConninfoError::NulByte { keyword: keyword.to_owned() });
        }
        self.values.insert(known.name, Secret::new(value));
        Ok(())
    }

    /// Sets a keyword unless it has a value already.
    pub(crate) fn set_default(&mut self, keyword: &str, value: &str) -> Result<(), ConninfoError> {
        match keywords::find(keyword) {
            Some(known) if self.values.contains_key(known.name) => Ok(()),
            _ => self.set(keyword, value),
        }
    }

    /// Removes a keyword.
    pub(crate) fn unset(&mut self, keyword: &str) {
        self.values.remove(keyword);
    }

    /// The settings in keyword order; secret values are replaced by `***`.
    pub fn iter_shown(&self) -> impl Iterator<Item = (&'static str, &str)> {
        self.values.iter().map(|(keyword, value)| {
            let secret = keywords::find(keyword).is_some_and(|known| known.secret);
            (*keyword, if secret { "***" } else { value.expose() })
        })
    }

    /// Completes the settings from service file, environment and defaults and checks them all, as libpq does.
    pub fn resolve(&self, surroundings: &Surroundings) -> Result<Conninfo, ConninfoError> {
        resolve::resolve(self.clone(), surroundings)
    }
}

impl FromStr for Params {
    type Err = ConninfoError;

    fn from_str(text: &str) -> Result<Self, ConninfoError> {
        Self::parse(text)
    }
}

impl fmt::Display for Params {
    /// As a keyword/value string without secrets.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut first = true;
        for (keyword, value) in self.iter_shown() {
            if !first {
                f.write_str(" ")?;
            }
            first = false;
            write!(f, "{keyword}={}", keyvalue::quote(value))?;
        }
        Ok(())
    }
}

impl fmt::Debug for Params {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_map().entries(self.iter_shown()).finish()
    }
}
