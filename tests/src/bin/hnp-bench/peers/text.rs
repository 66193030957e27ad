//! Their configurations: each as its manual recommends for many requests to one TLS upstream, with the
//! upstream's certificate verified, connections pooled where the mode can, sessions resumed, and no logs.

use std::fmt::Write as _;
use std::path::Path;

use hnp_tests::pki::Files;
use hnp_tests::topology::{MANAGER_NAME, MANAGER4};

use super::proxies::{Key, Kind, MANAGER, Program, Stage};

/// Client connections that each may have; hnp's own limit is above.
const CONNECTIONS: usize = 8000;
/// Idle connections to the manager that nginx keeps; HAProxy has no limit, and hnp has 32.
const POOL: usize = 128;
const KEYS: [Key; 2] = [Key::Rsa, Key::P256];

pub(super) fn manager(dir: &Path, server: &Files, clients: &Path, port: u16, http2: u16) -> String {
    let at = dir.display();
    format!(
        "{}\
         http {{\n\
           {}\
           root {at}; sendfile on; keepalive_requests 1000000000; keepalive_timeout 600s;\n\
           server {{\n\
             listen {port} ssl backlog=4096; listen {http2} ssl http2 backlog=4096;\n\
             ssl_certificate {}; ssl_certificate_key {};\n\
             ssl_client_certificate {}; ssl_verify_client on;\n\
             ssl_session_cache shared:manager:8m; ssl_protocols TLSv1.2 TLSv1.3;\n\
           }}\n\
         }}\n",
        nginx_head(dir),
        nginx_paths(dir),
        server.certificate.display(),
        server.key.display(),
        clients.display(),
    )
}

pub(super) fn nginx(stage: &Stage, dir: &Path, module: &Path, kind: Kind) -> String {
    let mut text = format!("load_module {};\n{}", module.display(), nginx_head(dir));
    match kind {
        Kind::Http => {
            let _ = write!(
                text,
                "http {{\n{}\
                 keepalive_requests 1000000000; keepalive_timeout 600s; proxy_max_temp_file_size 0;\n",
                nginx_paths(dir)
            );
        }
        Kind::Opaque => text.push_str("stream {\nproxy_timeout 600s; tcp_nodelay on;\n"),
    }
    for key in KEYS {
        let port = Stage::address(Program::Nginx, kind, key).port();
        let pool = if kind == Kind::Http {
            format!("keepalive {POOL}; keepalive_requests 1000000000;")
        } else {
            String::new()
        };
        let files = stage.identity(key);
        let tls = format!(
            "proxy_ssl_certificate {}; proxy_ssl_certificate_key {}; proxy_ssl_trusted_certificate {};\n\
             proxy_ssl_verify on; proxy_ssl_name {MANAGER_NAME}; proxy_ssl_server_name on;\n\
             proxy_ssl_protocols TLSv1.2 TLSv1.3;",
            files.certificate.display(),
            files.key.display(),
            stage.roots().display()
        );
        let upstream = format!("manager{port}");
        let _ = writeln!(text, "upstream {upstream} {{ server {MANAGER4}:{MANAGER}; {pool} }}");
        let _ = match kind {
            Kind::Http => write!(
                text,
                "server {{ listen {port} backlog=4096; location / {{\n\
                 proxy_pass https://{upstream}; proxy_http_version 1.1;\n\
                 proxy_set_header Connection \"\"; proxy_set_header Host $host;\n{tls}\n}} }}\n"
            ),
            Kind::Opaque => write!(
                text,
                "server {{ listen {port} backlog=4096; proxy_pass {upstream}; proxy_ssl on;\n{tls}\n}}\n"
            ),
        };
    }
    text + "}\n"
}

pub(super) fn haproxy(stage: &Stage, kind: Kind) -> String {
    let (mode, more) = match kind {
        Kind::Http => ("http", "http-reuse always"),
        Kind::Opaque => ("tcp", ""),
    };
    let mut text = format!(
        "global\n nbthread 1\n maxconn {CONNECTIONS}\n\
         defaults\n mode {mode}\n {more}\n timeout connect 5s\n timeout client 600s\n timeout server 600s\n"
    );
    for key in KEYS {
        let port = Stage::address(Program::Haproxy, kind, key).port();
        let _ = write!(
            text,
            "listen on{port}\n bind :{port} backlog 4096\n \
             server manager {MANAGER4}:{MANAGER} ssl verify required ca-file {} crt {} \
             verifyhost {MANAGER_NAME} sni str({MANAGER_NAME})\n",
            stage.roots().display(),
            stage.identity(key).certificate.with_extension("pem").display()
        );
    }
    text
}

pub(super) fn stunnel(stage: &Stage) -> String {
    let mut text = "foreground = yes\npid =\nsyslog = no\ndebug = err\n\
                    socket = l:TCP_NODELAY=1\nsocket = r:TCP_NODELAY=1\n"
        .to_owned();
    for key in KEYS {
        let port = Stage::address(Program::Stunnel, Kind::Opaque, key).port();
        let files = stage.identity(key);
        let _ = write!(
            text,
            "[on{port}]\nclient = yes\naccept = 0.0.0.0:{port}\nconnect = {MANAGER4}:{MANAGER}\n\
             cert = {}\nkey = {}\nCAfile = {}\nverifyChain = yes\ncheckHost = {MANAGER_NAME}\nsni = {MANAGER_NAME}\n\
             TIMEOUTclose = 0\nTIMEOUTidle = 600\n",
            files.certificate.display(),
            files.key.display(),
            stage.roots().display()
        );
    }
    text
}

/// One process, in the foreground.
fn nginx_head(dir: &Path) -> String {
    format!(
        "daemon off; master_process off; user root; pid {}/pid; error_log stderr warn;\n\
         events {{ worker_connections {CONNECTIONS}; }}\n",
        dir.display()
    )
}

/// Not the system's.
fn nginx_paths(dir: &Path) -> String {
    let at = dir.display();
    format!(
        "access_log off; client_body_temp_path {at}/body; proxy_temp_path {at}/p; fastcgi_temp_path {at}/f;\n\
         uwsgi_temp_path {at}/u; scgi_temp_path {at}/s;\n"
    )
}
