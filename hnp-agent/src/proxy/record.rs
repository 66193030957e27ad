//! A record in the making: whatever way a connection ends, one access line is written.

use std::sync::Arc;
use std::time::Duration;

use hnp_common::Reason;
use tokio::time::Instant;

use super::worker::Worker;
use crate::config::plan::Route;
use crate::telemetry::flows::Place;
use crate::telemetry::record::{AccessRecord, UpstreamRecord, WayRecord};
use crate::upstream::{DialError, UpstreamConnection};

/// Holds the record until it is finished; dropped unfinished, the connection was cut: by the drain's
/// deadline, or with the task.
pub struct Recording<'w> {
    worker: &'w Worker,
    since: Instant,
    /// Filled in as things become known.
    pub record: AccessRecord,
    /// Where it is among the live flows, once it is shown.
    place: Option<Place>,
    finished: bool,
}

impl<'w> Recording<'w> {
    /// Starts the clock. `base` carries what the connection knows already.
    pub fn begin(worker: &'w Worker, base: AccessRecord) -> Self {
        let record = AccessRecord { started: crate::clock::now(), ..base };
        Self { worker, since: Instant::now(), record, place: None, finished: false }
    }

    /// Shows it among the live flows. For what may take time; to be called once the route is known.
    pub fn show(&mut self) {
        self.place = Some(self.worker.stats.shown(self.place, &self.record));
    }

    /// Notes the upstream connection in use.
    pub fn upstream(&mut self, connection: &UpstreamConnection) {
        let UpstreamConnection { info, reused, outage, .. } = connection;
        let reused = *reused;
        self.record.upstream = Some(UpstreamRecord {
            way: Arc::clone(&info.way),
            addr: Some(info.addr),
            protocol: info.protocol,
            reused,
            connect: if reused { Duration::ZERO } else { info.connect },
            outage: *outage,
            first_byte: None,
            tls_version: info.tls_version,
            key_exchange: info.key_exchange,
            identity_generation: info.identity_generation,
            spiffe_id: info.spiffe_id.clone(),
        });
        self.show();
    }

    /// Notes a route's upstream that could not be reached, the last address tried and how long it was tried.
    pub fn failed_upstream(&mut self, route: &Route, error: &DialError) {
        self.failed(WayRecord::of(route), error);
    }

    /// Notes where a client was going and that it could not be reached.
    pub fn failed_direct(&mut self, destination: String, error: &DialError) {
        self.failed(WayRecord::direct(destination), error);
    }

    fn failed(&mut self, way: WayRecord, error: &DialError) {
        self.record.upstream = Some(UpstreamRecord {
            way: Arc::new(way),
            addr: error.addr,
            protocol: None,
            reused: false,
            connect: Duration::ZERO,
            outage: error.outage,
            first_byte: None,
            tls_version: None,
            key_exchange: None,
            identity_generation: None,
            spiffe_id: None,
        });
    }

    /// Writes the line.
    pub fn finish(mut self, reason: Reason, detail: Option<String>) {
        self.record.detail = detail;
        self.write(reason);
    }

    /// Writes nothing: what follows has records of its own.
    pub fn forget(mut self) {
        self.finished = true;
        self.worker.stats.ended(self.place, None);
    }

    fn write(&mut self, reason: Reason) {
        self.finished = true;
        self.record.reason = reason;
        self.record.duration = self.since.elapsed();
        self.worker.stats.finish(&self.record);
        self.worker.stats.ended(self.place, Some(self.record.take()));
    }
}

impl Drop for Recording<'_> {
    fn drop(&mut self) {
        if !self.finished {
            self.write(if self.worker.kill.is_cancelled() { Reason::Drained } else { Reason::ClientGone });
        }
    }
}
