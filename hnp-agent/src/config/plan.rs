//! The Plan: what the agent is going to do, in types that cannot be wrong.
//!
//! Everything here was checked when the configuration was read; nobody checks it again. Defaults
//! live in `defaults.rs`, each with its reason.

use std::net::IpAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use super::end_to_end::EndToEnd;
use super::gateway::Gateway;
use super::selector::{Labels, Selector};
use super::spiffe::{IdPattern, SpiffeIdentity, WorkloadApi};
use super::upstream_proxy::UpstreamProxy;

/// The whole configuration, validated.
#[derive(Clone, Debug)]
pub struct Plan {
    /// Where and how connections are captured.
    pub capture: Capture,
    /// Where pods may address the agent themselves; `None`: nowhere.
    pub gateway: Option<Gateway>,
    /// The routes, in the order they were written. At least one.
    pub routes: Vec<Arc<Route>>,
    /// The identities that routes refer to by [`ReverseProxy::identity`].
    pub identities: Vec<Arc<Identity>>,
    /// The trusts that routes refer to by [`ReverseProxy::trust`].
    pub trusts: Vec<Arc<Trust>>,
    /// The proxies that routes refer to by [`Route::way`].
    pub upstream_proxies: Vec<Arc<UpstreamProxy>>,
    /// Limits of the whole agent.
    pub limits: Limits,
    /// How names are resolved.
    pub resolver: Resolver,
    /// The cluster this node belongs to; `None` outside of one.
    pub kubernetes: Option<Kubernetes>,
    /// Health, readiness and metrics.
    pub admin: Admin,
    /// Diagnostics and the access log.
    pub log: Log,
    /// Where the running agent can be asked to hand over; it makes the directory if it is missing.
    pub run_dir: PathBuf,
    /// How long a drain may take, from SIGTERM to the last connection.
    pub drain_deadline: Duration,
    /// Number of worker threads.
    pub workers: usize,
}

impl Plan {
    /// Whether the gateway knows its callers as pods of this node, by the API server's word. Where it does
    /// not, [`Gateway::sources`] alone say who is served.
    pub fn knows_callers(&self) -> bool {
        self.capture.mode == CaptureMode::On && self.kubernetes.is_some()
    }

    /// What issues the identities of a route, where each workload has its own.
    pub fn issuer_for(&self, route: &Route) -> Option<&Issuer> {
        self.identities[route.reverse_proxy()?.identity].source.issuer()
    }

    /// The names of the routes that are strict for every pod.
    pub fn strict_routes(&self) -> Vec<&str> {
        let strict = self.routes.iter().filter(|route| route.is_strict_for_all());
        strict.map(|route| &*route.name).collect()
    }
}

/// Where and how connections are captured.
#[derive(Clone, Debug)]
pub struct Capture {
    /// Whether anything is captured at all. The VIP ranges are kept clear of in either case: another agent on
    /// this node may use them.
    pub mode: CaptureMode,
    /// The cgroup the programs hang on; `None`: look for `kubepods*` under the cgroup2 mount.
    pub cgroup: Option<PathBuf>,
    /// Where links and maps are pinned (a directory on bpffs).
    pub bpffs: PathBuf,
    /// The node-local range VIPs for IPv4 destinations are taken from.
    pub vips4: Cidr,
    /// The node-local range VIPs for IPv6 destinations are taken from.
    pub vips6: Cidr,
    /// The port the agent listens on, on every VIP.
    pub port: u16,
    /// How many captured connections one pod may have open at a time.
    pub connections_per_pod: u32,
    /// How old the agent's heartbeat may be before the kernel takes it for dead.
    pub heartbeat: Duration,
    /// Where the namespace and name of pods are read from: a directory as kubelet's `/var/log/pods`.
    pub pod_logs: PathBuf,
    /// Whether pods' veths are guarded where strict routes want it.
    pub guard: Guard,
    /// Whether pods may have raw IP sockets.
    pub raw_sockets: RawSockets,
    /// Whether flows to strict destinations that are older than their capture are destroyed at once.
    pub destroy_older_flows: bool,
}

