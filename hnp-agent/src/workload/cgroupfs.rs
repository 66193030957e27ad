//! From the kernel's cgroup id to a pod, by the directories of cgroup2.
//!
//! A cgroup's id is the inode of its directory; there is no way from one to the other without
//! CAP_DAC_READ_SEARCH (open_by_handle_at), so the first connection of a container lists three or
//! four directories: those of the flow's ancestors, then what lies in the pod. Every other connection
//! finds the answer in a map that is read without a lock. Where the container is gone already, what was noted when it
//! appeared answers (`appearing`), else its pod. What is there is believed before what was noted.

use std::collections::{HashMap, VecDeque};
use std::os::unix::fs::{DirEntryExt as _, MetadataExt as _};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use arc_swap::ArcSwap;

use super::appearing::Noted;
use super::lookups::{Lookups, PodLink};
use super::names;
use super::{Workload, WorkloadSource};

/// How many cgroups are remembered. A node has some hundreds; beyond this, the half that was not
/// asked for longest is forgotten.
const REMEMBERED: usize = 4096;
/// How long an answer is given without a look at the directory it came from.
const TRUSTED: Duration = Duration::from_secs(1);
/// How many directories one search lists at most: a container's own cgroups can be many.
const SEARCH: usize = 256;
/// Searches a pod or container may cause: at once, and per second. Whoever makes cgroup after cgroup
/// is called by its pod.
const SEARCHES: (f64, f64) = (16.0, 4.0);

/// Tells workloads by their cgroups.
#[derive(Debug)]
pub struct CgroupWorkloads {
    mount: PathBuf,
    attached: Arc<Known>,
    nobody: Arc<Workload>,
    /// Asked about pods whose cgroups are seen first.
    lookups: Lookups,
    /// Where cgroups are, or were.
    noted: Arc<Noted>,
    /// By cgroup id. Replaced as a whole; readers never wait.
    known: ArcSwap<HashMap<u64, Arc<Known>>>,
    /// What happens when an id is not known: one thread at a time.
    search: Mutex<Search>,
    trusted: Duration,
    epoch: Instant,
}

/// One cgroup that was asked for.
#[derive(Debug)]
struct Known {
    workload: Arc<Workload>,
    /// Its directory; `None` when it was gone at the last look. Ids are not used twice by 64-bit
    /// kernels, so what was known of it stays true.
    path: Option<PathBuf>,
    /// When its directory was last looked at and it was asked for, in milliseconds of `epoch`.
    checked: AtomicU64,
}

#[derive(Debug, Default)]
struct Search {
    /// By the deepest ancestor a flow names: searches left, and when that was true.
    allowed: HashMap<u64, (f64, Instant)>,
    /// Directories listed so far.
    listed: u64,
}

impl CgroupWorkloads {
    /// `cgroup2_mount` is where cgroup2 is mounted; `attached`, below it, the cgroup that capture is
    /// attached to. What has been `noted` of cgroups that have gone is known.
    pub fn new(cgroup2_mount: PathBuf, attached: PathBuf, lookups: Lookups, noted: Arc<Noted>) -> Self {
        Self::trusting(cgroup2_mount, attached, (lookups, noted), TRUSTED)
    }

    fn trusting(
        mount: PathBuf,
        attached: PathBuf,
        (lookups, noted): (Lookups, Arc<Noted>),
        trusted: Duration,
    ) -> Self {
        let workload = Arc::new(describe((&mount, &attached), &attached, |uid| lookups.link(uid)));
        Self {
            attached: Arc::new(Known { workload, path: Some(attached), checked: AtomicU64::new(0) }),
            mount,
            nobody: Arc::default(),
            lookups,
            noted,
            known: ArcSwap::default(),
            search: Mutex::default(),
            trusted,
            epoch: Instant::now(),
        }
    }

    fn millis(&self) -> u64 {
        u64::try_from(self.epoch.elapsed().as_millis()).unwrap_or(u64::MAX)
    }

