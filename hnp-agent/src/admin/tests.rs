use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

use super::*;
use crate::reload::InForce;
use crate::telemetry::readiness::Pending;
use crate::workload::{Workload, WorkloadSource};

/// Knows no cgroup.
struct Nobody;

impl WorkloadSource for Nobody {
    fn identify_cgroup(&self, _: u64, _: [u64; 2]) -> Arc<Workload> {
        Arc::default()
    }
}

struct Server {
    addr: SocketAddr,
    readiness: Readiness,
    cancel: CancellationToken,
    task: JoinSet<()>,
    _name: crate::run_dir::Name,
    dir: tempfile::TempDir,
}

impl Server {
    async fn start() -> Self {
        Self::start_with(true).await
    }

    async fn start_with(page: bool) -> Self {
        let plan = crate::config::parse(
            "identities: {c: {certificate: /c, key: /k}}\n\
             routes: [{name: m, destinations: ['m.test:80'], upstream: 'https://m.test', identity: c}]",
            std::path::Path::new("x"),
        )
        .unwrap();
        let telemetry = Telemetry::writing_to(&plan, Box::new(io::sink()));
        let listener = bind("127.0.0.1:0".parse().unwrap()).await.unwrap();
        let addr = listener.local_addr().unwrap();
        let (readiness, cancel) = (Readiness::new(), CancellationToken::new());
        let mut task = JoinSet::new();
        let sources = Sources {
            since: std::time::SystemTime::now(),
            in_force: InForce::for_test(plan),
            captured: None,
            names: Arc::default(),
            workloads: Arc::new(Nobody),
        };
        let state = State::new(telemetry, readiness.clone(), direct::Table::default(), sources);
        let dir = tempfile::tempdir().unwrap();
        let (socket, name) = socket::open(dir.path()).unwrap();
        task.spawn(serve(Listener::Port { listener, page }, Arc::clone(&state), cancel.clone()));
        task.spawn(serve(Listener::Socket(socket), state, cancel.clone()));
        Self { addr, readiness, cancel, task, _name: name, dir }
    }

    /// The same over the socket.
    async fn ask_socket(&self, head: &str) -> String {
        let mut stream = UnixStream::connect(self.dir.path().join(socket::NAME)).await.unwrap();
        let request = format!("{head}\r\nHost: x\r\nConnection: close\r\n\r\n");
        stream.write_all(request.as_bytes()).await.unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).await.unwrap();
        answer
    }

    /// The whole answer to a request head.
    async fn ask(&self, head: &str) -> String {
        self.ask_as("x", head).await
    }

    /// The same under another name of the server.
    async fn ask_as(&self, host: &str, head: &str) -> String {
        let mut stream = TcpStream::connect(self.addr).await.unwrap();
        let request = format!("{head}\r\nHost: {host}\r\nConnection: close\r\n\r\n");
        stream.write_all(request.as_bytes()).await.unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).await.unwrap();
        answer
    }
}

#[tokio::test]
async fn readiness_says_what_is_pending_in_both_forms() {
    let server = Server::start().await;
    let pending: Pending = server.readiness.pending("identity c", "no such\nfile");
    let text = server.ask("GET /readyz HTTP/1.1").await;
    assert!(text.starts_with("HTTP/1.1 503 "), "{text}");
    assert!(text.ends_with("\r\n\r\nnot ready: 1 pending\nidentity c: no such file\n"), "{text}");
    for head in ["GET /readyz?format=json HTTP/1.1", "GET /readyz HTTP/1.1\r\nAccept: application/json"] {
        let text = server.ask(head).await;
        assert!(
            text.ends_with(
                "{\"pending\":[{\"name\":\"identity c\",\"why\":\"no such\\nfile\"}],\"ready\":false}\n"
            ),
            "{text}"
        );
    }
    assert!(server.ask("GET /metrics HTTP/1.1").await.contains("\nhnp_ready 0\n"));
    drop(pending);
    let text = server.ask("GET /readyz HTTP/1.1").await;
    assert!(text.starts_with("HTTP/1.1 200 ") && text.ends_with("\r\n\r\nready\n"), "{text}");
    assert!(server.ask("GET /metrics HTTP/1.1").await.contains("\nhnp_ready 1\n"));
}

#[tokio::test]
async fn metrics_and_health_answer_and_everything_else_is_refused_clearly() {
    let server = Server::start().await;
    let metrics = server.ask("GET /metrics HTTP/1.1").await;
    assert!(metrics.contains("content-type: application/openmetrics-text"), "{metrics}");
    assert!(metrics.contains("\nhnp_connections_open 0\n") && metrics.ends_with("# EOF\n"), "{metrics}");
    assert!(metrics.contains("\nprocess_resident_memory_bytes "), "{metrics}");
    assert!(server.ask("GET /healthz HTTP/1.1").await.ends_with("\r\n\r\nok\n"));
    let head = server.ask("HEAD /healthz HTTP/1.1").await;
    assert!(head.starts_with("HTTP/1.1 200 ") && head.ends_with("\r\n\r\n"), "{head}");
    let missing = server.ask("GET /nothing HTTP/1.1").await;
    assert!(missing.starts_with("HTTP/1.1 404 ") && missing.contains("/readyz"), "{missing}");
    let refused = server.ask("POST /metrics HTTP/1.1\r\nContent-Length: 0").await;
    assert!(refused.starts_with("HTTP/1.1 405 ") && refused.contains("allow: GET, HEAD"), "{refused}");
}

