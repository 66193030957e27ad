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
use crate::config::plan::Protocol;
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
    /// What every record of this connection begins with.
    pub base: AccessRecord,
}

/// Serves one accepted connection to its end.
pub async fn serve(worker: &Worker, stream: TcpStream, peer: SocketAddr) {
    let open = worker.stats.connection_opened();
    let mut base = base_record(worker.flow_id(), peer);
    let found = flow_of(worker, &stream, peer);
    if let Ok((flow, entry)) = &found {
        base.workload = worker.workloads.identify(flow);
        base.destination = Some(entry.destination);
    }
    match found {
        Ok((flow, entry)) => {
            // Answers must not wait for an ACK (Nagle); a failure costs only latency.
            let _ = stream.set_nodelay(true);
            let protocol = worker.plan.routes[entry.routes[0]].protocol;
            let client = Client { stream, flow, entry, base };
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

fn flow_of(worker: &Worker, stream: &TcpStream, peer: SocketAddr) -> Result<(Flow, VipEntry), Reason> {
    let local = stream.local_addr().map_err(|_| Reason::ClientGone)?;
    let flow = worker.flows.take(peer, local)?;
    let table = worker.vips.load();
    let entry = table.entries.get(&flow.vip).ok_or(Reason::VipUnassigned)?;
    Ok((flow, entry.clone()))
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
        upstream: None,
        http: None,
        bytes_up: 0,
        bytes_down: 0,
        reason: Reason::Internal,
        detail: None,
    }
}
