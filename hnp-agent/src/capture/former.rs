//! What a former agent left pinned, and what of it this build can go on with.
//!
//! A pin says nothing of the map behind it, and aya opens one without a look: key, value and size are
//! compared here. Maps of the same shape go on being used, so that nothing is forgotten; of those that
//! grew, the entries are copied. Only where programs of both builds cannot work on the same socket
//! ([`Meta::SCHEMA`]) is all of it replaced.

use std::collections::{HashMap, HashSet};
use std::fs;
use std::io;
use std::os::fd::{AsFd as _, OwnedFd};
use std::path::Path;

use aya::maps::{Array, Map, MapData, MapError, MapType};
use hnp_common::layout::Meta;

use super::error::CaptureError;
use super::pins;
use super::sys::{self, Entries};

/// Name of the map that says who pinned.
pub(super) const META: &str = "META";

/// Maps that both builds' programs use for one socket: they are of one shape or not shared at all.
const SHARED_STATE: [&str; 2] = ["SOCKETS", "FLOWS"];

/// What a map is made of.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) struct Shape {
    kind: u32,
    key: u32,
    value: u32,
    entries: u32,
}

impl Shape {
    /// What the kernel says of a map.
    pub(super) fn of(map: &MapData) -> Result<Self, MapError> {
        let info = map.info()?;
        Ok(Self {
            kind: info.map_type()? as u32,
            key: info.key_size(),
            value: info.value_size(),
            entries: info.max_entries(),
        })
    }

    /// Whether its entries can be read and written as they are: not so those of sockets and CPUs.
    fn is_plain(self) -> bool {
        [MapType::Hash, MapType::LruHash, MapType::LpmTrie, MapType::Array]
            .map(|kind| kind as u32)
            .contains(&self.kind)
    }
}

/// The pinned maps of an agent that is gone, or that this one takes over from.
#[derive(Debug, Default)]
pub(super) struct Former {
    maps: HashMap<String, (Shape, OwnedFd)>,
    schema: Option<u32>,
    version: String,
}

impl Former {
    /// Opens what is pinned in the directory; nothing there is no error.
    pub(super) fn open(bpffs: &Path) -> Result<Self, CaptureError> {
        let dir = pins::maps_dir(bpffs);
        let entries = match fs::read_dir(&dir) {
            Ok(entries) => entries,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Self::default()),
            Err(source) => return Err(CaptureError::File { doing: "read", path: dir, source }),
        };
        let mut former = Self::default();
        for entry in entries {
            let entry =
                entry.map_err(|source| CaptureError::File { doing: "read", path: dir.clone(), source })?;
            let Ok(name) = entry.file_name().into_string() else { continue };
            let map = MapData::from_pin(entry.path()).map_err(unreadable)?;
            let shape = Shape::of(&map).map_err(unreadable)?;
            let fd = map
                .fd()
                .as_fd()
                .try_clone_to_owned()
                .map_err(|source| unreadable(MapError::IoError(source)))?;
            if name == META {
                former.read_meta(map)?;
            }
            former.maps.insert(name, (shape, fd));
        }
        Ok(former)
    }

    fn read_meta(&mut self, map: MapData) -> Result<(), CaptureError> {
        let map = Map::from_map_data(map).map_err(unreadable)?;
        let meta: Array<MapData, Meta> = Array::try_from(map).map_err(unreadable)?;
        let meta = meta.get(&0, 0).map_err(unreadable)?;
        if meta.magic == Meta::MAGIC {
            self.schema = Some(meta.schema);
            let version = meta.version.iter().copied().take_while(|byte| *byte != 0).collect();
            self.version = String::from_utf8(version).unwrap_or_default();
        }
        Ok(())
    }

    /// Whether there is anything.
    pub(super) fn is_empty(&self) -> bool {
        self.maps.is_empty()
    }

    /// The version of the agent that pinned; empty where it did not say.
    pub(super) fn version(&self) -> &str {
        &self.version
    }

    /// Whether its programs and this build's can work side by side, on the same sockets.
    pub(super) fn can_be_updated(&self, object: &HashMap<String, Shape>) -> bool {
        let same = |name: &str| self.maps.get(name).map(|(shape, _)| shape) == object.get(name);
        self.schema == Some(Meta::SCHEMA) && SHARED_STATE.iter().all(|name| same(name))
    }

    /// The maps that this build can use as they are.
    pub(super) fn usable(&self, object: &HashMap<String, Shape>) -> HashSet<String> {
        let same = |(name, (shape, _)): &(&String, &(Shape, OwnedFd))| object.get(*name) == Some(shape);
        self.maps.iter().filter(same).map(|(name, _)| name.clone()).collect()
    }

    /// Copies the entries of a map into this build's map of another shape.
    pub(super) fn migrate(&self, name: &str, to: &MapData) -> Result<(), CaptureError> {
        let Some((former, fd)) = self.maps.get(name) else { return Ok(()) };
        let shape = Shape::of(to).map_err(unreadable)?;
        if !former.is_plain() || former.kind != shape.kind || former.key != shape.key {
            tracing::info!(map = name, "a former agent's map is made otherwise; begun anew");
            return Ok(());
        }
        let copied = || -> io::Result<usize> {
            let from = Entries::new(fd.try_clone()?, former.key as usize, former.value as usize);
            let to = to.fd().as_fd().try_clone_to_owned()?;
            from.copy_to(&Entries::new(to, shape.key as usize, shape.value as usize))
        };
        match copied() {
            Ok(entries) => {
                tracing::info!(
                    map = name,
                    entries,
                    from = former.value,
                    to = shape.value,
                    "a former agent's map has another shape; copied"
                );
                Ok(())
            }
            Err(source) => Err(unreadable(MapError::IoError(source))),
        }
    }
}

