//! The section `upstream_proxies`, and what its values look like.
//!
//! A URL may hold a password: no message quotes one as it was written.

use std::net::IpAddr;
use std::path::PathBuf;
use std::sync::Arc;

use super::{Named, Trust, entries, reference, system_trust};
use crate::config::defaults;
use crate::config::hosts;
use crate::config::plan::{Host, Through, UpstreamWay};
use crate::config::read::{Reader, Section};
use crate::config::upstream_proxy::{
    BasicCredentials, NoProxy, ProxyCredentials, ProxyTimeouts, ProxyTls, UpstreamProxy,
};
use crate::config::values::{self, Value, Wrong, plain_number, port};
use crate::percent::percent_decoded;

pub(super) const KEYS: &[&str] = &["url", "credentials", "trust", "no_proxy", "timeouts"];
pub(super) const TIMEOUTS: &[&str] = &["connect", "tls", "answer"];

/// A proxy, and the place of its trust in the Plan.
pub(super) struct Proxy {
    pub(super) proxy: Arc<UpstreamProxy>,
    trust: Option<usize>,
}

/// The section, in the order of the file.
pub(super) fn upstream_proxies(r: &mut Reader, top: &Section<'_>, trusts: &mut Named<Trust>) -> Named<Proxy> {
    let mut all = Named::new();
    for (name, s) in entries(r, top, "upstream_proxies", KEYS) {
        let url = r.required(&s, "url", URL, url);
        let file = r.optional(&s, "credentials", credentials_file);
        let trust = match s.get("trust") {
            Some(node) if r.text(node, &s.key("trust")).is_some_and(|text| text != super::SYSTEM) => {
                reference(r, &s, "trust", "trusts", trusts)
            }
            _ if url.as_ref().is_some_and(|url| url.tls) => Some(system_trust(trusts, s.mark)),
            _ => None,
        };
        let no_proxy = no_proxy(r, &s);
        let timeouts = timeouts(r, &s);
        let Some(url) = url else { continue };
        if s.get("trust").is_some() && !url.tls {
            let what = "verifies a proxy that is spoken to over TLS; allowed: with an https:// url";
            r.mistake(s.mark_of("trust"), s.key("trust"), what);
        }
        if file.is_some() && url.credentials.is_some() {
            let what = "stands beside a user in the url; allowed: one of the two";
            r.mistake(s.mark_of("credentials"), s.key("credentials"), what);
        }
        let tls = trust.filter(|_| url.tls).map(|index| ProxyTls {
            trust: trusts.list[index].name.clone(),
            server_name: hosts::server_name_of(&url.host),
        });
        let credentials = match (file, url.credentials) {
            (Some(path), _) => ProxyCredentials::File(path),
            (None, Some(credentials)) => ProxyCredentials::Url(credentials),
            (None, None) => ProxyCredentials::None,
        };
        let (host, port) = (url.host, url.port);
        let proxy = UpstreamProxy { name: name.clone(), host, port, tls, credentials, no_proxy, timeouts };
        all.push(name, s.mark, Proxy { proxy: Arc::new(proxy), trust });
    }
    all
}

/// How a route's upstream is reached; `None` after a mistake.
pub(super) fn way(
    r: &mut Reader,
    route: &Section<'_>,
    upstream: Option<&Host>,
    proxies: &mut Named<Proxy>,
) -> Option<UpstreamWay> {
    if route.get("upstream_proxy").is_none() {
        return Some(UpstreamWay::Direct);
    }
    let index = reference(r, route, "upstream_proxy", "upstream_proxies", proxies)?;
    let found = &proxies.list[index];
    if found.proxy.is_not_for(upstream?) {
        return Some(UpstreamWay::Exempt(found.proxy.name.clone()));
    }
    Some(UpstreamWay::Through(Through { proxy: Arc::clone(&found.proxy), trust: found.trust }))
}

fn no_proxy(r: &mut Reader, s: &Section<'_>) -> Vec<NoProxy> {
    let mut rules = Vec::new();
    for (index, node) in r.list(s, "no_proxy").iter().enumerate() {
        rules.extend(r.item(node, &format!("{}[{index}]", s.key("no_proxy")), no_proxy_rule));
    }
    rules
}

fn timeouts(r: &mut Reader, proxy: &Section<'_>) -> ProxyTimeouts {
    let s = r.section(proxy, "timeouts", TIMEOUTS);
    ProxyTimeouts {
        connect: r.or(&s, "connect", defaults::TIMEOUT_CONNECT, values::duration),
        tls: r.or(&s, "tls", defaults::TIMEOUT_TLS, values::duration),
        answer: r.or(&s, "answer", defaults::TIMEOUT_PROXY_ANSWER, values::duration),
    }
}

