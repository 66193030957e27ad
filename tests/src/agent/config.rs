//! The agent's configuration, as an operator would write it.

use std::fmt::Write as _;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use crate::pki::Files;
use crate::poll::patience;
use crate::topology::World;

/// A configuration under construction. The fields are what scenarios change.
#[derive(Clone, Debug)]
pub struct Config {
    /// `capture.cgroup`
    pub cgroup: PathBuf,
    /// `capture.bpffs`
    pub bpffs: PathBuf,
    /// `run_dir`
    pub run_dir: PathBuf,
    /// `admin.listen`
    pub admin: SocketAddr,
    /// `drain.deadline`
    pub drain: String,
    /// `workers`
    pub workers: usize,
    /// The content of `resolver`, without braces.
    pub resolver: String,
    /// The content of `upstream_proxies`, without braces.
    pub upstream_proxies: String,
    /// Further content of `capture`, without braces: `connections_per_pod: 8`. Or `off`.
    pub capture: String,
    /// The content of `gateway`, without braces; none where it is empty.
    pub gateway: String,
    /// The content of `limits`, without braces.
    pub limits: String,
    /// The content of `kubernetes`, without braces.
    pub kubernetes: String,
    /// Keys of `workloads`; no runtime unless a scenario has one.
    pub workloads: String,
    /// `log.access`
    pub access: bool,
    /// Environment variables of the agent, as a pod's specification sets them.
    pub env: Vec<(&'static str, String)>,
    /// Names, and what stands between the braces.
    identities: Vec<(String, String)>,
    trusts: Vec<(String, String)>,
    routes: Vec<Route>,
}

impl Config {
    /// For the node of a world: its kubepods, its bpffs, its hosts and resolv.conf.
    pub fn new(world: &World) -> Self {
        let (hosts, resolv_conf) = (world.hosts_file(), world.resolv_conf());
        Self {
            cgroup: world.kubepods(),
            bpffs: world.bpffs(),
            run_dir: world.run_dir(),
            admin: SocketAddr::from(([127, 0, 0, 1], 15090)),
            drain: "10s".to_owned(),
            workers: 2,
            resolver: format!(
                "resolv_conf: {}, hosts: {}, min_ttl: 1s",
                resolv_conf.display(),
                hosts.display()
            ),
            upstream_proxies: String::new(),
            capture: String::new(),
            gateway: String::new(),
            limits: String::new(),
            kubernetes: String::new(),
            workloads: "runtime: off".to_owned(),
            access: true,
            env: Vec::new(),
            identities: Vec::new(),
            trusts: Vec::new(),
            routes: Vec::new(),
        }
    }

    /// Adds an identity from files.
    #[must_use]
    pub fn identity(self, name: &str, files: &Files) -> Self {
        let (certificate, key) = (files.certificate.display(), files.key.display());
        self.identity_with(name, &format!("certificate: {certificate}, key: {key}"))
    }

    /// Adds an identity with these keys: `directory: /etc/tls`.
    #[must_use]
    pub fn identity_with(mut self, name: &str, keys: &str) -> Self {
        self.identities.push((name.to_owned(), keys.to_owned()));
        self
    }

    /// Adds a trust in a file of roots.
    #[must_use]
    pub fn trust(self, name: &str, roots: &Path) -> Self {
        self.trust_with(name, &format!("roots: {}", roots.display()))
    }

    /// Adds a trust with these keys: `roots: /etc/ca.crt, crls: /etc/ca.crl`.
    #[must_use]
    pub fn trust_with(mut self, name: &str, keys: &str) -> Self {
        self.trusts.push((name.to_owned(), keys.to_owned()));
        self
    }

    /// Adds a route.
    #[must_use]
    pub fn route(mut self, route: Route) -> Self {
        self.routes.push(route);
        self
    }

    /// The file's text.
    pub fn to_yaml(&self) -> String {
        self.write().expect("strings grow")
    }

