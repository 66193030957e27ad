//! What a manager remembers of connections and requests.

use std::net::SocketAddr;
use std::sync::Mutex;
use std::sync::atomic::Ordering;
use std::time::SystemTime;

use rustls::ServerConnection;

use super::{Counter, lock};
use crate::pki;
use crate::wire::Head;

/// A connection, as the manager saw it.
#[derive(Clone, Debug)]
pub struct Connection {
    /// Who connected.
    pub peer: SocketAddr,
    /// The address that was dialled.
    pub local: Option<SocketAddr>,
    /// The facts of the finished handshake; `None` in plaintext or when it failed.
    pub tls: Option<TlsFacts>,
    /// Payload bytes received: after TLS where there is TLS.
    pub received: u64,
    /// Why it broke, if it did.
    pub error: Option<String>,
}

/// The facts of a TLS handshake.
#[derive(Clone, Debug)]
pub struct TlsFacts {
    /// Such as `TLSv1_3`.
    pub version: String,
    /// Such as `X25519MLKEM768`.
    pub key_exchange: String,
    /// The name that SNI announced.
    pub server_name: Option<String>,
    /// The client's certificate.
    pub client: Option<pki::Facts>,
    /// When the handshake was finished.
    pub at: SystemTime,
}

impl TlsFacts {
    pub(super) fn of(connection: &ServerConnection) -> Self {
        let name = |group: &dyn rustls::crypto::SupportedKxGroup| format!("{:?}", group.name());
        Self {
            version: connection.protocol_version().map(|version| format!("{version:?}")).unwrap_or_default(),
            key_exchange: connection.negotiated_key_exchange_group().map(name).unwrap_or_default(),
            server_name: connection.server_name().map(str::to_owned),
            client: connection.peer_certificates().and_then(<[_]>::first).map(pki::facts),
            at: SystemTime::now(),
        }
    }
}

/// A request, as the manager saw it.
#[derive(Clone, Debug)]
pub struct Request {
    /// Which connection it came on; equal for requests on one connection.
    pub connection: u64,
    /// Who connected.
    pub peer: SocketAddr,
    /// The facts of the handshake; `None` in plaintext.
    pub tls: Option<TlsFacts>,
    /// The head, exactly as it came and parsed.
    pub head: Head,
    /// The method.
    pub method: String,
    /// The request target, exactly as it came.
    pub target: String,
    /// The value of `x-token`, or of `token=` in the query; empty without.
    pub token: String,
    /// Length of the body; `None` until it has ended.
    pub body_bytes: Option<u64>,
    /// Hash of the body.
    pub body_sha256: Option<String>,
}

impl Request {
    /// The serial of the client's certificate; empty without one.
    pub fn client_serial(&self) -> &str {
        let client = self.tls.as_ref().and_then(|tls| tls.client.as_ref());
        client.map_or("", |client| client.serial.as_str())
    }

    /// The value of the Host header; empty without one.
    pub fn host(&self) -> &str {
        self.head.header("host").unwrap_or_default()
    }
}

/// All that a manager saw.
#[derive(Debug, Default)]
pub(super) struct Records {
    connections: Mutex<Vec<(Connection, Counter)>>,
    requests: Mutex<Vec<Request>>,
}

impl Records {
    pub(super) fn connections(&self) -> Vec<Connection> {
        let connections = lock(&self.connections);
        let counted = connections.iter().map(|(connection, counter)| Connection {
            received: counter.load(Ordering::Relaxed),
            ..connection.clone()
        });
        counted.collect()
    }

    pub(super) fn requests(&self) -> Vec<Request> {
        lock(&self.requests).clone()
    }

    pub(super) fn request_count(&self) -> usize {
        lock(&self.requests).len()
    }

    pub(super) fn last_request(&self) -> Option<Request> {
        lock(&self.requests).last().cloned()
    }

    /// Forgets requests; of connections only the counts, as open ones go on.
    pub(super) fn forget(&self) {
        lock(&self.requests).clear();
        for (_, counter) in lock(&self.connections).iter() {
            counter.store(0, Ordering::Relaxed);
        }
    }

    pub(super) fn connected(&self, peer: SocketAddr, local: Option<SocketAddr>) -> u64 {
        let mut connections = lock(&self.connections);
        let connection = Connection { peer, local, tls: None, received: 0, error: None };
        connections.push((connection, Counter::default()));
        connections.len() as u64 - 1
    }

    pub(super) fn counter(&self, connection: u64) -> Counter {
        self.with(connection, |_, counter| Counter::clone(counter))
    }

    pub(super) fn handshaken(&self, connection: u64, facts: TlsFacts) {
        self.with(connection, |record, _| record.tls = Some(facts));
    }

    pub(super) fn failed(&self, connection: u64, error: &str) {
        self.with(connection, |record, _| record.error = Some(error.to_owned()));
    }

    /// Remembers a request by its head; returns its number for [`Self::body_ended`].
    pub(super) fn requested(&self, connection: u64, head: &Head) -> (usize, Request) {
        let mut words = head.start_line.split(' ').map(str::to_owned);
        let (method, target) = (words.next().unwrap_or_default(), words.next().unwrap_or_default());
        let (peer, tls) = self.with(connection, |record, _| (record.peer, record.tls.clone()));
        let token = head.header("x-token").or_else(|| query_value(&target, "token")).unwrap_or_default();
        let token = token.to_owned();
        let request = Request {
            connection,
            peer,
            tls,
            head: head.clone(),
            method,
            target,
            token,
            body_bytes: None,
            body_sha256: None,
        };
        let mut requests = lock(&self.requests);
        requests.push(request.clone());
        (requests.len() - 1, request)
    }

    pub(super) fn body_ended(&self, number: usize, bytes: u64, sha256: &str) {
        // Gone when the test said `forget` in between.
        if let Some(request) = lock(&self.requests).get_mut(number) {
            request.body_bytes = Some(bytes);
            request.body_sha256 = Some(sha256.to_owned());
        }
    }

    fn with<T>(&self, connection: u64, read: impl FnOnce(&mut Connection, &Counter) -> T) -> T {
        let index = usize::try_from(connection).expect("an index that we gave out");
        let mut connections = lock(&self.connections);
        let (record, counter) = &mut connections[index];
        read(record, counter)
    }
}

/// The value of a key in a target's query.
pub(super) fn query_value<'a>(target: &'a str, key: &str) -> Option<&'a str> {
    let (_, query) = target.split_once('?')?;
    query.split('&').find_map(|pair| pair.strip_prefix(key)?.strip_prefix('='))
}
