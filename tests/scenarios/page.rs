//! The page on the admin port, in a real browser: what is shown is what is, what a pod writes stays text, and an
//! agent that is gone is not taken for one that is well.

use std::time::Duration;

use hnp_tests::browser::Browser;
use hnp_tests::client::{self, RawCase};
use hnp_tests::poll::eventually;
use hnp_tests::scene::Scene;
use hnp_tests::topology::{MANAGER_NAME, MANAGER4, Pod};

const URL: &str = "http://localhost:15090/";
/// Where pictures are left, to be looked at; the README shows them.
const PICTURES: &str = "HNP_PICTURES";

#[test]
fn it_shows_what_is_and_runs_nothing_that_a_pod_wrote() {
    let scene = Scene::for_test();
    let manager = scene.strict_manager();
    let (agent, pod) = (scene.agent(), scene.pod());
    let browser = Browser::on_node(&scene);
    let before = browser.document(URL);
    for word in [">ready<", "manager.hnp.test:80", "hnp test client", "169.254.77.", ">unused<", ">nobody<"] {
        assert!(before.contains(word), "{word}: {before}");
    }
    assert!(!before.contains(&pod.uid), "the control: nobody has called");

    let script = "/x<script>document.title='run'</script><img/src=x/onerror=document.title='run'>";
    let slow = slow_request(&pod);
    get(&pod, "/hello");
    get(&pod, script);
    eventually(SOON, "the slow request is under way", || {
        manager.requests().iter().any(|request| request.token == "seen-live")
    });
    let shown = browser.document(URL);
    for word in [">ok<", &*pod.uid, "/hello", "GET /slow", ">1 of 1<"] {
        assert!(shown.contains(word), "{word}: {shown}");
    }
    // As text, and nowhere else.
    assert!(
        shown.contains("/x&lt;script&gt;document.title") && !shown.contains("<script>document"),
        "{shown}"
    );
    assert!(shown.contains("<title>hnp-agent</title>"), "{shown}");
    pictures(&browser, "page");
    slow.signal(nix::sys::signal::Signal::SIGKILL);

    drop(manager);
    get(&pod, "/hello");
    let failing = browser.document(URL);
    for word in [">failing<", "upstream_refused"] {
        assert!(failing.contains(word), "{word}: {failing}");
        assert!(!before.contains(word), "the control");
    }
    pictures(&browser, "page-failing");
    drop(agent);
}

/// The page is opened, and what it asks after that fails: a tab that was left open.
#[test]
fn an_agent_that_is_gone_is_said_to_be() {
    let scene = Scene::for_test();
    let agent = scene.agent();
    let browser = Browser::on_node(&scene);
    assert!(!browser.document(URL).contains("does not answer"), "the control");
    // The files are saved as a browser has them in its tab; nobody answers under their own address.
    let page = scene.path("page");
    std::fs::create_dir(&page).expect("the world's directory is ours");
    for file in ["", "page.css", "page.js"] {
        let (status, text) = agent.get_as("localhost", &format!("/{file}")).expect("it runs");
        assert_eq!(status, 200);
        let name = if file.is_empty() { "page.html" } else { file };
        std::fs::write(page.join(name), text).expect("the world's directory is ours");
    }
    drop(agent);
    let lost = browser.document(&format!("file://{}", page.join("page.html").display()));
    assert!(lost.contains("does not answer") && lost.contains(">unknown<"), "{lost}");
}

const SOON: Duration = Duration::from_secs(30);

fn get(pod: &Pod, path: &str) {
    let text = format!("GET {path} HTTP/1.1\r\nhost: {MANAGER_NAME}\r\nconnection: close\r\n\r\n");
    client::raw(pod, (MANAGER4, 80), vec![RawCase::new(text)]);
}

fn slow_request(pod: &Pod) -> hnp_tests::process::Running {
    let url = format!("http://{MANAGER_NAME}/slow?ms=60000&token=seen-live");
    pod.command("curl").args(["-s4", &url]).spawn()
}

/// Takes a picture of how it looks, where somebody wants to look.
fn pictures(browser: &Browser<'_>, name: &str) {
    if let Some(dir) = std::env::var_os(PICTURES) {
        browser.picture(URL, &std::path::Path::new(&dir).join(format!("{name}.png")), 1280, 1120);
    }
}