    /// The slow way: look for the directory of the caller's cgroup and remember what came of it.
    fn find(&self, cgroup_id: u64, ancestor_ids: [u64; 2]) -> Arc<Workload> {
        let mut search = self.search.lock().unwrap_or_else(PoisonError::into_inner);
        let before = self.known.load().get(&cgroup_id).cloned();
        if let Some(known) = before.as_ref().filter(|known| self.is_fresh(known, cgroup_id)) {
            return known.workload.clone();
        }
        let allowed = search.allow(ancestor_ids, Instant::now());
        let mut nearest = self.attached.clone();
        let mut complete = true;
        for id in ancestor_ids.into_iter().filter(|id| *id != 0) {
            match self.child(&nearest, id, allowed, &mut search) {
                Some(child) => nearest = child,
                None => {
                    complete = false;
                    break;
                }
            }
        }
        let noted = self.noted.path(cgroup_id);
        let is_there = |path: &Path| inode(path) == Some(cgroup_id);
        let home = nearest.path.as_deref();
        let found = match (home, &noted) {
            (_, Some(path)) if is_there(path) => Some(path.clone()),
            (Some(home), _) if complete && is_there(home) => Some(home.to_owned()),
            (Some(home), _) if complete && allowed => search.below(home, cgroup_id),
            (Some(_) | None, _) => None,
        };
        match (found, before, noted) {
            (Some(path), ..) => {
                let workload = self.describe(&path, &nearest);
                self.remember(cgroup_id, Some(path), workload)
            }
            // It was there, and is not any more: what was known of it is better than its pod.
            (None, Some(before), _) => self.remember(cgroup_id, None, before.workload.clone()),
            (None, None, Some(path)) => {
                let workload = self.describe(&path, &nearest);
                self.remember(cgroup_id, None, workload)
            }
            (None, None, None) => {
                let workload = if Arc::ptr_eq(&nearest, &self.attached) {
                    self.nobody.clone()
                } else {
                    nearest.workload.clone()
                };
                if !allowed {
                    return workload;
                }
                self.remember(cgroup_id, None, workload)
            }
        }
        .workload
        .clone()
    }

    /// The cgroup `id` right below `above`.
    fn child(&self, above: &Known, id: u64, allowed: bool, search: &mut Search) -> Option<Arc<Known>> {
        let parent = above.path.as_deref();
        let is_there = |path: &Path| path.parent() == parent && inode(path) == Some(id);
        let known = self.known.load().get(&id).cloned();
        if let Some(known) = known.as_ref().filter(|known| known.path.as_deref().is_some_and(is_there)) {
            return Some(known.clone());
        }
        let noted = self.noted.path(id);
        let listed = || {
            let parent = parent.filter(|_| allowed)?;
            Some(search.list(parent).into_iter().find(|(inode, _)| *inode == id)?.1)
        };
        if let Some(path) = noted.clone().filter(|path| is_there(path)).or_else(listed) {
            let workload = self.describe(&path, above);
            return Some(self.remember(id, Some(path), workload));
        }
        // It has gone, as far as can be told: it is what it was.
        known.or_else(|| {
            let workload = self.describe(&noted?, above);
            Some(self.remember(id, None, workload))
        })
    }

    /// What a path says. A container's pod is that of the pod's cgroup above it: it is asked about once.
    fn describe(&self, path: &Path, above: &Known) -> Arc<Workload> {
        let Some(attached) = &self.attached.path else { return self.nobody.clone() };
        let link = |uid: &str| match above.workload.pod_uid.as_deref() == Some(uid) {
            true => above.workload.pod.clone(),
            false => self.lookups.link(uid),
        };
        Arc::new(describe((&self.mount, attached), path, link))
    }

    /// Called with the search locked: nobody else replaces the map.
    fn remember(&self, id: u64, path: Option<PathBuf>, workload: Arc<Workload>) -> Arc<Known> {
        let entry = Arc::new(Known { workload, path, checked: AtomicU64::new(self.millis()) });
        let mut known = HashMap::clone(&self.known.load());
        if known.len() >= REMEMBERED {
            let mut ages: Vec<u64> = known.values().map(|known| known.checked.load(Relaxed)).collect();
            let (_, median, _) = ages.select_nth_unstable(REMEMBERED / 2);
            let median = *median;
            let mut left = REMEMBERED / 2;
            known.retain(|_, known| {
                let keep = left > 0 && known.checked.load(Relaxed) >= median;
                left -= usize::from(keep);
                keep
            });
        }
        known.insert(id, entry.clone());
        self.known.store(Arc::new(known));
        entry
    }

