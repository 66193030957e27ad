//! This node as a whole: what capture finds of it, and beyond that what the running agent says of itself, whether a
//! process in a pod's place is indeed redirected, and whether the container runtime and the API server answer.

mod redirect;
mod running;

use crate::admin::client::Agent;
use crate::capture;
use crate::config::plan::{CaptureMode, Plan};
use crate::finding::Finding;
use crate::kubernetes;
use crate::workload;

/// Looks at everything. `config` is the configuration's file, for what to type next.
///
/// # Errors
/// When no runtime can be made.
pub fn examine(plan: &Plan, config: &str) -> std::io::Result<Vec<Finding>> {
    let mut findings = capture::examine(plan);
    let agent = Agent::in_run_dir(&plan.run_dir);
    let (said, status) = running::look(&agent, config);
    findings.extend(said);
    if plan.capture.mode == CaptureMode::On {
        findings.push(redirect::test(plan, &agent, status.as_ref()));
    }
    findings.push(workload::runtime::examine(plan));
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    findings.extend(runtime.block_on(kubernetes::examine(plan)));
    Ok(findings)
}
