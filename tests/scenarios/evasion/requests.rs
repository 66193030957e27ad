//! Inside a captured connection: no Host, request target, protocol or TLS hello has the agent carry
//! anything in the clear, or anywhere but to the manager.

use std::sync::Arc;

use hnp_tests::evasion::{Technique, Trial};
use hnp_tests::topology::MANAGER_NAME;
use rustls::{ClientConfig, ClientConnection, RootCertStore};

use super::judge;

/// A name that is not the manager's.
const ELSEWHERE: &str = "elsewhere.hnp.test";

judge! {
    forged_host: said(|marker| get(&format!("/{marker}"), ELSEWHERE)).answered(" 421 ");
    absolute_form: said(|marker| get(&format!("http://{ELSEWHERE}/{marker}"), ELSEWHERE)).answered(" 421 ");
    absolute_form_behind_a_right_host:
        said(|marker| get(&format!("http://{ELSEWHERE}/{marker}"), MANAGER_NAME)).answered(" 400 ");
    second_request_for_another_host: said(second_request).answered("200 OK | HTTP/1.1 421 ");
    connect_method: said(connect).answered(" 501 ");
    no_host: said(|marker| format!("GET /hello HTTP/1.0\r\nx-token: {marker}\r\n\r\n")).served();
    // The agent's own settings come first; the refusal, on the stream, is `h2_clients::a_forged_authority...`.
    http2_by_prior_knowledge: bytes(http2).answered("\0\0\u{12}\u{4}");
    http2_by_upgrade: said(http2_upgrade).answered(" 421 ");
    neither_http_nor_tls: said(|marker| format!("{marker}\n{marker}\n\n")).answered(" 400 ");
    // A TLS alert: the record's type is 21.
    forged_sni: bytes(hello).answered("\u{15}");
}

fn bytes(bytes: impl Fn(&str) -> Vec<u8> + 'static) -> Trial {
    Trial::new(Technique::Connect).by_name().saying(bytes)
}

fn said(text: impl Fn(&str) -> String + 'static) -> Trial {
    bytes(move |marker| text(marker).into_bytes())
}

fn get(target: &str, host: &str) -> String {
    format!("GET {target} HTTP/1.1\r\nhost: {host}\r\nconnection: close\r\n\r\n")
}

fn connect(marker: &str) -> String {
    format!("CONNECT {ELSEWHERE}:80 HTTP/1.1\r\nhost: {ELSEWHERE}:80\r\nx: {marker}\r\n\r\n")
}

fn second_request(marker: &str) -> String {
    let first = format!("GET /hello HTTP/1.1\r\nhost: {MANAGER_NAME}\r\nx-token: {marker}\r\n\r\n");
    first + &get(&format!("/{marker}"), ELSEWHERE)
}

fn http2_upgrade(marker: &str) -> String {
    let head = format!("GET /{marker} HTTP/1.1\r\nhost: {ELSEWHERE}\r\nconnection: upgrade, http2-settings");
    format!("{head}\r\nupgrade: h2c\r\nhttp2-settings: AAMAAABkAAQAAP__\r\n\r\n")
}

/// The preface, empty settings, and a request whose `:authority` is another (RFC 9113 section 3.4; RFC
/// 7541: indexed fields, and literals without Huffman coding).
fn http2(marker: &str) -> Vec<u8> {
    let literal = |text: &str| [&[u8::try_from(text.len()).expect("short")], text.as_bytes()].concat();
    let block =
        [&[0x82, 0x86, 0x84, 0x41][..], &literal(ELSEWHERE), &[0x00], &literal("x-token"), &literal(marker)]
            .concat();
    let length = u8::try_from(block.len()).expect("short");
    // END_STREAM and END_HEADERS on stream 1.
    let headers = [&[0, 0, length, 1, 5, 0, 0, 0, 1][..], &block].concat();
    [&b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"[..], &[0, 0, 0, 4, 0, 0, 0, 0, 0], &headers].concat()
}

/// A TLS hello to the destination, for another name.
fn hello(marker: &str) -> Vec<u8> {
    let config = ClientConfig::builder().with_root_certificates(RootCertStore::empty()).with_no_client_auth();
    let name = format!("{marker}.hnp.test").try_into().expect("a name");
    let mut client = ClientConnection::new(Arc::new(config), name).expect("a client");
    let mut bytes = Vec::new();
    client.write_tls(&mut bytes).expect("vectors grow");
    bytes
}
