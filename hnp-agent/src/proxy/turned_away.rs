//! A workload's connection beyond what it may have: it is told why in what it speaks, and holds no place of those who are
//! served while it is.

use std::rc::Rc;
use std::time::Duration;

use tokio::sync::OwnedSemaphorePermit;
use tokio::time::timeout;

use super::connection::Client;
use super::http1::serve::{self as http1, Refusal};
use super::record::Recording;
use super::tls;
use super::worker::{Lanes, Worker};
use crate::clock::monotonic_ns;
use crate::policy::{Key, Refused};

/// So many of a worker's connections are told at a time; the others are reset at once. Few beside all that a worker may
/// have, as nothing else bounds them.
pub(super) const TOLD: usize = 64;
/// How long such a client may take to say what he speaks.
const HEAD: Duration = Duration::from_secs(1);

/// Counts a client among those of its workload; its bytes go at its workload's pace from here. `None`: the workload has
/// what it may have, and the client was turned away.
pub(super) async fn admit(
    lanes: &Lanes,
    worker: &Rc<Worker>,
    mut client: Box<Client>,
    key: Key,
    permit: OwnedSemaphorePermit,
) -> Option<(Box<Client>, OwnedSemaphorePermit)> {
    let limits = &worker.plan.limits.per_workload;
    // Housekeeping does this too, for connections that there are; a new one goes by its own configuration at once.
    lanes.around.usages.go_by(limits, worker.generation.number);
    match lanes.around.usages.enter(key, limits, monotonic_ns()) {
        Ok(seat) => {
            let seat = Rc::new(seat);
            client.stream = client.stream.paced(&seat);
            client.seat = Some(seat);
            Some((client, permit))
        }
        Err(refused) => {
            drop(permit);
            turn_away(lanes, worker, client, refused).await;
            None
        }
    }
}

async fn turn_away(lanes: &Lanes, worker: &Worker, mut client: Box<Client>, refused: Refused) {
    let Refused { reason, detail, speak } = refused;
    let route = client.routes.first().copied();
    if let Some(connections) = speak {
        let workload = &client.base.workload;
        tracing::warn!(
            pod_uid = workload.pod_uid, cgroup = workload.cgroup, client = %client.flow.client.ip(), connections,
            reason = reason.code(), %detail, "a workload's connections are refused"
        );
    }
    let opaque = route.is_some_and(|route| worker.plan.routes[route].is_opaque());
    let place = if opaque { None } else { lanes.told.take() };
    if place.is_none() {
        client.stream.reset_on_close();
        // A line for each would let the workload fill the log, too.
        return match speak {
            Some(_) => http1::refuse(worker, &mut client, Refusal::Reset(reason, detail)).await,
            None => worker.stats.connection_ended(route, reason),
        };
    }
    let mut bytes = worker.stock.buffer();
    match timeout(HEAD, http1::read_head(worker, &mut client, &mut bytes)).await {
        Ok(Ok(Some(_))) => http1::refuse(worker, &mut client, Refusal::Answer(reason, detail)).await,
        Ok(Ok(None)) => {
            let mut recording = Recording::begin(worker, client.base.clone());
            recording.record.route = route.map(|route| worker.plan.routes[route].name.clone());
            tls::refuse(client, recording, reason, detail).await;
        }
        Ok(Err(_)) | Err(_) => {
            http1::refuse(worker, &mut client, Refusal::Reset(reason, detail)).await;
        }
    }
}
