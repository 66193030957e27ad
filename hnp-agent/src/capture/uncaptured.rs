//! Open connections of pods to destinations that passed no capture: made before it, while no agent answered, or on a
//! socket that connect() never saw.
//!
//! Read from proc_pid_net(5) of a process in each pod's network namespace: it takes no capability and enters no
//! namespace, but the node's pids must be seen (`hostPID`). A captured connection stands there with its VIP. The
//! agent's own namespace is left out: what the agent itself has open to the same address is there.

use std::collections::{BTreeMap, HashSet};
use std::fs;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use super::cgroups;
use crate::config::plan::AddrRange;

/// How deep below the attached cgroup processes are looked for: pods' containers may nest.
const DEPTH: usize = 8;
/// How long a look takes at most; the kernel goes through all sockets of the node for each namespace.
const PATIENCE: Duration = Duration::from_secs(2);
/// How many rows a look brings at most.
const ROWS: usize = 1024;

/// Open connections of one pod to one destination.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Uncaptured {
    /// What was dialled.
    pub destination: SocketAddr,
    /// The names of the routes it belongs to.
    pub routes: Vec<Arc<str>>,
    /// A cgroup of the pod.
    pub cgroup_id: u64,
    /// Its ancestors one and two levels below the attached cgroup, itself among them; 0 where there is none.
    pub ancestor_ids: [u64; 2],
    /// How many.
    pub open: u64,
}

/// What a look has found.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub struct Look {
    /// All that was found.
    pub found: Vec<Uncaptured>,
    /// In how many network namespaces it was looked.
    pub namespaces: u64,
    /// Why some were not looked into.
    pub missed: Option<String>,
}

/// Where to look, and for what.
#[derive(Clone, Debug)]
pub struct Looking {
    pub(super) cgroup: PathBuf,
    pub(super) destinations: Vec<(AddrRange, Vec<Arc<str>>)>,
}

impl Looking {
    /// Looks. Blocks for as long as the kernel takes, and two seconds or so at most.
    pub fn look(&self) -> Look {
        let until = Instant::now() + PATIENCE;
        let mut look = Look::default();
        // The entry of a network namespace's table has an inode of its own, which all its processes see.
        let mut seen: HashSet<u64> = inode(Path::new("/proc/self/net/tcp")).into_iter().collect();
        cgroups::walk(&self.cgroup, DEPTH, &mut |dir| {
            let Ok(processes) = fs::read_to_string(dir.join("cgroup.procs")) else { return true };
            for pid in processes.lines() {
                if pid == "0" {
                    look.missed = Some("pods' processes are not seen from here (hostPID)".to_owned());
                    continue;
                }
                let net = Path::new("/proc").join(pid).join("net");
                // It may have ended.
                let Some(table) = inode(&net.join("tcp")) else { continue };
                if seen.contains(&table) {
                    continue;
                }
                if Instant::now() >= until || look.found.len() >= ROWS {
                    look.missed = Some("there is too much to look at".to_owned());
                    return false;
                }
                seen.insert(table);
                look.namespaces += 1;
                self.look_into(&net, dir, &mut look.found);
            }
            true
        });
        look
    }

    fn look_into(&self, net: &Path, dir: &Path, found: &mut Vec<Uncaptured>) {
        let mut open: BTreeMap<SocketAddr, u64> = BTreeMap::new();
        for table in ["tcp", "tcp6"] {
            let text = fs::read_to_string(net.join(table)).unwrap_or_default();
            let remotes = text.lines().filter_map(remote).filter(|remote| self.routes_to(*remote).is_some());
            remotes.for_each(|remote| *open.entry(remote).or_default() += 1);
        }
        let ids = self.ids(dir);
        found.extend(open.into_iter().map(|(destination, open)| Uncaptured {
            destination,
            routes: self.routes_to(destination).cloned().unwrap_or_default(),
            cgroup_id: inode(dir).unwrap_or(0),
            ancestor_ids: ids,
            open,
        }));
    }

    fn routes_to(&self, remote: SocketAddr) -> Option<&Vec<Arc<str>>> {
        let around = self.destinations.iter().filter(|(range, _)| range.contains(remote));
        around.max_by_key(|(range, _)| range.net.prefix).map(|(_, routes)| routes)
    }

    fn ids(&self, dir: &Path) -> [u64; 2] {
        let below = dir.strip_prefix(&self.cgroup).unwrap_or(Path::new(""));
        let mut at = self.cgroup.clone();
        let mut ids = below.components().map(|name| {
            at.push(name);
            inode(&at).unwrap_or(0)
        });
        [ids.next().unwrap_or(0), ids.next().unwrap_or(0)]
    }
}

fn inode(path: &Path) -> Option<u64> {
    fs::metadata(path).ok().map(|meta| meta.ino())
}

/// The remote end of a line of /proc/net/tcp or tcp6, where it is a connection that can carry something: ESTABLISHED (1)
/// or CLOSE_WAIT (8) of include/net/tcp_states.h.
fn remote(line: &str) -> Option<SocketAddr> {
    let mut fields = line.split_whitespace().skip(2);
    let (remote, state) = (fields.next()?, fields.next()?);
    if !["01", "08"].contains(&state) {
        return None;
    }
    let (address, port) = remote.split_once(':')?;
    // Words as the kernel has them in memory, printed as numbers.
    let word = |at: usize| Some(u32::from_str_radix(address.get(at..at + 8)?, 16).ok()?.to_ne_bytes());
    let ip = match address.len() {
        8 => IpAddr::V4(Ipv4Addr::from(word(0)?)),
        32 => {
            let mut octets = [0; 16];
            for (index, bytes) in octets.chunks_exact_mut(4).enumerate() {
                bytes.copy_from_slice(&word(index * 8)?);
            }
            IpAddr::V6(Ipv6Addr::from(octets)).to_canonical()
        }
        _ => return None,
    };
    Some(SocketAddr::new(ip, u16::from_str_radix(port, 16).ok()?))
}

#[cfg(test)]
mod tests {
    use std::net::{TcpListener, TcpStream};

    use super::*;

    /// What this process sees of its own connections.
    fn remotes(table: &str) -> Vec<SocketAddr> {
        fs::read_to_string(format!("/proc/self/net/{table}")).unwrap().lines().filter_map(remote).collect()
    }

    #[test]
    fn open_connections_are_read_as_they_were_dialled_and_listeners_are_none() {
        for (at, table) in [("127.0.0.1:0", "tcp"), ("[::1]:0", "tcp6")] {
            let listener = TcpListener::bind(at).unwrap();
            let addr = listener.local_addr().unwrap();
            assert!(!remotes(table).contains(&addr), "the control: nobody has dialled it yet");
            let stream = TcpStream::connect(addr).unwrap();
            assert!(remotes(table).contains(&addr), "{addr}");
            drop(stream);
        }
        // A mapped address is the one that was meant.
        let mapped = "0: 0000000000000000FFFF00000A00000A:1F90 0000000000000000FFFF0000090012C6:0050 01 x";
        if cfg!(target_endian = "little") {
            assert_eq!(remote(mapped), Some("198.18.0.9:80".parse().unwrap()));
            assert_eq!(remote(&mapped.replace(" 01 ", " 06 ")), None, "TIME_WAIT");
        }
        for nonsense in ["", "sl local_address rem_address st", "0: x:1 zz:0050 01", "0: x:1 090012C6 01"] {
            assert_eq!(remote(nonsense), None, "{nonsense}");
        }
    }
}
