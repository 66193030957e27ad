//! One accepted connection, from its flow to its end.
//!
//! Down the list once: flow (where to, who), destination, first byte, mode. A connection that did not
//! come through capture ends here, whatever the enforcement.

use std::net::SocketAddr;
use std::rc::Rc;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use hnp_common::Reason;
use tokio::net::TcpStream;
use tokio::sync::OwnedSemaphorePermit;

use super::authority::{Choice, choose, is_let_through};
use super::buffer::Buffer;
use super::client_io::ClientIo;
use super::flow::Flow;
use super::gateway::Asked;
use super::http2::Stream;
use super::police::{Cut, Police, Standing};
use super::record::Recording;
use super::worker::{Lanes, Worker};
use super::{http1, opaque, turned_away};
use crate::config::plan::{Enforcement, Plan, RouteIndex};
use crate::policy::{Key, Seat};
use crate::serving::Terms;
use crate::serving::certificate::{ClientCertificate, ClientTls};
use crate::telemetry::migration::Beginning;
use crate::telemetry::record::{AccessRecord, Dialled, HttpVersion};
use crate::upstream::UpstreamConnection;
use crate::workload::{Caller, Workload};

/// A captured client connection.
pub struct Client {
    /// The bytes' way.
    pub stream: ClientIo,
    /// What the kernel recorded.
    pub flow: Flow,
    /// What the VIP stands for: as of accept, and on HTTP connections as of the last request.
    pub destination: SocketAddr,
    /// The routes that include it. Never empty.
    pub routes: Vec<RouteIndex>,
    /// What every record of this connection begins with.
    pub base: AccessRecord,
    /// The route that ended this client's TLS, and on which terms; they hold for that route alone.
    pub admitted: Option<Box<Admitted>>,
    /// What policies say of it.
    pub standing: Rc<Standing>,
    /// The upstream connection that this client has authenticated.
    pub bound: Option<Box<Bound>>,
    /// Its place among those of its workload; `None`: it has none yet.
    pub seat: Option<Rc<Seat>>,
    /// What it begins with is counted.
    pub counted: bool,
    /// The destination has left the configuration: the connection ends with the next answer.
    pub last: bool,
    /// What the client asked the gateway for; `None`: it was captured.
    pub asked: Option<Box<Asked>>,
}

/// An upstream connection that is one client's: what it has proved there holds for whatever comes on it.
pub struct Bound {
    /// The route's name.
    pub route: Arc<str>,
    /// Between two requests.
    pub connection: UpstreamConnection,
}

/// A client whose TLS ended here.
#[derive(Clone)]
pub struct Admitted {
    /// The route's name, or the gateway's.
    pub route: Arc<str>,
    /// Whom it let in.
    pub terms: Arc<Terms>,
    /// What was verified.
    pub tls: Arc<ClientTls>,
}

impl Client {
    /// The same client, with one of its requests over HTTP/2 as the bytes of HTTP/1.1.
    pub fn with_stream(&self, stream: Stream, police: &Rc<Police>) -> Self {
        Self {
            stream: ClientIo::Http2(Box::new(stream)),
            flow: self.flow,
            destination: self.destination,
            routes: self.routes.clone(),
            base: AccessRecord { client_protocol: HttpVersion::H2, ..self.base.clone() },
            admitted: self.admitted.clone(),
            // Each ends for itself.
            standing: police.standing(),
            // A client of HTTP/2 shares its connection with itself alone and cannot say which request proved what.
            bound: None,
            seat: self.seat.clone(),
            counted: self.counted,
            last: self.last,
            asked: self.asked.as_ref().map(|asked| Box::new(asked.of_stream())),
        }
    }

    /// The client's certificate, if it was asked for one.
    pub fn certificate(&self) -> Option<&ClientCertificate> {
        self.admitted.as_ref()?.tls.certificate.as_ref()
    }

    /// What holds for this client under a Plan. Where some pods have an enforcement of their own the kernel
    /// has said what it is when the pod connected; where it knew no destination, the strictest holds.
    pub fn enforcement(&self, plan: &Plan) -> Enforcement {
        let routes = || self.routes.iter().map(|route| &plan.routes[*route]);
        if !self.flow.direct && routes().any(|route| !route.overrides.is_empty()) {
            return if self.flow.strict { Enforcement::Strict } else { Enforcement::Loose };
        }
        routes().map(|route| route.strictest_enforcement()).max().unwrap_or(Enforcement::Strict)
    }

