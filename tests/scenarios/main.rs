//! What hnp promises, one module per promise, each with a control that must behave the other way.
//!
//! The agent, the kernel programs, the managers and the clients are all real. Needs root, because
//! worlds are made of network namespaces and cgroups: `cargo xtask test --tier host`.

mod bad_requests;
mod bad_responses;
mod bound_connections;
mod bulk;
mod capture_rules;
mod certificates;
mod churn;
mod corporate_proxy;
mod crash;
mod doctor_route;
mod drain;
mod end_to_end;
mod enforcement;
mod evasion;
mod expiry;
mod foreign_programs;
mod gateway;
mod grpc;
mod guard;
mod h2_clients;
mod h2_upstream;
mod handover;
mod http_semantics;
mod idle;
mod keys_in_memory;
mod logs_and_metrics;
mod long_way;
mod main_job;
mod many_connections;
mod modes;
mod names;
mod older_flows;
mod opaque;
mod other_names;
mod other_namespaces;
mod outages;
mod privileges;
mod raw_sockets;
mod reload;
mod restart;
mod revocation;
mod rotation;
mod spiffe;
mod startup_taint;
mod tunnel;
mod unguardable;
mod upgrade;
mod upstream_failures;
mod vendor_certificate;
mod warm;
mod websockets;
mod wire_calls;
mod world;
