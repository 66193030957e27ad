//! What single values look like: durations, sizes, names, words. Each function takes the text as
//! written and answers with a type that cannot be wrong, or says what is allowed.

use std::fmt;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use super::plan::{
    Authority, CaptureMode, DaemonSet, Enforcement, Guard, LogFormat, OnDoubt, Protocol, RawSockets,
    RuntimeSocket, TlsVersion, Unreadable, UpstreamProtocol,
};

use super::spiffe::{IdPattern, SpiffeId};

/// What is wrong with a value, and what would be right.
#[derive(Clone, Debug, Eq, PartialEq)]
pub(super) struct Wrong {
    what: String,
    allowed: String,
}

impl Wrong {
    pub(super) fn new(what: impl Into<String>, allowed: impl Into<String>) -> Self {
        Self { what: what.into(), allowed: allowed.into() }
    }

    pub(super) fn not(text: &str, a: &str, allowed: &str) -> Self {
        Self::new(format!("{text:?} is not {a}"), allowed)
    }
}

impl fmt::Display for Wrong {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}; allowed: {}", self.what, self.allowed)
    }
}

pub(super) type Value<T> = Result<T, Wrong>;

/// A number with a unit: `500ms`, `10s`, `2m`, `1h`. More than zero, at most a day.
pub(super) fn duration(text: &str) -> Value<Duration> {
    const ALLOWED: &str = "a number with a unit, such as 500ms, 10s, 2m or 1h; at most 24h";
    let wrong = || Wrong::not(text, "a duration", ALLOWED);
    let digits = text.find(|c: char| !c.is_ascii_digit()).ok_or_else(wrong)?;
    let (number, unit) = text.split_at(digits);
    let number: u64 = number.parse().map_err(|_| wrong())?;
    let millis = match unit {
        "ms" => Some(number),
        "s" => number.checked_mul(1000),
        "m" => number.checked_mul(60_000),
        "h" => number.checked_mul(3_600_000),
        _ => return Err(wrong()),
    };
    match millis {
        Some(millis @ 1..=86_400_000) => Ok(Duration::from_millis(millis)),
        Some(0) => Err(Wrong::new(format!("{text:?} is no time at all"), ALLOWED)),
        Some(_) | None => Err(Wrong::new(format!("{text:?} is longer than a day"), ALLOWED)),
    }
}

/// The shortest form in which the configuration can say it, such as `90s` or `5m`.
pub fn humane(duration: Duration) -> String {
    let millis = duration.as_millis();
    match millis {
        0 => "0s".into(),
        _ if millis.is_multiple_of(3_600_000) => format!("{}h", millis / 3_600_000),
        _ if millis.is_multiple_of(60_000) => format!("{}m", millis / 60_000),
        _ if millis.is_multiple_of(1000) => format!("{}s", millis / 1000),
        _ => format!("{millis}ms"),
    }
}

/// Bytes, as a plain number or with KiB or MiB, within bounds.
pub(super) fn size(min: usize, max: usize) -> impl Fn(&str) -> Value<usize> {
    move |text| {
        let allowed = format!("bytes from {} to {}, such as 65536, 64KiB or 1MiB", bytes(min), bytes(max));
        let (number, unit) = text.split_at(text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len()));
        let factor = match unit.trim_start() {
            "" => Some(1),
            "KiB" => Some(1024),
            "MiB" => Some(1024 * 1024),
            _ => None,
        };
        let value = factor.zip(number.parse::<usize>().ok()).and_then(|(f, n)| n.checked_mul(f));
        match value {
            Some(value) if (min..=max).contains(&value) => Ok(value),
            Some(_) => Err(Wrong::new(format!("{text:?} is out of bounds"), allowed)),
            None => Err(Wrong::not(text, "a size", &allowed)),
        }
    }
}

fn bytes(n: usize) -> String {
    match n {
        _ if n.is_multiple_of(1024 * 1024) => format!("{}MiB", n / 1024 / 1024),
        _ if n.is_multiple_of(1024) => format!("{}KiB", n / 1024),
        _ => n.to_string(),
    }
}

