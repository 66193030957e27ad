//! Which pods the route carries: "works from one pod, not another" is mostly a pod that is not among them.

use super::Look;
use crate::capture;
use crate::config::plan::{CaptureMode, Enforcement};
use crate::finding::{Finding, State};

impl Look<'_> {
    pub(super) fn pods(&self) -> Vec<Finding> {
        let route = self.route();
        let config = &self.wanted.config;
        if self.plan.capture.mode == CaptureMode::Off {
            let detail =
                "carried where they ask the gateway; capture is off, so whoever does not ask it goes direct";
            return vec![Finding::new("pods", "of every namespace", State::Good, detail)];
        }
        let mut findings = Vec::new();
        let let_off = route.overrides.iter().filter(|other| other.enforcement == Enforcement::Observe);
        let mut direct: Vec<String> = let_off.map(ToString::to_string).collect();
        if route.enforcement == Enforcement::Observe {
            direct.push("observe for all others".into());
        }
        findings.push(if direct.is_empty() {
            let detail = match route.weakest_enforcement() {
                Enforcement::Strict => "carried, or refused on this node; never direct",
                Enforcement::Observe | Enforcement::Loose => {
                    "carried; loose ones go direct while no agent serves on this node"
                }
            };
            Finding::new("pods", "of every namespace", State::Good, detail)
        } else {
            let detail = format!(
                "some are not carried ({}): they reach the destination themselves and present no certificate, so a \
                 STRICT upstream refuses them and serves the others",
                direct.join("; ")
            );
            Finding::new("pods", "not all of them", State::Degraded, detail)
                .next(format!("hnp-agent observed --config {config}"))
        });
        let all = capture::examine(&self.plan);
        let wrong = all.iter().filter(|finding| finding.state > State::Good);
        let wrong: Vec<_> = wrong.filter(|finding| finding.area != "kernel").collect();
        findings.push(match wrong.first() {
            None => Finding::new("pods", "on this node", State::Good, "captured"),
            Some(first) => {
                let detail = format!(
                    "capture is not as it should be ({} {}: {}): pods of this node may fare otherwise than \
                         those of others",
                    first.area, first.what, first.detail
                );
                Finding::new("pods", "on this node", State::Degraded, detail)
                    .next(format!("hnp-agent doctor --config {config}"))
            }
        });
        findings
    }
}
