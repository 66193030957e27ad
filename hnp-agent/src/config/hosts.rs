//! What hosts, destinations, URLs and address ranges look like.
//!
//! Hosts are checked once, here: a [`Host::Name`] can be resolved and stand in a certificate, a
//! [`Host::Addr`] is never an IPv4 address in IPv6's clothes (the kernel sees those as IPv4).

use std::fmt;
use std::net::{IpAddr, Ipv6Addr};

use rustls_pki_types::ServerName;

use super::plan::{AddrRange, Cidr, Destination, Host, NamePattern, Target};
use super::values::{Value, Wrong, plain_number, port};

/// A range that VIPs of one family are taken from.
pub(super) fn vips(v4: bool) -> impl Fn(&str) -> Value<Cidr> {
    let (allowed, prefixes) = if v4 {
        ("an IPv4 range with a prefix from 8 to 30, such as 169.254.77.0/24", 8..=30)
    } else {
        ("an IPv6 range with a prefix from 16 to 126, such as fd00:77::/64", 16..=126)
    };
    move |text| {
        let wrong = || Wrong::not(text, "such a range", allowed);
        let (addr, prefix) = text.split_once('/').ok_or_else(wrong)?;
        let addr: IpAddr = addr.parse().map_err(|_| wrong())?;
        let prefix: u8 = plain_number(prefix).ok_or_else(wrong)?;
        if addr.is_ipv4() != v4 || !prefixes.contains(&prefix) {
            return Err(wrong());
        }
        let cidr = Cidr { addr, prefix };
        let base = cidr.base();
        if base != addr {
            let what = format!("{text:?} has bits set after its prefix");
            return Err(Wrong::new(what, format!("{base}/{prefix}")));
        }
        if addr.is_loopback() || addr.is_multicast() || addr.is_unspecified() || mapped(addr).is_some() {
            return Err(Wrong::new(format!("{text:?} cannot be made local"), allowed));
        }
        Ok(cidr)
    }
}

impl Cidr {
    /// The address with all bits after the prefix zero.
    fn base(&self) -> IpAddr {
        match self.addr {
            IpAddr::V4(addr) => {
                let mask = u32::MAX.checked_shl(32 - u32::from(self.prefix)).unwrap_or(0);
                IpAddr::V4((u32::from(addr) & mask).into())
            }
            IpAddr::V6(addr) => {
                let mask = u128::MAX.checked_shl(128 - u32::from(self.prefix)).unwrap_or(0);
                IpAddr::V6((u128::from(addr) & mask).into())
            }
        }
    }
}

impl fmt::Display for Cidr {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.addr, self.prefix)
    }
}

impl fmt::Display for Host {
    /// As in a URL: IPv6 addresses in brackets.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Name(name) => f.write_str(name),
            Self::Addr(IpAddr::V4(addr)) => addr.fmt(f),
            Self::Addr(IpAddr::V6(addr)) => write!(f, "[{addr}]"),
        }
    }
}

impl fmt::Display for NamePattern {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Exact(name) => f.write_str(name),
            Self::Below(parent) => write!(f, "*.{parent}"),
        }
    }
}

impl fmt::Display for Destination {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.target {
            Target::Name(name) => write!(f, "{name}:{}", self.port),
            Target::Net(net) => AddrRange { net: *net, port: self.port }.fmt(f),
        }
    }
}

impl fmt::Display for AddrRange {
    /// As destinations are written: one address without its prefix.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Cidr { addr, prefix } = self.net;
        match (self.net.single(), addr) {
            (Some(addr), _) => std::net::SocketAddr::new(addr, self.port).fmt(f),
            (None, IpAddr::V4(addr)) => write!(f, "{addr}/{prefix}:{}", self.port),
            (None, IpAddr::V6(addr)) => write!(f, "[{addr}/{prefix}]:{}", self.port),
        }
    }
}

