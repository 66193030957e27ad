//! The part of a Kubernetes API server that the agent talks to: one node, read and patched over HTTPS with
//! a service account's token, its pods, the agent's DaemonSet, and the ways in which API servers fail.
//!
//! There is no API server in any package, so this one keeps to what the real one does with these few
//! calls: 401 without the token, 404 for another node, 415 for another patch type, a JSON patch (RFC 6902,
//! by the json-patch crate) applied whole or not at all, 422 when one of its tests fails, a new
//! resourceVersion with every change, errors as `Status` objects.

mod cluster;
mod daemonset;
mod pods;

use std::convert::Infallible;
use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use bytes::Bytes;
use http_body_util::combinators::BoxBody;
use http_body_util::{BodyExt as _, Full};
use hyper::body::Incoming;
use hyper::header::{ACCEPT, AUTHORIZATION, CONTENT_TYPE};
use hyper::service::service_fn;
use hyper::{Method, Request, Response, StatusCode};
use hyper_util::rt::TokioIo;
use serde_json::{Value, json};
use tokio::net::{TcpListener, TcpSocket};
use tokio::sync::oneshot;
use tokio::task::JoinSet;
use tokio_rustls::TlsAcceptor;

pub use self::cluster::{Cluster, DAEMONSET, NODE};
use self::daemonset::DaemonSets;
use self::pods::Pods;
use crate::netns::Netns;
use crate::pki::{Ca, Leaf};
use crate::topology::{MANAGER4, World};

/// The port of API servers.
const PORT: u16 = 6443;

/// How the server behaves.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Behaviour {
    /// As it should.
    Well,
    /// 500 to everything.
    Broken,
    /// Takes requests and never answers.
    Silent,
    /// The token is not accepted.
    Unauthorized,
    /// Reading is allowed, patching is not.
    ReadOnly,
    /// Every patch meets somebody else's and is told so.
    Conflict,
}

/// A request the server saw.
#[derive(Clone, Debug)]
pub struct Call {
    /// `GET` or `PATCH`.
    pub method: String,
    /// The path.
    pub path: String,
    /// What follows it.
    pub query: String,
    /// What was answered; 0 while nothing is.
    pub status: u16,
}

/// The files of a service account.
#[derive(Debug)]
pub struct ServiceAccount {
    /// The directory that holds them.
    pub dir: PathBuf,
    token: String,
}

impl ServiceAccount {
    /// Writes `token` and `ca.crt` into a new directory of the world.
    ///
    /// # Panics
    /// When they cannot be written.
    pub fn create(world: &World, ca: &Ca) -> Self {
        let dir = world.path("serviceaccount");
        std::fs::create_dir(&dir).expect("the world's directory is ours");
        let token = format!("token-of-{}", world.name());
        std::fs::write(dir.join("token"), &token).expect("the world's directory is ours");
        ca.write(&dir, "ca");
        Self { dir, token }
    }
}

/// An API server with one node. Dropping it closes its port and connections.
#[derive(Debug)]
pub struct ApiServer {
    state: Arc<Mutex<State>>,
    stop: Option<oneshot::Sender<()>>,
    thread: Option<JoinHandle<()>>,
}

#[derive(Debug)]
struct State {
    node: Value,
    pods: Pods,
    daemonsets: DaemonSets,
    token: String,
    behaviour: Behaviour,
    /// What the taints become just before the next patch is applied.
    meddle: Option<Value>,
    calls: Vec<Call>,
}

impl ApiServer {
    /// Where it answers, as `KUBERNETES_SERVICE_HOST` and `KUBERNETES_SERVICE_PORT` say it.
    pub fn address() -> SocketAddr {
        (MANAGER4, PORT).into()
    }

    /// Starts it in the world's manager namespace, with a node that has these taints.
    ///
    /// # Panics
    /// When the port is taken.
    #[track_caller]
    pub fn start(world: &World, server: &Leaf, account: &ServiceAccount, node: &str, taints: Value) -> Self {
        let node = json!({
            "apiVersion": "v1",
            "kind": "Node",
            "metadata": {"name": node, "resourceVersion": "1", "labels": {"kubernetes.io/os": "linux"}},
            "spec": {"podCIDR": "10.244.1.0/24", "taints": taints},
            "status": {"conditions": [{"type": "Ready", "status": "True"}]},
        });
        let token = account.token.clone();
        let behaviour = Behaviour::Well;
        let state = Arc::new(Mutex::new(State {
            node,
            pods: Pods::default(),
            daemonsets: DaemonSets::default(),
            token,
            behaviour,
            meddle: None,
            calls: Vec::new(),
        }));
        let config = rustls::ServerConfig::builder()
            .with_no_client_auth()
            .with_single_cert(server.chain(), server.key())
            .expect("certificate and key belong together");
        let acceptor = TlsAcceptor::from(Arc::new(config));
        let (stop, stopped) = oneshot::channel();
        let (opened, open) = std::sync::mpsc::channel();
        let (netns, shared) = (world.manager_netns().clone(), Arc::clone(&state));
        let thread = std::thread::spawn(move || serve(&netns, acceptor, &shared, &opened, stopped));
        if let Err(error) = open.recv().expect("the server's thread reports before it serves") {
            panic!("API server on {}: {error}", Self::address());
        }
        Self { state, stop: Some(stop), thread: Some(thread) }
    }

