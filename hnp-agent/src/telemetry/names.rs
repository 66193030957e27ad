//! Every metric, in one table: names, labels and meaning are an interface for dashboards and alerts.
//!
//! Rows are added; names and labels never change. docs/logs-and-metrics.md lists them, and a test
//! below compares the two. Counters are written here without `_total`; the exposition adds it.

/// What a metric counts or measures.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Kind {
    /// Only grows; the exposition appends `_total`.
    Counter,
    /// Goes up and down.
    Gauge,
    /// Fixed buckets; the exposition appends `_bucket`, `_sum` and `_count`.
    Histogram,
}

/// One row of the table.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Metric {
    /// The name without the suffix its kind gets.
    pub name: &'static str,
    /// What it is.
    pub kind: Kind,
    /// What it means, in a sentence without a full stop.
    pub help: &'static str,
}

macro_rules! metrics {
    ($($ident:ident = $name:literal, $kind:ident, $help:literal;)+) => {
        $(#[doc = $help] pub const $ident: Metric = Metric { name: $name, kind: Kind::$kind, help: $help };)+

        /// Every metric, in the order of the table.
        pub const ALL: &[Metric] = &[$($ident),+];
    };
}

metrics! {
    CONNECTIONS_BEGUN = "hnp_connections_begun", Counter, "Captured connections, by route and what they begin with";
    CONNECTIONS = "hnp_connections", Counter, "Client connections that ended, by route and reason";
    WORKLOADS = "hnp_workloads", Gauge, "Workloads with connections open, or with some so lately that they count for a rate";
    WORKLOAD_HANDSHAKE_WAITS = "hnp_workload_handshake_waits", Counter, "TLS handshakes that waited because their workload had begun as many as it may in a second";
    WORKLOAD_WAITS = "hnp_workload_waits", Counter, "Pauses of connections whose workload had moved as many bytes as it may in a second";
    POLICY_DECISIONS = "hnp_policy_decisions", Counter, "Decisions of routes' policies: allow, deny, and revoke for what was allowed before; with dry_run, what would have been";
    CONNECTIONS_OPEN = "hnp_connections_open", Gauge, "Client connections open now";
    REQUESTS = "hnp_requests", Counter, "Requests that ended, by route, reason and class of the status the client got";
    BYTES_UP = "hnp_bytes_up", Counter, "Payload bytes from clients, by route";
    BYTES_DOWN = "hnp_bytes_down", Counter, "Payload bytes to clients, by route";
    REQUEST_DURATION = "hnp_request_duration_seconds", Histogram, "From the first byte of a request to the last of its answer, by route";
    UPSTREAM_CONNECT = "hnp_upstream_connect_seconds", Histogram, "Resolve, TCP and TLS of connections to the upstream that were not pooled, by route";
    UPSTREAM_DIALS = "hnp_upstream_dials", Counter, "Attempts to connect to the upstream, by route and reason (ok: a TLS connection came of it)";
    UPSTREAM_HANDSHAKES = "hnp_upstream_handshakes", Counter, "TLS handshakes with the upstream that succeeded, by route and whether the session was resumed";
    POOL_HITS = "hnp_pool_hits", Counter, "Requests that found an idle upstream connection, or one to share, by route";
    POOL_IDLE = "hnp_pool_idle", Gauge, "Idle upstream connections kept now, by route";
    UPSTREAM_SHARED = "hnp_upstream_shared", Gauge, "Connections of HTTP/2 to the upstream open now, by route; requests share them";
    RETRIES = "hnp_retries", Counter, "Requests sent a second time because a pooled connection was gone or the upstream had not looked at them, by route";
    OUTAGE_WAITS = "hnp_outage_waits", Counter, "Requests and connections that waited because the upstream could not be dialled, whatever came of it, by route";
    ACCESS_DROPPED = "hnp_access_lines_dropped", Counter, "Access lines that were dropped because the log could not be written fast enough";
    KERNEL_VERDICTS = "hnp_kernel_verdicts", Counter, "What the kernel programs decided, by verdict";
    FLOWS = "hnp_flows", Gauge, "Captured connections that wait in the kernel's map to be accepted";
    CAPTURED_OPEN = "hnp_captured_connections_open", Gauge, "Captured connections that pods hold open, as the kernel counts them";
    DESTINATIONS = "hnp_destinations", Gauge, "Addresses that are captured now";
    GUARD_INTERFACES = "hnp_guard_interfaces", Gauge, "Interfaces that the guard is attached to, by the way it is attached";
    GUARD_FAILING = "hnp_guard_failing", Gauge, "Interfaces that the guard could not be attached to";
    NAMES_PENDING = "hnp_names_pending", Gauge, "Names of destinations that have not resolved yet";
    NAMES_FAILING = "hnp_names_failing", Gauge, "Names of destinations whose last look-up failed";
    IDENTITY_NOT_BEFORE = "hnp_identity_not_before_seconds", Gauge, "First moment the presented certificate is valid, in seconds since 1970";
    IDENTITY_NOT_AFTER = "hnp_identity_not_after_seconds", Gauge, "Last moment the presented certificate is valid, in seconds since 1970";
    IDENTITY_GENERATION = "hnp_identity_generation", Gauge, "Generation of the identity that is presented; 0 while none was loaded";
    IDENTITY_RELOAD_FAILURES = "hnp_identity_reload_failures", Counter, "Changed files, or answers of a Workload API, that could not be used for an identity";
    IDENTITY_RELOAD_FAILING = "hnp_identity_reload_failing", Gauge, "1 while what an identity's source holds is not what is presented, because it is broken or the source is gone";
    ISSUED = "hnp_issued_certificates", Counter, "Certificates that an issuer has made for workloads, by identity";
    ISSUE_FAILURES = "hnp_issue_failures", Counter, "Certificates for workloads that could not be made, by identity";
    ISSUE_CPU = "hnp_issue_cpu_seconds", Counter, "CPU time that making certificates for workloads took, by identity";
    ISSUED_CACHED = "hnp_issued_cached", Gauge, "Workloads whose certificate is kept now, by identity";
    TRUST_GENERATION = "hnp_trust_generation", Gauge, "Generation of the trust in use; 0 while none was loaded";
    TRUST_ROOTS = "hnp_trust_roots", Gauge, "Roots of the trust in use";
    TRUST_ROOT_NOT_BEFORE = "hnp_trust_root_not_before_seconds", Gauge, "First moment a root is valid, in seconds since 1970, for the eight roots of a trust that end first";
    TRUST_ROOT_NOT_AFTER = "hnp_trust_root_not_after_seconds", Gauge, "Last moment a root is valid, in seconds since 1970, for the eight roots of a trust that end first";
    TRUST_CRL_NEXT_UPDATE = "hnp_trust_crl_next_update_seconds", Gauge, "When the first revocation list of a trust is to be renewed, in seconds since 1970; missing where it has none";
    TRUST_RELOAD_FAILURES = "hnp_trust_reload_failures", Counter, "Changed roots, or answers of a Workload API, that could not be used for a trust";
    TRUST_RELOAD_FAILING = "hnp_trust_reload_failing", Gauge, "1 while what a trust's source holds is not what is in use, because it is broken or the source is gone";
    TAKE_OVER_PAUSE = "hnp_take_over_pause_seconds", Gauge, "How long no connection was accepted while this agent took over from the one before; 0 when it did not";
    HANDOVERS_FAILED = "hnp_handovers_failed", Counter, "Successors that asked to take over and did not: this agent went on";
    OLDER_FLOWS_DESTROYED = "hnp_older_flows_destroyed", Counter, "Flows to strict destinations that were older than their capture and were destroyed; missing unless capture.destroy_older_flows is set";
    STARTUP_TAINT = "hnp_startup_taint", Gauge, "1 until the API server has said that this node is without the startup taint; missing where hnp looks after none";
    STARTUP_TAINT_FAILURES = "hnp_startup_taint_failures", Counter, "Attempts to look at the startup taint or to remove it that failed, by cause";
    POD_LABELS_IN_STEP = "hnp_pod_labels_in_step", Gauge, "1 while the API server tells the labels and service accounts of this node's pods; missing where no route selects by them and no issuer asks for service accounts";
    POD_LABELS_FAILURES = "hnp_pod_labels_failures", Counter, "Failures to follow pods' labels and service accounts, by cause";
    CGROUPS_NOTED = "hnp_cgroups_noted", Gauge, "Cgroups of pods and containers that were noted as they appeared, so that callers that have gone are known; the oldest are forgotten";
    RUNTIME_CONNECTED = "hnp_runtime_connected", Gauge, "1 while the container runtime tells which pods there are; missing where workloads.runtime is off";
    RUNTIME_QUESTIONS = "hnp_runtime_questions", Counter, "Questions about single pods that were put to the container runtime";
    RUNTIME_FAILURES = "hnp_runtime_failures", Counter, "Connections to the container runtime and questions to it that failed, by cause";
    POD_ADDRESSES_IN_STEP = "hnp_pod_addresses_in_step", Gauge, "1 while the API server tells the addresses of this node's pods; missing where no gateway needs them";
    POD_ADDRESSES_FAILURES = "hnp_pod_addresses_failures", Counter, "Failures to follow pods' addresses, by cause";
    CONFIG_GENERATION = "hnp_config_generation", Gauge, "Generation of the configuration in force; 1 is the one of the start";
    CONFIG_RELOADS = "hnp_config_reloads", Counter, "Changed configurations that were taken";
    CONFIG_RELOAD_FAILURES = "hnp_config_reload_failures", Counter, "Changed configurations that were refused";
    CONFIG_RELOAD_FAILING = "hnp_config_reload_failing", Gauge, "1 while the configuration in the file is not the one in force, because it has mistakes";
    CONFIG_RESTART_NEEDED = "hnp_config_restart_needed", Gauge, "Keys that have another value in the file and wait for a restart";
    READY = "hnp_ready", Gauge, "1 when nothing is pending";
    WORKERS = "hnp_workers", Gauge, "Worker threads";
    BUILD = "hnp_build_info", Gauge, "Always 1; the version is a label";
    PROCESS_RSS = "process_resident_memory_bytes", Gauge, "Resident memory of the agent";
    PROCESS_CPU = "process_cpu_seconds", Counter, "CPU time of the agent, user and system";
    PROCESS_FDS = "process_open_fds", Gauge, "Open file descriptors of the agent";
    PROCESS_MAX_FDS = "process_max_fds", Gauge, "Limit of open file descriptors of the agent";
    PROCESS_START = "process_start_time_seconds", Gauge, "When the agent started, in seconds since 1970";
}

impl Metric {
    /// The name as Prometheus shows it (histograms: without `_bucket`, `_sum`, `_count`).
    pub fn shown(&self) -> String {
        match self.kind {
            Kind::Counter => format!("{}_total", self.name),
            Kind::Gauge | Kind::Histogram => self.name.to_owned(),
        }
    }
}

#[cfg(test)]
mod tests {
    use hnp_common::Reason;

    use super::*;
    use crate::telemetry::line;

    const DOC: &str = include_str!("../../../docs/logs-and-metrics.md");

    #[test]
    fn names_are_unique_and_well_formed() {
        for (i, metric) in ALL.iter().enumerate() {
            assert!(metric.name.bytes().all(|b| b.is_ascii_lowercase() || b == b'_'), "{}", metric.name);
            assert!(!metric.name.ends_with("_total"), "{}: the exposition adds it", metric.name);
            assert!(ALL[i + 1..].iter().all(|other| other.name != metric.name), "{} twice", metric.name);
        }
    }

    #[test]
    fn the_documentation_knows_every_metric_reason_and_field() {
        for metric in ALL {
            let row = format!("| `{}` |", metric.shown());
            assert!(DOC.contains(&row), "docs/logs-and-metrics.md lacks a row {row}");
        }
        for reason in Reason::ALL {
            let row = format!("| `{}` |", reason.code());
            assert!(DOC.contains(&row), "docs/logs-and-metrics.md lacks a row {row}");
        }
        for field in line::FIELDS {
            let row = format!("| `{field}` |");
            assert!(DOC.contains(&row), "docs/logs-and-metrics.md lacks a row {row}");
        }
    }
}
