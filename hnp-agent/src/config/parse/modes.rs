//! What a route's mode needs beyond what all routes have.

use std::sync::Arc;

use super::routes::References;
use super::{SYSTEM, reference, system_trust};
use crate::config::end_to_end::{ClientAuth, ClientName, EndToEnd, PodTls};
use crate::config::hosts;
use crate::config::plan::{
    Authority, Destination, Host, NamePattern, Protocol, ReverseProxy, Roots, Target, Tunnel, Unreadable,
    Upstream, UpstreamProtocol,
};
use crate::config::read::{Reader, Section};
use crate::config::values::{self, Wrong};

pub(super) const END_TO_END: &[&str] = &["serving", "client_auth", "client_trust", "client_names"];
pub(super) const TUNNEL: &[&str] = &["names", "nameless", "encrypted_hello"];

/// A mode, by its word.
#[derive(Clone, Copy)]
pub(super) enum Way {
    ReverseProxy,
    EndToEnd,
    Tunnel,
}

pub(super) fn way(text: &str) -> Result<Way, Wrong> {
    values::word(
        text,
        &[("reverse-proxy", Way::ReverseProxy), ("end-to-end", Way::EndToEnd), ("tunnel", Way::Tunnel)],
    )
}

pub(super) fn reverse_proxy(
    r: &mut Reader,
    s: &Section<'_>,
    named: &mut References<'_>,
) -> Option<ReverseProxy> {
    only_with(r, s, &["tunnel"], "mode: tunnel");
    only_with(r, s, &["end_to_end"], "mode: end-to-end");
    let onward = onward(r, s, named);
    if onward.is_some_and(|mode| mode.protocol == Protocol::Opaque) && !r.list(s, "passthrough").is_empty() {
        let what = "needs names, and an opaque route reads none; allowed: with protocol: http";
        r.mistake(s.mark_of("passthrough"), s.key("passthrough"), what);
    }
    onward
}

/// How what the agent reads in the clear goes on.
fn onward(r: &mut Reader, s: &Section<'_>, named: &mut References<'_>) -> Option<ReverseProxy> {
    let protocol = r.or(s, "protocol", Protocol::Http, values::protocol);
    let authority = r.optional(s, "authority", values::authority);
    let upstream_protocol = r.optional(s, "upstream_protocol", values::upstream_protocol);
    if protocol == Protocol::Opaque {
        let what = "is about HTTP, and an opaque route reads none; allowed: with protocol: http";
        if authority.is_some() {
            r.mistake(s.mark_of("authority"), s.key("authority"), what);
        }
        if upstream_protocol.is_some() {
            r.mistake(s.mark_of("upstream_protocol"), s.key("upstream_protocol"), what);
        }
        if s.get("pool_warm").is_some() {
            let what = "is about connections that are used again, and an opaque route makes one for each of its \
                        clients; allowed: with protocol: http";
            r.mistake(s.mark_of("pool_warm"), s.key("pool_warm"), what);
        }
    }
    let authority = authority.unwrap_or(Authority::Upstream);
    let upstream_protocol = upstream_protocol.unwrap_or(UpstreamProtocol::Auto);
    let identity = reference(r, s, "identity", "identities", named.identities);
    let issues = identity.is_some_and(|index| named.identities.list[index].source.issuer().is_some());
    if let (true, Some(what)) = (issues, named.unknown_workloads) {
        r.mistake(s.mark_of("identity"), s.key("identity"), what);
    }
    if issues && s.get("pool_warm").is_some() {
        let what = "would make connections before anybody knows for which workload, and each has an identity of its own; \
                    allowed: with an identity from files";
        r.mistake(s.mark_of("pool_warm"), s.key("pool_warm"), what);
    }
    let trust = match s.get("trust") {
        Some(node) if r.text(node, &s.key("trust")).is_some_and(|text| text != SYSTEM) => {
            reference(r, s, "trust", "trusts", named.trusts)
        }
        _ => Some(system_trust(named.trusts, s.mark)),
    };
    Some(ReverseProxy { protocol, upstream_protocol, authority, identity: identity?, trust: trust? })
}

