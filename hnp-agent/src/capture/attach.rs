//! Loads the programs and attaches them to the cgroup: in the place of a former agent's where both can
//! work on the same sockets, else beside them.
//!
//! In place (`BPF_LINK_UPDATE`) no call meets neither or both: each hook changes from one program to the
//! other at once, and the set in any order, because the state they share never changes its layout. Beside,
//! the new programs are attached before the former ones go; both run in a row for that moment, and a
//! connection made just then looks to the new ones as if the pod had dialled the VIP: it is served and
//! marked direct.

use std::collections::HashSet;
use std::io;
use std::os::fd::{AsFd as _, BorrowedFd, OwnedFd};
use std::path::Path;

use aya::maps::{Map, MapData};
use aya::programs::{Program, ProgramError};
use aya::{Ebpf, EbpfLoader};
use hnp_common::layout::Config;

use super::cgroups::Cgroup;
use super::error::CaptureError;
use super::former::{self, Former};
use super::guard::{Guard, Tables};
use super::pins::Lock;
use super::preflight::Node;
use super::{Ranges, exempt, foreign, resting, sys};
use crate::config::plan::{self, RawSockets};

/// Every program that always hangs on the cgroup, and where it hangs (`enum bpf_attach_type` of linux/bpf.h). connect comes last: what
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

/// The one that hangs there only where pods are to have no raw sockets.
const RAW_SOCKETS: (&str, u32) = ("hnp_sock_create", 2);

/// All that may hang there.
pub(super) fn all_programs() -> impl DoubleEndedIterator<Item = (&'static str, u32)> {
    [RAW_SOCKETS].into_iter().chain(PROGRAMS)
}

/// Those that are to hang there.
pub(super) fn programs(plan: &plan::Capture) -> Vec<(&'static str, u32)> {
    let is_wanted = |program: &(&str, u32)| match plan.raw_sockets {
        RawSockets::Refuse => true,
        RawSockets::Allow => *program != RAW_SOCKETS,
    };
    all_programs().filter(is_wanted).collect()
}

/// The program that hangs on pods' veths and not on the cgroup.
const GUARD: &str = "hnp_guard";

/// The object in the kernel, attached to nothing yet. Dropping it unloads it.
pub(super) struct Loaded {
    pub(super) ebpf: Ebpf,
    /// The agent's own cgroup, where it is below the attached one.
    own_cgroup: Option<u64>,
    /// What is to hang on the cgroup, and where.
    programs: Vec<(&'static str, u32)>,
    /// VIPs that rest, and whether this build made the map; of no use to the programs, and so not in the
    /// object.
    resting: (OwnedFd, bool),
    /// Former maps that are used as they are.
    reused: HashSet<String>,
    /// Links of a former agent may be given these programs.
    update: bool,
}

impl Loaded {
    /// Has the verifier look at every program, and opens, copies or makes the maps.
    pub(super) fn load(
        object: &[u8],
        node: &Node,
        plan: &plan::Capture,
        ranges: Ranges,
        lock: &Lock,
    ) -> Result<Self, CaptureError> {
        let former = Former::open(&plan.bpffs)?;
        let shapes = former::shapes(object)?;
        let update = former.can_be_updated(&shapes);
        // The running agent could not go on with its own, should this one fail.
        if lock.is_lent() && !update {
            return Err(CaptureError::OtherSchema { version: former.version().to_owned() });
        }
        // Nor could it put its own set of programs back.
        let programs = programs(plan);
        let is_another_set = |(name, _): (&str, u32)| {
            lock.link(name).exists() != programs.iter().any(|(wanted, _)| *wanted == name)
        };
        if lock.is_lent() && all_programs().any(is_another_set) {
            return Err(CaptureError::OtherPrograms);
        }
        let reused = if update { former.usable(&shapes) } else { HashSet::new() };
        if !former.is_empty() {
            tracing::info!(
                version = former.version(),
                in_place = update,
                "taking over from a former agent's programs"
            );
        }
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
        let mut loader = EbpfLoader::new();
        // The programs read no kernel structure, so the kernel's own types are not needed.
        loader.btf(None).override_global("CONFIG", &config, true);
        for name in &reused {
            loader.map_pin_path(name, lock.map(name));
        }
        let mut ebpf = loader.load(object).map_err(|source| CaptureError::Load(Box::new(source)))?;
        for (name, _) in programs.iter().copied() {
            let program = ebpf.program_mut(name).ok_or(CaptureError::ObjectLacks(name))?;
            let loaded = match program {
                Program::CgroupSock(program) => program.load(),
                Program::CgroupSockAddr(program) => program.load(),
                Program::SockOps(program) => program.load(),
                _ => Err(ProgramError::UnexpectedProgramType),
            };
            loaded.map_err(|error| refused(name, error))?;
        }
        match ebpf.program_mut(GUARD).ok_or(CaptureError::ObjectLacks(GUARD))? {
            Program::SchedClassifier(program) => program.load(),
            _ => Err(ProgramError::UnexpectedProgramType),
        }
        .map_err(|error| refused(GUARD, error))?;
        let resting = resting::open_or_make(&lock.map(resting::MAP))?;
        let own_cgroup = node.own_cgroup;
        let loaded = Self { ebpf, own_cgroup, programs, resting, reused, update };
        for (name, map) in loaded.kept_maps() {
            if !loaded.reused.contains(name) {
                former.migrate(name, data_of(map)?)?;
            }
        }
        loaded.exempt()?.insert_own()?;
        Ok(loaded)
    }

