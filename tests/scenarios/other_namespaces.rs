//! A process in a captured pod's cgroup that went to another network namespace is not disturbed.

use hnp_tests::kernel::{self, Feature};
use hnp_tests::process::Place;
use hnp_tests::scene::Scene;
use hnp_tests::tools::python;
use hnp_tests::topology::{MANAGER4, Pod};

const VISITOR: &str = include_str!("../clients/visitor.py");
/// The agent's.
const PORT: u16 = 15001;
/// No destination.
const OTHER_PORT: u16 = 81;

#[test]
fn a_visitor_of_another_pod_listens_connects_and_sends_as_without_hnp() {
    let scene = Scene::for_test();
    let (_manager, other) = (scene.loose_manager("manager", 80), scene.loose_manager("other", OTHER_PORT));
    let (injector, target) = (scene.pod(), scene.pod());
    let visit = || visit(&injector, &target);
    let expected =
        [format!("peer 127.0.0.1:{PORT}"), "y".to_owned(), format!("HTTP/1.1 200 {MANAGER4}:{OTHER_PORT}")];
    assert_eq!(visit(), expected, "before there is an agent");
    let agent = scene.agent();
    let mut now = visit();
    if !kernel::has(Feature::NetnsCookie) {
        assert_eq!(now[0], kernel::refused_bind());
        now[0].clone_from(&expected[0]);
    }
    assert_eq!(now, expected);
    assert!(other.last_request().expect("it came").tls.is_none());
    let redirected = || agent.metrics().sum("hnp_kernel_verdicts", &[("verdict", "redirected")]);
    assert_eq!(redirected(), 0.0);

    // The controls: in the agent's own namespace its port is kept from pods, and a destination is a
    // destination from wherever a pod's process dials it.
    let said = visit_from(&injector, &scene.node());
    assert_eq!((said[0].as_str(), &said[2]), (kernel::refused_bind(), &expected[2]), "{said:?}");
    let arguments = ["-c", VISITOR, &PORT.to_string(), &MANAGER4.to_string(), "80"];
    let dialled = enter(&injector, &target).args(arguments).run().ok();
    assert!(dialled.ends_with(&format!("HTTP/1.1 200 {MANAGER4}:80\n")), "{dialled}");
    let line = agent.access_line("the visitor's dial", |line| line["path"] == "/visitor");
    assert_eq!((redirected(), line["pod_uid"].as_str()), (1.0, Some(injector.uid.as_str())), "{line}");
}

fn visit(injector: &Pod, target: &Pod) -> Vec<String> {
    visit_from(injector, target)
}

fn visit_from(injector: &Pod, place: &Place) -> Vec<String> {
    let arguments = ["-c", VISITOR, &PORT.to_string(), &MANAGER4.to_string(), &OTHER_PORT.to_string()];
    enter(injector, place).args(arguments).run().ok().lines().map(str::to_owned).collect()
}

/// Python in the injector's cgroup and the other's network.
fn enter(injector: &Pod, place: &Place) -> hnp_tests::process::Cmd {
    let net = format!("--net={}", place.netns().path().display());
    injector.command("nsenter").arg(net).arg("--").arg(python())
}
