//! A Workload API for unit tests: HTTP/2 on a UNIX socket, with messages that the test makes.

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use bytes::Bytes;
use http::{HeaderMap, Response};
use tokio::net::UnixListener;
use tokio::sync::watch;
use tokio::task::JoinSet;

/// What every caller gets, and whoever is connected as soon as it changes.
#[derive(Clone, Debug)]
pub(crate) enum Say {
    /// A message.
    Message(Vec<u8>),
    /// Bytes as they are.
    Raw(Vec<u8>),
    /// A status, and nothing before it.
    Status(u32, &'static str),
    /// Nothing at all.
    Nothing,
}

/// The server; gone when this is dropped.
pub(crate) struct Api {
    socket: PathBuf,
    say: watch::Sender<Say>,
    _thread: std::thread::JoinHandle<()>,
    end: Option<tokio::sync::oneshot::Sender<()>>,
}

impl Api {
    /// On a thread of its own, because a first look blocks whoever takes it.
    pub(crate) fn serve(socket: &Path, first: Say) -> Self {
        let (say, said) = watch::channel(first);
        let (end, mut ended) = tokio::sync::oneshot::channel();
        let listener = std::os::unix::net::UnixListener::bind(socket).unwrap();
        listener.set_nonblocking(true).unwrap();
        let thread = std::thread::spawn(move || {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
            runtime.block_on(async {
                let listener = UnixListener::from_std(listener).unwrap();
                let mut callers = JoinSet::new();
                loop {
                    tokio::select! {
                        _ = &mut ended => return,
                        Ok((io, _)) = listener.accept() => {
                            callers.spawn(converse(io, said.clone()));
                        }
                    }
                }
            });
        });
        Self { socket: socket.to_owned(), say, _thread: thread, end: Some(end) }
    }

    pub(crate) fn say(&self, what: Say) {
        self.say.send_replace(what);
    }
}

impl Drop for Api {
    fn drop(&mut self) {
        let _ = std::fs::remove_file(&self.socket);
        let _ = self.end.take().map(|end| end.send(()));
    }
}

async fn converse(io: tokio::net::UnixStream, said: watch::Receiver<Say>) {
    let mut connection = h2::server::handshake(io).await.unwrap();
    let mut calls = JoinSet::new();
    while let Some(Ok((request, respond))) = connection.accept().await {
        let headers = request.headers();
        assert_eq!(headers["workload.spiffe.io"], "true");
        assert_eq!(
            (&headers["content-type"], &headers["te"]),
            (&"application/grpc".parse().unwrap(), &"trailers".parse().unwrap())
        );
        calls.spawn(answer(respond, said.clone()));
    }
}

async fn answer(mut respond: h2::server::SendResponse<Bytes>, mut said: watch::Receiver<Say>) {
    let head = || Response::builder().header("content-type", "application/grpc");
    let mut body = None;
    loop {
        let say = said.borrow_and_update().clone();
        let bytes = match say {
            Say::Message(message) => {
                let length = u32::try_from(message.len()).unwrap().to_be_bytes();
                [&[0][..], &length, &message].concat()
            }
            Say::Raw(bytes) => bytes,
            Say::Nothing => Vec::new(),
            Say::Status(code, words) => {
                let mut trailers = HeaderMap::new();
                trailers.insert("grpc-status", code.into());
                trailers.insert("grpc-message", words.parse().unwrap());
                match body.take() {
                    Some(body) => {
                        let mut body: h2::SendStream<Bytes> = body;
                        body.send_trailers(trailers).unwrap();
                    }
                    None => {
                        let mut response = head().body(()).unwrap();
                        response.headers_mut().extend(trailers);
                        respond.send_response(response, true).unwrap();
                    }
                }
                return;
            }
        };
        if !bytes.is_empty() {
            let body =
                body.get_or_insert_with(|| respond.send_response(head().body(()).unwrap(), false).unwrap());
            if body.send_data(bytes.into(), false).is_err() {
                return;
            }
        }
        if said.changed().await.is_err() {
            return;
        }
    }
}

/// Polls until something holds.
pub(crate) async fn until(what: &str, held: impl Fn() -> bool) {
    let begin = Instant::now();
    while !held() {
        assert!(begin.elapsed() < Duration::from_secs(20), "{what}");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}