/// A range of destinations: `10.0.0.0/16` or `fd00::/64`. A short prefix would be half the Internet,
/// and is more likely a slip than a wish.
fn net(text: &str) -> Value<Cidr> {
    const ALLOWED: &str = "IPv4/PREFIX:PORT with a prefix from 8, or [IPv6/PREFIX]:PORT from 16";
    let wrong = || Wrong::not(text, "a range of addresses", ALLOWED);
    let (addr, prefix) = text.split_once('/').ok_or_else(wrong)?;
    let addr: IpAddr = addr.parse().map_err(|_| wrong())?;
    let prefix: u8 = plain_number(prefix).ok_or_else(wrong)?;
    let (least, most) = if addr.is_ipv4() { (8, 32) } else { (16, 128) };
    if mapped(addr).is_some() || !(least..=most).contains(&prefix) {
        return Err(wrong());
    }
    exact(text, addr, prefix)
}

/// Where callers may come from: `IP` or `IP/PREFIX`.
pub(super) fn range(text: &str) -> Value<Cidr> {
    const ALLOWED: &str = "an IP address or a range such as 10.244.0.0/16 or fd00:244::/48";
    let wrong = || Wrong::not(text, "a range of addresses", ALLOWED);
    let (addr, prefix) = match text.split_once('/') {
        Some((addr, prefix)) => (addr, Some(plain_number::<u8>(prefix).ok_or_else(wrong)?)),
        None => (text, None),
    };
    let addr: IpAddr = addr.parse().map_err(|_| wrong())?;
    let most = if addr.is_ipv4() { 32 } else { 128 };
    let prefix = prefix.unwrap_or(most);
    if mapped(addr).is_some() || prefix > most {
        return Err(wrong());
    }
    exact(text, addr, prefix)
}

/// The range, where `text` names it by its first address: any other is a slip.
pub(super) fn exact(text: &str, addr: IpAddr, prefix: u8) -> Value<Cidr> {
    let cidr = Cidr { addr, prefix };
    let base = cidr.base();
    if base != addr {
        return Err(Wrong::new(
            format!("{text:?} has bits set after its prefix"),
            format!("{base}/{prefix}"),
        ));
    }
    Ok(cidr)
}

/// What a pod dials: `HOST:PORT`, `IPv4:PORT` or `[IPv6]:PORT`, or a range `IPv4/PREFIX:PORT` or
/// `[IPv6/PREFIX]:PORT`.
pub(super) fn destination(text: &str) -> Value<Destination> {
    const ALLOWED: &str = "HOST:PORT, IPv4[/PREFIX]:PORT or [IPv6[/PREFIX]]:PORT, such as manager.example:80";
    if text.contains("://") {
        return Err(Wrong::new(format!("{text:?} is a URL"), ALLOWED));
    }
    let (host, port_text) = split_port(text).ok_or_else(|| Wrong::not(text, "a destination", ALLOWED))?;
    let Some(port_text) = port_text else {
        return Err(Wrong::new(format!("{text:?} has no port"), ALLOWED));
    };
    let port = port(port_text)?;
    let target = if host.contains('/') {
        let bare = host.strip_prefix('[').and_then(|host| host.strip_suffix(']'));
        Target::Net(net(bare.unwrap_or(host))?)
    } else {
        match self::host(host)? {
            Host::Name(name) => Target::Name(name),
            Host::Addr(addr) => Target::Net(Cidr::host(addr)),
        }
    };
    if let Target::Net(Cidr { addr, .. }) = target {
        let refused = if addr.is_loopback() {
            Some("is the pod's own loopback, which never leaves it")
        } else if addr.is_unspecified() {
            Some("is no address one can connect to")
        } else if addr.is_multicast() || addr == IpAddr::from([255; 4]) {
            Some("is not the address of one host")
        } else {
            None
        };
        if let Some(why) = refused {
            return Err(Wrong::new(
                format!("{text:?} {why}"),
                "the manager's address, or a Service's ClusterIP",
            ));
        }
    }
    Ok(Destination { target, port })
}

