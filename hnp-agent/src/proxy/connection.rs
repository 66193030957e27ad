//! One accepted connection, from its flow to its end.
//!
//! Down the list once: flow (where to, who), destination, first byte, mode. A connection that did not
//! come through capture ends here, whatever the enforcement.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use hnp_common::Reason;
use tokio::net::TcpStream;

use super::flow::{Flow, VipEntry};
use super::record::Recording;
use super::worker::Worker;
use super::{http1, opaque, relay};
use crate::config::plan::{Enforcement, Plan, Protocol};
use crate::telemetry::record::AccessRecord;
use crate::workload::Workload;

/// A captured client connection.
pub struct Client {
    /// The socket.
    pub stream: TcpStream,
    /// What the kernel recorded.
    pub flow: Flow,
    /// What the VIP stands for, as of accept.
    pub entry: VipEntry,
    /// What holds for this client.
    pub enforcement: Enforcement,
    /// What every record of this connection begins with.
    pub base: AccessRecord,
}

impl Client {
    /// What it was going to: the address dialled, or the one that the dialled VIP stands for.
    pub fn destination(&self) -> SocketAddr {
        self.base.destination.unwrap_or(self.flow.orig_dst)
    }
}

/// Serves one accepted connection to its end.
pub async fn serve(worker: &Worker, stream: TcpStream, peer: SocketAddr) {
    let open = worker.stats.connection_opened();
    let mut base = base_record(worker.flow_id(), peer);
    let found = flow_of(worker, &stream, peer);
    if let Ok((flow, destination, _)) = &found {
        base.workload = worker.workloads.identify(flow);
        base.destination = Some(*destination);
        base.direct = flow.direct;
    }
    match found {
        Ok((flow, _, entry)) => {
            // Answers must not wait for an ACK (Nagle); a failure costs only latency.
            let _ = stream.set_nodelay(true);
            let protocol = worker.plan.routes[entry.routes[0]].protocol;
            let enforcement = enforcement(&worker.plan, &flow, &entry);
            let client = Client { stream, flow, entry, enforcement, base };
            match protocol {
                // Boxed: HTTP connections would hold its state too.
                Protocol::Opaque => Box::pin(opaque::serve(worker, client)).await,
                Protocol::Http => http1::serve::serve(worker, client).await,
            }
        }
        Err(reason) => {
            relay::reset_on_close(&stream);
            Recording::begin(worker, base).finish(reason, None);
        }
    }
    drop(open);
}

fn flow_of(
    worker: &Worker,
    stream: &TcpStream,
    peer: SocketAddr,
) -> Result<(Flow, SocketAddr, VipEntry), Reason> {
    let local = stream.local_addr().map_err(|_| Reason::ClientGone)?;
    let flow = worker.flows.take(peer, local)?;
    let table = worker.vips.load();
    let entry = table.entries.get(&flow.vip).ok_or(Reason::VipUnassigned)?;
    let destination = if flow.direct {
        // Behind the VIP of a range there is no one address that was meant.
        entry.destination.single().ok_or(Reason::VipUnassigned)?
    } else if entry.destination.contains(flow.orig_dst) {
        flow.orig_dst
    } else {
        // The VIP was given to another destination while this connection was under way.
        return Err(Reason::VipUnassigned);
    };
    Ok((flow, destination, entry.clone()))
}

/// What holds for this client: what the kernel said, or where it knew no destination the strictest that
/// the routes have for anybody.
fn enforcement(plan: &Plan, flow: &Flow, entry: &VipEntry) -> Enforcement {
    if flow.direct {
        let routes = entry.routes.iter().map(|route| plan.routes[*route].enforcement_for(None));
        routes.max().unwrap_or(Enforcement::Strict)
    } else if flow.strict {
        Enforcement::Strict
    } else {
        Enforcement::Loose
    }
}

fn base_record(flow_id: u64, client: SocketAddr) -> AccessRecord {
    AccessRecord {
        started: SystemTime::UNIX_EPOCH,
        duration: Duration::ZERO,
        flow_id,
        route: None,
        mode: "refused",
        workload: Arc::new(Workload::default()),
        client,
        destination: None,
        direct: false,
        upstream: None,
        http: None,
        bytes_up: 0,
        bytes_down: 0,
        reason: Reason::Internal,
        detail: None,
    }
}