/// Whether the agent captures.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum CaptureMode {
    /// What pods dial is taken at connect().
    On,
    /// Nothing is loaded into the kernel and no capability is needed; only the gateway serves.
    Off,
}

/// Whether pods may make raw IP sockets in network namespaces of their own.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum RawSockets {
    /// As the kernel has it: with CAP_NET_RAW.
    Allow,
    /// Nobody, whatever his capabilities.
    Refuse,
}

/// Whether what passes no socket hook is kept from strict destinations.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Guard {
    /// Where a strict route wants it; a kernel that cannot refuses the start.
    Auto,
    /// Never.
    Off,
}

/// An address range.
#[derive(Clone, Copy, Debug, Eq, Hash, Ord, PartialEq, PartialOrd)]
pub struct Cidr {
    /// The first address; bits below the prefix are zero.
    pub addr: IpAddr,
    /// Number of leading bits that count.
    pub prefix: u8,
}

/// Index of a route in [`Plan::routes`].
pub type RouteIndex = usize;

/// Destinations -> upstream, with one mode, one enforcement, one identity, one trust.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Route {
    /// The name used in logs, metrics and errors.
    pub name: Arc<str>,
    /// What pods dial. At least one.
    pub destinations: Vec<Destination>,
    /// What the agent dials.
    pub upstream: Upstream,
    /// How it is reached.
    pub way: UpstreamWay,
    /// How connections are carried, and what that way needs.
    pub mode: Mode,
    /// What happens to connections that cannot be served.
    pub enforcement: Enforcement,
    /// Other enforcements for some pods; the first that matches a pod holds for it.
    pub overrides: Vec<Override>,
    /// Other names on the destinations' addresses that go on untouched to where the client was going.
    pub passthrough: Vec<NamePattern>,
    /// This route's deadlines.
    pub timeouts: Timeouts,
}

/// What a pod dials: a name, an address or a range of addresses, and a port.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Destination {
    /// What stands before the port.
    pub target: Target,
    /// The TCP port.
    pub port: u16,
}

/// What of a destination is not its port.
#[derive(Clone, Debug, Eq, Hash, PartialEq)]
pub enum Target {
    /// A DNS name, lower case, without a trailing dot: whatever it resolves to.
    Name(Arc<str>),
    /// A range of addresses, never v4-mapped; one address is the range that holds only itself.
    Net(Cidr),
}

/// Addresses on one port: what capture matches once names are resolved.
#[derive(Clone, Copy, Debug, Eq, Hash, Ord, PartialEq, PartialOrd)]
pub struct AddrRange {
    /// The addresses; never v4-mapped.
    pub net: Cidr,
    /// The TCP port.
    pub port: u16,
}

/// A host, by name or by address.
#[derive(Clone, Debug, Eq, Hash, PartialEq)]
pub enum Host {
    /// A DNS name, lower case, without a trailing dot.
    Name(Arc<str>),
    /// An address; never v4-mapped.
    Addr(IpAddr),
}

/// Names that are let through.
#[derive(Clone, Debug, Eq, PartialEq)]
pub enum NamePattern {
    /// One name, lower case, without a trailing dot.
    Exact(Arc<str>),
    /// Every name below this one, at any depth; not the name itself.
    Below(Arc<str>),
}

/// What the agent dials: a URL of its own, never derived from the destination.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Upstream {
    /// The host to resolve and, unless [`Upstream::server_name`] says otherwise, to verify.
    pub host: Host,
    /// The TCP port.
    pub port: u16,
    /// What stands before every request's path: empty, or `/base` without a trailing slash.
    pub base_path: String,
    /// The name the certificate must carry and that SNI announces.
    pub server_name: rustls_pki_types::ServerName<'static>,
    /// The host, and the port where it is not 443.
    pub authority: String,
    /// How many idle connections one worker keeps; 0 keeps none.
    pub pool_idle: usize,
    /// How many connections one worker keeps open ahead of use, at most [`Self::pool_idle`]; of HTTP/2, one.
    pub pool_warm: usize,
}

