//! Where the guard stands: on every veth that leads to another namespace, uplinks excepted.
//!
//! An uplink is an interface that a default route or the way to a guarded address leaves by: what comes
//! in there are neighbours whose traffic the node merely forwards, and on a node that is itself a
//! container that is a veth, too. All other veths are taken for pods', also those of containers that no
//! kubelet made.
//!
//! What is in the guard's directory says what to take off: `7` is the pinned link on interface 7; a
//! directory `q7` or `f7` says that there is a filter, and whether its queueing discipline is ours, too.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::io;
use std::net::IpAddr;
use std::os::fd::{AsFd as _, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};

use super::netlink::{Netlink, Veth};
use super::{Look, Status, Way, clsact, failed};
use crate::capture::error::CaptureError;
use crate::capture::sys;

/// The interfaces, and what is guarded behind them.
pub(super) struct Posts {
    program: OwnedFd,
    way: Result<Way, String>,
    pins: Pins,
    netlink: Netlink,
    /// Addresses that are guarded; none: the guard is off.
    towards: Vec<IpAddr>,
    uplinks: BTreeSet<u32>,
    held: BTreeMap<u32, Held>,
    failing: BTreeSet<u32>,
    said_nothing_to_guard: bool,
}

enum Held {
    Link(OwnedFd),
    Filter,
}

impl Posts {
    pub(super) fn new(program: OwnedFd, dir: &Path) -> Result<Self, CaptureError> {
        let mut netlink = Netlink::open().map_err(failed("open", "a netlink socket"))?;
        Ok(Self {
            way: find_way(&mut netlink, program.as_fd()),
            program,
            pins: Pins(dir.to_owned()),
            netlink,
            towards: Vec::new(),
            uplinks: BTreeSet::new(),
            held: BTreeMap::new(),
            failing: BTreeSet::new(),
            said_nothing_to_guard: false,
        })
    }

    /// How the guard is attached; asked of the kernel again while there is no way, because a module may
    /// have been loaded.
    pub(super) fn way(&mut self) -> Result<Way, CaptureError> {
        if self.way.is_err() {
            self.way = find_way(&mut self.netlink, self.program.as_fd());
        }
        let impossible = |why| CaptureError::GuardImpossible { routes: Vec::new(), why };
        self.way.clone().map_err(impossible)
    }

    pub(super) fn status(&self) -> Status {
        Status { way: self.way.clone(), interfaces: self.held.len(), failing: self.failing.len() }
    }

    /// Guards the ways to these addresses; none: takes the guard off.
    pub(super) fn set(&mut self, towards: Vec<IpAddr>) -> Result<(), CaptureError> {
        self.towards = towards;
        if !self.towards.is_empty() {
            return self.rescan();
        }
        self.failing.clear();
        let mut outcome = Ok(());
        for index in self.attached()? {
            outcome = outcome.and(self.release(index));
        }
        outcome.and(self.pins.remove_dir())
    }

    /// Looks at all interfaces.
    pub(super) fn rescan(&mut self) -> Result<(), CaptureError> {
        if self.towards.is_empty() {
            return Ok(());
        }
        self.way()?;
        let ask = failed("read", "the node's interfaces and routes");
        let (veths, uplinks) =
            (|| Ok((self.netlink.veths()?, self.netlink.uplinks(&self.towards)?)))().map_err(ask)?;
        self.uplinks = uplinks;
        let wanted: Vec<_> = veths.iter().filter(|veth| !self.uplinks.contains(&veth.index)).collect();
        if wanted.is_empty() && !veths.is_empty() && !self.said_nothing_to_guard {
            self.said_nothing_to_guard = true;
            // On a node that is itself a container and has no pod yet that is as it should be.
            tracing::info!(
                "no interface to guard: the only veth is this network namespace's own uplink. If pods' veths \
                 end elsewhere, the guard cannot hold: run the agent in the node's network namespace"
            );
        }
        let before = self.held.len();
        let mut outcome = Ok(());
        for veth in &wanted {
            outcome = outcome.and(self.hold(veth));
        }
        let wanted: BTreeSet<_> = wanted.iter().map(|veth| veth.index).collect();
        for index in self.attached()?.difference(&wanted) {
            outcome = outcome.and(self.release(*index));
        }
        self.failing.retain(|index| wanted.contains(index));
        if self.held.len() != before {
            tracing::info!(
                interfaces = self.held.len(),
                failing = self.failing.len(),
                "guarding pods' veths"
            );
        }
        outcome
    }

