//! The text of `/metrics`: counters of all workers added up, and what other rooms provide.
//!
//! Everything is read at the scrape; nothing is kept up to date in between. The exposition format is
//! prometheus-client's (OpenMetrics 1.0), which escapes label values.

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;

use hnp_common::Reason;
use prometheus_client::collector::Collector;
use prometheus_client::encoding::{DescriptorEncoder, MetricEncoder};
use prometheus_client::metrics::MetricType;
use prometheus_client::registry::Registry;

use super::Telemetry;
use super::migration::Beginning;
use super::names::{self, Kind, Metric};
use super::stats::{BUCKETS, Histogram, PolicyDecision, Row, STATUS_CLASSES};

/// The content type of [`Telemetry::metrics_text`].
pub const CONTENT_TYPE: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";

/// Metrics of another room, written at every scrape.
pub(super) type Provider = Arc<dyn Fn(&mut Exposition<'_, '_>) + Send + Sync>;

/// Label names and values of one sample.
pub type Labels<'a> = &'a [(&'a str, &'a str)];

/// Labels of exemplars, of which there are none.
type NoLabels = [(&'static str, &'static str); 0];

/// Where a provider writes its samples.
#[derive(Debug)]
pub struct Exposition<'a, 'b> {
    encoder: &'a mut DescriptorEncoder<'b>,
    result: fmt::Result,
}

/// A sample's value: whole numbers are written as such.
#[derive(Clone, Copy, Debug)]
pub enum Value {
    /// A count.
    Whole(u64),
    /// A measurement.
    Real(f64),
}

impl From<u64> for Value {
    fn from(value: u64) -> Self {
        Self::Whole(value)
    }
}

impl From<f64> for Value {
    fn from(value: f64) -> Self {
        Self::Real(value)
    }
}

impl Exposition<'_, '_> {
    /// Writes a counter or gauge with all its samples. Call once per metric: the format wants the
    /// samples of a metric together.
    pub fn family<'l, V: Into<Value>>(
        &mut self,
        metric: &Metric,
        samples: impl IntoIterator<Item = (Labels<'l>, V)>,
    ) {
        let result = self.try_family(metric, samples);
        self.result = self.result.and(result);
    }

    /// Writes a counter or gauge that has one sample without labels.
    pub fn single(&mut self, metric: &Metric, value: impl Into<Value>) {
        let none: Labels<'_> = &[];
        self.family(metric, [(none, value)]);
    }

    fn try_family<'l, V: Into<Value>>(
        &mut self,
        metric: &Metric,
        samples: impl IntoIterator<Item = (Labels<'l>, V)>,
    ) -> fmt::Result {
        let kind = match metric.kind {
            Kind::Counter => MetricType::Counter,
            Kind::Gauge => MetricType::Gauge,
            Kind::Histogram => MetricType::Histogram,
        };
        let mut family = self.encoder.encode_descriptor(metric.name, metric.help, None, kind)?;
        for (labels, value) in samples {
            let value = value.into();
            if labels.is_empty() {
                write(metric.kind, &mut family, value)?;
            } else {
                write(metric.kind, &mut family.encode_family(&labels)?, value)?;
            }
        }
        Ok(())
    }

    fn histograms<'l>(
        &mut self,
        metric: &Metric,
        samples: impl IntoIterator<Item = (Labels<'l>, Sum)>,
    ) -> fmt::Result {
        let mut family =
            self.encoder.encode_descriptor(metric.name, metric.help, None, MetricType::Histogram)?;
        for (labels, sum) in samples {
            let buckets: Vec<(f64, u64)> =
                BUCKETS.iter().copied().chain([f64::INFINITY]).zip(sum.buckets).collect();
            let count = sum.buckets.iter().sum();
            family.encode_family(&labels)?.encode_histogram::<NoLabels>(
                sum.seconds,
                count,
                &buckets,
                None,
            )?;
        }
        Ok(())
    }
}

