//! A SPIFFE Workload API that gives out what the test says: the published service, over gRPC on a UNIX socket.
//!
//! By tonic and prost, which the agent's own client has nothing in common with. Refuses callers without the mandatory
//! header, as the SPIFFE Workload Endpoint standard wants it, and closes its socket when it is dropped.

use std::collections::{BTreeMap, HashMap};
use std::convert::Infallible;
use std::path::{Path, PathBuf};
use std::pin::Pin;
use std::task::{Context, Poll};
use std::thread::JoinHandle;

use futures_util::stream::{self, Stream};
use prost::Message;
use tokio::net::UnixListener;
use tokio::sync::{oneshot, watch};
use tonic::body::Body;
use tonic::codegen::Service;
use tonic::server::{Grpc, NamedService, ServerStreamingService};
use tonic::transport::Server;
use tonic::{Request, Response, Status};

use crate::pki::{Ca, Leaf};

/// The messages of `workloadapi.proto` that carry X.509.
mod proto {
    use std::collections::HashMap;

    #[derive(Clone, PartialEq, prost::Message)]
    pub(super) struct Nothing {}

    #[derive(Clone, PartialEq, prost::Message)]
    pub(super) struct X509SvidResponse {
        #[prost(message, repeated, tag = "1")]
        pub(super) svids: Vec<X509Svid>,
        #[prost(bytes = "vec", repeated, tag = "2")]
        pub(super) crl: Vec<Vec<u8>>,
        #[prost(map = "string, bytes", tag = "3")]
        pub(super) federated_bundles: HashMap<String, Vec<u8>>,
    }

    #[derive(Clone, PartialEq, prost::Message)]
    pub(super) struct X509Svid {
        #[prost(string, tag = "1")]
        pub(super) spiffe_id: String,
        #[prost(bytes = "vec", tag = "2")]
        pub(super) x509_svid: Vec<u8>,
        #[prost(bytes = "vec", tag = "3")]
        pub(super) x509_svid_key: Vec<u8>,
        #[prost(bytes = "vec", tag = "4")]
        pub(super) bundle: Vec<u8>,
        #[prost(string, tag = "5")]
        pub(super) hint: String,
    }

    #[derive(Clone, PartialEq, prost::Message)]
    pub(super) struct X509BundlesResponse {
        #[prost(bytes = "vec", repeated, tag = "1")]
        pub(super) crl: Vec<Vec<u8>>,
        #[prost(map = "string, bytes", tag = "2")]
        pub(super) bundles: HashMap<String, Vec<u8>>,
    }
}

/// What the API gives out.
#[derive(Clone, Debug, Default)]
pub struct Given {
    svids: Vec<proto::X509Svid>,
    bundles: BTreeMap<String, Vec<u8>>,
}

impl Given {
    /// Nothing: whoever asks is denied.
    pub fn nothing() -> Self {
        Self::default()
    }

    /// An SVID with its key; an empty hint is none.
    ///
    /// # Panics
    /// Never: we made the leaf.
    #[must_use]
    pub fn svid(mut self, id: &str, leaf: &Leaf, ca: &Ca, hint: &str) -> Self {
        self.svids.push(proto::X509Svid {
            spiffe_id: id.to_owned(),
            x509_svid: leaf.chain().iter().flat_map(|one| one.iter().copied()).collect(),
            x509_svid_key: leaf.key().secret_der().to_vec(),
            bundle: ca.der().to_vec(),
            hint: hint.to_owned(),
        });
        self
    }

    /// The bundle of a trust domain.
    #[must_use]
    pub fn bundle(mut self, domain: &str, ca: &Ca) -> Self {
        self.bundles.insert(format!("spiffe://{domain}"), ca.der().to_vec());
        self
    }

    fn answer(&self, method: Method) -> Result<Vec<u8>, Status> {
        let bundles: HashMap<_, _> = self.bundles.clone().into_iter().collect();
        match method {
            Method::Svids if self.svids.is_empty() => Err(Status::permission_denied("no identity issued")),
            Method::Svids => {
                let svids = self.svids.clone();
                Ok(proto::X509SvidResponse { svids, crl: Vec::new(), federated_bundles: bundles }
                    .encode_to_vec())
            }
            Method::Bundles if bundles.is_empty() => Err(Status::permission_denied("no identity issued")),
            Method::Bundles => Ok(proto::X509BundlesResponse { crl: Vec::new(), bundles }.encode_to_vec()),
        }
    }
}

