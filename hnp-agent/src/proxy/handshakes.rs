//! A TLS handshake that a client brings about for itself alone waits until its workload may begin one more.
//!
//! That is one for each opaque connection, and one where the client's own TLS ends here. What a pool can serve is nobody's alone: who
//! has to dial for a request may do so because a neighbour has used up what there was.

use std::time::Duration;

use hnp_common::Reason;
use tokio::time::{Instant, sleep};

use super::connection::Client;
use super::worker::Worker;
use crate::clock::monotonic_ns;
use crate::policy::Queued;
use crate::telemetry::record::AccessRecord;

/// A pause is looked at this often: what made it may have ended.
const LOOK: Duration = Duration::from_secs(1);

/// Waits, unless its permission or its time is over; `record` and those to come say for how long.
///
/// # Errors
/// What ended it, or that so many wait already that it does not.
pub(super) async fn wait(
    worker: &Worker,
    client: &mut Client,
    record: &mut AccessRecord,
) -> Result<(), (Reason, String)> {
    let Some(seat) = client.seat.clone() else { return Ok(()) };
    let queued = seat.begin_handshake(monotonic_ns()).map_err(|refused| (refused.reason, refused.detail))?;
    let Some(queued) = queued else { return Ok(()) };
    let since = Instant::now();
    let waited = client.cut(worker).unless(due(&queued)).await;
    let millis = u32::try_from(since.elapsed().as_millis()).unwrap_or(u32::MAX);
    client.base.handshake_wait_ms = client.base.handshake_wait_ms.saturating_add(millis);
    record.handshake_wait_ms = client.base.handshake_wait_ms;
    waited
}

async fn due(queued: &Queued<'_>) {
    loop {
        let left = queued.left(monotonic_ns());
        if left.is_zero() {
            return;
        }
        sleep(left.min(LOOK)).await;
    }
}
