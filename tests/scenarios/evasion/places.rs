//! The same connect() from another cgroup or namespace: what counts is the cgroup that the socket was
//! made in.

use hnp_tests::evasion::{Attack, Technique, Trial};
use hnp_tests::process::Place;
use hnp_tests::scene::Scene;
use hnp_tests::topology::Pod;

use super::judge;

judge! {
    child_cgroup: Trial::new(Technique::ChildCgroup).served();
    cgroup_namespace: Trial::new(Technique::CgroupNamespace).served();
    network_namespace_of_another_pod: Trial::new(Technique::OtherNetns).arranged(other_pod).served();
    network_namespace_of_the_node: Trial::new(Technique::OtherNetns).arranged(node).served();
    fresh_network_namespace: Trial::new(Technique::FreshNetns).served();
    moved_out_after_socket: Trial::new(Technique::MovedBetween).arranged(outwards).served();
    pod_of_the_host_network:
        Trial::new(Technique::Connect).from(|scene: &Scene, _: &Pod| scene.host_network_pod()).served();
}

fn other_pod(scene: &Scene, _: &Pod, attack: &mut Attack) {
    attack.netns = Some(scene.pod().netns().path());
}

fn node(scene: &Scene, _: &Pod, attack: &mut Attack) {
    attack.netns = Some(scene.node_netns().path());
}

fn outwards(_: &Scene, pod: &Pod, attack: &mut Attack) {
    attack.cgroup = Some(Place::cgroup(pod.outside_cgroup()).to_owned());
}
