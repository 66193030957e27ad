//! Which cgroup is the agent's: it is never redirected, and alone may bind the agent's port.
//!
//! A dead agent's programs go on guarding the port for its own cgroup, and a restarted container has
//! another one. So a successor that holds the lock tells them before it listens, and takes that back
//! if its start fails. Nobody else can write there: the map is pinned where only root may open it.
//!
//! An agent that is killed cannot take itself off, and one that drains must stay on. So whoever comes later
//! looks which of these cgroups still have a process in them.

use std::path::Path;

use aya::maps::{HashMap, Map, MapData, MapError};

use super::error::CaptureError;
use super::{Node, cgroups, pins};

/// The map's name in the object and below the pins.
pub(super) const MAP: &str = "EXEMPT";

/// What a former agent's programs were told. Dropping it takes it back.
pub(super) struct Exemption {
    map: HashMap<MapData, u64, u8>,
    cgroup: u64,
    kept: bool,
}

impl Exemption {
    /// Exempts the agent's own cgroup from a former agent's programs; `None`: it needs none, there are no
    /// programs, or they know no such map. Makes room by what is not in use any more.
    pub(super) fn from_former_agent(bpffs: &Path, node: &Node) -> Result<Option<Self>, CaptureError> {
        let Some(cgroup) = node.own_cgroup else { return Ok(None) };
        let pin = pins::map_pin(bpffs, MAP);
        if !pin.exists() {
            return Ok(None);
        }
        let doing = "exempt this agent in a former agent's";
        let mut map = open(&pin).map_err(|source| error(doing, source))?;
        // An agent that is restarted in the same cgroup must not take away what the map said before.
        if map.get(&cgroup, 0).is_ok() {
            return Ok(None);
        }
        prune(&mut map, &node.cgroup.path, Some(cgroup))?;
        map.insert(cgroup, 1, 0).map_err(|source| error(doing, source))?;
        Ok(Some(Self { map, cgroup, kept: false }))
    }
}

impl Exemption {
    /// Leaves it: the map is this agent's own now.
    pub(super) fn keep(mut self) {
        self.kept = true;
    }
}

impl Drop for Exemption {
    fn drop(&mut self) {
        if self.kept {
            return;
        }
        if let Err(error) = self.map.remove(&self.cgroup) {
            tracing::debug!(%error, "a former agent's programs go on exempting this one");
        }
    }
}

/// Who is exempt by this agent's programs.
pub(super) struct Exempt {
    map: HashMap<MapData, u64, u8>,
    /// The agent's own, which stays whatever is found.
    own: Option<u64>,
}

impl Exempt {
    /// With the agent's own cgroup, where it is below the attached one.
    pub(super) fn new(map: Map, own: Option<u64>) -> Result<Self, CaptureError> {
        let map = HashMap::try_from(map).map_err(|source| error("open", source))?;
        Ok(Self { map, own })
    }

    /// Exempts the agent's own cgroup.
    pub(super) fn insert_own(&mut self) -> Result<(), CaptureError> {
        let Some(own) = self.own else { return Ok(()) };
        self.map.insert(own, 1, 0).map_err(|source| error("insert into", source))
    }

    /// No longer exempts cgroups at or below `attached` in which no process is.
    pub(super) fn prune(&mut self, attached: &Path) -> Result<(), CaptureError> {
        prune(&mut self.map, attached, self.own)
    }
}

fn prune(map: &mut HashMap<MapData, u64, u8>, attached: &Path, own: Option<u64>) -> Result<(), CaptureError> {
    let listed = map.keys().collect::<Result<Vec<_>, _>>().map_err(|source| error("read", source))?;
    let unused = cgroups::unused(attached, &listed);
    for cgroup in unused.into_iter().filter(|cgroup| Some(*cgroup) != own) {
        match map.remove(&cgroup) {
            Ok(()) | Err(MapError::KeyNotFound) => {}
            Err(source) => return Err(error("remove from", source)),
        }
    }
    Ok(())
}

/// The conversion checks that keys and values are of the sizes meant here.
fn open(pin: &Path) -> Result<HashMap<MapData, u64, u8>, MapError> {
    HashMap::try_from(Map::from_map_data(MapData::from_pin(pin)?)?)
}

fn error(doing: &'static str, source: MapError) -> CaptureError {
    CaptureError::Map { doing, map: MAP, source }
}
