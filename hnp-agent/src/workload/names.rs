//! What the name of a cgroup says about the pod and the container in it.
//!
//! kubelet has two drivers: `cgroupfs` makes `besteffort/pod<uid>/<id>`; `systemd` makes slices that
//! repeat their parents' names and write the uid's dashes as underscores, with a scope per container.
//! Guaranteed pods have no QoS level. kind puts everything below a `kubelet` of its own.

use std::path::{Component, Path};

/// Pod and container, as far as a path names them.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub(super) struct Names {
    /// With dashes. A static pod's is the hash of its manifest.
    pub(super) pod_uid: Option<String>,
    /// Without the runtime's prefix.
    pub(super) container_id: Option<String>,
}

/// Reads a cgroup's path below the one capture is attached to. `attached` is looked at only where
/// nothing below names a pod: then capture hangs on a pod, or on a part of one.
pub(super) fn parse(attached: &Path, below: &Path) -> Names {
    let below = components(below);
    if let Some(at) = below.iter().position(|name| pod_uid(name).is_some()) {
        return at_pod(&below, at);
    }
    let whole: Vec<String> = components(attached).into_iter().chain(below).collect();
    // The innermost: kind may run in a pod. Out here anything may begin with `pod`: real uids only.
    let is_pod = |name: &String| pod_uid(name).is_some_and(|uid| is_uuid_or_hash(&uid));
    whole.iter().rposition(is_pod).map(|at| at_pod(&whole, at)).unwrap_or_default()
}

fn components(path: &Path) -> Vec<String> {
    let names = path.components().filter_map(|component| match component {
        Component::Normal(name) => Some(name.to_string_lossy().into_owned()),
        Component::Prefix(_) | Component::RootDir | Component::CurDir | Component::ParentDir => None,
    });
    names.collect()
}

/// What a container makes of its own cgroup below is not looked at: it could say anything.
fn at_pod(names: &[String], at: usize) -> Names {
    Names {
        pod_uid: pod_uid(&names[at]),
        container_id: names.get(at + 1).and_then(|name| container_id(name)),
    }
}

/// `pod<uid>`, or `<parents>-pod<uid>.slice`.
fn pod_uid(name: &str) -> Option<String> {
    let (uid, systemd) = match name.strip_suffix(".slice") {
        Some(slice) => (slice.strip_prefix("pod").or_else(|| Some(slice.split_once("-pod")?.1))?, true),
        None => (name.strip_prefix("pod")?, false),
    };
    let is_uid = !uid.is_empty() && uid.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-' || b == b'_');
    is_uid.then(|| if systemd { uid.replace('_', "-") } else { uid.to_owned() })
}

fn is_uuid_or_hash(uid: &str) -> bool {
    uid.bytes().all(|b| b.is_ascii_hexdigit() || b == b'-')
        && uid.bytes().filter(u8::is_ascii_hexdigit).count() == 32
}

/// The monitors that CRI-O and podman keep beside a container: in the pod, in no container.
const MONITORS: [&str; 2] = ["crio-conmon-", "libpod-conmon-"];
/// What runtimes write before the id.
const PREFIXES: [&str; 4] = ["cri-containerd-", "crio-", "docker-", "libpod-"];

