//! The page on the admin port, for people who forward it: what `status` and `flows` show, asked for again every two seconds.
//!
//! It comes with all that it needs: nothing is fetched from anywhere else, and no script runs but its own. What pods
//! wrote reaches it as JSON and is set as text. A browser is led to loopback by names that somebody else chose (DNS
//! rebinding), so what the page shows is given only under names that nobody can choose.

use std::net::IpAddr;

use bytes::Bytes;
use http_body_util::Full;
use hyper::header::{CONTENT_SECURITY_POLICY, HOST, HeaderName, HeaderValue, X_CONTENT_TYPE_OPTIONS};
use hyper::{Request, Response, StatusCode};

use super::respond;

/// Nothing but what comes from the agent itself; in nobody's frame.
const POLICY: HeaderValue = HeaderValue::from_static(
    "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; img-src data:; base-uri 'none'; \
     form-action 'none'; frame-ancestors 'none'",
);
const SAME_ORIGIN: (HeaderName, HeaderValue) =
    (HeaderName::from_static("cross-origin-resource-policy"), HeaderValue::from_static("same-origin"));

/// One of the files it is made of.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) enum File {
    /// What there is to see.
    Page,
    /// How it looks.
    Style,
    /// Which asks and shows.
    Script,
}

/// A file of the page.
pub(super) fn answer(file: File) -> Response<Full<Bytes>> {
    let (content_type, body) = match file {
        File::Page => ("text/html; charset=utf-8", include_str!("page/page.html")),
        File::Style => ("text/css; charset=utf-8", include_str!("page/page.css")),
        File::Script => ("text/javascript; charset=utf-8", include_str!("page/page.js")),
    };
    let mut response = respond(StatusCode::OK, content_type, body);
    let headers = response.headers_mut();
    headers.insert(CONTENT_SECURITY_POLICY, POLICY);
    headers.insert(X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff"));
    headers.insert(SAME_ORIGIN.0, SAME_ORIGIN.1);
    response
}

/// Whether the agent was addressed by a name that no name server decides on: an address, or `localhost` (RFC 6761
/// section 6.3).
pub(super) fn is_addressed<B>(request: &Request<B>) -> bool {
    let host = request.headers().get(HOST).and_then(|host| host.to_str().ok()).unwrap_or_default();
    let name = match host.strip_prefix('[') {
        Some(rest) => rest.split_once(']').map_or("", |(addr, _)| addr),
        None => host.rsplit_once(':').map_or(host, |(name, _)| name),
    };
    name.parse::<IpAddr>().is_ok() || name.eq_ignore_ascii_case("localhost")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_names_that_nobody_can_choose_are_answered() {
        let asked = |host: &str| is_addressed(&Request::builder().header(HOST, host).body(()).unwrap());
        for good in ["127.0.0.1:15090", "127.0.0.1", "[::1]:15090", "[::1]", "localhost", "LOCALHOST:8080"] {
            assert!(asked(good), "{good}");
        }
        for bad in ["", "rebound.example:15090", "localhost.example", "127.0.0.1.example", "[::1", ":15090"] {
            assert!(!asked(bad), "{bad}");
        }
        assert!(!is_addressed(&Request::builder().body(()).unwrap()));
    }

    #[test]
    fn it_needs_nothing_from_elsewhere() {
        for file in ["page.html", "page.css", "page.js"] {
            let path = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("src/admin/page").join(file);
            let text = std::fs::read_to_string(path).unwrap();
            for word in ["http:", "https:", "//cdn", "@import", "url(", "innerHTML", "style=", "onclick"] {
                assert!(!text.contains(word), "{word} in {file}");
            }
        }
    }
}
