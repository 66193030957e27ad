//! Answers of our own: JSON with the reason, never HTML, never a guess at the client's language.

use std::io;
use std::time::Duration;

use hnp_common::Reason;
use serde::Serialize;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::time::timeout;

use super::client_io::ClientIo;

/// How long, and how much, a client that is still sending is read after our answer, so that the
/// answer is not lost to a reset (RFC 9112 section 9.6).
const LINGER: Duration = Duration::from_secs(2);
const LINGER_BYTES: usize = 1 << 20;

/// The body of an answer of our own.
#[derive(Debug, Serialize)]
pub struct Answer<'a> {
    /// The reason's code.
    pub reason: &'a str,
    /// What happened, for the person who reads the workload's log.
    pub message: &'a str,
    /// The route, if the request reached one.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub route: Option<&'a str>,
    /// Finds the access line.
    pub flow: u64,
}

/// Writes an answer; the connection must end after it. `head_only`: the request was HEAD.
///
/// # Errors
/// The client is gone, or reads nothing.
pub async fn write(
    client: &mut ClientIo,
    reason: Reason,
    answer: &Answer<'_>,
    head_only: bool,
) -> io::Result<usize> {
    let mut body = serde_json::to_string(answer).map_err(io::Error::other)?;
    body.push('\n');
    let status = reason.status();
    // RFC 6585 section 4. Rates are per second and places come back when connections end: sooner cannot be said.
    let retry = if status == 429 { "Retry-After: 1\r\n" } else { "" };
    let mut bytes = format!(
        "HTTP/1.1 {status} {}\r\nContent-Type: application/json\r\nContent-Length: {}\r\n{retry}Connection: close\r\n\r\n",
        phrase(status),
        body.len()
    );
    if !head_only {
        bytes.push_str(&body);
    }
    // A client that reads nothing must not hold its permit for ever.
    timeout(LINGER, client.write_all(bytes.as_bytes())).await??;
    Ok(bytes.len())
}

/// Ends our half and reads what the client is still sending, within limits.
pub async fn linger(client: &mut ClientIo) {
    let drain = async {
        client.shutdown().await?;
        let mut left = LINGER_BYTES;
        let mut bytes = [0; 1024];
        while left > 0 {
            match client.read(&mut bytes).await? {
                0 => break,
                n => left = left.saturating_sub(n),
            }
        }
        io::Result::Ok(())
    };
    // Whether the client took the answer or went away: the connection ends here.
    let _ = timeout(LINGER, drain).await;
}

/// How long an alert may take to be written.
pub(super) const LAST_WORDS: Duration = Duration::from_millis(500);

/// A fatal TLS alert (RFC 8446 section 6) for a client that speaks TLS where plaintext is expected: its
/// error then names TLS and not a broken connection. A name that is refused is unrecognized_name (112),
/// all else handshake_failure (40).
pub(super) fn tls_alert(reason: Reason) -> [u8; 7] {
    let description = if reason == Reason::SniRefused { 112 } else { 40 };
    [21, 3, 1, 0, 2, 2, description]
}

fn phrase(status: u16) -> &'static str {
    match status {
        400 => "Bad Request",
        403 => "Forbidden",
        408 => "Request Timeout",
        421 => "Misdirected Request",
        429 => "Too Many Requests",
        431 => "Request Header Fields Too Large",
        500 => "Internal Server Error",
        501 => "Not Implemented",
        502 => "Bad Gateway",
        503 => "Service Unavailable",
        504 => "Gateway Timeout",
        _ => "Error",
    }
}

#[cfg(test)]
mod tests {
    use super::phrase;
    use hnp_common::Reason;

    #[test]
    fn every_status_of_the_table_has_its_phrase() {
        for reason in Reason::ALL.iter().filter(|reason| reason.status() != 0) {
            assert_ne!(phrase(reason.status()), "Error", "{reason:?}");
        }
    }
}