    /// On whose behalf it is served. A client of the gateway is known by his address, which may be that of a pod that
    /// has gone; only a captured one is known to be a certain pod.
    pub fn caller(&self) -> Caller<'_> {
        let likely = self.base.workload.pod_uid.as_deref();
        if self.asked.is_some() || self.flow.cgroup_id == 0 {
            let why = "who asks the gateway is known by his address alone, and each workload has an identity of its own on \
                       this route; dial the destination itself";
            return Caller::Unknown { why, likely };
        }
        match likely {
            Some(uid) => Caller::Pod(uid),
            None => Caller::Unknown { why: "the caller's cgroup is not that of a pod", likely },
        }
    }

    /// Whether it may use a route, by the route's policy.
    ///
    /// # Errors
    /// It may not.
    pub async fn permit(&self, worker: &Worker, route: RouteIndex) -> Result<(), (Reason, String)> {
        self.standing.admit(worker, &self.base.workload, route).await
    }

    /// Counts what a captured connection begins with, once, by the route that is to carry it.
    pub fn begins_with(&mut self, worker: &Worker, route: RouteIndex, beginning: Beginning) {
        if self.asked.is_none() && !std::mem::replace(&mut self.counted, true) {
            worker.stats.begun(route, &self.base.workload, beginning);
        }
    }

    /// Notes that a captured client has sent what only a strict route refuses; `refused`: this one does.
    pub fn sends_what_strict_refuses(
        &self,
        worker: &Worker,
        route: RouteIndex,
        reason: Reason,
        refused: bool,
    ) {
        if self.asked.is_none() {
            worker.stats.strict_alone(route, &self.base.workload, reason, refused);
        }
    }

    /// Whether a name that is none of its routes' may pass on a strict route too.
    pub fn may_pass(&self, plan: &Plan, host: &str) -> bool {
        is_let_through(plan, &self.routes, host)
    }

    /// What ends its exchanges from outside.
    pub fn cut(&self, worker: &Worker) -> Cut {
        Cut::new(worker.kill.clone(), Rc::clone(&self.standing))
    }

    /// What was read of the connection before it was served as this client's.
    pub fn begun(&mut self) -> Option<Buffer> {
        match self.asked.as_deref_mut() {
            Some(Asked::Tunnel(_, begun)) => begun.take(),
            Some(Asked::Request(..)) | None => None,
        }
    }

    /// Where the client was going, in its words.
    pub fn dialled(&self) -> String {
        match self.asked.as_deref().and_then(Asked::wanted) {
            Some(wanted) => wanted.to_string(),
            None => self.destination.to_string(),
        }
    }

    /// Which of the client's routes a Host or a server name belongs to.
    pub fn choose(&self, plan: &Plan, host: Option<&str>) -> Choice {
        if let Some(asked) = &self.asked {
            return asked.choose(plan, self, host);
        }
        choose(plan, &self.routes, self.destination, self.flow.vip, self.enforcement(plan), host)
    }
}

/// Serves one accepted connection to its end. It holds the permit for as long as it is served.
pub async fn serve(lanes: &Lanes, stream: TcpStream, peer: SocketAddr, permit: OwnedSemaphorePermit) {
    let mut open = lanes.around.counters.connection_opened();
    let mut base = base_record(lanes.flow_id(), peer);
    match flow_of(lanes, &stream, peer) {
        Ok((worker, flow, destination, routes)) => {
            base.workload = lanes.around.workloads.identify(&flow);
            base.destination = Some(Dialled::Address(destination));
            base.direct = flow.direct;
            open.known(&base);
            let first = routes[0];
            let opaque = worker.plan.routes[first].is_opaque();
            let stream = ClientIo::Tcp(stream);
            // Boxed: it is handed from one future to the next, and each would have room for it.
            let (admitted, bound, asked) = (None, None, None);
            let client = Box::new(Client {
                stream,
                flow,
                destination,
                routes,
                base,
                admitted,
                standing: lanes.police.standing(),
                bound,
                seat: None,
                counted: false,
                last: false,
                asked,
            });
            let key = Key::captured(&client.base.workload, flow.cgroup_id);
            // Boxed: its answers are rare.
            let admitted = Box::pin(turned_away::admit(lanes, &worker, client, key, permit)).await;
            let Some((mut client, _permit)) = admitted else { return };
            if opaque {
                client.begins_with(&worker, first, Beginning::Opaque);
                // Boxed: HTTP connections would hold its state too.
                Box::pin(opaque::serve(&worker, client, first)).await;
            } else {
                http1::serve::serve(lanes, worker, client).await;
            }
        }
        Err(reason) => {
            ClientIo::Tcp(stream).reset_on_close();
            Recording::begin(&lanes.current(), base).finish(reason, None);
        }
    }
    drop(open);
}

/// Flow and destination, and the worker of the generation that the destination's routes are counted in.
fn flow_of(
    lanes: &Lanes,
    stream: &TcpStream,
    peer: SocketAddr,
) -> Result<(Rc<Worker>, Flow, SocketAddr, Vec<RouteIndex>), Reason> {
    let local = stream.local_addr().map_err(|_| Reason::ClientGone)?;
    let flow = lanes.around.flows.take(peer, local)?;
    let table = lanes.around.vips.load();
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
    Ok((lanes.of(&entry.generation), flow, destination, entry.routes.clone()))
}

/// What every record of a connection begins with.
pub(super) fn base_record(flow_id: u64, client: SocketAddr) -> AccessRecord {
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
        handshake_wait_ms: 0,
        client_tls: None,
        upstream: None,
        client_protocol: HttpVersion::Http1,
        http: None,
        bytes_up: 0,
        bytes_down: 0,
        reason: Reason::Internal,
        detail: None,
    }
}
