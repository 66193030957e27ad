//! Mutual TLS as others do it: OpenSSL's own tools, curl, nginx, Python's `ssl` and Go's `crypto/tls`, each with nothing
//! but files of certificates and keys.

use std::path::{Path, PathBuf};
use std::time::Duration;

use crate::nginx::Nginx;
use crate::openssl_peer::{OpensslPeer, Version};
use crate::pki::{Files, Leaf};
use crate::poll::eventually;
use crate::process::{Place, Running};
use crate::tools;
use crate::topology::{MANAGER_NAME, MANAGER4, Topology};

/// Who connects.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Client {
    /// curl.
    Curl,
    /// `openssl s_client`.
    Openssl,
    /// Python's `ssl`, strict as it is by default from Python 3.13 on.
    Python,
    /// Go's `crypto/tls`.
    Go,
}

/// Who is connected to.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Server {
    /// nginx with `ssl_verify_client on`.
    Nginx,
    /// `openssl s_server`.
    Openssl,
    /// Python's `ssl`.
    Python,
    /// Go's `crypto/tls`.
    Go,
}

/// What one side presents, and whom it trusts.
#[derive(Clone, Debug)]
pub struct Side {
    /// Chain and key.
    pub files: Files,
    /// Roots, in PEM.
    pub roots: PathBuf,
}

/// A server that runs; it ends when this is dropped.
#[derive(Debug)]
pub struct Serving {
    _kept: Kept,
}

#[derive(Debug)]
#[expect(dead_code, reason = "they are kept to be dropped")]
enum Kept {
    Nginx(Nginx),
    Python(OpensslPeer),
    Other(Running),
}

const PYTHON: &str = r#"
import socket, ssl, sys
address, port, name, roots, certificate, key = sys.argv[1:7]
context = ssl.create_default_context(cafile=roots)
context.verify_flags |= ssl.VERIFY_X509_STRICT
context.load_cert_chain(certificate, key)
with socket.create_connection((address, int(port))) as plain:
    with context.wrap_socket(plain, server_hostname=name) as tls:
        tls.sendall(f"GET / HTTP/1.1\r\nhost: {name}\r\nconnection: close\r\n\r\n".encode())
        answer = b""
        while piece := tls.recv(4096):
            answer += piece
if not answer.split(b"\r\n")[0].split()[1:2] == [b"200"]:
    sys.exit(f"answer: {answer!r}")
"#;

impl Client {
    /// All of them.
    pub const ALL: [Self; 4] = [Self::Curl, Self::Openssl, Self::Python, Self::Go];

    /// Asks the manager on a port; why it did not work, if it did not.
    ///
    /// # Errors
    /// What the client wrote: the handshake failed, or the answer was no 200.
    ///
    /// # Panics
    /// When the program is missing.
    #[track_caller]
    pub fn ask(self, place: &Place, port: u16, side: &Side) -> Result<(), String> {
        let (certificate, key, roots) = (&side.files.certificate, &side.files.key, &side.roots);
        let address = format!("{MANAGER4}:{port}");
        let finished = match self {
            Self::Curl => place
                .command(tools::need("curl"))
                .args(["-sS", "--fail", "--resolve", &format!("{MANAGER_NAME}:{port}:{MANAGER4}")])
                .args(["--cacert".as_ref(), roots.as_os_str(), "--cert".as_ref(), certificate.as_os_str()])
                .args(["--key".as_ref(), key.as_os_str()])
                .arg(format!("https://{MANAGER_NAME}:{port}/"))
                .run(),
            Self::Openssl => place
                .command(tools::need("openssl"))
                .args(["s_client", "-quiet", "-verify_return_error", "-x509_strict", "-connect", &address])
                .args(["-servername", MANAGER_NAME, "-verify_hostname", MANAGER_NAME, "-CAfile"])
                .args([roots.as_os_str(), "-cert".as_ref(), certificate.as_os_str(), "-key".as_ref()])
                .args([key.as_os_str(), "-cert_chain".as_ref(), certificate.as_os_str()])
                .stdin(format!("GET / HTTP/1.1\r\nhost: {MANAGER_NAME}\r\nconnection: close\r\n\r\n"))
                .run(),
            Self::Python => place
                .command(tools::python())
                .args(["-c", PYTHON, &MANAGER4.to_string(), &port.to_string(), MANAGER_NAME])
                .args([roots, certificate, key])
                .run(),
            Self::Go => place
                .command(tools::go_program("tls_peer.go"))
                .args(["client", &address, MANAGER_NAME])
                .args([roots, certificate, key])
                .run(),
        };
        let answered = match self {
            // s_client's exit code is about how the connection ended, whatever came before.
            Self::Openssl => finished.text().split(' ').nth(1) == Some("200"),
            Self::Curl | Self::Python | Self::Go => finished.status.success(),
        };
        if answered { Ok(()) } else { Err(finished.to_string()) }
    }
}

impl Server {
    /// All of them.
    pub const ALL: [Self; 4] = [Self::Nginx, Self::Openssl, Self::Python, Self::Go];

    /// Starts it on a port of the manager's namespace; it serves nobody without a certificate.
    ///
    /// # Panics
    /// When the program is missing or does not listen.
    #[track_caller]
    pub fn start(self, topology: &Topology, port: u16, side: &Side) -> Serving {
        let (certificate, key, roots) = (&side.files.certificate, &side.files.key, &side.roots);
        let kept = match self {
            Self::Nginx => Kept::Nginx(Nginx::start(topology, port, &Leaf::of(&side.files), roots)),
            Self::Python => {
                Kept::Python(OpensslPeer::start_with(topology, port, Version::Tls13, &side.files, roots))
            }
            Self::Openssl => Kept::Other(listening(
                topology,
                port,
                topology
                    .manager_side()
                    .command(tools::need("openssl"))
                    .args([
                        "s_server",
                        "-quiet",
                        "-www",
                        "-x509_strict",
                        "-verify_return_error",
                        "-Verify",
                        "3",
                    ])
                    .args(["-accept", &port.to_string(), "-CAfile"])
                    .args([roots.as_os_str(), "-cert".as_ref(), certificate.as_os_str(), "-key".as_ref()])
                    .args([key.as_os_str(), "-cert_chain".as_ref(), certificate.as_os_str()])
                    .spawn(),
            )),
            Self::Go => Kept::Other(listening(
                topology,
                port,
                topology
                    .manager_side()
                    .command(tools::go_program("tls_peer.go"))
                    .args(["server", &format!("0.0.0.0:{port}")])
                    .args([roots, certificate, key])
                    .spawn(),
            )),
        };
        Serving { _kept: kept }
    }
}

/// Waits until somebody listens.
#[track_caller]
fn listening(topology: &Topology, port: u16, mut running: Running) -> Running {
    let place = topology.manager_side();
    eventually(Duration::from_secs(10), "the server listens", || {
        assert!(running.is_alive(), "the server ended: {}", running.stderr());
        place.netns().run(|| std::net::TcpStream::connect((MANAGER4, port))).is_ok()
    });
    running
}

/// Certificate and key in a folder, by what they are called.
pub fn pair(dir: &Path, name: &str) -> Files {
    Files { certificate: dir.join(format!("{name}.crt")), key: dir.join(format!("{name}.key")) }
}