/// How an upstream is reached.
#[derive(Clone, Debug, Eq, PartialEq)]
pub enum UpstreamWay {
    /// The agent resolves and dials it.
    Direct,
    /// So it does, because the proxy of this name is not for this upstream.
    Exempt(Arc<str>),
    /// A proxy does.
    Through(Through),
}

/// A proxy on a route's way.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Through {
    /// One of [`Plan::upstream_proxies`].
    pub proxy: Arc<UpstreamProxy>,
    /// Index into [`Plan::trusts`] of the trust that verifies the proxy; there is one where it is spoken
    /// to over TLS.
    pub trust: Option<usize>,
}

/// How the pod's bytes are understood.
#[derive(Clone, Copy, Debug, Eq, Hash, PartialEq)]
pub enum Protocol {
    /// HTTP/1.1, relayed request by request.
    Http,
    /// Any bytes, relayed as they come over one upstream connection per captured one.
    Opaque,
}

/// How a route carries connections.
#[derive(Clone, Debug, Eq, PartialEq)]
pub enum Mode {
    /// Plaintext in, mutual TLS out.
    ReverseProxy(ReverseProxy),
    /// The pod's own TLS in, verified; mutual TLS out.
    EndToEnd(EndToEnd),
    /// The pod's own TLS, end to end: its hello is read, and every byte goes on as it came.
    Tunnel(Tunnel),
}

/// What a reverse proxy needs.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct ReverseProxy {
    /// How the pod's bytes are understood.
    pub protocol: Protocol,
    /// What ALPN offers the upstream.
    pub upstream_protocol: UpstreamProtocol,
    /// The `Host` of forwarded requests.
    pub authority: Authority,
    /// Index into [`Plan::identities`].
    pub identity: usize,
    /// Index into [`Plan::trusts`].
    pub trust: usize,
}

/// Which HTTP is spoken with an upstream. Means nothing where [`Protocol::Opaque`] is carried.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum UpstreamProtocol {
    /// HTTP/2 if the upstream chooses it by ALPN, else HTTP/1.1.
    Auto,
    /// HTTP/1.1, and nothing else is offered.
    Http1,
}

/// The `Host` of forwarded requests.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Authority {
    /// [`Upstream::authority`].
    Upstream,
    /// What the client wrote; the upstream's where a client of HTTP/1.0 wrote none.
    Original,
}

/// What a tunnel needs.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Tunnel {
    /// The server names (SNI) that are carried; of an encrypted hello, the outer one. None, where hellos without
    /// a name are carried.
    pub names: Vec<NamePattern>,
    /// A hello that names no server.
    pub nameless: Unreadable,
    /// A hello whose real name is encrypted (Encrypted Client Hello).
    pub encrypted_hello: Unreadable,
}

/// What becomes of a hello that does not say, or not to everybody, whom it is for.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Unreadable {
    /// The client gets a TLS alert.
    Refuse,
    /// It goes to the upstream.
    Tunnel,
}

/// Another enforcement for some pods.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Override {
    /// The pods' namespaces; none: of any. There are some, or a selector.
    pub namespaces: Vec<Arc<str>>,
    /// The pods' labels.
    pub selector: Option<Selector>,
    /// What holds for them instead.
    pub enforcement: Enforcement,
}

/// What happens to connections that the route cannot or must not serve. In order: the later one wins
/// where routes share an address.
#[derive(Clone, Copy, Debug, Eq, Hash, Ord, PartialEq, PartialOrd)]
pub enum Enforcement {
    /// Never redirected; counted by workload.
    Observe,
    /// Redirected, and direct only while the agent's heartbeat is stale; requests for other names on the
    /// same address pass through untouched.
    Loose,
    /// Redirected or refused, never direct.
    Strict,
}

/// What is known of a pod.
#[derive(Clone, Copy, Debug, Default)]
pub struct PodTraits<'a> {
    /// Its namespace.
    pub namespace: Option<&'a str>,
    /// Its labels.
    pub labels: Option<&'a Labels>,
}