/// A whole number within bounds.
pub(super) fn count(min: usize, max: usize) -> impl Fn(&str) -> Value<usize> {
    move |text| match plain_number(text) {
        Some(value) if (min..=max).contains(&value) => Ok(value),
        _ => Err(Wrong::not(text, "such a number", &format!("a whole number from {min} to {max}"))),
    }
}

/// Digits only: `+5`, `5_000` and `0x10` are refused and not guessed.
pub(super) fn plain_number<T: std::str::FromStr>(text: &str) -> Option<T> {
    let digits = !text.is_empty() && text.bytes().all(|b| b.is_ascii_digit());
    digits.then(|| text.parse().ok()).flatten()
}

/// A TCP port; 0 is none.
pub(super) fn port(text: &str) -> Value<u16> {
    match plain_number::<u16>(text) {
        Some(port @ 1..) => Ok(port),
        Some(0) | None => Err(Wrong::not(text, "a port", "1 to 65535")),
    }
}

/// What becomes of certificates of which it cannot be told whether they were revoked.
pub(super) fn on_doubt(text: &str) -> Result<OnDoubt, Wrong> {
    match text {
        "refuse" => Ok(OnDoubt::Refuse),
        "allow" => Ok(OnDoubt::Allow),
        _ => Err(Wrong::new(format!("{text:?} is no such decision"), "refuse or allow")),
    }
}

/// The name of a route, identity or trust: it stands in labels and log lines.
pub(super) fn name(text: &str) -> Value<Arc<str>> {
    let good = text.len() <= 63
        && text.starts_with(|c: char| c.is_ascii_alphanumeric())
        && text.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'.' | b'_' | b'-'));
    if good {
        Ok(text.into())
    } else {
        const ALLOWED: &str =
            "up to 63 letters, digits, dots, dashes and underscores, a letter or digit first";
        Err(Wrong::not(text, "a name", ALLOWED))
    }
}

/// A SPIFFE trust domain (SPIFFE-ID section 2.1).
pub(super) fn trust_domain(text: &str) -> Value<Arc<str>> {
    const ALLOWED: &str =
        "up to 255 lower-case letters, digits, dots, dashes and underscores, such as prod.example.org";
    let good = (1..=255).contains(&text.len())
        && text
            .bytes()
            .all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || matches!(b, b'.' | b'_' | b'-'));
    if good { Ok(text.into()) } else { Err(Wrong::not(text, "a trust domain", ALLOWED)) }
}

/// An absolute path: a relative one would depend on where the agent was started.
pub(super) fn path(text: &str) -> Value<PathBuf> {
    if text.starts_with('/') && !text.contains('\0') {
        Ok(PathBuf::from(text))
    } else {
        Err(Wrong::not(text, "an absolute path", "a path that begins with /"))
    }
}

/// `auto`, `off`, or the path of a CRI socket.
pub(super) fn runtime_socket(text: &str) -> Value<RuntimeSocket> {
    match text {
        "auto" => Ok(RuntimeSocket::Auto),
        "off" => Ok(RuntimeSocket::Off),
        path => match unix_socket(path) {
            Ok(path) => Ok(RuntimeSocket::Path(path)),
            Err(_) => Err(Wrong::not(
                text,
                "a container runtime's socket",
                "auto, off, or a path such as /run/containerd/containerd.sock",
            )),
        },
    }
}

/// The path of a UNIX socket, as it is or as a URI (SPIFFE Workload Endpoint section 4).
pub(super) fn unix_socket(text: &str) -> Value<PathBuf> {
    // sockaddr_un has room for 108 bytes, one of which ends the path.
    const MAX: usize = 107;
    const ALLOWED: &str = "an absolute path of at most 107 bytes, or that after unix://";
    let path = text.strip_prefix("unix://").or(text.strip_prefix("unix:")).unwrap_or(text);
    match self::path(path) {
        Ok(socket) if path.len() <= MAX => Ok(socket),
        Ok(_) => Err(Wrong::new(format!("{text:?} is too long for a socket"), ALLOWED)),
        Err(_) if text.starts_with("tcp:") => {
            Err(Wrong::new(format!("{text:?} is no UNIX socket, and others are not asked for keys"), ALLOWED))
        }
        Err(_) => Err(Wrong::not(text, "a UNIX socket", ALLOWED)),
    }
}

