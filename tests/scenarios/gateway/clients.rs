//! Real clients that were told of a proxy. The control of each is the same client without one: it reaches
//! the same manager, and is refused there for lacking a certificate.

use std::time::Duration;

use hnp_tests::agent::{self, Route};
use hnp_tests::pattern::Pattern;
use hnp_tests::poll::eventually;
use hnp_tests::process::Finished;
use hnp_tests::scene::{IDENTITY, Scene, TRUST};
use hnp_tests::topology::{MANAGER_NAME, MANAGER4};
use hnp_tests::{pki, tools};

use super::{Gateway, echoing, node_of, start, strict, uncaptured};

const GIT_SERVER: &str = include_str!("../../clients/git_server.py");

#[test]
fn requests_over_http2_in_every_form() {
    let case = Gateway::new();
    let node = node_of(&case.pod);
    let curl = |arguments: &[&str]| {
        let command =
            case.pod.command("curl").args(["-sS", "--http2-prior-knowledge", "-w", " %{http_version}"]);
        command.args(arguments).run()
    };
    let own = format!("http://{node}:7777/hello");
    let named = ["-H", "Host: manager.hnp.test", &own];
    for arguments in [&[own.as_str()][..], &named] {
        let answer = curl(arguments);
        assert!(answer.ok().contains("\"manager\":\"manager\"") && answer.text().ends_with(" 2"), "{answer}");
        assert_eq!(case.manager.last_request().expect("one came").client_serial(), case.scene.client_serial);
    }
    // The control: straight to the manager, which speaks TLS alone.
    assert!(!curl(&[&format!("http://{MANAGER_NAME}/hello")]).status.success());
}

#[test]
fn a_loose_manager_in_every_form() {
    let scene = Scene::for_test();
    let manager = scene.loose_manager("manager", 80);
    let tunnel = Route::tunnel("tls", &["manager.hnp.test:443"], "https://manager.hnp.test:80");
    let config = scene.config().route(scene.route()).route(tunnel);
    let _agent = start(&scene, &uncaptured(config));
    let pod = scene.pod();
    let proxy = format!("http://{}:7777", node_of(&pod));
    let (plain, own_tls) = (format!("http://{MANAGER_NAME}/hello"), format!("https://{MANAGER_NAME}/hello"));
    let roots = scene.roots.display().to_string();
    for (arguments, serial) in [
        (&["--proxy", &proxy, &plain][..], Some(&*scene.client_serial)),
        (&["--proxytunnel", "--proxy", &proxy, &plain], Some(&*scene.client_serial)),
        (&[&format!("{proxy}/hello")], Some(&*scene.client_serial)),
        // Its own TLS, end to end: a loose manager takes it without a certificate, and none is lent.
        (&["--proxy", &proxy, "--cacert", &roots, &own_tls], None),
    ] {
        let answer = pod.command("curl").arg("-sS").args(arguments).run();
        assert!(answer.ok().contains("\"manager\":\"manager\""), "{arguments:?}: {answer}");
        let tls = manager.last_request().expect("one came").tls.expect("TLS");
        assert_eq!(tls.client.as_ref().map(|client| client.serial.as_str()), serial, "{arguments:?}");
    }
}

#[test]
fn proxy_url_by_an_agent_without_any_capability() {
    // A pod with PROXY_URL=http://node:7777 sends origin-form, and the gateway's own name as Host.
    let case = Gateway::new();
    let capabilities =
        std::fs::read_to_string(format!("/proc/{}/status", case.agent.pid())).expect("it runs");
    assert!(capabilities.contains("CapEff:\t0000000000000000"), "{capabilities}");
    let straight = curl(&case, &["-si", &format!("http://{MANAGER_NAME}/hello")]);
    assert!(straight.text().contains(" 400 "), "the control: {straight}");

    let url = format!("{}/gateway/hello?key=K", case.url());
    let answer =
        curl(&case, &["-sS", "--fail", &url, "-H", "X-Token: one", "-H", "X-Forwarded-Client-Cert: Hash=1"]);
    assert!(answer.ok().contains("\"manager\":\"manager\""), "{answer}");
    let seen = case.manager.request("one");
    assert_eq!(
        (seen.client_serial(), seen.target.as_str()),
        (&*case.scene.client_serial, "/gateway/hello?key=K")
    );
    assert_eq!(seen.head.header("host"), Some("manager.hnp.test:80"), "the upstream's, not the gateway's");
    assert!(seen.head.header("x-forwarded-client-cert").is_none());
    let line = case.agent.access_line("the request", |line| line["gateway"] == "origin");
    assert_eq!(
        (&line["mode"], &line["route"], &line["reason"]),
        (&"reverse-proxy".into(), &"manager".into(), &"ok".into())
    );
    assert_eq!(line["asked"], format!("{}:7777", node_of(&case.pod)));
    assert!(line["client"].as_str().is_some_and(|client| client.starts_with("10.244.")), "{line}");
    assert_eq!(
        agent::remains(&case.scene),
        Vec::<String>::new(),
        "nothing in the kernel, no pin, no route, no socket"
    );
}

