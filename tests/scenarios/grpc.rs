//! gRPC from a pod that knows nothing of TLS to a server that wants a client certificate: single calls, both
//! directions at a time, refusals and metadata in trailers, large messages.

use std::time::Duration;

use hnp_tests::agent::{Agent, Route};
use hnp_tests::poll::eventually;
use hnp_tests::process::{Finished, Place, Running};
use hnp_tests::scene::{IDENTITY, Scene, TRUST};
use hnp_tests::tools;
use hnp_tests::topology::MANAGER4;
use serde_json::{Value, json};

use crate::gateway::{node_of, start, uncaptured};

/// What the workload dials where it knows of no gateway.
const MANAGER: &str = "http://manager.hnp.test:80";

#[test]
fn calls_and_streams_are_carried_with_their_trailers() {
    let scene = Scene::for_test();
    let _server = serving(&scene);
    let agent = Agent::start(&scene, &scene.config().route(route()));
    let pod = scene.pod();
    all_came(&call(&pod, MANAGER).run());
    let line = agent.access_line("the stream", |line| line["path"] == "/echo.Echo/Stream");
    assert_eq!((&line["reason"], &line["upstream_protocol"]), (&"ok".into(), &"h2".into()), "{line}");
    // The control: outside of the pod nobody carries it.
    assert!(!call(pod.outside_cgroup(), MANAGER).run().status.success());
}

#[test]
fn by_the_gateway_without_capture() {
    let scene = Scene::for_test();
    let _server = serving(&scene);
    let agent = start(&scene, &uncaptured(scene.config().route(route())));
    let pod = scene.pod();
    all_came(&call(&pod, &format!("http://{}:7777", node_of(&pod))).run());
    let line = agent.access_line("the stream", |line| line["path"] == "/echo.Echo/Stream");
    assert_eq!((&line["gateway"], &line["upstream_protocol"]), (&"origin".into(), &"h2".into()), "{line}");
    assert_eq!(line["reason"], "ok", "{line}");
    // The control: nobody carries what is not sent to the gateway.
    assert!(!call(&pod, MANAGER).run().status.success());
}

fn route() -> Route {
    let route = Route::strict("grpc", &["manager.hnp.test:80"], "https://manager.hnp.test:8443");
    route.with(IDENTITY, TRUST)
}

fn call(place: &Place, url: &str) -> hnp_tests::process::Cmd {
    place.command(tools::sibling("hnp-test-grpc")).args(["call", url])
}

#[track_caller]
fn all_came(answer: &Finished) {
    let came: Value = answer.json();
    assert_eq!(
        came,
        json!({
            "unary": "hello", "metadata": "t1", "refused": 5, "message": "nobody of this name",
            "echoed": 20, "trailer": "20", "large": true,
        })
    );
}

fn serving(scene: &Scene) -> Running {
    let mut server = serve(scene);
    eventually(Duration::from_secs(20), "the server listens", || {
        assert!(server.is_alive(), "{}", server.stderr());
        server.stdout().contains("listening")
    });
    server
}

fn serve(scene: &Scene) -> Running {
    let files = scene.server.write(scene.dir(), "grpc");
    let clients = scene.clients.write(scene.dir(), "grpc-clients");
    let place = scene.place_in(scene.manager_netns(), "system/manager");
    let command = place.command(tools::sibling("hnp-test-grpc")).args(["serve", &format!("{MANAGER4}:8443")]);
    command.arg(&files.certificate).arg(&files.key).arg(&clients).spawn()
}
