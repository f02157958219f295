//! The words of one line of a configuration file, as the rules of `guc-file.l` cut them: the longest match wins.

/// A word.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Token<'a> {
    Id(&'a str),
    QualifiedId(&'a str),
    /// With its quotes.
    Quoted(&'a str),
    Unquoted(&'a str),
    /// `INTEGER` or `REAL`.
    Number(&'a str),
    Equals,
    Error(&'a str),
}

impl<'a> Token<'a> {
    pub(super) fn text(self) -> &'a str {
        match self {
            Self::Id(text)
            | Self::QualifiedId(text)
            | Self::Quoted(text)
            | Self::Unquoted(text)
            | Self::Number(text)
            | Self::Error(text) => text,
            Self::Equals => "=",
        }
    }
}

/// The words of a line, up to its comment.
pub(super) fn tokens(line: &str) -> impl Iterator<Item = Token<'_>> {
    let mut rest = line;
    std::iter::from_fn(move || {
        rest = rest.trim_start_matches([' ', '\t', '\r']);
        let first = rest.chars().next().filter(|&c| c != '#')?;
        let bytes = rest.as_bytes();
        let (len, make): (usize, fn(&str) -> Token<'_>) = if is_letter(bytes[0]) {
            let len = count(bytes, |b| is_letter(b) || b.is_ascii_digit() || b"-._:/".contains(&b));
            (len, word)
        } else if let Some(len) = quoted_len(bytes) {
            (len, |text| Token::Quoted(text))
        } else if let Some(len) = number_len(bytes) {
            (len, |text| Token::Number(text))
        } else if first == '=' {
            (1, |_| Token::Equals)
        } else {
            (first.len_utf8(), |text| Token::Error(text))
        };
        // All ends lie after an ASCII byte or at the end of a run that takes every byte above 127.
        let (text, after) = rest.split_at_checked(len)?;
        rest = after;
        Some(make(text))
    })
}

fn word(text: &str) -> Token<'_> {
    let is_id = |part: &str| {
        part.bytes().next().is_some_and(is_letter) && part.bytes().all(|b| is_letter(b) || b.is_ascii_digit())
    };
    if is_id(text) {
        return Token::Id(text);
    }
    match text.split_once('.') {
        Some((class, name)) if is_id(class) && is_id(name) => Token::QualifiedId(text),
        _ => Token::Unquoted(text),
    }
}

/// `LETTER`.
fn is_letter(byte: u8) -> bool {
    byte.is_ascii_alphabetic() || byte == b'_' || byte >= 0x80
}

fn count(bytes: &[u8], accept: impl Fn(u8) -> bool) -> usize {
    bytes.iter().take_while(|&&byte| accept(byte)).count()
}

/// `STRING`: a doubled quote is part of it.
fn quoted_len(bytes: &[u8]) -> Option<usize> {
    if bytes.first() != Some(&b'\'') {
        return None;
    }
    let mut at = 1;
    loop {
        match bytes.get(at)? {
            b'\'' if bytes.get(at + 1) == Some(&b'\'') => at += 2,
            b'\'' => return Some(at + 1),
            b'\\' => {
                bytes.get(at + 1)?;
                at += 2;
            }
            _ => at += 1,
        }
    }
}

/// The longer one of `INTEGER` and `REAL`.
fn number_len(bytes: &[u8]) -> Option<usize> {
    let sign = usize::from(matches!(bytes.first(), Some(b'-' | b'+')));
    let body = &bytes[sign..];
    let digits = count(body, |b| b.is_ascii_digit());
    let hex = match body {
        [b'0', b'x', rest @ ..] => {
            Some(count(rest, |b| b.is_ascii_hexdigit())).filter(|&len| len > 0).map(|len| len + 2)
        }
        _ => None,
    };
    let integer = hex.or((digits > 0).then_some(digits));
    let integer = integer.map(|len| len + count(&body[len..], |b| b.is_ascii_alphabetic()));
    let real = (body.get(digits) == Some(&b'.')).then(|| {
        let len = digits + 1 + count(&body[digits + 1..], |b| b.is_ascii_digit());
        len + exponent_len(&body[len..])
    });
    integer.max(real).map(|len| sign + len)
}

fn exponent_len(bytes: &[u8]) -> usize {
    if !matches!(bytes.first(), Some(b'e' | b'E')) {
        return 0;
    }
    let sign = usize::from(matches!(bytes.get(1), Some(b'-' | b'+')));
    match count(&bytes[1 + sign..], |b| b.is_ascii_digit()) {
        0 => 0,
        digits => 1 + sign + digits,
    }
}