#[test]
fn curl_with_a_proxy_and_http_urls() {
    let case = Gateway::new();
    let straight = curl(&case, &["-si", &format!("http://{MANAGER_NAME}/hello")]);
    assert!(straight.text().contains(" 400 "), "the control: {straight}");
    let (one, two) = (format!("http://{MANAGER_NAME}/a?x=1"), format!("http://{MANAGER4}:80/b"));
    let proxy = ["-sS", "--fail", "--proxy", &case.url(), "--proxy-user", "somebody:geheim"];
    let token = ["-H", "X-Token: one", "-H", "Proxy-Connection: keep-alive"];
    let answer = curl(&case, &[&proxy[..], &token, &[&one, &two]].concat());
    assert_eq!(answer.ok().matches("\"manager\":\"manager\"").count(), 2, "{answer}");
    let mut requests = case.manager.requests();
    requests.retain(|seen| seen.tls.is_some());
    assert_eq!(requests.iter().map(|seen| &*seen.target).collect::<Vec<_>>(), ["/a?x=1", "/b"]);
    for seen in &requests {
        assert_eq!(seen.client_serial(), case.scene.client_serial);
        let head = String::from_utf8_lossy(&seen.head.raw).to_ascii_lowercase();
        assert!(!head.contains("proxy-") && !head.contains("geheim"), "{head}");
    }
    let line = case.agent.access_line("by name", |line| line["asked"] == "manager.hnp.test:80");
    assert_eq!(line["gateway"], "absolute", "{line}");
    let line = case.agent.access_line("by address", |line| line["asked"] == "198.18.0.9:80");
    assert_eq!(line["destination"], "198.18.0.9:80", "{line}");
    assert!(!case.agent.access_log().contains("geheim"));
}

#[test]
fn the_pods_own_certificate_through_connect_to_a_tunnel() {
    let (case, client) = tunnelled();
    let serial = pki::serial_of(&client.certificate);
    let (certificate, key) = (client.certificate.display().to_string(), client.key.display().to_string());
    let roots = case.scene.roots.display().to_string();
    let url = format!("https://{MANAGER_NAME}/hello");
    let proxied = ["-sS", "--fail", "--proxy", &case.url(), "--cacert", &roots, &url];
    let own = ["--cert", &certificate, "--key", &key];
    let straight = curl(&case, &["-sS", "--cacert", &roots, &url]);
    assert!(!straight.status.success(), "nobody listens where the pod dials: {straight}");
    let without = curl(&case, &proxied);
    assert!(!without.status.success() && without.stderr.contains("certificate required"), "{without}");
    let answer = curl(&case, &[&proxied[..], &own].concat());
    assert!(answer.ok().contains("\"manager\":\"manager\""), "{answer}");
    let seen = case.manager.last_request().expect("one came").tls.expect("TLS");
    assert_eq!(seen.client.expect("the pod's").serial, serial, "end to end, not the node's");
    let line =
        case.agent.access_line("the tunnel", |line| line["mode"] == "tunnel" && line["reason"] == "ok");
    assert_eq!(
        (&line["gateway"], &line["asked"]),
        (&"connect".into(), &"manager.hnp.test:443".into()),
        "{line}"
    );
    // It is the manager whom the client verifies: with other roots it goes no further (CURLE_PEER_FAILED_VERIFICATION).
    let others = pki::Ca::new("others").write(case.scene.dir(), "others").display().to_string();
    let forged = ["-sS", "--proxy", &case.url(), "--cacert", &others, &url];
    assert_eq!(curl(&case, &[&forged[..], &own].concat()).status.code(), Some(60));
    // A name that the tunnel does not carry, in the hello behind the CONNECT.
    let other =
        ["--connect-to", &format!("other.hnp.test:443:{MANAGER_NAME}:443"), "https://other.hnp.test/"];
    let refused = curl(&case, &[&["-sS", "--proxy", &case.url(), "--cacert", &roots][..], &other].concat());
    assert!(!refused.status.success() && refused.stderr.contains("unrecognized name"), "{refused}");
    case.agent.access_line_with("sni_refused");
}

