//! The names that a certificate vouches for, from what a person types.

use std::net::IpAddr;

use rcgen::{CidrSubnet, GeneralSubtree, SanType};
use rustls_pki_types::DnsName;

/// SPIFFE-ID section 2.3.
const MAX_SPIFFE_ID: usize = 2048;

/// A name in a certificate.
#[derive(Clone, Debug, Eq, PartialEq)]
pub enum Name {
    /// A DNS name; `*.example` stands for one label below.
    Dns(String),
    /// An address.
    Ip(IpAddr),
    /// A URI, such as a SPIFFE ID.
    Uri(String),
}

impl Name {
    pub(super) fn to_san(&self) -> Result<SanType, rcgen::Error> {
        Ok(match self {
            Self::Dns(name) => SanType::DnsName(name.as_str().try_into()?),
            Self::Ip(address) => SanType::IpAddress(*address),
            Self::Uri(uri) => SanType::URI(uri.as_str().try_into()?),
        })
    }

    /// The name alone.
    pub fn text(&self) -> String {
        match self {
            Self::Dns(text) | Self::Uri(text) => text.clone(),
            Self::Ip(address) => address.to_string(),
        }
    }
}

/// A DNS name, lower case, or a wildcard.
///
/// # Errors
/// Says what is allowed.
pub fn dns(text: &str) -> Result<Name, String> {
    let wrong = |why: &str| {
        format!(
            "{text:?} {why}; allowed: a DNS name such as manager.example or *.pods.example (other scripts in their xn-- form)"
        )
    };
    if text.parse::<IpAddr>().is_ok() {
        return Err(wrong("is an address, for --ip"));
    }
    let name = text.trim_end_matches('.').to_ascii_lowercase();
    let below = name.strip_prefix("*.").unwrap_or(&name);
    match DnsName::try_from(below) {
        Ok(_) if below.len() == name.len() || below.contains('.') => Ok(Name::Dns(name)),
        Ok(_) => Err(wrong("would stand for a whole top-level domain")),
        Err(_) => Err(wrong("is not a DNS name")),
    }
}

/// An address.
///
/// # Errors
/// Says what is allowed.
pub fn ip(text: &str) -> Result<Name, String> {
    let address =
        text.parse().map_err(|_| format!("{text:?} is not an address; allowed: 192.0.2.1 or 2001:db8::1"))?;
    Ok(Name::Ip(address))
}

/// A URI.
///
/// # Errors
/// Says what is allowed.
pub fn uri(text: &str) -> Result<Name, String> {
    let scheme = |scheme: &str| {
        scheme.starts_with(|c: char| c.is_ascii_alphabetic())
            && scheme.bytes().all(|b| b.is_ascii_alphanumeric() || b"+-.".contains(&b))
    };
    match text.split_once(':') {
        Some(("spiffe", _)) => spiffe_id(text),
        Some((before, rest))
            if scheme(before) && !rest.is_empty() && rest.bytes().all(|b| b.is_ascii_graphic()) =>
        {
            Ok(Name::Uri(text.to_owned()))
        }
        _ => Err(format!(
            "{text:?} is not a URI; allowed: SCHEME:REST in ASCII, such as spiffe://example.org/ns/a/sa/b"
        )),
    }
}

/// A SPIFFE ID (SPIFFE-ID section 2): it is compared byte for byte, so nothing of it is corrected.
///
/// # Errors
/// Says what is allowed.
pub fn spiffe_id(text: &str) -> Result<Name, String> {
    let trust_domain = |name: &str| {
        !name.is_empty()
            && name.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b".-_".contains(&b))
    };
    let segment = |part: &str| {
        !matches!(part, "" | "." | "..")
            && part.bytes().all(|b| b.is_ascii_alphanumeric() || b".-_".contains(&b))
    };
    let good = text.len() <= MAX_SPIFFE_ID
        && text.strip_prefix("spiffe://").is_some_and(|rest| match rest.split_once('/') {
            Some((domain, path)) => trust_domain(domain) && path.split('/').all(segment),
            None => trust_domain(rest),
        });
    if good {
        Ok(Name::Uri(text.to_owned()))
    } else {
        Err(format!(
            "{text:?} is not a SPIFFE ID; allowed: spiffe://TRUST-DOMAIN/PATH, the domain in lower case, the path of \
             letters, digits, dots, dashes and underscores, and no slash at the end"
        ))
    }
}

/// What an intermediate may issue for: a DNS name with all below it, or a network.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Permitted(pub(super) GeneralSubtree);

