//! The upstream's name, asked by the agent's own resolver.

use std::net::SocketAddr;
use std::time::Instant;

use hnp_common::Reason;
use serde_json::json;

use super::{Look, dial_failed, ms, skipped};
use crate::finding::{Finding, State};

/// More addresses than that are not looked at one by one.
const ADDRESSES: usize = 16;

impl Look<'_> {
    /// The addresses to dial; none where there is nothing to go on with.
    pub(super) async fn resolve(&self, findings: &mut Vec<Finding>) -> Vec<SocketAddr> {
        let upstream = &self.route().upstream;
        let what = upstream.host.to_string();
        let began = Instant::now();
        let lookup = self.upstreams.resolver().lookup(&upstream.host);
        let deadline = self.route().timeouts.connect;
        let found = self.upstreams.addresses(lookup, &upstream.host, upstream.port, deadline).await;
        let mut addrs = match found {
            Ok(addrs) => addrs,
            Err(error) => {
                findings.push(dial_failed("resolve", what, &error, &upstream.host));
                return Vec::new();
            }
        };
        let took = ms(began.elapsed());
        let capture = &self.plan.capture;
        let is_vip =
            |addr: &SocketAddr| capture.vips4.contains(addr.ip()) || capture.vips6.contains(addr.ip());
        let all: Vec<String> = addrs.iter().map(|addr| addr.ip().to_string()).collect();
        let facts = json!({"addresses": all, "ms": took});
        let vips: Vec<String> =
            addrs.iter().filter(|addr| is_vip(addr)).map(|addr| addr.ip().to_string()).collect();
        addrs.retain(|addr| !is_vip(addr));
        let finding = if vips.is_empty() {
            Finding::new("resolve", what, State::Good, format!("{} in {took} ms", all.join(", ")))
        } else {
            let detail = format!(
                "{} lies in the range of this node's VIPs: the upstream would be hnp itself",
                vips.join(", ")
            );
            Finding::bad("resolve", what, Reason::UpstreamUnreachable, detail)
                .next(format!("getent ahosts {}, and correct whoever says so", upstream.host))
        };
        findings.push(finding.seen(Vec::new(), facts));
        if addrs.len() > ADDRESSES {
            let detail = format!("only the first {ADDRESSES} of {} addresses are looked at", addrs.len());
            findings.push(skipped("resolve", "the other addresses", &detail));
            addrs.truncate(ADDRESSES);
        }
        addrs
    }
}
