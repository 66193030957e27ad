//! What an access line looks like, as JSON and as text: one list of fields for both.
//!
//! Values come from the network, so everything that could break a line or move a terminal's cursor
//! is escaped; query strings and header values never get here ([`AccessRecord`] has none).

use std::io::Write as _;
use std::time::Duration;

use super::record::{AccessRecord, Dialled};
use super::time::write_rfc3339;
use crate::config::plan::LogFormat;

/// The longest value a client can put into a line; longer ones are cut, so that one line stays
/// within what log collectors accept (16 KiB).
const VALUE_BYTES: usize = 4096;

/// Every field of an access line, in the order they are written. Fields without a value are left out.
pub const FIELDS: [&str; 43] = [
    "ts",
    "kind",
    "flow",
    "route",
    "mode",
    "reason",
    "namespace",
    "pod",
    "service_account",
    "pod_uid",
    "container",
    "cgroup",
    "client",
    "destination",
    "direct",
    "client_tls",
    "client_resumed",
    "client_subject",
    "client_san",
    "client_serial",
    "gateway",
    "asked",
    "upstream",
    "upstream_proxy",
    "upstream_addr",
    "upstream_protocol",
    "reused",
    "client_protocol",
    "method",
    "path",
    "status",
    "bytes_up",
    "bytes_down",
    "duration_ms",
    "handshake_wait_ms",
    "connect_ms",
    "outage_ms",
    "first_byte_ms",
    "tls",
    "kx",
    "identity_generation",
    "spiffe_id",
    "detail",
];

/// How lines look.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Format {
    /// One JSON object a line.
    Json,
    /// `key=value` pairs; values with blanks or quotes are quoted.
    Text,
}

impl From<LogFormat> for Format {
    fn from(format: LogFormat) -> Self {
        match format {
            LogFormat::Json => Self::Json,
            LogFormat::Text => Self::Text,
        }
    }
}

impl Format {
    /// Appends one line, newline included.
    pub(super) fn line(self, out: &mut Vec<u8>, record: &AccessRecord) {
        match self {
            Self::Json => Json::line(out, record),
            Self::Text => Text::line(out, record),
        }
    }
}

/// A record as a JSON object, with the fields of its line.
pub(super) fn value(record: &AccessRecord) -> serde_json::Value {
    let mut text = Vec::new();
    Format::Json.line(&mut text, record);
    serde_json::from_slice(&text).unwrap_or_default()
}

