//! Whether this node's clock and the upstream's agree: by the Date of an answer, else by certificates' dates.

use hnp_common::Reason;
use serde_json::json;

use super::client_auth::{Without, says_expired};
use super::request::{Answer, Asking};
use super::{Look, skipped};
use crate::finding::{Finding, State};
use crate::skew::{Clocks, TOLERANCE};
use crate::telemetry::rfc3339;
use crate::x509::span;

/// An answer that says what time it is.
pub(super) fn dated<'a>(answers: &'a [Asking], without: &'a Without) -> Option<&'a Answer> {
    let all = answers.iter().filter_map(|asking| asking.outcome.as_ref().ok()?.as_ref());
    all.chain(without.answer()).find(|answer| answer.date.is_some())
}

impl Look<'_> {
    pub(super) fn clock(&self, answer: Option<&Answer>, findings: &mut Vec<Finding>) {
        let (area, what) = ("clock", "this node's and the upstream's");
        let dated = answer.and_then(|answer| Some((answer, answer.date?)));
        let Some((answer, theirs)) = dated else {
            findings.push(self.by_certificates(findings));
            return;
        };
        let clocks = Clocks { here: answer.came, there: theirs };
        let facts = json!({
            "here": rfc3339(clocks.here), "there": rfc3339(theirs), "apart_seconds": clocks.apart().as_secs()
        });
        let not_valid = self.identity.as_ref().and_then(|own| own.not_valid_at(theirs));
        let detail = clocks.words();
        let finding = if clocks.apart() <= TOLERANCE + answer.took {
            Finding::new(area, what, State::Good, format!("agree within {}", span(TOLERANCE)))
        } else if let Some(why) = not_valid {
            let detail = format!("{detail}; by its clock our certificate is not valid: {why}");
            Finding::bad(area, what, Reason::ClientCertificateRefused, detail).next(NEXT)
        } else {
            let detail =
                format!("{detail}: certificates that are new or about to end are refused on one of the two");
            Finding::new(area, what, State::Degraded, detail).next(NEXT)
        };
        findings.push(finding.seen(Vec::new(), facts));
    }

    /// Nobody said what time it is: what certificates' dates hint at.
    fn by_certificates(&self, findings: &[Finding]) -> Finding {
        let (area, what) = ("clock", "this node's");
        let theirs = findings.iter().find(|finding| {
            finding.area == "certificate" && finding.reason == Some(Reason::UpstreamCertificateExpired)
        });
        let refused = |finding: &&Finding| {
            finding.reason == Some(Reason::ClientCertificateRefused) && says_expired(&finding.detail)
        };
        let refused = findings.iter().filter(|finding| finding.area == "client-auth").find(refused);
        let own = self.identity.as_ref().and_then(|own| own.not_valid_at(self.now));
        let here = rfc3339(crate::clock::now());
        match (theirs, own) {
            (Some(_), Some(_)) => {
                let detail = format!(
                    "says {here}, and neither the upstream's certificate nor our own is valid then: it is more likely \
                     that the clock is wrong than that both are"
                );
                let reason = Reason::UpstreamCertificateExpired;
                Finding::bad(area, what, reason, detail).next(NEXT)
            }
            (Some(_), None) => {
                let detail = format!(
                    "says {here}; our own certificate is valid then and the upstream's is not: compare the clock before \
                     anything is renewed"
                );
                Finding::new(area, what, State::Degraded, detail).next(NEXT)
            }
            (None, None) if refused.is_some() => {
                let detail = format!(
                    "says {here}; our own certificate is valid then, and the upstream says that it is not valid at this \
                     time: compare the clocks before anything is renewed"
                );
                Finding::new(area, what, State::Degraded, detail).next(NEXT)
            }
            (None, _) => skipped(area, what, "no answer said what time it is there"),
        }
    }
}

const NEXT: &str = "date -u; timedatectl timesync-status, here and at the upstream";
