//! A Plan in words: what `check` prints when there are no mistakes, as tables and as JSON.

use std::fmt::Write as _;
use std::path::PathBuf;

use serde::Serialize;

use super::promises;
use crate::config::end_to_end::{ClientAuth, PodTls};
use crate::config::gateway::Gateway;
use crate::config::humane;
use crate::config::plan::{
    Admin, Capture, CaptureMode, Guard, Identity, IdentityPlace, IdentitySource, Issuer, PerWorkload, Plan,
    Policy, RawSockets, Roots, Route, Rule, RuntimeSocket, UpstreamWay,
};
use crate::config::upstream_proxy::{ProxyCredentials, UpstreamProxy};

/// The Plan in words.
#[derive(Debug, Serialize)]
pub(super) struct Summary {
    pub(super) routes: Vec<RouteSummary>,
    pub(super) identities: Vec<IdentitySummary>,
    pub(super) trusts: Vec<TrustSummary>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub(super) upstream_proxies: Vec<UpstreamProxySummary>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) gateway: Option<GatewaySummary>,
    pub(super) agent: Vec<(&'static str, String)>,
}

#[derive(Debug, Serialize)]
pub(super) struct GatewaySummary {
    pub(super) listen: Vec<String>,
    /// Whom it serves, in words.
    pub(super) callers: String,
    pub(super) sources: Vec<String>,
    /// The route for requests that name no destination; missing where they are refused.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) route: Option<String>,
    /// Missing where TLS is refused on its own port.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) tls: Option<PodTlsSummary>,
    pub(super) timeouts: String,
}

#[derive(Debug, Serialize)]
pub(super) struct RouteSummary {
    pub(super) name: String,
    pub(super) enforcement: &'static str,
    pub(super) mode: &'static str,
    /// What tunnels have not; its keys stand beside the others.
    #[serde(flatten)]
    pub(super) reverse_proxy: Option<ReverseProxySummary>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) end_to_end: Option<PodTlsSummary>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) tunnel: Option<TunnelSummary>,
    pub(super) destinations: Vec<String>,
    pub(super) overrides: Vec<String>,
    pub(super) passthrough: Vec<String>,
    /// Who may use it, a line each; nothing where all may.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub(super) policy: Vec<String>,
    pub(super) upstream: String,
    /// The proxy on the way.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) upstream_proxy: Option<String>,
    /// The proxy that is named and, by its `no_proxy`, not for this upstream.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) exempt_from_proxy: Option<String>,
    pub(super) timeouts: String,
    /// What a strict route does not hold; nothing for others.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub(super) not_held: Vec<&'static str>,
}

#[derive(Debug, Serialize)]
pub(super) struct ReverseProxySummary {
    pub(super) protocol: &'static str,
    pub(super) upstream_protocol: &'static str,
    pub(super) authority: &'static str,
    pub(super) server_name: String,
    /// What the upstream's certificate must be for, in words.
    #[serde(skip)]
    pub(super) certificate_for: String,
    pub(super) identity: String,
    pub(super) trust: String,
    pub(super) pool_idle: usize,
    pub(super) pool_warm: usize,
}

#[derive(Debug, Serialize)]
pub(super) struct PodTlsSummary {
    pub(super) serving: Vec<String>,
    pub(super) client_auth: &'static str,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) client_trust: Option<String>,
    pub(super) client_names: Vec<String>,
}

#[derive(Debug, Serialize)]
pub(super) struct TunnelSummary {
    pub(super) names: Vec<String>,
    pub(super) nameless: &'static str,
    pub(super) encrypted_hello: &'static str,
}

#[derive(Debug, Serialize)]
pub(super) struct IdentitySummary {
    pub(super) name: String,
    /// Missing where a directory is named.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) certificate: Option<PathBuf>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) key: Option<PathBuf>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) directory: Option<PathBuf>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) passphrase_file: Option<PathBuf>,
    /// Where the files are those of an intermediate, and each workload has an identity of its own.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) issuer: Option<IssuerSummary>,
    /// Missing where it is in files.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) spiffe: Option<SpiffeSummary>,
    /// Missing when it could not be loaded.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) leaf: Option<LeafSummary>,
}

