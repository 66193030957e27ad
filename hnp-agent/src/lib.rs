//! hnp-agent: takes what pods send to a destination and carries it to the upstream over mutual TLS.
//!
//! The rooms and who may know whom are drawn in DESIGN.md. `app` is the only file that knows them all.

pub mod admin;
pub mod app;
pub mod backoff;
pub mod capture;
pub mod certs;
pub mod cli;
pub mod clock;
pub mod confidential;
pub mod config;
pub mod crypto;
pub mod diagnosis;
pub mod direct;
pub mod expiry;
pub mod files;
pub mod finding;
#[cfg(any(test, feature = "fuzzing"))]
pub mod fuzzing;
pub mod generation;
pub mod grpc;
pub mod handover;
pub mod http2;
pub mod identity;
pub mod kubernetes;
pub mod memory;
pub mod percent;
pub mod policy;
pub mod proxy;
pub mod reload;
pub mod resolve;
pub mod rota;
pub mod run_dir;
pub mod serving;
pub mod skew;
pub mod spiffe;
pub mod tasks;
pub mod telemetry;
pub mod trust;
pub mod upkeep;
pub mod upstream;
pub mod workload;
pub mod x509;