#[test]
fn plaintext_through_connect_is_served_like_a_captured_connection() {
    let case = Gateway::new();
    let url = format!("http://{MANAGER_NAME}/hello");
    let answer = curl(&case, &["-sS", "--fail", "--proxytunnel", "--proxy", &case.url(), &url]);
    assert!(answer.ok().contains("\"manager\":\"manager\""), "{answer}");
    assert_eq!(case.manager.last_request().expect("one came").client_serial(), case.scene.client_serial);
    // What the client sent before it heard of the 200 is not lost, and another Host behind it goes nowhere.
    let connect = "CONNECT manager.hnp.test:80 HTTP/1.1\r\nHost: manager.hnp.test:80\r\n\r\n";
    let ask =
        |host: &str| format!("{connect}GET /early HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\n\r\n");
    let answers = case.raw(&[&ask(MANAGER_NAME), &ask("elsewhere.test"), &ask("0.0.0.0"), &ask("127.0.0.1")]);
    let served = answers[0].text();
    assert!(served.starts_with("HTTP/1.1 200 Connection established\r\n\r\nHTTP/1.1 200 OK"), "{served}");
    for answer in &answers[1..] {
        assert_eq!(super::reason(answer), "host_refused", "{}", answer.text());
    }
    assert_eq!(case.manager.request_count(), 2);
}

#[test]
fn opaque_bytes_through_connect() {
    use hnp_tests::client::{self, RawCase};
    let scene = Scene::for_test();
    let (echo, agent) = echoing(&scene);
    let pod = scene.pod();
    let node: std::net::IpAddr = node_of(&pod).parse().expect("an address");
    let case =
        RawCase { half_close: true, ..RawCase::new("CONNECT manager.hnp.test:81 HTTP/1.1\r\n\r\nhello\n") };
    let answer = client::raw(&pod, (node, 7777), vec![case]).remove(0);
    let expected = "HTTP/1.1 200 Connection established\r\n\r\n220 ready\r\nhello\nbye 6\r\n";
    assert_eq!(answer.text(), expected);
    let tls = echo.connections().remove(0).tls.expect("mutual TLS");
    assert_eq!(tls.client.expect("our certificate").serial, scene.client_serial);
    let line = agent.access_line("the stream", |line| line["mode"] == "opaque");
    assert_eq!((&line["gateway"], &line["bytes_up"]), (&"connect".into(), &6.into()), "{line}");
    // The control: the bytes themselves, without the gateway, are no TLS with a certificate.
    let straight = client::raw(&pod, (MANAGER4, 81), vec![RawCase::new("hello\n")]).remove(0);
    assert!(!straight.text().contains("hello"), "{}", straight.text());
}

#[test]
fn what_switches_protocols_goes_on_as_bytes_both_ways() {
    let case = Gateway::new();
    let ask = |target: &str| {
        let head = "Connection: Upgrade\r\nUpgrade: websocket\r\nProxy-Connection: keep-alive";
        format!("GET {target} HTTP/1.1\r\nHost: manager.hnp.test\r\n{head}\r\n\r\nframes and frames")
    };
    let connect = "CONNECT manager.hnp.test:80 HTTP/1.1\r\n\r\n";
    let forms =
        [ask("/upgrade"), ask("http://manager.hnp.test/upgrade"), format!("{connect}{}", ask("/upgrade"))];
    for (form, answer) in forms.iter().zip(case.raw(&forms.each_ref().map(|form| &**form))) {
        let text = answer.text();
        assert!(text.contains("HTTP/1.1 101 ") && text.ends_with("frames and frames"), "{form}: {text}");
    }
    // The control: h2c is no protocol that is switched to here, and the request is served without.
    let h2c = ask("/hello").replace("websocket", "h2c").replace("frames and frames", "");
    assert_eq!(case.raw(&[&h2c])[0].status(), Some(200));
    let head = String::from_utf8_lossy(&case.manager.last_request().expect("one came").head.raw).into_owned();
    assert!(!head.to_ascii_lowercase().contains("upgrade"), "{head}");
}

