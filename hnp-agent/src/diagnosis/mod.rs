//! Everything between this node and a route's upstream, looked at step by step: `hnp-agent doctor --route`.
//!
//! A request that fails has one reason; people want to know what else is wrong, what works, and what to type next.
//! So each step is looked at by itself, with the agent's own code (its resolver, its dialling, its verifier, its
//! relay's reading of answers), and what an earlier failure makes meaningless is said to be skipped.
//!
//! Bytes go to the configured name servers, proxy and upstream and to nobody else. The first handshake presents no
//! certificate and sends nothing after it; the identity and requests are for a server that the route's trust has
//! verified, in the same handshake in which they are sent.

mod client_auth;
mod clock;
mod identity;
pub mod node;
mod pods;
mod probe;
mod proxy;
mod reach;
mod request;
mod resolve;
mod tls;

use std::net::SocketAddr;
use std::rc::Rc;
use std::sync::Arc;
use std::time::SystemTime;

use arc_swap::ArcSwapOption;
use hnp_common::Reason;
use tokio::task::LocalSet;
use tokio::time::Instant;

use crate::config::plan::{Host, Mode, Plan, Route, RouteIndex, Trust};
use crate::finding::{Finding, State};
use crate::generation::Generation;
use crate::resolve::Resolver;
use crate::telemetry::Telemetry;
use crate::trust::snapshot::TrustSnapshot;
use crate::upstream::{self, DialError, Io, Offer, Pools, Transport, Upstreams};
use crate::workload::Account;

/// What is to be asked for.
#[derive(Clone, Debug)]
pub struct Wanted {
    /// Paths as pods would ask for them; the route's base path goes before each.
    pub paths: Vec<String>,
    /// HEAD instead of GET.
    pub head: bool,
    /// The service account for which a certificate is issued and presented, where each workload has its own.
    pub workload: Option<Account>,
    /// The configuration's file, for commands that are proposed.
    pub config: String,
}

/// Looks at a route, within its own deadlines.
///
/// # Errors
/// The machine gives no runtime, or a file of the resolver cannot be read.
pub fn examine(plan: &Plan, route: RouteIndex, wanted: &Wanted) -> anyhow::Result<Vec<Finding>> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let mut plan = plan.clone();
    // Nothing of this is an access.
    plan.log.access = false;
    let resolver = Resolver::new(&plan.resolver)?;
    // Streams of HTTP/2 are driven by tasks of the thread.
    Ok(LocalSet::new().block_on(&runtime, Look::new(plan, route, resolver, wanted).everything()))
}

/// One route, and what the agent would have for it.
struct Look<'a> {
    plan: Arc<Plan>,
    index: RouteIndex,
    wanted: &'a Wanted,
    upstreams: Upstreams,
    identity: Option<identity::Own>,
    trust: Option<LoadedTrust>,
    /// The proxy's, where it has one.
    proxy_trust: Option<LoadedTrust>,
    now: SystemTime,
}

/// A trust, or why it cannot be loaded.
type LoadedTrust = (Arc<Trust>, Result<Arc<TrustSnapshot>, String>);

/// Where the upstream is spoken to.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
enum Place {
    /// At one of its addresses.
    Direct(SocketAddr),
    /// In a tunnel of the route's proxy, which is at this address.
    Through(SocketAddr),
}

impl std::fmt::Display for Place {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Direct(addr) => addr.fmt(f),
            Self::Through(addr) => write!(f, "through the proxy at {addr}"),
        }
    }
}

impl<'a> Look<'a> {
    /// Loads what the route names, and nothing else.
    fn new(plan: Plan, index: RouteIndex, resolver: Resolver, wanted: &'a Wanted) -> Self {
        let plan = Arc::new(plan);
        let route = Arc::clone(&plan.routes[index]);
        let identities: Vec<_> = plan.identities.iter().map(|_| Arc::new(ArcSwapOption::empty())).collect();
        let trusts: Vec<_> = plan.trusts.iter().map(|_| Arc::new(ArcSwapOption::empty())).collect();
        let load_trust = |at: usize| -> LoadedTrust {
            let loaded = load_trust(&plan.trusts[at]);
            trusts[at].store(loaded.as_ref().ok().cloned());
            (Arc::clone(&plan.trusts[at]), loaded)
        };
        let proxy_trust = route.through().and_then(|through| through.trust).map(load_trust);
        let trust = route.reverse_proxy().map(|mode| load_trust(mode.trust));
        let identity = route.reverse_proxy().map(|mode| {
            let workload = wanted.workload.as_ref();
            let own = identity::Own::load(&plan.identities[mode.identity], workload, crate::clock::now());
            let name = &own.identity.name;
            let presented = own.withheld().is_none();
            let snapshot = own.loaded.as_ref().ok().map(|loaded| loaded.snapshot(Arc::clone(name), 1));
            identities[mode.identity].store(snapshot.filter(|_| presented).map(Arc::new));
            own
        });
        let counters = Telemetry::new(&plan).worker(0).of(&plan);
        let generation = Arc::new(Generation::new(1, Arc::clone(&plan), identities, trusts));
        let upstreams = Upstreams::new(generation, resolver, Rc::new(counters), Rc::new(Pools::default()));
        Self { plan, index, wanted, upstreams, identity, trust, proxy_trust, now: crate::clock::now() }
    }