/// What may hold for a pod: one enforcement where all that matters is known of it.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct PossibleEnforcement {
    /// The weakest that may be meant.
    pub weakest: Enforcement,
    /// The strictest; what holds until more is known.
    pub strictest: Enforcement,
}

/// A certificate chain and its private key, and where they come from.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Identity {
    /// The name routes refer to.
    pub name: Arc<str>,
    /// Where they come from.
    pub source: IdentitySource,
}

/// Where an identity comes from.
#[derive(Clone, Debug, Eq, PartialEq)]
pub enum IdentitySource {
    /// From files, which whoever renews the certificate replaces.
    Files(IdentityFiles),
    /// From the SPIFFE Workload API, which pushes it.
    Spiffe(SpiffeIdentity),
    /// Issued by the agent, for each workload its own.
    Issuer(Issuer),
}

impl IdentitySource {
    /// The files it is made of, if it is: those of the identity, or of the intermediate that issues it.
    pub fn files(&self) -> Option<&IdentityFiles> {
        match self {
            Self::Files(files) => Some(files),
            Self::Spiffe(_) => None,
            Self::Issuer(issuer) => Some(&issuer.intermediate),
        }
    }

    /// Set where each workload has an identity of its own.
    pub fn issuer(&self) -> Option<&Issuer> {
        match self {
            Self::Files(_) | Self::Spiffe(_) => None,
            Self::Issuer(issuer) => Some(issuer),
        }
    }
}

/// Identities that the agent issues for workloads.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Issuer {
    /// The certificate and key of the intermediate that signs them.
    pub intermediate: IdentityFiles,
    /// What their SPIFFE IDs begin with, without the scheme.
    pub trust_domain: Arc<str>,
    /// How long each is valid.
    pub lifetime: Duration,
    /// Whether each pod has one of its own, with the pod's UID in the subject.
    pub pod_uid: bool,
    /// How many are kept at a time.
    pub max_identities: usize,
}

/// A certificate chain and its private key in files.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct IdentityFiles {
    /// Where they lie.
    pub place: IdentityPlace,
    /// The file with the key's passphrase; `None` where the key has none.
    pub passphrase_file: Option<PathBuf>,
}

/// Where the files of an identity lie.
#[derive(Clone, Debug, Eq, PartialEq)]
pub enum IdentityPlace {
    /// In files that are named.
    Pair {
        /// PEM file with the certificate chain, leaf first.
        certificate: PathBuf,
        /// PEM file with the private key (PKCS#8, PKCS#1 or SEC1).
        key: PathBuf,
    },
    /// In a directory, under names that Kubernetes, certbot or Vault Agent give them.
    Directory(PathBuf),
}

/// What the agent accepts from an upstream.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Trust {
    /// The name routes refer to.
    pub name: Arc<str>,
    /// Where the roots come from.
    pub roots: Roots,
    /// What is known of certificates that were revoked.
    pub revocation: Revocation,
    /// Who is taken of those that the roots vouch for.
    pub peers: Peers,
    /// The oldest TLS that is spoken with whoever is verified by it.
    pub tls_min: TlsVersion,
}

/// Who is taken of those that a trust's roots vouch for. Of each list that is not empty one entry must fit.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub struct Peers {
    /// SPIFFE IDs. Never empty where the roots are SPIFFE bundles.
    pub ids: Vec<IdPattern>,
    /// DNS names among those of the certificate.
    pub names: Vec<NamePattern>,
}

/// A version of TLS.
#[derive(Clone, Copy, Debug, Default, Eq, Ord, PartialEq, PartialOrd)]
pub enum TlsVersion {
    /// TLS 1.2 (RFC 5246).
    #[default]
    V1_2,
    /// TLS 1.3 (RFC 8446).
    V1_3,
}

impl TlsVersion {
    /// As it is written.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::V1_2 => "1.2",
            Self::V1_3 => "1.3",
        }
    }
}

impl Trust {
    /// One that takes whoever these roots vouch for.
    pub fn of_roots(name: Arc<str>, roots: Roots) -> Self {
        let (revocation, peers, tls_min) = Default::default();
        Self { name, roots, revocation, peers, tls_min }
    }
}

