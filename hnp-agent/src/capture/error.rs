//! What can go wrong between the agent and the kernel. Each message says what to do about it.

use std::fmt;
use std::io;
use std::path::PathBuf;

use aya::maps::MapError;

use super::foreign::Foreign;
use crate::config::plan::AddrRange;

/// A failed step of [`Capture`](super::Capture).
#[derive(Debug, thiserror::Error)]
pub enum CaptureError {
    /// The agent was built without an object to load.
    #[error("built without the BPF programs: cargo xtask build-ebpf, then build again")]
    NotBuiltIn,
    /// The node lacks something; all of it is listed.
    #[error("this node lacks what capture needs:{}", List(.0))]
    Preflight(Vec<Missing>),
    /// Another agent uses the same pins.
    #[error(
        "another agent is running on this node: {} holds {}. Stop it first, or have this one take over \
         (--take-over)",
        Holder(*.pid),
        dir.display()
    )]
    Locked {
        /// The directory that is locked.
        dir: PathBuf,
        /// Who holds it, where that can be seen from here.
        pid: Option<u32>,
    },
    /// The running agent's lock is on another directory.
    #[error("the running agent's pins are not in {}: `capture.bpffs` must be the same for both", dir.display())]
    OtherPins {
        /// The directory of this agent's configuration.
        dir: PathBuf,
    },
    /// The running agent's programs and these cannot work on the same sockets.
    #[error(
        "the programs of the running agent (hnp-agent {version}) cannot be replaced in place by those of this \
         version: stop the running agent, then start this one"
    )]
    OtherSchema {
        /// The version of the running agent.
        version: String,
    },
    /// The running agent has another set of programs attached, which it could not put back.
    #[error(
        "capture.raw_sockets is another than the running agent's, and a take-over cannot change it: stop the running \
         agent, then start this one"
    )]
    OtherPrograms,
    /// A successor is taking over: what the kernel captures is not to be changed.
    #[error("a successor is taking over; trying again if it does not")]
    HandingOver,
    /// The cgroup was removed, with every link to it, and perhaps made again.
    #[error(
        "the cgroup {} was replaced: nothing is captured; the agent ends, and the next start attaches to \
         the new one",
        path.display()
    )]
    CgroupReplaced {
        /// Its directory.
        path: PathBuf,
    },
    /// The object was refused as a whole.
    #[error("the kernel refused the BPF object; the cause says which map or relocation")]
    Load(#[source] Box<aya::EbpfError>),
    /// The object lacks something that this agent expects in it.
    #[error("the embedded BPF object has no {0}: cargo xtask build-ebpf, then build again")]
    ObjectLacks(&'static str),
    /// A program was refused by the verifier.
    #[error("the kernel refused to load {program}; the verifier's last words:\n{words}")]
    Verify {
        /// The program's name.
        program: &'static str,
        /// The end of the verifier's log.
        words: String,
        /// The kernel's answer.
        #[source]
        source: io::Error,
    },
    /// A program could not be attached.
    #[error(
        "cannot attach {program} to {}; is a program without a multi-attach flag on one of its parents? \
         (bpftool cgroup tree)",
        cgroup.display()
    )]
    Attach {
        /// The program's name.
        program: &'static str,
        /// The cgroup.
        cgroup: PathBuf,
        /// The kernel's answer.
        #[source]
        source: io::Error,
    },
    /// Somebody else's programs and ours cannot both be there.
    #[error(
        "programs of somebody else cannot run beside hnp's:{}\n      do: have their owner attach them with \
         BPF_F_ALLOW_MULTI or as a link, or take them off",
        Lines(.0)
    )]
    Foreign(Vec<Foreign>),
    /// A thread could not be made.
    #[error("cannot start the thread {name:?}")]
    Thread {
        /// Its name.
        name: &'static str,
        /// The kernel's answer.
        #[source]
        source: io::Error,
    },
    /// A link or map could not be pinned.
    #[error("cannot pin {}; is it on a writable bpffs?", path.display())]
    Pin {
        /// The pin.
        path: PathBuf,
        /// The kernel's answer.
        #[source]
        source: io::Error,
    },
    /// A file or directory could not be worked on.
    #[error("cannot {doing} {}", path.display())]
    File {
        /// What was being done.
        doing: &'static str,
        /// To what.
        path: PathBuf,
        /// The kernel's answer.
        #[source]
        source: io::Error,
    },
    /// The route that makes a VIP range local could not be changed.
    #[error("cannot {doing} the route `local {range} dev lo`; is lo up, and is the range free on this node?")]
    Route {
        /// `add` or `remove`.
        doing: &'static str,
        /// The VIP range.
        range: String,
        /// The kernel's answer.
        #[source]
        source: io::Error,
    },
    /// The routes of VIP ranges could not be worked on as a whole.
    #[error("cannot {doing} the routes of VIP ranges (ip route show table local proto 119)")]
    Routes {
        /// `list` or `remove`.
        doing: &'static str,
        /// The kernel's answer.
        #[source]
        source: io::Error,
    },
    /// A map could not be read or written.
    #[error("cannot {doing} the kernel's map {map}")]
    Map {
        /// What was being done.
        doing: &'static str,
        /// The map's name.
        map: &'static str,
        /// The kernel's answer.
        #[source]
        source: MapError,
    },
    /// A strict route wants the guard, and the kernel has no way for it.
    #[error(
        "{} cannot be kept: the guard on pods' veths cannot be attached ({why}). Load the modules sch_ingress \
         and cls_bpf (modprobe -a sch_ingress cls_bpf), or use Linux 6.6 or newer; or promise less: \
         `enforcement: loose` for the route, or `capture.guard: off`, and what passes no connect() under \
         kubepods (lent and raw sockets, older flows) goes direct",
        Strict(.routes)
    )]
    GuardImpossible {
        /// The names of the routes; none, where it is not known which.
        routes: Vec<String>,
        /// What the kernel said to each way.
        why: String,
    },
    /// The guard could not do something.
    #[error("the guard cannot {doing} {what}")]
    Guard {
        /// What was being done.
        doing: &'static str,
        /// To what.
        what: String,
        /// The kernel's answer.
        #[source]
        source: io::Error,
    },
    /// A destination is itself a VIP: what goes there would come back for ever.
    #[error(
        "the destination {0} lies in a VIP range; give hnp other ranges (`capture.vips4`, `capture.vips6`)"
    )]
    DestinationIsVip(AddrRange),
    /// There are more destinations than VIPs.
    #[error(
        "no VIP is left in {range} for {destination}: {in_use} are in use, {resting} rest for some minutes; widen `capture.{key}` or \
         name fewer destinations"
    )]
    VipsExhausted {
        /// The range that is exhausted.
        range: String,
        /// Its key in the configuration.
        key: &'static str,
        /// The destination that got none.
        destination: AddrRange,
        /// How many VIPs are in use.
        in_use: usize,
        /// How many were given back a short while ago.
        resting: usize,
    },
}