pub(super) fn end_to_end(r: &mut Reader, s: &Section<'_>, named: &mut References<'_>) -> Option<EndToEnd> {
    only_with(r, s, &["tunnel"], "mode: tunnel");
    let onward = onward(r, s, named);
    let e = r.section(s, "end_to_end", END_TO_END);
    let tls = pod_tls(r, &e, named, true);
    Some(EndToEnd { onward: onward?, tls: tls? })
}

/// On what terms pods' TLS ends; `may_issue`: there are names for which certificates can be issued.
pub(super) fn pod_tls(
    r: &mut Reader,
    e: &Section<'_>,
    named: &mut References<'_>,
    may_issue: bool,
) -> Option<PodTls> {
    let mut serving = Vec::new();
    let nodes = r.list(e, "serving");
    for (index, node) in nodes.iter().enumerate() {
        let key = format!("{}[{index}]", e.key("serving"));
        let Some(name) = r.text(node, &key) else { continue };
        match named.identities.find(name) {
            Some(found) if !may_issue && named.identities.list[found].source.issuer().is_some() => {
                let what = format!(
                    "{name:?} issues certificates for the names of a route, and the gateway has none; allowed: an \
                     identity with a certificate"
                );
                r.mistake(node.mark, key, what);
            }
            Some(found) => serving.push(found),
            None => r.mistake(node.mark, key, named.identities.unknown(name, "identities")),
        }
    }
    if nodes.is_empty() {
        let what =
            "is missing: which certificates are shown to pods? allowed: a list of names under `identities`";
        r.mistake(e.mark_of("serving"), e.key("serving"), what);
    }
    let client_auth = client_auth(r, e, named);
    (!serving.is_empty()).then_some(())?;
    Some(PodTls { serving, client_auth: client_auth? })
}

fn client_auth(r: &mut Reader, e: &Section<'_>, named: &mut References<'_>) -> Option<ClientAuth> {
    if !r.or(e, "client_auth", true, |text| values::word(text, &[("required", true), ("none", false)])) {
        only_with(r, e, &["client_trust", "client_names"], "client_auth: required");
        return Some(ClientAuth::None);
    }
    let trust = reference(r, e, "client_trust", "trusts", named.trusts);
    if trust.is_some_and(|index| matches!(named.trusts.list[index].roots, Roots::System)) {
        let what = "would take every certificate that a public CA has issued; allowed: a trust with the roots of your own CA";
        r.mistake(e.mark_of("client_trust"), e.key("client_trust"), what);
    }
    let mut names = Vec::new();
    for (index, node) in r.list(e, "client_names").iter().enumerate() {
        names.extend(r.item(node, &format!("{}[{index}]", e.key("client_names")), client_name));
    }
    Some(ClientAuth::Required { trust: trust?, names })
}

/// A DNS name, a suffix, a URI, or a URI's beginning.
fn client_name(text: &str) -> Result<ClientName, Wrong> {
    const ALLOWED: &str = "a DNS name, *.SUFFIX, a URI such as spiffe://example.org/ns/a/sa/b, or URI/*";
    let Some((scheme, rest)) = text.split_once("://") else {
        return hosts::name_pattern(text)
            .map(ClientName::Dns)
            .map_err(|_| Wrong::not(text, "a name in pods' certificates", ALLOWED));
    };
    let good = !scheme.is_empty() && !rest.is_empty() && text.bytes().all(|b| b.is_ascii_graphic());
    match text.strip_suffix('*') {
        Some(prefix) if good && rest.len() > 2 && prefix.ends_with('/') && !prefix.contains('*') => {
            Ok(ClientName::UriBelow(prefix.into()))
        }
        None if good && !rest.contains('*') => Ok(ClientName::Uri(text.into())),
        Some(_) | None => Err(Wrong::not(text, "a name in pods' certificates", ALLOWED)),
    }
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
        &[
            "protocol",
            "upstream_protocol",
            "authority",
            "identity",
            "trust",
            "server_name",
            "pool_idle",
            "pool_warm",
            "end_to_end",
        ],
        "mode: reverse-proxy or end-to-end",
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