/// The hint of an SVID: whatever was written beside its entry, on one line.
pub(super) fn hint(text: &str) -> Value<Arc<str>> {
    if text.is_empty() || text.len() > 1024 || text.chars().any(char::is_control) {
        return Err(Wrong::not(text, "a hint", "the hint of the SVID's entry, on one line"));
    }
    Ok(text.into())
}

/// A workload's SPIFFE ID.
pub(super) fn spiffe_id(text: &str) -> Value<SpiffeId> {
    SpiffeId::parse(text).map_err(|why| {
        Wrong::new(format!("{text:?} is no SPIFFE ID: {why}"), "such as spiffe://example.org/ns/ci/sa/runner")
    })
}

/// A SPIFFE ID, or those below a path.
pub(super) fn id_pattern(text: &str) -> Value<IdPattern> {
    IdPattern::parse(text).map_err(|why| {
        let allowed = "such as spiffe://example.org/ns/ci/sa/runner, spiffe://example.org/ns/ci/* or spiffe://example.org/*";
        Wrong::new(format!("{text:?} is no SPIFFE ID: {why}"), allowed)
    })
}

/// A version of TLS that is spoken.
pub(super) fn tls_version(text: &str) -> Value<TlsVersion> {
    let versions = [TlsVersion::V1_2, TlsVersion::V1_3];
    let found = versions.into_iter().find(|version| version.as_str() == text);
    found.ok_or_else(|| Wrong::not(text, "a version of TLS that is spoken", "1.2 or 1.3"))
}

/// `true` or `false`.
pub(super) fn boolean(text: &str) -> Value<bool> {
    word(text, &[("true", true), ("false", false)])
}

/// `http` or `opaque`.
pub(super) fn protocol(text: &str) -> Value<Protocol> {
    word(text, &[Protocol::Http, Protocol::Opaque].map(|protocol| (protocol.as_str(), protocol)))
}

/// `auto` or `http/1.1`.
pub(super) fn upstream_protocol(text: &str) -> Value<UpstreamProtocol> {
    word(text, &[UpstreamProtocol::Auto, UpstreamProtocol::Http1].map(|one| (one.as_str(), one)))
}

/// `upstream` or `original`.
pub(super) fn authority(text: &str) -> Value<Authority> {
    word(text, &[Authority::Upstream, Authority::Original].map(|authority| (authority.as_str(), authority)))
}

/// `refuse` or `tunnel`.
pub(super) fn unreadable(text: &str) -> Value<Unreadable> {
    word(text, &[Unreadable::Refuse, Unreadable::Tunnel].map(|one| (one.as_str(), one)))
}

/// `observe`, `loose` or `strict`.
pub(super) fn enforcement(text: &str) -> Value<Enforcement> {
    let words = [Enforcement::Observe, Enforcement::Loose, Enforcement::Strict];
    word(text, &words.map(|enforcement| (enforcement.as_str(), enforcement)))
}

/// Whether the agent captures.
pub(super) fn capture_mode(text: &str) -> Value<CaptureMode> {
    word(text, &[("on", CaptureMode::On), ("off", CaptureMode::Off)])
}

/// `auto` or `off`.
pub(super) fn guard(text: &str) -> Value<Guard> {
    word(text, &[("auto", Guard::Auto), ("off", Guard::Off)])
}

/// `allow` or `refuse`.
pub(super) fn raw_sockets(text: &str) -> Value<RawSockets> {
    word(text, &[("allow", RawSockets::Allow), ("refuse", RawSockets::Refuse)])
}

/// `json` or `text`.
pub(super) fn log_format(text: &str) -> Value<LogFormat> {
    word(text, &[("json", LogFormat::Json), ("text", LogFormat::Text)])
}

pub(super) fn word<T: Copy>(text: &str, words: &[(&str, T)]) -> Value<T> {
    if let Some((_, value)) = words.iter().find(|(word, _)| *word == text) {
        return Ok(*value);
    }
    let allowed: Vec<&str> = words.iter().map(|(word, _)| *word).collect();
    Err(Wrong::new(format!("{text:?} is unknown"), allowed.join(" or ")))
}

