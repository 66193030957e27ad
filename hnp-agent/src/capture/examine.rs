//! Looks at a node as it is: what its kernel has and lacks, what is attached, and whether anybody serves.
//! Touches nothing; works beside a running agent and without one.

use std::fs;
use std::io;
use std::net::{IpAddr, Ipv6Addr, TcpListener};
use std::os::fd::AsFd as _;
use std::os::unix::fs::MetadataExt as _;
use std::path::Path;

use aya::maps::{Array, HashMap, Map, MapData, MapError};
use aya::programs::ProgramType;
use aya::sys::{BpfHelper, is_helper_supported};
use hnp_common::layout::{Destination, DestinationKey, Heartbeat, enforcement};

use super::attach;
use super::former::Former;
use super::{CaptureError, Node, anyip, foreign, guard, pins, sys};
use crate::clock::monotonic_ns;
use crate::config::plan::{self, Plan, Target};
use crate::finding::{Finding, State};

/// Looks at everything capture depends on.
pub fn examine(whole: &Plan) -> Vec<Finding> {
    let mut findings = Vec::new();
    let plan = &whole.capture;
    if plan.mode == plan::CaptureMode::Off {
        let detail = "off in this configuration: nothing of this node's kernel is needed";
        return vec![Finding::new("node", "capture", State::Good, detail)];
    }
    let node = match Node::check(plan) {
        Ok(node) => {
            findings.push(Finding::new(
                "node",
                "cgroup",
                State::Good,
                node.cgroup.path.display().to_string(),
            ));
            Some(node)
        }
        Err(CaptureError::Preflight(missing)) => {
            for lack in missing {
                let detail = format!("needed: {}; do: {}", lack.why, lack.fix);
                findings.push(Finding::new("node", lack.what, State::Bad, detail));
            }
            None
        }
        Err(error) => {
            findings.push(Finding::new("node", "check", State::Bad, error.to_string()));
            None
        }
    };
    findings.extend(kernel());
    if let Some(node) = &node
        && let Err(error) = foreign::check(
            &node.cgroup,
            attach::programs(plan).into_iter().map(|(_, attach_type)| attach_type),
        )
    {
        findings.push(Finding::new("node", "other programs", State::Bad, error.to_string()));
    }
    findings.extend(programs(plan, node.as_ref()));
    findings.extend(vips(plan));
    findings.extend(guard(whole));
    findings.extend(agent(&plan.bpffs));
    findings.extend(destinations(&plan.bpffs));
    findings
}

/// What kernels lack that there is another way for; each with what follows.
fn kernel() -> Vec<Finding> {
    let hook = ProgramType::CgroupSockAddr;
    let set_retval = matches!(is_helper_supported(hook, BpfHelper::BPF_FUNC_set_retval), Ok(true));
    let features = [
        (
            "bpf_set_retval (Linux 5.18)",
            set_retval,
            "a refused connect() is sent to a closed port of the caller's own loopback, which gives the same \
             ECONNREFUSED; a refused datagram gives EPERM instead",
        ),
        (
            "network namespace cookies (Linux 5.14)",
            sys::netns_cookie().is_ok(),
            "the agent's port is kept from every process below kubepods, also in network namespaces of their own",
        ),
    ];
    let finding = |(what, there, without): (&str, bool, &str)| {
        let (state, detail) = if there { (State::Good, "there") } else { (State::Degraded, without) };
        Finding::new("kernel", what, state, detail)
    };
    features.map(finding).into()
}

fn programs(plan: &plan::Capture, node: Option<&Node>) -> Vec<Finding> {
    let link = |program: &str| plan.bpffs.join("links").join(program);
    let programs = attach::programs(plan);
    if !programs.iter().any(|(program, _)| link(program).exists()) {
        let detail = "none is pinned: nothing is enforced on this node";
        return vec![Finding::new("programs", "links", State::Degraded, detail)];
    }
    let look = |(program, _): (&'static str, u32)| {
        let info = match sys::open_pin(&link(program)).map(|fd| fd.map(|fd| sys::link_info(fd.as_fd()))) {
            Ok(Some(Ok(info))) => info,
            Ok(None) => {
                return Finding::new("programs", program, State::Bad, "not pinned: restart the agent");
            }
            Ok(Some(Err(error))) | Err(error) => {
                return Finding::new(
                    "programs",
                    program,
                    State::Bad,
                    format!("cannot be looked at: {error}"),
                );
            }
        };
        let here = node.map(|node| (node.cgroup.id, node.cgroup.path.display().to_string()));
        match here {
            Some((id, path)) if id == info.cgroup_id => Finding::new(
                "programs",
                program,
                State::Good,
                format!("program {} on {path}", info.program_id),
            ),
            _ if info.cgroup_id == 0 => {
                let detail = "its cgroup is gone: it sees nothing. The agent attaches anew within a second; is it running?";
                Finding::new("programs", program, State::Bad, detail)
            }
            _ => {
                let detail = format!("hangs on another cgroup ({}) than the one pods are in", info.cgroup_id);
                Finding::new("programs", program, State::Bad, detail)
            }
        }
    };
    programs.into_iter().map(look).collect()
}

