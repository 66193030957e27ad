//! One name, asked of the name servers: search list, both families, one server after the other.
//!
//! resolver(5) and glibc's res_search are the model: the order of the search list, which failures
//! end it, and that a server which cannot answer is no answer.

use std::net::IpAddr;
use std::pin::pin;
use std::sync::atomic::Ordering::Relaxed;
use std::time::Duration;

use hickory_resolver::net::{DnsError, NetError};
use hickory_resolver::proto::rr::{Name, RecordType};
use tokio::time::{Instant, timeout};

use super::ResolveError;
use super::settings::Settings;

/// How long the second family is waited for once the first has addresses: long enough for a server
/// that is slow, short enough for one that drops AAAA queries.
const PATIENCE: Duration = Duration::from_millis(500);

/// What the servers said.
#[derive(Debug)]
pub(super) struct Answer {
    /// Never empty, no address twice, none v4-mapped.
    pub(super) addrs: Vec<IpAddr>,
    /// The shortest on the way to the addresses, aliases included.
    pub(super) ttl: Duration,
    /// One family is missing because it failed, not because it has no record.
    pub(super) partial: bool,
}

/// Why a question has no addresses.
#[derive(Clone, Debug)]
enum No {
    /// A server said so.
    Records,
    /// Servers answered with an error: the next name of the search list may do better.
    Error(String),
    /// No server answered: the others would not either.
    Answer(String),
}

impl Settings {
    /// The addresses of `name` (lower case, no trailing dot).
    pub(super) async fn ask(&self, name: &str) -> Result<Answer, ResolveError> {
        if self.servers.is_empty() {
            return Err(ResolveError::Failed(self.no_servers.clone()));
        }
        let name = Name::from_ascii(name)
            .map_err(|error| ResolveError::Failed(format!("not a DNS name: {error}")))?;
        let mut failed = None;
        for candidate in self.candidates(&name) {
            match self.both_families(&candidate).await {
                Ok(answer) => return Ok(answer),
                Err(No::Records) => {}
                Err(No::Error(why)) => failed = failed.or(Some(why)),
                Err(No::Answer(why)) => return Err(ResolveError::Failed(why)),
            }
        }
        Err(failed.map_or(ResolveError::NotFound, ResolveError::Failed))
    }

    /// The names to ask for, in order (resolver(5), `ndots` and `search`).
    fn candidates(&self, name: &Name) -> Vec<Name> {
        let mut as_written = name.clone();
        as_written.set_fqdn(true);
        let mut names: Vec<Name> = Vec::with_capacity(self.search.len() + 1);
        let dots = usize::from(name.num_labels()).saturating_sub(1);
        if dots >= self.ndots {
            names.push(as_written.clone());
        }
        // A name that becomes too long with a domain is not asked for with it.
        names.extend(self.search.iter().filter_map(|domain| {
            let mut name = name.clone().append_domain(domain).ok()?;
            name.set_fqdn(true);
            Some(name)
        }));
        if dots < self.ndots {
            names.push(as_written);
        }
        names
    }

    async fn both_families(&self, name: &Name) -> Result<Answer, No> {
        let mut a = pin!(self.one_family(name, RecordType::A));
        let mut aaaa = pin!(self.one_family(name, RecordType::AAAA));
        let late = || Err(No::Answer(String::new()));
        let (a, aaaa) = tokio::select! {
            a = &mut a => match a {
                Ok(_) => (a, timeout(PATIENCE, aaaa).await.unwrap_or_else(|_| late())),
                Err(_) => (a, aaaa.await),
            },
            aaaa = &mut aaaa => match aaaa {
                Ok(_) => (timeout(PATIENCE, a).await.unwrap_or_else(|_| late()), aaaa),
                Err(_) => (a.await, aaaa),
            },
        };
        merge(a, aaaa)
    }

    /// Asks one server after the other, the one that answered last first.
    async fn one_family(&self, name: &Name, family: RecordType) -> Result<Answer, No> {
        let first = self.preferred.load(Relaxed);
        let mut failed = No::Answer(String::new());
        for turn in 0..self.servers.len() * self.attempts {
            let index = (first + turn) % self.servers.len();
            let server = &self.servers[index];
            match server.dns.lookup(name.clone(), family).await {
                Ok(lookup) => {
                    self.preferred.store(index, Relaxed);
                    let addrs = lookup.answers().iter().filter_map(|record| record.data.ip_addr());
                    let addrs: Vec<IpAddr> = addrs.map(|addr| addr.to_canonical()).collect();
                    let ttl =
                        Instant::from_std(lookup.valid_until()).saturating_duration_since(Instant::now());
                    return if addrs.is_empty() {
                        Err(No::Records)
                    } else {
                        Ok(Answer { addrs, ttl, partial: false })
                    };
                }
                Err(error) if error.is_no_records_found() => {
                    self.preferred.store(index, Relaxed);
                    return Err(No::Records);
                }
                Err(error) => failed = explain(&error, server.addr),
            }
        }
        Err(failed)
    }
}

fn explain(error: &NetError, server: IpAddr) -> No {
    match error {
        NetError::Dns(DnsError::ResponseCode(code)) => No::Error(format!("name server {server}: {code}")),
        NetError::Timeout => No::Answer(format!("name server {server}: no answer")),
        error => No::Answer(format!("name server {server}: {error}")),
    }
}

fn merge(a: Result<Answer, No>, aaaa: Result<Answer, No>) -> Result<Answer, No> {
    match (a, aaaa) {
        (Ok(a), Ok(aaaa)) => Ok(Answer {
            ttl: a.ttl.min(aaaa.ttl),
            partial: false,
            addrs: without_doubles(a.addrs.into_iter().chain(aaaa.addrs)),
        }),
        (Ok(one), Err(no)) | (Err(no), Ok(one)) => {
            let partial = match no {
                No::Records => false,
                No::Error(_) | No::Answer(_) => true,
            };
            Ok(Answer { addrs: without_doubles(one.addrs.into_iter()), ttl: one.ttl, partial })
        }
        (Err(No::Records), Err(other)) | (Err(other), Err(No::Records)) => Err(other),
        (Err(No::Answer(why)), Err(_)) | (Err(_), Err(No::Answer(why))) => Err(No::Answer(why)),
        (Err(error @ No::Error(_)), Err(No::Error(_))) => Err(error),
    }
}

fn without_doubles(addrs: impl Iterator<Item = IpAddr>) -> Vec<IpAddr> {
    let mut seen = Vec::new();
    for addr in addrs {
        if !seen.contains(&addr) {
            seen.push(addr);
        }
    }
    seen
}
