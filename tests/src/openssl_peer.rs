//! A server on Python's ssl module, which is OpenSSL: over TLS 1.3 it finishes the handshake before
//! it has looked at the client's certificate, and refuses it by an alert afterwards. That is the
//! refusal a client easily mistakes for a connection that broke.

use std::fs;
use std::path::Path;
use std::time::Duration;

use crate::pki::{Ca, Files, Leaf};
use crate::poll::eventually;
use crate::process::Running;
use crate::tools;
use crate::topology::Topology;

const SERVER: &str = r#"
import json, socket, ssl, sys, threading
certificate, key, roots, port, versions = sys.argv[1:6]
context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
context.load_cert_chain(certificate, key)
context.load_verify_locations(roots)
context.verify_mode = ssl.CERT_REQUIRED
if versions == "1.2":
    context.maximum_version = ssl.TLSVersion.TLSv1_2
listener = socket.create_server(("0.0.0.0", int(port)), backlog=64)
print("ready", flush=True)

def serve(plain):
    seen = {"bytes": 0, "version": None, "subject": None, "error": None}
    try:
        with context.wrap_socket(plain, server_side=True) as tls:
            seen["version"] = tls.version()
            seen["subject"] = str(tls.getpeercert().get("subject"))
            head = b""
            while b"\r\n\r\n" not in head:
                piece = tls.recv(4096)
                if not piece:
                    break
                head += piece
            seen["bytes"] = len(head)
            tls.sendall(b"HTTP/1.1 200 OK\r\ncontent-length: 3\r\nconnection: close\r\n\r\nok\n")
    except OSError as error:
        seen["error"] = str(error)
    print(json.dumps(seen), flush=True)

while True:
    plain, _ = listener.accept()
    threading.Thread(target=serve, args=(plain,), daemon=True).start()
"#;

/// The highest TLS version that a server speaks.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Version {
    /// The client's certificate is refused within the handshake.
    Tls12,
    /// The client's certificate is refused after the handshake.
    Tls13,
}

/// The running server.
#[derive(Debug)]
pub struct OpensslPeer {
    running: Running,
}

impl OpensslPeer {
    /// Starts it on a port of the manager's namespace; it serves clients with a certificate from
    /// `clients` alone.
    ///
    /// # Panics
    /// When Python is missing or cannot listen.
    #[track_caller]
    pub fn start(topology: &Topology, port: u16, version: Version, server: &Leaf, clients: &Ca) -> Self {
        let dir = topology.path(&format!("openssl-{port}"));
        fs::create_dir(&dir).expect("the world's directory is ours");
        let files = server.write(&dir, "server");
        let roots = clients.write(&dir, "clients");
        Self::start_with(topology, port, version, &files, &roots)
    }

    /// The same with files of certificates.
    ///
    /// # Panics
    /// As [`OpensslPeer::start`].
    #[track_caller]
    pub fn start_with(
        topology: &Topology,
        port: u16,
        version: Version,
        server: &Files,
        roots: &Path,
    ) -> Self {
        let versions = match version {
            Version::Tls12 => "1.2",
            Version::Tls13 => "1.3",
        };
        let mut running = topology
            .manager_side()
            .command(tools::python())
            .args(["-c", SERVER])
            .args([server.certificate.as_path(), &server.key, roots])
            .args([&port.to_string(), versions])
            .spawn();
        eventually(Duration::from_secs(10), "the OpenSSL server listens", || {
            assert!(running.is_alive(), "the OpenSSL server ended: {}", running.stderr());
            running.stdout().contains("ready")
        });
        Self { running }
    }

    /// One JSON object per finished connection: `bytes`, `version`, `subject`, `error`.
    pub fn connections(&self) -> Vec<serde_json::Value> {
        self.running.stdout().lines().filter_map(|line| serde_json::from_str(line).ok()).collect()
    }
}
