//! A changed configuration, judged: all of it can be used, or none of it is.

use std::fmt;
use std::path::Path;

use super::CanKeep;
use super::difference::in_force;
use super::sources::Sources;
use crate::config::plan::{CaptureMode, Cidr, Host, Plan, Target};
use crate::config::{self, LoadError, Mistake};
use crate::files;
use crate::resolve::Resolver;

/// What can be used of a configuration.
pub(super) struct Candidate {
    /// What is to be in force; agrees with the running one in all that waits for a restart.
    pub(super) plan: Plan,
    /// The keys that wait for a restart.
    pub(super) waiting: Vec<&'static str>,
    /// What is allowed and still looks like a mistake.
    pub(super) warnings: Vec<Mistake>,
}

/// Why a configuration cannot be used: each mistake as `check` prints it.
#[derive(Debug)]
pub(super) struct Refusal {
    mistakes: Vec<String>,
    /// The mistakes are in other files, which may change while this one stays as it is.
    elsewhere: bool,
}

impl Candidate {
    /// Judges a configuration's text. Reads what it names and `running` does not, and changes nothing.
    pub(super) fn of(
        text: Result<String, LoadError>,
        path: &Path,
        running: &Plan,
        (sources, can_keep): (&Sources, &CanKeep),
    ) -> Result<Self, Refusal> {
        let read = text.and_then(|text| Ok(config::parse_with_warnings(&text, path)?));
        let (written, warnings) = read.map_err(|error| Refusal {
            mistakes: error.to_string().lines().map(str::to_owned).collect(),
            elsewhere: false,
        })?;
        let (plan, waiting) = in_force(running, written);
        let mut mistakes = sources.mistakes(&plan);
        mistakes.extend(captured_by_vips(&plan));
        mistakes.extend(issuers_that_know_nobody(&plan));
        mistakes.extend(can_keep(&plan.strict_routes()).map(|why| ("routes".into(), why)));
        if plan.resolver != running.resolver
            && let Err(error) = Resolver::new(&plan.resolver)
        {
            mistakes.push(("resolver".into(), error.to_string()));
        }
        if !mistakes.is_empty() {
            let located = |(key, what)| format!("{}: {key}: {what}", path.display());
            return Err(Refusal { mistakes: mistakes.into_iter().map(located).collect(), elsewhere: true });
        }
        Ok(Self { plan, waiting, warnings })
    }
}

/// The reader compares addresses with the VIP ranges in the file; those in force may be others.
fn captured_by_vips(plan: &Plan) -> Vec<(String, String)> {
    let vips = [plan.capture.vips4, plan.capture.vips6];
    let mut mistakes = Vec::new();
    for (index, route) in plan.routes.iter().enumerate() {
        let upstream = match route.upstream.host {
            Host::Addr(addr) => Some((format!("routes[{index}].upstream"), Cidr::host(addr))),
            Host::Name(_) => None,
        };
        let destinations = route.destinations.iter().enumerate().filter_map(|(at, one)| match one.target {
            Target::Net(net) => Some((format!("routes[{index}].destinations[{at}]"), net)),
            Target::Name(_) => None,
        });
        for (key, net) in destinations.chain(upstream) {
            if vips.iter().any(|range| range.overlaps(&net)) {
                let net = net.single().map_or_else(|| net.to_string(), |addr| addr.to_string());
                let what = format!("{net} lies in the VIP range in force, which changes only with a restart");
                mistakes.push((key, what));
            }
        }
    }
    mistakes
}

/// The reader looks for a cluster and for capture in the file; what is in force may lack them.
fn issuers_that_know_nobody(plan: &Plan) -> Vec<(String, String)> {
    if plan.kubernetes.is_some() && plan.capture.mode == CaptureMode::On {
        return Vec::new();
    }
    let routes = plan.routes.iter().enumerate().filter(|(_, route)| plan.issuer_for(route).is_some());
    let what = "issues for workloads: that needs `kubernetes` and `capture.mode: on` in force, which change only with a \
                restart";
    routes.map(|(index, _)| (format!("routes[{index}].identity"), what.to_owned())).collect()
}

impl files::reload::LoadError for Refusal {
    fn may_pass(&self) -> bool {
        self.elsewhere
    }
}

/// On one line, whatever the log's format.
impl fmt::Display for Refusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.mistakes.join(" | "))
    }
}