/// Whether what is sent to a VIP comes to this node, whoever sees to that.
fn vips(plan: &plan::Capture) -> Vec<Finding> {
    let wanted = plan.bpffs.join("links").exists();
    let routes = anyip::all().unwrap_or_default();
    let look = |range: plan::Cidr| {
        let what = format!("route of {range}");
        // Where somebody else made an IPv4 range local, sockets can have its addresses.
        let local = || TcpListener::bind((range.addr, 0)).map(drop);
        match if routes.contains(&anyip::network(range)) { Ok(()) } else { local() } {
            Ok(()) => Finding::new("vips", what, State::Good, "there: the addresses are this node's own"),
            Err(error) if range.addr.is_ipv6() && !has_ipv6() => {
                Finding::new("vips", what, State::Skipped, format!("this node has no IPv6 ({error})"))
            }
            Err(error) if wanted => Finding::new(
                "vips",
                what,
                State::Bad,
                format!("missing ({error}): what is redirected there meets nobody and is refused"),
            )
            .next("restart the agent, which makes it; look who removes local routes (ip route show table local)"),
            Err(_) => Finding::new("vips", what, State::Skipped, "not there; the agent makes it when it starts"),
        }
    };
    [plan.vips4, plan.vips6].map(look).into()
}

fn has_ipv6() -> bool {
    TcpListener::bind((Ipv6Addr::LOCALHOST, 0)).is_ok()
}

/// The addresses of destinations: what is captured, and the first of each range.
fn guarded(whole: &Plan) -> Vec<IpAddr> {
    let map = open::<HashMap<MapData, DestinationKey, Destination>>(&whole.capture.bpffs, "DESTINATIONS");
    let captured = map.into_iter().flat_map(|map| map.keys().flatten().collect::<Vec<_>>());
    let ranges = whole.routes.iter().flat_map(|route| &route.destinations);
    let ranges = ranges.filter_map(|destination| match &destination.target {
        Target::Net(net) => Some(net.addr),
        Target::Name(_) => None,
    });
    captured.map(|key| IpAddr::from(key.address)).chain(ranges).collect()
}

/// What passes no socket hook, and what was there before.
fn guard(whole: &Plan) -> Vec<Finding> {
    let plan = &whole.capture;
    let wanted = !whole.strict_routes().is_empty();
    let (state, detail) = match plan.guard {
        plan::Guard::Off => {
            (State::Degraded, "off: sockets that pass no connect() under kubepods go direct".to_owned())
        }
        plan::Guard::Auto if !wanted => {
            (State::Good, "not attached: no route is strict for every pod".to_owned())
        }
        plan::Guard::Auto => veths(guard::look(&pins::guard_dir(&plan.bpffs), &guarded(whole))),
    };
    let mut findings = vec![Finding::new("guard", "pods' veths", state, detail)];
    if wanted {
        let (state, detail) = match (plan.destroy_older_flows, plan.guard) {
            (true, _) => {
                (State::Good, "destroyed at once, by sock_diag, when the agent captures a destination")
            }
            // As good as the guard is.
            (false, plan::Guard::Auto) => (state, "reset by the guard with their next packet"),
            (false, plan::Guard::Off) => (
                State::Degraded,
                "go on in the clear: set capture.guard: auto, or capture.destroy_older_flows: true",
            ),
        };
        findings.push(Finding::new("guard", "older flows", state, detail));
    }
    findings
}

fn veths(looked: io::Result<guard::Look>) -> (State, String) {
    let guard::Look { held, by_link, open } = match looked {
        Ok(look) => look,
        Err(error) => return (State::Bad, format!("cannot be looked at: {error}")),
    };
    if !open.is_empty() {
        let open = open.join(", ");
        return (
            State::Bad,
            format!("not on {open}: is the agent running, in the node's network namespace?"),
        );
    }
    let way = if by_link == held { "tcx" } else { "clsact" };
    (State::Good, if held == 0 { "no pod's veth is here".into() } else { format!("{held} veths, by {way}") })
}

fn agent(bpffs: &Path) -> Vec<Finding> {
    let mut findings = Vec::new();
    if let Ok(former) = Former::open(bpffs)
        && !former.is_empty()
    {
        findings.push(Finding::new("agent", "pinned by version", State::Good, former.version()));
    }
    let running = fs::metadata(bpffs).is_ok_and(|meta| pins::is_locked(meta.ino()));
    let stamp = open::<Array<MapData, Heartbeat>>(bpffs, "HEARTBEAT").and_then(|map| map.get(&0, 0).ok());
    let (state, detail) = match stamp {
        None => (State::Degraded, "no agent has run since the last boot or cleanup".to_owned()),
        Some(Heartbeat { stamp_ns: 0, .. }) => {
            (State::Bad, "no agent serves: strict destinations are refused, loose ones direct".to_owned())
        }
        Some(Heartbeat { stamp_ns, limit_ns }) => {
            let age = monotonic_ns().saturating_sub(stamp_ns);
            let words = format!("{} ms old, {} ms are allowed", age / 1_000_000, limit_ns / 1_000_000);
            if age <= limit_ns {
                (State::Good, words)
            } else {
                (State::Bad, format!("{words}: strict destinations are refused, loose ones direct"))
            }
        }
    };
    findings.push(Finding::new("agent", "heartbeat", state, detail));
    let (state, detail) =
        if running { (State::Good, "held") } else { (State::Degraded, "free: no agent is running") };
    findings.push(Finding::new("agent", "lock", state, detail));
    findings
}

fn destinations(bpffs: &Path) -> Vec<Finding> {
    let Some(map) = open::<HashMap<MapData, DestinationKey, Destination>>(bpffs, "DESTINATIONS") else {
        return Vec::new();
    };
    let all: Vec<_> = map.iter().flatten().map(|(_, destination)| destination.enforcement).collect();
    let strict = all.iter().filter(|number| **number == enforcement::STRICT).count();
    let detail = format!("{} addresses, {strict} of them strict", all.len());
    vec![Finding::new("destinations", "captured", State::Good, detail)]
}

/// A pinned map, if it is there and of this build's shape.
fn open<T: TryFrom<Map, Error = MapError>>(bpffs: &Path, name: &str) -> Option<T> {
    let data = MapData::from_pin(pins::maps_dir(bpffs).join(name)).ok()?;
    T::try_from(Map::from_map_data(data).ok()?).ok()
}