    /// Whether an answer can be given without a search; looks at the directory once in a while.
    fn is_fresh(&self, known: &Known, id: u64) -> bool {
        let now = self.millis();
        let age = Duration::from_millis(now.saturating_sub(known.checked.load(Relaxed)));
        if age < self.trusted {
            return true;
        }
        let fresh = known.path.as_deref().is_none_or(|path| inode(path) == Some(id));
        if fresh {
            known.checked.store(now, Relaxed);
        }
        fresh
    }
}

impl WorkloadSource for CgroupWorkloads {
    /// A known cgroup costs one look-up in a map behind an atomic pointer and a reference count, and
    /// one stat(2) a second; nothing is allocated.
    fn identify_cgroup(&self, cgroup_id: u64, ancestor_ids: [u64; 2]) -> Arc<Workload> {
        if cgroup_id == 0 {
            return self.nobody.clone();
        }
        if let Some(known) = self.known.load().get(&cgroup_id)
            && self.is_fresh(known, cgroup_id)
        {
            return known.workload.clone();
        }
        self.find(cgroup_id, ancestor_ids)
    }
}

impl Search {
    /// Takes one of the searches that are allowed for the deepest ancestor.
    fn allow(&mut self, ancestors: [u64; 2], now: Instant) -> bool {
        let key = if ancestors[1] != 0 { ancestors[1] } else { ancestors[0] };
        if self.allowed.len() >= REMEMBERED {
            self.allowed.retain(|_, (_, at)| now.duration_since(*at) < Duration::from_secs(10));
        }
        if self.allowed.len() >= REMEMBERED && !self.allowed.contains_key(&key) {
            return false;
        }
        let (left, at) = self.allowed.entry(key).or_insert((SEARCHES.0, now));
        *left = (*left + now.duration_since(*at).as_secs_f64() * SEARCHES.1).min(SEARCHES.0);
        *at = now;
        let allowed = *left >= 1.0;
        if allowed {
            *left -= 1.0;
        }
        allowed
    }

    /// Inode and path of a cgroup's children. Empty where it is gone.
    fn list(&mut self, dir: &Path) -> Vec<(u64, PathBuf)> {
        self.listed += 1;
        subdirectories(dir)
    }

    /// The directory with this inode anywhere below `top`, nearest first.
    fn below(&mut self, top: &Path, id: u64) -> Option<PathBuf> {
        let mut queue = VecDeque::from([top.to_owned()]);
        for _ in 0..SEARCH {
            let children = self.list(&queue.pop_front()?);
            if let Some((_, path)) = children.iter().find(|(inode, _)| *inode == id) {
                return Some(path.clone());
            }
            queue.extend(children.into_iter().map(|(_, path)| path));
        }
        None
    }
}

fn describe((mount, attached): (&Path, &Path), path: &Path, link: impl Fn(&str) -> PodLink) -> Workload {
    let below = path.strip_prefix(attached).unwrap_or(Path::new(""));
    let names = names::parse(attached.strip_prefix(mount).unwrap_or(attached), below);
    let cgroup = Path::new("/").join(path.strip_prefix(mount).unwrap_or(path));
    Workload {
        cgroup: Some(cgroup.to_string_lossy().into_owned()),
        pod: names.pod_uid.as_deref().map(link).unwrap_or_default(),
        pod_uid: names.pod_uid,
        container_id: names.container_id,
    }
}

pub(super) fn inode(path: &Path) -> Option<u64> {
    std::fs::metadata(path).ok().map(|meta| meta.ino())
}

