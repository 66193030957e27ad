//! gRPC from a pod that knows nothing of TLS to a server that wants a client certificate: single calls, both
//! directions at a time, refusals and metadata in trailers, large messages.

use std::time::Duration;

use hnp_tests::agent::{Agent, Route};
use hnp_tests::poll::eventually;
use hnp_tests::process::{Place, Running};
use hnp_tests::scene::{IDENTITY, Scene, TRUST};
use hnp_tests::tools;
use hnp_tests::topology::{MANAGER_NAME, MANAGER4};
use serde_json::{Value, json};

#[test]
fn calls_and_streams_are_carried_with_their_trailers() {
    let scene = Scene::for_test();
    let mut server = serve(&scene);
    eventually(Duration::from_secs(20), "the server listens", || {
        assert!(server.is_alive(), "{}", server.stderr());
        server.stdout().contains("listening")
    });
    let route = Route::strict("grpc", &["manager.hnp.test:80"], "https://manager.hnp.test:8443");
    let agent = Agent::start(&scene, &scene.config().route(route.with(IDENTITY, TRUST)));
    let pod = scene.pod();
    let came: Value = call(&pod).run().json();
    assert_eq!(
        came,
        json!({
            "unary": "hello", "metadata": "t1", "refused": 5, "message": "nobody of this name",
            "echoed": 20, "trailer": "20", "large": true,
        })
    );
    let line = agent.access_line("the stream", |line| line["path"] == "/echo.Echo/Stream");
    assert_eq!((&line["reason"], &line["upstream_protocol"]), (&"ok".into(), &"h2".into()), "{line}");
    // The control: outside of the pod nobody carries it.
    assert!(!call(pod.outside_cgroup()).run().status.success());
}

fn call(place: &Place) -> hnp_tests::process::Cmd {
    place.command(tools::sibling("hnp-test-grpc")).args(["call", &format!("http://{MANAGER_NAME}:80")])
}

fn serve(scene: &Scene) -> Running {
    let files = scene.server.write(scene.dir(), "grpc");
    let clients = scene.clients.write(scene.dir(), "grpc-clients");
    let place = scene.place_in(scene.manager_netns(), "system/manager");
    let command = place.command(tools::sibling("hnp-test-grpc")).args(["serve", &format!("{MANAGER4}:8443")]);
    command.arg(&files.certificate).arg(&files.key).arg(&clients).spawn()
}