/// `<id>`, `<prefix><id>` or `<prefix><id>.scope`.
fn container_id(name: &str) -> Option<String> {
    if name.ends_with(".slice") || MONITORS.iter().any(|monitor| name.starts_with(monitor)) {
        return None;
    }
    let name = name.strip_suffix(".scope").unwrap_or(name);
    let id = PREFIXES.iter().find_map(|prefix| name.strip_prefix(prefix)).unwrap_or(name);
    (!id.is_empty()).then(|| id.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    const UID: &str = "3ff17592-7a4d-4c3d-8a0c-1b6f0a4ad9c0";
    const ID: &str = "a6b1c8f0b1f0a7a8d1b7a0f0c7d1e5a4a6b1c8f0b1f0a7a8d1b7a0f0c7d1e5a4";

    /// `U` stands for the uid, `_U` for the uid with underscores, `ID` for the container's id.
    fn parse_text(attached: &str, below: &str) -> (Option<String>, Option<String>) {
        let fill =
            |text: &str| text.replace("_U", &UID.replace('-', "_")).replace('U', UID).replace("ID", ID);
        let names = parse(Path::new(&fill(attached)), Path::new(&fill(below)));
        (names.pod_uid, names.container_id)
    }

    #[test]
    fn every_driver_runtime_and_qos_class() {
        let (uid, id) = (Some(UID.to_owned()), Some(ID.to_owned()));
        let pod = (uid.clone(), None);
        let container = (uid, id);
        let nothing = (None, None);
        for (attached, below, expected) in [
            // cgroupfs driver
            ("/kubepods", "besteffort/podU/ID", &container),
            ("/kubepods", "burstable/podU/ID", &container),
            ("/kubepods", "podU/ID", &container),
            ("/kubepods", "podU/crio-ID", &container),
            ("/kubepods", "burstable/podU", &pod),
            ("/kubepods", "burstable", &nothing),
            ("/kubepods", "", &nothing),
            // systemd driver
            (
                "/kubepods.slice",
                "kubepods-besteffort.slice/kubepods-besteffort-pod_U.slice/cri-containerd-ID.scope",
                &container,
            ),
            (
                "/kubepods.slice",
                "kubepods-burstable.slice/kubepods-burstable-pod_U.slice/crio-ID.scope",
                &container,
            ),
            ("/kubepods.slice", "kubepods-pod_U.slice/docker-ID.scope", &container),
            ("/kubepods.slice", "kubepods-pod_U.slice/libpod-ID.scope", &container),
            ("/kubepods.slice", "kubepods-pod_U.slice", &pod),
            ("/kubepods.slice", "kubepods-besteffort.slice", &nothing),
            // CRI-O's monitor is in no container; crun makes a cgroup within the container's
            ("/kubepods.slice", "kubepods-pod_U.slice/crio-conmon-ID.scope", &pod),
            ("/kubepods.slice", "kubepods-pod_U.slice/crio-ID.scope/container", &container),
            ("/kubepods", "burstable/podU/crio-conmon-ID", &pod),
            ("/kubepods", "podU/crio-ID/container", &container),
            ("/kubepods.slice", "kubepods-pod_U.slice/libpod-conmon-ID.scope", &pod),
            // pods on the node's network have cgroups as any other; their sandbox's is beside the container's
            ("/kubepods.slice", "kubepods-burstable.slice/kubepods-burstable-pod_U.slice/ID", &container),
            // kind
            (
                "/kubelet.slice/kubelet-kubepods.slice",
                "kubelet-kubepods-burstable.slice/kubelet-kubepods-burstable-pod_U.slice/cri-containerd-ID.scope",
                &container,
            ),
            ("/docker/0123/kubelet/kubepods", "besteffort/podU/ID", &container),
            (
                "/system.slice/docker-0123.scope/kubelet.slice/kubelet-kubepods.slice",
                "kubelet-kubepods-pod_U.slice/cri-containerd-ID.scope",
                &container,
            ),
            (
                "/system.slice/docker-0123.scope/kubelet.slice/kubelet-kubepods.slice",
                "kubelet-kubepods-besteffort.slice/kubelet-kubepods-besteffort-pod_U.slice/crio-ID.scope/container",
                &container,
            ),
            // rootless, and k3s with a root of its own
            (
                "/user.slice/user-1000.slice/user@1000.service/kubepods.slice",
                "kubepods-besteffort.slice/kubepods-besteffort-pod_U.slice/crio-ID.scope",
                &container,
            ),
            ("/k3s/kubepods", "burstable/podU/ID", &container),
            // a container cannot name itself another pod
            ("/kubepods", "besteffort/podU/ID/pod11111111-1111-1111-1111-111111111111/x", &container),
            // capture hangs on one pod, on one container, on a node that is a pod itself
            ("/kubepods/besteffort/podU", "ID", &container),
            ("/kubepods/besteffort/podU/ID", "", &container),
            ("/kubepods/pod2222/3333/kubelet/kubepods", "burstable/podU/ID", &container),
            ("/", "", &nothing),
            ("/podruntime.slice/podman", "", &nothing),
        ] {
            assert_eq!(&parse_text(attached, below), expected, "{attached} {below}");
        }
    }

    #[test]
    fn a_static_pods_uid_is_a_hash_without_dashes() {
        let hash = "5b1b9f3fd2a1c0ff5b1b9f3fd2a1c0ff";
        let systemd = format!("kubepods-burstable.slice/kubepods-burstable-pod{hash}.slice");
        for below in [format!("burstable/pod{hash}"), systemd] {
            assert_eq!(
                parse(Path::new("/kubepods"), Path::new(&below)).pod_uid.as_deref(),
                Some(hash),
                "{below}"
            );
        }
    }

    proptest::proptest! {
        #[test]
        fn no_name_makes_it_panic(below in ".{0,80}") {
            let names = parse(Path::new("/kubepods"), Path::new(&below));
            proptest::prop_assert!(names.container_id.is_none() || names.pod_uid.is_some());
        }
    }
}
