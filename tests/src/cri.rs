//! A container runtime's socket: the published Container Runtime Interface, as far as it tells which pods there are.
//!
//! By tonic and prost, which the agent's own client has nothing in common with. Sandboxes are what the test says; they
//! are filtered as the interface wants it, and answers may be held back as a runtime does that is busy. Closes its socket when
//! it is dropped.

use std::collections::HashMap;
use std::convert::Infallible;
use std::path::{Path, PathBuf};
use std::pin::Pin;
use std::sync::atomic::{AtomicUsize, Ordering::SeqCst};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll};
use std::thread::JoinHandle;

use futures_util::stream;
use prost::Message;
use tokio::net::UnixListener;
use tokio::sync::{oneshot, watch};
use tonic::body::Body;
use tonic::codegen::Service;
use tonic::server::{Grpc, NamedService, UnaryService};
use tonic::transport::Server;
use tonic::{Request, Response, Status};

/// The messages of `runtime.v1` that are spoken here.
mod proto {
    use std::collections::HashMap;

    #[derive(Clone, PartialEq, prost::Message)]
    pub(super) struct VersionResponse {
        #[prost(string, tag = "1")]
        pub(super) version: String,
        #[prost(string, tag = "2")]
        pub(super) runtime_name: String,
        #[prost(string, tag = "3")]
        pub(super) runtime_version: String,
        #[prost(string, tag = "4")]
        pub(super) runtime_api_version: String,
    }

    #[derive(Clone, PartialEq, prost::Message)]
    pub(super) struct ListPodSandboxRequest {
        #[prost(message, optional, tag = "1")]
        pub(super) filter: Option<PodSandboxFilter>,
    }

    #[derive(Clone, PartialEq, prost::Message)]
    pub(super) struct PodSandboxFilter {
        #[prost(string, tag = "1")]
        pub(super) id: String,
        #[prost(map = "string, string", tag = "3")]
        pub(super) label_selector: HashMap<String, String>,
    }

    #[derive(Clone, PartialEq, prost::Message)]
    pub(super) struct ListPodSandboxResponse {
        #[prost(message, repeated, tag = "1")]
        pub(super) items: Vec<PodSandbox>,
    }

    #[derive(Clone, PartialEq, prost::Message)]
    pub(super) struct PodSandbox {
        #[prost(string, tag = "1")]
        pub(super) id: String,
        #[prost(message, optional, tag = "2")]
        pub(super) metadata: Option<PodSandboxMetadata>,
        #[prost(int32, tag = "3")]
        pub(super) state: i32,
        #[prost(int64, tag = "4")]
        pub(super) created_at: i64,
        #[prost(map = "string, string", tag = "5")]
        pub(super) labels: HashMap<String, String>,
        #[prost(map = "string, string", tag = "6")]
        pub(super) annotations: HashMap<String, String>,
        #[prost(string, tag = "7")]
        pub(super) runtime_handler: String,
    }

    #[derive(Clone, PartialEq, prost::Message)]
    pub(super) struct PodSandboxMetadata {
        #[prost(string, tag = "1")]
        pub(super) name: String,
        #[prost(string, tag = "2")]
        pub(super) uid: String,
        #[prost(string, tag = "3")]
        pub(super) namespace: String,
        #[prost(uint32, tag = "4")]
        pub(super) attempt: u32,
    }
}

/// A runtime. Dropping it closes its socket and every connection.
#[derive(Debug)]
pub struct Runtime {
    socket: PathBuf,
    state: Arc<State>,
    stop: Option<oneshot::Sender<()>>,
    thread: Option<JoinHandle<()>>,
}

#[derive(Debug)]
struct State {
    sandboxes: Mutex<Vec<proto::PodSandbox>>,
    questions: AtomicUsize,
    paused: watch::Sender<bool>,
}