/// A Workload API, and what is asked of it.
#[derive(Debug, Serialize)]
pub(super) struct SpiffeSummary {
    pub(super) socket: PathBuf,
    pub(super) wanted: String,
}

impl IdentitySummary {
    pub(super) fn of(identity: &Identity, leaf: Option<LeafSummary>) -> Self {
        let files = identity.source.files();
        let (certificate, key, directory) = match files.map(|files| &files.place) {
            Some(IdentityPlace::Pair { certificate, key }) => {
                (Some(certificate.clone()), Some(key.clone()), None)
            }
            Some(IdentityPlace::Directory(directory)) => (None, None, Some(directory.clone())),
            None => (None, None, None),
        };
        let spiffe = match &identity.source {
            IdentitySource::Spiffe(spiffe) => {
                let (socket, wanted) = (spiffe.api.socket.clone(), spiffe.choice.to_string());
                Some(SpiffeSummary { socket, wanted })
            }
            IdentitySource::Files(_) | IdentitySource::Issuer(_) => None,
        };
        Self {
            name: identity.name.to_string(),
            certificate,
            key,
            directory,
            passphrase_file: files.and_then(|files| files.passphrase_file.clone()),
            spiffe,
            issuer: identity.source.issuer().map(IssuerSummary::of),
            leaf,
        }
    }
}

#[derive(Debug, Serialize)]
pub(super) struct IssuerSummary {
    /// What is issued, with NAMESPACE and SERVICE-ACCOUNT for what differs.
    pub(super) spiffe_id: String,
    pub(super) lifetime: String,
    pub(super) pod_uid: bool,
    pub(super) max_identities: usize,
}

#[derive(Debug, Serialize)]
pub(super) struct LeafSummary {
    /// Missing where there is none.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) spiffe_id: Option<String>,
    pub(super) subject: String,
    pub(super) issuer: String,
    pub(super) serial: String,
    pub(super) not_before: String,
    pub(super) not_after: String,
    pub(super) version: u8,
    pub(super) chain_length: usize,
}

#[derive(Debug, Serialize)]
pub(super) struct TrustSummary {
    pub(super) name: String,
    pub(super) source: String,
    /// Missing when it could not be loaded.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) roots: Option<usize>,
    /// Missing where revocation is not looked at.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) crls: Option<PathBuf>,
    /// How many revocation lists; missing when they could not be loaded.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) lists: Option<usize>,
    /// SPIFFE IDs that are taken; missing where any is, or none is needed.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub(super) ids: Vec<String>,
    /// DNS names, one of which is needed; missing where none is.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub(super) names: Vec<String>,
    pub(super) tls_min: &'static str,
}

/// Without credentials, whatever they are.
#[derive(Debug, Serialize)]
pub(super) struct UpstreamProxySummary {
    pub(super) name: String,
    pub(super) url: String,
    /// Missing where it is spoken to in cleartext.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) trust: Option<String>,
    pub(super) credentials: String,
    pub(super) no_proxy: Vec<String>,
    pub(super) timeouts: String,
}

pub(super) fn upstream_proxy_summary(proxy: &UpstreamProxy) -> UpstreamProxySummary {
    let timeouts = &proxy.timeouts;
    let timeouts = [("connect", timeouts.connect), ("tls", timeouts.tls), ("answer", timeouts.answer)];
    UpstreamProxySummary {
        name: proxy.name.to_string(),
        url: proxy.to_string(),
        trust: proxy.tls.as_ref().map(|tls| tls.trust.to_string()),
        credentials: match &proxy.credentials {
            ProxyCredentials::None => "none".into(),
            ProxyCredentials::Url(_) => "in the url".into(),
            ProxyCredentials::File(path) => path.display().to_string(),
        },
        no_proxy: proxy.no_proxy.iter().map(ToString::to_string).collect(),
        timeouts: timeouts.map(|(name, duration)| format!("{name} {}", humane(duration))).join(", "),
    }
}