    /// A handle of its own to a map.
    pub(super) fn map(&self, name: &'static str) -> Result<Map, CaptureError> {
        let fd = match self.ebpf.map(name) {
            Some(map) => data_of(map)?.fd().as_fd(),
            None if name == resting::MAP => self.resting.0.as_fd(),
            None => return Err(CaptureError::ObjectLacks(name)),
        };
        let error = |source| CaptureError::Map { doing: "open", map: name, source };
        let fd = fd.try_clone_to_owned().map_err(|source| error(io_error(source)))?;
        MapData::from_fd(fd).and_then(Map::from_map_data).map_err(error)
    }

    /// Who is exempt by these programs.
    pub(super) fn exempt(&self) -> Result<exempt::Exempt, CaptureError> {
        exempt::Exempt::new(self.map(exempt::MAP)?, self.own_cgroup)
    }

    /// The guard, attached to nothing yet. It has its maps by itself.
    pub(super) fn guard(&self, dir: &Path) -> Result<Guard, CaptureError> {
        let program = match self.ebpf.program(GUARD) {
            Some(Program::SchedClassifier(program)) => program.fd(),
            Some(_) | None => return Err(CaptureError::ObjectLacks(GUARD)),
        };
        let program = program.map_err(|error| refused(GUARD, error))?.as_fd().try_clone_to_owned();
        let program = program.map_err(|source| refused(GUARD, source.into()))?;
        let tables = Tables::new(self.map("GUARDED")?, self.map("GUARDED_NETS")?, self.map("GUARD_FILTER")?)?;
        Guard::start(program, tables, dir)
    }

    /// Attaches every program and pins what is new.
    pub(super) fn attach(&self, cgroup: &Cgroup, lock: &Lock) -> Result<Attachment, CaptureError> {
        let programs = || self.programs.iter().copied();
        foreign::check(cgroup, programs().map(|(_, attach_type)| attach_type))?;
        lock.make_room()?;
        let mut attachment = Attachment { links: Vec::with_capacity(self.programs.len()) };
        for (name, attach_type) in programs() {
            attachment.links.push(self.link(name, attach_type, cgroup, lock)?);
        }
        self.pin_maps(lock)?;
        let maps: Vec<_> =
            self.kept_maps().map(|(name, _)| name).chain([resting::MAP, former::META]).collect();
        lock.settle(&programs().map(|(name, _)| name).collect::<Vec<_>>(), &maps)?;
        for link in &mut attachment.links {
            link.pinned = true;
        }
        Ok(attachment)
    }

    /// Puts these programs back into the links, whoever changed them.
    pub(super) fn put_back(&self, attachment: &Attachment, cgroup: &Cgroup) -> Result<(), CaptureError> {
        for link in &attachment.links {
            let updated =
                self.program(link.program).and_then(|program| sys::link_update(link.fd.as_fd(), program));
            updated.map_err(|source| attach_error(link.program, cgroup, source))?;
        }
        Ok(())
    }

