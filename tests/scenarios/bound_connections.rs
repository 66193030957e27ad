//! An upstream that authenticates connections, as NTLM does: a connection that is one client's is nobody else's.

use std::time::Duration;

use hnp_tests::agent::{Agent, Route};
use hnp_tests::poll::eventually;
use hnp_tests::scene::{IDENTITY, Scene, TRUST};
use hnp_tests::tools;
use hnp_tests::topology::{MANAGER_NAME, MANAGER4};

const SERVER: &str = include_str!("../clients/ntlm_server.py");

/// Two clients in turns; a line for each answer: who, status, the number of the connection that it came on.
const CLIENT: &str = "
import http.client, sys
scheme = sys.argv[2]
clients = {who: http.client.HTTPConnection(sys.argv[1], 80) for who in 'ab'}
def get(who, credentials):
    clients[who].request('GET', '/', headers={'Authorization': scheme + ' ' + credentials} if credentials else {})
    answer = clients[who].getresponse()
    print(who, answer.status, answer.read().decode())
get('a', None)
get('a', 'b25l')
get('a', 'dHdv')
get('a', None)
get('b', None)
get('a', None)
";

#[test]
fn a_connection_that_is_one_clients_is_nobody_elses() {
    let scene = Scene::for_test();
    let server = scene.server.write(scene.dir(), "ntlm");
    let clients = scene.clients.write(scene.dir(), "ntlm-clients");
    let command =
        scene.manager_side().command(tools::python()).args(["-c", SERVER, &MANAGER4.to_string(), "8443"]);
    let mut running = command.arg(&server.certificate).arg(&server.key).arg(&clients).spawn();
    eventually(Duration::from_secs(20), "the server listens", || {
        assert!(running.is_alive(), "{}", running.stderr());
        running.stdout().contains("listening")
    });
    let route = Route::strict("ntlm", &["manager.hnp.test:80"], "https://manager.hnp.test:8443");
    let mut config = scene.config().route(route.with(IDENTITY, TRUST));
    // One pool, so that sharing is no matter of luck.
    config.workers = 1;
    let _agent = Agent::start(&scene, &config);
    let pod = scene.pod();
    let ask = |scheme: &str| {
        let said = pod.command(tools::python()).args(["-c", CLIENT, MANAGER_NAME, scheme]).run().ok();
        let answers = said.lines().map(|line| line.split(' ').map(str::to_owned).collect::<Vec<_>>());
        answers.collect::<Vec<_>>()
    };
    let said = ask("NTLM");
    let statuses: Vec<String> = said.iter().map(|answer| format!("{} {}", answer[0], answer[1])).collect();
    assert_eq!(statuses, ["a 401", "a 401", "a 200", "a 200", "b 401", "a 200"], "{said:?}");
    let on = |index: usize| said[index][2].as_str();
    assert!(on(1) == on(2) && on(2) == on(3) && on(3) == on(5), "{said:?}");
    assert_ne!(on(4), on(3), "{said:?}");
    // The control: credentials of requests bind nothing, and connections are shared.
    let said = ask("Basic");
    assert!(said.iter().all(|answer| answer[1] == "401" && answer[2] == said[0][2]), "{said:?}");
}