pub(super) fn route_summary(plan: &Plan, route: &Route) -> RouteSummary {
    let timeouts = &route.timeouts;
    let timeouts = [
        ("head", timeouts.head),
        ("idle", timeouts.idle),
        ("connect", timeouts.connect),
        ("tls", timeouts.tls),
        ("response", timeouts.response),
        ("ping", timeouts.ping),
    ];
    RouteSummary {
        name: route.name.to_string(),
        enforcement: route.enforcement.as_str(),
        mode: route.mode.as_str(),
        reverse_proxy: route.reverse_proxy().map(|mode| ReverseProxySummary {
            protocol: mode.protocol.as_str(),
            upstream_protocol: mode.upstream_protocol.as_str(),
            authority: mode.authority.as_str(),
            server_name: route.upstream.server_name.to_str().into_owned(),
            certificate_for: match &plan.trusts[mode.trust].roots {
                Roots::Spiffe(_) => format!("the IDs of trust {}", plan.trusts[mode.trust].name),
                Roots::File(_) | Roots::System => route.upstream.server_name.to_str().into_owned(),
            },
            identity: plan.identities[mode.identity].name.to_string(),
            trust: plan.trusts[mode.trust].name.to_string(),
            pool_idle: route.upstream.pool_idle,
            pool_warm: route.upstream.pool_warm,
        }),
        end_to_end: route.end_to_end().map(|mode| pod_tls_summary(plan, &mode.tls)),
        tunnel: route.tunnel().map(|tunnel| TunnelSummary {
            names: tunnel.names.iter().map(ToString::to_string).collect(),
            nameless: tunnel.nameless.as_str(),
            encrypted_hello: tunnel.encrypted_hello.as_str(),
        }),
        destinations: route.destinations.iter().map(ToString::to_string).collect(),
        overrides: route.overrides.iter().map(ToString::to_string).collect(),
        passthrough: route.passthrough.iter().map(ToString::to_string).collect(),
        policy: route.policy.as_ref().map(policy).unwrap_or_default(),
        upstream: format!("https://{}{}", route.upstream.authority, route.upstream.base_path),
        upstream_proxy: route.through().map(|through| through.proxy.name.to_string()),
        exempt_from_proxy: match &route.way {
            UpstreamWay::Exempt(proxy) => Some(proxy.to_string()),
            UpstreamWay::Direct | UpstreamWay::Through(_) => None,
        },
        timeouts: timeouts.map(|(name, duration)| format!("{name} {}", humane(duration))).join(", "),
        not_held: promises::not_held(route, &plan.capture),
    }
}

fn pod_tls_summary(plan: &Plan, mode: &PodTls) -> PodTlsSummary {
    let (client_trust, names) = match &mode.client_auth {
        ClientAuth::None => (None, &[][..]),
        ClientAuth::Required { trust, names } => (Some(plan.trusts[*trust].name.to_string()), &names[..]),
    };
    PodTlsSummary {
        serving: mode.serving.iter().map(|index| plan.identities[*index].name.to_string()).collect(),
        client_auth: mode.client_auth.as_str(),
        client_trust,
        client_names: names.iter().map(ToString::to_string).collect(),
    }
}

pub(super) fn gateway_summary(plan: &Plan, gateway: &Gateway) -> GatewaySummary {
    let timeouts = &gateway.timeouts;
    let timeouts = [("head", timeouts.head), ("idle", timeouts.idle), ("caller", timeouts.caller)];
    let sources: Vec<String> = gateway.sources.iter().map(ToString::to_string).collect();
    let callers = match (plan.knows_callers(), sources.is_empty()) {
        (true, true) => "this node's pods, as the API server names their addresses".to_owned(),
        (true, false) => format!("this node's pods, as far as they come from {}", sources.join(", ")),
        (false, true) => "nobody by his address".to_owned(),
        (false, false) => format!("whoever comes from {}", sources.join(", ")),
    };
    let callers =
        if gateway.certifies() { format!("{callers}; and whoever shows a certificate") } else { callers };
    GatewaySummary {
        listen: gateway.listen.iter().map(ToString::to_string).collect(),
        callers,
        sources,
        route: gateway.default_route(plan).map(|route| plan.routes[route].name.to_string()),
        tls: gateway.tls.as_ref().map(|tls| pod_tls_summary(plan, tls)),
        timeouts: timeouts.map(|(name, duration)| format!("{name} {}", humane(duration))).join(", "),
    }
}

