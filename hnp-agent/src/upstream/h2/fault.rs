//! How a stream or its connection failed, in the words of the reasons.
//!
//! The exchange reads an [`io::Error`] as it would from TLS or TCP; what HTTP/2 alone knows travels inside one
//! (`Fault`).

use std::io;

use hnp_common::Reason;

/// A failure that HTTP/2 tells exactly.
#[derive(Clone, Debug, thiserror::Error)]
#[error("{detail}")]
pub(super) struct Fault {
    /// The operator's code.
    reason: Reason,
    detail: String,
}

/// Why a request may be sent again whatever its method: the upstream has said that it did nothing with it.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Unprocessed {
    /// It was above GOAWAY's last stream, refused, or never sent.
    Anew,
    /// The upstream wants it over HTTP/1.1.
    OverHttp1,
}

/// The reason inside an error that a stream of HTTP/2 made.
pub fn fault_reason(error: &io::Error) -> Option<Reason> {
    Some(error.get_ref()?.downcast_ref::<Fault>()?.reason)
}

/// An error with its reason.
pub(super) fn fault(reason: Reason, detail: impl Into<String>) -> io::Error {
    io::Error::other(Fault { reason, detail: detail.into() })
}

/// Whether an error says that the request was not processed (RFC 9113 section 8.7).
pub(super) fn unprocessed(error: &h2::Error) -> Option<Unprocessed> {
    // A GOAWAY of the peer reaches only streams above its last one; those below hear of the closing itself.
    if !error.is_remote() {
        return None;
    }
    match error.reason() {
        Some(h2::Reason::HTTP_1_1_REQUIRED) => Some(Unprocessed::OverHttp1),
        _ if error.is_go_away() => Some(Unprocessed::Anew),
        Some(h2::Reason::REFUSED_STREAM) => Some(Unprocessed::Anew),
        _ => None,
    }
}

/// A stream's error as the exchange reads it. `connection`: what the connection itself failed of, if it did.
pub(super) fn of_stream(error: &h2::Error, connection: Option<io::Error>) -> io::Error {
    let named = error.reason().map_or_else(String::new, |reason| format!(" ({reason:?})"));
    if error.is_remote() {
        return if error.is_go_away() {
            fault(Reason::UpstreamClosed, format!("the upstream is closing its HTTP/2 connection{named}"))
        } else {
            fault(Reason::UpstreamReset, format!("the upstream reset the HTTP/2 stream{named}"))
        };
    }
    if let Some(connection) = connection {
        return connection;
    }
    match error.get_io() {
        // What the library says of streams whose connection has ended.
        Some(io) if io.kind() == io::ErrorKind::BrokenPipe => {
            io::Error::new(io::ErrorKind::UnexpectedEof, "the HTTP/2 connection was closed")
        }
        Some(io) => io::Error::new(io.kind(), io.to_string()),
        None => {
            fault(Reason::UpstreamBadResponse, format!("the answer breaks a rule of HTTP/2{named}: {error}"))
        }
    }
}