/// With their inodes. What vanishes meanwhile is no loss.
pub(super) fn subdirectories(dir: &Path) -> Vec<(u64, PathBuf)> {
    let entries = std::fs::read_dir(dir).into_iter().flatten().flatten();
    entries
        .filter(|entry| entry.file_type().is_ok_and(|kind| kind.is_dir()))
        .map(|entry| (entry.ino(), entry.path()))
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::proxy::flow::Flow;
    use crate::workload::{Directory, Question};

    const POD: &str = "kubepods/besteffort/pod3ff17592-7a4d-4c3d-8a0c-1b6f0a4ad9c0";

    /// A tree of plain directories: their inodes serve as well as a cgroup's.
    struct Tree {
        dir: tempfile::TempDir,
        workloads: CgroupWorkloads,
        asked: tokio::sync::mpsc::Receiver<Question>,
    }

    impl Tree {
        fn new(trusted: Duration) -> Self {
            let dir = tempfile::tempdir().unwrap();
            std::fs::create_dir(dir.path().join("kubepods")).unwrap();
            let attached = dir.path().join("kubepods");
            let (lookups, asked) = Lookups::new(Directory::default());
            let by = (lookups, Arc::default());
            let workloads = CgroupWorkloads::trusting(dir.path().to_owned(), attached, by, trusted);
            Self { dir, workloads, asked }
        }

        fn path(&self, path: &str) -> PathBuf {
            self.dir.path().join(path)
        }

        fn id(&self, path: &str) -> u64 {
            inode(&self.path(path)).unwrap()
        }

        /// A flow out of a cgroup that is made if it is not there, with the ancestors the kernel names.
        fn flow(&self, path: &str) -> Flow {
            std::fs::create_dir_all(self.path(path)).unwrap();
            let names: Vec<&str> = path.split('/').collect();
            let ancestor = |level: usize| match names.get(..=level) {
                Some(names) => self.id(&names.join("/")),
                None => 0,
            };
            flow(self.id(path), [ancestor(1), ancestor(2)])
        }

        /// What is noted when a cgroup appears.
        fn note(&self, path: &str) {
            self.workloads.noted.note(self.id(path), self.path(path));
        }

        fn listed(&self) -> u64 {
            self.workloads.search.lock().unwrap().listed
        }
    }

    fn flow(cgroup_id: u64, ancestor_ids: [u64; 2]) -> Flow {
        Flow {
            client: "10.0.0.1:40000".parse().unwrap(),
            vip: "169.254.77.1".parse().unwrap(),
            orig_dst: "10.9.9.9:80".parse().unwrap(),
            cgroup_id,
            ancestor_ids,
            direct: false,
            strict: false,
        }
    }

    const FOREVER: Duration = Duration::MAX;

    #[test]
    fn a_container_is_found_once_and_then_known_without_a_look() {
        let tree = Tree::new(FOREVER);
        let flow = tree.flow(&format!("{POD}/c1"));
        for other in 0..50 {
            tree.flow(&format!("kubepods/besteffort/pod{other}/c1"));
        }
        let first = tree.workloads.identify(&flow);
        assert_eq!(first.cgroup, Some(format!("/{POD}/c1")));
        assert_eq!(first.pod_uid.as_deref(), Some("3ff17592-7a4d-4c3d-8a0c-1b6f0a4ad9c0"));
        assert_eq!(first.container_id.as_deref(), Some("c1"));
        let listed = tree.listed();
        assert!(listed <= 3, "listed {listed} directories; the other pods' are not among the ancestors");
        for _ in 0..100 {
            assert!(Arc::ptr_eq(&first, &tree.workloads.identify(&flow)), "not allocated again");
        }
        assert_eq!(tree.listed(), listed);
    }

    #[test]
    fn a_pods_cgroup_that_is_seen_first_asks_about_it_and_one_that_is_known_does_not() {
        let mut tree = Tree::new(Duration::ZERO);
        let elsewhere = tree.flow("kubepods/other");
        let (first, second) = (tree.flow(&format!("{POD}/c1")), tree.flow(&format!("{POD}/c2")));
        let workload = tree.workloads.identify(&first);
        let question = tree.asked.try_recv().unwrap();
        assert_eq!(Some(&*question.uid), workload.pod_uid.as_deref());
        // While it is open it is the other container's as well.
        assert!(tree.workloads.identify(&second).pod.is_awaited());
        drop(question);
        for flow in [first, second] {
            assert!(!tree.workloads.identify(&flow).pod.is_awaited());
        }
        assert!(tree.asked.try_recv().is_err());
        // Another cgroup of the same UID may be another pod's. The old one stays elsewhere, so that its inode is not taken again.
        std::fs::rename(tree.path(POD), tree.path("kubepods/other/moved")).unwrap();
        tree.workloads.identify(&tree.flow(&format!("{POD}/c3")));
        assert!(tree.asked.try_recv().is_ok());
        // Who is no pod's is asked about by nobody.
        assert!(!tree.workloads.identify(&elsewhere).pod.is_awaited());
        assert!(tree.asked.try_recv().is_err());
    }

    #[test]
    fn guaranteed_nested_and_pod_level_callers_are_found_too() {
        let tree = Tree::new(FOREVER);
        for (path, container) in [
            ("kubepods/pod1/c1", Some("c1")),
            ("kubepods/pod1/c1/init/deeper", Some("c1")),
            ("kubepods/pod1", None),
            ("kubepods/burstable/pod2/c1/nested", Some("c1")),
        ] {
            let flow = tree.flow(path);
            let found = tree.workloads.identify(&flow);
            assert_eq!(found.cgroup, Some(format!("/{path}")));
            assert!(found.pod_uid.is_some(), "{path}");
            assert_eq!(found.container_id.as_deref(), container, "{path}");
        }
        let found = tree.workloads.identify(&flow(tree.id("kubepods"), [0, 0]));
        assert_eq!((found.cgroup.as_deref(), &found.pod_uid), (Some("/kubepods"), &None));
    }

    #[test]
    fn a_container_that_is_gone_is_called_by_its_pod_and_looked_for_once() {
        let tree = Tree::new(FOREVER);
        let flow = tree.flow(&format!("{POD}/c1"));
        std::fs::remove_dir(tree.path(&format!("{POD}/c1"))).unwrap();
        let found = tree.workloads.identify(&flow);
        assert_eq!(found.cgroup, Some(format!("/{POD}")));
        assert!(found.pod_uid.is_some() && found.container_id.is_none());
        let listed = tree.listed();
        assert!(Arc::ptr_eq(&found, &tree.workloads.identify(&flow)));
        assert_eq!(tree.listed(), listed);
    }

    #[test]
    fn a_container_that_was_known_keeps_its_name_when_it_is_gone() {
        let tree = Tree::new(Duration::ZERO);
        let flow = tree.flow(&format!("{POD}/c1"));
        let first = tree.workloads.identify(&flow);
        std::fs::remove_dir_all(tree.path(POD)).unwrap();
        assert!(Arc::ptr_eq(&first, &tree.workloads.identify(&flow)));
        let listed = tree.listed();
        assert!(Arc::ptr_eq(&first, &tree.workloads.identify(&flow)));
        assert_eq!(tree.listed(), listed, "not looked for again and again");
    }

    #[test]
    fn a_pod_that_is_gone_altogether_leaves_what_is_left_of_the_path_and_nobody_is_nobody() {
        let tree = Tree::new(FOREVER);
        let gone = tree.flow(&format!("{POD}/c1"));
        std::fs::remove_dir_all(tree.path(POD)).unwrap();
        let found = tree.workloads.identify(&gone);
        assert_eq!((found.cgroup.as_deref(), &found.pod_uid), (Some("/kubepods/besteffort"), &None));
        for unknown in [flow(0, [0, 0]), flow(u64::MAX, [0, 0]), flow(u64::MAX, [u64::MAX - 1, u64::MAX - 2])]
        {
            assert_eq!(*tree.workloads.identify(&unknown), Workload::default());
        }
    }

    #[test]
    fn a_pod_that_is_gone_altogether_is_known_where_it_was_noted() {
        let mut tree = Tree::new(Duration::ZERO);
        let (noted, not) = (format!("{POD}/c1"), "kubepods/besteffort/pod2/c2");
        let (gone, control) = (tree.flow(&noted), tree.flow(not));
        for path in ["kubepods/besteffort", POD, &noted] {
            tree.note(path);
        }
        // Made before: their inodes are not those of what is gone.
        let beside = tree.flow("kubepods/besteffort/pod3/c3");
        std::fs::remove_dir_all(tree.path(POD)).unwrap();
        std::fs::remove_dir_all(tree.path("kubepods/besteffort/pod2")).unwrap();
        let found = tree.workloads.identify(&gone);
        assert_eq!(found.cgroup, Some(format!("/{noted}")));
        assert_eq!(found.container_id.as_deref(), Some("c1"));
        assert_eq!(found.pod_uid.as_deref(), Some(&POD[POD.len() - 36..]));
        assert!(Arc::ptr_eq(&found, &tree.workloads.identify(&gone)));
        // Its pod was asked about when it called, and once.
        assert_eq!(Some(&*tree.asked.try_recv().unwrap().uid), found.pod_uid.as_deref());
        assert!(tree.asked.try_recv().is_err());
        // A container of it that nobody noted is its pod's.
        let other = tree.workloads.identify(&flow(u64::MAX, gone.ancestor_ids));
        assert_eq!((&other.pod_uid, &other.container_id), (&found.pod_uid, &None));
        // The control: one that was not noted. Who is there is himself in any case.
        assert_eq!(tree.workloads.identify(&control).pod_uid, None);
        assert_eq!(tree.workloads.identify(&beside).container_id.as_deref(), Some("c3"));
    }

    #[test]
    fn an_inode_that_was_noted_and_is_used_again_is_who_has_it_now() {
        let tree = Tree::new(Duration::ZERO);
        let old = tree.flow("kubepods/besteffort/pod1/c1");
        for path in ["kubepods/besteffort", "kubepods/besteffort/pod1", "kubepods/besteffort/pod1/c1"] {
            tree.note(path);
        }
        let moved = tree.path("kubepods/besteffort/pod2");
        std::fs::rename(tree.path("kubepods/besteffort/pod1"), &moved).unwrap();
        std::fs::rename(moved.join("c1"), moved.join("c2")).unwrap();
        let new = tree.flow("kubepods/besteffort/pod2/c2");
        assert_eq!((new.cgroup_id, new.ancestor_ids), (old.cgroup_id, old.ancestor_ids), "renames keep them");
        let found = tree.workloads.identify(&new);
        assert_eq!((found.pod_uid.as_deref(), found.container_id.as_deref()), (Some("2"), Some("c2")));
    }

    #[test]
    fn an_inode_that_is_used_again_elsewhere_is_noticed() {
        let tree = Tree::new(Duration::ZERO);
        let old = tree.flow("kubepods/besteffort/pod1/c1");
        assert_eq!(tree.workloads.identify(&old).pod_uid.as_deref(), Some("1"));
        std::fs::create_dir_all(tree.path("kubepods/besteffort/pod2")).unwrap();
        std::fs::rename(tree.path("kubepods/besteffort/pod1/c1"), tree.path("kubepods/besteffort/pod2/c2"))
            .unwrap();
        let new = tree.flow("kubepods/besteffort/pod2/c2");
        assert_eq!(new.cgroup_id, old.cgroup_id, "a rename keeps the inode");
        let found = tree.workloads.identify(&new);
        assert_eq!((found.pod_uid.as_deref(), found.container_id.as_deref()), (Some("2"), Some("c2")));
    }

    #[test]
    fn ids_made_up_without_end_neither_search_nor_fill_the_memory_without_end() {
        let tree = Tree::new(FOREVER);
        let known = tree.flow(&format!("{POD}/c1"));
        let honest = tree.workloads.identify(&known);
        let began = Instant::now();
        for id in 0..20_000 {
            let found = tree.workloads.identify(&flow(u64::MAX - id, known.ancestor_ids));
            assert_eq!(found.pod_uid, honest.pod_uid, "still called by its pod");
        }
        let allowed = SEARCHES.0 + began.elapsed().as_secs_f64() * SEARCHES.1 + 1.0;
        let listed = tree.listed() as f64;
        assert!(listed <= 3.0 + 2.0 * allowed, "{listed} directories listed, {allowed} searches allowed");
        let known_ids = tree.workloads.known.load().len();
        assert!(known_ids <= REMEMBERED, "{known_ids}");

        // Another pod is not made to pay for it.
        let other = tree.flow("kubepods/besteffort/pod9/c9");
        assert_eq!(tree.workloads.identify(&other).container_id.as_deref(), Some("c9"));
    }

    #[test]
    fn memory_is_bounded_by_forgetting_what_was_not_asked_for_longest() {
        let tree = Tree::new(FOREVER);
        let pod = tree.flow(POD);
        tree.workloads.identify(&pod);
        for id in 0..(REMEMBERED as u64 * 3) {
            let _search = tree.workloads.search.lock().unwrap();
            tree.workloads.remember(u64::MAX - id, None, Arc::default());
        }
        assert!(tree.workloads.known.load().len() <= REMEMBERED);
        assert!(tree.workloads.identify(&pod).pod_uid.is_some());
    }

    #[test]
    fn many_threads_get_the_same_answer() {
        let tree = Tree::new(Duration::ZERO);
        let flows: Vec<Flow> =
            (0..8).map(|n| tree.flow(&format!("kubepods/besteffort/pod{n}/c{n}"))).collect();
        std::thread::scope(|scope| {
            for _ in 0..4 {
                scope.spawn(|| {
                    for round in 0..200 {
                        let n = round % flows.len();
                        let found = tree.workloads.identify(&flows[n]);
                        assert_eq!(found.container_id, Some(format!("c{n}")));
                    }
                });
            }
        });
    }
}
