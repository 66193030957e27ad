//! resolv.conf and the hosts file: read, noticed when changed, parsed into what a look-up needs.
//!
//! What resolv.conf cannot say (glibc's default domain out of the host name, nsswitch, systemd's own
//! protocol) is not guessed: the same file gives the same answers on every node.

use std::collections::HashMap;
use std::io;
use std::net::IpAddr;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::sync::atomic::AtomicUsize;
use std::time::{Duration, SystemTime};

use hickory_resolver::TokioResolver;
use hickory_resolver::config::{NameServerConfig, ResolveHosts, ResolverConfig, ResolverOpts};
use hickory_resolver::net::runtime::TokioRuntimeProvider;
use hickory_resolver::proto::rr::Name;

use crate::config::plan;

/// How long one server may take for one question, unless resolv.conf says less. Its default of 5 s
/// is half of what many clients wait for a whole request.
const TIMEOUT: Duration = Duration::from_secs(2);
/// How often the list of servers is gone through: resolv.conf's `attempts`, within these.
const ATTEMPTS: (usize, usize) = (1, 3);
/// resolver(5): more servers are ignored.
const MAX_SERVERS: usize = 3;
/// A file whose modification time is younger than this when it is read is read once more later: a
/// second write within one tick of the file system's clock does not change the time.
const SETTLED: Duration = Duration::from_secs(2);

/// A file the resolver needs cannot be read.
#[derive(Debug, thiserror::Error)]
#[error("{path}: {source}")]
pub struct SettingsError {
    /// The file.
    pub path: PathBuf,
    /// Why not.
    pub source: io::Error,
}

/// The content of both files, and how to see that they changed.
#[derive(Debug)]
pub(super) struct Files {
    resolv_conf: File,
    hosts: File,
}

#[derive(Debug)]
struct File {
    content: Vec<u8>,
    /// `None`: look again in any case.
    stamp: Option<Stamp>,
    /// A failure to read it was logged.
    complained: bool,
}

/// What changes with a file. Zero where there is none.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
struct Stamp {
    device: u64,
    inode: u64,
    size: u64,
    modified: (i64, i64),
    changed: (i64, i64),
}

/// What a look-up needs.
pub(super) struct Settings {
    /// In the order of resolv.conf; empty where it names none.
    pub(super) servers: Vec<Server>,
    /// Where to begin: the server that answered last.
    pub(super) preferred: AtomicUsize,
    pub(super) attempts: usize,
    pub(super) search: Vec<Name>,
    pub(super) ndots: usize,
    /// By lower-case name without a trailing dot.
    pub(super) hosts: HashMap<String, Vec<IpAddr>>,
    /// What to say where there is no server.
    pub(super) no_servers: String,
}

/// One name server. Each has a hickory resolver of its own, because hickory's pool ends at the first
/// SERVFAIL or REFUSED, and asks nobody else once a silent server has used up the timeout.
pub(super) struct Server {
    pub(super) addr: IpAddr,
    pub(super) dns: TokioResolver,
}

impl Files {
    pub(super) fn read(plan: &plan::Resolver) -> Result<Self, SettingsError> {
        let read =
            |path: &Path| File::read(path).map_err(|source| SettingsError { path: path.to_owned(), source });
        Ok(Self { resolv_conf: read(&plan.resolv_conf)?, hosts: read(&plan.hosts)? })
    }

    /// Reads again what changed; true if a content did. A file that cannot be read keeps its old
    /// content, and is logged once.
    pub(super) fn reread(&mut self, plan: &plan::Resolver) -> bool {
        let resolv_conf = self.resolv_conf.reread(&plan.resolv_conf);
        let hosts = self.hosts.reread(&plan.hosts);
        resolv_conf || hosts
    }
}

impl File {
    fn read(path: &Path) -> io::Result<Self> {
        // First the stamp: a change between the two is then noticed the next time.
        let stamp = Stamp::of(path)?;
        let content = match std::fs::read(path) {
            Ok(content) => content,
            Err(error) if error.kind() == io::ErrorKind::NotFound => Vec::new(),
            Err(error) => return Err(error),
        };
        Ok(Self { content, stamp: Some(stamp).filter(Stamp::is_settled), complained: false })
    }