/// A filter for diagnostics: a level, or `target=level` pairs with commas.
pub(super) fn log_level(text: &str) -> Value<String> {
    let level = |word: &str| {
        matches!(word.to_ascii_lowercase().as_str(), "off" | "error" | "warn" | "info" | "debug" | "trace")
    };
    let target = |word: &str| {
        !word.is_empty() && word.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'_' | b':'))
    };
    let good = text.split(',').all(|directive| match directive.split_once('=') {
        Some((name, word)) => target(name) && level(word),
        None => level(directive),
    });
    if good {
        Ok(text.to_owned())
    } else {
        const ALLOWED: &str =
            "off, error, warn, info, debug, trace, or such as hnp_agent::capture=debug,info";
        Err(Wrong::not(text, "a log level", ALLOWED))
    }
}

/// `IP:PORT` to listen on, or `off`.
pub(super) fn listen(text: &str) -> Value<Option<SocketAddr>> {
    if text == "off" {
        return Ok(None);
    }
    match text.parse::<SocketAddr>() {
        Ok(addr) if addr.port() != 0 => Ok(Some(addr)),
        _ => Err(Wrong::not(text, "an address to listen on", "IP:PORT such as 127.0.0.1:15090, or off")),
    }
}

/// The name of a node: a DNS subdomain (RFC 1123), as Kubernetes wants it.
pub(super) fn node_name(text: &str) -> Value<Arc<str>> {
    if subdomain(text) {
        Ok(text.into())
    } else {
        Err(Wrong::not(
            text,
            "a node's name",
            "lower-case letters, digits, dashes and dots, such as worker-1",
        ))
    }
}

/// The key of a taint, or `off`: `PREFIX/NAME`, a DNS subdomain and a name. Kubernetes allows keys without
/// a prefix; those belong to the people of one cluster, and no agent should remove them.
pub(super) fn taint(text: &str) -> Value<Option<Arc<str>>> {
    if text == "off" {
        return Ok(None);
    }
    let end = |b: Option<&u8>| b.is_some_and(u8::is_ascii_alphanumeric);
    let good = text.split_once('/').is_some_and(|(prefix, name)| {
        let bytes = name.as_bytes();
        subdomain(prefix)
            && bytes.len() <= 63
            && end(bytes.first())
            && end(bytes.last())
            && bytes.iter().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'.' | b'_' | b'-'))
    });
    if good {
        Ok(Some(text.into()))
    } else {
        const ALLOWED: &str = "PREFIX/NAME such as hnp.dev/agent-not-ready, without value and effect, or off";
        Err(Wrong::not(text, "the key of a taint", ALLOWED))
    }
}

/// A DaemonSet, or `off`: namespaces are DNS labels, names DNS subdomains (RFC 1123).
pub(super) fn daemonset(text: &str) -> Value<Option<DaemonSet>> {
    if text == "off" {
        return Ok(None);
    }
    match text.split_once('/') {
        Some((namespace, name)) if subdomain(namespace) && !namespace.contains('.') && subdomain(name) => {
            Ok(Some(DaemonSet { namespace: namespace.into(), name: name.into() }))
        }
        _ => Err(Wrong::not(text, "a DaemonSet", "NAMESPACE/NAME such as hnp/hnp-agent, or off")),
    }
}

/// RFC 1123, in lower case.
fn subdomain(text: &str) -> bool {
    let label = |label: &str| {
        let bytes = label.as_bytes();
        !bytes.is_empty()
            && bytes.len() <= 63
            && !bytes.starts_with(b"-")
            && !bytes.ends_with(b"-")
            && bytes.iter().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || *b == b'-')
    };
    text.len() <= 253 && text.split('.').all(label)
}

/// The word that was probably meant, if one is near enough.
pub(super) fn nearest<'a>(written: &str, words: &[&'a str]) -> Option<&'a str> {
    let written = written.to_lowercase();
    words
        .iter()
        .map(|word| (distance(&written, word), *word))
        .filter(|(distance, word)| *distance <= (word.len() / 3).clamp(1, 3))
        .min()
        .map(|(_, word)| word)
}