/// The server. Dropping it closes its socket and every stream.
#[derive(Debug)]
pub struct WorkloadApi {
    socket: PathBuf,
    given: watch::Sender<Given>,
    stop: Option<oneshot::Sender<()>>,
    thread: Option<JoinHandle<()>>,
}

impl WorkloadApi {
    /// Listens on return.
    ///
    /// # Panics
    /// When the socket cannot be made.
    #[track_caller]
    pub fn start(socket: &Path, first: Given) -> Self {
        let listener = std::os::unix::net::UnixListener::bind(socket)
            .unwrap_or_else(|error| panic!("{}: {error}", socket.display()));
        listener.set_nonblocking(true).expect("our own socket");
        let (given, shown) = watch::channel(first);
        let (stop, stopped) = oneshot::channel();
        let thread = std::thread::spawn(move || serve(listener, Api(shown), stopped));
        Self { socket: socket.to_owned(), given, stop: Some(stop), thread: Some(thread) }
    }

    /// Gives out something else, to whoever asks and to all who listen.
    pub fn give(&self, what: Given) {
        self.given.send_replace(what);
    }

    /// How many streams are open.
    pub fn streams(&self) -> usize {
        // The service itself holds one.
        self.given.receiver_count().saturating_sub(1)
    }
}

impl Drop for WorkloadApi {
    fn drop(&mut self) {
        let _ = std::fs::remove_file(&self.socket);
        drop(self.stop.take());
        if let Some(thread) = self.thread.take()
            && thread.join().is_err()
            && !std::thread::panicking()
        {
            panic!("the Workload API panicked");
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
        // Streams never end by themselves: the runtime's end closes them.
        tokio::select! {
            ended = serving => ended.expect("it serves until it is stopped"),
            _ = stopped => {}
        }
    });
}

#[derive(Clone, Copy, Debug)]
enum Method {
    Svids,
    Bundles,
}

/// `SpiffeWorkloadAPI`, which has no package.
#[derive(Clone)]
struct Api(watch::Receiver<Given>);

impl NamedService for Api {
    const NAME: &'static str = "SpiffeWorkloadAPI";
}

type Boxed<T> = Pin<Box<dyn Future<Output = T> + Send>>;
type Messages = Pin<Box<dyn Stream<Item = Result<Vec<u8>, Status>> + Send>>;

impl Service<http::Request<Body>> for Api {
    type Response = http::Response<Body>;
    type Error = Infallible;
    type Future = Boxed<Result<Self::Response, Infallible>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: http::Request<Body>) -> Self::Future {
        let given = self.0.clone();
        Box::pin(async move {
            let mut grpc = Grpc::new(crate::grpc::Bytes);
            Ok(match request.uri().path() {
                "/SpiffeWorkloadAPI/FetchX509SVID" => {
                    grpc.server_streaming(Fetch(given, Method::Svids), request).await
                }
                "/SpiffeWorkloadAPI/FetchX509Bundles" => {
                    grpc.server_streaming(Fetch(given, Method::Bundles), request).await
                }
                _ => Status::unimplemented("X.509 only").into_http(),
            })
        })
    }
}

struct Fetch(watch::Receiver<Given>, Method);

impl ServerStreamingService<Vec<u8>> for Fetch {
    type Response = Vec<u8>;
    type ResponseStream = Messages;
    type Future = Boxed<Result<Response<Messages>, Status>>;

    fn call(&mut self, request: Request<Vec<u8>>) -> Self::Future {
        let (given, method) = (self.0.clone(), self.1);
        Box::pin(async move {
            let header = request.metadata().get("workload.spiffe.io").map(|value| value.as_bytes());
            if header != Some(b"true") {
                return Err(Status::invalid_argument("security header missing from request"));
            }
            proto::Nothing::decode(&request.get_ref()[..])
                .map_err(|error| Status::invalid_argument(error.to_string()))?;
            // The first at once, and then whatever changes.
            let messages = stream::unfold((given, true), move |(mut given, first)| async move {
                if !first && given.changed().await.is_err() {
                    return None;
                }
                let answer = given.borrow_and_update().answer(method);
                Some((answer, (given, false)))
            });
            Ok(Response::new(Box::pin(messages) as Messages))
        })
    }
}
