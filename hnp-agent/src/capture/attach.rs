//! Loads the programs, attaches them to the cgroup and pins what must outlive the agent.
//!
//! New programs are attached before a dead agent's are removed, so that there is no moment in which a
//! destination is open. Both run in a row for that moment, the dead agent's first. Each knows its own
//! sockets only, so a connection made just then looks to the new ones as if the pod had dialled the VIP:
//! it is served and marked direct, or refused where the two agents' ports or VIP ranges differ.

use std::io;
use std::os::fd::{AsFd as _, BorrowedFd, OwnedFd};

use aya::maps::{Map, MapData};
use aya::programs::{Program, ProgramError};
use aya::{Ebpf, EbpfLoader};
use hnp_common::layout::Config;

use super::Ranges;
use super::cgroups::Cgroup;
use super::error::CaptureError;
use super::exempt;
use super::pins::Lock;
use super::preflight::Node;
use super::sys;
use crate::config::plan;

/// Every program, and where it hangs (`enum bpf_attach_type` of linux/bpf.h). connect comes last: what
/// it redirects, the others must know by then.
const PROGRAMS: [(&str, u32); 9] = [
    ("hnp_bind4", 8),
    ("hnp_bind6", 9),
    ("hnp_getpeername4", 29),
    ("hnp_getpeername6", 30),
    ("hnp_sendmsg4", 14),
    ("hnp_sendmsg6", 15),
    ("hnp_sock_ops", 3),
    ("hnp_connect4", 10),
    ("hnp_connect6", 11),
];

/// The object in the kernel, attached to nothing yet. Dropping it unloads it.
pub(super) struct Loaded {
    pub(super) ebpf: Ebpf,
}

impl Loaded {
    /// Creates the maps and has the verifier look at every program.
    pub(super) fn load(
        object: &[u8],
        node: &Node,
        plan: &plan::Capture,
        ranges: Ranges,
    ) -> Result<Self, CaptureError> {
        let config = Config {
            attached_cgroup: node.cgroup.id,
            agent_netns: node.netns_cookie.unwrap_or(0),
            vips4: ranges.v4,
            vips6: ranges.v6,
            connections_per_pod: plan.connections_per_pod,
            agent_port: plan.port.to_be(),
            has_set_retval: node.has_set_retval.into(),
            pad: 0,
        };
        let mut ebpf = EbpfLoader::new()
            // The programs read no kernel structure, so the kernel's own types are not needed.
            .btf(None)
            .override_global("CONFIG", &config, true)
            .load(object)
            .map_err(|source| CaptureError::Load(Box::new(source)))?;
        for (name, _) in PROGRAMS {
            let program = ebpf.program_mut(name).ok_or(CaptureError::ObjectLacks(name))?;
            let loaded = match program {
                Program::CgroupSockAddr(program) => program.load(),
                Program::SockOps(program) => program.load(),
                _ => Err(ProgramError::UnexpectedProgramType),
            };
            loaded.map_err(|error| refused(name, error))?;
        }
        let loaded = Self { ebpf };
        if let Some(cgroup) = node.own_cgroup {
            exempt::insert(loaded.map(exempt::MAP)?, cgroup)?;
        }
        Ok(loaded)
    }

    /// A handle of its own to a map.
    pub(super) fn map(&self, name: &'static str) -> Result<Map, CaptureError> {
        let fd = map_fd(self.ebpf.map(name).ok_or(CaptureError::ObjectLacks(name))?)
            .ok_or(CaptureError::ObjectLacks(name))?
            .try_clone_to_owned()
            .map_err(|source| CaptureError::Map { doing: "open", map: name, source: io_error(source) })?;
        MapData::from_fd(fd).and_then(Map::from_map_data).map_err(|source| CaptureError::Map {
            doing: "open",
            map: name,
            source,
        })
    }

    /// Attaches every program, takes over from a dead agent and pins.
    pub(super) fn attach(self, cgroup: &Cgroup, lock: &mut Lock) -> Result<Attachment, CaptureError> {
        let mut links = Vec::with_capacity(PROGRAMS.len());
        for (name, attach_type) in PROGRAMS {
            let link = self.link(name, attach_type, cgroup).map_err(|source| CaptureError::Attach {
                program: name,
                cgroup: cgroup.path.clone(),
                source,
            })?;
            links.push(Link { program: name, fd: link });
        }
        let attachment = Attachment { links };
        lock.make_room()?;
        attachment.pin(&self.ebpf, lock)?;
        lock.replace_pins()?;
        Ok(attachment)
    }

    fn link(&self, name: &str, attach_type: u32, cgroup: &Cgroup) -> io::Result<OwnedFd> {
        let program = self.ebpf.program(name).ok_or(io::ErrorKind::NotFound)?;
        let fd = match program {
            Program::CgroupSockAddr(program) => program.fd(),
            Program::SockOps(program) => program.fd(),
            _ => Err(ProgramError::UnexpectedProgramType),
        };
        sys::link_to_cgroup(fd.map_err(io::Error::other)?.as_fd(), cgroup.dir.as_fd(), attach_type)
    }
}

/// The attached programs. Dropping it detaches them at once, pinned or not.
pub(super) struct Attachment {
    links: Vec<Link>,
}

struct Link {
    program: &'static str,
    fd: OwnedFd,
}

impl Attachment {
    fn pin(&self, ebpf: &Ebpf, lock: &Lock) -> Result<(), CaptureError> {
        for link in &self.links {
            let path = lock.new_link(link.program);
            sys::pin(link.fd.as_fd(), &path).map_err(|source| CaptureError::Pin { path, source })?;
        }
        for (name, map) in ebpf.maps() {
            // The programs' read-only data and the log are of no use to a successor.
            let (Some(fd), false) = (map_fd(map), name.starts_with('.') || name == "AYA_LOGS") else {
                continue;
            };
            let path = lock.new_map(name);
            sys::pin(fd, &path).map_err(|source| CaptureError::Pin { path, source })?;
        }
        Ok(())
    }
}

impl Drop for Attachment {
    fn drop(&mut self) {
        // In the reverse order, so that nothing is redirected that the others do not know.
        for link in self.links.drain(..).rev() {
            // A link that is gone with its cgroup cannot be detached and need not be.
            if let Err(error) = sys::link_detach(link.fd.as_fd()) {
                tracing::debug!(program = link.program, %error, "link was not attached any more");
            }
        }
    }
}

/// The verifier says everything it looked at; why it refused comes last.
fn refused(program: &'static str, error: ProgramError) -> CaptureError {
    const LAST_LINES: usize = 12;
    match error {
        ProgramError::LoadError { io_error, verifier_log } => {
            let log = verifier_log.to_string();
            let lines: Vec<_> = log.lines().filter(|line| !line.is_empty()).collect();
            let words = lines[lines.len().saturating_sub(LAST_LINES)..].join("\n");
            CaptureError::Verify { program, words, source: io_error }
        }
        other => CaptureError::Verify { program, words: String::new(), source: io::Error::other(other) },
    }
}

fn io_error(error: io::Error) -> aya::maps::MapError {
    aya::maps::MapError::IoError(error)
}

/// The descriptor of the kinds of maps that the object has.
fn map_fd(map: &Map) -> Option<BorrowedFd<'_>> {
    match map {
        Map::Array(data)
        | Map::HashMap(data)
        | Map::LruHashMap(data)
        | Map::PerCpuArray(data)
        | Map::RingBuf(data)
        | Map::SkStorage(data) => Some(data.fd().as_fd()),
        _ => None,
    }
}