/// Where the fields of a line go: the list of fields is written once, for both formats.
trait Sink {
    fn raw(&mut self, key: &'static str, value: impl std::fmt::Display);
    fn text(&mut self, key: &'static str, value: &str);

    fn display(&mut self, key: &'static str, value: impl std::fmt::Display);
    fn millis(&mut self, key: &'static str, value: Duration) {
        let micros = value.as_micros();
        self.raw(key, format_args!("{}.{:03}", micros / 1000, micros % 1000));
    }
}

fn fields(record: &AccessRecord, sink: &mut impl Sink) {
    sink.raw("flow", record.flow_id);
    if let Some(route) = &record.route {
        sink.text("route", route);
    }
    sink.text("mode", record.mode);
    sink.text("reason", record.reason.code());
    if let Some(pod) = record.workload.pod.known() {
        sink.text("namespace", &pod.namespace);
        sink.text("pod", &pod.name);
        if let Some(account) = &pod.account {
            sink.text("service_account", &account.value.name);
        }
    }
    for (key, value) in [
        ("pod_uid", &record.workload.pod_uid),
        ("container", &record.workload.container_id),
        ("cgroup", &record.workload.cgroup),
    ] {
        if let Some(value) = value {
            sink.text(key, value);
        }
    }
    sink.display("client", record.client);
    if let Some(destination) = record.destination.as_ref().and_then(Dialled::address) {
        sink.display("destination", destination);
    }
    if record.direct {
        sink.raw("direct", true);
    }
    if let Some(tls) = &record.client_tls {
        sink.text("client_tls", tls.version);
        if tls.resumed {
            sink.raw("client_resumed", true);
        }
        if let Some(certificate) = &tls.certificate {
            sink.text("client_subject", &certificate.subject);
            if let Some(name) = certificate.alternative_name() {
                sink.text("client_san", name);
            }
            sink.text("client_serial", &certificate.serial);
        }
    }
    if let Some(Dialled::Asked(asked)) = &record.destination {
        sink.text("gateway", asked.form);
        if let Some(authority) = &asked.authority {
            sink.text("asked", authority);
        }
    }
    if let Some(upstream) = &record.upstream {
        sink.text("upstream", &upstream.way.authority);
        if let Some(proxy) = &upstream.way.proxy {
            sink.text("upstream_proxy", proxy);
        }
        if let Some(addr) = upstream.addr {
            sink.display("upstream_addr", addr);
        }
        if let Some(protocol) = upstream.protocol {
            sink.text("upstream_protocol", protocol.as_str());
        }
        sink.raw("reused", upstream.reused);
    }
    if let Some(http) = &record.http {
        sink.text("client_protocol", record.client_protocol.as_str());
        sink.text("method", &http.method);
        sink.text("path", without_query(&http.path));
        sink.raw("status", http.status);
    }
    sink.raw("bytes_up", record.bytes_up);
    sink.raw("bytes_down", record.bytes_down);
    sink.millis("duration_ms", record.duration);
    if record.handshake_wait_ms > 0 {
        sink.raw("handshake_wait_ms", record.handshake_wait_ms);
    }
    if let Some(upstream) = &record.upstream {
        sink.millis("connect_ms", upstream.connect);
        if upstream.outage > Duration::ZERO {
            sink.millis("outage_ms", upstream.outage);
        }
        if let Some(first_byte) = upstream.first_byte {
            sink.millis("first_byte_ms", first_byte);
        }
        if let Some(tls) = upstream.tls_version {
            sink.text("tls", tls);
        }
        if let Some(kx) = upstream.key_exchange {
            sink.text("kx", kx);
        }
        if let Some(generation) = upstream.identity_generation {
            sink.raw("identity_generation", generation);
        }
        if let Some(spiffe_id) = &upstream.spiffe_id {
            sink.text("spiffe_id", spiffe_id);
        }
    }
    if let Some(detail) = &record.detail {
        sink.text("detail", detail);
    }
}

/// The record promises a path without a query; a mistake there must not put keys into a log.
fn without_query(path: &str) -> &str {
    path.split_once(['?', '#']).map_or(path, |(path, _)| path)
}

struct Json<'a>(&'a mut Vec<u8>);

impl<'a> Json<'a> {
    fn line(out: &'a mut Vec<u8>, record: &AccessRecord) {
        out.extend_from_slice(b"{\"ts\":\"");
        write_rfc3339(out, record.started + record.duration);
        out.extend_from_slice(b"\",\"kind\":\"access\"");
        let mut json = Self(out);
        fields(record, &mut json);
        json.0.extend_from_slice(b"}\n");
    }

    fn key(&mut self, key: &str) {
        self.0.extend_from_slice(b",\"");
        self.0.extend_from_slice(key.as_bytes());
        self.0.extend_from_slice(b"\":");
    }
}

impl Sink for Json<'_> {
    fn raw(&mut self, key: &'static str, value: impl std::fmt::Display) {
        self.key(key);
        push(self.0, value);
    }

    fn display(&mut self, key: &'static str, value: impl std::fmt::Display) {
        self.key(key);
        self.0.push(b'"');
        push(self.0, value);
        self.0.push(b'"');
    }

    fn text(&mut self, key: &'static str, value: &str) {
        self.key(key);
        self.0.push(b'"');
        escape(self.0, value);
        self.0.push(b'"');
    }
}

struct Text<'a>(&'a mut Vec<u8>);

impl<'a> Text<'a> {
    fn line(out: &'a mut Vec<u8>, record: &AccessRecord) {
        write_rfc3339(out, record.started + record.duration);
        out.extend_from_slice(b" access");
        let mut text = Self(out);
        fields(record, &mut text);
        text.0.push(b'\n');
    }

    fn key(&mut self, key: &str) {
        self.0.push(b' ');
        self.0.extend_from_slice(key.as_bytes());
        self.0.push(b'=');
    }
}

impl Sink for Text<'_> {
    fn raw(&mut self, key: &'static str, value: impl std::fmt::Display) {
        self.key(key);
        push(self.0, value);
    }

    fn display(&mut self, key: &'static str, value: impl std::fmt::Display) {
        self.raw(key, value);
    }

    fn text(&mut self, key: &'static str, value: &str) {
        self.key(key);
        let plain = !value.is_empty()
            && value.bytes().all(|b| b.is_ascii_graphic() && !matches!(b, b'"' | b'\\' | b'='));
        if plain && value.len() <= VALUE_BYTES {
            self.0.extend_from_slice(value.as_bytes());
        } else {
            self.0.push(b'"');
            escape(self.0, value);
            self.0.push(b'"');
        }
    }
}