    /// From now on.
    pub fn behave(&self, behaviour: Behaviour) {
        self.state().behaviour = behaviour;
    }

    /// Somebody else writes these taints between the agent's look and its next patch.
    pub fn meddle(&self, taints: Value) {
        self.state().meddle = Some(taints);
    }

    /// A pod of the node, in the namespace `default`, is there, or has changed.
    pub fn apply_pod(&self, name: &str, uid: &str, labels: Value) {
        let mut state = self.state();
        let node = state.node["metadata"]["name"].as_str().unwrap_or_default().to_owned();
        state.pods.apply(name, uid, &node, labels);
    }

    /// A pod of the node runs as a service account of its namespace.
    pub fn apply_pod_as(&self, namespace: &str, name: &str, uid: &str, service_account: &str) {
        self.apply_pod_annotated(namespace, name, uid, service_account, json!({}));
    }

    /// The same, with annotations: a static pod's mirror has some of kubelet's.
    pub fn apply_pod_annotated(
        &self,
        namespace: &str,
        name: &str,
        uid: &str,
        service_account: &str,
        annotations: Value,
    ) {
        let mut state = self.state();
        let node = state.node["metadata"]["name"].as_str().unwrap_or_default().to_owned();
        let metadata = json!({"name": name, "namespace": namespace, "uid": uid, "annotations": annotations});
        let spec = json!({"containers": [], "serviceAccountName": service_account});
        state.pods.apply_whole(&node, metadata, spec, json!({"phase": "Running"}));
    }

    /// A pod of this node or another, with addresses of its own or those of its node (hostNetwork), is
    /// running.
    pub fn apply_running_pod(&self, uid: &str, node: &str, host_network: bool, addrs: &[IpAddr]) {
        let spec = json!({"containers": [], "hostNetwork": host_network});
        let addrs: Vec<Value> = addrs.iter().map(|addr| json!({"ip": addr.to_string()})).collect();
        let status = json!({"phase": "Running", "podIPs": addrs});
        self.state().pods.apply_with(uid, uid, node, json!({}), (spec, status));
    }

    /// A pod of another node is there: nobody here is to hear of it.
    pub fn apply_pod_elsewhere(&self, name: &str, uid: &str, labels: Value) {
        self.state().pods.apply(name, uid, "another-node", labels);
    }

    /// A pod has gone.
    pub fn delete_pod(&self, uid: &str) {
        self.state().pods.delete(uid);
    }

    /// The server forgets what came before now: watches that go on from there are told so (410).
    pub fn forget(&self) {
        self.state().pods.forget();
    }

    /// The same, but who knows all that came before now may go on from there.
    pub fn forget_before(&self) {
        self.state().pods.forget_before();
    }

    /// Watches of pods that allow it are told that they know all that came before now.
    pub fn bookmark(&self) {
        self.state().pods.bookmark();
    }

    /// How many bookmarks were told.
    pub fn bookmarks(&self) -> usize {
        self.state().pods.bookmarks()
    }

    /// Watches of pods end in the middle, without a word.
    pub fn cut_pod_watches(&self) {
        self.state().pods.cut();
    }

    /// How often pods were listed.
    pub fn lists_of_pods(&self) -> usize {
        let is_list = |call: &&Call| call.path == "/api/v1/pods" && !call.query.contains("watch=true");
        self.state().calls.iter().filter(is_list).count()
    }

    /// The agent's DaemonSet is there, or is there anew.
    pub fn install(&self) {
        self.state().daemonsets.install();
    }

    /// It is to go after its pods have gone (deleted in the foreground).
    pub fn begin_to_delete(&self) {
        self.state().daemonsets.mark();
    }

    /// It is gone; its pods go next (deleted in the background, as by default).
    pub fn uninstall(&self) {
        self.state().daemonsets.delete();
    }

    /// Watches of it end, and tell nothing from now on.
    pub fn cut_watches(&self) {
        self.state().daemonsets.cut();
    }