/// One thing that a node lacks.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Missing {
    /// What is missing.
    pub what: String,
    /// Why the agent needs it.
    pub why: &'static str,
    /// What to do.
    pub fix: String,
}

struct Lines<'a, T>(&'a [T]);

impl<T: fmt::Display> fmt::Display for Lines<'_, T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|line| write!(f, "\n  - {line}"))
    }
}

struct Holder(Option<u32>);

impl fmt::Display for Holder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0 {
            Some(pid) => write!(f, "process {pid}"),
            None => f.write_str("a process that cannot be seen from here"),
        }
    }
}

struct Strict<'a>(&'a [String]);

impl fmt::Display for Strict<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0 {
            [] => f.write_str("what strict routes promise"),
            [one] => write!(f, "what the strict route {one:?} promises"),
            several => write!(f, "what the strict routes {several:?} promise"),
        }
    }
}

struct List<'a>(&'a [Missing]);

impl fmt::Display for List<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for Missing { what, why, fix } in self.0 {
            write!(f, "\n  - {what}\n      needed: {why}\n      do: {fix}")?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_strict_route_that_cannot_be_kept_is_named_with_what_to_do() {
        let message = |routes: &[&str]| {
            let routes = routes.iter().map(|route| (*route).to_owned()).collect();
            CaptureError::GuardImpossible { routes, why: "tcx: no; clsact: no".into() }.to_string()
        };
        let one = message(&["manager"]);
        for word in ["\"manager\"", "clsact: no", "sch_ingress", "enforcement: loose", "capture.guard: off"] {
            assert!(one.contains(word), "{word}: {one}");
        }
        assert!(
            message(&["a", "b"]).starts_with("what the strict routes [\"a\", \"b\"] promise cannot be kept")
        );
        assert!(message(&[]).starts_with("what strict routes promise cannot be kept"));
    }
}