fn push(out: &mut Vec<u8>, value: impl std::fmt::Display) {
    write!(out, "{value}").expect("a Vec takes every write");
}

/// JSON's escapes, and beyond them everything that is invisible or moves text about: C0, DEL, C1,
/// line and paragraph separators, and the bidirectional overrides that make a line read backwards.
fn escape(out: &mut Vec<u8>, value: &str) {
    let mut room = VALUE_BYTES;
    for c in value.chars() {
        let Some(left) = room.checked_sub(c.len_utf8()) else {
            out.extend_from_slice("…".as_bytes());
            return;
        };
        room = left;
        match c {
            '"' => out.extend_from_slice(b"\\\""),
            '\\' => out.extend_from_slice(b"\\\\"),
            '\n' => out.extend_from_slice(b"\\n"),
            '\r' => out.extend_from_slice(b"\\r"),
            '\t' => out.extend_from_slice(b"\\t"),
            c if moves_text(c) => push(out, format_args!("\\u{:04x}", u32::from(c))),
            c => out.extend_from_slice(c.encode_utf8(&mut [0; 4]).as_bytes()),
        }
    }
}

fn moves_text(c: char) -> bool {
    c.is_control() || matches!(c, '\u{2028}'..='\u{202e}' | '\u{2066}'..='\u{2069}' | '\u{feff}')
}

/// A text for a terminal, or JSON on its way to one: what is invisible or moves text about is written as in JSON.
pub fn printable(text: &str) -> String {
    let mut out = Vec::with_capacity(text.len());
    for c in text.chars() {
        if moves_text(c) {
            push(&mut out, format_args!("\\u{:04x}", u32::from(c)));
        } else {
            out.extend_from_slice(c.encode_utf8(&mut [0; 4]).as_bytes());
        }
    }
    String::from_utf8_lossy(&out).into_owned()
}

#[cfg(test)]
pub(super) mod tests {
    use std::sync::Arc;
    use std::time::UNIX_EPOCH;

    use hnp_common::Reason;
    use proptest::prelude::*;

    use super::*;
    use crate::serving::certificate::{ClientCertificate, ClientTls};
    use crate::telemetry::record::{AskedRecord, HttpRecord, HttpVersion, UpstreamRecord, WayRecord};
    use crate::workload::{Account, Directory, Facts, PodLink, Teller, Workload};

    fn pod() -> PodLink {
        let directory = Directory::default();
        let account = Account { namespace: "team-a".into(), name: "runner".into() };
        let facts = Facts { account: Some(Arc::new(account)), ..Facts::named("x", "team-a", "web-0") };
        directory.tell(Teller::Api, [facts]);
        PodLink::to(directory, "x")
    }

    pub(in crate::telemetry) fn record() -> AccessRecord {
        AccessRecord {
            started: UNIX_EPOCH + Duration::from_millis(1_000_000_000_000),
            duration: Duration::from_micros(12_345),
            flow_id: 7,
            route: Some("manager".into()),
            mode: "reverse-proxy",
            workload: Arc::new(Workload {
                cgroup: Some("/kubepods/podx/c".into()),
                pod_uid: Some("x".into()),
                container_id: Some("c".into()),
                pod: pod(),
            }),
            client: "10.244.1.2:40000".parse().unwrap(),
            destination: Some(Dialled::Asked(Arc::new(AskedRecord {
                form: "connect",
                authority: Some("198.18.0.9:80".into()),
                address: Some("198.18.0.9:80".parse().unwrap()),
            }))),
            direct: true,
            handshake_wait_ms: 5,
            client_tls: Some(Arc::new(ClientTls {
                version: "TLSv1.3",
                resumed: true,
                certificate: Some(ClientCertificate {
                    subject: "CN=runner,O=hnp".into(),
                    common_name: Some("runner".into()),
                    serial: "0a".into(),
                    uris: vec!["spiffe://test/ns/a/sa/b".into()],
                    dns: Vec::new(),
                    not_after: UNIX_EPOCH,
                    forwarded: String::new(),
                }),
            })),
            upstream: Some(UpstreamRecord {
                way: Arc::new(WayRecord {
                    authority: "manager.hnp.test:8443".into(),
                    proxy: Some("corp".into()),
                }),
                addr: Some("192.0.2.1:8443".parse().unwrap()),
                protocol: Some(HttpVersion::H2),
                reused: false,
                connect: Duration::from_millis(3),
                outage: Duration::from_millis(4),
                first_byte: Some(Duration::from_micros(1500)),
                tls_version: Some("TLSv1.3"),
                key_exchange: Some("X25519MLKEM768"),
                identity_generation: Some(2),
                spiffe_id: Some("spiffe://test/ns/a/sa/b".into()),
            }),
            client_protocol: HttpVersion::Http1,
            http: Some(HttpRecord { method: "GET".into(), path: "/api/version".into(), status: 200 }),
            bytes_up: 100,
            bytes_down: 2000,
            reason: Reason::Ok,
            detail: None,
        }
    }