    fn link(
        &self,
        name: &'static str,
        attach_type: u32,
        cgroup: &Cgroup,
        lock: &Lock,
    ) -> Result<Link, CaptureError> {
        let error = |source| attach_error(name, cgroup, source);
        let program = self.program(name).map_err(error)?;
        if self.update
            && let Some(link) = former_link(lock, name, attach_type, cgroup).map_err(error)?
        {
            sys::link_update(link.as_fd(), program).map_err(error)?;
            return Ok(Link { program: name, fd: link, pinned: true });
        }
        let fd = sys::link_to_cgroup(program, cgroup.dir.as_fd(), attach_type).map_err(error)?;
        let path = lock.new_link(name);
        sys::pin(fd.as_fd(), &path).map_err(|source| CaptureError::Pin { path, source })?;
        Ok(Link { program: name, fd, pinned: false })
    }

    fn program(&self, name: &str) -> io::Result<BorrowedFd<'_>> {
        let program = self.ebpf.program(name).ok_or(io::ErrorKind::NotFound)?;
        let fd = match program {
            Program::CgroupSock(program) => program.fd(),
            Program::CgroupSockAddr(program) => program.fd(),
            Program::SockOps(program) => program.fd(),
            _ => Err(ProgramError::UnexpectedProgramType),
        };
        Ok(fd.map_err(io::Error::other)?.as_fd())
    }

    fn pin_maps(&self, lock: &Lock) -> Result<(), CaptureError> {
        let pin = |fd: BorrowedFd<'_>, name: &str| {
            let path = lock.new_map(name);
            sys::pin(fd, &path).map_err(|source| CaptureError::Pin { path, source })
        };
        for (name, map) in self.kept_maps().filter(|(name, _)| !self.reused.contains(*name)) {
            pin(data_of(map)?.fd().as_fd(), name)?;
        }
        if let (map, true) = &self.resting {
            pin(map.as_fd(), resting::MAP)?;
        }
        pin(former::new_meta()?.as_fd(), former::META)
    }

    fn kept_maps(&self) -> impl Iterator<Item = (&str, &Map)> {
        self.ebpf.maps().filter(|(name, _)| former::is_kept(name))
    }
}

/// A former agent's link, if it is attached where this one's would be: not so once its cgroup is gone.
fn former_link(lock: &Lock, name: &str, attach_type: u32, cgroup: &Cgroup) -> io::Result<Option<OwnedFd>> {
    let Some(link) = sys::open_pin(&lock.link(name))? else { return Ok(None) };
    let info = sys::link_info(link.as_fd())?;
    Ok((info.cgroup_id == cgroup.id && info.attach_type == attach_type).then_some(link))
}

fn attach_error(program: &'static str, cgroup: &Cgroup, source: io::Error) -> CaptureError {
    CaptureError::Attach { program, cgroup: cgroup.path.clone(), source }
}

/// The attached programs. Dropping it leaves what is pinned, and detaches the rest at once.
pub(super) struct Attachment {
    links: Vec<Link>,
}

struct Link {
    program: &'static str,
    fd: OwnedFd,
    /// It stays when this process ends.
    pinned: bool,
}

impl Attachment {
    /// Whether every link still hangs on the cgroup: a link that lost it goes on existing.
    pub(super) fn is_on(&self, cgroup: &Cgroup) -> bool {
        self.programs(cgroup).all(|(_, on)| on)
    }

    /// The programs, by name, and whether each hangs on the cgroup.
    pub(super) fn programs(&self, cgroup: &Cgroup) -> impl Iterator<Item = (&'static str, bool)> {
        self.links.iter().map(|link| {
            let on = sys::link_info(link.fd.as_fd()).is_ok_and(|info| info.cgroup_id == cgroup.id);
            (link.program, on)
        })
    }

    /// Detaches all, pinned or not.
    pub(super) fn detach(mut self) {
        for link in &mut self.links {
            link.pinned = false;
        }
    }
}

impl Drop for Attachment {
    fn drop(&mut self) {
        // In the reverse order, so that nothing is redirected that the others do not know.
        for link in self.links.drain(..).rev().filter(|link| !link.pinned) {
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

/// What all kinds of maps in the object have in common.
fn data_of(map: &Map) -> Result<&MapData, CaptureError> {
    match map {
        Map::Array(data)
        | Map::HashMap(data)
        | Map::LpmTrie(data)
        | Map::LruHashMap(data)
        | Map::PerCpuArray(data)
        | Map::RingBuf(data)
        | Map::SkStorage(data) => Ok(data),
        _ => Err(CaptureError::ObjectLacks("maps of the expected kinds")),
    }
}