fn write(kind: Kind, sample: &mut MetricEncoder<'_>, value: Value) -> fmt::Result {
    match (kind, value) {
        (Kind::Counter, Value::Whole(n)) => sample.encode_counter::<NoLabels, _, u64>(&n, None),
        (Kind::Counter, Value::Real(x)) => sample.encode_counter::<NoLabels, _, u64>(&x, None),
        (Kind::Gauge, Value::Whole(n)) => sample.encode_gauge(&n),
        (Kind::Gauge, Value::Real(x)) => sample.encode_gauge(&x),
        (Kind::Histogram, Value::Whole(_) | Value::Real(_)) => Err(fmt::Error),
    }
}

/// All metrics, as text.
pub(super) fn render(telemetry: Arc<Telemetry>) -> String {
    let mut registry = Registry::default();
    registry.register_collector(Box::new(Scrape(telemetry)));
    let mut text = String::with_capacity(16 * 1024);
    if prometheus_client::encoding::text::encode(&mut text, &registry).is_err() {
        // Only a provider that calls `family` with a histogram gets here.
        tracing::error!("a metric could not be written; /metrics is incomplete");
    }
    text
}

#[derive(Debug)]
struct Scrape(Arc<Telemetry>);

impl Collector for Scrape {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> fmt::Result {
        let mut out = Exposition { encoder: &mut encoder, result: Ok(()) };
        workers(&self.0, &mut out)?;
        process(&mut out);
        for provider in self.0.providers() {
            provider(&mut out);
        }
        out.result
    }
}

/// Samples of what never happened are left out: 48 reasons times all routes would bury the rest.
fn workers(telemetry: &Telemetry, out: &mut Exposition<'_, '_>) -> fmt::Result {
    let all = telemetry.rows();
    let routes: Vec<&str> = all.iter().map(|(route, _)| &**route).collect();
    let rows = |route: usize| all[route].1.iter().map(|row| &**row);

    out.single(&names::WORKERS, telemetry.workers.len() as u64);
    out.single(&names::CONNECTIONS_OPEN, telemetry.open_connections());
    out.single(&names::ACCESS_DROPPED, telemetry.access.dropped());

    let mut connections = Vec::new();
    let mut dials = Vec::new();
    let mut requests = Vec::new();
    for (index, route) in routes.iter().enumerate() {
        for (position, reason) in Reason::ALL.iter().enumerate() {
            let labels = [("route", *route), ("reason", reason.code())];
            connections.push((labels, total(rows(index).map(|row| &row.connections[position]))));
            dials.push((labels, total(rows(index).map(|row| &row.dials[position]))));
            for (class, status) in STATUS_CLASSES.iter().enumerate() {
                let labels = [("route", *route), ("reason", reason.code()), ("status", *status)];
                requests.push((labels, total(rows(index).map(|row| &row.requests[position][class]))));
            }
        }
    }
    out.family(&names::CONNECTIONS, happened(&connections));
    out.family(&names::REQUESTS, happened(&requests));
    out.family(&names::UPSTREAM_DIALS, happened(&dials));

    // Per route, so that a rate over a counter that was 0 shows its first step.
    let of_routes = |read: fn(&Row) -> u64| -> Vec<([(&str, &str); 1], u64)> {
        (0..routes.len()).map(|i| ([("route", routes[i])], rows(i).map(read).sum())).collect()
    };
    for (metric, read) in [
        (&names::BYTES_UP, (|row| row.bytes_up.load(Relaxed)) as fn(&Row) -> u64),
        (&names::BYTES_DOWN, |row| row.bytes_down.load(Relaxed)),
        (&names::POOL_HITS, |row| row.pool_hits.load(Relaxed)),
        (&names::RETRIES, |row| row.retries.load(Relaxed)),
        (&names::OUTAGE_WAITS, |row| row.outage_waits.load(Relaxed)),
        (&names::POOL_IDLE, |row| row.pool_idle.load(Relaxed)),
        (&names::UPSTREAM_SHARED, |row| row.upstream_shared.load(Relaxed)),
    ] {
        let samples = of_routes(read);
        out.family(metric, samples.iter().map(|(labels, n)| (&labels[..], *n)));
    }
    let mut begun = Vec::new();
    for (index, route) in routes.iter().enumerate() {
        for beginning in Beginning::ALL {
            let labels = [("route", *route), ("begins", beginning.as_str())];
            begun.push((labels, total(rows(index).map(|row| &row.begun[beginning as usize]))));
        }
    }
    out.family(&names::CONNECTIONS_BEGUN, happened(&begun));
    let mut decisions = Vec::new();
    for (index, route) in routes.iter().enumerate() {
        for decision in PolicyDecision::ALL {
            for (place, dry_run) in ["false", "true"].into_iter().enumerate() {
                let labels = [("route", *route), ("decision", decision.as_str()), ("dry_run", dry_run)];
                decisions.push((labels, total(rows(index).map(|row| &row.policy[decision as usize][place]))));
            }
        }
    }
    out.family(&names::POLICY_DECISIONS, happened(&decisions));
    let mut handshakes = Vec::new();
    for (index, route) in routes.iter().enumerate() {
        let full = total(rows(index).map(|row| &row.handshakes_full));
        let resumed = total(rows(index).map(|row| &row.handshakes_resumed));
        handshakes.push(([("route", *route), ("resumed", "false")], full));
        handshakes.push(([("route", *route), ("resumed", "true")], resumed));
    }
    out.family(&names::UPSTREAM_HANDSHAKES, handshakes.iter().map(|(labels, n)| (&labels[..], *n)));

    let labels: Vec<_> = routes.iter().map(|route| [("route", *route)]).collect();
    for (metric, read) in [
        (&names::REQUEST_DURATION, (|row| &row.request_duration) as fn(&Row) -> &Histogram),
        (&names::UPSTREAM_CONNECT, |row| &row.upstream_connect),
    ] {
        let samples = labels.iter().enumerate().map(|(i, labels)| (&labels[..], Sum::of(rows(i).map(read))));
        out.histograms(metric, samples)?;
    }
    Ok(())
}