#[test]
fn the_pods_tls_ends_behind_a_connect_as_on_a_captured_connection() {
    let case = Gateway::with(|scene| {
        let serving = scene.server.write(scene.dir(), "serving");
        let pods = scene.clients.write(scene.dir(), "pods");
        let route = Route::strict("tls", &["manager.hnp.test:443"], "https://manager.hnp.test:80")
            .with(IDENTITY, TRUST)
            .set("mode", "end-to-end")
            .set("end_to_end", "{serving: [serving], client_trust: pods}");
        scene.config().identity("serving", &serving).trust("pods", &pods).route(route)
    });
    let client = case.scene.clients.client().write(case.scene.dir(), "pod");
    let (certificate, key) = (client.certificate.display().to_string(), client.key.display().to_string());
    let (roots, url) = (case.scene.roots.display().to_string(), format!("https://{MANAGER_NAME}/hello"));
    let proxied = ["-sS", "--fail", "--proxy", &case.url(), "--cacert", &roots, &url];
    let answer = curl(&case, &[&proxied[..], &["--cert", &certificate, "--key", &key]].concat());
    assert!(answer.ok().contains("\"manager\":\"manager\""), "{answer}");
    let seen = case.manager.last_request().expect("one came");
    assert_eq!(seen.client_serial(), case.scene.client_serial, "the agent speaks for it");
    assert!(seen.head.header("x-forwarded-client-cert").is_some_and(|value| value.starts_with("Hash=")));
    let line = case.agent.access_line("the request", |line| line["mode"] == "end-to-end");
    assert_eq!(
        (&line["gateway"], &line["client_serial"]),
        (&"connect".into(), &pki::serial_of(&client.certificate).into())
    );
    // The controls: without a certificate, and without TLS, nobody gets in.
    let without = curl(&case, &proxied);
    assert!(!without.status.success() && without.stderr.contains("certificate required"), "{without}");
    let plain =
        case.raw(&["GET http://manager.hnp.test:443/ HTTP/1.1\r\nHost: manager.hnp.test:443\r\n\r\n"]);
    assert_eq!(super::reason(&plain[0]), "tls_expected", "{}", plain[0].text());
    assert_eq!(case.manager.request_count(), 1);
}

#[test]
fn python_requests_with_proxy_variables() {
    const SCRIPT: &str = "import os, requests, sys\n\
        url, cert = sys.argv[1], tuple(sys.argv[2:]) or None\n\
        r = requests.get(url, timeout=10, cert=cert)\n\
        print(r.status_code, r.text)";
    let python = tools::python_with_requests();
    let (case, client) = tunnelled();
    let run = |proxied: bool, url: &str, own: bool| {
        let mut command = case.pod.command(&python).args(["-c", SCRIPT, url]);
        if own {
            command = command.arg(&client.certificate).arg(&client.key);
        }
        if proxied {
            command = command.env("HTTP_PROXY", &case.url()).env("HTTPS_PROXY", &case.url());
        }
        command.env("REQUESTS_CA_BUNDLE", &case.scene.roots.display().to_string()).run()
    };
    let (clear, tls) = ("http://plain.hnp.test/hello", format!("https://{MANAGER_NAME}/hello"));
    assert!(!run(false, clear, false).text().contains("200"), "the control");
    assert!(!run(false, &tls, true).status.success(), "the control");
    assert!(run(true, clear, false).ok().contains("\"manager\":\"manager\""));
    assert_eq!(case.manager.last_request().expect("one came").client_serial(), case.scene.client_serial);
    assert!(run(true, &tls, true).ok().contains("\"manager\":\"manager\""));
    let own = pki::serial_of(&client.certificate);
    assert_eq!(case.manager.last_request().expect("one came").client_serial(), own);
    assert!(!run(true, &tls, false).status.success(), "nobody lends a tunnel a certificate");
}