/// What becomes of flows to strict destinations that were there before.
fn older_flows(capture: &Capture) -> &'static str {
    match (capture.destroy_older_flows, capture.guard) {
        (true, _) => "destroyed at once, where a route is strict for every pod",
        (false, Guard::Auto) => {
            "reset by the guard with their next packet, where a route is strict for every pod"
        }
        (false, Guard::Off) => "go on in the clear: the guard is off",
    }
}

pub(super) fn agent_summary(plan: &Plan) -> Vec<(&'static str, String)> {
    let resolver = &plan.resolver;
    let log = &plan.log;
    let mut rows = match plan.capture.mode {
        CaptureMode::On => capture_summary(&plan.capture),
        CaptureMode::Off => vec![("capture", "off: nothing in the kernel, no capability needed".into())],
    };
    rows.extend([
        (
            "limits",
            format!(
                "{} connections, heads of {} bytes, buffers of {} bytes",
                plan.limits.connections, plan.limits.head_bytes, plan.limits.buffer_bytes
            ),
        ),
        ("per workload", per_workload(&plan.limits.per_workload)),
        (
            "resolver",
            format!(
                "{}, {}; TTL {} to {}, grace {}",
                resolver.resolv_conf.display(),
                resolver.hosts.display(),
                humane(resolver.min_ttl),
                humane(resolver.max_ttl),
                humane(resolver.grace)
            ),
        ),
        (
            "runtime",
            match &plan.workloads.runtime {
                _ if plan.capture.mode == CaptureMode::Off => "off: nobody is captured".into(),
                RuntimeSocket::Auto => "auto: the first usual CRI socket that is there".into(),
                RuntimeSocket::Off => "off".into(),
                RuntimeSocket::Path(path) => path.display().to_string(),
            },
        ),
        ("unknown pods", format!("held for {} where a policy asks", humane(plan.workloads.deadline))),
        (
            "startup taint",
            match &plan.kubernetes {
                None => "off: no cluster is known".into(),
                Some(cluster) => match &cluster.startup_taint {
                    None => "off".into(),
                    Some(key) => format!("{key} on node {}, {}", cluster.node_name, cluster.api),
                },
            },
        ),
        (
            "uninstall",
            match plan.kubernetes.as_ref().and_then(|cluster| cluster.daemonset.as_ref()) {
                None => "not told from a restart: strict destinations stay refused".into(),
                Some(daemonset) => format!("cleaned up after, when DaemonSet {daemonset} is deleted"),
            },
        ),
        ("admin", admin(&plan.admin)),
        (
            "log",
            format!(
                "{:?}, {}, access lines {}",
                log.format,
                log.level,
                if log.access { "on" } else { "off" }
            )
            .to_lowercase(),
        ),
        ("run_dir", plan.run_dir.display().to_string()),
        ("drain", humane(plan.drain_deadline)),
        ("workers", plan.workers.to_string()),
    ]);
    rows
}

/// In the order in which it is decided.
fn policy(policy: &Policy) -> Vec<String> {
    let rules = |word: &str, rules: &[Rule]| -> Vec<String> {
        rules.iter().map(|rule| format!("{word}: {rule}")).collect()
    };
    let mut lines = rules("deny", &policy.deny);
    lines.extend(rules("allow", &policy.allow));
    lines.push(format!("{} whoever else", policy.default.as_str()));
    if policy.dry_run {
        lines.push("dry run: counted and logged, nobody is refused".into());
    }
    lines
}

fn per_workload(limits: &PerWorkload) -> String {
    let mut text = format!("{} connections", limits.connections);
    if let Some(rate) = limits.new_connections_per_second {
        text.push_str(&format!(", {rate} new ones a second"));
    }
    text.push_str(&format!(", {} handshakes a second beside others", limits.handshakes_per_second));
    if let Some(rate) = limits.bytes_per_second {
        text.push_str(&format!(", {rate} bytes a second"));
    }
    text
}

