//! nginx as the strict manager: OpenSSL's own view of the client's certificate, X.509 version 1
//! included, which rustls would not accept. Without a certificate it answers 400 over the finished
//! handshake, as nginx does.

use std::fs;
use std::path::Path;
use std::time::Duration;

use crate::pki::Leaf;
use crate::poll::eventually;
use crate::process::Running;
use crate::tools;
use crate::topology::Topology;

/// A running nginx with `ssl_verify_client on`.
#[derive(Debug)]
pub struct Nginx {
    running: Running,
    requests: std::path::PathBuf,
}

impl Nginx {
    /// Starts it on a port of all addresses of the manager's namespace; clients' certificates must
    /// come from `clients_ca` (PEM).
    ///
    /// # Panics
    /// When nginx is missing or refuses its configuration.
    #[track_caller]
    pub fn start(topology: &Topology, port: u16, server: &Leaf, clients_ca: &Path) -> Self {
        Self::start_as(topology, port, server, clients_ca, "")
    }

    /// The same over HTTP/2, for clients that offer it. After 100 requests it ends a connection.
    ///
    /// # Panics
    /// As [`Nginx::start`].
    #[track_caller]
    pub fn start_http2(topology: &Topology, port: u16, server: &Leaf, clients_ca: &Path) -> Self {
        Self::start_as(topology, port, server, clients_ca, "http2")
    }

    #[track_caller]
    fn start_as(topology: &Topology, port: u16, server: &Leaf, clients_ca: &Path, http: &str) -> Self {
        let dir = topology.path(&format!("nginx-{port}"));
        fs::create_dir(&dir).expect("the world's directory is ours");
        let files = server.write(&dir, "server");
        let (at, certificate, key) = (dir.display(), files.certificate.display(), files.key.display());
        let conf = format!(
            "daemon off; master_process off; user root; pid {at}/pid; error_log stderr info;\n\
             events {{ worker_connections 4096; }}\n\
             http {{\n\
               log_format seen '$ssl_client_verify|$ssl_client_serial|$ssl_client_s_dn|$ssl_protocol|$host|$request_uri|$status|$server_protocol|$connection';\n\
               access_log {at}/requests seen;\n\
               client_body_temp_path {at}/body; proxy_temp_path {at}/p; fastcgi_temp_path {at}/f;\n\
               uwsgi_temp_path {at}/u; scgi_temp_path {at}/s;\n\
               server {{\n\
                 listen {port} ssl {http}; listen [::]:{port} ssl {http}; keepalive_requests 100;\n\
                 ssl_certificate {certificate}; ssl_certificate_key {key};\n\
                 ssl_client_certificate {ca}; ssl_verify_client on;\n\
                 location / {{ return 200 '$ssl_client_verify|$ssl_client_serial|$ssl_client_s_dn\\n'; }}\n\
               }}\n\
             }}\n",
            ca = clients_ca.display(),
        );
        let conf_path = dir.join("nginx.conf");
        fs::write(&conf_path, conf).expect("the world's directory is ours");
        let place = topology.manager_side();
        let mut running = place
            .command(tools::need("nginx"))
            .args(["-p".as_ref(), dir.as_os_str(), "-c".as_ref(), conf_path.as_os_str()])
            .spawn();
        eventually(Duration::from_secs(10), "nginx listens", || {
            assert!(running.is_alive(), "nginx ended: {}", running.stderr());
            place.netns().run(|| std::net::TcpStream::connect(("198.18.0.9", port))).is_ok()
        });
        Self { running, requests: dir.join("requests") }
    }

    /// Waits until there are so many requests; one line each:
    /// `verify|serial|subject|protocol|host|uri|status|http|connection`. nginx writes it after the answer.
    ///
    /// # Panics
    /// When there are not as many within five seconds, or more.
    #[track_caller]
    pub fn requests(&self, count: usize) -> Vec<String> {
        let read = || -> Vec<String> {
            let text = fs::read_to_string(&self.requests).unwrap_or_default();
            text.lines().map(str::to_owned).collect()
        };
        eventually(Duration::from_secs(5), "nginx wrote its log", || read().len() >= count);
        let lines = read();
        assert_eq!(lines.len(), count, "{lines:?}");
        lines
    }

    /// What nginx logged.
    pub fn log(&self) -> String {
        self.running.stderr()
    }
}
