//! What a route's mode needs beyond what all routes have.

use std::sync::Arc;

use super::routes::References;
use super::{SYSTEM, reference, system_trust};
use crate::config::hosts;
use crate::config::plan::{
    Authority, Destination, Host, NamePattern, Protocol, ReverseProxy, Target, Tunnel, Unreadable, Upstream,
};
use crate::config::read::{Reader, Section};
use crate::config::values::{self, Wrong};

pub(super) const TUNNEL: &[&str] = &["names", "nameless", "encrypted_hello"];

/// A mode, by its word.
#[derive(Clone, Copy)]
pub(super) enum Way {
    ReverseProxy,
    Tunnel,
}

pub(super) fn way(text: &str) -> Result<Way, Wrong> {
    values::word(text, &[("reverse-proxy", Way::ReverseProxy), ("tunnel", Way::Tunnel)])
}

pub(super) fn reverse_proxy(
    r: &mut Reader,
    s: &Section<'_>,
    named: &mut References<'_>,
) -> Option<ReverseProxy> {
    only_with(r, s, &["tunnel"], "mode: tunnel");
    let protocol = r.or(s, "protocol", Protocol::Http, values::protocol);
    if protocol == Protocol::Opaque && !r.list(s, "passthrough").is_empty() {
        let what = "needs names, and an opaque route reads none; allowed: with protocol: http";
        r.mistake(s.mark_of("passthrough"), s.key("passthrough"), what);
    }
    let authority = r.optional(s, "authority", values::authority);
    if authority.is_some() && protocol == Protocol::Opaque {
        let what = "is a field of HTTP, and an opaque route reads none; allowed: with protocol: http";
        r.mistake(s.mark_of("authority"), s.key("authority"), what);
    }
    let authority = authority.unwrap_or(Authority::Upstream);
    let identity = reference(r, s, "identity", "identities", named.identities);
    let trust = match s.get("trust") {
        Some(node) if r.text(node, &s.key("trust")).is_some_and(|text| text != SYSTEM) => {
            reference(r, s, "trust", "trusts", named.trusts)
        }
        _ => Some(system_trust(named.trusts, s.mark)),
    };
    Some(ReverseProxy { protocol, authority, identity: identity?, trust: trust? })
}

/// Its names are the destinations' and the upstream's, unless others are written.
pub(super) fn tunnel(
    r: &mut Reader,
    s: &Section<'_>,
    destinations: &[Destination],
    upstream: Option<&Upstream>,
) -> Tunnel {
    only_with(
        r,
        s,
        &["protocol", "authority", "identity", "trust", "server_name", "pool_idle"],
        "mode: reverse-proxy",
    );
    if upstream.is_some_and(|upstream| !upstream.base_path.is_empty()) {
        let what = "has a path, and a tunnel reads no requests; allowed: https://HOST[:PORT]";
        r.mistake(s.mark_of("upstream"), s.key("upstream"), what);
    }
    let t = r.section(s, "tunnel", TUNNEL);
    let nameless = r.or(&t, "nameless", Unreadable::Refuse, values::unreadable);
    let encrypted_hello = r.or(&t, "encrypted_hello", Unreadable::Refuse, values::unreadable);
    let mut names: Vec<NamePattern> = Vec::new();
    for (index, node) in r.list(&t, "names").iter().enumerate() {
        let key = format!("{}[{index}]", t.key("names"));
        names.extend(r.item(node, &key, hosts::name_pattern));
    }
    if t.get("names").is_none() {
        let named = destinations.iter().filter_map(|destination| match &destination.target {
            Target::Name(name) => Some(name),
            Target::Net(_) => None,
        });
        let upstream = upstream.and_then(|upstream| match &upstream.host {
            Host::Name(name) => Some(name),
            Host::Addr(_) => None,
        });
        for name in named.chain(upstream) {
            let name = NamePattern::Exact(Arc::clone(name));
            if !names.contains(&name) {
                names.push(name);
            }
        }
        if names.is_empty() && nameless == Unreadable::Refuse {
            let what = "is missing, and neither the destinations nor the upstream have a name; allowed: a list \
                        of names or *.SUFFIX, or nameless: tunnel";
            r.mistake(t.mark, t.key("names"), what);
        }
    }
    Tunnel { names, nameless, encrypted_hello }
}

/// Notes keys that mean nothing in the route's mode: whoever wrote them expects something of them.
fn only_with(r: &mut Reader, s: &Section<'_>, keys: &[&str], allowed: &str) {
    for key in keys.iter().filter(|key| s.get(key).is_some()) {
        let what = format!("means nothing in this route's mode; allowed: with {allowed}");
        r.mistake(s.mark_of(key), s.key(key), what);
    }
}