fn capture_summary(capture: &Capture) -> Vec<(&'static str, String)> {
    let cgroup = match &capture.cgroup {
        Some(path) => path.display().to_string(),
        None => "kubepods* under the cgroup2 mount".into(),
    };
    vec![
        ("cgroup", cgroup),
        ("bpffs", capture.bpffs.display().to_string()),
        ("VIPs", format!("{}, {}, port {}", capture.vips4, capture.vips6, capture.port)),
        ("per pod", format!("{} connections", capture.connections_per_pod)),
        (
            "guard",
            match capture.guard {
                Guard::Auto => "on pods' veths, for strict routes".into(),
                Guard::Off => "off: sockets that pass no connect() under kubepods go direct".into(),
            },
        ),
        (
            "raw sockets",
            match capture.raw_sockets {
                RawSockets::Allow => "allowed".into(),
                RawSockets::Refuse => "refused in pods' own network namespaces".into(),
            },
        ),
        ("older flows", older_flows(capture).into()),
    ]
}

impl Summary {
    /// The tables, as text.
    pub(super) fn write(&self, text: &mut String) {
        self.routes.iter().for_each(|route| route.write(text));
        self.identities.iter().for_each(|identity| identity.write(text));
        self.trusts.iter().for_each(|trust| trust.write(text));
        self.upstream_proxies.iter().for_each(|proxy| proxy.write(text));
        if let Some(gateway) = &self.gateway {
            gateway.write(text);
        }
        table(text, "agent".into(), &self.agent);
    }
}

impl PodTlsSummary {
    fn rows(&self) -> [(&'static str, String); 2] {
        let asked = match &self.client_trust {
            None => "none asked for".into(),
            Some(trust) if self.client_names.is_empty() => format!("any by trust {trust}"),
            Some(trust) => format!("by trust {trust}, for {}", self.client_names.join(", ")),
        };
        [("serving", self.serving.join(", ")), ("pods' certs", asked)]
    }
}

impl GatewaySummary {
    fn write(&self, text: &mut String) {
        let route = self.route.clone().unwrap_or_else(|| "none: refused".into());
        let mut rows = vec![
            ("listens on", self.listen.join(", ")),
            ("serves", self.callers.clone()),
            ("default route", route),
            ("timeouts", self.timeouts.clone()),
        ];
        rows.extend(self.tls.iter().flat_map(PodTlsSummary::rows));
        table(text, "gateway".into(), &rows);
    }
}

impl RouteSummary {
    fn write(&self, text: &mut String) {
        let way = match (&self.upstream_proxy, &self.exempt_from_proxy) {
            (Some(proxy), _) => format!(" through proxy {proxy}"),
            (None, Some(proxy)) => format!(" directly: proxy {proxy} is not for it"),
            (None, None) => String::new(),
        };
        let mut rows = vec![("destinations", self.destinations.join(", "))];
        let mut kind = vec![self.enforcement, self.mode];
        if let Some(mode) = &self.reverse_proxy {
            kind.insert(1, mode.protocol);
            rows.extend([
                ("upstream", format!("{} (certificate for {}){way}", self.upstream, mode.certificate_for)),
                ("speaks", mode.upstream_protocol.into()),
                ("authority", mode.authority.into()),
                ("identity", mode.identity.clone()),
                ("trust", mode.trust.clone()),
                ("timeouts", self.timeouts.clone()),
                ("pool", {
                    let warm = if mode.pool_warm > 0 {
                        format!(", {} ahead of use", mode.pool_warm)
                    } else {
                        String::new()
                    };
                    format!("{} idle connections per worker{warm}", mode.pool_idle)
                }),
            ]);
        }
        if let Some(mode) = &self.end_to_end {
            rows.extend(mode.rows());
        }
        if let Some(tunnel) = &self.tunnel {
            let names = if tunnel.names.is_empty() { "none".into() } else { tunnel.names.join(", ") };
            rows.extend([
                ("upstream", format!("{}{way}", self.upstream)),
                ("names", names),
                ("nameless", tunnel.nameless.into()),
                ("encrypted hello", tunnel.encrypted_hello.into()),
                ("timeouts", self.timeouts.clone()),
            ]);
        }
        if !self.passthrough.is_empty() {
            rows.insert(1, ("passthrough", self.passthrough.join(", ")));
        }
        if !self.overrides.is_empty() {
            rows.insert(1, ("overrides", self.overrides.join("; ")));
        }
        let heads = std::iter::once("policy").chain(std::iter::repeat(""));
        rows.extend(heads.zip(self.policy.iter().cloned()));
        // A line each; docs/security.md says why.
        let heads = std::iter::once("not held").chain(std::iter::repeat(""));
        rows.extend(heads.zip(self.not_held.iter().map(ToString::to_string)));
        table(text, format!("route {} ({})", self.name, kind.join(", ")), &rows);
    }
}

impl IssuerSummary {
    pub(super) fn of(issuer: &Issuer) -> Self {
        Self {
            spiffe_id: format!("spiffe://{}/ns/NAMESPACE/sa/SERVICE-ACCOUNT", issuer.trust_domain),
            lifetime: humane(issuer.lifetime),
            pod_uid: issuer.pod_uid,
            max_identities: issuer.max_identities,
        }
    }

