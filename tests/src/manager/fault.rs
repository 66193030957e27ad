//! A manager that misbehaves, one way per name. Whatever it sends is marked with the token of the
//! request that caused it, so that bytes in the wrong hands can be told by their mark.

use std::io;
use std::time::Duration;

use super::behaviour::Exchange;

/// Every fault, by the name under `/fault/`.
pub const ALL: &[&str] = &[
    "early",
    "unsolicited",
    "unsolicited-late",
    "truncated",
    "truncated-chunk",
    "bad-chunk",
    "two-lengths",
    "length-and-chunked",
    "bad-length",
    "too-long",
    "garbage",
    "bad-header",
    "folded-header",
    "huge-head",
    "half-head",
    "close-after-request",
    "reset",
    "reset-in-body",
];

/// Misbehaves; returns whether another request may follow on the connection.
pub(super) async fn commit(exchange: &mut Exchange<'_>, fault: &str) -> io::Result<bool> {
    let token = exchange.request.token.clone();
    let ok = format!("HTTP/1.1 200 OK\r\nx-manager: {}\r\nx-token: {token}\r\n", exchange.manager);
    let whole = |mark: &str| {
        let body = format!("{mark} {token}\n");
        format!("HTTP/1.1 200 OK\r\nx-token: {token}\r\ncontent-length: {}\r\n\r\n{body}", body.len())
    };
    if fault == "early" {
        // Answered in full while the body is still on its way.
        exchange.wire.write(whole("early").as_bytes()).await?;
        exchange.read_body().await?;
        return Ok(true);
    }
    exchange.read_body().await?;
    let answer = match fault {
        "unsolicited" => whole("solicited") + &whole("unsolicited"),
        "unsolicited-late" => {
            exchange.wire.write(whole("solicited").as_bytes()).await?;
            tokio::time::sleep(Duration::from_millis(20)).await;
            exchange.wire.write(whole("unsolicited").as_bytes()).await?;
            return Ok(true);
        }
        "too-long" => format!("{ok}content-length: 5\r\n\r\n12345 and more of {token}"),
        "truncated" => format!("{ok}content-length: 1000\r\n\r\ncut short {token}"),
        "truncated-chunk" => format!("{ok}transfer-encoding: chunked\r\n\r\nff\r\ncut short {token}"),
        "bad-chunk" => format!("{ok}transfer-encoding: chunked\r\n\r\nzz\r\n{token}\r\n0\r\n\r\n"),
        "two-lengths" => format!("{ok}content-length: 5\r\ncontent-length: 50\r\n\r\n12345{token}"),
        "length-and-chunked" => {
            format!("{ok}content-length: 5\r\ntransfer-encoding: chunked\r\n\r\n0\r\n\r\n{token}")
        }
        "bad-length" => format!("{ok}content-length: -5\r\n\r\n{token}"),
        "garbage" => format!("\u{0}\u{1}{token} this is not HTTP\r\n\r\n"),
        "bad-header" => format!("{ok}bad name: {token}\r\ncontent-length: 0\r\n\r\n"),
        "folded-header" => format!("{ok}x-folded: a\r\n {token}\r\ncontent-length: 0\r\n\r\n"),
        "huge-head" => format!("{ok}x-huge: {}\r\ncontent-length: 0\r\n\r\n", token.repeat(100_000)),
        "half-head" => format!("{ok}content-len"),
        "reset-in-body" => format!("{ok}content-length: 1000\r\n\r\ncut short {token}"),
        "close-after-request" | "reset" => String::new(),
        unknown => format!("HTTP/1.1 500 unknown fault {unknown}\r\ncontent-length: 0\r\n\r\n"),
    };
    exchange.wire.write(answer.as_bytes()).await?;
    if fault.starts_with("reset") {
        exchange.wire.reset_on_close();
    }
    // What is unsolicited or ambiguous is on a connection that looks well; the rest closes.
    Ok(matches!(fault, "unsolicited" | "too-long" | "two-lengths" | "length-and-chunked"))
}