    fn route(&self) -> &Route {
        &self.plan.routes[self.index]
    }

    /// What ALPN offers the upstream.
    fn offer(&self) -> Offer {
        self.route().reverse_proxy().map_or(Offer::Nothing, Offer::of)
    }

    fn speaks_http(&self) -> bool {
        self.offer() != Offer::Nothing
    }

    async fn everything(self) -> Vec<Finding> {
        let mut findings = self.pods();
        findings.extend(self.own_identity());
        findings.extend(self.own_trusts());
        let places = if self.route().through().is_some() {
            self.proxy(&mut findings).await
        } else {
            let addrs = self.resolve(&mut findings).await;
            self.reach(&addrs, &mut findings).await
        };
        let shown = self.tls(&places, &mut findings).await;
        if matches!(self.route().mode, Mode::Tunnel(_)) {
            return findings;
        }
        let verified = shown.iter().find(|(_, shown)| shown.is_verified());
        let Some((place, shown)) = verified else {
            let why = "no server was verified, so nothing was presented or sent";
            findings.push(skipped("client-auth", "the upstream's demands", why));
            findings.push(skipped("request", "requests", why));
            self.clock(None, &mut findings);
            return findings;
        };
        let without = self.without_certificate(*place, shown).await;
        let answers = self.requests().await;
        self.client_auth(shown, &without, &answers, &mut findings);
        self.requested(&answers, &mut findings);
        self.clock(clock::dated(&answers, &without), &mut findings);
        findings
    }

    fn own_trusts(&self) -> Vec<Finding> {
        let look = |(trust, loaded): &LoadedTrust| match loaded {
            Ok(snapshot) => {
                Finding::new("trust", &*trust.name, State::Good, format!("{} root(s)", snapshot.roots))
            }
            Err(error) => Finding::bad("trust", &*trust.name, Reason::IdentityUnavailable, error.clone())
                .next(format!("hnp-agent check --config {}", self.wanted.config)),
        };
        self.trust.iter().chain(&self.proxy_trust).map(look).collect()
    }

    /// One attempt to have somebody to speak to.
    async fn dial(&self, place: Place) -> Result<Transport, DialError> {
        let route = self.route();
        let connection = match place {
            Place::Direct(addr) => self.upstreams.connect_direct(addr, route.timeouts.connect).await?,
            Place::Through(_) => {
                self.upstreams.dial_plain(self.index, Instant::now() + upstream::deadline(route)).await?
            }
        };
        match connection.io {
            Io::Plain(transport) => Ok(transport),
            Io::Tls(_) | Io::H2(_) => {
                Err(DialError::new(Reason::Internal, "a way that already carries TLS", None))
            }
        }
    }
}

fn load_trust(trust: &Trust) -> Result<Arc<TrustSnapshot>, String> {
    let loaded = crate::trust::load::load(trust).map_err(|error| error.to_string())?;
    Ok(Arc::new(loaded.snapshot(Arc::clone(&trust.name), 1)))
}

fn skipped(area: &'static str, what: impl Into<String>, why: &str) -> Finding {
    Finding::new(area, what, State::Skipped, why)
}

/// A dial that failed, as a finding with the command that shows more.
fn dial_failed(area: &'static str, what: impl Into<String>, error: &DialError, host: &Host) -> Finding {
    let next = match (error.reason, error.addr) {
        (Reason::UpstreamNameNotFound | Reason::UpstreamDnsFailed, _) => format!("getent ahosts {host}"),
        (Reason::UpstreamRefused, Some(addr)) => {
            format!("at {}: ss -ltn 'sport = :{}'", addr.ip(), addr.port())
        }
        (Reason::UpstreamConnectTimeout | Reason::UpstreamUnreachable, Some(addr)) => {
            format!("ip route get {}", addr.ip())
        }
        (reason, _) => format!("hnp-agent explain {}", reason.code()),
    };
    let detail = format!("{}. {}", error.detail, error.reason.fix());
    Finding::bad(area, what, error.reason, detail).next(next)
}

/// Milliseconds, for people and machines.
fn ms(took: std::time::Duration) -> u64 {
    u64::try_from(took.as_millis()).unwrap_or(u64::MAX)
}
