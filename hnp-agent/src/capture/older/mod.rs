//! Destroys flows to strict destinations that were there before these were captured, where the operator
//! asked for it.
//!
//! The guard resets such a flow when it next sends. This does it at once, also where no guard can stand,
//! by sock_diag(7) in each pod's network namespace: entering one takes CAP_SYS_ADMIN, finding it among the
//! processes of others CAP_SYS_PTRACE and the node's pids. The agent's own namespace is left alone: what
//! the agent itself has open to the same address is there.

mod diag;

use std::collections::HashMap;
use std::fs::{self, File};
use std::io;
use std::os::unix::fs::MetadataExt as _;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::thread;

use nix::sched::{CloneFlags, setns};

use super::cgroups;
use crate::config::plan::AddrRange;

/// How deep below the attached cgroup processes are looked for: pods' containers may nest.
const DEPTH: usize = 8;

/// Destroys older flows when what is strict changes.
#[derive(Debug, Default)]
pub(super) struct OlderFlows {
    /// What was strict the last time.
    strict: Vec<AddrRange>,
    destroyed: Arc<AtomicU64>,
}

impl OlderFlows {
    /// Destroys, on a thread of its own, the flows of all pods below `cgroup` to what has become strict.
    pub(super) fn strict_now(&mut self, cgroup: &Path, mut strict: Vec<AddrRange>) {
        strict.sort_unstable();
        let added: Vec<_> = strict.iter().filter(|range| !self.strict.contains(range)).copied().collect();
        self.strict = strict;
        self.destroy(cgroup, added);
    }

    /// The pods are below another cgroup now, and what they did meanwhile is not known.
    pub(super) fn all_anew(&self, cgroup: &Path) {
        self.destroy(cgroup, self.strict.clone());
    }

    /// How many were destroyed.
    pub(super) fn destroyed(&self) -> u64 {
        self.destroyed.load(Relaxed)
    }

    fn destroy(&self, cgroup: &Path, ranges: Vec<AddrRange>) {
        if ranges.is_empty() {
            return;
        }
        let (cgroup, destroyed) = (cgroup.to_owned(), self.destroyed.clone());
        let work = move || {
            let Found { count, namespaces, failed } = destroy_below(&cgroup, &ranges);
            destroyed.fetch_add(count, Relaxed);
            tracing::info!(flows = count, namespaces, "flows older than their capture destroyed");
            if let Some(error) = failed {
                tracing::warn!(%error, "older flows stay in some pods; the guard resets them, where it stands");
            }
        };
        if let Err(error) = thread::Builder::new().name("older-flows".into()).spawn(work) {
            tracing::warn!(%error, "older flows stay: no thread");
        }
    }
}

#[derive(Default)]
struct Found {
    count: u64,
    namespaces: usize,
    /// The first thing that failed; the others were tried all the same.
    failed: Option<String>,
}

/// Changes the network namespace of the thread that calls.
fn destroy_below(cgroup: &Path, ranges: &[AddrRange]) -> Found {
    let mut found = Found::default();
    let (namespaces, failed) = namespaces_below(cgroup);
    found.failed = failed;
    for namespace in namespaces.into_values() {
        found.namespaces += 1;
        let done = setns(&namespace.file, CloneFlags::CLONE_NEWNET)
            .map_err(|error| format!("cannot enter the network namespace of pid {}: {error}", namespace.pid))
            .and_then(|()| {
                let (count, failed) =
                    diag::destroy(&|remote| ranges.iter().any(|range| range.contains(remote)));
                found.count += count;
                let say = |error| format!("sock_diag in the namespace of pid {}: {error}", namespace.pid);
                failed.map_or(Ok(()), |error| Err(say(error)))
            });
        if let Err(error) = done {
            found.failed.get_or_insert(error);
        }
    }
    found
}

struct Namespace {
    file: File,
    pid: u32,
}

/// The network namespaces of all processes below a cgroup, by device and inode; not the agent's own. And what
/// could not be looked at.
fn namespaces_below(cgroup: &Path) -> (HashMap<(u64, u64), Namespace>, Option<String>) {
    let (mut found, mut failed) = (HashMap::new(), None);
    let own = match fs::metadata("/proc/self/ns/net") {
        Ok(own) => (own.dev(), own.ino()),
        Err(error) => return (found, Some(format!("/proc/self/ns/net: {error}"))),
    };
    cgroups::walk(cgroup, DEPTH, &mut |dir| {
        let procs = dir.join("cgroup.procs");
        let pids = match fs::read_to_string(&procs) {
            Ok(pids) => pids,
            Err(error) if error.kind() == io::ErrorKind::NotFound => String::new(),
            Err(error) => {
                failed = Some(format!("{}: {error}", procs.display()));
                String::new()
            }
        };
        for pid in pids.lines().filter_map(|line| line.parse::<u32>().ok()) {
            if pid == 0 {
                let what =
                    "pods' processes are not seen from here: the agent needs the node's pids (hostPID)";
                failed = Some(what.to_owned());
                continue;
            }
            match open(pid) {
                Ok((key, _)) if key == own => {}
                Ok((key, file)) => drop(found.entry(key).or_insert(Namespace { file, pid })),
                // It has ended.
                Err(error) if error.kind() == io::ErrorKind::NotFound => {}
                Err(error) => failed = Some(format!("/proc/{pid}/ns/net: {error} (CAP_SYS_PTRACE?)")),
            }
        }
        true
    });
    (found, failed)
}

fn open(pid: u32) -> io::Result<((u64, u64), File)> {
    let file = File::open(format!("/proc/{pid}/ns/net"))?;
    let meta = file.metadata()?;
    Ok(((meta.dev(), meta.ino()), file))
}
