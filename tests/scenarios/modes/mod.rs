//! The matrix: every mode, for captured pods and for pods that were told of a proxy, with HTTP/1.1, HTTP/2 and bytes
//! that are neither; each against a strict manager and a loose one. One scenario is one cell, on both managers.
//!
//! No cell is without a meaning. What these leave out, others have: more client programs are in `main_job`, `grpc`,
//! `websockets` and `gateway`, upstreams that speak another protocol than the client in `h2_clients` and
//! `h2_upstream`, and what each mode refuses in `end_to_end`, `tunnel` and `other_names`.

mod stage;

use self::stage::{Cell, Client, Mode, Way};

/// A test of the name given, for one cell.
macro_rules! judge {
    ($($name:ident: $mode:ident, $way:ident, $client:ident;)*) => {
        $(#[test] fn $name() { Cell { mode: Mode::$mode, way: Way::$way, client: Client::$client }.judge(); })*
    };
}

judge! {
    end_to_end_captured_http1: EndToEnd, Captured, Http1;
    end_to_end_captured_h2: EndToEnd, Captured, Http2;
    end_to_end_captured_opaque: EndToEnd, Captured, Opaque;
    end_to_end_explicit_http1: EndToEnd, Explicit, Http1;
    end_to_end_explicit_h2: EndToEnd, Explicit, Http2;
    end_to_end_explicit_opaque: EndToEnd, Explicit, Opaque;
    reverse_proxy_captured_http1: ReverseProxy, Captured, Http1;
    reverse_proxy_captured_h2: ReverseProxy, Captured, Http2;
    reverse_proxy_captured_opaque: ReverseProxy, Captured, Opaque;
    reverse_proxy_explicit_http1: ReverseProxy, Explicit, Http1;
    reverse_proxy_explicit_h2: ReverseProxy, Explicit, Http2;
    reverse_proxy_explicit_opaque: ReverseProxy, Explicit, Opaque;
    tunnel_captured_http1: Tunnel, Captured, Http1;
    tunnel_captured_h2: Tunnel, Captured, Http2;
    tunnel_captured_opaque: Tunnel, Captured, Opaque;
    tunnel_explicit_http1: Tunnel, Explicit, Http1;
    tunnel_explicit_h2: Tunnel, Explicit, Http2;
    tunnel_explicit_opaque: Tunnel, Explicit, Opaque;
}
