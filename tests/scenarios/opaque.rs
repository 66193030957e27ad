//! An opaque route carries any bytes, both ways, each direction to its own end, over mutual TLS.

use hnp_tests::agent::Route;
use hnp_tests::client::{self, End, RawCase};
use hnp_tests::manager::{Manager, Mode, Service, Setup};
use hnp_tests::pki::{Ca, Spec};
use hnp_tests::scene::Scene;
use hnp_tests::topology::MANAGER4;

const PORT: u16 = 9000;
const DESTINATION: &str = "198.18.0.9:9000";
const UPSTREAM: &str = "https://manager.hnp.test:9000";

#[test]
fn bytes_pass_both_ways_and_each_direction_ends_on_its_own() {
    let scene = Scene::for_test();
    let manager = echo(&scene);
    let pod = scene.pod();
    // The control: without an agent the same port closes on plaintext without a word.
    let outside = client::raw(pod.outside_cgroup(), (MANAGER4, PORT), vec![RawCase::new("hello")]).remove(0);
    assert_eq!(outside.text(), "");
    manager.forget();

    let agent = scene.agent_with(Route::opaque("wire", &[DESTINATION], UPSTREAM));
    let case = RawCase::in_parts(&[b"\x16\x03\x01 not TLS\x00", b"GET / no HTTP\n", b"\xff"], 50);
    let answer = client::raw(&pod, (MANAGER4, PORT), vec![case.then_half_close()]).remove(0);
    // The greeting came first, and the good-bye after our end of stream.
    let expected = b"220 ready\r\n\x16\x03\x01 not TLS\x00GET / no HTTP\n\xffbye 27\r\n";
    assert_eq!(answer.bytes, expected, "{:?}", answer.text());
    assert_eq!(answer.end, End::Eof);

    // The control's own connection may be noted late; it spoke no TLS.
    let tls = manager.connections().into_iter().find_map(|connection| connection.tls).expect("mutual TLS");
    assert_eq!(tls.client.expect("our certificate").serial, scene.client_serial);
    let line = agent.access_line_with("ok");
    assert_eq!((&line["mode"], &line["bytes_up"]), (&"opaque".into(), &27.into()), "{line}");
}

#[test]
fn the_greeting_comes_without_a_byte_from_the_pod() {
    let scene = Scene::for_test();
    let _manager = echo(&scene);
    let _agent = scene.agent_with(Route::opaque("wire", &[DESTINATION], UPSTREAM));
    let silent = RawCase::new("");
    let answer = client::raw(&scene.pod(), (MANAGER4, PORT), vec![silent]).remove(0);
    assert_eq!((answer.text().as_str(), answer.end), ("220 ready\r\n", End::Quiet));
}

#[test]
fn a_server_that_is_not_verified_gets_no_byte() {
    let scene = Scene::for_test();
    let foreign = Ca::new("another CA").issue(&Spec::server(&["manager.hnp.test"]));
    let manager = Manager::start(
        &scene,
        Setup::new("echo", PORT).service(Service::Echo).tls(Mode::Loose, &foreign, &scene.clients),
    );
    let agent = scene.agent_with(Route::opaque("wire", &[DESTINATION], UPSTREAM));
    let answer = client::raw(&scene.pod(), (MANAGER4, PORT), vec![RawCase::new("secret")]).remove(0);
    assert_eq!(answer.text(), "");
    assert!(matches!(answer.end, End::Broken(_)), "a reset, not an end: {:?}", answer.end);
    agent.access_line_with("upstream_certificate_unknown_ca");
    assert_eq!(manager.payload_received(), 0);
}

fn echo(scene: &Scene) -> Manager {
    let setup = Setup::new("echo", PORT).service(Service::Echo);
    Manager::start(scene, setup.tls(Mode::Strict, &scene.server, &scene.clients))
}