/// The path of a file; what else stands there may be the credentials themselves.
fn credentials_file(text: &str) -> Value<PathBuf> {
    values::path(text)
        .map_err(|_| Wrong::new("is not an absolute path", "the path of a file with user:password"))
}

/// A name, a suffix, an address, a range, or `*`.
pub(in crate::config) fn no_proxy_rule(text: &str) -> Value<NoProxy> {
    const ALLOWED: &str = "a name (and all below it), *.SUFFIX, an IP address, a range such as 10.0.0.0/8, or *; without a port";
    let wrong = || Wrong::not(text, "an upstream to leave the proxy out for", ALLOWED);
    if text == "*" {
        return Ok(NoProxy::All);
    }
    if let Some((addr, prefix)) = text.split_once('/') {
        let addr: IpAddr = addr.parse().map_err(|_| wrong())?;
        let prefix: u8 = plain_number(prefix).ok_or_else(wrong)?;
        if prefix > if addr.is_ipv4() { 32 } else { 128 } || addr.to_canonical() != addr {
            return Err(wrong());
        }
        return hosts::exact(text, addr, prefix).map(NoProxy::Net);
    }
    let (below, name) = match text.strip_prefix("*.") {
        Some(name) => (true, name),
        None => (false, text.strip_prefix('.').unwrap_or(text)),
    };
    match hosts::host(name).map_err(|_| wrong())? {
        Host::Addr(addr) if name == text => Ok(NoProxy::from(addr)),
        Host::Addr(_) => Err(wrong()),
        Host::Name(name) if below => Ok(NoProxy::Below(name)),
        Host::Name(name) => Ok(NoProxy::Name(name)),
    }
}

const URL: &str = "http://[USER:PASSWORD@]HOST:PORT or https://[USER:PASSWORD@]HOST:PORT";

#[derive(Debug)]
pub(in crate::config) struct ProxyUrl {
    tls: bool,
    host: Host,
    port: u16,
    credentials: Option<BasicCredentials>,
}

/// `http://[USER:PASSWORD@]HOST:PORT`, user and password percent-encoded.
pub(in crate::config) fn url(text: &str) -> Value<ProxyUrl> {
    let wrong = |what: &str| Wrong::new(format!("{:?} {what}", without_password(text)), URL);
    let (tls, rest) = match text.split_once("://") {
        Some((scheme, rest)) if scheme.eq_ignore_ascii_case("http") => (false, rest),
        Some((scheme, rest)) if scheme.eq_ignore_ascii_case("https") => (true, rest),
        Some(_) => return Err(wrong("has another scheme than http or https")),
        None => return Err(wrong("is not a URL")),
    };
    let (userinfo, authority) = match rest.rsplit_once('@') {
        Some((userinfo, authority)) => (Some(userinfo), authority),
        None => (None, rest),
    };
    let authority = authority.strip_suffix('/').unwrap_or(authority);
    if userinfo.is_some_and(|text| text.contains(['@', '/', '?', '#'])) {
        return Err(wrong("has bytes before its host that must be percent-encoded (@ is %40, / is %2F)"));
    }
    if authority.contains(['/', '?', '#']) {
        return Err(wrong("has a path, and a proxy has none"));
    }
    let (host, port_text) = hosts::split_port(authority).ok_or_else(|| wrong("has no host"))?;
    // curl would take 1080, others 80 or 443.
    let port_text = port_text.ok_or_else(|| wrong("has no port"))?;
    let host = hosts::host(host).map_err(|_| wrong("has no host that can be dialled"))?;
    let port = port(port_text).map_err(|_| wrong("has a port that is none"))?;
    let credentials = userinfo.map(decoded).transpose().map_err(wrong)?;
    Ok(ProxyUrl { tls, host, port, credentials })
}

/// User and password from a URL, decoded; a user alone has an empty password.
fn decoded(userinfo: &str) -> Result<BasicCredentials, &'static str> {
    const BAD: &str = "has a % in its user or password that is not followed by two hex digits (% is %25)";
    let (user, password) = userinfo.split_once(':').unwrap_or((userinfo, ""));
    let user = percent_decoded(user).ok_or(BAD)?;
    if user.contains(&b':') {
        return Err("has a colon in its user, which Basic authentication cannot say");
    }
    let password = percent_decoded(password).ok_or(BAD)?;
    BasicCredentials::parse(&[&user[..], b":", &password].concat())
        .map_err(|_| "has a user or password that is too long or has control characters")
}