#[tokio::test]
async fn too_many_connections_wait_and_cancelling_ends_it_all() {
    let mut server = Server::start().await;
    let mut idle = Vec::new();
    for _ in 0..CONNECTIONS {
        let mut stream = TcpStream::connect(server.addr).await.unwrap();
        stream.write_all(b"GET /healthz HTTP/1.1\r\nHost: x\r\n\r\n").await.unwrap();
        let mut answer = [0; 12];
        stream.read_exact(&mut answer).await.unwrap();
        assert_eq!(&answer, b"HTTP/1.1 200");
        idle.push(stream);
    }
    let mut waiting = Box::pin(server.ask("GET /healthz HTTP/1.1"));
    let early = tokio::time::timeout(Duration::from_millis(100), &mut waiting).await;
    assert!(early.is_err(), "more than {CONNECTIONS} are served at a time");
    drop(idle.pop());
    assert!(waiting.as_mut().await.ends_with("ok\n"));
    drop(waiting);
    server.cancel.cancel();
    server.task.join_next().await.unwrap().unwrap();
    let mut rest = Vec::new();
    let closed = idle[0].read_to_end(&mut rest);
    let _ =
        tokio::time::timeout(Duration::from_secs(10), closed).await.expect("open connections are dropped");
}

#[tokio::test]
async fn without_the_page_what_names_pods_is_on_the_socket_alone() {
    let server = Server::start_with(false).await;
    for path in ["/status", "/flows", "/migration"] {
        let port = server.ask(&format!("GET {path} HTTP/1.1")).await;
        assert!(
            port.starts_with("HTTP/1.1 403 ")
                && port.contains("admin.page")
                && port.contains(&format!("hnp-agent {}", &path[1..])),
            "{port}"
        );
        let socket = server.ask_socket(&format!("GET {path} HTTP/1.1")).await;
        assert!(socket.starts_with("HTTP/1.1 200 ") && socket.contains("\"schema\":1"), "{socket}");
    }
    for path in ["/", "/page.css", "/page.js"] {
        assert!(
            server.ask_as("localhost", &format!("GET {path} HTTP/1.1")).await.starts_with("HTTP/1.1 403 ")
        );
    }
    let missing = server.ask("GET /nothing HTTP/1.1").await;
    assert!(missing.ends_with("/metrics, /healthz, /readyz, /observed\n"), "{missing}");
    let missing = server.ask_socket("GET /nothing HTTP/1.1").await;
    assert!(missing.contains(", /status, /flows, /migration, /"), "{missing}");
    assert!(server.ask_socket("GET /metrics HTTP/1.1").await.ends_with("# EOF\n"));
    for query in ["/flows?reason=nonsense", "/migration?since=nonsense"] {
        let refused = server.ask_socket(&format!("GET {query} HTTP/1.1")).await;
        assert!(refused.starts_with("HTTP/1.1 400 ") && refused.contains("nonsense"), "{refused}");
    }
}

#[tokio::test]
async fn the_page_is_given_under_no_name_that_somebody_else_may_have_chosen() {
    let server = Server::start().await;
    for path in ["/", "/page.css", "/page.js", "/status", "/flows"] {
        let head = format!("GET {path} HTTP/1.1");
        let rebound = server.ask_as("rebound.example", &head).await;
        assert!(rebound.starts_with("HTTP/1.1 421 ") && rebound.contains("localhost"), "{rebound}");
        // The control.
        for host in ["127.0.0.1:15090", "localhost:8080"] {
            let answer = server.ask_as(host, &head).await;
            assert!(answer.starts_with("HTTP/1.1 200 "), "{answer}");
            let is_file = path != "/status" && path != "/flows";
            assert_eq!(answer.contains("content-security-policy: default-src 'none'"), is_file, "{answer}");
        }
    }
    // Scrapers call a server what they like.
    assert!(server.ask_as("node-1.example", "GET /metrics HTTP/1.1").await.starts_with("HTTP/1.1 200 "));
}

#[tokio::test]
async fn status_says_what_is_pending_and_which_routes_there_are() {
    let server = Server::start().await;
    let pending = server.readiness.pending("identity c", "no such file");
    let status = async || {
        let answer = server.ask_socket("GET /status HTTP/1.1").await;
        serde_json::from_str::<Value>(answer.split_once("\r\n\r\n").unwrap().1).unwrap()
    };
    let seen = status().await;
    assert_eq!((&seen["ready"], &seen["pending"][0]["why"]), (&json!(false), &json!("no such file")));
    assert_eq!(seen["pid"], std::process::id());
    let route = &seen["routes"][0];
    assert_eq!(
        (&route["name"], &route["identity"], &route["health"]["state"]),
        (&json!("m"), &json!("c"), &json!("unused"))
    );
    drop(pending);
    assert_eq!(status().await["ready"], true);
}