    /// The node's taints now.
    pub fn taints(&self) -> Value {
        self.state().node["spec"]["taints"].clone()
    }

    /// The whole node.
    pub fn node(&self) -> Value {
        self.state().node.clone()
    }

    /// All requests so far.
    pub fn calls(&self) -> Vec<Call> {
        self.state().calls.clone()
    }

    /// How many requests of a method got this status.
    pub fn count(&self, method: &str, status: u16) -> usize {
        self.state().calls.iter().filter(|call| call.method == method && call.status == status).count()
    }

    fn state(&self) -> MutexGuard<'_, State> {
        lock(&self.state)
    }
}

impl Drop for ApiServer {
    fn drop(&mut self) {
        drop(self.stop.take());
        if let Some(thread) = self.thread.take()
            && thread.join().is_err()
            && !std::thread::panicking()
        {
            panic!("the API server panicked");
        }
    }
}

fn serve(
    netns: &Netns,
    acceptor: TlsAcceptor,
    state: &Arc<Mutex<State>>,
    opened: &std::sync::mpsc::Sender<std::io::Result<()>>,
    stopped: oneshot::Receiver<()>,
) {
    netns.enter().expect("a namespace that we made can be entered");
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
    runtime.block_on(async {
        // A process that another test has just forked may still hold the socket of the server before this one.
        let in_use = |error: &std::io::Error| error.kind() == std::io::ErrorKind::AddrInUse;
        let until = Instant::now() + Duration::from_secs(5);
        let listener = loop {
            match listen() {
                Ok(listener) => break listener,
                Err(error) if in_use(&error) && Instant::now() < until => {
                    tokio::time::sleep(Duration::from_millis(10)).await;
                }
                Err(error) => return opened.send(Err(error)).expect("the starter waits"),
            }
        };
        opened.send(Ok(())).expect("the starter waits");
        let state = Arc::clone(state);
        // Owned by this block, and with it all connections.
        let mut connections = JoinSet::new();
        let accept = async move {
            loop {
                let Ok((stream, _)) = listener.accept().await else { continue };
                let (acceptor, state) = (acceptor.clone(), Arc::clone(&state));
                connections.spawn(async move {
                    // A client that does not trust us ends here.
                    let Ok(stream) = acceptor.accept(stream).await else { return };
                    let service = service_fn(move |request| answer(request, Arc::clone(&state)));
                    let http = hyper::server::conn::http1::Builder::new();
                    let _ = http.serve_connection(TokioIo::new(stream), service).await;
                });
            }
        };
        tokio::select! {
            _ = stopped => {}
            () = accept => {}
        }
    });
}

fn listen() -> std::io::Result<TcpListener> {
    let socket = TcpSocket::new_v4()?;
    socket.set_reuseaddr(true)?;
    socket.bind(ApiServer::address())?;
    socket.listen(64)
}

async fn answer(
    request: Request<Incoming>,
    state: Arc<Mutex<State>>,
) -> Result<Response<BoxBody<Bytes, Infallible>>, Infallible> {
    let (parts, body) = request.into_parts();
    let body = body.collect().await.map(http_body_util::Collected::to_bytes).unwrap_or_default();
    let query = parts.uri.query().unwrap_or_default().to_owned();
    let call = Call { method: parts.method.to_string(), path: parts.uri.path().to_owned(), query, status: 0 };
    let (index, behaviour) = {
        let mut state = lock(&state);
        state.calls.push(call);
        (state.calls.len() - 1, state.behaviour)
    };
    if behaviour == Behaviour::Silent {
        // Longer than anybody waits; ends with the connection.
        tokio::time::sleep(Duration::from_secs(3600)).await;
    }
    let header = |name| parts.headers.get(name).and_then(|value| value.to_str().ok());
    let (status, body) = {
        let mut guard = lock(&state);
        let outcome = guard.admit(header(AUTHORIZATION).unwrap_or_default());
        let (status, body) = match outcome {
            Err(refused) => whole(refused),
            Ok(()) if parts.uri.path() == "/api/v1/pods" => {
                let asked = header(ACCEPT).unwrap_or_default();
                match guard.pods.answer(&parts.method, asked, parts.uri.query().unwrap_or_default()) {
                    pods::Answer::Whole(status, body) => whole((status, body)),
                    pods::Answer::Watch(watched) => {
                        let (changed, cuts) = (guard.pods.changed(), guard.pods.cuts());
                        (StatusCode::OK, pods::watch(Arc::clone(&state), changed, watched, cuts).boxed())
                    }
                }
            }
            Ok(()) if parts.uri.path().starts_with(daemonset::GROUP) => {
                let (path, query) = (parts.uri.path(), parts.uri.query().unwrap_or_default());
                match guard.daemonsets.answer(&parts.method, path, query) {
                    daemonset::Answer::Whole(status, body) => whole((status, body)),
                    daemonset::Answer::Watch(since) => {
                        let changed = guard.daemonsets.changed();
                        (StatusCode::OK, daemonset::watch(Arc::clone(&state), changed, since).boxed())
                    }
                }
            }
            Ok(()) => {
                let content_type = header(CONTENT_TYPE).unwrap_or_default();
                whole(guard.on_node(&parts.method, parts.uri.path(), content_type, &body))
            }
        };
        guard.calls[index].status = status.as_u16();
        (status, body)
    };
    let mut response = Response::new(body);
    *response.status_mut() = status;
    response.headers_mut().insert(CONTENT_TYPE, hyper::header::HeaderValue::from_static("application/json"));
    Ok(response)
}