/// The URL for a message: whatever stands before the last `@` is cut, however it was meant.
fn without_password(text: &str) -> String {
    let Some((before, after)) = text.rsplit_once('@') else { return text.to_owned() };
    let scheme = before.split_once("://").map_or("", |(scheme, _)| scheme);
    match scheme {
        "http" | "https" => format!("{scheme}://***@{after}"),
        _ => format!("***@{after}"),
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn urls() {
        for (text, tls, host, port, credentials) in [
            ("http://proxy.corp:3128", false, "proxy.corp", 3128, None),
            ("HTTPS://Proxy.Corp:3129/", true, "proxy.corp", 3129, None),
            ("http://10.0.0.1:80", false, "10.0.0.1", 80, None),
            ("http://[fd00::1]:80", false, "[fd00::1]", 80, None),
            ("http://user:p%40ss%3a%25@proxy:1", false, "proxy", 1, Some("user:p@ss:%")),
            ("http://user:a:b@proxy:1", false, "proxy", 1, Some("user:a:b")),
            ("http://user@proxy:1", false, "proxy", 1, Some("user:")),
            ("http://DOM%5Cuser:p+w@proxy:1", false, "proxy", 1, Some("DOM\\user:p+w")),
        ] {
            let url = url(text).unwrap();
            assert_eq!((url.tls, url.host.to_string().as_str(), url.port), (tls, host, port), "{text}");
            assert_eq!(
                url.credentials.as_ref().map(BasicCredentials::as_bytes),
                credentials.map(str::as_bytes)
            );
        }
        for text in [
            "",
            "proxy:3128",
            "http://",
            "http://proxy",
            "http://proxy:",
            "http://proxy:0",
            "http://proxy:3128/path",
            "http://proxy:3128?x",
            "socks5://proxy:1080",
            "http://u:secret%4@proxy:1",
            "http://u:secret%zz@proxy:1",
            "http://u:se@cret@proxy:1",
            "http://u:se/cret@proxy:1",
            "http://u%3Ax:secret@proxy:1",
            "http://u:secret%0a@proxy:1",
            "ftp://u:secret@proxy:1",
            "u:secret@proxy:1",
            "http://u:secret@",
            "http://u:secret@-x:1",
            "http://u:secret@proxy:99999",
        ] {
            let shown = url(text).unwrap_err().to_string();
            assert!(!shown.contains("secret") && !shown.contains("cret@"), "{shown}");
        }
    }

    #[test]
    fn rules() {
        for (text, shown) in [
            ("*", "*"),
            ("Example.com.", "example.com"),
            (".example.com", "example.com"),
            ("*.example.com", "*.example.com"),
            ("localhost", "localhost"),
            ("10.0.0.1", "10.0.0.1"),
            ("10.0.0.0/8", "10.0.0.0/8"),
            ("0.0.0.0/0", "0.0.0.0/0"),
            ("fd00::1", "fd00::1"),
            ("fd00::/8", "fd00::/8"),
            ("10.0.0.1/32", "10.0.0.1"),
        ] {
            assert_eq!(no_proxy_rule(text).unwrap().to_string(), shown, "{text}");
        }
        for text in [
            "",
            ".",
            "*.",
            "a.*.test",
            "example.com:443",
            "http://example.com",
            "10.0.0.1/8",
            "10.0.0.0/33",
            "::ffff:10.0.0.0/104",
            ".10.0.0.1",
            "*.10.0.0.1",
            "a,b",
            "a b",
        ] {
            assert!(no_proxy_rule(text).is_err(), "{text}");
        }
    }

    proptest! {
        #[test]
        fn no_url_makes_the_reader_panic_or_talk(text in ".{0,40}", password in "[a-z]{12}") {
            let _ = url(&text);
            if let Err(wrong) = url(&format!("{text}{password}@{text}")) {
                // What follows the last @ is the host, whatever it looks like.
                prop_assume!(!text.contains('@'));
                prop_assert!(!wrong.to_string().contains(&password));
            }
        }

        #[test]
        fn what_was_encoded_is_decoded(bytes in proptest::collection::vec(any::<u8>(), 0..40)) {
            let encoded: String = bytes.iter().map(|b| format!("%{b:02X}")).collect();
            prop_assert_eq!(percent_decoded(&encoded), Some(bytes));
        }
    }
}
