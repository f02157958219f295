//! The few facts of an X.509 certificate that are needed here, read from its DER bytes (RFC 5280). Never panics.

use aws_lc_rs::digest;
use std::net::IpAddr;

/// What was read of a certificate.
#[derive(Debug, Clone)]
pub(super) struct Certificate<'a> {
    /// The whole SubjectPublicKeyInfo.
    pub(super) spki: &'a [u8],
    /// Seconds since 1970.
    pub(super) not_before: u64,
    /// Seconds since 1970.
    pub(super) not_after: u64,
    /// The first common name of the subject.
    pub(super) common_name: Option<String>,
    /// Alternative names that are host names.
    pub(super) dns_names: Vec<String>,
    /// Alternative names that are addresses.
    pub(super) ip_addresses: Vec<IpAddr>,
    /// The hash of the signature's algorithm, none for algorithms without one.
    pub(super) signature_hash: Option<&'static digest::Algorithm>,
}

const SEQUENCE: u8 = 0x30;
const SET: u8 = 0x31;
const OID: u8 = 0x06;
const OCTETS: u8 = 0x04;
const OID_COMMON_NAME: &[u8] = &[0x55, 0x04, 0x03];
const OID_SUBJECT_ALT_NAME: &[u8] = &[0x55, 0x1d, 0x11];

/// One value: its tag, its content, and the whole of it.
#[derive(Clone, Copy)]
struct Value<'a> {
    tag: u8,
    content: &'a [u8],
    whole: &'a [u8],
}

struct Reader<'a>(&'a [u8]);

impl<'a> Reader<'a> {
    fn next(&mut self) -> Option<Value<'a>> {
        let start = self.0;
        let (&tag, rest) = start.split_first()?;
        let (&first, rest) = rest.split_first()?;
        let (length, rest) = match first {
            0..=0x7f => (usize::from(first), rest),
            0x81..=0x84 => {
                let count = usize::from(first & 0x7f);
                let (bytes, rest) = rest.split_at_checked(count)?;
                (bytes.iter().fold(0usize, |length, byte| (length << 8) | usize::from(*byte)), rest)
            }
            _ => return None,
        };
        let (content, rest) = rest.split_at_checked(length)?;
        self.0 = rest;
        Some(Value { tag, content, whole: &start[..start.len() - rest.len()] })
    }

    fn expect(&mut self, tag: u8) -> Option<Value<'a>> {
        self.next().filter(|value| value.tag == tag)
    }
}

impl Value<'_> {
    fn reader(&self) -> Reader<'_> {
        Reader(self.content)
    }
}

impl<'a> Certificate<'a> {
    pub(super) fn parse(bytes: &'a [u8]) -> Option<Self> {
        let mut outer = Reader(Reader(bytes).expect(SEQUENCE)?.content);
        let tbs = outer.expect(SEQUENCE)?;
        let algorithm = outer.expect(SEQUENCE)?;
        let mut tbs = Reader(tbs.content);
        let mut value = tbs.next()?;
        if value.tag == 0xa0 {
            // The version; absent for version 1. The serial number follows.
            value = tbs.next()?;
        }
        let _serial = value;
        let _signature = tbs.expect(SEQUENCE)?;
        let _issuer = tbs.expect(SEQUENCE)?;
        let validity = tbs.expect(SEQUENCE)?;
        let mut validity = validity.reader();
        let not_before = time(validity.next()?)?;
        let not_after = time(validity.next()?)?;
        let subject = tbs.expect(SEQUENCE)?;
        let spki = tbs.expect(SEQUENCE)?;
        let mut certificate = Self {
            spki: spki.whole,
            not_before,
            not_after,
            common_name: common_name(subject),
            dns_names: Vec::new(),
            ip_addresses: Vec::new(),
            signature_hash: signature_hash(algorithm),
        };
        while let Some(value) = tbs.next() {
            if value.tag == 0xa3 {
                certificate.extensions(value)?;
            }
        }
        Some(certificate)
    }

    fn extensions(&mut self, value: Value<'_>) -> Option<()> {
        let list = value.reader().expect(SEQUENCE)?;
        let mut list = list.reader();
        while let Some(extension) = list.next() {
            let mut fields = extension.reader();
            if fields.expect(OID)?.content != OID_SUBJECT_ALT_NAME {
                continue;
            }
            // A "critical" flag may stand between.
            let value = std::iter::from_fn(|| fields.next()).find(|value| value.tag == OCTETS)?;
            let names = value.reader().expect(SEQUENCE)?.content.to_vec();
            let mut names = Reader(&names);
            while let Some(name) = names.next() {
                match name.tag {
                    0x82 => self.dns_names.push(String::from_utf8_lossy(name.content).into_owned()),
                    0x87 => self.ip_addresses.extend(ip_address(name.content)),
                    _ => {}
                }
            }
        }
        Some(())
    }
}

fn ip_address(bytes: &[u8]) -> Option<IpAddr> {
    match bytes.len() {
        4 => <[u8; 4]>::try_from(bytes).ok().map(IpAddr::from),
        16 => <[u8; 16]>::try_from(bytes).ok().map(IpAddr::from),
        _ => None,
    }
}

fn common_name(subject: Value<'_>) -> Option<String> {
    let mut sets = subject.reader();
    while let Some(set) = sets.expect(SET) {
        let mut attributes = set.reader();
        while let Some(attribute) = attributes.expect(SEQUENCE) {
            let mut fields = attribute.reader();
            if fields.expect(OID)?.content == OID_COMMON_NAME {
                return fields.next().map(|value| String::from_utf8_lossy(value.content).into_owned());
            }
        }
    }
    None
}

