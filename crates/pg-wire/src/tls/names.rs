//! Whether a certificate was made for a host, by PostgreSQL's rules.
//!
//! Mirrors `pgtls_verify_peer_name_matches_certificate_guts` in `src/interfaces/libpq/fe-secure-openssl.c` and
//! `wildcard_certificate_match` in `fe-secure-common.c`.

use super::der::Certificate;
use std::net::IpAddr;

/// Whether one of the certificate's names is the host's.
pub(super) fn matches(certificate: &Certificate<'_>, host: &str) -> bool {
    let ip: Option<IpAddr> = host.parse().ok();
    let alternative = certificate.dns_names.iter().any(|name| name_matches(name, host))
        || ip.is_some_and(|ip| certificate.ip_addresses.contains(&ip));
    // The common name counts only when there is no alternative name of the host's kind.
    let same_kind = if ip.is_some() { !certificate.ip_addresses.is_empty() } else { !certificate.dns_names.is_empty() };
    alternative || (!same_kind && certificate.common_name.as_deref().is_some_and(|name| name_matches(name, host)))
}

/// The names to show to a human: the alternative ones, else the common name.
pub(super) fn shown(certificate: &Certificate<'_>) -> Vec<String> {
    let mut names = certificate.dns_names.clone();
    names.extend(certificate.ip_addresses.iter().map(ToString::to_string));
    if names.is_empty() {
        names.extend(certificate.common_name.clone());
    }
    names
}

fn name_matches(pattern: &str, host: &str) -> bool {
    // A NUL in a name was once used to deceive C programs.
    if pattern.contains('\0') {
        return false;
    }
    pattern.eq_ignore_ascii_case(host) || wildcard_matches(pattern, host)
}

/// `*.example.com` stands for exactly one label.
fn wildcard_matches(pattern: &str, host: &str) -> bool {
    let Some(suffix) = pattern.strip_prefix('*').filter(|suffix| suffix.starts_with('.') && suffix.len() > 1) else {
        return false;
    };
    let Some(split) = host.len().checked_sub(suffix.len()).filter(|split| *split > 0) else { return false };
    let (label, rest) = (&host.as_bytes()[..split], &host.as_bytes()[split..]);
    rest.eq_ignore_ascii_case(suffix.as_bytes()) && !label.contains(&b'.')
}

#[cfg(test)]
mod tests {
    use super::*;

    fn certificate(dns: &[&str], ips: &[&str], cn: Option<&str>) -> Certificate<'static> {
        Certificate {
            spki: &[],
            not_before: 0,
            not_after: 0,
            common_name: cn.map(str::to_owned),
            dns_names: dns.iter().map(|name| (*name).to_owned()).collect(),
            ip_addresses: ips.iter().map(|ip| ip.parse().unwrap()).collect(),
            signature_hash: None,
        }
    }

    #[test]
    fn the_rules_of_libpq() {
        // (dns names, ip addresses, common name, host, accepted)
        type Case<'a> = (&'a [&'a str], &'a [&'a str], Option<&'a str>, &'a str, bool);
        let table: &[Case<'_>] = &[
            (&["db.example"], &[], None, "DB.example", true),
            (&["db.example"], &[], None, "other.example", false),
            (&["*.example"], &[], None, "db.example", true),
            (&["*.example"], &[], None, "a.db.example", false),
            (&["*.example"], &[], None, ".example", false),
            (&["*.example"], &[], None, "example", false),
            (&["*"], &[], None, "example", false),
            (&["db*.example"], &[], None, "db1.example", false),
            (&[], &[], Some("db.example"), "db.example", true),
            (&["other"], &[], Some("db.example"), "db.example", false),
            (&[], &["10.0.0.1"], Some("db.example"), "db.example", true),
            (&[], &["10.0.0.1"], None, "10.0.0.1", true),
            (&[], &["::1"], None, "::0001", true),
            (&["a"], &[], Some("10.0.0.1"), "10.0.0.1", true),
            (&["a"], &["10.0.0.2"], Some("10.0.0.1"), "10.0.0.1", false),
            (&["10.0.0.1"], &[], None, "10.0.0.1", true),
            (&["db.example\0.evil"], &[], None, "db.example", false),
            (&[], &[], None, "db.example", false),
        ];
        for (dns, ips, cn, host, accepted) in table {
            assert_eq!(matches(&certificate(dns, ips, *cn), host), *accepted, "{dns:?} {ips:?} {cn:?} {host}");
        }
    }
}