    /// A veth is there, perhaps a new one; whether it was.
    pub(super) fn appeared(&mut self, veth: &Veth) -> bool {
        if self.towards.is_empty()
            || self.held.contains_key(&veth.index)
            || self.uplinks.contains(&veth.index)
        {
            return false;
        }
        if let Err(error) = self.hold(veth) {
            tracing::warn!(error = &error as &dyn std::error::Error, "a pod is not guarded; trying again");
        }
        true
    }

    /// An interface is gone, and with it what was attached.
    pub(super) fn vanished(&mut self, index: u32) {
        self.failing.remove(&index);
        if self.held.remove(&index).is_some()
            && let Err(error) = self.pins.forget(index)
        {
            tracing::warn!(error = &error as &dyn std::error::Error, "a pin is left behind");
        }
    }

    /// Attaches to an interface, takes over what a dead agent attached there, or sees that it is still so.
    fn hold(&mut self, veth: &Veth) -> Result<(), CaptureError> {
        let held = match self.way()? {
            Way::Tcx => self.hold_link(veth.index).map(Held::Link),
            Way::Clsact => self.hold_filter(veth.index).map(|()| Held::Filter),
        };
        match held {
            Ok(held) => {
                tracing::debug!(interface = veth.name, "guarded");
                self.held.insert(veth.index, held);
                self.failing.remove(&veth.index);
                Ok(())
            }
            // It went meanwhile.
            Err(error) if error.raw_os_error() == Some(libc::ENODEV) => Ok(()),
            Err(error) => {
                self.failing.insert(veth.index);
                Err(failed("be attached to", &*veth.name)(error))
            }
        }
    }

    fn hold_link(&mut self, index: u32) -> io::Result<OwnedFd> {
        let pin = self.pins.link(index);
        let former = match self.held.remove(&index) {
            Some(Held::Link(link)) => Some(link),
            Some(Held::Filter) | None => sys::open_pin(&pin)?,
        };
        if let Some(link) = former {
            match sys::link_update(link.as_fd(), self.program.as_fd()) {
                Ok(()) => return self.pinned(link, &pin),
                // Detached by somebody else, or left from an interface of this number.
                Err(error) if error.raw_os_error() == Some(libc::ENOLINK) => {
                    not_found(fs::remove_file(&pin))?;
                }
                Err(error) => return Err(error),
            }
        }
        let link = sys::link_to_ingress(self.program.as_fd(), index)?;
        self.pinned(link, &pin)
    }

    fn pinned(&self, link: OwnedFd, pin: &Path) -> io::Result<OwnedFd> {
        if !pin.exists() {
            self.pins.make_dir()?;
            sys::pin(link.as_fd(), pin)?;
        }
        Ok(link)
    }

    fn hold_filter(&mut self, index: u32) -> io::Result<()> {
        let made = clsact::add_qdisc(&mut self.netlink, index)?;
        self.pins.make_dir()?;
        if made {
            exists(fs::create_dir(self.pins.qdisc(index)))?;
        } else if !self.pins.qdisc(index).exists() {
            exists(fs::create_dir(self.pins.filter(index)))?;
        }
        clsact::put_filter(&mut self.netlink, index, self.program.as_fd())
    }

    fn release(&mut self, index: u32) -> Result<(), CaptureError> {
        self.held.remove(&index);
        self.pins.release(&mut self.netlink, index)
    }

    /// Where something of ours is attached, by this agent or a dead one.
    fn attached(&self) -> Result<BTreeSet<u32>, CaptureError> {
        let mut all = self.pins.interfaces()?;
        all.extend(self.held.keys());
        Ok(all)
    }
}

/// As [`super::look`].
pub(super) fn look(dir: &Path, towards: &[IpAddr]) -> io::Result<Look> {
    let pins = Pins(dir.to_owned());
    let held = pins.interfaces().map_err(io::Error::other)?;
    let by_link = |index: &&u32| pins.link(**index).exists();
    let mut netlink = Netlink::open()?;
    let uplinks = netlink.uplinks(towards)?;
    let open = netlink.veths()?.into_iter().filter(|veth| !uplinks.contains(&veth.index));
    Ok(Look {
        by_link: held.iter().filter(by_link).count(),
        held: held.len(),
        open: open.filter(|veth| !held.contains(&veth.index)).map(|veth| veth.name).collect(),
    })
}

