//! Values of settings: quotes, units and switches.

use crate::error::FormatError;

/// The value in quotes, so that [`super::ConfFile::parse`] and the server read it back as it is.
pub fn quote_value(value: &str) -> Result<String, FormatError> {
    let mut out = String::with_capacity(value.len() + 2);
    out.push('\'');
    for c in value.chars() {
        match c {
            '\0' => return Err(FormatError::text("setting value", value, "it contains a zero byte")),
            '\'' => out.push_str("''"),
            '\\' => out.push_str("\\\\"),
            '\n' => out.push_str("\\n"),
            '\r' => out.push_str("\\r"),
            c => out.push(c),
        }
    }
    out.push('\'');
    Ok(out)
}

/// Takes quotes and escapes off (`DeescapeQuotedString`). `quoted` starts and ends with a quote.
pub(super) fn unquote(quoted: &str) -> String {
    let inner = quoted.strip_prefix('\'').unwrap_or(quoted);
    let bytes = inner.strip_suffix('\'').unwrap_or(inner).as_bytes();
    let mut out = Vec::with_capacity(bytes.len());
    let mut at = 0;
    while let Some(&byte) = bytes.get(at) {
        at += 1;
        if byte == b'\'' {
            // The second one of a pair.
            at += 1;
        }
        if byte != b'\\' {
            out.push(byte);
            continue;
        }
        let Some(&escaped) = bytes.get(at) else { break };
        at += 1;
        out.push(match escaped {
            b'b' => 8,
            b'f' => 12,
            b'n' => b'\n',
            b'r' => b'\r',
            b't' => b'\t',
            b'0'..=b'7' => {
                let mut value = u32::from(escaped - b'0');
                for _ in 0..2 {
                    let Some(&digit @ b'0'..=b'7') = bytes.get(at) else { break };
                    value = value << 3 | u32::from(digit - b'0');
                    at += 1;
                }
                value as u8
            }
            other => other,
        });
    }
    // The server takes the value for a C string.
    out.truncate(out.iter().position(|&byte| byte == 0).unwrap_or(out.len()));
    String::from_utf8_lossy(&out).into_owned()
}

/// Reads a switch: `on`, `off`, `true`, `false`, `yes`, `no`, `1`, `0`, or a clear beginning of one, in any case
/// (`parse_bool_with_len` in `src/backend/utils/adt/bool.c`).
#[must_use]
pub fn parse_bool(value: &str) -> Option<bool> {
    let value = value.to_ascii_lowercase();
    let begins = |word: &str, least: usize| value.len() >= least && word.starts_with(&value);
    if begins("true", 1) || begins("yes", 1) || value == "on" || value == "1" {
        Some(true)
    } else if begins("false", 1) || begins("no", 1) || begins("off", 2) || value == "0" {
        Some(false)
    } else {
        None
    }
}

/// Reads a size with an optional unit (`B`, `kB`, `MB`, `GB`, `TB`) in bytes; a plain number counts `base_bytes`
/// (8192 for `shared_buffers`, 1 MiB for `min_wal_size`).
#[must_use]
pub fn parse_memory_bytes(value: &str, base_bytes: u64) -> Option<i64> {
    scaled(value, |unit| {
        Some(match unit {
            "" => base_bytes as f64,
            "B" => 1.0,
            "kB" => 1024.0,
            "MB" => 1_048_576.0,
            "GB" => 1_073_741_824.0,
            "TB" => 1_099_511_627_776.0,
            _ => return None,
        })
    })
}

/// Reads a duration with an optional unit (`us`, `ms`, `s`, `min`, `h`, `d`) in microseconds; a plain number counts
/// `base_micros` (1,000,000 for `archive_timeout`).
#[must_use]
pub fn parse_time_micros(value: &str, base_micros: u64) -> Option<i64> {
    scaled(value, |unit| {
        Some(match unit {
            "" => base_micros as f64,
            "us" => 1.0,
            "ms" => 1e3,
            "s" => 1e6,
            "min" => 6e7,
            "h" => 3.6e9,
            "d" => 8.64e10,
            _ => return None,
        })
    })
}

fn scaled(value: &str, factor: impl Fn(&str) -> Option<f64>) -> Option<i64> {
    let value = value.trim();
    let end = value.find(|c: char| !(c.is_ascii_digit() || matches!(c, '.' | '-' | '+'))).unwrap_or(value.len());
    let (number, unit) = value.split_at(end);
    let result = (number.parse::<f64>().ok()? * factor(unit.trim_start())?).round();
    (result.abs() < 9e18).then_some(result as i64)
}