fn total<'a>(counters: impl Iterator<Item = &'a std::sync::atomic::AtomicU64>) -> u64 {
    counters.map(|counter| counter.load(Relaxed)).sum()
}

fn happened<'a, const N: usize>(
    samples: &'a [([(&'a str, &'a str); N], u64)],
) -> impl Iterator<Item = (Labels<'a>, u64)> {
    samples.iter().filter(|(_, n)| *n > 0).map(|(labels, n)| (&labels[..], *n))
}

/// Histograms of all workers, added up.
struct Sum {
    buckets: [u64; BUCKETS.len() + 1],
    seconds: f64,
}

impl Sum {
    fn of<'a>(histograms: impl Iterator<Item = &'a Histogram>) -> Self {
        let mut sum = Self { buckets: [0; BUCKETS.len() + 1], seconds: 0.0 };
        for histogram in histograms {
            for (total, bucket) in sum.buckets.iter_mut().zip(&histogram.buckets) {
                *total += bucket.load(Relaxed);
            }
            sum.seconds += histogram.sum_micros.load(Relaxed) as f64 / 1e6;
        }
        sum
    }
}

/// The agent itself, out of /proc/self; what cannot be read is left out.
fn process(out: &mut Exposition<'_, '_>) {
    out.family(&names::BUILD, [(&[("version", env!("CARGO_PKG_VERSION"))][..], 1u64)]);
    if let Some(stat) = ProcStat::read() {
        out.single(&names::PROCESS_RSS, stat.rss_bytes);
        out.single(&names::PROCESS_CPU, stat.cpu_seconds);
        if let Some(start) = stat.start_seconds() {
            out.single(&names::PROCESS_START, start);
        }
    }
    if let Ok(fds) = std::fs::read_dir("/proc/self/fd") {
        out.single(&names::PROCESS_FDS, fds.count() as u64);
    }
    if let Ok((soft, _)) = nix::sys::resource::getrlimit(nix::sys::resource::Resource::RLIMIT_NOFILE) {
        out.single(&names::PROCESS_MAX_FDS, soft);
    }
}

struct ProcStat {
    rss_bytes: u64,
    cpu_seconds: f64,
    start_ticks: u64,
}

