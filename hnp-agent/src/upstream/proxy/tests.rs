//! The answer to CONNECT, in every piece it may come in.

use std::collections::VecDeque;
use std::pin::Pin;
use std::task::{Context, Poll};

use proptest::prelude::*;
use tokio::io::ReadBuf;

use super::*;

/// Hands out its pieces one read at a time, then the end of the stream.
struct Pieces(VecDeque<Vec<u8>>);

impl AsyncRead for Pieces {
    fn poll_read(
        mut self: Pin<&mut Self>,
        _: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        if let Some(mut piece) = self.0.pop_front() {
            let rest = piece.split_off(piece.len().min(buf.remaining()));
            buf.put_slice(&piece);
            if !rest.is_empty() {
                self.0.push_front(rest);
            }
        }
        Poll::Ready(Ok(()))
    }
}

/// Reads the answer; the reason it was refused for, and what was left unread.
fn read(pieces: &[&[u8]]) -> (Result<(), (Reason, String)>, Vec<u8>) {
    let mut io =
        Pieces(pieces.iter().filter(|piece| !piece.is_empty()).map(|piece| piece.to_vec()).collect());
    let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
    let outcome = runtime.block_on(read_answer(&mut io));
    (outcome.map_err(|refusal| (refusal.reason(), refusal.to_string())), io.0.into_iter().flatten().collect())
}

const OPEN: &[u8] = b"HTTP/1.1 200 Connection established\r\nProxy-Agent: x\r\nContent-Length: 5\r\n\r\n";

#[test]
fn heads_that_open_a_tunnel() {
    for head in [
        OPEN,
        b"HTTP/1.0 200 OK\r\n\r\n",
        b"HTTP/1.1 200\r\n\r\n",
        b"HTTP/1.1 299 \r\nX: \xff\r\n\r\n",
        b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 102 Processing\r\nX: y\r\n\r\nHTTP/1.1 200 OK\r\n\r\n",
    ] {
        assert_eq!(read(&[head]), (Ok(()), Vec::new()), "{}", String::from_utf8_lossy(head));
    }
}

#[test]
fn refusals_have_their_reasons() {
    let many = [b"HTTP/1.1 200 OK\r\nX: ".to_vec(), vec![b'x'; HEAD_BYTES]].concat();
    for (head, reason, words) in [
        (&b"HTTP/1.1 403 Forbidden\r\n\r\n<html>no</html>"[..], Reason::ProxyRefused, "status 403"),
        (b"HTTP/1.1 301 Moved\r\nLocation: /\r\n\r\n", Reason::ProxyRefused, "status 301"),
        (b"HTTP/1.1 101 Switching\r\n\r\n", Reason::ProxyRefused, "status 101"),
        (
            b"HTTP/1.1 407 No\r\nProxy-Authenticate: Negotiate\r\nproxy-authenticate: Basic realm=\"secret\"\r\n\r\n",
            Reason::ProxyAuthenticationRequired,
            "check the credentials; it takes Negotiate, Basic, hnp has Basic",
        ),
        (b"HTTP/1.1 407 No\r\n\r\n", Reason::ProxyAuthenticationRequired, "nothing that it names"),
        (b"", Reason::ProxyClosed, "closed"),
        (b"HTTP/1.1 200 OK\r\n", Reason::ProxyBadResponse, "half a head"),
        (b"HTTP/2 200\r\n\r\n", Reason::ProxyBadResponse, "something else"),
        (b"SSH-2.0-x", Reason::ProxyBadResponse, "something else"),
        (b"\x15\x03\x03\x00\x02", Reason::ProxyBadResponse, "something else"),
        (b"HTTP/1.1 20\r\n\r\n", Reason::ProxyBadResponse, "status line"),
        (b"HTTP/1.1 2000 OK\r\n\r\n", Reason::ProxyBadResponse, "status line"),
        (b"HTTP/1.1  200 OK\r\n\r\n", Reason::ProxyBadResponse, "status line"),
        (b"HTTP/1.1 +20 OK\r\n\r\n", Reason::ProxyBadResponse, "status line"),
        (b"HTTP/1.2 200 OK\r\n\r\n", Reason::ProxyBadResponse, "status line"),
        (b"HTTP/1.1 200 OK\r\nnothing\r\n\r\n", Reason::ProxyBadResponse, "colon"),
        (b"HTTP/1.1 200 OK\r\nX: \0\r\n\r\n", Reason::ProxyBadResponse, "control"),
        (&many, Reason::ProxyBadResponse, "16 KiB"),
    ] {
        let shown = String::from_utf8_lossy(&head[..head.len().min(80)]).into_owned();
        let (got, said) = read(&[head]).0.expect_err(&shown);
        assert_eq!(got, reason, "{shown}: {said}");
        assert!(said.contains(words) && !said.contains("secret"), "{shown}: {said}");
    }
}

#[test]
fn whatever_follows_the_head_before_our_hello_is_refused() {
    let (refused, _) = read(&[OPEN, b"x"]);
    assert_eq!(refused, Ok(()), "what comes later is not read here");
    let both = [OPEN, b"x"].concat();
    let (refused, _) = read(&[&both]);
    assert_eq!(refused.unwrap_err().0, Reason::ProxyBadResponse);
}

proptest! {
    #[test]
    fn a_head_may_be_split_anywhere(cuts in proptest::collection::vec(0..OPEN.len(), 0..6), interim in any::<bool>()) {
        let mut head = if interim { b"HTTP/1.1 100 Continue\r\n\r\n".to_vec() } else { Vec::new() };
        head.extend_from_slice(OPEN);
        let mut cuts = cuts;
        cuts.push(head.len());
        cuts.sort_unstable();
        let mut from = 0;
        let mut pieces: Vec<&[u8]> = Vec::new();
        for cut in cuts {
            pieces.push(&head[from..cut]);
            from = cut;
        }
        // The server's first bytes in the tunnel come in a segment of their own: they stay unread.
        pieces.push(b"\x16\x03\x03");
        let (outcome, left) = read(&pieces);
        prop_assert_eq!(outcome, Ok(()));
        prop_assert_eq!(left, b"\x16\x03\x03");
    }

    #[test]
    fn no_bytes_make_it_panic_or_open(bytes in proptest::collection::vec(any::<u8>(), 0..200), at in 0..90usize) {
        let mut damaged = OPEN.to_vec();
        let at = at.min(damaged.len());
        damaged.splice(at..at, bytes.iter().copied());
        let _ = read(&[&damaged]);
        prop_assert!(bytes.starts_with(HTTP) || read(&[&bytes]).0.is_err());
    }
}
