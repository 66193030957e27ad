//! A WebSocket by Python's `websockets`, on both sides: the pod's in the clear, the manager's behind mutual TLS.

use std::time::Duration;

use hnp_tests::agent::{Agent, Route};
use hnp_tests::poll::eventually;
use hnp_tests::process::Place;
use hnp_tests::scene::{IDENTITY, Scene, TRUST};
use hnp_tests::tools;
use hnp_tests::topology::{MANAGER_NAME, MANAGER4};

const SERVER: &str = include_str!("../clients/ws_server.py");

/// Asks, and answers, in turns; a megabyte at the end.
const CLIENT: &str = "
import asyncio, sys, websockets
async def main():
    async with websockets.connect(sys.argv[1], max_size=None) as socket:
        print(await socket.recv())
        for number in range(20):
            await socket.send(str(number))
            assert await socket.recv() == str(number)
        await socket.send(bytes(1 << 20))
        print(len(await socket.recv()))
asyncio.run(main())
";

#[test]
fn messages_go_both_ways_over_mutual_tls() {
    let scene = Scene::for_test();
    let server = scene.server.write(scene.dir(), "ws");
    let clients = scene.clients.write(scene.dir(), "ws-clients");
    let python = tools::python_with("websockets");
    let command = scene.manager_side().command(&python).args(["-c", SERVER, &MANAGER4.to_string(), "8443"]);
    let mut running = command.arg(&server.certificate).arg(&server.key).arg(&clients).spawn();
    eventually(Duration::from_secs(20), "the server listens", || {
        assert!(running.is_alive(), "{}", running.stderr());
        running.stdout().contains("listening")
    });
    let route = Route::strict("ws", &["manager.hnp.test:80"], "https://manager.hnp.test:8443");
    let agent = Agent::start(&scene, &scene.config().route(route.with(IDENTITY, TRUST)));
    let pod = scene.pod();
    let talk = |place: &Place| {
        let url = format!("ws://{MANAGER_NAME}:80/socket");
        place.command(&python).args(["-c", CLIENT, &url]).run()
    };
    let said = talk(&pod);
    let serial = said.ok().lines().next().unwrap_or_default().trim_start_matches('0').to_owned();
    assert_eq!(serial, scene.client_serial.trim_start_matches('0'), "the agent's certificate");
    assert_eq!(said.text().lines().nth(1), Some("1048576"));
    let line = agent.access_line("the upgrade", |line| line["path"] == "/socket");
    assert_eq!((&line["status"], &line["upstream_protocol"]), (&101.into(), &"http/1.1".into()), "{line}");
    // The control: outside of the pod nobody carries it.
    assert!(!talk(pod.outside_cgroup()).status.success());
}