/// Edits (insert, delete, replace, swap of neighbours) from one word to the other.
fn distance(a: &str, b: &str) -> usize {
    let (a, b): (Vec<char>, Vec<char>) = (a.chars().take(64).collect(), b.chars().collect());
    let mut rows = vec![vec![0; b.len() + 1]; a.len() + 1];
    for i in 0..=a.len() {
        for j in 0..=b.len() {
            rows[i][j] = if i == 0 || j == 0 {
                i + j
            } else {
                let replace = rows[i - 1][j - 1] + usize::from(a[i - 1] != b[j - 1]);
                let mut best = replace.min(rows[i - 1][j] + 1).min(rows[i][j - 1] + 1);
                if i > 1 && j > 1 && a[i - 1] == b[j - 2] && a[i - 2] == b[j - 1] {
                    best = best.min(rows[i - 2][j - 2] + 1);
                }
                best
            };
        }
    }
    rows[a.len()][b.len()]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations() {
        for (text, millis) in
            [("500ms", 500), ("10s", 10_000), ("2m", 120_000), ("1h", 3_600_000), ("24h", 86_400_000)]
        {
            assert_eq!(duration(text).unwrap(), Duration::from_millis(millis), "{text}");
            assert_eq!(duration(&humane(duration(text).unwrap())), duration(text));
        }
        for text in [
            "",
            "10",
            "s",
            "10 s",
            "-1s",
            "1.5s",
            "0s",
            "0ms",
            "25h",
            "10S",
            "99999999999999999999s",
            "9999999999999999h",
            "１s",
        ] {
            assert!(duration(text).is_err(), "{text}");
        }
    }

    #[test]
    fn sizes_and_counts() {
        let size = size(1024, 1024 * 1024);
        for (text, bytes) in [("1024", 1024), ("64KiB", 65_536), ("64 KiB", 65_536), ("1MiB", 1_048_576)] {
            assert_eq!(size(text).unwrap(), bytes, "{text}");
        }
        for text in ["", "KiB", "1023", "2MiB", "64k", "64KB", "-1", "99999999999999999999MiB", "0x400"] {
            assert!(size(text).is_err(), "{text}");
        }
        assert_eq!(count(0, 10)("0"), Ok(0));
        assert!(count(0, 10)("11").is_err() && count(0, 10)("+1").is_err() && count(0, 10)("").is_err());
        assert!(port("0").is_err() && port("65536").is_err() && port("080").is_ok());
    }

    #[test]
    fn nodes_and_taints() {
        for text in ["worker-1", "ip-10-0-0-1.eu.internal", "a", "1"] {
            assert!(node_name(text).is_ok(), "{text}");
        }
        for text in ["", "Worker", "a_b", "-a", "a.", "a/b", &"a".repeat(254)] {
            assert!(node_name(text).is_err(), "{text}");
        }
        for text in ["hnp.dev/agent-not-ready", "a/B_c.d", "node.cilium.io/agent-not-ready"] {
            assert_eq!(taint(text), Ok(Some(text.into())));
        }
        assert_eq!(taint("off"), Ok(None));
        for text in ["", "agent-not-ready", "a/", "/b", "a/b/c", "a/b=c", "a/b:NoSchedule", "A/b", "a/-b"] {
            assert!(taint(text).is_err(), "{text}");
        }
    }

    #[test]
    fn levels_are_the_ones_the_log_takes() {
        for text in ["info", "WARN", "off", "hnp_agent::capture=debug,info", "a=trace,b=off"] {
            assert!(log_level(text).is_ok(), "{text}");
            assert!(crate::telemetry::log::filter(text).is_ok(), "{text}");
        }
        for text in ["", "inof", "a=loud", "=info", "info;debug", "a=trace, b=off", "[span]=info"] {
            assert!(log_level(text).is_err(), "{text}");
        }
    }

    #[test]
    fn near_words_are_suggested() {
        let keys = ["destinations", "upstream", "identity", "trust", "head", "tls"];
        for (written, meant) in [
            ("destination", "destinations"),
            ("upstraem", "upstream"),
            ("Identity", "identity"),
            ("thrust", "trust"),
            ("haed", "head"),
        ] {
            assert_eq!(nearest(written, &keys), Some(meant), "{written}");
        }
        for written in ["retries", "x", ""] {
            assert_eq!(nearest(written, &keys), None, "{written}");
        }
    }
}