/// A name that is let through: `NAME`, or `*.SUFFIX` for all names below one.
pub(super) fn name_pattern(text: &str) -> Value<NamePattern> {
    const ALLOWED: &str = "a DNS name such as docs.example, or *.SUFFIX with two labels at least";
    let wrong = || Wrong::not(text, "a name that can be let through", ALLOWED);
    let (below, name) = text.strip_prefix("*.").map_or((false, text), |suffix| (true, suffix));
    match host(name).map_err(|_| wrong())? {
        Host::Addr(_) => Err(wrong()),
        // Everything below a top-level domain is everything.
        Host::Name(name) if below && !name.contains('.') => Err(wrong()),
        Host::Name(name) if below => Ok(NamePattern::Below(name)),
        Host::Name(name) => Ok(NamePattern::Exact(name)),
    }
}

/// The parts of an upstream's URL.
#[derive(Clone, Debug, Eq, PartialEq)]
pub(super) struct Url {
    pub(super) host: Host,
    pub(super) port: u16,
    pub(super) base_path: String,
}

/// `https://HOST[:PORT][/BASE]`.
pub(super) fn upstream(text: &str) -> Value<Url> {
    const ALLOWED: &str = "https://HOST[:PORT][/BASE], such as https://manager.example:8443";
    let wrong = |what: &str| Wrong::new(format!("{text:?} {what}"), ALLOWED);
    let rest = match text.split_once("://") {
        Some((scheme, rest)) if scheme.eq_ignore_ascii_case("https") => rest,
        Some((scheme, _)) if scheme.eq_ignore_ascii_case("http") => {
            return Err(wrong("would leave the node in cleartext"));
        }
        Some(_) => return Err(wrong("has another scheme than https")),
        None => return Err(wrong("is not a URL")),
    };
    let (authority, base) = rest.split_at(rest.find(['/', '?', '#']).unwrap_or(rest.len()));
    if base.contains(['?', '#']) {
        return Err(wrong("has a query or a fragment, which a base has not"));
    }
    if authority.contains('@') {
        return Err(wrong("has a user in it; hnp presents a certificate"));
    }
    let (host, port_text) = split_port(authority).ok_or_else(|| wrong("has no host"))?;
    let base_path = base.trim_end_matches('/');
    if !base_path.bytes().all(path_byte) || base_path.contains("//") {
        return Err(wrong("has a base path with bytes that would have to be escaped"));
    }
    if base_path.split('/').any(|segment| matches!(segment, "." | "..")) {
        return Err(wrong("has `.` or `..` in its base path"));
    }
    Ok(Url {
        host: self::host(host)?,
        port: port_text.map_or(Ok(443), port)?,
        base_path: base_path.to_owned(),
    })
}

/// The API server's URL, in the form that clients of it take: with its port, without a trailing slash.
pub(super) fn api_server(text: &str) -> Value<String> {
    let url = upstream(text)?;
    Ok(format!("https://{}:{}{}", url.host, url.port, url.base_path))
}

/// RFC 3986: what a path may hold as it stands (pchar and the slash).
fn path_byte(b: u8) -> bool {
    b.is_ascii_alphanumeric() || b"-._~%!$&'()*+,;=:@/".contains(&b)
}

/// The name a certificate must carry.
pub(super) fn server_name(text: &str) -> Value<ServerName<'static>> {
    match host(text) {
        Ok(host) => Ok(server_name_of(&host)),
        Err(_) => Err(Wrong::not(text, "a name a certificate can carry", "a DNS name or an IP address")),
    }
}

/// The same from a host that was checked.
pub(super) fn server_name_of(host: &Host) -> ServerName<'static> {
    match host {
        Host::Name(name) => {
            ServerName::try_from(name.to_string()).expect("hosts are checked to be DNS names")
        }
        Host::Addr(addr) => ServerName::from(*addr),
    }
}