impl State {
    fn sandboxes(&self) -> MutexGuard<'_, Vec<proto::PodSandbox>> {
        self.sandboxes.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Runtime {
    /// Listens on return; there is no pod yet.
    ///
    /// # Panics
    /// When the socket cannot be made.
    #[track_caller]
    pub fn start(socket: &Path) -> Self {
        let listener = std::os::unix::net::UnixListener::bind(socket)
            .unwrap_or_else(|error| panic!("{}: {error}", socket.display()));
        listener.set_nonblocking(true).expect("our own socket");
        let (sandboxes, questions, paused) =
            (Mutex::default(), AtomicUsize::new(0), watch::Sender::new(false));
        let state = Arc::new(State { sandboxes, questions, paused });
        let (stop, stopped) = oneshot::channel();
        let shared = Arc::clone(&state);
        let thread = std::thread::spawn(move || serve(listener, Api(shared), stopped));
        Self { socket: socket.to_owned(), state, stop: Some(stop), thread: Some(thread) }
    }

    /// Makes a pod's sandbox, with the labels that a kubelet gives it and one of its own.
    pub fn run_pod(&self, uid: &str, namespace: &str, name: &str) {
        let labels = [
            ("io.kubernetes.pod.uid", uid),
            ("io.kubernetes.pod.namespace", namespace),
            ("io.kubernetes.pod.name", name),
            ("app", name),
        ];
        let mut sandboxes = self.state.sandboxes();
        let created_at = i64::try_from(sandboxes.len()).expect("few");
        sandboxes.push(proto::PodSandbox {
            id: format!("sandbox-of-{name}"),
            metadata: Some(proto::PodSandboxMetadata {
                name: name.to_owned(),
                uid: uid.to_owned(),
                namespace: namespace.to_owned(),
                attempt: 0,
            }),
            state: 0,
            created_at,
            labels: labels.map(|(key, value)| (key.to_owned(), value.to_owned())).into(),
            annotations: HashMap::new(),
            runtime_handler: String::new(),
        });
    }

    /// Removes the sandboxes of a pod.
    pub fn remove_pod(&self, uid: &str) {
        let is_its = |one: &proto::PodSandbox| one.metadata.as_ref().is_some_and(|meta| meta.uid == uid);
        self.state.sandboxes().retain(|one| !is_its(one));
    }

    /// Holds answers back, or gives them all.
    pub fn pause(&self, paused: bool) {
        self.state.paused.send_replace(paused);
    }

    /// How often it was asked about a single pod.
    pub fn questions(&self) -> usize {
        self.state.questions.load(SeqCst)
    }
}

impl Drop for Runtime {
    fn drop(&mut self) {
        let _ = std::fs::remove_file(&self.socket);
        drop(self.stop.take());
        if let Some(thread) = self.thread.take()
            && thread.join().is_err()
            && !std::thread::panicking()
        {
            panic!("the runtime panicked");
        }
    }
}

fn serve(listener: std::os::unix::net::UnixListener, api: Api, stopped: oneshot::Receiver<()>) {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
    runtime.block_on(async {
        let listener = UnixListener::from_std(listener).expect("our own socket");
        let incoming = stream::unfold(listener, |listener| async {
            let accepted = listener.accept().await.map(|(stream, _)| stream);
            Some((accepted, listener))
        });
        let serving = Server::builder().add_service(api).serve_with_incoming(Box::pin(incoming));
        // Connections stay open: the runtime's end closes them.
        tokio::select! {
            ended = serving => ended.expect("it serves until it is stopped"),
            _ = stopped => {}
        }
    });
}

#[derive(Clone)]
struct Api(Arc<State>);

impl NamedService for Api {
    const NAME: &'static str = "runtime.v1.RuntimeService";
}

type Boxed<T> = Pin<Box<dyn Future<Output = T> + Send>>;

impl Service<http::Request<Body>> for Api {
    type Response = http::Response<Body>;
    type Error = Infallible;
    type Future = Boxed<Result<Self::Response, Infallible>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: http::Request<Body>) -> Self::Future {
        let state = Arc::clone(&self.0);
        Box::pin(async move {
            let mut grpc = Grpc::new(crate::grpc::Bytes);
            Ok(match request.uri().path() {
                "/runtime.v1.RuntimeService/Version" => grpc.unary(Version(state), request).await,
                "/runtime.v1.RuntimeService/ListPodSandbox" => grpc.unary(List(state), request).await,
                other => Status::unimplemented(other).into_http(),
            })
        })
    }
}

/// Until answers are given.
async fn answering(state: &State) {
    // An error would mean that the sender is gone, and it is in the state.
    let _ = state.paused.subscribe().wait_for(|paused| !paused).await;
}

struct Version(Arc<State>);

impl UnaryService<Vec<u8>> for Version {
    type Response = Vec<u8>;
    type Future = Boxed<Result<Response<Vec<u8>>, Status>>;

    fn call(&mut self, _: Request<Vec<u8>>) -> Self::Future {
        let state = Arc::clone(&self.0);
        Box::pin(async move {
            answering(&state).await;
            let version = proto::VersionResponse {
                version: "0.1.0".to_owned(),
                runtime_name: "test-runtime".to_owned(),
                runtime_version: "v9.9.9".to_owned(),
                runtime_api_version: "v1".to_owned(),
            };
            Ok(Response::new(version.encode_to_vec()))
        })
    }
}

struct List(Arc<State>);

impl UnaryService<Vec<u8>> for List {
    type Response = Vec<u8>;
    type Future = Boxed<Result<Response<Vec<u8>>, Status>>;

    fn call(&mut self, request: Request<Vec<u8>>) -> Self::Future {
        let state = Arc::clone(&self.0);
        Box::pin(async move {
            let request = proto::ListPodSandboxRequest::decode(&request.get_ref()[..])
                .map_err(|error| Status::invalid_argument(error.to_string()))?;
            let wanted = request.filter.map(|filter| filter.label_selector).unwrap_or_default();
            if !wanted.is_empty() {
                state.questions.fetch_add(1, SeqCst);
            }
            answering(&state).await;
            let fits = |one: &proto::PodSandbox| {
                wanted.iter().all(|(key, value)| one.labels.get(key) == Some(value))
            };
            let items = state.sandboxes().iter().filter(|one| fits(one)).cloned().collect();
            Ok(Response::new(proto::ListPodSandboxResponse { items }.encode_to_vec()))
        })
    }
}