/// UTCTime or GeneralizedTime, both in UTC with seconds (RFC 5280, 4.1.2.5).
fn time(value: Value<'_>) -> Option<u64> {
    let text = std::str::from_utf8(value.content).ok()?.strip_suffix('Z')?;
    if !text.bytes().all(|byte| byte.is_ascii_digit()) {
        return None;
    }
    let (year, rest) = match (value.tag, text.len()) {
        (0x17, 12) => {
            let year: i64 = text[..2].parse().ok()?;
            (if year < 50 { 2000 + year } else { 1900 + year }, &text[2..])
        }
        (0x18, 14) => (text[..4].parse().ok()?, &text[4..]),
        _ => return None,
    };
    let field = |index: usize| rest[index * 2..index * 2 + 2].parse::<i64>().ok();
    let (month, day) = (field(0)?, field(1)?);
    let seconds = field(2)? * 3600 + field(3)? * 60 + field(4)?;
    // Days from a civil date, with years that begin in March.
    let (year, month) = if month <= 2 { (year - 1, month + 9) } else { (year, month - 3) };
    let days =
        year * 365 + year.div_euclid(4) - year.div_euclid(100) + year.div_euclid(400) + (month * 153 + 2) / 5 + day
            - 719_469;
    // A certificate from before 1970 is as valid as one from 1970.
    Some(u64::try_from(days * 86_400 + seconds).unwrap_or(0))
}

/// The hash that belongs to a signature algorithm: `X509_get_signature_info` in OpenSSL's terms.
fn signature_hash(algorithm: Value<'_>) -> Option<&'static digest::Algorithm> {
    let mut fields = algorithm.reader();
    let oid = fields.expect(OID)?.content;
    // RFC 5929: MD5 and SHA-1 are replaced by SHA-256.
    match oid {
        [0x2a, 0x86, 0x48, 0x86, 0xf7, 0x0d, 0x01, 0x01, last] => match last {
            0x04 | 0x05 | 0x0b => Some(&digest::SHA256),
            0x0c => Some(&digest::SHA384),
            0x0d => Some(&digest::SHA512),
            0x0e => Some(&digest::SHA224),
            // RSASSA-PSS names its hash in the parameters; without, it is SHA-1.
            0x0a => Some(fields.next().and_then(pss_hash).unwrap_or(&digest::SHA256)),
            _ => None,
        },
        [0x2a, 0x86, 0x48, 0xce, 0x3d, 0x04, 0x01] | [0x2a, 0x86, 0x48, 0xce, 0x38, 0x04, 0x03] => {
            Some(&digest::SHA256)
        }
        [0x2a, 0x86, 0x48, 0xce, 0x3d, 0x04, 0x03, last] | [0x60, 0x86, 0x48, 0x01, 0x65, 0x03, 0x04, 0x03, last] => {
            match last {
                0x01 => Some(&digest::SHA224),
                0x02 => Some(&digest::SHA256),
                0x03 => Some(&digest::SHA384),
                0x04 => Some(&digest::SHA512),
                _ => None,
            }
        }
        _ => None,
    }
}

fn pss_hash(parameters: Value<'_>) -> Option<&'static digest::Algorithm> {
    let mut fields = parameters.reader();
    let tagged = fields.expect(0xa0)?;
    let algorithm = tagged.reader().expect(SEQUENCE)?.content.to_vec();
    let oid = Reader(&algorithm).expect(OID)?.content.to_vec();
    match oid.as_slice() {
        [0x60, 0x86, 0x48, 0x01, 0x65, 0x03, 0x04, 0x02, last] => match last {
            0x01 => Some(&digest::SHA256),
            0x02 => Some(&digest::SHA384),
            0x03 => Some(&digest::SHA512),
            0x04 => Some(&digest::SHA224),
            _ => None,
        },
        _ => None,
    }
}

/// The `tls-server-end-point` channel binding of a certificate (RFC 5929, 4.1).
///
/// Mirrors `pgtls_get_peer_certificate_hash` in src/interfaces/libpq/fe-secure-openssl.c.
pub(super) fn end_point_hash(certificate: &[u8]) -> Option<Vec<u8>> {
    let algorithm = Certificate::parse(certificate)?.signature_hash?;
    Some(digest::digest(algorithm, certificate).as_ref().to_vec())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times() {
        let at = |tag: u8, text: &str| time(Value { tag, content: text.as_bytes(), whole: &[] });
        assert_eq!(at(0x17, "700101000000Z"), Some(0));
        assert_eq!(at(0x17, "000229123456Z"), Some(951_827_696));
        assert_eq!(at(0x18, "20261121004921Z"), Some(1_795_222_161));
        assert_eq!(at(0x18, "99991231235959Z"), Some(253_402_300_799));
        assert_eq!(at(0x17, "490101000000Z"), Some(2_493_072_000));
        assert_eq!(at(0x17, "20261121004921Z"), None);
        assert_eq!(at(0x17, "7001010000+0Z"), None);
    }

    proptest::proptest! {
        #[test]
        fn never_panics(bytes in proptest::collection::vec(proptest::num::u8::ANY, 0..300)) {
            let _ = end_point_hash(&bytes);
        }
    }
}