/// Host and port as written; `None` when this is neither `HOST`, `HOST:PORT` nor `[IPv6]:PORT`.
pub(super) fn split_port(text: &str) -> Option<(&str, Option<&str>)> {
    let (host, port) = if text.starts_with('[') {
        let end = text.find(']')? + 1;
        let rest = &text[end..];
        (&text[..end], if rest.is_empty() { None } else { Some(rest.strip_prefix(':')?) })
    } else {
        match text.split_once(':') {
            Some((_, port)) if port.contains(':') => return None, // IPv6 without brackets
            Some((host, port)) => (host, Some(port)),
            None => (text, None),
        }
    };
    (!host.is_empty()).then_some((host, port))
}

/// A host: a DNS name, an IPv4 address or an IPv6 address in brackets (or bare, for server names).
pub(super) fn host(text: &str) -> Value<Host> {
    const ALLOWED: &str = "a DNS name, an IPv4 address, or an IPv6 address in brackets";
    let bare = text.strip_prefix('[').and_then(|text| text.strip_suffix(']'));
    let addr = match bare {
        Some(v6) => {
            Some(IpAddr::V6(v6.parse::<Ipv6Addr>().map_err(|_| Wrong::not(text, "a host", ALLOWED))?))
        }
        None => text.parse().ok(),
    };
    if let Some(addr) = addr {
        return match mapped(addr) {
            Some(v4) => {
                Err(Wrong::new(format!("{text:?} is an IPv4 address in IPv6's clothes"), v4.to_string()))
            }
            None => Ok(Host::Addr(addr)),
        };
    }
    let name = text.strip_suffix('.').unwrap_or(text).to_ascii_lowercase();
    if dns_name(&name) && ServerName::try_from(name.as_str()).is_ok() {
        Ok(Host::Name(name.into()))
    } else {
        Err(Wrong::not(text, "a host", ALLOWED))
    }
}

fn mapped(addr: IpAddr) -> Option<IpAddr> {
    match addr {
        IpAddr::V4(_) => None,
        IpAddr::V6(addr) => addr.to_ipv4_mapped().map(IpAddr::V4),
    }
}