/// Where a trust's revocation lists (CRLs) come from, and what holds where they say nothing.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub struct Revocation {
    /// A file of lists or a directory of such, PEM or DER; `None`: revocation is not looked at.
    pub crls: Option<PathBuf>,
    /// Of certificates whose issuer has no list there.
    pub unknown: OnDoubt,
    /// Of certificates whose issuer's list should have been renewed.
    pub expired: OnDoubt,
}

/// What becomes of a certificate of which it cannot be told whether it was revoked.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub enum OnDoubt {
    /// It is refused.
    #[default]
    Refuse,
    /// It is taken for not revoked.
    Allow,
}

/// Where trusted roots come from.
#[derive(Clone, Debug, Eq, PartialEq)]
pub enum Roots {
    /// One PEM file with one or more CA certificates, or a directory of such.
    File(PathBuf),
    /// The system's store.
    System,
    /// The bundles of a SPIFFE Workload API, each for its own trust domain.
    Spiffe(WorkloadApi),
}

impl std::fmt::Display for Roots {
    /// As people call it.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::File(path) => path.display().fmt(f),
            Self::System => f.write_str("the system's store"),
            Self::Spiffe(api) => write!(f, "the SPIFFE bundles of {api}"),
        }
    }
}

/// A route's deadlines.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Timeouts {
    /// From the first byte of a connection or request to the end of its head.
    pub head: Duration,
    /// How long a client connection may stay idle between requests (HTTP), or in both directions (opaque).
    pub idle: Duration,
    /// Resolve and TCP connect to the upstream.
    pub connect: Duration,
    /// TLS handshake with the upstream.
    pub tls: Duration,
    /// From the end of the request to the first byte of the answer.
    pub response: Duration,
    /// Over HTTP/2: how long a connection with requests under way may be silent before it gets a PING, and
    /// how long that may go unanswered.
    pub ping: Duration,
}

/// Limits of the whole agent.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Limits {
    /// Client connections open at a time, over all workers.
    pub connections: usize,
    /// Bytes of a request's or an answer's head.
    pub head_bytes: usize,
    /// Bytes of each buffer a relay holds while bytes are under way.
    pub buffer_bytes: usize,
}

/// How names are resolved.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Resolver {
    /// Normally `/etc/resolv.conf`.
    pub resolv_conf: PathBuf,
    /// Normally `/etc/hosts`.
    pub hosts: PathBuf,
    /// How long an address stays captured after the name stopped resolving to it.
    pub grace: Duration,
    /// The shortest time between two look-ups of a name, whatever the TTL says.
    pub min_ttl: Duration,
    /// The longest.
    pub max_ttl: Duration,
}

/// The cluster this node belongs to.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Kubernetes {
    /// The API server: `https://HOST:PORT`, with a base path where there is one.
    pub api: String,
    /// Directory with `token` and `ca.crt`, as Kubernetes mounts it into pods.
    pub service_account: PathBuf,
    /// The name of this agent's node in the cluster.
    pub node_name: Arc<str>,
    /// Key of the taint that new nodes register with and that the agent takes off its own once it is
    /// ready; `None` leaves all taints alone.
    pub startup_taint: Option<Arc<str>>,
}

/// Health, readiness and metrics.
#[derive(Clone, Debug)]
pub struct Admin {
    /// Where `/metrics`, `/healthz` and `/readyz` are served; `None` serves nothing.
    pub listen: Option<std::net::SocketAddr>,
}

/// Diagnostics and the access log.
#[derive(Clone, Debug)]
pub struct Log {
    /// Form of both.
    pub format: LogFormat,
    /// `tracing` filter for diagnostics, such as `info` or `hnp_agent::capture=debug,info`.
    pub level: String,
    /// Whether an access line is written per request or connection.
    pub access: bool,
}

/// Form of log lines.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum LogFormat {
    /// One JSON object a line.
    Json,
    /// For people.
    Text,
}

impl Enforcement {
    /// The word in the configuration, in logs and in reports.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Observe => "observe",
            Self::Loose => "loose",
            Self::Strict => "strict",
        }
    }
}

