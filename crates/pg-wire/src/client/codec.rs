//! Messages from the server: `postgres-protocol`'s, and the two that it rejects.
//!
//! `CopyBothResponse` ('W') and `NegotiateProtocolVersion` ('v') are taken off the buffer before the rest is
//! handed on. Lengths are checked against a limit before anything is reserved for them.

use bytes::{Buf, BytesMut};
use fallible_iterator::FallibleIterator;
use postgres_protocol::message::backend::{ErrorFields, Header, Message};

use crate::ServerError;

const COPY_BOTH: u8 = b'W';
const NEGOTIATE_PROTOCOL: u8 = b'v';
const COPY_DATA: u8 = b'd';
/// Tag and length.
pub(super) const COPY_DATA_HEADER: usize = 5;

/// The longest message that is taken after the login: PostgreSQL's own limit for what it builds in memory
/// (`MaxAllocSize`, src/include/utils/memutils.h) and the header.
pub(super) const LIMIT_SESSION: usize = 0x3fff_ffff + 5;
/// The longest before the login; as `MAX_ERRLEN` in src/interfaces/libpq/fe-connect.c.
pub(super) const LIMIT_LOGIN: usize = 30_000;

pub(super) enum Backend {
    Message(Message),
    CopyBoth,
    NegotiateProtocol { newest_minor: u32, unknown: Vec<String> },
}

/// Takes one whole message off the buffer; none when more bytes are needed.
pub(super) fn take(buf: &mut BytesMut, limit: usize) -> Result<Option<Backend>, String> {
    let Some(header) = Header::parse(buf).map_err(|error| error.to_string())? else {
        buf.reserve(8192);
        return Ok(None);
    };
    let total = header.len() as usize + 1;
    if total > limit {
        return Err(format!("a message of {total} bytes with tag {:?}", char::from(header.tag())));
    }
    if buf.len() < total {
        // The rest is reserved in steps: a lying header must not take a gigabyte at once.
        buf.reserve((total - buf.len()).min(1 << 20));
        return Ok(None);
    }
    match header.tag() {
        COPY_BOTH => {
            buf.advance(total);
            Ok(Some(Backend::CopyBoth))
        }
        NEGOTIATE_PROTOCOL => {
            let mut body = buf.split_to(total);
            body.advance(5);
            negotiate_protocol(body).map(Some)
        }
        _ => match Message::parse(buf) {
            Ok(Some(message)) => Ok(Some(Backend::Message(message))),
            Ok(None) => Ok(None),
            Err(error) => Err(error.to_string()),
        },
    }
}

/// How many bytes of whole CopyData messages the buffer begins with: a COPY sends one for each row
/// (`CopySendEndOfRow` in src/backend/commands/copyto.c), and there is nothing to be said about each.
pub(super) fn copy_data_len(buf: &[u8]) -> usize {
    let mut len = 0;
    while let Some(message) = copy_data(&buf[len..]) {
        len += message.len() + COPY_DATA_HEADER;
    }
    len
}

/// The data of the whole CopyData message that the bytes begin with.
pub(super) fn copy_data(buf: &[u8]) -> Option<&[u8]> {
    let (header, rest) = buf.split_first_chunk::<COPY_DATA_HEADER>()?;
    let [COPY_DATA, length @ ..] = *header else { return None };
    // The length counts itself; a shorter one is left to `take`, which says what is wrong.
    rest.get(..(u32::from_be_bytes(length) as usize).checked_sub(4)?)
}

/// Mirrors `pqGetNegotiateProtocolVersion3` in src/interfaces/libpq/fe-protocol3.c.
fn negotiate_protocol(mut body: BytesMut) -> Result<Backend, String> {
    let short = || "a NegotiateProtocolVersion message that is too short".to_owned();
    let newest_minor = body.try_get_u32().map_err(|_| short())?;
    let count = body.try_get_u32().map_err(|_| short())?;
    let mut unknown = Vec::new();
    for _ in 0..count {
        let end = body.iter().position(|byte| *byte == 0).ok_or_else(short)?;
        unknown.push(String::from_utf8_lossy(&body.split_to(end)).into_owned());
        body.advance(1);
    }
    Ok(Backend::NegotiateProtocol { newest_minor, unknown })
}