    fn write(&self) -> Result<String, std::fmt::Error> {
        let mut text = String::new();
        let Self { cgroup, bpffs, run_dir, admin, drain, workers, resolver, access, .. } = self;
        if self.capture == "off" {
            writeln!(text, "capture: off")?;
        } else {
            writeln!(text, "capture:\n  cgroup: {}\n  bpffs: {}", cgroup.display(), bpffs.display())?;
            for setting in self.capture.split(", ").filter(|setting| !setting.is_empty()) {
                writeln!(text, "  {setting}")?;
            }
        }
        if !self.gateway.is_empty() {
            writeln!(text, "gateway: {{{}}}", self.gateway)?;
        }
        writeln!(text, "identities:")?;
        for (name, keys) in &self.identities {
            writeln!(text, "  {name}: {{{keys}}}")?;
        }
        writeln!(text, "trusts:")?;
        for (name, keys) in &self.trusts {
            writeln!(text, "  {name}: {{{keys}}}")?;
        }
        if !self.upstream_proxies.is_empty() {
            writeln!(text, "upstream_proxies: {{{}}}", self.upstream_proxies)?;
        }
        writeln!(text, "routes:")?;
        for route in &self.routes {
            text.push_str(&route.yaml);
            // Handshakes that take seconds on an emulated processor are not what scenarios are about.
            let usual = Duration::from_secs(5);
            let allowed = patience(usual);
            if allowed > usual && !route.yaml.contains("    timeouts: ") {
                let seconds = allowed.as_secs();
                writeln!(text, "    timeouts: {{connect: {seconds}s, tls: {seconds}s}}")?;
            }
        }
        if !self.limits.is_empty() {
            writeln!(text, "limits: {{{}}}", self.limits)?;
        }
        writeln!(text, "resolver: {{{resolver}}}")?;
        writeln!(text, "workloads: {{{}}}", self.workloads)?;
        if !self.kubernetes.is_empty() {
            writeln!(text, "kubernetes: {{{}}}", self.kubernetes)?;
        }
        writeln!(text, "admin: {{listen: \"{admin}\"}}")?;
        writeln!(text, "log: {{format: json, level: info, access: {access}}}")?;
        writeln!(text, "run_dir: {}", run_dir.display())?;
        writeln!(text, "drain: {{deadline: {drain}}}\nworkers: {workers}")?;
        Ok(text)
    }
}

/// A route under construction: strict and HTTP unless told otherwise.
#[derive(Clone, Debug)]
pub struct Route {
    yaml: String,
}

impl Route {
    /// A strict HTTP route.
    pub fn strict(name: &str, destinations: &[&str], upstream: &str) -> Self {
        Self::new(name, destinations, upstream, "strict", "http")
    }

    /// An observed HTTP route.
    pub fn observe(name: &str, destinations: &[&str], upstream: &str) -> Self {
        Self::new(name, destinations, upstream, "observe", "http")
    }

    /// A loose HTTP route.
    pub fn loose(name: &str, destinations: &[&str], upstream: &str) -> Self {
        Self::new(name, destinations, upstream, "loose", "http")
    }

    /// A strict route for any bytes.
    pub fn opaque(name: &str, destinations: &[&str], upstream: &str) -> Self {
        Self::new(name, destinations, upstream, "strict", "opaque")
    }

    /// A strict route that carries the pod's own TLS. It presents nothing: [`Route::with`] is not for it.
    pub fn tunnel(name: &str, destinations: &[&str], upstream: &str) -> Self {
        let yaml = format!(
            "  - name: {name}\n    destinations: {destinations:?}\n    upstream: {upstream}\n    \
             mode: tunnel\n    enforcement: strict\n"
        );
        Self { yaml }
    }

    fn new(name: &str, destinations: &[&str], upstream: &str, enforcement: &str, protocol: &str) -> Self {
        let yaml = format!(
            "  - name: {name}\n    destinations: {destinations:?}\n    upstream: {upstream}\n    \
             protocol: {protocol}\n    enforcement: {enforcement}\n"
        );
        Self { yaml }
    }

    /// Which identity it presents and which trust it has.
    #[must_use]
    pub fn with(self, identity: &str, trust: &str) -> Self {
        self.set("identity", identity).set("trust", trust)
    }

    /// Sets a key to a value in YAML's flow form: `timeouts`, `{connect: 1s}`.
    #[must_use]
    pub fn set(mut self, key: &str, value: &str) -> Self {
        writeln!(self.yaml, "    {key}: {value}").expect("strings grow");
        self
    }
}