/// Ticks in /proc/PID/stat: USER_HZ, which is 100 on every architecture hnp runs on.
const TICKS_PER_SECOND: f64 = 100.0;

impl ProcStat {
    /// proc_pid_stat(5), fields 14, 15, 22 and 24; counted after the command name, which may hold blanks.
    fn read() -> Option<Self> {
        let text = std::fs::read_to_string("/proc/self/stat").ok()?;
        let fields: Vec<&str> = text.rsplit_once(')')?.1.split_whitespace().collect();
        let number = |field: usize| fields.get(field - 3)?.parse::<u64>().ok();
        let page = nix::unistd::sysconf(nix::unistd::SysconfVar::PAGE_SIZE).ok()??;
        Some(Self {
            rss_bytes: number(24)? * u64::try_from(page).ok()?,
            cpu_seconds: (number(14)? + number(15)?) as f64 / TICKS_PER_SECOND,
            start_ticks: number(22)?,
        })
    }

    fn start_seconds(&self) -> Option<f64> {
        let stat = std::fs::read_to_string("/proc/stat").ok()?;
        let boot: f64 = stat.lines().find_map(|line| line.strip_prefix("btime "))?.trim().parse().ok()?;
        Some(boot + self.start_ticks as f64 / TICKS_PER_SECOND)
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write;
    use std::sync::{Mutex, PoisonError};
    use std::time::Duration;

    use super::*;
    use crate::telemetry::record::{AccessRecord, HttpRecord, HttpVersion, UpstreamRecord, WayRecord};

    const CONFIG: &str = "
identities: {c: {certificate: /c, key: /k}}
routes:
- {name: m, destinations: ['m.test:80'], upstream: 'https://m.test', identity: c}
- {name: n, destinations: ['n.test:80'], upstream: 'https://n.test', identity: c}
workers: 2
";

    #[derive(Clone, Default)]
    struct Written(Arc<Mutex<Vec<u8>>>);

    impl Write for Written {
        fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
            self.0.lock().unwrap_or_else(PoisonError::into_inner).extend_from_slice(bytes);
            Ok(bytes.len())
        }

        fn flush(&mut self) -> std::io::Result<()> {
            Ok(())
        }
    }

    fn record(route: Option<&str>, status: Option<u16>, reason: Reason) -> AccessRecord {
        AccessRecord {
            started: std::time::SystemTime::now(),
            duration: Duration::from_millis(30),
            flow_id: 1,
            route: route.map(Into::into),
            mode: "reverse-proxy",
            workload: Arc::default(),
            client: "10.0.0.1:1".parse().unwrap(),
            destination: None,
            direct: false,
            handshake_wait_ms: 0,
            client_tls: None,
            upstream: Some(UpstreamRecord {
                way: Arc::new(WayRecord { authority: "m.test".into(), proxy: None }),
                addr: None,
                protocol: None,
                reused: false,
                connect: Duration::from_millis(3),
                outage: Duration::ZERO,
                first_byte: None,
                tls_version: None,
                key_exchange: None,
                identity_generation: None,
                spiffe_id: None,
            }),
            client_protocol: HttpVersion::Http1,
            http: status.map(|status| HttpRecord { method: "GET".into(), path: "/".into(), status }),
            bytes_up: 10,
            bytes_down: 100,
            reason,
            detail: None,
        }
    }