/// Reads the fields of an ErrorResponse or NoticeResponse; damaged ones give what could be read.
pub(super) fn server_error(mut fields: ErrorFields<'_>) -> ServerError {
    let mut error = ServerError::default();
    let mut localized = String::new();
    while let Ok(Some(field)) = fields.next() {
        let value = String::from_utf8_lossy(field.value_bytes()).into_owned();
        match field.type_() {
            b'S' => localized = value,
            b'V' => error.severity = value,
            b'C' => error.sqlstate = value,
            b'M' => error.message = value,
            b'D' => error.detail = Some(value),
            b'H' => error.hint = Some(value),
            b'W' => error.r#where = Some(value),
            b'P' => error.position = value.parse().ok(),
            b's' => error.schema = Some(value),
            b't' => error.table = Some(value),
            b'c' => error.column = Some(value),
            b'n' => error.constraint = Some(value),
            b'R' => error.routine = Some(value),
            _ => {}
        }
    }
    if error.severity.is_empty() {
        error.severity = localized;
    }
    error
}

#[cfg(test)]
mod tests {
    use super::*;

    fn all(bytes: &[u8]) -> Result<Vec<Backend>, String> {
        let mut buf = BytesMut::from(bytes);
        let mut out = Vec::new();
        while let Some(message) = take(&mut buf, LIMIT_LOGIN)? {
            out.push(message);
        }
        Ok(out)
    }

    #[test]
    fn copy_both_is_taken_off_whole() {
        let got = all(b"W\0\0\0\x07\0\0\0Z\0\0\0\x05I").unwrap();
        assert!(matches!(got[0], Backend::CopyBoth));
        assert!(matches!(got[1], Backend::Message(Message::ReadyForQuery(_))));
        assert_eq!(got.len(), 2);
    }

    #[test]
    fn negotiate_protocol_is_read() {
        let got = all(b"v\0\0\0\x11\0\0\0\0\0\0\0\x01_pq_\0").unwrap();
        match &got[..] {
            [Backend::NegotiateProtocol { newest_minor: 0, unknown }] => assert_eq!(unknown, &["_pq_"]),
            _ => panic!("not read"),
        }
        assert!(all(b"v\0\0\0\x0c\0\0\0\0\0\0\0\x01").is_err(), "the name is missing");
        assert!(all(b"v\0\0\0\x04").is_err());
    }

    #[test]
    fn lengths_are_limited() {
        assert!(all(b"D\x7f\xff\xff\xff").is_err());
        assert!(all(b"D\0\0\0\x03").is_err());
        assert!(all(b"D\xff\xff\xff\xff").is_err());
        assert_eq!(all(b"D\0\0\0\x20\0").unwrap().len(), 0);
    }

    #[test]
    fn runs_of_copy_data_are_whole_messages() {
        let bytes = b"d\0\0\0\x06ab" as &[u8];
        let two = [bytes, b"d\0\0\0\x04"].concat();
        assert_eq!(copy_data(&two), Some(b"ab" as &[u8]));
        assert_eq!(copy_data_len(&two), 12);
        for rest in [&b"d\0\0\0\x05"[..], b"d\0\0", b"d\0\0\0\x03", b"c\0\0\0\x04"] {
            assert_eq!(copy_data_len(&[&two[..], rest].concat()), 12, "{rest:?}");
        }
        assert_eq!(copy_data_len(b"d\xff\xff\xff\xff"), 0);
    }

    proptest::proptest! {
        #[test]
        fn copy_data_is_read_as_take_reads_it(bytes in proptest::collection::vec(proptest::sample::select(&b"d\0\0\0\x04\x05\x06"[..]), 0..60)) {
            let mut rest = BytesMut::from(&bytes[copy_data_len(&bytes)..]);
            let mut buf = BytesMut::from(&bytes[..]);
            let mut at = 0;
            while let Some(data) = copy_data(&bytes[at..]) {
                let Ok(Some(Backend::Message(Message::CopyData(body)))) = take(&mut buf, LIMIT_SESSION) else { panic!("no message") };
                assert_eq!(body.data(), data);
                at += data.len() + COPY_DATA_HEADER;
            }
            assert!(!matches!(take(&mut rest, LIMIT_SESSION), Ok(Some(Backend::Message(Message::CopyData(_))))));
        }

        #[test]
        fn never_panics(bytes in proptest::collection::vec(proptest::num::u8::ANY, 0..200)) {
            let _ = all(&bytes);
        }

        #[test]
        fn never_panics_with_a_header(tag in proptest::num::u8::ANY, body in proptest::collection::vec(proptest::num::u8::ANY, 0..64)) {
            let mut bytes = vec![tag];
            bytes.extend_from_slice(&(body.len() as u32 + 4).to_be_bytes());
            bytes.extend_from_slice(&body);
            for message in all(&bytes).into_iter().flatten() {
                if let Backend::Message(Message::ErrorResponse(body)) = message {
                    server_error(body.fields());
                }
            }
        }
    }
}
