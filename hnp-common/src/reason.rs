//! Why a connection or a request ended. One table, many readers: the kernel's counters and events,
//! the metric label `reason=`, the access log, the JSON error body, the CLI and the docs.
//!
//! The code is an interface: dashboards and runbooks hold on to it. Add rows; never rename or
//! renumber. Zero is no reason, so memory that nobody wrote cannot pass for one. A reason is chosen
//! where the failure is known and never guessed later from an error's text.

/// Whose side a reason lies on: where the person on call should look first.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Side {
    /// Nobody's fault: the ordinary end.
    None,
    /// The workload that dialled the destination.
    Client,
    /// The manager or the network towards it.
    Upstream,
    /// hnp, its configuration, its identity or this node.
    Local,
}

impl Side {
    /// The word used in logs and in `explain`.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::None => "none",
            Self::Client => "client",
            Self::Upstream => "upstream",
            Self::Local => "local",
        }
    }
}

macro_rules! reasons {
    ($($(#[doc = $what:literal])+ $name:ident = $num:literal, $code:literal, $side:ident, $status:literal, $fix:literal;)+) => {
        /// One code for every way a connection or a request can end.
        #[repr(u16)]
        #[derive(Clone, Copy, Debug, Eq, Hash, Ord, PartialEq, PartialOrd)]
        pub enum Reason { $($(#[doc = $what])+ $name = $num,)+ }

        impl Reason {
            /// Every reason, in the order of the table.
            pub const ALL: &'static [Self] = &[$(Self::$name),+];

            /// The stable word for metrics, logs and error bodies.
            pub const fn code(self) -> &'static str { match self { $(Self::$name => $code),+ } }

            /// Whose side it lies on.
            pub const fn side(self) -> Side { match self { $(Self::$name => Side::$side),+ } }

            /// What happened, in a sentence.
            pub const fn what(self) -> &'static str { match self { $(Self::$name => concat!($($what),+).trim_ascii_start()),+ } }

            /// What to do about it.
            pub const fn fix(self) -> &'static str { match self { $(Self::$name => $fix),+ } }

            /// The HTTP status of an answer hnp gives itself for this reason; 0 where it gives none.
            pub const fn status(self) -> u16 { match self { $(Self::$name => $status),+ } }
        }
    };
}

// name = number, code, side, status of our own HTTP answer (0: none), what to do
reasons! {
    /// The connection or request ended as both sides meant it to.
    Ok = 1, "ok", None, 0, "Nothing.";
    /// The client closed or reset the connection before its request was answered in full.
    ClientGone = 2, "client_gone", Client, 0, "Look at the workload: it timed out, crashed or was deleted.";
    /// The agent was told to stop and the drain deadline cut this connection.
    Drained = 3, "drained", Local, 503, "Raise `drain.deadline` if requests are expected to run longer.";
    /// The connection was idle longer than the route allows.
    IdleTimeout = 4, "idle_timeout", Client, 0, "Nothing, unless clients complain: then raise `timeouts.idle`.";
    /// The request's Host, or the SNI of the client's TLS, names something that this route does not serve
    /// and lets through; it went on untouched to where the client dialled.
    Passthrough = 5, "passthrough", None, 0, "Nothing, or list the name under the route's destinations.";

    /// The connection reached the agent's listener without a captured flow.
    NoFlow = 20, "no_flow", Client, 0, "Somebody dialled the agent's port without passing capture: a neighbour on the network, or a process outside the kubepods cgroup.";
    /// The connection arrived on a local address outside the VIP range.
    NotVip = 21, "not_vip", Client, 0, "Somebody dialled the agent's port on the node's own address. Pods must dial the destination.";
    /// The VIP that was dialled stands for no destination.
    VipUnassigned = 22, "vip_unassigned", Client, 0, "The destination left the configuration, or a pod dials VIPs by itself.";
    /// The pod has as many captured connections as it may have.
    FlowLimit = 23, "flow_limit", Client, 0, "Look for a connection leak in the workload.";
    /// The kernel could not keep the original destination, so the connection was refused.
    OrigDstNotStored = 24, "orig_dst_not_stored", Local, 0, "The node is out of memory for socket storage.";
    /// A datagram was sent to a destination (QUIC); refused, so that the client falls back to TCP.
    UdpRefused = 25, "udp_refused", Client, 0, "Nothing: clients fall back to TCP.";
    /// A process under kubepods tried to bind the agent's port.
    BindRefused = 26, "bind_refused", Client, 0, "Choose another port for the workload, or change `capture.port`.";
    /// A pod dialled a VIP on a port that is not the agent's.
    VipPort = 27, "vip_port", Client, 0, "Pods must dial the destination, not the VIP.";
    /// A pod dialled a strict destination while no agent answered on this node.
    AgentStale = 28, "agent_stale", Local, 0, "Start the agent on this node; `hnp-agent cleanup` ends the enforcement.";
    /// A packet to a strict destination left a pod around capture; reset or dropped by the guard.
    Guarded = 29, "guarded", Client, 0, "Nothing for a flow that is older than the agent: it reconnects into capture. Otherwise look for raw sockets, or sockets that the pod was lent.";
    /// A pod asked for a raw IP socket, and `capture.raw_sockets` refuses them.
    RawSocketRefused = 30, "raw_socket_refused", Client, 0, "Have the workload do without (ping: unprivileged ICMP sockets, net.ipv4.ping_group_range), or set `capture.raw_sockets: allow`.";

    /// The request is not well-formed HTTP/1.1.
    BadRequest = 40, "bad_request", Client, 400, "The message names the rule that was broken; look at the client.";
    /// The request's framing is ambiguous: conflicting lengths, or a transfer coding hnp does not know.
    AmbiguousFraming = 41, "ambiguous_framing", Client, 400, "Look at the client: this is how request smuggling looks.";
    /// The request's head is larger than the limit.
    HeadTooLarge = 42, "head_too_large", Client, 431, "Raise `limits.head_bytes` if the client means it.";
    /// The request's head did not arrive in time.
    HeadTimeout = 43, "head_timeout", Client, 408, "Look at the client or the network between pod and node.";
    /// The request's Host is not one that this strict route serves.
    HostRefused = 44, "host_refused", Client, 421, "Add the name to the route's destinations, or to its passthrough, or have the client dial another address.";
    /// The client speaks TLS to a route that expects plaintext.
    TlsFromClient = 45, "tls_from_client", Client, 0, "Give the workload an http:// URL for this destination, or set `mode: end-to-end` on the route, with a certificate that the workload trusts, or `mode: tunnel`: then hnp presents none.";
    /// The client speaks a protocol that this route does not carry.
    ProtocolRefused = 46, "protocol_refused", Client, 0, "Set `protocol: opaque` on the route if the bytes are not HTTP.";
    /// The client's request asks for something hnp does not do on this route (CONNECT).
    NotImplemented = 47, "not_implemented", Client, 501, "Use HTTP/1.1 with an origin-form target.";
    /// The server name in the client's TLS hello (SNI) is not one that this strict route serves.
    SniRefused = 48, "sni_refused", Client, 0, "Add the name to the route's passthrough, or have the client dial another address.";
    /// The client speaks TLS to a strict route or to a tunnel and its hello names no server, or cannot be read.
    TlsWithoutName = 49, "tls_without_name", Client, 0, "Give the workload an http:// URL for this destination; or, where the route tunnels, have it send a server name or set `tunnel.nameless: tunnel`.";
    /// The server name in the client's TLS hello is encrypted (Encrypted Client Hello), or the client pretends
    /// that it is, and this route does not tunnel what it cannot read.
    EncryptedHello = 50, "encrypted_hello", Client, 0, "Switch Encrypted Client Hello off in the client, or set `tunnel.encrypted_hello: tunnel` if the upstream may be asked for any name.";
    /// The client sends plaintext to a route that expects TLS; it went nowhere.
    TlsExpected = 51, "tls_expected", Client, 421, "Give the workload an https:// URL for this destination, or set `mode: reverse-proxy` on the route.";

    /// The upstream's name does not resolve.
    UpstreamNameNotFound = 60, "upstream_name_not_found", Upstream, 502, "Check the upstream's host name and the node's DNS.";
    /// The name server did not answer.
    UpstreamDnsFailed = 61, "upstream_dns_failed", Upstream, 502, "Check the node's DNS servers.";
    /// The upstream refused the TCP connection.
    UpstreamRefused = 62, "upstream_refused", Upstream, 502, "Is the manager listening on that port?";
    /// The upstream did not accept the TCP connection in time.
    UpstreamConnectTimeout = 63, "upstream_connect_timeout", Upstream, 504, "A firewall that drops, or a dead host, between node and manager.";
    /// The upstream cannot be reached from this node.
    UpstreamUnreachable = 64, "upstream_unreachable", Upstream, 502, "Check the node's routes to the manager.";
    /// The upstream accepted the connection and did not finish the TLS handshake in time.
    UpstreamTlsTimeout = 65, "upstream_tls_timeout", Upstream, 504, "Something accepts connections and does not speak TLS in time.";
    /// The TLS handshake with the upstream failed for a reason other than certificates.
    UpstreamTlsFailed = 66, "upstream_tls_failed", Upstream, 502, "Does the upstream speak TLS 1.2 or 1.3 on that port; 1.3, where the trust's `tls_min` wants it?";
    /// The upstream did not begin its answer in time.
    UpstreamResponseTimeout = 67, "upstream_response_timeout", Upstream, 504, "The manager is slow; raise `timeouts.response` if that is expected.";
    /// The upstream closed the connection before its answer began.
    UpstreamClosed = 68, "upstream_closed", Upstream, 502, "The manager restarted or closed an idle connection; retry.";
    /// The upstream's answer is not well-formed HTTP/1.1.
    UpstreamBadResponse = 69, "upstream_bad_response", Upstream, 502, "The message names the rule that was broken; look at the manager.";
    /// The upstream's answer ended before its announced length.
    UpstreamTruncated = 70, "upstream_truncated", Upstream, 502, "The manager or something between closed the connection mid-answer.";
    /// The upstream closed or reset the connection in the middle of the exchange.
    UpstreamReset = 71, "upstream_reset", Upstream, 502, "The manager or something between reset the connection.";
    /// The proxy on the way to the upstream cannot be reached.
    ProxyUnreachable = 72, "proxy_unreachable", Upstream, 502, "Check the proxy's `url`, the node's DNS, and whether the proxy listens; the message says what failed.";
    /// The proxy did not accept the connection, finish its TLS or answer CONNECT in time.
    ProxyTimeout = 73, "proxy_timeout", Upstream, 504, "The message says which; the proxy, or what it dials, is slow or silent. Deadlines are the proxy's `timeouts`.";
    /// The TLS handshake with the proxy itself failed, its certificate included.
    ProxyTlsFailed = 74, "proxy_tls_failed", Upstream, 502, "Compare the proxy's `trust` with the certificate it shows, and `https://` with what it speaks on that port.";
    /// The proxy refused to open a tunnel to the upstream.
    ProxyRefused = 75, "proxy_refused", Upstream, 502, "Ask whoever runs the proxy: 403 is its rules, 502 to 504 that it cannot reach the upstream.";
    /// The proxy wants credentials, or others than it got (407).
    ProxyAuthenticationRequired = 76, "proxy_authentication_required", Local, 502, "Check the credentials in the proxy's `credentials` file or `url`; hnp knows Basic.";
    /// The proxy's answer to CONNECT is not HTTP, too long, or followed by bytes that nobody asked for.
    ProxyBadResponse = 77, "proxy_bad_response", Upstream, 502, "Is this an HTTP proxy's port? The message names the rule that was broken.";
    /// The proxy closed or reset the connection instead of an answer to CONNECT.
    ProxyClosed = 78, "proxy_closed", Upstream, 502, "The proxy restarted, or wants TLS on that port (`https://`).";

    /// The upstream's certificate has expired, or is not valid yet.
    UpstreamCertificateExpired = 80, "upstream_certificate_expired", Upstream, 502, "Renew the manager's certificate, or correct this node's clock; the message has both clocks, as far as the upstream's is known.";
    /// The upstream's certificate is for another name.
    UpstreamCertificateName = 81, "upstream_certificate_name", Upstream, 502, "Compare the upstream's host, and the `ids` and `names` of the trust, with the names in its certificate.";
    /// The upstream's certificate was not issued by a CA this route trusts.
    UpstreamCertificateUnknownCa = 82, "upstream_certificate_unknown_ca", Upstream, 502, "Compare the route's trust with the chain the manager sends; with SPIFFE, whether there is a bundle of its trust domain.";
    /// The upstream's certificate cannot be used for another reason.
    UpstreamCertificateBad = 83, "upstream_certificate_bad", Upstream, 502, "The message has the verifier's words.";
    /// The upstream refused our client certificate, or wants one and got none it accepts.
    ClientCertificateRefused = 84, "client_certificate_refused", Local, 502, "Is the identity's CA known to the manager, and is the certificate still valid, by the manager's clock too? The message has both clocks, as far as the manager's is known.";
    /// The upstream's certificate, or one above it, was revoked by its CA.
    UpstreamCertificateRevoked = 85, "upstream_certificate_revoked", Upstream, 502, "Give the manager another certificate; the CA does not stand by this one any more.";
    /// Whether the upstream's certificate was revoked cannot be told: no revocation list of its issuer, an expired one, or one with another's signature.
    UpstreamRevocationUnknown = 86, "upstream_revocation_unknown", Upstream, 502, "Renew the lists under the trust's `crls`, one of each CA in the chain; the message says what is missing. `crl_unknown` and `crl_expired` can allow it.";

    /// The identity this route presents could not be loaded, so nothing was sent.
    IdentityUnavailable = 90, "identity_unavailable", Local, 503, "See the log for where it comes from, and the mistake there.";
    /// The agent has as many connections as it may have.
    TooManyConnections = 91, "too_many_connections", Local, 503, "Raise `limits.connections` or look for a leak.";
    /// The credentials for the proxy could not be read, so nobody was dialled.
    ProxyCredentialsUnavailable = 92, "proxy_credentials_unavailable", Local, 503, "The message names the file and what is wrong with it: one line, user:password.";
    /// Each workload has an identity of its own on this route, and the caller is not known to be a certain pod.
    WorkloadUnknown = 93, "workload_unknown", Client, 403, "Have the workload dial the destination itself, from a pod on this node: a client of the gateway is known by his address alone, which proves nothing.";
    /// Each workload has an identity of its own on this route, and the API server has not confirmed which service account the caller's pod runs as.
    ServiceAccountUnconfirmed = 94, "service_account_unconfirmed", Local, 503, "Does the API server answer this agent (`hnp_pod_labels_in_step`, its log), and does it know the pod? Static pods have no service account.";
    /// The identity this route presents has expired, and its source gives no other; so nothing was sent.
    IdentityExpired = 95, "identity_expired", Local, 503, "See the log for what the source says: an SVID that is not renewed is a SPIRE agent that is gone, or does not reach its server. `hnp-agent doctor --route` looks at it.";
    /// The gateway was asked by somebody it does not serve: none that is known as a pod of this node by his
    /// address, or one outside of `gateway.sources`.
    CallerRefused = 110, "caller_refused", Client, 403, "Ask the gateway on the pod's own node, not from hostNetwork and not through address translation; or list the caller's range under `gateway.sources`.";
    /// The gateway was asked for a destination that no route lists.
    DestinationRefused = 111, "destination_refused", Client, 403, "List host and port under a route's destinations, or the name under its passthrough; or take it out of the proxy for this client (NO_PROXY).";
    /// A request that names no destination came to the gateway, and no route is the one for those.
    NoDefaultRoute = 112, "no_default_route", Client, 421, "Set `gateway.route`, or have the client send a Host that is a destination.";
    /// The gateway was asked for an https:// URL in the clear.
    ConnectRequired = 113, "connect_required", Client, 400, "Have the client send CONNECT for https:// URLs, or give it an http:// URL: then the gateway adds the TLS.";
    /// A name that is let through resolves to an address to which the gateway lets nobody.
    AddressRefused = 114, "address_refused", Client, 403, "The message names the address; look at the name's DNS records.";
    /// The client speaks TLS to the gateway's own port, which ends none.
    GatewayProtocol = 115, "gateway_protocol", Client, 501, "Give the workload an http:// URL for the gateway, or set `gateway.tls`.";
    /// A bug in hnp.
    Internal = 99, "internal", Local, 500, "Please report it with the log.";

    /// No TLS came about with the pod.
    PodTlsFailed = 100, "pod_tls_failed", Client, 0, "The message has the alert: unknown_ca is a workload that does not trust the serving certificate's CA; protocol_version and handshake_failure, one that is too old.";
    /// The pod began a TLS handshake and did not finish it in time.
    PodTlsTimeout = 101, "pod_tls_timeout", Client, 0, "Look at the workload: it stalled or is very slow. The deadline is `timeouts.tls`.";
    /// The route wants a certificate of the pod and it sent none.
    PodCertificateMissing = 102, "pod_certificate_missing", Client, 0, "Give the workload its client certificate, or set `end_to_end.client_auth: none` on the route.";
    /// The pod's certificate has expired, or is not valid yet.
    PodCertificateExpired = 103, "pod_certificate_expired", Client, 403, "Renew the workload's certificate, or correct this node's clock.";
    /// The pod's certificate was not issued by a CA that the route takes.
    PodCertificateUnknownCa = 104, "pod_certificate_unknown_ca", Client, 0, "Compare the issuer of the workload's certificate with the roots under `end_to_end.client_trust`.";
    /// The pod's certificate is for somebody whom the route does not take.
    PodCertificateName = 105, "pod_certificate_name", Client, 0, "Compare the names in the workload's certificate with `end_to_end.client_names`, and with `ids` and `names` of the trust.";
    /// The pod's certificate cannot be verified.
    PodCertificateBad = 106, "pod_certificate_bad", Client, 0, "The message says what is wrong with it: its encoding, its usage, or how it is signed.";
    /// The pod's certificate, or one above it, was revoked by its CA.
    PodCertificateRevoked = 107, "pod_certificate_revoked", Client, 0, "Give the workload another certificate, if it is to have one.";
    /// Whether the pod's certificate was revoked cannot be told: no revocation list of its issuer, an expired one, or one with another's signature.
    PodRevocationUnknown = 108, "pod_revocation_unknown", Client, 0, "Renew the lists under `crls` of the trust that pods are verified with, one of each CA in the chain; the message says what is missing. `crl_unknown` and `crl_expired` can allow it.";

    /// The workload has as many connections as one may have, over all its containers.
    WorkloadConnections = 120, "workload_connections", Client, 429, "Look for a connection leak in the workload, or raise `limits.per_workload.connections`.";
    /// The workload begins connections, or handshakes, faster than one may.
    WorkloadRate = 121, "workload_rate", Client, 429, "Have the workload keep its connections, or raise the limit of `limits.per_workload` that the detail names.";
    /// The route's policy does not let this workload use it.
    PolicyDenied = 122, "policy_denied", Client, 403, "The message says which rule decided; change `policy` of the route, or the workload's labels, service account or namespace.";
    /// The workload lost its permission to use the route while it was using it.
    PolicyRevoked = 123, "policy_revoked", Client, 403, "Nothing, if the policy or the pod's labels were changed on purpose; the message says which rule decides now.";
}

impl Reason {
    /// The number shared with the kernel, logs and events.
    pub const fn number(self) -> u16 {
        self as u16
    }

    /// Looks a number up that was read from the kernel; unknown numbers are nobody's reason.
    pub fn from_number(number: u16) -> Option<Self> {
        Self::ALL.iter().copied().find(|reason| reason.number() == number)
    }
}

#[cfg(test)]
mod tests {
    use super::Reason;

    #[test]
    fn numbers_and_codes_are_unique_and_never_zero() {
        for (i, a) in Reason::ALL.iter().enumerate() {
            assert_ne!(a.number(), 0);
            assert_eq!(Reason::from_number(a.number()), Some(*a));
            for b in &Reason::ALL[i + 1..] {
                assert_ne!(a.number(), b.number(), "{a:?} {b:?}");
                assert_ne!(a.code(), b.code(), "{a:?} {b:?}");
            }
        }
        assert_eq!(Reason::from_number(0), None);
    }

    #[test]
    fn codes_are_label_safe_and_rows_say_something() {
        for reason in Reason::ALL {
            assert!(reason.code().bytes().all(|b| b.is_ascii_lowercase() || b == b'_'), "{reason:?}");
            assert!(!reason.fix().is_empty() && !reason.what().is_empty());
        }
    }
}