    fn reread(&mut self, path: &Path) -> bool {
        if self.stamp.is_some() && Stamp::of(path).ok() == self.stamp {
            return false;
        }
        match Self::read(path) {
            Ok(new) => {
                let changed = new.content != self.content;
                *self = new;
                changed
            }
            Err(error) => {
                if !self.complained {
                    tracing::warn!(path = %path.display(), %error, "cannot be read; going on with what it said before");
                    self.complained = true;
                }
                false
            }
        }
    }
}

impl Stamp {
    fn of(path: &Path) -> io::Result<Self> {
        match std::fs::metadata(path) {
            Ok(meta) => Ok(Self {
                device: meta.dev(),
                inode: meta.ino(),
                size: meta.size(),
                modified: (meta.mtime(), meta.mtime_nsec()),
                changed: (meta.ctime(), meta.ctime_nsec()),
            }),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(Self::default()),
            Err(error) => Err(error),
        }
    }

    fn is_settled(&self) -> bool {
        let seconds = u64::try_from(self.changed.0.max(self.modified.0)).unwrap_or(0);
        let last = SystemTime::UNIX_EPOCH + Duration::from_secs(seconds);
        SystemTime::now().duration_since(last).is_ok_and(|age| age >= SETTLED)
    }
}

impl Settings {
    pub(super) fn parse(files: &Files, plan: &plan::Resolver, port: u16) -> Self {
        let parsed = hickory_resolver::system_conf::parse_resolv_conf(&files.resolv_conf.content);
        // Not worth a word here: each look-up that needs a server will say it.
        let trouble = parsed.as_ref().err().map(ToString::to_string);
        let (config, options) = parsed.unwrap_or_default();
        let servers = config.name_servers.iter().take(MAX_SERVERS).filter_map(|server| {
            match Server::new(server.ip, port, &options) {
                Ok(server) => Some(server),
                Err(error) => {
                    tracing::warn!(server = %server.ip, %error, "name server left out");
                    None
                }
            }
        });
        Self {
            servers: servers.collect(),
            preferred: AtomicUsize::new(0),
            attempts: options.attempts.clamp(ATTEMPTS.0, ATTEMPTS.1),
            search: config.search,
            ndots: options.ndots,
            hosts: parse_hosts(&String::from_utf8_lossy(&files.hosts.content)),
            no_servers: format!(
                "{} names no name server that can be used{}",
                plan.resolv_conf.display(),
                trouble.map(|trouble| format!(": {trouble}")).unwrap_or_default()
            ),
        }
    }
}

impl Server {
    fn new(addr: IpAddr, port: u16, parsed: &ResolverOpts) -> Result<Self, hickory_resolver::net::NetError> {
        let mut server = NameServerConfig::udp_and_tcp(addr);
        for connection in &mut server.connections {
            connection.port = port;
        }
        let config = ResolverConfig::from_parts(None, Vec::new(), vec![server]);
        let mut options = parsed.clone();
        options.timeout = parsed.timeout.min(TIMEOUT).max(Duration::from_secs(1));
        // Search list, hosts file, cache and the next attempt are ours.
        options.attempts = 0;
        options.num_concurrent_reqs = 1;
        options.cache_size = 0;
        options.use_hosts_file = ResolveHosts::Never;
        let mut builder = TokioResolver::builder_with_config(config, TokioRuntimeProvider::default());
        *builder.options_mut() = options;
        Ok(Self { addr, dns: builder.build()? })
    }
}

/// hosts(5): an address, then names; `#` begins a comment. Lines that do not begin with an address
/// are left out, as libc does.
fn parse_hosts(text: &str) -> HashMap<String, Vec<IpAddr>> {
    let mut hosts: HashMap<String, Vec<IpAddr>> = HashMap::new();
    for line in text.trim_start_matches('\u{feff}').lines() {
        let line = line.split('#').next().unwrap_or_default();
        let mut words = line.split_ascii_whitespace();
        let Some(Ok(addr)) = words.next().map(str::parse::<IpAddr>) else { continue };
        let addr = addr.to_canonical();
        for name in words {
            let addrs = hosts.entry(name.trim_end_matches('.').to_ascii_lowercase()).or_default();
            if !addrs.contains(&addr) {
                addrs.push(addr);
            }
        }
    }
    hosts
}

impl std::fmt::Debug for Settings {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let servers: Vec<IpAddr> = self.servers.iter().map(|server| server.addr).collect();
        f.debug_struct("Settings")
            .field("servers", &servers)
            .field("search", &self.search)
            .field("ndots", &self.ndots)
            .field("hosts", &self.hosts.len())
            .finish_non_exhaustive()
    }
}