impl NamePattern {
    /// Whether `name` (lower case, without a trailing dot) is meant.
    pub fn matches(&self, name: &str) -> bool {
        match self {
            Self::Exact(exact) => **exact == *name,
            Self::Below(parent) => {
                name.strip_suffix(&**parent).is_some_and(|head| head.len() > 1 && head.ends_with('.'))
            }
        }
    }
}

impl Mode {
    /// The word in the configuration, in logs and in reports.
    pub const fn as_str(&self) -> &'static str {
        match self {
            Self::ReverseProxy(_) => "reverse-proxy",
            Self::EndToEnd(_) => "end-to-end",
            Self::Tunnel(_) => "tunnel",
        }
    }
}

impl Protocol {
    /// The word in the configuration and in reports.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Http => "http",
            Self::Opaque => "opaque",
        }
    }
}

impl UpstreamProtocol {
    /// The word in the configuration and in reports.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Auto => "auto",
            Self::Http1 => "http/1.1",
        }
    }
}

impl Authority {
    /// The word in the configuration and in reports.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Upstream => "upstream",
            Self::Original => "original",
        }
    }
}

impl Unreadable {
    /// The word in the configuration and in reports.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Refuse => "refuse",
            Self::Tunnel => "tunnel",
        }
    }
}

impl Tunnel {
    /// Whether a server name (lower case, without a trailing dot) is carried.
    pub fn carries(&self, name: &str) -> bool {
        self.names.iter().any(|pattern| pattern.matches(name))
    }
}

impl Route {
    /// The proxy that the upstream is dialled through.
    pub fn through(&self) -> Option<&Through> {
        match &self.way {
            UpstreamWay::Through(through) => Some(through),
            UpstreamWay::Direct | UpstreamWay::Exempt(_) => None,
        }
    }

    /// How what the agent reads in the clear goes on; a tunnel reads nothing.
    pub fn reverse_proxy(&self) -> Option<&ReverseProxy> {
        match &self.mode {
            Mode::ReverseProxy(reverse_proxy) => Some(reverse_proxy),
            Mode::EndToEnd(end_to_end) => Some(&end_to_end.onward),
            Mode::Tunnel(_) => None,
        }
    }

    /// Set where the route ends pods' TLS.
    pub fn end_to_end(&self) -> Option<&EndToEnd> {
        match &self.mode {
            Mode::EndToEnd(end_to_end) => Some(end_to_end),
            Mode::ReverseProxy(_) | Mode::Tunnel(_) => None,
        }
    }

    /// Set where the route tunnels.
    pub fn tunnel(&self) -> Option<&Tunnel> {
        match &self.mode {
            Mode::Tunnel(tunnel) => Some(tunnel),
            Mode::ReverseProxy(_) | Mode::EndToEnd(_) => None,
        }
    }

    /// Whether nothing is read of what a client sends, not even its first byte.
    pub fn is_opaque(&self) -> bool {
        matches!(&self.mode, Mode::ReverseProxy(mode) if mode.protocol == Protocol::Opaque)
    }

    /// The enforcement for a pod, as far as what is known of it decides that.
    pub fn enforcement_for(&self, pod: PodTraits<'_>) -> PossibleEnforcement {
        let mut possible: Option<PossibleEnforcement> = None;
        let mut may_be = |enforcement: Enforcement| {
            let so_far = possible.get_or_insert(PossibleEnforcement::only(enforcement));
            so_far.weakest = so_far.weakest.min(enforcement);
            so_far.strictest = so_far.strictest.max(enforcement);
            *so_far
        };
        for other in &self.overrides {
            match other.matches(pod) {
                Some(true) => return may_be(other.enforcement),
                Some(false) => {}
                None => drop(may_be(other.enforcement)),
            }
        }
        may_be(self.enforcement)
    }

    /// The strictest that any pod may get: what one gets that nothing is known of.
    pub fn strictest_enforcement(&self) -> Enforcement {
        self.enforcement_for(PodTraits::default()).strictest
    }