fn whole((status, body): (StatusCode, Value)) -> (StatusCode, BoxBody<Bytes, Infallible>) {
    (status, Full::new(Bytes::from(body.to_string())).boxed())
}

impl State {
    fn admit(&self, authorization: &str) -> Result<(), (StatusCode, Value)> {
        let known = authorization == format!("Bearer {}", self.token);
        match self.behaviour {
            Behaviour::Broken => {
                Err(failure(StatusCode::INTERNAL_SERVER_ERROR, "InternalError", "etcd is gone"))
            }
            Behaviour::Unauthorized => Err(failure(StatusCode::UNAUTHORIZED, "Unauthorized", "Unauthorized")),
            _ if !known => Err(failure(StatusCode::UNAUTHORIZED, "Unauthorized", "Unauthorized")),
            Behaviour::Well | Behaviour::Silent | Behaviour::ReadOnly | Behaviour::Conflict => Ok(()),
        }
    }

    fn on_node(
        &mut self,
        method: &Method,
        path: &str,
        content_type: &str,
        body: &[u8],
    ) -> (StatusCode, Value) {
        let name = self.node["metadata"]["name"].as_str().unwrap_or_default();
        if path.strip_prefix("/api/v1/nodes/") != Some(name) {
            return failure(StatusCode::NOT_FOUND, "NotFound", &format!("{path} not found"));
        }
        match *method {
            Method::GET => (StatusCode::OK, self.node.clone()),
            Method::PATCH => self.patch(content_type, body),
            _ => failure(StatusCode::METHOD_NOT_ALLOWED, "MethodNotAllowed", "read it or patch it"),
        }
    }

    fn patch(&mut self, content_type: &str, body: &[u8]) -> (StatusCode, Value) {
        match self.behaviour {
            Behaviour::ReadOnly => return failure(StatusCode::FORBIDDEN, "Forbidden", "cannot patch nodes"),
            Behaviour::Conflict => {
                return failure(StatusCode::CONFLICT, "Conflict", "the object has been modified");
            }
            _ => {}
        }
        if content_type != "application/json-patch+json" {
            return failure(StatusCode::UNSUPPORTED_MEDIA_TYPE, "UnsupportedMediaType", content_type);
        }
        let patch: json_patch::Patch = match serde_json::from_slice(body) {
            Ok(patch) => patch,
            Err(error) => return failure(StatusCode::BAD_REQUEST, "BadRequest", &error.to_string()),
        };
        if let Some(taints) = self.meddle.take() {
            self.node["spec"]["taints"] = taints;
            self.next_version();
        }
        let mut changed = self.node.clone();
        if let Err(error) = json_patch::patch(&mut changed, &patch) {
            return failure(StatusCode::UNPROCESSABLE_ENTITY, "Invalid", &error.to_string());
        }
        self.node = changed;
        self.next_version();
        (StatusCode::OK, self.node.clone())
    }

    fn next_version(&mut self) {
        let version = &mut self.node["metadata"]["resourceVersion"];
        let number: u64 = version.as_str().and_then(|text| text.parse().ok()).expect("we wrote a number");
        *version = json!((number + 1).to_string());
    }
}

fn failure(code: StatusCode, reason: &str, message: &str) -> (StatusCode, Value) {
    let status = json!({
        "apiVersion": "v1",
        "kind": "Status",
        "metadata": {},
        "status": "Failure",
        "message": message,
        "reason": reason,
        "code": code.as_u16(),
    });
    (code, status)
}

/// A lock that no panic poisons: nothing under it can fail but on our own mistake.
fn lock(state: &Mutex<State>) -> MutexGuard<'_, State> {
    state.lock().expect("no panic while held")
}