#[test]
fn git_over_https_through_connect() {
    let scene = Scene::for_test();
    let server = scene.servers.server(&[MANAGER_NAME]).write(scene.dir(), "git");
    let client = scene.clients.client().write(scene.dir(), "pod");
    let clients = scene.clients.write(scene.dir(), "clients");
    let (repositories, exec) = (scene.path("repositories"), tools::run(scene.dir(), "git", &["--exec-path"]));
    let bare = repositories.join("world.git");
    std::fs::create_dir(&repositories).expect("the world's directory is ours");
    tools::run(scene.dir(), "git", &["init", "-q", "--bare", "-b", "main", &bare.display().to_string()]);
    let manager = scene.manager_side();
    let address = MANAGER4.to_string();
    let arguments = ["-c", GIT_SERVER, &address, "8443"];
    let command = manager.command(tools::python()).args(arguments).arg(&server.certificate).arg(&server.key);
    let running = command.arg(&clients).arg(&repositories).arg(exec.trim()).spawn();
    eventually(Duration::from_secs(20), "git's server listens", || running.stdout().contains("listening"));
    let route = Route::tunnel("git", &["manager.hnp.test:443"], "https://manager.hnp.test:8443");
    let agent = start(&scene, &uncaptured(scene.config().route(route)));
    let pod = scene.pod();

    let proxy = format!("http://{}:7777", node_of(&pod));
    let url = format!("https://{MANAGER_NAME}/world.git");
    let git = |arguments: &[&str], proxied: bool| -> Finished {
        let path = |path: &std::path::Path| path.display().to_string();
        let mut command = pod.command(tools::need("git")).args(arguments);
        for (key, value) in [
            ("GIT_SSL_CAINFO", path(&scene.roots)),
            ("GIT_SSL_CERT", path(&client.certificate)),
            ("GIT_SSL_KEY", path(&client.key)),
            ("GIT_AUTHOR_NAME", "pod".into()),
            ("GIT_AUTHOR_EMAIL", "pod@hnp.test".into()),
            ("GIT_COMMITTER_NAME", "pod".into()),
            ("GIT_COMMITTER_EMAIL", "pod@hnp.test".into()),
            ("GIT_CONFIG_NOSYSTEM", "1".into()),
            ("GIT_CONFIG_GLOBAL", "/dev/null".into()),
            ("GIT_TERMINAL_PROMPT", "0".into()),
        ] {
            command = command.env(key, &value);
        }
        if proxied { command.env("https_proxy", &proxy) } else { command }.run()
    };
    let (first, second) =
        (scene.path("first").display().to_string(), scene.path("second").display().to_string());
    let straight = git(&["ls-remote", &url], false);
    assert!(
        !straight.status.success(),
        "the control: nobody listens on the port that the pod dials: {straight}"
    );
    git(&["clone", "-q", &url, &first], true).ok();
    let mut pattern = Pattern::new(7, 3_000_000);
    let mut content = Vec::new();
    while let Some(block) = pattern.next_block() {
        content.extend_from_slice(block);
    }
    std::fs::write(scene.path("first/large"), &content).expect("the world's directory is ours");
    git(&["-C", &first, "add", "large"], true).ok();
    git(&["-C", &first, "commit", "-qm", "from the pod"], true).ok();
    // Three megabytes: git sends them chunked, behind a probe of its own.
    git(&["-C", &first, "push", "-q", "origin", "HEAD:main"], true).ok();
    git(&["clone", "-q", &url, &second], true).ok();
    assert!(std::fs::read(scene.path("second/large")).expect("it was cloned") == content, "byte for byte");
    let seen = running.stdout();
    let own = pki::serial_of(&client.certificate);
    let own = own.trim_start_matches('0');
    let served: Vec<&str> = seen.lines().filter(|line| line.contains("world.git")).collect();
    assert!(
        served.len() >= 4 && served.iter().all(|line| line.contains(own)),
        "the pod's own certificate {own}: {seen}"
    );
    agent.access_line("a tunnel of git's", |line| {
        line["mode"] == "tunnel" && line["bytes_up"].as_u64() > Some(2_000_000)
    });
}

/// A tunnel for TLS on 443 and a reverse proxy for plaintext on 80, on the same manager.
pub(super) fn tunnelled() -> (Gateway, pki::Files) {
    let case = Gateway::with(|scene| {
        scene.add_host("plain.hnp.test", &[MANAGER4.into()]);
        let tunnel = Route::tunnel("tls", &["manager.hnp.test:443"], "https://manager.hnp.test:80");
        scene.config().route(tunnel).route(strict("manager", &["plain.hnp.test:80"]))
    });
    let client = case.scene.clients.client().write(case.scene.dir(), "pod");
    (case, client)
}

fn curl(case: &Gateway, arguments: &[&str]) -> Finished {
    case.pod.command("curl").args(arguments).run()
}
