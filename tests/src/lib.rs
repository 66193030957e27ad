//! The test kit: a world of network namespaces and cgroups in which the real agent, the real kernel
//! programs and a real TLS manager meet.
//!
//! Nothing here imitates hnp. A [`topology::Topology`] is a node with pods whose cgroups are shaped
//! like a kubelet's, a [`manager::Manager`] speaks real TLS, clients are real programs started inside
//! pods, and [`agent::Agent`] is the binary that ships. The scenarios under `scenarios/` and the
//! `hnp-demo` binary are written with these words. Needs root; the host's own network, cgroups and
//! `/etc` stay as they are.

pub mod agent;
pub mod aloud;
pub mod api_server;
pub mod browser;
pub mod cgroup;
pub mod client;
pub mod clock;
pub mod corporate;
pub mod cri;
pub mod delay;
pub mod dns;
pub mod evasion;
pub mod grpc;
pub mod haproxy;
pub mod kernel;
pub mod manager;
pub mod netns;
pub mod nginx;
pub mod node;
pub mod openssl_peer;
pub mod pattern;
pub mod pinned;
pub mod pki;
pub mod poll;
pub mod process;
pub mod prometheus;
pub mod scene;
pub mod sniffer;
pub mod spiffe;
pub mod tls_peers;
pub mod tools;
pub mod topology;
pub mod wire;