    fn words(&self) -> String {
        let each = if self.pod_uid { "pod, whose UID is in the subject" } else { "service account" };
        let Self { spiffe_id, lifetime, max_identities, .. } = self;
        format!("{spiffe_id}, one for each {each}, valid {lifetime}, at most {max_identities} kept")
    }
}

impl IdentitySummary {
    fn write(&self, text: &mut String) {
        let files = [
            ("certificate", &self.certificate),
            ("key", &self.key),
            ("directory", &self.directory),
            ("passphrase", &self.passphrase_file),
        ];
        let shown = |(what, path): (_, &Option<PathBuf>)| Some((what, path.as_ref()?.display().to_string()));
        let mut rows: Vec<_> = files.into_iter().filter_map(shown).collect();
        if let Some(issuer) = &self.issuer {
            rows.push(("issues", issuer.words()));
        }
        if let Some(spiffe) = &self.spiffe {
            rows.push(("socket", spiffe.socket.display().to_string()));
            rows.push(("asks for", spiffe.wanted.clone()));
        }
        if let Some(leaf) = &self.leaf {
            rows.extend(leaf.spiffe_id.iter().map(|id| ("SPIFFE ID", id.clone())));
            rows.push(("subject", leaf.subject.clone()));
            rows.push(("issuer", leaf.issuer.clone()));
            rows.push(("serial", leaf.serial.clone()));
            rows.push(("valid", format!("{} to {}", leaf.not_before, leaf.not_after)));
            rows.push((
                "form",
                format!("X.509 version {}, {} certificate(s)", leaf.version, leaf.chain_length),
            ));
        }
        table(text, format!("identity {}", self.name), &rows);
    }
}

impl TrustSummary {
    fn write(&self, text: &mut String) {
        let count = self.roots.map_or("not loaded".into(), |roots| roots.to_string());
        let mut rows = vec![("from", self.source.clone()), ("roots", count)];
        if let Some(crls) = &self.crls {
            let count = self.lists.map_or("not loaded".into(), |lists| lists.to_string());
            rows.push(("revoked", format!("{count} list(s) from {}", crls.display())));
        }
        for (what, list) in [("only IDs", &self.ids), ("only names", &self.names)] {
            if !list.is_empty() {
                rows.push((what, list.join(", ")));
            }
        }
        rows.push(("TLS from", self.tls_min.into()));
        table(text, format!("trust {}", self.name), &rows);
    }
}

impl UpstreamProxySummary {
    fn write(&self, text: &mut String) {
        let mut rows = vec![("url", self.url.clone()), ("credentials", self.credentials.clone())];
        if let Some(trust) = &self.trust {
            rows.insert(1, ("trust", trust.clone()));
        }
        if !self.no_proxy.is_empty() {
            rows.push(("not for", self.no_proxy.join(", ")));
        }
        rows.push(("timeouts", self.timeouts.clone()));
        table(text, format!("upstream proxy {}", self.name), &rows);
    }
}

fn table(text: &mut String, title: String, rows: &[(&'static str, String)]) {
    let _ = writeln!(text, "{title}");
    for (key, value) in rows {
        let _ = writeln!(text, "  {key:<13} {value}");
    }
    text.push('\n');
}
fn admin(admin: &Admin) -> String {
    match admin.listen {
        None => "off".into(),
        Some(addr) if admin.page => format!("{addr}, with the page"),
        Some(addr) => format!("{addr}, without the page"),
    }
}
