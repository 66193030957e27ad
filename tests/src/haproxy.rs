//! HAProxy as a strict manager that speaks HTTP/2: the front that offers WebSockets on streams (RFC 8441), as nginx
//! does not.

use std::fs;
use std::net::{Ipv4Addr, TcpStream};
use std::path::Path;
use std::time::Duration;

use crate::pki::Leaf;
use crate::poll::eventually;
use crate::process::Running;
use crate::tools;
use crate::topology::{MANAGER4, Topology};

/// A running HAProxy, which ends with it.
#[derive(Debug)]
pub struct Haproxy {
    _running: Running,
}

impl Haproxy {
    /// Starts it on a port of the manager's namespace, before a server in the clear on `behind` there. Clients'
    /// certificates must come from `clients_ca` (PEM). `websockets`: it offers them on streams. It denies `/denied` (403).
    ///
    /// # Panics
    /// When HAProxy is missing or refuses its configuration.
    #[track_caller]
    pub fn start(
        topology: &Topology,
        port: u16,
        server: &Leaf,
        clients_ca: &Path,
        behind: u16,
        websockets: bool,
    ) -> Self {
        let dir = topology.path(&format!("haproxy-{port}"));
        fs::create_dir(&dir).expect("the world's directory is ours");
        let files = server.write(&dir, "server");
        let read = |path: &Path| fs::read_to_string(path).expect("it was just written");
        // It reads both from one file.
        let both = dir.join("server.pem");
        fs::write(&both, read(&files.certificate) + &read(&files.key))
            .expect("the world's directory is ours");
        let conf = format!(
            "global\n  log stderr format raw local0\n  maxconn 1000\n  {workaround}\n\
             defaults\n  mode http\n  timeout connect 5s\n  timeout client 60s\n  timeout server 60s\n\
             frontend manager\n\
               bind :::{port} v4v6 ssl crt {pem} ca-file {ca} verify required alpn h2,http/1.1\n\
               http-request set-header X-Client-Serial %[ssl_c_serial,hex]\n\
               http-request set-header X-Version %[req.ver]\n\
               http-request deny deny_status 403 if {{ path /denied }}\n\
               default_backend behind\n\
             backend behind\n  server behind {local}:{behind}\n",
            workaround = if websockets { "" } else { "h2-workaround-bogus-websocket-clients" },
            pem = both.display(),
            ca = clients_ca.display(),
            local = Ipv4Addr::LOCALHOST,
        );
        let path = dir.join("haproxy.cfg");
        fs::write(&path, conf).expect("the world's directory is ours");
        let place = topology.manager_side();
        let mut running = place.command(tools::need("haproxy")).arg("-db").arg("-f").arg(&path).spawn();
        eventually(Duration::from_secs(20), "HAProxy listens", || {
            assert!(running.is_alive(), "{}", running.stderr());
            place.netns().run(|| TcpStream::connect((MANAGER4, port)).is_ok())
        });
        Self { _running: running }
    }
}