    /// Whether no pod is let off: then packets are refused, too, which do not say whose they are.
    pub fn is_strict_for_all(&self) -> bool {
        self.weakest_enforcement() == Enforcement::Strict
    }

    /// Whether pods' labels decide anything.
    pub fn selects(&self) -> bool {
        self.overrides.iter().any(|other| other.selector.is_some())
    }

    /// The weakest that any pod may get: what holds for every packet, whoever sent it.
    pub fn weakest_enforcement(&self) -> Enforcement {
        self.overrides.iter().map(|other| other.enforcement).fold(self.enforcement, Ord::min)
    }
}

impl std::fmt::Display for Override {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} for", self.enforcement.as_str())?;
        if !self.namespaces.is_empty() {
            write!(f, " namespaces {}", self.namespaces.join(", "))?;
        }
        match &self.selector {
            Some(selector) if self.namespaces.is_empty() => write!(f, " pods with {selector}"),
            Some(selector) => write!(f, ", pods with {selector}"),
            None => Ok(()),
        }
    }
}

impl Override {
    /// Whether a pod is meant; `None`: what is known of it does not say.
    fn matches(&self, pod: PodTraits<'_>) -> Option<bool> {
        let namespace = if self.namespaces.is_empty() {
            Some(true)
        } else {
            pod.namespace.map(|namespace| self.namespaces.iter().any(|name| **name == *namespace))
        };
        let labels = match &self.selector {
            None => Some(true),
            Some(selector) => pod.labels.map(|labels| selector.matches(labels)),
        };
        match (namespace, labels) {
            (Some(false), _) | (_, Some(false)) => Some(false),
            (Some(true), Some(true)) => Some(true),
            (None, _) | (_, None) => None,
        }
    }
}

impl PossibleEnforcement {
    /// No doubt about it.
    pub fn only(enforcement: Enforcement) -> Self {
        Self { weakest: enforcement, strictest: enforcement }
    }
}

impl AddrRange {
    /// One address and a port.
    pub fn host(addr: std::net::SocketAddr) -> Self {
        Self { net: Cidr::host(addr.ip()), port: addr.port() }
    }

    /// Whether a dial to `addr` is meant.
    pub fn contains(&self, addr: std::net::SocketAddr) -> bool {
        self.port == addr.port() && self.net.contains(addr.ip())
    }

    /// The one address and port; `None` where there are several addresses.
    pub fn single(&self) -> Option<std::net::SocketAddr> {
        self.net.single().map(|addr| std::net::SocketAddr::new(addr, self.port))
    }
}

impl Cidr {
    /// The range that holds one address.
    pub fn host(addr: IpAddr) -> Self {
        let addr = addr.to_canonical();
        Self { addr, prefix: if addr.is_ipv4() { 32 } else { 128 } }
    }

    /// The one address in it; `None` where there are several.
    pub fn single(&self) -> Option<IpAddr> {
        (*self == Self::host(self.addr)).then_some(self.addr)
    }

    /// Whether all of `other` lies in this one.
    pub fn holds(&self, other: &Self) -> bool {
        self.prefix <= other.prefix && self.contains(other.addr)
    }

    /// Whether the two have an address in common.
    pub fn overlaps(&self, other: &Self) -> bool {
        self.contains(other.addr) || other.contains(self.addr)
    }

    /// Whether `addr` lies in the range. A v4-mapped address is the IPv4 address it stands for.
    pub fn contains(&self, addr: IpAddr) -> bool {
        match (self.addr, addr.to_canonical()) {
            (IpAddr::V4(net), IpAddr::V4(addr)) => {
                let mask = u32::MAX.checked_shl(32 - u32::from(self.prefix)).unwrap_or(0);
                u32::from(net) & mask == u32::from(addr) & mask
            }
            (IpAddr::V6(net), IpAddr::V6(addr)) => {
                let mask = u128::MAX.checked_shl(128 - u32::from(self.prefix)).unwrap_or(0);
                u128::from(net) & mask == u128::from(addr) & mask
            }
            (IpAddr::V4(_), IpAddr::V6(_)) | (IpAddr::V6(_), IpAddr::V4(_)) => false,
        }
    }
}
