//! gRPC by tonic, on both sides: a manager that wants a client certificate, and a workload that knows nothing of
//! TLS. Messages are bytes, so that no code is generated.
//!
//! `serve ADDR CERTIFICATE KEY CLIENT_CA` prints a line when it listens and runs until it is killed. `call URL`
//! prints what came of each call, as JSON.

use std::convert::Infallible;
use std::future::Future;
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use anyhow::{Context as _, Result, bail, ensure};
use futures_util::{Stream, StreamExt as _, stream};
use hnp_tests::grpc::Bytes;
use tokio::sync::mpsc;
use tonic::body::Body;
use tonic::codegen::Service;
use tonic::codegen::http;
use tonic::server::{Grpc, NamedService, StreamingService, UnaryService};
use tonic::transport::{Certificate, Endpoint, Identity, Server, ServerTlsConfig};
use tonic::{Code, Request, Response, Status, Streaming};

/// Messages from the workload before it has heard the answers to all of them.
const MESSAGES: u32 = 20;

#[tokio::main(flavor = "current_thread")]
async fn main() -> Result<()> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
    match arguments.as_slice() {
        ["serve", addr, certificate, key, client_ca] => serve(addr, certificate, key, client_ca).await,
        ["call", url] => call(url).await,
        _ => bail!("usage: hnp-test-grpc serve ADDR CERTIFICATE KEY CLIENT_CA | call URL"),
    }
}

async fn serve(addr: &str, certificate: &str, key: &str, client_ca: &str) -> Result<()> {
    let read = |path: &str| std::fs::read(path).with_context(|| path.to_owned());
    let tls = ServerTlsConfig::new()
        .identity(Identity::from_pem(read(certificate)?, read(key)?))
        .client_ca_root(Certificate::from_pem(read(client_ca)?));
    let incoming = tonic::transport::server::TcpIncoming::bind(addr.parse()?)?.with_nodelay(Some(true));
    println!("listening");
    Server::builder().tls_config(tls)?.add_service(Echo).serve_with_incoming(incoming).await?;
    Ok(())
}

async fn call(url: &str) -> Result<()> {
    let channel = Endpoint::from_shared(url.to_owned())?.timeout(Duration::from_secs(20)).connect().await?;
    let mut grpc = tonic::client::Grpc::new(channel);
    grpc.ready().await?;
    let mut request = Request::new(b"hello".to_vec());
    request.metadata_mut().insert("x-token", "t1".parse()?);
    let answer = grpc.unary(request, "/echo.Echo/Unary".parse()?, Bytes).await?;
    let unary = String::from_utf8(answer.get_ref().clone())?;
    let metadata =
        answer.metadata().get("x-token").map(|value| value.to_str().map(str::to_owned)).transpose()?;

    grpc.ready().await?;
    let refused = grpc.unary(Request::new(Vec::new()), "/echo.Echo/Refuse".parse()?, Bytes).await;
    let Err(refused) = refused else { bail!("a call that should be refused was answered") };

    // Each message is sent only when the answer to the one before has come: both directions live at a time.
    let (send, receive) = mpsc::channel::<Vec<u8>>(1);
    let outgoing =
        stream::unfold(receive, |mut receive| async { receive.recv().await.map(|next| (next, receive)) });
    send.send(b"0".to_vec()).await?;
    grpc.ready().await?;
    let answer = grpc.streaming(Request::new(outgoing), "/echo.Echo/Stream".parse()?, Bytes).await?;
    let mut incoming = answer.into_inner();
    let mut send = Some(send);
    let mut echoed = 0;
    while let Some(message) = incoming.message().await? {
        ensure!(message == echoed.to_string().into_bytes(), "{message:?} is no echo of {echoed}");
        echoed += 1;
        match &send {
            Some(open) if echoed < MESSAGES => open.send(echoed.to_string().into_bytes()).await?,
            _ => drop(send.take()),
        }
    }
    let trailers = incoming.trailers().await?.context("no trailers")?;
    let trailer = trailers.get("x-count").map(|value| value.to_str().map(str::to_owned)).transpose()?;

    grpc.ready().await?;
    let large = vec![7; 3 << 20];
    let answer = grpc.unary(Request::new(large.clone()), "/echo.Echo/Unary".parse()?, Bytes).await?;
    let result = serde_json::json!({
        "unary": unary, "metadata": metadata, "refused": refused.code() as i32, "message": refused.message(),
        "echoed": echoed, "trailer": trailer, "large": *answer.get_ref() == large,
    });
    println!("{result}");
    Ok(())
}

/// The service. What it refuses, it refuses in the trailers alone.
#[derive(Clone)]
struct Echo;

impl NamedService for Echo {
    const NAME: &'static str = "echo.Echo";
}

type Boxed<T> = Pin<Box<dyn Future<Output = T> + Send>>;
type Messages = Pin<Box<dyn Stream<Item = Result<Vec<u8>, Status>> + Send>>;

impl Service<http::Request<Body>> for Echo {
    type Response = http::Response<Body>;
    type Error = Infallible;
    type Future = Boxed<Result<Self::Response, Infallible>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: http::Request<Body>) -> Self::Future {
        Box::pin(async move {
            let mut grpc = Grpc::new(Bytes);
            Ok(match request.uri().path() {
                "/echo.Echo/Unary" => grpc.unary(Unary, request).await,
                "/echo.Echo/Stream" => grpc.streaming(Both, request).await,
                _ => Status::new(Code::NotFound, "nobody of this name").into_http(),
            })
        })
    }
}

struct Unary;

impl UnaryService<Vec<u8>> for Unary {
    type Response = Vec<u8>;
    type Future = Boxed<Result<Response<Vec<u8>>, Status>>;

    fn call(&mut self, request: Request<Vec<u8>>) -> Self::Future {
        Box::pin(async move {
            let token = request.metadata().get("x-token").cloned();
            let certified = request.peer_certs().is_some_and(|certificates| !certificates.is_empty());
            if !certified {
                return Err(Status::unauthenticated("no client certificate"));
            }
            let mut response = Response::new(request.into_inner());
            if let Some(token) = token {
                response.metadata_mut().insert("x-token", token);
            }
            Ok(response)
        })
    }
}

struct Both;

impl StreamingService<Vec<u8>> for Both {
    type Response = Vec<u8>;
    type ResponseStream = Messages;
    type Future = Boxed<Result<Response<Messages>, Status>>;

    fn call(&mut self, request: Request<Streaming<Vec<u8>>>) -> Self::Future {
        let incoming = request.into_inner();
        let echo = stream::unfold((incoming, 0_u32, false), |(mut incoming, count, ended)| async move {
            if ended {
                return None;
            }
            match incoming.next().await {
                Some(message) => Some((message, (incoming, count + 1, false))),
                None => {
                    let mut status = Status::ok("");
                    let count_value = count.to_string().parse().ok()?;
                    status.metadata_mut().insert("x-count", count_value);
                    Some((Err(status), (incoming, count, true)))
                }
            }
        });
        Box::pin(async move { Ok(Response::new(Box::pin(echo) as Messages)) })
    }
}