/// RFC 1123 labels, underscores allowed as the DNS allows them. A last label of digits only is an
/// address that was written wrong.
fn dns_name(name: &str) -> bool {
    let label = |label: &str| {
        (1..=63).contains(&label.len())
            && !label.starts_with('-')
            && !label.ends_with('-')
            && label.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'_'))
    };
    let last_is_number =
        || name.rsplit('.').next().is_some_and(|last| last.bytes().all(|b| b.is_ascii_digit()));
    name.len() <= 253 && name.split('.').all(label) && !last_is_number()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn destinations() {
        for (text, shown) in [
            ("manager.hnp.test:80", "manager.hnp.test:80"),
            ("Manager.HNP.test.:80", "manager.hnp.test:80"),
            ("198.18.0.9:80", "198.18.0.9:80"),
            ("[fd00::9]:80", "[fd00::9]:80"),
            ("[FD00:0::9]:443", "[fd00::9]:443"),
            ("manager:80", "manager:80"),
            ("_http.x_y.test:1", "_http.x_y.test:1"),
            ("10.0.0.0/8:443", "10.0.0.0/8:443"),
            ("10.0.0.9/32:443", "10.0.0.9:443"),
            ("[fd00:9::/64]:443", "[fd00:9::/64]:443"),
        ] {
            assert_eq!(destination(text).unwrap().to_string(), shown, "{text}");
        }
        for text in [
            "",
            ":80",
            "manager",
            "manager:",
            "manager:0",
            "manager:80:80",
            "fd00::9:80",
            "[fd00::9]",
            "[fd00::9]80",
            "[manager]:80",
            "http://manager:80",
            "-a.test:80",
            "a..b:80",
            "1.2.3:80",
            "300.1.1.1:80",
            "127.0.0.1:80",
            "[::1]:80",
            "0.0.0.0:80",
            "[::]:80",
            "224.0.0.1:80",
            "[ff02::1]:80",
            "255.255.255.255:80",
            "[::ffff:198.18.0.9]:80",
            "a b:80",
            "ma\nnager:80",
            "ünïcode:80",
            "[fe80::1%eth0]:80",
            "10.0.0.0/7:80",
            "10.0.0.1/24:80",
            "fd00::/64:80",
            "[::ffff:10.0.0.0/104]:80",
            "127.0.0.0/8:80",
            "manager/24:80",
        ] {
            assert!(destination(text).is_err(), "{text}");
        }
        let mapped = destination("[::ffff:198.18.0.9]:80").unwrap_err().to_string();
        assert!(mapped.ends_with("allowed: 198.18.0.9"), "{mapped}");
    }

    #[test]
    fn upstreams() {
        for (text, host, port, base) in [
            ("https://manager.hnp.test:8443/base", "manager.hnp.test", 8443, "/base"),
            ("HTTPS://manager.hnp.test/", "manager.hnp.test", 443, ""),
            ("https://192.0.2.1", "192.0.2.1", 443, ""),
            ("https://[fd00::1]:444/a/b//", "[fd00::1]", 444, "/a/b"),
        ] {
            let url = upstream(text).unwrap();
            assert_eq!(
                (url.host.to_string().as_str(), url.port, url.base_path.as_str()),
                (host, port, base),
                "{text}"
            );
        }
        for text in [
            "",
            "manager",
            "http://manager",
            "ftp://manager",
            "https://",
            "https:///x",
            "https://m?x=1",
            "https://m/#x",
            "https://u:p@m/",
            "https://m:0",
            "https://m/a b",
            "https://m/a\r\nX: y",
            "https://m/../x",
            "https://m/a//b",
            "https://m:",
            "https://fd00::1/",
        ] {
            assert!(upstream(text).is_err(), "{text}");
        }
    }

    #[test]
    fn ranges() {
        let v4 = vips(true)("169.254.77.0/24").unwrap();
        assert!(v4.contains("169.254.77.255".parse().unwrap()));
        assert!(!v4.contains("169.254.78.0".parse().unwrap()) && !v4.contains("::1".parse().unwrap()));
        let v6 = vips(false)("fd00:77::/64").unwrap();
        assert!(
            v6.contains("fd00:77::ffff".parse().unwrap()) && !v6.contains("fd00:77:0:1::".parse().unwrap())
        );
        for text in [
            "",
            "169.254.77.0",
            "169.254.77.0/31",
            "169.254.77.1/24",
            "127.0.0.0/8",
            "fd00::/64",
            "1.2.3.4/x",
            "224.0.0.0/8",
        ] {
            assert!(vips(true)(text).is_err(), "{text}");
        }
        for text in ["fd00:77::1/64", "fd00:77::/127", "10.0.0.0/8", "ff00::/16", "::/64"] {
            assert!(vips(false)(text).is_err(), "{text}");
        }
        assert!(vips(true)("169.254.77.1/24").unwrap_err().to_string().ends_with("169.254.77.0/24"));
    }

    #[test]
    fn names_that_are_let_through_are_names_or_all_below_one() {
        let exact = name_pattern("Docs.Example.").unwrap();
        assert!(exact.matches("docs.example") && !exact.matches("a.docs.example"));
        let below = name_pattern("*.docs.example").unwrap();
        assert!(below.matches("a.docs.example") && below.matches("a.b.docs.example"));
        for other in ["docs.example", "xdocs.example", ".docs.example", "docs.example.test", ""] {
            assert!(!below.matches(other), "{other}");
        }
        assert_eq!((exact.to_string(), below.to_string()), ("docs.example".into(), "*.docs.example".into()));
        for text in ["", "*", "*.", "*.com", "a.*.test", "198.18.0.9", "[fd00::9]", "a.test:80", "a b"] {
            assert!(name_pattern(text).is_err(), "{text}");
        }
    }
}