    fn json_line(record: &AccessRecord) -> String {
        let mut out = Vec::new();
        Json::line(&mut out, record);
        String::from_utf8(out).unwrap()
    }

    fn text_line(record: &AccessRecord) -> String {
        let mut out = Vec::new();
        Text::line(&mut out, record);
        String::from_utf8(out).unwrap()
    }

    #[test]
    fn a_json_line_has_every_field_once_and_in_order() {
        let line = json_line(&AccessRecord { detail: Some("x".into()), ..record() });
        let value: serde_json::Value = serde_json::from_str(&line).unwrap();
        let object = value.as_object().unwrap();
        assert_eq!(object.len(), FIELDS.len());
        let mut at = 0;
        for field in FIELDS {
            assert!(object.contains_key(field), "{field}");
            let found = line.find(&format!("\"{field}\":")).unwrap();
            assert!(found > at || field == "ts", "{field} is out of order");
            at = found;
        }
        assert_eq!(value["ts"], "2001-09-09T01:46:40.012Z");
        assert_eq!(value["kind"], "access");
        assert_eq!(value["duration_ms"], 12.345);
        assert_eq!(value["first_byte_ms"], 1.5);
        assert_eq!(value["status"], 200);
        assert_eq!(value["reused"], false);
        assert_eq!(value["destination"], "198.18.0.9:80");
        assert_eq!(
            (&value["namespace"], &value["pod"], &value["service_account"]),
            (&"team-a".into(), &"web-0".into(), &"runner".into())
        );
    }

    #[test]
    fn a_text_line_reads_like_this() {
        let short = AccessRecord {
            handshake_wait_ms: 0,
            upstream: None,
            http: None,
            route: None,
            reason: Reason::NoFlow,
            mode: "opaque",
            workload: Arc::default(),
            destination: None,
            direct: false,
            client_tls: None,
            detail: Some("no flow for this \"port\"\n".into()),
            ..record()
        };
        assert_eq!(
            text_line(&short),
            "2001-09-09T01:46:40.012Z access flow=7 mode=opaque reason=no_flow client=10.244.1.2:40000 \
             bytes_up=100 bytes_down=2000 duration_ms=12.345 detail=\"no flow for this \\\"port\\\"\\n\"\n"
        );
    }

    #[test]
    fn queries_never_reach_a_line() {
        let mut record = record();
        record.http.as_mut().unwrap().path = "/a?accountId=SECRET".into();
        for line in [json_line(&record), text_line(&record)] {
            assert!(!line.contains("SECRET") && line.contains("/a"), "{line}");
        }
    }

    proptest! {
        #[test]
        fn nothing_a_client_writes_breaks_a_line(path in "\\PC*|(?s).*", method in "(?s).{0,20}") {
            let mut record = record();
            record.http = Some(HttpRecord { method: method.clone(), path: path.clone(), status: 0 });
            let json = json_line(&record);
            prop_assert!(json.bytes().filter(|b| *b == b'\n').count() == 1 && json.ends_with('\n'));
            prop_assert!(!json.trim_end().chars().any(char::is_control));
            let value: serde_json::Value = serde_json::from_str(&json).unwrap();
            prop_assert_eq!(value["method"].as_str().unwrap(), method);
            prop_assert_eq!(value["path"].as_str().unwrap(), without_query(&path));
            let text = text_line(&record);
            prop_assert!(!text.strip_suffix('\n').unwrap().chars().any(char::is_control));
        }
    }

    #[test]
    fn long_values_are_cut() {
        let mut record = record();
        record.http.as_mut().unwrap().path = "/é".repeat(100_000);
        assert!(json_line(&record).len() < VALUE_BYTES + 1000);
        assert!(text_line(&record).len() < VALUE_BYTES + 1000);
        serde_json::from_str::<serde_json::Value>(&json_line(&record)).unwrap();
    }
}
