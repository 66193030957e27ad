//! The corporate proxy on the route's way: reached, its TLS verified, credentials taken, CONNECT answered.

use std::time::Instant;

use serde_json::json;

use super::{Look, Place, dial_failed, ms, skipped};
use crate::finding::{Finding, State};
use crate::upstream::Io;

impl Look<'_> {
    /// The way through it, if it opens one.
    pub(super) async fn proxy(&self, findings: &mut Vec<Finding>) -> Vec<Place> {
        let Some(through) = self.route().through() else { return Vec::new() };
        let upstream = &self.route().upstream;
        let target = format!("{}:{}", upstream.host, upstream.port);
        findings.push(skipped("resolve", upstream.host.to_string(), "the proxy resolves it"));
        let what = through.proxy.to_string();
        let began = Instant::now();
        let end = tokio::time::Instant::now() + through.proxy.timeouts.connect;
        let opened = self.upstreams.dial_plain(self.index, end).await;
        let took = ms(began.elapsed());
        match opened {
            Ok(connection) => {
                debug_assert!(matches!(connection.io, Io::Plain(_)), "nothing was said yet");
                let detail = format!("opened a tunnel to {target} in {took} ms");
                let facts = json!({"address": connection.info.addr.to_string(), "ms": took});
                findings.push(Finding::new("proxy", what, State::Good, detail).seen(Vec::new(), facts));
                vec![Place::Through(connection.info.addr)]
            }
            Err(error) => {
                let finding = dial_failed("proxy", what, &error, &through.proxy.host);
                findings.push(finding.seen(Vec::new(), json!({"ms": took})));
                Vec::new()
            }
        }
    }
}