/// The maps that an object brings, by name; those of the programs' own (`.rodata`) and of the log aside.
pub(super) fn shapes(object: &[u8]) -> Result<HashMap<String, Shape>, CaptureError> {
    let parsed = aya_obj::Object::parse(object)
        .map_err(|error| CaptureError::Load(Box::new(aya::EbpfError::ParseError(error))))?;
    let kept = parsed.maps.iter().filter(|(name, _)| is_kept(name));
    Ok(kept
        .map(|(name, map)| {
            let (kind, key) = (map.map_type(), map.key_size());
            (name.clone(), Shape { kind, key, value: map.value_size(), entries: map.max_entries() })
        })
        .collect())
}

/// Whether a map outlives the programs that brought it.
pub(super) fn is_kept(name: &str) -> bool {
    // The guard has its maps to itself, and fills them anew.
    !name.starts_with('.') && !name.starts_with("GUARD") && name != "AYA_LOGS"
}

/// Makes the map that says who pinned.
pub(super) fn new_meta() -> Result<OwnedFd, CaptureError> {
    let mut version = [0; 56];
    for (to, from) in version.iter_mut().take(55).zip(env!("CARGO_PKG_VERSION").bytes()) {
        *to = from;
    }
    let meta = Meta { magic: Meta::MAGIC, schema: Meta::SCHEMA, version };
    let made = || -> Result<OwnedFd, MapError> {
        let fd = sys::create_map("hnp_meta", MapType::Array as u32, 4, size_of::<Meta>(), 1)
            .map_err(MapError::IoError)?;
        let data = MapData::from_fd(fd.try_clone().map_err(MapError::IoError)?)?;
        let mut map: Array<MapData, Meta> = Array::try_from(Map::from_map_data(data)?)?;
        map.set(0, meta, 0)?;
        Ok(fd)
    };
    made().map_err(|source| CaptureError::Map { doing: "make", map: META, source })
}

fn unreadable(source: MapError) -> CaptureError {
    CaptureError::Map { doing: "read a former agent's", map: "(pinned)", source }
}
