//! Which pods there are, and in which namespace: from the cgroups and from kubelet's log directories.
//!
//! kubelet makes `<namespace>_<name>_<uid>` (pod_logs) before it has the runtime make the pod's sandbox,
//! so a pod's namespace is known here before its first instruction, without asking anybody.

use std::collections::HashMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::cgroupfs::subdirectories;
use super::directory::Directory;
use super::names;
use super::pod::{Facts, Teller};
use crate::config::selector::Labels;

/// One pod of this node.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct PodCgroup {
    /// Its cgroup: the inode of the directory.
    pub cgroup_id: u64,
    /// Its UID.
    pub uid: String,
    /// Its namespace.
    pub namespace: Arc<str>,
    /// Its name.
    pub name: Arc<str>,
}

impl PodCgroup {
    /// Its labels, where the API server knows them and calls it by the same name.
    pub fn confirmed_labels(&self, directory: &Directory) -> Option<Arc<Labels>> {
        let pod = directory.of(&self.uid)?;
        let is_namesake = pod.namespace == self.namespace && pod.name == self.name;
        pod.confirmed_labels().filter(|_| is_namesake).cloned()
    }
}

/// Where kubelet keeps the logs of pods, by whose names it says which there are.
#[derive(Clone, Debug)]
pub struct PodLogs(pub PathBuf);

impl PodLogs {
    /// Tells the directory.
    ///
    /// # Errors
    /// When it cannot be read.
    pub fn read(&self, directory: &Directory) -> std::io::Result<()> {
        self.named(directory).map(drop)
    }

    /// Namespace and name by UID.
    fn named(&self, directory: &Directory) -> std::io::Result<HashMap<String, Named>> {
        let names = fs::read_dir(&self.0)?.flatten().filter_map(|entry| entry.file_name().into_string().ok());
        let named: HashMap<String, Named> = names.filter_map(|name| parse(&name)).collect();
        let facts = named.iter().map(|(uid, (namespace, name))| Facts::named(uid, namespace, name));
        directory.tell_all(Teller::Logs, facts);
        Ok(named)
    }
}

/// Looks for pods.
#[derive(Clone, Debug)]
pub struct Pods {
    attached: PathBuf,
    logs: PodLogs,
    directory: Directory,
}

impl Pods {
    /// `attached` is the cgroup that capture is attached to, `logs` kubelet's directory, and `directory` is told what that says.
    pub fn new(attached: PathBuf, logs: PodLogs, directory: Directory) -> Self {
        Self { attached, logs, directory }
    }

    /// The pods whose cgroup and whose namespace are both there, in the order of their cgroups' ids. A
    /// few directories are read; a node has some hundred pods.
    ///
    /// # Errors
    /// When kubelet's directory cannot be read.
    pub fn list(&self) -> std::io::Result<Vec<PodCgroup>> {
        let named = self.logs.named(&self.directory)?;
        let mut pods = Vec::new();
        for (cgroup_id, dir) in subdirectories(&self.attached) {
            self.add(&dir, cgroup_id, &named, &mut pods);
            // Pods that are not Guaranteed stand one level deeper.
            if names::parse(&self.attached, below(&self.attached, &dir)).pod_uid.is_none() {
                for (cgroup_id, dir) in subdirectories(&dir) {
                    self.add(&dir, cgroup_id, &named, &mut pods);
                }
            }
        }
        pods.sort_by_key(|pod| pod.cgroup_id);
        Ok(pods)
    }

    fn add(&self, dir: &Path, cgroup_id: u64, named: &HashMap<String, Named>, pods: &mut Vec<PodCgroup>) {
        let uid = names::parse(&self.attached, below(&self.attached, dir)).pod_uid;
        if let Some((uid, named)) = uid.and_then(|uid| named.get(&uid).map(|named| (uid, named))) {
            let (namespace, name) = named.clone();
            pods.push(PodCgroup { cgroup_id, uid, namespace, name });
        }
    }
}

type Named = (Arc<str>, Arc<str>);

/// `<namespace>_<name>_<uid>`; none of the three holds an underscore (RFC 1123 labels and names).
fn parse(directory: &str) -> Option<(String, Named)> {
    let mut parts = directory.split('_');
    let (namespace, name, uid) = (parts.next()?, parts.next()?, parts.next()?);
    let whole = parts.next().is_none() && ![namespace, name, uid].contains(&"");
    whole.then(|| (uid.to_owned(), (namespace.into(), name.into())))
}

fn below<'a>(attached: &Path, dir: &'a Path) -> &'a Path {
    dir.strip_prefix(attached).unwrap_or(dir)
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::MetadataExt as _;

    use super::*;

    #[test]
    fn pods_of_every_class_and_driver_are_found_with_their_namespace() {
        const A: &str = "3ff17592-7a4d-4c3d-8a0c-1b6f0a4ad9c0";
        const B: &str = "4ff17592-7a4d-4c3d-8a0c-1b6f0a4ad9c0";
        let dir = tempfile::tempdir().unwrap();
        let (cgroups, logs) = (dir.path().join("kubepods"), dir.path().join("logs"));
        let besteffort = cgroups.join(format!("besteffort/pod{A}"));
        let systemd = cgroups.join(format!("kubepods-pod{}.slice", B.replace('-', "_")));
        for dir in
            [&besteffort, &systemd, &cgroups.join("burstable/podno-logs"), &besteffort.join("container")]
        {
            fs::create_dir_all(dir).unwrap();
        }
        for name in [&format!("prod_worker-1_{A}"), &format!("staging_web_{B}"), "not_a_pod_at_all", "x"] {
            fs::create_dir_all(logs.join(name)).unwrap();
        }
        let directory = Directory::default();
        let mut found: Vec<_> = Pods::new(cgroups, PodLogs(logs), directory.clone()).list().unwrap();
        found.sort_by(|a, b| a.uid.cmp(&b.uid));
        let shown: Vec<_> = found.iter().map(|pod| (&*pod.namespace, &*pod.name, pod.uid.as_str())).collect();
        assert_eq!(shown, [("prod", "worker-1", A), ("staging", "web", B)]);
        assert_eq!(directory.of(B).map(|pod| pod.name.to_string()).as_deref(), Some("web"));
        assert_eq!(found[0].cgroup_id, fs::metadata(&besteffort).unwrap().ino());
        assert_eq!(found[1].cgroup_id, fs::metadata(&systemd).unwrap().ino());
    }
}
