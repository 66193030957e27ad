//! Whether each address of the upstream takes a connection, and how quickly.

use std::net::SocketAddr;
use std::time::Instant;

use futures_util::future::join_all;
use serde_json::json;

use super::{Look, Place, dial_failed, ms, skipped};
use crate::finding::{Finding, State};

impl Look<'_> {
    /// The addresses that do.
    pub(super) async fn reach(&self, addrs: &[SocketAddr], findings: &mut Vec<Finding>) -> Vec<Place> {
        if addrs.is_empty() {
            findings.push(skipped("tcp", "the upstream", "it has no address to dial"));
            return Vec::new();
        }
        let dials = addrs.iter().map(async |addr| {
            let began = Instant::now();
            (*addr, self.dial(Place::Direct(*addr)).await, ms(began.elapsed()))
        });
        let dialled = join_all(dials).await;
        let reached: Vec<Place> = dialled
            .iter()
            .filter(|(_, transport, _)| transport.is_ok())
            .map(|(addr, ..)| Place::Direct(*addr))
            .collect();
        for (addr, transport, took) in dialled {
            let finding = match transport {
                Ok(_) => {
                    Finding::new("tcp", addr.to_string(), State::Good, format!("connected in {took} ms"))
                }
                Err(error) => {
                    let finding = dial_failed("tcp", addr.to_string(), &error, &self.route().upstream.host);
                    // The agent goes on to the next address: a quarter of a second later, or at once.
                    let state = if reached.is_empty() { State::Bad } else { State::Degraded };
                    Finding { state, ..finding }
                }
            };
            findings.push(finding.seen(Vec::new(), json!({"ms": took})));
        }
        reached
    }
}
