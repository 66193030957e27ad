//! What hnp promises, with real pods: containerd, CNI and runc, and the agent from its own image in the pod that
//! `deploy/` describes.
//!
//! A test of its own beside the scenarios, because it needs what only `cargo xtask test --tier node` brings: the
//! packages of a container runtime, and the image.

mod first_act;
mod image;
mod limits;
mod renderings;
mod transient;

use std::path::Path;

use hnp_tests::node::Manifest;

/// The DaemonSet that ships.
fn manifest() -> Manifest {
    Manifest::read(&Path::new(env!("CARGO_MANIFEST_DIR")).join("../deploy/manifests/hnp.yaml"))
}