/// A DNS name and all below it (RFC 5280 section 4.2.1.10).
///
/// # Errors
/// Says what is allowed.
pub fn permit_dns(text: &str) -> Result<Permitted, String> {
    match dns(text) {
        Ok(Name::Dns(name)) if !name.starts_with('*') => Ok(Permitted(GeneralSubtree::DnsName(name))),
        Ok(_) => {
            Err(format!("{text:?}: a constraint holds for all below a name by itself; write it without *."))
        }
        Err(why) => Err(why),
    }
}

/// A network.
///
/// # Errors
/// Says what is allowed.
pub fn permit_ip(text: &str) -> Result<Permitted, String> {
    let wrong = || format!("{text:?} is not a network; allowed: 10.244.0.0/16 or fd00::/64");
    let (address, length) = text.split_once('/').ok_or_else(wrong)?;
    let address: IpAddr = address.parse().map_err(|_| wrong())?;
    let length: u8 = length.parse().map_err(|_| wrong())?;
    let most = if address.is_ipv4() { 32 } else { 128 };
    if length > most {
        return Err(wrong());
    }
    Ok(Permitted(GeneralSubtree::IpAddress(subnet(address, length))))
}

/// Both parts are written out: what lies outside of the mask must be zero to be understood.
fn subnet(address: IpAddr, length: u8) -> CidrSubnet {
    match address {
        IpAddr::V4(address) => {
            let mask = u32::MAX.checked_shl(32 - u32::from(length)).unwrap_or(0);
            CidrSubnet::V4((address.to_bits() & mask).to_be_bytes(), mask.to_be_bytes())
        }
        IpAddr::V6(address) => {
            let mask = u128::MAX.checked_shl(128 - u32::from(length)).unwrap_or(0);
            CidrSubnet::V6((address.to_bits() & mask).to_be_bytes(), mask.to_be_bytes())
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_read_or_refused_with_what_is_allowed() {
        assert_eq!(dns("Manager.Example."), Ok(Name::Dns("manager.example".into())));
        assert_eq!(dns("*.pods.example"), Ok(Name::Dns("*.pods.example".into())));
        for bad in ["", "*", "*.com", "a b", "10.0.0.1", "a..b", "bücher.example", "x.*.example", "-"] {
            assert!(dns(bad).unwrap_err().contains("allowed"), "{bad}");
        }
        assert!(ip("fd00::1").is_ok() && ip("10.0.0.1/8").is_err() && ip("localhost").is_err());
        assert!(
            uri("urn:uuid:1").is_ok() && uri("no").is_err() && uri("1x:y").is_err() && uri("a:b c").is_err()
        );
        assert!(uri("spiffe://Upper/x").is_err(), "a SPIFFE ID is one wherever it is written");
    }

    #[test]
    fn spiffe_ids_are_what_the_standard_says() {
        for good in ["spiffe://example.org", "spiffe://example.org/ns/a/sa/B_1.c-d"] {
            assert_eq!(spiffe_id(good), Ok(Name::Uri(good.into())));
        }
        let long = format!("spiffe://example.org/{}", "x".repeat(2048));
        for bad in [
            "spiffe://",
            "spiffe:///a",
            "spiffe://Example.org/a",
            "spiffe://example.org/",
            "spiffe://example.org/a/",
            "spiffe://example.org//a",
            "spiffe://example.org/./a",
            "spiffe://example.org/../a",
            "spiffe://a:1/x",
            "spiffe://example.org/a?b",
            "spiffe://example.org/ä",
            "https://example.org/a",
            &long,
        ] {
            assert!(spiffe_id(bad).unwrap_err().contains("allowed"), "{bad}");
        }
    }

    #[test]
    fn constraints_are_whole_networks_and_domains() {
        assert_eq!(permit_dns("Pods.Example"), Ok(Permitted(GeneralSubtree::DnsName("pods.example".into()))));
        assert!(permit_dns("*.pods.example").is_err());
        let v4 = CidrSubnet::V4([10, 244, 0, 0], [255, 255, 0, 0]);
        assert_eq!(permit_ip("10.244.9.9/16"), Ok(Permitted(GeneralSubtree::IpAddress(v4))));
        let all = CidrSubnet::V6([0; 16], [0; 16]);
        assert_eq!(permit_ip("fd00::/0"), Ok(Permitted(GeneralSubtree::IpAddress(all))));
        for bad in ["10.0.0.0", "10.0.0.0/33", "x/8", "fd00::/129"] {
            assert!(permit_ip(bad).is_err(), "{bad}");
        }
    }
}
