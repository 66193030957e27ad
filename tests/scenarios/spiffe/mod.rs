//! What a SPIFFE Workload API gives out is presented and trusted as it is pushed, and nothing beyond it.

mod identities;
mod peers;
mod trusts;

use std::path::PathBuf;
use std::time::{Duration, SystemTime};

use hnp_tests::client::{self, Job, Report, Target};
use hnp_tests::pki::{Ca, Leaf, Spec};
use hnp_tests::scene::Scene;
use hnp_tests::topology::{MANAGER_NAME, MANAGER4, Pod};

const SOON: Duration = Duration::from_secs(20);
const RUNNER: &str = "spiffe://ours.test/ns/ci/sa/runner";

fn socket(scene: &Scene) -> PathBuf {
    scene.path("api.sock")
}

/// Of now, for so long.
fn issued(ca: &Ca, ids: &[&str], lifetime: Duration) -> Leaf {
    let now = SystemTime::now();
    ca.issue(&Spec::svid(ids).valid(now - Duration::from_secs(60), now + lifetime))
}

fn hour(ca: &Ca, ids: &[&str]) -> Leaf {
    issued(ca, ids, Duration::from_secs(3600))
}

fn ask_at(pod: &Pod, port: u16, manager: &str) -> Report {
    let target = Target::new((MANAGER4, port), MANAGER_NAME, manager);
    client::run(pod, &Job::Short { targets: vec![target], total: 1, concurrency: 1 })
}

fn ask(pod: &Pod) -> Report {
    ask_at(pod, 80, "manager")
}

fn was_refused(report: &Report, reason: &str) -> bool {
    report.failures.iter().any(|failure| failure.contains(reason))
}
