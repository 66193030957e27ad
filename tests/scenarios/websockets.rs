//! A WebSocket by Python's `websockets`, on both sides: the pod's in the clear, the manager's behind mutual TLS; over
//! HTTP/1.1, and on a stream of HTTP/2 where HAProxy offers that.

use std::net::Ipv4Addr;
use std::time::Duration;

use hnp_tests::agent::{Agent, Route};
use hnp_tests::haproxy::Haproxy;
use hnp_tests::poll::eventually;
use hnp_tests::process::{Finished, Place, Running};
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
    let files = [server.certificate, server.key, clients].map(|path| path.display().to_string());
    let _server = serve(&scene, &MANAGER4.to_string(), &files);
    let route = Route::strict("ws", &["manager.hnp.test:80"], "https://manager.hnp.test:8443");
    let agent = Agent::start(&scene, &scene.config().route(route.with(IDENTITY, TRUST)));
    let pod = scene.pod();
    let said = talk(&pod);
    let serial = said.ok().lines().next().unwrap_or_default().trim_start_matches('0').to_owned();
    assert_eq!(serial, scene.client_serial.trim_start_matches('0'), "the agent's certificate");
    assert_eq!(said.text().lines().nth(1), Some("1048576"));
    let line = agent.access_line("the upgrade", |line| line["path"] == "/socket");
    assert_eq!((&line["status"], &line["upstream_protocol"]), (&101.into(), &"http/1.1".into()), "{line}");
    // The control: outside of the pod nobody carries it.
    assert!(!talk(pod.outside_cgroup()).status.success());
}

#[test]
fn messages_go_over_http2_where_the_upstream_offers_it() {
    // The control: the same HAProxy without the offer, which speaks HTTP/2 all the same.
    for (offered, version, protocol) in [(true, "2.0", "h2"), (false, "1.1", "http/1.1")] {
        let scene = Scene::for_test();
        let _server = serve(&scene, &Ipv4Addr::LOCALHOST.to_string(), &[]);
        let clients = scene.clients.write(scene.dir(), "ws-clients");
        let _front = Haproxy::start(&scene, 80, &scene.server, &clients, PORT, offered);
        let mut config = scene.config().route(scene.route());
        config.workers = 1;
        let agent = Agent::start(&scene, &config);
        let pod = scene.pod();
        // A request that is no WebSocket makes the connection; the server behind does not serve such.
        let plain =
            pod.command("curl").args(["-sS", "-w", "%{http_code}", &format!("http://{MANAGER_NAME}/x")]);
        assert!(plain.run().ok().ends_with("426"));
        let line = agent.access_line("the request", |line| line["path"] == "/x");
        assert_eq!(line["upstream_protocol"], "h2", "{line}");
        // One that is refused is answered like any request.
        let denied = pod.command("curl").args(["-sS", "-w", "%{http_code}", "-H", "Connection: Upgrade"]);
        let denied = denied.args(["-H", "Upgrade: websocket", "-H", "Sec-WebSocket-Version: 13"]);
        let denied = denied.args(["-H", "Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ=="]);
        let denied = denied.arg(format!("http://{MANAGER_NAME}/denied")).run();
        assert!(denied.ok().ends_with("403"), "{denied}");
        for _ in 0..3 {
            let said = talk(&pod);
            let who = format!("{} over {version}", scene.client_serial);
            assert_eq!(said.ok().lines().collect::<Vec<_>>(), [&who, "1048576"], "{said}");
        }
        let line = agent.access_line("a socket", |line| line["path"] == "/socket" && line["reason"] == "ok");
        assert_eq!((&line["status"], &line["upstream_protocol"]), (&101.into(), &protocol.into()), "{line}");
        let connections = || agent.metrics().sum("hnp_upstream_dials_total", &[("route", "manager")]);
        eventually(Duration::from_secs(10), "the dials are counted", || {
            connections() == if offered { 1.0 } else { 4.0 }
        });
    }
}

const PORT: u16 = 8443;

/// Python's server on the manager's side.
#[track_caller]
fn serve(scene: &Scene, addr: &str, files: &[String]) -> Running {
    let command = scene.manager_side().command(tools::python_with("websockets"));
    let mut running = command.args(["-c", SERVER, addr, &PORT.to_string()]).args(files).spawn();
    eventually(Duration::from_secs(20), "the server listens", || {
        assert!(running.is_alive(), "{}", running.stderr());
        running.stdout().contains("listening")
    });
    running
}

fn talk(place: &Place) -> Finished {
    let url = format!("ws://{MANAGER_NAME}:80/socket");
    place.command(tools::python_with("websockets")).args(["-c", CLIENT, &url]).run()
}