    #[test]
    fn workers_are_added_up_and_lines_and_counters_agree() {
        let plan = crate::config::parse(CONFIG, std::path::Path::new("x")).unwrap();
        let written = Written::default();
        let telemetry = Telemetry::writing_to(&plan, Box::new(written.clone()));
        let workers = [telemetry.worker(0), telemetry.worker(1)];
        let open = [workers[0].connection_opened(), workers[1].connection_opened()];
        let (a, b) = (workers[0].of(&plan), workers[1].of(&plan));
        a.finish(&record(Some("m"), Some(200), Reason::Ok));
        b.finish(&record(Some("m"), Some(204), Reason::Ok));
        b.finish(&record(Some("m"), Some(502), Reason::UpstreamRefused));
        b.finish(&record(Some("n"), None, Reason::IdleTimeout));
        b.finish(&record(None, None, Reason::NoFlow));
        a.connection_ended(Some(0), Reason::Ok);
        a.upstream_dialed(0, Reason::Ok);
        b.upstream_dialed(0, Reason::UpstreamRefused);
        a.upstream_handshake(0, false);
        b.upstream_handshake(0, true);
        workers[1].pool_idle(|route| if route == "m" { 1 } else { 0 });
        a.pool_hit(0);
        b.retried(0);
        a.begun(0, &Arc::default(), Beginning::Tls);
        b.begun(0, &Arc::default(), Beginning::Tls);
        telemetry.register(|out| {
            out.family(&names::KERNEL_VERDICTS, [(&[("verdict", "redirect")][..], 7u64)]);
        });
        let text = telemetry.metrics_text();
        for line in [
            "hnp_workers 2",
            "hnp_connections_open 2",
            "hnp_requests_total{route=\"m\",reason=\"ok\",status=\"2xx\"} 2",
            "hnp_requests_total{route=\"m\",reason=\"upstream_refused\",status=\"5xx\"} 1",
            "hnp_connections_total{route=\"m\",reason=\"ok\"} 1",
            "hnp_connections_begun_total{route=\"m\",begins=\"tls\"} 2",
            "hnp_connections_total{route=\"n\",reason=\"idle_timeout\"} 1",
            "hnp_connections_total{route=\"-\",reason=\"no_flow\"} 1",
            "hnp_bytes_up_total{route=\"m\"} 30",
            "hnp_bytes_down_total{route=\"-\"} 100",
            "hnp_upstream_dials_total{route=\"m\",reason=\"upstream_refused\"} 1",
            "hnp_upstream_handshakes_total{route=\"m\",resumed=\"true\"} 1",
            "hnp_pool_idle{route=\"m\"} 1",
            "hnp_pool_hits_total{route=\"m\"} 1",
            "hnp_retries_total{route=\"m\"} 1",
            "hnp_request_duration_seconds_count{route=\"m\"} 3",
            "hnp_request_duration_seconds_bucket{le=\"0.025\",route=\"m\"} 0",
            "hnp_request_duration_seconds_bucket{le=\"0.05\",route=\"m\"} 3",
            "hnp_request_duration_seconds_bucket{le=\"+Inf\",route=\"m\"} 3",
            "hnp_upstream_connect_seconds_count{route=\"n\"} 1",
            "hnp_kernel_verdicts_total{verdict=\"redirect\"} 7",
            "hnp_access_lines_dropped_total 0",
        ] {
            assert!(text.lines().any(|found| found == line), "{line} is not in\n{text}");
        }
        assert!(text.ends_with("# EOF\n"));
        assert_eq!(text.matches("hnp_requests_total{").count(), 2, "what never happened has no sample");

        drop(open);
        assert!(telemetry.metrics_text().contains("\nhnp_connections_open 0\n"));
        assert!(telemetry.flush(Duration::from_secs(10)));
        let lines = written.0.lock().unwrap().iter().filter(|b| **b == b'\n').count();
        assert_eq!(lines, 5, "one line for each record, none for the connection that has requests");
    }

    #[test]
    fn every_metric_that_is_written_is_in_the_table() {
        let plan = crate::config::parse(CONFIG, std::path::Path::new("x")).unwrap();
        let telemetry = Telemetry::writing_to(&plan, Box::new(std::io::sink()));
        let text = telemetry.metrics_text();
        for line in text.lines().filter_map(|line| line.strip_prefix("# TYPE ")) {
            let name = line.split(' ').next().unwrap();
            assert!(names::ALL.iter().any(|metric| metric.name == name), "{name}");
        }
        for name in ["process_resident_memory_bytes ", "process_cpu_seconds_total ", "process_open_fds "] {
            let line = text.lines().find(|line| line.starts_with(name)).expect(name);
            assert!(line.rsplit(' ').next().unwrap().parse::<f64>().unwrap() >= 0.0, "{line}");
        }
    }
}