/// As [`super::clean_up`].
pub(super) fn clean_up(dir: &Path) -> Result<(), CaptureError> {
    let pins = Pins(dir.to_owned());
    let interfaces = pins.interfaces()?;
    if !interfaces.is_empty() {
        let mut netlink = Netlink::open().map_err(failed("open", "a netlink socket"))?;
        for index in interfaces {
            pins.release(&mut netlink, index)?;
        }
    }
    pins.remove_dir()
}

/// The guard's directory.
struct Pins(PathBuf);

impl Pins {
    fn link(&self, index: u32) -> PathBuf {
        self.0.join(index.to_string())
    }

    /// There is a filter of ours, and the queueing discipline is ours, too.
    fn qdisc(&self, index: u32) -> PathBuf {
        self.0.join(format!("q{index}"))
    }

    /// There is a filter of ours at somebody else's queueing discipline.
    fn filter(&self, index: u32) -> PathBuf {
        self.0.join(format!("f{index}"))
    }

    fn make_dir(&self) -> io::Result<()> {
        exists(fs::create_dir(&self.0))
    }

    fn remove_dir(&self) -> Result<(), CaptureError> {
        not_found(fs::remove_dir(&self.0)).map(|_| ()).map_err(failed("remove", self.shown()))
    }

    /// Every interface that something is pinned or noted for.
    fn interfaces(&self) -> Result<BTreeSet<u32>, CaptureError> {
        let read = || -> io::Result<BTreeSet<u32>> {
            let Some(entries) = not_found(fs::read_dir(&self.0))? else { return Ok(BTreeSet::new()) };
            let mut all = BTreeSet::new();
            for entry in entries {
                let name = entry?.file_name();
                all.extend(name.to_string_lossy().trim_start_matches(['q', 'f']).parse::<u32>().ok());
            }
            Ok(all)
        };
        read().map_err(failed("read", self.shown()))
    }

    /// Takes off whatever is ours on the interface.
    fn release(&self, netlink: &mut Netlink, index: u32) -> Result<(), CaptureError> {
        let mut release = || -> io::Result<()> {
            if let Some(link) = sys::open_pin(&self.link(index))? {
                sys::link_detach(link.as_fd())?;
            }
            if self.qdisc(index).exists() || self.filter(index).exists() {
                clsact::remove_filter(netlink, index)?;
            }
            if self.qdisc(index).exists() {
                clsact::remove_qdisc(netlink, index)?;
            }
            Ok(())
        };
        release().map_err(failed("be detached from interface", index.to_string()))?;
        self.forget(index)
    }

    /// Removes what is pinned and noted for an interface.
    fn forget(&self, index: u32) -> Result<(), CaptureError> {
        not_found(fs::remove_file(self.link(index)))
            .and_then(|_| not_found(fs::remove_dir(self.qdisc(index))))
            .and_then(|_| not_found(fs::remove_dir(self.filter(index))))
            .map(|_| ())
            .map_err(failed("remove pins from", self.shown()))
    }

    fn shown(&self) -> String {
        self.0.display().to_string()
    }
}

/// Tries what changes nothing; else what the kernel said to each way.
fn find_way(netlink: &mut Netlink, program: BorrowedFd<'_>) -> Result<Way, String> {
    const NO_INTERFACE: u32 = i32::MAX as u32;
    let tcx = match sys::link_to_ingress(program, NO_INTERFACE) {
        Err(error) if error.raw_os_error() != Some(libc::ENODEV) => error,
        Ok(_) | Err(_) => return Ok(Way::Tcx),
    };
    // Nothing is guarded yet, so it lets everything through while it is there.
    let mut try_clsact = || -> io::Result<()> {
        let lo = nix::net::if_::if_nametoindex("lo")?;
        let made = clsact::add_qdisc(netlink, lo)?;
        let put = clsact::put_filter(netlink, lo, program);
        clsact::remove_filter(netlink, lo)?;
        if made {
            clsact::remove_qdisc(netlink, lo)?;
        }
        put
    };
    match try_clsact() {
        Ok(()) => Ok(Way::Clsact),
        Err(clsact) => Err(format!("tcx: {tcx}; clsact: {clsact}")),
    }
}

fn not_found<T>(result: io::Result<T>) -> io::Result<Option<T>> {
    match result {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        other => other.map(Some),
    }
}

fn exists(result: io::Result<()>) -> io::Result<()> {
    match result {
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => Ok(()),
        other => other,
    }
}
