//! Opaque routes: the pod's bytes, whatever they are, as they came or decrypted, over one mutual-TLS connection of their own.

use super::connection::Client;
use super::handshakes;
use super::record::Recording;
use super::relay;
use super::worker::Worker;
use crate::config::plan::{Mode, RouteIndex};

/// Dials the upstream at once, for protocols in which the server speaks first, and relays.
pub async fn serve(worker: &Worker, mut client: Box<Client>, route: RouteIndex) {
    let begun = client.begun();
    let plan = &worker.plan.routes[route];
    let mut recording = Recording::begin(worker, client.base.clone());
    recording.record.route = Some(plan.name.clone());
    recording.record.mode = match &plan.mode {
        Mode::EndToEnd(_) => plan.mode.as_str(),
        Mode::ReverseProxy(_) | Mode::Tunnel(_) => "opaque",
    };
    let mut permitted = client.permit(worker, route).await;
    if permitted.is_ok() {
        recording.show();
        permitted = handshakes::wait(worker, &mut client, &mut recording.record).await;
    }
    if let Err((reason, detail)) = permitted {
        client.stream.reset_on_close();
        return recording.finish(reason, Some(detail));
    }
    let (cut, has_left) = (client.cut(worker), || client.stream.has_left());
    let dial = worker.upstreams.connect_fresh(route, client.caller(), &has_left);
    let mut upstream = match cut.unless(dial).await {
        Ok(Ok(upstream)) => upstream,
        Ok(Err(error)) => {
            recording.failed_upstream(plan, &error);
            client.stream.reset_on_close();
            return recording.finish(error.reason, Some(error.detail));
        }
        Err((reason, why)) => {
            client.stream.reset_on_close();
            return recording.finish(reason, Some(why));
        }
    };
    recording.upstream(&upstream);
    let (mut up, mut down) = (begun.unwrap_or_else(|| worker.stock.buffer()), worker.stock.buffer());
    let relayed =
        relay::relay(&mut client.stream, &mut upstream.io, &mut up, &mut down, plan.timeouts.idle, &cut)
            .await;
    recording.record.bytes_up = relayed.up;
    recording.record.bytes_down = relayed.down;
    let (reason, caller) = (relayed.reason, client.caller());
    let detail = relayed.detail.map(|detail| worker.upstreams.with_dates(route, caller, reason, detail));
    recording.finish(relayed.reason, detail);
}
